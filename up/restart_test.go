package up

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/api"
	"countersign.dev/mesh"
)

// restart asks for the restart of an instance and gives what is answered.
func restart(t *testing.T, socket, method, path, body string) (int, api.Error) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	request, err := http.NewRequestWithContext(t.Context(), method, "http://up"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer api.Error
	if err := json.Unmarshal(text, &answer); err != nil {
		t.Fatalf("the answer is %q: %v", text, err)
	}
	if response.StatusCode == http.StatusOK && strings.TrimSpace(string(text)) != "{}" {
		t.Errorf("the answer is %q", text)
	}
	return response.StatusCode, answer
}

// since are the lines of the journal after the first n, without those of the rotation.
func (f *fixture) since(n int) []string {
	f.t.Helper()
	data, err := os.ReadFile(f.journal)
	if err != nil {
		f.t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return slices.DeleteFunc(lines, func(line string) bool { return strings.HasPrefix(line, "rotation") })[n:]
}

// TestRestart: an instance is drained, ended, started with what is current in the store, and ready.
func TestRestart(t *testing.T) {
	f, _ := newDelivered(t, "nginx", "haproxy")
	f.start()
	doc := f.document()
	info, err := os.Stat(doc.Control)
	if err != nil || info.Mode().Perm() != 0o600 || info.Mode().Type() != os.ModeSocket {
		t.Fatalf("the control socket is %v (%v)", info.Mode(), err)
	}
	for instance, want := range map[string][]string{
		"back-2":  {"stop back-2", "once init back-2 from store secret shop/back", "quit back-2", "serve back-2", "start back-2"},
		"front-1": {"stop front-1", "once init front-1 from store secret shop/front", "quit front-1", "serve front-1", "start front-1"},
		"plain-1": {"stop plain-1", "start plain-1"},
	} {
		seen := len(f.since(0))
		if status, answer := restart(t, doc.Control, http.MethodPost, PathRestart, `{"instance":"`+instance+`"}`); status != http.StatusOK {
			t.Fatalf("%s: %d %+v", instance, status, answer)
		}
		got := f.since(seen)
		if len(got) == len(want) && len(want) == 5 { // the proxy and its watcher start at once
			slices.Sort(got[3:])
			slices.Reverse(got[3:])
			slices.Sort(want[3:])
			slices.Reverse(want[3:])
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: what happened (-want +got):\n%s", instance, diff)
		}
	}
	eventually(t, "the document has the new pids", func() bool {
		now, err := ReadDocument(filepath.Join(doc.State, "run.json"))
		if err != nil {
			t.Fatal(err)
		}
		for n, w := range now.Workloads {
			was := doc.Workloads[n]
			restarted := w.Instance != "back-1"
			if !alive(w.PID) || (w.PID != was.PID) != restarted || (w.EnginePID != was.EnginePID) != (restarted && w.EnginePID != 0) {
				return false
			}
		}
		return true
	})
}

// TestRestartRefused: what cannot be restarted serves on, and is said.
func TestRestartRefused(t *testing.T) {
	f, _ := newDelivered(t, "nginx", "haproxy")
	f.start()
	doc := f.document()
	for name, test := range map[string]struct {
		method, path, body string
		status             int
		code, message      string
	}{
		"another path":   {http.MethodPost, "/v1/stop", `{}`, 404, api.CodeNotFound, "only POST /v1/restart"},
		"another method": {http.MethodGet, PathRestart, ``, 400, api.CodeBadRequest, "POST is the method"},
		"no JSON":        {http.MethodPost, PathRestart, `instance`, 400, api.CodeBadRequest, "not of the form"},
		"nobody":         {http.MethodPost, PathRestart, `{}`, 400, api.CodeBadRequest, "not of the form"},
		"unknown":        {http.MethodPost, PathRestart, `{"instance":"back-3"}`, 404, api.CodeNotFound, `no instance "back-3" runs here`},
		"long":           {http.MethodPost, PathRestart, `{"instance":"` + strings.Repeat("a", maxWord) + `"}`, 413, api.CodeTooLarge, "more than 4096 bytes"},
	} {
		if status, answer := restart(t, doc.Control, test.method, test.path, test.body); status != test.status || answer.Code != test.code || !strings.Contains(answer.Message, test.message) {
			t.Errorf("%s: %d %+v", name, status, answer)
		}
	}
	// The store has something that will not do: the proxy serves on, and is watched over.
	if err := os.WriteFile(filepath.Join(filepath.Dir(f.journal), "fail init back-1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	seen := len(f.since(0))
	status, answer := restart(t, doc.Control, http.MethodPost, PathRestart, `{"instance":"back-1"}`)
	if status != 500 || answer.Code != api.CodeInternal || !strings.Contains(answer.Message, "back-1 serves on with what it had: init of back-1 has ended with status 1") {
		t.Errorf("a bad secret: %d %+v", status, answer)
	}
	if got := f.since(seen); !slices.Equal(got, []string{"stop back-1", "start back-1"}) {
		t.Errorf("what happened: %q", got)
	}
	if !alive(doc.Workloads[0].EnginePID) {
		t.Error("the proxy was ended")
	}
}

// TestRestartAtOnce: an instance is restarted once at a time, and the end of the mesh ends a restart.
func TestRestartAtOnce(t *testing.T) {
	f, _ := newDelivered(t, "nginx", "haproxy")
	wait := f.start()
	doc := f.document()
	f.run.all[0].restarting.Lock()
	if status, answer := restart(t, doc.Control, http.MethodPost, PathRestart, `{"instance":"back-1"}`); status != 409 || answer.Code != api.CodeConflict {
		t.Errorf("while it is being restarted: %d %+v", status, answer)
	}
	f.run.all[0].restarting.Unlock()
	// Another instance of the same service waits for its turn.
	f.run.turns["back"] <- struct{}{}
	seen, answered := len(f.since(0)), make(chan int, 1)
	go func() {
		status, _ := restart(t, doc.Control, http.MethodPost, PathRestart, `{"instance":"back-2"}`)
		answered <- status
	}()
	eventually(t, "back-2 waits", func() bool {
		if f.run.all[1].restarting.TryLock() {
			f.run.all[1].restarting.Unlock()
			return false
		}
		return true
	})
	if got := f.since(seen); len(got) != 0 {
		t.Errorf("before its turn: %q", got)
	}
	<-f.run.turns["back"]
	if status := <-answered; status != http.StatusOK {
		t.Errorf("back-2: %d", status)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	away := &instance{name: "away"} // which never comes back
	away.planned.Store(&mesh.Plan{})
	go func() { ended <- f.run.back(ctx, away) }()
	cancel()
	if err := <-ended; !errors.Is(err, errStopping) {
		t.Errorf("the restart ended with %v", err)
	}
	f.signals <- syscall.SIGINT
	if _, err := wait(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(doc.Control); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is there at the end (%v)", err)
	}
}
