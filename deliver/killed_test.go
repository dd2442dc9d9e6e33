//go:build unix

package deliver

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"countersign.dev/credential"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// killedChild, when set, makes the test binary deliver what DIR/offer.json holds to the proxy in DIR, and be killed on the way.
const killedChild = "DELIVER_KILLED_CHILD"

// TestKilledChild is the process that dies; by itself it does nothing.
func TestKilledChild(t *testing.T) {
	dir := os.Getenv(killedChild)
	if dir == "" {
		return
	}
	syscall.Umask(0)
	l := labIn(t, dir, os.Getenv("REFUSED"))
	l.open()
	_ = l.w.round(t.Context(), l.w.plan, true) // the parent looks at what came of it
}

// labIn is a lab in a directory that was made before. The proxy refuses one serial.
func labIn(t *testing.T, dir, refused string) *lab {
	t.Helper()
	l := &lab{t: t, source: &store{}, proxy: &fake{dir: filepath.Join(dir, "tls"), file: filepath.Join(dir, "served")}}
	l.proxy.refuses = func(c *x509.Certificate) bool { return mtls.Serial(c) == refused }
	l.cfg = Config{
		Output: credential.Output{Dir: l.proxy.dir, Mode: 0o600, UID: -1, GID: -1},
		Source: l.source, Proxy: l.proxy, Prober: l.proxy,
		Expect: func() credential.Expect { return credential.Expect{Now: time.Now()} },
		Listeners: func(*mesh.Plan) []Listener {
			return []Listener{{Port: 443, Address: "192.0.2.1:443", TLS: true, Own: true}}
		},
		Interval: time.Second, Patience: 5 * time.Second, Retry: time.Hour, Log: slog.New(slog.DiscardHandler),
	}
	rendered(&l.cfg)
	text, err := os.ReadFile(filepath.Join(dir, "offer.json"))
	ok(t, err)
	var o Offer
	ok(t, json.Unmarshal(text, &o))
	l.source.set(o, nil)
	return l
}

// TestKilled kills a watcher before and after each change of the disk that it makes, also on its way back: a whole pair is
// always in force, no mode is wider than asked, and the one who comes next brings all of it to its end.
func TestKilled(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "deliver.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-pgo=off", "-c", "-tags", "faultinject", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as the other steps of a check build the packages below it
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the process that dies: %v\n%s", err, output)
	}
	for _, good := range []bool{true, false} {
		t.Run("the new one is good: "+strconv.FormatBool(good), func(t *testing.T) {
			deaths := 0
			for step := 1; killedAt(t, binary, step, good); step++ {
				deaths++
			}
			if deaths < 45 {
				t.Errorf("it died in %d places: the faults are not where they should be", deaths)
			}
		})
	}
}

// killedAt kills a delivery at a step and goes on after it; it tells whether there was such a step.
func killedAt(t *testing.T, binary string, step int, good bool) bool {
	t.Helper()
	l := newLab(t, rendered)
	l.round("") // v1 is proved
	ok(t, l.w.Close())
	dir := filepath.Dir(l.proxy.dir)
	next := l.ca.offer(t, "v2")
	text, err := json.Marshal(next)
	ok(t, err)
	ok(t, os.WriteFile(filepath.Join(dir, "offer.json"), text, 0o600))
	refused, want := "none", "v2"
	if !good {
		cred, err := next.Check(l.cfg.Expect())
		ok(t, err)
		refused, want = mtls.Serial(cred.Leaf()), "v1"
	}
	child := exec.CommandContext(t.Context(), binary, "-test.run", "^TestKilledChild$")
	child.Env = append(os.Environ(), killedChild+"="+dir, "REFUSED="+refused, "COUNTERSIGN_FAULT="+strconv.Itoa(step))
	output, err := child.CombinedOutput()
	var exit *exec.ExitError
	killed := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
	if err != nil && !killed {
		t.Fatalf("step %d: %v\n%s", step, err, output)
	}
	ok(t, lookAtModes(l.proxy.dir))
	made, err := madeOf(filepath.Join(l.proxy.dir, "current"))
	ok(t, err)
	l.inForce(made.Version) // a whole pair, whichever it is

	after := labIn(t, dir, refused)
	after.open()
	err = after.w.round(t.Context(), after.w.plan, true)
	if good != (err == nil) {
		t.Fatalf("step %d: %v", step, err)
	}
	after.holds(want, true)
	if s := after.w.Status(); !good && !strings.Contains(s.Problem, "version v2") {
		t.Errorf("step %d: %+v", step, s)
	}
	ok(t, after.w.Close())
	left, err := os.ReadDir(l.proxy.dir)
	ok(t, err)
	for _, entry := range left {
		switch entry.Name() {
		case ".lock", watchLock, "current", "proved", "generations":
		default:
			t.Errorf("step %d: %s is left", step, entry.Name())
		}
	}
	return killed
}
