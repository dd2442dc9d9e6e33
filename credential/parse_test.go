package credential

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestRepair gives values that a transport has damaged in a way that can be undone: they are accepted, what was done
// is said, and what comes out is what the good ones give.
func TestRepair(t *testing.T) {
	w := newWorld(t)
	good := w.input(t)
	replaced := func(old, replacement string) func([]byte) []byte {
		return func(text []byte) []byte { return bytes.ReplaceAll(text, []byte(old), []byte(replacement)) }
	}
	object := func(name string) func([]byte) []byte {
		return func(text []byte) []byte {
			out, err := json.Marshal(map[string]any{name: string(text), "other": []int{1}})
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
	}
	cases := map[string]struct {
		change func([]byte) []byte
		note   string
	}{
		"CRLF":             {replaced("\n", "\r\n"), "line ends of Windows"},
		"CR":               {replaced("\n", "\r"), "carriage returns"},
		"no last line end": {func(text []byte) []byte { return bytes.TrimSpace(text) }, "the last line was ended"},
		"two characters":   {replaced("\n", `\n`), `the two characters \n`},
		"four characters":  {replaced("\n", `\r\n`), `the two characters \n`},
		"byte order mark":  {func(text []byte) []byte { return append([]byte("\xef\xbb\xbf"), text...) }, "a byte order mark"},
		"JSON string":      {func(text []byte) []byte { return wrapped(t, text, 1) }, "it was a JSON string"},
		"JSON in JSON":     {func(text []byte) []byte { return wrapped(t, text, 2) }, "it was a JSON string"},
		"JSON, BOM, CRLF": {func(text []byte) []byte {
			return append([]byte("\xef\xbb\xbf"), wrapped(t, replaced("\n", "\r\n")(text), 1)...)
		}, "it was a JSON string"},
		"no JSON, as before": {func(text []byte) []byte { return append([]byte("# a comment\n\n"), text...) }, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			in := good
			in.Certificate.Data, in.Key.Data, in.Bundle.Data = c.change(good.Certificate.Data), c.change(good.Key.Data), c.change(good.Bundle.Data)
			parsed := accept(t, w, in)
			for _, value := range []string{"CERT_PEM: ", "KEY_PEM: ", "CA_BUNDLE: "} {
				if notes := notesOf(parsed); c.note != "" && !strings.Contains(notes, value+c.note) {
					t.Errorf("the notes are\n%s", notes)
				}
			}
			if c.note == "" && len(parsed.Notes) != 0 {
				t.Errorf("the notes are %v", parsed.Notes)
			}
		})
	}
	t.Run("JSON object", func(t *testing.T) {
		in := good
		in.Certificate.Data, in.Key.Data, in.Bundle.Data = object("cert_pem")(good.Certificate.Data), object("key_pem")(good.Key.Data), object("ca_bundle")(good.Bundle.Data)
		parsed := accept(t, w, in)
		if len(parsed.Notes) != 3 || !strings.Contains(parsed.Notes[0].Text, "its field cert_pem was taken") {
			t.Errorf("the notes are %v", parsed.Notes)
		}
	})
}

// notesOf are the sentences, one in a line.
func notesOf(c *Credential) string {
	var b strings.Builder
	for _, note := range c.Notes {
		b.WriteString(note.Text + "\n")
	}
	return b.String()
}

// TestUsualNotes tells what every start would say from what somebody should look at.
func TestUsualNotes(t *testing.T) {
	w := newWorld(t)
	in := w.input(t)
	in.Certificate.Data = bytes.TrimSpace(in.Certificate.Data)
	in.Key.Data = bytes.TrimSpace(encrypted(t, keyDER(t, w.leafKey), "correct horse", recipe{}))
	in.Passphrase.Data = []byte("correct horse\n")
	in.Bundle.Data = bytes.ReplaceAll(in.Bundle.Data, []byte("\n"), []byte("\r\n"))
	usual := map[string]bool{}
	for _, note := range accept(t, w, in).Notes {
		usual[note.Text] = note.Usual
	}
	want := map[string]bool{
		"CERT_PEM: the last line was ended": true, "KEY_PEM: the last line was ended": true,
		"KEY_PASSPHRASE: the line end behind the passphrase was removed": true,
		"CA_BUNDLE: line ends of Windows were made ordinary ones":        false,
	}
	if !maps.Equal(usual, want) {
		t.Errorf("the notes are %v", usual)
	}
}

// TestPassphraseIsRepaired takes a passphrase as it is whatever it looks like, and out of its wrapping when that does not open
// the key.
func TestPassphraseIsRepaired(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct{ phrase, stored, note string }{
		"text that is a string":  {`"correct horse"`, `"correct horse"`, ""},
		"text that is an object": {`{"key_passphrase":"x"}`, `{"key_passphrase":"x"}`, ""},
		"text that is no object": {`{correct`, `{correct`, ""},
		"placeholder":            {"PLACEHOLDER", "PLACEHOLDER", ""},
		"string":                 {"correct horse", `"correct horse"` + "\n", "it was a JSON string"},
		"whole secret":           {"correct horse", `{"key_pem": "y", "key_passphrase": "correct horse\n"}`, "its field key_passphrase was taken"},
		"string with an object":  {"correct horse", `"{\"key_passphrase\": \"correct horse\"}"`, "its field key_passphrase was taken"},
		"byte order mark":        {"correct horse", "\ufeffcorrect horse", "a byte order mark was removed"},
	} {
		t.Run(name, func(t *testing.T) {
			in := w.input(t)
			in.Key.Data, in.Passphrase.Data = encrypted(t, keyDER(t, w.leafKey), c.phrase, recipe{}), []byte(c.stored)
			notes := notesOf(accept(t, w, in))
			if (c.note == "") != (notes == "") || !strings.Contains(notes, c.note) {
				t.Errorf("the notes are %q", notes)
			}
		})
	}
}

// TestWrongPassphrases are what no wrapping and no word of a template explains.
func TestWrongPassphrases(t *testing.T) {
	w := newWorld(t)
	for _, stored := range []string{`{"key_passphrase": "battery staple"}`, `"battery staple"`, "dummy battery", "{battery"} {
		in := w.input(t)
		in.Key.Data, in.Passphrase.Data = encrypted(t, keyDER(t, w.leafKey), "correct horse", recipe{}), []byte(stored)
		if _, err := Parse(in); err == nil || !strings.Contains(err.Error(), "the passphrase does not open the key KEY_PEM") {
			t.Errorf("%s: %v", stored, err)
		}
	}
}

// accept expects the good credential.
func accept(t *testing.T, w *world, in Input) *Credential {
	t.Helper()
	c, err := Parse(in)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Check(Expect{Now: time.Now(), MinRemaining: time.Hour, ID: testID, DNSNames: []string{"orders.shop.internal"}}); err != nil {
		t.Fatal(err)
	}
	if len(c.Chain) != 2 || !c.Leaf().Equal(w.leaf) || !c.Chain[1].Equal(w.between) || len(c.Roots) != 1 || !c.Roots[0].Equal(w.root) || !equal(w.leafKey.Public(), c.key.Public()) {
		t.Error("it is another credential")
	}
	return c
}

// TestLeftOut gives a chain with its root at the end and a bundle that holds the root twice: both are left out, and said.
func TestLeftOut(t *testing.T) {
	w := newWorld(t)
	in := w.input(t)
	in.Certificate.Data = pemOf(w.leaf)
	in.Chain.Data = pemOf(w.between, w.root)
	in.Bundle.Data = pemOf(w.root, w.root)
	c := accept(t, w, in)
	notes := notesOf(c)
	if !strings.Contains(notes, "the root at its end was left out") || !strings.Contains(notes, "a root that it holds twice") {
		t.Errorf("the notes are\n%s", notes)
	}
}

// TestUsages takes leaves that callers take.
func TestUsages(t *testing.T) {
	w := newWorld(t)
	for _, usages := range [][]x509.ExtKeyUsage{nil, {x509.ExtKeyUsageServerAuth}, {x509.ExtKeyUsageAny}} {
		in := w.input(t)
		in.Certificate.Data = pemOf(w.issue(t, func(c *x509.Certificate) { c.ExtKeyUsage = usages }), w.between)
		if err := judge(in, Expect{Now: time.Now()}); err != nil {
			t.Errorf("%v: %v", usages, err)
		}
	}
}

// TestOneRootIsEnough gives roots of which one alone is valid for as long as is asked for, whatever their order.
func TestOneRootIsEnough(t *testing.T) {
	w := newWorld(t)
	short, long := w.rootUntil(t, time.Hour), w.rootUntil(t, 48*time.Hour)
	for _, roots := range [][]*x509.Certificate{{short, long}, {long, short}} {
		in := w.input(t)
		in.Bundle.Data = pemOf(roots...)
		if err := judge(in, Expect{Now: time.Now(), MinRemaining: 24 * time.Hour}); err != nil {
			t.Error(err)
		}
	}
}

// TestKeyForms reads keys in every form that is accepted.
func TestKeyForms(t *testing.T) {
	w := newWorld(t)
	der := keyDER(t, w.leafKey)
	phrase := "correct horse"
	forms := map[string][]byte{
		"SHA-256":     encrypted(t, der, phrase, recipe{}),
		"1 iteration": encrypted(t, der, phrase, recipe{iterations: 1}),
		"SHA-1":       encrypted(t, der, phrase, recipe{prf: oidHMACSHA1}),
		// As AWS Certificate Manager exports keys: nothing said is SHA-1, and the salt has 20 bytes.
		"no PRF":               encrypted(t, der, phrase, recipe{noPRF: true, salt: bytes.Repeat([]byte{7}, 20)}),
		"PKCS #8":              keyPEM(t, w.leafKey),
		"SEC 1":                labeled("EC PRIVATE KEY", sec1(t, w)),
		"encrypted in PEM, LF": append(encrypted(t, der, phrase, recipe{}), '\n'),
	}
	for name, text := range forms {
		in := w.input(t)
		in.Key.Data, in.Passphrase.Data = text, []byte(phrase+"\n")
		c := accept(t, w, in)
		if locked := bytes.Contains(text, []byte("ENCRYPTED")); locked != strings.Contains(notesOf(c), "the line end behind the passphrase") {
			t.Errorf("%s: the notes are %v", name, c.Notes)
		}
	}
	// RSA, in a form of its own.
	large := rsaKey(t, 2048)
	in := w.input(t)
	in.Key.Data = labeled("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(large.(*rsa.PrivateKey)))
	in.Certificate.Data = pemOf(certify(t, "orders", large.Public(), w.between, w.betweenKey, asLeaf), w.between)
	if err := judge(in, Expect{Now: time.Now()}); err != nil {
		t.Errorf("PKCS #1: %v", err)
	}
}

// TestOpenSSL opens keys that OpenSSL has encrypted, in all accepted ways, and refuses its old ones.
func TestOpenSSL(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("openssl is not installed, and CI=true wants it")
		}
		t.Skip("NOT TESTED: openssl is not installed")
	}
	w := newWorld(t)
	plain := filepath.Join(t.TempDir(), "plain.pem")
	if err := os.WriteFile(plain, keyPEM(t, w.leafKey), 0o600); err != nil {
		t.Fatal(err)
	}
	for arguments, says := range map[string]string{
		"-v2 aes-128-cbc -v2prf hmacWithSHA256":              "",
		"-v2 aes-192-cbc -v2prf hmacWithSHA384":              "",
		"-v2 aes-256-cbc -v2prf hmacWithSHA512":              "",
		"-v2 aes-256-cbc -v2prf hmacWithSHA224 -iter 100000": "",
		"-v2 aes-256-cbc -v2prf hmacWithSHA1":                "",
		"-v2 des3":                                           "triple DES",
		"-v2 aes-256-cbc -iter 2000001":                      "2000001 iterations",
		"-scrypt -scrypt_N 2":                                "scrypt",
		"-v1 PBE-SHA1-3DES":                                  "PKCS #12 with triple DES,",
	} {
		command := exec.CommandContext(t.Context(), "openssl", append([]string{"pkcs8", "-topk8", "-in", plain, "-passout", "pass:correct horse"}, strings.Fields(arguments)...)...)
		out, err := command.Output()
		if err != nil {
			t.Fatalf("openssl %s: %v", arguments, err)
		}
		in := w.input(t)
		in.Key.Data, in.Passphrase.Data = out, []byte("correct horse")
		if says == "" {
			accept(t, w, in)
		} else if err := judge(in, Expect{Now: time.Now()}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", arguments, err, says)
		}
	}
}

// TestEachFault gives three bad values at once: all are named.
func TestEachFault(t *testing.T) {
	in := newWorld(t).input(t)
	in.Certificate.Data, in.Key.Data, in.Bundle.Data = nil, []byte("PLACEHOLDER"), []byte("null")
	_, err := Parse(in)
	if err == nil {
		t.Fatal("it is accepted")
	}
	for _, name := range []string{"CERT_PEM: ", "KEY_PEM: ", "CA_BUNDLE: "} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%v does not name %s", err, name)
		}
	}
}

// FuzzParse gives arbitrary values: they are refused by faults that quote nothing, or read as what can be written and
// read again.
func FuzzParse(f *testing.F) {
	w := newWorld(f)
	in := w.input(f)
	f.Add(in.Certificate.Data, in.Key.Data, []byte{}, in.Bundle.Data)
	f.Add(wrapped(f, in.Certificate.Data, 2), bytes.ReplaceAll(in.Key.Data, []byte("\n"), []byte(`\n`)), []byte{}, in.Bundle.Data)
	f.Add(in.Bundle.Data, encrypted(f, keyDER(f, w.leafKey), "phrase", recipe{}), []byte("phrase\n"), in.Bundle.Data)
	f.Add([]byte(`{"cert_pem": "x"}`), []byte("PLACEHOLDER"), []byte{}, []byte("\xef\xbb\xbf"))
	f.Fuzz(func(t *testing.T, cert, key, passphrase, bundle []byte) {
		// A fuzzer that finds the iteration count would only measure PBKDF2.
		if bytes.Contains(key, []byte("ENCRYPTED")) && len(key) > 1024 {
			return
		}
		in := Input{
			Certificate: Value{Name: "CERT_PEM", Field: "cert_pem", Data: cert}, Key: Value{Name: "KEY_PEM", Field: "key_pem", Data: key},
			Passphrase: Value{Name: "KEY_PASSPHRASE", Data: passphrase}, Bundle: Value{Name: "CA_BUNDLE", Field: "ca_bundle", Data: bundle},
		}
		c, err := Parse(in)
		if err != nil {
			for line := range strings.Lines(string(key)) {
				if line = strings.TrimSpace(line); len(line) >= 24 && !strings.Contains(line, "-----") && strings.Trim(line, "-0123456789:.,_ ") != "" && strings.Contains(err.Error(), line) {
					t.Fatalf("%q quotes %q", err, line)
				}
			}
			return
		}
		checked := c.Check(Expect{Now: time.Now()})
		files, err := c.files(Output{Mode: 0o600})
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		again, err := Parse(Input{
			Certificate: Value{Name: "CERT_PEM", Data: files[0].Data}, Bundle: Value{Name: "CA_BUNDLE", Data: files[1].Data}, Key: Value{Name: "KEY_PEM", Data: files[2].Data},
		})
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if len(again.Notes) != 0 || len(again.Chain) != len(c.Chain) || (again.Check(Expect{Now: time.Now()}) == nil) != (checked == nil) {
			t.Error("what was written is another credential")
		}
	})
}

func sec1(t testing.TB, w *world) []byte {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(w.leafKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	return der
}
