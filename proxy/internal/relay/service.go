package relay

import (
	"crypto/tls"
	"net/netip"
	"sync/atomic"
	"time"

	"countersign.dev/id"
	"countersign.dev/mtls"
	"countersign.dev/proxy/internal/message"
)

// Service decides, for one listener, what is done with what comes in. It is called on the loops'
// goroutines, on several at once, and does not block.
type Service interface {
	// Request decides about a request and prepares its head for the next hop.
	Request(x *Exchange) Decision
	// Trailers takes away what may not pass.
	Trailers(fields []message.Field) []message.Field
	// Response prepares the head of a final response for the caller.
	Response(x *Exchange, h *message.Head)
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
	Timeout time.Duration // 0: none
	Reply   *Reply        // when Target is nil
	Flag    string
}

// Peer is who is at the far end of a connection that came in. It does not change while the connection
// lives.
type Peer struct {
	ID     id.ID // zero: anonymous
	State  *tls.ConnectionState
	Remote netip.AddrPort
	Log    any // the owner's own

	service Service
}

// Target is where requests go: the instances of an upstream, or the application. A target is not
// changed after it was made; what a new Plan changes is a new target.
type Target struct {
	// Key names what a connection may be used for: targets with the same key share connections.
	Key       string
	Endpoints []netip.AddrPort
	// TLS makes the configuration of a connection; nil means plaintext.
	TLS *mtls.Client
	// HTTP2 says that in plaintext HTTP/2 is spoken, by prior knowledge. With TLS, ALPN decides.
	HTTP2 bool
	// Counters may be nil.
	Counters *Counters
	// Opened is told of every connection, and gives what is told of its end.
	Opened func(c tls.ConnectionState, remote netip.AddrPort) (closed func())

	next atomic.Uint32
}

// Counters are told what happens to a target's connections and requests.
type Counters struct {
	Connected, Closed, ConnectFailed, Requested, Failed5xx, Handshake func()
}

func (t *Target) answered(status int) {
	if t.Counters != nil && status >= 500 {
		t.Counters.Failed5xx()
	}
}
