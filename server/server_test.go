package server

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/journal"
	"countersign.dev/mesh"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		removeFaulty()
		os.Exit(code)
	}))
}

// colorapp is a gateway in front of a service.
const colorapp = `mesh: colorapp
certificates: {ttl: 1h}
services:
  colorteller:
    ports: [{port: 9080, protocol: http}]
    names: [colour.example.com]
gateways:
  colorgateway:
    listen: [{port: 8080, protocol: http}]
    routes: [{match: {prefix: /}, to: [{service: colorteller}]}]
`

// patience is how long a test waits for what has to happen.
const patience = time.Minute

// fixture is a state directory with a CA, and the servers that a test runs on it.
type fixture struct {
	t      *testing.T
	dir    string
	cfg    Config
	offset atomic.Int64 // of the server's clock
	log    *lockedBuffer
}

// newFixture makes a state in a directory whose path is short enough for a socket.
func newFixture(t *testing.T, spec string) *fixture {
	t.Helper()
	dir, err := os.MkdirTemp("", "cs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &fixture{t: t, dir: dir, log: &lockedBuffer{}}
	f.cfg = Config{
		State: filepath.Join(dir, "state"), Mesh: filepath.Join(dir, "mesh.yaml"), Listen: "127.0.0.1:0", Seal: ca.Unsealed(),
		Log:    slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Now:    func() time.Time { return time.Now().Add(time.Duration(f.offset.Load())) },
		timing: defaultTiming(),
	}
	f.cfg.timing.heartbeat = 50 * time.Millisecond
	f.cfg.timing.sweep = 20 * time.Millisecond
	f.cfg.timing.socketStop = 500 * time.Millisecond
	if _, err := ca.Init(f.cfg.State, ca.InitConfig{Seal: ca.Unsealed()}); err != nil {
		t.Fatal(err)
	}
	f.write(spec)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the servers' log:\n%s", f.log)
		}
	})
	return f
}

// write changes the file of --mesh.
func (f *fixture) write(spec string) {
	f.t.Helper()
	if err := os.WriteFile(f.cfg.Mesh, []byte(spec), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// remote is how a server looks from outside.
type remote struct {
	f     *fixture
	info  Info
	admin *api.Admin
}

// running is a server that runs in this process.
type running struct {
	*Server
	*remote
	stop func()
}

// start runs a server until stop or the end of the test.
func (f *fixture) start() *running {
	f.t.Helper()
	s, err := New(f.t.Context(), f.cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Errorf("the server ended with %v", err)
		}
	})
	f.t.Cleanup(stop)
	return &running{Server: s, remote: f.at(s.Info()), stop: stop}
}

// at is a server that describes itself so.
func (f *fixture) at(info Info) *remote {
	return &remote{f: f, info: info, admin: api.NewAdmin(info.Socket)}
}

// token makes a join token.
func (r *remote) token(workload string, uses int) string {
	r.f.t.Helper()
	created, err := r.admin.CreateToken(r.f.t.Context(), api.TokenRequest{Workload: workload, Uses: uses})
	if err != nil {
		r.f.t.Fatal(err)
	}
	return created.Token
}

// journalTypes are the types of the journal's entries after the first.
func (f *fixture) journalTypes() []journal.Type {
	f.t.Helper()
	var types []journal.Type
	for record, err := range journal.Records(ca.JournalDir(f.cfg.State)) {
		if err != nil {
			f.t.Fatal(err)
		}
		types = append(types, record.Type)
	}
	return types
}

// count says how many of the journal's entries are of a type.
func (f *fixture) count(want journal.Type) int {
	n := 0
	for _, t := range f.journalTypes() {
		if t == want {
			n++
		}
	}
	return n
}

// eventually polls until a condition holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s never came true", what)
		}
		time.Sleep(5 * time.Millisecond) // between two looks; nothing depends on its length
	}
}

// wantCode checks which refusal an error is, and gives its message.
func wantCode(t *testing.T, err error, code string) string {
	t.Helper()
	refusal, ok := errors.AsType[*api.Error](err)
	if !ok || refusal.Code != code {
		t.Errorf("%v, want the code %s", err, code)
		return ""
	}
	return refusal.Message
}

// lockedBuffer is a log that goroutines share.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// TestLifeOfAMesh goes once through everything: enrolment, watch, report, endpoints, renewal, apply,
// restart.
func TestLifeOfAMesh(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	teller, gateway := r.joinAs("colorteller", "colorteller-1"), r.joinAs("colorgateway", "colorgateway-1")
	if got := teller.chain[0].URIs[0].String(); got != "spiffe://colorapp.internal/service/colorteller" {
		t.Errorf("identity %s", got)
	}
	w := gateway.watch(0)
	first := w.plan("at once", anyPlan)
	if len(first.Upstreams) != 1 || len(first.Upstreams[0].Endpoints) != 0 {
		t.Errorf("upstreams %+v", first.Upstreams)
	}
	teller.watch(0)
	if err := teller.report(1, api.Listening{Port: 9080, Address: "127.0.0.2:9080"}); err != nil {
		t.Fatal(err)
	}
	second := w.plan("with the endpoint", func(p *mesh.Plan) bool { return len(p.Upstreams[0].Endpoints) == 1 })
	if e := second.Upstreams[0].Endpoints[0]; e.Instance != "colorteller-1" || e.Address.String() != "127.0.0.2:9080" {
		t.Errorf("endpoint %+v", e)
	}
	if second.Revision <= first.Revision {
		t.Errorf("revision %d after %d", second.Revision, first.Revision)
	}
	before := teller.serial()
	if err := teller.renew(); err != nil {
		t.Fatal(err)
	}
	if teller.serial() == before {
		t.Error("the renewal gave the same certificate")
	}
	r.stop()

	r = f.start()
	gateway.r, teller.r = r.remote, r.remote
	gateway.connect()
	w = gateway.watch(second.Revision)
	for range 3 { // the instance that was there before is forgiven, so the Plan is the same
		if event := w.next(); event.Plan != nil {
			t.Errorf("after the restart: revision %d with endpoints %v", event.Plan.Revision, event.Plan.Upstreams[0].Endpoints)
		}
	}
	if text := f.log.String(); strings.Contains(text, tokenPrefix) {
		t.Error("the log holds a token")
	}
	vkey := r.Info().JournalKey
	r.stop()
	if _, err := journal.Verify(ca.JournalDir(f.cfg.State), vkey); err != nil {
		t.Error(err)
	}
}
