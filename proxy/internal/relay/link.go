package relay

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"

	"countersign.dev/proxy/internal/loop"
)

// Link is a connection to an endpoint. It belongs to the loop that made it.
type Link struct {
	Endpoint *Endpoint
	Conn     *loop.Conn
	// Owner is what the endpoint's functions have set, and Closed is called at the connection's end when
	// [Endpoint.Opened] has set that.
	Owner  any
	Closed func()

	retire func() // tells whoever carries requests on it
}

// Retire lets the connection end with what it has in flight: it gets no further request.
func (k *Link) Retire() {
	if k.retire != nil {
		k.retire()
	}
}

// gone is called once, when the connection has ended.
func (k *Link) gone() {
	if k.Endpoint.Stats != nil {
		k.Endpoint.Stats.CxActive.Add(-1)
	}
	if k.Closed != nil {
		k.Closed()
	}
}

// dial is a connection that is being made.
type dial struct {
	w        *Worker
	link     *Link
	done     func(k *Link, err error)
	cancel   func() // of the TCP connect
	deadline *loop.Timer
	over     bool
}

// errConnectTimeout says that a connect or its handshake took too long.
var errConnectTimeout = errors.New("it took too long")

// dial connects to an endpoint; done is called once, later, and has to set the connection's handler.
// The function that it returns gives up: done is not called then.
func (w *Worker) dial(e *Endpoint, config func(*Link) (*tls.Config, error), done func(k *Link, err error)) (cancel func()) {
	d := &dial{w: w, link: &Link{Endpoint: e}, done: done}
	d.deadline = w.loop.After(w.limits.Connect, func() {
		d.drop()
		d.fail(errConnectTimeout)
	})
	d.cancel = w.loop.Dial(e.Address, func(c *loop.Conn, err error) {
		switch {
		case d.over && c != nil:
			c.Handle(unborn{})
			c.Close()
		case d.over:
		case err != nil:
			d.fail(err)
		default:
			d.connected(c, config)
		}
	})
	return func() {
		if !d.over {
			d.over = true
			d.deadline.Stop()
			d.drop()
		}
	}
}

// drop closes what there is of the connection.
func (d *dial) drop() {
	if d.link.Conn == nil {
		d.cancel()
		return
	}
	d.link.Conn.Close()
}

func (d *dial) fail(err error) {
	if d.over {
		return
	}
	d.over = true
	d.deadline.Stop()
	d.link.Endpoint.failed(d.w.loop.Now(), err)
	d.done(nil, err)
}

func (d *dial) connected(c *loop.Conn, config func(*Link) (*tls.Config, error)) {
	d.link.Conn = c
	if s := d.link.Endpoint.Stats; s != nil {
		s.CxTotal.Add(1)
		s.CxActive.Add(1)
	}
	c.Handle(unborn{d.link})
	if config == nil {
		d.ready()
		return
	}
	cfg, err := config(d.link)
	if err != nil {
		c.Close()
		d.fail(err)
		return
	}
	c.StartTLS(cfg, true, d.w.limits.Connect, func(err error) {
		switch {
		case d.over:
		case err != nil:
			d.fail(err)
		default:
			if s := d.link.Endpoint.Stats; s != nil {
				s.Handshake.Add(1)
			}
			d.ready()
		}
	})
}

func (d *dial) ready() {
	e := d.link.Endpoint
	if e.Opened != nil {
		if err := e.Opened(d.link); err != nil {
			d.link.Conn.Close()
			d.fail(err)
			return
		}
	}
	d.over = true
	d.deadline.Stop()
	e.connected()
	d.done(d.link, nil)
}

// unborn handles a connection that is not ready yet.
type unborn struct{ link *Link }

func (unborn) Data([]byte) {}
func (unborn) End()        {}
func (unborn) Drained()    {}
func (u unborn) Closed(error) {
	if u.link != nil {
		u.link.gone()
	}
}

// refused tells whether a connection has ended because the peer refused our certificate, as servers do
// in TLS 1.3 after the client's side of the handshake is complete: it has read nothing of any request
// then. Only alerts about the certificate say so; others (a bad record, which anybody on the way can
// bring about) may come when a request is under way.
func refused(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "remote error" {
		return false
	}
	// crypto/tls has no type for the other side's alerts; a test pins their texts.
	text := op.Err.Error()
	return strings.Contains(text, "certificate") || strings.HasSuffix(text, "access denied")
}

// errRefused goes with the alert of [refused].
var errRefused = errors.New("the instance does not take this workload's certificate")

func refusal(err error) error { return fmt.Errorf("%w: %w", errRefused, err) }
