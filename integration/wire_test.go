package integration

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The wire is the mesh of the tests that look at bytes. Its applications are served by the test itself,
// which so knows what they saw.
//
//	caller  has no application: the tests dial its outbound listeners
//	bytes   the recorder of bytes: HTTP/1.1 under mutual TLS (9080), permissive (9081), without TLS
//	        (9082), under TLS without client certificates (9083)
//	second  NGINX, the second reader
//	web     net/http as the clients' tests want it: HTTP/1.1 (9280), HTTP/2 (9282), and each under TLS
//	        without client certificates (9281, 9283)
//	odd     HTTP/1.1 that says what a test wants said
//	edge    a gateway in front of bytes and web, in plaintext and with a certificate
const wireSpec = `mesh: wire
services:
  caller:
    calls:
      - {service: bytes, port: 9080}
      - {service: second}
      - {service: web, port: 9280}
      - {service: web, port: 9282}
      - {service: odd}
  bytes:
    ports:
      - {port: 9080, protocol: http}
      - {port: 9081, protocol: http, app: 9080, tls: permissive}
      - {port: 9082, protocol: http, app: 9080, tls: "off"}
      - {port: 9083, protocol: http, app: 9080, clientAuth: none}
  second:
    ports: [{port: 9180, protocol: http}]
  web:
    ports:
      - {port: 9280, protocol: http}
      - {port: 9281, protocol: http, app: 9280, clientAuth: none}
      - {port: 9282, protocol: http2}
      - {port: 9283, protocol: http2, app: 9282, clientAuth: none}
  odd:
    ports: [{port: 9380, protocol: http}]
gateways:
  edge:
    listen:
      - {port: 8080, protocol: http}
      - {port: 8081, protocol: http, certificate: {cert: edge.pem, key: edge.key}}
      - {port: 8082, protocol: http2}
      - {port: 8083, protocol: http2, certificate: {cert: edge.pem, key: edge.key}}
      - {port: 8280, protocol: http}
      - {port: 8282, protocol: http2}
      - {port: 8283, protocol: http2, certificate: {cert: edge.pem, key: edge.key}}
      - {port: 8380, protocol: http}
      - {port: 8382, protocol: http2}
    routes:
      - {match: {listener: 8080}, to: [{service: bytes, port: 9080}]}
      - {match: {listener: 8081}, to: [{service: bytes, port: 9080}]}
      - {match: {listener: 8082}, to: [{service: bytes, port: 9080}]}
      - {match: {listener: 8083}, to: [{service: bytes, port: 9080}]}
      - {match: {listener: 8280}, to: [{service: web, port: 9280}]}
      - {match: {listener: 8282}, to: [{service: web, port: 9282}]}
      - {match: {listener: 8283}, to: [{service: web, port: 9282}]}
      - {match: {listener: 8380}, to: [{service: odd}]}
      - {match: {listener: 8382}, to: [{service: odd}]}
`

// wired is that mesh with its applications.
type wired struct {
	*running
	recorder *recorder
	odd      *oddApp
	web      *webApp
	closers  []func()
}

var theWire struct {
	once sync.Once
	dir  string
	mesh *wired
	err  error
}

// wire starts that mesh, or gives the one that runs.
func wire(t *testing.T) *wired {
	t.Helper()
	theWire.once.Do(func() { theWire.mesh, theWire.err = startWire() })
	if theWire.err != nil {
		t.Fatalf("the mesh of the bytes: %v", theWire.err)
	}
	return theWire.mesh
}

func startWire() (*wired, error) {
	dir, err := os.MkdirTemp("", "countersign-wire-")
	if err != nil {
		return nil, err
	}
	theWire.dir = dir
	if err := selfSigned(filepath.Join(dir, "edge.pem"), filepath.Join(dir, "edge.key")); err != nil {
		return nil, err
	}
	path, logs := filepath.Join(dir, "mesh.yaml"), filepath.Join(dir, "logs")
	if err := errors.Join(os.WriteFile(path, []byte(wireSpec), 0o600), os.Mkdir(logs, 0o700)); err != nil {
		return nil, err
	}
	mesh, err := launch(path, logs)
	if err != nil {
		return nil, err
	}
	w := &wired{running: mesh, recorder: &recorder{}, odd: &oddApp{}, web: newWebApp()}
	return w, w.serveApps()
}

// serveApps listens where the sidecars expect the applications.
func (w *wired) serveApps() error {
	var all error
	serve := func(workload string, number int, serve func(net.Listener)) {
		listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp", w.application(workload, number))
		if err != nil {
			all = errors.Join(all, err)
			return
		}
		w.closers = append(w.closers, func() { listener.Close() })
		go serve(listener)
	}
	serve("bytes", 0, w.recorder.serve)
	serve("odd", 0, w.odd.serve)
	serve("web", 0, w.web.serve)
	serve("web", 1, w.web.serve)
	return all
}

// application is where the application of a workload's first instance is expected.
func (w *wired) application(workload string, number int) string {
	for _, one := range w.Workloads {
		if one.Name == workload && one.App != nil && number < len(one.App.Addresses) {
			return one.App.Addresses[number]
		}
	}
	return "the document names no application " + workload
}

// stopWire ends that mesh, if a test has started it.
func stopWire() error {
	defer func() { _ = os.RemoveAll(theWire.dir) }()
	if theWire.mesh == nil {
		return nil
	}
	err := theWire.mesh.stop(syscall.SIGINT)
	if err != nil {
		fmt.Fprintln(os.Stderr, theWire.mesh.tails())
	}
	for _, closeIt := range theWire.mesh.closers {
		closeIt()
	}
	return err
}

// selfSigned writes a certificate and its key.
func selfSigned(certFile, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "edge.test"}, DNSNames: []string{"edge.test"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, &key.PublicKey, key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
}

// door is a listener that takes bytes from whoever comes.
type door struct {
	name, address string
	alpn          string // not empty: under TLS, with this protocol
}

// dial connects, and shakes hands where the listener wants it.
func (d door) dial() (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", d.address, patience)
	if err != nil || d.alpn == "" {
		return conn, err
	}
	conn.SetDeadline(time.Now().Add(patience))
	secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{d.alpn}}) // its bytes are looked at, not its name
	if err := secure.Handshake(); err != nil {
		conn.Close()
		return nil, err
	}
	if got := secure.ConnectionState().NegotiatedProtocol; got != d.alpn && d.alpn == "h2" {
		conn.Close()
		return nil, fmt.Errorf("%s offers %q, and %q was negotiated", d.name, d.alpn, got)
	}
	return secure, nil
}

// client speaks HTTP through the door.
func (d door) client(protocols ...func(*http.Protocols)) (*http.Client, string) {
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Protocols: new(http.Protocols), DisableCompression: true}
	for _, set := range protocols {
		set(transport.Protocols)
	}
	scheme := "http://"
	if d.alpn != "" {
		scheme = "https://"
	}
	return &http.Client{Transport: transport, Timeout: patience}, scheme + d.address
}
