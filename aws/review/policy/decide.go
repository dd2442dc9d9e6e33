package policy

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// Verdict is what can be told of a question. The order is from nothing to everything.
type Verdict int

// The verdicts.
const (
	No    Verdict = iota
	Maybe         // it hangs on something that is not seen from here
	Yes
)

// Question is what somebody wants to do.
type Question struct {
	// Caller is the ARN of a role or user.
	Caller string
	// Action is such as secretsmanager:GetSecretValue, and Resource an ARN.
	Action, Resource string
	// Context are the condition keys whose values are known, by their names in lower case. Nothing is known of others: the
	// caller may be able to choose them.
	Context map[string]string
}

// account is the account of an ARN.
func account(arn string) string {
	const at, parts = 4, 6
	if split := strings.SplitN(arn, ":", parts); len(split) == parts {
		return split[at]
	}
	return ""
}

// Policies are what decides about a caller and a resource.
type Policies struct {
	// Identity are the caller's own, those of its groups included. Boundary is its permissions boundary; nil for none.
	Identity []*Document
	Boundary *Document
	// Resource is that of the resource; nil for none.
	Resource *Document
	// Decisive says that the resource's policy has to allow, or to leave it to the account, as with keys.
	Decisive bool
}

// Decide tells whether the caller may do it. A deny counts more than anything that allows.
func Decide(q Question, p Policies) Verdict {
	denied := p.Resource.find(q, true, anyhow)
	for _, d := range append(slices.Clone(p.Identity), p.Boundary) {
		denied = max(denied, d.find(q, true, own))
	}
	identity := No
	for _, d := range p.Identity {
		identity = max(identity, d.find(q, false, own))
	}
	if p.Boundary != nil {
		identity = min(identity, p.Boundary.find(q, false, own))
	}
	direct := p.Resource.find(q, false, directly)
	allowed := max(identity, direct)
	if p.Decisive {
		allowed = max(direct, min(identity, p.Resource.find(q, false, throughAccount)))
	}
	return min(allowed, Yes-denied)
}

// how is by what a statement comes to the caller.
type how int

const (
	own            how = iota // it is in the caller's own policy
	directly                  // it names the caller, or everybody
	throughAccount            // it names the caller's account
	anyhow                    // any of them
)

// find tells whether a statement of the effect applies.
func (d *Document) find(q Question, deny bool, how how) Verdict {
	found := No
	if d == nil {
		return found
	}
	for _, s := range d.Statements {
		if s.Deny == deny {
			found = max(found, min(s.principal(q.Caller, how), s.action(q.Action), s.resource(q), s.condition(q)))
		}
	}
	return found
}

func verdict(b bool) Verdict {
	if b {
		return Yes
	}
	return No
}

// Covers tells whether the statement is about an action, by Action or NotAction.
func (s Statement) Covers(action string) bool { return s.action(action) == Yes }

func (s Statement) action(action string) Verdict {
	matches := func(pattern string) bool { return Match(strings.ToLower(pattern), strings.ToLower(action)) }
	if s.NotActions != nil {
		return verdict(!slices.ContainsFunc(s.NotActions, matches))
	}
	return verdict(slices.ContainsFunc(s.Actions, matches))
}

// resource: a variable may stand for anything. A trust policy has no resource.
func (s Statement) resource(q Question) Verdict {
	if !s.hasResources {
		return Yes
	}
	one := func(patterns []string) Verdict {
		found := No
		for _, pattern := range patterns {
			plain := withoutVariables(pattern)
			switch {
			case !Match(plain, q.Resource):
			case plain != pattern:
				found = max(found, Maybe)
			default:
				found = Yes
			}
		}
		return found
	}
	if s.NotResources != nil {
		return Yes - one(s.NotResources)
	}
	return one(s.Resources)
}

// withoutVariables puts * in the place of ${...}.
func withoutVariables(pattern string) string {
	for {
		before, rest, found := strings.Cut(pattern, "${")
		if !found {
			return pattern
		}
		_, after, closed := strings.Cut(rest, "}")
		if !closed {
			return before + "*"
		}
		pattern = before + "*" + after
	}
}

func (s Statement) principal(caller string, how how) Verdict {
	if how == own {
		return Yes
	}
	if s.NotPrincipals != nil {
		named := slices.ContainsFunc(s.NotPrincipals, func(p Principal) bool { return p.everybody() || p.is(caller) })
		return verdict(!named && how != throughAccount)
	}
	found := No
	for _, p := range s.Principals {
		direct, byAccount := p.everybody() || p.is(caller), p.Kind == "AWS" && p.Account() == account(caller) && p.whole()
		if direct && how != throughAccount || byAccount && how != directly {
			found = Yes
		}
	}
	return found
}

func (p Principal) everybody() bool { return p.Kind == "AWS" && p.Value == "*" }

// whole tells whether the principal is an account.
func (p Principal) whole() bool {
	return p.Value == p.Account() || strings.HasSuffix(p.Value, ":root")
}

// Account is the account that a principal is or belongs to; empty for a service, and for everybody.
func (p Principal) Account() string {
	const digits = 12
	if len(p.Value) == digits && strings.Trim(p.Value, "0123456789") == "" {
		return p.Value
	}
	return account(p.Value)
}

// is tells whether the principal is the caller or one of its sessions.
func (p Principal) is(caller string) bool {
	if p.Kind != "AWS" || p.Value == caller {
		return p.Kind == "AWS"
	}
	name := caller[strings.LastIndexByte(caller, '/')+1:]
	_, session, found := strings.Cut(p.Value, ":assumed-role/")
	role, _, _ := strings.Cut(session, "/")
	return found && strings.Contains(caller, ":role/") && role == name && account(p.Value) == account(caller)
}

// condition is what all conditions come to.
func (s Statement) condition(q Question) Verdict {
	all := Yes
	for _, c := range s.conditions {
		all = min(all, c.holds(q.Context, s.Deny))
	}
	return all
}

// comparisons are the operators that are known, with those that hold where they do not.
var comparisons = map[string]func(value, want string) bool{
	"stringequals":           func(value, want string) bool { return value == want },
	"stringequalsignorecase": strings.EqualFold,
	"stringlike":             func(value, want string) bool { return Match(want, value) },
	"arnequals":              func(value, want string) bool { return Match(want, value) },
	"arnlike":                func(value, want string) bool { return Match(want, value) },
	"bool":                   strings.EqualFold,

	"dateequals":            dates(func(d int) bool { return d == 0 }),
	"datelessthan":          dates(func(d int) bool { return d < 0 }),
	"datelessthanequals":    dates(func(d int) bool { return d <= 0 }),
	"dategreaterthan":       dates(func(d int) bool { return d > 0 }),
	"dategreaterthanequals": dates(func(d int) bool { return d >= 0 }),
}

// dates compares times, as RFC 3339 or in seconds since 1970. What is neither is no time that anything is equal to.
func dates(holds func(int) bool) func(value, want string) bool {
	return func(value, want string) bool {
		a, okA := date(value)
		b, okB := date(want)
		return okA && okB && holds(a.Compare(b))
	}
}

func date(text string) (time.Time, bool) {
	for _, form := range []string{time.RFC3339, "2006-01-02T15:04Z07:00", time.DateOnly} {
		if at, err := time.Parse(form, text); err == nil {
			return at, true
		}
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	return time.Unix(seconds, 0), err == nil
}

// anywhere are the networks that everybody is in.
var anywhere = []string{"0.0.0.0/0", "::/0"}

// fromAnywhere is what a condition on aws:SourceIp comes to whose networks everybody is in. Who comes from outside has an address, and may choose
// to: that is enough for what allows. Through a VPC endpoint there is none, so that a negated operator holds, and of the others only those that
// end in IfExists do. Which way somebody comes is not seen from here.
func fromAnywhere(networks []string, negated, ifExists, deny bool) Verdict {
	every := !slices.ContainsFunc(anywhere, func(network string) bool { return !slices.Contains(networks, network) })
	switch {
	case negated:
		return Maybe
	case !deny, ifExists && every:
		return Yes
	default:
		return Maybe
	}
}

// holds tells whether a condition does, of a statement that denies, or one that allows.
func (c condition) holds(context map[string]string, deny bool) Verdict {
	operator, ifExists := strings.CutSuffix(strings.ToLower(c.operator), "ifexists")
	if before, after, found := strings.Cut(operator, ":"); found && (before == "foranyvalue" || before == "forallvalues") {
		operator = after // what is known has one value
	}
	value, known := context[c.key]
	everywhere := slices.ContainsFunc(c.values, func(network string) bool { return slices.Contains(anywhere, network) })
	switch {
	case c.key == "aws:sourceip" && everywhere && strings.TrimPrefix(operator, "not") == "ipaddress":
		return fromAnywhere(c.values, operator != "ipaddress", ifExists, deny)
	case operator == "null" && known && len(c.values) == 1:
		return verdict(strings.EqualFold(c.values[0], "false"))
	}
	positive := strings.Replace(operator, "not", "", 1)
	compare := comparisons[positive]
	if !known || compare == nil || slices.ContainsFunc(c.values, func(want string) bool { return strings.Contains(want, "${") }) {
		return Maybe
	}
	matches := slices.ContainsFunc(c.values, func(want string) bool { return compare(value, want) })
	return verdict(matches != (positive != operator))
}

// Match tells whether a pattern with * and ? stands for a text, regarding case.
func Match(pattern, text string) bool {
	star, back := -1, 0
	p := 0
	for t := 0; t < len(text); {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, back = p, t
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == text[t]):
			p++
			t++
		case star >= 0:
			back++
			p, t = star+1, back
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// Wild tells whether a statement that allows the action names what it is about with a wildcard, or by what it is not.
func (s Statement) Wild(action string) bool {
	wild := func(text string) bool { return strings.ContainsAny(text, "*?") }
	byPattern := slices.ContainsFunc(s.Actions, func(pattern string) bool {
		return wild(pattern) && Match(strings.ToLower(pattern), strings.ToLower(action))
	})
	return !s.Deny && s.Covers(action) && (byPattern || s.NotActions != nil || s.NotResources != nil || slices.ContainsFunc(s.Resources, wild))
}

// Holds tells whether what a statement says of the action, the resource and the circumstances does; not whom it names.
func (s Statement) Holds(q Question) Verdict {
	return min(s.action(q.Action), s.resource(q), s.condition(q))
}
