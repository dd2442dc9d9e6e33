package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"countersign.dev/api"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/observe"
)

// How long the observer's certificates are valid: the one that it shows until it is done, and the one
// that has expired when it is shown.
const (
	maxProbeTTL = 5 * time.Minute
	expiredTTL  = time.Second
)

// verifySettle is for how long a certificate may deviate that is about to be renewed: sidecars spread the
// renewals that a new Plan makes due over three seconds, and a large RSA key takes its time.
const verifySettle = 10 * time.Second

type verifyCmd struct {
	Path    string        `arg:"" optional:"" help:"The specification to compare with: a file, or a directory whose files are merged. Default: the one that the server runs."`
	Timeout time.Duration `help:"How long all of it may take; at most 5m." default:"1m"`
	adminFlags
	outputFlag
}

// Help is what --help adds.
func (verifyCmd) Help() string {
	return `Connects to every endpoint of the running mesh and compares what the wire shows with the specification:
TLS versions, ciphers and key exchanges, certificate, identity and expiry, and that a client without a certificate,
of another CA, with an expired certificate, or in plaintext is refused where it has to be. Run it where
the endpoints can be reached. Each deviation is a finding.

Examples:
  countersign verify
  countersign verify mesh.yaml --output json
  countersign up mesh.yaml -- countersign verify

Exit status: 0 without a finding, 1 with one or when the mesh could not be asked, 2 when PATH is invalid.
The observer gets a certificate of spiffe://TRUST-DOMAIN/probe/verify for a few minutes, which is in the
journal and which no policy admits.`
}

// verified is the output in JSON.
type verified struct {
	Version     int    `json:"version"`
	Mesh        string `json:"mesh"`
	TrustDomain string `json:"trustDomain"`
	observe.Report
}

// Run compares the mesh with the specification.
func (c *verifyCmd) Run(p *process) error {
	if c.Timeout <= 0 || c.Timeout > maxProbeTTL {
		return usagef("--timeout %s is out of range; give one above 0 and at most %s", c.Timeout, maxProbeTTL)
	}
	ctx, cancel := context.WithTimeoutCause(p.ctx, c.Timeout, fmt.Errorf("verify was not done after %s; give it more time with --timeout", c.Timeout))
	defer cancel()
	var spec *mesh.Spec
	if c.Path != "" {
		loaded, err := mesh.Load(c.Path)
		if err != nil {
			return invalidSpecification(p, err)
		}
		spec = loaded
	}
	admin, err := c.admin()
	if err != nil {
		return err
	}
	running, err := runningSpec(ctx, admin)
	if err != nil {
		return because(ctx, answered(p, err))
	}
	if spec == nil {
		spec = running
	} else if n := len(mesh.Diff(running, spec)); n > 0 {
		// Not all of it shows on the wire: whom a policy allows, for one.
		fmt.Fprintf(p.stderr, "countersign: the running specification differs from %s in %s; 'countersign mesh apply --dry-run %s' lists what would change\n", c.Path, count(n, "place"), c.Path)
	}
	report, err := observeMesh(ctx, admin, spec, p.stderr)
	if err != nil {
		return because(ctx, answered(p, err))
	}
	if err := c.print(p, spec, report); err != nil {
		return err
	}
	if len(report.Findings) > 0 {
		return exitError{status: exitFailure, message: fmt.Sprintf("%s from %s", count(len(report.Findings), "deviation"), cmp.Or(c.Path, "the running specification"))}
	}
	return nil
}

// because puts the reason in the place of a context's error.
func because(ctx context.Context, err error) error {
	if ctx.Err() != nil && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)) {
		return context.Cause(ctx)
	}
	return err
}

// runningSpec is the specification that the server runs.
func runningSpec(ctx context.Context, admin *api.Admin) (*mesh.Spec, error) {
	running, err := admin.Mesh(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking for the running specification: %w", err)
	}
	spec, err := mesh.ParseDocuments(running.Documents)
	if err != nil {
		return nil, fmt.Errorf("the running specification is not valid for this version of countersign: %w", err)
	}
	return spec, nil
}

// observeMesh looks at everything that is registered and declared.
func observeMesh(ctx context.Context, admin *api.Admin, spec *mesh.Spec, stderr io.Writer) (observe.Report, error) {
	var plans []*mesh.Plan
	for _, workload := range spec.Workloads() {
		plan, err := spec.Compile(workload.Name)
		if err != nil {
			return observe.Report{}, fmt.Errorf("compiling the plan of %s: %w", workload.Name, err)
		}
		plans = append(plans, plan)
	}
	// The certificate that has to expire comes first: the time until then is used.
	expired, _, err := probeCertificate(ctx, admin, expiredTTL)
	if err != nil {
		return observe.Report{}, err
	}
	probe, bundle, err := probeCertificate(ctx, admin, maxProbeTTL)
	if err != nil {
		return observe.Report{}, err
	}
	instances, err := admin.Endpoints(ctx)
	if err != nil {
		return observe.Report{}, fmt.Errorf("asking for the endpoints: %w", err)
	}
	targets, findings := observe.Targets(plans, instances)
	readPublic(targets)
	line := newProgress(stderr)
	observer, err := observe.New(observe.Config{
		Roots: bundle, Probe: probe, Expired: &expired, Settle: verifySettle, Progress: line.show,
		Serial: func(ctx context.Context, workload, instance string) (string, error) {
			return reportedSerial(ctx, admin, workload, instance)
		},
	})
	if err != nil {
		return observe.Report{}, err
	}
	report, err := observer.Observe(ctx, targets)
	line.end()
	if err != nil {
		return observe.Report{}, err
	}
	report.Add(findings...)
	return report, nil
}

// probeCertificate obtains a certificate of the observer's identity for a key in memory, and the trust
// bundle.
func probeCertificate(ctx context.Context, admin *api.Admin, ttl time.Duration) (tls.Certificate, []*x509.Certificate, error) {
	key, err := mtls.GenerateKey(mesh.ECDSAP256)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	csr, err := mtls.NewCSR(key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	credentials, err := admin.Probe(ctx, string(csr), ttl)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("asking for the observer's certificate: %w", err)
	}
	chain, err := mtls.ParseCertificates([]byte(credentials.Chain))
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("the observer's certificate: %w", err)
	}
	bundle, err := mtls.ParseCertificates([]byte(credentials.Bundle))
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("the trust bundle: %w", err)
	}
	certificate := tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, cert := range chain {
		certificate.Certificate = append(certificate.Certificate, cert.Raw)
	}
	return certificate, bundle, nil
}

// reportedSerial is what an instance reports now; empty when it has gone.
func reportedSerial(ctx context.Context, admin *api.Admin, workload, instance string) (string, error) {
	instances, err := admin.Endpoints(ctx)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(instances, func(i api.Instance) bool { return i.Workload == workload && i.Instance == instance })
	if i < 0 {
		return "", nil
	}
	return instances[i].Serial, nil
}

// readPublic reads the certificates that gateways are configured to present, where they are on this
// machine.
func readPublic(targets []observe.Target) {
	for i := range targets {
		if targets[i].Inbound.Certificate == nil {
			continue
		}
		chain, err := readCertificates(targets[i].Inbound.Certificate.Cert)
		if err != nil {
			targets[i].PublicProblem = err.Error() + "; run verify where the file is"
			continue
		}
		targets[i].Public = chain[0]
	}
}

func readCertificates(path string) ([]*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	chain, err := mtls.ParseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return chain, nil
}

// print writes the report.
func (c *verifyCmd) print(p *process, spec *mesh.Spec, report observe.Report) error {
	if c.json() {
		return writeJSON(p, verified{Version: 1, Mesh: spec.Mesh, TrustDomain: spec.TrustDomain, Report: report})
	}
	var out strings.Builder
	if len(report.Endpoints) > 0 {
		printEndpoints(&out, report.Endpoints)
	}
	for _, endpoint := range report.Endpoints {
		for _, check := range endpoint.Checks {
			if check.Result == observe.Skipped {
				fmt.Fprintf(&out, "\nnot checked: %s %s %s, %s: %s\n", endpoint.Workload, endpoint.Instance, endpoint.Endpoint, check.Name, check.Observed)
			}
		}
	}
	fmt.Fprintln(&out)
	if len(report.Findings) == 0 {
		fmt.Fprintf(&out, "%s: as declared.\n", count(len(report.Endpoints), "endpoint"))
	} else {
		printFindings(&out, report.Findings)
	}
	_, err := io.WriteString(p.stdout, out.String())
	return err
}

// printEndpoints writes one row an endpoint: what it showed, for people; JSON has all of it.
func printEndpoints(out io.Writer, endpoints []observe.Observation) {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "WORKLOAD\tINSTANCE\tENDPOINT\tADDRESS\tTLS\tCIPHER\tSERIAL\tEXPIRES\tNO CERT\tSTRANGER\tEXPIRED\tPLAINTEXT\tRESULT")
	for _, e := range endpoints {
		fmt.Fprintln(table, strings.Join([]string{
			e.Workload, e.Instance, e.Endpoint, e.Address,
			cmp.Or(strings.Join(e.Accepted, ","), "-"), cmp.Or(strings.TrimPrefix(e.Cipher, "TLS_"), "-"),
			cmp.Or(e.Serial[:min(len(e.Serial), 12)], "-"), expires(e.NotAfter),
			letIn(e, observe.CheckNoCertificate), letIn(e, observe.CheckStranger), letIn(e, observe.CheckExpired), letIn(e, observe.CheckPlaintext),
			summary(e),
		}, "\t"))
	}
	_ = table.Flush() // out is in memory
}

// printFindings writes one row a finding.
func printFindings(out io.Writer, findings []observe.Finding) {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "WORKLOAD\tINSTANCE\tENDPOINT\tCHECK\tEXPECTED\tOBSERVED")
	for _, f := range findings {
		fmt.Fprintln(table, strings.Join([]string{f.Workload, cmp.Or(f.Instance, "-"), cmp.Or(f.Endpoint, "-"), f.Check, f.Expected, f.Observed}, "\t"))
	}
	_ = table.Flush()
}

// letIn abbreviates what became of one kind of client. Who was closed on without an answer, NGINX's way, counts as refused only
// where that is as it should be: JSON has the difference.
func letIn(e observe.Observation, name string) string {
	i := slices.IndexFunc(e.Checks, func(c observe.Check) bool { return c.Name == name })
	switch {
	case i < 0 || e.Checks[i].Result == observe.Skipped:
		return "-"
	case strings.HasPrefix(e.Checks[i].Observed, "refused"), e.Checks[i].Expected == "refused" && e.Checks[i].Result == observe.Pass:
		return "refused"
	default:
		return "let in"
	}
}

// summary is the last column.
func summary(e observe.Observation) string {
	findings := 0
	for _, check := range e.Checks {
		if check.Result == observe.Deviates {
			findings++
		}
	}
	if findings == 0 {
		return "as declared"
	}
	return count(findings, "deviation")
}

// expires is the time that a certificate has left.
func expires(notAfter time.Time) string {
	if notAfter.IsZero() {
		return "-"
	}
	return "in " + roughly(time.Until(notAfter))
}

// progress is a line on a terminal, shown once a second has passed.
type progress struct {
	out   io.Writer // nil: there is no terminal
	began time.Time

	mu    sync.Mutex
	shown bool
}

func newProgress(out io.Writer) *progress {
	if !isTerminal(out) {
		out = nil
	}
	return &progress{out: out, began: time.Now()}
}

// show is called by the observer's goroutines.
func (l *progress) show(done, of int) {
	if l.out == nil || time.Since(l.began) < time.Second {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shown = true
	fmt.Fprintf(l.out, "\rverify: %d of %d connections", done, of)
}

// end takes the line away.
func (l *progress) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shown {
		fmt.Fprint(l.out, "\r\x1b[K")
	}
}
