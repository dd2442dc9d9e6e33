package rig

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// TrustDomain is that of every certificate of the rig.
const TrustDomain = "bench.internal"

// The workloads, and the name that the connecting side looks for in the other's certificate.
const (
	clientName = "client"
	serverName = "server"
	// ServerDNS is a DNS name of the receiving side's certificate.
	ServerDNS = serverName + "." + TrustDomain
)

// Identity is a certificate, its key and whom it trusts, in files.
type Identity struct {
	Chain, Key, CA string // PEM
	Both           string // chain and key in one, as HAProxy wants them
}

// Load reads it for a Go client or server.
func (i Identity) Load() (tls.Certificate, *x509.CertPool, error) {
	certificate, err := tls.LoadX509KeyPair(i.Chain, i.Key)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("loading a certificate of the rig: %w", err)
	}
	text, err := os.ReadFile(i.CA)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return tls.Certificate{}, nil, fmt.Errorf("%s holds no certificate", i.CA)
	}
	return certificate, pool, nil
}

// caState is where the authority is kept; every mesh gets a copy, so that all certificates of the rig
// are of one authority.
func (r *Rig) caState() string { return filepath.Join(r.Dir, "authority") }

// authority makes the authority and the certificates of those who have no sidecar of ours. All keys are
// P-256.
func (r *Rig) authority(ctx context.Context) error {
	if _, err := r.Countersign(ctx, "ca", "init", "--state", r.caState(), "--trust-domain", TrustDomain, "--unsealed"); err != nil {
		return err
	}
	spec := filepath.Join(r.Dir, "authority.yaml")
	text := "mesh: bench\nservices:\n  " + clientName + ": {}\n  " + serverName + ": {}\n"
	if err := os.WriteFile(spec, []byte(text), 0o600); err != nil {
		return err
	}
	for name, to := range map[string]*Identity{clientName: &r.Client, serverName: &r.Server} {
		out := filepath.Join(r.Dir, "identity-"+name)
		if _, err := r.Countersign(ctx, "ca", "issue", name, "--state", r.caState(), "--unsealed", "--mesh", spec, "--out", out); err != nil {
			return err
		}
		current := filepath.Join(out, "current")
		*to = Identity{
			Chain: filepath.Join(current, "cert.pem"), Key: filepath.Join(current, "key.pem"), CA: filepath.Join(current, "ca.pem"),
			Both: filepath.Join(r.Dir, name+".pem"),
		}
		var both []byte
		for _, part := range []string{to.Chain, to.Key} {
			text, err := os.ReadFile(part)
			if err != nil {
				return err
			}
			both = append(both, text...)
		}
		if err := os.WriteFile(to.Both, both, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Stranger makes a certificate that claims to be the connecting sidecar and is of an authority that
// nobody knows.
func Stranger() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	name := &url.URL{Scheme: "spiffe", Host: TrustDomain, Path: "/service/" + clientName}
	now := time.Now()
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "nobody's authority"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: clientName},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames: []string{clientName + "." + TrustDomain}, URIs: []*url.URL{name},
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, authority, &key.PublicKey, caKey)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("making a stranger's certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
