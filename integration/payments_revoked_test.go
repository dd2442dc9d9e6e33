package integration

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign.dev/mtls"
)

// A revoked certificate is refused by NGINX, by HAProxy and by the built-in proxy, also where a session could be
// resumed or a connection is still open; everybody else goes on.
func TestPaymentsRevoked(t *testing.T) {
	t.Parallel() // it waits for a mesh of its own
	m := start(t, paymentsSpec(t))
	out := filepath.Join(t.TempDir(), "issued")
	m.admin(t, "ca", "issue", "gateway/paygate", "--out", out)
	certificate, err := tls.LoadX509KeyPair(filepath.Join(out, "current", "cert.pem"), filepath.Join(out, "current", "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	doors := paymentsDoors(t, m)
	configs := map[string]*tls.Config{}
	for _, door := range doors {
		configs[door.name] = clientOf(t, m, door.name, &certificate)
		configs[door.name].ClientSessionCache = tls.NewLRUClientSessionCache(8)
		for range 2 { // the second time, with a session
			if err := door.tried(t, configs[door.name]); err != nil {
				t.Fatalf("%s refuses who may call it: %v", door.name, err)
			}
		}
	}
	// A client that keeps its connection, as gateways do.
	open := http.Client{Transport: &http.Transport{TLSClientConfig: configs["checkout"].Clone(), MaxConnsPerHost: 1}, Timeout: 10 * time.Second}
	defer open.CloseIdleConnections()
	url := "https://" + m.inbound(t, "checkout", 8081) + "/payments/caller"
	if _, err := statusOf(t, &open, url); err != nil {
		t.Fatal(err)
	}
	serial := mtls.Serial(certificate.Leaf)
	if said := m.admin(t, "ca", "revoke", serial, "--reason", "keyCompromise"); !strings.Contains(said, "revoked") {
		t.Errorf("ca revoke says %q", said)
	}
	await(t, "the end of an open connection", func() (bool, string) {
		status, err := statusOf(t, &open, url)
		return err != nil || status != http.StatusOK, fmt.Sprint(status)
	})
	for _, door := range doors {
		await(t, "that "+door.name+" refuses the revoked certificate", func() (bool, string) {
			err := door.tried(t, configs[door.name])
			return err != nil, "it is let in"
		})
	}
	checkoutLists(t, m, certificate.Leaf)
	// What was not revoked is served as before: the gateway has another certificate.
	paymentsHTTP(t, m)
	paymentsGRPC(t, m)
	paymentsTCP(t, m)
	for _, door := range doors {
		if err := door.tried(t, configs[door.name]); err == nil {
			t.Errorf("%s lets the revoked certificate in again", door.name)
		}
	}
	m.admin(t, "verify")
}

// checkoutLists sees how checkout's NGINX, whose key and certificate come from the store, knows of it: by the lists that
// its watcher has from the server and writes beside them.
func checkoutLists(t *testing.T, m *running, revoked *x509.Certificate) {
	t.Helper()
	state := m.instance(t, "checkout").State
	lists := filepath.Join(state, "certs", "current", "crl.pem")
	if ok, holds := listed(t, lists, revoked); !ok {
		t.Errorf("%s does not name what was revoked: %s", lists, holds)
	}
	configuration, err := os.ReadFile(filepath.Join(state, "conf", "nginx.conf"))
	if want := `ssl_crl "` + lists + `";`; err != nil || !strings.Contains(string(configuration), want) {
		t.Errorf("checkout's NGINX is not told to read %s (%v)", want, err)
	}
}

// statusOf asks with a client of its own.
func statusOf(t *testing.T, c *http.Client, url string) (int, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := c.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body) // or the connection is not used again
	return response.StatusCode, err
}
