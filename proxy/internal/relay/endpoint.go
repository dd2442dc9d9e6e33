package relay

import (
	"crypto/tls"
	"net/netip"
	"sync/atomic"
	"time"

	"countersign.dev/stat"
)

// Target is where requests and connections go: the instances of an upstream, or the application. It is
// not changed after it was made; its endpoints may belong to several targets.
type Target struct {
	Endpoints []*Endpoint
	Stats     *stat.Cluster // nil for the application

	next atomic.Uint32
}

// Endpoint is one place that connections are made to: an instance of an upstream, or the application.
// Its exported fields are not changed after its first use. Loops share it.
type Endpoint struct {
	Name    string // for logs
	Address netip.AddrPort
	// TLS makes the configuration of a handshake that begins now, and OnlyHTTP1 of one that offers HTTP/1.1 alone, for
	// a protocol change with a peer whose HTTP/2 knows none. Both nil mean plaintext.
	TLS, OnlyHTTP1 func(k *Link) (*tls.Config, error)
	// HTTP2 says that in plaintext HTTP/2 is spoken, by prior knowledge. With TLS, ALPN decides.
	HTTP2 bool
	// Idle is how long an HTTP/1.1 connection without a request is kept.
	Idle time.Duration
	// Stats counts connections; nil for the application.
	Stats *stat.Cluster
	// Opened, when it is not nil, is told of every connection that is ready, on its loop; an error
	// closes it. Failed is told why none came about.
	Opened func(k *Link) error
	Failed func(err error)

	active   atomic.Int64 // requests and connections of bytes that it has now
	failures atomic.Int64 // connects that failed since the last that did not
	until    atomic.Int64 // ejected until then, in nanoseconds since the epoch
	retired  atomic.Bool  // no connection is kept; set for good
}

// ejections are how long an endpoint is left alone after so many failed connects in a row.
var ejections = [...]time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second}

// failed counts a connect that failed.
func (e *Endpoint) failed(now time.Time, err error) {
	if e.until.Load() <= now.UnixNano() { // else several have failed at once: that is no series
		n := e.failures.Add(1) - 1
		e.until.Store(now.Add(ejections[min(int(n), len(ejections)-1)]).UnixNano())
	}
	if e.Stats != nil {
		e.Stats.CxConnectFail.Add(1)
	}
	if e.Failed != nil {
		e.Failed(err)
	}
}

// connected counts a connect that did not fail.
func (e *Endpoint) connected() {
	if e.failures.Load() > 0 {
		e.failures.Store(0)
		e.until.Store(0)
	}
}

// attempts are the endpoints that an exchange has tried to reach.
type attempts []*Endpoint

func (a attempts) has(e *Endpoint) bool {
	for _, tried := range a {
		if tried == e {
			return true
		}
	}
	return false
}

// choose takes the endpoint with the least to do, by turns among equals, leaving out those that were
// tried; nil when none is left. One that failed lately is taken only when there is no other: a wrong
// guess costs a connect, none at all costs the request.
func (t *Target) choose(now time.Time, tried attempts) *Endpoint {
	if len(t.Endpoints) == 1 {
		if e := t.Endpoints[0]; !tried.has(e) {
			return e
		}
		return nil
	}
	var best, second *Endpoint
	start, nanos := int(t.next.Add(1)), now.UnixNano()
	for i := range t.Endpoints {
		e := t.Endpoints[(start+i)%len(t.Endpoints)]
		switch {
		case tried.has(e):
		case e.until.Load() > nanos:
			if second == nil {
				second = e
			}
		case best == nil || e.active.Load() < best.active.Load():
			best = e
		}
	}
	if best == nil {
		return second
	}
	return best
}
