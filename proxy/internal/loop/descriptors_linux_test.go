package loop

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestNoDescriptors takes all descriptors from a process of its own: what cannot be accepted waits, what
// cannot be dialed is told, and both go on when there is room again.
func TestNoDescriptors(t *testing.T) {
	if os.Getenv("LOOP_NO_DESCRIPTORS") != "" {
		drivers(t, starve)
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestNoDescriptors$", "-test.v", "-test.timeout", "60s")
	cmd.Env = append(os.Environ(), "LOOP_NO_DESCRIPTORS=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func starve(t *testing.T, g *Group) {
	var failed atomic.Int64
	ln, err := g.Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"), func(c *Conn) { c.Handle(&echo{c: c}) }, func(error) { failed.Add(1) })
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var kept []*net.TCPConn
	kept = append(kept, dial(t, ln.Addr())) // the poller of this process is set up
	talk(t, kept[0])
	var limit, low unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low = limit
	low.Cur = uint64(descriptors(t)) + 4
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	raise := func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) }
	defer raise()
	for failed.Load() == 0 { // our end takes the last descriptor, and none is left for the other
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			runtime.Gosched()
			continue
		}
		kept = append(kept, c.(*net.TCPConn))
	}
	var fill []int
	for {
		fd, err := unix.Dup(0)
		if err != nil {
			break
		}
		fill = append(fill, fd)
	}
	l := g.Loops()[0]
	told := make(chan error, 1)
	l.Post(func() {
		l.Dial(ln.Addr(), func(_ *Conn, err error) { told <- err })
		cancel := l.Dial(ln.Addr(), func(*Conn, error) { t.Error("a dial that was given up is told of") })
		cancel()
	})
	if err := <-told; err == nil {
		t.Error("connected without a descriptor")
	}
	for range 3 { // connections that come meanwhile do not multiply the attempts
		before := failed.Load()
		eventually(t, "nobody tries to accept", func() bool { return failed.Load() > before })
	}
	for _, fd := range fill {
		_ = unix.Close(fd)
	}
	raise()
	for _, c := range kept { // all of them are served now
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		talk(t, c)
		_ = c.Close()
	}
}

func talk(t *testing.T, c *net.TCPConn) {
	t.Helper()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
}

// descriptors is the highest open descriptor.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	highest := 0
	for _, e := range entries {
		var fd int
		_, _ = fmt.Sscan(e.Name(), &fd)
		highest = max(highest, fd)
	}
	return highest
}

// TestCanceledDial gives up a dial and starts another in the same round: the descriptor's number is not
// used again while events of the round may name it.
func TestCanceledDial(t *testing.T) {
	g, err := NewGroup(1, Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Stop)
	addr := listen(t, g, func(c *Conn) { c.Handle(&echo{c: c}) })
	l, same := g.Loops()[0], make(chan bool, 1)
	l.Post(func() {
		p := l.poller.(*epoll)
		dials := func() map[int]bool {
			found := map[int]bool{}
			for fd, r := range p.items {
				if _, ok := r.(*dialing); ok {
					found[fd] = true
				}
			}
			return found
		}
		cancel := l.Dial(addr, func(*Conn, error) { t.Error("a dial that was given up is told of") })
		first := dials()
		cancel()
		again := l.Dial(addr, func(*Conn, error) {})
		for fd := range dials() {
			same <- first[fd]
		}
		again()
	})
	if <-same {
		t.Error("the number of a canceled dial is used again at once")
	}
}

// TestStoppedDescriptors stops loops that have connections and listeners: their descriptors are closed.
func TestStoppedDescriptors(t *testing.T) {
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	round := func() {
		g, err := NewGroup(2, Config{})
		if err != nil {
			t.Fatal(err)
		}
		var taken atomic.Int64
		ln, err := g.Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"), func(c *Conn) { c.Handle(&echo{c: c}); taken.Add(1) }, nil)
		if err != nil {
			t.Fatal(err)
		}
		var peers []net.Conn
		for range 10 {
			peers = append(peers, dial(t, ln.Addr()))
		}
		eventually(t, "connections were not taken", func() bool { return taken.Load() == 10 })
		g.Stop()
		for _, c := range peers {
			_ = c.Close()
		}
	}
	round()
	before := count()
	for range 5 {
		round()
	}
	if after := count(); after > before+3 {
		t.Errorf("%d descriptors are left", after-before)
	}
}

// TestIdle holds many connections that say nothing and reports what that costs; no round may run for them.
func TestIdle(t *testing.T) {
	n := 1000
	if os.Getenv("COUNTERSIGN_SOAK") != "" {
		n = 9_500 // twice that in descriptors
	}
	g, rounds := countedLoop(t)
	t.Cleanup(g.Stop)
	var taken atomic.Int64
	addr := listen(t, g, func(c *Conn) {
		c.Handle(&echo{c: c})
		idle := c.Loop().NewTimer(c.Close)
		idle.Reset(time.Hour)
		taken.Add(1)
	})
	for range n {
		c, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Skipf("the system gives no descriptors: %v", err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	eventually(t, "connections were not taken", func() bool { return taken.Load() == int64(n) })
	over := make(chan bool)
	g.Loops()[0].Post(func() { close(over) })
	<-over
	pause := time.NewTimer(200 * time.Millisecond)
	<-pause.C // what the last of them caused is over
	var before, after syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
	start := rounds.Load()
	pause.Reset(time.Second)
	<-pause.C // the time that is measured
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	spent := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
	t.Logf("%d idle connections: %v of CPU in a second", n, spent)
	if ran := rounds.Load() - start; ran > 0 {
		t.Errorf("%d rounds ran for connections that say nothing", ran)
	}
}

// countedLoop is a group of one loop whose rounds are counted.
func countedLoop(t *testing.T) (*Group, *atomic.Int64) {
	t.Helper()
	l, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	l.Stop()
	rounds := new(atomic.Int64)
	again := &Loop{cfg: l.cfg, now: time.Now(), done: make(chan struct{})}
	again.timers.loop = again
	p, err := newPoller(again, false)
	if err != nil {
		t.Fatal(err)
	}
	again.poller = p
	go func() {
		defer close(again.done)
		if err := p.wait(func(ready func()) bool { rounds.Add(1); return again.round(ready) }); err != nil {
			t.Error(err)
		}
		_ = p.close()
	}()
	return &Group{loops: []*Loop{again}}, rounds
}
