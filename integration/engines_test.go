package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/up"
)

// mixed is a mesh whose gateway is the built-in proxy, whose service front is behind a real NGINX, and back
// behind a real HAProxy. The services that stored names get their certificate from a store, deployed as deploy
// says, and the others from the agent. Further gateways may be added.
func mixed(t *testing.T, stored, deploy string, gateways ...string) string {
	t.Helper()
	peer(t, "nginx")
	peer(t, "haproxy")
	delivery := func(service string) string {
		if !strings.Contains(stored, service) {
			return ""
		}
		return `
    delivery: {type: store, store: vault, secret: "{mesh}/{service}", bundle: "{mesh}/bundle"}
    deploy: {type: ` + deploy + `}`
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
`+strings.Join(gateways, ""))
}

// realGates are gateways that are NGINX and HAProxy themselves.
const realGates = `  nginxgate:
    listen: [{port: 8080, protocol: http}]
    routes: [{to: [{service: back}]}]
    proxy: {engine: nginx}
  haproxygate:
    listen: [{port: 8080, protocol: http}]
    routes: [{to: [{service: front}]}]
    proxy: {engine: haproxy}
`

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

// described is what the run document of this moment says of an instance.
func (r *running) described(t *testing.T, instance string) up.Workload {
	t.Helper()
	for _, w := range r.document(t).Workloads {
		if w.Instance == instance {
			return w
		}
	}
	t.Fatalf("there is no instance %s", instance)
	return up.Workload{}
}

// engineOf is the master process of an instance's proxy; 0 while there is none.
func (r *running) engineOf(t *testing.T, instance string) int {
	t.Helper()
	return r.described(t, instance).EnginePID
}

// Real proxies serve a mesh, however their certificates come to them, exactly as it is declared; they are
// started again when they are killed; and nothing of them is left.
func TestRealProxies(t *testing.T) {
	t.Parallel() // it waits for a mesh of its own
	for name, stored := range map[string]string{
		"NGINX by the agent, HAProxy from a store": "back",
		"NGINX from a store, HAProxy by the agent": "front",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			marker := fmt.Sprintf("COUNTERSIGN_TEST_MARK=%d.%d", os.Getpid(), time.Now().UnixNano())
			r := start(t, mixed(t, stored, "reload", realGates), env("TMPDIR="+shortDir(t), marker))
			colours := r.colours(t)
			colours["http://"+r.inbound(t, "nginxgate", 8080)+"/color"] = "blue"
			colours["http://"+r.inbound(t, "haproxygate", 8080)+"/color"] = "yellow"
			for url, want := range colours {
				if got := get(t, url); !strings.Contains(got, want) {
					t.Errorf("%s: %q, want %s", url, got, want)
				}
			}
			if got := countersign(t, "verify", "--socket", r.Server.Socket); got.status != 0 {
				t.Errorf("verify: status %d\n%s%s", got.status, got.stdout, got.stderr)
			}
			for _, w := range r.Workloads {
				want := map[string]mesh.Engine{"front": mesh.EngineNGINX, "back": mesh.EngineHAProxy, "edge": mesh.EngineBuiltin, "nginxgate": mesh.EngineNGINX, "haproxygate": mesh.EngineHAProxy}[w.Name]
				delivery := mesh.DeliverAgent
				if w.Name == stored {
					delivery = mesh.DeliverStore
				}
				if w.Engine != want || w.Delivery != delivery || (w.EnginePID != 0) != (want != mesh.EngineBuiltin) {
					t.Errorf("%s: engine %s (%d) by %s, want %s by %s", w.Instance, w.Engine, w.EnginePID, w.Delivery, want, delivery)
				}
			}
			alive := func() []process {
				return slices.DeleteFunc(descendants(t, r.command.Process.Pid), func(p process) bool { return p.state == "Z" })
			}
			least := len(alive())
			for _, w := range r.Workloads {
				if w.Kind == id.Service {
					r.survivesTheKilling(t, w)
				}
			}
			// A worker that outlives its master would serve on, with what was good then.
			await(t, "the end of what the killed ones have left", func() (bool, string) {
				now := alive()
				return len(now) <= least, fmt.Sprintf("%d processes, and before %d: %v", len(now), least, now)
			})
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

// survivesTheKilling kills the proxy of an instance, then its sidecar, then both, and waits each time until
// others serve.
func (r *running) survivesTheKilling(t *testing.T, w up.Workload) {
	t.Helper()
	for what, which := range map[string]func(up.Workload) []int{
		"proxy":   func(w up.Workload) []int { return []int{w.EnginePID} },
		"sidecar": func(w up.Workload) []int { return []int{w.PID} },
		"both":    func(w up.Workload) []int { return []int{w.PID, w.EnginePID} },
	} {
		killed := which(r.described(t, w.Instance))
		for _, pid := range killed {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatalf("%s: kill -9 %s, %d: %v", w.Instance, what, pid, err)
			}
		}
		await(t, fmt.Sprintf("another %s of %s", what, w.Instance), func() (bool, string) {
			now := r.described(t, w.Instance)
			for _, pid := range []int{now.PID, now.EnginePID} {
				if pid == 0 || slices.Contains(killed, pid) || syscall.Kill(pid, 0) != nil {
					return false, fmt.Sprintf("processes %d and %d", now.PID, now.EnginePID)
				}
			}
			if status, body, err := try(t, now.Admin+"/healthz"); err != nil || status != http.StatusOK {
				return false, fmt.Sprint(status, body, err)
			}
			_, err := servedSerial(t.Context(), w.Inbound[0].Address)
			return err == nil, fmt.Sprint(err)
		})
	}
}

// When `up` is killed, the proxies go with it, their workers, too.
func TestKilledUpTakesItsProxiesAlong(t *testing.T) {
	t.Parallel() // it waits for a mesh of its own
	marker := fmt.Sprintf("COUNTERSIGN_TEST_MARK=%d.%d", os.Getpid(), time.Now().UnixNano())
	r := start(t, mixed(t, "front", "reload"), env("TMPDIR="+shortDir(t), marker))
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

// Certificates are rotated again and again, and no request is lost, whether the proxies are told of each new
// one or started anew with it. When a rotation has ended, every instance serves what it brought.
func TestRotationsLoseNothing(t *testing.T) {
	t.Parallel() // it waits for a mesh of its own
	rounds := 3
	if os.Getenv("CI") == "true" {
		rounds = 10
	}
	if soak {
		rounds = 100
	}
	for _, deploy := range []string{"reload", "restart"} {
		t.Run(deploy, func(t *testing.T) {
			t.Parallel()
			r := start(t, mixed(t, "front back", deploy), env("TMPDIR="+shortDir(t)))
			stop := r.load(t)
			seen := map[string]bool{}
			for range rounds {
				pids := r.engines(t)
				got := r.inside(t, "rotate", "once", "--force")
				if got.status != 0 {
					t.Fatalf("the rotation: status %d\n%s%s", got.status, got.stdout, got.stderr)
				}
				for service, serials := range r.serials(t) {
					if len(serials) != 1 || seen[serials[0]] {
						t.Errorf("the instances of %s serve %v; before %v", service, serials, seen)
					}
					seen[serials[0]] = true
				}
				for instance, pid := range pids {
					await(t, "the process that the document names for "+instance, func() (bool, string) {
						now := r.engineOf(t, instance)
						return (now != pid) == (deploy == "restart"), fmt.Sprintf("%d, before %d", now, pid)
					})
				}
			}
			if asked := stop(); asked < 100 {
				t.Errorf("only %d requests were made", asked)
			}
		})
	}
}

// inside runs a command as one that `up` has started finds the mesh.
func (r *running) inside(t *testing.T, args ...string) result {
	t.Helper()
	return execute(t, nil, "/usr/bin/env", append([]string{up.EnvRun + "=" + filepath.Join(r.State, "run.json"), binary}, args...)...)
}

// engines are the master processes of the proxies, by instance.
func (r *running) engines(t *testing.T) map[string]int {
	t.Helper()
	pids := map[string]int{}
	for _, w := range r.document(t).Workloads {
		if w.Kind == id.Service {
			pids[w.Instance] = w.EnginePID
		}
	}
	return pids
}

// serials are what the instances behind NGINX and HAProxy serve, by service: those that differ.
func (r *running) serials(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, w := range r.Workloads {
		if w.Kind != id.Service {
			continue
		}
		serial, err := servedSerial(t.Context(), w.Inbound[0].Address)
		if err != nil {
			t.Fatalf("%s: %v", w.Instance, err)
		}
		if !slices.Contains(all[w.Name], serial) {
			all[w.Name] = append(all[w.Name], serial)
		}
	}
	return all
}

// load asks for every colour again and again, each request on a connection of its own and on connections that
// are kept, until it is stopped: hundreds of times a second, and not so often that nothing else gets on. A request that is not answered well fails the test. It gives their number.
func (r *running) load(t *testing.T) (stop func() int64) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var asked atomic.Int64
	var askers sync.WaitGroup
	for url, want := range r.colours(t) {
		kept := &http.Client{Timeout: patience, Transport: &http.Transport{}}
		for _, by := range []*http.Client{client, kept} {
			askers.Go(func() {
				defer kept.CloseIdleConnections()
				for pace := time.NewTicker(2 * time.Millisecond); ctx.Err() == nil; <-pace.C {
					if err := ask(by, url, want); err != nil {
						t.Errorf("a request was lost: %v", err)
					}
					asked.Add(1)
				}
			})
		}
	}
	once := sync.OnceValue(func() int64 {
		cancel()
		askers.Wait()
		return asked.Load()
	})
	t.Cleanup(func() { once() })
	return once
}

// ask makes one request that has to be answered.
func ask(by *http.Client, url, want string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := by.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 4<<10))
	if err != nil || response.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
		return errors.Join(err, fmt.Errorf("%s: status %d, %q", url, response.StatusCode, body))
	}
	return nil
}

// An instance whose secret will not do serves on, and so it does when it is asked for a restart.
func TestRestartWithABadSecret(t *testing.T) {
	t.Parallel() // it waits for a mesh of its own
	r := start(t, mixed(t, "back", "restart"), flags("--no-rotation"), env("TMPDIR="+shortDir(t)))
	stop := r.load(t)
	before := r.serials(t)
	vault := filepath.Join(filepath.Dir(r.spec), "vault")
	bad := filepath.Join(t.TempDir(), "bad.json")
	if err := os.WriteFile(bad, []byte(`{"cert_pem":"PLACEHOLDER","key_pem":"PLACEHOLDER"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := countersign(t, "secret", "put", "mixed/back", bad, "--store", "file:"+vault, "--identity-file", vault+"-id.txt"); got.status != 0 {
		t.Fatalf("secret put: %s", got.stderr)
	}
	var both sync.WaitGroup // who asks for both at once gets them one after the other
	for _, instance := range []string{"back-1", "back-2"} {
		both.Go(func() {
			status, refused := r.restart(t, instance)
			if status != http.StatusInternalServerError || refused.Code != api.CodeInternal || !strings.Contains(refused.Message, instance+" serves on with what it had") || !strings.Contains(refused.Message, "PLACEHOLDER") {
				t.Errorf("restart: %d %+v", status, refused)
			}
		})
	}
	both.Wait()
	if after := r.serials(t); !reflect.DeepEqual(before, after) {
		t.Errorf("served are %v, before %v", after, before)
	}
	stop()
}

// restart asks `up` for the restart of an instance. It may be called from other goroutines than the test's.
func (r *running) restart(t *testing.T, instance string) (status int, refused api.Error) {
	t.Helper()
	unix := &http.Client{Timeout: 2 * patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", r.Control)
		},
	}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://up"+up.PathRestart, strings.NewReader(`{"instance":"`+instance+`"}`))
	if err != nil {
		t.Error(err)
		return 0, refused
	}
	response, err := unix.Do(request)
	if err != nil {
		t.Error(err)
		return 0, refused
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(&refused); err != nil {
		t.Errorf("restarting %s: %v", instance, err)
	}
	return response.StatusCode, refused
}

// What a mesh with temporary state puts into a store is of its own authority: the store goes with it, and the
// next mesh makes its own. A mesh that keeps its state goes on with what it has, and nobody else takes it over.
func TestStoreOfAnEarlierMesh(t *testing.T) {
	t.Parallel() // it waits for a mesh of its own
	spec := mixed(t, "front back", "reload")
	vault := filepath.Join(filepath.Dir(spec), "vault")
	state := filepath.Join(shortDir(t), "state")
	var serials []map[string][]string
	for _, args := range [][]string{nil, nil, {"--state", state}, {"--state", state}} {
		r := start(t, spec, flags(args...), env("TMPDIR="+shortDir(t)))
		for url, want := range r.colours(t) {
			if got := get(t, url); !strings.Contains(got, want) {
				t.Errorf("%v: %s: %q, want %s", args, url, got, want)
			}
		}
		serials = append(serials, r.serials(t))
		if err := r.stop(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(vault); (err == nil) != (args != nil) {
			t.Errorf("%v: the store at the end: %v", args, err)
		}
	}
	if reflect.DeepEqual(serials[0], serials[1]) || reflect.DeepEqual(serials[1], serials[2]) || !reflect.DeepEqual(serials[2], serials[3]) {
		t.Errorf("the serials were %v", serials)
	}
	got := countersign(t, "up", spec, "--", "true")
	if got.status != 1 || !strings.Contains(got.stderr, "What was in "+vault+" before may be of another authority") {
		t.Errorf("over the store of another mesh: status %d\n%s", got.status, got.stderr)
	}
	r := start(t, spec, flags("--state", state), env("TMPDIR="+shortDir(t)))
	if now := r.serials(t); !reflect.DeepEqual(now, serials[3]) {
		t.Errorf("the serials are %v, and were %v", now, serials[3])
	}
}
