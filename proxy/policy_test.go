package proxy

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

// callerFields are what an application hears about its caller.
func callerFields(h http.Header) http.Header {
	got := http.Header{}
	for name, values := range h {
		folded := strings.NewReplacer("_", "-", ".", "-").Replace(strings.ToLower(name))
		if strings.HasPrefix(folded, "x-client") || strings.HasPrefix(folded, "x-forwarded") {
			got[name] = values
		}
	}
	return got
}

func sha256Hex(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// forgeries are the lines by which a caller might speak about itself, as HTTP/1.1 sends them.
const forgeries = "X-Client-Cert: CN=evil\r\nx-client-cert: CN=evil\r\nX_Client_Cert: CN=evil\r\nX-Client_Cert: CN=evil\r\nX.Client.Cert: CN=evil\r\n" +
	"X-Forwarded-Client-Cert: By=evil\r\nx_forwarded_client_cert: By=evil\r\nX-FORWARDED-CLIENT_CERT: By=evil\r\n" +
	"X-Forwarded-For: 6.6.6.6\r\nX_Forwarded_For: 7.7.7.7\r\n" +
	"Connection: X-Client-Cert, X-Forwarded-Client-Cert, X-Forwarded-For, keep-alive\r\n"

// TestForgedFields sends them in every way there is, from a caller with an identity and from one without.
func TestForgedFields(t *testing.T) {
	seen := make(chan http.Header, 1)
	app := serveApp(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		h := callerFields(r.Header)
		for name, values := range callerFields(r.Trailer) {
			h["trailer "+name] = values
		}
		seen <- h
	}))
	ca := newAuthority(t)
	n := newNode(t, ca, id.Service, "back", map[int]string{9080: app})
	in := inboundPort(9080, mesh.HTTP, mesh.FromAny, mesh.FromAnonymous)
	in.TLS = mesh.Permissive
	plan := n.plan()
	plan.Inbound = []mesh.Inbound{in}
	n.apply(plan)
	caller := ca.issue(id.Service, "front", time.Hour)
	known := http.Header{
		"X-Client-Cert": {"CN=front,OU=service,O=shop.internal"},
		"X-Forwarded-Client-Cert": {fmt.Sprintf("By=spiffe://shop.internal/service/back;Hash=%s;URI=spiffe://shop.internal/service/front;DNS=front;DNS=front.shop.internal;"+
			`Subject="CN=front,OU=service,O=shop.internal"`, sha256Hex(caller.Certificate.Leaf.Raw))},
		"X-Forwarded-For": {"127.0.0.1"}, // the caller itself has dropped what was in it, by Connection
	}
	anonymous := http.Header{"X-Forwarded-For": {"127.0.0.1"}}
	request := "POST / HTTP/1.1\r\nHost: a\r\n" + forgeries + "Trailer: X-Client-Cert, X_forwarded_client_cert\r\nTransfer-Encoding: chunked\r\n\r\n" +
		"0\r\nX-Client-Cert: CN=evil\r\nX_forwarded_client_cert: By=evil\r\n\r\n"

	t.Run("HTTP/1.1 over TLS", func(t *testing.T) {
		if line, err := handshakeAndRead(t, n.inboundAddress(9080), mutual(t, caller, n, "http/1.1"), request); err != nil || line != "HTTP/1.1 200 OK\r\n" {
			t.Fatalf("%q, %v", line, err)
		}
		if diff := cmp.Diff(known, <-seen); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	})
	t.Run("HTTP/1.1 in plaintext", func(t *testing.T) {
		c, err := net.Dial("tcp", n.inboundAddress(9080))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		send(t, c, request)
		if diff := cmp.Diff(anonymous, <-seen); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	})
	h2 := func() *http.Request {
		r := newRequest(t, "POST", "https://"+n.inboundAddress(9080), strings.NewReader("x"))
		r.Header = http.Header{
			"X-Client-Cert": {"CN=evil"}, "x_client_cert": {"CN=evil"}, "X.Client-Cert": {"CN=evil"}, "X_forwarded_client_cert": {"By=evil"},
			"X-Forwarded-Client-Cert": {"By=evil"}, "X-Forwarded-For": {"6.6.6.6"}, "x_forwarded_for": {"7.7.7.7"},
		}
		r.Trailer = http.Header{"X-Client-Cert": {"CN=evil"}, "X_forwarded_client_cert": {"By=evil"}}
		return r
	}
	t.Run("HTTP/2 over TLS", func(t *testing.T) {
		do(t, tlsClient(t, mutual(t, caller, n, "h2"), true), h2())
		want := known.Clone()
		want["X-Forwarded-For"] = []string{"6.6.6.6, 127.0.0.1"} // an authenticated peer's word
		if diff := cmp.Diff(want, <-seen); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	})
	t.Run("HTTP/2 in plaintext", func(t *testing.T) {
		r := h2()
		r.URL.Scheme = "http"
		do(t, clientFor(t, true), r)
		if diff := cmp.Diff(anonymous, <-seen); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	})
}

// TestRefusal checks what a caller gets that nobody allowed, though its certificate is good.
func TestRefusal(t *testing.T) {
	stranger := func(s *single) *http.Client {
		return tlsClient(t, mutual(t, s.ca.issue(id.Service, "stranger", time.Hour), s.node, "h2"), true)
	}
	t.Run("http", func(t *testing.T) {
		s := newSingle(t, mesh.HTTP, func(*mesh.Inbound) {})
		for _, kind := range []id.Kind{id.Service, id.Probe, id.Server} {
			client := tlsClient(t, mutual(t, s.ca.issue(kind, "verify", time.Hour), s.node, "h2"), true)
			got := do(t, client, newRequest(t, "GET", "https://"+s.inboundAddress(9080)+"/secret?q=1", nil))
			var body struct{ Error string }
			if err := json.Unmarshal([]byte(got.body), &body); err != nil || got.status != 403 || body.Error == "" || got.header.Get("Content-Type") != "application/json" {
				t.Errorf("%s: %+v, %v", kind, got, err)
			}
		}
		if n := s.stat("listener.0.0.0.0_9080.rbac.denied"); n != 3 {
			t.Errorf("%d denied, want 3", n)
		}
		if n := s.stat("http.0.0.0.0_9080.downstream_rq_4xx"); n != 3 {
			t.Errorf("%d of class 4xx, want 3", n)
		}
		if r := s.Report(); r.Refused != 3 || r.Requests != 3 {
			t.Errorf("report %+v", r)
		}
		if log := s.log.String(); !strings.Contains(log, "caller=spiffe://shop.internal/service/verify") || !strings.Contains(log, `reason="no rule admits the caller"`) {
			t.Errorf("the log does not say who was refused and why:\n%s", log)
		}
		if s.reached.Load() != 0 {
			t.Error("the application was reached")
		}
		if e := s.access.entries(t)[0]; e.Flag != flagDenied || e.Status != 403 || e.Path != "/secret" || e.Caller != "spiffe://shop.internal/service/verify" {
			t.Errorf("access log: %+v", e)
		}
	})
	t.Run("methods and paths", func(t *testing.T) {
		s := newSingle(t, mesh.HTTP, func(in *mesh.Inbound) {
			in.Rules = []mesh.Rule{{From: []string{mesh.FromAny}, Methods: []string{"GET"}, Paths: []string{"/color", "/p/*"}}}
		})
		client := stranger(s)
		for target, want := range map[string]int{
			"/color": 200, "/color?x=../y": 200, "/p/a": 200, "/other": 403, "/p": 403,
			"/p/../other": 403, "/p/%2e%2e/other": 403, "/p//a": 403, "/p/a%2fb": 403, "/p/a;b": 403, "/p/a%5cb": 403,
		} {
			r := newRequest(t, "GET", "https://"+s.inboundAddress(9080), nil)
			path, query, _ := strings.Cut(target, "?")
			r.URL.Opaque, r.URL.RawQuery = path, query // as it stands
			if got := do(t, client, r); got.status != want {
				t.Errorf("%s: status %d, want %d", target, got.status, want)
			}
		}
		if got := do(t, client, newRequest(t, "POST", "https://"+s.inboundAddress(9080)+"/color", strings.NewReader("x"))); got.status != 403 {
			t.Errorf("POST: status %d", got.status)
		}
	})
	t.Run("grpc", func(t *testing.T) {
		s := newSingle(t, mesh.GRPC, func(*mesh.Inbound) {})
		conn, err := grpc.NewClient(s.inboundAddress(9080), grpc.WithTransportCredentials(credentials.NewTLS(mutual(t, s.ca.issue(id.Service, "stranger", time.Hour), s.node))))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		err = conn.Invoke(context.Background(), "/echo.Echo/Unary", wrapperspb.String("x"), new(wrapperspb.StringValue))
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("error %v, want PERMISSION_DENIED", err)
		}
		if s.reached.Load() != 0 {
			t.Error("the application was reached")
		}
	})
	t.Run("tcp", func(t *testing.T) {
		s := newSingle(t, mesh.TCP, func(*mesh.Inbound) {})
		if line, err := handshakeAndRead(t, s.inboundAddress(9080), mutual(t, s.ca.issue(id.Service, "stranger", time.Hour), s.node), "x\n"); line != "" || err == nil {
			t.Errorf("%q, %v", line, err)
		}
		eventually(t, "it is logged", func() bool { return strings.Contains(s.access.String(), `"flag":"denied"`) })
		if n := s.stat("listener.0.0.0.0_9080.rbac.denied"); n != 1 || s.reached.Load() != 0 {
			t.Errorf("%d denied, the application was reached %d times", n, s.reached.Load())
		}
		if log := s.log.String(); !strings.Contains(log, "caller=spiffe://shop.internal/service/stranger") {
			t.Errorf("the log does not say who was refused:\n%s", log)
		}
	})
}

// echoService is a gRPC service without generated code.
var echoService = grpc.ServiceDesc{
	ServiceName: "echo.Echo",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		in := new(wrapperspb.StringValue)
		if err := decode(in); err != nil {
			return nil, err
		}
		if in.Value == "fail" {
			return nil, status.Error(codes.FailedPrecondition, "as asked") // trailers-only
		}
		md, _ := metadata.FromIncomingContext(ctx)
		if err := grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "yes")); err != nil {
			return nil, err
		}
		return wrapperspb.String(in.Value + strings.Join(md.Get("x-client-cert"), "")), nil
	}}},
	Streams: []grpc.StreamDesc{{StreamName: "Chat", ServerStreams: true, ClientStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
		if err := stream.SendHeader(metadata.Pairs("x-early", "yes")); err != nil {
			return err
		}
		for {
			in := new(wrapperspb.StringValue)
			if err := stream.RecvMsg(in); errors.Is(err, io.EOF) {
				return status.Error(codes.ResourceExhausted, "over")
			} else if err != nil {
				return err
			}
			if err := stream.SendMsg(wrapperspb.String("re: " + in.Value)); err != nil {
				return err
			}
		}
	}}},
}

func serveGRPC(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	server.RegisterService(&echoService, nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return l.Addr().String()
}

func TestGRPC(t *testing.T) {
	p := newPair(t, mesh.GRPC, serveGRPC(t))
	conn, err := grpc.NewClient(p.caller.outboundAddress(9100), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var trailer metadata.MD
	out := new(wrapperspb.StringValue)
	if err := conn.Invoke(ctx, "/echo.Echo/Unary", wrapperspb.String("hi "), out, grpc.Trailer(&trailer)); err != nil || out.Value != "hi CN=front,OU=service,O=shop.internal" {
		t.Errorf("unary: %q, %v", out.Value, err)
	}
	if got := trailer.Get("x-trailer"); len(got) != 1 {
		t.Errorf("trailer %v", trailer)
	}
	if err := conn.Invoke(ctx, "/echo.Echo/Unary", wrapperspb.String("fail"), out); status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != "as asked" {
		t.Errorf("trailers-only: %v", err)
	}
	big := strings.Repeat("b", 2<<20)
	if err := conn.Invoke(ctx, "/echo.Echo/Unary", wrapperspb.String(big), out); err != nil || !strings.HasPrefix(out.Value, big) {
		t.Errorf("2 MiB: %d bytes, %v", len(out.Value), err)
	}
	stream, err := conn.NewStream(ctx, &echoService.Streams[0], "/echo.Echo/Chat")
	if err != nil {
		t.Fatal(err)
	}
	// Headers come before any message was sent.
	if header, err := stream.Header(); err != nil || len(header.Get("x-early")) != 1 {
		t.Fatalf("header %v, %v", header, err)
	}
	for i := range 20 {
		if err := stream.SendMsg(wrapperspb.String(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(out); err != nil || out.Value != fmt.Sprint("re: ", i) {
			t.Fatalf("%q, %v", out.Value, err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(out); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("the end: %v", err)
	}
}

func TestGRPCWithoutAnUpstream(t *testing.T) {
	p := newPair(t, mesh.GRPC, "127.0.0.1:1")
	conn, err := grpc.NewClient(p.caller.outboundAddress(9100), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = conn.Invoke(context.Background(), "/echo.Echo/Unary", wrapperspb.String("x"), new(wrapperspb.StringValue))
	if status.Code(err) != codes.Unavailable || !strings.Contains(status.Convert(err).Message(), "connecting to the service failed") {
		t.Errorf("error %v, want UNAVAILABLE", err)
	}
}

// TestSmuggling sends what net/http alone would let through.
func TestSmuggling(t *testing.T) {
	s := newSingle(t, mesh.HTTP, func(*mesh.Inbound) {})
	config := mutual(t, s.ca.issue(id.Service, "front", time.Hour), s.node, "http/1.1")
	for name, request := range map[string]string{
		"two lengths":      "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"a bare line feed": "GET / HTTP/1.1\nHost: a\n\n",
		"obsolete folding": "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
		"space and colon":  "GET / HTTP/1.1\r\nHost: a\r\nX : a\r\n\r\n",
		"a TLS record":     "\x16\x03\x01\x00\x05hello",
		"HTTP/2 preface":   "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	} {
		if line, err := handshakeAndRead(t, s.inboundAddress(9080), config, request); err != nil || line != "HTTP/1.1 400 Bad Request\r\n" {
			t.Errorf("%s: %q, %v", name, line, err)
		}
	}
	big := "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n"
	c := tlsDial(t, s.inboundAddress(9080), config)
	go func() { _, _ = io.WriteString(c, big) }()
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != "HTTP/1.1 431 Request Header Fields Too Large\r\n" {
		t.Errorf("a field of 1 MiB: %q, %v", line, err)
	}
	h2 := tlsClient(t, mutual(t, s.ca.issue(id.Service, "front", time.Hour), s.node, "h2"), true)
	for name, field := range map[string]string{"content_length": "5", "transfer.encoding": "chunked"} {
		r := newRequest(t, "GET", "https://"+s.inboundAddress(9080), nil)
		r.Header[name] = []string{field}
		if got := do(t, h2, r); got.status != 400 {
			t.Errorf("HTTP/2 with %s: status %d", name, got.status)
		}
	}
	for _, query := range []string{"x HTTP/1.0", "x#y", "x\u00e4"} { // HTTP/1.1 would have another request line
		r := newRequest(t, "GET", "https://"+s.inboundAddress(9080), nil)
		r.URL.RawQuery = query
		if got := do(t, h2, r); got.status != 400 {
			t.Errorf("HTTP/2 with the query %q: status %d", query, got.status)
		}
	}
	if s.reached.Load() != 0 {
		t.Errorf("the application was reached %d times", s.reached.Load())
	}
	if n := s.stat("http.0.0.0.0_9080.downstream_rq_4xx"); n != 12 {
		t.Errorf("%d of class 4xx, want 12", n)
	}
}
