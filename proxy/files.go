package proxy

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"countersign.dev/mesh"
)

// fileCheck is how often certificate files are looked at, at most; they are looked at only when
// somebody connects.
const fileCheck = time.Second

// fileServer makes the handshakes of a gateway's listener whose certificate is in files. When the
// files change they are read again; while they cannot be read, or do not belong together (somebody is
// in the middle of replacing them), the last good pair is served. Session tickets die with the pair.
type fileServer struct {
	files  mesh.CertificateFiles
	log    *slog.Logger
	base   *tls.Config
	config *tls.Config // asks current at every handshake

	mu      sync.Mutex
	pair    *tls.Certificate // guarded by mu
	served  *tls.Config      // guarded by mu: base with pair and ticket keys of its own
	tried   string           // guarded by mu: the version of the files that were read last
	checked time.Time        // guarded by mu
}

func newFileServer(files mesh.CertificateFiles, minTLS mesh.TLSVersion, groups []tls.CurveID, protos []string, log *slog.Logger) (*fileServer, error) {
	s := &fileServer{files: files, log: log}
	s.base = &tls.Config{
		MinVersion:       tls.VersionTLS12,
		NextProtos:       protos,
		CurvePreferences: groups,
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
	}
	if minTLS == mesh.TLS13 {
		s.base.MinVersion = tls.VersionTLS13
	}
	s.config = s.base.Clone()
	s.config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		config, _ := s.current()
		return config, nil
	}
	version, err := s.stat()
	if err != nil {
		return nil, err
	}
	pair, err := s.read()
	if err != nil {
		return nil, err
	}
	s.serve(pair)
	s.tried, s.checked = version, time.Now()
	return s, nil
}

// serve makes the configuration of a pair. The caller holds s.mu or is alone.
func (s *fileServer) serve(pair *tls.Certificate) {
	var key [32]byte
	_, _ = rand.Read(key[:]) // crypto/rand ends the process rather than fail
	s.pair, s.served = pair, s.base.Clone()
	s.served.Certificates = []tls.Certificate{*pair}
	s.served.SetSessionTicketKeys([][32]byte{key})
}

// Config implements tlsServer.
func (s *fileServer) Config() *tls.Config { return s.config }

// leaf is the certificate that is served.
func (s *fileServer) leaf() *x509.Certificate {
	_, pair := s.current()
	return pair.Leaf
}

// current is the newest pair that could be read.
func (s *fileServer) current() (*tls.Config, *tls.Certificate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.checked) >= fileCheck {
		s.checked = time.Now()
		s.reload()
	}
	return s.served, s.pair
}

// reload reads the files when they have changed. The caller holds s.mu.
func (s *fileServer) reload() {
	version, err := s.stat()
	if err != nil || version == s.tried {
		return
	}
	s.tried = version
	pair, err := s.read()
	if err != nil {
		s.log.Error("certificate files changed and cannot be used; the last ones are served on", "cert", s.files.Cert, "key", s.files.Key, "error", err)
		return
	}
	s.log.Info("certificate files read again", "cert", s.files.Cert, "notAfter", pair.Leaf.NotAfter)
	s.serve(pair)
}

func (s *fileServer) read() (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(s.files.Cert, s.files.Key)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate %s and the key %s: %w", s.files.Cert, s.files.Key, err)
	}
	return &pair, nil
}

// stat tells one version of the files from another.
func (s *fileServer) stat() (string, error) {
	version := ""
	for _, path := range []string{s.files.Cert, s.files.Key} {
		info, err := os.Stat(path)
		if err != nil {
			return "", fmt.Errorf("looking at a certificate file: %w", err)
		}
		version += fmt.Sprintf("%d %d;", info.ModTime().UnixNano(), info.Size())
	}
	return version, nil
}
