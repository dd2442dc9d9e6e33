package engine_test

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign.dev/engine"
	"countersign.dev/issue/issuetest"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// namedWorld is a mesh in which front calls back, both known by DNS names, beside somebody with a SPIFFE ID.
const namedWorld = `
mesh: shop
stores: {vault: {type: secretsmanager}}
authorities:
  acm:
    type: acm
    arn: arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/12345678-1234-1234-1234-123456789012
    names: {front: front.shop.example, back: back.shop.example, other: other.shop.example}
  pca: {type: acmpca, arn: "arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/12345678-1234-1234-1234-123456789012"}
certificates: {authority: acm}
services:
  front:
    proxy: {engine: %[1]s}
    delivery: &delivery {type: store, store: vault, secret: "{mesh}/{service}", bundle: shop/bundle, layout: exported}
    calls: [{service: back, port: 9080, listen: 9180}, {service: back, port: 7000, listen: 7100}]
  back:
    proxy: {engine: %[1]s}
    delivery: *delivery
    ports:
      - {port: 9080, protocol: http, app: 18080, allow: [{from: front, paths: [/seen]}]}
      - {port: 9081, protocol: http, app: 18080, allow: [{from: any}]}
      - {port: 9082, protocol: http, app: 18080, allow: [{from: mixed}]}
      - {port: 7000, protocol: tcp, app: 17000, allow: [{from: front}]}
  other:
    proxy: {engine: %[1]s}
    delivery: *delivery
    calls: [{service: back, port: 9081, listen: 9181}]
  mixed:
    proxy: {engine: %[1]s}
    certificates: {authority: pca}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}", bundle: shop/bundle}
    calls: [{service: back, port: 9082, listen: 9182}]
`

// named makes a certificate as ACM has them made: a DNS name, and nothing else.
func (a *authority) named(t testing.TB, name string, change func(*x509.Certificate)) (chain, key []byte) {
	t.Helper()
	own := issuetest.Key(t)
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.Issuing, own.Public(), a.Key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	key, err = mtls.MarshalKey(own)
	if err != nil {
		t.Fatal(err)
	}
	return issuetest.PEM(leaf, a.Issuing), key
}

// place writes a workload's files; its certificate is by the Plan.
func (a *authority) place(t testing.TB, dir string, plan *mesh.Plan) {
	t.Helper()
	a.write(t, dir, plan.Workload.Identity)
	if plan.Certificate.DNSIdentity == "" {
		return
	}
	chain, key := a.named(t, plan.Certificate.DNSIdentity, nil)
	for file, content := range map[string][]byte{"cert.pem": chain, "key.pem": key, "cert-and-key.pem": slices.Concat(chain, key)} {
		if err := os.WriteFile(filepath.Join(dir, "certs", "current", file), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNamed serves callers and callees that have DNS names instead of SPIFFE IDs: each is admitted, and spoken to, by its own
// name alone.
func TestNamed(t *testing.T) {
	for _, f := range engines {
		t.Run(f.name, func(t *testing.T) {
			f.path(t)
			spec, ca := parse(t, fmt.Sprintf(namedWorld, f.name)), newAuthority(t)
			back, front := freeAddress(t, 9080, 9081, 9082, 7000, 18080, 17000), freeAddress(t, 9180, 7100)
			serveApplication(t, back)
			var backLog *output
			for name, address := range map[string]netip.Addr{"back": back, "front": front} {
				plan, dir := compile(t, spec, name), t.TempDir()
				ca.place(t, dir, plan)
				for i, u := range plan.Upstreams {
					plan.Upstreams[i].Endpoints = []mesh.Endpoint{{Instance: "back-1", Address: netip.AddrPortFrom(back, uint16(u.Port))}}
				}
				o := options(dir)
				o.Address, o.Loopback, o.CRL = address, address, true
				if out := f.start(t, dir, plan, o); name == "back" {
					backLog = out
				}
			}
			status, saw, err := ask(t, nil, "GET", "http://"+front.String()+":9180/seen", "")
			if err != nil || status != http.StatusOK {
				t.Fatalf("through both: %d, %v", status, err)
			}
			if got := saw["X-Client-Cert"]; len(got) != 1 || got[0] != "CN=front.shop.example" {
				t.Errorf("the application was told of %q", got)
			}
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", front.String()+":7100")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := echoed(t, conn); err != nil {
				t.Errorf("through both by tcp: %v", err)
			}
			ca.admits(t, back.String())
			if f.name == "nginx" {
				eventually(t, "the log names the caller", func() bool { return strings.Contains(backLog.String(), `"caller":"dns:front.shop.example"`) })
			}
		})
	}
}

// admits asks as everybody whom a rule may mean, or not.
func (a *authority) admits(t *testing.T, back string) {
	t.Helper()
	client := func(chain, key []byte) *tls.Config {
		pair, err := tls.X509KeyPair(chain, key)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(a.Root)
		return &tls.Config{
			RootCAs: roots, ServerName: "back.shop.example", MinVersion: tls.VersionTLS12,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil },
		}
	}
	longer := func(c *x509.Certificate) { c.Subject.Organization = []string{"shop.internal"} }
	for _, test := range []struct {
		who  string
		as   *tls.Config
		port string
		want int
	}{
		{"front", client(a.named(t, "front.shop.example", nil)), "9080", 200},
		{"other", client(a.named(t, "other.shop.example", nil)), "9080", 403},
		{"a longer name", client(a.named(t, "x.front.shop.example", nil)), "9080", 403},
		{"a name that a dot could be", client(a.named(t, "frontxshop.example", nil)), "9080", 403},
		{"the name in a longer subject", client(a.named(t, "front.shop.example", longer)), "9080", 403},
		{"the name as a SAN alone", client(a.named(t, "other.shop.example", func(c *x509.Certificate) { c.DNSNames = []string{"front.shop.example"} })), "9080", 403},
		{"front by its SPIFFE ID", client(a.Pair(t, member(t, "front"))), "9080", 403},
		{"front among all", client(a.named(t, "front.shop.example", nil)), "9081", 200},
		{"a stranger among all", client(a.named(t, "stranger.shop.example", nil)), "9081", 403},
		{"a member among all", client(a.Pair(t, member(t, "mixed"))), "9081", 200},
		{"a member", client(a.Pair(t, member(t, "mixed"))), "9082", 200},
		{"somebody named like a member", client(a.named(t, "mixed", nil)), "9082", 403},
	} {
		if status, _, err := ask(t, test.as, "GET", "https://"+back+":"+test.port+"/seen", ""); err != nil || status != test.want {
			t.Errorf("%s on %s: %d, %v, want %d", test.who, test.port, status, err, test.want)
		}
	}
}

// TestWrongNamedServer asserts that a callee is believed by its own DNS name alone.
func TestWrongNamedServer(t *testing.T) {
	for _, f := range engines {
		t.Run(f.name, func(t *testing.T) {
			f.path(t)
			spec, ca, address, dir := parse(t, fmt.Sprintf(namedWorld, f.name)), newAuthority(t), freeAddress(t, 9080, 9180, 7100), t.TempDir()
			plan := compile(t, spec, "front")
			ca.place(t, dir, plan)
			for i := range plan.Upstreams {
				plan.Upstreams[i].Endpoints = []mesh.Endpoint{{Instance: "1", Address: netip.AddrPortFrom(address, 9080)}}
			}
			o := options(dir)
			o.Address, o.Loopback = address, address
			f.start(t, dir, plan, o)
			for name, want := range map[string]int{"back.shop.example": 200, "other.shop.example": 0, "back.shop.internal": 0} {
				t.Run(name, func(t *testing.T) {
					pair, err := tls.X509KeyPair(ca.named(t, name, nil))
					if err != nil {
						t.Fatal(err)
					}
					listener, err := tls.Listen("tcp", address.String()+":9080", &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, ClientAuth: tls.RequireAnyClientCert})
					if err != nil {
						t.Fatal(err)
					}
					server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(application), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
					go func() { _ = server.Serve(listener) }()
					defer server.Close()
					status, _, err := ask(t, nil, "GET", "http://"+address.String()+":9180/seen", "")
					if err != nil || want != 0 && status != want || want == 0 && status != 502 && status != 503 {
						t.Errorf("%d, %v", status, err)
					}
				})
			}
		})
	}
}

// TestNamedRules refuses texts that are no DNS name by which somebody is known.
func TestNamedRules(t *testing.T) {
	spec := parse(t, fmt.Sprintf(namedWorld, "nginx"))
	plan := compile(t, spec, "back")
	for _, bad := range []string{"", "front", "front.", "FRONT.example", "*.example.com", "a b.example", "x$y.example", `a".example`, strings.Repeat("a.", 40) + "example"} {
		r := engine.Refusal{}
		in := plan.Inbound[0]
		in.Rules = []mesh.Rule{{From: []string{mesh.FromDNS + bad}}}
		if rules := engine.Rules(plan, in, &r); r.Err() == nil || len(rules[0].Subjects) != 0 {
			t.Errorf("%q is a DNS name: %v", bad, rules)
		}
	}
}
