package up

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/haproxy"
	"countersign.dev/mesh"
	"countersign.dev/nginx"
	"countersign.dev/supervise"
)

// shopLike has every kind of thing that a mesh has. The applications are programs of the system.
const shopLike = `
mesh: shop
services:
  front:
    ports: [{port: 8081, protocol: http}]
    calls: [{service: back}]
  back:
    ports: [{port: 7000, protocol: tcp}]
    instances: 2
gateways:
  gate:
    listen: [{port: 8080, protocol: http}]
    routes: [{to: [{service: front}]}]
`

// fixture is a run of fake processes.
type fixture struct {
	t       *testing.T
	config  Config
	signals chan os.Signal
	stdout  *buffer
	stderr  *buffer
	journal string
	temp    string
	run     *run
}

func newFixture(t *testing.T, text string) *fixture {
	t.Helper()
	dir := t.TempDir()
	f := &fixture{
		t: t, signals: make(chan os.Signal, 1), stdout: new(buffer), stderr: new(buffer),
		journal: filepath.Join(dir, "journal"), temp: filepath.Join(dir, "tmp"),
	}
	path := filepath.Join(dir, "mesh.yaml")
	for name, data := range map[string]string{path: text, f.journal: ""} {
		if err := os.WriteFile(name, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(f.temp, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", f.temp)
	t.Setenv(envJournal, f.journal)
	t.Setenv("GORACE", "atexit_sleep_ms=0") // with -race each of the fakes would linger for a second
	spec, err := mesh.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	f.config = Config{
		Spec: spec, Path: path, Executable: os.Args[0],
		StartTimeout: time.Minute, DrainTimeout: 20 * time.Second, Addresses: AutoAddresses,
		Engines: map[mesh.Engine]supervise.Kind{
			mesh.EngineNGINX:   {Engine: supervise.NGINX, Render: nginx.Render, Least: nginx.LeastVersion},
			mesh.EngineHAProxy: {Engine: supervise.HAProxy, Render: haproxy.Render, Least: haproxy.LeastVersion},
		},
		CA:      func(string, string) error { return nil },
		Signals: f.signals, Stdin: strings.NewReader(""), Stdout: f.stdout, Stderr: f.stderr,
	}
	return f
}

// trouble says what is to go wrong.
func (f *fixture) trouble(what string) { f.t.Setenv(envTrouble, what) }

// start runs the mesh in the background; the function waits for its end.
func (f *fixture) start() (wait func() (int, error)) {
	type result struct {
		status int
		err    error
	}
	f.run = newRun(f.config)
	f.run.watchInterval = 5 * time.Millisecond
	done := make(chan result, 1)
	go func() {
		status, err := f.run.run(context.Background())
		done <- result{status, err}
	}()
	waited := false
	wait = func() (int, error) {
		waited = true
		r := <-done
		f.leavesNothing()
		return r.status, r.err
	}
	f.t.Cleanup(func() {
		if !waited {
			f.signals <- syscall.SIGTERM
			<-done
		}
	})
	return wait
}

func (f *fixture) leavesNothing() {
	f.t.Helper()
	left, err := os.ReadDir(f.temp)
	if err != nil || len(left) != 0 {
		f.t.Errorf("the temporary directory has %v (%v) at the end", left, err)
	}
}

// document waits for the document on standard output.
func (f *fixture) document() *Document {
	f.t.Helper()
	eventually(f.t, "the document is written", func() bool { return strings.HasSuffix(f.stdout.String(), "\n") })
	doc, err := parseDocument([]byte(f.stdout.String()))
	if err != nil {
		f.t.Fatal(err)
	}
	return doc
}

// events are the lines of the journal that begin with a word.
func (f *fixture) events(word string) []string {
	f.t.Helper()
	data, err := os.ReadFile(f.journal)
	if err != nil {
		f.t.Fatal(err)
	}
	var events []string
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), word+" "); ok {
			events = append(events, rest)
		}
	}
	return events
}

func TestRun(t *testing.T) {
	for _, how := range []Addresses{AutoAddresses, SharedAddress} {
		t.Run(string(how), func(t *testing.T) {
			f := newFixture(t, shopLike)
			f.config.JSON, f.config.Addresses = true, how
			wait := f.start()
			doc := f.document()
			if strings.Count(f.stdout.String(), "\n") != 1 {
				t.Errorf("standard output has more than a line:\n%s", f.stdout)
			}
			if doc.PID != os.Getpid() || doc.Mesh != "shop" || doc.TrustDomain != "shop.internal" || doc.Logs != "" || !alive(doc.Server.PID) {
				t.Errorf("the document is %+v", doc)
			}
			var instances []string
			for _, w := range doc.Workloads {
				instances = append(instances, w.Instance)
				if !alive(w.PID) || len(w.Inbound) == 0 || (w.App == nil) != (w.Name == "gate") {
					t.Errorf("%s is %+v", w.Instance, w)
				}
				if _, err := os.Stat(filepath.Dir(w.State)); err != nil {
					t.Error(err)
				}
			}
			if diff := cmp.Diff([]string{"back-1", "back-2", "front-1", "gate-1"}, instances); diff != "" {
				t.Errorf("instances (-want +got):\n%s", diff)
			}
			if root, err := os.ReadFile(doc.Server.CAFile); err != nil || string(root) != "ROOT" {
				t.Errorf("the CA file has %q (%v)", root, err)
			}
			fromFile, err := ReadDocument(filepath.Join(doc.State, "run.json"))
			if diff := cmp.Diff(doc, fromFile, cmp.Comparer(func(a, b Document) bool { return documentText(t, &a) == documentText(t, &b) })); err != nil || diff != "" {
				t.Errorf("the file and standard output differ (%v):\n%s", err, diff)
			}
			f.signals <- syscall.SIGINT
			if status, err := wait(); status != 0 || err != nil {
				t.Errorf("Run = %d, %v; want 0 after SIGINT", status, err)
			}
			stopped := strings.Join(f.events("stop"), " ")
			if stopped != "gate-1 front-1 back-1 back-2 server" && stopped != "gate-1 front-1 back-2 back-1 server" {
				t.Errorf("they were stopped in the order %s", stopped)
			}
			for _, w := range doc.Workloads {
				if alive(w.PID) {
					t.Errorf("%s runs at the end", w.Instance)
				}
			}
		})
	}
}

func documentText(t *testing.T, d *Document) string {
	t.Helper()
	data, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestTable(t *testing.T) {
	f := newFixture(t, shopLike)
	wait := f.start()
	eventually(t, "the table is written", func() bool { return strings.Contains(f.stdout.String(), "it is not isolation") })
	for _, want := range []string{
		"\nfront     front-1   spiffe://shop.internal/service/front", ":8081 (expected)", EnvRun + "=", "unsealed",
		"Traffic from outside enters at http://127.", "back-2 ",
	} {
		if !strings.Contains(f.stdout.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, f.stdout)
		}
	}
	f.signals <- syscall.SIGTERM
	if status, err := wait(); status != 0 || err != nil {
		t.Errorf("Run = %d, %v; want 0 after SIGTERM", status, err)
	}
}

func TestCommand(t *testing.T) {
	// What is started in the background by a shell ignores SIGINT, and so would the commands, which cannot undo it.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGINT)
	defer signal.Stop(caught)
	for name, test := range map[string]struct {
		script string
		signal syscall.Signal
		want   int
	}{
		"ends":                 {`test -s "$COUNTERSIGN_RUN" && cat "$COUNTERSIGN_RUN"; exit 7`, 0, 7},
		"ends well":            {`echo '{"version":1}'`, 0, 0},
		"is killed":            {`echo '{"version":1}'; kill -9 $$`, 0, 128 + 9},
		"gets SIGTERM":         {`echo '{"version":1}'; exec sleep 1000`, syscall.SIGTERM, 128 + 15},
		"handles SIGINT":       {`trap 'exit 5' INT; echo '{"version":1}'; while :; do sleep 0.01; done`, syscall.SIGINT, 5},
		"leaves something":     {`sleep 1000 & echo '{"version":1}'; exit 3`, 0, 3},
		"reads standard input": {`read line; test "$line" = input && echo '{"version":1}'`, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, shopLike)
			f.config.Command = []string{"sh", "-c", test.script}
			f.config.Stdin = strings.NewReader("input\n")
			wait := f.start()
			doc := f.document()
			if test.signal != 0 {
				f.signals <- test.signal
			}
			if status, err := wait(); status != test.want || err != nil {
				t.Errorf("Run = %d, %v; want %d", status, err, test.want)
			}
			if name == "ends" && len(doc.Workloads) != 4 {
				t.Errorf("the command saw the document %+v", doc)
			}
			if got := f.events("stop"); len(got) != 5 {
				t.Errorf("only %v were stopped", got)
			}
		})
	}
}

func TestCommandThatIsNotThere(t *testing.T) {
	f := newFixture(t, shopLike)
	f.config.Command = []string{"nosuchcommand"}
	if _, err := f.start()(); !errors.Is(err, ErrCommand) {
		t.Errorf("Run = %v, want ErrCommand", err)
	}
	if started := f.events("start"); len(started) != 0 {
		t.Errorf("%v were started", started)
	}
}

// TestNotStarted: what keeps a mesh from being ready is said, with the last lines of who does.
func TestNotStarted(t *testing.T) {
	withRun := strings.Replace(shopLike, "instances: 2", "run: {command: [RUN]}", 1)
	for name, test := range map[string]struct {
		spec, trouble string
		late          bool // waiting does not mend it, but who knows
		wants         []string
	}{
		"the server ends":     {shopLike, "exit server", false, []string{"the server has ended with status 1", "a reason to give up"}},
		"a sidecar is sick":   {shopLike, "sick front-1", true, []string{"not ready after", "front-1: its sidecar has no certificate and Plan yet", "the sidecar of front-1 runs"}},
		"a sidecar is mute":   {shopLike, "mute back-2", true, []string{"back-2: its sidecar does not report that it listens", "front-1: its sidecar knows no endpoint of", "back-2:7000"}},
		"no such program":     {strings.Replace(withRun, "RUN", "nosuchprogram", 1), "", false, []string{"application back-1 cannot be started", "nosuchprogram"}},
		"nobody accepts":      {strings.Replace(withRun, "RUN", "sleep, '1000'", 1), "", true, []string{"back-1: its application does not accept on 127."}},
		"the program dies":    {strings.Replace(withRun, "RUN", "sh, -c, 'echo last words; exit 3'", 1), "", false, []string{"application back-1 has ended with status 3", "last words"}},
		"the CA is no good":   {shopLike, "CA", false, []string{"the certificate authority", "no good"}},
		"a sidecar ends soon": {shopLike, "exit gate-1", false, []string{"gate-1", "a reason to give up"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, test.spec)
			f.trouble(test.trouble)
			if test.trouble == "CA" {
				f.config.CA = func(string, string) error { return errors.New("no good") }
			}
			f.config.Command = []string{"touch", filepath.Join(f.temp, "ran")}
			if test.late {
				f.config.StartTimeout = 700 * time.Millisecond
			}
			_, err := f.start()()
			if !errors.Is(err, ErrNotStarted) {
				t.Fatalf("Run = %v, want ErrNotStarted", err)
			}
			for _, want := range test.wants {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error lacks %q:\n%v", want, err)
				}
			}
		})
	}
}

func TestInterruptedStart(t *testing.T) {
	for name, test := range map[string]struct {
		command []string
		want    error
	}{
		"without a command": {nil, nil},
		"with a command":    {[]string{"true"}, ErrNotStarted},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, shopLike)
			f.trouble("sick front-1")
			f.config.Command = test.command
			wait := f.start()
			eventually(t, "the sidecars run", func() bool { return len(f.events("start")) == 5 })
			f.signals <- syscall.SIGINT
			if status, err := wait(); status != 0 || !errors.Is(err, test.want) {
				t.Errorf("Run = %d, %v; want 0, %v", status, err, test.want)
			}
		})
	}
}

// TestHurry: a second signal does not wait for what does not end by itself.
func TestHurry(t *testing.T) {
	f := newFixture(t, shopLike)
	f.trouble("stubborn front-1")
	f.config.JSON, f.config.DrainTimeout = true, time.Hour
	wait := f.start()
	doc := f.document()
	f.signals <- syscall.SIGINT
	eventually(t, "the gateway has stopped", func() bool { return len(f.events("stop")) == 1 })
	over := make(chan struct{})
	go func() { // the first ones count as echoes of the signal before
		for {
			select {
			case f.signals <- syscall.SIGINT:
			case <-over:
				return
			}
			select {
			case <-time.After(20 * time.Millisecond):
			case <-over:
				return
			}
		}
	}()
	defer close(over)
	if status, err := wait(); status != 0 || err != nil {
		t.Errorf("Run = %d, %v; want 0", status, err)
	}
	for _, w := range doc.Workloads {
		if alive(w.PID) {
			t.Errorf("%s runs at the end", w.Instance)
		}
	}
}

// TestRestartIsWrittenDown: the document has the new pid, and everything else as it was.
func TestRestartIsWrittenDown(t *testing.T) {
	f := newFixture(t, shopLike)
	f.config.JSON = true
	f.start()
	doc := f.document()
	path := filepath.Join(doc.State, "run.json")
	for _, kill := range []func(*Document) *int{
		func(d *Document) *int { return &d.Server.PID },
		func(d *Document) *int { return &d.Workloads[2].PID },
	} {
		before := *kill(doc)
		if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the document has the new pid", func() bool {
			now, err := ReadDocument(path)
			if err != nil {
				t.Fatal(err) // it is replaced as a whole: at no moment is it away or half
			}
			after := *kill(now)
			*kill(doc) = after
			if documentText(t, doc) != documentText(t, now) {
				t.Fatalf("more than the pid changed:\n%s\n%s\n%s", documentText(t, doc), documentText(t, now), f.stderr.String())
			}
			return after != before && alive(after)
		})
	}
}

// TestExpiredCertificate: an instance whose certificate has expired gets another join token.
func TestExpiredCertificate(t *testing.T) {
	f := newFixture(t, shopLike)
	f.trouble("expired front-1")
	f.config.JSON = true
	f.start()
	token := filepath.Join(f.document().State, "tokens", "front-1")
	eventually(t, "there is another token", func() bool {
		data, err := os.ReadFile(token)
		if err != nil {
			t.Fatal(err)
		}
		return string(data) == "token-5\n" // the first four are the instances'
	})
}

// TestLogFiles: with a directory for logs nothing of the processes is on standard error.
func TestLogFiles(t *testing.T) {
	f := newFixture(t, shopLike)
	f.config.JSON, f.config.LogDir = true, filepath.Join(t.TempDir(), "logs")
	wait := f.start()
	if doc := f.document(); doc.Logs != f.config.LogDir {
		t.Errorf("the document says that the logs are in %q", doc.Logs)
	}
	f.signals <- syscall.SIGINT
	if _, err := wait(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(f.config.LogDir, "front-1.log"))
	if err != nil || string(data) != "the sidecar of front-1 runs in front-1\n" {
		t.Errorf("the log has %q (%v)", data, err)
	}
	if strings.Contains(f.stderr.String(), "the sidecar of") {
		t.Errorf("standard error has\n%s", f.stderr)
	}
}

// A signal that comes while the command starts is the command's.
func TestSignalAtTheStart(t *testing.T) {
	signals := make(chan os.Signal)
	r := &run{cfg: Config{Signals: signals}}
	r.onSignal(func(os.Signal) { t.Error("it means what it meant before") })
	got := make(chan os.Signal, 1)
	defer r.listen()()
	err := r.onSignalAfter(func() error { signals <- syscall.SIGINT; return nil }, func(s os.Signal) { got <- s })
	if s := <-got; err != nil || s != syscall.SIGINT {
		t.Errorf("%v, %v", s, err)
	}
	if err := r.onSignalAfter(func() error { return os.ErrNotExist }, nil); err == nil || r.signal == nil {
		t.Errorf("after a start that failed: %v", err)
	}
}
