package up

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"countersign.dev/api"
	"countersign.dev/mesh"
)

// In these tests the test binary is `countersign`, and plays the server and the sidecars: they speak
// what the real ones speak to `up`, and carry no traffic. Each writes a line into envJournal when it
// starts and when it is told to stop.
const (
	envJournal = "COUNTERSIGN_UP_TEST_JOURNAL"
	envTrouble = "COUNTERSIGN_UP_TEST_TROUBLE" // what is to go wrong
)

func trouble(what string) bool { return strings.Contains(os.Getenv(envTrouble), what) }

func note(format string, args ...any) {
	f, err := os.OpenFile(os.Getenv(envJournal), os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	fmt.Fprintf(f, format+"\n", args...)
}

// fakeMain is the main function of the fake.
func fakeMain(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	daemon := slices.Contains(args, "daemon")
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	values := map[string]*string{}
	for _, name := range []string{"state", "mesh", "listen", "socket", "server", "ca-pin", "token-file", "instance", "admin", "drain-timeout", "address", "app-address"} {
		values[name] = flags.String(name, "", "")
	}
	var binds []string
	flags.Func("bind", "", func(bind string) error { binds = append(binds, bind); return nil })
	for _, name := range []string{"from", "identity-file", "secret", "layout", "to", "expect-id", "plan", "run-dir", "interval", "reload", "engine", "bundle-from", "conf", "proxy-version", "openssl-version", "stream-module", "user", "crl"} {
		values[name] = flags.String(name, "", "")
	}
	watch := flags.Bool("watch", false, "")
	flags.Bool("no-deploy", false, "")
	flags.Bool("unsealed", false, "")
	flags.Bool("fixed-topology", false, "")
	flags.Bool("callers", false, "")
	if err := flags.Parse(slices.DeleteFunc(args[1:], func(arg string) bool { return arg == "once" || arg == "daemon" })); err != nil {
		return 2
	}
	if args[0] == "rotate" && daemon {
		note("rotation of %s", os.Getenv(EnvRun))
		<-ctx.Done()
		note("rotation ends")
		return 0
	}
	value := func(name string) string { return *values[name] }
	if args[0] == "rotate" || args[0] == "init" && !*watch {
		return fakeOnce(args[0], value)
	}
	who, run := "server", fakeServer
	if args[0] == "proxy" || args[0] == "init" {
		who = value("instance")
		run = func(ctx context.Context, flag func(string) string) error { return fakeProxy(ctx, flag, binds) }
	}
	if trouble("exit " + who) {
		fmt.Fprintln(os.Stderr, "a reason to give up")
		return 1
	}
	note("start %s", who)
	if trouble("stubborn " + who) {
		ctx = context.WithoutCancel(ctx)
	}
	if err := run(ctx, value); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	note("stop %s", who)
	return 0
}

// serveFake answers until ctx ends.
func serveFake(ctx context.Context, network, address string, handler http.Handler) error {
	listener, err := net.Listen(network, address)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	context.AfterFunc(ctx, func() { server.Close() })
	if err := server.Serve(listener); ctx.Err() == nil {
		return err
	}
	return nil
}

func reply(w http.ResponseWriter, value any) {
	if err := json.NewEncoder(w).Encode(value); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// fakeControl is the fake server: it knows the specification and who has reported.
type fakeControl struct {
	spec *mesh.Spec

	mu       sync.Mutex
	reported map[string]api.Instance // by name
	tokens   int
}

// fakeDocuments are those at a path, which is kept for the next start: that is given none.
func fakeDocuments(path, kept string) ([]mesh.Document, error) {
	if path != "" {
		if err := os.WriteFile(kept, []byte(path), 0o600); err != nil {
			return nil, err
		}
		return mesh.ReadDocuments(path)
	}
	text, err := os.ReadFile(kept)
	if err != nil {
		return nil, err
	}
	return mesh.ReadDocuments(string(text))
}

// fakeServer answers as an administrator's socket does, and takes reports at /report on its address.
func fakeServer(ctx context.Context, flag func(string) string) error {
	documents, err := fakeDocuments(flag("mesh"), filepath.Join(flag("state"), "fake-mesh"))
	if err != nil {
		return err
	}
	spec, err := mesh.ParseDocuments(documents)
	if err != nil {
		return err
	}
	f := &fakeControl{spec: spec, reported: map[string]api.Instance{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+api.PathCA, func(w http.ResponseWriter, _ *http.Request) {
		reply(w, api.CAResponse{TrustDomain: spec.TrustDomain, Root: "ROOT", Pin: "sha256:00"})
	})
	mux.HandleFunc("GET "+api.PathMesh, func(w http.ResponseWriter, _ *http.Request) {
		reply(w, api.MeshResponse{Revision: 1, Documents: documents})
	})
	mux.HandleFunc("POST "+api.PathTokens, f.token)
	mux.HandleFunc("GET "+api.PathEndpoints, f.endpoints)
	mux.HandleFunc("GET "+api.PathStatus, f.status)
	mux.HandleFunc("GET "+api.PathCRL, func(w http.ResponseWriter, _ *http.Request) {
		if trouble("no lists") {
			http.Error(w, `{"code":"internal","message":"the lists are lost"}`, http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, "REVOKED")
	})
	mux.HandleFunc("POST /report", f.report)
	os.Remove(flag("socket"))
	reports := make(chan error, 1)
	go func() { reports <- serveFake(ctx, "tcp", flag("listen"), mux) }()
	err = serveFake(ctx, "unix", flag("socket"), mux)
	return errors.Join(err, <-reports)
}

func (f *fakeControl) token(w http.ResponseWriter, _ *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tokens++
	reply(w, api.TokenResponse{Token: fmt.Sprintf("token-%d", f.tokens)})
}

func (f *fakeControl) endpoints(w http.ResponseWriter, _ *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := []api.Instance{}
	for _, one := range f.reported {
		all = append(all, one)
	}
	reply(w, all)
}

func (f *fakeControl) status(w http.ResponseWriter, _ *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := []api.Status{}
	for name := range f.reported {
		status := api.Status{Instance: name, NotAfter: time.Now().Add(time.Hour)}
		if trouble("expired " + name) {
			status.NotAfter = time.Now().Add(-time.Hour)
		}
		all = append(all, status)
	}
	reply(w, all)
}

// report takes down where an instance listens, and answers its Plan with the endpoints known so far.
func (f *fakeControl) report(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var one api.Instance
	if err := json.NewDecoder(r.Body).Decode(&one); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	plan, err := f.spec.Compile(one.Workload)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for _, in := range plan.Inbound {
		if !slices.ContainsFunc(one.Inbound, func(l api.Listening) bool { return l.Port == in.Port }) {
			one.Inbound = append(one.Inbound, api.Listening{Port: in.Port, Address: fmt.Sprintf("%s:%d", one.Admin, in.Port)})
		}
	}
	if !trouble("mute " + one.Instance) {
		f.reported[one.Instance] = one
	}
	for u := range plan.Upstreams {
		for _, other := range f.reported {
			if other.Workload == plan.Upstreams[u].Service {
				address := netip.MustParseAddrPort(fmt.Sprintf("%s:%d", other.Admin, plan.Upstreams[u].Port))
				plan.Upstreams[u].Endpoints = append(plan.Upstreams[u].Endpoints, mesh.Endpoint{Instance: other.Instance, Address: address})
			}
		}
	}
	reply(w, plan)
}

// fakeProxy reports to the server whenever it is asked how it is.
func fakeProxy(ctx context.Context, flag func(string) string, binds []string) error {
	instance := flag("instance")
	var listening []api.Listening
	for _, bind := range binds {
		var one api.Listening
		if n, _ := fmt.Sscanf(bind, "inbound/%d=%s", &one.Port, &one.Address); n == 2 {
			listening = append(listening, one)
		}
	}
	if _, err := os.ReadFile(flag("token-file")); err != nil {
		return err
	}
	server := "http://" + strings.TrimPrefix(flag("server"), "https://")
	report := func() (string, error) {
		workload := instance[:strings.LastIndexByte(instance, '-')]
		body, err := json.Marshal(api.Instance{Workload: workload, Instance: instance, Admin: flag("address"), Inbound: listening})
		if err != nil {
			return "", err
		}
		response, err := http.Post(server+"/report", "application/json", strings.NewReader(string(body)))
		if err != nil {
			return "", err
		}
		defer response.Body.Close()
		var plan json.RawMessage
		err = json.NewDecoder(response.Body).Decode(&plan)
		return string(plan), err
	}
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, _ *http.Request) {
		plan, err := report()
		if run := flag("run-dir"); err == nil && run != "" {
			_, err = os.Stat(filepath.Join(run, "bound.sock"))
		}
		if err != nil || trouble("sick "+instance) {
			http.Error(w, fmt.Sprint(err), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, plan)
	}
	mux.HandleFunc("GET /healthz", answer)
	mux.HandleFunc("GET /plan", answer)
	fmt.Fprintln(os.Stderr, "the sidecar of", instance, "runs in", filepath.Base(flag("state")))
	return serveFake(ctx, "tcp", flag("admin"), mux)
}

// fakeOnce plays what works to an end: a rotation, and an init that writes the configuration of its proxy.
func fakeOnce(command string, flag func(string) string) int {
	who := command
	if command == "init" {
		who = "init " + filepath.Base(filepath.Dir(flag("to")))
		if _, err := os.ReadFile(flag("plan")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if lists, err := os.ReadFile(flag("crl")); err != nil || string(lists) != "REVOKED" {
			fmt.Fprintf(os.Stderr, "the revocation lists are %q: %v\n", lists, err)
			return 1
		}
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(os.Getenv(envJournal)), "fail "+who)); err == nil || trouble("fail "+who) {
		fmt.Fprintln(os.Stderr, "a reason to give up")
		return 1
	}
	note("once %s from %s secret %s", who, filepath.Base(flag("from")), flag("secret"))
	if command == "rotate" {
		return 0
	}
	dir := flag("conf")
	file := map[string]string{"nginx": "nginx.conf", "haproxy": "haproxy.cfg"}[flag("engine")]
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, file), []byte(flag("run-dir")), 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// fakeEngine plays an NGINX or HAProxy, which does not bind a socket that is there, and finishes at a signal
// of its own.
func fakeEngine(name string, args []string) int {
	switch conf := args[len(args)-1]; conf {
	case "-V":
		fmt.Fprintln(os.Stderr, "nginx version: nginx/1.22.1\nbuilt with OpenSSL 3.0.17 1 Jul 2025\nconfigure arguments: --with-stream")
		return 0
	case "-vv":
		fmt.Println("HAProxy version 2.6.12-1 2023/04/01\nRunning on OpenSSL version : OpenSSL 3.0.17 1 Jul 2025")
		return 0
	}
	conf := args[len(args)-1]
	who := filepath.Base(filepath.Dir(filepath.Dir(conf)))
	quit, other := syscall.SIGQUIT, syscall.SIGUSR1
	if name == "haproxy" {
		quit, other = other, quit
	}
	dir := filepath.Dir(os.Getenv(envJournal))
	_, refused := os.Stat(filepath.Join(dir, "refuse "+who))
	if once := os.Remove(filepath.Join(dir, "refuse once "+who)); once == nil || refused == nil {
		fmt.Fprintln(os.Stderr, "these files will not do")
		note("refuse %s", who)
		return 1
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, quit, other, syscall.SIGTERM)
	run, err := os.ReadFile(conf)
	if err == nil {
		var f *os.File
		if f, err = os.OpenFile(filepath.Join(string(run), "bound.sock"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err == nil {
			err = f.Close()
		}
	}
	if err != nil {
		note("broken %s: %v", who, err)
		return 1
	}
	note("serve %s", who)
	for s := range signals {
		switch {
		case s == quit && trouble("stubborn "+name):
		case s == quit:
			note("quit %s", who)
			return 0
		default:
			note("other %s %v", who, s)
			if s == syscall.SIGTERM {
				return 0
			}
		}
	}
	return 0
}
