package proxy

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	"countersign.dev/mesh"
	"countersign.dev/proxy/internal/header"
	"countersign.dev/proxy/internal/message"
	"countersign.dev/proxy/internal/relay"
	"countersign.dev/stat"
)

// Request implements relay.Service: a request's head has arrived.
func (l *listener) Request(x *relay.Exchange) relay.Decision {
	l.p.totals.requests.Add(1)
	st := l.p.state.Load()
	if l.side == outboundSide {
		return l.outboundRequest(x, st, st.outbound[l.port])
	}
	return l.inboundRequest(x, st, st.inbound[l.port])
}

// inboundRequest decides about a request from a peer or from the outside.
func (l *listener) inboundRequest(x *relay.Exchange, st *state, in *inbound) relay.Decision {
	if in == nil {
		return refuse(x, http.StatusServiceUnavailable, relay.FlagCut, "the port is not served any more")
	}
	x.Owner = in
	if in.http != nil {
		in.http.RqTotal.Add(1)
	}
	c := x.Peer.Owner.(*conn)
	forwarded, ok := header.TakeClaims(x.Head, true)
	if problem := headProblem(x, ok); problem != "" {
		return refuse(x, http.StatusBadRequest, relay.FlagMalformed, problem)
	}
	if reason := in.unfit(c); reason != "" {
		return c.deny(x, st, in, reason)
	}
	if decision := in.policy.Request(c.peer, x.Method, x.Path); !decision.Allowed {
		return c.deny(x, st, in, decision.Reason)
	}
	if in.app == nil {
		return c.gatewayRequest(x, st, in)
	}
	if !in.app.http1 {
		x.Head.Upgrade = keepTunnel(x.Head)
	}
	if forwarded != "" && !c.peer.IsZero() {
		x.Head.Add(header.ForwardedFor, forwarded+", "+c.address)
	} else {
		x.Head.Add(header.ForwardedFor, c.address)
	}
	header.SetPeer(x.Head, c.peerFields)
	prepare(x.Head, st)
	return relay.Decision{Target: in.app.target}
}

// gatewayRequest sends a request from outside to the upstream that the first route that matches chooses.
func (c *conn) gatewayRequest(x *relay.Exchange, st *state, in *inbound) relay.Decision {
	r, problem := in.way(x)
	switch {
	case problem != "":
		return refuse(x, http.StatusBadRequest, relay.FlagMalformed, "the path is ambiguous: "+problem)
	case r == nil:
		return refuse(x, http.StatusNotFound, flagNoRoute, "no route matches this request")
	}
	to := r.choose()
	if !to.switches() {
		x.Head.Upgrade = keepTunnel(x.Head)
	}
	x.Head.Add(header.ForwardedFor, c.address)
	prepare(x.Head, st)
	return relay.Decision{Target: to.target.Load(), Timeout: r.timeout}
}

// outboundRequest sends a request of the application on. Its own claims about certificates are removed
// by the far side in any case; here they are removed so that they do not travel.
func (l *listener) outboundRequest(x *relay.Exchange, st *state, out *outbound) relay.Decision {
	if out == nil || out.Protocol == mesh.TCP {
		return refuse(x, http.StatusServiceUnavailable, relay.FlagCut, "the call is not declared any more")
	}
	x.Owner = out
	out.http.RqTotal.Add(1)
	_, ok := header.TakeClaims(x.Head, false)
	if problem := headProblem(x, ok); problem != "" {
		return refuse(x, http.StatusBadRequest, relay.FlagMalformed, problem)
	}
	if !out.upstream.switches() {
		x.Head.Upgrade = keepTunnel(x.Head)
	}
	prepare(x.Head, st)
	return relay.Decision{Target: out.upstream.target.Load()}
}

// headProblem says what is wrong with a request's head that the codecs let pass; empty when nothing is.
func headProblem(x *relay.Exchange, clear bool) string {
	switch {
	case !clear:
		return "a field's name is read by some as one that says where the body ends"
	case x.Head.Problem != "":
		return x.Head.Problem
	case x.Head.Method == http.MethodConnect && x.Head.Upgrade == "":
		return "CONNECT asks for a tunnel, which is not served"
	}
	return ""
}

// keepTunnel drops an offer to change the protocol where the next hop takes none; a request that is
// nothing but such an offer stays one, and fails there.
func keepTunnel(h *message.Head) string {
	if h.Method == http.MethodConnect {
		return h.Upgrade
	}
	return ""
}

// prepare completes a head for the next hop.
func prepare(h *message.Head, st *state) {
	if h.Authority == "" { // HTTP/1.0
		h.Authority = st.plan.Workload.Identity.ServerName()
	}
	// Only a GET without content can be carried as an extended CONNECT and restored (RFC 8441 section 5).
	if h.Upgrade != "" && h.Method != http.MethodConnect && (h.Method != http.MethodGet || h.Body) {
		h.Upgrade = ""
	}
}

// Trailers implements relay.Service.
func (l *listener) Trailers(fields []message.Field) []message.Field { return header.Trailers(fields) }

// Failure implements relay.Service.
func (l *listener) Failure(x *relay.Exchange, status int, reason string) *relay.Reply {
	if status == http.StatusBadGateway {
		upstream := upstreamOfLink(x)
		if suppressed, ok := l.p.faults.allow("broke off " + upstream); ok {
			l.p.log.Warn("an upstream broke off before it answered", "listener", l.name(), "upstream", upstream, "suppressed", suppressed)
		}
	}
	return reply(x, status, reason)
}

// Done implements relay.Service: it is the end of every request, however it came.
func (l *listener) Done(x *relay.Exchange, o *relay.Outcome) {
	status := o.Status
	if status == 0 {
		status = statusClientGone
	}
	var counts *stat.HTTP
	switch owner := x.Owner.(type) {
	case *inbound:
		counts = owner.http
	case *outbound:
		counts = owner.http
	}
	if counts != nil {
		counts.Answered(status)
	}
	if !l.p.access.On() {
		return
	}
	e := l.entry(x.Peer.Owner.(*conn))
	e.Protocol, e.Method, e.Path, e.Status, e.Flag = x.Proto, x.Method, x.Path, status, o.Flag
	e.BytesIn, e.BytesOut, e.Seconds = o.BytesIn, o.BytesOut, o.Duration.Seconds()
	e.Upstream = upstreamOfLink(x)
	if x.Link != nil && e.TLS == "" {
		if up, ok := x.Link.Owner.(*upconn); ok {
			e.TLS, e.PeerSerial, e.OwnSerial = up.tlsVersion(), up.peerSerial, up.ownSerial
		}
	}
	l.p.access.write(e)
}

// Bad implements relay.Service: a request was refused that could not be read.
func (l *listener) Bad(p *relay.Peer, status int, reason string) {
	l.p.totals.requests.Add(1)
	if counts := l.counts(); counts != nil {
		counts.RqTotal.Add(1)
		counts.Answered(status)
	}
	c := p.Owner.(*conn)
	c.fault("refused a malformed request: "+reason, nil)
	e := l.entry(c)
	e.Protocol, e.Status, e.Flag = "HTTP/1.1", status, relay.FlagMalformed
	l.p.access.write(e)
}

// entry begins a line of the access log.
func (l *listener) entry(c *conn) *accessEntry {
	e := &accessEntry{
		Time: l.p.cfg.Now(), Listener: l.name(), Direction: l.side.String(), Remote: c.remote.String(),
		Caller: c.peer.String(), PeerSerial: c.peerSerial, OwnSerial: c.ownSerial, TLS: c.tlsVersion(),
	}
	if l.side == outboundSide {
		e.Caller = l.p.state.Load().plan.Workload.Identity.String()
	}
	return e
}

// upstreamOfLink is the address that a request went to last.
func upstreamOfLink(x *relay.Exchange) string {
	if x.Link == nil {
		return ""
	}
	return x.Link.Endpoint.Address.String()
}

// counts are the request counts of a listener, nil while the Plan has none.
func (l *listener) counts() *stat.HTTP {
	st := l.p.state.Load()
	if l.side == inboundSide {
		if in := st.inbound[l.port]; in != nil {
			return in.http
		}
	} else if out := st.outbound[l.port]; out != nil {
		return out.http
	}
	return nil
}

// name is the listener's name in statistics.
func (l *listener) name() string {
	st := l.p.state.Load()
	if l.side == inboundSide {
		if in := st.inbound[l.port]; in != nil {
			return in.Name
		}
	} else if out := st.outbound[l.port]; out != nil {
		return out.Name
	}
	return ""
}

// deny refuses a request by the policy, counts it, and says to the administrator who was refused what.
func (c *conn) deny(x *relay.Exchange, st *state, in *inbound, reason string) relay.Decision {
	in.stats.Denied.Add(1)
	c.logDenied(in, reason, x.Method)
	return refuse(x, http.StatusForbidden, flagDenied, "the policy of "+st.plan.Workload.Name+" does not admit this request")
}

// logDenied says who was refused and why, not more often than is useful.
func (c *conn) logDenied(in *inbound, reason, method string) {
	p := c.w.p
	p.totals.refused.Add(1)
	caller := c.peer.String()
	if c.peer.IsZero() {
		caller = mesh.FromAnonymous
	}
	if suppressed, ok := p.denials.allow(in.Name + " " + caller + " " + reason); ok {
		p.log.Warn("refused by the policy", "listener", in.Name, "caller", caller, "remote", c.remote, "reason", reason, "method", method, "suppressed", suppressed)
	}
}

// refuse answers instead of the upstream.
func refuse(x *relay.Exchange, status int, flag, reason string) relay.Decision {
	return relay.Decision{Reply: reply(x, status, reason), Flag: flag}
}

// reply is a short JSON text, or a gRPC status.
func reply(x *relay.Exchange, status int, reason string) *relay.Reply {
	if isGRPC(x) {
		// "Trailers-only": the status stands in the one block of fields that there is.
		return &relay.Reply{Logged: status, Head: message.Head{
			Status: http.StatusOK, ContentLength: message.Unknown,
			Fields: []message.Field{
				{Name: "content-type", Value: "application/grpc"},
				{Name: "grpc-status", Value: strconv.Itoa(grpcStatus(status))},
				{Name: "grpc-message", Value: reason},
			},
		}}
	}
	body, _ := json.Marshal(map[string]string{"error": reason}) // a text always encodes
	return &relay.Reply{Body: body, Head: message.Head{
		Status: status, ContentLength: int64(len(body)), Body: true,
		Fields: []message.Field{{Name: "content-type", Value: "application/json"}},
	}}
}

// isGRPC tells whether a client expects refusals as gRPC statuses.
func isGRPC(x *relay.Exchange) bool {
	if x.Proto != "HTTP/2.0" {
		return false
	}
	kind, _ := x.Head.Get("content-type")
	return kind == "application/grpc" || strings.HasPrefix(kind, "application/grpc+") || strings.HasPrefix(kind, "application/grpc;")
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

var _ relay.Service = (*listener)(nil)
