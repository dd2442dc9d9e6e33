package rotate

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"testing"
	"time"

	"countersign.dev/mtls"
)

// always is an observer that sees the same, whatever is current.
type always []Sighting

func (a always) Look(context.Context, Target) ([]Sighting, error) { return a, nil }

// TestRootOfTheUnseen keeps the root of what instances present when the version that they have was replaced without a look at them, for as long as
// nobody has seen them all with another one.
func TestRootOfTheUnseen(t *testing.T) {
	for name, end := range map[string]func(w *two){
		"seen": func(w *two) { w.of(w.next, "orders") },
		"none": func(w *two) { w.targets[0].Observer = always(nil) },
		"over": func(w *two) {
			w.config.Now = func() time.Time { return time.Now().Add(time.Hour + time.Minute) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTwo(t)
			old := w.all(Options{}, Rotated, Rotated, Rotated)[1].Serial
			w.of(w.next, "carts")
			w.all(Options{}, Rotated, Nothing, Rotated)
			w.of(w.next, "orders")
			w.targets[0].Observer = always{{Instance: "1", Endpoint: "e", Serial: old, By: ByHandshake}}
			w.all(Options{NoDeploy: true}, Nothing, Promoted, Nothing)
			current := ReadStatus(t.Context(), w.targets[0]).Serial
			// Once more, so that the store has the old version no more.
			w.all(Options{NoDeploy: true, Early: true, Service: "orders"}, Nothing, Promoted)
			w.all(Options{NoDeploy: true, Early: true, Service: "orders"}, Nothing, Promoted)
			now := ReadStatus(t.Context(), w.targets[0]).Serial
			for _, c := range []struct {
				observer Observer
				says     string
			}{
				{w.targets[0].Observer, "1 was not seen with " + now},
				{always{{Instance: "1", Endpoint: "e", Serial: current, By: ByHandshake}}, "1 was not seen with " + now},
				{always{{Instance: "1", Serial: now, By: ByHandshake}, {Instance: "2", By: ByHandshake, Problem: "no answer"}}, "2 was not seen with " + now},
				{always{{Instance: "1", Serial: now, By: ByReport, Away: true}}, "1 is away"},
				{always{{Instance: "1", Serial: now, By: ByReport, Peers: old}}, "peers saw 1 present " + old},
				{blindly{errors.New("nobody can look")}, "nobody can look"},
			} {
				w.targets[0].Observer = c.observer
				results := w.all(Options{}, Nothing, Nothing, Nothing)
				says(t, fmt.Sprint(results[0].Notes), "stays until nobody needs it", "orders (instances may still present the serial "+old, `issued under "first root", valid to `, c.says)
				w.under("[first root second root]", "second", "second")
			}
			end(w)
			shared := SharedBundles(w.targets)[0]
			if r := w.rotator().RotateBundle(t.Context(), shared, Options{}); r.Outcome != Rotated || r.Err != nil {
				t.Errorf("%+v", r)
			}
			w.under("[second root]", "second", "second")
		})
	}
}

// TestRootOfTheTakenBack keeps the root of a version that was taken back, when not everybody was seen with the one of before.
func TestRootOfTheTakenBack(t *testing.T) {
	w := newTwo(t)
	w.all(Options{}, Rotated, Rotated, Rotated)
	w.of(w.next, "orders")
	w.targets[0].Observer = always{{Instance: "1", Endpoint: "e", Serial: "ab", By: ByHandshake}}
	results := w.all(Options{}, Rotated, RolledBack, Nothing)
	says(t, results[1].Error, "was not seen everywhere")
	w.of(w.authority, "orders")
	w.targets[0].Observer = blindly{errors.New("nobody can look")}
	w.all(Options{}, Nothing, Nothing, Nothing)
	w.under("[first root second root]", "first", "first")
	w.of(w.authority, "orders")
	w.all(Options{}, Rotated, Nothing, Nothing)
	w.under("[first root]", "first", "first")
}

// TestShown keeps few certificates, each for as long as it may be presented, and none once all were seen with another one.
func TestShown(t *testing.T) {
	w := newTwo(t)
	w.all(Options{NoDeploy: true}, Promoted, Promoted, Promoted)
	for range 3 {
		w.all(Options{NoDeploy: true, Early: true, Service: "orders"}, Nothing, Promoted)
	}
	record, err := readRecord(t.Context(), w.files, "shop/orders")
	if err != nil || len(record.Shown) != 1 || len(record.Shown[0].Roots) != 1 {
		t.Fatalf("%+v, %v", record.Shown, err)
	}
	// What has ended is forgotten when another one is added, and so is what leads to no root of the bundle.
	chain, err := w.rotator().chainOf(t.Context(), w.targets[0], "")
	if err != nil {
		t.Fatal(err)
	}
	later := record
	later.show(chain, []*x509.Certificate{w.next.signer.root}, time.Now())
	if len(later.Shown) != 1 {
		t.Errorf("of another root: %+v", later.Shown)
	}
	later.Shown = []Shown{{Serial: "ab", NotAfter: time.Now().Add(-time.Second), Roots: []string{"cd"}}}
	later.show(chain, []*x509.Certificate{w.authority.signer.root}, time.Now())
	if len(later.Shown) != 1 || later.Shown[0].Serial != mtls.Serial(chain[0]) {
		t.Errorf("after the end: %+v", later.Shown)
	}
	w.all(Options{Early: true, Service: "orders"}, Nothing, Rotated)
	if record, err = readRecord(t.Context(), w.files, "shop/orders"); err != nil || record.Shown != nil {
		t.Errorf("%+v, %v", record.Shown, err)
	}
}
