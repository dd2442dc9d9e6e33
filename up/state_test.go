package up

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/durable"
)

func TestTemporaryState(t *testing.T) {
	parent := t.TempDir()
	t.Setenv("TMPDIR", parent)
	s, err := openState("")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(s.dir)
	if err != nil || info.Mode().Perm() != 0o700 || filepath.Dir(s.dir) != parent {
		t.Errorf("the state is %s with %v (%v), want 0700 in %s", s.dir, info, err, parent)
	}
	if err := s.writeToken("a-1", "secret"); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(s.token("a-1")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the token file is %v (%v), want 0600", info, err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) != 0 {
		t.Errorf("%v is left (%v)", left, err)
	}
}

// TestAbandonedState: what a killed `up` has left is removed by the next one, and nothing else is.
func TestAbandonedState(t *testing.T) {
	parent := t.TempDir()
	t.Setenv("TMPDIR", parent)
	abandoned, foreign := filepath.Join(parent, temporaryPrefix+"abandoned"), filepath.Join(parent, temporaryPrefix+"foreign")
	for _, dir := range []string{abandoned, foreign} {
		if err := os.MkdirAll(filepath.Join(dir, "server"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(abandoned, lockName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	running, err := openState("")
	if err != nil {
		t.Fatal(err)
	}
	second, err := openState("")
	if err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]bool{abandoned: false, foreign: true, running.dir: true, second.dir: true} {
		if _, err := os.Stat(dir); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", dir, err == nil, want)
		}
	}
	for _, s := range []*state{running, second} {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}
}

func TestKeptState(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	s, err := openState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openState(dir); !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "another 'countersign up'") {
		t.Errorf("a second one on the same directory gives %v", err)
	}
	blocks := []netip.Prefix{netip.MustParsePrefix("127.20.3.0/24")}
	err = errors.Join(
		s.keepBlocks(blocks),
		s.writeToken("a-1", "secret"),
		(&Document{Version: DocumentVersion}).write(s.documentPath()),
		durable.WriteFile(s.path("server", "kept"), nil, 0o600),
	)
	if err := errors.Join(err, s.close()); err != nil {
		t.Fatal(err)
	}
	s, err = openState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(blocks, s.blocks(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("blocks (-want +got):\n%s", diff)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	var left []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		left = append(left, entry.Name())
	}
	if diff := cmp.Diff([]string{"addresses.json", "server", "sidecars", "up.lock"}, left); diff != "" {
		t.Errorf("what is left (-want +got):\n%s", diff)
	}
}

// TestForeignBlocks: a file that somebody changed cannot lead out of the loopback network.
func TestForeignBlocks(t *testing.T) {
	for _, text := range []string{"", "{", `["10.0.0.0/24"]`, `["127.1.2.3/24"]`, `["127.0.0.0/8"]`, `["::1/128"]`, `[1]`} {
		s := &state{dir: t.TempDir()}
		if err := os.WriteFile(s.path("addresses.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if blocks := s.blocks(); len(blocks) != 0 {
			t.Errorf("%q gives %v", text, blocks)
		}
	}
}

func TestLongPath(t *testing.T) {
	s, err := openState(filepath.Join(t.TempDir(), strings.Repeat("long", 30)))
	if err != nil {
		t.Fatal(err)
	}
	if len(s.socket) > maxSocketPath || s.socketDir == "" {
		t.Errorf("the socket is %s", s.socket)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(s.socketDir); !os.IsNotExist(err) {
		t.Errorf("%s is left (%v)", s.socketDir, err)
	}
}

// TestAbandonedStore: what a killed run has made elsewhere goes with its directory. What has its path by now and is
// another, what the run found there, and what other files name, stays.
func TestAbandonedStore(t *testing.T) {
	parent, elsewhere := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", parent)
	paths := map[string]string{}
	for _, name := range []string{"made", "made again", "there before", "empty before", "foreign"} {
		paths[name] = filepath.Join(elsewhere, name)
	}
	mkdir := func(name string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(paths[name], "in"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	killed, err := openState("")
	if err != nil {
		t.Fatal(err)
	}
	mkdir("there before")
	mkdir("foreign")
	if err := os.Mkdir(filepath.Join(elsewhere, "empty before"), 0o700); err != nil {
		t.Fatal(err)
	}
	made, err := killed.willMake(paths["made"], paths["made again"], paths["there before"], paths["empty before"], filepath.Join(elsewhere, "never made"))
	if err != nil {
		t.Fatal(err)
	}
	mkdir("made")
	mkdir("made again")
	mkdir("empty before")
	if err := errors.Join(made(), killed.unlock()); err != nil {
		t.Fatal(err)
	}
	if one, err := identify(paths["made"]); err != nil || one.Born == 0 {
		t.Skipf("NOT TESTED: the file system of %s does not say when a file was made (%v)", elsewhere, err)
	}
	for range 3 { // the number of what is removed is given to the next
		if err := os.RemoveAll(paths["made again"]); err != nil {
			t.Fatal(err)
		}
		mkdir("made again")
	}
	for name, text := range map[string]string{"1": `["` + paths["foreign"] + `"]`, "2": "{", "3": "", "4": `[{"path":"` + paths["foreign"] + `"}]`} {
		dir := filepath.Join(parent, temporaryPrefix+name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for file, data := range map[string]string{lockName: "", madeName: text} {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(data), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	removeAbandoned(parent)
	for name, want := range map[string]bool{"made": false, "made again": true, "there before": true, "empty before": true, "foreign": true} {
		if _, err := os.Stat(paths[name]); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left, err := os.ReadDir(paths["empty before"]); err != nil || len(left) != 0 {
		t.Errorf("in the directory that was empty are left %v (%v)", left, err)
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) != 0 {
		t.Errorf("left are %v (%v)", left, err)
	}
}
