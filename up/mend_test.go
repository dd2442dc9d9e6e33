package up

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"countersign.dev/api"
)

// refuse makes the proxy of an instance refuse its files, until that is called which it gives. what is "refuse", or
// "refuse once".
func (f *fixture) refuse(what, instance string) (accept func()) {
	f.t.Helper()
	path := filepath.Join(filepath.Dir(f.journal), what+" "+instance)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		f.t.Fatal(err)
	}
	return func() {
		f.t.Helper()
		if err := os.Remove(path); err != nil {
			f.t.Fatal(err)
		}
	}
}

// serves waits until an instance serves, with processes that the document names.
func (f *fixture) serves(instance string) {
	f.t.Helper()
	doc := f.document()
	n := slices.IndexFunc(doc.Workloads, func(w Workload) bool { return w.Instance == instance })
	eventually(f.t, instance+" serves", func() bool {
		now, err := ReadDocument(filepath.Join(doc.State, "run.json"))
		if err != nil {
			f.t.Fatal(err)
		}
		return f.run.serves(f.t.Context(), f.run.all[n]) && alive(now.Workloads[n].PID) && alive(now.Workloads[n].EnginePID)
	})
}

// TestRestartRefusedOnce: a proxy that does not start at the first try is started again, and the restart goes well.
func TestRestartRefusedOnce(t *testing.T) {
	f, _ := newDelivered(t, "nginx", "haproxy")
	f.start()
	doc := f.document()
	f.refuse("refuse once", "back-1")
	if status, answer := restart(t, doc.Control, http.MethodPost, PathRestart, `{"instance":"back-1"}`); status != http.StatusOK {
		t.Errorf("%d %+v", status, answer)
	}
	if refused := f.events("refuse"); !slices.Equal(refused, []string{"back-1"}) {
		t.Errorf("refused: %q", refused)
	}
	f.serves("back-1")
}

// TestRestartRefusedForEver: what the proxy does not start with is said, with what happens next. What a rotation then
// brings back is started by its own restart.
func TestRestartRefusedForEver(t *testing.T) {
	f, _ := newDelivered(t, "nginx", "haproxy")
	f.start()
	doc := f.document()
	accept := f.refuse("refuse", "back-1")
	status, answer := restart(t, doc.Control, http.MethodPost, PathRestart, `{"instance":"back-1"}`)
	if status != http.StatusInternalServerError || answer.Code != api.CodeInternal {
		t.Fatalf("%d %+v", status, answer)
	}
	for _, want := range []string{
		"back-1 does not serve after its restart, and is started again and again until it does, with what is then current in its store (the version of before,",
		"nginx of back-1 has ended with status 1", "these files will not do",
	} {
		if !strings.Contains(answer.Message, want) || !strings.Contains(f.stderr.String(), want) {
			t.Errorf("it is not said: %q\n%s", want, answer.Message)
		}
	}
	accept()
	if status, answer := restart(t, doc.Control, http.MethodPost, PathRestart, `{"instance":"back-1"}`); status != http.StatusOK {
		t.Errorf("the version of before: %d %+v", status, answer)
	}
	f.serves("back-1")
	if !strings.Contains(f.stderr.String(), "back-1: restarted\n") {
		t.Errorf("it is not said that it was restarted:\n%s", f.stderr.String())
	}
}

// TestMended: an instance that nobody restarts again, because the rotation was killed, is started with what is then
// current, and that is said.
func TestMended(t *testing.T) {
	f, _ := newDelivered(t, "nginx", "haproxy")
	f.start()
	doc := f.document()
	accept := f.refuse("refuse", "front-1")
	if status, _ := restart(t, doc.Control, http.MethodPost, PathRestart, `{"instance":"front-1"}`); status != http.StatusInternalServerError {
		t.Fatal(status)
	}
	eventually(t, "it is tried again", func() bool { return len(f.events("once init front-1")) >= 3 }) // the first is that of the start
	eventually(t, "that is said", func() bool {
		return strings.Contains(f.stderr.String(), "front-1: it still does not serve, and is tried again: haproxy of front-1 has ended with status 1")
	})
	accept()
	eventually(t, "that it serves is said", func() bool { return strings.Contains(f.stderr.String(), "front-1: serves again\n") })
	f.serves("front-1")
}

// TestMendedWithoutALog: an instance that could not even be started, because its log cannot be written, is started when
// that has passed; also with what it had, when the store has nothing that will do.
func TestMendedWithoutALog(t *testing.T) {
	for _, instance := range []string{"back-1", "plain-1"} {
		t.Run(instance, func(t *testing.T) {
			f, _ := newDelivered(t, "nginx", "haproxy")
			f.config.LogDir = filepath.Join(filepath.Dir(f.journal), "logs")
			f.start()
			doc := f.document()
			n := slices.IndexFunc(doc.Workloads, func(w Workload) bool { return w.Instance == instance })
			i := f.run.all[n]
			if err := os.Rename(f.config.LogDir, f.config.LogDir+".away"); err != nil {
				t.Fatal(err)
			}
			// As a try before leaves it: nothing of it runs.
			for _, c := range i.children() {
				if c != i.application.Load() {
					f.run.finish(c)
				}
			}
			status, answer := restart(t, doc.Control, http.MethodPost, PathRestart, `{"instance":"`+instance+`"}`)
			if status != http.StatusInternalServerError || !strings.Contains(answer.Message, "opening the log of "+instance) {
				t.Fatalf("%d %+v", status, answer)
			}
			if strings.Contains(answer.Message, "in its store") != (instance == "back-1") {
				t.Error(answer.Message)
			}
			if err := os.WriteFile(filepath.Join(filepath.Dir(f.journal), "fail init back-1"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(f.config.LogDir+".away", f.config.LogDir); err != nil {
				t.Fatal(err)
			}
			eventually(t, "that it serves is said", func() bool { return strings.Contains(f.stderr.String(), instance+": serves again\n") })
		})
	}
}

// TestMendingEnds: the end of the mesh ends the tries.
func TestMendingEnds(t *testing.T) {
	f, _ := newDelivered(t, "nginx", "haproxy")
	wait := f.start()
	doc := f.document()
	f.refuse("refuse", "back-1")
	if status, _ := restart(t, doc.Control, http.MethodPost, PathRestart, `{"instance":"back-1"}`); status != http.StatusInternalServerError {
		t.Fatal(status)
	}
	f.signals <- syscall.SIGINT
	if status, err := wait(); status != 0 || err != nil {
		t.Errorf("Run = %d, %v; want 0", status, err)
	}
	select {
	case <-f.run.all[0].mender.Load().done:
	default:
		t.Error("it is still being tried")
	}
}

// TestRestartWithADeadApplication: how often the application has died says nothing of the sidecar.
func TestRestartWithADeadApplication(t *testing.T) {
	f, _ := newDelivered(t, "nginx", "haproxy")
	f.start()
	doc := f.document()
	app := &child{name: "application back-1", done: make(chan struct{}), exits: maxDeaths, log: &prefixed{console: f.run.console}}
	close(app.done)
	app.stopping = app.done
	app.once.Do(func() {})
	i := f.run.all[0]
	i.application.Store(app)
	if err := f.run.brokenOf(i); err == nil {
		t.Error("the application is not broken")
	}
	f.refuse("refuse once", "back-1")
	if status, answer := restart(t, doc.Control, http.MethodPost, PathRestart, `{"instance":"back-1"}`); status != http.StatusOK {
		t.Errorf("%d %+v", status, answer)
	}
}

// TestNotMended: an instance that has come up by itself is not ended because the server says nothing of it.
func TestNotMended(t *testing.T) {
	f, _ := newDelivered(t, "nginx", "haproxy")
	f.start()
	f.document()
	i := f.run.all[0]
	i.proxy.Load().mu.Lock()
	i.proxy.Load().exits = maxDeaths // before it came up
	i.proxy.Load().mu.Unlock()
	if err := f.run.brokenSidecar(i); err == nil {
		t.Fatal("its proxy is not broken")
	}
	seen := len(f.since(0))
	if err := f.run.tryAgain(t.Context(), i); err != nil {
		t.Error(err)
	}
	if got := f.since(seen); len(got) != 0 {
		t.Errorf("what happened: %q", got)
	}
}
