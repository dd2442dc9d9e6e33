package rig

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Every template is filled without a gap, and the programs that are here accept what comes of it as
// far as they can tell without its certificates.
func TestConfigurations(t *testing.T) {
	e := endpoints{
		HTTP: "127.0.0.1:1", GRPC: "127.0.0.1:2", TCP: "127.0.0.1:3", PeerHTTP: "127.0.0.1:4", PeerGRPC: "127.0.0.1:5", PeerTCP: "127.0.0.1:6",
		AppHTTP: "127.0.0.1:7", AppGRPC: "127.0.0.1:8", AppTCP: "127.0.0.1:9",
	}
	identity := Identity{Chain: "chain.pem", Key: "key.pem", CA: "ca.pem", Both: "both.pem"}
	base := nginxBase{Dir: "dir", Files: 20000, Root: true, StreamModule: "stream.so"}
	peer := peerConfig{nginxBase: base, endpoints: e, Client: identity, Server: identity, ServerDNS: ServerDNS, Stream: true}
	dutiful := peer
	dutiful.Duties = true
	for name, test := range map[string]struct {
		template string
		data     any
		want     []string
	}{
		"the origin":               {"nginx-origin.conf", originConfig{nginxBase: base, HTTP: e.HTTP, Small: "xxx"}, []string{"listen 127.0.0.1:1", `return 200 "xxx"`}},
		"NGINX, connecting":        {"nginx-connecting.conf", peer, []string{"proxy_ssl_verify on", "grpc_ssl_verify on", "proxy_ssl_name " + ServerDNS, "proxy_pass 127.0.0.1:6"}},
		"NGINX, receiving":         {"nginx-receiving.conf", peer, []string{"ssl_verify_client on", "ssl_ecdh_curve X25519", "proxy_pass 127.0.0.1:9"}},
		"HAProxy, connecting":      {"haproxy.cfg", halfConfig{peerConfig: peer, Connecting: true}, []string{"mode http", "maxconn 19000", "verifyhost " + ServerDNS, "bind 127.0.0.1:2 backlog 4096 proto h2"}},
		"HAProxy, receiving, TCP":  {"haproxy.cfg", halfConfig{peerConfig: peer, PassThrough: true}, []string{"verify required", "bind 127.0.0.1:4"}},
		"NGINX, with duties":       {"nginx-receiving.conf", dutiful, []string{"access_log /dev/stdout duties", "if ($known = 0) { return 403; }", "limit_except GET POST", "limit_except POST", "grpc_set_header X-Client-Cert", `"caller":"$ssl_client_s_dn"`, `"admitted":"$known"`, "proxy_pass $to"}},
		"HAProxy, with duties":     {"haproxy-duties.cfg", halfConfig{peerConfig: peer}, []string{"mode http", "log global", "http-request deny unless { var(txn.admitted) -m found }", "acl methods method GET POST", "tcp-request content reject unless"}},
		"HAProxy, and its log":     {"haproxy-duties.cfg", halfConfig{peerConfig: peer, Connecting: true}, []string{"mode http", `"direction":"outbound"`, `"end":"%ts"`}},
		"Envoy, connecting":        {"envoy.yaml", halfConfig{peerConfig: peer, Connecting: true}, []string{"HttpConnectionManager", "exact: " + ServerDNS, "port_value: 6"}},
		"Envoy, receiving, as TCP": {"envoy.yaml", halfConfig{peerConfig: peer, PassThrough: true}, []string{"require_client_certificate: true", "TcpProxy", "port_value: 9"}},
	} {
		path, err := configure(t.TempDir(), test.template, test.data)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range test.want {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s lacks %q:\n%s", name, want, text)
			}
		}
		if strings.Contains(string(text), "<no value>") || strings.Contains(string(text), "{{") {
			t.Errorf("%s has a gap:\n%s", name, text)
		}
		if test.template == "haproxy.cfg" && strings.Contains(string(text), "mode http") == strings.Contains(name, "TCP") {
			t.Errorf("%s is of the wrong mode:\n%s", name, text)
		}
	}
}

// The rendered sidecars get the mesh that the others have by hand.
func TestRenderedSpecification(t *testing.T) {
	spec := renderedSpecification(endpoints{
		HTTP: "127.0.0.1:1001", GRPC: "127.0.0.1:1002", TCP: "127.0.0.1:1003", PeerHTTP: "127.0.0.1:1004", PeerGRPC: "127.0.0.1:1005", PeerTCP: "127.0.0.1:1006",
		AppHTTP: "127.0.0.1:1007", AppGRPC: "127.0.0.1:1008", AppTCP: "127.0.0.1:1009",
	})
	for _, want := range []string{
		"{service: server, port: 1004, listen: 1001}", "{service: server, port: 1005, listen: 1002}", "{service: server, port: 1006, listen: 1003}",
		"{port: 1004, protocol: http, app: 1007,", "{port: 1005, protocol: grpc, app: 1008,", "{port: 1006, protocol: tcp, app: 1009,",
		"tlsGroups: [x25519]",
	} {
		if !strings.Contains(spec, want) {
			t.Errorf("it lacks %q:\n%s", want, spec)
		}
	}
}

// Certificates lie where `countersign init` would put them, for their owner alone.
func TestCertificates(t *testing.T) {
	from := t.TempDir()
	identity := Identity{Chain: filepath.Join(from, "chain"), Key: filepath.Join(from, "key"), CA: filepath.Join(from, "ca"), Both: filepath.Join(from, "both")}
	for _, path := range []string{identity.Chain, identity.Key, identity.CA, identity.Both} {
		if err := os.WriteFile(path, []byte(filepath.Base(path)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(t.TempDir(), "certs")
	if err := certificates(dir, identity); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"cert.pem": "chain", "key.pem": "key", "ca.pem": "ca", "cert-and-key.pem": "both"} {
		path := filepath.Join(dir, "current", name)
		text, err := os.ReadFile(path)
		if info, statErr := os.Stat(path); err != nil || statErr != nil || string(text) != want || info.Mode().Perm() != 0o600 {
			t.Errorf("%s is %q of mode %v (%v)", name, text, info, err)
		}
	}
}

func TestPorts(t *testing.T) {
	addresses, err := Ports(20)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, address := range addresses {
		if seen[address] || port(address) == "0" {
			t.Errorf("%s among %v", address, addresses)
		}
		seen[address] = true
	}
}

// What was started is ended by Close, also when it does not listen to SIGTERM.
func TestCloseEndsChildren(t *testing.T) {
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Skipf("NOT TESTED: %v", err)
	}
	dir := filepath.Join(t.TempDir(), "rig")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r := &Rig{Dir: dir}
	obedient, err := r.start(t.Context(), "obedient", shell, "-c", "echo begun; exec sleep 1000")
	if err != nil {
		t.Fatal(err)
	}
	gone, err := r.start(t.Context(), "gone", shell, "-c", "echo last words; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	<-gone.done
	if err := gone.Ended(); err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(gone.Tail(), "last words") {
		t.Errorf("%v, %q", err, gone.Tail())
	}
	if err := accepting(t.Context(), gone, "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "last words") {
		t.Errorf("waiting for a process that has ended: %v", err)
	}
	if err := obedient.Ended(); err != nil {
		t.Errorf("it has not been stopped: %v", err)
	}
	began := time.Now()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if obedient.Ended() == nil {
		t.Errorf("it runs on after %s", time.Since(began))
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory is left: %v", err)
	}
}

func TestCopyTree(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "copy")
	if err := os.MkdirAll(filepath.Join(from, "a", "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(from, "a", "b", "key"), []byte("k"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := copyTree(from, to); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{"": 0o700, "a": 0o700, "a/b/key": 0o600} {
		info, err := os.Stat(filepath.Join(to, path))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%q: %v, %v", path, info, err)
		}
	}
	if text, err := os.ReadFile(filepath.Join(to, "a/b/key")); err != nil || string(text) != "k" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestStranger(t *testing.T) {
	certificate, err := Stranger()
	if err != nil || len(certificate.Certificate) != 1 || certificate.PrivateKey == nil {
		t.Errorf("%+v, %v", certificate, err)
	}
}

func TestRaiseLimit(t *testing.T) {
	first, err := raiseLimit()
	if err != nil || first < 256 {
		t.Fatalf("%d files may be open, %v", first, err)
	}
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Skipf("NOT TESTED: %v", err)
	}
	out, err := exec.Command(shell, "-c", "ulimit -n").Output()
	if err != nil || strings.TrimSpace(string(out)) != strconv.Itoa(first) {
		t.Errorf("a child may open %q, not %d; %v", out, first, err)
	}
}
