package rotate

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"countersign.dev/secret"
)

// books is an authority that knows what it has issued.
type books struct {
	*authority
	issued []string
	err    error
}

func (b *books) Issued(_ context.Context, serial string) (bool, error) {
	return slices.Contains(b.issued, serial), b.err
}

// TestForeign leaves a version alone that another mesh uses.
func TestForeign(t *testing.T) {
	for _, layout := range []secret.Layout{secret.LayoutJSON, secret.LayoutSeparate} {
		t.Run(string(layout), func(t *testing.T) {
			w := newWorld(t, layout)
			first := w.first()
			before, _, err := w.files.Read(t.Context(), w.target.Secret+stateSuffix, "")
			if err != nil {
				t.Fatal(err)
			}
			mine := w.authority.signer
			w.authority.signer = newHierarchy(t, "second")
			w.authority.bundle = []*hierarchy{w.authority.signer}
			for _, o := range []Options{{}, {NoDeploy: true}, {DryRun: true}} {
				result := w.must(o, Failed)
				if !errors.Is(result.Err, ErrForeign) {
					t.Fatalf("%v, want ErrForeign", result.Err)
				}
				says(t, result.Error, "at the step look", "the store vault", `"first root"`, "another store", "--state", "--force")
			}
			if after, _, err := w.files.Read(t.Context(), w.target.Secret+stateSuffix, ""); err != nil || string(after) != string(before) {
				t.Errorf("the record became %s, %v", after, err)
			}
			if got := w.currentSerial(); got != first.Serial || w.authority.issued() != 1 {
				t.Errorf("%s is current, want %s; %d were issued", got, first.Serial, w.authority.issued())
			}

			w.config.Authority = &books{authority: w.authority, err: errors.New("the server is away")}
			says(t, w.must(Options{DryRun: true}, Failed).Error, "the server is away")
			w.config.Authority = &books{authority: w.authority}
			w.must(Options{DryRun: true}, Failed)
			w.config.Authority = &books{authority: w.authority, issued: []string{first.Serial}} // its root was removed
			says(t, w.must(Options{DryRun: true}, WouldRotate).Reason, "first root")
			w.config.Authority = retiring{w.authority, mine.rootPEM}
			says(t, w.must(Options{DryRun: true}, WouldRotate).Reason, "first root")
			w.config.Authority = w.authority

			w.config.Now = func() time.Time { return time.Now().Add(2 * time.Hour) } // nobody can use it any more
			says(t, w.must(Options{DryRun: true}, WouldRotate).Reason, "what is current will not do")
			w.config.Now = nil
			w.must(Options{Force: true}, Rotated)
			w.check()
			w.must(Options{}, Nothing)
		})
	}
}

// retiring is an authority that knows one more root than it trusts.
type retiring struct {
	*authority
	root []byte
}

func (r retiring) Trust(ctx context.Context) (Trust, error) {
	trust, err := r.authority.Trust(ctx)
	trust.Known = r.root
	return trust, err
}
