package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"time"

	"countersign.dev/mesh"
	"countersign.dev/proxy/internal/header"
)

// target is where requests go: the own application or an upstream.
type target interface {
	// switches tells whether it can be asked to switch to another protocol: HTTP/1.1 can.
	switches() bool
	// send sends a request, as often as it is safe, and gives the answer with what is to be called when
	// that was read.
	send(x *exchange, out *http.Request) (*http.Response, func(), error)
}

// target is the URL by which a transport sends the request's target unchanged, for what is sent has to
// be what was decided about. net/url would encode some characters anew; it leaves an opaque text as it
// is, but for one that begins with "//".
func (x *exchange) target(scheme string) *url.URL {
	u := &url.URL{Scheme: scheme, Host: "upstream", RawQuery: x.r.URL.RawQuery, ForceQuery: x.r.URL.ForceQuery}
	if strings.HasPrefix(x.stream.path, "//") {
		u.Path, u.RawPath = x.r.URL.Path, x.r.URL.RawPath
	} else {
		u.Opaque = x.stream.path
	}
	return u
}

// outgoing makes the request that is sent on. Its header is the arrived one's, which has been stripped.
func (x *exchange) outgoing() *http.Request {
	r := x.r
	out := &http.Request{
		Method: r.Method, URL: x.target("http"), Host: r.Host, Header: r.Header, ContentLength: r.ContentLength,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	if out.Host == "" { // HTTP/1.0
		out.Host = x.p.state.Load().plan.Workload.Identity.ServerName()
	}
	if _, ok := r.Header["User-Agent"]; !ok {
		r.Header["User-Agent"] = []string{""} // net/http's way to send none
	}
	delete(r.Header, "Content-Length")
	if !hasBody(r) {
		out.ContentLength = 0
		return out.WithContext(x.traced())
	}
	if r.ProtoMajor == 1 {
		// The answer may begin before the body has ended, and net/http is not to read it meanwhile.
		_ = x.control.EnableFullDuplex() // every HTTP/1.1 writer of net/http can
	}
	if len(r.Trailer) > 0 {
		out.Trailer = make(http.Header, len(r.Trailer))
		for name := range r.Trailer {
			out.Trailer[name] = nil
		}
		header.Forget(out.Trailer)
		header.ForgetAddresses(out.Trailer, true)
		out.ContentLength = -1 // HTTP/1.1 has trailers only in the chunked coding
	}
	x.src = newSource(r.Body, func() {
		for name := range out.Trailer {
			out.Trailer[name] = r.Trailer[name]
		}
	})
	out.GetBody = x.src.begin
	return out.WithContext(x.traced())
}

// traced is the request's context, with informational answers (103 Early Hints) passed on. A 100 is
// net/http's own business on both sides; after it has been promised, others would get in its way.
func (x *exchange) traced() context.Context {
	if x.r.Header.Get("Expect") != "" {
		return x.ctx
	}
	return httptrace.WithClientTrace(x.ctx, &httptrace.ClientTrace{
		Got1xxResponse: func(code int, fields textproto.MIMEHeader) error {
			if code == http.StatusContinue || code == http.StatusSwitchingProtocols {
				return nil
			}
			x.mu.Lock() // a transport may report this after its request was given up
			defer x.mu.Unlock()
			if x.answered {
				return nil
			}
			h := x.w.Header()
			copyFields(h, http.Header(fields))
			x.w.WriteHeader(code)
			clear(h)
			return nil
		},
	})
}

// forward sends the request to t and the answer back. The request's header has been stripped and set.
func (x *exchange) forward(t target) {
	protocol := ""
	if x.isUpgrade() && t.switches() {
		protocol = x.entry.Protocol
		x.r.Header["Connection"] = []string{"Upgrade"}
		x.r.Header["Upgrade"] = []string{protocol}
	}
	out := x.outgoing()
	res, done, err := t.send(x, out)
	if err != nil {
		x.failed(err)
		return
	}
	defer done()
	defer res.Body.Close()
	if res.StatusCode == http.StatusSwitchingProtocols {
		x.switchProtocols(res, protocol)
		return
	}
	if protocol != "" {
		x.entry.Flag = flagNoSwitch
	}
	x.answer(res)
}

// failed answers for an upstream that did not.
func (x *exchange) failed(err error) {
	if flag := x.gone(); flag != "" {
		if flag == flagTimeout {
			x.refuse(http.StatusGatewayTimeout, flagTimeout, "the service did not answer in time")
			return
		}
		x.entry.Status = statusClientGone
		x.abort(flag)
	}
	if x.src != nil {
		if _, _, bodyErr := x.src.state(); bodyErr != nil { // a bad chunk, or the client broke off
			x.refuse(http.StatusBadRequest, flagClientGone, "the request's body could not be read")
			return
		}
	}
	switch {
	case errors.Is(err, errNoEndpoint):
		x.refuse(http.StatusServiceUnavailable, flagNoEndpoint, "no instance of the service is known")
	case errors.Is(err, errConnect):
		x.refuse(http.StatusServiceUnavailable, flagConnectFailed, "connecting to the service failed")
	default:
		if suppressed, ok := x.p.faults.allow("broke off " + x.entry.Upstream); ok {
			x.p.log.Warn("an upstream broke off before it answered", "listener", x.entry.Listener, "upstream", x.entry.Upstream, "error", err, "suppressed", suppressed)
		}
		x.refuse(http.StatusBadGateway, flagUpstreamReset, "the service broke off before it answered")
	}
}

// answer sends an upstream's answer to the client.
func (x *exchange) answer(res *http.Response) {
	if !x.head() {
		x.abort(flagUpstreamReset)
	}
	x.entry.Status = res.StatusCode
	h := x.w.Header()
	clear(h)
	copyFields(h, res.Header)
	header.StripHopByHop(h)
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // keeps net/http from guessing one
	}
	announced := len(res.Trailer)
	if announced > 0 && x.r.ProtoMajor == 1 {
		h.Del("Content-Length") // HTTP/1.1 has trailers only in the chunked coding
	}
	for name := range res.Trailer {
		h.Add("Trailer", name)
	}
	x.closing(h)
	x.w.WriteHeader(res.StatusCode)
	// A stream's head is news by itself; where a length is given, the body follows on its heels.
	if res.ContentLength < 0 && x.r.Method != http.MethodHead {
		_ = x.control.Flush() // the next write says what is wrong
	}
	x.copyBody(res)
	if len(res.Trailer) == announced {
		for name, values := range res.Trailer {
			h[name] = values
		}
		return
	}
	for name, values := range res.Trailer { // that were not announced, too: gRPC's
		h[http.TrailerPrefix+name] = values
	}
}

// copyBody sends an answer's body, each piece as soon as it is there.
func (x *exchange) copyBody(res *http.Response) {
	buffer := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(buffer)
	for {
		n, err := res.Body.Read(buffer[:])
		if n > 0 {
			x.patience()
			written, werr := x.w.Write(buffer[:n])
			x.sent += int64(written)
			if werr == nil && x.sent != res.ContentLength { // the last piece goes out with the end
				werr = x.control.Flush()
			}
			if werr != nil {
				if flag := x.gone(); flag != "" {
					x.abort(flag)
				}
				x.abort(flagClientGone)
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			return
		default:
			if flag := x.gone(); flag != "" {
				x.abort(flag)
			}
			x.abort(flagUpstreamReset)
		}
	}
}

// writePatience is how long a client may take to take one piece of an answer.
const writePatience = 5 * time.Minute

// patience bounds the next write to a client of HTTP/1.1 that has stopped reading. (HTTP/2 has its own
// bound for the connection.) net/http removes the deadline when the request is over.
func (x *exchange) patience() {
	if now := time.Now(); x.r.ProtoMajor == 1 && now.Sub(x.patient) > time.Second {
		x.patient = now
		_ = x.control.SetWriteDeadline(now.Add(writePatience)) // the write says what is wrong
	}
}

func copyFields(to, from http.Header) {
	for name, values := range from {
		to[name] = values
	}
}

// switches implements target.
func (a *app) switches() bool { return a.h1 != nil }

// switches implements target.
func (u *upstream) switches() bool { return u.plan.Protocol == mesh.HTTP }

// send implements target: one try, but for what net/http repeats safely by itself, and for requests
// that an application speaking HTTP/2 has not begun with.
func (a *app) send(x *exchange, out *http.Request) (*http.Response, func(), error) {
	if a.h1 != nil {
		if err := withBody(x, out); err != nil {
			return nil, nil, err
		}
		out.URL.Host = a.address
		res, err := a.h1.RoundTrip(out)
		return res, func() {}, err
	}
	if a.h2 == nil {
		return nil, nil, errConnect
	}
	return a.h2.send(x, out)
}

// again makes a request to be sent once; its fields are shared, for no transport changes them.
func again(ctx context.Context, out *http.Request) *http.Request {
	attempt := out.WithContext(ctx)
	target := *out.URL
	attempt.URL = &target
	return attempt
}

// withBody gives a request its body, from the first byte.
func withBody(x *exchange, out *http.Request) error {
	if x.src == nil {
		return nil
	}
	body, err := x.src.begin()
	out.Body = body
	return err
}

// attempts is how often a request is sent that the far end has certainly not begun with. Several
// connections may be at their end at once; one after the other is not.
const attempts = 5

// send sends a request on one of the pool's connections.
func (p *pool) send(x *exchange, out *http.Request) (*http.Response, func(), error) {
	var last error
	for range attempts {
		c, err := p.get(out.Context())
		if err != nil {
			return nil, nil, err
		}
		attempt := again(out.Context(), out)
		if err := withBody(x, attempt); err != nil {
			c.cc.Release()
			c.release()
			return nil, nil, errors.Join(err, last)
		}
		if c.up != nil {
			x.through(c.up)
			if c.up.version != 0 {
				attempt.URL.Scheme = "https"
			}
		}
		res, err := c.cc.RoundTrip(attempt)
		if err == nil {
			return res, c.release, nil
		}
		c.release()
		if last = err; !unprocessed(err) {
			return nil, nil, remoteRefusal(err)
		}
	}
	return nil, nil, errors.Join(errConnect, errRefused, last)
}

// remoteRefusal gives errConnect to the error of a peer that has refused the handshake after the fact,
// as servers do in TLS 1.3: it has read nothing of any request. Only alerts about the certificate say so;
// others (a bad record, for one, which anybody on the way can bring about) may come when a request is
// under way.
func remoteRefusal(err error) error {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return err
	}
	// crypto/tls has no type for the other side's alerts; a test pins their texts.
	if text := op.Err.Error(); strings.Contains(text, "certificate") || strings.HasSuffix(text, "access denied") {
		return errors.Join(errConnect, errRefused, err)
	}
	return err
}

// send implements target: it tries one endpoint after the other as long as no connection comes about.
func (u *upstream) send(x *exchange, out *http.Request) (*http.Response, func(), error) {
	u.stats.RqTotal.Add(1)
	tried := make(map[*endpoint]bool)
	last := errNoEndpoint
	for {
		e, err := u.pick(tried)
		if err != nil {
			u.stats.Rq5xx.Add(1)
			return nil, nil, last
		}
		tried[e] = true
		x.entry.Upstream = e.address.String()
		res, done, err := e.send(x, out)
		switch {
		case err == nil:
			if res.StatusCode >= 500 {
				u.stats.Rq5xx.Add(1)
			}
			return res, func() { done(); e.release() }, nil
		case !errors.Is(err, errConnect) || out.Context().Err() != nil:
			e.release()
			if out.Context().Err() == nil {
				u.stats.Rq5xx.Add(1)
			}
			return nil, nil, err
		}
		e.release()
		if errors.Is(err, errRefused) {
			err = e.dialFailed(out.Context(), err)
		}
		last = err
	}
}

// send sends a request to one endpoint.
func (e *endpoint) send(x *exchange, out *http.Request) (*http.Response, func(), error) {
	// A client that waits for "100 Continue" waits for the application's word. net/http's HTTP/2 server
	// gives its own and keeps the field from us, so such a request takes a connection of HTTP/1.1.
	alone := (x.isUpgrade() || out.Header.Get("Expect") != "") && e.up.switches()
	transport := e.h1
	if alone && e.alone != nil {
		transport = e.alone
	}
	if transport == nil || !alone && e.h1 == nil {
		return e.h2.send(x, out)
	}
	ctx := context.WithValue(out.Context(), upconnKey{}, func(up *upconn) { x.through(up) })
	attempt := again(ctx, out)
	attempt.URL.Host = e.address.String()
	if err := withBody(x, attempt); err != nil {
		return nil, nil, err
	}
	res, err := transport.RoundTrip(attempt)
	if err != nil {
		return nil, nil, remoteRefusal(err)
	}
	return res, func() {}, nil
}

// through says which connection to a peer a request of the application goes by.
func (x *exchange) through(up *upconn) {
	x.mu.Lock() // a transport may tell so after its request was given up
	defer x.mu.Unlock()
	if x.over {
		return
	}
	if x.c.l.side == outboundSide || x.c.peer.IsZero() && !x.c.secure {
		x.entry.TLS, x.entry.PeerSerial, x.entry.OwnSerial = up.tlsVersion(), up.peerSerial, up.ownSerial
	}
}

var (
	_ target = (*app)(nil)
	_ target = (*upstream)(nil)
)
