// Package loop knows how connections are driven: it reads, writes, accepts, dials, encrypts and keeps
// time, one callback after the other, so that what stands above needs no locks.
//
// A [Loop] owns its connections outright. On Linux it waits on epoll inside Go's own poller; in other
// systems, and where [Config.Portable] asks for it, goroutines do the blocking reads and writes and
// the same code runs above them. Everything but [Loop.Post] is called on the loop's own goroutine.
//
// In one round the loop handles all that is ready and then writes each connection that has something
// to say once: that batch is what makes it cheap.
package loop

import (
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Sizes of the buffers that a loop lends to its connections, in bytes.
const (
	readSize  = 256 << 10 // one read
	bulkSize  = 8 << 10   // from here on content is written without being collected first
	keepSize  = 4 << 10   // a connection keeps an empty buffer up to this size
	spareSize = 320 << 10 // buffers that the loop recycles
	maxSpare  = 16
	// maxReads bounds what one connection may read in a round before the others get their turn.
	maxReads = 4
)

// Config says how loops run.
type Config struct {
	// Portable chooses goroutines over epoll where both exist.
	Portable bool
	Log      *slog.Logger
	// StallAfter is the time after which a round counts as a stall; 100 ms when it is 0.
	StallAfter time.Duration
	// Quiet is for how long the loops of a group must have had little to do before memory that is free is
	// given back to the system; never when it is 0.
	Quiet time.Duration
}

// Loop runs callbacks one at a time. Make it with [New].
type Loop struct {
	cfg    Config
	poller poller

	mu      sync.Mutex
	inbox   []func() // guarded by mu
	stopped bool     // guarded by mu

	// What follows belongs to the loop's goroutine.
	spare  []func()
	finals []func() // what Finally was told, and what was run last: two lists that take turns
	lasts  []func()
	dirty  []*Conn
	spoken int     // connections that were written in this round
	shared bool    // [Loop.Shared] was called in it
	again  []*Conn // what has more to read, and what was read last: two lists that take turns
	turned []*Conn
	closed []*Conn
	timers timers
	now    time.Time
	quit   bool

	read   []byte // what a socket gave
	plain  []byte // what crypto/tls decrypted
	cipher []byte // what crypto/tls encrypted
	spares [][]byte

	certificates certificates
	trimmer      *trimmer // nil: none

	open   atomic.Int64
	stalls atomic.Int64
	done   chan struct{}
}

// poller waits for sockets: epoll, or goroutines.
type poller interface {
	// wait blocks until something is ready and calls round, again and again, until it returns false.
	wait(round func(ready func()) bool) error
	wake()
	// again is called in a round, for another one without waiting.
	again()
	close() error
	dial(l *Loop, to netip.AddrPort, done func(*Conn, error)) (cancel func())
	listen(g *Group, ln *Listener, tcp *net.TCPListener, take func(*Conn), failed func(error)) (shut func(), err error)
}

// New makes a loop and starts its goroutine. [Loop.Stop] ends it.
func New(cfg Config) (*Loop, error) { return newLoop(cfg, nil) }

func newLoop(cfg Config, trim *trimmer) (*Loop, error) {
	if cfg.StallAfter == 0 {
		cfg.StallAfter = 100 * time.Millisecond
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l := &Loop{cfg: cfg, now: time.Now(), done: make(chan struct{}), trimmer: trim}
	l.timers.loop = l
	p, err := newPoller(l, cfg.Portable)
	if err != nil {
		return nil, err
	}
	l.poller = p
	go l.run()
	return l, nil
}

func (l *Loop) run() {
	defer close(l.done)
	if err := l.poller.wait(l.round); err != nil {
		l.cfg.Log.Error("the event loop has ended", "error", err)
	}
	l.mu.Lock()
	l.stopped = true
	l.mu.Unlock()
	// What was taken before that is still run: somebody may wait for it.
	l.takeInbox()
	l.flush()
	if l.timers.alarm != nil {
		l.timers.alarm.Stop()
	}
	_ = l.poller.close()
}

// Post runs f on the loop's goroutine, after what was posted before. It may be called from any
// goroutine. It is false when the loop has been stopped: f will not run.
func (l *Loop) Post(f func()) bool {
	l.mu.Lock()
	if l.stopped {
		l.mu.Unlock()
		return false
	}
	l.inbox = append(l.inbox, f)
	first := len(l.inbox) == 1
	l.mu.Unlock()
	if first {
		l.poller.wake()
	}
	return true
}

// Finally runs f at the end of this round, before connections are written.
func (l *Loop) Finally(f func()) { l.finals = append(l.finals, f) }

// Shared says that a connection that many share carries a message in this round. More of them would cost
// little more: if several connections are spoken to, the loop lets those run who may have more to say and
// wait for its CPU.
func (l *Loop) Shared() { l.shared = true }

// Stop ends the loop after what was posted before, and waits for it. Connections that are still open
// are closed without a word to their handlers: close them first.
func (l *Loop) Stop() {
	l.Post(func() {
		l.quit = true
		l.mu.Lock()
		l.stopped = true
		l.mu.Unlock()
	})
	<-l.done
}

// Now is the time at which the round began; good enough for deadlines and durations of requests.
func (l *Loop) Now() time.Time { return l.now }

// Open is the number of connections. It may be called from any goroutine.
func (l *Loop) Open() int64 { return l.open.Load() }

// Stalls counts rounds that took longer than [Config.StallAfter]. It may be called from any goroutine.
func (l *Loop) Stalls() int64 { return l.stalls.Load() }

// round handles what is ready, then what was posted and what asked for another turn, and writes at
// the end. It is false when the loop is to end.
func (l *Loop) round(ready func()) bool {
	l.now, l.spoken, l.shared = time.Now(), 0, false
	ready()
	l.takeInbox()
	again := l.again
	l.again = l.turned[:0]
	for _, c := range again {
		c.queued = false
		c.readable()
	}
	clear(again)
	l.turned = again
	l.flush()
	if len(l.again) > 0 { // a connection has more to read: come back without waiting
		l.poller.again()
	}
	if time.Since(l.now) > l.cfg.StallAfter {
		l.stalls.Add(1)
	}
	l.trimmer.round()
	return !l.quit
}

func (l *Loop) takeInbox() {
	l.mu.Lock()
	inbox := l.inbox
	l.inbox = l.spare[:0]
	l.mu.Unlock()
	for _, f := range inbox {
		f()
	}
	clear(inbox)
	l.spare = inbox
}

// flush writes every connection that has something to say, then closes what was closed in this
// round: a descriptor must not be reused while events of the round may still name it.
func (l *Loop) flush() {
	for len(l.finals) > 0 {
		finals := l.finals
		l.finals = l.lasts[:0]
		for _, f := range finals {
			f()
		}
		clear(finals)
		l.lasts = finals
	}
	for i := 0; i < len(l.dirty); i++ {
		c := l.dirty[i]
		c.dirty = false
		c.flush()
	}
	l.spoken += len(l.dirty)
	clear(l.dirty)
	l.dirty = l.dirty[:0]
	for i := 0; i < len(l.closed); i++ {
		c := l.closed[i]
		_ = c.sock.close(c.reset)
		l.open.Add(-1)
		c.handler.Closed(c.err)
		if c.after != nil {
			c.after()
		}
	}
	clear(l.closed)
	l.closed = l.closed[:0]
	if len(l.dirty)+len(l.finals)+len(l.closed) > 0 { // a Closed may have written elsewhere
		l.flush()
	}
}

// grow appends p to the queue b[at:]; large queues live in buffers that the loop recycles.
func (l *Loop) grow(b []byte, at int, p []byte) ([]byte, int) {
	if len(b)+len(p) <= cap(b) {
		return append(b, p...), at
	}
	need := len(b) - at + len(p)
	if at > 0 && need <= cap(b) {
		b = b[:copy(b, b[at:])]
		return append(b, p...), 0
	}
	if need <= keepSize {
		return append(b, p...), at
	}
	var next []byte
	if n := len(l.spares); n > 0 && need <= spareSize {
		next, l.spares = l.spares[n-1], l.spares[:n-1]
	} else {
		next = make([]byte, 0, max(spareSize, need))
	}
	next = append(append(next, b[at:]...), p...)
	l.release(b)
	return next, 0
}

// release gives an empty buffer back; what it returns is kept by the connection.
func (l *Loop) release(b []byte) []byte {
	if cap(b) <= keepSize {
		return b[:0]
	}
	if cap(b) >= spareSize && cap(b) < 2*spareSize && len(l.spares) < maxSpare {
		l.spares = append(l.spares, b[:0])
	}
	return nil
}

// readBuffer is where a socket is read into; it is lent for one callback.
func (l *Loop) readBuffer() []byte {
	if l.read == nil {
		l.read = make([]byte, readSize)
	}
	return l.read
}

func (l *Loop) plainBuffer() []byte {
	if l.plain == nil {
		l.plain = make([]byte, readSize)
	}
	return l.plain
}
