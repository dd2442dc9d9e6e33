package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/mesh"
	"countersign.dev/up"
)

// mixed is a mesh whose gateway is the built-in proxy, whose service front is behind a real NGINX, and back
// behind a real HAProxy. Each has an instance that gets its certificate from the agent, and one of front and
// back from a store, as stored says.
func mixed(t *testing.T, stored string) string {
	t.Helper()
	peer(t, "nginx")
	peer(t, "haproxy")
	delivery := func(service string) string {
		if !strings.Contains(stored, service) {
			return ""
		}
		return `
    delivery: {type: store, store: vault, secret: "{mesh}/{service}", bundle: "{mesh}/bundle"}
    deploy: {type: restart}`
	}
	return write(t, `mesh: mixed
stores: {vault: {type: file, dir: vault, identityFile: vault-id.txt}}
services:
  front:
    ports: [{port: 9080, protocol: http}]
    instances: 2
    proxy: {engine: nginx}`+delivery("front")+`
    run: {command: [countersign, example, run, colorteller, --listen, "${APP_ADDRESS}", --color, yellow]}
  back:
    ports: [{port: 9080, protocol: http}]
    instances: 2
    proxy: {engine: haproxy}`+delivery("back")+`
    run: {command: [countersign, example, run, colorteller, --listen, "${APP_ADDRESS}", --color, blue]}
gateways:
  edge:
    listen: [{port: 8080, protocol: http}, {port: 8081, protocol: http}]
    routes:
      - {match: {listener: 8080, prefix: /}, to: [{service: front}]}
      - {match: {listener: 8081, prefix: /}, to: [{service: back}]}
`)
}

// colours are where the mesh is asked, and what it has to answer.
func (r *running) colours(t *testing.T) map[string]string {
	t.Helper()
	return map[string]string{
		"http://" + r.inbound(t, "edge", 8080) + "/color": "yellow",
		"http://" + r.inbound(t, "edge", 8081) + "/color": "blue",
	}
}

// document is the run document of this moment.
func (r *running) document(t *testing.T) *up.Document {
	t.Helper()
	doc, err := up.ReadDocument(filepath.Join(r.State, "run.json"))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// engineOf is the master process of an instance's proxy; 0 while there is none.
func (r *running) engineOf(t *testing.T, instance string) int {
	t.Helper()
	for _, w := range r.document(t).Workloads {
		if w.Instance == instance {
			return w.EnginePID
		}
	}
	t.Fatalf("there is no instance %s", instance)
	return 0
}

// Real proxies serve a mesh, however their certificates come to them, exactly as it is declared; they are
// started again when they are killed; and nothing of them is left.
func TestRealProxies(t *testing.T) {
	for name, stored := range map[string]string{
		"NGINX by the agent, HAProxy from a store": "back",
		"NGINX from a store, HAProxy by the agent": "front",
	} {
		t.Run(name, func(t *testing.T) {
			marker := fmt.Sprintf("COUNTERSIGN_TEST_MARK=%d.%d", os.Getpid(), time.Now().UnixNano())
			r := start(t, mixed(t, stored), env("TMPDIR="+shortDir(t), marker))
			for url, want := range r.colours(t) {
				if got := get(t, url); !strings.Contains(got, want) {
					t.Errorf("%s: %q, want %s", url, got, want)
				}
			}
			if got := countersign(t, "verify", "--socket", r.Server.Socket); got.status != 0 {
				t.Errorf("verify: status %d\n%s%s", got.status, got.stdout, got.stderr)
			}
			for _, w := range r.Workloads {
				want := map[string]mesh.Engine{"front": mesh.EngineNGINX, "back": mesh.EngineHAProxy, "edge": mesh.EngineBuiltin}[w.Name]
				delivery := mesh.DeliverAgent
				if w.Name == stored {
					delivery = mesh.DeliverStore
				}
				if w.Engine != want || w.Delivery != delivery || (w.EnginePID != 0) != (want != mesh.EngineBuiltin) {
					t.Errorf("%s: engine %s (%d) by %s, want %s by %s", w.Instance, w.Engine, w.EnginePID, w.Delivery, want, delivery)
				}
			}
			for _, w := range r.Workloads {
				if w.EnginePID != 0 {
					r.survivesTheKilling(t, w)
				}
			}
			before := family(t, r, marker)
			if err := r.stop(syscall.SIGINT); err != nil {
				t.Errorf("up ended with %v", err)
			}
			if left := remaining(t, before, marker); len(left) > 0 {
				t.Errorf("processes are left: %v", left)
			}
		})
	}
}

// survivesTheKilling kills the proxy of an instance and waits until another one serves.
func (r *running) survivesTheKilling(t *testing.T, w up.Workload) {
	t.Helper()
	pid := r.engineOf(t, w.Instance)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill -9 %d, the %s of %s: %v", pid, w.Engine, w.Instance, err)
	}
	await(t, fmt.Sprintf("another %s of %s", w.Engine, w.Instance), func() (bool, string) {
		now := r.engineOf(t, w.Instance)
		if now == 0 || now == pid || syscall.Kill(now, 0) != nil {
			return false, fmt.Sprintf("process %d", now)
		}
		_, err := servedSerial(t.Context(), w.Inbound[0].Address)
		return err == nil, fmt.Sprint(err)
	})
}

// When `up` is killed, the proxies go with it, their workers, too.
func TestKilledUpTakesItsProxiesAlong(t *testing.T) {
	marker := fmt.Sprintf("COUNTERSIGN_TEST_MARK=%d.%d", os.Getpid(), time.Now().UnixNano())
	r := start(t, mixed(t, "front"), env("TMPDIR="+shortDir(t), marker))
	before := family(t, r, marker)
	if err := r.command.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = gone(r.ended)
	r.ended <- nil // for stop
	await(t, "the end of all processes", func() (bool, string) {
		left := remaining(t, before, marker)
		return len(left) == 0, fmt.Sprint(left)
	})
}

// Instances are restarted one after the other, and no request is lost: the store has a new certificate each
// time, and each instance serves it when its restart is answered.
func TestRestartsLoseNothing(t *testing.T) {
	r := start(t, mixed(t, "front back"), env("TMPDIR="+shortDir(t)))
	ctx, stop := context.WithCancel(t.Context())
	var asked atomic.Int64
	lost := make(chan error, 100)
	ended := make(chan struct{})
	urls := r.colours(t)
	for url, want := range urls {
		go func() {
			for ctx.Err() == nil {
				err := ask(ctx, url, want)
				asked.Add(1)
				if err != nil && ctx.Err() == nil {
					select {
					case lost <- err:
					default: // there are enough
					}
				}
			}
			ended <- struct{}{}
		}()
	}
	rounds := 2
	if soak {
		rounds = 10
	}
	for range rounds {
		r.admin(t, "rotate", "once", "--force", "--no-deploy")
		for _, w := range r.Workloads {
			if w.Delivery != mesh.DeliverStore {
				continue
			}
			old, err := servedSerial(t.Context(), w.Inbound[0].Address)
			if err != nil {
				t.Fatal(err)
			}
			pid := r.engineOf(t, w.Instance)
			r.restart(t, w.Instance)
			await(t, "another process of "+w.Instance, func() (bool, string) {
				now := r.engineOf(t, w.Instance)
				return now != pid, fmt.Sprint(now)
			})
			if now, err := servedSerial(t.Context(), w.Inbound[0].Address); err != nil || now == old {
				t.Errorf("%s serves %s after its restart, and %s before (%v)", w.Instance, now, old, err)
			}
		}
	}
	stop()
	for range urls {
		<-ended
	}
	close(lost)
	for err := range lost {
		t.Errorf("a request was lost: %v", err)
	}
	if asked.Load() < 100 {
		t.Errorf("only %d requests were made", asked.Load())
	}
}

// ask makes one request that has to be answered.
func ask(ctx context.Context, url, want string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var body [256]byte
	n, _ := response.Body.Read(body[:])
	if response.StatusCode != http.StatusOK || !strings.Contains(string(body[:n]), want) {
		return fmt.Errorf("%s: status %d, %q", url, response.StatusCode, body[:n])
	}
	return nil
}

// restart asks `up` for the restart of an instance.
func (r *running) restart(t *testing.T, instance string) {
	t.Helper()
	unix := &http.Client{Timeout: 2 * patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", r.Control)
		},
	}}
	body, err := json.Marshal(up.RestartRequest{Instance: instance})
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://up"+up.PathRestart, strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	response, err := unix.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var refused api.Error
	if err := json.NewDecoder(response.Body).Decode(&refused); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("restarting %s: %s %s (%v)", instance, response.Status, refused.Message, err)
	}
}
