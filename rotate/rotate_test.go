package rotate

import (
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
					w.target.Bundle, w.target.Shape = "shop/bundle", w.target.Shape.WithoutBundle()
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
	// Two machines that were started from one image differ in what AWS calls them alone.
	for _, variable := range []string{"AWS_LAMBDA_LOG_STREAM_NAME", "ECS_CONTAINER_METADATA_URI_V4"} {
		t.Setenv(variable, "another")
		if lifeOf(holder) != unknownLife {
			t.Errorf("%s: %q is known to be dead on another machine", variable, holder)
		}
		t.Setenv(variable, "")
	}
}
