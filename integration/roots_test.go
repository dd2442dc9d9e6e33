package integration

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"countersign.dev/api"
)

// rotator is a `ca rotate run` that is under way.
type rotator struct {
	command *exec.Cmd
	mu      sync.Mutex
	text    bytes.Buffer // guarded by mu: what it has written to standard error
}

func (r *rotator) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(p)
}

func (r *rotator) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// startRotator starts to replace the root.
func startRotator(t *testing.T, mesh *running, pin string) *rotator {
	t.Helper()
	r := &rotator{}
	r.command = exec.CommandContext(t.Context(), binary, "ca", "rotate", "run", "--replace", pin, "--interval", "300ms", "--socket", mesh.Server.Socket)
	r.command.Stderr = r
	if err := r.command.Start(); err != nil {
		t.Fatal(err)
	}
	return r
}

// says waits until it has written a text.
func (r *rotator) says(t *testing.T, text string) {
	t.Helper()
	await(t, "`ca rotate run` says "+text, func() (bool, string) { return strings.Contains(r.String(), text), r.String() })
}

// kill ends it as the kernel does when memory is short.
func (r *rotator) kill(t *testing.T) {
	t.Helper()
	if err := r.command.Process.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	_ = r.command.Wait() // it was killed, unless it was quicker
}

// rotation asks the server how far the change of the root is; a server that is away comes back.
func (r *running) rotation(t *testing.T) *api.Rotation {
	t.Helper()
	var rotation *api.Rotation
	await(t, "the server tells how far it is", func() (bool, string) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		var err error
		if rotation, err = api.NewAdmin(r.Server.Socket).Rotation(ctx, false); err != nil {
			return false, err.Error()
		}
		return true, ""
	})
	return rotation
}

// refusesToRotate takes a step that comes too early, and wants somebody named.
func (r *running) refusesToRotate(t *testing.T, step, names string) {
	t.Helper()
	got := countersign(t, "ca", "rotate", step, "--socket", r.Server.Socket)
	if got.status != 1 || !strings.Contains(got.stderr, names) {
		t.Errorf("ca rotate %s: status %d, want 1 and %q\n%s%s", step, got.status, names, got.stdout, got.stderr)
	}
}

// The root of a mesh is replaced under HTTP/1.1, HTTP/2, gRPC, TCP and WebSockets, short and long, and
// nothing is lost: a sidecar that stands still holds it up and is named, steps that come too early are
// refused, and neither the death of the command nor that of the server between the steps does harm.
func TestRootRotationUnderLoad(t *testing.T) {
	t.Parallel() // it waits for a mesh of its own
	spec, err := labSpec()
	if err != nil {
		t.Fatal(err)
	}
	mesh := start(t, write(t, strings.Replace(spec, "\nservices:", "\ncertificates: {ttl: 10m, renewAfter: 1m}\nservices:", 1)))
	load := newLoad(t)
	loadHTTP(t, load, mesh)
	loadGRPC(t, load, mesh.outbound(t, "caller", "rpc", 9090))
	loadTCP(t, load, mesh.outbound(t, "caller", "lines", 7000))
	loadWebSocket(t, load, mesh.outbound(t, "caller", "recorder", 9080))
	pin := mesh.Server.CAPin

	// Whoever stands still is named, and nothing goes on without him.
	frozen := mesh.find(t, "proxy", "stranger-1")
	if err := syscall.Kill(frozen, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	thaw := sync.OnceFunc(func() { _ = syscall.Kill(frozen, syscall.SIGCONT) })
	t.Cleanup(thaw)
	run := startRotator(t, mesh, pin)
	run.says(t, "waiting with activate for")
	run.says(t, "stranger stranger-1")
	await(t, "only he stands in the way", func() (bool, string) {
		got := countersign(t, "ca", "rotate", "status", "--socket", mesh.Server.Socket)
		for line := range strings.Lines(got.stdout) {
			if strings.Contains(line, ": ") && !strings.HasPrefix(line, "stranger stranger-1") && !strings.HasPrefix(line, "Next: ") {
				return false, got.stdout
			}
		}
		return strings.Contains(got.stdout, "stranger stranger-1"), got.stdout + got.stderr
	})
	mesh.refusesToRotate(t, "activate", "stranger stranger-1")
	mesh.refusesToRotate(t, "finish", "`countersign ca rotate activate` comes first")
	run.kill(t)
	mesh.kill(t, "server")
	if rotation := mesh.rotation(t); rotation.Next != api.RotateActivate || rotation.Roots[0].Pin != pin {
		t.Errorf("after the death of command and server: %+v", rotation)
	}

	// He comes back, and somebody goes on by hand.
	thaw()
	await(t, "everybody accepts the next root", func() (bool, string) {
		got := countersign(t, "ca", "rotate", "activate", "--socket", mesh.Server.Socket)
		return got.status == 0, got.stderr
	})
	mesh.refusesToRotate(t, "finish", "of the root of before")
	mesh.kill(t, "server")
	if rotation := mesh.rotation(t); rotation.Next != api.RotateFinish || rotation.Roots[0].Pin == pin {
		t.Errorf("after the death of the server: %+v", rotation)
	}
	run = startRotator(t, mesh, pin)
	run.says(t, "countersign: ") // that it waits, or on a slow machine that it is done
	run.kill(t)
	done := countersign(t, "ca", "rotate", "run", "--replace", pin, "--timeout", patience.String(), "--socket", mesh.Server.Socket)
	if done.status != 0 || !strings.Contains(done.stderr, " gone") {
		t.Fatalf("status %d\n%s%s", done.status, done.stdout, done.stderr)
	}
	again := countersign(t, "ca", "rotate", "run", "--replace", pin, "--socket", mesh.Server.Socket)
	if again.status != 0 || !strings.Contains(again.stderr, "is gone already") {
		t.Errorf("run again: status %d\n%s%s", again.status, again.stdout, again.stderr)
	}
	if roots := mesh.rotation(t).Roots; len(roots) != 1 || roots[0].Pin == pin {
		t.Errorf("at the end: %+v", roots)
	}

	// What is served leads to the new root alone; and who is started again with the old pin lives on.
	mesh.admin(t, "verify", "--timeout", "3m")
	mesh.kill(t, "proxy", "stranger-1")
	await(t, "the sidecar is back", func() (bool, string) {
		row := mesh.status(t)["stranger-1"]
		return row.Connected && row.Error == "", row.Error
	})
	load.end(t)
}
