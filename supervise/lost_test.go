package supervise

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"countersign.dev/engine"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/reload"
)

// telling is a program that is told in a way of the test's.
type telling func(context.Context) error

func (f telling) Reload(ctx context.Context) error { return f(ctx) }
func (telling) String() string                     { return "test" }

// tellBy changes how the program of a Config is told.
func tellBy(c *Config, by func(reload.Method) reload.Method) {
	e, b := *c.Binary.Engine, *c.Binary
	tell := e.tell
	e.tell = func(p *process) reload.Method { return by(tell(p)) }
	b.Engine = &e
	c.Binary = &b
}

// TestNoWayBack lets the way back fail, too: nothing is said to be served until what was good is seen again.
func TestNoWayBack(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		var broken atomic.Bool
		var told atomic.Int32
		back := s.supervise(t, newAuthority(t), "back", func(c *Config) {
			tellBy(c, func(real reload.Method) reload.Method {
				return telling(func(ctx context.Context) error {
					if told.Add(1) > 1 && broken.Load() {
						return errors.New("no answer in time")
					}
					return real.Reload(ctx)
				})
			})
			render := c.Render
			c.Render = func(plan *mesh.Plan, o engine.Options) (*engine.Config, error) {
				config, err := render(plan, o)
				if err == nil && plan.Revision == 2 { // it takes it, and never says that it has it
					config.Text = strings.ReplaceAll(config.Text, o.Generation, "another")
				}
				return config, err
			}
		})
		application(t, back.address)
		if err := back.Apply(compile(t, shop, "back")); err != nil {
			t.Fatal(err)
		}
		back.patience = 2 * time.Second
		broken.Store(true)
		bad := compile(t, shop, "back")
		bad.Revision, bad.Inbound[0].MinTLS = 2, mesh.TLS13
		if err := back.Apply(bad); !errors.Is(err, ErrNotInForce) {
			t.Errorf("the way back fails: %v", err)
		}
		if status, body := back.ask("GET", "/ready"); status != 503 || !strings.HasPrefix(body, "PROXY IS NOT SEEN TO SERVE") {
			t.Errorf("/ready: %d %q", status, body)
		}
		if r := back.Report(); len(r.Listening) > 0 || r.Serial != "" || !strings.Contains(r.Problem, "not known") {
			t.Errorf("report %+v", r)
		}
		again := compile(t, shop, "back")
		again.Revision = 3
		if err := back.Apply(again); err == nil {
			t.Error("what was good counts as in force, and the program was not told")
		}
		broken.Store(false)
		eventually(t, "what was good is put in force again by itself", func() bool {
			status, _ := back.ask("GET", "/ready")
			return status == 200 && back.Problem() == ""
		})
		back.mu.Lock()
		good := back.good
		back.mu.Unlock()
		if name, err := s.Engine.inForce(t.Context(), good.run); err != nil || name != good.name {
			t.Errorf("it has %q in force, and %q is meant: %v", name, good.name, err)
		}
	})
}

// TestReloadKept is about a reload that was asked for while nothing could be put in force.
func TestReloadKept(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		var broken atomic.Bool
		back := s.supervise(t, newAuthority(t), "back", func(c *Config) {
			render := c.Render
			c.Render = func(plan *mesh.Plan, o engine.Options) (*engine.Config, error) {
				if broken.Swap(false) {
					return nil, errors.New("not now")
				}
				return render(plan, o)
			}
		})
		application(t, back.address)
		if err := back.Apply(compile(t, shop, "back")); err != nil {
			t.Fatal(err)
		}
		first := back.good.name
		broken.Store(true)
		back.Reload()
		eventually(t, "another generation", func() bool {
			back.mu.Lock()
			defer back.mu.Unlock()
			return back.good.name != first
		})
	})
}

// TestDrainInterrupted goes away in the middle of a drain: it stays drained, whatever comes, and says so.
func TestDrainInterrupted(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		var leave atomic.Pointer[context.CancelFunc]
		both := s.supervise(t, newAuthority(t), "both", func(c *Config) {
			tellBy(c, func(real reload.Method) reload.Method {
				return telling(func(ctx context.Context) error {
					err := real.Reload(context.WithoutCancel(ctx))
					if cancel := leave.Swap(nil); cancel != nil {
						(*cancel)()
					}
					return err
				})
			})
		})
		application(t, both.address)
		text := strings.Replace(shop, "  other: {", "  both: {ports: [{port: 9080, protocol: http, app: 18080, allow: [{from: front}]}], calls: [{service: back, port: 9080, listen: 9180}]}\n  other: {", 1)
		if err := both.Apply(compile(t, text, "both")); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		leave.Store(&cancel)
		if err := both.DrainListeners(ctx); err == nil {
			t.Error("an interrupted drain says that it is done")
		}
		if listening := both.Report().Listening; len(listening) > 0 {
			t.Errorf("it reports %v", listening)
		}
		renewed := both.ca.identity(t, "both")
		both.source.now.Store(renewed)
		both.IdentityChanged()
		eventually(t, "a new certificate is in force", func() bool { return both.Report().Serial == mtls.Serial(renewed.Certificate.Leaf) })
		if conn, err := net.DialTimeout("tcp", both.address+":9080", time.Second); err == nil {
			conn.Close()
			t.Error("it accepts again")
		}
		if listening := both.Report().Listening; len(listening) > 0 {
			t.Errorf("after a new certificate it reports %v", listening)
		}
	})
}

// TestDrainAsked lets who asks for a drain on the administrator's surface go away: it is done all the same.
func TestDrainAsked(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		back := s.supervise(t, newAuthority(t), "back")
		application(t, back.address)
		if err := back.Apply(compile(t, shop, "back")); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		w := httptest.NewRecorder()
		back.Admin().ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodPost, "/drain_listeners", nil))
		if w.Code != http.StatusOK || len(back.Report().Listening) > 0 {
			t.Errorf("%d %q, %v", w.Code, w.Body, back.Report().Listening)
		}
	})
}

// TestHangs stops the program without an end: it is not said to serve until it goes on.
func TestHangs(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		back := s.supervise(t, newAuthority(t), "back")
		application(t, back.address)
		if err := back.Apply(compile(t, shop, "back")); err != nil {
			t.Fatal(err)
		}
		group := -back.PID()
		if err := syscall.Kill(group, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Kill(group, syscall.SIGCONT) })
		eventually(t, "it is not seen to serve", func() bool {
			status, body := back.ask("GET", "/ready")
			return status == 503 && strings.HasPrefix(body, "PROXY IS NOT SEEN TO SERVE") && len(back.Report().Listening) == 0 && strings.Contains(back.Problem(), "does not answer")
		})
		if err := syscall.Kill(group, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is seen again", func() bool {
			status, _ := back.ask("GET", "/ready")
			return status == 200 && len(back.Report().Listening) == 3 && back.Problem() == ""
		})
	})
}
