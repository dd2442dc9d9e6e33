package credential

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestEncryptKey reads back what was written, here and with OpenSSL.
func TestEncryptKey(t *testing.T) {
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"ecdsa": newKey(t), "rsa": rsaKey(t, 2048), "ed25519": edwards} {
		t.Run(name, func(t *testing.T) {
			passphrase := NewPassphrase()
			text, err := EncryptKey(key, passphrase)
			if err != nil {
				t.Fatal(err)
			}
			again, err := EncryptKey(key, passphrase)
			if err != nil || bytes.Equal(again, text) {
				t.Errorf("the same key twice gives the same text, %v", err)
			}
			var notes []Note
			got, err := parseKey(Value{Name: "KEY", Data: text}, Value{Name: "PASSPHRASE", Data: passphrase}, &notes)
			if err != nil || !equal(got.Public(), key.Public()) {
				t.Errorf("reading it back: %v", err)
			}
			if _, err := parseKey(Value{Name: "KEY", Data: text}, Value{Name: "PASSPHRASE", Data: NewPassphrase()}, &notes); err == nil {
				t.Error("another passphrase opens it")
			}
			opensslReads(t, text, passphrase)
		})
	}
	if _, err := EncryptKey(newKey(t), []byte("changeit")); err == nil || !strings.Contains(err.Error(), "16 are the least") {
		t.Errorf("a short passphrase: %v", err)
	}
	if bytes.Equal(NewPassphrase(), NewPassphrase()) {
		t.Error("two passphrases are equal")
	}
}

func opensslReads(t *testing.T, text, passphrase []byte) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Log("SKIPPED: openssl is not there, and nobody else reads the key")
		return
	}
	file := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), "openssl", "pkey", "-in", file, "-passin", "stdin", "-noout", "-check")
	command.Stdin = bytes.NewReader(append(bytes.Clone(passphrase), '\n'))
	if output, err := command.CombinedOutput(); err != nil && !strings.Contains(string(output), "Key is valid") {
		t.Errorf("openssl: %v\n%s", err, output)
	}
}
