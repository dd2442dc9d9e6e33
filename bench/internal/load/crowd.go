package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Crowd is many connections that are open and say nothing.
type Crowd struct {
	port  Port
	dial  Dial
	conns []net.Conn
}

// NewCrowd makes an empty crowd. Release has to be called at the end.
func NewCrowd(p Port, dial Dial) *Crowd { return &Crowd{port: p, dial: dial} }

// Grow opens connections, asking once on each, until there are as many as told.
func (c *Crowd) Grow(ctx context.Context, size int) error {
	const together = 32
	missing := size - len(c.conns)
	if missing <= 0 {
		return nil
	}
	tickets := make(chan struct{}, missing)
	for range missing {
		tickets <- struct{}{}
	}
	close(tickets)
	var mu sync.Mutex
	var errs []error
	var group sync.WaitGroup
	for range together {
		group.Go(func() {
			for range tickets {
				conn, err := c.dial(ctx, c.port)
				mu.Lock()
				if err != nil {
					errs = append(errs, err)
				} else {
					c.conns = append(c.conns, conn)
				}
				stop := len(errs) > 0
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	group.Wait()
	if len(errs) > 0 {
		return fmt.Errorf("holding %d connections to %s, after %d: %w", size, c.port, len(c.conns), errs[0])
	}
	return nil
}

// Alive asks on a few of the connections again: those that were closed meanwhile take no memory.
func (c *Crowd) Alive() error {
	const few = 10
	for i := 0; i < len(c.conns); i += max(1, len(c.conns)/few) {
		if err := c.port.ask(c.conns[i]); err != nil {
			return fmt.Errorf("connection %d of %d to %s is not open any more: %w", i, len(c.conns), c.port, err)
		}
	}
	return nil
}

// Release closes all.
func (c *Crowd) Release() {
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns = nil
}

// Return is how a crowd came back.
type Return struct {
	Elapsed time.Duration // until the last had its answer
	Retries int64         // attempts that failed
}

// ComeBack lets a crowd connect all at once, each peer as often as it takes, and waits until every one of them
// has an answer. The connections are closed at the end.
func ComeBack(ctx context.Context, p Port, dial Dial, peers int, patience time.Duration) (Return, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	began := time.Now()
	var retries, back atomic.Int64
	conns := make([]net.Conn, peers)
	var group sync.WaitGroup
	for i := range peers {
		group.Go(func() {
			for ctx.Err() == nil {
				conn, err := dial(ctx, p)
				if err == nil {
					conns[i] = conn
					back.Add(1)
					return
				}
				retries.Add(1)
				pause := time.NewTimer(100 * time.Millisecond)
				select {
				case <-pause.C:
				case <-ctx.Done():
				}
				pause.Stop()
			}
		})
	}
	group.Wait()
	r := Return{Elapsed: time.Since(began), Retries: retries.Load()}
	for _, conn := range conns {
		if conn != nil {
			conn.Close()
		}
	}
	if n := int(back.Load()); n < peers {
		return r, errors.Join(fmt.Errorf("%d of %d peers were back at %s after %s", n, peers, p, r.Elapsed.Round(time.Second)), context.Cause(ctx))
	}
	return r, nil
}
