package integration

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// No private key and no passphrase stands in a log, in the journal, in an argument, in an environment, in what a
// listener shows, in a file that is not there for it, or in a core dump; and no file that is there for one can be read
// by others. A process of the test's own spills a key into each of these places, which shows that the search finds it.
func TestNoKeyAnywhere(t *testing.T) {
	for _, m := range keyMeshes() {
		t.Run(m.name, func(t *testing.T) { m.search(t) })
	}
}

func (m keyMesh) search(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	allowCores(t)
	temp, dir := shortDir(t), shortDir(t)
	spec := filepath.Join(dir, "mesh.yaml")
	if err := os.WriteFile(spec, []byte(m.spec(self)), 0o600); err != nil {
		t.Fatal(err)
	}
	memory := memoryDir(t)
	watch := watchProcesses(t)
	// With GOTRACEBACK a program in Go that aborts asks the kernel for a core dump, which it does not otherwise.
	mesh := start(t, spec, flags("--log-level", "debug"), env("TMPDIR="+temp, "XDG_RUNTIME_DIR="+memory, "GOTRACEBACK=crash"))
	planted := plant(t, self, temp, mesh.logs)
	roots := []string{temp, dir, mesh.logs, memory} // the state of the mesh lies in the first

	var search needles
	search.anybodys()
	files := 0
	know := func() (files int) {
		for _, root := range roots {
			files += search.collect(t, root)
		}
		if m.stored != nil {
			m.stored(t, dir, &search)
		}
		return files
	}
	files = know()
	m.traffic(t, mesh)
	m.rotation(t, mesh)
	m.traffic(t, mesh)
	know()
	if files < m.files {
		t.Errorf("only %d files with a key were found below %v, want at least %d: the search knows too few keys", files, roots, m.files)
	}
	cores := abort(t, mesh)
	places := append(watch.stop(), pagesOf(t, mesh)...)
	for _, root := range roots {
		places = append(places, misplacedIn(t, &search, root)...)
	}
	places = append(append(places, cores...), planted.cores(t)...)
	planted.judge(t, &search, places)
	if err := mesh.stop(syscall.SIGINT); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(memory); err != nil || len(left) > 0 {
		t.Errorf("after the end of the mesh there is still %v (%v)", left, err)
	}
	t.Logf("%d places were searched for %d forms of %d and more keys", len(places), len(search.all), files)
}

// `up` itself, which makes the authority, leaves no core dump either, and nothing that runs.
func TestUpLeavesNoCoreDump(t *testing.T) {
	allowCores(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := shortDir(t)
	spec := write(t, specOf("web", agentDelivery, "builtin")(self))
	began := time.Now().Add(-time.Second)
	mesh, err := launch(spec, t.TempDir(), env("TMPDIR="+dir, "GOTRACEBACK=crash"), func(c *exec.Cmd) { c.Dir = dir })
	if err != nil {
		t.Fatal(err)
	}
	children := descendants(t, mesh.command.Process.Pid)
	if err := mesh.stop(syscall.SIGABRT); err == nil || !strings.Contains(err.Error(), "abort") {
		t.Errorf("up that was aborted ends with %v", err)
	}
	for _, left := range append(dumps(dir, began), dumps(".", began)...) {
		t.Errorf("it left %s", left)
	}
	for _, child := range children {
		await(t, fmt.Sprintf("the end of %d %v", child.pid, child.args), func() (bool, string) {
			_, err := os.Stat(fmt.Sprintf("/proc/%d", child.pid))
			return err != nil, "it runs"
		})
	}
}

// memoryDir makes a directory on a memory file system, in which sidecars make theirs.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "cs")
	if err != nil {
		t.Skipf("NOT TESTED: this system has no memory file system at /dev/shm (%v)", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// allowCores lets this process and what it starts write core dumps, as far as it may.
func allowCores(t *testing.T) {
	t.Helper()
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &was); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{Cur: was.Max, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &was); err != nil {
			t.Error(err)
		}
	})
}

// coreFiles tells whether this system writes core dumps into the directory of the process.
func coreFiles() bool {
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	var limit syscall.Rlimit
	limited := syscall.Getrlimit(syscall.RLIMIT_CORE, &limit) != nil || limit.Max == 0
	return err == nil && !limited && strings.HasPrefix(string(pattern), "core")
}

// dumps are the core dumps in a directory that were written since.
func dumps(dir string, since time.Time) []string {
	paths, _ := filepath.Glob(filepath.Join(dir, "core*"))
	return slices.DeleteFunc(paths, func(path string) bool {
		info, err := os.Stat(path)
		return err != nil || !info.Mode().IsRegular() || info.ModTime().Before(since)
	})
}

// abort ends every process of the mesh that may hold a key as a failed assertion does, and gives the core dumps that
// this leaves. Applications and `up`, which has to stop the others, are left alone.
func abort(t *testing.T, mesh *running) []haystack {
	t.Helper()
	began := time.Now().Add(-time.Second) // a file system may count in coarser steps
	var dirs []string
	aborted := 0
	for _, p := range descendants(t, mesh.command.Process.Pid) {
		if p.state == "Z" || !holdsKeys(p) {
			continue
		}
		dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", p.pid))
		if err != nil || syscall.Kill(p.pid, syscall.SIGABRT) != nil {
			continue // it ended with its parent
		}
		aborted++
		dirs = append(dirs, dir)
		await(t, fmt.Sprintf("the end of %d %v", p.pid, p.args), func() (bool, string) {
			now, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
			return err != nil || bytes.Contains(now, []byte(") Z ")) || bytes.Contains(now, []byte(") X ")), string(now)
		})
	}
	if aborted < 2 {
		t.Errorf("only %d processes were aborted", aborted)
	}
	var found []haystack
	for _, dir := range append(dirs, mesh.State, mesh.logs) {
		for _, path := range dumps(dir, began) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			t.Errorf("an aborted process of the mesh left %s", path)
			found = append(found, haystack{"core " + path, data})
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
		}
	}
	return found
}

// holdsKeys tells whether a process is one of ours, or NGINX or HAProxy.
func holdsKeys(p process) bool {
	name := filepath.Base(strings.TrimSuffix(strings.Fields(p.args[0] + " ?")[0], ":"))
	return name == filepath.Base(binary) || name == "nginx" || name == "haproxy"
}

// pagesOf is what the admin listeners show.
func pagesOf(t *testing.T, mesh *running) []haystack {
	t.Helper()
	var places []haystack
	for _, w := range mesh.Workloads {
		for _, page := range []string{"/stats", "/certs", "/ready", "/plan"} {
			page := w.Admin + page
			await(t, page, func() (bool, string) { // after the abort, sidecars come back
				_, body, err := try(t, page)
				if err == nil {
					places = append(places, haystack{"page " + page, []byte(body)})
				}
				return err == nil, fmt.Sprint(err)
			})
		}
	}
	await(t, "an answer of the server", func() (bool, string) {
		got := countersign(t, "status", "--output", "json", "--socket", mesh.Server.Socket)
		if got.status == 0 {
			places = append(places, haystack{"page status", []byte(got.stdout)})
		}
		return got.status == 0, got.stderr
	})
	return places
}

// misplacedIn gives what stands in files where it should not.
func misplacedIn(t *testing.T, search *needles, root string) []haystack {
	t.Helper()
	var places []haystack
	for _, found := range search.misplaced(t, root) {
		places = append(places, haystack{"file " + found, nil})
	}
	return places
}

// watcher keeps the arguments and environments of everything that this test has started, also of what lives shortly.
type watcher struct {
	end  context.CancelFunc
	done sync.WaitGroup
	seen map[string]haystack // to be read when done
}

// watchProcesses looks twenty times a second until it is stopped.
func watchProcesses(t *testing.T) *watcher {
	t.Helper()
	if _, err := os.Stat("/proc/self/environ"); err != nil {
		t.Skipf("NOT TESTED: this system has no /proc (%v)", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w := &watcher{end: cancel, seen: map[string]haystack{}}
	w.done.Go(func() {
		ticker := time.NewTicker(50 * time.Millisecond)
		defer ticker.Stop()
		for ctx.Err() == nil {
			w.look(os.Getpid())
			select {
			case <-ctx.Done():
			case <-ticker.C:
			}
		}
		w.look(os.Getpid())
	})
	t.Cleanup(func() { w.stop() })
	return w
}

// look keeps what the processes below one show.
func (w *watcher) look(parent int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent))
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			continue // it has ended
		}
		for field := range strings.FieldsSeq(string(text)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				continue
			}
			args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if err != nil {
				continue
			}
			environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)) // it takes root
			for kind, data := range map[string][]byte{"argv": args, "environ": environ} {
				w.seen[kind+string(data)] = haystack{fmt.Sprintf("%s of %d %q", kind, pid, bytes.ReplaceAll(args, []byte{0}, []byte{' '})), data}
			}
			w.look(pid)
		}
	}
}

// stop gives what was seen.
func (w *watcher) stop() []haystack {
	w.end()
	w.done.Wait()
	places := make([]haystack, 0, len(w.seen))
	for _, place := range w.seen {
		places = append(places, place)
	}
	return places
}

// planted is a process of the test that spills a key.
type planted struct {
	needles
	command *exec.Cmd
	dir     string // where it runs
	file    string // of mode 0644
	log     string
}

// What the spilling process finds its key in.
const envSpilled = "COUNTERSIGN_TEST_SPILLED"

// plant starts it. Its key stands in PEM in a log and in a file that everybody can read, in base64 in its arguments,
// in hex in its environment, and as bytes in its memory.
func plant(t *testing.T, self, temp, logs string) *planted {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	p := &planted{dir: shortDir(t), file: filepath.Join(temp, "planted.pem"), log: filepath.Join(logs, "planted.log")}
	if err := p.key("the planted key", key); err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := os.WriteFile(p.file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p.command = exec.CommandContext(t.Context(), self, base64.StdEncoding.EncodeToString(der))
	p.command.Dir, p.command.Stdout, p.command.Stderr = p.dir, log, log
	p.command.Env = append(os.Environ(), envRole+"=spill", envSpilled+"="+hex.EncodeToString(der), "GOTRACEBACK=crash")
	if err := p.command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.command.Process.Kill(); _ = p.command.Wait() })
	await(t, "the planted key in a log", func() (bool, string) {
		text, err := os.ReadFile(p.log)
		return bytes.Contains(text, []byte("-----END")), fmt.Sprint(err)
	})
	return p
}

// spill is the role of the process that spills the key in its environment.
func spill(ctx context.Context, _ string) error {
	der, err := hex.DecodeString(os.Getenv(envSpilled))
	if err != nil {
		return err
	}
	if err := pem.Encode(os.Stdout, &pem.Block{Type: "PRIVATE KEY", Bytes: der}); err != nil {
		return err
	}
	<-ctx.Done()
	return fmt.Errorf("it has held %d bytes", len(der))
}

// cores aborts it and gives its core dump.
func (p *planted) cores(t *testing.T) []haystack {
	t.Helper()
	if !coreFiles() {
		t.Log("LESS IS TESTED: this system writes core dumps elsewhere than into the directory of a process, or none")
		return nil
	}
	began := time.Now().Add(-time.Second)
	if err := p.command.Process.Signal(syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	_ = p.command.Wait() // it ends by the signal
	var found []haystack
	for _, path := range dumps(p.dir, began) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, haystack{"core " + path, data})
	}
	return found
}

// judge searches all places: for the planted key, which has to be in one of each kind, and for all others, which
// must be in none.
func (p *planted) judge(t *testing.T, search *needles, places []haystack) {
	t.Helper()
	kinds := map[string]bool{"log": false, "argv": false, "environ": false, "file": false}
	if coreFiles() {
		kinds["core"] = false
	}
	if os.Getuid() != 0 {
		t.Log("LESS IS TESTED: the environments of hardened processes are only shown to root")
	}
	for _, place := range places {
		kind, _, _ := strings.Cut(place.where, " ")
		if kind == "file" { // it was searched already
			switch {
			case strings.Contains(place.where, p.file):
				kinds["file"] = true
			case strings.Contains(place.where, p.log):
				kinds["log"] = true
			default:
				t.Errorf("a secret is misplaced: %s", place.where)
			}
			continue
		}
		if len(p.find(place.data)) > 0 {
			kinds[kind] = true
			continue
		}
		for _, what := range search.find(place.data) {
			t.Errorf("%s stands in the %s", what, place.where)
		}
	}
	for kind, found := range kinds {
		if !found {
			t.Errorf("the search does not find the key that was planted in the %s: it proves nothing", kind)
		}
	}
}
