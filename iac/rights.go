package iac

import (
	"cmp"
	"slices"
	"strings"

	"countersign.dev/mesh"
)

// Rights are the policies that the roles of a specification have by templates, as JSON, by the names that templates give the roles: for
// who compares them with those that are deployed. known is what is known of the deployed: "partition", "region", "account", the ARNs of
// secrets by their names, of keys by "key/STORE" and of private CAs by "authority/NAME". * stands in the place of what is not known. The
// error wraps [ErrRefused].
func Rights(spec *mesh.Spec, o Options, known map[string]string) (map[string]string, error) {
	d, err := build(spec, o)
	if err != nil {
		return nil, err
	}
	resolve := func(r ref) string {
		if role, found := strings.CutPrefix(r.given, "role/"); found && known[r.given] == "" {
			return "arn:" + cmp.Or(known["partition"], "*") + ":iam::" + cmp.Or(known["account"], "*") + ":role/" + role
		}
		return cmp.Or(known[r.given], "*")
	}
	all := map[string]string{}
	write := func(r role, p policy) { all[r.name] = string(compactJSON(p.document(), resolve)) }
	for _, w := range d.workloads {
		write(w.task, d.taskPolicy(w))
		write(w.execution, d.executionPolicy(w))
	}
	own, attached := d.functionPolicies()
	for _, m := range attached {
		own = append(slices.Clone(own), m.policy...)
	}
	write(d.function.role, own)
	return all, nil
}
