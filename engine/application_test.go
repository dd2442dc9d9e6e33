package engine_test

import (
	"context"
	"crypto/sha1" // RFC 6455 wants it
	"encoding/base64"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// serveApplication is what stands behind the proxy: HTTP that tells what it saw, gRPC and bytes that echo.
func serveApplication(t *testing.T, address netip.Addr) {
	t.Helper()
	listen := func(port int) net.Listener {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", netip.AddrPortFrom(address, uint16(port)).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	web := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(application)}
	go func() { _ = web.Serve(listen(18080)) }()
	t.Cleanup(func() { web.Close() })
	rpc := grpc.NewServer()
	rpc.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Echo", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := new(wrapperspb.StringValue)
			if err := decode(in); err != nil {
				return nil, err
			}
			md, _ := metadata.FromIncomingContext(ctx)
			return wrapperspb.String(in.GetValue() + " by " + strings.Join(md.Get("x-client-cert"), "|")), nil
		}}},
	}, nil)
	go func() { _ = rpc.Serve(listen(19090)) }()
	t.Cleanup(rpc.Stop)
	echo := listen(17000)
	go func() {
		for {
			conn, err := echo.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
}

// application answers with the request's headers, and echoes on a WebSocket. It is one that takes HTTP/2 in
// plaintext whenever it may, and that changes to it unasked with X-Switch.
func application(w http.ResponseWriter, r *http.Request) {
	if strings.Contains(strings.ToLower(strings.Join(r.Header["Upgrade"], ",")), "h2c") || r.Header.Get("X-Switch") == "h2c" {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
		return
	}
	if r.URL.Path == "/ws" && strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) // RFC 6455 section 4.2.2
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: "+base64.StdEncoding.EncodeToString(sum[:])+"\r\n\r\n")
		_, _ = io.Copy(conn, buffered)
		return
	}
	body, _ := io.ReadAll(r.Body)
	answer := map[string][]string(r.Header.Clone())
	answer["host"], answer["body"], answer["path"] = []string{r.Host}, []string{strconv.Itoa(len(body))}, []string{r.URL.Path}
	for name, values := range r.Trailer {
		answer["trailer "+name] = values
	}
	_ = json.NewEncoder(w).Encode(answer)
}
