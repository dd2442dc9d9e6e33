//go:build linux

package supervise

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"countersign.dev/engine"
	"countersign.dev/issue/issuetest"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// shown is the serial that a listener presents.
func (c *sidecar) shown(t *testing.T) string {
	t.Helper()
	_, _, serial, err := get(t, client(c.ca.identity(t, "front")), "https://"+c.address+":9080/")
	if err != nil {
		t.Fatal(err)
	}
	return serial
}

// TestRotation changes the identity again and again while requests run: each is served, and each serial seen.
func TestRotation(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		ca := newAuthority(t)
		back := s.supervise(t, ca, "back")
		application(t, back.address)
		if err := back.Apply(compile(t, shop, "back")); err != nil {
			t.Fatal(err)
		}
		stop, lost, done := make(chan struct{}), make(chan error, 1000), atomic.Int64{}
		method := http.MethodPost // which nobody repeats
		if s.Engine == NGINX {
			method = http.MethodGet // NGINX drops connections that are kept, and net/http asks again over another
		}
		var callers sync.WaitGroup
		for range 4 {
			caller := client(ca.identity(t, "front"))
			callers.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					status, err := send(t, caller, method, "https://"+back.address+":9080/")
					if err != nil || status != 200 {
						lost <- fmt.Errorf("status %d: %w", status, err)
					}
					done.Add(1)
				}
			})
		}
		for range 4 {
			identity := ca.identity(t, "back")
			before := done.Load()
			back.source.now.Store(identity)
			back.IdentityChanged()
			want := mtls.Serial(identity.Certificate.Leaf)
			eventually(t, "the new serial is reported", func() bool { return back.Report().Serial == want })
			if got := back.shown(t); got != want {
				t.Errorf("it presents %s, and reported that %s was seen", got, want)
			}
			eventually(t, "requests go on", func() bool { return done.Load() > before+20 })
		}
		close(stop)
		callers.Wait()
		close(lost)
		for err := range lost {
			t.Errorf("lost: %v", err)
		}
		if entries, err := os.ReadDir(filepath.Join(back.good.run, generationsDir)); err != nil || len(entries) != 2 {
			t.Errorf("%d generations are kept, want the current one and the one before: %v", len(entries), err)
		}
	})
}

// TestMasterKilled kills the program: it comes back in a fresh run directory, and nothing of the old one is left.
func TestMasterKilled(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		back := s.supervise(t, newAuthority(t), "back")
		application(t, back.address)
		if err := back.Apply(compile(t, shop, "back")); err != nil {
			t.Fatal(err)
		}
		pid, run := back.PID(), back.good.run
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "another process", func() bool { now := back.PID(); return now != 0 && now != pid })
		eventually(t, "it is ready again", func() bool { status, _ := back.ask("GET", "/ready"); return status == 200 })
		if back.shown(t) != back.Report().Serial {
			t.Error("it presents another certificate")
		}
		if _, err := os.Stat(run); !errors.Is(err, fs.ErrNotExist) || back.good.run == run {
			t.Errorf("the old run directory %s: %v, the new one %s", run, err, back.good.run)
		}
		if left := inside(run); len(left) > 0 {
			t.Errorf("processes %v are left of the old one", left)
		}
		if p := back.Problem(); p != "" {
			t.Errorf("problem %q", p)
		}
	})
}

// TestRefusal gives a Plan that the program cannot carry out: it says so, and what was in force stays.
func TestRefusal(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		back := s.supervise(t, newAuthority(t), "back")
		application(t, back.address)
		bad := compile(t, shop, "back")
		bad.Revision = 2
		bad.Inbound[0].ClientAuth = "perhaps"
		if err := back.Apply(bad); !errors.Is(err, engine.ErrRefused) {
			t.Errorf("the first Plan: %v", err)
		}
		if status, body := back.ask("GET", "/ready"); status != 503 || !strings.HasPrefix(body, "NO PLAN\n") || !strings.Contains(body, `"perhaps" is not known`) {
			t.Errorf("/ready without a Plan: %d %q", status, body)
		}
		if err := back.Apply(compile(t, shop, "back")); err != nil {
			t.Fatal(err)
		}
		if err := back.Apply(bad); !errors.Is(err, engine.ErrRefused) {
			t.Errorf("the second Plan: %v", err)
		}
		if r := back.Report(); r.Revision != 1 || r.Problem != "" {
			t.Errorf("revision %d is in force, problem %q; the agent tells of the Plan", r.Revision, r.Problem)
		}
		if status, body := back.ask("GET", "/ready"); status != 200 || !strings.HasPrefix(body, "LIVE\n") || !strings.Contains(body, "revision 2") {
			t.Errorf("/ready with the Plan before: %d %q", status, body)
		}
		back.shown(t)
		good := compile(t, shop, "back")
		good.Revision = 3
		if err := back.Apply(good); err != nil {
			t.Error(err)
		}
		if status, body := back.ask("GET", "/ready"); status != 200 || body != "LIVE\n" {
			t.Errorf("/ready with a good Plan again: %d %q", status, body)
		}
	})
}

// TestGoesBack lets the program fail upon a generation that its own test takes: another process has the port.
func TestGoesBack(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		back := s.supervise(t, newAuthority(t), "back", func(c *Config) {
			render := c.Render
			c.Render = func(plan *mesh.Plan, o engine.Options) (*engine.Config, error) {
				config, err := render(plan, o)
				if err == nil && plan.Revision == 2 { // the program will not call itself as it is called
					config.Text = strings.ReplaceAll(config.Text, o.Generation, "another")
				}
				return config, err
			}
		})
		back.patience = 2 * time.Second
		application(t, back.address)
		if err := back.Apply(compile(t, shop, "back")); err != nil {
			t.Fatal(err)
		}
		pid, dir := back.PID(), back.good.dir
		bad := compile(t, shop, "back")
		bad.Revision, bad.Inbound[0].MinTLS = 2, mesh.TLS13
		err := back.Apply(bad)
		if !errors.Is(err, ErrNotInForce) || !strings.Contains(err.Error(), `has generation "another" in force`) {
			t.Errorf("the error: %v", err)
		}
		if back.PID() != pid || back.good.dir != dir || back.Report().Revision != 1 {
			t.Errorf("pid %d, %s, revision %d", back.PID(), back.good.dir, back.Report().Revision)
		}
		name, err := s.Engine.inForce(t.Context(), back.good.run)
		if err != nil || name != back.good.name {
			t.Errorf("%q is in force, want %q: %v", name, back.good.name, err)
		}
		back.shown(t)
	})
}

// TestKeys looks at where private keys are, who may read them, and that nothing is left at the end.
func TestKeys(t *testing.T) {
	withEach(t, func(t *testing.T, s subject) {
		t.Setenv("COUNTERSIGN_PLANTED", "in our environment")
		back := s.supervise(t, newAuthority(t), "back")
		if err := back.Apply(compile(t, shop, "back")); err != nil {
			t.Fatal(err)
		}
		keys := 0
		err := filepath.WalkDir(back.parent, func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := entry.Info()
			if err != nil {
				return err
			}
			if entry.IsDir() && path != back.parent && info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s has the mode %04o", path, info.Mode().Perm())
			}
			if !entry.Type().IsRegular() {
				return nil
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if strings.Contains(string(text), "PRIVATE KEY") {
				keys++
				if info.Mode().Perm() != 0o600 {
					t.Errorf("%s has the mode %04o", path, info.Mode().Perm())
				}
			}
			return nil
		})
		if err != nil || keys != 2 {
			t.Errorf("%d files hold the key: %v", keys, err)
		}
		for _, pid := range inside(back.cfg.RunDir.Path) {
			for _, name := range []string{"cmdline", "environ"} {
				text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
				if err == nil && (strings.Contains(string(text), "PRIVATE") || strings.Contains(string(text), "PLANTED")) {
					t.Errorf("%s of process %d: %q", name, pid, text)
				}
			}
		}
		if err := back.Close(); err != nil {
			t.Error(err)
		}
		if entries, err := os.ReadDir(back.parent); err != nil || len(entries) > 0 {
			t.Errorf("%v are left: %v", entries, err)
		}
		if text := back.log.String() + back.access.String(); strings.Contains(text, "PRIVATE") {
			t.Error("a key is in the log")
		}
	})
}

// TestDrain lets a request that runs finish, in and out, and takes no new one.
func TestDrain(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		ca := newAuthority(t)
		back := s.supervise(t, ca, "back")
		release := slowApplication(t, back.address)
		if err := back.Apply(compile(t, shop, "back")); err != nil {
			t.Fatal(err)
		}
		answered := make(chan error, 1)
		go func() {
			status, body, _, err := get(t, client(ca.identity(t, "front")), "https://"+back.address+":9080/")
			if err == nil && (status != 200 || body != "done") {
				err = fmt.Errorf("%d %q", status, body)
			}
			answered <- err
		}()
		<-release.began
		ended := make(chan error, 1)
		go func() {
			ctx, cancel := contextFor(20 * time.Second)
			defer cancel()
			ended <- back.Shutdown(ctx)
		}()
		eventually(t, "no listener is reported", func() bool { return len(back.Report().Listening) == 0 })
		if status, body := back.ask("GET", "/ready"); status != 503 || body != "DRAINING\n" {
			t.Errorf("/ready: %d %q", status, body)
		}
		close(release.now)
		if err := <-answered; err != nil {
			t.Errorf("the request that ran: %v", err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := back.Shutdown(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("a second time: %v", err)
		}
		if err := back.Apply(compile(t, shop, "back")); err == nil {
			t.Error("a Plan is applied after the end")
		}
	})
}

// TestDrainInboundFirst is about the application that needs its calls to finish.
func TestDrainInboundFirst(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		text := strings.Replace(shop, "  front: {calls: [{service: back, port: 9080, listen: 9180}]}",
			"  front: {ports: [{port: 9079, protocol: http, app: 18080, allow: [{from: other}]}], calls: [{service: back, port: 9080, listen: 9180}]}", 1)
		ca := newAuthority(t)
		front, back := s.supervise(t, ca, "front"), s.supervise(t, ca, "back")
		application(t, back.address)
		if err := back.Apply(compile(t, text, "back")); err != nil {
			t.Fatal(err)
		}
		plan := compile(t, text, "front")
		plan.Upstreams[0].Endpoints = []mesh.Endpoint{{Instance: "back-1", Address: netip.MustParseAddrPort(back.address + ":9080")}}
		if err := front.Apply(plan); err != nil {
			t.Fatal(err)
		}
		if status, body := front.ask("POST", "/drain_listeners"); status != 200 {
			t.Fatalf("/drain_listeners: %d %s", status, body)
		}
		if _, _, _, err := get(t, client(ca.identity(t, "other")), "https://"+front.address+":9079/"); err == nil {
			t.Error("it accepts inbound")
		}
		if status, _, _, err := get(t, client(nil), "http://"+front.address+":9180/"); err != nil || status != 200 {
			t.Errorf("a call of the application: %d %v", status, err)
		}
		if status, body := front.ask("GET", "/ready"); status != 503 || body != "DRAINING\n" {
			t.Errorf("/ready: %d %q", status, body)
		}
		plan.Revision = 2
		if err := front.Apply(plan); err != nil || len(front.Report().Listening) != 0 {
			t.Errorf("a Plan after it: %v, %v", err, front.Report().Listening)
		}
	})
}

// TestReload gives the program what it has once more, and a gateway's other certificate.
func TestReload(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		back := s.supervise(t, newAuthority(t), "back")
		application(t, back.address)
		if err := back.Apply(compile(t, shop, "back")); err != nil {
			t.Fatal(err)
		}
		back.mu.Lock()
		first := back.good.name
		back.mu.Unlock()
		back.Reload()
		eventually(t, "another generation", func() bool {
			back.mu.Lock()
			defer back.mu.Unlock()
			return back.good.name != first
		})
		same := compile(t, shop, "back")
		same.Revision = 9
		back.mu.Lock()
		second := back.good.name
		back.mu.Unlock()
		if err := back.Apply(same); err != nil || back.Report().Revision != 9 || back.good.name != second {
			t.Errorf("a Plan with nothing new: %v, revision %d, generation %s after %s", err, back.Report().Revision, back.good.name, second)
		}
	})
}

// TestIdentityRefused gives the program a certificate with somebody else's key: what was good serves on, and a good one
// cures it.
func TestIdentityRefused(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		ca := newAuthority(t)
		back := s.supervise(t, ca, "back")
		application(t, back.address)
		if err := back.Apply(compile(t, shop, "back")); err != nil {
			t.Fatal(err)
		}
		first := back.Report().Serial
		bad := *ca.identity(t, "back")
		bad.Certificate.PrivateKey = issuetest.Key(t)
		back.source.now.Store(&bad)
		back.IdentityChanged()
		eventually(t, "it is reported", func() bool { return strings.Contains(back.Report().Problem, "certificate or bundle is not in force") })
		if got := back.shown(t); got != first || back.Report().Serial != first {
			t.Errorf("it presents %s and reports %s, want %s", got, back.Report().Serial, first)
		}
		if status, body := back.ask("GET", "/ready"); status != 200 || !strings.Contains(body, "not in force") {
			t.Errorf("/ready: %d %q", status, body)
		}
		if text := back.Report().Problem; strings.Contains(text, "PRIVATE") {
			t.Errorf("problem %q", text)
		}
		good := ca.identity(t, "back")
		back.source.now.Store(good)
		back.IdentityChanged()
		eventually(t, "a good one is served", func() bool { return back.Report().Serial == mtls.Serial(good.Certificate.Leaf) })
		eventually(t, "all is well", func() bool { return back.Problem() == "" })
	})
}

// TestPlanWaits has a Plan wait while a newer identity is put in force: it does not bring back the one of before, whose
// revocation lists are older, too.
func TestPlanWaits(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		ca := newAuthority(t)
		back := s.supervise(t, ca, "back")
		application(t, back.address)
		plan := compile(t, shop, "back")
		if err := back.Apply(plan); err != nil {
			t.Fatal(err)
		}
		if err := back.lock(t.Context()); err != nil {
			t.Fatal(err)
		}
		asked, applied := back.source.asked.Load(), make(chan error, 1)
		next := compile(t, shop, "back")
		next.Revision = 9
		go func() { applied <- back.Apply(next) }()
		eventually(t, "the Plan has an identity", func() bool { return back.source.asked.Load() > asked })
		newer := ca.identity(t, "back")
		back.source.now.Store(newer)
		err := back.bring(t.Context(), plan, newer)
		back.unlock()
		if err := errors.Join(err, <-applied); err != nil {
			t.Fatal(err)
		}
		if got, want := back.shown(t), mtls.Serial(newer.Certificate.Leaf); got != want {
			t.Errorf("it presents %s, and %s was in force", got, want)
		}
	})
}

// TestNoIdentity is about a Plan that comes before the certificate.
func TestNoIdentity(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		ca := newAuthority(t)
		back := s.supervise(t, ca, "back")
		application(t, back.address)
		identity := back.source.now.Swap(nil)
		if status, body := back.ask("GET", "/ready"); status != 503 || body != "NO CERTIFICATE\n" {
			t.Errorf("/ready: %d %q", status, body)
		}
		applied := make(chan error, 1)
		go func() { applied <- back.Apply(compile(t, shop, "back")) }()
		back.source.now.Store(identity)
		if err := <-applied; err != nil {
			t.Error(err)
		}
		if got := back.shown(t); got != mtls.Serial(identity.Certificate.Leaf) {
			t.Errorf("it presents %s", got)
		}
	})
}

// TestPaceHurry lets somebody be revoked while endpoints wait for their turn.
func TestPaceHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Supervisor{wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1)}
		storm := func() {
			s.reloads = nil
			for range 100 {
				s.reloads = append(s.reloads, time.Now())
			}
		}
		storm()
		began := time.Now()
		if !s.paced(t.Context(), false) || time.Since(began) != paceMost {
			t.Errorf("endpoints wait for %s", time.Since(began))
		}
		storm()
		began = time.Now()
		time.AfterFunc(time.Second, s.IdentityChanged)
		if !s.paced(t.Context(), false) || time.Since(began) != time.Second {
			t.Errorf("another identity waits behind endpoints for %s", time.Since(began)-time.Second)
		}
		if len(s.wake) != 1 {
			t.Error("who puts it in force was not woken")
		}
	})
}

// TestPace is about a storm of endpoints, and what has to go past it.
func TestPace(t *testing.T) {
	s := &Supervisor{}
	for range 100 {
		s.reloads = append(s.reloads, time.Now())
	}
	waits := func(urgent bool, atMost time.Duration) bool {
		ctx, cancel := contextFor(atMost)
		defer cancel()
		return s.paced(ctx, urgent)
	}
	if waits(false, 2*paceStep) {
		t.Error("endpoints do not wait")
	}
	if !waits(true, 20*paceStep) {
		t.Error("what is urgent waits with the endpoints")
	}
	s.reloads = []time.Time{time.Now().Add(-2 * paceWindow)}
	if !waits(false, paceStep) || len(s.reloads) != 0 {
		t.Error("what is long ago still counts")
	}
	plan := compile(t, shop, "front")
	moved := compile(t, shop, "front")
	moved.Upstreams[0].Endpoints = []mesh.Endpoint{{Instance: "back-1", Address: netip.MustParseAddrPort("127.0.0.9:9080")}}
	identity := newAuthority(t).identity(t, "front")
	whole, err := fingerprint(plan, identity, false)
	if err != nil {
		t.Fatal(err)
	}
	other, err := fingerprint(moved, identity, false)
	if err != nil {
		t.Fatal(err)
	}
	core, err := fingerprint(withoutEndpoints(moved), identity, false)
	if err != nil {
		t.Fatal(err)
	}
	same, err := fingerprint(withoutEndpoints(plan), identity, false)
	if err != nil {
		t.Fatal(err)
	}
	if whole == other || core != same || len(moved.Upstreams[0].Endpoints) != 1 {
		t.Errorf("fingerprints %s, %s, %s", whole, other, core)
	}
}
