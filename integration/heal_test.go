package integration

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"
)

// probes speak each protocol once through two sidecars of a mesh like the lab.
func probes(t *testing.T, mesh *running) map[string]func() error {
	t.Helper()
	within := func() (context.Context, context.CancelFunc) {
		return context.WithTimeout(context.Background(), patience)
	}
	web := func(address string, c *http.Client) func() error {
		return func() error {
			response, err := c.Get("http://" + address + "/bytes/5000")
			if err != nil {
				return err
			}
			defer response.Body.Close()
			if body, err := io.ReadAll(response.Body); err != nil || response.StatusCode != http.StatusOK || len(body) != 5000 {
				return fmt.Errorf("%s, %d bytes: %w", response.Status, len(body), err)
			}
			return nil
		}
	}
	modern := &http.Transport{Protocols: new(http.Protocols)}
	modern.Protocols.SetUnencryptedHTTP2(true)
	classic := &http.Transport{}
	t.Cleanup(modern.CloseIdleConnections)
	t.Cleanup(classic.CloseIdleConnections)
	rpc := dialGRPC(t, mesh.outbound(t, "caller", "rpc", 9090))
	lines := mesh.outbound(t, "caller", "lines", 7000)
	return map[string]func() error{
		"HTTP/1.1": web(mesh.outbound(t, "caller", "recorder", 9080), &http.Client{Transport: classic, Timeout: patience}),
		"HTTP/2":   web(mesh.outbound(t, "caller", "modern", 9082), &http.Client{Transport: modern, Timeout: patience}),
		"gRPC": func() error {
			ctx, cancel := within()
			defer cancel()
			return rpc.Invoke(ctx, methodUnary, wrapperspb.String("x"), new(wrapperspb.StringValue))
		},
		"TCP": func() error {
			conn, err := net.DialTimeout("tcp", lines, patience)
			if err != nil {
				return err
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(patience))
			if _, err := io.WriteString(conn, "line\n"); err != nil {
				return err
			}
			if got, err := bufio.NewReader(conn).ReadString('\n'); got != "LINE\n" {
				return fmt.Errorf("%q: %w", got, err)
			}
			return nil
		},
	}
}

// Either sidecar is killed under load. What was under way fails at once and visibly; the mesh heals, and
// then nothing fails any more.
func TestSidecarsKilledUnderLoad(t *testing.T) {
	spec, err := labSpec()
	if err != nil {
		t.Fatal(err)
	}
	mesh := start(t, write(t, spec))
	all := probes(t, mesh)
	var ended atomic.Bool
	var running sync.WaitGroup
	var served, failed atomic.Int64
	for name, probe := range all {
		for range 3 {
			running.Go(func() {
				for pace := time.NewTicker(5 * time.Millisecond); !ended.Load(); <-pace.C {
					switch err := probe(); {
					case err == nil:
						served.Add(1)
					case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), strings.Contains(err.Error(), "DeadlineExceeded"):
						t.Errorf("%s hangs after a sidecar was killed: %v", name, err)
						return
					default:
						failed.Add(1)
					}
				}
			})
		}
	}
	defer func() {
		ended.Store(true)
		running.Wait()
	}()
	for _, instance := range []string{"recorder-1", "lines-1", "caller-1", "rpc-1", "modern-1", "caller-1"} {
		pid := mesh.kill(t, "proxy", instance)
		await(t, "every protocol works again after the death of "+instance, func() (bool, string) {
			if mesh.find(t, "proxy", instance) == pid {
				return false, "it is still there"
			}
			for name, probe := range all {
				for range 20 { // as many connections of a pool may be dead
					if err := probe(); err != nil {
						return false, name + ": " + err.Error()
					}
				}
			}
			return true, ""
		})
	}
	failed.Store(0)
	before := served.Load()
	await(t, "load on the mesh that healed", func() (bool, string) {
		n := served.Load() - before
		return n > 500, fmt.Sprint(n)
	})
	if n := failed.Load(); n > 0 {
		t.Errorf("%d requests failed after the mesh had healed", n)
	}
}
