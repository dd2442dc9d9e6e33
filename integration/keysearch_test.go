package integration

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// needle is one form of something that must stand nowhere.
type needle struct {
	what string
	text []byte
}

// needles are what is searched for. They are used by one goroutine.
type needles struct {
	all  []needle
	seen map[string]bool
}

func (n *needles) add(what string, text []byte) {
	if n.seen == nil {
		n.seen = map[string]bool{}
	}
	if len(text) > 0 && !n.seen[string(text)] {
		n.seen[string(text)] = true
		n.all = append(n.all, needle{what, text})
	}
}

// text looks for a passphrase or a token: as it is, and in base64 and hex.
func (n *needles) text(what, secret string) { n.bytes(what, []byte(secret)) }

// bytes looks for a secret as it is, in hex, and in base64 at any place of what was encoded.
func (n *needles) bytes(what string, secret []byte) {
	if len(secret) < 8 {
		return // it would be found by chance
	}
	n.add(what, secret)
	n.add(what+" in hex", []byte(hex.EncodeToString(secret)))
	n.add(what+" in hex", []byte(strings.ToUpper(hex.EncodeToString(secret))))
	for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for before := range 3 {
			encoded := encoding.EncodeToString(append(make([]byte, before), secret...))
			// What the neighbours have a part in is left out.
			n.add(what+" in base64", []byte(encoded[(before*8+5)/6:(before+len(secret))*8/6]))
		}
	}
}

// key looks for what a private key consists of. It stands in every form of the key: PKCS #1, SEC 1, PKCS #8, JWK.
func (n *needles) key(what string, key any) error {
	switch key := key.(type) {
	case *ecdsa.PrivateKey:
		scalar, err := key.Bytes()
		if err != nil {
			return err
		}
		n.bytes(what, scalar)
	case *rsa.PrivateKey:
		n.bytes(what, key.D.Bytes())
		for _, prime := range key.Primes {
			n.bytes(what, prime.Bytes())
		}
	case ed25519.PrivateKey:
		n.bytes(what, key.Seed())
	default:
		return fmt.Errorf("%s: no search is known for a %T", what, key)
	}
	return nil
}

// genericP256 is what stands before the scalar in PKCS #8 of every P-256 key, whosever it is.
const genericP256 = "2a8648ce3d030107046d306b0201010420"

// anybodys looks for secrets as they begin, whosever they are: also those that this test never saw.
func (n *needles) anybodys() {
	for _, begin := range []string{"PRIVATE KEY-----", "AGE-SECRET-KEY-1", "PRIVATE+KEY+", "csjoin_"} {
		n.text("what begins with "+begin, begin)
	}
	prefix, err := hex.DecodeString(genericP256)
	if err != nil {
		panic(err) // it is a constant
	}
	n.bytes("some P-256 key", prefix)
}

// find gives what stands in data, also where line breaks, blanks, colons or escapes were put into it.
func (n *needles) find(data []byte) []string {
	var found []string
	squeezed := squeeze(data)
	for _, one := range n.all {
		if (bytes.Contains(data, one.text) || bytes.Contains(squeezed, one.text)) && !slices.Contains(found, one.what) {
			found = append(found, one.what)
		}
	}
	return found
}

// squeeze takes away what is put into encoded secrets: blanks, line breaks as they are and as JSON writes them, and
// the colons of OpenSSL's hex.
func squeeze(data []byte) []byte {
	out := make([]byte, 0, len(data))
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case ' ', '\t', '\r', '\n', ':':
		case '\\':
			for i+1 < len(data) && data[i+1] == '\\' {
				i++
			}
			if i+1 < len(data) && strings.IndexByte("nrt", data[i+1]) >= 0 {
				i++
			}
		default:
			out = append(out, data[i])
		}
	}
	return out
}

// isKeyFile tells whether a file is there to hold a secret. Everything else, of whatever mode, must hold none.
func isKeyFile(path string) bool {
	name := filepath.Base(path)
	return name == "key.pem" || name == "cert-and-key.pem" || strings.HasSuffix(name, ".key") || strings.HasSuffix(name, "identity.txt") ||
		filepath.Base(filepath.Dir(path)) == "tokens"
}

// collect adds every private key, age identity and join token that lies in a file below a directory, and tells how
// many files hold one. Files that vanish meanwhile were replaced.
func (n *needles) collect(t *testing.T, dir string) int {
	t.Helper()
	files := 0
	walk(t, dir, func(path string, data []byte, _ fs.FileMode) {
		if !isKeyFile(path) {
			return
		}
		held := false
		for rest := data; ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			if key, err := parseKey(block.Bytes); err == nil {
				held = true
				if err := n.key("the key of "+path, key); err != nil {
					t.Fatal(err)
				}
			}
		}
		for line := range strings.Lines(string(data)) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "AGE-SECRET-KEY-") || strings.HasPrefix(line, "PRIVATE+KEY+") || strings.HasPrefix(line, "csjoin_") {
				held = true
				n.text("a line of "+path, line)
			}
		}
		if held {
			files++
		}
	})
	return files
}

func parseKey(der []byte) (any, error) {
	if key, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		return key, nil
	}
	if key, err := x509.ParseECPrivateKey(der); err == nil {
		return key, nil
	}
	return x509.ParsePKCS1PrivateKey(der)
}

// walk visits the regular files below a directory.
func walk(t *testing.T, dir string, visit func(path string, data []byte, mode fs.FileMode)) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it was replaced meanwhile
		}
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil || !entry.Type().IsRegular() {
			return nil //nolint:nilerr // the same
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		visit(path, data, info.Mode())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// misplaced are the files below a directory that hold a secret and are not there for it, or may be read by others
// than their owner.
func (n *needles) misplaced(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	walk(t, dir, func(path string, data []byte, mode fs.FileMode) {
		secrets := n.find(data)
		switch {
		case len(secrets) == 0:
		case mode.Perm()&0o077 != 0:
			found = append(found, fmt.Sprintf("%s of mode %v holds %v", path, mode, secrets))
		case !isKeyFile(path):
			found = append(found, fmt.Sprintf("%s holds %v", path, secrets))
		}
	})
	return found
}

// The search finds every kind of key in every form that anybody writes keys in.
func TestKeySearch(t *testing.T) {
	p256, err1 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, err2 := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	rsaKey, err3 := rsa.GenerateKey(rand.Reader, 2048)
	_, edKey, err4 := ed25519.GenerateKey(rand.Reader)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]any{"P-256": p256, "P-384": p384, "RSA": rsaKey, "Ed25519": edKey} {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		block := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		quoted, err := json.Marshal(map[string]string{"key": string(block)})
		if err != nil {
			t.Fatal(err)
		}
		twice, err := json.Marshal(string(quoted))
		if err != nil {
			t.Fatal(err)
		}
		forms := map[string][]byte{
			"DER": der, "PEM": block, "PEM in JSON": quoted, "PEM in JSON in JSON": twice,
			"hex": []byte(hex.EncodeToString(der)), "hex in capitals": []byte(strings.ToUpper(hex.EncodeToString(der))),
			"hex with colons": []byte(strings.Join(pairs(hex.EncodeToString(der)), ":")),
			"base64 for URLs": []byte(base64.RawURLEncoding.EncodeToString(der)),
		}
		for before := range 3 {
			forms[fmt.Sprintf("base64 after %d bytes", before)] = []byte(base64.StdEncoding.EncodeToString(append(bytes.Repeat([]byte{0xa5}, before), append(der, 0xff)...)))
		}
		if key, ok := key.(*ecdsa.PrivateKey); ok {
			if forms["SEC 1"], err = x509.MarshalECPrivateKey(key); err != nil {
				t.Fatal(err)
			}
		}
		if key, ok := key.(*rsa.PrivateKey); ok {
			forms["PKCS #1"] = x509.MarshalPKCS1PrivateKey(key)
		}
		var search, foreign needles
		if err := search.key("it", key); err != nil {
			t.Fatal(err)
		}
		foreign.anybodys()
		for form, text := range forms {
			if len(search.find(append([]byte("a line\n"), text...))) == 0 {
				t.Errorf("a %s key as %s is not found", name, form)
			}
		}
		if found := foreign.find(quoted); !slices.Contains(found, "what begins with PRIVATE KEY-----") {
			t.Errorf("somebody's %s key in PEM is not found: %v", name, found)
		}
		if found := foreign.find(forms["base64 after 1 bytes"]); name == "P-256" && !slices.Contains(found, "some P-256 key in base64") {
			t.Errorf("somebody's P-256 key in base64 is not found: %v", found)
		}
		public, err := x509.MarshalPKIXPublicKey(key.(crypto.Signer).Public())
		if err != nil {
			t.Fatal(err)
		}
		if found := append(search.find(public), foreign.find(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))...); len(found) > 0 {
			t.Errorf("a public %s key is taken for %v", name, found)
		}
	}
	if err := new(needles).key("it", "a text"); err == nil {
		t.Error("a key of an unknown kind is searched for")
	}
}

func pairs(text string) []string {
	var all []string
	for i := 0; i+1 < len(text); i += 2 {
		all = append(all, text[i:i+2])
	}
	return all
}

// Files that hold a key where they should not are found, and those that are there for it are left alone.
func TestKeySearchFiles(t *testing.T) {
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	for name, mode := range map[string]os.FileMode{"key.pem": 0o600, "wide/key.pem": 0o640, "nginx.conf": 0o600, "harmless": 0o644} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		content := text
		if name == "harmless" {
			content = []byte("nothing")
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	var search needles
	if n := search.collect(t, dir); n != 2 {
		t.Errorf("%d files with a key are found, want key.pem twice", n)
	}
	found := strings.Join(search.misplaced(t, dir), "\n")
	for _, want := range []string{"wide/key.pem of mode -rw-r-----", "nginx.conf holds"} {
		if !strings.Contains(found, want) {
			t.Errorf("%q is not among\n%s", want, found)
		}
	}
	if strings.Count(found, "\n") != 1 {
		t.Errorf("more is found than two files:\n%s", found)
	}
}
