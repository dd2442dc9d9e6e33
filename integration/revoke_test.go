package integration

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"countersign.dev/api"
)

// refusedWithin is by when a revoked client is refused everywhere after the command has ended.
const refusedWithin = 5 * time.Second

// memberClient is an HTTP client with a certificate of the mesh that remembers its sessions, as an attacker's would: nothing of
// the mesh's own is in it. With keep it holds on to its connections.
func memberClient(t *testing.T, certificate tls.Certificate, http2, keep bool) *http.Client {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!http2)
	protocols.SetHTTP2(http2)
	transport := &http.Transport{
		Protocols: protocols, DisableKeepAlives: !keep,
		TLSClientConfig: &tls.Config{
			Certificates: []tls.Certificate{certificate}, ClientSessionCache: tls.NewLRUClientSessionCache(4), ServerName: "recorder.lab.internal",
			InsecureSkipVerify: true, // it is the server's side that is looked at
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// isServed makes a request and tells whether it was served, and by a resumed session.
func isServed(t *testing.T, client *http.Client, url string) (served, resumed bool) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		return false, false
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return err == nil && response.StatusCode == http.StatusOK, response.TLS != nil && response.TLS.DidResume
}

// listed tells whether a file holds the lists of the issuing CA and of the root, and one of them names a certificate; else
// what it holds.
func listed(t *testing.T, path string, certificate *x509.Certificate) (bool, string) {
	t.Helper()
	text, err := os.ReadFile(path)
	lists, named := 0, false
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		lists++
		for _, entry := range list.RevokedCertificateEntries {
			named = named || entry.SerialNumber.Cmp(certificate.SerialNumber) == 0
		}
	}
	return lists == 2 && named, fmt.Sprintf("%q, %v", text, err)
}

// TestRevokedEverywhere revokes a workload by the command: within seconds it is refused on everything that it has, open
// connections of HTTP/1.1, HTTP/2 and TCP among them, and resumed sessions; its sidecar does not come back by its old
// token; and a sidecar that starts without the server refuses it still.
func TestRevokedEverywhere(t *testing.T) {
	spec, err := labSpec()
	if err != nil {
		t.Fatal(err)
	}
	mesh := start(t, write(t, spec))
	certificate := issued(t, api.NewAdmin(mesh.Server.Socket), "caller")
	other := issued(t, api.NewAdmin(mesh.Server.Socket), "edge")
	url := "https://" + mesh.inbound(t, "recorder", 9080) + "/"
	modern := "https://" + mesh.inbound(t, "modern", 9082) + "/"

	clients := map[string]struct {
		client *http.Client
		url    string
	}{
		"an open connection of HTTP/1.1": {memberClient(t, certificate, false, true), url},
		"an open connection of HTTP/2":   {memberClient(t, certificate, true, true), modern},
		"a session that is resumed":      {memberClient(t, certificate, false, false), url},
	}
	for name, c := range clients {
		for range 2 {
			if served, _ := isServed(t, c.client, c.url); !served {
				t.Fatalf("%s: refused before the revocation", name)
			}
		}
	}
	if _, resumed := isServed(t, clients["a session that is resumed"].client, url); !resumed {
		t.Error("no session is resumed")
	}
	outbound := "http://" + mesh.outbound(t, "caller", "recorder", 9080) + "/"
	if status, _ := fetch(t, outbound); status != http.StatusOK {
		t.Fatalf("through its sidecar: %d", status)
	}
	conn := dialTCP(t, mesh.outbound(t, "caller", "lines", 7000))
	lines := bufio.NewReader(conn)
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := lines.ReadString('\n'); err != nil {
		t.Fatalf("an open connection of TCP: %v", err)
	}

	told := mesh.admin(t, "ca", "revoke", "caller", "--reason", "keyCompromise")
	began := time.Now()
	if strings.Count(told, "spiffe://lab.internal/service/caller revoked (keyCompromise)") != 2 {
		t.Errorf("the command says %q", told)
	}
	if _, err := lines.ReadByte(); err == nil {
		t.Error("the open connection of TCP lives on")
	}
	until := func(what string, refused func() bool) {
		t.Helper()
		await(t, what+" is refused", func() (bool, string) { return refused(), "it is served" })
		if took := time.Since(began); took > refusedWithin {
			t.Errorf("%s was served for %v", what, took)
		}
	}
	for name, c := range clients {
		until(name, func() bool { served, _ := isServed(t, c.client, c.url); return !served })
	}
	until("its sidecar", func() bool { status, _, err := try(t, outbound); return err != nil || status >= 500 })
	t.Logf("refused everywhere after %v", time.Since(began))
	if served, _ := isServed(t, memberClient(t, other, false, false), url); !served {
		t.Error("another workload is refused")
	}
	if body := get(t, "http://"+mesh.inbound(t, "edge", 8080)+"/"); body == "" {
		t.Error("the gateway gets no answer any more")
	}
	await(t, "the status says it", func() (bool, string) {
		for name, row := range mesh.status(t) {
			if row.Workload == "caller" && !strings.Contains(row.Error, "not connected") {
				return false, fmt.Sprint(name, ": ", row.Error)
			}
		}
		return true, ""
	})
	state := mesh.instance(t, "recorder").State
	// A list holds at once, and is on the disk a moment later: who is killed in between starts with the one before.
	await(t, "the sidecar keeps the list that names the revoked one", func() (bool, string) {
		return listed(t, filepath.Join(state, "current", "crl.pem"), certificate.Leaf)
	})

	server := mesh.find(t, "server")
	if err := syscall.Kill(server, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(server, syscall.SIGCONT) })
	mesh.kill(t, "proxy", "recorder-1")
	await(t, "the sidecar serves again, without the server", func() (bool, string) {
		status, body, err := try(t, "http://"+mesh.inbound(t, "edge", 8080)+"/")
		return err == nil && status == http.StatusOK, fmt.Sprint(body, err)
	})
	if served, _ := isServed(t, memberClient(t, certificate, false, false), url); served {
		t.Error("a sidecar that started without the server admits the revoked one")
	}
}
