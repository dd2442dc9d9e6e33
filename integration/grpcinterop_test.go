package integration

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// grpc-go's own interoperability suite passes through two sidecars, and through a gateway.
func TestGRPCInterop(t *testing.T) {
	client := pinned(t, "interop", "./interop")
	server := pinned(t, "interop-server", "google.golang.org/grpc/interop/server")
	number := port(t) // the server binds it on all addresses, so that no other port may do
	mesh := start(t, write(t, fmt.Sprintf(`mesh: interop
services:
  caller: {calls: [{service: tested}]}
  tested: {ports: [{port: 9090, protocol: grpc, app: %d}]}
gateways:
  edge:
    listen: [{port: 8090, protocol: grpc}]
    routes: [{to: [{service: tested}]}]
`, number)))
	serveInterop(t, server, number) // after the mesh, which looks whether its ports are free
	list := execute(t, nil, client)
	cases := strings.Fields(list.stdout)
	if list.status != 0 || len(cases) < 15 {
		t.Fatalf("the client lists %d cases, status %d: %s", len(cases), list.status, list.stderr)
	}
	for name, address := range map[string]string{"sidecars": mesh.outbound(t, "caller", "tested", 9090), "gateway": mesh.inbound(t, "edge", 8090)} {
		t.Run(name, func(t *testing.T) {
			got := execute(t, nil, client, address)
			if passed := strings.Count(got.stdout, "PASS "); got.status != 0 || passed != len(cases) {
				t.Errorf("%d of %d cases passed, status %d\n%s%s", passed, len(cases), got.status, got.stdout, got.stderr)
			}
		})
	}
}

// serveInterop runs the server until the test ends.
func serveInterop(t *testing.T, program string, number int) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	command := exec.CommandContext(ctx, program, "--port", fmt.Sprint(number))
	var log bytes.Buffer
	command.Stdout, command.Stderr = &log, &log
	if err := command.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = command.Wait() // it was killed
		if t.Failed() {
			t.Logf("the interop server says:\n%s", log.String())
		}
	})
	await(t, "the interop server accepts", func() (bool, string) {
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", number))
		if err != nil {
			return false, err.Error()
		}
		conn.Close()
		return true, ""
	})
}
