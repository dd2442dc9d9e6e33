package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

func dialOutbound(t testing.TB, p *pair) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", p.caller.outboundAddress(9100))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

func TestTCPHalfClose(t *testing.T) {
	t.Run("the client ends first", func(t *testing.T) {
		p := newPair(t, mesh.TCP, serveTCPApp(t, func(c *net.TCPConn) {
			all, err := io.ReadAll(c) // answers only when it has everything
			_, _ = fmt.Fprintf(c, "%d bytes, %v", len(all), err)
		}))
		c := dialOutbound(t, p)
		big := strings.Repeat("x", 5<<20)
		send(t, c, big)
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(c); err != nil || string(got) != fmt.Sprintf("%d bytes, <nil>", len(big)) {
			t.Errorf("%q, %v", got, err)
		}
		c.Close()
		eventually(t, "both connections are logged", func() bool {
			return len(p.callee.access.entries(t)) == 1 && len(p.caller.access.entries(t)) == 1
		})
		e := p.callee.access.entries(t)[0]
		if e.BytesIn != int64(len(big)) || e.Protocol != "tcp" || e.Caller != p.caller.id.String() || e.TLS != "TLSv1.3" || e.PeerSerial == "" || e.OwnSerial == "" || e.Flag != "" {
			t.Errorf("access log %+v", e)
		}
	})
	t.Run("the server ends first", func(t *testing.T) {
		got := make(chan string, 1)
		p := newPair(t, mesh.TCP, serveTCPApp(t, func(c *net.TCPConn) {
			_, _ = io.WriteString(c, "bye\n")
			_ = c.CloseWrite()
			all, _ := io.ReadAll(c)
			got <- string(all)
		}))
		c := dialOutbound(t, p)
		if line, err := io.ReadAll(c); err != nil || string(line) != "bye\n" {
			t.Fatalf("%q, %v", line, err)
		}
		send(t, c, "still here")
		c.Close()
		if all := <-got; all != "still here" {
			t.Errorf("the server got %q", all)
		}
	})
}

// TestTCPBreak checks that a connection that breaks off does not look like one that ended.
func TestTCPBreak(t *testing.T) {
	p := newPair(t, mesh.TCP, serveTCPApp(t, func(c *net.TCPConn) {
		_, _ = bufio.NewReader(c).ReadString('\n')
		_, _ = io.WriteString(c, "begin\n")
		_ = c.SetLinger(0)
	}))
	c := dialOutbound(t, p)
	send(t, c, "go\n")
	reader := bufio.NewReader(c)
	_, first := reader.ReadString('\n') // a reset may overtake what was sent, and is told once
	if rest, err := io.ReadAll(reader); err == nil && (first == nil || errors.Is(first, io.EOF)) {
		t.Errorf("a broken connection ends regularly after %q", rest)
	}
}

func TestTCPWithoutAnApplication(t *testing.T) {
	p := newPair(t, mesh.TCP, "127.0.0.1:1")
	c := dialOutbound(t, p)
	if got, err := io.ReadAll(c); len(got) > 0 {
		t.Errorf("%q, %v", got, err)
	}
	eventually(t, "the caller says so", func() bool {
		return strings.Contains(p.caller.log.String(), "closed by the peer before the first byte") &&
			strings.Contains(p.caller.log.String(), "endpoint="+p.callee.inboundAddress(9080))
	})
	c.Close()
	eventually(t, "and logs it", func() bool { return strings.Contains(p.caller.access.String(), `"flag":"closed_by_peer"`) })
}

// TestTCPEndpoints checks that an instance that does not accept is passed over.
func TestTCPEndpoints(t *testing.T) {
	p := newPair(t, mesh.TCP, serveTCPApp(t, func(c *net.TCPConn) { echo(c, c) }))
	plan := p.caller.plan()
	u := upstreamOf([]*node{p.callee}, 9080, mesh.TCP)
	dead := u.Endpoints[0]
	dead.Instance, dead.Address = "back-dead", closedAddress(t)
	u.Endpoints = append([]mesh.Endpoint{dead}, u.Endpoints...)
	plan.Upstreams = []mesh.Upstream{u}
	plan.Outbound = []mesh.Outbound{outboundPort(9100, u)}
	p.caller.apply(plan)
	for range 4 {
		c := dialOutbound(t, p)
		send(t, c, "x\n")
		if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != "x\n" {
			t.Fatalf("%q, %v", line, err)
		}
		c.Close()
	}
	if n := p.caller.stat("cluster.back_9080.upstream_cx_connect_fail"); n < 1 || n > 2 {
		t.Errorf("%d connects failed; the first should have been the last for a while", n)
	}
	u.Endpoints = nil
	plan = p.caller.plan()
	plan.Upstreams = []mesh.Upstream{u}
	plan.Outbound = []mesh.Outbound{outboundPort(9100, u)}
	p.caller.apply(plan)
	if got, err := io.ReadAll(dialOutbound(t, p)); len(got) > 0 {
		t.Errorf("without an endpoint: %q, %v", got, err)
	}
	eventually(t, "it is logged", func() bool { return strings.Contains(p.caller.access.String(), `"flag":"no_endpoint"`) })
}

// TestTCPGateway passes bytes from outside to a service.
func TestTCPGateway(t *testing.T) {
	ca := newAuthority(t)
	gate := newNode(t, ca, id.Gateway, "gate", nil)
	back := newNode(t, ca, id.Service, "back", map[int]string{9080: serveTCPApp(t, func(c *net.TCPConn) { echo(c, c) })})
	plan := back.plan()
	plan.Inbound = []mesh.Inbound{inboundPort(9080, mesh.TCP, gate.id.String())}
	back.apply(plan)
	plan = gate.plan()
	u := upstreamOf([]*node{back}, 9080, mesh.TCP)
	plan.Upstreams = []mesh.Upstream{u}
	plan.Inbound = []mesh.Inbound{gatewayPort(8080, mesh.TCP, mesh.Route{To: []mesh.Destination{{Upstream: u.Name, Weight: 1}}})}
	gate.apply(plan)
	c, err := net.Dial("tcp", gate.inboundAddress(8080))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	send(t, c, "through\n")
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != "through\n" {
		t.Errorf("%q, %v", line, err)
	}
}
