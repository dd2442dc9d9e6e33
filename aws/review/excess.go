package review

import (
	"fmt"
	"slices"
	"strings"

	"countersign.dev/aws/review/policy"
)

// grave are the services whose actions lead to keys, or to more rights: more of them than templates give is an error.
var grave = []string{"acm", "acm-pca", "ecs", "iam", "kms", "lambda", "secretsmanager", "ssm", "ssmmessages", "sts"}

// severityOf is how bad a right beyond what templates give is.
func severityOf(action string) Severity {
	service, _, found := strings.Cut(strings.ToLower(action), ":")
	if !found || strings.ContainsAny(service, "*? ") || slices.Contains(grave, service) {
		return Error
	}
	return Warning
}

// known is what is known of the deployed, for who writes policies of templates for it. A secret that could not be read has a pattern.
func (r *reviewer) known() map[string]string {
	all := map[string]string{"partition": r.partition, "account": r.account}
	if len(r.places) == 1 {
		all["region"] = r.places[0].config.Region
	}
	keys := map[string]map[string]int{} // how many secrets have a key, by stores
	for _, s := range r.secrets {
		all[s.name] = s.arn
		if s.arn == "" {
			all[s.name] = r.arn(s.place, "secretsmanager", "secret:"+s.name+"-??????")
		}
		if keys[s.store] == nil {
			keys[s.store] = map[string]int{}
		}
		if s.keyARN != "" {
			keys[s.store][s.keyARN]++
		}
		all["key/"+s.store] = most(keys[s.store])
	}
	for name, a := range r.Spec.Authorities {
		all["authority/"+name] = a.ARN
		if a.ARN == "" {
			all["authority/"+name] = r.Authorities[name]
		}
	}
	return all
}

// most is the name that is there most often.
func most(count map[string]int) string {
	found := ""
	for _, name := range sorted(count) {
		if count[name] > count[found] {
			found = name
		}
	}
	return found
}

// meant are the statements that templates give the roles of the mesh, by their ARNs; nil when that is not known.
func (r *reviewer) meant() map[string][]policy.Statement {
	if r.Rights == nil {
		return nil
	}
	all := map[string][]policy.Statement{}
	add := func(arn, text string) error {
		d, err := policy.Parse(text)
		if err == nil && arn != "" {
			all[arn] = append(all[arn], d.Statements...)
		}
		return err
	}
	known := r.known()
	for _, environment := range []bool{false, true} {
		rights, err := r.Rights(environment, known)
		if err == nil && !environment {
			err = add(r.roleARN(r.RotationRole), rights[r.Spec.Mesh+"-rotation"])
		}
		for _, w := range r.workloads {
			if err == nil && w.byExecution == environment {
				err = add(w.taskRole, rights[r.Spec.Mesh+"-"+w.name+"-task"])
			}
			if err == nil && w.byExecution == environment {
				err = add(w.executionRole, rights[r.Spec.Mesh+"-"+w.name+"-execution"])
			}
		}
		if err != nil {
			r.add(Warning, Undecided, r.Spec.Mesh, "whether its roles may more than templates give them was not looked at, because templates do not do this specification: "+err.Error(),
				"compare the policies of its roles by hand with what they need; rights that none of them needs are found all the same")
			return nil
		}
	}
	return all
}

// judgeExcess looks at what a role of the mesh may do that none of them needs, and that templates do not give it. What it may by a
// wildcard is said already.
func (r *reviewer) judgeExcess(p *person, meant map[string][]policy.Statement) {
	needless := r.beyond(p.arn == r.roleARN(r.RotationRole))
	var all []policy.Statement
	for _, n := range p.policies {
		all = append(all, n.Statements...)
		hit := map[Severity][]string{}
		for _, s := range n.Statements {
			for _, b := range needless {
				said := slices.Contains(sensitive, b.action) && s.Wild(b.action)
				if !s.Deny && !said && s.Holds(policy.Question{Action: b.action, Resource: b.resource}) != policy.No {
					hit[Error] = append(hit[Error], b.action)
				}
			}
			if meant == nil {
				continue
			}
			for _, more := range s.Beyond(meant[p.arn]) {
				if wildcard(s, more.Action) {
					continue
				}
				what := more.Action
				if more.Elsewhere {
					what += " (on more than templates say)"
				}
				hit[severityOf(more.Action)] = append(hit[severityOf(more.Action)], what)
			}
		}
		for _, severity := range []Severity{Error, Warning} {
			slices.Sort(hit[severity])
			if actions := slices.Compact(hit[severity]); len(actions) > 0 {
				r.add(severity, Excess, p.arn, "the policy "+n.name+" allows "+few(actions)+", which it does not need: whoever is in its place gets further by that",
					"take it out; `countersign generate iam` writes what the role needs")
			}
		}
	}
	var missing []string
	for _, s := range meant[p.arn] {
		missing = append(missing, s.Lacks(all)...)
	}
	if len(missing) > 0 {
		r.add(Error, Excess, p.arn, fmt.Sprintf("its policies do not refuse %s, as templates do", few(missing)), "give it the policy that `countersign generate iam` writes, with its refusals")
	}
}

// wildcard tells whether an action of a statement is told of as a wildcard.
func wildcard(s policy.Statement, action string) bool {
	return slices.ContainsFunc(sensitive, func(one string) bool {
		return s.Wild(one) && (s.NotActions != nil || policy.Match(strings.ToLower(action), strings.ToLower(one)))
	})
}
