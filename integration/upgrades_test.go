package integration

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
)

// Upgraded connections leave nothing behind, whoever closes first.
func TestUpgradesLeaveNothing(t *testing.T) {
	mesh := wire(t)
	for name, firstToClose := range map[string]string{"/closes/app": "app", "/closes/client": "client"} {
		mesh.odd.on(name, func(conn *net.TCPConn, in *bufio.Reader, _ *http.Request) bool {
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			if firstToClose == "client" {
				_, _ = io.Copy(io.Discard, in)
			}
			return false
		})
	}
	for _, test := range []struct{ instance, address, scope string }{
		{"caller", mesh.outbound(t, "caller", "odd", 9380), "listener.127.0.0.1_9380."},
		{"edge", mesh.inbound(t, "edge", 8380), "listener.0.0.0.0_8380."},
	} {
		for _, path := range []string{"/closes/app", "/closes/client"} {
			for range 30 {
				conn := dialTCP(t, test.address)
				if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n", path); err != nil {
					t.Fatal(err)
				}
				in := bufio.NewReader(conn)
				response, err := http.ReadResponse(in, nil)
				if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
					t.Fatalf("%s: %v (%v)", path, response, err)
				}
				response.Body.Close() // there is none
				if path == "/closes/client" {
					_ = conn.CloseWrite()
				}
				if _, err := io.Copy(io.Discard, in); err != nil {
					t.Errorf("%s: %v", path, err)
				}
				conn.Close()
			}
			await(t, test.instance+" has closed what was upgraded at "+path, func() (bool, string) {
				open := stats(t, mesh.instance(t, test.instance))[test.scope+"downstream_cx_active"]
				return open == 0, fmt.Sprintf("%d are open", open)
			})
		}
	}
}
