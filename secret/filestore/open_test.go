package filestore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"countersign.dev/durable"
	"countersign.dev/secret"
)

// TestOpening makes and opens stores where that is right, and where it is not.
func TestOpening(t *testing.T) {
	identity := newIdentity(t)
	dir := filepath.Join(t.TempDir(), "deep", "store")
	if _, err := Open(dir, identity); !errors.Is(err, ErrNoStore) {
		t.Errorf("no directory: %v", err)
	}
	s, err := Create(dir, identity)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "a", "1", "x")
	if s, err = Open(dir, identity); err != nil || read(t, s, "a", "") != "1=x" {
		t.Errorf("opened: %v", err)
	}
	if _, err := Create(dir, identity); !errors.Is(err, ErrExists) {
		t.Errorf("twice: %v", err)
	}
	if _, err := Open(dir, newIdentity(t)); !errors.Is(err, ErrIdentity) || errors.Is(err, secret.ErrCorrupt) {
		t.Errorf("another identity: %v", err)
	}
	if _, err := Open(t.TempDir(), identity); !errors.Is(err, ErrNoStore) {
		t.Errorf("an empty directory: %v", err)
	}
	if err := os.Chmod(dir, 0o770); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, identity); !errors.Is(err, secret.ErrInvalid) || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("a directory that others may write to: %v", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, storeFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, identity); !errors.Is(err, secret.ErrCorrupt) {
		t.Errorf("without %s: %v", storeFile, err)
	}
	taken := t.TempDir()
	file := filepath.Join(taken, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(taken, identity); !errors.Is(err, secret.ErrInvalid) || !strings.Contains(err.Error(), "file is in it") {
		t.Errorf("a directory with something in it: %v", err)
	}
	if _, err := Create(file, identity); err == nil {
		t.Error("a file became a store")
	}
	if _, err := Open(file, identity); !errors.Is(err, secret.ErrInvalid) {
		t.Errorf("a file: %v", err)
	}
	open := t.TempDir()
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(open, identity); !errors.Is(err, secret.ErrInvalid) {
		t.Errorf("a directory of everybody: %v", err)
	}
}

// TestCreateTwiceAtOnce holds the lock as another process does that makes the store.
func TestCreateTwiceAtOnce(t *testing.T) {
	dir := t.TempDir()
	unlock, err := durable.Lock(filepath.Join(dir, lockFile))
	if err != nil {
		t.Fatal(err)
	}
	identity := newIdentity(t)
	if _, err := Create(dir, identity); !errors.Is(err, ErrBusy) {
		t.Errorf("%v, want ErrBusy", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(dir, identity); err != nil {
		t.Error(err)
	}
}

// load writes an identity file and reads it.
func load(t *testing.T, text []byte, mode fs.FileMode) (*Identity, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "id")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return LoadIdentity(path)
}

// generated is the text of a new identity file.
func generated(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "id")
	if err := GenerateIdentity(path); err != nil {
		t.Fatal(err)
	}
	if err := GenerateIdentity(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("twice: %v", err)
	}
	return mustReadFile(t, path)
}

// TestIdentities moves a store to another identity, and makes one of another kind.
func TestIdentities(t *testing.T) {
	old, next := generated(t), generated(t)
	identity, err := load(t, old, 0o400)
	if err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprintf("%v%#v%+v", identity, identity, *identity); strings.Contains(text, "SECRET-KEY") {
		t.Errorf("it shows itself: %s", text)
	}
	s, err := Create(filepath.Join(t.TempDir(), "s"), identity)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "a", "1", "x")
	both, err := load(t, slices.Concat(next, old), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if s, err = Open(s.dir, both); err != nil || read(t, s, "a", "") != "1=x" {
		t.Fatalf("with both: %v", err)
	}
	put(t, s, "b", "1", "x")
	onlyNext, err := load(t, next, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	s.identity = onlyNext
	if got := read(t, s, "b", ""); got != "1=x" {
		t.Errorf("what was written with both is %s to the new one", got)
	}
	if _, _, err := s.Read(t.Context(), "a", ""); !errors.Is(err, secret.ErrCorrupt) || !strings.Contains(err.Error(), "not encrypted to") {
		t.Errorf("what was written with the old one: %v", err)
	}
	hybrid, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	quantum, err := load(t, []byte(hybrid.String()+"\n"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	s, err = Create(filepath.Join(t.TempDir(), "s"), quantum)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "a", "1", strings.Repeat("x", secret.MaxValue))
	read(t, s, "a", "")
}

// TestIdentitiesRefused reads files that are none, and expects no message to show a part of one.
func TestIdentitiesRefused(t *testing.T) {
	old := generated(t)
	identity, err := load(t, old, 0o400)
	if err != nil {
		t.Fatal(err)
	}
	_, secretPart, _ := strings.Cut(string(old), "AGE-SECRET-KEY-")
	secretPart = secretPart[:20]
	for name, c := range map[string]struct {
		text string
		mode fs.FileMode
		want string
	}{
		"empty":          {"", 0o600, "does not hold an age identity"},
		"a recipient":    {identity.Recipient() + "\n", 0o600, "does not hold an age identity"},
		"cut off":        {string(old[:len(old)-5]), 0o600, "does not hold an age identity"},
		"group may read": {string(old), 0o640, "chmod 600"},
		"others may":     {string(old), 0o604, "chmod 600"},
		"large":          {strings.Repeat("#", maxIdentityFile+1), 0o600, "more than"},
	} {
		_, err := load(t, []byte(c.text), c.mode)
		if !errors.Is(err, ErrIdentity) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), secretPart) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, path := range []string{t.TempDir(), "absent"} {
		if _, err := LoadIdentity(path); !errors.Is(err, ErrIdentity) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := GenerateIdentity(filepath.Join(t.TempDir(), "absent", "id")); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "absent first") {
		t.Errorf("no directory: %v", err)
	}
}
