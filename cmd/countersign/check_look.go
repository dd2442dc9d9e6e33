package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"countersign.dev/api"
	"countersign.dev/expiry"
	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/observe"
	"countersign.dev/rotate"
	"countersign.dev/up"
)

// rememberedExpired is for how long a server surely remembers a certificate that has ended.
const rememberedExpired = 30 * 24 * time.Hour

// expiryWatch asks everybody whom `check expiry` asks.
type expiryWatch struct {
	log      *slog.Logger
	spec     *mesh.Spec   // given; nil takes the server's
	document *up.Document // nil when there is none
	admin    *api.Admin   // nil when nobody said which
	socket   string
	noServer error         // why admin is nil
	patience time.Duration // for how long the server is asked at most
	server   string        // host:port of the listener for agents, as given
	cloud    *cloud        // whom tasks of Amazon ECS are asked of

	stderr io.Writer // is told what takes long

	mesh, trustDomain string                        // as found out last
	stores            map[string]mesh.DeclaredStore // those of the specification, by their names
}

// seen is what one look has found so far.
type seen struct {
	*expiryWatch
	facts expiry.Facts
	spec  *mesh.Spec
	plans []*mesh.Plan
	roots []*x509.Certificate // the CA's; nil when nobody could be asked
	// rows and instances are what the server says of instances; known tells whether it could be asked.
	rows      []api.Status
	instances []api.Instance
	known     bool
	silent    []mesh.Store // those of AWS that would not answer anything else either
}

// look asks everybody once. Whoever does not answer is in the facts; an error is that of ctx, or of the
// specification that a server runs and this program does not understand.
func (w *expiryWatch) look(ctx context.Context) (expiry.Facts, error) {
	s := &seen{expiryWatch: w, spec: w.spec, facts: expiry.Facts{Now: time.Now(), Backdating: issue.ClockAllowance, Remembered: rememberedExpired}}
	asking, done := s.asking(ctx)
	defer done()
	if err := s.askServer(asking); ctx.Err() != nil || err != nil && asking.Err() == nil {
		return expiry.Facts{}, cmp.Or(ctx.Err(), err)
	}
	if err := s.compile(); err != nil {
		return expiry.Facts{}, err
	}
	for _, plan := range s.plans {
		s.facts.Workloads = append(s.facts.Workloads, s.workload(plan))
	}
	s.fromDocument()
	if err := s.readStores(ctx); err != nil {
		return expiry.Facts{}, err
	}
	s.tasks(ctx)
	asking, done = s.asking(ctx)
	defer done()
	s.lists(asking)
	s.handshakes(ctx)
	return s.facts, ctx.Err()
}

// asking is the time that the server has: one that says nothing leaves enough for everybody else.
func (w *expiryWatch) asking(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, w.patience, fmt.Errorf("the server does not answer within %s; is it stopped or overloaded?", w.patience))
}

// unreached notes that the server did not answer a question.
func (s *seen) unreached(err error, lost string) {
	s.facts.Unreached = append(s.facts.Unreached, expiry.Unreached{Code: expiry.CodeServer, Place: s.socket, Problem: err.Error(), Lost: lost})
}

// askServer asks the server for all that it knows.
func (s *seen) askServer(ctx context.Context) error {
	all := "what the CA has issued, roots and issuing CA, revocation lists, who runs and where"
	if s.spec == nil {
		all += ", what the specification declares, and with it the stores"
	}
	if s.admin == nil {
		if s.spec == nil || s.spec.ServerCan() == nil { // else there is none to be asked
			s.unreached(s.noServer, all)
		}
		return nil
	}
	if s.spec == nil {
		spec, err := runningSpec(ctx, s.admin)
		switch {
		case errors.Is(err, api.ErrNoServer) || ctx.Err() != nil:
			s.unreached(because(ctx, err), all)
			return ctx.Err()
		case err != nil:
			s.unreached(because(ctx, err), "what the specification declares, and with it stores, endpoints and files")
		default:
			s.spec = spec
		}
	}
	authority, err := s.admin.CA(ctx)
	if err != nil {
		s.unreached(because(ctx, err), all)
		return ctx.Err()
	}
	if err := s.authority(authority); err != nil {
		s.facts.Authority = nil
		s.unreached(because(ctx, err), "roots and issuing CA")
	}
	if records, err := s.admin.Certificates(ctx); err != nil {
		s.unreached(because(ctx, err), "what the CA has issued")
	} else {
		s.facts.Issued = make(map[string]expiry.Issued, len(records))
		for _, r := range records {
			s.facts.Issued[r.Serial] = expiry.Issued{Serial: r.Serial, Identity: r.Identity.String(), NotBefore: r.NotBefore, NotAfter: r.NotAfter, Instance: r.Instance, Revoked: r.Revoked}
		}
	}
	s.rows, err = s.admin.Status(ctx)
	if err == nil {
		s.instances, err = s.admin.Endpoints(ctx)
	}
	if err != nil {
		s.unreached(because(ctx, err), "who runs and where")
		return ctx.Err()
	}
	s.known = true
	for _, row := range s.rows {
		if row.Workload == "(CA)" && s.facts.Authority != nil { // a line for people, of the CA
			s.facts.Authority.Problem = row.Error
		}
	}
	return nil
}

// authority reads what the server says of the CA: all hierarchies, of which several may have one root.
func (s *seen) authority(answer *api.CAResponse) error {
	s.facts.Authority = &expiry.Authority{}
	s.trustDomain = answer.TrustDomain
	hierarchies := answer.Roots
	if len(hierarchies) == 0 { // a server that knew only one
		hierarchies = []api.Hierarchy{{State: expiry.Active, Root: answer.Root, Issuer: answer.Issuer}}
	}
	at := make(map[string]int)
	for _, h := range hierarchies {
		roots, err := mtls.ParseCertificates([]byte(h.Root))
		if err != nil {
			return fmt.Errorf("the root that the server names: %w", err)
		}
		issuers, err := mtls.ParseCertificates([]byte(h.Issuer))
		if err != nil {
			return fmt.Errorf("the issuing CA that the server names: %w", err)
		}
		s.facts.Authority.Issuers = append(s.facts.Authority.Issuers, caCertificate(issuers[0], h.State))
		root := caCertificate(roots[0], h.State)
		root.Since = h.Since
		known, ok := at[root.Fingerprint]
		switch {
		case !ok:
			at[root.Fingerprint] = len(s.facts.Authority.Roots)
			s.facts.Authority.Roots = append(s.facts.Authority.Roots, root)
			s.roots = append(s.roots, roots[0])
		case h.State == expiry.Active || s.facts.Authority.Roots[known].State == expiry.Retiring:
			s.facts.Authority.Roots[known].State = h.State
		}
	}
	return nil
}

// caCertificate is what a comparison needs of a root or an issuing CA.
func caCertificate(cert *x509.Certificate, state string) expiry.CACertificate {
	return expiry.CACertificate{
		Certificate: expiry.Certificate{Serial: mtls.Serial(cert), Fingerprint: fingerprint(cert), NotBefore: cert.NotBefore, NotAfter: cert.NotAfter},
		Subject:     cert.Subject.String(), State: state,
	}
}

func fingerprint(cert *x509.Certificate) string { return strings.TrimPrefix(mtls.Pin(cert), "sha256:") }

// certificate is what a comparison needs of a chain, which is not empty. Whether it leads to the mesh's roots is
// asked of a moment at which the leaf is valid: that it is not valid now is another matter.
func (s *seen) certificate(chain []*x509.Certificate) expiry.Certificate {
	leaf := chain[0]
	cert := expiry.Certificate{Serial: mtls.Serial(leaf), Fingerprint: fingerprint(leaf), NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter}
	if identity, err := id.FromCertificate(leaf); err == nil {
		cert.Identity = identity.String()
	} else if mtls.Named(leaf, leaf.Subject.CommonName) == nil {
		cert.Identity = mesh.FromDNS + leaf.Subject.CommonName
	}
	between := x509.NewCertPool()
	for _, above := range chain[1:] {
		between.AddCert(above)
		if above.NotAfter.Before(cert.NotAfter) {
			cert.NotAfter, cert.Short = above.NotAfter, above.Subject.String()
		}
	}
	if len(s.roots) == 0 {
		return cert
	}
	roots := x509.NewCertPool()
	for _, root := range s.roots {
		roots.AddCert(root)
	}
	at := s.facts.Now
	if at.Before(leaf.NotBefore) {
		at = leaf.NotBefore
	}
	if at.After(cert.NotAfter) {
		at = cert.NotAfter
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		cert.Untrusted = fmt.Sprintf("%.300v", err)
	}
	return cert
}

// compile makes the Plans of the specification.
func (s *seen) compile() error {
	if s.spec == nil {
		return nil
	}
	s.expiryWatch.mesh, s.expiryWatch.trustDomain, s.stores = s.spec.Mesh, s.spec.TrustDomain, s.spec.Stores
	for _, workload := range s.spec.Workloads() {
		plan, err := s.spec.Compile(workload.Name)
		if err != nil {
			return fmt.Errorf("compiling the plan of %s: %w", workload.Name, err)
		}
		s.plans = append(s.plans, plan)
	}
	return nil
}

// workload is what is known of a workload before anybody but the server was asked.
func (s *seen) workload(plan *mesh.Plan) expiry.Workload {
	w := expiry.Workload{
		Name: plan.Workload.Name, Identity: plan.Workload.Identity.String(),
		TTL: time.Duration(plan.Certificate.TTL), RenewAfter: time.Duration(plan.Certificate.RenewAfter), InstancesKnown: s.known,
	}
	if plan.Delivery.FromStore() {
		w.Early = rotate.Early(w.Name)
	}
	if name := plan.Certificate.DNSIdentity; name != "" {
		w.Identity = mesh.FromDNS + name // its certificates are ACM's, and have no SPIFFE ID
	}
	for _, inbound := range plan.Inbound {
		if inbound.Certificate == nil || inbound.TLS == mesh.Off || slices.ContainsFunc(w.Files, func(f expiry.File) bool { return f.Path == inbound.Certificate.Cert }) {
			continue
		}
		file := expiry.File{Path: inbound.Certificate.Cert}
		if chain, err := readCertificates(file.Path); err != nil {
			file.Problem = err.Error()
		} else {
			cert := s.certificate(chain)
			cert.Untrusted = "" // it is for the outside
			file.Certificate = &cert
		}
		w.Files = append(w.Files, file)
	}
	for _, row := range s.rows {
		if row.Workload == w.Name && row.Instance != "" {
			w.Instances = append(w.Instances, s.instance(plan, row))
		}
	}
	return w
}

// instance is what the server says of an instance. Who is not an endpoint, because it drains or was lost, has
// nothing to look at.
func (s *seen) instance(plan *mesh.Plan, row api.Status) expiry.Instance {
	i := expiry.Instance{
		Name: row.Instance, Connected: row.Connected, Reported: row.Serial, Ends: row.NotAfter, Seen: row.ObservedSerial,
		Problem: row.Problem, ClockOffset: time.Duration(row.ClockOffset),
	}
	at := slices.IndexFunc(s.instances, func(e api.Instance) bool { return e.Workload == row.Workload && e.Instance == row.Instance })
	if at < 0 {
		return i
	}
	for _, inbound := range plan.Inbound {
		if inbound.TLS == mesh.Off {
			continue
		}
		e := expiry.Endpoint{Listener: inbound.Name}
		if inbound.Certificate != nil {
			e.File = inbound.Certificate.Cert
		}
		if l := slices.IndexFunc(s.instances[at].Inbound, func(l api.Listening) bool { return l.Port == inbound.Port }); l >= 0 {
			e.Address = s.instances[at].Inbound[l].Address
		} else {
			e.Problem = "the instance reports no listener for it"
		}
		i.Endpoints = append(i.Endpoints, e)
	}
	return i
}

// fromDocument takes from the document of `up` whom to look at, when no server says it: endpoints serve on without one.
func (s *seen) fromDocument() {
	if s.known || s.document == nil {
		return
	}
	for _, running := range s.document.Workloads {
		n := slices.IndexFunc(s.facts.Workloads, func(w expiry.Workload) bool { return w.Name == running.Name })
		if n < 0 {
			if s.spec != nil {
				continue // it is not declared there
			}
			n = len(s.facts.Workloads)
			s.facts.Workloads = append(s.facts.Workloads, expiry.Workload{Name: running.Name, Identity: running.Identity.String()})
			s.plans = append(s.plans, &mesh.Plan{Workload: mesh.Workload{Name: running.Name, Kind: running.Kind, Identity: running.Identity}})
		}
		instance := expiry.Instance{Name: running.Instance, Connected: true}
		for _, inbound := range running.Inbound {
			if inbound.TLS == mesh.Off {
				continue
			}
			e := expiry.Endpoint{Listener: inbound.Name, Address: inbound.Address}
			at := slices.IndexFunc(s.plans[n].Inbound, func(in mesh.Inbound) bool { return in.Name == inbound.Name })
			if at >= 0 && s.plans[n].Inbound[at].Certificate != nil {
				e.File = s.plans[n].Inbound[at].Certificate.Cert
			}
			instance.Endpoints = append(instance.Endpoints, e)
		}
		s.facts.Workloads[n].Instances = append(s.facts.Workloads[n].Instances, instance)
	}
}

// lists reads the revocation lists, when the mesh looks at any, and notes in the books who is on them.
func (s *seen) lists(ctx context.Context) {
	if s.facts.Authority == nil || !slices.ContainsFunc(s.plans, func(p *mesh.Plan) bool { return p.Revocation.Check }) {
		return
	}
	text, err := s.admin.CRL(ctx)
	if err == nil {
		err = s.readLists(text)
	}
	if err != nil {
		s.facts.Authority.CRLProblem = because(ctx, err).Error()
	}
}

func (s *seen) readLists(text []byte) error {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return fmt.Errorf("the server's answer holds what is no revocation list: %w", err)
		}
		s.facts.Authority.CRLs = append(s.facts.Authority.CRLs, expiry.CRL{Issuer: list.Issuer.String(), ThisUpdate: list.ThisUpdate, NextUpdate: list.NextUpdate})
		for _, entry := range list.RevokedCertificateEntries {
			serial := mtls.Serial(&x509.Certificate{SerialNumber: entry.SerialNumber})
			if issued, ok := s.facts.Issued[serial]; ok {
				issued.Revoked = entry.RevocationTime
				s.facts.Issued[serial] = issued
			}
		}
	}
	if len(s.facts.Authority.CRLs) == 0 {
		return errors.New("the server's answer holds none")
	}
	return nil
}

// handshakes looks at every endpoint, and at the server.
func (s *seen) handshakes(ctx context.Context) {
	var group errgroup.Group
	group.SetLimit(observe.DefaultParallel)
	present := func(address string, by mesh.CertificatePlan, protocol mesh.Protocol, done func(*expiry.Certificate, string)) {
		group.Go(func() error {
			chain, err := observe.PresentedBy(ctx, address, by, protocol)
			if err != nil {
				done(nil, err.Error())
				return nil
			}
			cert := s.certificate(chain)
			done(&cert, "")
			return nil
		})
	}
	for n, plan := range s.plans {
		by := mesh.CertificatePlan{Identity: plan.Workload.Identity, DNSIdentity: plan.Certificate.DNSIdentity}
		instances := s.facts.Workloads[n].Instances
		for i := range instances {
			for k := range instances[i].Endpoints {
				if e := &instances[i].Endpoints[k]; e.Address != "" {
					protocol := mesh.HTTP
					if at := slices.IndexFunc(plan.Inbound, func(in mesh.Inbound) bool { return in.Name == e.Listener }); at >= 0 {
						protocol = plan.Inbound[at].Protocol
					}
					present(e.Address, by, protocol, func(cert *expiry.Certificate, problem string) { e.Served, e.Problem = cert, problem })
				}
			}
		}
	}
	s.ownServer(present)
	_ = group.Wait() // what went wrong stands at its place
}

// ownServer looks at the server's own certificate: on the wire when its address is known, in the books otherwise.
func (s *seen) ownServer(present func(string, mesh.CertificatePlan, mesh.Protocol, func(*expiry.Certificate, string))) {
	address := s.server
	if address == "" && s.document != nil {
		if parsed, err := url.Parse(s.document.Server.URL); err == nil {
			address = parsed.Host
		}
	}
	trustDomain := s.trustDomain
	if trustDomain == "" && s.document != nil {
		trustDomain = s.document.TrustDomain
	}
	identity, err := id.New(trustDomain, id.Server, "countersign")
	if err != nil {
		return // no specification and no document: that is told already
	}
	if address != "" {
		server := &expiry.Server{Address: address}
		s.facts.Server = server
		present(address, mesh.CertificatePlan{Identity: identity}, mesh.HTTP2, func(cert *expiry.Certificate, problem string) { server.Served, server.Problem = cert, problem })
		return
	}
	var newest expiry.Issued
	for _, issued := range s.facts.Issued {
		if issued.Identity == identity.String() && (cmp.Or(issued.NotBefore.Compare(newest.NotBefore), strings.Compare(issued.Serial, newest.Serial)) > 0) {
			newest = issued
		}
	}
	if newest.Serial != "" {
		s.facts.Server = &expiry.Server{Served: &expiry.Certificate{Serial: newest.Serial, Identity: newest.Identity, NotBefore: newest.NotBefore, NotAfter: newest.NotAfter}}
	}
}
