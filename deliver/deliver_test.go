package deliver

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign.dev/credential"
	"countersign.dev/durable"
	"countersign.dev/issue/issuetest"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/reload"
)

// TestDelivery takes version after version, with somebody else's configuration and with one that is written.
func TestDelivery(t *testing.T) {
	for name, change := range map[string]func(*Config){"configuration of others": func(*Config) {}, "configuration written": rendered} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, change)
			l.round("")
			l.holds("v1", true)
			if l.proxy.reloads != 0 {
				t.Error("it was told to reload what it serves")
			}
			for i := range 4 {
				version := fmt.Sprint("v", i+2)
				l.put(version)
				l.round("")
				l.holds(version, true)
				l.round("")
			}
			if l.proxy.reloads != 4 {
				t.Errorf("it was told %d times", l.proxy.reloads)
			}
			if kept, err := os.ReadDir(filepath.Join(l.proxy.dir, "generations")); err != nil || len(kept) != 2 {
				t.Errorf("%d generations are kept (%v)", len(kept), err)
			}
			s := l.w.Status()
			if s.Version != "v5" || s.Serial != mtls.Serial(s.Chain[0]) || s.Problems() != "" || s.Deliveries != 4 || len(s.Listening) != 1 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestTestedBefore expects the proxy's test to see the new files while the old ones are in force, and a refusal to change
// nothing.
func TestTestedBefore(t *testing.T) {
	l := newLab(t, rendered)
	l.round("")
	l.proxy.test = func(file string) error {
		made, err := madeOf(filepath.Join(l.proxy.dir, "current"))
		if err != nil || made.Version != "v1" {
			t.Errorf("while it is tested %q is in force (%v)", made.Version, err)
		}
		text, err := os.ReadFile(file)
		ok(t, err)
		path := strings.Fields(string(text))[1]
		if filepath.Dir(filepath.Dir(path)) != filepath.Dir(file) {
			t.Errorf("the configuration under test names %s", path)
		}
		if made, err := madeOf(filepath.Dir(path)); err != nil || made.Version != "v2" {
			t.Errorf("%q is tested (%v)", made.Version, err)
		}
		return fmt.Errorf("%w: bad", reload.ErrRefused)
	}
	l.put("v2")
	l.round("version v2: the proxy refuses the new files: bad")
	l.holds("v1", true)
	l.round("version v2: the proxy refuses the new files: bad")
	l.round("version v2")
	if len(l.proxy.tests) != 1 || l.proxy.reloads != 0 {
		t.Errorf("it was tested %d times and told %d times", len(l.proxy.tests), l.proxy.reloads)
	}
	if _, err := os.Stat(filepath.Join(l.proxy.dir, stagedDir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was under test is left: %v", err)
	}
	if s := l.w.Status(); s.Refused != 1 || s.Rollbacks != 0 || !strings.Contains(s.Problem, "v2") {
		t.Errorf("%+v", s)
	}
	// A newer version is taken at once.
	l.proxy.test = nil
	l.put("v3")
	l.round("")
	l.holds("v3", true)
}

// TestTestedAfter has a configuration of somebody else, which names what is in force.
func TestTestedAfter(t *testing.T) {
	l := newLab(t)
	l.round("")
	l.proxy.test = func(string) error { l.inForce("v2"); return fmt.Errorf("%w: bad", reload.ErrRefused) }
	l.put("v2")
	l.round("version v2: the proxy refuses the new files: bad; version v1 is in force again")
	l.holds("v1", true)
	if l.proxy.reloads != 0 {
		t.Error("it was told to take what its test refuses")
	}
}

// refused goes from v1 to a v2 that does not come to be served.
func TestGoingBack(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*lab)
		want   string
	}{
		"the reload is refused": {func(l *lab) {
			old := certificates(l.proxy.file)[0]
			l.proxy.refuses = func(c *x509.Certificate) bool { return !c.Equal(old) }
		}, "the proxy refuses the new files: it does not like it; version v1 is in force again"},
		"the reload is not taken": {func(l *lab) { l.proxy.ignores = true }, "the proxy did not take the new files: it was told 300ms ago, and 192.0.2.1:443 shows the serial"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.round("")
			test.change(l)
			l.put("v2")
			l.round(test.want)
			l.holds("v1", true)
			reloads := l.proxy.reloads
			if reloads != 2 {
				t.Errorf("it was told %d times: to take the new one, and to take the old one again", reloads)
			}
			for range 3 {
				l.round(test.want)
			}
			if l.proxy.reloads != reloads {
				t.Error("what was refused is tried again and again")
			}
			s := l.w.Status()
			if s.Rollbacks != 1 || s.Refused != 1 || s.Serial != mtls.Serial(certificates(l.proxy.file)[0]) {
				t.Errorf("%+v", s)
			}
			// The time for another try comes, and all is well by then.
			l.proxy.refuses, l.proxy.ignores = nil, false
			for key, r := range l.w.refused {
				r.until = time.Time{}
				l.w.refused[key] = r
			}
			l.round("")
			l.holds("v2", true)
			if s := l.w.Status(); s.Problems() != "" || len(l.w.refused) != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestPauses doubles the pause between two tries, up to a bound.
func TestPauses(t *testing.T) {
	l := newLab(t)
	v := &delivery{want: Made{Version: "v2", Serial: "ab"}, have: Made{Version: "v1"}}
	want := time.Hour
	for range 6 {
		l.w.remember(v, errConnect)
		if got := l.w.refused[Made{Version: "v2"}].pause; got != want {
			t.Errorf("%s, and %s was expected", got, want)
		}
		want = min(2*want, 8*time.Hour)
	}
	for n := range 3 * mostRefused {
		l.w.remember(&delivery{want: Made{Version: fmt.Sprint(n)}}, errConnect)
	}
	if len(l.w.refused) > mostRefused+2 {
		t.Errorf("%d refusals are remembered", len(l.w.refused))
	}
}

// TestNotRunning has no proxy: what was tested stays in force for its start, unless it cannot start with it.
func TestNotRunning(t *testing.T) {
	l := newLab(t)
	l.round("")
	l.proxy.down = true
	l.put("v2")
	l.round("nobody serves it: the proxy does not run")
	l.inForce("v2")
	l.round("nobody serves it: connection refused")
	l.proxy.start(t)
	l.round("")
	l.holds("v2", true)

	l.proxy.down = true
	l.put("v3")
	l.round("nobody serves it")
	l.round("nobody serves it")
	l.w.alone = time.Now().Add(-l.cfg.Patience)
	l.round("version v3: nobody serves it: connection refused; version v2 is in force again")
	l.inForce("v2")
	l.round("version v3")
	l.inForce("v2")
	l.proxy.start(t)
	l.round("version v3")
	l.holds("v2", true)
	if len(l.w.Status().Listening) != 1 {
		t.Error("it listens again, and that is not known")
	}
}

// TestRestarted is killed between making a version current and telling the proxy.
func TestRestarted(t *testing.T) {
	for _, refuses := range []bool{false, true} {
		l := newLab(t)
		l.round("")
		d, err := credential.OpenDirectory(l.cfg.Output)
		ok(t, err)
		l.put("v2")
		o, err := l.source.Offer(t.Context())
		ok(t, err)
		cred, err := o.Check(l.cfg.Expect())
		ok(t, err)
		n, err := d.Stage(cred, o.Made(cred, nil, nil).File())
		ok(t, err)
		ok(t, d.Activate(n))
		ok(t, d.Close())
		l.open()
		if !refuses {
			l.round("")
			l.holds("v2", true)
			continue
		}
		l.proxy.refuses = func(c *x509.Certificate) bool { return c.Equal(cred.Leaf()) }
		l.round("version v2: the proxy refuses the new files: it does not like it; version v1 is in force again")
		l.holds("v1", true)
		l.round("version v2")
		l.holds("v1", true)
	}
}

// TestNothingToGoBackTo leaves the only generation in force.
func TestNothingToGoBackTo(t *testing.T) {
	l := newLab(t)
	l.proxy.refuses = func(*x509.Certificate) bool { return true }
	l.put("v2") // v1 was never proved, but it was before
	l.round("version v1 is in force again, and: the proxy refuses the new files")
	l.inForce("v1")
}

// TestSource loses the store and gets it back; a Plan is taken meanwhile.
func TestSource(t *testing.T) {
	l := newLab(t, rendered)
	l.round("")
	l.source.set(Offer{}, errors.New("the store is on fire"))
	l.round("")
	if s := l.w.Status(); !strings.Contains(s.SourceProblem, "on fire") || s.Problem != "" {
		t.Errorf("%+v", s)
	}
	ok(t, l.w.takePlan(t.Context(), &mesh.Plan{Mesh: "two", Revision: 2}))
	l.holds("v1", true)
	if text, err := os.ReadFile(filepath.Join(l.proxy.dir, "current", "proxy.conf")); err != nil || !strings.Contains(string(text), "# two") {
		t.Errorf("%q, %v", text, err)
	}
	if s := l.w.Status(); s.Plan.Revision != 2 {
		t.Errorf("%+v", s)
	}
	l.put("v2")
	l.round("")
	l.holds("v2", true)
	if s := l.w.Status(); s.Problems() != "" {
		t.Errorf("%+v", s)
	}
}

// TestBadCredential refuses what does not belong together before anything is written, and takes a Plan in spite of it.
func TestBadCredential(t *testing.T) {
	l := newLab(t, rendered)
	l.round("")
	bad, other := l.ca.offer(t, "v2"), l.ca.offer(t, "v2")
	bad.Input.Key = other.Input.Key
	l.source.set(bad, nil)
	l.round("version v2: key: the key does not belong to")
	l.holds("v1", true)
	ok(t, l.w.takePlan(t.Context(), &mesh.Plan{Mesh: "two", Revision: 2}))
	l.holds("v1", true)
	l.round("the key does not belong to")
	if l.w.Status().Plan.Revision != 2 || l.proxy.reloads != 1 {
		t.Errorf("the plan %d is in force, and it was told %d times", l.w.Status().Plan.Revision, l.proxy.reloads)
	}
	// A Plan that the proxy does not take changes nothing either.
	expect(t, l.w.takePlan(t.Context(), &mesh.Plan{Mesh: "bad"}), "cannot be carried out")
	l.proxy.test = func(string) error { return fmt.Errorf("%w: no", reload.ErrRefused) }
	expect(t, l.w.takePlan(t.Context(), &mesh.Plan{Mesh: "three"}), "the proxy refuses the new files: no")
	l.round("the key does not belong to")
	l.holds("v1", true)
	if l.w.Status().Plan.Mesh != "two" || !strings.Contains(l.w.Status().Problem, "the key does not belong to") {
		t.Errorf("%+v", l.w.Status())
	}
}

// TestBundle takes new roots under the same certificate; what a listener says of the roots counts.
func TestBundle(t *testing.T) {
	l := newLab(t, rendered)
	l.round("")
	next := l.source.now
	next.Bundle = "roots-2"
	other := newAuthority(t)
	next.Input.Bundle.Data = issuetest.PEM(l.ca.Root, other.Root)
	l.source.set(next, nil)
	l.round("")
	l.holds("v1", true)
	if got := l.w.Status(); got.Bundle != "roots-2" || len(got.Roots) != 2 || l.proxy.reloads != 1 {
		t.Errorf("%+v, told %d times", got, l.proxy.reloads)
	}
	l.proxy.shows = [][]byte{[]byte("somebody else's")}
	seen := l.w.look(t.Context(), nil, Made{Serial: l.w.Status().Serial})
	if why := seen.why(Made{Serial: l.w.Status().Serial}, l.w.roots()); why != "192.0.2.1:443 asks for certificates of other roots than the wanted ones" {
		t.Errorf("%q", why)
	}
}

// TestWithoutTLS has nobody who shows a certificate: the reload is what counts.
func TestWithoutTLS(t *testing.T) {
	l := newLab(t, func(c *Config) {
		c.Listeners = func(*mesh.Plan) []Listener {
			return []Listener{{Port: 80, Address: "192.0.2.1:80"}, {Address: "192.0.2.1:443", TLS: true}}
		}
	})
	l.round("")
	l.holds("v1", true)
	l.put("v2")
	l.round("")
	l.holds("v2", true)
	l.round("")
	s := l.w.Status()
	if s.Serial != mtls.Serial(s.Chain[0]) || len(s.Listening) != 1 || l.proxy.reloads != 2 {
		t.Errorf("%+v, told %d times", s, l.proxy.reloads)
	}
	if !strings.Contains(l.w.proof(nil), "by the reload alone") {
		t.Error(l.w.proof(nil))
	}
}

// TestOthers meets other writers and another watcher.
func TestOthers(t *testing.T) {
	l := newLab(t)
	l.round("")
	if _, err := New(l.cfg); !errors.Is(err, ErrWatched) {
		t.Errorf("a second watcher: %v", err)
	}
	unlock, err := durable.Lock(filepath.Join(l.proxy.dir, ".lock"))
	ok(t, err)
	l.put("v2")
	l.round("another process writes to")
	ok(t, unlock())
	l.round("")
	l.holds("v2", true)
	// One who writes once, as init does at a restart of the container, is followed.
	o, err := l.source.Offer(t.Context())
	ok(t, err)
	cred, err := o.Check(l.cfg.Expect())
	ok(t, err)
	ok(t, cred.Write(l.cfg.Output)) // it says nothing about versions
	l.round("")
	l.holds("v2", true)
}

// TestLook looks at the proxy without asking the source: what is in force stays, and why something newer is not is not
// forgotten.
func TestLook(t *testing.T) {
	l := newLab(t)
	l.round("")
	l.put("v2")
	ok(t, l.w.round(t.Context(), nil, false))
	l.holds("v1", true)
	l.proxy.test = func(string) error { return fmt.Errorf("%w: bad", reload.ErrRefused) }
	l.round("version v2: the proxy refuses the new files: bad")
	ok(t, l.w.round(t.Context(), nil, false))
	if s := l.w.Status(); !strings.Contains(s.Problem, "version v2: the proxy refuses the new files: bad") {
		t.Errorf("%+v", s)
	}
	l.proxy.down = true
	if err := l.w.round(t.Context(), nil, false); !errors.Is(err, errUnserved) || !strings.Contains(l.w.Status().Problem, "version v1 is in force again; and nobody serves it") {
		t.Errorf("%v; %+v", err, l.w.Status())
	}
	if len(l.w.Status().Listening) != 0 {
		t.Error("nobody listens, and that is not known")
	}
	l.proxy.down, l.proxy.test = false, nil
	l.put("v3")
	l.round("")
	l.holds("v3", true)
	if s := l.w.Status(); s.Problems() != "" {
		t.Errorf("%+v", s)
	}
}

// TestRemaining asks how long a new credential remains valid, and not for a new Plan.
func TestRemaining(t *testing.T) {
	l := newLab(t, rendered)
	l.round("")
	l.w.cfg.Expect = func() credential.Expect { return credential.Expect{Now: time.Now(), MinRemaining: 48 * time.Hour} }
	l.w.cred = nil
	ok(t, l.w.takePlan(t.Context(), &mesh.Plan{Mesh: "two"}))
	l.put("v2")
	l.round("at least 48h0m0s are asked for")
	l.holds("v1", true)
}

// TestNewRootsUnserved has new roots put in force while nobody serves: what is asked for is compared with them, once somebody does.
func TestNewRootsUnserved(t *testing.T) {
	l := newLab(t, rendered)
	l.round("")
	l.proxy.down = true
	next := l.ca.offer(t, "v2")
	next.Bundle = "roots-2"
	next.Input.Bundle.Data = issuetest.PEM(l.ca.Root, newAuthority(t).Root)
	l.source.set(next, nil)
	l.round("nobody serves it")
	l.proxy.start(t)
	l.round("")
	l.holds("v2", true)
	if len(l.w.cred.Roots) != 2 {
		t.Errorf("%d roots are known", len(l.w.cred.Roots))
	}
}

// TestRun runs, is woken, takes a Plan, and ends.
func TestRun(t *testing.T) {
	l := newLab(t, rendered)
	changed := make(chan struct{}, 100)
	l.w.cfg.Changed = func() { changed <- struct{}{} }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.w.Run(ctx) }()
	l.put("v2")
	l.w.Wake()
	deadline := time.After(time.Minute)
	for l.w.Status().Version != "v2" || l.w.Status().Deliveries != 1 {
		select {
		case <-deadline:
			t.Fatal("v2 does not come")
		case <-time.After(time.Millisecond):
		}
	}
	ok(t, l.w.Take(&mesh.Plan{Mesh: "two", Revision: 7}))
	if l.w.Status().Plan.Revision != 7 {
		t.Error("the plan is not in force")
	}
	cancel()
	ok(t, <-done)
	expect(t, l.w.Take(&mesh.Plan{}), "the watcher has ended")
	if len(changed) == 0 {
		t.Error("nobody was told of the news")
	}
}
