package proxy

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

// allow is the callee's Plan with other callers.
func (p *pair) allow(protocol mesh.Protocol, revision uint64, from ...string) *mesh.Plan {
	plan := p.callee.plan()
	plan.Revision = revision
	plan.Inbound = []mesh.Inbound{inboundPort(9080, protocol, from...)}
	return plan
}

func TestTheNextRequestObeys(t *testing.T) {
	modes(t, func(t *testing.T, clientH2 bool, protocol mesh.Protocol) {
		p := newPair(t, protocol, serveApp(t, protocol == mesh.HTTP2, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})))
		client := clientFor(t, clientH2)
		for i := range 6 {
			from, want := p.caller.id.String(), 200
			if i%2 == 1 {
				from, want = "spiffe://shop.internal/service/other", 403
			}
			p.callee.apply(p.allow(protocol, uint64(i), from))
			if got := do(t, client, newRequest(t, "GET", p.url, nil)); got.status != want {
				t.Errorf("revision %d: status %d, want %d", i, got.status, want)
			}
			if r := p.callee.Report().Revision; r != uint64(i) {
				t.Errorf("revision %d is reported, want %d", r, i)
			}
		}
		if n := p.callee.stat("listener.0.0.0.0_9080.downstream_cx_total"); n != 1 {
			t.Errorf("%d connections: a new policy must not close the one that lives on", n)
		}
	})
}

// TestForbiddenIsCut checks that what runs ends when its caller is not allowed any more, and lives on
// through every other change.
func TestForbiddenIsCut(t *testing.T) {
	other := "spiffe://shop.internal/service/other"
	t.Run("tcp", func(t *testing.T) {
		p := newPair(t, mesh.TCP, serveTCPApp(t, func(c *net.TCPConn) { echo(c, c) }))
		c := dialOutbound(t, p)
		reader := bufio.NewReader(c)
		ask := func() error {
			if _, err := io.WriteString(c, "x\n"); err != nil {
				return err
			}
			_, err := reader.ReadString('\n')
			return err
		}
		for revision := range uint64(5) {
			if err := ask(); err != nil {
				t.Fatalf("revision %d: %v", revision, err)
			}
			p.callee.apply(p.allow(mesh.TCP, revision, p.caller.id.String(), other))
		}
		p.callee.apply(p.allow(mesh.TCP, 9, other))
		if _, err := reader.ReadByte(); err == nil {
			t.Error("the connection lives on")
		}
	})
	t.Run("streams", func(t *testing.T) {
		modes(t, func(t *testing.T, clientH2 bool, protocol mesh.Protocol) {
			p := newPair(t, protocol, serveApp(t, protocol == mesh.HTTP2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_ = http.NewResponseController(w).Flush() // the cut may overtake it
				<-r.Context().Done()
			})))
			response, err := clientFor(t, clientH2).Do(newRequest(t, "GET", p.url, nil))
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			p.callee.apply(p.allow(protocol, 8, p.caller.id.String(), other))
			if n := p.callee.busyConns(); n != 1 {
				t.Errorf("%d connections are busy after a change that is nothing to them", n)
			}
			p.callee.apply(p.allow(protocol, 9, other))
			if body, err := io.ReadAll(response.Body); err == nil {
				t.Errorf("the stream ended regularly after %q", body)
			}
			eventually(t, "it is logged", func() bool { return strings.Contains(p.callee.access.String(), `"flag":"cut"`) })
		})
	})
	t.Run("upgrade", func(t *testing.T) {
		p := newPair(t, mesh.HTTP, serveApp(t, false, websocket.Handler(func(c *websocket.Conn) { echo(c, c) })))
		c, err := websocket.Dial(strings.Replace(p.url, "http://", "ws://", 1), "", "http://localhost")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ask := func() error {
			if err := websocket.Message.Send(c, "x"); err != nil {
				return err
			}
			var got string
			return websocket.Message.Receive(c, &got)
		}
		if err := ask(); err != nil {
			t.Fatal(err)
		}
		p.callee.apply(p.allow(mesh.HTTP, 8, p.caller.id.String(), other))
		if err := ask(); err != nil {
			t.Fatalf("after a change that is nothing to it: %v", err)
		}
		p.callee.apply(p.allow(mesh.HTTP, 9, other))
		var got string
		if err := websocket.Message.Receive(c, &got); err == nil {
			t.Error("the connection lives on")
		}
	})
}

// busyConns counts the connections that carry something at the moment.
func (n *node) busyConns() int {
	var busy atomic.Int64
	n.onLoops(func(w *worker) {
		for c := range w.conns {
			if c.busy() {
				busy.Add(1)
			}
		}
	})
	return int(busy.Load())
}

// TestModeChanges checks that a connection does not live on that could not be made any more.
func TestModeChanges(t *testing.T) {
	tests := map[string]struct {
		before, after func(*mesh.Inbound)
		anonymous     bool
		plaintext     bool
	}{
		"permissive to strict": {
			before:    func(in *mesh.Inbound) { in.TLS = mesh.Permissive },
			after:     func(in *mesh.Inbound) { in.TLS = mesh.Strict },
			plaintext: true,
		},
		"another key exchange": {
			before: func(in *mesh.Inbound) { in.TLSGroups = nil },
			after:  func(in *mesh.Inbound) { in.TLSGroups = []mesh.TLSGroup{mesh.Secp384r1} },
		},
		"optional to require": {
			before:    func(in *mesh.Inbound) { in.ClientAuth = mesh.Optional },
			after:     func(in *mesh.Inbound) { in.ClientAuth = mesh.Require },
			anonymous: true,
		},
		"strict to off": {
			before: func(*mesh.Inbound) {},
			after:  func(in *mesh.Inbound) { in.TLS = mesh.Off },
		},
		"the port is gone": {
			before: func(*mesh.Inbound) {},
			after:  nil,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newSingle(t, mesh.TCP, func(in *mesh.Inbound) {
				in.Rules[0].From = append(in.Rules[0].From, mesh.FromAnonymous)
				tt.before(in)
			})
			var c net.Conn
			switch {
			case tt.plaintext:
				var err error
				if c, err = net.Dial("tcp", s.inboundAddress(9080)); err != nil {
					t.Fatal(err)
				}
				defer c.Close()
			case tt.anonymous:
				c = tlsDial(t, s.inboundAddress(9080), mutual(t, nil, s.node))
			default:
				c = tlsDial(t, s.inboundAddress(9080), mutual(t, s.ca.issue(id.Service, "front", time.Hour), s.node))
			}
			c.SetDeadline(time.Now().Add(20 * time.Second))
			reader := bufio.NewReader(c)
			send(t, c, "x\n")
			if _, err := reader.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			plan := s.plan()
			if tt.after != nil {
				tt.after(&s.in)
				plan.Inbound = []mesh.Inbound{s.in}
			}
			s.apply(plan)
			if _, err := reader.ReadByte(); err == nil {
				t.Error("the connection lives on")
			}
		})
	}
}

// TestListeners checks what is bound, kept and closed.
func TestListeners(t *testing.T) {
	ca := newAuthority(t)
	n := newNode(t, ca, id.Service, "back", map[int]string{9080: "127.0.0.1:1", 9081: "127.0.0.1:1"})
	plan := func(ports ...int) *mesh.Plan {
		plan := n.plan()
		for _, port := range ports {
			plan.Inbound = append(plan.Inbound, inboundPort(port, mesh.HTTP, mesh.FromAny))
		}
		return plan
	}
	n.apply(plan(9080, 9081))
	kept, gone := n.inboundAddress(9080), n.inboundAddress(9081)
	if r := n.Report(); len(r.Listening) != 2 || r.Listening[0].Port != 9080 || r.Listening[0].Address != kept {
		t.Errorf("report %+v", r)
	}
	n.apply(plan(9080))
	if n.inboundAddress(9080) != kept {
		t.Error("a listener was bound again that did not change")
	}
	if c, err := net.Dial("tcp", gone); err == nil {
		c.Close()
		t.Error("a listener accepts that the plan does not have")
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	n.binds["inbound/9082"] = taken.Addr().String()
	for _, port := range []int{9081, 9082} { // whichever comes first, both or none
		if err := n.Apply(plan(9080, 9081, port)); port == 9082 && err == nil {
			t.Error("a port in use was bound")
		}
		if port == 9081 {
			n.apply(plan(9080))
		}
	}
	if r := n.Report(); len(r.Listening) != 1 || r.Listening[0].Address != kept {
		t.Errorf("after a plan that cannot be carried out: %+v", r)
	}
	bad := plan(9080)
	bad.Version = 99
	if err := n.Apply(bad); !errors.Is(err, ErrPlan) {
		t.Errorf("another version: %v", err)
	}
	bad = plan(9080)
	bad.Inbound[0].Rules = []mesh.Rule{{From: []string{"who?"}}}
	if err := n.Apply(bad); !errors.Is(err, ErrPlan) {
		t.Errorf("a rule nobody understands: %v", err)
	}
}

// TestTickets checks that a session of before a change is not resumed.
func TestTickets(t *testing.T) {
	s := newSingle(t, mesh.HTTP, func(*mesh.Inbound) {})
	caller := s.ca.issue(id.Service, "front", time.Hour)
	config := mutual(t, caller, s.node, "http/1.1") // one client's sessions
	ask := func() bool {
		t.Helper()
		c := tlsDial(t, s.inboundAddress(9080), config)
		defer c.Close()
		send(t, c, getRequest)
		if _, err := bufio.NewReader(c).ReadString('\n'); err != nil { // with it comes the ticket
			t.Fatal(err)
		}
		return c.ConnectionState().DidResume
	}
	if ask() {
		t.Error("the first connection resumed")
	}
	if !ask() {
		t.Error("the positive control: nothing changed, and nothing was resumed")
	}
	plan := s.plan()
	plan.Revision, plan.Inbound = 2, []mesh.Inbound{s.in}
	s.apply(plan)
	if !ask() {
		t.Error("the same policy in another revision: not resumed")
	}
	narrowed := *plan
	narrowed.Inbound = []mesh.Inbound{s.in}
	narrowed.Inbound[0].Rules = []mesh.Rule{{From: []string{"spiffe://shop.internal/service/other"}}}
	s.apply(&narrowed)
	if ask() {
		t.Error("resumed after the policy was narrowed")
	}
	s.apply(plan)
	ask()
	if !ask() {
		t.Error("the positive control: nothing was resumed")
	}
	s.source.identity.Store(s.ca.issue(id.Service, "back", time.Hour))
	s.IdentityChanged()
	if ask() {
		t.Error("resumed after the leaf was replaced")
	}
}
