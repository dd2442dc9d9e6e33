package iac

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"countersign.dev/mesh"
)

// refusal collects reasons: about parts of the specification, which have a place, and about what else is given.
type refusal struct {
	of     error // [ErrRefused] when nil
	spec   *mesh.Spec
	found  map[mesh.Error]*reason
	others []string
}

// reason is one about a part of the specification.
type reason struct {
	at   mesh.Error
	whom []mesh.Workload // it is about one or several workloads
}

// addAt notes a reason about the first of some paths that was written, or about the last, which is missing.
func (r *refusal) addAt(paths []string, format string, args ...any) *reason {
	at := *r.spec.Refuse(fmt.Sprintf(format, args...), paths...)
	if r.found == nil {
		r.found = make(map[mesh.Error]*reason)
	}
	if r.found[at] == nil {
		r.found[at] = &reason{at: at}
	}
	return r.found[at]
}

// addFor notes a reason about a workload. What stands in one place for several of them is said once.
func (r *refusal) addFor(whom mesh.Workload, paths []string, format string, args ...any) {
	if have := r.addAt(paths, format, args...); !slices.Contains(have.whom, whom) {
		have.whom = append(have.whom, whom)
	}
}

// addf notes a reason about what is no part of the specification, such as a flag.
func (r *refusal) addf(format string, args ...any) {
	if reason := fmt.Sprintf(format, args...); !slices.Contains(r.others, reason) {
		r.others = append(r.others, reason)
	}
}

// error says whom the reason is about, where its path does not.
func (r *reason) error() *mesh.Error {
	said := r.at
	var whom []string
	for _, w := range r.whom {
		if rest, within := strings.CutPrefix(said.Path, w.Path()); !within || rest != "" && !strings.ContainsAny(rest[:1], ".[") {
			whom = append(whom, string(w.Kind)+" "+w.Name)
		}
	}
	if len(whom) > 0 {
		said.Message = strings.Join(whom, ", ") + ": " + said.Message
	}
	return &said
}

// err has a line for each reason: in the form of package mesh and sorted as there, and behind them those without a place.
func (r *refusal) err() error {
	of := cmp.Or(r.of, ErrRefused)
	var placed mesh.Errors
	for _, found := range r.found {
		placed = append(placed, found.error())
	}
	placed = placed.Sorted()
	switch {
	case len(r.others) > 0:
		lines := placed.Lines()
		for _, other := range r.others {
			lines = append(lines, "  - "+other)
		}
		return fmt.Errorf("%w:\n%s", of, strings.Join(lines, "\n"))
	case len(placed) > 0:
		return fmt.Errorf("%w:\n%w", of, placed)
	}
	return nil
}

// refuse is a refusal with one reason.
func (d *deployment) refuse(of error, paths []string, format string, args ...any) error {
	r := refusal{of: of, spec: d.spec}
	r.addAt(paths, format, args...)
	return r.err()
}

// whole is the path of the whole specification, as package mesh has it.
const whole = "document"

// at are paths below that of a workload, whose own is the empty one.
func at(w mesh.Workload, below ...string) []string {
	paths := make([]string, 0, len(below))
	for _, name := range below {
		paths = append(paths, w.Path()+name)
	}
	return paths
}

// inherited are the paths of what is said about the certificates of a workload: by itself, else by the mesh.
func inherited(w mesh.Workload, names ...string) []string {
	var own, common []string
	for _, name := range names {
		own, common = append(own, w.Path()+".certificates."+name), append(common, "certificates."+name)
	}
	return append(own, common...)
}

// namer finds the part of the specification whose name makes an identifier of a template: the one with the longest name
// that the identifier begins with.
func (d *deployment) namer(id string) []string {
	longest, path := 0, whole
	claim := func(at string, names ...string) {
		for _, name := range names {
			if len(name) > longest && strings.HasPrefix(id, name) {
				longest, path = len(name), at
			}
		}
	}
	for _, w := range d.workloads {
		claim(w.plan.Workload.Path(), w.id, label(w.name), label(d.spec.Mesh+"-"+w.name))
	}
	for _, k := range d.keys {
		claim("stores."+k.store, k.name, label(k.store))
	}
	for _, a := range d.authorities {
		claim("authorities."+a.name, a.id, label(a.name))
	}
	for _, s := range d.secrets {
		claim(s.path, s.id, s.label(d))
	}
	return []string{path}
}
