package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"sync"
	"time"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/journal"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/observe"
	"countersign.dev/policy"
)

// Bounds of a look at all endpoints.
const (
	lookTimeout  = 4 * time.Second // one connection
	lookParallel = 32
	// recently is for how long what peers saw counts against somebody who has renewed: connections that
	// were made before the renewal speak on for a while.
	recently = 30 * time.Second
)

// member is an instance as a step of the CA looks at it.
type member struct {
	workload, name string
	report         api.Report
	connected      bool
	lost           time.Time
	plan           *mesh.Plan // without endpoints
}

// isRevoked tells whether a certificate was revoked. Its holder is cut off already, and comes back only with a new
// join token.
func (s *Server) isRevoked(serial string) bool {
	_, revoked := s.revocations.ledger.Revoked(serial)
	return revoked
}

func (m member) blocker(format string, a ...any) api.Blocker {
	return api.Blocker{Workload: m.workload, Instance: m.name, Reason: fmt.Sprintf(format, a...)}
}

// members are the instances of declared workloads that have not said good-bye.
func (r *registry) members() []member {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []member
	for workload, instances := range r.instances {
		plan := r.base[workload]
		if plan == nil {
			continue
		}
		for _, i := range instances {
			if !i.report.Draining {
				all = append(all, member{workload, i.name, i.report, i.stream != nil, i.lost, plan})
			}
		}
	}
	return all
}

// fromStores are the workloads whose certificates come from a store, by identity.
func (r *registry) fromStores() map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	stores := make(map[string]bool)
	for _, plan := range r.base {
		stores[plan.Workload.Identity.String()] = plan.Delivery.FromStore()
	}
	return stores
}

// identities are those of the workloads that have a Plan.
func (r *registry) identities() []id.ID {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []id.ID
	for _, plan := range r.base {
		all = append(all, plan.Workload.Identity)
	}
	return all
}

// longestTTL is the longest life that a Plan gives a certificate.
func (r *registry) longestTTL() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	var longest time.Duration
	for _, plan := range r.base {
		longest = max(longest, time.Duration(plan.Certificate.TTL))
	}
	return longest
}

// blockers are those whom a step would cut off, sorted. The caller holds rotation.mu.
func (s *Server) blockers(ctx context.Context, step string) ([]api.Blocker, error) {
	var found []api.Blocker
	var err error
	if step == api.RotateActivate {
		found, err = s.activationBlockers(ctx)
	} else {
		found, err = s.finishBlockers(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("finding out who stands in the way: %w", err)
	}
	slices.SortFunc(found, func(a, b api.Blocker) int {
		return cmp.Or(cmp.Compare(a.Workload, b.Workload), cmp.Compare(a.Instance, b.Instance), cmp.Compare(a.Endpoint, b.Endpoint), cmp.Compare(a.Reason, b.Reason))
	})
	if found == nil {
		found = []api.Blocker{}
	}
	return found, nil
}

// activationBlockers are those who have not been seen to accept the next root: who is away, who holds
// another bundle, and whose listeners refuse a certificate of the next root.
func (s *Server) activationBlockers(ctx context.Context) ([]api.Blocker, error) {
	all := s.ca.Hierarchies()
	next := all[1] // the step says that there is one
	probe, err := s.probeOf(ctx, next, s.ca.IssueNext)
	if err != nil {
		return nil, err
	}
	want := s.trust.Load().bundle.Digest()
	var found []api.Blocker
	var looks []look
	for _, m := range s.registry.members() {
		switch {
		case !m.connected && s.isRevoked(m.report.Serial):
			continue // nobody lets it in again
		case !m.connected:
			found = append(found, m.blocker("not connected since %s, so that it does not know the next root; start it, or let it end in good order", m.lost.UTC().Format(time.RFC3339)))
			continue
		case m.report.Bundle == "":
			found = append(found, m.blocker("it does not say which roots it trusts; update countersign there"))
		case m.report.Bundle != want:
			found = append(found, m.blocker("it does not trust the next root yet"))
		}
		for _, inbound := range m.plan.Inbound {
			if inbound.TLS == mesh.Off || inbound.ClientAuth == mesh.None {
				continue
			}
			target, ok := targetOf(m, inbound)
			if !ok {
				found = append(found, m.blocker("it does not listen on its port %d", inbound.Port))
				continue
			}
			looks = append(looks, look{m, target, func(shown observe.Shown) string {
				if shown.Accepts {
					return ""
				}
				return "it does not accept a certificate of the next root: " + shown.How
			}})
		}
	}
	refused, err := runLooks(ctx, looks, &probe, next.Root)
	return append(found, refused...), err
}

// targetOf joins a declared listener with where the instance says it is.
func targetOf(m member, inbound mesh.Inbound) (observe.Target, bool) {
	i := slices.IndexFunc(m.report.Listening, func(l api.Listening) bool { return l.Port == inbound.Port })
	if i < 0 {
		return observe.Target{}, false
	}
	return observe.Target{
		Workload: m.plan.Workload, Instance: m.name, Address: m.report.Listening[i].Address, Inbound: inbound, Certificate: m.plan.Certificate,
	}, true
}

// look is one connection, and what to say of what it shows; nothing when all is well.
type look struct {
	member member
	target observe.Target
	judge  func(observe.Shown) string
}

// runLooks makes the connections, some at a time.
func runLooks(ctx context.Context, looks []look, certificate *tls.Certificate, root *x509.Certificate) ([]api.Blocker, error) {
	said := make([]string, len(looks))
	places := make(chan struct{}, lookParallel)
	var work sync.WaitGroup
	for i, l := range looks {
		work.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			if ctx.Err() == nil {
				said[i] = l.judge(observe.Show(ctx, &l.target, certificate, root, lookTimeout))
			}
		})
	}
	work.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err // what was not looked at is not good
	}
	var found []api.Blocker
	for i, l := range looks {
		if said[i] != "" {
			b := l.member.blocker("%s", said[i])
			b.Endpoint = l.target.Address
			found = append(found, b)
		}
	}
	return found, nil
}

// probeOf is a certificate of the observer's identity in a hierarchy. One is used again for as long as it
// lives: somebody may ask every second.
func (s *Server) probeOf(ctx context.Context, h ca.Hierarchy, sign func(context.Context, ca.Recorder, issue.Request) (*ca.Issued, error)) (tls.Certificate, error) {
	if held := s.rotation.probe; s.rotation.probeOf == h.ID && held.Leaf.NotAfter.Sub(s.now()) > probeReserve {
		return held, nil
	}
	ctx, cancel := s.toTheEnd(ctx)
	defer cancel()
	identity, ttl, err := policy.Probe(s.ca.TrustDomain(), 0)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := mtls.GenerateKey(mesh.ECDSAP256)
	if err != nil {
		return tls.Certificate{}, err
	}
	if err := s.record(ctx, journal.Probe, probeFacts{Identity: identity.String(), TTL: ttl.String()}); err != nil {
		return tls.Certificate{}, err
	}
	issued, err := sign(ctx, s.recorder("", "probe", ""), issue.Request{ID: identity, PublicKey: key.Public(), TTL: ttl})
	if err != nil {
		return tls.Certificate{}, err
	}
	if err := s.store.putCertificate(ctx, issued.Certificate, "", nil); err != nil {
		return tls.Certificate{}, err
	}
	s.rotation.probe = tls.Certificate{
		Certificate: [][]byte{issued.Certificate.Raw, issued.Hierarchy.Issuer.Raw}, PrivateKey: key, Leaf: issued.Certificate,
	}
	s.rotation.probeOf = issued.Hierarchy.ID
	return s.rotation.probe, nil
}

// finishBlockers are those who still need a root that retires: who serves or holds a certificate of it,
// and who has one that has not ended and no successor.
func (s *Server) finishBlockers(ctx context.Context) ([]api.Blocker, error) {
	f := finish{s: s, now: s.now(), all: s.ca.Hierarchies()}
	if err := f.read(ctx); err != nil {
		return nil, err
	}
	var found []api.Blocker
	if own := s.leaf.held.Load().Certificate.Leaf; f.old(own) {
		found = append(found, api.Blocker{Workload: serverName, Reason: "the server's own certificate is of the root of before; its log says why"})
	}
	var looks []look
	named := make(map[owner]bool)
	for _, m := range s.registry.members() {
		held := f.held(m)
		found = append(found, held...)
		named[owner{m.plan.Workload.Identity.String(), m.name}] = len(held) > 0
		looks = append(looks, f.looks(m)...)
	}
	found = append(found, f.owned(named)...)
	probe, err := s.probeOf(ctx, f.all[0], s.ca.Issue)
	if err != nil {
		return nil, err
	}
	served, err := runLooks(ctx, looks, &probe, f.all[0].Root)
	return append(found, served...), err
}

// finish is what is known when it is asked whether the root of before may go.
type finish struct {
	s        *Server
	now      time.Time
	all      []ca.Hierarchy
	bundle   *mtls.Bundle                // the active root alone
	living   map[string]ownedCertificate // without those that were revoked
	declared map[string]bool             // identities
	stores   map[string]bool             // identities of those whose certificates come from a store
	renewed  map[owner]time.Time         // when the newest certificate of the active root was issued
	seen     map[string]map[string]time.Time
}

// owner is whom a certificate was issued to. Those that an administrator has issued have no instance.
type owner struct{ identity, instance string }

func ownerOf(c ownedCertificate) (owner, id.Kind) {
	identity, err := id.FromCertificate(c.cert)
	if err != nil {
		return owner{instance: c.instance}, ""
	}
	return owner{identity.String(), c.instance}, identity.Kind()
}

func (f *finish) read(ctx context.Context) error {
	bundle, err := mtls.NewBundle(f.s.ca.TrustDomain(), []*x509.Certificate{f.all[0].Root})
	if err != nil {
		return err
	}
	living, err := f.s.store.unexpired(ctx, f.now)
	if err != nil {
		return err
	}
	f.bundle, f.living, f.renewed = bundle, make(map[string]ownedCertificate), make(map[owner]time.Time)
	for _, c := range living {
		serial := mtls.Serial(c.cert)
		if f.s.isRevoked(serial) {
			continue
		}
		f.living[serial] = c
		if who, _ := ownerOf(c); !f.old(c.cert) && c.cert.NotBefore.After(f.renewed[who]) {
			f.renewed[who] = c.cert.NotBefore
		}
	}
	f.stores = f.s.registry.fromStores()
	f.declared = make(map[string]bool)
	for _, identity := range f.s.registry.identities() {
		f.declared[identity.String()] = true
	}
	_, f.seen = f.s.registry.rows()
	return nil
}

// old tells whether a certificate is of a root that is to go.
func (f *finish) old(cert *x509.Certificate) bool {
	return !slices.ContainsFunc(f.all, func(h ca.Hierarchy) bool { return h.SameRoot(f.all[0]) && h.Signed(cert) })
}

// retires tells whether a certificate is of a root that is still trusted and is to go. Those of roots that
// went before are cut off already.
func (f *finish) retires(cert *x509.Certificate) bool {
	return slices.ContainsFunc(f.all, func(h ca.Hierarchy) bool { return !h.SameRoot(f.all[0]) && h.Signed(cert) })
}

// held judges what an instance says that it holds, and what its peers saw of it.
func (f *finish) held(m member) []api.Blocker {
	c, known := f.living[m.report.Serial]
	switch {
	case m.report.Serial == "" && m.connected:
		return []api.Blocker{m.blocker("it has not reported yet which certificate it has")}
	case m.report.Serial == "" || !f.now.Before(m.report.NotAfter) || f.s.isRevoked(m.report.Serial):
		return nil // it has none that anybody would accept
	case !known:
		return []api.Blocker{m.blocker("it reports the certificate %s, which this CA has not issued", m.report.Serial)}
	case f.old(c.cert):
		return []api.Blocker{m.blocker("it has the certificate %s of the root of before, until %s", m.report.Serial, c.cert.NotAfter.UTC().Format(time.RFC3339))}
	}
	var found []api.Blocker
	identity := m.plan.Workload.Identity.String()
	for serial, at := range f.seen[identity] {
		c := f.living[serial]
		if c.cert == nil || !f.old(c.cert) || f.now.Sub(at) >= recently {
			continue
		}
		renewed := m.report.LastRenewal
		if c.instance == "" { // it came from a store, or by hand, whoever serves it
			renewed = f.renewed[owner{identity, ""}].Add(issue.ClockAllowance)
		}
		if (c.instance == m.name || c.instance == "") && at.After(renewed) {
			found = append(found, m.blocker("its peers saw it present the certificate %s of the root of before, at %s", serial, at.UTC().Format(time.RFC3339)))
		}
	}
	return found
}

// looks are the connections to an instance's listeners that present a certificate of the mesh.
func (f *finish) looks(m member) []look {
	var looks []look
	for _, inbound := range m.plan.Inbound {
		target, ok := targetOf(m, inbound)
		if !ok || !m.connected || inbound.TLS == mesh.Off || inbound.Certificate != nil {
			continue // who is away has been judged by what it held last
		}
		looks = append(looks, look{m, target, f.judge})
	}
	return looks
}

// judge says what is wrong with what a listener presents.
func (f *finish) judge(shown observe.Shown) string {
	if len(shown.Chain) == 0 {
		return "it cannot be seen what it serves: " + shown.How
	}
	if _, err := f.bundle.Verify(shown.Chain, x509.ExtKeyUsageServerAuth, f.now); err != nil {
		return fmt.Sprintf("it serves the certificate %s, which the new root alone does not vouch for", mtls.Serial(shown.Chain[0]))
	}
	return ""
}

// owned are the certificates of the root of before that have not ended and have no successor, one line
// for each owner who is not named yet. What is not declared any more is admitted nowhere and cannot renew; the
// observer's end within minutes, and the server's own is judged elsewhere.
func (f *finish) owned(named map[owner]bool) []api.Blocker {
	last := make(map[owner]*x509.Certificate)
	for _, c := range f.living {
		who, kind := ownerOf(c)
		if named[who] || !f.declared[who.identity] || !f.retires(c.cert) || kind == id.Probe || kind == id.Server || !f.renewed[who].IsZero() {
			continue
		}
		if have := last[who]; have == nil || c.cert.NotAfter.After(have.NotAfter) {
			last[who] = c.cert
		}
	}
	var found []api.Blocker
	for who, cert := range last {
		b := api.Blocker{Workload: cert.Subject.CommonName, Instance: who.instance}
		until := cert.NotAfter.UTC().Format(time.RFC3339)
		b.Reason = fmt.Sprintf("its certificate %s is of the root of before, lives until %s, and has no successor", mtls.Serial(cert), until)
		switch {
		case who.instance == "" && f.stores[who.identity]:
			b.Reason = fmt.Sprintf("the certificate %s, which comes from a store, is of the root of before, lives until %s, and has no successor: `countersign rotate once %s`", mtls.Serial(cert), until, b.Workload)
		case who.instance == "":
			b.Reason = fmt.Sprintf("the certificate %s that was issued for it by hand is of the root of before, lives until %s, and has no successor", mtls.Serial(cert), until)
		}
		found = append(found, b)
	}
	return found
}
