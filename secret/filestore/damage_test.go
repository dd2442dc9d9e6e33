package filestore

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign.dev/secret"
)

func mustReadFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func mustWriteFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// damages are what a disk or a person does to a file.
var damages = map[string]func(t *testing.T, path string){
	"empty":   func(t *testing.T, path string) { mustWriteFile(t, path, nil) },
	"missing": func(t *testing.T, path string) { _ = os.Remove(path) },
	"cut off": func(t *testing.T, path string) {
		data := mustReadFile(t, path)
		mustWriteFile(t, path, data[:len(data)/2])
	},
	"last byte gone": func(t *testing.T, path string) {
		data := mustReadFile(t, path)
		mustWriteFile(t, path, data[:len(data)-1])
	},
	"one bit": func(t *testing.T, path string) {
		data := mustReadFile(t, path)
		data[len(data)-20] ^= 1
		mustWriteFile(t, path, data)
	},
	"longer": func(t *testing.T, path string) { mustWriteFile(t, path, append(mustReadFile(t, path), 'x')) },
	"zeros":  func(t *testing.T, path string) { mustWriteFile(t, path, make([]byte, 1000)) },
	"huge":   func(t *testing.T, path string) { mustWriteFile(t, path, make([]byte, maxFile+1)) },
	"text":   func(t *testing.T, path string) { mustWriteFile(t, path, []byte("MARKER\n")) },
	"a link": func(t *testing.T, path string) {
		other := filepath.Join(t.TempDir(), "other")
		mustWriteFile(t, other, mustReadFile(t, path))
		if err := errors.Join(os.Remove(path), os.Symlink(other, path)); err != nil {
			t.Fatal(err)
		}
	},
	"a directory": func(t *testing.T, path string) {
		if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
			t.Fatal(err)
		}
	},
}

// TestDamagedValue expects a damaged version to be named, never to be given or made current, and the
// others to be as they were. Writing the same version again heals it.
func TestDamagedValue(t *testing.T) {
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			put(t, s, "a", "1", "one")
			put(t, s, "a", "2", "two")
			stage(t, s, "a", "3", "three")
			for _, version := range []string{"2", "3"} {
				path := s.valuePath("a", version)
				damage(t, path)
				if value, _, err := s.Read(t.Context(), "a", version); !errors.Is(err, secret.ErrCorrupt) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "MARKER") || value != nil {
					t.Errorf("reading: %q, %v, want ErrCorrupt and the path", value, err)
				}
			}
			if value, _, err := s.Read(t.Context(), "a", ""); !errors.Is(err, secret.ErrCorrupt) {
				t.Errorf("the current one: %q, %v", value, err)
			}
			if err := s.Promote(t.Context(), "a", "pending"); !errors.Is(err, secret.ErrCorrupt) {
				t.Errorf("promoting: %v", err)
			}
			if got := read(t, s, "a", "previous"); got != "1=one" {
				t.Errorf("the previous one is %s", got)
			}
			if name == "a directory" { // a person put it there, and has to take it away
				return
			}
			put(t, s, "a", "3", "three")
			if got := read(t, s, "a", "current"); got != "3=three" {
				t.Errorf("written again it is %s", got)
			}
		})
	}
}

// TestDamagedIndex expects a damaged index to be named, nothing to be read or written by it, and other
// secrets to be listed.
func TestDamagedIndex(t *testing.T) {
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			put(t, s, "a", "1", "one")
			put(t, s, "b", "1", "one")
			path := s.indexPath("a")
			damage(t, path)
			_, _, reading := s.Read(t.Context(), "a", "")
			_, staging := s.Stage(t.Context(), "a", "2", []byte("two"))
			_, versions := s.Versions(t.Context(), "a")
			entries, listing := s.List(t.Context())
			for what, err := range map[string]error{"reading": reading, "staging": staging, "promoting": s.Promote(t.Context(), "a", "1"), "versions": versions, "listing": listing} {
				if !errors.Is(err, secret.ErrCorrupt) || !strings.Contains(err.Error(), path) {
					t.Errorf("%s: %v, want ErrCorrupt and the path", what, err)
				}
			}
			if len(entries) != 1 || entries[0].Name != "b" {
				t.Errorf("listed are %v", entries)
			}
			if _, err := os.Stat(s.valuePath("a", "1")); err != nil {
				t.Errorf("the value is gone: %v", err)
			}
		})
	}
}

func TestDamagedStoreAndLease(t *testing.T) {
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			put(t, s, "a", "1", "one")
			if _, err := s.Lease(t.Context(), "a", "me", time.Hour); err != nil {
				t.Fatal(err)
			}
			if name != "missing" { // a lease that is missing was released
				path := s.path(leasesDir, "a.age")
				damage(t, path)
				if _, err := s.Lease(t.Context(), "a", "you", time.Hour); !errors.Is(err, secret.ErrCorrupt) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "remove the file") {
					t.Errorf("the lease: %v", err)
				}
			}
			damage(t, s.path(storeFile))
			if _, err := Open(s.dir, s.identity); !errors.Is(err, secret.ErrCorrupt) || !strings.Contains(err.Error(), storeFile) {
				t.Errorf("the store: %v", err)
			}
		})
	}
}

// TestSwappedFiles puts good files of the store in one another's place.
func TestSwappedFiles(t *testing.T) {
	s := newStore(t)
	for _, name := range []string{"a", "b"} {
		put(t, s, name, "1", "one of "+name)
		put(t, s, name, "2", "two of "+name)
	}
	current, index := s.valuePath("a", "2"), s.indexPath("a")
	good, goodIndex := mustReadFile(t, current), mustReadFile(t, index)
	for what, from := range map[string]string{"another version": s.valuePath("a", "1"), "another secret": s.valuePath("b", "2"), "an index": index, "the store's": s.path(storeFile)} {
		mustWriteFile(t, current, mustReadFile(t, from))
		if value, _, err := s.Read(t.Context(), "a", ""); !errors.Is(err, secret.ErrCorrupt) {
			t.Errorf("%s: %q, %v", what, value, err)
		}
	}
	// A version of the same id and another value, as one gets from another copy of the store.
	if err := s.save(current, record{Kind: kindVersion, Name: "a", ID: "2"}, []byte("forged one")); err != nil {
		t.Fatal(err)
	}
	if value, _, err := s.Read(t.Context(), "a", ""); !errors.Is(err, secret.ErrCorrupt) {
		t.Errorf("another value: %q, %v", value, err)
	}
	mustWriteFile(t, current, good)
	for what, from := range map[string]string{"another secret's": s.indexPath("b"), "a value": current} {
		mustWriteFile(t, index, mustReadFile(t, from))
		if _, _, err := s.Read(t.Context(), "a", ""); !errors.Is(err, secret.ErrCorrupt) {
			t.Errorf("the index is %s: %v", what, err)
		}
	}
	mustWriteFile(t, index, goodIndex)
	if got := staged(t, s, "a"); got != "- 2=two of a 1=one of a" {
		t.Errorf("put back, it is %s", got)
	}
}

// TestLeftovers puts there what crashes leave: it is never read, and the next write removes it.
func TestLeftovers(t *testing.T) {
	s := newStore(t)
	put(t, s, "a", "1", "one")
	orphan := s.valuePath("a", "2")
	mustWriteFile(t, orphan, mustReadFile(t, s.valuePath("a", "1")))
	temp := filepath.Join(s.secretDir("a"), ".index.age.countersign-tmp-00")
	mustWriteFile(t, temp, []byte("x"))
	staging := s.path(stagingDir, "b")
	if err := os.Mkdir(staging, 0o700); err != nil {
		t.Fatal(err)
	}
	mustWriteFile(t, filepath.Join(staging, "v-1.age"), []byte("x"))
	if got := read(t, s, "a", "2") + read(t, s, "b", ""); got != "--" {
		t.Errorf("read: %s", got)
	}
	put(t, s, "a", "3", "three")
	put(t, s, "c", "1", "one")
	for _, path := range []string{orphan, temp, staging} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	if got := staged(t, s, "a"); got != "- 3=three 1=one" {
		t.Errorf("a is %s", got)
	}
}

// FuzzRecord reads any bytes as each kind of file: what is accepted is written again as it was
// understood, and an index that is accepted has no stage and no id twice.
func FuzzRecord(f *testing.F) {
	version := newVersion("1", []byte("x"))
	for _, r := range []record{
		{Kind: kindStore},
		{Kind: kindIndex, Name: "a", Versions: []indexed{version}},
		{Kind: kindVersion, Name: "a", ID: "1"},
		{Kind: kindLease, Name: "a", Holder: "me", Token: "t", Expires: time.Unix(0, 0).UTC()},
	} {
		data, err := marshal(r, nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append(data, "value\n"...))
		f.Add(data)
	}
	f.Add([]byte(`{"format":2,"kind":"index"}` + "\n"))
	f.Add([]byte(`{"format":1,"kind":"index","name":"a","versions":[{"id":"../x"}]}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, kind := range []string{kindStore, kindIndex, kindVersion, kindLease} {
			name := "a"
			if kind == kindStore {
				name = ""
			}
			r, value, err := unmarshal(data, kind, name)
			if err != nil {
				continue
			}
			if kind == kindIndex && checkIndex(r) == nil {
				seen := map[string]bool{}
				for _, version := range r.Versions {
					words := []string{"id " + version.ID}
					for _, stage := range version.Stages {
						words = append(words, string(stage))
					}
					for _, word := range words {
						if seen[word] {
							t.Errorf("%s is there twice", word)
						}
						seen[word] = true
					}
					if strings.ContainsAny(version.ID, "/\\\x00") {
						t.Errorf("the id %q is a path", version.ID)
					}
				}
			}
			written, err := marshal(r, value)
			if err != nil {
				continue // a name that grew, being escaped
			}
			again, valueAgain, err := unmarshal(written, kind, name)
			if err != nil || !bytes.Equal(value, valueAgain) || again.Kind != r.Kind || len(again.Versions) != len(r.Versions) {
				t.Errorf("written and read again: %v", err)
			}
		}
	})
}

func TestRecordsRefused(t *testing.T) {
	const digest = `"sha256":"0000000000000000000000000000000000000000000000000000000000000000"`
	whole := `{"id":"1","stages":["current"],"created":"2027-01-01T00:00:00Z","size":1,` + digest + `}`
	for name, c := range map[string]struct{ text, want string }{
		"no line end":       {`{"format":1,"kind":"index","name":"a"}`, "no end"},
		"no JSON":           {"x\n", "does not parse"},
		"unknown key":       {`{"format":1,"kind":"index","name":"a","x":1}` + "\n", "does not parse"},
		"two":               {`{"format":1,"kind":"index","name":"a"}{}` + "\n", "goes on after its end"},
		"format":            {`{"format":2,"kind":"index","name":"a"}` + "\n", "format 2"},
		"kind":              {`{"format":1,"kind":"lease","name":"a"}` + "\n", `kind "lease"`},
		"name":              {`{"format":1,"kind":"index","name":"b"}` + "\n", `the secret "b"`},
		"tail":              {`{"format":1,"kind":"index","name":"a"}` + "\nx", "something follows"},
		"no versions":       {`{"format":1,"kind":"index","name":"a"}` + "\n", "lists 0 versions"},
		"many":              {`{"format":1,"kind":"index","name":"a","versions":[` + strings.Repeat(whole+",", maxVersions) + whole + `]}` + "\n", "lists 17 versions"},
		"a path":            {`{"format":1,"kind":"index","name":"a","versions":[` + strings.Replace(whole, `"1"`, `"../1"`, 1) + `]}` + "\n", "cannot be"},
		"twice":             {`{"format":1,"kind":"index","name":"a","versions":[` + whole + "," + whole + `]}` + "\n", "twice"},
		"stage twice":       {`{"format":1,"kind":"index","name":"a","versions":[` + whole + "," + strings.Replace(whole, `"1"`, `"2"`, 1) + `]}` + "\n", `the stage "current"`},
		"unknown stage":     {`{"format":1,"kind":"index","name":"a","versions":[` + strings.Replace(whole, "current", "next", 1) + `]}` + "\n", `the stage "next"`},
		"no digest":         {`{"format":1,"kind":"index","name":"a","versions":[` + strings.Replace(whole, "0000000000", "", 1) + `]}` + "\n", "not whole"},
		"no size":           {`{"format":1,"kind":"index","name":"a","versions":[` + strings.Replace(whole, `"size":1`, `"size":0`, 1) + `]}` + "\n", "not whole"},
		"a long first line": {strings.Repeat(" ", maxRecord) + "\n", "no end"},
	} {
		r, _, err := unmarshal([]byte(c.text), kindIndex, "a")
		if err == nil {
			err = checkIndex(r)
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if _, err := marshal(record{Holder: strings.Repeat("h", maxRecord)}, nil); err == nil {
		t.Error("a record was written that cannot be read")
	}
}
