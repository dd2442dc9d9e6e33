package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign.dev/aws/acmpca"
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
	estimates := w.estimates(t.Context(), targets, results)
	if err := printCosts(&out, estimates); err != nil {
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
	text, err := json.Marshal(trialResults(estimates, results))
	if err != nil {
		t.Fatal(err)
	}
	small3 := `"mode":"short-lived","usd":0.058,"pricesOf":"` + acmpca.PricesOf + `","refused":%t,"budget":{"month":"2027-03","used":2,"limit":3}}`
	for _, want := range []string{
		`[{"service":"a","secret":"","outcome":"would rotate","issue":{"authority":"small",` + fmt.Sprintf(small3, false),
		`{"service":"b","secret":"","outcome":"would rotate","issue":{"authority":"small",` + fmt.Sprintf(small3, true),
		`"mode":"general-purpose","usd":0.75,`, `"refused":false,"budget":{"month":"2027-03","used":0,"limit":2000}}`,
		`{"service":"e","secret":"","outcome":"nothing"},{"secret":"m/bundle","outcome":"would rotate"}]`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s is not in:\n%s", want, text)
		}
	}
	out.Reset()
	budgets := w.spending(t.Context(), targets[:3])
	if err := printBudgets(&out, budgets); err != nil || out.String() != "\nauthority small: 2 of the 3 certificates of 2027-03 are spent\n" {
		t.Errorf("the budgets of a, b and c: %q, %v", out.String(), err)
	}
	text, err = json.Marshal(withBudgets(targets[:1], []rotate.Status{{Service: "a"}}, budgets))
	if err != nil || !strings.Contains(string(text), `"authority":"small","budget":{"month":"2027-03","used":2,"limit":3}}]`) {
		t.Errorf("%s, %v", text, err)
	}
	out.Reset()
	none := newCloud(nil).estimates(t.Context(), targets, results)
	if err := printCosts(&out, none); err != nil || out.Len() > 0 {
		t.Errorf("without an authority of AWS: %q, %v", out.String(), err)
	}
	if trial := trialResults(none, results); trial[0].Issue != nil {
		t.Errorf("without an authority of AWS: %+v", trial[0].Issue)
	}
}

// TestCostsUnread proves that nothing is said to be issued when the budget cannot be read.
func TestCostsUnread(t *testing.T) {
	store := testStore(t)
	id, err := store.Stage(t.Context(), "m/pca.budget", "", []byte("{}"))
	if err == nil {
		err = store.Replace(t.Context(), "m/pca.budget", id, "")
	}
	if err != nil {
		t.Fatal(err)
	}
	w := newCloud(nil)
	w.issuers["pca"] = &issuer{budget: budget.New(store, "m/pca.budget", 3, nil)}
	target := rotate.Target{Workload: mesh.Workload{Name: "a"}}
	target.Certificate.Authority = "pca"
	results := []rotate.Result{{Service: "a", Outcome: rotate.WouldRotate}}
	estimates := w.estimates(t.Context(), []rotate.Target{target}, results)
	var out bytes.Buffer
	if err := printCosts(&out, estimates); err != nil || !strings.Contains(out.String(), "; nothing will be: the count of certificates m/pca.budget cannot be read") {
		t.Errorf("%q, %v", out.String(), err)
	}
	out.Reset()
	budgets := w.spending(t.Context(), []rotate.Target{target})
	if err := printBudgets(&out, budgets); err != nil || !strings.Contains(out.String(), "authority pca: the count of certificates m/pca.budget cannot be read") {
		t.Errorf("%q, %v", out.String(), err)
	}
	if all := withBudgets([]rotate.Target{target}, []rotate.Status{{Service: "a"}}, budgets); !strings.Contains(all[0].Budget.Error, "cannot be read") {
		t.Errorf("%+v", all)
	}
	if issue := trialResults(estimates, results)[0].Issue; issue == nil || !issue.Refused || !strings.Contains(issue.Budget.Error, "cannot be read") {
		t.Errorf("%+v", issue)
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

// TestRegionOfECS asserts that a service of ECS is looked for where the store of its secret is, else in the region of the environment,
// and only where neither is known in that of the private CA: a CA that is shared may be elsewhere.
func TestRegionOfECS(t *testing.T) {
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, scope, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
		if parts := strings.Split(scope, "/"); len(parts) > 2 {
			asked = append(asked, parts[2])
		}
		w.WriteHeader(http.StatusBadRequest)
	}))
	defer server.Close()
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL": server.URL, "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "",
		"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_PROFILE": "", "AWS_MAX_ATTEMPTS": "1",
	} {
		t.Setenv(name, value)
	}
	for _, test := range []struct{ store, environment, authority, want string }{
		{"eu-central-1", "eu-north-1", "eu-west-1", "eu-central-1"},
		{"", "eu-north-1", "eu-west-1", "eu-north-1"},
		{"", "", "eu-west-1", "eu-west-1"},
	} {
		t.Setenv("AWS_REGION", test.environment)
		plan := &mesh.Plan{ECS: &mesh.ECSDeploy{Cluster: "c", Service: "s"}}
		plan.Delivery.Store.Region = test.store
		service, err := newCloud(nil).service(t.Context(), plan, mesh.Authority{Region: test.authority})
		if err != nil {
			t.Errorf("%+v: %v", test, err)
			continue
		}
		asked = nil
		_, _ = service.Running(t.Context()) // it is refused
		if len(asked) == 0 || asked[0] != test.want {
			t.Errorf("%+v: %q was asked", test, asked)
		}
	}
}
