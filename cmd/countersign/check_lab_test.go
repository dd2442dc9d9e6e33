package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/secret/filestore"
)

const checkSpec = `mesh: m
certificates: {ttl: 168h, renewAfter: 120h}
stores:
  main: {type: file, dir: store, identityFile: id.age}
services:
  api:
    ports: [{port: 9443, app: 9080, protocol: http}]
    proxy: {engine: nginx}
    delivery: {type: store, store: main, secret: "{mesh}/{service}"}
gateways:
  edge:
    listen: [{port: 443, protocol: http, certificate: {cert: site.pem, key: site-key.pem}}]
    routes: [{match: {prefix: /}, to: [{service: api}]}]
`

// checkLab is a CA of our own, a real store, an endpoint for each workload, and a server that answers what a test wants.
type checkLab struct {
	dir, spec    string
	root, issuer *x509.Certificate
	keys         map[*x509.Certificate]crypto.Signer
	store        *filestore.Store
	answers      map[string]any
	socket       string
	serials      int64
	now          time.Time
}

func newCheckLab(t *testing.T) *checkLab {
	t.Helper()
	l := &checkLab{dir: t.TempDir(), keys: make(map[*x509.Certificate]crypto.Signer), now: time.Now().Truncate(time.Second), serials: 0x10}
	l.spec = filepath.Join(l.dir, "mesh.yaml")
	l.write(t, "mesh.yaml", checkSpec)
	const year = 365 * 24 * time.Hour
	l.root = l.certify(t, nil, &x509.Certificate{Subject: pkix.Name{CommonName: "m root"}, IsCA: true, NotAfter: l.now.Add(10 * year)})
	l.issuer = l.certify(t, l.root, &x509.Certificate{Subject: pkix.Name{CommonName: "m issuer"}, IsCA: true, NotAfter: l.now.Add(3 * year)})
	if err := filestore.GenerateIdentity(filepath.Join(l.dir, "id.age")); err != nil {
		t.Fatal(err)
	}
	identity, err := filestore.LoadIdentity(filepath.Join(l.dir, "id.age"))
	if err == nil {
		l.store, err = filestore.Create(filepath.Join(l.dir, "store"), identity)
	}
	if err != nil {
		t.Fatal(err)
	}
	api1, edge, site := l.leaf(t, id.Service, "api", 24*time.Hour), l.leaf(t, id.Gateway, "edge", 24*time.Hour), l.site(t, 10*24*time.Hour)
	l.put(t, "m/api", "v1", l.object(t, api1, l.keys[api1], l.root))
	l.write(t, "site.pem", string(pemOf(site)))
	documents, err := mesh.ReadDocuments(l.spec)
	if err != nil {
		t.Fatal(err)
	}
	l.answers = map[string]any{
		api.PathMesh: &api.MeshResponse{Revision: 1, Documents: documents},
		api.PathCA:   &api.CAResponse{TrustDomain: "m.internal", Root: string(pemOf(l.root)), Issuer: string(pemOf(l.issuer))},
		api.PathCRL:  l.lists(t),
		api.PathCertificates: []api.CertificateRecord{
			l.record(t, api1, ""), l.record(t, edge, "edge-1"), l.record(t, l.leaf(t, id.Server, "countersign", 0), ""),
		},
		api.PathStatus: []api.Status{
			{Workload: "api", Instance: "api-1", Serial: mtls.Serial(api1), NotAfter: api1.NotAfter, Connected: true},
			{Workload: "edge", Instance: "edge-1", Serial: mtls.Serial(edge), NotAfter: edge.NotAfter, Connected: true},
		},
		api.PathEndpoints: []api.Instance{
			{Workload: "api", Instance: "api-1", Inbound: []api.Listening{{Port: 9443, Address: l.serve(t, api1)}}},
			{Workload: "edge", Instance: "edge-1", Inbound: []api.Listening{{Port: 443, Address: l.serve(t, site)}}},
		},
	}
	l.listen(t)
	return l
}

func (l *checkLab) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(l.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// certify makes a certificate with a key of its own, by a parent or by itself.
func (l *checkLab) certify(t *testing.T, parent, template *x509.Certificate) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	l.serials++
	template.SerialNumber = big.NewInt(l.serials)
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageDigitalSignature
	if template.IsCA {
		template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	if template.NotBefore.IsZero() {
		template.NotBefore = l.now.Add(-time.Hour)
	}
	signer := crypto.Signer(key)
	if parent == nil {
		parent = template
	} else {
		signer = l.keys[parent]
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	l.keys[cert] = key
	return cert
}

// leaf makes a leaf of a workload that lives for a week and is of that age.
func (l *checkLab) leaf(t *testing.T, kind id.Kind, name string, age time.Duration) *x509.Certificate {
	t.Helper()
	identity, err := id.New("m.internal", kind, name)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		NotBefore: l.now.Add(-age - 5*time.Minute), NotAfter: l.now.Add(168*time.Hour - age), DNSNames: []string{name},
	}
	template.URIs = append(template.URIs, identity.URL())
	return l.certify(t, l.issuer, template)
}

// site is a certificate of another CA, for the outside, that lives for 398 days.
func (l *checkLab) site(t *testing.T, age time.Duration) *x509.Certificate {
	t.Helper()
	return l.certify(t, nil, &x509.Certificate{
		Subject: pkix.Name{CommonName: "www.example.com"}, DNSNames: []string{"www.example.com"},
		NotBefore: l.now.Add(-age), NotAfter: l.now.Add(398*24*time.Hour - age),
	})
}

func pemOf(certs ...*x509.Certificate) []byte {
	var text []byte
	for _, cert := range certs {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return text
}

// object is a credential in the layout json.
func (l *checkLab) object(t *testing.T, leaf *x509.Certificate, key crypto.Signer, root *x509.Certificate) string {
	t.Helper()
	keyText, err := mtls.MarshalKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(map[string]string{"cert_pem": string(pemOf(leaf, l.issuer)), "key_pem": string(keyText), "ca_bundle": string(pemOf(root))})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// put makes a version current.
func (l *checkLab) put(t *testing.T, name, version, value string) {
	t.Helper()
	_, err := l.store.Stage(t.Context(), name, version, []byte(value))
	if err == nil {
		err = l.store.Promote(t.Context(), name, version)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (l *checkLab) record(t *testing.T, leaf *x509.Certificate, instance string) api.CertificateRecord {
	t.Helper()
	identity, err := id.FromCertificate(leaf)
	if err != nil {
		t.Fatal(err)
	}
	return api.CertificateRecord{Serial: mtls.Serial(leaf), Identity: identity, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, Instance: instance}
}

// lists are the revocation lists of both CAs, with the revoked on the issuing CA's.
func (l *checkLab) lists(t *testing.T, revoked ...*x509.Certificate) []byte {
	t.Helper()
	var text []byte
	for _, ca := range []*x509.Certificate{l.issuer, l.root} {
		list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: l.now.Add(-time.Hour), NextUpdate: l.now.Add(23 * time.Hour)}
		for _, cert := range revoked {
			list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: cert.SerialNumber, RevocationTime: l.now.Add(-time.Minute)})
		}
		revoked = nil
		der, err := x509.CreateRevocationList(rand.Reader, list, ca, l.keys[ca])
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...)
	}
	return text
}

// serve presents a certificate, and gives the address.
func (l *checkLab) serve(t *testing.T, leaf *x509.Certificate) string {
	t.Helper()
	pair := tls.Certificate{Certificate: [][]byte{leaf.Raw, l.issuer.Raw}, PrivateKey: l.keys[leaf]}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).Handshake() // whoever looks may go as soon as he has seen the certificate
			conn.Close()
		}
	}()
	t.Cleanup(func() { listener.Close(); <-done })
	return listener.Addr().String()
}

// listen answers on a socket: JSON, bytes as they are, or a refusal.
func (l *checkLab) listen(t *testing.T) {
	t.Helper()
	dir, err := os.MkdirTemp("", "cs") // a socket's path has to be short
	if err != nil {
		t.Fatal(err)
	}
	l.socket = filepath.Join(dir, "s")
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", l.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := l.answers[r.URL.Path]
		if raw, is := answer.([]byte); is {
			_, _ = w.Write(raw) // the client has gone
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if _, refused := answer.(*api.Error); refused || !ok {
			w.WriteHeader(http.StatusInternalServerError)
		}
		_ = json.NewEncoder(w).Encode(answer)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }() // it ends by Close
	t.Cleanup(func() { server.Close(); <-done; os.RemoveAll(dir) })
}

// check runs the command in this process.
func (l *checkLab) check(t *testing.T, args ...string) (int, checkedExpiry) {
	t.Helper()
	t.Setenv("COUNTERSIGN_RUN", "")
	status, stdout, stderr := command(t, append([]string{"check", "expiry", "--settle", "0s", "--output", "json"}, args...)...)
	var checked checkedExpiry
	if err := json.Unmarshal([]byte(stdout), &checked); err != nil {
		t.Fatalf("status %d: %v\n%s\n%s", status, err, stdout, stderr)
	}
	if strings.Contains(stdout+stderr, "PRIVATE KEY") {
		t.Errorf("a private key is printed:\n%s\n%s", stdout, stderr)
	}
	return status, checked
}
