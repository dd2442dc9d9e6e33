package accesslog

import (
	"bytes"
	"errors"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stuckWriter takes nothing before it is released, and then fails.
type stuckWriter struct {
	release chan struct{}
	text    []byte
}

func (w *stuckWriter) Write(p []byte) (int, error) {
	<-w.release
	w.text = append(w.text, p...)
	return 0, errors.New("no space left on device")
}

func add(l *Lines, line []byte) { l.Add(func(b []byte) []byte { return append(b, line...) }) }

// TestSlow checks that a writer that hangs or fails stops nobody, that what is written is whole lines, and that what was
// left out is counted.
func TestSlow(t *testing.T) {
	w := &stuckWriter{release: make(chan struct{})}
	l := New(w)
	if !l.On() {
		t.Error("it is off")
	}
	line := append(bytes.Repeat([]byte("x"), 1<<20), '\n')
	const lines = 64
	for range lines {
		add(l, line)
	}
	dropped := l.Dropped()
	if dropped < lines/4 || dropped == lines {
		t.Errorf("%d lines were left out of %d", dropped, lines)
	}
	close(w.release)
	l.Close()
	if want := bytes.Repeat(line, lines-int(dropped)); !bytes.Equal(w.text, want) {
		t.Errorf("%d bytes were written, want %d", len(w.text), len(want))
	}
	add(l, line)
	l.Close()
	if l.Dropped() != dropped+1 {
		t.Errorf("a line after the end: %d were left out, before it %d", l.Dropped(), dropped)
	}
}

// TestOrder checks that lines are written in their order, also when there are no others to come.
func TestOrder(t *testing.T) {
	w := &stuckWriter{release: make(chan struct{})}
	close(w.release)
	l := New(w)
	want := []byte{}
	for n := range 1000 {
		line := []byte{byte('a' + n%26), '\n'}
		add(l, line)
		want = append(want, line...)
	}
	l.Close()
	if !bytes.Equal(w.text, want) || l.Dropped() != 0 {
		t.Errorf("got %q with %d left out", w.text, l.Dropped())
	}
}

// TestOff checks that without a writer nothing is made and nothing counted.
func TestOff(t *testing.T) {
	l := New(nil)
	l.Add(func([]byte) []byte {
		t.Error("a line was made")
		return nil
	})
	if l.On() || l.Dropped() != 0 {
		t.Errorf("it is on: %v; %d lines were left out", l.On(), l.Dropped())
	}
	l.Close()
}

// TestAllocations checks that a line costs no allocation, but now and then more room: one is written for each request.
func TestAllocations(t *testing.T) {
	w := &stuckWriter{release: make(chan struct{})}
	l := New(w)
	line := []byte("line\n")
	if n := testing.AllocsPerRun(1000, func() { add(l, line) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	close(w.release)
	l.Close()
}
