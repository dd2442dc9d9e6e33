package rotate

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"countersign.dev/mesh"
	"countersign.dev/secret"
)

// token is an id that somebody else has chosen.
const token = "c8a55f1e-6c1e-4a3b-9a37-4b8a8a7d9f10"

func TestOrderedSteps(t *testing.T) {
	for _, layout := range []secret.Layout{secret.LayoutJSON, secret.LayoutExported} {
		w := newWorld(t, layout)
		w.config.Timeout = 30 * time.Second
		first := w.first()
		r := w.rotator()
		for range 2 {
			got := r.Obtain(t.Context(), w.target, token)
			if got.Err != nil || got.Outcome != Staged || got.Version != token || got.Serial == first.Serial {
				t.Fatalf("%s: %+v", layout, got)
			}
			if err := r.Check(t.Context(), w.target, token); err != nil {
				t.Errorf("%s: %v", layout, err)
			}
		}
		if w.currentSerial() != first.Serial || w.authority.issued() != 2 {
			t.Errorf("%s: what was only asked for is current, or there are %d certificates", layout, w.authority.issued())
		}
		// A pass of the schedule in between leaves it alone.
		w.must(Options{}, Nothing)
		got := r.Bring(t.Context(), w.target, token, Options{})
		if got.Err != nil || got.Outcome != Rotated || got.Version != token || len(got.Seen) == 0 {
			t.Fatalf("%s: %+v", layout, got)
		}
		if again := r.Bring(t.Context(), w.target, token, Options{}); again.Err != nil || again.Outcome != Nothing {
			t.Errorf("%s: brought twice: %+v", layout, again)
		}
		if again := r.Obtain(t.Context(), w.target, token); again.Err != nil || again.Outcome != Nothing || w.authority.issued() != 2 {
			t.Errorf("%s: asked for what is current: %+v", layout, again)
		}
		versions, err := w.files.Versions(t.Context(), w.target.keySecret())
		if err != nil {
			t.Fatal(err)
		}
		for _, version := range versions {
			if strings.HasSuffix(version.ID, requestSuffix) {
				t.Errorf("%s: the request %s is still there", layout, version.ID)
			}
		}
		if w.run(Options{}).Version != token {
			t.Errorf("%s: the next pass has something to do", layout)
		}
	}
}

// Killed or refused in the middle, it goes on with the same request.
func TestOrderedObtainGoesOn(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	w.first()
	down := &refusing{authority: w.authority, why: errors.New("not now")}
	w.config.Authority = down
	r := w.rotator()
	got := r.Obtain(t.Context(), w.target, token)
	if got.Outcome != Failed || got.Err == nil {
		t.Fatalf("%+v", got)
	}
	down.why = nil
	material, _, err := w.files.Read(t.Context(), w.target.keySecret(), token+requestSuffix)
	if err != nil {
		t.Fatal(err)
	}
	request, ok := parsePending(material)
	if !ok {
		t.Fatal("no request was kept")
	}
	if got = r.Obtain(t.Context(), w.target, token); got.Outcome != Staged {
		t.Fatalf("%+v", got)
	}
	staged, err := w.target.Shape.Read(t.Context(), w.files, w.target.Secret, token)
	if err != nil || string(staged.Key) != request.Key {
		t.Errorf("another key was made, %v", err)
	}
	// The authority that will never answer is asked with another key the next time.
	const other = token + "-2"
	down.why = ErrRequest
	if got = r.Obtain(t.Context(), w.target, other); !errors.Is(got.Err, ErrRequest) {
		t.Errorf("%+v", got)
	}
	if _, _, err := w.files.Read(t.Context(), w.target.keySecret(), other+requestSuffix); !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("a request of no use is kept: %v", err)
	}
}

func TestOrderedStepsRefuse(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	first := w.first()
	r := w.rotator()
	if err := r.Check(t.Context(), w.target, token); !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("checking what is not there: %v", err)
	}
	if got := r.Bring(t.Context(), w.target, token, Options{}); !errors.Is(got.Err, ErrTooEarly) || !errors.Is(got.Err, secret.ErrNotFound) || w.currentSerial() != first.Serial {
		t.Errorf("bringing what is not there: %+v", got)
	}
	for _, version := range []string{"", "current", strings.Repeat("x", 61), "a/b"} {
		if got := r.Obtain(t.Context(), w.target, version); !errors.Is(got.Err, secret.ErrInvalid) {
			t.Errorf("the id %q: %+v", version, got)
		}
		if got := r.Bring(t.Context(), w.target, version, Options{}); version != strings.Repeat("x", 61) && !errors.Is(got.Err, secret.ErrInvalid) {
			t.Errorf("the id %q: %+v", version, got)
		}
		if err := r.Check(t.Context(), w.target, version); version != strings.Repeat("x", 61) && !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("the id %q: %v", version, err)
		}
	}
	// Something that is no credential.
	if _, err := w.files.Stage(t.Context(), w.target.Secret, token, []byte(`{"certificate":"x","private_key":"y"}`)); err != nil {
		t.Fatal(err)
	}
	if err := r.Check(t.Context(), w.target, token); err == nil {
		t.Error("it is no credential, and passes")
	}
	if got := r.Obtain(t.Context(), w.target, token); got.Err == nil || w.authority.issued() != 1 {
		t.Errorf("there is something under its id: %+v", got)
	}
	// An authority that makes keys itself.
	target := w.target
	target.Authority = alone{w.authority}
	if got := r.Obtain(t.Context(), target, token+"-2"); !errors.Is(got.Err, secret.ErrInvalid) || !strings.Contains(got.Error, "its own events") {
		t.Errorf("an authority that exports: %+v", got)
	}
}

// refusing is an authority that issues nothing as long as there is a reason.
type refusing struct {
	*authority
	why error
}

func (a *refusing) Issue(ctx context.Context, request Request) ([]byte, error) {
	if a.why != nil {
		return nil, a.why
	}
	return a.authority.Issue(ctx, request)
}

// alone is an authority that makes keys itself.
type alone struct{ *authority }

func (alone) Export(context.Context, Request) (*secret.Material, error) {
	return nil, errors.New("nobody is to ask")
}

func (alone) Newest(context.Context, mesh.Workload) (string, time.Time, error) {
	return "", time.Time{}, nil
}

// A version that nobody serves is taken back, and another rotation is not run into.
func TestOrderedBringGoesBack(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	first := w.first()
	r := w.rotator()
	if got := r.Obtain(t.Context(), w.target, token); got.Err != nil {
		t.Fatal(got.Err)
	}
	w.fleet.blind = errors.New("nobody can look")
	if got := r.Bring(t.Context(), w.target, token, Options{}); !errors.Is(got.Err, ErrNotObserved) {
		t.Fatalf("%+v", got)
	}
	if got := r.Obtain(t.Context(), w.target, token+"-2"); !errors.Is(got.Err, ErrBusy) {
		t.Errorf("a second one beside it: %+v", got)
	}
	w.fleet.blind = nil
	w.fleet.refuses = func(serial string) bool { return serial != first.Serial }
	if got := r.Bring(t.Context(), w.target, token, Options{}); got.Outcome != RolledBack || w.currentSerial() != first.Serial {
		t.Errorf("%+v", got)
	}
}
