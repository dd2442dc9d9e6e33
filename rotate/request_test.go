package rotate

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"countersign.dev/mesh"
	"countersign.dev/secret"
)

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
