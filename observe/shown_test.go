package observe

import (
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// TestShow looks at listeners that accept a root and at listeners that do not, in all the ways in which
// proxies say so.
func TestShow(t *testing.T) {
	ours, theirs := newTestCA(t), newTestCA(t)
	another := *theirs.cert // those of this test have one name
	another.RawSubject = theirs.leaf(mustID(t, id.Service, "another"), nil).Leaf.RawSubject
	theirs.cert = &another
	probe := ours.leaf(mustID(t, id.Probe, "verify"), nil)
	// closes asks for a certificate, names the roots that it accepts when it is told to, verifies nothing
	// in the handshake and then closes without a word, as NGINX does.
	closes := func(named *testCA) func(*sidecar) {
		return func(s *sidecar) {
			s.config.ClientAuth, s.config.ClientCAs = tls.RequireAnyClientCert, nil
			if named != nil {
				s.config.ClientCAs = named.pool()
			}
			s.protocol = mesh.TCP
		}
	}
	both := ours.pool()
	both.AddCert(theirs.cert)
	for _, test := range []struct {
		name     string
		protocol mesh.Protocol
		change   func(*sidecar)
		accepts  bool
		how      string
	}{
		{"HTTP, refused by the policy", mesh.HTTP, nil, true, "HTTP 403"},
		{"HTTP/2, refused by the policy", mesh.HTTP2, nil, true, "HTTP 403"},
		{"gRPC, refused by the policy", mesh.GRPC, nil, true, "grpc-status 7"},
		{"TCP, closed by the policy", mesh.TCP, nil, true, ""},
		{"two roots", mesh.HTTP, func(s *sidecar) { s.config.ClientCAs = both }, true, "HTTP 403"},
		{"TLS 1.2", mesh.HTTP, func(s *sidecar) { s.config.MaxVersion = tls.VersionTLS12 }, true, "HTTP 403"},
		{"HTTP, another root", mesh.HTTP, func(s *sidecar) { s.config.ClientCAs = theirs.pool() }, false, ""},
		{"TCP, another root", mesh.TCP, func(s *sidecar) { s.config.ClientCAs = theirs.pool() }, false, ""},
		{"TLS 1.2, another root", mesh.TCP, func(s *sidecar) {
			s.config.ClientCAs, s.config.MaxVersion = theirs.pool(), tls.VersionTLS12
		}, false, ""},
		{"another root that is not named, by an alert", mesh.HTTP, func(s *sidecar) {
			s.config.ClientAuth, s.config.ClientCAs = tls.RequireAnyClientCert, nil
			s.config.VerifyConnection = func(tls.ConnectionState) error { return errAlertRecord }
		}, false, "alert"},
		{"HTTP, closed without a word", mesh.HTTP, closes(ours), false, "closed"},
		{"TCP, closed without a word, and named", mesh.TCP, closes(ours), true, ""},
		{"TCP, closed without a word, another root named", mesh.TCP, closes(theirs), false, "is not among them"},
		{"nobody is asked", mesh.HTTP, func(s *sidecar) { s.config.ClientAuth = tls.NoClientCert }, false, ""},
		{"no TLS", mesh.HTTP, func(s *sidecar) { s.config = nil }, false, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			serving := ours.good(test.protocol)
			made := target(t, test.protocol, "", serving)
			if test.change != nil {
				test.change(serving)
			}
			made.Address = serving.start(t)
			shown := Show(t.Context(), &made, &probe, ours.cert, 2*time.Second)
			if shown.Accepts != test.accepts || !strings.Contains(shown.How, test.how) {
				t.Errorf("accepts %t, %s; want %t, %s", shown.Accepts, shown.How, test.accepts, test.how)
			}
			if serving.config != nil && (len(shown.Chain) == 0 || mtls.Serial(shown.Chain[0]) != made.Serial) {
				t.Errorf("the chain is %v", shown.Chain)
			}
		})
	}
}

// TestShowNobody looks at an address where nobody is, and at one where somebody stands still.
func TestShowNobody(t *testing.T) {
	ours := newTestCA(t)
	probe := ours.leaf(mustID(t, id.Probe, "verify"), nil)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	still := target(t, mesh.TCP, listener.Addr().String(), nil)
	if shown := Show(t.Context(), &still, &probe, ours.cert, 300*time.Millisecond); shown.Accepts || shown.Chain != nil || !strings.Contains(shown.How, "no answer") {
		t.Errorf("who stands still: %+v", shown)
	}
	listener.Close()
	if shown := Show(t.Context(), &still, &probe, ours.cert, 300*time.Millisecond); shown.Accepts || !strings.Contains(shown.How, "unreachable") {
		t.Errorf("nobody: %+v", shown)
	}
}
