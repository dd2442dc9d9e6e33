package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// curl passes through a gateway and through a caller's sidecar, over HTTP/1.1 and HTTP/2.
func TestCurl(t *testing.T) {
	curl := peer(t, "curl")
	mesh := lab(t)
	tests := []struct {
		name, address string
		args          []string
		proto         string // as the application sees it
	}{
		{"HTTP/1.1 through the gateway", mesh.inbound(t, "edge", 8080), []string{"--http1.1"}, "HTTP/1.1"},
		{"HTTP/1.1 through a sidecar", mesh.outbound(t, "caller", "recorder", 9080), []string{"--http1.1"}, "HTTP/1.1"},
		{"HTTP/2 through the gateway", mesh.inbound(t, "edge", 8082), []string{"--http2-prior-knowledge"}, "HTTP/2.0"},
		{"HTTP/2 through a sidecar", mesh.outbound(t, "caller", "modern", 9082), []string{"--http2-prior-knowledge"}, "HTTP/2.0"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			run := func(args ...string) string {
				t.Helper()
				got := execute(t, nil, curl, append(append([]string{"-sS", "--fail-with-body", "--max-time", "60"}, test.args...), args...)...)
				if got.status != 0 {
					t.Fatalf("curl %v: status %d\n%s%s", args, got.status, got.stdout, got.stderr)
				}
				return got.stdout
			}
			saw := parseSeen(t, run("http://"+test.address+"/path?x=1"))
			if saw.Proto != test.proto || saw.Method != "GET" || saw.Target != "/path?x=1" {
				t.Errorf("the application saw %+v", saw)
			}
			large := strings.Repeat("0123456789", 200_000)
			if got := execute(t, strings.NewReader(large), curl, append(test.args, "-sS", "--data-binary", "@-", "-H", "Transfer-Encoding: chunked", "http://"+test.address+"/post")...); parseSeen(t, got.stdout).Body != large {
				t.Errorf("a body of %d bytes did not arrive: %s", len(large), got.stderr)
			}
			if got := run("-o", "/dev/null", "-w", "%{size_download}", "http://"+test.address+"/bytes/3000000"); got != "3000000" {
				t.Errorf("%s bytes came of 3000000", got)
			}
			if got := run("-I", "http://"+test.address+"/head"); !strings.Contains(got, "200") {
				t.Errorf("HEAD: %q", got)
			}
			if got := run("-H", "Expect: 100-continue", "--data-binary", "expected", "http://"+test.address+"/expect"); parseSeen(t, got).Body != "expected" {
				t.Errorf("100-continue: %q", got)
			}
			// Two requests on one connection. (curl 7.88 breaks HTTP/2 with prior knowledge off by itself
			// there, whoever serves.)
			if test.proto != "HTTP/1.1" {
				return
			}
			if got := run("-o", "/dev/null", "-o", "/dev/null", "-w", "%{num_connects} ", "http://"+test.address+"/1", "http://"+test.address+"/2"); got != "1 0 " {
				t.Errorf("connections made for two requests: %q, want one and none", got)
			}
		})
	}
}

func parseSeen(t *testing.T, text string) seen {
	t.Helper()
	var saw seen
	if err := json.Unmarshal([]byte(text), &saw); err != nil {
		t.Fatalf("the application's answer is %.200q: %v", text, err)
	}
	return saw
}

// Trailers pass in both directions.
func TestTrailers(t *testing.T) {
	mesh := lab(t)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+mesh.outbound(t, "caller", "recorder", 9080)+"/informed", io.MultiReader(strings.NewReader("some"), strings.NewReader("thing")))
	if err != nil {
		t.Fatal(err)
	}
	request.Trailer = http.Header{"X-Sum": {"1234"}}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	saw := parseSeen(t, string(body))
	if saw.Body != "something" || saw.Trailers.Get("X-Sum") != "1234" {
		t.Errorf("the application saw body %q, trailers %v", saw.Body, saw.Trailers)
	}
	if got := response.Trailer.Get("X-Checksum"); got != "42" {
		t.Errorf("the trailer of the answer is %q", got)
	}
}

// grpc-go calls once and streams both ways through two sidecars, and gets status and trailers.
func TestGRPC(t *testing.T) {
	mesh := lab(t)
	for name, address := range map[string]string{"sidecar": mesh.outbound(t, "caller", "rpc", 9090), "gateway": mesh.inbound(t, "edge", 8090)} {
		t.Run(name, func(t *testing.T) {
			var trailer metadata.MD
			got, err := unary(t, address, "hello", grpc.Trailer(&trailer))
			if err != nil || !strings.HasPrefix(got, "hello ") || !strings.Contains(got, "URI=spiffe://lab.internal/") {
				t.Fatalf("answer %q, error %v", got, err)
			}
			if echo := trailer.Get("x-echo"); len(echo) != 1 || echo[0] != "hello" {
				t.Errorf("trailer %v", trailer)
			}
			_, err = unary(t, address, "fail")
			if s := status.Convert(err); s.Code() != codes.FailedPrecondition || s.Message() != "told to" {
				t.Errorf("error %v, want the application's own", err)
			}
			stream := openStream(t, address)
			for i := range 100 {
				echoStream(t, stream, fmt.Sprintf("message %d", i)) // each answer before the next question
			}
			if err := stream.CloseSend(); err != nil {
				t.Fatal(err)
			}
			if err := stream.RecvMsg(new(wrapperspb.StringValue)); !errors.Is(err, io.EOF) {
				t.Fatalf("after the end: %v", err)
			}
			if end := stream.Trailer().Get("x-end"); len(end) != 1 || end[0] != "reached" {
				t.Errorf("the stream's trailer is %v", stream.Trailer())
			}
		})
	}
}

func openStream(t *testing.T, address string) grpc.ClientStream {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	stream, err := dialGRPC(t, address).NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, methodStream)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func echoStream(t *testing.T, stream grpc.ClientStream, text string) {
	t.Helper()
	if err := stream.SendMsg(wrapperspb.String(text)); err != nil {
		t.Fatal(err)
	}
	got := new(wrapperspb.StringValue)
	if err := stream.RecvMsg(got); err != nil || got.GetValue() != text {
		t.Fatalf("%q is answered with %q (%v)", text, got.GetValue(), err)
	}
}

// A WebSocket passes, through a sidecar and through the gateway.
func TestWebSocket(t *testing.T) {
	mesh := lab(t)
	for name, address := range map[string]string{"sidecar": mesh.outbound(t, "caller", "recorder", 9080), "gateway": mesh.inbound(t, "edge", 8080)} {
		t.Run(name, func(t *testing.T) {
			socket := dialWebSocket(t, address)
			for i := range 20 {
				echoWebSocket(t, socket, strings.Repeat(fmt.Sprint(i), 1000*i+1))
			}
		})
	}
}

func dialWebSocket(t *testing.T, address string) *websocket.Conn {
	t.Helper()
	config, err := websocket.NewConfig("ws://"+address+"/ws", "http://"+address+"/")
	if err != nil {
		t.Fatal(err)
	}
	socket, err := config.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	if err := socket.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return socket
}

func echoWebSocket(t *testing.T, socket *websocket.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(socket, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(socket, got); err != nil || string(got) != text {
		t.Fatalf("a message of %d bytes is answered with %.100q (%v)", len(text), got, err)
	}
}

// A line protocol keeps its half-close: the caller ends its half, and the answer to that still comes.
func TestTCPHalfClose(t *testing.T) {
	mesh := lab(t)
	for name, address := range map[string]string{"sidecar": mesh.outbound(t, "caller", "lines", 7000), "gateway": mesh.inbound(t, "edge", 7070)} {
		t.Run(name, func(t *testing.T) {
			conn := talk(t, address)
			say(t, conn, "again", "AGAIN")
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if rest, err := io.ReadAll(conn); err != nil || string(rest) != "2 lines\n" {
				t.Errorf("after the half-close came %q (%v)", rest, err)
			}
		})
	}
}

// h2load's many streams on few connections all succeed.
func TestH2Load(t *testing.T) {
	h2load := peer(t, "h2load")
	mesh := lab(t)
	for name, address := range map[string]string{"sidecar": mesh.outbound(t, "caller", "modern", 9082), "gateway": mesh.inbound(t, "edge", 8082)} {
		got := execute(t, nil, h2load, "-n", "2000", "-c", "4", "-m", "16", "http://"+address+"/bytes/100")
		if got.status != 0 || !strings.Contains(got.stdout, "2000 succeeded, 0 failed, 0 errored") {
			t.Errorf("%s: status %d\n%s%s", name, got.status, got.stdout, got.stderr)
		}
	}
}

// The shop is the example of all of it: a gateway, HTTP, gRPC with streaming and two instances, TCP.
func TestShop(t *testing.T) {
	curl := peer(t, "curl")
	mesh := start(t, "../examples/shop/mesh.yaml")
	address := mesh.inbound(t, "storegate", 8080)
	var products []map[string]any
	if err := json.Unmarshal([]byte(get(t, "http://"+address+"/products")), &products); err != nil || len(products) != 3 {
		t.Errorf("products %v (%v)", products, err)
	}
	instances := map[any]bool{}
	for range 50 {
		var product map[string]any
		if err := json.Unmarshal([]byte(get(t, "http://"+address+"/products/teapot")), &product); err != nil {
			t.Fatal(err)
		}
		instances[product["instance"]] = true
	}
	if len(instances) != 2 {
		t.Errorf("50 requests reached %d instances of catalog, want both", len(instances))
	}
	got := execute(t, strings.NewReader("cup\nspoon\n"), curl, "-sS", "--fail-with-body", "--data-binary", "@-", "http://"+address+"/quote")
	if lines := strings.Count(got.stdout, "\n"); got.status != 0 || lines != 2 {
		t.Errorf("quote: status %d\n%s%s", got.status, got.stdout, got.stderr)
	}
	if status, _ := fetch(t, "http://"+address+"/nothing"); status != http.StatusNotFound {
		t.Errorf("a path without a route gets %d", status)
	}
}
