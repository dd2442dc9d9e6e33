package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSecretsPage runs the commands of docs/secrets.md in the order of the text, and looks at what they
// print.
func TestSecretsPage(t *testing.T) {
	p := openPage(t, "secrets.md")
	script := "set -euo pipefail\n"
	for _, block := range p.atLeast(1) {
		script += block.commands
	}
	out := p.run(script)
	for _, want := range []string{
		"made the store file:./secrets\n", "is current\n", "VERSION ", "NAME ", "`--private-key` prints it all the same\nstatus 2\n",
		"mesh/bundle version 2027-01 is pending\n", "mesh/bundle version 2027-01 is current\n",
		"shop/orders/key_pem version 2027-02 is pending\n", "shop/orders/cert_pem version 2027-02 is current\n",
		"spiffe://shop.internal/service/orders",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in the output:\n%s", want, out)
		}
	}
	// The bundle of two roots, and the one before.
	if got := strings.Count(out, "BEGIN CERTIFICATE"); got != 3 {
		t.Errorf("%d certificates were printed, want 3:\n%s", got, out)
	}
	if strings.Contains(out, "PRIVATE KEY") {
		t.Error("a private key was printed")
	}
	for _, name := range []string{"cert.pem", "key.pem", "ca.pem"} {
		if _, err := os.Stat(filepath.Join(p.dir, "tls", "current", name)); err != nil {
			t.Error(err)
		}
	}
}
