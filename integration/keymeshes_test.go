package integration

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// keyMesh is a mesh whose every place is searched for keys.
type keyMesh struct {
	name string
	spec func(self string) string
	// rotation waits for other certificates everywhere; traffic carries a request to every application.
	traffic, rotation func(t *testing.T, mesh *running)
	// stored adds the secrets that lie in stores below the directory of the specification; nil: there are none.
	stored func(t *testing.T, dir string, search *needles)
	// files is how many files hold a key at least: the search knows these keys.
	files int
}

// keyMeshes are the meshes. One more is one more line.
func keyMeshes() []keyMesh {
	return []keyMesh{
		{"agents", specOf("web", agentDelivery, "builtin", "builtin"), everyApplication(2), everyRenewal, nil, 9},
		{"engines", specOf("web", agentDelivery, "nginx", "haproxy"), everyApplication(2), everyRenewal, nil, 13},
		{"stores", specOf("web", storeDelivery, "nginx", "haproxy", "nginx"), everyApplication(3), everyRotation, storedSecrets, 18},
	}
}

// How the certificates of the n-th service come. The layouts are all that there are, by turns.
func agentDelivery(int) string { return "{type: agent}" }

func storeDelivery(n int) string {
	layout := []string{"json", "exported", "separate"}[n%3]
	return fmt.Sprintf(`{type: store, store: vault, secret: "{mesh}/{service}", bundle: "{mesh}/bundle", layout: %s}`, layout)
}

// specOf is a mesh of a gateway in front of services on these engines.
func specOf(prefix string, delivery func(n int) string, engines ...string) func(self string) string {
	return func(self string) string {
		var services, routes strings.Builder
		for n, engine := range engines {
			fmt.Fprintf(&services, `
  %[1]s%[2]d:
    ports: [{port: %[3]d, protocol: http}]
    proxy: {engine: %[4]s}
    delivery: %[5]s
    run: {command: [%[6]q], env: {%[7]s: http, %[8]s: "${APP_ADDRESS}"}}
`, prefix, n, 9080+n, engine, delivery(n), self, envRole, envListen)
			fmt.Fprintf(&routes, "\n      - {match: {prefix: /%[1]d}, to: [{service: %[2]s%[1]d}]}", n, prefix)
		}
		stores := ""
		if strings.Contains(services.String(), "store: vault") {
			stores = "stores: {vault: {type: file, dir: vault, identityFile: vault-identity.txt}}\n"
		}
		return fmt.Sprintf(`mesh: searched
certificates: {ttl: 60s, renewAfter: 6s}
%sservices:%s
gateways:
  door:
    listen: [{port: 8080, protocol: http}]
    routes:%s
`, stores, services.String(), routes.String())
	}
}

// everyApplication asks each of the services, and looks at every endpoint.
func everyApplication(services int) func(t *testing.T, mesh *running) {
	return func(t *testing.T, mesh *running) {
		t.Helper()
		for n := range services {
			get(t, fmt.Sprintf("http://%s/%d", mesh.inbound(t, "door", 8080), n))
		}
		mesh.admin(t, "verify")
	}
}

// everyRenewal waits until each instance has another certificate.
func everyRenewal(t *testing.T, mesh *running) {
	t.Helper()
	before := mesh.status(t)
	await(t, "a renewal of every instance", func() (bool, string) {
		now := mesh.status(t)
		for name, row := range before {
			if now[name].Serial == row.Serial {
				return false, name + " has still " + row.Serial
			}
		}
		return true, ""
	})
}

// everyRotation rotates what comes out of stores: each endpoint has to be seen with its new certificate.
func everyRotation(t *testing.T, mesh *running) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		got := mesh.inside(t, "rotate", "once", "--force")
		switch held := strings.Contains(got.stderr, "is held by"); { // by the daemon, which works on it at this moment
		case got.status == 0:
			return
		case !held || time.Now().After(deadline):
			t.Fatalf("status %d\n%s%s", got.status, got.stdout, got.stderr)
		}
	}
}

// storedSecrets adds the keys and passphrases of the store, current and previous, as a person gets them.
func storedSecrets(t *testing.T, dir string, search *needles) {
	t.Helper()
	store := []string{"--store", "file:" + filepath.Join(dir, "vault"), "--identity-file", filepath.Join(dir, "vault-identity.txt")}
	value := func(name, version string) string {
		got := countersign(t, append([]string{"secret", "get", name, "--private-key", "--version", version}, store...)...)
		if got.status != 0 && version == "current" {
			t.Fatalf("secret get %s: status %d\n%s", name, got.status, got.stderr)
		}
		return got.stdout
	}
	for _, version := range []string{"current", "previous"} {
		var fields map[string]string
		if text := value("searched/web0", version); text != "" {
			if err := json.Unmarshal([]byte(text), &fields); err != nil {
				t.Fatalf("the layout json: %v", err)
			}
		}
		passphrase := value("searched/web1/passphrase", version)
		search.text("a passphrase in the store", strings.TrimSpace(passphrase))
		for _, text := range []string{fields["key_pem"], value("searched/web2/key_pem", version)} {
			block, _ := pem.Decode([]byte(text))
			if block == nil {
				if version == "current" {
					t.Fatal("a secret of the store holds no key in PEM")
				}
				continue
			}
			key, err := parseKey(block.Bytes)
			if err == nil {
				err = search.key("a key in the store", key)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if version == "current" && len(passphrase) < 16 {
			t.Fatalf("the passphrase in the store has %d characters", len(passphrase))
		}
	}
}
