package integration

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign.dev/ca"
	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/journal"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/observe"
)

// testAuthority is a CA in a directory of the test's own.
type testAuthority struct {
	*ca.CA
	t   *testing.T
	log *journal.Log
}

func newTestAuthority(t *testing.T) *testAuthority {
	t.Helper()
	state := filepath.Join(t.TempDir(), "state")
	if _, err := ca.Init(state, ca.InitConfig{TrustDomain: "lab.internal", Seal: ca.Unsealed()}); err != nil {
		t.Fatal(err)
	}
	open, err := ca.Open(state, ca.Unsealed())
	if err != nil {
		t.Fatal(err)
	}
	log, err := ca.OpenJournal(state, ca.Unsealed())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	return &testAuthority{open, t, log}
}

// issue makes a certificate, its chain in PEM and its key in PEM.
func (a *testAuthority) issue(kind id.Kind, name string) (certificate tls.Certificate, chainPEM, keyPEM []byte) {
	a.t.Helper()
	who, err := id.New("lab.internal", kind, name)
	if err != nil {
		a.t.Fatal(err)
	}
	key, err := mtls.GenerateKey(mesh.ECDSAP256)
	if err != nil {
		a.t.Fatal(err)
	}
	issued, err := a.Issue(a.t.Context(), ca.JournalRecorder{Journal: a.log}, issue.Request{ID: who, PublicKey: key.Public(), TTL: 5 * time.Minute})
	if err != nil {
		a.t.Fatal(err)
	}
	if keyPEM, err = mtls.MarshalKey(key); err != nil {
		a.t.Fatal(err)
	}
	certificate = tls.Certificate{PrivateKey: key, Leaf: issued.Certificate, Certificate: [][]byte{issued.Certificate.Raw, a.Issuer().Raw}}
	return certificate, issued.ChainPEM, keyPEM
}

// Proxies that verify with OpenSSL say which roots they trust: it is seen of NGINX and HAProxy, on HTTP and
// on TCP ports, whether they accept the next root, although they close without a word upon a certificate
// that they do not accept as upon an identity that nobody allows.
func TestNextRootAtOtherProxies(t *testing.T) {
	before, next := newTestAuthority(t), newTestAuthority(t)
	_, chain, key := before.issue(id.Service, "callee")
	probe, _, _ := next.issue(id.Probe, "verify")
	stock := map[string]func(t *testing.T, dir string, http, tcp string) (*exec.Cmd, string){"NGINX": nginxOnce, "HAProxy": haproxyOnce}
	for name, start := range stock {
		for bundle, trusts := range map[string]bool{"the root of before": false, "both roots": true} {
			t.Run(name+" with "+bundle, func(t *testing.T) {
				dir := t.TempDir()
				roots := before.BundlePEM()
				if trusts {
					roots = append(roots, next.BundlePEM()...)
				}
				for file, data := range map[string][]byte{"cert.pem": chain, "key.pem": key, "pair.pem": append(append([]byte{}, chain...), key...), "ca.pem": roots} {
					if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				http, tcp := freeAddress(t), freeAddress(t)
				command, config := start(t, dir, http, tcp)
				if err := os.WriteFile(filepath.Join(dir, "proxy.conf"), []byte(config), 0o600); err != nil {
					t.Fatal(err)
				}
				runUntilTheEnd(t, command)
				lookAt(t, http, mesh.HTTP, probe, next.Root(), trusts)
				lookAt(t, tcp, mesh.TCP, probe, next.Root(), trusts)
			})
		}
	}
}

// lookAt waits until a listener is there and expects that it accepts the probe, or that it does not.
func lookAt(t *testing.T, address string, protocol mesh.Protocol, probe tls.Certificate, root *x509.Certificate, accepts bool) {
	t.Helper()
	who, err := id.New("lab.internal", id.Service, "callee")
	if err != nil {
		t.Fatal(err)
	}
	target := observe.Target{
		Workload: mesh.Workload{Name: "callee", Kind: id.Service, Identity: who}, Address: address,
		Inbound: mesh.Inbound{Protocol: protocol, TLS: mesh.Strict, ClientAuth: mesh.Require},
	}
	var shown observe.Shown
	await(t, "the proxy answers", func() (bool, string) {
		shown = observe.Show(t.Context(), &target, &probe, root, 5*time.Second)
		return shown.Chain != nil, shown.How
	})
	if shown.Accepts != accepts {
		t.Errorf("%s: accepts %t (%s), want %t", protocol, shown.Accepts, shown.How, accepts)
	}
}

// runUntilTheEnd starts a program and ends it with the test.
func runUntilTheEnd(t *testing.T, command *exec.Cmd) {
	t.Helper()
	var out strings.Builder
	command.Stdout, command.Stderr = &out, &out
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait() // it was killed
		if t.Failed() {
			t.Log(out.String())
		}
	})
}

// nginxOnce is NGINX in the foreground, without a master, that closes upon bad certificates and upon
// everybody who is not called caller.
func nginxOnce(t *testing.T, dir, http, tcp string) (*exec.Cmd, string) {
	t.Helper()
	tls := fmt.Sprintf("ssl_certificate %[1]s/cert.pem; ssl_certificate_key %[1]s/key.pem; ssl_client_certificate %[1]s/ca.pem; ssl_verify_client on; ssl_verify_depth 2;", dir)
	config := fmt.Sprintf(`load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off; master_process off; pid %[1]s/pid; error_log stderr;
events {}
http {
  access_log off;
  client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
  server {
    listen %[2]s ssl http2; %[4]s
    error_page 495 496 = @bad;
    location @bad { return 444; }
    location / { return 403; }
  }
}
stream {
  server { listen %[3]s ssl; %[4]s return ""; }
}
`, dir, http, tcp, tls)
	return exec.CommandContext(context.Background(), peer(t, "nginx"), "-e", "stderr", "-c", filepath.Join(dir, "proxy.conf")), config
}

// haproxyOnce is HAProxy in the foreground.
func haproxyOnce(t *testing.T, dir, http, tcp string) (*exec.Cmd, string) {
	t.Helper()
	tls := fmt.Sprintf("ssl crt %[1]s/pair.pem ca-file %[1]s/ca.pem verify required", dir)
	config := fmt.Sprintf(`defaults
  timeout client 5s
  timeout server 5s
  timeout connect 5s
frontend web
  mode http
  bind %s %s alpn h2,http/1.1
  http-request deny deny_status 403
frontend lines
  mode tcp
  bind %s %s
  tcp-request content reject
`, http, tls, tcp, tls)
	return exec.CommandContext(context.Background(), peer(t, "haproxy"), "-db", "-f", filepath.Join(dir, "proxy.conf")), config
}
