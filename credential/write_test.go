//go:build linux

package credential

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"software.sslmate.com/src/go-pkcs12"

	"countersign.dev/durable"
	"countersign.dev/durable/durabletest"
)

func parsed(t testing.TB) *Credential {
	t.Helper()
	c, err := Parse(newWorld(t).input(t))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func here(dir string) Output { return Output{Dir: dir, Mode: 0o600, UID: -1, GID: -1} }

// TestWrite looks at the files of a generation.
func TestWrite(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0)) // what protects a key must not be the caller's umask
	dir := filepath.Join(t.TempDir(), "a", "b")
	c := parsed(t)
	out := here(dir)
	out.PKCS12 = true
	for range 4 {
		if err := c.Write(out); err != nil {
			t.Fatal(err)
		}
	}
	files, err := durable.ReadCurrent(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(files[CertFile], pemOf(c.Chain...)) || !bytes.Equal(files[BundleFile], pemOf(c.Roots...)) || !bytes.Equal(files[KeyFile], keyPEM(t, c.key)) {
		t.Error("the files are others")
	}
	if !bytes.Equal(files[CertAndKeyFile], slices.Concat(files[CertFile], files[KeyFile])) {
		t.Error("the file with both is another pair")
	}
	key, leaf, between, err := pkcs12.DecodeChain(files[PKCS12File], strings.TrimSpace(string(files[PassphraseFile])))
	if err != nil || !leaf.Equal(c.Leaf()) || len(between) != 1 || !between[0].Equal(c.Chain[1]) || !equal(c.key.Public(), key.(crypto.Signer).Public()) {
		t.Errorf("the PKCS #12 file: %v", err)
	}
	for name := range files {
		want := fs.FileMode(0o600)
		if name == CertFile || name == BundleFile {
			want = 0o644
		}
		checkMode(t, filepath.Join(dir, "current", name), want)
	}
	checkMode(t, dir, 0o700)
	if left := list(t, filepath.Join(dir, "generations")); len(left) != 2 {
		t.Errorf("there are the generations %q", left)
	}
	if left := list(t, dir); len(left) != 3 {
		t.Errorf("there are %q", left)
	}
}

func checkMode(t *testing.T, path string, want fs.FileMode) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != want {
		t.Errorf("%s has the mode %04o, want %04o", path, info.Mode().Perm(), want)
	}
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

// TestMode refuses modes that would give a key to others, and gives it to a group.
func TestMode(t *testing.T) {
	c := parsed(t)
	for _, mode := range []fs.FileMode{0o644, 0o660, 0o700, 0o604, 0o040, 0o000, 0o4600} {
		out := here(filepath.Join(t.TempDir(), "new"))
		out.Mode = mode
		if err := c.Write(out); !errors.Is(err, ErrMode) {
			t.Errorf("%04o: %v", mode, err)
		}
		if _, err := os.Lstat(out.Dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%04o: something was made (%v)", mode, err)
		}
	}
	out := here(filepath.Join(t.TempDir(), "new"))
	out.Mode = 0o640
	if err := c.Write(out); err != nil {
		t.Fatal(err)
	}
	checkMode(t, out.Dir, 0o750)
	checkMode(t, filepath.Join(out.Dir, "generations"), 0o750)
	checkMode(t, filepath.Join(out.Dir, "current"), 0o750)
	checkMode(t, filepath.Join(out.Dir, "current", KeyFile), 0o640)
}

// TestReaders reads all the time while generations change: who resolves the link once gets a pair, and so does who
// reads the file with both; and no file or directory is ever open to more than was asked for.
func TestReaders(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	dir := filepath.Join(t.TempDir(), "tls")
	credentials := []*Credential{parsed(t), parsed(t)}
	if err := credentials[0].Write(here(dir)); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wait sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]int{}
	reader := func(read func() (string, error)) {
		wait.Go(func() {
			for {
				what, err := read()
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				seen[what]++
				mu.Unlock()
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	reader(func() (string, error) { return readPair(dir) })
	reader(func() (string, error) { return readBoth(dir) })
	reader(func() (string, error) { return "modes", durabletest.Modes(dir, CertFile, BundleFile) })
	for n := range 60 {
		if err := credentials[n%2].Write(here(dir)); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wait.Wait()
	if len(seen) < 3 || seen["modes"] == 0 {
		t.Errorf("the readers saw %v: they looked at too little", seen)
	}
}

// readPair resolves the link once and reads certificate and key behind it.
func readPair(dir string) (string, error) {
	for {
		target, err := os.Readlink(filepath.Join(dir, "current"))
		if err != nil {
			return "", err
		}
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, target, CertFile), filepath.Join(dir, target, KeyFile))
		if errors.Is(err, fs.ErrNotExist) {
			continue // two generations have passed since the link was read
		}
		if err != nil {
			return "", fmt.Errorf("a mixed pair: %w", err)
		}
		return pair.Leaf.SerialNumber.String(), nil
	}
}

func readBoth(dir string) (string, error) {
	text, err := os.ReadFile(filepath.Join(dir, "current", CertAndKeyFile))
	if errors.Is(err, fs.ErrNotExist) { // the same, between resolving and opening
		return "again", nil
	}
	if err != nil {
		return "", err
	}
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		return "", fmt.Errorf("a mixed pair in one file: %w", err)
	}
	return pair.Leaf.SerialNumber.String(), nil
}

// TestWriteFailures cannot write, for each reason that a message is for.
func TestWriteFailures(t *testing.T) {
	c := parsed(t)
	t.Run("locked", func(t *testing.T) {
		dir := t.TempDir()
		unlock, err := durable.Lock(filepath.Join(dir, lockFile))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Write(here(dir)); !errors.Is(err, durable.ErrLocked) || !strings.Contains(err.Error(), "another process writes to") {
			t.Error(err)
		}
		if err := unlock(); err != nil {
			t.Fatal(err)
		}
		if err := c.Write(here(dir)); err != nil {
			t.Error(err)
		}
	})
	t.Run("a file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := c.Write(here(file)); err == nil || !strings.Contains(err.Error(), "is not a directory") {
			t.Error(err)
		}
	})
	for name, put := range map[string]func(path string) error{
		"current is a directory":    func(dir string) error { return os.Mkdir(filepath.Join(dir, "current"), 0o700) },
		"current is a file":         func(dir string) error { return os.WriteFile(filepath.Join(dir, "current"), nil, 0o600) },
		"generations is a link":     func(dir string) error { return os.Symlink(t.TempDir(), filepath.Join(dir, generationsDir)) },
		"generations is a file":     func(dir string) error { return os.WriteFile(filepath.Join(dir, generationsDir), nil, 0o600) },
		"generations leads nowhere": func(dir string) error { return os.Symlink("/nonexistent", filepath.Join(dir, generationsDir)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := put(dir); err != nil {
				t.Fatal(err)
			}
			err := c.Write(here(dir))
			if err == nil || !strings.Contains(err.Error(), "was not written by this program") || !strings.Contains(err.Error(), "move it away") {
				t.Error(err)
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 { // what was there, and the lock
				t.Errorf("the directory holds %v, %v", entries, err)
			}
		})
	}
	for err, says := range map[error]string{
		syscall.EROFS:  "is read-only; mount a volume there",
		syscall.ENOSPC: "is full; a generation needs about 24 KiB",
		syscall.EACCES: "may not write to /x; give the volume to that user",
	} {
		if got := explain(here("/x"), 4096, err); !errors.Is(got, err) || !strings.Contains(got.Error(), says) {
			t.Errorf("%v, want %q", got, says)
		}
	}
	out := here("/x")
	out.UID, out.GID = 101, 101
	if got := explain(out, 0, syscall.EPERM); !strings.Contains(got.Error(), "may not give files to 101:101; run init as the proxy's user") {
		t.Error(got)
	}
}

// writeChild, when set, makes the test binary write the second of two credentials into a directory.
const writeChild = "CREDENTIAL_WRITE_CHILD"

// TestWriteChild is a process that writes, and is killed or runs out of space; by itself it does nothing.
func TestWriteChild(t *testing.T) {
	dir := os.Getenv(writeChild)
	if dir == "" {
		return
	}
	syscall.Umask(0)
	out := here(dir)
	out.UID, out.GID = os.Geteuid(), os.Getegid()
	c := parsed(t)
	if err := c.Write(out); err != nil {
		t.Fatal(err)
	}
	fmt.Println("serial", c.Leaf().SerialNumber)
}

// TestKilled kills a process before and after each change of the disk that it makes: what is in force is the old
// pair or a new one, no mode is wider than asked, and the next one leaves nothing of it.
func TestKilled(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "credential.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-tags", "faultinject", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as the other steps of a check build the packages below it
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the process that dies: %v\n%s", err, output)
	}
	old, next := parsed(t), parsed(t)
	deaths, found := 0, map[string]int{}
	for step := 1; ; step++ {
		dir := filepath.Join(t.TempDir(), "tls")
		if err := old.Write(here(dir)); err != nil {
			t.Fatal(err)
		}
		child := exec.CommandContext(t.Context(), binary, "-test.run", "^TestWriteChild$")
		child.Env = append(os.Environ(), writeChild+"="+dir, "COUNTERSIGN_FAULT="+strconv.Itoa(step))
		output, err := child.CombinedOutput()
		var exit *exec.ExitError
		killed := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
		if err != nil && !killed {
			t.Fatalf("step %d: %v\n%s", step, err, output)
		}
		if err := durabletest.Modes(dir, CertFile, BundleFile); err != nil {
			t.Errorf("step %d: %v", step, err)
		}
		serial, err := readPair(dir)
		if err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		which := "new"
		if serial == old.Leaf().SerialNumber.String() {
			which = "old"
		}
		found[which]++
		if !killed {
			if which == "old" {
				t.Error("it succeeded, and the old pair is in force")
			}
			break
		}
		deaths++
		if err := next.Write(here(dir)); err != nil {
			t.Fatalf("after step %d: %v", step, err)
		}
		if left, generations := list(t, dir), list(t, filepath.Join(dir, "generations")); len(left) != 3 || len(generations) != 2 {
			t.Errorf("after step %d there are %q and %q", step, left, generations)
		}
	}
	if deaths < 30 || found["old"] < 20 || found["new"] < 2 {
		t.Errorf("it died in %d places, and found %v: the faults are not where they should be", deaths, found)
	}
}

// TestFull writes to a volume that has no room for another generation: the old one stays, nothing of the new one is
// left, and with more room it goes on. The volume is mounted in a namespace of its own.
func TestFull(t *testing.T) {
	if os.Getenv(fullChild) != "" {
		fillUp(t)
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), self, "-test.run", "^TestFull$")
	child.Env = append(os.Environ(), fullChild+"="+t.TempDir())
	child.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	output, err := child.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Skipf("NOT TESTED: a volume of one's own cannot be mounted here: %v", err)
	}
	if err != nil {
		t.Errorf("%v\n%s", err, output)
	}
}

const fullChild = "CREDENTIAL_FULL_CHILD"

func fillUp(t *testing.T) {
	dir := os.Getenv(fullChild)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=128k,mode=0700"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	old, next := parsed(t), parsed(t)
	if err := old.Write(here(dir)); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(dir, "filler")
	// From no room at all, page by page, to enough: each refusal leaves what was there.
	refused := 0
	for free := 0; ; free++ {
		if err := fill(filler, free); err != nil {
			t.Fatal(err)
		}
		err := next.Write(here(dir))
		if err == nil {
			break
		}
		refused++
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "nothing that was in force has changed") {
			t.Fatal(err)
		}
		if serial, err := readPair(dir); err != nil || serial != old.Leaf().SerialNumber.String() {
			t.Fatalf("with %d pages %s is in force (%v)", free, serial, err)
		}
		if generations := list(t, filepath.Join(dir, "generations")); len(generations) != 1 {
			t.Fatalf("with %d pages there are %q", free, generations)
		}
	}
	if serial, err := readPair(dir); err != nil || serial != next.Leaf().SerialNumber.String() || refused < 3 {
		t.Errorf("after %d refusals %s is in force (%v)", refused, serial, err)
	}
}

// fill makes a file of all that is free, but some pages.
func fill(path string, free int) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	page := make([]byte, os.Getpagesize())
	size := int64(0)
	for ; err == nil; size += int64(len(page)) {
		_, err = f.Write(page)
	}
	size -= int64(len(page))
	if !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	if err := f.Truncate(max(0, size-int64(free*len(page)))); err != nil {
		return err
	}
	return f.Close()
}

// TestOwner gives files to another user, which needs a privilege.
func TestOwner(t *testing.T) {
	c := parsed(t)
	out := here(filepath.Join(t.TempDir(), "new"))
	out.UID, out.GID = 4711, 4712
	err := c.Write(out)
	if os.Geteuid() != 0 {
		if err == nil || !strings.Contains(err.Error(), "may not give files to 4711:4712; run init as the proxy's user") {
			t.Errorf("without a privilege: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"", "generations", "current", filepath.Join("current", KeyFile), filepath.Join("current", CertFile)} {
		info, err := os.Stat(filepath.Join(out.Dir, path))
		if err != nil {
			t.Fatal(err)
		}
		if owner := info.Sys().(*syscall.Stat_t); owner.Uid != 4711 || owner.Gid != 4712 {
			t.Errorf("%q belongs to %d:%d", path, owner.Uid, owner.Gid)
		}
	}
}
