package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"countersign.dev/api"
	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is an agent with a fake server on a network in memory.
type rig struct {
	t     testing.TB
	fake  *fake
	net   *pipeNet
	dir   string
	token string
	logs  *logBuffer

	mu       sync.Mutex
	wall     time.Duration // how far the machine's clock was set
	applied  []uint64
	applyErr error
	changes  int

	agent  *Agent
	cancel context.CancelFunc
	ended  chan error
}

// logBuffer collects log lines from many goroutines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newRig makes everything but the agent.
func newRig(t testing.TB) *rig {
	r := &rig{t: t, fake: newFake(t), net: newPipeNet(), dir: filepath.Join(t.TempDir(), "state"), logs: &logBuffer{}}
	r.token = filepath.Join(t.TempDir(), "token")
	r.writeToken("good-token\n")
	r.fake.serve(r.net)
	return r
}

func (r *rig) writeToken(text string) {
	if err := os.WriteFile(r.token, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) config() Config {
	server, err := url.Parse("https://server.test:8443")
	if err != nil {
		r.t.Fatal(err)
	}
	return Config{
		Server: server, Pin: r.fake.ca.pin(), TokenFile: r.token, StateDir: r.dir, Instance: "colorteller-1",
		Log:        slog.New(slog.NewTextHandler(r.logs, &slog.HandlerOptions{Level: slog.LevelInfo})),
		OnPlan:     r.apply,
		OnIdentity: func() { r.mu.Lock(); r.changes++; r.mu.Unlock() },
		dial:       r.net.dial,
		wall:       func() time.Time { r.mu.Lock(); defer r.mu.Unlock(); return time.Now().Add(r.wall) },
	}
}

func (r *rig) apply(plan *mesh.Plan) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.applyErr != nil {
		return r.applyErr
	}
	r.applied = append(r.applied, plan.Revision)
	return nil
}

func (r *rig) inForce() []uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.applied)
}

func (r *rig) identityChanges() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changes
}

func (r *rig) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

// start makes the agent and lets it run.
func (r *rig) start() {
	r.t.Helper()
	agent, err := New(r.config())
	if err != nil {
		r.t.Fatal(err)
	}
	r.run(agent)
}

func (r *rig) run(agent *Agent) {
	ctx, cancel := context.WithCancel(context.Background())
	r.agent, r.cancel, r.ended = agent, cancel, make(chan error, 1)
	go func() { r.ended <- agent.Run(ctx) }()
}

// stop ends the agent, as a process that is asked to does.
func (r *rig) stop() {
	r.t.Helper()
	r.cancel()
	if err := <-r.ended; err != nil {
		r.t.Errorf("Run: %v", err)
	}
}

// close ends everything.
func (r *rig) close() {
	r.stop()
	r.fake.stop()
	r.net.setDown(true)
	if r.t.Failed() {
		r.t.Log(r.logs.String())
	}
}

// after lets simulated time pass and everything that is due happen.
func after(d time.Duration) {
	time.Sleep(d) // in a bubble: no real time passes
	synctest.Wait()
}

// inBubble runs a test in simulated time.
func inBubble(t *testing.T, test func(t *testing.T, r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		test(t, r)
	})
}

func TestEnrollsAppliesReports(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		defer r.close()
		after(time.Second)

		identity, err := r.agent.Identity()
		if err != nil {
			t.Fatal(err)
		}
		if identity.ID != r.fake.who || r.agent.ID() != r.fake.who {
			t.Errorf("identity %s, want %s", identity.ID, r.fake.who)
		}
		if got := r.inForce(); !slices.Equal(got, []uint64{1}) {
			t.Errorf("Plans in force: %v", got)
		}
		report := r.fake.lastReport()
		if report.Serial != mtls.Serial(identity.Certificate.Leaf) || report.Revision != 1 || report.Instance != "colorteller-1" ||
			!report.NotAfter.Equal(identity.Certificate.Leaf.NotAfter) || report.PID != os.Getpid() || report.Problem != "" || report.Draining {
			t.Errorf("report %+v", report)
		}
		for name, want := range map[string]os.FileMode{
			".": 0o700, "current/cert.pem": 0o600, "current/key.pem": 0o600, "current/ca.pem": 0o600,
			"plan.json": 0o600, "agent.json": 0o600, "lock": 0o600,
		} {
			info, err := os.Stat(filepath.Join(r.dir, name))
			if err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %v, %v; want mode %v", name, info, err, want)
			}
		}
		if _, err := os.Stat(filepath.Join(r.dir, pendingFile)); err == nil {
			t.Error("the key of the enrolment was left behind")
		}
		if n := r.net.dialed(); n != 2 {
			t.Errorf("%d connections for one enrolment and one watch with its reports, want 2", n)
		}
		status := r.agent.Status()
		if !status.Connected || status.SurvivesSeconds < 3590 || status.SurvivesSeconds > 3600 || status.Problem != "" {
			t.Errorf("status %+v", status)
		}
	})
}

func TestReportsKeepComing(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		defer r.close()
		after(time.Minute)
		if n := r.fake.reported(); n < 25 || n > 40 {
			t.Errorf("%d reports in a minute", n)
		}
	})
}

func TestNoSecretInTheLog(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.fake.tokens = map[string]id.ID{"secret-token-1234": r.fake.who}
		r.writeToken("secret-token-1234")
		r.fake.fail[api.PathEnroll] = &api.Error{Code: api.CodeUnavailable}
		r.start()
		defer r.close()
		after(10 * time.Second)
		r.fake.set(func() { delete(r.fake.fail, api.PathEnroll) })
		after(45 * time.Minute)
		for _, secret := range []string{"secret-token-1234", "PRIVATE KEY"} {
			if strings.Contains(r.logs.String(), secret) {
				t.Errorf("the log holds %q", secret)
			}
		}
		if !strings.Contains(r.logs.String(), "cannot enrol yet") {
			t.Error("the log does not tell of the failed tries: this test would see nothing")
		}
	})
}

// TestTransientRefusals proves that what passes by itself is waited for, in line with the back-off.
func TestTransientRefusals(t *testing.T) {
	for _, code := range []string{api.CodeUnavailable, api.CodeNotRecorded, api.CodeInternal, api.CodeRateLimited} {
		t.Run(code, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				r.fake.fail[api.PathEnroll] = &api.Error{Code: code}
				r.start()
				defer r.close()
				after(time.Minute)
				r.fake.set(func() { delete(r.fake.fail, api.PathEnroll) })
				if n := r.net.dialed(); n < 5 || n > 15 {
					t.Errorf("%d tries in a minute", n)
				}
				if p := r.agent.Status().Problem; !strings.Contains(p, "the fake says "+code) {
					t.Errorf("problem %q", p)
				}
				after(20 * time.Second)
				if _, err := r.agent.Identity(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestFinalRefusals proves that the first enrolment does not go on where no trying helps, and says
// what to do.
func TestFinalRefusals(t *testing.T) {
	cases := map[string]struct {
		prepare func(r *rig)
		want    error
		text    string
	}{
		"unknown token":    {func(r *rig) { r.writeToken("nobody-knows") }, ErrRefused, "countersign token create"},
		"used token":       {func(r *rig) { r.fake.tokens["good-token"] = id.ID{} }, ErrRefused, "used_token"},
		"expired token":    {func(r *rig) { r.fake.fail[api.PathEnroll] = &api.Error{Code: api.CodeExpiredToken} }, ErrRefused, "expired_token"},
		"not declared":     {func(r *rig) { r.fake.fail[api.PathEnroll] = &api.Error{Code: api.CodeNotDeclared} }, ErrRefused, "mesh apply"},
		"bad request":      {func(r *rig) { r.fake.fail[api.PathEnroll] = &api.Error{Code: api.CodeBadRequest} }, ErrRefused, "versions"},
		"no token file":    {func(r *rig) { os.Remove(r.token) }, ErrToken, "token create"},
		"empty token":      {func(r *rig) { r.writeToken(" \n") }, ErrToken, "is empty"},
		"two lines":        {func(r *rig) { r.writeToken("a\nb\n") }, ErrToken, "one line"},
		"a large file":     {func(r *rig) { r.writeToken(strings.Repeat("a", 10000)) }, ErrToken, "one line"},
		"another root":     {func(r *rig) { r.fake.ca = newAuthority(r.t, "second") }, ErrPin, "Nothing was sent"},
		"a member answers": {func(r *rig) { r.fake.self = r.fake.who }, ErrNotServer, "--server"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				agent, err := New(r.config())
				if err != nil {
					t.Fatal(err)
				}
				c.prepare(r)
				err = agent.Run(t.Context())
				if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
					t.Errorf("got %v\nwant %v with %q", err, c.want, c.text)
				}
				if (errors.Is(c.want, ErrPin) || errors.Is(c.want, ErrNotServer)) && r.fake.enrolled() != 0 {
					t.Error("the token was sent to somebody who is not the server")
				}
				r.fake.stop()
			})
		})
	}
}

func TestRefusesWrongCredentials(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.fake.who = mustID(t, id.Probe, "verify")
		r.fake.tokens["good-token"] = r.fake.who
		r.start()
		defer r.close()
		after(5 * time.Second)
		if _, err := r.agent.Identity(); !errors.Is(err, mtls.ErrNoIdentity) {
			t.Errorf("a probe's certificate was taken: %v", err)
		}
		if p := r.agent.Status().Problem; !strings.Contains(p, "no usable certificate") {
			t.Errorf("problem %q", p)
		}
	})
}

func TestDrain(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		defer r.close()
		after(time.Minute)
		if err := r.agent.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !r.fake.lastReport().Draining {
			t.Error("the server was not told before Drain returned")
		}
		after(time.Minute)
		if !r.fake.lastReport().Draining {
			t.Error("a later report takes it back")
		}
	})
}

func TestReportOfTheDataPlane(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		cfg := r.config()
		cfg.Report = func() api.Report {
			return api.Report{Revision: 7, Requests: 5, Problem: "a port is in use", Listening: []api.Listening{{Port: 9080, Address: "127.1.2.3:9080"}}}
		}
		agent, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		r.run(agent)
		defer r.close()
		after(time.Minute)
		report := r.fake.lastReport()
		if report.Revision != 7 || report.Requests != 5 || len(report.Listening) != 1 || report.Serial == "" || report.Problem != "a port is in use" {
			t.Errorf("report %+v", report)
		}
	})
}

func TestGauges(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		agent, err := New(r.config())
		if err != nil {
			t.Fatal(err)
		}
		names := []string{
			"control_plane.connected_state", "server.days_until_first_cert_expiring", "countersign.survives_seconds",
			"countersign.crl_check", "countersign.crl_stale", "countersign.crl_number", "countersign.crl_seconds_left",
			"countersign.renewals_total", "countersign.renewal_failures_total", "countersign.plan_revision", "countersign.clock_offset_seconds",
		}
		for _, name := range names {
			if value, ok := agent.Gauges()[name]; !ok || value != 0 {
				t.Errorf("%s at the start: %d, %v", name, value, ok)
			}
		}
		r.fake.ttl = 49 * time.Hour
		r.run(agent)
		defer r.close()
		after(time.Minute)
		gauges := agent.Gauges()
		if gauges["control_plane.connected_state"] != 1 || gauges["countersign.plan_revision"] != 1 ||
			gauges["server.days_until_first_cert_expiring"] != 2 || gauges["countersign.survives_seconds"] < 176000 {
			t.Errorf("gauges %v", gauges)
		}
		if len(gauges) != len(names) {
			t.Errorf("gauges %v", gauges)
		}
	})
}

// TestNewsIsReportedTogether has more news than is worth a report each.
func TestNewsIsReportedTogether(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		defer r.close()
		after(time.Minute)
		before := r.fake.reported()
		for range 1000 { // in a second
			r.agent.ReportSoon()
			after(time.Millisecond)
		}
		after(newsGap)
		if n := r.fake.reported() - before; n < 10 || n > 30 {
			t.Errorf("%d reports of a second's news", n)
		}
	})
}

func TestNewRefusesSettings(t *testing.T) {
	r := &rig{t: t, fake: &fake{ca: newAuthority(t, "first")}, net: newPipeNet(), dir: t.TempDir(), logs: &logBuffer{}}
	parse := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	cases := map[string]func(*Config){
		"no server":     func(c *Config) { c.Server = nil },
		"http":          func(c *Config) { c.Server = parse("http://a:1") },
		"no host":       func(c *Config) { c.Server = parse("https://:1") },
		"a path":        func(c *Config) { c.Server = parse("https://a/b") },
		"a query":       func(c *Config) { c.Server = parse("https://a?b") },
		"user":          func(c *Config) { c.Server = parse("https://u:p@a") },
		"no pin":        func(c *Config) { c.Pin = "" },
		"short pin":     func(c *Config) { c.Pin = "sha256:00" },
		"no state":      func(c *Config) { c.StateDir = "" },
		"no instance":   func(c *Config) { c.Instance = "" },
		"odd instance":  func(c *Config) { c.Instance = "a b" },
		"underscore":    func(c *Config) { c.Instance = "a_b" }, // the server would refuse it, with each try
		"no name":       func(c *Config) { c.Instance = ".." },
		"long instance": func(c *Config) { c.Instance = strings.Repeat("a", 254) },
		"no OnPlan":     func(c *Config) { c.OnPlan = nil },
	}
	for name, change := range cases {
		cfg := r.config()
		change(&cfg)
		if _, err := New(cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	agent, err := New(r.config())
	if err != nil {
		t.Fatalf("the settings that the cases spoil: %v", err)
	}
	if err := agent.Close(); err != nil {
		t.Error(err)
	}
}
