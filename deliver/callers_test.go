package deliver

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"countersign.dev/engine"
	"countersign.dev/id"
	"countersign.dev/mesh"
)

// callersPlan is the Plan of orders.
func callersPlan(t *testing.T) *mesh.Plan {
	t.Helper()
	who, err := id.Parse("spiffe://shop.internal/service/orders")
	ok(t, err)
	plan := &mesh.Plan{TrustDomain: "shop.internal"}
	plan.Workload.Identity = who
	return plan
}

// runCallers learns in a directory until the test ends.
func runCallers(t *testing.T, kind mesh.Engine, run string, changed *atomic.Int64) *Callers {
	t.Helper()
	plan := callersPlan(t)
	c := NewCallers(CallersConfig{
		Engine: kind, Run: run, Owner: os.Geteuid(), Plan: func() *mesh.Plan { return plan }, Changed: func() { changed.Add(1) }, Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { c.Run(ctx); close(ended) }()
	t.Cleanup(func() { cancel(); <-ended })
	return c
}

// shortDir leaves room for a UNIX socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cs")
	ok(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func learned(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

const front = "spiffe://shop.internal/service/front"

// TestCallersDatagrams reads what a stand-in for NGINX sends, among what nobody of this mesh has sent; what a watcher that was killed
// has left is in nobody's way.
func TestCallersDatagrams(t *testing.T) {
	run := shortDir(t)
	path := filepath.Join(run, engine.CallersSocket)
	for _, left := range []string{path, path + ".new"} {
		ok(t, os.WriteFile(left, nil, 0o600))
	}
	var changed atomic.Int64
	c := runCallers(t, mesh.EngineNGINX, run, &changed)
	var conn net.Conn
	learned(t, "somebody listens", func() bool {
		var err error
		conn, err = net.Dial("unixgram", path)
		return err == nil
	})
	defer conn.Close()
	for _, words := range []string{
		"", "nonsense", "<190>Nov 23 06:16:48 countersign: 4F CN=front,OU=service,O=other.internal",
		"<190>Nov 23 06:16:48 countersign: 4F CN=orders,OU=service,O=shop.internal", // itself
		"<190>Nov 23 06:16:48 countersign: 4F CN=front,OU=service,O=shop.internal", "<190>Nov 23 06:16:48 countersign: 4F CN=front,OU=service,O=shop.internal",
		"<190>Nov 23 06:16:48 countersign: 50 CN=front,OU=service,O=shop.internal",
	} {
		_, err := io.WriteString(conn, words)
		ok(t, err)
	}
	learned(t, "the last is known", func() bool { return c.Report()[front].Serial == "50" })
	if known := c.Report(); len(known) != 1 || changed.Load() != 2 {
		t.Errorf("%v are known after %d changes", known, changed.Load())
	}
	for n := range 2 * engine.MostCallers {
		learned(t, "there is room", func() bool {
			_, err := fmt.Fprintf(conn, "<190>Nov 23 06:16:48 countersign: 51 CN=n%d,OU=service,O=shop.internal", n)
			return err == nil
		})
	}
	learned(t, "all were read", func() bool {
		return c.Report()[fmt.Sprintf("spiffe://shop.internal/service/n%d", 2*engine.MostCallers-1)].Serial == "51"
	})
	if known := c.Report(); len(known) > engine.MostCallers {
		t.Errorf("%d are known", len(known))
	}
}

// TestCallersTable reads what a stand-in for HAProxy answers: whoever connected last counts, and not who was there longest, nor what
// stands last in the table.
func TestCallersTable(t *testing.T) {
	run := shortDir(t)
	row := func(serial string, ago time.Duration) string {
		return fmt.Sprintf("0x1: key=%s/CN\\=front,OU\\=service,O\\=shop.internal use=1 exp=1000 gpt0=%d\n", serial, time.Now().Add(-ago).UnixMilli()%engine.CallersClock)
	}
	var answer atomic.Value
	answer.Store(row("50", time.Minute) + row("4F", 2*time.Minute))
	l, err := net.Listen("unix", filepath.Join(run, engine.StatsSocket))
	ok(t, err)
	asked := make(chan string, 100)
	var served atomic.Int64
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			line, _ := bufio.NewReader(conn).ReadString('\n')
			asked <- line
			_, _ = io.WriteString(conn, answer.Load().(string))
			conn.Close()
			served.Add(1)
		}
	}()
	defer l.Close()
	var changed atomic.Int64
	c := runCallers(t, mesh.EngineHAProxy, run, &changed)
	learned(t, "the newer one is known", func() bool { return c.Report()[front].Serial == "50" })
	if line := <-asked; line != "show table callers\n" {
		t.Errorf("asked was %q", line)
	}
	looked := func() {
		t.Helper()
		before := served.Load()
		learned(t, "it is looked again", func() bool { return served.Load() > before+1 })
	}
	// A new one comes, while one of before has come just before it.
	answer.Store(row("51", 0) + row("50", time.Second))
	learned(t, "the new one is known", func() bool { return c.Report()[front].Serial == "51" })
	// A worker that has just started knows nobody, and then somebody.
	answer.Store("# table: callers, type: string, size:1000, used:0\n\n")
	looked()
	answer.Store("Unknown command\n")
	looked()
	if got := c.Report()[front].Serial; got != "51" {
		t.Errorf("%s is known", got)
	}
	answer.Store(row("52", 0))
	learned(t, "the one after it is known", func() bool { return c.Report()[front].Serial == "52" })
	if changed.Load() != 3 {
		t.Errorf("%d changes", changed.Load())
	}
}

// TestCallersWithoutPlan: before it is known whose members are meant, nobody is believed, and nobody is asked.
func TestCallersWithoutPlan(t *testing.T) {
	c := NewCallers(CallersConfig{Engine: mesh.EngineHAProxy, Run: "/nowhere", Plan: func() *mesh.Plan { return nil }, Log: slog.New(slog.DiscardHandler)})
	if err := c.table(t.Context()); err != nil {
		t.Errorf("it was asked: %v", err)
	}
	c.presented(engine.Call{Identity: front, Serial: "4f"}, time.Now())
	if known := c.Report(); len(known) != 0 {
		t.Errorf("known are %v", known)
	}
}

// TestCallersNowhere: a directory that is not there, and one that is too deep for a socket, are errors that are tried again.
func TestCallersNowhere(t *testing.T) {
	for _, run := range []string{"/nowhere/at/all", t.TempDir() + "/" + fmt.Sprintf("%0120d", 1)} {
		plan := callersPlan(t)
		c := NewCallers(CallersConfig{Engine: mesh.EngineNGINX, Run: run, Owner: -1, Plan: func() *mesh.Plan { return plan }, Log: slog.New(slog.DiscardHandler)})
		var s socket
		if err := s.keep(t.Context(), c); err == nil || s.conn != nil {
			t.Errorf("%s: %v", run, err)
		}
		s.close()
		c.cfg.Engine = mesh.EngineHAProxy
		if err := c.table(t.Context()); err == nil {
			t.Errorf("%s is a table", run)
		}
	}
}

// TestCallersLinks: whoever may write to the run directory, and is not the watcher's user perhaps, puts a link in the place of the
// socket while that is made. What the link leads to stays as it is.
func TestCallersLinks(t *testing.T) {
	run := shortDir(t)
	path, victim := filepath.Join(run, engine.CallersSocket), filepath.Join(shortDir(t), "victim")
	ok(t, os.WriteFile(victim, nil, 0o644))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			_ = os.Symlink(victim, path+".link")
			_ = os.Rename(path+".link", path+".new")
		}
	}()
	for range 300 {
		conn, _, err := listenAt(ctx, path, os.Geteuid())
		if err == nil {
			ok(t, conn.Close())
		}
	}
	cancel()
	<-ended
	if info, err := os.Stat(victim); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	ok(t, os.RemoveAll(path+".new"))
	conn, file, err := listenAt(t.Context(), path, -1)
	ok(t, err)
	defer conn.Close()
	if there, err := os.Lstat(path); err != nil || !os.SameFile(there, file) || there.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v, %v", there, err)
	}
}

// TestCallersOldWorkers lets the workers that a proxy replaces connect after those that replace them.
func TestCallersOldWorkers(t *testing.T) {
	plan := callersPlan(t)
	c := NewCallers(CallersConfig{Plan: func() *mesh.Plan { return plan }})
	began := time.Now()
	for _, step := range []struct {
		serial string
		after  time.Duration
		want   string
	}{
		{"a1", 0, "a1"},
		{"b2", time.Second, "b2"},
		{"a1", 2 * time.Second, "b2"},                            // an old worker
		{"a1", oldWorkers, "b2"},                                 // which drains
		{"a1", oldWorkers + 2*time.Second, "a1"},                 // by now it was put back
		{"c3", oldWorkers + 3*time.Second, "c3"},                 // and replaced at once by another one
		{"b2", oldWorkers + 4*time.Second, "b2"},                 // what neither is nor was just replaced counts
		{"c3", 2*oldWorkers + 4*time.Second - time.Second, "b2"}, // for as long as its workers drain
		{"b2", 2*oldWorkers + 10*time.Second, "b2"},              // the same again
		{"c3", 2*oldWorkers + 11*time.Second, "c3"},              // long after
		{"b2", 2*oldWorkers + 5*time.Second, "c3"},               // what is read late counts as of then
		{"d4", 2*oldWorkers + 12*time.Second, "d4"},
	} {
		c.presented(engine.Call{Identity: front, Serial: step.serial}, began.Add(step.after))
		if got := c.Report()[front].Serial; got != step.want {
			t.Errorf("%s after %s: the report says %s, want %s", step.serial, step.after, got, step.want)
		}
	}
}
