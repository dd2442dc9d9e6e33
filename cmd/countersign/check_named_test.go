package main

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"countersign.dev/issue/issuetest"
	"countersign.dev/mesh"
)

// TestCheckNamed compares a certificate that has a DNS name instead of a SPIFFE ID with the name that is declared for it.
func TestCheckNamed(t *testing.T) {
	const name = "checkout.payments.example"
	ca, key := issuetest.New(t), issuetest.Key(t)
	for subject, want := range map[string]string{name: "dns:" + name, "ledger.payments.example": ""} {
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: subject}, DNSNames: []string{name}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
		}, ca.Issuing, key.Public(), ca.Key)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		var s seen
		if got := s.certificate([]*x509.Certificate{leaf}).Identity; got != want {
			t.Errorf("the certificate with the subject %s is of %q, want %q", subject, got, want)
		}
		plan := &mesh.Plan{Certificate: mesh.CertificatePlan{DNSIdentity: name}}
		if got := s.workload(plan).Identity; got != "dns:"+name {
			t.Errorf("%q is declared", got)
		}
	}
}
