package integration

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// One request makes one handshake: the sidecars make none of their own. One-way TLS counts the caller
// as one without a certificate, mutual TLS does not.
func TestHandshakesAreThoseOfTraffic(t *testing.T) {
	for _, test := range []struct {
		spec          string
		noCertificate int64
	}{{"one-way.yaml", 1}, {"mesh.yaml", 0}} {
		t.Run(test.spec, func(t *testing.T) {
			mesh := start(t, colorapp(test.spec))
			teller := mesh.instance(t, "colorteller")
			const prefix = "listener.0.0.0.0_9080.ssl."
			before := stats(t, teller)
			for _, name := range []string{"handshake", "no_certificate", "fail_verify_no_cert", "fail_verify_error", "fail_verify_san", "connection_error", "session_reused"} {
				if value, ok := before[prefix+name]; !ok || value != 0 {
					t.Errorf("%s%s is %d (%v) before any traffic, want 0", prefix, name, value, ok)
				}
			}
			if body := get(t, "http://"+mesh.inbound(t, "colorgateway", 8080)+"/color"); body != "yellow" {
				t.Fatalf("the colour is %q", body)
			}
			after := stats(t, teller)
			if got := after[prefix+"handshake"]; got != 1 {
				t.Errorf("ssl.handshake %d after one request, want 1", got)
			}
			if got := after[prefix+"no_certificate"]; got != test.noCertificate {
				t.Errorf("ssl.no_certificate %d, want %d", got, test.noCertificate)
			}
			if got := after[prefix+"versions.TLSv1.3"]; got != 1 {
				t.Errorf("ssl.versions.TLSv1.3 %d, want 1", got)
			}
		})
	}
}

// asGateway are the arguments by which openssl speaks as colorgateway.
func asGateway(t *testing.T, mesh *running) []string {
	t.Helper()
	current := filepath.Join(mesh.instance(t, "colorgateway").State, "current")
	chain := filepath.Join(current, "cert.pem")
	return []string{"-cert", chain, "-cert_chain", chain, "-key", filepath.Join(current, "key.pem"), "-CAfile", filepath.Join(current, "ca.pem"), "-verify_return_error"}
}

const colorRequest = "GET /color HTTP/1.1\r\nHost: colorteller\r\nConnection: close\r\n\r\n"

// sClient asks for the colour with `openssl s_client`, and returns all that it printed.
func sClient(t *testing.T, address string, args ...string) result {
	t.Helper()
	args = append([]string{"s_client", "-connect", address, "-servername", "colorteller.colorapp.internal", "-ign_eof"}, args...)
	return execute(t, strings.NewReader(colorRequest), peer(t, "openssl"), args...)
}

// OpenSSL as a client without a certificate, of another CA, and with TLS 1.1, is refused by an alert
// and sees not one byte of the application. The same client is served when it is the gateway, and the
// same TLS 1.1 is spoken by a server that allows it: the refusals are real ones.
func TestOpenSSLIsRefused(t *testing.T) {
	openssl := peer(t, "openssl")
	mesh := start(t, colorapp("mesh.yaml"))
	address := mesh.inbound(t, "colorteller", 9080)
	old := []string{"-tls1_1", "-cipher", "ALL:@SECLEVEL=0"}
	stranger := strangerFiles(t)
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		if got := sClient(t, address, append(asGateway(t, mesh), version)...); !strings.Contains(got.stdout, "yellow") {
			t.Errorf("the gateway's own certificate with %s gets no colour: status %d\n%s%s", version, got.status, got.stdout, got.stderr)
		}
		for name, args := range map[string][]string{"no certificate": nil, "another CA": stranger} {
			refusedByAlert(t, name+" "+version, sClient(t, address, append(args, version)...))
		}
	}
	refusedByAlert(t, "TLS 1.1", sClient(t, address, append(asGateway(t, mesh), old...)...))

	allowing := oldServer(t, openssl)
	if got := sClient(t, allowing, old...); !strings.Contains(got.stdout, "HTTP/1.0 200 ok") || !strings.Contains(got.stdout, "TLSv1.1") {
		t.Errorf("the positive control got no answer with TLS 1.1: %s%s", got.stdout, got.stderr)
	}
	counts := stats(t, mesh.instance(t, "colorteller"))
	if n := counts["listener.0.0.0.0_9080.ssl.fail_verify_no_cert"]; n != 2 {
		t.Errorf("ssl.fail_verify_no_cert %d after two clients without a certificate", n)
	}
	if n := counts["listener.0.0.0.0_9080.ssl.fail_verify_error"]; n != 2 {
		t.Errorf("ssl.fail_verify_error %d after two clients of another CA", n)
	}
}

func refusedByAlert(t *testing.T, who string, got result) {
	t.Helper()
	all := got.stdout + got.stderr
	if strings.Contains(all, "HTTP/1") || strings.Contains(all, "yellow") {
		t.Errorf("%s: bytes of the application came:\n%s", who, all)
	}
	if !strings.Contains(all, "alert") {
		t.Errorf("%s: no alert:\n%s", who, all)
	}
}

// oldServer runs an OpenSSL server that speaks TLS 1.1, and returns its address.
func oldServer(t *testing.T, openssl string) string {
	t.Helper()
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if got := execute(t, nil, openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=old", "-days", "1", "-keyout", key, "-out", cert); got.status != 0 {
		t.Fatalf("openssl req: %s", got.stderr)
	}
	ctx, cancel := context.WithCancel(context.Background())
	server := exec.CommandContext(ctx, openssl, "s_server", "-accept", "127.0.0.1:0", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0", "-cert", cert, "-key", key, "-www")
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdin, err := server.StdinPipe() // without one s_server ends
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		stdin.Close()
		_ = server.Wait() // it was killed
	})
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if address, ok := strings.CutPrefix(lines.Text(), "ACCEPT "); ok {
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return address
		}
	}
	t.Fatal("openssl s_server did not say where it accepts")
	return ""
}

// strangerFiles makes a CA that has the mesh's names and a certificate of it for the gateway, and
// returns the arguments by which openssl presents it.
func strangerFiles(t *testing.T) []string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "colorapp.internal root", Organization: []string{"colorapp.internal"}}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "colorgateway", OrganizationalUnit: []string{"gateway"}, Organization: []string{"colorapp.internal"}},
		URIs:      []*url.URL{{Scheme: "spiffe", Host: "colorapp.internal", Path: "/gateway/colorgateway"}},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return []string{"-cert", certFile, "-key", keyFile}
}
