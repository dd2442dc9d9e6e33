package integration

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/observe"
)

// upAnd runs a command inside a mesh.
func upAnd(t *testing.T, spec string, command ...string) result {
	t.Helper()
	return execute(t, nil, binary, append([]string{"up", spec, "--logs", t.TempDir(), "--"}, command...)...)
}

// What a mesh serves is what it declares; what another specification declares is not.
func TestVerify(t *testing.T) {
	t.Parallel() // it waits for a mesh of its own
	shop, err := filepath.Abs("../examples/shop/mesh.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, spec := range []string{colorapp("mesh.yaml"), colorapp("one-way.yaml"), colorapp("permissive.yaml"), shop} {
		t.Run(filepath.Base(filepath.Dir(spec))+"/"+filepath.Base(spec), func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			got := upAnd(t, spec, "countersign", "verify")
			t.Logf("up, verify and end took %s\n%s", time.Since(began).Round(time.Millisecond), got.stdout)
			if got.status != 0 {
				t.Errorf("status %d\n%s", got.status, got.stderr)
			}
		})
	}
	t.Run("a permissive mesh is not the strict one", func(t *testing.T) {
		t.Parallel()
		got := upAnd(t, colorapp("permissive.yaml"), "countersign", "verify", colorapp("mesh.yaml"), "--output", "json")
		report := parseReport(t, got)
		if got.status != 1 || len(report.Findings) == 0 {
			t.Fatalf("status %d\n%s%s", got.status, got.stdout, got.stderr)
		}
		for _, f := range report.Findings {
			if f.Workload != "colorteller" || f.Check != observe.CheckPlaintext {
				t.Errorf("finding %+v, want only that colorteller serves plaintext", f)
			}
		}
	})
	t.Run("a strict mesh is not the permissive one", func(t *testing.T) {
		got := upAnd(t, colorapp("mesh.yaml"), "countersign", "verify", colorapp("permissive.yaml"))
		if got.status != 1 || !strings.Contains(got.stdout, "colorteller") {
			t.Errorf("status %d\n%s%s", got.status, got.stdout, got.stderr)
		}
	})
	t.Run("a workload that nobody runs", func(t *testing.T) {
		t.Parallel()
		got := upAnd(t, colorapp("mesh.yaml"), "countersign", "verify", shop, "--output", "json")
		report := parseReport(t, got)
		for _, workload := range []string{"stock", "colorteller"} {
			if !slices.ContainsFunc(report.Findings, func(f observe.Finding) bool { return f.Workload == workload }) {
				t.Errorf("%s is not among the findings %+v", workload, report.Findings)
			}
		}
		if got.status != 1 {
			t.Errorf("status %d", got.status)
		}
	})
}

func parseReport(t *testing.T, got result) observe.Report {
	t.Helper()
	var report observe.Report
	if err := json.Unmarshal([]byte(got.stdout), &report); err != nil {
		t.Fatalf("verify's output is no JSON: %v\nstatus %d %s%s", err, got.status, got.stdout, got.stderr)
	}
	return report
}

// An endpoint that presents another workload's certificate is found, although its instance enrolled as
// the right one and says that all is well.
func TestVerifyFindsAWrongCertificate(t *testing.T) {
	t.Parallel() // it waits for a mesh of its own
	running := start(t, colorapp("mesh.yaml"))
	admin := api.NewAdmin(running.Server.Socket)
	wrong := issued(t, admin, "colorgateway")
	address := serveCertificate(t, wrong)
	impersonate(t, running, "colorteller", "impostor", address)
	got := countersign(t, "verify", "--output", "json", "--socket", running.Server.Socket)
	report := parseReport(t, got)
	if got.status != 1 {
		t.Errorf("status %d", got.status)
	}
	checks := map[string]bool{}
	for _, f := range report.Findings {
		if f.Workload != "colorteller" || f.Instance != "impostor" {
			t.Errorf("finding %+v at somebody else's", f)
		}
		checks[f.Check] = true
	}
	for _, want := range []string{observe.CheckIdentity, observe.CheckNames, observe.CheckSerial, observe.CheckNoCertificate, observe.CheckStranger, observe.CheckExpired} {
		if !checks[want] {
			t.Errorf("no finding of the check %s among %+v", want, report.Findings)
		}
	}
}

// issued obtains a certificate of a workload by the administrator's word.
func issued(t *testing.T, admin *api.Admin, workload string) tls.Certificate {
	t.Helper()
	key, err := mtls.GenerateKey(mesh.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := mtls.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	credentials, err := admin.Issue(t.Context(), api.IssueRequest{Workload: workload, CSR: string(csr)})
	if err != nil {
		t.Fatal(err)
	}
	private, err := mtls.MarshalKey(key)
	if err != nil {
		t.Fatal(err)
	}
	identity, err := mtls.LoadIdentity([]byte(credentials.Chain), private, []byte(credentials.Bundle))
	if err != nil {
		t.Fatal(err)
	}
	if identity.ID.Kind() != id.Gateway && identity.ID.Kind() != id.Service {
		t.Fatalf("issued for %s", identity.ID)
	}
	return identity.Certificate
}

// serveCertificate serves TLS to anybody, with a certificate, and answers with its first words.
func serveCertificate(t *testing.T, certificate tls.Certificate) string {
	t.Helper()
	inner, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener := tls.NewListener(inner, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12, ClientAuth: tls.RequestClientCert})
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				defer context.AfterFunc(t.Context(), func() { conn.Close() })()
				if _, err := conn.Read(make([]byte, 512)); err == nil {
					_, _ = conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
				}
			}()
		}
	}()
	return listener.Addr().String()
}

// Every mode, protocol and type of key is served as it is declared, by what the wire shows.
func TestVerifyEveryMode(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var spec strings.Builder
	spec.WriteString("mesh: modes\nservices:\n")
	modes := []string{
		"", "minTLS: \"1.3\"", "clientAuth: optional", "clientAuth: optional, allow: [{from: any}]", "clientAuth: optional, allow: [{from: [any, anonymous]}]",
		"clientAuth: none", "clientAuth: none, minTLS: \"1.3\"", "tls: permissive", "tls: permissive, clientAuth: optional", "tls: permissive, allow: [{from: any}]", "tls: off",
	}
	ports := 0
	for role, protocols := range map[string][]string{"http": {"http", "http2"}, "grpc": {"grpc"}, "tcp": {"tcp"}} {
		fmt.Fprintf(&spec, "  %s:\n    run: {command: [%q], env: {%s: %s, %s: \"${APP_ADDRESS}\"}}\n    ports:\n", role, self, envRole, role, envListen)
		for i, protocol := range protocols {
			for j, mode := range modes {
				fmt.Fprintf(&spec, "      - {port: %d, app: 8000, protocol: %s, %s}\n", 9000+100*i+j, protocol, mode)
				ports++
			}
		}
	}
	for _, key := range []string{"ecdsa-p256", "ecdsa-p384", "rsa-2048", "rsa-3072", "ed25519"} {
		fmt.Fprintf(&spec, "  key-%s:\n    certificates: {key: %s}\n    names: [%s.example.com]\n    ports: [{port: 9000, protocol: tcp}]\n", key, key, key)
		ports++
	}
	path := write(t, spec.String())
	got := upAnd(t, path, "countersign", "verify", "--output", "json")
	if got.status == 2 {
		t.Fatal(got.stderr)
	}
	report := parseReport(t, got)
	if len(report.Endpoints) != ports {
		t.Errorf("%d endpoints were observed, want %d", len(report.Endpoints), ports)
	}
	for _, f := range report.Findings {
		t.Errorf("%+v", f)
	}
	bypasses := 0
	for _, e := range report.Endpoints {
		for _, c := range e.Checks {
			if c.Name == observe.CheckBypass && c.Result == observe.Pass {
				bypasses++
			}
		}
	}
	if bypasses == 0 {
		t.Error("no way past a sidecar was tried")
	}
}

// A gateway presents the certificate of the configured files, curl trusts it, and verify compares the
// two: another file is a finding.
func TestGatewayCertificate(t *testing.T) {
	curl := peer(t, "curl")
	dir := t.TempDir()
	for _, name := range []string{"public", "other"} {
		args := []string{
			"req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=" + name, "-addext", "subjectAltName=DNS:www.example.com", "-days", "2",
			"-keyout", filepath.Join(dir, name+".key"), "-out", filepath.Join(dir, name+".pem"),
		}
		if got := execute(t, nil, peer(t, "openssl"), args...); got.status != 0 {
			t.Fatalf("openssl: %s", got.stderr)
		}
	}
	plain, err := os.ReadFile(colorapp("mesh.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	spec := func(name string) string {
		return strings.Replace(string(plain), "{port: 8080, protocol: http}", fmt.Sprintf("{port: 8080, protocol: http, certificate: {cert: %s.pem, key: %s.key}}", name, name), 1)
	}
	paths := map[string]string{}
	for _, name := range []string{"public", "other"} {
		paths[name] = filepath.Join(dir, name+".yaml")
		if err := os.WriteFile(paths[name], []byte(spec(name)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mesh := start(t, paths["public"])
	address := mesh.inbound(t, "colorgateway", 8080)
	for _, version := range []string{"--http1.1", "--http2"} {
		got := execute(t, nil, curl, "-sS", version, "--cacert", filepath.Join(dir, "public.pem"), "--connect-to", "www.example.com:443:"+address, "https://www.example.com/color")
		if got.stdout != "yellow" {
			t.Errorf("curl %s: status %d\n%s%s", version, got.status, got.stdout, got.stderr)
		}
	}
	mesh.admin(t, "verify")
	got := countersign(t, "verify", paths["other"], "--output", "json", "--socket", mesh.Server.Socket)
	findings := parseReport(t, got).Findings
	if got.status != 1 || len(findings) != 1 || findings[0].Check != observe.CheckConfigured || findings[0].Workload != "colorgateway" {
		t.Errorf("status %d, findings %+v", got.status, findings)
	}
}
