package iam

import (
	"slices"
	"strings"
)

// Caller is who asks: a session of a role, or an AWS service for itself.
type Caller struct {
	Account string // twelve digits; empty for a service
	Role    string // the role's ARN
	Session string // the ARN of its session, arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION
	Service string // such as ecs-tasks.amazonaws.com, in place of the others
}

// root is the principal that stands for the account.
func (c Caller) root() string { return "arn:aws:iam::" + c.Account + ":root" }

// Request is what is asked.
type Request struct {
	Caller   Caller
	Action   string              // such as secretsmanager:GetSecretValue
	Resource string              // an ARN, or "*" where the operation has none
	Context  map[string][]string // the values of condition keys; Keys lists those that policies may use
}

// Policies are what decides.
type Policies struct {
	Identity []*Document // of the caller's role
	Resource *Document   // of what is asked for; nil: it has none
	// Decisive: the resource's own policy must allow, or hand over to the account; as with keys. Otherwise one of the two is enough.
	Decisive bool
}

// Decision is the outcome and its reason.
type Decision struct {
	Allowed  bool
	Explicit bool   // a statement denies it, rather than none allowing it
	Why      string // for what is denied, as AWS's messages say it: "because no identity-based policy allows the X action"
}

// Decide evaluates. A deny anywhere counts more than anything that allows.
func Decide(request Request, policies Policies) Decision {
	for _, document := range policies.Identity {
		if document.find(request, true, identity) {
			return Decision{Explicit: true, Why: "with an explicit deny in an identity-based policy"}
		}
	}
	if policies.Resource.find(request, true, toCaller) {
		return Decision{Explicit: true, Why: "with an explicit deny in a resource-based policy"}
	}
	byIdentity := slices.ContainsFunc(policies.Identity, func(d *Document) bool { return d.find(request, false, identity) })
	byResource := policies.Resource.find(request, false, directly)
	byAccount := policies.Resource.find(request, false, throughAccount)
	allowed := byIdentity || byResource
	if policies.Decisive {
		allowed = byResource || byAccount && byIdentity
	}
	if allowed {
		return Decision{Allowed: true}
	}
	if policies.Decisive && !byAccount {
		return Decision{Why: "because no resource-based policy allows the " + request.Action + " action"}
	}
	return Decision{Why: "because no identity-based policy allows the " + request.Action + " action"}
}

// Trusts tells whether the trust policy lets the caller take the role.
func Trusts(trust *Document, caller Caller, context map[string][]string) bool {
	request := Request{Caller: caller, Action: "sts:AssumeRole", Resource: "*", Context: context}
	return !trust.find(request, true, toCaller) && trust.find(request, false, directly)
}

// reach is how a statement's principal comes to the caller.
type reach int

const (
	identity       reach = iota // the statement stands in the caller's own policy
	directly                    // it names the role, the session, the service, or everybody
	throughAccount              // it names the account, whose own policies then count as well
	toCaller                    // either: what a deny needs
)

// find tells whether a statement of the effect applies.
func (d *Document) find(request Request, deny bool, how reach) bool {
	return d != nil && slices.ContainsFunc(d.statements, func(s statement) bool {
		return s.deny == deny && s.principal(request.Caller, how) && s.action(request.Action) && s.resource(request) &&
			!slices.ContainsFunc(s.conditions, func(c condition) bool { return !c.holds(request.Context) })
	})
}

// action compares without regard to case, as AWS does.
func (s statement) action(action string) bool {
	action = strings.ToLower(action)
	return s.notAction != slices.ContainsFunc(s.actions, func(pattern string) bool { return match(strings.ToLower(pattern), action) })
}

func (s statement) resource(request Request) bool {
	return s.notRes != slices.ContainsFunc(s.resources, func(pattern string) bool {
		pattern, ok := expand(pattern, request.Context, true)
		return ok && matchResource(pattern, request.Resource)
	})
}

// principal follows https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_principal.html and
// ..._elements_notprincipal.html: what NotPrincipal is to spare must be named as account, role and session.
func (s statement) principal(caller Caller, how reach) bool {
	if how == identity {
		return true
	}
	names := []principal{{"AWS", caller.Role}, {"AWS", caller.Session}}
	account := []principal{{"AWS", caller.root()}, {"AWS", caller.Account}}
	if caller.Service != "" {
		names, account = []principal{{"Service", caller.Service}}, nil
	}
	is := func(p principal) bool { return slices.Contains(s.principals, p) }
	everybody := is(principal{"AWS", "*"})
	if s.notPrinc {
		spared := everybody || !slices.ContainsFunc(names, func(p principal) bool { return !is(p) }) &&
			(account == nil || slices.ContainsFunc(account, is))
		anyNamed := everybody || slices.ContainsFunc(names, is) || slices.ContainsFunc(account, is)
		if s.deny {
			return !spared
		}
		return !anyNamed && how == directly
	}
	named := everybody || slices.ContainsFunc(names, is)
	accountNamed := slices.ContainsFunc(account, is)
	switch how {
	case directly:
		return named
	case throughAccount:
		return accountNamed
	default:
		return named || accountNamed
	}
}
