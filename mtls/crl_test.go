package mtls

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/mesh"
)

// listing are the lists of an authority as a test wants them.
type listing struct {
	number         int64
	members        []*x509.Certificate // revoked by the issuing CA
	issuers        []*x509.Certificate // revoked by the root
	noRoot, noLeaf bool                // a list is left out
	end            time.Time           // zero: a day from the start on
}

// lists makes them, in PEM.
func (a *authority) lists(t testing.TB, l listing) []byte {
	t.Helper()
	if l.number == 0 {
		l.number = 1
	}
	if l.end.IsZero() {
		l.end = start.Add(24 * time.Hour)
	}
	one := func(by *x509.Certificate, key crypto.Signer, revoked []*x509.Certificate) []byte {
		cfg := issue.CRLConfig{Number: l.number, Now: start, NextUpdate: l.end}
		for _, cert := range revoked {
			cfg.Revoked = append(cfg.Revoked, issue.Revoked{Serial: cert.SerialNumber, Time: start, Reason: issue.KeyCompromise})
		}
		list, err := issue.NewCRL(by, key, cfg)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list.Raw})
	}
	var out []byte
	if !l.noLeaf {
		out = one(a.issuing, a.key, l.members)
	}
	if !l.noRoot {
		out = append(out, one(a.root, testKey(t, mesh.ECDSAP256, "root "+a.name), l.issuers)...)
	}
	return out
}

func (a *authority) crls(t testing.TB, l listing) *CRLs {
	t.Helper()
	c, err := ParseCRLs(a.lists(t, l))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// withLists is a source's identity with revocation lists.
func withLists(s *source, c *CRLs, stale mesh.StaleCRL) *Identity {
	changed := *s.identity.Load()
	changed.Revocation = &Revocation{CRLs: c, Stale: stale}
	return &changed
}

// TestRevoked revokes one end and looks at what the other does with it: in full handshakes, and on sessions that were
// made before and are resumed still.
func TestRevoked(t *testing.T) {
	leaf := func(s *source) []*x509.Certificate { return []*x509.Certificate{s.identity.Load().Certificate.Leaf} }
	cases := map[string]struct {
		lists func(p *pair) listing
		stale mesh.StaleCRL
		later time.Duration
		want  error // at the server; nil: the client is admitted, and its session resumed
	}{
		"nobody":               {lists: func(*pair) listing { return listing{} }},
		"another":              {lists: func(p *pair) listing { return listing{members: leaf(p.server)} }},
		"the client":           {lists: func(p *pair) listing { return listing{members: leaf(p.client)} }, want: ErrRevoked},
		"the client, serve":    {lists: func(p *pair) listing { return listing{members: leaf(p.client)} }, stale: mesh.StaleServe, want: ErrRevoked},
		"its issuer":           {lists: func(p *pair) listing { return listing{issuers: []*x509.Certificate{p.a.issuing}} }, want: ErrRevoked},
		"stale":                {lists: func(*pair) listing { return listing{end: start.Add(time.Minute)} }, later: 2 * time.Minute, want: ErrNoCRL},
		"stale, serve":         {lists: func(*pair) listing { return listing{end: start.Add(time.Minute)} }, later: 2 * time.Minute, stale: mesh.StaleServe},
		"stale and revoked":    {lists: func(p *pair) listing { return listing{end: start.Add(time.Minute), members: leaf(p.client)} }, later: 2 * time.Minute, stale: mesh.StaleServe, want: ErrRevoked},
		"no list of the root":  {lists: func(*pair) listing { return listing{noRoot: true} }, want: ErrNoCRL},
		"no list of the CA":    {lists: func(*pair) listing { return listing{noLeaf: true} }, want: ErrNoCRL},
		"no list, serve":       {lists: func(*pair) listing { return listing{noLeaf: true} }, stale: mesh.StaleServe},
		"no root's, revoked":   {lists: func(p *pair) listing { return listing{noRoot: true, members: leaf(p.client)} }, stale: mesh.StaleServe, want: ErrRevoked},
		"at the list's end":    {lists: func(*pair) listing { return listing{end: start.Add(time.Minute)} }, later: time.Minute},
		"the root's is of 2 y": {lists: func(*pair) listing { return listing{end: start.Add(2 * 365 * 24 * time.Hour)} }},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			forVersions(t, func(t *testing.T, version uint16) {
				p := newPair(t)
				server, client := p.newServer(ServerOptions{}).Config(), p.stranger(version, p.client.identity.Load().Certificate)
				connect(t, server, client).ok(t)
				if o := connect(t, server, client); o.serverErr != nil || !o.server.DidResume {
					t.Fatalf("before: %v, resumed: %t", o.serverErr, o.server.DidResume)
				}
				p.a.clock.set(start.Add(c.later))
				p.server.set(withLists(p.server, p.a.crls(t, c.lists(p)), c.stale))
				fresh := p.stranger(version, p.client.identity.Load().Certificate)
				for kind, config := range map[string]*tls.Config{"resumed": client, "full": fresh} {
					o := connect(t, server, config)
					if c.want == nil && (o.serverErr != nil || o.server.DidResume != (kind == "resumed")) {
						t.Errorf("%s: %v, resumed: %t", kind, o.serverErr, o.server.DidResume)
					}
					if c.want != nil && (!errors.Is(o.serverErr, c.want) || !errors.Is(o.serverErr, ErrUntrusted)) {
						t.Errorf("%s: %v, want %v", kind, o.serverErr, c.want)
					}
				}
			})
		})
	}
}

// TestRevokedServer is the client's side of it.
func TestRevokedServer(t *testing.T) {
	forVersions(t, func(t *testing.T, version uint16) {
		p := newPair(t)
		server, client := p.newServer(ServerOptions{}).Config(), p.newClient(ClientOptions{})
		again := func() outcome {
			config := clientConfig(t, client)
			config.MaxVersion = version
			return connect(t, server, config)
		}
		again().ok(t)
		if o := again(); !o.client.DidResume {
			t.Fatal("it was not resumed")
		}
		p.client.set(withLists(p.client, p.a.crls(t, listing{}), mesh.StaleRefuse))
		if o := again(); o.clientErr != nil || !o.client.DidResume {
			t.Errorf("new lists without it: %v, resumed: %t", o.clientErr, o.client.DidResume)
		}
		lists := p.a.crls(t, listing{number: 2, members: []*x509.Certificate{p.server.identity.Load().Certificate.Leaf}})
		p.client.set(withLists(p.client, lists, mesh.StaleRefuse))
		if o := again(); !errors.Is(o.clientErr, ErrRevoked) {
			t.Errorf("a revoked server: %v", o.clientErr)
		}
	})
}

// TestIdentityVerify looks again at a peer of before, whose chain is remembered.
func TestIdentityVerify(t *testing.T) {
	p := newPair(t)
	identity := p.server.identity.Load()
	chain := []*x509.Certificate{p.client.identity.Load().Certificate.Leaf, p.a.issuing}
	verify := func(identity *Identity) error {
		_, err := identity.Verify(chain, x509.ExtKeyUsageClientAuth, start)
		return err
	}
	for range 2 {
		if err := verify(identity); err != nil {
			t.Fatal(err)
		}
	}
	if err := verify(withLists(p.server, p.a.crls(t, listing{members: chain[:1]}), "")); !errors.Is(err, ErrRevoked) {
		t.Errorf("revoked: %v", err)
	}
	if err := verify(withLists(p.server, p.a.crls(t, listing{number: 2}), "")); err != nil {
		t.Errorf("not revoked: %v", err)
	}
}

// TestForeignList asserts that a list counts only with the signature of the CA in whose name it is.
func TestForeignList(t *testing.T) {
	p := newPair(t)
	thief := newAuthority(t, "thief")
	forged := *thief
	issuing := *thief.issuing
	issuing.RawSubject, issuing.Subject, issuing.SubjectKeyId = p.a.issuing.RawSubject, p.a.issuing.Subject, p.a.issuing.SubjectKeyId
	forged.issuing = &issuing
	leaf := p.client.identity.Load().Certificate.Leaf
	list, err := issueUnchecked(&issuing, thief.key, leaf)
	if err != nil {
		t.Fatal(err)
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list}), p.a.lists(t, listing{noLeaf: true})...)
	c, err := ParseCRLs(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CheckSignatures([]*x509.Certificate{p.a.root, p.a.issuing}); !errors.Is(err, ErrCRL) {
		t.Errorf("a forged list is taken: %v", err)
	}
	chain := []*x509.Certificate{leaf, p.a.issuing}
	if _, err := withLists(p.server, c, mesh.StaleServe).Verify(chain, x509.ExtKeyUsageClientAuth, start); err != nil {
		t.Errorf("a forged list revokes: %v", err)
	}
	if _, err := withLists(p.server, c, mesh.StaleRefuse).Verify(chain, x509.ExtKeyUsageClientAuth, start); !errors.Is(err, ErrNoCRL) {
		t.Errorf("a forged list stands for the real one: %v", err)
	}
	if err := p.a.crls(t, listing{}).CheckSignatures([]*x509.Certificate{p.a.root, p.a.issuing, thief.root}); err != nil {
		t.Errorf("good lists: %v", err)
	}
	if _, _, ok := p.a.crls(t, listing{}).Covers(thief.root); ok {
		t.Error("there is a list of a CA that has none")
	}
}

// issueUnchecked signs a list whose signature does not belong to its name.
func issueUnchecked(by *x509.Certificate, key crypto.Signer, revoked *x509.Certificate) ([]byte, error) {
	liar := *by
	liar.PublicKey = key.Public()
	return x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(9), ThisUpdate: start, NextUpdate: start.Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: revoked.SerialNumber, RevocationTime: start}},
	}, &liar, key)
}

func TestParseCRLs(t *testing.T) {
	a := newAuthority(t, "a")
	good := a.lists(t, listing{number: 3})
	made := func(change func(*x509.RevocationList)) []byte {
		template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: start, NextUpdate: start.Add(time.Hour)}
		change(template)
		der, err := x509.CreateRevocationList(rand.Reader, template, a.issuing, a.key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
	}
	for name, text := range map[string][]byte{
		"a certificate": bundle(t, a).PEM(),
		"cut":           good[:len(good)-40],
		"no DER":        pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: []byte("x")}),
		"too many":      bytes.Repeat([]byte("-----BEGIN "), maxLists+1),
		"too long":      make([]byte, MaxCRLs+1),
		"for some only": made(func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 28}, Critical: true, Value: []byte{0x30, 0}}}
		}),
		"of differences": made(func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}}
		}),
		"another's entry": made(func(l *x509.RevocationList) {
			l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: big.NewInt(1), RevocationTime: start, ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 29}, Critical: true, Value: []byte{0x30, 0}}}}}
		}),
		"good, then wrong": append(slices.Clone(good), "-----BEGIN X509 CRL-----\n"...),
	} {
		if c, err := ParseCRLs(text); !errors.Is(err, ErrCRL) || c != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	c, err := ParseCRLs(append(a.lists(t, listing{number: 2}), good...))
	if err != nil {
		t.Fatal(err)
	}
	if number, end, ok := c.Covers(a.issuing); !ok || number != "3" || !end.Equal(start.Add(24*time.Hour)) {
		t.Errorf("of two lists of one CA, number %s to %v counts", number, end)
	}
	again, err := ParseCRLs(c.PEM())
	if err != nil || again.Digest() != c.Digest() {
		t.Errorf("the lists do not survive their own PEM: %v", err)
	}
	if empty, err := ParseCRLs(nil); err != nil || len(empty.PEM()) != 0 {
		t.Errorf("nothing: %v", err)
	}
}

func TestUpdateCRLs(t *testing.T) {
	a, other := newAuthority(t, "a"), newAuthority(t, "b")
	held := a.crls(t, listing{number: 5, end: start.Add(time.Hour)})
	number := func(c *CRLs, by *x509.Certificate) string {
		text, _, _ := c.Covers(by)
		return text
	}
	next, err := held.Update(a.crls(t, listing{number: 6}), start)
	if err != nil || number(next, a.issuing) != "6" || number(next, a.root) != "6" {
		t.Errorf("newer: %v", err)
	}
	next, err = held.Update(held, start)
	if err != nil || next.Digest() != held.Digest() {
		t.Errorf("the same again: %v", err)
	}
	for name, come := range map[string]*CRLs{
		"older":                a.crls(t, listing{number: 4}),
		"another with its own": a.crls(t, listing{number: 5, end: start.Add(2 * time.Hour)}),
	} {
		next, err = held.Update(come, start)
		if !errors.Is(err, ErrOldCRL) || next.Digest() != held.Digest() {
			t.Errorf("%s: %v", name, err)
		}
	}
	next, err = held.Update(other.crls(t, listing{}), start)
	if err != nil || number(next, a.issuing) != "5" || number(next, other.issuing) != "1" {
		t.Errorf("those of another CA alone: %v", err)
	}
	next, err = held.Update(other.crls(t, listing{}), start.Add(2*time.Hour))
	if err != nil || number(next, a.issuing) != "" {
		t.Errorf("a list that ended and did not come again is kept: %v", err)
	}
	var none *CRLs
	if next, err = none.Update(held, start); err != nil || next.Digest() != held.Digest() {
		t.Errorf("the first: %v", err)
	}
}

func TestRevocationProblem(t *testing.T) {
	a := newAuthority(t, "a")
	cas := []*x509.Certificate{a.issuing, a.root}
	r := &Revocation{CRLs: a.crls(t, listing{}), Stale: mesh.StaleServe}
	if err := r.Problem(cas, start); err != nil {
		t.Error(err)
	}
	if err := r.Problem(cas, start.Add(25*time.Hour)); !errors.Is(err, ErrNoCRL) {
		t.Errorf("stale: %v", err)
	}
	if err := (&Revocation{}).Problem(cas, start); !errors.Is(err, ErrNoCRL) {
		t.Errorf("none: %v", err)
	}
	var off *Revocation
	if err := off.Problem(cas, start); err != nil {
		t.Errorf("not checked: %v", err)
	}
}

func FuzzParseCRLs(f *testing.F) {
	a := newAuthority(f, "a")
	leaf := a.certify(f, member(f, id.Service, "a"), testKey(f, mesh.ECDSAP256, "leaf a"), time.Hour)
	good := a.lists(f, listing{members: []*x509.Certificate{leaf}})
	f.Add(good)
	f.Add(good[:len(good)-10])
	f.Add(bundle(f, a).PEM())
	f.Add([]byte("-----BEGIN X509 CRL-----\n-----END X509 CRL-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := ParseCRLs(text)
		if err != nil {
			if !errors.Is(err, ErrCRL) {
				t.Errorf("an error without a sentinel: %v", err)
			}
			return
		}
		again, err := ParseCRLs(c.PEM())
		if err != nil || again.Digest() != c.Digest() {
			t.Errorf("lists do not survive their own PEM: %v", err)
		}
		r := &Revocation{CRLs: c}
		if err := r.check([]*x509.Certificate{leaf, a.issuing, a.root}, start); err != nil && !errors.Is(err, ErrRevoked) && !errors.Is(err, ErrNoCRL) {
			t.Errorf("an error without a sentinel: %v", err)
		}
		if _, err := c.Update(again, start); err != nil {
			t.Errorf("a set does not follow itself: %v", err)
		}
	})
}
