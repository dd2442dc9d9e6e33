package filestore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/durable"
	"countersign.dev/secret"
)

// newIdentity makes an identity in a directory of its own.
func newIdentity(t *testing.T) *Identity {
	t.Helper()
	path := filepath.Join(t.TempDir(), "id.age")
	if err := GenerateIdentity(path); err != nil {
		t.Fatal(err)
	}
	identity, err := LoadIdentity(path)
	if err != nil {
		t.Fatal(err)
	}
	return identity
}

func newStore(t *testing.T) *Store {
	t.Helper()
	s, err := Create(filepath.Join(t.TempDir(), "store"), newIdentity(t))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func stage(t *testing.T, s *Store, name, id, value string) string {
	t.Helper()
	id, err := s.Stage(t.Context(), name, id, []byte(value))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func promote(t *testing.T, s *Store, name, version string) {
	t.Helper()
	if err := s.Promote(t.Context(), name, version); err != nil {
		t.Fatal(err)
	}
}

// put stages and promotes.
func put(t *testing.T, s *Store, name, id, value string) {
	t.Helper()
	promote(t, s, name, stage(t, s, name, id, value))
}

// read gives a value and its id as one text, or "-" when there is none.
func read(t *testing.T, s *Store, name, version string) string {
	t.Helper()
	value, id, err := s.Read(t.Context(), name, version)
	if errors.Is(err, secret.ErrNotFound) {
		return "-"
	}
	if err != nil {
		t.Fatal(err)
	}
	return id + "=" + string(value)
}

// staged shows the stages of a secret: pending, current, previous.
func staged(t *testing.T, s *Store, name string) string {
	t.Helper()
	return strings.Join([]string{read(t, s, name, "pending"), read(t, s, name, "current"), read(t, s, name, "previous")}, " ")
}

func TestStages(t *testing.T) {
	s := newStore(t)
	expect := func(what, want string) {
		t.Helper()
		if got := staged(t, s, "a/b"); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	expect("nothing", "- - -")
	stage(t, s, "a/b", "1", "one")
	expect("one is staged", "1=one - -")
	promote(t, s, "a/b", "pending")
	expect("one is current", "- 1=one -")
	promote(t, s, "a/b", "1")
	promote(t, s, "a/b", "current")
	expect("one is made current again", "- 1=one -")
	stage(t, s, "a/b", "2", "two")
	expect("two is staged", "2=two 1=one -")
	stage(t, s, "a/b", "3", "three")
	expect("three takes its place", "3=three 1=one -")
	stage(t, s, "a/b", "2", "two")
	expect("two again", "2=two 1=one -")
	promote(t, s, "a/b", "2")
	expect("two is current", "- 2=two 1=one")
	promote(t, s, "a/b", "previous")
	expect("the way back", "- 1=one 2=two")
	stage(t, s, "a/b", "2", "two")
	expect("the previous one is pending too", "2=two 1=one 2=two")
	stage(t, s, "a/b", "1", "one")
	expect("the current one is staged", "2=two 1=one 2=two")
	promote(t, s, "a/b", "3")
	expect("one without a stage", "2=two 3=three 1=one")
	if got := read(t, s, "a/b", "2") + read(t, s, "a/b", "") + read(t, s, "a/b", "4"); got != "2=two3=three-" {
		t.Errorf("by id: %s", got)
	}
	versions, err := s.Versions(t.Context(), "a/b")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, version := range versions {
		got = append(got, fmt.Sprintf("%s %s %d bytes", version.ID, version.Stages, version.Size))
		if age := time.Since(version.Created); age < -time.Second || age > time.Hour {
			t.Errorf("version %s was made at %s", version.ID, version.Created)
		}
	}
	if diff := cmp.Diff([]string{"3 [current] 5 bytes", "2 [pending] 3 bytes", "1 [previous] 3 bytes"}, got); diff != "" {
		t.Errorf("versions (-want +got):\n%s", diff)
	}
}

func TestIDs(t *testing.T) {
	s := newStore(t)
	one, again, other, elsewhere := stage(t, s, "a", "", "x"), stage(t, s, "a", "", "x"), stage(t, s, "a", "", "y"), stage(t, s, "b", "", "x")
	if one != again || one == other || one == elsewhere {
		t.Errorf("ids: %s and %s of one value, %s of another, %s of another secret", one, again, other, elsewhere)
	}
	if other := newStore(t); stage(t, other, "a", "", "x") == one {
		t.Error("the id is one that can be searched for without the identity")
	}
	if _, err := s.Stage(t.Context(), "a", one, []byte("z")); !errors.Is(err, secret.ErrConflict) {
		t.Errorf("another value: %v, want ErrConflict", err)
	}
	if got := read(t, s, "a", one); got != one+"=x" {
		t.Errorf("it is %s", got)
	}
	largest := strings.Repeat("\x00", secret.MaxValue)
	put(t, s, "a", "largest", largest)
	if got := read(t, s, "a", ""); got != "largest="+largest {
		t.Errorf("the largest value comes back with %d bytes", len(got))
	}
}

func TestPruning(t *testing.T) {
	s := newStore(t)
	put(t, s, "a", "keep-previous", "x")
	put(t, s, "a", "keep-current", "x")
	for i := range 2 * maxVersions {
		stage(t, s, "a", fmt.Sprint("v", i), "y")
	}
	if got := staged(t, s, "a"); got != fmt.Sprintf("v%d=y keep-current=x keep-previous=x", 2*maxVersions-1) {
		t.Errorf("stages: %s", got)
	}
	versions, err := s.Versions(t.Context(), "a")
	if err != nil || len(versions) != maxVersions {
		t.Errorf("%d versions: %v", len(versions), err)
	}
	files, err := os.ReadDir(s.secretDir("a"))
	if err != nil || len(files) != maxVersions+1 {
		t.Errorf("%d files: %v", len(files), err)
	}
	for _, version := range versions {
		read(t, s, "a", version.ID)
	}
	if got := read(t, s, "a", "v0"); got != "-" {
		t.Errorf("the oldest is %s", got)
	}
}

func TestList(t *testing.T) {
	s := newStore(t)
	if entries, err := s.List(t.Context()); err != nil || entries == nil || len(entries) != 0 {
		t.Errorf("nothing: %v, %v", entries, err)
	}
	for _, name := range []string{"b", "a/b/c", "a-b", "a"} {
		put(t, s, name, "1", name)
	}
	for _, foreign := range []string{".hidden", "a b"} {
		if err := os.Mkdir(s.path(secretsDir, foreign), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name)
		if version, ok := entry.Stage(secret.Current); !ok || version.ID != "1" {
			t.Errorf("%s: %v", entry.Name, entry.Versions)
		}
	}
	if !slices.Equal(names, []string{"a", "a-b", "a/b/c", "b"}) {
		t.Errorf("names %q", names)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.List(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	s := newStore(t)
	put(t, s, "a", "1", "x")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	ctx := t.Context()
	staging := func(ctx context.Context, name, id string, size int) error {
		_, err := s.Stage(ctx, name, id, make([]byte, size))
		return err
	}
	reading := func(ctx context.Context, name, version string) error {
		_, _, err := s.Read(ctx, name, version)
		return err
	}
	versions := func(ctx context.Context, name string) error {
		_, err := s.Versions(ctx, name)
		return err
	}
	for name, c := range map[string]struct{ got, want error }{
		"a path":               {staging(ctx, "../a", "", 1), secret.ErrInvalid},
		"an id":                {staging(ctx, "a", "../1", 1), secret.ErrInvalid},
		"a stage's name":       {staging(ctx, "a", "current", 1), secret.ErrInvalid},
		"empty":                {staging(ctx, "a", "", 0), secret.ErrInvalid},
		"large":                {staging(ctx, "a", "", secret.MaxValue+1), secret.ErrInvalid},
		"staging, cancelled":   {staging(cancelled, "a", "", 1), context.Canceled},
		"reading a path":       {reading(ctx, "a/../../b", ""), secret.ErrInvalid},
		"reading another":      {reading(ctx, "b", ""), secret.ErrNotFound},
		"reading a version":    {reading(ctx, "a", "../../x"), secret.ErrNotFound},
		"reading no stage":     {reading(ctx, "a", "pending"), secret.ErrNotFound},
		"reading, cancelled":   {reading(cancelled, "a", ""), context.Canceled},
		"versions of a path":   {versions(ctx, ".."), secret.ErrInvalid},
		"versions of another":  {versions(ctx, "b"), secret.ErrNotFound},
		"versions, cancelled":  {versions(cancelled, "a"), context.Canceled},
		"promoting a path":     {s.Promote(ctx, "/", "1"), secret.ErrInvalid},
		"promoting nothing":    {s.Promote(ctx, "a", ""), secret.ErrInvalid},
		"promoting another":    {s.Promote(ctx, "b", "1"), secret.ErrNotFound},
		"promoting a version":  {s.Promote(ctx, "a", "2"), secret.ErrNotFound},
		"promoting no stage":   {s.Promote(ctx, "a", "pending"), secret.ErrNotFound},
		"promoting, cancelled": {s.Promote(cancelled, "a", "1"), context.Canceled},
	} {
		if !errors.Is(c.got, c.want) {
			t.Errorf("%s: %v, want %v", name, c.got, c.want)
		}
	}
	if got := staged(t, s, "a"); got != "- 1=x -" {
		t.Errorf("something changed: %s", got)
	}
}

// TestTooManySecrets fills the directory with what is not even whole: it is counted before it is read.
func TestTooManySecrets(t *testing.T) {
	s := newStore(t)
	put(t, s, "there", "1", "x")
	for i := range maxSecrets - 1 {
		if err := os.Mkdir(s.path(secretsDir, fmt.Sprint("n", i)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Stage(t.Context(), "one-more", "", []byte("x")); !errors.Is(err, secret.ErrFull) {
		t.Errorf("%v, want ErrFull", err)
	}
	put(t, s, "there", "2", "y")
}

// TestModes looks at every file for a mode that is wider than it should be, and for a plain text.
func TestModes(t *testing.T) {
	s := newStore(t)
	put(t, s, "a/b", "", "MARKER")
	if _, err := s.Lease(t.Context(), "a/b", "HOLDER", maxLease); err != nil {
		t.Fatal(err)
	}
	checkFiles(t, s.dir, "MARKER", "HOLDER")
}

func checkFiles(t *testing.T, dir string, markers ...string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has the mode %04o", path, info.Mode().Perm())
		}
		if !entry.Type().IsRegular() {
			return nil
		}
		files++
		text, err := os.ReadFile(path)
		for _, marker := range markers {
			if bytes.Contains(text, []byte(marker)) {
				t.Errorf("%s holds %q", path, marker)
			}
		}
		return err
	})
	if err != nil || files == 0 {
		t.Errorf("%d files were looked at: %v", files, err)
	}
}

// TestTwoWriters lets writers and readers of one store meet, each with a Store of its own as processes
// have. No version is lost, and a reader always gets a value that belongs to its id. A secret gets no more versions than
// are kept, so that a writer who waits for long between two steps still finds his.
func TestTwoWriters(t *testing.T) {
	s := newStore(t)
	const rounds, writes = 2, 5 // three writers and the first version: 16 of each secret
	for round := range rounds {
		put(t, s, fmt.Sprintf("a/%d", round), "start", "value of start")
	}
	var writers, readers sync.WaitGroup
	done := make(chan struct{})
	for w := range 3 {
		writers.Go(func() {
			mine := &Store{dir: s.dir, identity: s.identity}
			for i := range rounds * writes {
				name := fmt.Sprintf("a/%d", i/writes)
				id := fmt.Sprintf("w%d-%d", w, i)
				if _, err := mine.Stage(t.Context(), name, id, []byte("value of "+id)); err != nil {
					t.Errorf("staging: %v", err)
				}
				if err := mine.Promote(t.Context(), name, id); err != nil {
					t.Errorf("promoting: %v", err)
				}
				if _, err := mine.Stage(t.Context(), fmt.Sprintf("new/%d", i), "", []byte("x")); err != nil {
					t.Errorf("a new secret: %v", err)
				}
			}
		})
	}
	for range 2 {
		readers.Go(func() {
			for round := 0; ; round++ {
				select {
				case <-done:
					return
				default:
				}
				value, id, err := s.Read(t.Context(), fmt.Sprintf("a/%d", round%rounds), "")
				if err != nil || string(value) != "value of "+id {
					t.Errorf("version %s is %q: %v", id, value, err)
					return
				}
				if _, err := s.List(t.Context()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	writers.Wait()
	close(done)
	readers.Wait()
	entries, err := s.List(t.Context())
	if err != nil || len(entries) != rounds+rounds*writes {
		t.Errorf("%d secrets: %v", len(entries), err)
	}
	put(t, s, "a/0", "last", "value of last") // one more than are kept
	for round := range rounds {
		files, err := os.ReadDir(s.secretDir(fmt.Sprintf("a/%d", round)))
		if err != nil || len(files) != maxVersions+1 {
			t.Errorf("%d files of a/%d: %v", len(files), round, err)
		}
	}
}

// TestLockedOut holds the lock for longer than a writer wants to wait.
func TestLockedOut(t *testing.T) {
	s := newStore(t)
	unlock, err := durable.Lock(s.path(lockFile))
	if err != nil {
		t.Fatal(err)
	}
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if _, err := s.Stage(ctx, "a", "", []byte("x")); !errors.Is(err, why) {
		t.Errorf("%v, want the context's cause", err)
	}
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		if _, err := s.Stage(t.Context(), "a", "", []byte("x")); !errors.Is(err, ErrBusy) {
			t.Errorf("%v, want ErrBusy", err)
		}
		if waited := time.Since(begin); waited < lockWait {
			t.Errorf("it gave up after %s", waited)
		}
	})
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	put(t, s, "a", "1", "x")
}

// TestInTurn has a writer that waits for the lock, and one that comes later and looks at it all the time: it does not overtake.
func TestInTurn(t *testing.T) {
	for n := range 5 {
		s := newStore(t)
		put(t, s, "a", "1", "x")
		unlock, err := durable.Lock(s.path(lockFile))
		if err != nil {
			t.Fatal(err)
		}
		order := make(chan string, 2)
		var writers sync.WaitGroup
		write := func(id string) {
			writers.Go(func() {
				if err := s.locked(t.Context(), func() error { order <- id; return nil }); err != nil {
					t.Errorf("%s: %v", id, err)
				}
			})
		}
		write("first")
		for deadline := time.Now().Add(lockWait); ; time.Sleep(time.Millisecond) {
			leave, err := durable.Lock(s.path(queueFile))
			if errors.Is(err, durable.ErrLocked) {
				break // it waits
			}
			if err == nil {
				err = leave()
			}
			if err != nil || time.Now().After(deadline) {
				t.Fatalf("nobody waits: %v", err)
			}
		}
		for range 4 { // one of several would overtake by chance
			write("later")
		}
		if err := unlock(); err != nil {
			t.Fatal(err)
		}
		if got := <-order; got != "first" {
			t.Errorf("try %d: one that came later was let in before", n)
		}
		for range 4 {
			<-order
		}
		writers.Wait()
	}
}

// TestLayouts keeps a certificate's parts in a store, and reads them while their stages are moved.
func TestLayouts(t *testing.T) {
	s := newStore(t)
	for _, layout := range secret.Layouts() {
		shape, err := secret.NewShape(layout, secret.Fields{})
		if err != nil {
			t.Fatal(err)
		}
		name := "payments/" + string(layout)
		write := func(id string) []secret.Value {
			t.Helper()
			m := &secret.Material{Certificate: []byte("cert " + id), Key: []byte("key " + id)}
			switch layout {
			case secret.LayoutExported:
				m.Chain, m.Passphrase = []byte("chain "+id), []byte("passphrase "+id)
			case secret.LayoutBundle:
				m = &secret.Material{Bundle: []byte("bundle " + id)}
			default:
				m.Bundle = []byte("bundle " + id)
			}
			values, err := shape.Encode(name, m)
			if err != nil {
				t.Fatal(err)
			}
			for _, value := range values {
				stage(t, s, value.Name, id, string(value.Value))
			}
			return values
		}
		for _, value := range write("1") {
			promote(t, s, value.Name, "1")
		}
		values := write("2")
		seen := map[string]bool{}
		for i := len(values); i >= 0; i-- {
			if i < len(values) {
				promote(t, s, values[i].Name, "2")
			}
			m, err := shape.Read(t.Context(), s, name, "")
			if err != nil {
				t.Fatal(err)
			}
			seen[m.Version] = true
			for _, part := range [][]byte{m.Certificate, m.Chain, m.Key, m.Passphrase, m.Bundle} {
				if part != nil && !strings.HasSuffix(string(part), " "+m.Version) {
					t.Errorf("%s, version %s: a part is %q", layout, m.Version, part)
				}
			}
		}
		if !seen["1"] || !seen["2"] {
			t.Errorf("%s: seen were the versions %v", layout, seen)
		}
	}
}
