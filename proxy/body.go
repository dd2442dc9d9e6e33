package proxy

import (
	"errors"
	"io"
	"net/http"
	"sync"
)

// errBodyGone says that a request's body cannot be sent again: more of it was sent than was kept.
var errBodyGone = errors.New("the request's body was sent in part and cannot be sent again")

// errBodyOver is what a reader of an attempt gets that was given up.
var errBodyOver = errors.New("the request's body is not read any more")

const (
	// bodyKept is how much of a body is kept for another attempt. A peer that has not begun with a
	// stream has taken at most a window of it; what the transport has read ahead comes on top.
	bodyKept = streamWindow + 128<<10
	// bodyAhead is how much is read before somebody asks for it.
	bodyAhead = 32 << 10
)

// source reads a request's body for one attempt to send it after the other. A goroutine of its own
// reads from the client, because a transport waits for a read to return before it reports that the
// attempt has failed, and a client that waits for an answer sends nothing that would end the read.
type source struct {
	body     io.ReadCloser
	trailers func() // called before an attempt is told of the body's end, by who reads that attempt
	read     int64  // guarded by mu: from the client

	mu      sync.Mutex
	cond    sync.Cond
	started bool
	stopped bool
	idle    chan struct{} // closed when the goroutine has ended
	kept    []byte        // what was read and may be asked for
	base    int64         // where in the body kept begins
	err     error         // how the body ended
	current *attempt
}

// attempt is the body of one attempt.
type attempt struct {
	s      *source
	offset int64 // guarded by s.mu
	closed bool  // guarded by s.mu
}

func newSource(body io.ReadCloser, trailers func()) *source {
	s := &source{body: body, trailers: trailers, idle: make(chan struct{})}
	s.cond.L = &s.mu
	return s
}

// begin gives the body for the next attempt, from its first byte.
func (s *source) begin() (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.base > 0 {
		return nil, errBodyGone
	}
	if s.current != nil {
		s.current.closed = true
	}
	s.current = &attempt{s: s}
	return s.current, nil
}

// Read implements io.Reader.
func (a *attempt) Read(p []byte) (int, error) {
	s := a.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.started && !s.stopped {
		s.started = true // not earlier: reading is what sends "100 Continue"
		go s.pump()
	}
	for !a.closed && !s.stopped && a.offset == s.base+int64(len(s.kept)) && s.err == nil {
		s.cond.Wait()
	}
	if a.closed || s.stopped {
		return 0, errBodyOver
	}
	n := copy(p, s.kept[a.offset-s.base:])
	a.offset += int64(n)
	if a.offset > bodyKept { // the peer has taken more than it can have without having begun
		s.kept = s.kept[a.offset-s.base:]
		s.base = a.offset
	}
	s.cond.Broadcast()
	if s.err != nil && a.offset == s.base+int64(len(s.kept)) {
		// Here and not where the end was read: another attempt may be about to name the trailers in its
		// head, and they are in one map.
		s.trailers()
		return n, s.err
	}
	return n, nil
}

// Close implements io.Closer.
func (a *attempt) Close() error {
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	a.closed = true
	a.s.cond.Broadcast()
	return nil
}

// pump reads from the client.
func (s *source) pump() {
	defer close(s.idle)
	buffer := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(buffer)
	for {
		s.mu.Lock()
		for !s.stopped && s.ahead() >= bodyAhead {
			s.cond.Wait()
		}
		stopped := s.stopped
		s.mu.Unlock()
		if stopped {
			return
		}
		n, err := s.body.Read(buffer[:])
		s.mu.Lock()
		s.kept = append(s.kept, buffer[:n]...)
		s.read += int64(n)
		s.err = err
		s.cond.Broadcast()
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// ahead is how much was read that the current attempt has not asked for. The caller holds s.mu.
func (s *source) ahead() int64 {
	if s.current == nil {
		return 0
	}
	return s.base + int64(len(s.kept)) - s.current.offset
}

// stop ends reading; it returns when the client's body is not touched any more. unblock makes a read
// that waits for the client return.
func (s *source) stop(unblock func()) {
	s.mu.Lock()
	s.stopped = true
	started, over := s.started, s.err != nil
	s.cond.Broadcast()
	s.mu.Unlock()
	if !started {
		return
	}
	if !over {
		unblock()
	}
	<-s.idle
}

// state tells how much was read from the client, whether that was all, and what went wrong in reading.
func (s *source) state() (read int64, whole bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	whole = errors.Is(s.err, io.EOF)
	if !whole {
		err = s.err
	}
	return s.read, whole, err
}

// unfinished tells whether reading from the client has begun and is not over.
func (s *source) unfinished() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.started && !errors.Is(s.err, io.EOF)
}

// hasBody tells whether a request has a body to send on.
func hasBody(r *http.Request) bool {
	return r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0
}

// copySize is the size of the buffers that bytes are copied through.
const copySize = 32 << 10

var copyBuffers = sync.Pool{New: func() any { return new([copySize]byte) }}
