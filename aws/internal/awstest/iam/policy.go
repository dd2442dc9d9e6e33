// Package iam evaluates AWS policies as far as generated ones need proof: who may do what on which ARN. It knows identity
// policies, resource policies, key policies and trust policies of one account, explicit deny, wildcards, the elements
// that begin with Not, policy variables, and the operators and keys of conditions that are used here. What it does not
// know it refuses when a policy is read, so that no decision rests on a condition that was skipped. There are no
// permissions boundaries, session policies, organizations, grants or other accounts.
//
// The rules are those of
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html.
package iam

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// ErrPolicy is what every error about a policy's text is.
var ErrPolicy = errors.New("not a policy that can be evaluated")

// Kind is what a policy is attached to; it decides which elements a statement has.
type Kind int

// The kinds of policies.
const (
	Identity Kind = iota // of a role: no principal
	Resource             // of a secret or a key: a principal and a resource
	Trust                // of a role, who may take it: a principal, no resource
)

// MaxSize is the length of the longest policy that is read, in bytes: that of a key, the longest that AWS takes here.
const MaxSize = 32 << 10

// Document is a policy that was read and understood whole. It does not change.
type Document struct {
	statements []statement
}

// statement has each element in one of its two forms, and a flag for the form that begins with Not.
type statement struct {
	sid        string
	deny       bool
	actions    []string
	notAction  bool
	resources  []string
	notRes     bool
	principals []principal
	notPrinc   bool
	conditions []condition
}

// principal is one entry of Principal: AWS or Service, and its value. Everybody is AWS "*".
type principal struct{ kind, value string }

// texts is a string or a list of strings, as policies write both.
type texts []string

func (t *texts) UnmarshalJSON(data []byte) error {
	var one scalar
	if err := json.Unmarshal(data, &one); err == nil {
		*t = texts{string(one)}
		return nil
	}
	var many []scalar
	if err := json.Unmarshal(data, &many); err != nil {
		return errors.New("want a string or a list of strings")
	}
	*t = texts{}
	for _, s := range many {
		*t = append(*t, string(s))
	}
	return nil
}

// scalar is a string; conditions may write true and 5 without quotes.
type scalar string

func (s *scalar) UnmarshalJSON(data []byte) error {
	switch data[0] {
	case '"':
		return json.Unmarshal(data, (*string)(s))
	case '{', '[', 'n':
		return errors.New("want a string")
	default:
		*s = scalar(data)
		return nil
	}
}

type statementJSON struct {
	Sid          string
	Effect       string
	Action       *texts
	NotAction    *texts
	Resource     *texts
	NotResource  *texts
	Principal    json.RawMessage
	NotPrincipal json.RawMessage
	Condition    map[string]map[string]texts
}

// Parse reads a policy of the kind. Its errors are ErrPolicy and name the statement.
func Parse(kind Kind, text []byte) (*Document, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrPolicy, MaxSize)
	}
	var policy struct {
		Version   string
		ID        string `json:"Id"`
		Statement json.RawMessage
	}
	if err := strict(text, &policy); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	if policy.Version != "2012-10-17" {
		return nil, fmt.Errorf(`%w: Version is %q, want "2012-10-17"`, ErrPolicy, policy.Version)
	}
	statements, err := listOf(policy.Statement)
	if err != nil {
		return nil, fmt.Errorf("%w: Statement: %w", ErrPolicy, err)
	}
	document := &Document{}
	sids := map[string]bool{}
	for i, raw := range statements {
		s, err := parseStatement(kind, raw)
		if err == nil && s.sid != "" && sids[s.sid] {
			err = errors.New("another statement has this Sid")
		}
		if err != nil {
			return nil, fmt.Errorf("%w: statement %d (Sid %q): %w", ErrPolicy, i+1, s.sid, err)
		}
		sids[s.sid] = true
		document.statements = append(document.statements, s)
	}
	return document, nil
}

// listOf is a list with at least one entry, or the one entry that stands for it.
func listOf(raw json.RawMessage) ([]json.RawMessage, error) {
	raw = bytes.TrimSpace(raw)
	if len(raw) > 0 && raw[0] == '{' {
		return []json.RawMessage{raw}, nil
	}
	var many []json.RawMessage
	if err := json.Unmarshal(raw, &many); err != nil || len(many) == 0 {
		return nil, errors.New("want at least one statement")
	}
	return many, nil
}

// strict reads one JSON value whose fields are all known, and nothing after it.
func strict(text []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON value")
	}
	return nil
}

func parseStatement(kind Kind, raw json.RawMessage) (statement, error) {
	var in statementJSON
	if err := strict(raw, &in); err != nil {
		return statement{}, err
	}
	s := statement{sid: in.Sid}
	switch in.Effect {
	case "Allow":
	case "Deny":
		s.deny = true
	default:
		return s, fmt.Errorf("the Effect is %q, want Allow or Deny", in.Effect)
	}
	var err error
	if s.actions, s.notAction, err = either("Action", in.Action, in.NotAction); err != nil {
		return s, err
	}
	for _, action := range s.actions {
		if !actionForm.MatchString(action) {
			return s, fmt.Errorf("the action %q is not SERVICE:OPERATION", action)
		}
	}
	if err := s.parseResources(kind, in); err != nil {
		return s, err
	}
	if err := s.parsePrincipals(kind, in); err != nil {
		return s, err
	}
	s.conditions, err = parseConditions(in.Condition)
	return s, err
}

var actionForm = regexp.MustCompile(`^(\*|[a-z][a-z0-9-]*:[A-Za-z0-9*?]+)$`)

// either is the element in the form that is there.
func either(name string, plain, not *texts) ([]string, bool, error) {
	switch {
	case plain != nil && not != nil:
		return nil, false, fmt.Errorf("%s and Not%s exclude each other", name, name)
	case plain == nil && not == nil:
		return nil, false, fmt.Errorf("%s is missing", name)
	case plain == nil:
		plain = not
	}
	if len(*plain) == 0 {
		return nil, false, fmt.Errorf("%s is empty", name)
	}
	return *plain, not != nil, nil
}

func (s *statement) parseResources(kind Kind, in statementJSON) error {
	if kind == Trust {
		if in.Resource != nil || in.NotResource != nil {
			return errors.New("a trust policy has no Resource")
		}
		s.resources = []string{"*"}
		return nil
	}
	var err error
	if s.resources, s.notRes, err = either("Resource", in.Resource, in.NotResource); err != nil {
		return err
	}
	for _, pattern := range s.resources {
		if err := checkVariables(pattern); err != nil {
			return fmt.Errorf("resource: %w", err)
		}
		if pattern != "*" && len(strings.SplitN(pattern, ":", arnParts)) != arnParts || pattern != "*" && !strings.HasPrefix(pattern, "arn:") {
			return fmt.Errorf("the resource %q is neither * nor an ARN of six parts", pattern)
		}
	}
	return nil
}

func (s *statement) parsePrincipals(kind Kind, in statementJSON) error {
	raw, not := in.Principal, in.NotPrincipal
	switch {
	case kind == Identity && (raw != nil || not != nil):
		return errors.New("the policy of a role has no Principal: it is the role")
	case kind == Identity:
		return nil
	case raw == nil && not == nil:
		return errors.New("the Principal is missing")
	case raw != nil && not != nil:
		return errors.New("the elements Principal and NotPrincipal exclude each other")
	case not != nil:
		raw, s.notPrinc = not, true
	}
	if string(bytes.TrimSpace(raw)) == `"*"` {
		s.principals = []principal{{"AWS", "*"}}
		return nil
	}
	var kinds map[string]texts
	if err := json.Unmarshal(raw, &kinds); err != nil {
		return errors.New(`want "*" or an object of AWS or Service as Principal`)
	}
	for name, values := range kinds {
		for _, value := range values {
			if err := checkPrincipal(name, value); err != nil {
				return err
			}
			s.principals = append(s.principals, principal{name, value})
		}
	}
	if len(s.principals) == 0 {
		return errors.New("the Principal is empty")
	}
	return nil
}

var (
	principalARN = regexp.MustCompile(`^(\*|[0-9]{12}|arn:aws[a-z-]*:(iam|sts)::[0-9]{12}:(root|(role|user|assumed-role)/[^*?]+))$`)
	principalSvc = regexp.MustCompile(`^[a-z0-9.-]+\.amazonaws\.com$`)
)

// checkPrincipal knows that a principal's ARN has no wildcards: AWS takes * for everybody and nothing else.
func checkPrincipal(name, value string) error {
	switch {
	case name == "AWS" && principalARN.MatchString(value):
	case name == "Service" && principalSvc.MatchString(value):
	case name != "AWS" && name != "Service":
		return fmt.Errorf("the principal %q: only AWS and Service are known here", name)
	default:
		return fmt.Errorf("the principal %s: %q is no account, role or service, and * stands only alone", name, value)
	}
	return nil
}
