package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"countersign.dev/mesh"
	"countersign.dev/proxy/internal/guard"
	"countersign.dev/proxy/internal/header"
	"countersign.dev/proxy/internal/stat"
)

// exchange is one request and its answer, on their way through.
type exchange struct {
	p       *Proxy
	c       *conn
	w       http.ResponseWriter
	r       *http.Request
	control *http.ResponseController
	stream  *stream
	cancel  context.CancelCauseFunc
	ctx     context.Context // the request's own, with a cause for its end
	start   time.Time
	number  int        // on its connection, for HTTP/1.1
	counts  *stat.HTTP // may be nil
	entry   accessEntry

	timer *time.Timer // of the route; nil without one

	src  *source // the request's body; nil when it has none
	sent int64   // bytes of the answer's body

	patient time.Time // when a write was bounded last

	mu       sync.Mutex
	answered bool // guarded by mu: the answer's head was written
	over     bool // guarded by mu: the entry was logged
}

// ServeHTTP implements http.Handler for all listeners: a request has arrived whole as far as its head
// is concerned, on a connection that is registered.
func (l *listener) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, ok := r.Context().Value(connKey{}).(*conn)
	if !ok || c == nil {
		panic(http.ErrAbortHandler) // cannot be: ConnContext has set it
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	x := &exchange{
		p: l.p, c: c, w: w, r: r, control: http.NewResponseController(w), ctx: ctx, cancel: cancel,
		start: time.Now(), counts: l.p.countsOf(l),
	}
	if r.ProtoMajor == 1 {
		x.number = int(c.requests.Add(1))
	}
	path := rawPath(r.RequestURI)
	x.stream = &stream{method: r.Method, path: path, began: x.start, cancel: cancel, control: x.control}
	x.entry = accessEntry{
		Time: l.p.cfg.Now(), Listener: l.p.nameOf(l), Direction: l.side.String(), Protocol: r.Proto, Remote: c.remote.String(),
		Method: r.Method, Path: path,
	}
	l.p.totals.requests.Add(1)
	if x.counts != nil {
		x.counts.RqTotal.Add(1)
	}
	c.open(x.stream)
	defer x.recovered()
	defer x.finish()
	if problem := x.headProblem(path); problem != "" {
		x.refuse(http.StatusBadRequest, flagMalformed, problem)
		return
	}
	if l.side == inboundSide {
		x.serveInbound() //nolint:contextcheck // the exchange holds the request's context, with a cause for its end
	} else {
		x.serveOutbound() //nolint:contextcheck // as above
	}
}

// headProblem says what is wrong with a request's head that neither the guard nor net/http has looked
// for; empty when nothing is.
func (x *exchange) headProblem(path string) string {
	fields := 0
	for _, values := range x.r.Header {
		fields += len(values)
	}
	switch {
	case x.r.Method == http.MethodConnect:
		return "CONNECT asks for a tunnel, which is not served"
	case fields > guard.MaxFields:
		return fmt.Sprintf("it has more than %d header fields", guard.MaxFields)
	case header.Confusing(x.r.Header):
		return "a field's name is read by some as one that says where the body ends"
	case strings.ContainsFunc(x.r.RequestURI, func(r rune) bool { return r <= 0x20 || r >= 0x7f || r == '#' }):
		return "its target has a character that stands in no URL" // as the guard has it for HTTP/1.1
	case strings.HasPrefix(path, "//") && x.r.URL.EscapedPath() != path:
		return "its path cannot be sent on as it is" // see target
	}
	return ""
}

// rawPath is the path of a request target as it was sent.
func rawPath(target string) string {
	if !strings.HasPrefix(target, "/") && target != "*" {
		_, rest, _ := strings.Cut(target, "://")
		slash := strings.IndexAny(rest, "/?")
		if slash < 0 || rest[slash] == '?' {
			return "/"
		}
		target = rest[slash:]
	}
	path, _, _ := strings.Cut(target, "?")
	return path
}

// recovered tells the administrator of a mistake in this program; the request has ended with it.
func (x *exchange) recovered() {
	v := recover()
	if v == nil {
		return
	}
	if err, ok := v.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
		x.p.log.Error("serving a request panicked", "listener", x.entry.Listener, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	}
	panic(http.ErrAbortHandler)
}

// finish is the end of every request, however it came.
func (x *exchange) finish() {
	if x.src != nil {
		x.src.stop(func() { _ = x.control.SetReadDeadline(time.Now().Add(-time.Second)) })
		x.entry.BytesIn, _, _ = x.src.state()
	}
	x.c.done(x.stream)
	x.mu.Lock()
	x.over, x.answered = true, true
	x.mu.Unlock()
	x.entry.BytesOut = x.sent
	x.entry.Seconds = time.Since(x.start).Seconds()
	if x.counts != nil {
		x.counts.Answered(x.entry.Status)
	}
	x.p.access.write(x.entry)
}

// isGRPC tells whether a client expects refusals as gRPC statuses.
func (x *exchange) isGRPC() bool {
	kind := x.r.Header.Get("Content-Type")
	return x.r.ProtoMajor == 2 && (kind == "application/grpc" || strings.HasPrefix(kind, "application/grpc+") || strings.HasPrefix(kind, "application/grpc;"))
}

// grpcStatus maps the statuses that a proxy answers by itself (gRPC's http-grpc-status-mapping.md, but
// for 504, which is a deadline).
func grpcStatus(status int) int {
	switch status {
	case http.StatusBadRequest, http.StatusRequestHeaderFieldsTooLarge:
		return 13 // INTERNAL
	case http.StatusForbidden:
		return 7 // PERMISSION_DENIED
	case http.StatusNotFound:
		return 12 // UNIMPLEMENTED
	case http.StatusGatewayTimeout:
		return 4 // DEADLINE_EXCEEDED
	default:
		return 14 // UNAVAILABLE
	}
}

// refuse answers instead of the upstream: with a short JSON text, or a gRPC status.
func (x *exchange) refuse(status int, flag, message string) {
	x.entry.Status, x.entry.Flag = status, flag
	h := x.w.Header()
	clear(h)
	if !x.head() {
		panic(http.ErrAbortHandler)
	}
	x.closing(h)
	if x.isGRPC() {
		// "Trailers-only": the status stands in the one block of fields that there is.
		h.Set("Content-Type", "application/grpc")
		h.Set("Grpc-Status", strconv.Itoa(grpcStatus(status)))
		h.Set("Grpc-Message", message)
		x.w.WriteHeader(http.StatusOK)
		return
	}
	body, err := json.Marshal(map[string]string{"error": message})
	if err != nil {
		panic(http.ErrAbortHandler) // cannot be: it is a text
	}
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	x.w.WriteHeader(status)
	if x.r.Method != http.MethodHead {
		n, _ := x.w.Write(body)
		x.sent += int64(n)
	}
}

// head claims the writing of the answer's head; it is false when it was written.
func (x *exchange) head() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	first := !x.answered
	x.answered = true
	return first
}

// closing ends the connection with this answer when it is time: by "Connection: close", which net/http
// turns into a graceful GOAWAY in HTTP/2.
func (x *exchange) closing(h http.Header) {
	end := x.c.aged.Load() || x.p.draining.Load() || x.c.l.stopped.Load()
	if x.r.ProtoMajor == 1 {
		if x.src != nil {
			end = end || x.src.unfinished()
		}
		// The guard does not read what follows a request for an upgrade.
		end = end || x.c.guard == nil || x.c.guard.Upgrade() > 0
	}
	if end {
		h["Connection"] = []string{"close"}
	}
}

// abort ends the request without a regular end of the answer.
func (x *exchange) abort(flag string) {
	if x.entry.Flag == "" {
		x.entry.Flag = flag
	}
	panic(http.ErrAbortHandler) // net/http's word for it: a reset in HTTP/2, a close in HTTP/1.1
}

// serveInbound decides about a request from a peer or from the outside and sends it on.
func (x *exchange) serveInbound() {
	c := x.c
	x.entry.Caller, x.entry.PeerSerial, x.entry.OwnSerial, x.entry.TLS = c.peer.String(), c.peerSerial, c.ownSerial, c.tlsVersion()
	st := x.p.state.Load() // after the request was registered: see conn.open
	in := st.inbound[c.l.port]
	if in == nil {
		x.refuse(http.StatusServiceUnavailable, flagCut, "the port is not served any more")
		return
	}
	if reason := in.unfit(c, carryHTTP); reason != "" {
		x.deny(in, reason)
		return
	}
	if decision := in.policy.Request(c.peer, x.r.Method, x.stream.path); !decision.Allowed {
		x.deny(in, decision.Reason)
		return
	}
	if in.app == nil {
		x.serveGateway(in)
		return
	}
	header.StripHopByHop(x.upgradeFields())
	if c.peer.IsZero() {
		header.SetAddress(x.r.Header, c.remote.Addr())
	} else {
		header.AppendAddress(x.r.Header, c.remote.Addr())
	}
	header.SetPeer(x.r.Header, st.plan.Workload.Identity, c.peerFields)
	x.entry.Upstream = in.app.address
	x.forward(in.app)
}

// serveOutbound sends a request of the application on. Its own claims about certificates are removed
// by the far side in any case; here they are removed so that they do not travel.
func (x *exchange) serveOutbound() {
	st := x.p.state.Load()
	out := st.outbound[x.c.l.port]
	x.entry.Caller = st.plan.Workload.Identity.String()
	if out == nil || out.Protocol == mesh.TCP {
		x.refuse(http.StatusServiceUnavailable, flagCut, "the call is not declared any more")
		return
	}
	header.StripHopByHop(x.upgradeFields())
	header.Forget(x.r.Header)
	x.forward(out.upstream)
}

// deny refuses a request by the policy, counts it, and says to the administrator who was refused what.
func (x *exchange) deny(in *inbound, reason string) {
	in.stats.Denied.Add(1)
	x.p.logDenied(x.c, in, reason, x.r.Method)
	x.refuse(http.StatusForbidden, flagDenied, "the policy of "+x.p.state.Load().plan.Workload.Name+" does not admit this request")
}

// logDenied says who was refused and why, not more often than is useful.
func (p *Proxy) logDenied(c *conn, in *inbound, reason, method string) {
	p.totals.refused.Add(1)
	caller := c.peer.String()
	if c.peer.IsZero() {
		caller = mesh.FromAnonymous
	}
	if suppressed, ok := p.denials.allow(in.Name + " " + caller + " " + reason); ok {
		p.log.Warn("refused by the policy", "listener", in.Name, "caller", caller, "remote", c.remote, "reason", reason, "method", method, "suppressed", suppressed)
	}
}

// isUpgrade tells whether this request asks for another protocol, in the guard's reading of it.
func (x *exchange) isUpgrade() bool {
	return x.c.guard != nil && x.number > 0 && x.c.guard.Upgrade() == x.number
}

// upgradeFields gives the request's fields, after it has remembered what an upgrade needs.
func (x *exchange) upgradeFields() http.Header {
	if x.isUpgrade() {
		x.entry.Protocol = header.UpgradeTo(x.r.Header)
	}
	return x.r.Header
}

// gone tells why the request's context has ended, as a flag; empty when it has not.
func (x *exchange) gone() string {
	if x.ctx.Err() == nil {
		return ""
	}
	switch cause := context.Cause(x.ctx); {
	case errors.Is(cause, errForbidden), errors.Is(cause, errCut):
		return flagCut
	case errors.Is(cause, errTimeout):
		return flagTimeout
	default:
		return flagClientGone
	}
}

// Causes for the end of a request.
var (
	errTimeout = errors.New("the route's time is over")
	errCut     = errors.New("the connection was cut")
)

// countsOf are the request counts of a listener, nil while the Plan has none.
func (p *Proxy) countsOf(l *listener) *stat.HTTP {
	st := p.state.Load()
	if l.side == inboundSide {
		if in := st.inbound[l.port]; in != nil {
			return in.http
		}
	} else if out := st.outbound[l.port]; out != nil {
		return out.http
	}
	return nil
}

// nameOf is the listener's name in statistics.
func (p *Proxy) nameOf(l *listener) string {
	st := p.state.Load()
	if l.side == inboundSide {
		if in := st.inbound[l.port]; in != nil {
			return in.Name
		}
	} else if out := st.outbound[l.port]; out != nil {
		return out.Name
	}
	return ""
}
