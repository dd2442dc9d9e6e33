package agent

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// lists are the CA's revocation lists, the issuer's with some members on it, valid for a time.
func (a *authority) lists(t testing.TB, number int64, life time.Duration, revoked ...*x509.Certificate) string {
	t.Helper()
	var out strings.Builder
	for _, by := range []struct {
		cert *x509.Certificate
		key  *ecdsa.PrivateKey
	}{{a.issuer, a.key}, {a.root, a.rootKey}} {
		template := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(life)}
		for _, cert := range revoked {
			if by.cert == a.issuer {
				template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
					x509.RevocationListEntry{SerialNumber: cert.SerialNumber, RevocationTime: time.Now()})
			}
		}
		der, err := x509.CreateRevocationList(rand.Reader, template, by.cert, by.key)
		if err != nil {
			t.Fatal(err)
		}
		_ = pem.Encode(&out, &pem.Block{Type: "X509 CRL", Bytes: der})
	}
	return out.String()
}

// peer is another member's certificate.
func (f *fake) peer(t testing.TB) []*x509.Certificate {
	t.Helper()
	key, err := mtls.GenerateKey(mesh.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	return []*x509.Certificate{f.ca.sign(t, mustID(t, id.Service, "peer"), []string{"peer"}, key.Public(), time.Now(), 10*time.Hour), f.ca.issuer}
}

// admits tells what the agent's identity thinks of a peer.
func (r *rig) admits(peer []*x509.Certificate) error {
	r.t.Helper()
	identity, err := r.agent.Identity()
	if err != nil {
		r.t.Fatal(err)
	}
	_, err = identity.Verify(peer, x509.ExtKeyUsageClientAuth, r.agent.Now())
	return err
}

func checking(plan *mesh.Plan, stale mesh.StaleCRL) *mesh.Plan {
	checked := *plan
	checked.Revocation = mesh.RevocationPlan{Check: true, Stale: stale}
	checked.Revision++
	return &checked
}

// TestListsHold lets the server revoke a peer: it is refused at once, and after a restart without the server.
func TestListsHold(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		peer, other := r.fake.peer(t), r.fake.peer(t)
		r.fake.plan = checking(r.fake.plan, mesh.StaleRefuse)
		r.fake.crl = r.fake.ca.lists(t, 1, 24*time.Hour)
		r.start()
		after(time.Second)
		if err := r.admits(peer); err != nil {
			t.Errorf("before: %v", err)
		}
		changes := r.identityChanges()
		r.fake.push(func() { r.fake.crl = r.fake.ca.lists(t, 2, 24*time.Hour, peer[0]) })
		after(time.Second)
		if err := r.admits(peer); !errors.Is(err, mtls.ErrRevoked) {
			t.Errorf("a revoked peer: %v", err)
		}
		if err := r.admits(other); err != nil {
			t.Errorf("another: %v", err)
		}
		if r.identityChanges() != changes+1 {
			t.Errorf("the data plane was told %d times", r.identityChanges()-changes)
		}
		if string(r.agent.CRLs()) == "" || len(r.agent.CRLs()) != len(r.fake.crl) {
			t.Errorf("the lists for files have %d bytes, those of the server %d", len(r.agent.CRLs()), len(r.fake.crl))
		}
		if n := r.fake.watched(); n != 1 {
			t.Errorf("%d watches: a list is no reason to connect anew", n)
		}
		gauges := r.agent.Gauges()
		if gauges["countersign.crl_check"] != 1 || gauges["countersign.crl_stale"] != 0 || gauges["countersign.crl_number"] != 2 ||
			gauges["countersign.crl_seconds_left"] < 86000 {
			t.Errorf("gauges %v", gauges)
		}
		r.stop()
		info, err := os.Stat(filepath.Join(r.dir, "current", crlFile))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
		r.net.setDown(true)
		r.start()
		defer r.close()
		after(time.Second)
		if err := r.admits(peer); !errors.Is(err, mtls.ErrRevoked) {
			t.Errorf("after a restart without the server: %v", err)
		}
		if err := r.admits(other); err != nil {
			t.Errorf("another, after a restart without the server: %v", err)
		}
	})
}

// TestListsThatAreRefused has lists that are not taken: those that are held stay, and it is told.
func TestListsThatAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		crl  func(t *testing.T, f *fake) string
		want string
	}{
		"older": {func(t *testing.T, f *fake) string { return f.ca.lists(t, 1, 24*time.Hour) }, "the revocation list goes back"},
		"a stranger": {func(t *testing.T, f *fake) string {
			liar := *newAuthority(t, "liar")
			issuer := *liar.issuer
			issuer.RawSubject, issuer.SubjectKeyId = f.ca.issuer.RawSubject, f.ca.issuer.SubjectKeyId
			liar.issuer = &issuer
			return liar.lists(t, 9, 24*time.Hour)
		}, "which has not signed it"},
		"junk": {func(*testing.T, *fake) string { return "-----BEGIN X509 CRL-----\n" }, "invalid revocation list"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				peer := r.fake.peer(t)
				r.fake.plan = checking(r.fake.plan, mesh.StaleRefuse)
				r.fake.crl = r.fake.ca.lists(t, 5, 24*time.Hour, peer[0])
				r.start()
				defer r.close()
				after(time.Second)
				r.fake.push(func() { r.fake.crl = c.crl(t, r.fake) })
				after(time.Second)
				if problem := r.agent.Status().Problem; !strings.Contains(problem, c.want) {
					t.Errorf("problem %q", problem)
				}
				if err := r.admits(peer); !errors.Is(err, mtls.ErrRevoked) {
					t.Errorf("the list of before does not hold any more: %v", err)
				}
				r.fake.push(func() { r.fake.crl = r.fake.ca.lists(t, 6, 24*time.Hour) })
				after(time.Second)
				if problem := r.agent.Status().Problem; problem != "" {
					t.Errorf("after a good one: %q", problem)
				}
				if err := r.admits(peer); err != nil {
					t.Errorf("after a good one: %v", err)
				}
			})
		})
	}
}

// TestStaleLists lets lists end while the server is away.
func TestStaleLists(t *testing.T) {
	for stale, want := range map[mesh.StaleCRL]error{mesh.StaleRefuse: mtls.ErrNoCRL, mesh.StaleServe: nil} {
		inBubble(t, func(t *testing.T, r *rig) {
			peer := r.fake.peer(t)
			r.fake.plan = checking(r.fake.plan, stale)
			r.fake.crl = r.fake.ca.lists(t, 1, 10*time.Minute)
			r.start()
			defer r.close()
			after(time.Second)
			r.fake.set(func() { r.fake.mute = true })
			after(15 * time.Minute)
			if err := r.admits(peer); !errors.Is(err, want) {
				t.Errorf("%s: %v", stale, err)
			}
			if problem := r.agent.Status().Problem; !strings.Contains(problem, "was valid to") || !strings.Contains(problem, "staleCRL: "+string(stale)) {
				t.Errorf("%s: problem %q", stale, problem)
			}
			if gauges := r.agent.Gauges(); gauges["countersign.crl_stale"] != 1 || gauges["countersign.crl_seconds_left"] != 0 {
				t.Errorf("%s: gauges %v", stale, gauges)
			}
		})
	}
}

// TestRevocationNone looks at nobody's lists until a Plan says otherwise; without any list the answer is no then.
func TestRevocationNone(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		peer := r.fake.peer(t)
		r.fake.crl = r.fake.ca.lists(t, 1, 24*time.Hour, peer[0])
		r.start()
		defer r.close()
		after(time.Second)
		if err := r.admits(peer); err != nil {
			t.Errorf("not checked: %v", err)
		}
		if text := r.agent.CRLs(); len(text) != 0 {
			t.Errorf("not checked, and %d bytes of lists", len(text))
		}
		r.fake.push(func() { r.fake.plan = checking(r.fake.plan, mesh.StaleRefuse) })
		after(time.Second)
		if err := r.admits(peer); !errors.Is(err, mtls.ErrRevoked) {
			t.Errorf("checked: %v", err)
		}
		r.fake.push(func() {
			plan := *r.fake.plan
			plan.Revocation, plan.Revision = mesh.RevocationPlan{}, plan.Revision+1
			r.fake.plan = &plan
		})
		after(time.Second)
		if err := r.admits(peer); err != nil {
			t.Errorf("not checked any more: %v", err)
		}
	})
	inBubble(t, func(t *testing.T, r *rig) {
		r.fake.plan = checking(r.fake.plan, mesh.StaleRefuse)
		r.start()
		defer r.close()
		after(time.Second)
		if err := r.admits(r.fake.peer(t)); !errors.Is(err, mtls.ErrNoCRL) {
			t.Errorf("checked, without a list: %v", err)
		}
		if problem := r.agent.Status().Problem; !strings.Contains(problem, "there is no list of") {
			t.Errorf("problem %q", problem)
		}
	})
}

// TestRevocationRefused has a Plan that looks at nobody's lists, or serves when they are stale, and that the data plane
// refuses: the one that stays in force is obeyed in this, too.
func TestRevocationRefused(t *testing.T) {
	for name, word := range map[string]mesh.RevocationPlan{"none": {}, "stale": {Check: true, Stale: mesh.StaleServe}} {
		inBubble(t, func(t *testing.T, r *rig) {
			r.fake.plan = checking(r.fake.plan, mesh.StaleRefuse)
			r.fake.crl = r.fake.ca.lists(t, 1, 24*time.Hour)
			r.start()
			defer r.close()
			after(time.Second)
			held := func() *mtls.Revocation {
				identity, err := r.agent.Identity()
				if err != nil {
					t.Fatal(err)
				}
				return identity.Revocation
			}
			r.set(func() { r.applyErr = errors.New("the data plane cannot carry it out") })
			r.fake.push(func() {
				plan := *r.fake.plan
				plan.Revocation, plan.Revision = word, plan.Revision+1
				r.fake.plan = &plan
			})
			after(time.Minute)
			if now := held(); now == nil || now.Stale != mesh.StaleRefuse {
				t.Errorf("%s: a Plan that is not in force has changed how lists are looked at: %+v", name, now)
			}
			r.set(func() { r.applyErr = nil })
			after(time.Minute)
			if now := held(); (now != nil) != word.Check || now != nil && now.Stale != word.Stale {
				t.Errorf("%s: it is in force, and lists are looked at like this: %+v", name, now)
			}
		})
	}
}

// TestRevokedItself has its own certificate revoked: it comes back with another token, and only so.
func TestRevokedItself(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		defer r.close()
		after(time.Second)
		serial := r.agent.Status().Serial
		r.fake.push(func() { r.fake.revoked = serial })
		r.net.setDown(true)
		r.net.setDown(false)
		after(3 * time.Minute)
		if status := r.agent.Status(); status.Serial != serial || !strings.Contains(status.Problem, api.CodeUsedToken) {
			t.Errorf("with the token of before: %+v", status)
		}
		r.fake.set(func() { r.fake.tokens["new-token"] = r.fake.who })
		r.writeToken("new-token\n")
		after(3 * time.Minute)
		if status := r.agent.Status(); status.Serial == serial || status.Problem != "" {
			t.Errorf("with a new token: %+v", status)
		}
	})
}

// TestRevokedServer asserts that the agent does not speak to a server whose certificate is on a list that it holds.
func TestRevokedServer(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		a := r.fake.ca
		leaf := r.fake.certificate()
		chain, err := mtls.ParseCertificates([]byte(pemOf(must(x509.ParseCertificate(leaf.Certificate[0])), a.issuer, a.root)))
		if err != nil {
			t.Fatal(err)
		}
		bundle, err := mtls.NewBundle(testDomain, r.fake.roots)
		if err != nil {
			t.Fatal(err)
		}
		for list, want := range map[string]error{
			a.lists(t, 1, time.Hour): nil, a.lists(t, 1, -time.Second): nil, "": nil, a.lists(t, 1, time.Hour, chain[0]): mtls.ErrRevoked,
		} {
			crls, err := mtls.ParseCRLs([]byte(list))
			if err != nil {
				t.Fatal(err)
			}
			trusted := trust{pin: a.pin(), bundle: bundle, crls: crls}
			if err := trusted.verify(stateOf(chain), time.Now()); !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		}
		r.fake.stop()
		r.net.setDown(true)
	})
}

func must(cert *x509.Certificate, err error) *x509.Certificate {
	if err != nil {
		panic(err)
	}
	return cert
}
