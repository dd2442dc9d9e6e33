package iac

import "slices"

// How many characters policies may have: those in a role together, one that is attached, one at a secret and one at a key; and how many may
// be attached to a role, as long as nobody has asked AWS for more.
const (
	mostInline         = 10240
	mostManaged        = 6144
	mostResourcePolicy = 20480
	mostKeyPolicy      = 32768
	mostAttached       = 10
)

// managed is a policy of IAM that is attached to roles.
type managed struct {
	name   string // as IAM has it
	id     string // of the resource
	what   string
	policy policy
}

// length is how many characters a policy has at most, wherever it is deployed. AWS does not count spaces.
func (p policy) length() int { return len(compactJSON(p.document(), longest)) }

// divided makes policies of at most mostManaged characters that together say the same of all items; the first one begins with what is
// said beside it.
func divided[T any](beside policy, items []T, about func([]T) policy) []policy {
	var all []policy
	var part []T
	last := beside
	for _, item := range items {
		more := slices.Concat(beside, about(append(slices.Clone(part), item)))
		if len(last) > 0 && more.length() > mostManaged {
			all, beside, part = append(all, last), nil, nil
			more = about([]T{item})
		}
		part, last = append(part, item), more
	}
	return append(all, last)
}

// checkPolicies finds policies that are longer than AWS takes.
func (d *deployment) checkPolicies() error {
	type written struct {
		path, what string
		p          policy
		most       int
	}
	function, attached := d.functionPolicies()
	all := []written{
		{whole, "the policy of the role " + d.function.role.name, function, mostInline},
		{whole, "the policy of the logs' key", d.logKeyPolicy(), mostKeyPolicy},
	}
	for _, m := range append(d.auditorPolicies(), attached...) {
		all = append(all, written{whole, "the policy " + m.name, m.policy, mostManaged})
	}
	for _, k := range d.keys {
		all = append(all, written{"stores." + k.store, "the policy of the key of the store " + k.store, d.keyPolicy(k), mostKeyPolicy})
	}
	for _, s := range d.secrets {
		all = append(all, written{s.path, "the policy of the secret " + s.name, d.secretPolicy(s), mostResourcePolicy})
	}
	for _, w := range all {
		if n := w.p.length(); n > w.most {
			return d.refuse(ErrTooLarge, []string{w.path}, "%s would have up to %d characters, and AWS takes %d: deploy the mesh as two, or with fewer secrets (layout: json has one for each workload)", w.what, n, w.most)
		}
	}
	if len(attached) > mostAttached {
		return d.refuse(ErrTooLarge, []string{whole}, "the role %s would have %d policies attached, and AWS takes %d: deploy the mesh as two, or with fewer secrets (layout: json has one for each workload)", d.function.role.name, len(attached), mostAttached)
	}
	return nil
}
