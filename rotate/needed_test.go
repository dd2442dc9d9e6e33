package rotate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"countersign.dev/mtls"
	"countersign.dev/secret"
)

// two is a world of two services that share a bundle, each with an authority of its own.
type two struct {
	*world
	targets []Target
	next    *authority
}

func newTwo(t *testing.T) *two {
	t.Helper()
	w := &two{world: newWorld(t, secret.LayoutExported)}
	h := newHierarchy(t, "second")
	w.next = &authority{t: t, signer: h, bundle: []*hierarchy{h}, answers: map[string][]byte{}}
	carts := w.target
	carts.Workload.Name, carts.Secret = "carts", "shop/carts"
	w.targets = []Target{w.target, carts}
	w.of(w.authority, "orders", "carts")
	return w
}

// of has services get their certificates from an authority.
func (w *two) of(a *authority, services ...string) {
	for i := range w.targets {
		for _, name := range services {
			if t := &w.targets[i]; t.Workload.Name == name {
				t.Authority, t.Certificate.Authority = a, a.signer.root.Subject.CommonName
				t.Observer = stored{w.world, *t}
			}
		}
	}
}

// stored sees an instance that serves whatever is current.
type stored struct {
	w *world
	t Target
}

func (s stored) Look(ctx context.Context, _ Target) ([]Sighting, error) {
	return []Sighting{{Instance: "1", Endpoint: "e", Serial: ReadStatus(ctx, s.t).Serial, By: ByHandshake}}, nil
}

// all rotates, and gives the results by the outcome: of the bundle, of orders, of carts.
func (w *two) all(o Options, want ...Outcome) []Result {
	w.t.Helper()
	results := w.rotator().RotateAll(w.t.Context(), w.targets, o)
	var got []Outcome
	for _, r := range results {
		got = append(got, r.Outcome)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		w.t.Errorf("%v, want %v: %+v", got, want, results)
	}
	return results
}

// under expects the roots of the bundle, and that the certificates that are current lead to them.
func (w *two) under(bundle, orders, carts string) {
	w.t.Helper()
	roots := w.bundle()
	slices.Sort(roots) // they lie in the order of their digests
	if got := fmt.Sprint(roots); got != bundle {
		w.t.Errorf("the bundle is %s, want %s", got, bundle)
	}
	for i, want := range []string{orders, carts} {
		m, err := w.targets[i].Shape.Read(w.t.Context(), w.files, w.targets[i].Secret, "")
		if err != nil {
			w.t.Fatal(err)
		}
		chain, err := mtls.ParseCertificates(append(m.Certificate, m.Chain...))
		if err != nil {
			w.t.Fatal(err)
		}
		if got := chain[len(chain)-1].Issuer.CommonName; got != want+" root" {
			w.t.Errorf("%s is under %q, want %s", w.targets[i].Workload.Name, got, want)
		}
	}
}

// TestAnotherAuthority moves services to another authority one after the other, each of which stays believed all the time.
func TestAnotherAuthority(t *testing.T) {
	w := newTwo(t)
	w.all(Options{}, Rotated, Rotated, Rotated)
	w.of(w.next, "carts")
	w.all(Options{}, Rotated, Nothing, Rotated)
	w.under("[first root second root]", "first", "second")
	w.all(Options{}, Nothing, Nothing, Nothing)

	w.of(w.next, "orders")
	results := w.all(Options{}, Nothing, Rotated, Nothing)
	says(t, fmt.Sprint(results[0].Notes), "stays until nobody needs it", "orders (serial ", `issued under "first root"`)
	w.under("[first root second root]", "second", "second")
	w.all(Options{}, Rotated, Nothing, Nothing)
	w.under("[second root]", "second", "second")
	w.all(Options{}, Nothing, Nothing, Nothing)
}

// TestAnotherAuthorityAtOnce is refused as long as nobody says that it is meant: it may be that of another mesh.
func TestAnotherAuthorityAtOnce(t *testing.T) {
	w := newTwo(t)
	w.all(Options{}, Rotated, Rotated, Rotated)
	w.of(w.next, "carts", "orders")
	results := w.all(Options{}, Failed, Failed, Failed)
	if !errors.Is(results[0].Err, ErrInUse) || !errors.Is(results[1].Err, ErrUnfit) || w.next.issued() != 0 {
		t.Errorf("%v, %v, and %d were issued", results[0].Err, results[1].Err, w.next.issued())
	}
	says(t, results[0].Error, "orders (serial ", "carts (serial ", "to one of the services alone", "--force")
	w.under("[first root]", "first", "first")
	results = w.all(Options{DryRun: true}, Failed, WouldRotate, WouldRotate)
	if !errors.Is(results[0].Err, ErrInUse) || results[0].Step != StepVerify {
		t.Errorf("a trial run: %s, %v", results[0].Step, results[0].Err)
	}
	w.all(Options{Force: true, DryRun: true}, WouldRotate, WouldRotate, WouldRotate)
	w.all(Options{Force: true}, Rotated, Rotated, Rotated)
	w.under("[first root second root]", "second", "second")
	w.all(Options{}, Rotated, Nothing, Nothing)
	w.under("[second root]", "second", "second")
}

// TestRootOfTheWayBack keeps the root of what a rotation in progress may go back to.
func TestRootOfTheWayBack(t *testing.T) {
	w := newTwo(t)
	w.all(Options{}, Rotated, Rotated, Rotated)
	w.of(w.next, "carts")
	w.all(Options{}, Rotated, Nothing, Rotated)
	w.of(w.next, "orders")
	// Nobody can look at orders, so that it is not known whether its new certificate is served.
	blind := errors.New("nobody can look")
	w.targets[0].Observer = blindly{blind}
	results := w.all(Options{}, Nothing, Failed, Nothing)
	if !errors.Is(results[1].Err, ErrNotObserved) {
		t.Fatal(results[1].Err)
	}
	w.under("[first root second root]", "second", "second")
	w.all(Options{}, Nothing, Failed, Nothing)
	w.under("[first root second root]", "second", "second")
	w.of(w.next, "orders")
	w.all(Options{}, Nothing, Rotated, Nothing)
	w.all(Options{}, Rotated, Nothing, Nothing)
	w.under("[second root]", "second", "second")
}

// TestRootOfTheUnread keeps a root while nobody knows whether it is needed: the store does not give the credential at this moment.
func TestRootOfTheUnread(t *testing.T) {
	w := newTwo(t)
	w.all(Options{}, Rotated, Rotated, Rotated)
	w.of(w.next, "carts")
	w.all(Options{}, Rotated, Nothing, Rotated)
	w.of(w.next, "orders")
	busy := errors.New("the store is busy")
	for _, secret := range []string{"shop/orders", "shop/orders.rotation"} {
		w.targets[0].Store = unreadable{w.files, secret, busy}
		results := w.all(Options{}, Failed, Failed, Nothing)
		if !errors.Is(results[0].Err, busy) || errors.Is(results[0].Err, ErrInUse) {
			t.Errorf("without %s: %v", secret, results[0].Err)
		}
		says(t, results[0].Error, "whether somebody still needs a root")
		if r := w.rotator().RotateBundle(t.Context(), SharedBundles(w.targets)[0], Options{DryRun: true}); r.Outcome != Failed || !errors.Is(r.Err, busy) {
			t.Errorf("a trial run without %s: %s, %v", secret, r.Outcome, r.Err)
		}
		w.under("[first root second root]", "first", "second")
	}
	w.targets[0].Store = w.files
	w.all(Options{}, Nothing, Rotated, Nothing)
	w.all(Options{}, Rotated, Nothing, Nothing)
	w.under("[second root]", "second", "second")
}

// unreadable is a store that does not give one secret, or what lies below its name.
type unreadable struct {
	Store
	name string
	err  error
}

func (u unreadable) Read(ctx context.Context, name, version string) ([]byte, string, error) {
	if name == u.name || strings.HasPrefix(name, u.name+"/") {
		return nil, "", u.err
	}
	return u.Store.Read(ctx, name, version)
}

// blindly is an observer that can see nothing.
type blindly struct{ error }

func (b blindly) Look(context.Context, Target) ([]Sighting, error) { return nil, b.error }
