package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/durable"
	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/journal"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/policy"
	"countersign.dev/up"
)

// caState says where the CA is: in a state directory, or behind the socket of a running server.
type caState struct {
	State string `placeholder:"DIR" help:"The server's state directory. A server that runs on it is asked."`
	adminFlags
}

// running finds the socket of a running server; it is empty when --state is given and no server
// runs on it.
func (s caState) running(ctx context.Context) (string, error) {
	if s.Socket != "" {
		return s.Socket, nil
	}
	if s.State == "" {
		if os.Getenv(up.EnvRun) == "" {
			return "", usagef("where is the CA? Give --state DIR, or the --socket PATH of a running server")
		}
		return s.find()
	}
	socket := filepath.Join(s.State, "server.sock")
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return "", nil //nolint:nilerr // nobody answers: the state is free, or its journal's lock will tell
	}
	return socket, conn.Close()
}

type caIssueCmd struct {
	Workload string        `arg:"" help:"A workload's name, kind and name (service/NAME, gateway/NAME), or its SPIFFE ID."`
	CSR      string        `name:"csr" placeholder:"FILE" help:"Certify the key of this certificate request (PEM; - is standard input) and print the chain."`
	Out      string        `placeholder:"DIR" help:"Make a key and write key.pem, cert.pem and ca.pem to DIR/current, all in one step."`
	Key      string        `enum:"ecdsa-p256,ecdsa-p384,rsa-2048,rsa-3072,rsa-4096,ed25519," default:"" help:"The type of the key that --out makes. Default: as the specification says, else ecdsa-p256."`
	Mesh     string        `placeholder:"PATH" help:"Without a server: the specification to take names and life from."`
	TTL      time.Duration `name:"ttl" help:"Without a server: how long the certificate is valid. Default: as the specification says, else 168h."`
	caState
	sealFlags
}

// Help is what --help adds.
func (caIssueCmd) Help() string {
	return `For somebody who has no sidecar. While a server runs on the state, it issues, and decides names and life
from its specification; otherwise this command opens the CA, and needs to be told how its keys are
stored. The journal records the certificate in either case. Subject and names of a request are never
copied: those that the workload does not have are refused.

Examples:
  countersign ca issue --state ./state colorteller --csr colorteller.csr > chain.pem
  countersign ca issue --state ./state --unsealed --mesh mesh.yaml colorteller --out ./tls`
}

// Run issues the certificate.
func (c caIssueCmd) Run(p *process) error {
	if (c.CSR == "") == (c.Out == "") {
		return usagef("say either --csr FILE, for a key that is elsewhere, or --out DIR, to make one")
	}
	if c.CSR != "" && c.Key != "" {
		return usagef("--key is for --out; the key of --csr is made already")
	}
	socket, err := c.running(p.ctx)
	if err != nil {
		return err
	}
	if socket != "" {
		c.idle(p)
		return c.byServer(p, api.NewAdmin(socket))
	}
	return c.byState(p)
}

// byServer asks the server that has the state.
func (c caIssueCmd) byServer(p *process, admin *api.Admin) error {
	if c.Mesh != "" || c.TTL != 0 {
		return usagef("a server runs, and its specification decides: --mesh and --ttl are for a state without a server")
	}
	running, err := admin.Mesh(p.ctx)
	if err != nil {
		return answered(p, err)
	}
	spec, err := mesh.ParseDocuments(running.Documents)
	if err != nil {
		return fmt.Errorf("reading the server's specification: %w", err)
	}
	plan, err := c.declared(spec, "the running specification")
	if err != nil {
		return err
	}
	request, key, err := c.request(p, plan.Key)
	if err != nil {
		return err
	}
	defer clear(key)
	credentials, err := admin.Issue(p.ctx, api.IssueRequest{Workload: plan.Identity.Name(), CSR: string(request)})
	if err != nil {
		return answered(p, err)
	}
	return c.deliver(p, []byte(credentials.Chain), []byte(credentials.Bundle), key)
}

// byState opens the CA and its journal.
func (c caIssueCmd) byState(p *process) error {
	authority, err := ca.Read(c.State)
	if err != nil {
		return err
	}
	plan, err := c.wanted(p, authority.TrustDomain())
	if err != nil {
		return err
	}
	request, key, err := c.request(p, plan.Key)
	if err != nil {
		return err
	}
	defer clear(key)
	sealer, err := c.sealer(p)
	if err != nil {
		return err
	}
	open, log, ledger, err := openLedger(c.State, sealer)
	if err != nil {
		return err
	}
	issued, err := issueInto(p.ctx, log, open, ledger, plan, request)
	if err := errors.Join(err, log.Close()); err != nil {
		return err
	}
	return c.deliver(p, issued.ChainPEM, open.BundlePEM(), key)
}

// refusal is what the journal records of a request that was refused.
type refusal struct {
	Identity id.ID  `json:"identity"`
	By       string `json:"by"`
	Reason   string `json:"reason"`
}

// issueInto does what a server does with a request by hand: check and issue, or record the refusal.
func issueInto(ctx context.Context, log *journal.Log, open *ca.CA, ledger *ca.Ledger, plan mesh.CertificatePlan, request []byte) (*ca.Issued, error) {
	const by = "administrator"
	csr, err := issue.ParseCSR(request)
	if err == nil {
		err = issue.CheckCSRNames(csr, plan.Identity, plan.DNSNames)
	}
	if err == nil {
		err = ledger.CheckKey(csr.RawSubjectPublicKeyInfo)
	}
	if err == nil {
		var issued *ca.Issued
		issued, err = open.Issue(ctx, ca.JournalRecorder{Journal: log, By: by}, issue.Request{
			ID: plan.Identity, DNSNames: plan.DNSNames, PublicKey: csr.PublicKey, TTL: time.Duration(plan.TTL),
		})
		if !errors.Is(err, issue.ErrRequest) { // the life, for one
			return issued, err
		}
	}
	_, recorded := log.Append(ctx, journal.Entry{
		Time: time.Now(), Type: journal.IssueRefused,
		Data: refusal{Identity: plan.Identity, By: by, Reason: err.Error()},
	})
	return nil, errors.Join(usageError{err}, recorded)
}

// wanted says what a certificate without a server is to hold: by --mesh, when there is one.
func (c caIssueCmd) wanted(p *process, trustDomain string) (mesh.CertificatePlan, error) {
	if trustDomain == "" {
		return mesh.CertificatePlan{}, usagef("the CA in %s has no trust domain yet: start a server with it first", c.State)
	}
	var plan mesh.CertificatePlan
	if c.Mesh != "" {
		spec, err := loadSpec(p, c.Mesh)
		if err != nil {
			return mesh.CertificatePlan{}, err
		}
		if trustDomain != spec.TrustDomain {
			return mesh.CertificatePlan{}, usagef("%s is of the trust domain %q, and the CA in %s is the one of %q", c.Mesh, spec.TrustDomain, c.State, trustDomain)
		}
		if plan, err = c.declared(spec, c.Mesh); err != nil {
			return mesh.CertificatePlan{}, err
		}
	} else {
		identity, err := c.identity(trustDomain)
		if err != nil {
			return mesh.CertificatePlan{}, err
		}
		plan = mesh.CertificatePlan{Identity: identity, TTL: mesh.Duration(168 * time.Hour)}
	}
	if c.TTL != 0 {
		plan.TTL = mesh.Duration(c.TTL)
	}
	return plan, nil
}

// declared is what a specification says about the workload. where names it in messages.
func (c caIssueCmd) declared(spec *mesh.Spec, where string) (mesh.CertificatePlan, error) {
	name := c.Workload[strings.LastIndexByte(c.Workload, '/')+1:]
	plan, err := policy.Enrollment(spec, name)
	if err != nil {
		return mesh.CertificatePlan{}, usagef("%s does not declare the workload %q", where, name)
	}
	if name != c.Workload {
		identity, err := c.identity(spec.TrustDomain)
		if err != nil {
			return mesh.CertificatePlan{}, err
		}
		if identity != plan.Identity {
			return mesh.CertificatePlan{}, usagef("%s declares %s, not %s", where, plan.Identity, identity)
		}
	}
	return plan, nil
}

// identity reads the argument without a specification, which would know a bare name's kind.
func (c caIssueCmd) identity(trustDomain string) (id.ID, error) {
	text := c.Workload
	if !strings.Contains(text, "/") {
		return id.ID{}, usagef("is %q a service or a gateway? Write service/%s or gateway/%s, or give --mesh PATH", text, text, text)
	}
	if !strings.HasPrefix(text, "spiffe://") {
		text = "spiffe://" + trustDomain + "/" + text
	}
	identity, err := id.Parse(text)
	if err != nil {
		return id.ID{}, usageError{err}
	}
	if identity.TrustDomain() != trustDomain {
		return id.ID{}, usagef("%s is not of the CA's trust domain %s", identity, trustDomain)
	}
	if kind := identity.Kind(); kind != id.Service && kind != id.Gateway {
		return id.ID{}, usagef("a certificate of the kind %s is not issued by hand; only services and gateways are", kind)
	}
	return identity, nil
}

// request reads the certificate request, or makes a key and one for it.
func (c caIssueCmd) request(p *process, keyType mesh.KeyType) (csr, key []byte, err error) {
	if c.CSR != "" {
		csr, err = readInput(p, c.CSR, issue.MaxCSR)
		return csr, nil, err
	}
	if c.Key != "" {
		keyType = mesh.KeyType(c.Key)
	}
	signer, err := mtls.GenerateKey(keyType)
	if err != nil {
		return nil, nil, err
	}
	if csr, err = mtls.NewCSR(signer); err != nil {
		return nil, nil, err
	}
	key, err = mtls.MarshalKey(signer)
	return csr, key, err
}

// deliver prints the chain, or writes it with its key and the roots.
func (c caIssueCmd) deliver(p *process, chain, bundle, key []byte) error {
	if c.Out == "" {
		_, err := p.stdout.Write(chain)
		return err
	}
	err := durable.WriteGeneration(c.Out, []durable.File{
		{Name: "key.pem", Data: key, Perm: 0o600},
		{Name: "cert.pem", Data: chain, Perm: 0o644},
		{Name: "ca.pem", Data: bundle, Perm: 0o644},
	})
	if err != nil {
		return err
	}
	certs, err := mtls.ParseCertificates(chain)
	if err != nil {
		return err
	}
	return describeIssued(p.stdout, certs[0], filepath.Join(c.Out, "current"))
}

func describeIssued(w io.Writer, leaf *x509.Certificate, dir string) error {
	identity, err := id.FromCertificate(leaf)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\nserial %s, valid to %s\n%s\n%s\n%s\n", identity, mtls.Serial(leaf), leaf.NotAfter.UTC().Format(time.RFC3339),
		filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "ca.pem"))
	return err
}

// readInput reads a file that the user named, or standard input, up to a size.
func readInput(p *process, name string, limit int64) ([]byte, error) {
	r := p.stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, usageError{err}
		}
		defer f.Close()
		r = f
	}
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, usageError{fmt.Errorf("reading %s: %w", name, err)}
	}
	if int64(len(data)) > limit {
		return nil, usagef("%s has more than %d bytes; is it the right file?", name, limit)
	}
	return data, nil
}
