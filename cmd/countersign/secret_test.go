package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestSecretsPage runs the commands of docs/secrets.md in the order of the text, and looks at what they
// print.
func TestSecretsPage(t *testing.T) {
	text, err := os.ReadFile("../../docs/secrets.md")
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	script.WriteString("set -euo pipefail\n")
	inside := false
	for line := range strings.Lines(string(text)) {
		switch {
		case strings.HasPrefix(line, "```"):
			inside = strings.TrimSpace(line) == "```sh"
		case inside:
			script.WriteString(line)
		}
	}
	// This test binary is countersign, which main_test.go makes of it by its name.
	dir, bin := t.TempDir(), t.TempDir()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	wrapper := fmt.Sprintf("#!/bin/bash\nexec -a countersign '%s' \"$@\"\n", executable)
	if err := os.WriteFile(filepath.Join(bin, "countersign"), []byte(wrapper), 0o700); err != nil {
		t.Fatal(err)
	}
	command := exec.Command("bash", "-c", script.String())
	command.Dir = dir
	command.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "GORACE=atexit_sleep_ms=0")
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		"made the store file:./secrets\n", "is current\n", "VERSION ", "NAME ", "`--private-key` prints it all the same\nstatus 2\n",
		"mesh/bundle version 2027-01 is pending\n", "mesh/bundle version 2027-01 is current\n",
		"shop/orders/key_pem version 2027-02 is pending\n", "shop/orders/cert_pem version 2027-02 is current\n",
		"spiffe://shop.internal/service/orders",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is not in the output:\n%s", want, out)
		}
	}
	// The bundle of two roots, and the one before.
	if got := strings.Count(string(out), "BEGIN CERTIFICATE"); got != 3 {
		t.Errorf("%d certificates were printed, want 3:\n%s", got, out)
	}
	if strings.Contains(string(out), "PRIVATE KEY") {
		t.Error("a private key was printed")
	}
	for _, name := range []string{"cert.pem", "key.pem", "ca.pem"} {
		if _, err := os.Stat(filepath.Join(dir, "tls", "current", name)); err != nil {
			t.Error(err)
		}
	}
}
