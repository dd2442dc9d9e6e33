package main

import (
	"bytes"
	"crypto/x509"
	"log/slog"
	"math/big"
	"strings"
	"testing"

	"countersign.dev/credential"
)

// TestInitSerial asserts that `init` names a serial number as `ca list` and the journal do, with its leading zero.
func TestInitSerial(t *testing.T) {
	var out bytes.Buffer
	cred := &credential.Credential{Chain: []*x509.Certificate{{SerialNumber: big.NewInt(0xabc)}}}
	err := initCmd{To: "x"}.describe(&process{ctx: t.Context(), stdout: &out, log: slog.New(slog.DiscardHandler)}, cred)
	if err != nil || !strings.Contains(out.String(), "serial 0abc, ") {
		t.Errorf("%v, %s", err, out.String())
	}
}
