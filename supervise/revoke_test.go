package supervise

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/reload"
)

// crls makes the lists of both CAs, valid for a while, with some leaves revoked.
func (a *authority) crls(t *testing.T, number int64, valid time.Duration, revoked ...*mtls.Identity) *mtls.CRLs {
	t.Helper()
	var leaves []*x509.Certificate
	for _, identity := range revoked {
		leaves = append(leaves, identity.Certificate.Leaf)
	}
	lists, err := mtls.ParseCRLs(a.CRLs(t, number, valid, leaves...))
	if err != nil {
		t.Fatal(err)
	}
	return lists
}

// with gives a sidecar its identity with revocation lists.
func (c *sidecar) with(lists *mtls.CRLs, stale mesh.StaleCRL) {
	identity := *c.source.now.Load()
	identity.Revocation = &mtls.Revocation{CRLs: lists, Stale: stale}
	c.source.now.Store(&identity)
	c.IdentityChanged()
}

// TestRevoked revokes a caller: a list is delivered, and it is refused, also where its session would be resumed.
func TestRevoked(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		ca := newAuthority(t)
		back := s.supervise(t, ca, "back")
		back.with(ca.crls(t, 1, time.Hour), mesh.StaleRefuse)
		application(t, back.address)
		if err := back.Apply(compile(t, shop, "back")); err != nil {
			t.Fatal(err)
		}
		url := "https://" + back.address + ":9080/"
		bad, other := ca.identity(t, "front"), ca.identity(t, "front")
		caller := resuming(bad)
		for range 2 {
			if status, _, _, err := get(t, caller, url); err != nil || status != 200 {
				t.Fatalf("before: %d %v", status, err)
			}
		}
		back.with(ca.crls(t, 2, time.Hour, bad), mesh.StaleRefuse)
		eventually(t, "the revoked caller is refused", func() bool {
			status, _, _, err := get(t, caller, url)
			return err != nil || status != 200
		})
		for name, c := range map[string]func() bool{
			"the revoked one, anew":     func() bool { _, _, _, err := get(t, client(bad), url); return err != nil },
			"the revoked one's session": func() bool { _, _, _, err := get(t, caller, url); return err != nil },
			"another leaf of the same":  func() bool { status, _, _, err := get(t, client(other), url); return err == nil && status == 200 },
		} {
			if !c() {
				t.Errorf("%s: not as it should be", name)
			}
		}
		if p := back.Problem(); p != "" {
			t.Errorf("problem %q", p)
		}
	})
}

// TestStaleLists is about lists that are missing or past their end.
func TestStaleLists(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		ca := newAuthority(t)
		back := s.supervise(t, ca, "back")
		application(t, back.address)
		back.with(nil, mesh.StaleRefuse)
		if err := back.Apply(compile(t, shop, "back")); !errors.Is(err, mtls.ErrNoCRL) {
			t.Errorf("no lists: %v", err)
		}
		back.with(ca.crls(t, 1, -time.Minute), mesh.StaleServe)
		if err := back.Apply(compile(t, shop, "back")); err != nil {
			t.Fatal(err)
		}
		url := "https://" + back.address + ":9080/"
		if status, _, _, err := get(t, client(ca.identity(t, "front")), url); err != nil || status != 200 {
			t.Errorf("serve: %d %v", status, err)
		}
		if p := back.Problem(); !strings.Contains(p, "revoked certificates are accepted") {
			t.Errorf("problem %q", p)
		}
		back.with(ca.crls(t, 1, -time.Minute), mesh.StaleRefuse)
		eventually(t, "everybody is refused", func() bool {
			_, _, _, err := get(t, client(ca.identity(t, "front")), url)
			return err != nil
		})
		if p := back.Problem(); !strings.Contains(p, "everybody is refused") {
			t.Errorf("problem %q", p)
		}
	})
}

// TestRevokedOpen revokes a caller that holds a connection open: no worker is left that would serve on it.
func TestRevokedOpen(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		ca := newAuthority(t)
		back := s.supervise(t, ca, "back", func(c *Config) { c.Drain = 10 * time.Minute })
		back.with(ca.crls(t, 1, time.Hour), mesh.StaleRefuse)
		application(t, back.address)
		if err := back.Apply(compile(t, shop, "back")); err != nil {
			t.Fatal(err)
		}
		url := "https://" + back.address + ":9080/"
		bad := ca.identity(t, "front")
		kept := client(bad)
		if status, _, _, err := get(t, kept, url); err != nil || status != 200 {
			t.Fatalf("before: %d %v", status, err)
		}
		lists := ca.crls(t, 2, time.Hour, bad)
		back.with(lists, mesh.StaleRefuse)
		eventually(t, "the lists are in force, and no older worker is left", func() bool {
			back.mu.Lock()
			good, running := back.good, back.running
			back.mu.Unlock()
			left, err := s.Engine.leaving(t.Context(), running)
			return good.identity.Revocation.CRLs == lists && err == nil && left == 0
		})
		if status, _, _, err := get(t, kept, url); err == nil {
			t.Errorf("on the open connection: %d", status)
		}
	})
}

// TestRevokedFresh renews a certificate right after somebody was revoked: who is served by the worker in between, which has
// the new lists, is served to the end.
func TestRevokedFresh(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		ca := newAuthority(t)
		back := s.supervise(t, ca, "back", func(c *Config) { c.Drain = 10 * time.Minute })
		back.with(ca.crls(t, 1, time.Hour), mesh.StaleRefuse)
		release := slowApplication(t, back.address)
		if err := back.Apply(compile(t, shop, "back")); err != nil {
			t.Fatal(err)
		}
		good, running := ca.identity(t, "front"), back.PID()
		lists := ca.crls(t, 2, time.Hour, ca.identity(t, "other"))
		inForce := func(leaf *mtls.Identity) {
			eventually(t, "it is in force", func() bool {
				back.mu.Lock()
				defer back.mu.Unlock()
				return back.good.identity.Revocation.CRLs == lists && back.good.identity.Certificate.Leaf == leaf.Certificate.Leaf
			})
		}
		request := func() chan error {
			answered := make(chan error, 1)
			go func() {
				status, body, _, err := get(t, client(good), "https://"+back.address+":9080/")
				if err == nil && (status != 200 || body != "done") {
					err = fmt.Errorf("%d %q", status, body)
				}
				answered <- err
			}()
			<-release.began
			return answered
		}
		before := request()
		back.with(lists, mesh.StaleRefuse)
		inForce(back.source.now.Load())
		fresh := request()
		renewed := *ca.identity(t, "back")
		back.source.now.Store(&renewed)
		back.with(lists, mesh.StaleRefuse)
		inForce(&renewed)
		if s.Engine.older != nil {
			if err := <-before; err == nil {
				t.Error("a worker without the new lists serves on")
			}
		}
		close(release.now)
		if err := <-fresh; err != nil || back.PID() != running {
			t.Errorf("the request on the worker with the new lists: %v", err)
		}
	})
}

// TestNoLists takes an identity without revocation lists for one by which nobody is revoked.
func TestNoLists(t *testing.T) {
	ca := newAuthority(t)
	with := &mtls.Identity{Revocation: &mtls.Revocation{CRLs: ca.crls(t, 1, time.Hour, ca.identity(t, "front"))}}
	if none := new(mtls.Identity); !reload.Revokes(revocationLists(none), revocationLists(with)) || reload.Revokes(revocationLists(with), revocationLists(none)) {
		t.Error("not as it should be")
	}
}

// TestRevokedLate revokes a caller that has connected before and makes its handshake only after: no worker is left that
// would go on with it by the lists of before. (NGINX ends no HTTP/2 connection by itself that came to its handshake so late.)
func TestRevokedLate(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		ca := newAuthority(t)
		back := s.supervise(t, ca, "back", func(c *Config) { c.Drain = 10 * time.Minute })
		back.with(ca.crls(t, 1, time.Hour), mesh.StaleRefuse)
		application(t, back.address)
		if err := back.Apply(compile(t, shop, "back")); err != nil {
			t.Fatal(err)
		}
		var early []net.Conn // so many that each worker has some
		for range 8 {
			conn, err := net.Dial("tcp", back.address+":9080")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			early = append(early, conn)
		}
		running := back.PID()
		bad := ca.identity(t, "front")
		lists := ca.crls(t, 2, time.Hour, bad)
		back.with(lists, mesh.StaleRefuse)
		eventually(t, "the lists are in force", func() bool {
			back.mu.Lock()
			defer back.mu.Unlock()
			return back.good.identity.Revocation.CRLs == lists
		})
		for _, conn := range early {
			caller := client(bad)
			transport := caller.Transport.(*http.Transport)
			transport.ForceAttemptHTTP2 = true
			taken := false
			transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
				if taken {
					return nil, errors.New("the connection of before has ended")
				}
				taken = true
				return conn, nil
			}
			eventually(t, "who connected before and is revoked is refused", func() bool {
				_, _, _, err := get(t, caller, "https://"+back.address+":9080/")
				return err != nil
			})
		}
		if back.PID() != running {
			t.Error("it was started anew")
		}
	})
}
