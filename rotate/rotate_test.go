package rotate

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/mesh"
	"countersign.dev/secret"
)

var layouts = []secret.Layout{secret.LayoutJSON, secret.LayoutSeparate, secret.LayoutExported}

func TestRotation(t *testing.T) {
	for _, layout := range layouts {
		for _, shared := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, shared bundle %t", layout, shared), func(t *testing.T) {
				w := newWorld(t, layout)
				if shared {
					w.target.Bundle = "shop/bundle"
				}
				if result := w.must(Options{DryRun: true}, WouldRotate); result.Reason != "there is none yet" {
					t.Error(result.Reason)
				}
				if entries, err := w.files.List(t.Context()); err != nil || len(entries) > 0 {
					t.Errorf("looking has written %v, %v", entries, err)
				}
				first := w.first()
				w.check()
				if first.Serial != w.currentSerial() || first.Due.After(first.NotAfter) || len(first.Seen) != 2 {
					t.Errorf("%+v", first)
				}
				if again := w.must(Options{}, Nothing); again.Serial != first.Serial || !again.Due.Equal(first.Due) {
					t.Errorf("%+v, want %+v", again, first)
				}
				second := w.must(Options{Force: true}, Rotated)
				w.check()
				third := w.must(Options{Force: true}, Rotated)
				w.check()
				if second.Serial == first.Serial || third.Serial == second.Serial || w.authority.issued() != 3 {
					t.Errorf("%s %s %s, %d issued", first.Serial, second.Serial, third.Serial, w.authority.issued())
				}
			})
		}
	}
}

func TestNoDeploy(t *testing.T) {
	w := newWorld(t, secret.LayoutSeparate)
	w.fleet.blind = errors.New("nobody may look")
	w.target.Restart = true
	result := w.must(Options{NoDeploy: true}, Promoted)
	w.check()
	if len(w.fleet.restarts) > 0 || w.fleet.looks > 0 || result.Serial != w.currentSerial() {
		t.Errorf("%+v", result)
	}
	w.must(Options{}, Nothing)
}

func TestDueAt(t *testing.T) {
	now := time.Now()
	leaf := &x509.Certificate{NotBefore: now.Add(-issue.ClockAllowance), NotAfter: now.Add(70 * time.Minute)}
	for after, latest := range map[time.Duration]time.Duration{
		40 * time.Minute: 40 * time.Minute, 0: 50 * time.Minute, 70 * time.Minute: 50 * time.Minute, 100 * time.Hour: 50 * time.Minute,
	} {
		seen := map[time.Time]bool{}
		for i := range 50 {
			name := fmt.Sprint("service-", i)
			due := DueAt(leaf, after, name)
			if age := due.Sub(now); age > latest || age < latest*9/10 {
				t.Errorf("renewAfter %s: due after %s", after, age)
			}
			if !DueAt(leaf, after, name).Equal(due) {
				t.Error("asked again, it is another time")
			}
			seen[due] = true
		}
		if len(seen) < 45 {
			t.Errorf("50 services have %d times", len(seen))
		}
	}
}

func TestReasons(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*world)
		want   string
	}{
		"time":    {func(w *world) { w.config.Now = func() time.Time { return time.Now().Add(41 * time.Minute) } }, "it was due at"},
		"expired": {func(w *world) { w.config.Now = func() time.Time { return time.Now().Add(2 * time.Hour) } }, "has expired"},
		"names": {func(w *world) {
			w.target.Certificate.DNSNames = append(w.target.Certificate.DNSNames, "more.example.com")
		}, "more.example.com"},
		"less":   {func(w *world) { w.target.Certificate.DNSNames = w.target.Certificate.DNSNames[:1] }, "other names"},
		"key":    {func(w *world) { w.target.Certificate.Key = mesh.ECDSAP384 }, "ecdsa-p384 is declared"},
		"bundle": {func(w *world) { w.authority.bundle = append(w.authority.bundle, newHierarchy(w.t, "second")) }, "the trust bundle has changed"},
		"authority": {func(w *world) {
			w.authority.signer = newHierarchy(w.t, "second")
			w.authority.bundle = append(w.authority.bundle, w.authority.signer)
		}, "signs with another key"},
		"identity": {func(w *world) {
			other, err := id.New("shop.internal", id.Service, "others")
			if err != nil {
				w.t.Fatal(err)
			}
			w.target.Workload.Identity, w.target.Certificate.Identity = other, other
		}, "is expected"},
		"by hand": {func(w *world) {
			version, err := w.files.Stage(w.t.Context(), w.target.Secret, "", []byte(`{"cert_pem":"PLACEHOLDER","key_pem":"PLACEHOLDER"}`))
			if err == nil {
				err = w.files.Promote(w.t.Context(), w.target.Secret, version)
			}
			if err != nil {
				w.t.Fatal(err)
			}
		}, "PLACEHOLDER"},
		"no object": {func(w *world) {
			version, err := w.files.Stage(w.t.Context(), w.target.Secret, "", []byte("nonsense"))
			if err == nil {
				err = w.files.Promote(w.t.Context(), w.target.Secret, version)
			}
			if err != nil {
				w.t.Fatal(err)
			}
		}, "not an object"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, secret.LayoutJSON)
			w.first()
			c.change(w)
			says(t, w.must(Options{DryRun: true}, WouldRotate).Reason, c.want)
			if w.config.Now != nil {
				return // the authority's clock is another one
			}
			says(t, w.must(Options{}, Rotated).Reason, c.want)
			w.check()
			w.must(Options{}, Nothing)
		})
	}
}

// TestWrongCertificates lets the authority answer with what must never be current.
func TestWrongCertificates(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*world)
		want  string
	}{
		"another identity": {func(w *world) {
			w.authority.spoil = func(c *x509.Certificate) { c.URIs[0].Path = "/service/admin" }
		}, "is expected"},
		"a name too few": {func(w *world) { w.authority.spoil = func(c *x509.Certificate) { c.DNSNames = c.DNSNames[:1] } }, "orders.shop.internal"},
		"a name too many": {func(w *world) {
			w.authority.spoil = func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "bank.example.com") }
		}, "other names"},
		"an address": {func(w *world) {
			w.authority.spoil = func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1)} }
		}, "other names"},
		"expired": {func(w *world) {
			w.authority.spoil = func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
		}, "has expired"},
		"a CA":        {func(w *world) { w.authority.spoil = func(c *x509.Certificate) { c.IsCA = true } }, "CA flag"},
		"another key": {func(w *world) { w.authority.key = newKey(w.t).Public() }, "the key does not belong"},
		"another CA": {func(w *world) {
			other := newHierarchy(w.t, "first")
			w.authority.answer = func([]byte) []byte {
				leaf := sign(w.t, &x509.Certificate{SerialNumber: serial(w.t)}, other.issuer, newKey(w.t).Public(), other.key)
				return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.issuer.Raw})...)
			}
		}, "the key does not belong"},
		"no issuer": {func(w *world) {
			w.authority.answer = func(chain []byte) []byte {
				block, _ := pem.Decode(chain)
				return pem.EncodeToMemory(block)
			}
		}, "it has no root|is empty"},
		"nonsense": {func(w *world) { w.authority.answer = func([]byte) []byte { return []byte("nonsense") } }, "no chain of certificates"},
	} {
		for _, layout := range layouts {
			t.Run(name+", "+string(layout), func(t *testing.T) {
				w := newWorld(t, layout)
				first := w.first()
				c.spoil(w)
				result := w.must(Options{Force: true}, Failed)
				if !errors.Is(result.Err, ErrUnfit) || w.currentSerial() != first.Serial {
					t.Errorf("%v, and %s is current", result.Err, w.currentSerial())
				}
				found := false
				for want := range strings.SplitSeq(c.want, "|") {
					found = found || strings.Contains(result.Error, want)
				}
				if !found {
					t.Errorf("%s does not say %s", result.Error, c.want)
				}
				w.check()
				w.authority.spoil, w.authority.answer, w.authority.key = nil, nil, nil
				if again := w.must(Options{Force: true}, Rotated); again.Serial == first.Serial {
					t.Error("the next rotation has brought nothing")
				}
				w.check()
			})
		}
	}
}

// TestAuthorityDown asks twice under the same id.
func TestAuthorityDown(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	first := w.first()
	w.authority.down = errors.New("the server is away")
	result := w.must(Options{Force: true}, Failed)
	says(t, result.Error, "at the step look", "the server is away")
	w.authority.down = nil
	// It goes away between two questions.
	w.config.Progress = func(_ string, step Step, _ string) {
		if step == StepIssue {
			w.authority.down = errors.New("the server is away")
		}
	}
	result = w.must(Options{Force: true}, Failed)
	says(t, result.Error, "at the step issue", "the server is away")
	if w.currentSerial() != first.Serial {
		t.Error("another one is current")
	}
	w.authority.down, w.config.Progress = nil, nil
	result = w.must(Options{}, Rotated)
	says(t, result.Reason, "a request waits for its certificate")
	if asked := w.authority.asked; len(asked) != 3 || asked[1] != asked[2] {
		t.Errorf("asked for %q", asked)
	}
	w.check()
}

// TestOldRequest finds a request that a rotation has left: one that nobody can use any more is not used.
func TestOldRequest(t *testing.T) {
	for name, change := range map[string]func(*world){
		"another key": func(w *world) { w.target.Certificate.Key = mesh.ECDSAP384 },
		"more names": func(w *world) {
			w.target.Certificate.DNSNames = append(w.target.Certificate.DNSNames, "more.example.com")
		},
		"damaged": func(w *world) {
			n := &run{t: w.target, ctx: w.t.Context()}
			ids, err := n.requests()
			if err != nil || len(ids) != 1 {
				w.t.Fatal(ids, err)
			}
			if err := w.files.Remove(w.t.Context(), w.target.keySecret(), ids[0]); err != nil {
				w.t.Fatal(err)
			}
			if _, err := w.files.Stage(w.t.Context(), w.target.keySecret(), ids[0], []byte("{}")); err != nil {
				w.t.Fatal(err)
			}
		},
		"long ago": func(w *world) {
			w.authority.spoil = func(c *x509.Certificate) {
				c.NotBefore, c.NotAfter = c.NotBefore.Add(-50*time.Minute), c.NotAfter.Add(-50*time.Minute)
				w.authority.spoil = nil
			}
		},
		"never answered": func(w *world) {
			// Somebody else's key has the id at the authority.
			n := &run{t: w.target, ctx: w.t.Context()}
			ids, err := n.requests()
			if err != nil || len(ids) != 1 {
				w.t.Fatal(ids, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, secret.LayoutSeparate)
			w.first()
			w.authority.down = nil
			w.config.Progress = func(_ string, step Step, _ string) {
				if step == StepIssue {
					w.authority.down = errors.New("away")
				}
			}
			w.must(Options{Force: true}, Failed)
			w.authority.down, w.config.Progress = nil, nil
			change(w)
			w.must(Options{}, Rotated)
			w.check()
		})
	}
}

// conflicting answers no request of an id that it has seen.
type conflicting struct{ *authority }

func (c conflicting) Issue(ctx context.Context, request Request) ([]byte, error) {
	return nil, fmt.Errorf("%w: another key has it", ErrRequest)
}

func TestRequestNeverAnswered(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	w.first()
	w.config.Authority = conflicting{w.authority}
	says(t, w.must(Options{Force: true}, Failed).Error, "another key has it")
	w.check()
}

// TestVanished takes back what makes instances go away that were there before, also when it was seen by the next process.
func TestVanished(t *testing.T) {
	lost := func(w *world) { w.fleet.lost = "orders-1" }
	for name, c := range map[string]struct {
		alone bool // there is one instance
		leave func(*world)
		says  string
	}{
		"one of two is lost": {false, lost, "orders-1 was there before, and has been lost since (not connected)"},
		"all are lost":       {true, lost, "orders-1 was there before, and has been lost since (not connected)"},
		"all are gone":       {false, func(w *world) { clear(w.fleet.serves) }, "nobody is there any more; before there were orders-1, orders-2"},
	} {
		for _, killed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, killed %v", name, killed), func(t *testing.T) {
				w := newWorld(t, secret.LayoutJSON)
				if c.alone {
					delete(w.fleet.serves, "orders-2")
				}
				first := w.first()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				w.config.Progress = func(_ string, step Step, _ string) {
					if step == StepDeploy && killed {
						cancel()
					} else if step == StepDeploy {
						c.leave(w)
					}
				}
				result := w.rotator().Rotate(ctx, w.target, Options{Force: true})
				if killed {
					if !errors.Is(result.Err, ErrStopped) {
						t.Fatalf("%v, want ErrStopped", result.Err)
					}
					w.config.Progress = nil
					c.leave(w)
					result = w.run(Options{})
				}
				if result.Outcome != RolledBack || !errors.Is(result.Err, ErrNotServed) || w.currentSerial() != first.Serial {
					t.Errorf("%+v; %s is current, want %s", result, w.currentSerial(), first.Serial)
				}
				says(t, result.Error, c.says)
				w.check()
			})
		}
	}
}

// TestLostByRestart restarts an instance again, on the way back, that the server has lost after its restart.
func TestLostByRestart(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	w.target.Restart, w.fleet.reload = true, false
	w.first()
	w.fleet.restarts = nil
	w.config.Progress = func(_ string, _ Step, text string) {
		if text == "restarting orders-1" {
			w.fleet.lost = map[bool]string{true: "orders-1"}[len(w.fleet.restarts) == 0]
		}
	}
	result := w.must(Options{Force: true}, RolledBack)
	if got := fmt.Sprint(w.fleet.restarts); got != "[orders-1 orders-1]" {
		t.Errorf("restarted %s", got)
	}
	says(t, result.Error, "is current again and was seen everywhere")
	w.check()
}

// forgetful answers as the CA does when what it has issued for some requests was revoked since.
type forgetful struct {
	*authority
	revoked []string
}

func (f forgetful) Issue(ctx context.Context, request Request) ([]byte, error) {
	if slices.Contains(f.revoked, request.ID) {
		return nil, fmt.Errorf("%w: the certificate was revoked", ErrRequest)
	}
	return f.authority.Issue(ctx, request)
}

// TestRevokedRequest makes another request, with another key, when what was issued for the one that waits was revoked
// before it was stored.
func TestRevokedRequest(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	first := w.first()
	ctx, cancel := context.WithCancel(t.Context())
	w.config.Progress = func(_ string, step Step, _ string) {
		if step == StepStage {
			cancel()
		}
	}
	if result := w.rotator().Rotate(ctx, w.target, Options{Force: true}); !errors.Is(result.Err, ErrStopped) {
		t.Fatalf("%v, want ErrStopped", result.Err)
	}
	revoked := slices.Clone(w.authority.asked)
	w.config.Progress, w.config.Authority = nil, forgetful{w.authority, revoked}
	result := w.must(Options{}, Rotated)
	if result.Serial == first.Serial || slices.Contains(revoked, result.Version) {
		t.Errorf("%+v; the requests %q were revoked", result, revoked)
	}
	w.check()
}

func TestTargets(t *testing.T) {
	w := newWorld(t, secret.LayoutExported)
	w.target.Bundle = ""
	says(t, w.rotator().Rotate(t.Context(), w.target, Options{}).Error, "no place for a trust bundle")
	bundle, err := secret.NewShape(secret.LayoutBundle, secret.Fields{})
	if err != nil {
		t.Fatal(err)
	}
	w.target.Shape = bundle
	says(t, w.rotator().Rotate(t.Context(), w.target, Options{}).Error, "layout")
	w = newWorld(t, secret.LayoutJSON)
	w.target.Secret = strings.Repeat("a", secret.MaxName)
	says(t, w.rotator().Rotate(t.Context(), w.target, Options{}).Error, "invalid name")
	if _, err := New(Config{}); err == nil {
		t.Error("a rotator of nothing")
	}
}

// TestBelieved asks for nothing while the proxies do not have the root.
func TestBelieved(t *testing.T) {
	w := newWorld(t, secret.LayoutExported)
	w.first()
	other := newHierarchy(t, "second")
	w.authority.signer = other // and its root is in no bundle
	result := w.rotator().Rotate(t.Context(), w.target, Options{})
	says(t, result.Error, "at the step request", "does not have the root")
	if w.authority.issued() != 1 {
		t.Errorf("%d were issued", w.authority.issued())
	}
	w.check()
}

func TestHolders(t *testing.T) {
	if os.Getenv("ROTATE_HOLDER_CHILD") != "" {
		fmt.Println(Holder())
		os.Stdout.Close()
		select {}
	}
	if place() == nowhere {
		t.Skip("this system does not say where a process is: leases of the dead are waited for")
	}
	if lifeOf(Holder()) != lives {
		t.Error("this process does not live")
	}
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestHolders$")
	child.Env = append(os.Environ(), "ROTATE_HOLDER_CHILD=1")
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 300)
	n, err := out.Read(buffer)
	if err != nil {
		t.Fatal(err)
	}
	holder := strings.TrimSpace(string(buffer[:n]))
	if lifeOf(holder) != lives {
		t.Errorf("%q is not seen to live", holder)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	if lifeOf(holder) != isDead {
		t.Errorf("%q is dead", holder)
	}
	w := newWorld(t, secret.LayoutJSON)
	if _, err := w.files.Lease(t.Context(), w.target.Secret, holder, time.Minute); err != nil {
		t.Fatal(err)
	}
	w.first() // a dead process of this machine is not waited for
	w.check()
	for _, other := range []string{
		"", "somebody", "countersign rotate on x, pid -1, user y, place " + place(), "countersign rotate on x, pid 1, user y, place 0123456789ab",
		"countersign rotate on x, pid 1, user y, place " + nowhere, "countersign rotate on x, pid 1, user y",
	} {
		if lifeOf(other) != unknownLife {
			t.Errorf("%q is known", other)
		}
	}
}

func TestMetrics(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	w.first()
	s := ReadStatus(t.Context(), w.target)
	var out strings.Builder
	if err := WriteMetrics(&out, []Status{s, {Service: "none", FailuresTotal: 3, Holder: "x"}}, s.NotAfter.Add(-36*time.Hour)); err != nil {
		t.Fatal(err)
	}
	says(t, out.String(),
		`countersign_rotate_certificate_expiry_days{service="orders"} 1.5`+"\n",
		`countersign_rotate_last_success_timestamp_seconds{service="orders"} `,
		`countersign_rotate_failures_total{service="none"} 3`+"\n",
		`countersign_rotate_in_flight{service="orders"} 0`+"\n", `countersign_rotate_in_flight{service="none"} 1`+"\n",
		"# TYPE countersign_rotate_failures_total counter\n")
	if strings.Contains(out.String(), `days{service="none"}`) {
		t.Error("days of nothing")
	}
	if s.Serial != w.currentSerial() || s.LastSuccess.IsZero() || s.Step != "" {
		t.Errorf("%+v", s)
	}
}

// TestAway waits a while for an instance that the server has lost, and goes on without it then.
func TestAway(t *testing.T) {
	for _, restart := range []bool{false, true} {
		w := newWorld(t, secret.LayoutJSON)
		w.target.Restart, w.fleet.reload = restart, !restart
		w.fleet.lost = "orders-2"
		begin := time.Now()
		result := w.first()
		if time.Since(begin) < w.config.away {
			t.Error("it was not waited for")
		}
		if len(result.Notes) != 1 || slices.Contains(w.fleet.restarts, "orders-2") {
			t.Errorf("%q, restarted %q", result.Notes, w.fleet.restarts)
		}
		says(t, result.Notes[0], "orders-2 was not seen", "not connected")
		w.check()
	}
	w := newWorld(t, secret.LayoutJSON)
	w.fleet.lost, w.fleet.back, w.config.away = "orders-2", 5, time.Minute
	if result := w.first(); len(result.Notes) != 0 || len(result.Seen) != 2 {
		t.Errorf("%+v", result)
	}
}
