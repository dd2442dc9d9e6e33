package deliver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"countersign.dev/credential"
	"countersign.dev/durable"
	"countersign.dev/durable/durabletest"
	"countersign.dev/id"
	"countersign.dev/issue/issuetest"
	"countersign.dev/mesh"
	"countersign.dev/reload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// authority is a CA in memory.
type authority struct{ *issuetest.Authority }

func newAuthority(t testing.TB) *authority { return &authority{issuetest.New(t)} }

// offer issues a credential.
func (a *authority) offer(t testing.TB, version string) Offer {
	t.Helper()
	who, err := id.Parse("spiffe://shop.internal/service/orders")
	ok(t, err)
	chain, key := a.Pair(t, who)
	value := func(name string, data []byte) credential.Value { return credential.Value{Name: name, Data: data} }
	return Offer{Version: version, Input: credential.Input{
		Certificate: value("cert", chain), Key: value("key", key), Bundle: value("bundle", issuetest.PEM(a.Root)),
	}}
}

// store is a source whose contents a test sets.
type store struct {
	mu  sync.Mutex
	now Offer
	err error
}

func (s *store) set(o Offer, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now, s.err = o, err
}

// Offer gives a copy: what it holds is overwritten.
func (s *store) Offer(context.Context) (*Offer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	o := s.now
	for _, v := range []*credential.Value{&o.Input.Certificate, &o.Input.Key, &o.Input.Bundle} {
		v.Data = slices.Clone(v.Data)
	}
	return &o, nil
}

// fake is a proxy and a prober. What it serves is in a file, so that it outlives the process that told it.
type fake struct {
	dir  string // of certificates
	file string // what it serves: the leaf

	mu      sync.Mutex
	down    bool
	ignores bool                    // takes nothing, and says nothing
	test    func(file string) error // nil: all is well
	refuses func(*x509.Certificate) bool
	tests   []string
	reloads int
	shows   [][]byte
}

var errConnect = errors.New("connection refused")

func (f *fake) Test(_ context.Context, file string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tests = append(f.tests, file)
	if f.test == nil {
		return nil
	}
	return f.test(file)
}

func (f *fake) Reload(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return reload.ErrNotRunning
	}
	f.reloads++
	if f.ignores {
		return nil
	}
	return f.load()
}

// load reads what is in force, as a proxy does.
func (f *fake) load() error {
	current := filepath.Join(f.dir, "current")
	pair, err := tls.LoadX509KeyPair(filepath.Join(current, credential.CertFile), filepath.Join(current, credential.KeyFile))
	if err != nil {
		return fmt.Errorf("%w: %w", reload.ErrRefused, err)
	}
	if f.refuses != nil && f.refuses(pair.Leaf) {
		return fmt.Errorf("%w: it does not like it", reload.ErrRefused)
	}
	f.shows = nil
	for _, root := range certificates(filepath.Join(current, credential.BundleFile)) {
		f.shows = append(f.shows, root.RawSubject)
	}
	return os.WriteFile(f.file, issuetest.PEM(pair.Leaf), 0o600)
}

// start lets it run with what is in force.
func (f *fake) start(t *testing.T) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = false
	ok(t, f.load())
}

func (f *fake) Probe(_ context.Context, l Listener, _ *credential.Credential) (*Seen, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return nil, errConnect
	}
	if !l.TLS {
		return &Seen{}, nil
	}
	leaves := certificates(f.file)
	if len(leaves) != 1 {
		return nil, errConnect
	}
	return &Seen{Leaf: leaves[0], Authorities: f.shows}, nil
}

// lab is a watcher with all that it works with.
type lab struct {
	t      *testing.T
	ca     *authority
	source *store
	proxy  *fake
	cfg    Config
	w      *Watcher
}

// newLab has the version v1 in force as init leaves it, and served.
func newLab(t *testing.T, change ...func(*Config)) *lab {
	t.Helper()
	dir := t.TempDir()
	l := &lab{t: t, ca: newAuthority(t), source: &store{}, proxy: &fake{dir: filepath.Join(dir, "tls"), file: filepath.Join(dir, "served")}}
	l.cfg = Config{
		Output: credential.Output{Dir: l.proxy.dir, Mode: 0o600, UID: -1, GID: -1},
		Source: l.source, Proxy: l.proxy, Prober: l.proxy,
		Expect: func() credential.Expect { return credential.Expect{Now: time.Now()} },
		Listeners: func(*mesh.Plan) []Listener {
			return []Listener{{Port: 443, Address: "192.0.2.1:443", TLS: true, Own: true, Client: true}}
		},
		Interval: 5 * time.Millisecond, Patience: 300 * time.Millisecond, Retry: time.Hour,
		Log: slog.New(slog.DiscardHandler),
	}
	for _, change := range change {
		change(&l.cfg)
	}
	first := l.ca.offer(t, "v1")
	l.source.set(first, nil)
	o, err := l.source.Offer(t.Context())
	ok(t, err)
	cred, err := o.Check(l.cfg.Expect())
	ok(t, err)
	out := l.cfg.Output
	var configuration []byte
	if l.cfg.Render != nil {
		configuration, err = l.cfg.Render(l.cfg.Plan, false)
		ok(t, err)
		out.Further = append(out.Further, durable.File{Name: l.cfg.File, Data: configuration, Perm: 0o644})
	}
	out.Further = append(out.Further, first.Made(cred, configuration, nil).File())
	ok(t, cred.Write(out))
	l.proxy.start(t)
	l.open()
	return l
}

// open makes the watcher anew, as after a restart.
func (l *lab) open() {
	l.t.Helper()
	if l.w != nil {
		ok(l.t, l.w.Close())
	}
	var err error
	l.w, err = New(l.cfg)
	ok(l.t, err)
	l.t.Cleanup(func() { _ = l.w.Close() }) // some are closed before
}

// put writes a version to the store.
func (l *lab) put(version string) {
	l.t.Helper()
	l.source.set(l.ca.offer(l.t, version), nil)
}

// round is one, and its error has to hold a text, or to be none.
func (l *lab) round(want string) {
	l.t.Helper()
	expect(l.t, l.w.round(l.t.Context(), l.w.plan, true), want)
}

func expect(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Fatalf("%v, and %q was expected", err, want)
	}
}

// holds looks at the disk and at the proxy: the version is in force, whole, and served; proved tells whether it has to be noted.
func (l *lab) holds(version string, proved bool) {
	l.t.Helper()
	l.inForce(version)
	current := filepath.Join(l.proxy.dir, "current")
	leaf := certificates(filepath.Join(current, credential.CertFile))[0]
	if served := certificates(l.proxy.file); len(served) != 1 || !served[0].Equal(leaf) {
		l.t.Fatalf("another certificate is served than the one in force")
	}
	d := credential.ReadDirectory(l.cfg.Output)
	n, err := d.Current()
	ok(l.t, err)
	p, err := d.Proved()
	ok(l.t, err)
	if proved && n != p {
		l.t.Fatalf("generation %d is in force, and %d is proved", n, p)
	}
	ok(l.t, lookAtModes(l.proxy.dir))
}

func (l *lab) inForce(version string) {
	l.t.Helper()
	current := filepath.Join(l.proxy.dir, "current")
	if _, err := tls.LoadX509KeyPair(filepath.Join(current, credential.CertFile), filepath.Join(current, credential.KeyFile)); err != nil {
		l.t.Fatal(err)
	}
	made, err := madeOf(current)
	ok(l.t, err)
	if made.Version != version {
		l.t.Fatalf("version %q is in force, and %q was expected", made.Version, version)
	}
}

// lookAtModes refuses what is open to more than its owner, but what is public.
func lookAtModes(dir string) error {
	return durabletest.Modes(dir, credential.CertFile, credential.BundleFile, MadeFile, RevocationFile, "proxy.conf")
}

// rendered lets the watcher write the configuration too.
func rendered(c *Config) {
	c.File, c.Plan = "proxy.conf", &mesh.Plan{Revision: 1, Mesh: "one"}
	c.Render = func(plan *mesh.Plan, lists bool) ([]byte, error) {
		if plan.Mesh == "bad" {
			return nil, errors.New("the plan cannot be carried out")
		}
		text := fmt.Appendf(nil, "cert %s/current/cert.pem # %s\n", c.Output.Dir, plan.Mesh)
		if lists {
			text = fmt.Appendf(text, "crl %s/current/crl.pem\n", c.Output.Dir)
		}
		return text, nil
	}
}
