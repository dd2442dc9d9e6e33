package proxy

import (
	"io"
	"net/http"

	"countersign.dev/proxy/internal/header"
)

// switchProtocols connects the client with an upstream that has agreed to another protocol, until both
// have ended.
func (x *exchange) switchProtocols(res *http.Response, asked string) {
	server, ok := res.Body.(io.ReadWriteCloser)
	switched := header.UpgradeTo(res.Header)
	if !ok || asked == "" || switched == "" || x.src != nil {
		x.refuse(http.StatusBadGateway, flagUpstreamReset, "the service switched to another protocol and was not asked to")
		return
	}
	if !x.head() || !x.c.carry(carryTCP) {
		x.abort(flagClientGone)
	}
	client, buffered, err := x.control.Hijack()
	if err != nil {
		x.abort(flagClientGone)
	}
	if x.timer != nil {
		x.timer.Stop() // the answer is there; what follows is as long as it is
	}
	x.stream.mu.Lock()
	x.stream.control = nil // it is not net/http's any more
	x.stream.mu.Unlock()
	x.entry.Status, x.entry.Protocol = http.StatusSwitchingProtocols, switched
	abort := func() {
		x.c.abort()
		server.Close()
	}
	head := &http.Response{StatusCode: res.StatusCode, ProtoMajor: 1, ProtoMinor: 1, Header: res.Header.Clone()}
	header.StripHopByHop(head.Header)
	head.Header["Connection"] = []string{"Upgrade"}
	head.Header["Upgrade"] = []string{switched}
	if err := head.Write(client); err != nil {
		abort()
		x.entry.Flag = flagClientGone
		return
	}
	endServer := func() error { return nil }
	if half, ok := server.(interface{ CloseWrite() error }); ok {
		endServer = half.CloseWrite
	}
	result := splice(readWriter{buffered, client}, server, func() error { return endOf(client) }, endServer, abort, nil)
	client.Close()
	server.Close()
	x.sent = result.out
	x.entry.BytesIn = result.in
	if result.broken {
		x.entry.Flag = flagCut
	}
}

// readWriter reads what net/http has read already before what comes after it.
type readWriter struct {
	io.Reader
	io.Writer
}
