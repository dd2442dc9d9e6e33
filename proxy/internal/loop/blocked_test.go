package loop

import (
	"io"
	"testing"
	"time"
)

// flood writes blocks as long as the socket takes them, and more when told to.
type flood struct {
	c     *Conn
	total int64
	want  int64
}

func (f *flood) write() {
	block := make([]byte, 256<<10)
	for f.total < f.want && !f.c.Congested() {
		f.c.Write(block)
		f.total += int64(len(block))
	}
}
func (f *flood) Data([]byte)  {}
func (f *flood) End()         {}
func (f *flood) Drained()     { f.write() }
func (f *flood) Closed(error) {}

// TestBlocked stops reading, reads a part, and reads the rest, and looks at what the sender knows of it.
func TestBlocked(t *testing.T) {
	drivers(t, func(t *testing.T, g *Group) {
		const total = 32 << 20 // more than any socket's buffers hold
		begun := make(chan *flood, 1)
		addr := listen(t, g, func(c *Conn) {
			f := &flood{c: c, want: total}
			c.Handle(f)
			f.write()
			begun <- f
		})
		peer := dial(t, addr)
		f := <-begun
		// ask runs a question on the loop until it has the answer that is waited for.
		ask := func(what string, answer func() bool) {
			t.Helper()
			for deadline := time.Now().Add(10 * time.Second); ; {
				got := make(chan bool, 1)
				f.c.Loop().Post(func() { got <- answer() })
				if <-got {
					return
				}
				if time.Now().After(deadline) {
					t.Fatal(what)
				}
			}
		}
		var first time.Time
		ask("a peer that reads nothing does not block the connection", func() bool {
			var ok bool
			first, ok = f.c.Blocked()
			return ok && !first.IsZero()
		})
		if _, err := io.CopyN(io.Discard, peer, total/2); err != nil {
			t.Fatal(err)
		}
		ask("the socket took more, and the time did not move", func() bool {
			since, ok := f.c.Blocked()
			return ok && since.After(first)
		})
		if _, err := io.CopyN(io.Discard, peer, total/2); err != nil {
			t.Fatal(err)
		}
		ask("the connection is blocked though all was read", func() bool {
			_, ok := f.c.Blocked()
			return !ok && f.c.BytesWritten() == total
		})
		if _, err := io.WriteString(peer, "hello"); err != nil {
			t.Fatal(err)
		}
		ask("what was read is not counted", func() bool { return f.c.BytesRead() == 5 })
	})
}
