package mesh

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"countersign.dev/id"
)

// GraphFormat is a language in which [Spec.Graph] draws.
type GraphFormat string

// The formats.
const (
	Mermaid GraphFormat = "mermaid" // https://mermaid.js.org, as Markdown on most forges shows it
	DOT     GraphFormat = "dot"     // Graphviz
	Tree    GraphFormat = "tree"    // plain text
)

// Graph draws who calls whom, and how the connection is protected. Equal specifications give equal
// texts.
func (s *Spec) Graph(format GraphFormat) (string, error) {
	switch format {
	case Mermaid:
		return s.mermaid(), nil
	case DOT:
		return s.dot(), nil
	case Tree:
		return s.tree(), nil
	}
	return "", fmt.Errorf("%q is no format of a graph; possible are %s, %s and %s", string(format), Mermaid, DOT, Tree)
}

// edge is one declared way of traffic.
type edge struct {
	from  string // a workload, or empty for the outside
	to    string // a workload
	label string
	safe  bool // TLS alone
}

// edges are the ways of traffic in the order of their callers' names, the outside first.
func (s *Spec) edges() []edge {
	var edges []edge
	workloads := s.Workloads()
	for _, w := range workloads {
		for _, l := range s.listeners(w) {
			edges = append(edges, edge{to: w.Name, label: fmt.Sprintf("%s %d %s", l.Protocol, l.Port, l.protection()), safe: l.Certificate != nil})
		}
	}
	for _, w := range workloads {
		for _, target := range s.targets(w) {
			port, _ := s.Services[target.Service].port(target.Port)
			label := fmt.Sprintf("%s %d %s", port.Protocol, port.Port, port.protection())
			if !s.admits(s.Services[target.Service], port, w) {
				label += ", refused by allow"
			}
			edges = append(edges, edge{w.Name, target.Service, label, port.TLS == Strict})
		}
	}
	return edges
}

func (s *Spec) listeners(w Workload) []GatewayListener {
	if gateway, ok := s.Gateways[w.Name]; ok {
		return gateway.Listen
	}
	return nil
}

// targets are the ports that a workload calls or routes to, each once, in the order of the
// specification.
func (s *Spec) targets(w Workload) []Call {
	var targets []Call
	add := func(service string, port int) {
		if target := (Call{Service: service, Port: port}); !slices.Contains(targets, target) {
			targets = append(targets, target)
		}
	}
	if w.Kind == id.Gateway {
		for _, r := range s.Gateways[w.Name].Routes {
			for _, to := range r.To {
				add(to.Service, to.Port)
			}
		}
		return targets
	}
	for _, c := range s.Services[w.Name].Calls {
		add(c.Service, c.Port)
	}
	return targets
}

// admits tells whether some request of a caller passes a port's policy.
func (s *Spec) admits(service *Service, port Port, caller Workload) bool {
	as := caller.Identity.String()
	if !port.identifies() {
		as = FromAnonymous
	}
	return slices.ContainsFunc(s.rules(service, port), func(r Rule) bool {
		return slices.Contains(r.From, as) || as != FromAnonymous && slices.Contains(r.From, FromAny)
	})
}

// protection says in two words what a port takes.
func (p Port) protection() string {
	switch {
	case p.TLS == Off:
		return "plaintext"
	case p.TLS == Permissive:
		return "TLS or plaintext"
	case p.ClientAuth == Require:
		return "mutual TLS"
	}
	return "TLS"
}

func (l GatewayListener) protection() string {
	if l.Certificate != nil {
		return "TLS"
	}
	return "plaintext"
}

// title says what a workload is.
func (w Workload) title() string { return string(w.Kind) + " " + w.Name }

func (s *Spec) mermaid() string {
	var out strings.Builder
	out.WriteString("flowchart LR\n")
	node := map[string]string{"": "outside"}
	if len(s.Gateways) > 0 {
		out.WriteString("    outside([outside])\n")
	}
	for i, w := range s.Workloads() {
		node[w.Name] = fmt.Sprintf("n%d", i) // a name may be a word of Mermaid's, such as "end"
		left, right := "[", "]"
		if w.Kind == id.Gateway {
			left, right = "{{", "}}"
		}
		fmt.Fprintf(&out, "    %s%s\"%s\"%s\n", node[w.Name], left, mermaidText(w.title()), right)
	}
	for _, e := range s.edges() {
		arrow := "-.->"
		if e.safe {
			arrow = "-->"
		}
		fmt.Fprintf(&out, "    %s %s|\"%s\"| %s\n", node[e.from], arrow, mermaidText(e.label), node[e.to])
	}
	return out.String()
}

// mermaidText writes everything but harmless characters as Mermaid's numeric entities.
func mermaidText(s string) string {
	return escape(s, func(r rune) string { return fmt.Sprintf("#%d;", r) })
}

func (s *Spec) dot() string {
	var out strings.Builder
	fmt.Fprintf(&out, "digraph \"%s\" {\n    rankdir=LR;\n    node [shape=box];\n", dotText(s.Mesh))
	if len(s.Gateways) > 0 {
		out.WriteString("    \"\" [label=\"outside\", shape=oval];\n")
	}
	for _, w := range s.Workloads() {
		shape := "box"
		if w.Kind == id.Gateway {
			shape = "hexagon"
		}
		fmt.Fprintf(&out, "    \"%s\" [label=\"%s\", shape=%s];\n", dotText(w.Name), dotText(w.title()), shape)
	}
	for _, e := range s.edges() {
		style := "dashed"
		if e.safe {
			style = "solid"
		}
		fmt.Fprintf(&out, "    \"%s\" -> \"%s\" [label=\"%s\", style=%s];\n", dotText(e.from), dotText(e.to), dotText(e.label), style)
	}
	out.WriteString("}\n")
	return out.String()
}

// dotText writes everything but harmless characters as the character references that Graphviz reads.
func dotText(s string) string {
	return escape(s, func(r rune) string { return fmt.Sprintf("&#%d;", r) })
}

// escape replaces every character that could mean something to a drawing language.
func escape(s string, replace func(rune) string) string {
	var out strings.Builder
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune(" .,-_/", r):
			out.WriteRune(r)
		default:
			out.WriteString(replace(r))
		}
	}
	return out.String()
}

// tree draws every workload below those that call it. One that stands in several places is drawn
// with what it calls at the first, so that the text stays as short as the specification.
func (s *Spec) tree() string {
	t := treeDrawing{callees: map[string][]edge{}, drawn: map[string]bool{}, title: map[string]string{}}
	called := map[string]bool{}
	for _, e := range s.edges() {
		t.callees[e.from] = append(t.callees[e.from], e)
		if e.from != "" && e.from != e.to {
			called[e.to] = true
		}
	}
	fmt.Fprintf(&t.out, "%s (%s)\n", s.Mesh, s.TrustDomain)
	var roots []string
	for _, kind := range []id.Kind{id.Gateway, id.Service} {
		for _, w := range s.Workloads() {
			t.title[w.Name] = w.title()
			if w.Kind == kind && !called[w.Name] {
				roots = append(roots, w.Name)
			}
		}
	}
	for _, name := range roots {
		t.reach(name)
	}
	for _, w := range s.Workloads() { // those that only call one another
		if !t.drawn[w.Name] {
			roots = append(roots, w.Name)
			t.reach(w.Name)
		}
	}
	clear(t.drawn)
	for i, name := range roots {
		var entries []string
		for _, e := range t.callees[""] {
			if e.to == name {
				entries = append(entries, e.label)
			}
		}
		t.draw(name, strings.Join(entries, ", "), "", i == len(roots)-1)
	}
	return t.out.String()
}

type treeDrawing struct {
	out     strings.Builder
	callees map[string][]edge
	title   map[string]string
	drawn   map[string]bool
}

// reach marks what will be drawn below a workload.
func (t *treeDrawing) reach(name string) {
	if t.drawn[name] {
		return
	}
	t.drawn[name] = true
	for _, e := range t.callees[name] {
		t.reach(e.to)
	}
}

func (t *treeDrawing) draw(name, label, indent string, last bool) {
	branch, below := "├── ", "│   "
	if last {
		branch, below = "└── ", "    "
	}
	line := indent + branch + t.title[name]
	if label != "" {
		// Labels stand in one column as far as names are not too long.
		line += strings.Repeat(" ", max(1, 44-utf8.RuneCountInString(line))) + label
	}
	again := t.drawn[name] && len(t.callees[name]) > 0
	if again {
		line += " (see above)"
	}
	t.out.WriteString(line + "\n")
	if again {
		return
	}
	t.drawn[name] = true
	for i, e := range t.callees[name] {
		t.draw(e.to, e.label, indent+below, i == len(t.callees[name])-1)
	}
}
