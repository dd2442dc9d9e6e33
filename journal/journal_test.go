package journal

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/tlog"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)

type facts map[string]any

func newKey(t testing.TB) *Key {
	t.Helper()
	key, err := GenerateKey("colorapp.internal/journal")
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newLog makes a journal with n entries after the first.
func newLog(t testing.TB, key *Key, n int) *Log {
	t.Helper()
	l, err := Create(filepath.Join(t.TempDir(), "journal"), key, epoch, facts{"origin": key.Name()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeLog(t, l) })
	for i := range n {
		appendTo(t, l, i)
	}
	return l
}

func closeLog(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

func appendTo(t testing.TB, l *Log, i int) {
	t.Helper()
	if _, err := l.Append(t.Context(), Entry{Time: epoch, Type: Issued, Data: facts{"serial": fmt.Sprintf("%02x", i)}}); err != nil {
		t.Fatal(err)
	}
}

// exported is a copy of a journal with n entries after the first, in an own directory.
func exported(t testing.TB, key *Key, n int) string {
	t.Helper()
	l := newLog(t, key, n)
	var archive bytes.Buffer
	if err := l.Export(&archive); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "copy")
	if err := Extract(&archive, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestEntrySpelling(t *testing.T) {
	line, err := Entry{Time: epoch.In(time.FixedZone("", 3600)), Type: Apply, Data: facts{
		"z": "<&>\u2028ü", "a": facts{"y": 1, "x": []int{2, 1}}, "n": uint64(math.MaxUint64),
	}}.line()
	if err != nil {
		t.Fatal(err)
	}
	want := `{"data":{"a":{"x":[2,1],"y":1},"n":18446744073709551615,"z":"<&>\u2028ü"},"time":"2026-01-02T03:04:05.000006Z","type":"apply"}`
	if diff := cmp.Diff(want, string(line)); diff != "" {
		t.Error(diff)
	}
	for name, data := range map[string]any{
		"a fraction":        facts{"a": []any{1.5}},
		"no object":         []int{1},
		"nothing":           nil,
		"not marshallable":  func() {},
		"longer than a MiB": facts{"a": strings.Repeat("x", MaxEntry)},
	} {
		if _, err := (Entry{Time: epoch, Type: Apply, Data: data}).line(); !errors.Is(err, ErrEntry) {
			t.Errorf("%s: %v, want ErrEntry", name, err)
		}
	}
}

// TestTreeAgreesWithReference compares the edge with a tree that keeps every hash.
func TestTreeAgreesWithReference(t *testing.T) {
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			hashes[i] = stored[index]
		}
		return hashes, nil
	})
	edge := &tree{}
	for n := range int64(300) {
		want, err := tlog.TreeHash(n, reader)
		if err != nil {
			t.Fatal(err)
		}
		got, err := edge.root()
		if err != nil || got != want {
			t.Fatalf("size %d: root %s, %v, want %s", n, got, err, want)
		}
		if len(edge.edge) > 9 {
			t.Fatalf("size %d: the edge has %d hashes", n, len(edge.edge))
		}
		record := fmt.Appendf(nil, "record %d", n)
		more, err := tlog.StoredHashes(n, record, reader)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, more...)
		if err := edge.add(record); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAppendReopenRead(t *testing.T) {
	key := newKey(t)
	l := newLog(t, key, 5)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Append(t.Context(), Entry{Time: epoch, Type: Apply, Data: facts{}}); !errors.Is(err, ErrNotRecorded) {
		t.Errorf("after Close: %v, want ErrNotRecorded", err)
	}
	again, err := ParseKey(key.Secret())
	if err != nil {
		t.Fatal(err)
	}
	if l, err = Open(l.dir, again); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeLog(t, l) })
	index, err := l.Append(t.Context(), Entry{Time: epoch, Type: Apply, Data: facts{"a": 1}})
	if err != nil || index != 6 {
		t.Fatalf("index %d, %v, want 6", index, err)
	}
	var types []Type
	for record, err := range l.Records() {
		if err != nil {
			t.Fatal(err)
		}
		if record.Index != int64(len(types)) || !record.Time.Equal(epoch) {
			t.Errorf("record %+v", record)
		}
		types = append(types, record.Type)
	}
	if diff := cmp.Diff([]Type{Created, Issued, Issued, Issued, Issued, Issued, Apply}, types); diff != "" {
		t.Error(diff)
	}
	for _, err := range l.Records() {
		if err != nil {
			t.Error(err)
		}
		break // a reader may stop
	}
	if _, err := Verify(l.dir, key.Verifier()); err != nil {
		t.Error(err)
	}
}

func TestConcurrentAppends(t *testing.T) {
	key := newKey(t)
	l := newLog(t, key, 0)
	const goroutines, each = 8, 20
	var wg sync.WaitGroup
	indexes := make(chan int64, goroutines*each)
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				index, err := l.Append(t.Context(), Entry{Time: epoch, Type: Issued, Data: facts{"g": g, "i": i}})
				if err != nil {
					t.Error(err)
				}
				indexes <- index
			}
		})
	}
	wg.Wait()
	close(indexes)
	seen := map[int64]bool{}
	for index := range indexes {
		if index < 1 || index > goroutines*each || seen[index] {
			t.Errorf("index %d given twice or out of range", index)
		}
		seen[index] = true
	}
	if size, err := Verify(l.dir, key.Verifier()); err != nil || size != 1+goroutines*each {
		t.Errorf("size %d, %v", size, err)
	}
}

func TestOneWriter(t *testing.T) {
	key := newKey(t)
	l := newLog(t, key, 0)
	if _, err := Open(l.dir, key); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "stop the other server") {
		t.Errorf("second Open: %v, want ErrLocked that says what to do", err)
	}
	if _, err := Create(l.dir, key, epoch, facts{}); !errors.Is(err, ErrLocked) {
		t.Errorf("second Create: %v, want ErrLocked", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(l.dir, key, epoch, facts{}); !errors.Is(err, ErrExists) {
		t.Errorf("Create over it: %v, want ErrExists", err)
	}
	if _, err := Open(t.TempDir(), key); !errors.Is(err, ErrNoJournal) {
		t.Errorf("Open of nothing: %v, want ErrNoJournal", err)
	}
	if _, err := Open(l.dir, newKey(t)); !errors.Is(err, ErrForged) {
		t.Errorf("Open with another key: %v, want ErrForged", err)
	}
}

func TestOpenDropsTornTail(t *testing.T) {
	for _, tail := range []string{"x", `{"data":{},"type":"apply"}`, "{}\n{}\n{\"a"} {
		key := newKey(t)
		l := newLog(t, key, 3)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(l.dir, entriesFile)
		change(t, path, func(text []byte) []byte { return append(text, tail...) })
		l, err := Open(l.dir, key)
		if err != nil {
			t.Fatal(err)
		}
		if l.Dropped() != int64(len(tail)) {
			t.Errorf("dropped %d bytes, want %d", l.Dropped(), len(tail))
		}
		appendTo(t, l, 9)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if size, err := Verify(l.dir, key.Verifier()); err != nil || size != 5 {
			t.Errorf("after %q: size %d, %v", tail, size, err)
		}
	}
}

// TestOpenRefusesLoss is the other side: what was acknowledged is never given up quietly.
func TestOpenRefusesLoss(t *testing.T) {
	cases := map[string]struct {
		want   error
		damage func(t *testing.T, dir string)
	}{
		"an altered byte": {ErrAltered, func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, entriesFile), func(text []byte) []byte { text[10] ^= 1; return text })
		}},
		"a lost end": {ErrTruncated, func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, entriesFile), func(text []byte) []byte { return text[:len(text)-1] })
		}},
		"lost entries": {ErrTruncated, func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, entriesFile)); err != nil {
				t.Fatal(err)
			}
		}},
		"an endless line": {ErrAltered, func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, entriesFile), func([]byte) []byte { return bytes.Repeat([]byte("x"), MaxEntry+1<<17) })
		}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			key := newKey(t)
			l := newLog(t, key, 3)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			c.damage(t, l.dir)
			if _, err := Open(l.dir, key); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
	t.Run("a lost checkpoint", func(t *testing.T) {
		key := newKey(t)
		l := newLog(t, key, 3)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(l.dir, checkpointFile)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(l.dir, key); !errors.Is(err, ErrNoJournal) {
			t.Errorf("Open: %v, want ErrNoJournal", err)
		}
		if _, err := Create(l.dir, key, epoch, facts{}); !errors.Is(err, ErrTruncated) {
			t.Errorf("Create over it: %v, want ErrTruncated", err)
		}
	})
}

func TestCreateAfterInterruption(t *testing.T) {
	key := newKey(t)
	l := newLog(t, key, 0)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(l.dir, checkpointFile)); err != nil {
		t.Fatal(err)
	}
	other := newKey(t)
	l, err := Create(l.dir, other, epoch, facts{"second": 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeLog(t, l) })
	if _, err := Verify(l.dir, other.Verifier()); err != nil {
		t.Error(err)
	}
}

func change(t testing.TB, path string, f func([]byte) []byte) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, f(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
