package h2

import (
	"testing"
)

// TestRoom writes what there is room for and no more: nothing is queued, and the writer hears when
// there is room again.
func TestRoom(t *testing.T) {
	const window = 64 << 10
	p := newPair(t, Config{StreamWindow: window})
	var reader *Stream
	p.onServer = func(e *Event) { reader = e.Stream }
	writable := 0
	p.onClient = func(e *Event) {
		if e.Kind == Writable {
			writable++
		}
	}
	p.move(1 << 20) // SETTINGS
	s, err := p.client.Open(get("/x"), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := s.Room(); n != window {
		t.Fatalf("there is room for %d bytes, want the window", n)
	}
	s.Write(make([]byte, window), false)
	p.move(1 << 20)
	if n := s.Room(); n != 0 || s.Queued() != 0 || writable != 0 {
		t.Fatalf("with a full window: room for %d bytes, %d queued, %d events", n, s.Queued(), writable)
	}
	reader.Consumed(window / 2)
	p.move(1 << 20)
	if n := s.Room(); n != window/2 || writable != 1 {
		t.Fatalf("with half a window: room for %d bytes, %d events", n, writable)
	}

	p.client.SetCongested(true)
	if n := s.Room(); n != 0 {
		t.Fatalf("on a transport that takes nothing there is room for %d bytes", n)
	}
	p.client.SetCongested(false)
	if n := s.Room(); n != window/2 || writable != 2 {
		t.Fatalf("on a transport that takes more: room for %d bytes, %d events", n, writable)
	}

	s.Write(make([]byte, window/2), false)
	if n := s.Room(); n != 0 {
		t.Fatal("there is room in no window")
	}
	s.End(nil) // needs no window
	p.move(1 << 20)
	if last := p.events[len(p.events)-1]; last != `server 1 data "" end` {
		t.Fatalf("the last event is %s", last)
	}
	reader.Consumed(window)
	p.move(1 << 20)
	if writable != 2 {
		t.Errorf("%d events, though the stream has ended", writable)
	}
}

// TestRoomIsFair lets a stream without a window wait and looks that another is not held up by it.
func TestRoomIsFair(t *testing.T) {
	p := newPair(t, Config{StreamWindow: 64 << 10})
	p.move(1 << 20)
	a, _ := p.client.Open(get("/a"), false, nil)
	b, _ := p.client.Open(get("/b"), false, nil)
	a.Write(make([]byte, 100<<10), false)
	if a.Queued() == 0 {
		t.Fatal("more than a window was sent")
	}
	b.Write(make([]byte, 10<<10), true)
	if n := b.Queued(); n != 0 {
		t.Errorf("%d bytes wait for another stream's window", n)
	}
}
