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
	"time"

	"countersign.dev/journal"
)

func TestWrongSealer(t *testing.T) {
	made := sealers(t)
	for method, seal := range made {
		state := newState(t, seal)
		for other, wrong := range sealers(t) {
			want := ErrSealed
			if other == method {
				if method == MethodUnsealed {
					continue
				}
				want = ErrWrongKey
			}
			if method == MethodPassphrase && other == method {
				wrong = newPassphrase(t, "another passphrase")
			}
			_, err := Open(state, wrong)
			if !errors.Is(err, want) || !strings.Contains(err.Error(), "issuer.key") {
				t.Errorf("made with %s, opened with another %s: %v, want %v", method, other, err, want)
			}
			if _, err := OpenJournal(state, wrong); !errors.Is(err, want) {
				t.Errorf("the journal, made with %s, opened with another %s: %v, want %v", method, other, err, want)
			}
		}
		if _, err := Open(state, nil); !errors.Is(err, ErrSealed) {
			t.Errorf("opened with nothing: %v", err)
		}
	}
}

// TestLyingConfig changes what ca.json says about the keys.
func TestLyingConfig(t *testing.T) {
	state := newState(t, newKeyFile(t))
	path := filepath.Join(state, "ca", "ca.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.ReplaceAll(text, []byte(MethodKeyFile), []byte(MethodUnsealed)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(state, Unsealed()); !errors.Is(err, ErrSealed) {
		t.Errorf("sealed, said not to be: %v", err)
	}
	plain := newState(t, Unsealed())
	path = filepath.Join(plain, "ca", "ca.json")
	if text, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.ReplaceAll(text, []byte(MethodUnsealed), []byte(MethodKeyFile)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(plain, newKeyFile(t)); !errors.Is(err, ErrSealed) || !strings.Contains(err.Error(), "--unsealed") {
		t.Errorf("not sealed, said to be: %v", err)
	}
}

// TestDamage truncates, empties, garbles and removes each file that is needed.
func TestDamage(t *testing.T) {
	seal := newKeyFile(t)
	other := newState(t, seal)
	damages := map[string]func(t *testing.T, path string){
		"truncated": func(t *testing.T, path string) { rewrite(t, path, func(b []byte) []byte { return b[:len(b)/2] }) },
		"empty":     func(t *testing.T, path string) { rewrite(t, path, func([]byte) []byte { return nil }) },
		"garbled": func(t *testing.T, path string) {
			rewrite(t, path, func(b []byte) []byte { b[len(b)/2] ^= 0x14; return b })
		},
		"missing": func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
		"huge": func(t *testing.T, path string) {
			rewrite(t, path, func([]byte) []byte { return make([]byte, maxFile+1) })
		},
		"another CA's": func(t *testing.T, path string) {
			text, err := os.ReadFile(filepath.Join(other, "ca", filepath.Base(path)))
			if err != nil {
				t.Fatal(err)
			}
			rewrite(t, path, func([]byte) []byte { return text })
		},
	}
	for _, file := range []string{configFile, rootCert, issuerCert, issuerKey} {
		for name, damage := range damages {
			t.Run(file+" "+name, func(t *testing.T) {
				state := newState(t, seal)
				damage(t, filepath.Join(state, "ca", file))
				_, err := Open(state, seal)
				if !errors.Is(err, ErrCorrupt) {
					t.Fatalf("%v, want ErrCorrupt", err)
				}
				if !strings.Contains(err.Error(), filepath.Join(state, "ca")) {
					t.Errorf("%v does not name the file", err)
				}
			})
		}
	}
	for name, damage := range damages {
		if name == "another CA's" {
			continue // its key opens, and the journal is not signed by it: see below
		}
		t.Run(journalKey+" "+name, func(t *testing.T) {
			state := newState(t, seal)
			damage(t, filepath.Join(state, "ca", journalKey))
			if _, err := OpenJournal(state, seal); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%v, want ErrCorrupt", err)
			}
		})
	}
	state := newState(t, seal)
	damages["another CA's"](t, filepath.Join(state, "ca", journalKey))
	if _, err := OpenJournal(state, seal); !errors.Is(err, journal.ErrForged) {
		t.Errorf("another journal's key: %v, want journal.ErrForged", err)
	}
}

func rewrite(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestNewerFormat(t *testing.T) {
	state := newState(t, Unsealed())
	rewrite(t, filepath.Join(state, "ca", configFile), func(b []byte) []byte {
		return bytes.Replace(b, []byte(`"version": 1`), []byte(`"version": 3`), 1)
	})
	if _, err := Open(state, Unsealed()); err == nil || !strings.Contains(err.Error(), "version is 3") {
		t.Error(err)
	}
}

// TestKeysAreForTheOwner widens the mode of each key: it is refused whether or not something else protects it, and with
// its mode narrowed again it is read.
func TestKeysAreForTheOwner(t *testing.T) {
	for method, seal := range sealers(t) {
		state := newState(t, seal)
		root := func() error {
			c, err := Open(state, seal)
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.OpenRoot(c.Hierarchies()[0])
			return err
		}
		elsewhere := filepath.Join(t.TempDir(), "moved.key")
		text, err := os.ReadFile(filepath.Join(state, caDir, rootKey))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(elsewhere, text, 0o600); err != nil {
			t.Fatal(err)
		}
		for path, open := range map[string]func() error{
			filepath.Join(state, caDir, issuerKey):  func() error { _, err := Open(state, seal); return err },
			filepath.Join(state, caDir, journalKey): func() error { log, err := OpenJournal(state, seal); return errors.Join(err, closed(log)) },
			filepath.Join(state, caDir, rootKey):    root,
			elsewhere: func() error {
				c, err := Open(state, seal)
				if err != nil {
					t.Fatal(err)
				}
				_, err = c.ReadKeyFile(elsewhere)
				return err
			},
		} {
			for _, mode := range []fs.FileMode{0o640, 0o604, 0o620} {
				if err := os.Chmod(path, mode); err != nil {
					t.Fatal(err)
				}
				err := open()
				if !errors.Is(err, ErrExposed) || !strings.Contains(err.Error(), "chmod 600 "+path) || !strings.Contains(err.Error(), fmt.Sprintf("mode %04o", mode)) {
					t.Errorf("%s: %s with the mode %04o: %v", method, path, mode, err)
				}
			}
			if err := os.Chmod(path, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := open(); err != nil {
				t.Errorf("%s: %s with the mode 0600: %v", method, path, err)
			}
		}
	}
}

func closed(log *journal.Log) error {
	if log == nil {
		return nil
	}
	return log.Close()
}

// TestNextKeysAreForTheOwner widens the mode of the keys of a second hierarchy: of an issuing CA when the CA is opened,
// of a root that would be copied as it is stored beside another issuing CA.
func TestNextKeysAreForTheOwner(t *testing.T) {
	seal := newKeyFile(t)
	state := newState(t, seal)
	c := openAll(t, state, seal, time.Now)
	_, err := c.StartRoot(t.Context(), c.log, RootConfig{}, Note{})
	c.must(err)
	path := filepath.Join(c.Hierarchies()[1].dir, issuerKey)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(state, seal); !errors.Is(err, ErrExposed) || !strings.Contains(err.Error(), "chmod 600 "+path) {
		t.Errorf("the next issuing CA's: %v", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	key, err := c.OpenRoot(c.Hierarchies()[0])
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(state, caDir, rootKey)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RenewIssuer(t.Context(), c.log, key, 0, Note{}); !errors.Is(err, ErrExposed) || len(c.Hierarchies()) != 2 {
		t.Errorf("the root's, copied: %v", err)
	}
}
