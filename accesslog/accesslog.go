// Package accesslog knows how the lines of an access log get to a writer that may be slow: they wait within a bound,
// and what does not fit is left out and counted. Nothing that serves traffic waits for a disk or a pipe.
package accesslog

import (
	"io"
	"sync"
	"sync/atomic"
)

// mostUnwritten bounds the lines that wait for the writer, in bytes: beyond it none is added.
const mostUnwritten = 16 << 20

// Lines are on their way to a writer, in the order in which they were added. The writer is called by one goroutine of
// their own. Lines may be used from several goroutines at once.
type Lines struct {
	w       io.Writer    // nil: off
	dropped atomic.Int64 // lines left out

	mu     sync.Mutex
	wait   []byte // guarded by mu: whole lines that are not written yet
	spare  []byte // guarded by mu
	closed bool   // guarded by mu
	news   sync.Cond
	done   chan struct{} // closed when everything was written after Close
}

// New gives lines their writer, which gets whole lines, several at once when it is slow; its errors are passed over, for
// a full disk must not stop the traffic. Without a writer all that is added is forgotten. [Lines.Close] has to follow.
func New(w io.Writer) *Lines {
	l := &Lines{w: w, done: make(chan struct{})}
	l.news.L = &l.mu
	if w == nil {
		close(l.done)
		return l
	}
	go l.run()
	return l
}

// On tells whether lines are wanted.
func (l *Lines) On() bool { return l.w != nil }

// Dropped is how many lines were left out: they did not fit, or came after Close.
func (l *Lines) Dropped() int64 { return l.dropped.Load() }

// Add adds a line, which line appends to what it is given, with its end. That is called before Add returns or not at
// all, and must not wait.
func (l *Lines) Add(line func([]byte) []byte) {
	if l.w == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.wait) > mostUnwritten {
		l.dropped.Add(1)
		return
	}
	l.wait = line(l.wait)
	l.news.Signal()
}

func (l *Lines) run() {
	defer close(l.done)
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		for len(l.wait) == 0 && !l.closed {
			l.news.Wait()
		}
		if len(l.wait) == 0 {
			return
		}
		batch := l.wait
		l.wait = l.spare[:0]
		l.mu.Unlock()
		_, _ = l.w.Write(batch)
		l.mu.Lock()
		if l.spare = batch[:0]; cap(batch) > 1<<20 { // a burst's
			l.spare = nil
		}
	}
}

// Close writes what waits, and returns when it is written. It may be called again.
func (l *Lines) Close() {
	l.mu.Lock()
	l.closed = true
	l.news.Signal()
	l.mu.Unlock()
	<-l.done
}
