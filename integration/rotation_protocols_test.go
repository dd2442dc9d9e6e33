package integration

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"countersign.dev/api"
)

// Certificates rotate under HTTP/1.1, HTTP/2, gRPC, TCP and WebSockets at once, short and long: nothing
// is lost, and what was open before the first rotation is open after the last.
func TestRotationUnderAllProtocols(t *testing.T) {
	t.Parallel() // it waits for a mesh of its own
	spec, err := labSpec()
	if err != nil {
		t.Fatal(err)
	}
	rotations, certificates := 2, "certificates: {ttl: 60s, renewAfter: 3s}"
	if soak {
		rotations, certificates = 10, "certificates: {ttl: 10m, renewAfter: 15s}"
	}
	mesh := start(t, write(t, strings.Replace(spec, "\nservices:", "\n"+certificates+"\nservices:", 1)))
	load := newLoad(t)
	loadHTTP(t, load, mesh)
	loadGRPC(t, load, mesh.outbound(t, "caller", "rpc", 9090))
	loadTCP(t, load, mesh.outbound(t, "caller", "lines", 7000))
	loadWebSocket(t, load, mesh.outbound(t, "caller", "recorder", 9080))

	serials := map[string]map[string]bool{}
	began := time.Now()
	for enough := false; !enough; {
		if time.Since(began) > 10*patience {
			t.Fatalf("%d rotations of everybody did not happen: %v", rotations, serials)
		}
		rows, err := api.NewAdmin(mesh.Server.Socket).Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		enough = len(rows) > 0
		for _, row := range rows {
			if serials[row.Instance] == nil {
				serials[row.Instance] = map[string]bool{}
			}
			serials[row.Instance][row.Serial] = true
			enough = enough && len(serials[row.Instance]) > rotations
		}
		time.Sleep(100 * time.Millisecond) // between two looks
	}
	load.end(t)
	t.Logf("%d rotations of each instance in %s", rotations, time.Since(began).Round(time.Second))
}

// load is work that goes on until it is ended, and what became of it.
type load struct {
	ended   atomic.Bool
	running sync.WaitGroup
	mu      sync.Mutex
	done    map[string]int
	failed  []string
}

func newLoad(t *testing.T) *load {
	l := &load{done: map[string]int{}}
	t.Cleanup(func() { // when the test has failed before the end
		l.ended.Store(true)
		l.running.Wait()
	})
	return l
}

// do repeats something until the end. One that has failed is not repeated.
func (l *load) do(name string, once func() error) {
	l.running.Go(func() {
		for pace := time.NewTicker(5 * time.Millisecond); !l.ended.Load(); <-pace.C {
			err := once()
			l.mu.Lock()
			if l.done[name]++; err != nil {
				l.failed = append(l.failed, fmt.Sprintf("%s, the %d. time: %v", name, l.done[name], err))
			}
			l.mu.Unlock()
			if err != nil {
				return
			}
		}
	})
}

// end lets everything that runs come to its end, and judges.
func (l *load) end(t *testing.T) {
	t.Helper()
	l.ended.Store(true)
	l.running.Wait()
	for _, failure := range l.failed {
		t.Error(failure)
	}
	for name, n := range l.done {
		if n < 20 {
			t.Errorf("%s was done %d times only", name, n)
		}
	}
	t.Logf("done: %v", l.done)
}

// loadHTTP asks over HTTP/1.1 and HTTP/2, through sidecars and gateway.
func loadHTTP(t *testing.T, l *load, mesh *running) {
	t.Helper()
	body := strings.Repeat("0123456789abcdef", 4<<10)
	for name, address := range map[string]string{
		"HTTP/1.1 by a sidecar": mesh.outbound(t, "caller", "recorder", 9080), "HTTP/1.1 by the gateway": mesh.inbound(t, "edge", 8080),
		"HTTP/2 by a sidecar": mesh.outbound(t, "caller", "modern", 9082), "HTTP/2 by the gateway": mesh.inbound(t, "edge", 8082),
	} {
		transport := &http.Transport{Protocols: new(http.Protocols)}
		transport.Protocols.SetHTTP1(strings.HasPrefix(name, "HTTP/1.1"))
		transport.Protocols.SetUnencryptedHTTP2(!strings.HasPrefix(name, "HTTP/1.1"))
		t.Cleanup(transport.CloseIdleConnections)
		c := &http.Client{Transport: transport, Timeout: patience}
		ask := func(method, path, send string, good func([]byte) bool) func() error {
			return func() error {
				request, err := http.NewRequestWithContext(context.Background(), method, "http://"+address+path, strings.NewReader(send))
				if err != nil {
					return err
				}
				response, err := c.Do(request)
				if err != nil {
					return err
				}
				defer response.Body.Close()
				got, err := io.ReadAll(response.Body)
				if err != nil || response.StatusCode != http.StatusOK || !good(got) {
					return fmt.Errorf("%s %.200q, %d bytes, %w", response.Status, got, len(got), err)
				}
				return nil
			}
		}
		l.do(name, ask(http.MethodGet, "/bytes/1000", "", func(b []byte) bool { return len(b) == 1000 }))
		l.do(name, ask(http.MethodGet, "/slow/300", "", func(b []byte) bool { return len(b) > 0 }))
		l.do(name+", with bodies", ask(http.MethodPost, "/", body, func(b []byte) bool { return bytes.Contains(b, []byte(body)) }))
	}
}

// loadGRPC calls, and speaks on one stream all the time.
func loadGRPC(t *testing.T, l *load, address string) {
	t.Helper()
	conn := dialGRPC(t, address)
	l.do("gRPC calls", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		return conn.Invoke(ctx, methodUnary, wrapperspb.String("x"), new(wrapperspb.StringValue))
	})
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, methodStream)
	if err != nil {
		t.Fatal(err)
	}
	l.do("messages on one gRPC stream", func() error {
		if err := stream.SendMsg(wrapperspb.String("message")); err != nil {
			return err
		}
		got := new(wrapperspb.StringValue)
		if err := stream.RecvMsg(got); err != nil || got.GetValue() != "message" {
			return fmt.Errorf("%q: %w", got.GetValue(), err)
		}
		return nil
	})
}

// loadTCP speaks on one connection all the time, and on new ones.
func loadTCP(t *testing.T, l *load, address string) {
	t.Helper()
	converse := func(conn net.Conn, in *bufio.Reader) error {
		conn.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(conn, "line\n"); err != nil {
			return err
		}
		if got, err := in.ReadString('\n'); err != nil || got != "LINE\n" {
			return fmt.Errorf("%q: %w", got, err)
		}
		return nil
	}
	one := dialTCP(t, address)
	in := bufio.NewReader(one)
	l.do("lines on one TCP connection", func() error { return converse(one, in) })
	l.do("TCP connections", func() error {
		conn, err := net.DialTimeout("tcp", address, patience)
		if err != nil {
			return err
		}
		defer conn.Close()
		in := bufio.NewReader(conn)
		if err := converse(conn, in); err != nil {
			return err
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			return err
		}
		if rest, err := io.ReadAll(in); err != nil || string(rest) != "1 lines\n" {
			return fmt.Errorf("after the half-close %q: %w", rest, err)
		}
		return nil
	})
}

// loadWebSocket speaks on one WebSocket all the time, and on new ones.
func loadWebSocket(t *testing.T, l *load, address string) {
	t.Helper()
	echo := func(socket *websocket.Conn) error {
		if err := socket.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if _, err := io.WriteString(socket, "message"); err != nil {
			return err
		}
		got := make([]byte, len("message"))
		if _, err := io.ReadFull(socket, got); err != nil || string(got) != "message" {
			return fmt.Errorf("%q: %w", got, err)
		}
		return nil
	}
	one := dialWebSocket(t, address)
	l.do("messages on one WebSocket", func() error { return echo(one) })
	l.do("WebSockets", func() error {
		socket, err := websocket.Dial("ws://"+address+"/ws", "", "http://"+address+"/")
		if err != nil {
			return err
		}
		defer func() { _ = socket.Close() }()
		return echo(socket)
	})
}
