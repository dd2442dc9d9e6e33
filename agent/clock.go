package agent

import (
	"sync"
	"time"
)

// meshClock is the server's clock as far as it is known here: the last time that the server said,
// and what this process's monotonic clock has counted since. Setting the machine's clock moves it
// not at all. Before the server has said anything it is the machine's clock.
//
// It is safe for concurrent use.
type meshClock struct {
	wall func() time.Time // the machine's clock; tests set it back and forth

	mu     sync.Mutex
	server time.Time // what the server said, zero before it said anything
	heard  time.Time // when it was heard, with the monotonic reading
}

// observe notes what the server's clock shows at this moment.
func (c *meshClock) observe(server time.Time) {
	if server.IsZero() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.server, c.heard = server, time.Now()
}

// now is the server's time; known is false while it is the machine's for want of a better one.
func (c *meshClock) now() (t time.Time, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server.IsZero() {
		return c.wall().Round(0), false
	}
	return c.server.Add(time.Since(c.heard)), true
}

// offset is the machine's clock minus the server's, 0 while the server's is not known.
func (c *meshClock) offset() time.Duration {
	now, known := c.now()
	if !known {
		return 0
	}
	// Round(0) strips the monotonic readings, which would hide that the clock was set.
	return c.wall().Round(0).Sub(now.Round(0))
}
