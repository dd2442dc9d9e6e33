package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// told is what a process has written so far.
type told struct {
	mu   sync.Mutex
	text strings.Builder
}

func (w *told) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(p)
}

func (w *told) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// startDaemon starts a rotation daemon with metrics. It gives what reads them, and what the daemon writes.
func (l *silentLab) startDaemon(t *testing.T, socket string) (metrics func() string, out *told) {
	t.Helper()
	command, err := silentCommand(context.Background(), "rotate", "daemon", "--socket", socket, "--metrics", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	out = &told{}
	command.Stderr = out
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait() // it was killed
		if t.Failed() {
			t.Logf("the daemon says:\n%s", out)
		}
	})
	l.awaits(t, "the daemon serves metrics", func() bool { return strings.Contains(out.String(), "address=") })
	_, rest, _ := strings.Cut(out.String(), "address=")
	address, _, _ := strings.Cut(rest, "\n")
	return func() string {
		response, err := http.Get("http://" + strings.TrimSpace(address) + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return "\n" + string(body)
	}, out
}

// awaits waits until something is so.
func (l *silentLab) awaits(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(silentPatience); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it does not come about that %s", what)
		}
	}
}

// TestDaemonMeetsASilentServer: what holds the socket and says nothing is given up and counted, by `rotate status` as by the
// daemon, which goes on by itself when a server answers there.
func TestDaemonMeetsASilentServer(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for a server that says nothing")
	}
	l := newSilentLab(t, "12h", "reload")
	socket := filepath.Join(l.dir, "s")
	listener, err := net.Listen("unix", socket) // connections come into being, and nobody takes them
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	metrics, out := l.startDaemon(t, socket)
	if text := metrics(); !strings.Contains(text, "\ncountersign_rotate_server_failures_total 0\n") {
		t.Errorf("at the beginning:\n%s", text)
	}
	if _, stderr, err := l.run(t, "rotate", "status", "--socket", socket); err == nil || !strings.Contains(stderr, "the server does not answer within 15s") {
		t.Errorf("rotate status: %v\n%s", err, stderr)
	}
	l.awaits(t, "the failure is counted", func() bool {
		text := metrics()
		return strings.Contains(text, "\ncountersign_rotate_server_failures_total 1\n") && strings.Contains(text, "\ncountersign_rotate_server_up 0\n")
	})
	if !strings.Contains(out.String(), "the server does not answer within 15s") {
		t.Error("the daemon does not say why")
	}
	if err := os.Rename(l.socket, socket); err != nil { // it takes the place of the other one
		t.Fatal(err)
	}
	l.awaits(t, "the daemon goes on", func() bool {
		text := metrics()
		return strings.Contains(text, "\ncountersign_rotate_server_up 1\n") && strings.Contains(text, `countersign_rotate_failures_total{service="api"} 0`)
	})
}
