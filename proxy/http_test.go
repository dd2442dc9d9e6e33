package proxy

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/websocket"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

// modes are the ways that HTTP goes: the client's and the application's protocol.
func modes(t *testing.T, run func(t *testing.T, clientH2 bool, protocol mesh.Protocol)) {
	for _, clientH2 := range []bool{false, true} {
		for _, protocol := range []mesh.Protocol{mesh.HTTP, mesh.HTTP2} {
			t.Run(fmt.Sprintf("client h2 %v, app %s", clientH2, protocol), func(t *testing.T) { run(t, clientH2, protocol) })
		}
	}
}

func TestRequestsPass(t *testing.T) {
	modes(t, func(t *testing.T, clientH2 bool, protocol mesh.Protocol) {
		app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			w.Header().Set("X-Saw", fmt.Sprint(r.Method, " ", r.RequestURI, " ", r.Host, " ", r.ContentLength, " ", r.UserAgent(), " ", r.Trailer.Get("X-Sum")))
			w.Header().Set("Trailer", "X-Count")
			w.WriteHeader(http.StatusAccepted)
			w.Write(body)
			w.Header().Set("X-Count", fmt.Sprint(len(body)))
			w.Header().Set(http.TrailerPrefix+"X-Late", "yes")
		})
		p := newPair(t, protocol, serveApp(t, protocol == mesh.HTTP2, app))
		client := clientFor(t, clientH2)
		for _, size := range []int{0, 1, 1 << 10, 3 << 20} {
			body := strings.Repeat("x", size)
			request := newRequest(t, "POST", p.url+"/a%2Fb/c;d?q=1;2&%zz", io.NopCloser(strings.NewReader(body))) // of unknown length
			request.Host = "some.host"
			request.Trailer = http.Header{"X-Sum": {"17"}, "X-Client-Cert": {"CN=evil"}}
			request.Header.Set("User-Agent", "")
			got := do(t, client, request)
			if got.status != http.StatusAccepted || got.body != body {
				t.Fatalf("size %d: status %d, body of %d bytes", size, got.status, len(got.body))
			}
			if want := "POST /a%2Fb/c;d?q=1;2&%zz some.host -1  17"; got.header.Get("X-Saw") != want {
				t.Errorf("size %d: the application saw %q, want %q", size, got.header.Get("X-Saw"), want)
			}
			want := http.Header{"X-Count": {fmt.Sprint(size)}, "X-Late": {"yes"}}
			if diff := cmp.Diff(want, got.trailer); diff != "" {
				t.Errorf("size %d: trailers (-want +got)\n%s", size, diff)
			}
		}
		if n := p.callee.stat("listener.0.0.0.0_9080.ssl.handshake"); n != 1 {
			t.Errorf("%d handshakes for one client, want 1", n)
		}
		if n := p.caller.stat("cluster.back_9080.upstream_rq_total"); n != 4 {
			t.Errorf("%d requests to the upstream, want 4", n)
		}
	})
}

func TestKnownLength(t *testing.T) {
	modes(t, func(t *testing.T, clientH2 bool, protocol mesh.Protocol) {
		p := newPair(t, protocol, serveApp(t, protocol == mesh.HTTP2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			w.Header().Set("Content-Length", "4")
			w.Header()["Content-Type"] = nil
			fmt.Fprintf(w, "%4d", r.ContentLength*1000+int64(len(body)))
		})))
		got := do(t, clientFor(t, clientH2), newRequest(t, "PUT", p.url, bytes.NewReader([]byte("abc"))))
		if got.body != "3003" || got.header.Get("Content-Length") != "4" {
			t.Errorf("%+v", got)
		}
		if kind, ok := got.header["Content-Type"]; ok {
			t.Errorf("a content type %q was invented", kind)
		}
	})
}

func TestAnswersWithoutBody(t *testing.T) {
	modes(t, func(t *testing.T, clientH2 bool, protocol mesh.Protocol) {
		p := newPair(t, protocol, serveApp(t, protocol == mesh.HTTP2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/head":
				w.Header().Set("Content-Length", "1234")
			case "/204":
				w.WriteHeader(http.StatusNoContent)
			case "/304":
				w.Header().Set("Etag", `"x"`)
				w.WriteHeader(http.StatusNotModified)
			}
		})))
		client := clientFor(t, clientH2)
		if got := do(t, client, newRequest(t, "HEAD", p.url+"/head", nil)); got.status != 200 || got.header.Get("Content-Length") != "1234" || got.body != "" {
			t.Errorf("HEAD: %+v", got)
		}
		if got := do(t, client, newRequest(t, "GET", p.url+"/204", nil)); got.status != 204 || got.body != "" {
			t.Errorf("204: %+v", got)
		}
		if got := do(t, client, newRequest(t, "GET", p.url+"/304", nil)); got.status != 304 || got.header.Get("Etag") != `"x"` {
			t.Errorf("304: %+v", got)
		}
		if got := do(t, client, newRequest(t, "OPTIONS", p.url+"/o", nil)); got.status != 200 {
			t.Errorf("OPTIONS: %+v", got)
		}
	})
}

func TestKeepAliveAndPipelining(t *testing.T) {
	p := newPair(t, mesh.HTTP, serveApp(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s", r.URL.Path, body)
	})))
	c, err := net.Dial("tcp", p.caller.outboundAddress(9100))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	send(t, c, "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n"+
		"POST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"+
		"GET /3 HTTP/1.1\r\nHost: a\r\n\r\n")
	reader := bufio.NewReader(c)
	for _, want := range []string{"/1 ", "/2 abc", "/3 "} {
		if got := receive(t, reader); got.body != want {
			t.Errorf("got %q, want %q", got.body, want)
		}
	}
	if n := p.caller.stat("listener.127.0.0.1_9100.downstream_cx_total"); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func send(t testing.TB, w io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
}

// receive reads one HTTP/1.1 answer.
func receive(t testing.TB, r *bufio.Reader) answer {
	t.Helper()
	response, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{response.StatusCode, string(body), response.Header, response.Trailer, response.Close}
}

// echo copies; an end that is not regular is the other side's business.
func echo(w io.Writer, r io.Reader) { _, _ = io.Copy(w, r) }

func flush(t testing.TB, w http.ResponseWriter) {
	t.Helper()
	if err := http.NewResponseController(w).Flush(); err != nil {
		t.Error(err)
	}
}

func TestExpectContinue(t *testing.T) {
	p := newPair(t, mesh.HTTP, serveApp(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		echo(w, r.Body)
	})))
	c, err := net.Dial("tcp", p.caller.outboundAddress(9100))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	reader := bufio.NewReader(c)
	send(t, c, "POST /yes HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
	if line, err := reader.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if _, err := reader.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	send(t, c, "abc")
	if got := receive(t, reader); got.status != 200 || got.body != "abc" {
		t.Errorf("%+v", got)
	}
}

// TestExpectThroughTheMesh checks that the promise to take a body is the application's, two sidecars
// away.
func TestExpectThroughTheMesh(t *testing.T) {
	p := newPair(t, mesh.HTTP, serveApp(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusExpectationFailed)
	})))
	c, err := net.Dial("tcp", p.caller.outboundAddress(9100))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	send(t, c, "POST /no HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
	if got := receive(t, bufio.NewReader(c)); got.status != http.StatusExpectationFailed {
		t.Errorf("%+v", got)
	}
}

// TestExpectReachesTheApplication checks that an application may refuse a body before it is sent. (By
// HTTP/2 it cannot: net/http's server keeps the field to itself, and promises as soon as we read.)
func TestExpectReachesTheApplication(t *testing.T) {
	n := newNode(t, newAuthority(t), id.Service, "back", map[int]string{9080: serveApp(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
	}))})
	plan := n.plan()
	in := inboundPort(9080, mesh.HTTP, mesh.FromAnonymous)
	in.TLS = mesh.Off
	plan.Inbound = []mesh.Inbound{in}
	n.apply(plan)
	c, err := net.Dial("tcp", n.inboundAddress(9080))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	send(t, c, "POST /no HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
	if got := receive(t, bufio.NewReader(c)); got.status != 401 {
		t.Errorf("%+v", got)
	}
}

func TestInformationalAnswers(t *testing.T) {
	modes(t, func(t *testing.T, clientH2 bool, protocol mesh.Protocol) {
		p := newPair(t, protocol, serveApp(t, protocol == mesh.HTTP2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</style.css>")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("Link")
			w.Write([]byte("ok"))
		})))
		request := newRequest(t, "GET", p.url, nil)
		hints := ""
		ctx := httptrace.WithClientTrace(request.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			hints += fmt.Sprint(code, h.Get("Link"))
			return nil
		}})
		got := do(t, clientFor(t, clientH2), request.WithContext(ctx))
		if got.body != "ok" || hints != "103</style.css>" || got.header.Get("Link") != "" {
			t.Errorf("%+v, hints %q", got, hints)
		}
	})
}

// TestStreaming checks that pieces pass both ways as they come.
func TestStreaming(t *testing.T) {
	modes(t, func(t *testing.T, clientH2 bool, protocol mesh.Protocol) {
		p := newPair(t, protocol, serveApp(t, protocol == mesh.HTTP2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor == 1 {
				if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
					t.Error(err)
				}
			}
			w.WriteHeader(200)
			flush(t, w)
			lines := bufio.NewReader(r.Body)
			for {
				line, err := lines.ReadString('\n')
				if err != nil {
					return
				}
				send(t, w, strings.ToUpper(line))
				flush(t, w)
			}
		})))
		reader, writer := io.Pipe()
		response, err := clientFor(t, clientH2).Do(newRequest(t, "POST", p.url, reader))
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		lines := bufio.NewReader(response.Body)
		for i := range 5 {
			fmt.Fprintf(writer, "line %d\n", i)
			if got, err := lines.ReadString('\n'); err != nil || got != fmt.Sprintf("LINE %d\n", i) {
				t.Fatalf("%q, %v", got, err)
			}
		}
		writer.Close()
		if rest, err := io.ReadAll(lines); err != nil || len(rest) > 0 {
			t.Errorf("%q, %v", rest, err)
		}
	})
}

func TestClientCancelReachesTheApplication(t *testing.T) {
	modes(t, func(t *testing.T, clientH2 bool, protocol mesh.Protocol) {
		arrived, cancelled := make(chan struct{}), make(chan struct{})
		p := newPair(t, protocol, serveApp(t, protocol == mesh.HTTP2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(arrived)
			<-r.Context().Done()
			close(cancelled)
		})))
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go func() {
			<-arrived
			cancel()
		}()
		if response, err := clientFor(t, clientH2).Do(newRequest(t, "GET", p.url, nil).WithContext(ctx)); err == nil {
			response.Body.Close()
			t.Error("the request succeeded")
		}
		select {
		case <-cancelled:
		case <-time.After(time.Minute):
			t.Error("the application was not told")
		}
		eventually(t, "the access log says so", func() bool { return strings.Contains(p.caller.access.String(), `"flag":"client_gone"`) })
	})
}

func TestUpstreamBreaksOff(t *testing.T) {
	modes(t, func(t *testing.T, clientH2 bool, protocol mesh.Protocol) {
		p := newPair(t, protocol, serveApp(t, protocol == mesh.HTTP2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/late" {
				w.Write([]byte("begin"))
				flush(t, w)
			}
			panic(http.ErrAbortHandler)
		})))
		client := clientFor(t, clientH2)
		if got := do(t, client, newRequest(t, "POST", p.url+"/early", strings.NewReader("x"))); got.status != 502 {
			t.Errorf("status %d, want 502", got.status)
		}
		response, err := client.Do(newRequest(t, "GET", p.url+"/late", nil))
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if body, err := io.ReadAll(response.Body); err == nil {
			t.Errorf("a broken answer looks whole: %q", body)
		}
	})
}

func TestWebSocket(t *testing.T) {
	server := websocket.Server{Handler: func(c *websocket.Conn) {
		if got := c.Request().Header.Get("X-Client-Cert"); got != "CN=front,OU=service,O=shop.internal" {
			t.Errorf("X-Client-Cert %q", got)
		}
		var message string
		for websocket.Message.Receive(c, &message) == nil {
			if err := websocket.Message.Send(c, message); err != nil {
				t.Error(err)
			}
		}
	}}
	p := newPair(t, mesh.HTTP, serveApp(t, false, server))
	c, err := websocket.Dial(strings.Replace(p.url, "http://", "ws://", 1)+"/ws", "", "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		message := strings.Repeat("m", 1+i*100000)
		if err := websocket.Message.Send(c, message); err != nil {
			t.Fatal(err)
		}
		var got string
		if err := websocket.Message.Receive(c, &got); err != nil || got != message {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	c.Close()
	eventually(t, "the access log has the connection", func() bool {
		for _, e := range p.callee.access.entries(t) {
			if e.Protocol == "websocket" && e.Status == 101 && e.BytesIn > 100000 && e.Caller == p.caller.id.String() {
				return true
			}
		}
		return false
	})
}

func TestRefusedUpgradeIsAnAnswer(t *testing.T) {
	p := newPair(t, mesh.HTTP, serveApp(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusTeapot)
	})))
	c, err := net.Dial("tcp", p.caller.outboundAddress(9100))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	send(t, c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
	reader := bufio.NewReader(c)
	if got := receive(t, reader); got.status != http.StatusTeapot || !got.close {
		t.Errorf("%+v", got)
	}
	if _, err := reader.ReadByte(); err == nil {
		t.Error("what followed the request for an upgrade was answered")
	}
}

// TestUpgradeToWhatCannot asks an application that speaks HTTP/2 for a WebSocket: it gets the request
// without the wish.
func TestUpgradeToWhatCannot(t *testing.T) {
	p := newPair(t, mesh.HTTP2, serveApp(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusTeapot)
	})))
	r := newRequest(t, "GET", p.url, nil)
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", "websocket")
	if got := do(t, clientFor(t, false), r); got.status != http.StatusTeapot || !got.close {
		t.Errorf("%+v", got)
	}
}

// TestUpstreamWithoutTLS calls a service that declares its port off.
func TestUpstreamWithoutTLS(t *testing.T) {
	for _, protocol := range []mesh.Protocol{mesh.HTTP, mesh.HTTP2} {
		app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Upgrade") != "" {
				websocket.Handler(func(c *websocket.Conn) { echo(c, c) }).ServeHTTP(w, r)
				return
			}
			fmt.Fprint(w, r.Proto, r.Header["X-Client-Cert"])
		})
		p := newPair(t, protocol, serveApp(t, protocol == mesh.HTTP2, app))
		plan := p.allow(protocol, 2, mesh.FromAnonymous)
		plan.Inbound[0].TLS = mesh.Off
		p.callee.apply(plan)
		plan = p.caller.plan()
		u := upstreamOf([]*node{p.callee}, 9080, protocol)
		u.TLS = false
		plan.Upstreams, plan.Outbound = []mesh.Upstream{u}, []mesh.Outbound{outboundPort(9100, u)}
		p.caller.apply(plan)
		got := do(t, clientFor(t, false), newRequest(t, "GET", p.url, nil))
		if want := map[mesh.Protocol]string{mesh.HTTP: "HTTP/1.1[]", mesh.HTTP2: "HTTP/2.0[]"}[protocol]; got.body != want {
			t.Errorf("%s: %+v, want %q", protocol, got, want)
		}
		if n := p.callee.stat("listener.0.0.0.0_9080.plaintext_cx_total"); n != 1 {
			t.Errorf("%s: %d plaintext connections", protocol, n)
		}
		if protocol != mesh.HTTP {
			continue
		}
		c, err := websocket.Dial(strings.Replace(p.url, "http://", "ws://", 1), "", "http://localhost")
		if err != nil {
			t.Fatal(err)
		}
		if err := websocket.Message.Send(c, "x"); err != nil {
			t.Fatal(err)
		}
		var message string
		if err := websocket.Message.Receive(c, &message); err != nil || message != "x" {
			t.Errorf("%q, %v", message, err)
		}
		c.Close()
	}
}

// BenchmarkRequest measures a request by both sidecars and mutual TLS:
//
//	go test ./proxy -run '^$' -bench Request -benchmem
func BenchmarkRequest(b *testing.B) {
	p := newPair(b, mesh.HTTP, serveApp(b, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write(make([]byte, 128))
	})), func(c *Config) { c.AccessLog = nil })
	client := clientFor(b, false)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			do(b, client, newRequest(b, "GET", p.url, nil))
		}
	})
}
