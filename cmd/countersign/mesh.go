package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"countersign.dev/mesh"
)

// meshCmd holds the commands that work on a specification.
type meshCmd struct {
	Validate meshValidateCmd `cmd:"" help:"Check a specification."`
	Apply    meshApplyCmd    `cmd:"" help:"Put a specification in force on a running server."`
	Plan     meshPlanCmd     `cmd:"" help:"Show what a specification says to each workload."`
	Schema   meshSchemaCmd   `cmd:"" help:"Print the JSON Schema of specifications, for editors."`
	Graph    meshGraphCmd    `cmd:"" help:"Draw who calls whom."`
}

// loadSpec reads a specification that the user named. What is wrong with it is said here, each error
// on a line of its own that begins with its place, and is a usage error.
func loadSpec(p *process, path string) (*mesh.Spec, error) {
	spec, err := mesh.Load(path)
	var errs mesh.Errors
	switch {
	case errors.As(err, &errs):
		for _, line := range errs.Lines() {
			fmt.Fprintln(p.stderr, line)
		}
		return nil, exitError{status: exitUsage}
	case err != nil:
		return nil, usageError{err}
	}
	return spec, nil
}

type meshValidateCmd struct {
	Path string `arg:"" help:"The specification: a file, or a directory whose *.yaml, *.yml and *.json files are joined."`
}

// Help is shown by --help.
func (meshValidateCmd) Help() string {
	return `Every error is written to standard error, one a line, and the exit status is 2:

  PATH:LINE:COLUMN: services.a.ports[0].port: what is wrong; what would be right

Files of a directory that are for AWS are no part of the specification, and are named: templates of CloudFormation,
and, as *.json, policies, task definitions and the parameters of a stack.

Examples:
  countersign mesh validate mesh.yaml
  countersign mesh validate environments/production`
}

// Run checks the specification.
func (c meshValidateCmd) Run(p *process) error {
	spec, err := loadSpec(p, c.Path)
	if err != nil {
		return err
	}
	beside, err := mesh.PassedOver(c.Path)
	if err != nil {
		return usageError{err}
	}
	passed := ""
	if len(beside) > 0 {
		passed = "; passed over: " + strings.Join(beside, ", ")
	}
	_, err = fmt.Fprintf(p.stdout, "%s is valid: mesh %s, %s, %s%s\n", c.Path, spec.Mesh, count(len(spec.Services), "service"), count(len(spec.Gateways), "gateway"), passed)
	return err
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

type meshPlanCmd struct {
	Path     string `arg:"" help:"The specification: a file or a directory."`
	Workload string `placeholder:"NAME" help:"Only the Plan of this service or gateway."`
	Output   string `enum:"text,json" default:"text" help:"How the Plans are written: ${enum}. JSON is one Plan with --workload, else an array of all."`
}

// Help is shown by --help.
func (meshPlanCmd) Help() string {
	return `A Plan is everything that one workload has to know: its certificate, its listeners and who is admitted to
them, and whom it calls. The endpoints are missing here: only a server knows them.

Examples:
  countersign mesh plan mesh.yaml
  countersign mesh plan mesh.yaml --workload colorteller --output json`
}

// Run compiles and shows Plans.
func (c meshPlanCmd) Run(p *process) error {
	spec, err := loadSpec(p, c.Path)
	if err != nil {
		return err
	}
	plans := []*mesh.Plan{}
	for _, w := range spec.Workloads() {
		if c.Workload != "" && w.Name != c.Workload {
			continue
		}
		plan, err := spec.Compile(w.Name)
		if err != nil {
			return err
		}
		plans = append(plans, plan)
	}
	if c.Workload != "" && len(plans) == 0 {
		_, err := spec.Compile(c.Workload) // which says what is near
		return usageError{err}
	}
	switch {
	case c.Output == "text":
		return writePlans(p.stdout, plans)
	case c.Workload != "":
		return writeJSON(p, plans[0])
	}
	return writeJSON(p, plans)
}

// writePlans writes Plans for people.
func writePlans(w io.Writer, plans []*mesh.Plan) error {
	var out strings.Builder
	for i, plan := range plans {
		if i > 0 {
			out.WriteByte('\n')
		}
		fmt.Fprintf(&out, "%s %s  %s\n", plan.Workload.Kind, plan.Workload.Name, plan.Workload.Identity)
		c := plan.Certificate
		fmt.Fprintf(&out, "  certificate  %s, valid for %s, renewed after %s\n", c.Key, c.TTL, c.RenewAfter)
		fmt.Fprintf(&out, "               %s\n", strings.Join(c.DNSNames, ", "))
		if plan.Proxy.Real() {
			fmt.Fprintf(&out, "  proxy        %s, certificate from %s\n", plan.Proxy, plan.Delivery)
		}
		if !plan.Revocation.Check {
			out.WriteString("  revocation   none\n")
		}
		for _, in := range plan.Inbound {
			writeInbound(&out, plan, in)
		}
		for _, o := range plan.Outbound {
			fmt.Fprintf(&out, "  outbound     127.0.0.1:%d %s -> %s\n", o.Listen, o.Protocol, upstreamText(plan, o.Upstream))
		}
	}
	_, err := io.WriteString(w, out.String())
	return err
}

func writeInbound(out *strings.Builder, plan *mesh.Plan, in mesh.Inbound) {
	fmt.Fprintf(out, "  inbound      port %d %s, %s", in.Port, in.Protocol, protection(in))
	if in.App != 0 {
		fmt.Fprintf(out, " -> 127.0.0.1:%d", in.App)
	}
	out.WriteByte('\n')
	if len(in.Rules) == 0 {
		out.WriteString("    admits     nobody\n")
	}
	for _, r := range in.Rules {
		parts := []string{strings.Join(r.From, ", ")}
		if len(r.Methods) > 0 {
			parts = append(parts, "methods "+strings.Join(r.Methods, ", "))
		}
		if len(r.Paths) > 0 {
			parts = append(parts, "paths "+strings.Join(r.Paths, ", "))
		}
		fmt.Fprintf(out, "    admits     %s\n", strings.Join(parts, "; "))
	}
	for _, r := range in.Routes {
		var to []string
		for _, d := range r.To {
			to = append(to, fmt.Sprintf("%s weight %d", upstreamText(plan, d.Upstream), d.Weight))
		}
		fmt.Fprintf(out, "    route      %s -> %s", r.Match, strings.Join(to, ", "))
		if r.RequestTimeout != 0 {
			fmt.Fprintf(out, " within %s", r.RequestTimeout)
		}
		out.WriteByte('\n')
	}
}

// protection says what an inbound listener takes and asks for.
func protection(in mesh.Inbound) string {
	if in.TLS == mesh.Off {
		return "plaintext"
	}
	groups := make([]string, len(in.TLSGroups))
	for i, g := range in.TLSGroups {
		groups[i] = string(g)
	}
	return fmt.Sprintf("tls %s, client certificate %s, TLS %s or higher by %s", in.TLS, in.ClientAuth, in.MinTLS, strings.Join(groups, ", "))
}

func upstreamText(plan *mesh.Plan, name string) string {
	upstream, ok := plan.Upstream(name)
	if !ok {
		return name
	}
	if !upstream.TLS {
		return name + " (plaintext)"
	}
	return fmt.Sprintf("%s (%s)", name, upstream.Identity)
}

type meshSchemaCmd struct{}

// Help is shown by --help.
func (meshSchemaCmd) Help() string {
	return `Editors that know the schema complete keys and underline mistakes while one types.

Example:
  countersign mesh schema > mesh.schema.json
  # and in the first line of mesh.yaml:
  # yaml-language-server: $schema=mesh.schema.json`
}

// Run prints the schema.
func (meshSchemaCmd) Run(p *process) error {
	_, err := p.stdout.Write(mesh.Schema())
	return err
}

type meshGraphCmd struct {
	Path   string `arg:"" help:"The specification: a file or a directory."`
	Format string `enum:"mermaid,dot,tree" default:"tree" help:"The language of the drawing: ${enum}."`
}

// Help is shown by --help.
func (meshGraphCmd) Help() string {
	return `Solid lines are TLS alone; dashed ones let plaintext through.

Examples:
  countersign mesh graph mesh.yaml
  countersign mesh graph mesh.yaml --format dot | dot -Tsvg > mesh.svg`
}

// Run draws the specification.
func (c meshGraphCmd) Run(p *process) error {
	spec, err := loadSpec(p, c.Path)
	if err != nil {
		return err
	}
	text, err := spec.Graph(mesh.GraphFormat(c.Format))
	if err != nil {
		return err
	}
	_, err = io.WriteString(p.stdout, text)
	return err
}
