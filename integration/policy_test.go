package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// A workload with a good certificate that nobody allowed gets 403, status 7 or a close, is counted, and
// its refuser's log says who it was.
func TestUnauthorised(t *testing.T) {
	mesh := lab(t)
	denied := func(workload, listener string) int64 {
		return stats(t, mesh.instance(t, workload))["listener."+listener+".rbac.denied"]
	}
	t.Run("http", func(t *testing.T) {
		before := denied("recorder", "0.0.0.0_9080")
		status, body := fetch(t, "http://"+mesh.outbound(t, "stranger", "recorder", 9080)+"/")
		var answer map[string]any
		if err := json.Unmarshal([]byte(body), &answer); status != http.StatusForbidden || err != nil || len(body) > 1000 {
			t.Errorf("status %d, body %q (%v), want 403 and a short JSON text", status, body, err)
		}
		if after := denied("recorder", "0.0.0.0_9080"); after != before+1 {
			t.Errorf("rbac.denied went from %d to %d", before, after)
		}
		if status, body := fetch(t, "http://"+mesh.outbound(t, "caller", "recorder", 9080)+"/"); status != http.StatusOK {
			t.Errorf("the caller that is allowed gets %d %q", status, body)
		}
		sidecarLogs(t, mesh, "recorder", "spiffe://lab.internal/service/stranger")
	})
	t.Run("grpc", func(t *testing.T) {
		before := denied("rpc", "0.0.0.0_9090")
		_, err := unary(t, mesh.outbound(t, "stranger", "rpc", 9090), "x")
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("error %v, want PERMISSION_DENIED", err)
		}
		if after := denied("rpc", "0.0.0.0_9090"); after != before+1 {
			t.Errorf("rbac.denied went from %d to %d", before, after)
		}
		sidecarLogs(t, mesh, "rpc", "spiffe://lab.internal/service/stranger")
	})
	t.Run("tcp", func(t *testing.T) {
		before := denied("lines", "0.0.0.0_7000")
		conn := dialTCP(t, mesh.outbound(t, "stranger", "lines", 7000))
		_, _ = io.WriteString(conn, "hello\n") // the close may have come first
		if got, err := io.ReadAll(conn); len(got) > 0 {
			t.Errorf("%q came (%v), want a close before the first byte", got, err)
		}
		if after := denied("lines", "0.0.0.0_7000"); after != before+1 {
			t.Errorf("rbac.denied went from %d to %d", before, after)
		}
		sidecarLogs(t, mesh, "lines", "spiffe://lab.internal/service/stranger")
		sidecarLogs(t, mesh, "stranger", "closed by the peer before the first byte")
	})
	t.Run("anonymous, where the list leaves it out", func(t *testing.T) {
		// 9081 is permissive: stranger is known and not allowed, anonymous is.
		status, _ := fetch(t, "http://"+mesh.outbound(t, "stranger", "recorder", 9081)+"/")
		if status != http.StatusForbidden {
			t.Errorf("stranger gets %d on the permissive port", status)
		}
		if status, _ := fetch(t, "http://"+mesh.inbound(t, "recorder", 9081)+"/"); status != http.StatusOK {
			t.Errorf("plaintext gets %d on the permissive port", status)
		}
	})
}

// sidecarLogs waits until the log of a workload's sidecar holds a text.
func sidecarLogs(t *testing.T, mesh *running, workload, text string) {
	t.Helper()
	await(t, "the log of "+workload+"'s sidecar says "+text, func() (bool, string) {
		files, err := filepath.Glob(filepath.Join(mesh.logs, "*"+workload+"*"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no log of %s in %s (%v)", workload, mesh.logs, err)
		}
		var all []byte
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, data...)
		}
		return bytes.Contains(all, []byte(text)), string(lastLines(all, 5))
	})
}

// dialTCP connects to a plaintext address until the test ends.
func dialTCP(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn.(*net.TCPConn)
}

// dialGRPC makes a client for a plaintext address.
func dialGRPC(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// unary makes one call.
func unary(t *testing.T, address, text string, options ...grpc.CallOption) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out := new(wrapperspb.StringValue)
	err := dialGRPC(t, address).Invoke(ctx, methodUnary, wrapperspb.String(text), out, options...)
	return out.GetValue(), err
}

// A policy that is applied is obeyed by the next request, and closes what it forbids, connections that
// carry TCP, upgrades and streams among it; what it allows lives on.
func TestApplyForbids(t *testing.T) {
	spec, err := labSpec()
	if err != nil {
		t.Fatal(err)
	}
	mesh := start(t, write(t, spec))
	path := mesh.variant(t, "narrow.yaml", strings.ReplaceAll(spec, "from: [caller, edge]", "from: [edge]"))

	forbidden := talk(t, mesh.outbound(t, "caller", "lines", 7000))
	allowed := talk(t, mesh.inbound(t, "edge", 7070))
	socket := dialWebSocket(t, mesh.outbound(t, "caller", "recorder", 9080))
	echoWebSocket(t, socket, "before")
	stream := openStream(t, mesh.outbound(t, "caller", "rpc", 9090))
	echoStream(t, stream, "before")
	url := "http://" + mesh.outbound(t, "caller", "recorder", 9080) + "/"
	get(t, url)

	if out := mesh.admin(t, "mesh", "apply", path, "--dry-run"); !strings.Contains(out, "recorder") {
		t.Errorf("the difference does not name recorder: %q", out)
	}
	get(t, url) // a dry run changes nothing
	began := time.Now()
	mesh.admin(t, "mesh", "apply", path)
	if status, _ := fetch(t, url); status != http.StatusForbidden {
		t.Errorf("the next request gets %d, want 403", status)
	}
	if _, err := io.Copy(io.Discard, forbidden); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the forbidden TCP connection goes on")
	}
	if _, err := io.Copy(io.Discard, socket); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the forbidden WebSocket goes on")
	}
	if err := stream.RecvMsg(new(wrapperspb.StringValue)); err == nil {
		t.Error("the forbidden stream goes on")
	}
	t.Logf("applied, and all that is forbidden was closed, after %s", time.Since(began).Round(time.Millisecond))
	say(t, allowed, "still here", "STILL HERE")

	mesh.admin(t, "mesh", "apply", mesh.spec)
	get(t, url)
}

// talk opens a conversation with the lines service.
func talk(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	conn := dialTCP(t, address)
	say(t, conn, "hello", "HELLO")
	return conn
}

// say sends a line and reads its answer.
func say(t *testing.T, conn net.Conn, line, want string) {
	t.Helper()
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want)+1)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want+"\n" {
		t.Fatalf("%q is answered with %q (%v)", line, got, err)
	}
}
