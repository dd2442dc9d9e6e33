package proxy

import (
	"bufio"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// lists are the CA's revocation lists with some members on them.
func (a *authority) lists(number int64, revoked ...*mtls.Identity) *mtls.CRLs {
	a.t.Helper()
	template := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}
	for _, identity := range revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: identity.Certificate.Leaf.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, a.root, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	crls, err := mtls.ParseCRLs(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
	if err != nil {
		a.t.Fatal(err)
	}
	return crls
}

// told gives a node lists, as an agent does.
func (n *node) told(crls *mtls.CRLs) {
	fresh := *n.source.identity.Load()
	fresh.Revocation = &mtls.Revocation{CRLs: crls, Stale: mesh.StaleRefuse}
	n.source.identity.Store(&fresh)
	n.IdentityChanged()
}

func (n *node) identity() *mtls.Identity { return n.source.identity.Load() }

// TestRevokedIsCut revokes a caller: what it has open ends at once, and nothing new begins. A list that is nothing to it
// does it no harm.
func TestRevokedIsCut(t *testing.T) {
	t.Run("tcp", func(t *testing.T) {
		p := newPair(t, mesh.TCP, serveTCPApp(t, func(c *net.TCPConn) { echo(c, c) }))
		c := dialOutbound(t, p)
		reader := bufio.NewReader(c)
		ask := func() error {
			if _, err := io.WriteString(c, "x\n"); err != nil {
				return err
			}
			_, err := reader.ReadString('\n')
			return err
		}
		if err := ask(); err != nil {
			t.Fatal(err)
		}
		p.callee.told(p.ca.lists(1, p.ca.issue(id.Service, "other", time.Hour)))
		if err := ask(); err != nil {
			t.Fatalf("after the revocation of another: %v", err)
		}
		p.callee.told(p.ca.lists(2, p.caller.identity()))
		if _, err := reader.ReadByte(); err == nil {
			t.Error("the connection lives on")
		}
		if n := p.callee.stat("countersign.revoked_cut_total"); n != 1 {
			t.Errorf("%d connections were cut", n)
		}
		again := dialOutbound(t, p)
		if _, err := bufio.NewReader(again).ReadByte(); err == nil {
			t.Error("a new connection is served")
		}
	})
	t.Run("requests", func(t *testing.T) {
		modes(t, func(t *testing.T, clientH2 bool, protocol mesh.Protocol) {
			p := newPair(t, protocol, echoApp(t, protocol == mesh.HTTP2))
			client := clientFor(t, clientH2)
			ask := func() int { return do(t, client, newRequest(t, "GET", p.url, nil)).status }
			p.callee.told(p.ca.lists(1))
			if got := ask(); got != http.StatusOK {
				t.Fatalf("status %d", got)
			}
			p.callee.told(p.ca.lists(2, p.ca.issue(id.Service, "other", time.Hour)))
			if got := ask(); got != http.StatusOK {
				t.Errorf("after the revocation of another: status %d", got)
			}
			if n := p.callee.stat("listener.0.0.0.0_9080.downstream_cx_total"); n != 1 {
				t.Errorf("%d connections: a list must not close the one that lives on", n)
			}
			p.callee.told(p.ca.lists(3, p.caller.identity()))
			for range 3 {
				if got := ask(); got < 500 {
					t.Errorf("a revoked caller gets status %d", got)
				}
			}
			if p.callee.stat("listener.0.0.0.0_9080.ssl.fail_verify_error") == 0 {
				t.Error("its handshakes are not counted as refused")
			}
		})
	})
	t.Run("streams", func(t *testing.T) {
		modes(t, func(t *testing.T, clientH2 bool, protocol mesh.Protocol) {
			p := newPair(t, protocol, serveApp(t, protocol == mesh.HTTP2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_ = http.NewResponseController(w).Flush() // the cut may overtake it
				<-r.Context().Done()
			})))
			response, err := clientFor(t, clientH2).Do(newRequest(t, "GET", p.url, nil))
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			p.callee.told(p.ca.lists(1))
			if n := p.callee.busyConns(); n != 1 {
				t.Errorf("%d connections are busy after a list that is nothing to them", n)
			}
			p.callee.told(p.ca.lists(2, p.caller.identity()))
			if body, err := io.ReadAll(response.Body); err == nil {
				t.Errorf("the stream ended regularly after %q", body)
			}
		})
	})
	t.Run("upgrade", func(t *testing.T) {
		p := newPair(t, mesh.HTTP, serveApp(t, false, websocket.Handler(func(c *websocket.Conn) { echo(c, c) })))
		c, err := websocket.Dial(strings.Replace(p.url, "http://", "ws://", 1), "", "http://localhost")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := websocket.Message.Send(c, "x"); err != nil {
			t.Fatal(err)
		}
		var got string
		if err := websocket.Message.Receive(c, &got); err != nil {
			t.Fatal(err)
		}
		p.callee.told(p.ca.lists(1, p.caller.identity()))
		if err := websocket.Message.Receive(c, &got); err == nil {
			t.Error("the connection lives on")
		}
	})
}

// TestRevokedInstance revokes the one that is called: its callers close what they have with it and open nothing new.
func TestRevokedInstance(t *testing.T) {
	modes(t, func(t *testing.T, clientH2 bool, protocol mesh.Protocol) {
		p := newPair(t, protocol, echoApp(t, protocol == mesh.HTTP2))
		client := clientFor(t, clientH2)
		if got := do(t, client, newRequest(t, "GET", p.url, nil)); got.status != http.StatusOK {
			t.Fatalf("status %d", got.status)
		}
		p.caller.told(p.ca.lists(1, p.callee.identity()))
		if n := p.caller.stat("countersign.revoked_cut_total"); n != 1 {
			t.Errorf("%d connections were cut", n)
		}
		if got := do(t, client, newRequest(t, "GET", p.url, nil)); got.status < 500 {
			t.Errorf("a revoked instance answers: status %d", got.status)
		}
	})
}

// TestStaleListClosesNothing asserts that a list's end refuses new connections and leaves open ones alone.
func TestStaleListClosesNothing(t *testing.T) {
	p := newPair(t, mesh.HTTP2, echoApp(t, true))
	client := clientFor(t, true)
	ask := func() int { return do(t, client, newRequest(t, "GET", p.url, nil)).status }
	if got := ask(); got != http.StatusOK {
		t.Fatalf("status %d", got)
	}
	p.callee.told(nil)
	if got := ask(); got != http.StatusOK {
		t.Errorf("an open connection, without a list: status %d", got)
	}
	config := mutual(t, p.ca.issue(id.Service, "front", time.Hour), p.callee, "h2")
	if _, err := handshakeAndRead(t, p.callee.inboundAddress(9080), config, ""); err == nil {
		t.Error("a new connection is taken, without a list")
	}
}
