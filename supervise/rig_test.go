package supervise

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"countersign.dev/haproxy"
	"countersign.dev/id"
	"countersign.dev/issue/issuetest"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/nginx"
)

type subject struct{ Kind }

var subjects = []subject{{Kind{NGINX, nginx.Render, nginx.LeastVersion}}, {Kind{HAProxy, haproxy.Render, haproxy.LeastVersion}}}

// each runs a test with both programs, beside other tests: most of what they do is to wait for a program. One that is not
// installed is skipped loudly, and fails where every peer is wanted.
func each(t *testing.T, test func(t *testing.T, s subject)) {
	t.Helper()
	t.Parallel()
	withEach(t, func(t *testing.T, s subject) {
		t.Parallel()
		test(t, s)
	})
}

// withEach is each for a test that changes what belongs to the whole process: nothing runs beside it.
func withEach(t *testing.T, test func(t *testing.T, s subject)) {
	t.Helper()
	for _, s := range subjects {
		t.Run(s.Engine.String(), func(t *testing.T) {
			if _, err := s.Find(t.Context(), ""); err != nil {
				if os.Getenv("CI") == "true" {
					t.Fatalf("%v, and CI=true wants every peer: tools/install-peers.sh installs it", err)
				}
				t.Skipf("NOT TESTED: %v (tools/install-peers.sh installs it)", err)
			}
			test(t, s)
		})
	}
}

// authority is a CA in memory.
type authority struct{ *issuetest.Authority }

func newAuthority(t testing.TB) *authority { return &authority{issuetest.New(t)} }

// identity issues a leaf for a member.
func (a *authority) identity(t testing.TB, name string) *mtls.Identity {
	t.Helper()
	who, err := id.New("shop.internal", id.Service, name)
	if err != nil {
		t.Fatal(err)
	}
	key := issuetest.Key(t)
	identity, err := mtls.NewIdentity([]*x509.Certificate{a.Leaf(t, who, key), a.Issuing}, key, issuetest.PEM(a.Root))
	if err != nil {
		t.Fatal(err)
	}
	return identity
}

// source is an identity that a test changes.
type source struct {
	now   atomic.Pointer[mtls.Identity]
	asked atomic.Int64 // how often it was given
}

func (s *source) Identity() (*mtls.Identity, error) {
	identity := s.now.Load()
	s.asked.Add(1)
	if identity != nil {
		return identity, nil
	}
	return nil, mtls.ErrNoIdentity
}

const shop = `
mesh: shop
services:
  front: {calls: [{service: back, port: 9080, listen: 9180}]}
  back:
    ports:
      - {port: 9080, protocol: http, app: 18080, allow: [{from: front}]}
      - {port: 9081, protocol: http, app: 18080, tls: permissive, allow: [{from: [front, anonymous]}]}
      - {port: 7000, protocol: tcp, app: 17000, allow: [{from: front}]}
  other: {calls: [{service: back, port: 7000, listen: 9190}]}
`

func compile(t testing.TB, text, workload string) *mesh.Plan {
	t.Helper()
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Directory: "/etc/mesh", Content: text}})
	var errs mesh.Errors
	if errors.As(err, &errs) {
		t.Fatal(strings.Join(errs.Lines(), "\n"))
	}
	if err != nil {
		t.Fatal(err)
	}
	plan, err := spec.Compile(workload)
	if err != nil {
		t.Fatal(err)
	}
	plan.Revision = 1
	return plan
}

// sidecar is a Supervisor with what a test needs to look at.
type sidecar struct {
	*Supervisor
	ca      *authority
	source  *source
	address string
	log     *text1
	access  *text1
	parent  string
}

// text1 is a text that several goroutines write.
type text1 struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (t *text1) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.Write(p)
}

func (t *text1) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}

// memoryDir is a directory on a memory file system; keys go nowhere else in tests either.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "supervise-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// supervise makes a Supervisor for a member at an address of its own.
func (s subject) supervise(t *testing.T, ca *authority, workload string, change ...func(*Config)) *sidecar {
	t.Helper()
	binary, err := s.Find(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	address := freeAddress(t)
	c := &sidecar{ca: ca, source: new(source), address: address.String(), log: new(text1), access: new(text1), parent: memoryDir(t)}
	c.source.now.Store(ca.identity(t, workload))
	log := slog.New(slog.NewTextHandler(c.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	run, err := NewRunDir(c.parent, false, log)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Binary: binary, Render: s.Render, Source: c.source, RunDir: run, Address: address, AppAddress: address,
		Drain: 10 * time.Second, AccessLog: c.access, Log: log,
	}
	for _, f := range change {
		f(&cfg)
	}
	if c.Supervisor, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s\naccess log:\n%s", workload, c.log, c.access)
		}
	})
	return c
}

var taken sync.Map

// freeAddress gives an address of 127.0.0.0/8 that nobody else here uses.
func freeAddress(t testing.TB) netip.Addr {
	t.Helper()
	for n := range 250 {
		address := netip.AddrFrom4([4]byte{127, byte(60 + os.Getpid()%60), byte(1 + len(t.Name())%200), byte(1 + n)})
		if _, used := taken.LoadOrStore(address, true); used {
			continue
		}
		listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", netip.AddrPortFrom(address, 9080).String())
		if err != nil {
			continue
		}
		listener.Close()
		return address
	}
	t.Fatal("no address of 127.0.0.0/8 is free")
	return netip.Addr{}
}

// application listens where the applications of back are, and says who calls.
func application(t *testing.T, address string) {
	t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Header.Get("X-Client-Cert"))
	}))
	server.Listener.Close()
	var err error
	if server.Listener, err = new(net.ListenConfig).Listen(t.Context(), "tcp", address+":18080"); err != nil {
		t.Fatal(err)
	}
	server.Start()
	t.Cleanup(server.Close)
	echo, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address+":17000")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { echo.Close() })
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

// client is a member's, for requests to back; nobody's when identity is nil.
func client(identity *mtls.Identity) *http.Client {
	config := &tls.Config{InsecureSkipVerify: true}
	if identity != nil {
		certificate := identity.Certificate
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil }
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: config}, Timeout: 20 * time.Second}
}

// resuming is a client that resumes sessions and makes a connection for each request.
func resuming(identity *mtls.Identity) *http.Client {
	c := client(identity)
	transport := c.Transport.(*http.Transport)
	transport.DisableKeepAlives = true
	transport.TLSClientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	return c
}

// get asks once and gives status, body and the serial that was presented.
func get(t testing.TB, c *http.Client, url string) (status int, body, serial string, err error) {
	t.Helper()
	request, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := c.Do(request)
	if err != nil {
		return 0, "", "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if response.TLS != nil {
		serial = mtls.Serial(response.TLS.PeerCertificates[0])
	}
	return response.StatusCode, string(text), serial, err
}

// send sends a request with a body, unless it is a GET, and gives the status.
func send(t testing.TB, c *http.Client, method, url string) (int, error) {
	t.Helper()
	var body io.Reader
	if method != http.MethodGet {
		body = strings.NewReader("body")
	}
	request, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	response, err := c.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, err
}

// eventually polls until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// ask asks the administrator's surface.
func (c *sidecar) ask(method, path string) (int, string) {
	w := httptest.NewRecorder()
	c.Admin().ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w.Code, w.Body.String()
}

// orphanIn is a process of that name whose working directory is dir.
func orphanIn(t *testing.T, dir, name string) *exec.Cmd {
	t.Helper()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), name)
	if err := os.Symlink(sleep, program); err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(context.WithoutCancel(t.Context()), program, "600")
	command.Dir = dir
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = command.Wait() }()
	t.Cleanup(func() { _ = command.Process.Kill(); <-ended })
	return command
}

// slow is an application that answers when it is told to.
type slow struct{ began, now chan struct{} }

func slowApplication(t *testing.T, address string) *slow {
	t.Helper()
	s := &slow{make(chan struct{}, 1), make(chan struct{})}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.began <- struct{}{}
		select {
		case <-s.now:
			fmt.Fprint(w, "done")
		case <-r.Context().Done():
		}
	}))
	server.Listener.Close()
	var err error
	if server.Listener, err = new(net.ListenConfig).Listen(t.Context(), "tcp", address+":18080"); err != nil {
		t.Fatal(err)
	}
	server.Start()
	t.Cleanup(server.Close)
	return s
}

func contextFor(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}
