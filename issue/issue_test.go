package issue

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

const trustDomain = "colorapp.internal"

// start is the moment at which the tests' CAs are made.
var start = time.Date(2026, 11, 22, 12, 0, 0, 500_000_000, time.UTC)

// clock is a time that a test moves.
type clock struct{ at atomic.Pointer[time.Time] }

func newClock(at time.Time) *clock {
	c := &clock{}
	c.set(at)
	return c
}

func (c *clock) set(at time.Time) { c.at.Store(&at) }
func (c *clock) now() time.Time   { return *c.at.Load() }

// keys are made once for each type: RSA takes its time.
var keys = struct {
	sync.Mutex
	made map[string]crypto.Signer
}{made: make(map[string]crypto.Signer)}

// testKey gives the key of a type and a role; the same for the same arguments.
func testKey(t testing.TB, kind mesh.KeyType, role string) crypto.Signer {
	t.Helper()
	keys.Lock()
	defer keys.Unlock()
	name := string(kind) + " " + role
	if key, ok := keys.made[name]; ok {
		return key
	}
	key, err := mtls.GenerateKey(kind)
	if err != nil {
		t.Fatal(err)
	}
	keys.made[name] = key
	return key
}

// authority is a hierarchy in memory.
type authority struct {
	*Issuer
	root  *x509.Certificate
	clock *clock
}

func newAuthority(t testing.TB, kind mesh.KeyType) *authority {
	t.Helper()
	rootKey, key := testKey(t, kind, "root"), testKey(t, kind, "issuer")
	root, err := NewRoot(rootKey, AuthorityConfig{TrustDomain: trustDomain, Now: start, Life: 10 * 365 * 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := NewIssuing(key.Public(), root, rootKey, AuthorityConfig{TrustDomain: trustDomain, Now: start, Life: 365 * 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	profile, err := NewProfile(ProfileConfig{TrustDomain: trustDomain, MaxTTL: 400 * 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	c := newClock(start)
	issuer, err := NewIssuer(cert, key, profile, c.now)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{Issuer: issuer, root: root, clock: c}
}

func member(t testing.TB, kind id.Kind, name string) id.ID {
	t.Helper()
	i, err := id.New(trustDomain, kind, name)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func request(t testing.TB) Request {
	t.Helper()
	return Request{
		ID:        member(t, id.Service, "colorteller"),
		PublicKey: testKey(t, mesh.ECDSAP256, "leaf").Public(),
		TTL:       time.Hour,
	}
}

func (a *authority) mustIssue(t testing.TB, req Request) (*x509.Certificate, Facts) {
	t.Helper()
	prepared, err := a.Prepare(req)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := a.Issue(prepared)
	if err != nil {
		t.Fatal(err)
	}
	return leaf, prepared.Facts()
}

func TestLeaf(t *testing.T) {
	a := newAuthority(t, mesh.ECDSAP256)
	req := request(t)
	req.DNSNames = []string{"colors.example.com", "colorteller", "colors.example.com"}
	leaf, facts := a.mustIssue(t, req)

	for what, ok := range map[string]bool{
		"subject":             leaf.Subject.String() == "CN=colorteller,OU=service,O=colorapp.internal",
		"one URI":             len(leaf.URIs) == 1 && leaf.URIs[0].String() == "spiffe://colorapp.internal/service/colorteller",
		"DNS names":           slices.Equal(leaf.DNSNames, []string{"colorteller", "colorteller.colorapp.internal", "colors.example.com"}),
		"no addresses":        len(leaf.IPAddresses) == 0,
		"key usage":           leaf.KeyUsage == x509.KeyUsageDigitalSignature,
		"purposes":            slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}),
		"no CA":               leaf.BasicConstraintsValid && !leaf.IsCA,
		"clock allowance":     leaf.NotBefore.Equal(start.Add(-5 * time.Minute).Truncate(time.Second)),
		"end":                 leaf.NotAfter.Equal(start.Add(time.Hour).Truncate(time.Second)),
		"serial in the facts": facts.Serial == mtls.Serial(leaf),
		"TBS in the facts":    facts.TBS == hexSHA256(leaf.RawTBSCertificate),
		"key in the facts":    facts.PublicKey == hexSHA256(leaf.RawSubjectPublicKeyInfo),
		"issuer in the facts": facts.Issuer == mtls.Serial(a.cert),
		"names in the facts":  facts.Identity == req.ID && slices.Equal(facts.DNSNames, leaf.DNSNames),
		"times in the facts":  facts.NotBefore.Equal(leaf.NotBefore) && facts.NotAfter.Equal(leaf.NotAfter),
		"128 bits of serial":  leaf.SerialNumber.Sign() > 0 && leaf.SerialNumber.BitLen() <= 128,
	} {
		if !ok {
			t.Errorf("%s: wrong in %+v of %s", what, facts, leaf.Subject)
		}
	}
	bundle, err := mtls.NewBundle(trustDomain, []*x509.Certificate{a.root})
	if err != nil {
		t.Fatal(err)
	}
	for _, usage := range leaf.ExtKeyUsage {
		if got, err := bundle.Verify([]*x509.Certificate{leaf, a.cert}, usage, start); err != nil || got != req.ID {
			t.Errorf("usage %v: %v, %v", usage, got, err)
		}
	}
}

func TestServerLeafHasAddresses(t *testing.T) {
	a := newAuthority(t, mesh.ECDSAP256)
	req := request(t)
	req.ID = member(t, id.Server, "countersign")
	req.IPAddresses = []net.IP{net.ParseIP("127.0.0.1"), net.ParseIP("::1")}
	leaf, facts := a.mustIssue(t, req)
	if len(leaf.IPAddresses) != 2 || !slices.Equal(facts.IPAddresses, []string{"127.0.0.1", "::1"}) {
		t.Errorf("addresses %v, facts %v", leaf.IPAddresses, facts.IPAddresses)
	}
	if err := leaf.VerifyHostname("127.0.0.1"); err != nil {
		t.Error(err)
	}
}

func TestRefusedRequests(t *testing.T) {
	a := newAuthority(t, mesh.ECDSAP256)
	many := make([]string, 100)
	for i := range many {
		many[i] = fmt.Sprintf("n%d.example.com", i)
	}
	foreign, err := id.New("other.internal", id.Service, "colorteller")
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		change func(*Request)
		want   error
	}{
		"no identity":           {func(r *Request) { r.ID = id.ID{} }, ErrRequest},
		"another trust domain":  {func(r *Request) { r.ID = foreign }, ErrRequest},
		"no life":               {func(r *Request) { r.TTL = 0 }, ErrRequest},
		"negative life":         {func(r *Request) { r.TTL = -time.Hour }, ErrRequest},
		"too long a life":       {func(r *Request) { r.TTL = 401 * 24 * time.Hour }, ErrRequest},
		"a probe's life":        {func(r *Request) { r.ID = member(t, id.Probe, "verify"); r.TTL = 6 * time.Minute }, ErrRequest},
		"a wildcard":            {func(r *Request) { r.DNSNames = []string{"*.example.com"} }, ErrRequest},
		"an empty name":         {func(r *Request) { r.DNSNames = []string{""} }, ErrRequest},
		"a name with a NUL":     {func(r *Request) { r.DNSNames = []string{"a\x00.example.com"} }, ErrRequest},
		"too many names":        {func(r *Request) { r.DNSNames = many }, ErrRequest},
		"a service's address":   {func(r *Request) { r.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1)} }, ErrRequest},
		"a wildcard address":    {func(r *Request) { r.ID = member(t, id.Server, "s"); r.IPAddresses = []net.IP{net.IPv4zero} }, ErrRequest},
		"a malformed address":   {func(r *Request) { r.ID = member(t, id.Server, "s"); r.IPAddresses = []net.IP{{1, 2}} }, ErrRequest},
		"no key":                {func(r *Request) { r.PublicKey = nil }, ErrWeakKey},
		"the CA's own key":      {func(r *Request) { r.PublicKey = a.cert.PublicKey }, ErrRequest},
		"a key that is no key":  {func(r *Request) { r.PublicKey = "ssh-rsa" }, ErrWeakKey},
		"a private key instead": {func(r *Request) { r.PublicKey = testKey(t, mesh.ECDSAP256, "leaf") }, ErrWeakKey},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			req := request(t)
			c.change(&req)
			prepared, err := a.Prepare(req)
			if prepared != nil || !errors.Is(err, c.want) || !errors.Is(err, ErrRequest) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}

func TestProfileRefuses(t *testing.T) {
	for _, cfg := range []ProfileConfig{
		{}, {TrustDomain: "A B", MaxTTL: time.Hour}, {TrustDomain: trustDomain}, {TrustDomain: trustDomain, MaxTTL: time.Millisecond},
	} {
		if p, err := NewProfile(cfg); err == nil || p != nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
}

// TestRedeemedOnce lets many try to redeem one token.
func TestRedeemedOnce(t *testing.T) {
	a, other := newAuthority(t, mesh.ECDSAP256), newAuthority(t, mesh.ECDSAP256)
	prepared, err := a.Prepare(request(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Issue(prepared); !errors.Is(err, ErrRedeemed) {
		t.Errorf("another issuer: %v", err)
	}
	if _, err := a.Issue(nil); !errors.Is(err, ErrRedeemed) {
		t.Errorf("nothing: %v", err)
	}
	if _, err := a.Issue(&Prepared{}); !errors.Is(err, ErrRedeemed) {
		t.Errorf("a token that nobody prepared: %v", err)
	}
	var made atomic.Int32
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			switch leaf, err := a.Issue(prepared); {
			case err == nil && leaf != nil:
				made.Add(1)
			case !errors.Is(err, ErrRedeemed):
				t.Error(err)
			}
		})
	}
	all.Wait()
	if made.Load() != 1 {
		t.Errorf("%d certificates were made of one token", made.Load())
	}
}

func TestNeverOutlivesItsIssuer(t *testing.T) {
	a := newAuthority(t, mesh.ECDSAP256)
	end := a.cert.NotAfter
	a.clock.set(end.Add(-30 * time.Minute))
	leaf, facts := a.mustIssue(t, request(t))
	if !leaf.NotAfter.Equal(end) || !facts.NotAfter.Equal(end) {
		t.Errorf("the leaf ends at %s, the issuer at %s", leaf.NotAfter, end)
	}
	for _, at := range []time.Time{end, end.Add(time.Hour), a.cert.NotBefore.Add(-time.Second)} {
		a.clock.set(at)
		if _, err := a.Prepare(request(t)); !errors.Is(err, ErrIssuer) {
			t.Errorf("at %s: %v, want ErrIssuer", at, err)
		}
	}
}

func TestShortLives(t *testing.T) {
	a := newAuthority(t, mesh.ECDSAP256)
	for _, ttl := range []time.Duration{time.Second, 1500 * time.Millisecond, time.Minute} {
		req := request(t)
		req.TTL = ttl
		leaf, _ := a.mustIssue(t, req)
		if life := leaf.NotAfter.Sub(start); life > ttl || life <= ttl-time.Second {
			t.Errorf("a time to live of %s became %s", ttl, life)
		}
	}
}

func TestSerials(t *testing.T) {
	seen := make(map[string]bool)
	long := false
	for range 2000 {
		n := newSerial()
		if n.Sign() <= 0 || n.BitLen() > 128 || seen[n.String()] {
			t.Fatalf("serial %s", n)
		}
		seen[n.String()] = true
		long = long || n.BitLen() == 128
	}
	if !long {
		t.Error("no serial uses all 128 bits")
	}
}

// faulty is a signer whose device or memory has failed.
type faulty struct {
	crypto.Signer
	fail bool
}

func (f faulty) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if f.fail {
		return nil, errors.New("the device is gone")
	}
	wrong := slices.Clone(digest)
	wrong[0] ^= 1
	return f.Signer.Sign(rand, wrong, opts)
}

func TestFaultyKey(t *testing.T) {
	a := newAuthority(t, mesh.ECDSAP256)
	for _, fail := range []bool{true, false} {
		issuer, err := NewIssuer(a.cert, faulty{a.key, fail}, a.profile, a.now)
		if err != nil {
			t.Fatal(err)
		}
		prepared, err := issuer.Prepare(request(t))
		if err != nil {
			t.Fatal(err)
		}
		if leaf, err := issuer.Issue(prepared); err == nil || leaf != nil {
			t.Errorf("fail=%t: a certificate with a wrong signature got out", fail)
		}
		if _, err := issuer.Issue(prepared); !errors.Is(err, ErrRedeemed) {
			t.Errorf("fail=%t: a second attempt: %v", fail, err)
		}
	}
}

// TestWhatIsSignedWasPrepared changes the template between the two steps.
func TestWhatIsSignedWasPrepared(t *testing.T) {
	a := newAuthority(t, mesh.ECDSAP256)
	prepared, err := a.Prepare(request(t))
	if err != nil {
		t.Fatal(err)
	}
	prepared.template.DNSNames = append(prepared.template.DNSNames, "evil.example.com")
	if leaf, err := a.Issue(prepared); !errors.Is(err, ErrLint) || leaf != nil {
		t.Errorf("%v, %v; want ErrLint", leaf, err)
	}
}

func TestIssuerRefuses(t *testing.T) {
	a := newAuthority(t, mesh.ECDSAP256)
	leaf, _ := a.mustIssue(t, request(t))
	noKeyID := *a.cert
	noKeyID.SubjectKeyId = nil
	cases := map[string]struct {
		cert    *x509.Certificate
		key     crypto.Signer
		profile *Profile
	}{
		"no profile":     {a.cert, a.key, nil},
		"another key":    {a.cert, testKey(t, mesh.ECDSAP256, "leaf"), a.profile},
		"a leaf":         {leaf, testKey(t, mesh.ECDSAP256, "leaf"), a.profile},
		"no identifier":  {&noKeyID, a.key, a.profile},
		"another's type": {a.cert, testKey(t, mesh.Ed25519, "leaf"), a.profile},
	}
	for name, c := range cases {
		if _, err := NewIssuer(c.cert, c.key, c.profile, nil); !errors.Is(err, ErrIssuer) {
			t.Errorf("%s: %v, want ErrIssuer", name, err)
		}
	}
}

func TestAuthorityRefuses(t *testing.T) {
	key := testKey(t, mesh.ECDSAP256, "root")
	if _, err := NewRoot(key, AuthorityConfig{Now: start}); err == nil {
		t.Error("a root without a life was made")
	}
	root, err := NewRoot(key, AuthorityConfig{Now: start, Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(root.Subject.String(), "O=") {
		t.Errorf("a root of no trust domain is called %s", root.Subject)
	}
	public := testKey(t, mesh.ECDSAP256, "issuer").Public()
	issuing, err := NewIssuing(public, root, key, AuthorityConfig{Now: start, Life: 2 * time.Hour})
	if err != nil || issuing.NotAfter.After(root.NotAfter) {
		t.Errorf("an issuing CA outlives its root: %v, %v", issuing, err)
	}
	if _, err := NewIssuing(public, root, key, AuthorityConfig{Now: start.Add(2 * time.Hour), Life: time.Hour}); !errors.Is(err, ErrIssuer) {
		t.Errorf("below an expired root: %v", err)
	}
	if _, err := NewIssuing(public, root, testKey(t, mesh.ECDSAP256, "leaf"), AuthorityConfig{Now: start, Life: time.Hour}); err == nil {
		t.Error("a key that is not the root's signed")
	}
}
