package rotate

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"countersign.dev/mtls"
	"countersign.dev/secret"
)

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
		w.first()
		w.authority.spoil = func(c *x509.Certificate) { c.NotAfter = time.Now().Add(5 * time.Hour) }
		w.fleet.refuses = func(string) bool { return true }
		w.config.Now = func() time.Time { return time.Now().Add(2 * time.Hour) }
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

// TestAlone takes the word of an instance at once where nobody else will ever tell.
func TestAlone(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	w.fleet.by, w.fleet.alone = ByReport, true
	w.config.unseen = time.Hour
	w.first()
	if said := w.progress.String(); strings.Contains(said, "no peer has seen it yet") {
		t.Errorf("it waited for a peer: %s", said)
	}
}

// TestDenied does not take an instance's own word while peers see it present another certificate.
func TestDenied(t *testing.T) {
	for name, c := range map[string]struct {
		sightings int // how many of them are news
		want      Outcome
	}{"before": {0, Rotated}, "a while longer": {5, Rotated}, "all the time": {1 << 20, RolledBack}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, secret.LayoutJSON)
			w.fleet.by = ByReport
			first := w.first()
			count, at, slow := 0, time.Now(), true
			w.fleet.others = func(serial string) (string, time.Time) {
				if serial == first.Serial {
					return "", time.Time{}
				}
				if slow { // the first look takes that long
					<-time.After(2 * w.config.unseen)
					slow = false
				}
				if count < c.sightings {
					count, at = count+1, at.Add(time.Millisecond)
				}
				return first.Serial, at
			}
			result := w.must(Options{Force: true}, c.want)
			if c.want == RolledBack {
				says(t, result.Error, "orders-1 0.0.0.0_9080 says that it serves ", ", and a peer saw it present "+first.Serial+" at ")
			}
			w.check()
		})
	}
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

// TestRevoked replaces what was revoked, never uses what was revoked meanwhile, and does not go back to it.
func TestRevoked(t *testing.T) {
	w := newWorld(t, secret.LayoutExported)
	first := w.first()
	w.authority.revoke(newHierarchy(t, "first"), first.Serial) // another CA of the same name
	w.must(Options{}, Nothing)
	w.authority.revoke(w.authority.signer, "01", first.Serial)
	result := w.must(Options{}, Rotated)
	says(t, result.Reason, "what is current will not do", "the serial "+first.Serial+" was revoked")
	w.check()

	w.fleet.refuses = func(serial string) bool { return serial != first.Serial }
	w.authority.revoke(w.authority.signer, result.Serial)
	again := w.must(Options{}, Failed)
	says(t, again.Error, "cannot be used any more", "was revoked")
	w.fleet.refuses = nil
	w.check()

	// A certificate that was revoked between two questions for it.
	w.config.Progress = func(_ string, step Step, _ string) {
		if step == StepStage {
			w.authority.down = errors.New("away")
		}
	}
	if _, died := w.dying(&mortal{at: 2}, Options{Force: true}); !died {
		t.Fatal("it did not die")
	}
	w.config.Progress, w.authority.down = nil, nil
	for _, chain := range w.authority.answers {
		certificates, err := mtls.ParseCertificates(chain)
		if err != nil {
			t.Fatal(err)
		}
		if serial := mtls.Serial(certificates[0]); serial != w.currentSerial() {
			w.authority.revoke(w.authority.signer, serial)
		}
	}
	refused := w.must(Options{}, Failed)
	if !errors.Is(refused.Err, ErrUnfit) || refused.Serial != again.Serial {
		t.Errorf("%v", refused.Err)
	}
	w.must(Options{Force: true}, Rotated)
	w.check()

	w.authority.lists = []byte("nonsense")
	says(t, w.must(Options{}, Failed).Error, "at the step look", "revocation lists")
}

// TestRevocationLists takes the authority's lists as the peers of the proxy do.
func TestRevocationLists(t *testing.T) {
	for name, c := range map[string]struct {
		change func(w *world, serial string)
		want   error
		says   string
	}{
		"of the root, with the issuer": {func(w *world, _ string) {
			h := w.authority.signer
			w.authority.list(h.root, h.rootKey, nil, mtls.Serial(h.issuer))
		}, ErrUnfit, "the certificate of its issuer"},
		"of some certificates only": {func(w *world, _ string) {
			h := w.authority.signer
			w.authority.list(h.issuer, h.key, []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 28}, Critical: true, Value: []byte{0x30, 0}}})
		}, mtls.ErrCRL, "critical extension"},
		"in the issuer's name": {func(w *world, serial string) {
			h := w.authority.signer
			forged := *h.issuer
			key := newKey(t)
			forged.PublicKey = key.Public()
			w.authority.list(&forged, key, nil, serial)
		}, mtls.ErrCRL, "has not signed it"},
		"half a list": {func(w *world, serial string) {
			w.authority.revoke(w.authority.signer, serial)
			w.authority.lists = w.authority.lists[:len(w.authority.lists)-30]
		}, mtls.ErrCRL, "damaged"},
		"no list at all": {func(w *world, _ string) { w.authority.lists = []byte("nonsense") }, mtls.ErrCRL, "there is none"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, secret.LayoutExported)
			first := w.first()
			c.change(w, first.Serial)
			result := w.must(Options{}, Failed)
			if !errors.Is(result.Err, c.want) || w.currentSerial() != first.Serial {
				t.Errorf("%v, want %v; %s is current", result.Err, c.want, w.currentSerial())
			}
			says(t, result.Error, c.says)
		})
	}
}

// TestByHandMeanwhile leaves alone what somebody makes current while nobody serves what was rotated.
func TestByHandMeanwhile(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	first := w.first()
	value, _, err := w.files.Read(t.Context(), w.target.Secret, first.Version)
	if err != nil {
		t.Fatal(err)
	}
	w.fleet.refuses = func(serial string) bool { return serial != first.Serial }
	w.config.Progress = func(_ string, step Step, _ string) {
		if step != StepObserve {
			return
		}
		_, err := w.files.Stage(t.Context(), w.target.Secret, "by-hand", value)
		if err == nil {
			err = w.files.Promote(t.Context(), w.target.Secret, "by-hand")
		}
		if err != nil {
			t.Error(err)
		}
	}
	result := w.must(Options{Force: true}, Failed)
	says(t, result.Error, "somebody has made the version by-hand current meanwhile")
	w.config.Progress, w.fleet.refuses = nil, nil
	if result := w.must(Options{}, Nothing); result.Version != "by-hand" {
		t.Errorf("%+v", result)
	}
	w.check()
}

// TestStartAfterAWayBack ends a way back without looking at anybody, and rotates what is due: a mesh starts.
func TestStartAfterAWayBack(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	first := w.first()
	w.fleet.refuses = func(serial string) bool { return serial != first.Serial }
	w.config.Timeout = 20 * time.Millisecond
	if _, died := w.dying(&mortal{at: 8}, Options{Force: true}); !died {
		t.Fatal("it did not die")
	}
	if s := ReadStatus(t.Context(), w.target); s.Step != StepRollback {
		t.Fatalf("it died elsewhere: %+v", s)
	}
	w.fleet.blind = errors.New("nobody is there yet")
	result := w.must(Options{NoDeploy: true}, Nothing)
	says(t, result.Notes[0], "the rotation before had failed", "not every endpoint serves")
	if s := ReadStatus(t.Context(), w.target); s.Failures != 1 || s.Serial != first.Serial {
		t.Errorf("%+v", s)
	}
	w.check()
}
