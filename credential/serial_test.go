package credential

import (
	"crypto/x509"
	"fmt"
	"math/big"
	"strings"
	"testing"
)

// TestSerialNamed asserts that a serial number keeps its leading zero, so that it is found in the server's books.
func TestSerialNamed(t *testing.T) {
	for want, serial := range map[string]*big.Int{"0abc": big.NewInt(0xabc), "abcd": big.NewInt(0xabcd), "00": new(big.Int)} {
		for _, subject := range [][]byte{nil, {0x30, 0x03, 0, 0, 0}} {
			if got := nameOf(&x509.Certificate{SerialNumber: serial, RawSubject: subject}); got != "the certificate "+want && !strings.HasPrefix(got, "the certificate "+want+" of ") {
				t.Errorf("%s, want the serial number %s", got, want)
			}
		}
	}
	if got := nameOf(&x509.Certificate{}); got != "the certificate 00" {
		t.Errorf("without a serial number: %s", got)
	}
}

// TestNamesQuoted asserts that names of a certificate are a list in a message, bounded, and move no cursor.
func TestNamesQuoted(t *testing.T) {
	if got, want := quoted([]string{"a.internal", "b\x1b[2J"}), `"a.internal", "b\x1b[2J"`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	var many []string
	for i := range 20 {
		many = append(many, fmt.Sprintf("%d.%s", i, strings.Repeat("x", 200)))
	}
	if got := quoted(many); len(got) > 900 || !strings.HasSuffix(got, ", and 12 more") {
		t.Errorf("%d bytes: %s", len(got), got)
	}
}
