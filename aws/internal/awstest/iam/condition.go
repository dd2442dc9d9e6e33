package iam

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Keys are the condition keys whose values a Request may carry, in the spelling of AWS's documentation; policies may spell
// them in any case. A key that ends in ":" or "/" stands for all that begin so.
var Keys = []string{
	"aws:CalledVia", "aws:PrincipalAccount", "aws:PrincipalArn", "aws:PrincipalIsAWSService", "aws:PrincipalServiceName",
	"aws:PrincipalType", "aws:RequestedRegion", "aws:SecureTransport", "aws:SourceAccount", "aws:SourceArn", "aws:ViaAWSService",
	"aws:RequestTag/", "aws:ResourceTag/",
	"acm:CertificateAuthority", "acm:DomainNames", "acm:KeyAlgorithm",
	"acm-pca:TemplateArn",
	"cloudwatch:namespace",
	"ecs:cluster", "ecs:task-definition",
	"iam:AssociatedResourceArn", "iam:PassedToService",
	"kms:CallerAccount", "kms:EncryptionContext:", "kms:EncryptionContextKeys", "kms:GrantIsForAWSResource", "kms:ViaService",
	"lambda:SourceFunctionArn",
	"secretsmanager:BlockPublicPolicy", "secretsmanager:Name", "secretsmanager:SecretId", "secretsmanager:VersionId", "secretsmanager:VersionStage",
	"sts:RoleSessionName",
}

// condition is one key of one operator.
type condition struct {
	operator string // without set prefix and IfExists
	set      string // "", ForAllValues or ForAnyValue
	ifExists bool
	key      string // in lower case
	values   []string
}

// operators compare one value of the request with one of the policy.
var operators = map[string]func(value, want string) bool{
	"StringEquals":           func(value, want string) bool { return value == want },
	"StringEqualsIgnoreCase": strings.EqualFold,
	"StringLike":             func(value, want string) bool { return match(want, value) },
	"ArnEquals":              func(value, want string) bool { return matchARN(want, value) },
	"ArnLike":                func(value, want string) bool { return matchARN(want, value) },
	"Bool":                   strings.EqualFold,
	"NumericEquals":          func(value, want string) bool { return numeric(value, want, func(a, b float64) bool { return a == b }) },
	"NumericLessThanEquals":  func(value, want string) bool { return numeric(value, want, func(a, b float64) bool { return a <= b }) },
}

// negated are the operators that hold where another does not.
var negated = map[string]string{
	"StringNotEquals":           "StringEquals",
	"StringNotEqualsIgnoreCase": "StringEqualsIgnoreCase",
	"StringNotLike":             "StringLike",
	"ArnNotEquals":              "ArnEquals",
	"ArnNotLike":                "ArnLike",
	"NumericNotEquals":          "NumericEquals",
}

func numeric(value, want string, compare func(a, b float64) bool) bool {
	a, err := strconv.ParseFloat(value, 64)
	if err != nil {
		return false
	}
	b, err := strconv.ParseFloat(want, 64)
	return err == nil && compare(a, b)
}

// parseConditions refuses operators and keys that are not known.
func parseConditions(in map[string]map[string]texts) ([]condition, error) {
	var conditions []condition
	for _, written := range slices.Sorted(maps.Keys(in)) {
		operator, set := written, ""
		if before, after, found := strings.Cut(written, ":"); found {
			set, operator = before, after
			if set != "ForAllValues" && set != "ForAnyValue" {
				return nil, fmt.Errorf("condition: %q is not known", written)
			}
		}
		operator, ifExists := strings.CutSuffix(operator, "IfExists")
		_, isNegated := negated[operator]
		if operators[operator] == nil && !isNegated && (operator != "Null" || ifExists || set != "") {
			return nil, fmt.Errorf("condition: the operator %q is not known", written)
		}
		for _, key := range slices.Sorted(maps.Keys(in[written])) {
			c := condition{operator: operator, set: set, ifExists: ifExists, key: strings.ToLower(key), values: in[written][key]}
			if err := c.check(); err != nil {
				return nil, fmt.Errorf("condition %s: %w", written, err)
			}
			conditions = append(conditions, c)
		}
	}
	return conditions, nil
}

func (c condition) check() error {
	known := slices.ContainsFunc(Keys, func(key string) bool {
		key = strings.ToLower(key)
		return key == c.key || (strings.HasSuffix(key, ":") || strings.HasSuffix(key, "/")) && strings.HasPrefix(c.key, key) && len(c.key) > len(key)
	})
	if !known {
		return fmt.Errorf("the key %q is not known", c.key)
	}
	if len(c.values) == 0 {
		return fmt.Errorf("%s has no value", c.key)
	}
	for _, value := range c.values {
		if err := checkVariables(value); err != nil {
			return fmt.Errorf("%s: %w", c.key, err)
		}
		switch {
		case (c.operator == "Null" || c.operator == "Bool") && !strings.EqualFold(value, "true") && !strings.EqualFold(value, "false"):
			return fmt.Errorf("%s: %q is neither true nor false", c.key, value)
		case strings.HasPrefix(c.operator, "Arn") && len(strings.SplitN(value, ":", arnParts)) != arnParts:
			return fmt.Errorf("%s: %q is not an ARN of six parts", c.key, value)
		}
	}
	return nil
}

// holds follows https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_condition-logic-multiple-context-keys-or-values.html:
// a key that is absent fails a positive operator and satisfies a negated one; ForAllValues holds for none at all.
func (c condition) holds(context map[string][]string) bool {
	values, present := lookup(context, c.key)
	if c.operator == "Null" {
		return slices.ContainsFunc(c.values, func(want string) bool { return strings.EqualFold(want, "true") != present })
	}
	positive, negate := negated[c.operator]
	if !negate {
		positive = c.operator
	}
	if !present {
		return c.ifExists || c.set == "ForAllValues" || c.set == "" && negate
	}
	one := func(value string) bool {
		matches := slices.ContainsFunc(c.values, func(want string) bool {
			want, ok := expand(want, context, true)
			return ok && operators[positive](value, want)
		})
		return matches != negate
	}
	switch c.set {
	case "ForAnyValue":
		return slices.ContainsFunc(values, one)
	case "ForAllValues":
		return !slices.ContainsFunc(values, func(value string) bool { return !one(value) })
	default:
		// A key with one value; were there several, all would have to do.
		return !slices.ContainsFunc(values, func(value string) bool { return !one(value) })
	}
}

// lookup finds a key of the request in any case. A key without values is absent.
func lookup(context map[string][]string, key string) ([]string, bool) {
	for name, values := range context {
		if strings.EqualFold(name, key) {
			return values, len(values) > 0
		}
	}
	return nil, false
}

var variable = regexp.MustCompile(`\$\{([^}]*)\}`)

// checkVariables refuses variables that could not be given a value.
func checkVariables(text string) error {
	for _, found := range variable.FindAllStringSubmatch(text, -1) {
		name := found[1]
		if name == "*" || name == "?" || name == "$" {
			continue
		}
		if !slices.ContainsFunc(Keys, func(key string) bool { return strings.EqualFold(key, name) }) {
			return fmt.Errorf("the variable ${%s} is not known", name)
		}
	}
	return nil
}

// expand puts values in place of variables. What a value contains is never a wildcard. It is false where a variable has no
// value, or several: then nothing matches.
func expand(text string, context map[string][]string, wildcards bool) (string, bool) {
	complete := true
	expanded := variable.ReplaceAllStringFunc(text, func(found string) string {
		name := found[2 : len(found)-1]
		value := name
		if name != "*" && name != "?" && name != "$" {
			values, _ := lookup(context, name)
			if len(values) != 1 {
				complete = false
				return ""
			}
			value = values[0]
		}
		if wildcards {
			value = literal.Replace(value)
		}
		return value
	})
	return expanded, complete
}
