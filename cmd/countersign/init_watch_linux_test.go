package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"countersign.dev/durable/durabletest"
	"countersign.dev/id"
	"countersign.dev/issue/issuetest"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/nginx"
	"countersign.dev/secret/filestore"
)

// watchLab is a store, an authority and an application, beside which a real proxy runs.
type watchLab struct {
	t       *testing.T
	dir     string
	engine  string
	program string
	store   *filestore.Store
	address netip.AddrPort // where the proxy serves
	app     int            // the application's port on 127.0.0.1
	admin   string

	ca           *issuetest.Authority
	root         *x509.Certificate // the authority's, or the server's
	state        string            // of a server that issues instead of the authority here; empty when there is none
	proxy, watch *faultChild
}

// newWatchLab makes all but the proxy and its watcher.
func newWatchLab(t *testing.T, engine string) *watchLab {
	t.Helper()
	l := &watchLab{t: t, engine: engine, program: watchProgram(t, engine)}
	var err error
	l.dir, err = os.MkdirTemp("", "cs") // its name leaves room for a UNIX socket's
	l.ok(err)
	t.Cleanup(func() { os.RemoveAll(l.dir) })
	l.ok(filestore.GenerateIdentity(l.file("id.age")))
	identity, err := filestore.LoadIdentity(l.file("id.age"))
	l.ok(err)
	l.store, err = filestore.Create(l.file("store"), identity)
	l.ok(err)
	l.address, l.admin = watchAddress(t), watchAddress(t).String()
	application := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "for %s", r.Header.Get("X-Client-Cert"))
	})}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	l.ok(err)
	l.app = listener.Addr().(*net.TCPAddr).Port
	go func() { _ = application.Serve(listener) }()
	t.Cleanup(func() { application.Close() })
	l.ca = issuetest.New(t)
	l.root = l.ca.Root
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Directory: l.dir, Content: l.specification()}})
	l.ok(err)
	l.plan(spec)
	return l
}

func (l *watchLab) specification() string {
	return fmt.Sprintf("mesh: shop\ntrustDomain: shop.internal\nservices:\n  orders:\n    ports: [{port: %d, protocol: http, app: %d}]\n  client:\n    ports: [{port: 9, protocol: tcp}]\n    calls: [{service: orders, port: %d}]\n",
		l.address.Port(), l.app, l.address.Port())
}

// plan writes the Plan of the service.
func (l *watchLab) plan(spec *mesh.Spec) {
	l.t.Helper()
	plan, err := spec.Compile("orders")
	l.ok(err)
	text, err := json.Marshal(plan)
	l.ok(err)
	l.ok(os.WriteFile(l.file("plan.json"), text, 0o600))
}

func (l *watchLab) file(name string) string { return filepath.Join(l.dir, name) }

func (l *watchLab) ok(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// watchProgram finds a proxy; a test without it is skipped loudly, and fails where every peer is wanted.
func watchProgram(t *testing.T, name string) string {
	t.Helper()
	for _, name := range []string{name, "/usr/sbin/" + name} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed, and CI=true wants every peer: tools/install-peers.sh installs it", name)
	}
	t.Skipf("NOT TESTED: %s is not installed (tools/install-peers.sh installs it)", name)
	return ""
}

// watchAddress is an address that is free.
func watchAddress(t *testing.T) netip.AddrPort {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).AddrPort()
}

// certify issues a certificate; it gives chain and key in PEM, and the serial.
func (l *watchLab) certify(name string, kind mesh.KeyType) (chain, key []byte, serial string) {
	l.t.Helper()
	if l.state != "" {
		return l.issued(name)
	}
	who, err := id.Parse("spiffe://shop.internal/service/" + name)
	l.ok(err)
	own, err := mtls.GenerateKey(kind)
	l.ok(err)
	leaf := l.ca.Leaf(l.t, who, own)
	key, err = mtls.MarshalKey(own)
	l.ok(err)
	return issuetest.PEM(leaf, l.ca.Issuing), key, mtls.Serial(leaf)
}

// put makes a version of the secret current; it gives the certificate's serial.
func (l *watchLab) put(version string, kind mesh.KeyType) string {
	l.t.Helper()
	chain, key, serial := l.certify("orders", kind)
	text, err := json.Marshal(map[string]string{"cert_pem": string(chain), "key_pem": string(key), "ca_bundle": string(issuetest.PEM(l.root))})
	l.ok(err)
	_, err = l.store.Stage(l.t.Context(), "shop/orders", version, text)
	l.ok(err)
	l.ok(l.store.Promote(l.t.Context(), "shop/orders", version))
	return serial
}

// args are those of init, once or as a watcher.
func (l *watchLab) args(further ...string) []string {
	return append([]string{
		"init", "--from", "file:" + l.file("store"), "--identity-file", l.file("id.age"), "--secret", "shop/orders", "--layout", "json",
		"--to", l.file("tls"), "--engine", l.engine, "--address", "127.0.0.1",
	}, further...)
}

// conf are the flags that let init write the configuration.
func (l *watchLab) conf() []string {
	flags := []string{"--conf", l.file("conf"), "--plan", l.file("plan.json"), "--run-dir", l.file("run"), "--accept-revoked"}
	if _, err := os.Stat(nginx.DefaultStreamModule); err != nil {
		flags = append(flags, "--stream-module", "none")
	}
	if os.Geteuid() == 0 {
		flags = append(flags, "--user", "root") // or the workers could not reach the test's directories
	}
	return flags
}

// once runs init once.
func (l *watchLab) once(further ...string) {
	l.t.Helper()
	if output, err := initCommand(l.t, nil, l.args(further...)...).CombinedOutput(); err != nil {
		l.t.Fatalf("%v\n%s", err, output)
	}
}

// child starts a process, which ends with the test.
func (l *watchLab) child(command *exec.Cmd) *faultChild {
	l.t.Helper()
	c := &faultChild{command: command, ended: make(chan struct{})}
	command.Stdout, command.Stderr = c, c
	l.ok(command.Start())
	go func() { c.err = command.Wait(); close(c.ended) }()
	l.t.Cleanup(func() {
		_ = command.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-c.ended:
		case <-time.After(initPatience):
			_ = command.Process.Kill()
			<-c.ended
		}
		if l.t.Failed() {
			l.t.Logf("%s wrote:\n%.8000s", filepath.Base(command.Path), c.output())
		}
	})
	return c
}

// startProxy starts the stock program as an image does, and waits until it serves a certificate.
func (l *watchLab) startProxy(file, serial string) {
	l.t.Helper()
	args := []string{"-c", file}
	if l.engine == "haproxy" {
		args = []string{"-W", "-db", "-S", l.file("master.sock") + ",mode,600", "-f", file}
	}
	l.proxy = l.child(exec.CommandContext(context.WithoutCancel(l.t.Context()), l.program, args...))
	l.serves(serial)
}

// way is how the watcher tells the proxy.
func (l *watchLab) way() string {
	if l.engine == "haproxy" {
		return "haproxy:" + l.file("master.sock")
	}
	return fmt.Sprintf("signal:%d", l.proxy.command.Process.Pid)
}

// startWatch starts the watcher.
func (l *watchLab) startWatch(further ...string) {
	l.t.Helper()
	path := os.Getenv("PATH") + ":/usr/sbin" // where distributions put both
	l.watch = l.child(initCommand(l.t, []string{"PATH=" + path}, l.args(append([]string{"--watch", "--interval", "100ms", "--admin", l.admin}, further...)...)...))
}

// serial is what the proxy shows in a full handshake.
func (l *watchLab) serial() string {
	conn, err := tls.Dial("tcp", l.address.String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	return mtls.Serial(conn.ConnectionState().PeerCertificates[0])
}

// serves waits until the proxy shows a certificate.
func (l *watchLab) serves(serial string) {
	l.t.Helper()
	l.eventually("the new serial is served", func() bool { return l.serial() == serial })
}

func (l *watchLab) eventually(what string, holds func() bool) {
	l.t.Helper()
	for deadline := time.Now().Add(initPatience); !holds(); {
		if time.Now().After(deadline) {
			l.t.Fatalf("never: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// says waits until an answer of the watcher's admin listener holds a text.
func (l *watchLab) says(path, text string) {
	l.t.Helper()
	last := ""
	defer func() {
		if l.t.Failed() {
			l.t.Logf("%s says %s", path, last)
		}
	}()
	l.eventually(path+" says "+text, func() bool {
		answer, err := http.Get("http://" + l.admin + path)
		if err != nil {
			last = err.Error()
			return false
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		last = string(body)
		return err == nil && strings.Contains(last, text)
	})
}

// load asks all the time; it gives how many answers came and what went wrong, when it is ended.
type load struct {
	stop           context.CancelFunc
	wait           sync.WaitGroup
	answered, lost atomic.Int64
	mu             sync.Mutex
	errs           []string
}

func (l *watchLab) startLoad(callers int) *load {
	l.t.Helper()
	chain, key, _ := l.certify("client", mesh.ECDSAP256)
	pair, err := tls.X509KeyPair(chain, key)
	l.ok(err)
	roots := x509.NewCertPool()
	roots.AddCert(l.root)
	ctx, stop := context.WithCancel(context.WithoutCancel(l.t.Context()))
	all := &load{stop: stop}
	for range callers {
		all.wait.Go(func() {
			// A connection of its own for each caller, kept as long as the proxy keeps it.
			transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "orders.shop.internal", Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}}
			defer transport.CloseIdleConnections()
			for ctx.Err() == nil {
				if err := ask(ctx, transport, l.address); err == nil {
					all.answered.Add(1)
				} else if ctx.Err() == nil {
					all.lost.Add(1)
					all.mu.Lock()
					all.errs = append(all.errs, err.Error())
					all.mu.Unlock()
				}
			}
		})
	}
	l.t.Cleanup(all.end)
	return all
}

func (a *load) end() {
	a.stop()
	a.wait.Wait()
}

func ask(ctx context.Context, transport *http.Transport, address netip.AddrPort) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address.String()+"/", http.NoBody)
	if err != nil {
		return err
	}
	answer, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && (answer.StatusCode != 200 || !bytes.Contains(body, []byte("CN=client"))) {
		err = fmt.Errorf("%s: %s", answer.Status, body)
	}
	return err
}

// startReaders looks all the time for a mixed pair and for modes that are wider than asked.
func (l *watchLab) startReaders() (end func() error) {
	stop := make(chan struct{})
	errs := make(chan error, 3)
	dir := l.file("tls")
	for _, look := range []func(string) error{watchPair, watchBoth, watchModes} {
		go func() {
			for {
				if err := look(dir); err != nil {
					errs <- err
					return
				}
				select {
				case <-stop:
					errs <- nil
					return
				default:
				}
			}
		}()
	}
	return func() error { close(stop); return errors.Join(<-errs, <-errs, <-errs) }
}

// watchPair resolves the link once and reads a pair behind it.
func watchPair(dir string) error {
	for {
		target, err := os.Readlink(filepath.Join(dir, "current"))
		if err != nil {
			return err
		}
		_, err = tls.LoadX509KeyPair(filepath.Join(dir, target, "cert.pem"), filepath.Join(dir, target, "key.pem"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // two generations have passed since the link was read
		}
		return err
	}
}

func watchBoth(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "current", "cert-and-key.pem"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the same, between resolving and opening
	}
	if err == nil {
		_, err = tls.X509KeyPair(text, text)
	}
	return err
}

func watchModes(dir string) error {
	return durabletest.Modes(dir, "cert.pem", "ca.pem", "made.json", "nginx.conf", "haproxy.cfg")
}

// TestWatchRotations takes ten versions under constant requests: each is seen on the wire, no reader sees a mixed pair or a
// mode wider than asked, and HAProxy loses nothing. NGINX closes kept connections when it reloads; what an idempotent
// request meets there is asked again once by its client, and what is lost beyond that is counted.
func TestWatchRotations(t *testing.T) {
	for _, engine := range []string{"nginx", "haproxy"} {
		t.Run(engine, func(t *testing.T) {
			l := newWatchLab(t, engine)
			serial := l.put("v1", mesh.ECDSAP256)
			l.once(l.conf()...)
			l.startProxy(l.file("conf/"+map[string]string{"nginx": "nginx.conf", "haproxy": "haproxy.cfg"}[engine]), serial)
			l.startWatch(append(l.conf(), "--reload", l.way())...)
			l.says("/ready", "LIVE")
			calls, readers := l.startLoad(4), l.startReaders()
			const rotations = 10
			for n := range rotations {
				before := calls.answered.Load()
				serial := l.put(fmt.Sprint("v", n+2), mesh.ECDSAP256)
				l.says("/stats", fmt.Sprintf("countersign.deliveries_total: %d\n", n+1))
				if shown := l.serial(); shown != serial {
					t.Fatalf("rotation %d counts as delivered, and %s is served instead of %s", n+1, shown, serial)
				}
				l.says("/certs", serial)
				l.eventually("requests go on", func() bool { return calls.answered.Load() > before })
			}
			calls.end()
			if err := readers(); err != nil {
				t.Error(err)
			}
			t.Logf("%d rotations: %d requests answered, %d lost", rotations, calls.answered.Load(), calls.lost.Load())
			if lost := calls.lost.Load(); lost > 0 && engine == "haproxy" {
				t.Errorf("%d requests were lost: %.2000q", lost, calls.errs)
			}
			if calls.lost.Load()*100 > calls.answered.Load() {
				t.Errorf("more than one request in a hundred was lost: %.2000q", calls.errs)
			}
			l.says("/stats", "countersign.delivery_rollbacks_total: 0\n")
			key, err := os.ReadFile(l.file("tls/current/key.pem"))
			l.ok(err)
			if line := bytes.Split(key, []byte("\n"))[1]; initSearch(t, l.watch.command.Process.Pid, line) || strings.Contains(l.watch.output()+l.proxy.output(), string(line)) {
				t.Error("the key stands in the arguments, the environment or the output of a process")
			}
		})
	}
}
