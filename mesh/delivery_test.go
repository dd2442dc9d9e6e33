package mesh_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/engine"
	"countersign.dev/mesh"
	"countersign.dev/secret"
)

const delivered = `
mesh: m
revocation: check
stores: {vault: {type: file, dir: store, identityFile: /id.txt}}
services:
  a:
    proxy: {engine: nginx, version: 1.22.1}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}", layout: exported, bundle: "{mesh}/all", fields: {key: k}}
  b: {}
`

// TestDelivery proves what a Plan says about the proxy and how its certificate gets there, and that it
// says the defaults, too.
func TestDelivery(t *testing.T) {
	p := plan(t, delivered, "a")
	want := mesh.DeliveryPlan{
		Type: mesh.DeliverStore, StoreName: "vault", Store: mesh.Store{Type: mesh.StoreFile, Dir: "/spec/store", IdentityFile: "/id.txt"},
		Secret: "m/a", Layout: "exported", Bundle: "m/all", Fields: map[string]string{"key": "k"},
	}
	if diff := cmp.Diff(want, p.Delivery); diff != "" {
		t.Errorf("delivery (-want +got):\n%s", diff)
	}
	if p.Deploy != mesh.DeployReload || !p.Proxy.Real() || !p.Delivery.FromStore() {
		t.Errorf("deploy %q, proxy %+v", p.Deploy, p.Proxy)
	}
	shape, err := p.Delivery.Shape()
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"m/a/certificate", "m/a/chain", "m/a/k", "m/a/passphrase"}
	if diff := cmp.Diff(names, shape.Names(p.Delivery.Secret)); diff != "" {
		t.Errorf("the secret's names (-want +got):\n%s", diff)
	}
	for layout, names := range map[string][]string{"separate": {"m/a/cert_pem", "m/a/k"}, "json": {"m/a"}} { // the roots stand in m/all
		p = plan(t, strings.Replace(delivered, "exported", layout, 1), "a")
		if shape, err := p.Delivery.Shape(); err != nil || !slices.Equal(shape.Names(p.Delivery.Secret), names) {
			t.Errorf("%s: the secret's names are %q, %v", layout, shape.Names(p.Delivery.Secret), err)
		}
	}
	p = plan(t, delivered, "b")
	if p.Proxy != (mesh.ProxyPlan{Engine: mesh.EngineBuiltin}) || p.Delivery.Type != mesh.DeliverAgent || p.Deploy != "" || p.Proxy.Real() || p.Delivery.FromStore() {
		t.Errorf("the defaults are %+v, %+v, %q", p.Proxy, p.Delivery, p.Deploy)
	}
	if p.Revocation != (mesh.RevocationPlan{Check: true, Stale: mesh.StaleRefuse}) {
		t.Errorf("revocation is %+v", p.Revocation)
	}
	if p := plan(t, strings.Replace(delivered, "revocation: check", "revocation: none", 1), "b"); p.Revocation != (mesh.RevocationPlan{}) {
		t.Errorf("revocation: none is %+v", p.Revocation)
	}
}

// TestOlderPlan reads what a program wrote that knew of no other proxies: nothing that it did not say
// becomes true, and nothing that it never had is written.
func TestOlderPlan(t *testing.T) {
	var p mesh.Plan
	if err := json.Unmarshal([]byte(`{"version": 1, "mesh": "m"}`), &p); err != nil {
		t.Fatal(err)
	}
	if p.Proxy.Real() || p.Delivery.FromStore() || p.Revocation.Check {
		t.Errorf("read as %+v", p)
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{`"proxy"`, `"delivery"`, `"deploy"`, `"revocation"`, `"authority"`} {
		if strings.Contains(string(text), key) {
			t.Errorf("%s stands in %s", key, text)
		}
	}
}

// TestSameWords proves that what the table says about versions and secrets is what the packages that
// use them say.
func TestSameWords(t *testing.T) {
	for _, version := range []string{"1.22.1", "2.6", "1", "1.2.3.4", "12345.1", "", "1.22.1-deb", "01.2"} {
		if got := accepts(t, "services: {a: {proxy: {engine: nginx, version: "+quoted(version)+"}}}"); got != engine.IsVersion(version) {
			t.Errorf("the version %q: accepted %t, want %t", version, got, !got)
		}
	}
	for _, name := range []string{"a", "a/b", "a_+=@.-/b", ".a", "a/.b", "-a", "a//b", "/a", "a/", "a b", "ü", "{", strings.Repeat("a", 200), strings.Repeat("a", 201)} {
		text := "stores: {s: {type: file, dir: s, identityFile: i}}\nservices: {a: {proxy: {engine: nginx}, delivery: {type: store, store: s, secret: " + quoted(name) + "}}}"
		if got := accepts(t, text); got != (secret.CheckName(name) == nil) {
			t.Errorf("the secret %q: accepted %t, want %t", name, got, !got)
		}
	}
}

func quoted(s string) string {
	text, _ := json.Marshal(s)
	return string(text)
}

// accepts tells whether a mesh is valid.
func accepts(t *testing.T, text string) bool {
	t.Helper()
	_, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Directory: "/spec", Content: "mesh: m\n" + text}})
	return err == nil
}
