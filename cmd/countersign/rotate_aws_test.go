package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign.dev/budget"
	"countersign.dev/mesh"
	"countersign.dev/rotate"
	"countersign.dev/secret/filestore"
)

// testStore makes a store.
func testStore(t *testing.T) *filestore.Store {
	t.Helper()
	file := filepath.Join(t.TempDir(), "id.age")
	if err := filestore.GenerateIdentity(file); err != nil {
		t.Fatal(err)
	}
	identity, err := filestore.LoadIdentity(file)
	if err != nil {
		t.Fatal(err)
	}
	store, err := filestore.Create(filepath.Join(t.TempDir(), "store"), identity)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// TestCosts proves that a trial run counts the certificates of each authority, and says what of them the budget refuses.
func TestCosts(t *testing.T) {
	store := testStore(t)
	now := func() time.Time { return time.Date(2027, 3, 4, 5, 6, 7, 0, time.UTC) }
	small, large := budget.New(store, "m/small.budget", 3, now), budget.New(store, "m/large.budget", 2000, now)
	for _, id := range []string{"one", "two"} {
		if err := small.Spend(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	w := newCloud(nil)
	w.issuers["small"] = &issuer{declared: mesh.Authority{Mode: mesh.ModeShortLived}, budget: small}
	w.issuers["large"] = &issuer{declared: mesh.Authority{Mode: mesh.ModeGeneralPurpose}, budget: large}
	var targets []rotate.Target
	var results []rotate.Result
	for _, of := range [][2]string{{"a", "small"}, {"b", "small"}, {"c", "small"}, {"d", "large"}, {"e", "large"}} {
		target := rotate.Target{Workload: mesh.Workload{Name: of[0]}}
		target.Certificate.Authority = of[1]
		targets = append(targets, target)
		outcome := rotate.WouldRotate
		if of[0] == "e" {
			outcome = rotate.Nothing
		}
		results = append(results, rotate.Result{Service: of[0], Outcome: outcome})
	}
	results = append(results, rotate.Result{Secret: "m/bundle", Outcome: rotate.WouldRotate})
	var out bytes.Buffer
	if err := w.costs(t.Context(), &out, targets, results); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"authority large: 1 certificate would be issued; of the budget of 2000 for 2027-03 0 are spent; $0.75 each",
		"about $0.75 together; the CA itself (general-purpose) $400 a month\n",
		"authority small: 3 certificates would be issued; of the budget of 3 for 2027-03 2 are spent, so that the last 2 are refused; $0.058 each, about $0.17 together",
		"US East; an estimate.\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in:\n%s", want, out.String())
		}
	}
	out.Reset()
	if err := newCloud(nil).costs(t.Context(), &out, targets, results); err != nil || out.Len() > 0 {
		t.Errorf("without an authority of AWS: %q, %v", out.String(), err)
	}
}

// TestSameAuthority proves that an authority is opened anew when anything that is said about it changes.
func TestSameAuthority(t *testing.T) {
	is := mesh.Authority{
		Type: mesh.AuthorityACM, ARN: "a", Region: "r", Endpoint: "e", Mode: "m", Template: "t",
		Names: map[string]string{"a": "a.example"}, Budget: mesh.Budget{Certificates: 1, Store: "s"},
	}
	if !sameAuthority(is, is) {
		t.Error("it is not the same as itself")
	}
	for name, change := range map[string]func(*mesh.Authority){
		"type":     func(a *mesh.Authority) { a.Type = mesh.AuthorityACMPCA },
		"arn":      func(a *mesh.Authority) { a.ARN = "b" },
		"region":   func(a *mesh.Authority) { a.Region = "q" },
		"endpoint": func(a *mesh.Authority) { a.Endpoint = "" },
		"mode":     func(a *mesh.Authority) { a.Mode = "" },
		"template": func(a *mesh.Authority) { a.Template = "" },
		"names":    func(a *mesh.Authority) { a.Names = map[string]string{"a": "b.example"} },
		"none":     func(a *mesh.Authority) { a.Names = nil },
		"budget":   func(a *mesh.Authority) { a.Budget.Certificates = 2 },
		"store":    func(a *mesh.Authority) { a.Budget.Store = "t" },
	} {
		other := is
		change(&other)
		if sameAuthority(is, other) || sameAuthority(other, is) {
			t.Errorf("another %s is not seen", name)
		}
	}
}
