package mtls

import (
	"crypto/fips140"
	"os"
	"os/exec"
	"testing"
)

// fipsChild marks the process that runs in FIPS 140-3 mode.
const fipsChild = "MTLS_FIPS_CHILD"

// TestFIPS runs handshakes, refusals and resumption in a process whose cryptography is Go's FIPS 140-3
// module (GODEBUG=fips140=on).
func TestFIPS(t *testing.T) {
	if os.Getenv(fipsChild) != "" {
		if !fips140.Enabled() {
			t.Fatal("the mode is not on")
		}
		return
	}
	if testing.Short() {
		t.Skip("it runs most of this package's tests again")
	}
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^(TestFIPS|TestKeyTypes|TestServerRefuses|TestClientRefuses|TestClientAuth|TestResumption|TestRemembered|TestNegotiatedGroup|TestEffectiveGroups|TestAES128First)$")
	child.Env = append(os.Environ(), "GODEBUG=fips140=on", fipsChild+"=1")
	if output, err := child.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, output)
	}
}
