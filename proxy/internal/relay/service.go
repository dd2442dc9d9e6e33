package relay

import (
	"net/netip"
	"time"

	"countersign.dev/id"
	"countersign.dev/proxy/internal/message"
)

// Service decides, for one listener, what is done with what comes in. It is called on the loops'
// goroutines, on several at once, and does not block.
type Service interface {
	// Request decides about a request and prepares its head for the next hop.
	Request(x *Exchange) Decision
	// Trailers takes away what may not pass.
	Trailers(fields []message.Field) []message.Field
	// Failure is what the caller is told when the upstream fails.
	Failure(x *Exchange, status int, message string) *Reply
	// Done is told of every exchange once.
	Done(x *Exchange, o *Outcome)
	// Bad is told of a request that could not be read, and answered with status.
	Bad(p *Peer, status int, reason string)
}

// Decision says what becomes of a request: it goes to a target, or is answered here.
type Decision struct {
	Target  *Target
	Timeout time.Duration // until the end of the response; 0: none
	Reply   *Reply        // when Target is nil
	Flag    string
}

// Peer is who is at the far end of a connection that came in. It does not change while the connection
// lives.
type Peer struct {
	ID      id.ID // zero: anonymous
	Remote  netip.AddrPort
	Service Service
	// Idle is how long the connection is kept between requests; see [Limits] when it is 0.
	Idle time.Duration
	// Owner is the service's own.
	Owner any
}
