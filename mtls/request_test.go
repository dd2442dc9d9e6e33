package mtls_test

import (
	"crypto/x509"
	"encoding/pem"
	"testing"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// TestNewNamedCSR reads what is asked for.
func TestNewNamedCSR(t *testing.T) {
	identity, err := id.Parse("spiffe://payments.internal/service/checkout")
	if err != nil {
		t.Fatal(err)
	}
	key, err := mtls.GenerateKey(mesh.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"checkout", "checkout.payments.internal"}
	text, err := mtls.NewNamedCSR(key, identity, names)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := csr.CheckSignature(); err != nil {
		t.Error(err)
	}
	if got, want := csr.Subject.String(), "CN=checkout,OU=service,O=payments.internal"; got != want {
		t.Errorf("the subject is %q, want %q", got, want)
	}
	if len(csr.URIs) != 1 || csr.URIs[0].String() != identity.String() {
		t.Errorf("the URIs are %v", csr.URIs)
	}
	if diff := cmp.Diff(names, csr.DNSNames); diff != "" {
		t.Errorf("DNS names (-want +got):\n%s", diff)
	}
}
