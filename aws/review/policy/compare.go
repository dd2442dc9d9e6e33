package policy

import (
	"slices"
	"strings"
)

// Beyond is an action that a statement allows and others do not.
type Beyond struct {
	// Action is as the statement has it, with wildcards; everything but some, where it says so.
	Action string
	// Elsewhere says that the others allow the action, on fewer resources or under more conditions.
	Elsewhere bool
}

// Beyond gives what a statement allows that none of others does: each action on each resource, under the same conditions or more. What is
// said is compared, not what there is: a pattern is taken for more than any list of names.
func (s Statement) Beyond(others []Statement) []Beyond {
	if s.Deny {
		return nil
	}
	if s.NotActions != nil {
		return []Beyond{{Action: "all actions but " + strings.Join(s.NotActions, ", ")}}
	}
	var found []Beyond
	for _, action := range s.Actions {
		known, covered := false, s.NotResources == nil
		for _, o := range others {
			known = known || !o.Deny && o.Covers(action)
		}
		for _, resource := range s.Resources {
			covered = covered && slices.ContainsFunc(others, func(o Statement) bool { return !o.Deny && o.covers(s, action, resource) })
		}
		if !covered {
			found = append(found, Beyond{action, known})
		}
	}
	return found
}

// Lacks gives the actions that a statement denies and none of others does, on all of its resources and whenever it does.
func (s Statement) Lacks(others []Statement) []string {
	if !s.Deny {
		return nil
	}
	var found []string
	for _, action := range s.Actions {
		for _, resource := range s.Resources {
			if !slices.Contains(found, action) && !slices.ContainsFunc(others, func(o Statement) bool { return o.Deny && o.covers(s, action, resource) }) {
				found = append(found, action)
			}
		}
	}
	return found
}

// covers tells whether a statement holds wherever another one does for an action on a resource, which may be patterns.
func (s Statement) covers(other Statement, action, resource string) bool {
	if !s.Covers(action) {
		return false
	}
	on := func(pattern string) bool { return Match(pattern, resource) }
	if s.NotResources != nil || s.hasResources && !slices.ContainsFunc(s.Resources, on) {
		return false
	}
	for _, c := range s.conditions {
		if !slices.ContainsFunc(other.conditions, c.follows) {
			return false
		}
	}
	return true
}

// follows tells whether a condition holds wherever another one does: it is the same, with the same values or more.
func (c condition) follows(from condition) bool {
	plain := func(operator string) string {
		return strings.NewReplacer("arnlike", "arnequals", "arnnotlike", "arnnotequals").Replace(strings.ToLower(operator))
	}
	mine, theirs := plain(c.operator), plain(from.operator)
	if c.key != from.key || mine != theirs && strings.TrimSuffix(mine, "ifexists") != theirs {
		return false
	}
	in := func(values []string) func(string) bool {
		return func(value string) bool {
			return !slices.ContainsFunc(values, func(pattern string) bool { return Match(pattern, value) })
		}
	}
	if strings.Contains(theirs, "not") { // what is negated holds more seldom with more values
		return !slices.ContainsFunc(c.values, in(from.values))
	}
	return !slices.ContainsFunc(from.values, in(c.values))
}
