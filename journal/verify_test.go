package journal

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// TestVerifyFindsEveryFlippedByte flips each byte of each of the three files in turn.
func TestVerifyFindsEveryFlippedByte(t *testing.T) {
	key := newKey(t)
	dir := exported(t, key, 3)
	if size, err := Verify(dir, key.Verifier()); err != nil || size != 4 {
		t.Fatalf("untouched: size %d, %v", size, err)
	}
	for _, name := range []string{entriesFile, checkpointFile, keyFile} {
		path := filepath.Join(dir, name)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := range text {
			flipped := bytes.Clone(text)
			flipped[i] ^= 0x20
			if err := os.WriteFile(path, flipped, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Verify(dir, key.Verifier()); err == nil {
				t.Errorf("%s: byte %d of %d flipped (%q), and nobody noticed", name, i, len(text), flipped[i])
			}
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSignatureHasOneSpelling tries every other last digit of the signature's base64: three of them
// differ in bits that decoding drops, and are signatures that verify.
func TestSignatureHasOneSpelling(t *testing.T) {
	key := newKey(t)
	dir := exported(t, key, 1)
	path := filepath.Join(dir, checkpointFile)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(key.Verifier())
	if err != nil {
		t.Fatal(err)
	}
	last, same := len(text)-len("=\n")-1, 0
	for _, digit := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/") {
		changed := bytes.Clone(text)
		changed[last] = digit
		if digit == text[last] {
			continue
		}
		if _, err := note.Open(changed, note.VerifierList(verifier)); err == nil {
			same++
		}
		if err := os.WriteFile(path, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(dir, key.Verifier()); !errors.Is(err, ErrForged) {
			t.Errorf("%q in the place of %q: %v, want ErrForged", digit, text[last], err)
		}
	}
	if same != 3 {
		t.Errorf("package note takes %d other spellings, not 3: the test proves less than it says", same)
	}
}

func TestVerifyFindsTampering(t *testing.T) {
	key := newKey(t)
	lines := func(f func([][]byte) [][]byte) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, entriesFile), func(text []byte) []byte {
				return bytes.Join(f(bytes.SplitAfter(text, []byte("\n"))), nil)
			})
		}
	}
	checkpoint := func(size int64, signer *Key) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			head, _, err := readHead(dir, nil)
			if err != nil {
				t.Fatal(err)
			}
			head.size = size
			signed, err := head.sign(signer)
			if err != nil {
				t.Fatal(err)
			}
			change(t, filepath.Join(dir, checkpointFile), func([]byte) []byte { return signed })
		}
	}
	cases := map[string]struct {
		want   error
		tamper func(*testing.T, string)
	}{
		"a missing entry":    {ErrTruncated, lines(func(l [][]byte) [][]byte { return append(l[:1], l[2:]...) })},
		"a truncated tail":   {ErrTruncated, lines(func(l [][]byte) [][]byte { return l[:len(l)-2] })},
		"a half entry":       {ErrTruncated, lines(func(l [][]byte) [][]byte { l[3] = l[3][:9]; return l })},
		"swapped entries":    {ErrAltered, lines(func(l [][]byte) [][]byte { l[1], l[2] = l[2], l[1]; return l })},
		"an added entry":     {ErrAltered, lines(func(l [][]byte) [][]byte { return append(l, []byte("{}\n")) })},
		"a carriage return":  {ErrAltered, lines(func(l [][]byte) [][]byte { l[1] = append(bytes.TrimSpace(l[1]), "\r\n"...); return l })},
		"a replaced entry":   {ErrAltered, lines(func(l [][]byte) [][]byte { l[1] = l[2]; return l })},
		"another key's head": {ErrForged, checkpoint(4, newKey(t))},
		"an unsigned head": {ErrForged, func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, checkpointFile), func([]byte) []byte { return nil })
		}},
		"no head":              {ErrNoJournal, func(t *testing.T, dir string) { remove(t, filepath.Join(dir, checkpointFile)) }},
		"no entries":           {ErrNoJournal, func(t *testing.T, dir string) { remove(t, filepath.Join(dir, entriesFile)) }},
		"a size signed wrong":  {ErrTruncated, checkpoint(5, key)},
		"a size signed short":  {ErrAltered, checkpoint(3, key)},
		"a size below nothing": {ErrForged, checkpoint(-1, key)},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			dir := exported(t, key, 3)
			c.tamper(t, dir)
			if _, err := Verify(dir, key.Verifier()); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func TestVerifyKeys(t *testing.T) {
	key := newKey(t)
	dir := exported(t, key, 1)
	if _, err := Verify(dir, newKey(t).Verifier()); !errors.Is(err, ErrForged) {
		t.Errorf("another key of the same name: %v, want ErrForged", err)
	}
	for _, vkey := range []string{"", "x", "a+b", strings.ToUpper(key.Verifier()), key.Verifier() + "x"} {
		if _, err := Verify(dir, vkey); !errors.Is(err, ErrKey) {
			t.Errorf("key %q: %v, want ErrKey", vkey, err)
		}
	}
	// A key of another name over the same checkpoint text is no proof of this origin.
	other, err := GenerateKey("other.internal/journal")
	if err != nil {
		t.Fatal(err)
	}
	head, _, err := readHead(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := head.sign(other)
	if err != nil {
		t.Fatal(err)
	}
	change(t, filepath.Join(dir, checkpointFile), func([]byte) []byte { return signed })
	if _, err := Verify(dir, other.Verifier()); !errors.Is(err, ErrForged) {
		t.Errorf("origin of another key: %v, want ErrForged", err)
	}
	if _, err := GenerateKey("has space"); !errors.Is(err, ErrKey) {
		t.Errorf("a name with a space: %v, want ErrKey", err)
	}
	for _, secret := range []string{"", "PRIVATE+KEY+x", "nonsense"} {
		if _, err := ParseKey([]byte(secret)); !errors.Is(err, ErrKey) {
			t.Errorf("ParseKey(%q): %v, want ErrKey", secret, err)
		}
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(format, key); strings.Contains(text, "PRIVATE") {
			t.Errorf("%s prints the secret", format)
		}
	}
}

// TestCheckpointForm holds the file against C2SP tlog-checkpoint by hand.
func TestCheckpointForm(t *testing.T) {
	key := newKey(t)
	dir := exported(t, key, 2)
	text, err := os.ReadFile(filepath.Join(dir, checkpointFile))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	if len(lines) != 6 || lines[0] != "colorapp.internal/journal" || lines[1] != "3" || len(lines[2]) != 44 ||
		lines[3] != "" || !strings.HasPrefix(lines[4], "— colorapp.internal/journal ") || lines[5] != "" {
		t.Errorf("checkpoint:\n%s", text)
	}
	verifier, err := note.NewVerifier(key.Verifier())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := note.Open(text, note.VerifierList(verifier)); err != nil {
		t.Error(err)
	}
}

func TestExtractRefuses(t *testing.T) {
	type file struct {
		name string
		kind byte
	}
	good := []file{{keyFile, tar.TypeReg}, {checkpointFile, tar.TypeReg}, {entriesFile, tar.TypeReg}}
	write := func(files []file) io.Reader {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for _, f := range files {
			if err := w.WriteHeader(&tar.Header{Name: f.name, Typeflag: f.kind, Linkname: "/etc/passwd", Mode: 0o600}); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return &buf
	}
	if err := Extract(write(good), filepath.Join(t.TempDir(), "new")); err != nil {
		t.Errorf("the control: %v", err)
	}
	for name, files := range map[string][]file{
		"nothing":       nil,
		"too few":       good[:2],
		"too many":      append(good[:3:3], file{"more", tar.TypeReg}),
		"another name":  {{"../key.pub", tar.TypeReg}, good[1], good[2]},
		"another order": {good[1], good[0], good[2]},
		"a link":        {{keyFile, tar.TypeSymlink}, good[1], good[2]},
	} {
		if err := Extract(write(files), filepath.Join(t.TempDir(), "new")); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Extract(write(good), full); !errors.Is(err, os.ErrExist) {
		t.Errorf("into a directory that is not empty: %v", err)
	}
	var archive bytes.Buffer
	if err := Export(t.TempDir(), &archive); !errors.Is(err, ErrNoJournal) {
		t.Errorf("export of nothing: %v", err)
	}
}

// FuzzVerify gives a copy's two files to somebody who wants to pass them off. Whatever he writes,
// what is accepted is what was signed.
func FuzzVerify(f *testing.F) {
	key := newKey(f)
	dir := exported(f, key, 3)
	read := func(name string) []byte {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			f.Fatal(err)
		}
		return text
	}
	signed, entries := read(checkpointFile), read(entriesFile)
	verifier, err := note.NewVerifier(key.Verifier())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed, entries)
	f.Add(signed, entries[:len(entries)-1])
	f.Add(signed, bytes.Replace(entries, []byte("\n"), []byte("\r\n"), 1))
	f.Add(bytes.Replace(signed, []byte("\n4\n"), []byte("\n3\n"), 1), entries)
	f.Add([]byte("colorapp.internal/journal\n9223372036854775807\n\n"), []byte("\n\n"))
	f.Fuzz(func(t *testing.T, c, e []byte) {
		head, err := openCheckpoint(c, verifier)
		if err != nil {
			return
		}
		if verify(head, bytes.NewReader(e)) == nil && !bytes.Equal(e, entries) {
			t.Errorf("accepted %q for %q", e, entries)
		}
	})
}
