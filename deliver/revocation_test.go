package deliver

import (
	"context"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign.dev/issue"
	"countersign.dev/mesh"
	"countersign.dev/reload"
)

// TestWithoutLists: where the Plan wants revoked callers refused and there are no lists, nothing comes into force, on an empty
// volume and beside what others have put there, and nobody is told that all is well; with the first lists all is delivered.
func TestWithoutLists(t *testing.T) {
	for name, test := range map[string]struct {
		plan          mesh.RevocationPlan
		accept, empty bool
		want          string // what /ready says of it
	}{
		"refused":                     {plan: mesh.RevocationPlan{Check: true, Stale: mesh.StaleRefuse}, want: "NO REVOCATION LISTS"},
		"refused on an empty volume":  {plan: mesh.RevocationPlan{Check: true, Stale: mesh.StaleRefuse}, empty: true, want: "NO REVOCATION LISTS"},
		"accepted":                    {plan: mesh.RevocationPlan{Check: true, Stale: mesh.StaleRefuse}, accept: true},
		"a specification that serves": {plan: mesh.RevocationPlan{Check: true, Stale: mesh.StaleServe}},
		"a plan that looks nobody up": {},
	} {
		t.Run(name, func(t *testing.T) {
			var lists []byte
			unknown := errors.New("the control plane has not given them yet")
			l := newLab(t, rendered, func(c *Config) {
				c.Plan.Revocation, c.AcceptRevoked = test.plan, test.accept
				c.Revocation = func(*mesh.Plan) ([]byte, error) { return lists, unknown }
			})
			if test.empty {
				ok(t, os.Remove(filepath.Join(l.proxy.dir, "current")))
			}
			l.put("v2")
			l.round("the control plane has not given them yet")
			if problem := l.w.Status().readyProblem(); problem != test.want {
				t.Errorf("it says %q of itself, want %q", problem, test.want)
			}
			switch _, err := os.Lstat(filepath.Join(l.proxy.dir, "current")); {
			case test.want == "":
				l.holds("v2", true)
				return
			case test.empty && !errors.Is(err, os.ErrNotExist):
				t.Errorf("something came into force (%v)", err)
			case !test.empty:
				l.holds("v1", false)
			}
			lists, unknown = []byte("lists"), nil
			l.round("")
			l.holds("v2", true)
			if problem := l.w.Status().readyProblem(); problem != "" {
				t.Errorf("with lists it says %q of itself", problem)
			}
		})
	}
}

// TestRevocation takes new revocation lists as it takes a certificate, and keeps those in force when none are known.
func TestRevocation(t *testing.T) {
	var lists []byte
	var unknown error
	l := newLab(t, rendered, func(c *Config) {
		c.Revocation = func(*mesh.Plan) ([]byte, error) { return lists, unknown }
	})
	current := func(name string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(l.proxy.dir, "current", name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return string(text)
	}
	l.round("")
	if current(RevocationFile) != "" || strings.Contains(current("proxy.conf"), "crl") {
		t.Error("there are lists, and none were given")
	}
	lists = []byte("-----BEGIN X509 CRL-----\n")
	ok(t, l.w.round(t.Context(), l.w.plan, false)) // lists do not wait for the store's time
	if current(RevocationFile) != string(lists) || !strings.Contains(current("proxy.conf"), "/current/crl.pem") || l.proxy.reloads != 1 {
		t.Errorf("%q, told %d times", current(RevocationFile), l.proxy.reloads)
	}
	unknown = errors.New("the lists are not known")
	l.put("v2")
	l.round("the lists are not known")
	l.holds("v2", true)
	if current(RevocationFile) != string(lists) || !strings.Contains(current("proxy.conf"), "/current/crl.pem") {
		t.Error("lists that are not known any more are gone")
	}
	ok(t, l.w.takePlan(t.Context(), &mesh.Plan{Mesh: "two"}))
	if current(RevocationFile) != string(lists) || !strings.Contains(current("proxy.conf"), "# two\ncrl") {
		t.Error("a plan has removed the lists")
	}
	lists, unknown = nil, nil
	l.round("")
	if current(RevocationFile) != "" || strings.Contains(current("proxy.conf"), "crl") {
		t.Error("lists that are not wanted any more are there")
	}
}

// TestEndOlder: when somebody is revoked, workers who serve by the lists of before are ended, also when the watcher was
// restarted between the delivery and its proof; by lists that revoke nobody new they are not.
func TestEndOlder(t *testing.T) {
	var lists []byte
	var asked, ended int
	l := newLab(t, rendered, func(c *Config) {
		c.Revocation = func(*mesh.Plan) ([]byte, error) { return lists, nil }
		c.Older = func(context.Context) (EndOlder, error) {
			asked++
			return func(_ context.Context, grace time.Duration) ([]int, error) {
				if ended++; grace != reload.RevokedGrace {
					t.Errorf("they get %s", grace)
				}
				return []int{7}, nil
			}, nil
		}
	})
	number := int64(0)
	revoke := func(serials ...int64) {
		t.Helper()
		number++
		now := time.Now()
		cfg := issue.CRLConfig{Number: number, Now: now, NextUpdate: now.Add(time.Hour)}
		for _, serial := range serials {
			cfg.Revoked = append(cfg.Revoked, issue.Revoked{Serial: big.NewInt(serial), Time: now, Reason: issue.Unspecified})
		}
		list, err := issue.NewCRL(l.ca.Issuing, l.ca.Key, cfg)
		ok(t, err)
		lists = pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list.Raw})
	}
	want := func(what string, n int) {
		t.Helper()
		if l.w.tasks.Wait(); asked != n || ended != n {
			t.Errorf("%s: asked for older workers %d times and ended them %d times, want %d", what, asked, ended, n)
		}
	}
	l.round("")
	want("nobody is revoked", 0)
	revoke()
	l.round("")
	want("the first list", 0)
	revoke(5)
	l.round("")
	want("one is revoked", 1)
	revoke(5)
	l.put("v2")
	l.round("")
	want("a renewal and a newer list of the same", 1)
	revoke(6, 5)
	l.proxy.down = true
	l.round("nobody serves it")
	want("nobody serves", 1)
	l.open()
	l.proxy.start(t)
	l.round("")
	want("another is revoked, and its proof comes later", 2)
	l.round("")
	want("nothing new", 2)
}
