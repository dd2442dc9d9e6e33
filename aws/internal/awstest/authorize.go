package awstest

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"countersign.dev/aws/internal/awstest/iam"
)

// need is one thing that the caller must be allowed to do for a request to pass.
type need struct {
	action   string
	resource string
	context  map[string][]string // beyond what every request carries
	policy   *iam.Document       // of the resource; nil: none
	decisive bool                // see iam.Policies
	refused  *refusal            // what the caller is told in place of AWS's usual words
}

// authorize decides by the policies on everything that the request needs, as AWS does before the service sees it.
func (c *Cloud) authorize(ctx context.Context, q *request) *refusal {
	if q.action() == "sts:GetCallerIdentity" { // which no policy can deny
		c.record(q, Call{Action: q.action(), Resource: "*", Allowed: true})
		return nil
	}
	needs, refused := c.needs(ctx, q)
	if refused != nil {
		return refused
	}
	var documents []*iam.Document
	if !q.caller.root {
		documents = c.identityPolicies(q.caller.role)
	}
	for _, n := range needs {
		if refused := c.decide(q, n, documents); refused != nil {
			c.failed(q, n.action+" is refused")
			return refused
		}
	}
	return nil
}

// decide evaluates one need and writes it down. The root of the account is above policies here: tests prepare and look at
// everything with it.
func (c *Cloud) decide(q *request, n need, documents []*iam.Document) *refusal {
	call := Call{Action: n.action, Resource: n.resource, Allowed: true}
	if q.caller.root {
		c.record(q, call)
		return nil
	}
	decision := iam.Decide(iam.Request{
		Caller:   iam.Caller{Account: Account, Role: q.caller.role.arn, Session: q.caller.arn()},
		Action:   n.action,
		Resource: n.resource,
		Context:  mergedContext(q, n.context),
	}, iam.Policies{Identity: documents, Resource: n.policy, Decisive: n.decisive})
	call.Allowed, call.Why = decision.Allowed, decision.Why
	c.record(q, call)
	if decision.Allowed {
		return nil
	}
	if n.refused != nil {
		return n.refused
	}
	return &refusal{kind: denied, message: fmt.Sprintf("User: %s is not authorized to perform: %s on resource: %s %s",
		q.caller.arn(), n.action, n.resource, decision.Why)}
}

// Decide tells whether the role could do the action on the resource, an ARN or "*", by its own policies and those of the
// secret or key, without asking for it: what a test of everything that must not be possible uses. The context holds the
// condition keys that a request of that kind would carry beyond those that every request does.
func (c *Cloud) Decide(role, action, resource string, extra map[string][]string) (iam.Decision, error) {
	c.mu.Lock()
	known := c.roles[nameOf(role)]
	c.mu.Unlock()
	if known == nil {
		return iam.Decision{}, fmt.Errorf("no role %q: PutRole or iam:CreateRole makes it", role)
	}
	var f facts
	var err error
	service, operation, _ := strings.Cut(action, ":")
	switch {
	case service == "secretsmanager" && strings.HasPrefix(resource, "arn:"):
		f, err = c.secret(context.Background(), resource)
	case service == "kms" && strings.HasPrefix(resource, "arn:"):
		f, err = c.key(context.Background(), resource)
	}
	if err != nil {
		return iam.Decision{}, err
	}
	q := &request{service: service, operation: operation, caller: &session{role: known, name: "test"}}
	values := mergedContext(q, extra)
	if service == "secretsmanager" && resource != "*" {
		values["secretsmanager:SecretId"] = []string{resource}
	}
	return iam.Decide(iam.Request{
		Caller: iam.Caller{Account: Account, Role: known.arn, Session: q.caller.arn()}, Action: action, Resource: resource, Context: values,
	}, iam.Policies{Identity: c.identityPolicies(known), Resource: f.policy, Decisive: service == "kms" && f.arn != ""}), nil
}

// mergedContext is what every request carries, and what this one does. The front's own address is plain HTTP where AWS's are
// not, and stands for those.
func mergedContext(q *request, extra map[string][]string) map[string][]string {
	context := map[string][]string{
		"aws:PrincipalAccount":        {Account},
		"aws:PrincipalArn":            {q.caller.role.arn},
		"aws:PrincipalIsAWSService":   {"false"},
		"aws:PrincipalType":           {"AssumedRole"},
		"aws:RequestedRegion":         {Region},
		"aws:SecureTransport":         {"true"},
		"aws:ViaAWSService":           {"false"},
		"kms:CallerAccount":           {Account},
		"kms:GrantIsForAWSResource":   {"false"},
		"secretsmanager:VersionStage": optional(q.str("VersionStage")),
		"secretsmanager:VersionId":    optional(q.str("VersionId")),
	}
	maps.Copy(context, extra)
	return context
}

// optional is the value, or none.
func optional(value string) []string {
	if value == "" {
		return nil
	}
	return []string{value}
}

// identityPolicies are the role's own and attached ones. A managed policy that is not known allows nothing.
func (c *Cloud) identityPolicies(r *role) []*iam.Document {
	c.mu.Lock()
	defer c.mu.Unlock()
	var documents []*iam.Document
	for _, document := range r.inline {
		documents = append(documents, document)
	}
	for arn := range r.attached {
		if document := c.managed[arn]; document != nil {
			documents = append(documents, document)
		}
	}
	return documents
}

// policyIn are the parameters that hold a policy, and its kind.
var policyIn = map[string]struct {
	parameter string
	kind      iam.Kind
}{
	"iam:CreateRole":                   {"AssumeRolePolicyDocument", iam.Trust},
	"iam:UpdateAssumeRolePolicy":       {"PolicyDocument", iam.Trust},
	"iam:PutRolePolicy":                {"PolicyDocument", iam.Identity},
	"iam:CreatePolicy":                 {"PolicyDocument", iam.Identity},
	"iam:CreatePolicyVersion":          {"PolicyDocument", iam.Identity},
	"secretsmanager:PutResourcePolicy": {"ResourcePolicy", iam.Resource},
	"kms:CreateKey":                    {"Policy", iam.Resource},
	"kms:PutKeyPolicy":                 {"Policy", iam.Resource},
}

// checkPolicies refuses a policy that the front could not evaluate later. A key may be made without one.
func (c *Cloud) checkPolicies(q *request) *refusal {
	in := policyIn[q.action()]
	text := q.str(in.parameter)
	if in.parameter == "" || text == "" && q.action() == "kms:CreateKey" {
		return nil
	}
	document, err := iam.Parse(in.kind, []byte(text))
	if err != nil {
		c.t.Logf("%s: the front refuses a policy: %v", q.action(), err)
		code := "MalformedPolicyDocumentException"
		if q.protocol == queryProtocol {
			code = "MalformedPolicyDocument"
		}
		return &refusal{kind: malformed, code: code, message: err.Error()}
	}
	q.policy = document
	return nil
}
