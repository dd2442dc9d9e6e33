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

// TestRefusedByTheProxy goes back when the new certificate is not served.
func TestRefusedByTheProxy(t *testing.T) {
	for _, layout := range layouts {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restart %t", layout, restart), func(t *testing.T) {
				w := newWorld(t, layout)
				w.target.Restart, w.fleet.reload = restart, !restart
				first := w.first()
				w.fleet.refuses = func(serial string) bool { return serial != first.Serial }
				w.fleet.restarts = nil
				result := w.must(Options{Force: true}, RolledBack)
				if !errors.Is(result.Err, ErrNotServed) || w.currentSerial() != first.Serial || result.Serial != first.Serial {
					t.Errorf("%v; %s is current", result.Err, w.currentSerial())
				}
				step := "at the step observe"
				if restart {
					step = "at the step deploy"
				}
				says(t, result.Error, step, "orders-1 0.0.0.0_9080 serves "+first.Serial, "nginx -t refused the new files", "the version of before is current again and was seen everywhere"[:11], "is current again")
				if restart && len(w.fleet.restarts) != 1 {
					t.Errorf("restarted %q: the others were to be left alone", w.fleet.restarts)
				}
				w.check()
				s := ReadStatus(t.Context(), w.target)
				if s.Failures != 1 || s.Serial != first.Serial || s.LastErrorStep == "" {
					t.Errorf("%+v", s)
				}
				w.fleet.refuses = nil
				w.must(Options{Force: true}, Rotated)
				w.check()
				if s := ReadStatus(t.Context(), w.target); s.Failures != 0 || s.FailuresTotal != 1 || s.LastError != "" {
					t.Errorf("%+v", s)
				}
			})
		}
	}
}

func TestNothingToGoBackTo(t *testing.T) {
	t.Run("none before", func(t *testing.T) {
		w := newWorld(t, secret.LayoutJSON)
		w.fleet.refuses = func(string) bool { return true }
		result := w.must(Options{}, Failed)
		says(t, result.Error, "at the step observe", "no version of before to go back to")
		w.checkCurrent()
		w.fleet.refuses = nil
		if result := w.must(Options{}, Nothing); result.Serial == "" {
			t.Errorf("%+v", result)
		}
		w.check()
	})
	t.Run("expired before", func(t *testing.T) {
		w := newWorld(t, secret.LayoutJSON)
		w.authority.spoil = func(c *x509.Certificate) { c.NotAfter = time.Now().Add(2 * time.Second) }
		w.first()
		w.authority.spoil = nil
		w.fleet.refuses = func(string) bool { return true }
		w.config.Timeout = 2500 * time.Millisecond
		result := w.must(Options{Force: true}, Failed)
		says(t, result.Error, "cannot be used any more", "has expired")
		w.check()
	})
}

// TestNotObserved leaves everything as it is when nobody can look, and looks again next time.
func TestNotObserved(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	first := w.first()
	w.fleet.blind = errors.New("the server is away")
	result := w.must(Options{Force: true}, Failed)
	if !errors.Is(result.Err, ErrNotObserved) || w.currentSerial() == first.Serial {
		t.Errorf("%v; %s is current", result.Err, w.currentSerial())
	}
	if s := ReadStatus(t.Context(), w.target); s.Step != StepPromote || s.Bringing != result.Version {
		t.Errorf("%+v", s)
	}
	w.fleet.blind = nil
	says(t, w.must(Options{}, Rotated).Reason, "was begun and has not ended")
	if w.authority.issued() != 2 {
		t.Errorf("%d were issued", w.authority.issued())
	}
	w.check()
}

func TestRestart(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	w.target.Restart, w.fleet.reload = true, false
	w.first()
	w.fleet.restarts = nil
	w.must(Options{Force: true}, Rotated)
	if got := fmt.Sprint(w.fleet.restarts); got != "[orders-1 orders-2]" {
		t.Error(got)
	}
	first := w.currentSerial()
	w.fleet.restarts, w.fleet.broken = nil, map[string]error{"orders-2": errors.New("it does not become ready")}
	w.fleet.gone = true
	result := w.must(Options{Force: true}, RolledBack)
	if got := fmt.Sprint(w.fleet.restarts); got != "[orders-1 orders-2 orders-1 orders-2]" {
		t.Errorf("%s: who does not come back is to be restarted on the way back, too", got)
	}
	says(t, result.Error, "at the step deploy", "restarting orders-2: it does not become ready")
	if w.currentSerial() != first || w.fleet.serves["orders-1"] != first {
		t.Errorf("%s is current, and orders-1 serves %s", w.currentSerial(), w.fleet.serves["orders-1"])
	}
	w.check()
}

// TestUnseen takes an instance's own word when nobody can look at it, and not at once.
func TestUnseen(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	w.fleet.by = ByReport
	begin := time.Now()
	w.first()
	if time.Since(begin) < w.config.unseen {
		t.Error("it did not wait for a peer")
	}
	says(t, w.progress.String(), "no peer has seen it yet")
}

func TestNobody(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	clear(w.fleet.serves)
	if result := w.first(); len(result.Notes) != 1 {
		t.Errorf("%q", result.Notes)
	}
}

// TestStopped ends between two steps, wherever it is told to, and goes on from there.
func TestStopped(t *testing.T) {
	for _, at := range []Step{StepRequest, StepIssue, StepStage, StepVerify, StepPromote, StepDeploy, StepObserve} {
		t.Run(string(at), func(t *testing.T) {
			w := newWorld(t, secret.LayoutSeparate)
			first := w.first()
			if at == StepObserve {
				w.fleet.reload = false
			}
			ctx, cancel := context.WithCancel(t.Context())
			w.config.Progress = func(_ string, step Step, _ string) {
				if step == at {
					cancel()
				}
			}
			result := w.rotator().Rotate(ctx, w.target, Options{Force: true})
			if !errors.Is(result.Err, ErrStopped) {
				t.Fatalf("%v, want ErrStopped", result.Err)
			}
			if s := ReadStatus(t.Context(), w.target); s.Failures != 0 || s.Holder != "" || (s.Step == "") != (at == StepRequest && s.Serial == first.Serial && s.Bringing == "") {
				t.Errorf("%+v", s)
			}
			w.config.Progress, w.fleet.reload = nil, true
			w.must(Options{Force: true}, Rotated)
			w.check()
			if w.authority.issued() != 2 {
				t.Errorf("%d were issued", w.authority.issued())
			}
		})
	}
}

// TestByHand leaves alone what somebody has made current while a rotation was dead.
func TestByHand(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	w.first()
	w.fleet.blind = errors.New("away")
	half := w.must(Options{Force: true}, Failed)
	value, _, err := w.files.Read(t.Context(), w.target.Secret, secretVersion(t, w, secret.Previous))
	if err == nil {
		_, err = w.files.Stage(t.Context(), w.target.Secret, "by-hand", value)
	}
	if err == nil {
		err = w.files.Promote(t.Context(), w.target.Secret, "by-hand")
	}
	if err != nil {
		t.Fatal(err)
	}
	w.fleet.blind = nil
	result := w.must(Options{}, Nothing)
	if result.Version != "by-hand" || len(result.Notes) != 1 {
		t.Errorf("%+v", result)
	}
	says(t, result.Notes[0], half.Version, "by-hand")
	w.check()
}

func secretVersion(t *testing.T, w *world, stage secret.Stage) string {
	t.Helper()
	versions, err := w.files.Versions(t.Context(), w.target.Secret)
	if err != nil {
		t.Fatal(err)
	}
	version, _ := secret.Entry{Versions: versions}.Stage(stage)
	return version.ID
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
