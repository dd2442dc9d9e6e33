package ca

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
)

func TestSealers(t *testing.T) {
	secret := []byte("-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n")
	for method, seal := range sealers(t) {
		sealed, err := seal.Seal(secret)
		if err != nil {
			t.Fatal(err)
		}
		if plain := bytes.Contains(sealed, []byte("secret")); plain != (method == MethodUnsealed) || seal.Method() != method {
			t.Errorf("%s: the secret shows: %t", method, plain)
		}
		opened, err := seal.Unseal(sealed)
		if err != nil || !bytes.Equal(opened, secret) {
			t.Errorf("%s: %q, %v", method, opened, err)
		}
	}
}

// TestHybridKeyFile seals with a post-quantum identity, as age-keygen -pq makes it.
func TestHybridKeyFile(t *testing.T) {
	identity := hybridIdentity(t)
	seal, err := KeyFile(writeFile(t, "ca.age", identity+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := seal.Seal([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	if opened, err := seal.Unseal(sealed); err != nil || string(opened) != "secret" {
		t.Errorf("%q, %v", opened, err)
	}
}

func TestUnsealDamage(t *testing.T) {
	seal := newKeyFile(t)
	sealed, err := seal.Seal([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"nothing":       nil,
		"something":     []byte("hello"),
		"only a header": []byte("-----BEGIN AGE ENCRYPTED FILE-----\n"),
		"truncated":     sealed[:len(sealed)-60],
		"no armor":      []byte("age-encryption.org/v1\n"),
	} {
		if opened, err := seal.Unseal(text); !errors.Is(err, ErrCorrupt) || opened != nil {
			t.Errorf("%s: %q, %v; want ErrCorrupt", name, opened, err)
		}
	}
}

// TestSecretFiles are the files that a user may name by mistake. No error shows what is in them.
func TestSecretFiles(t *testing.T) {
	const secret = "hunter2-hunter2"
	dir := t.TempDir()
	cases := map[string]struct {
		make func(string) (Sealer, error)
		path string
	}{
		"a missing key file":    {KeyFile, filepath.Join(dir, "missing")},
		"a directory":           {KeyFile, dir},
		"a passphrase as key":   {KeyFile, writeFile(t, "f", secret)},
		"an empty key file":     {KeyFile, writeFile(t, "f", "")},
		"a spoilt identity":     {KeyFile, writeFile(t, "f", "AGE-SECRET-KEY-1"+strings.ToUpper(secret)+"\n")},
		"a huge key file":       {KeyFile, writeFile(t, "f", strings.Repeat("#\n", maxSecretFile))},
		"a missing passphrase":  {PassphraseFile, filepath.Join(dir, "missing")},
		"an empty passphrase":   {PassphraseFile, writeFile(t, "f", "\n"+secret)},
		"a short passphrase":    {PassphraseFile, writeFile(t, "f", secret[:7]+"\n")},
		"a huge passphrase":     {PassphraseFile, writeFile(t, "f", strings.Repeat(secret, maxSecretFile))},
		"a directory of phrase": {PassphraseFile, dir},
	}
	for name, c := range cases {
		sealer, err := c.make(c.path)
		if err == nil || sealer != nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		if text := strings.ToLower(err.Error()); strings.Contains(text, "hunter2") || !strings.Contains(text, "file") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSealersKeepSilent prints sealers in every way that a log might.
func TestSealersKeepSilent(t *testing.T) {
	const phrase = "correct horse battery"
	path := filepath.Join(t.TempDir(), "ca.age")
	if err := GenerateKeyFile(path); err != nil {
		t.Fatal(err)
	}
	if err := GenerateKeyFile(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second key file in its place: %v", err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	secret := string(text[strings.Index(string(text), "AGE-SECRET-KEY-1"):])[:40]
	key, err := KeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, seal := range []Sealer{key, newPassphrase(t, phrase)} {
		for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
			if printed := fmt.Sprintf(format, seal); strings.Contains(printed, secret) || strings.Contains(printed, phrase) {
				t.Errorf("%s shows it: %s", format, printed)
			}
		}
	}
}

// TestWindowsLineEnd accepts a passphrase that an editor has ended with CR LF.
func TestWindowsLineEnd(t *testing.T) {
	unix := newPassphrase(t, "correct horse battery")
	sealed, err := unix.Seal([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	dos, err := passphraseFile(writeFile(t, "p", "correct horse battery\r\nmore\r\n"), lightWork)
	if err != nil {
		t.Fatal(err)
	}
	if opened, err := dos.Unseal(sealed); err != nil || string(opened) != "secret" {
		t.Errorf("%q, %v", opened, err)
	}
}

func hybridIdentity(t *testing.T) string {
	t.Helper()
	identity, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return identity.String()
}
