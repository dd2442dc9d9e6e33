package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign.dev/api"
)

// fakeServer answers on a socket what a test wants, by path.
func fakeServer(t *testing.T, answers map[string]any) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "cs") // short: the path of a socket is bounded
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if wait, err := time.ParseDuration(r.URL.Query().Get("timeout")); err == nil && wait > 10*time.Minute {
			t.Errorf("the server would refuse to wait for %s", wait)
		}
		answer, ok := answers[r.URL.Path]
		if refusal, isError := answer.(*api.Error); isError || !ok {
			w.WriteHeader(http.StatusInternalServerError)
			answer = refusal
		}
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }() // it ends by Close
	t.Cleanup(func() { server.Close(); <-done; os.RemoveAll(dir) })
	return socket
}

// command runs one command line in this process.
func command(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	status = run(context.Background(), args, strings.NewReader(""), &out, &err)
	return status, out.String(), err.String()
}

func TestApplyNotConfirmed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(path, []byte("mesh: m\nservices: {a: {ports: [{port: 9080, protocol: http}]}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	answers := map[string]any{
		api.PathApply:     api.ApplyResponse{Revision: 7, Difference: []string{"+ service a"}},
		api.PathConfirmed: api.Confirmation{Revision: 7, Confirmed: []string{"a-1"}, Missing: []string{"a-2", "b-1"}},
	}
	socket := fakeServer(t, answers)
	status, stdout, stderr := command(t, "mesh", "apply", path, "--socket", socket, "--timeout", "10ms")
	if status != exitFailure || stdout != "+ service a\n" || !strings.Contains(stderr, "revision 7 is applied, but after 10ms it is not confirmed by a-2, b-1") {
		t.Errorf("status %d, stdout %q, stderr %q", status, stdout, stderr)
	}
	status, stdout, _ = command(t, "mesh", "apply", path, "--socket", socket, "--timeout", "10ms", "--output", "json")
	var result applyResult
	if err := json.Unmarshal([]byte(stdout), &result); err != nil || status != exitFailure || len(result.Missing) != 2 || len(result.Confirmed) != 1 {
		t.Errorf("status %d, stdout %q, %v", status, stdout, err)
	}
	answers[api.PathConfirmed] = api.Confirmation{Revision: 7, Confirmed: []string{"a-1", "a-2"}}
	status, stdout, stderr = command(t, "mesh", "apply", path, "--socket", socket, "--timeout", "1h")
	if status != exitOK || stdout != "+ service a\nrevision 7 is in force at 2 sidecars\n" || stderr != "" {
		t.Errorf("status %d, stdout %q, stderr %q", status, stdout, stderr)
	}
	answers[api.PathApply] = &api.Error{Code: api.CodeNotRecorded, Message: "the journal cannot be written: no space left on device"}
	status, _, stderr = command(t, "mesh", "apply", path, "--socket", socket)
	if status != exitFailure || !strings.Contains(stderr, "the journal cannot be written: no space left on device") {
		t.Errorf("status %d, stderr %q", status, stderr)
	}
}

func TestStatusRows(t *testing.T) {
	now := time.Now()
	rows := []api.Status{
		{
			Workload: "a", Instance: "a-1", Identity: "spiffe://m/service/a", Serial: "0a", NotAfter: now.Add(50*time.Hour + time.Minute), LastRenewal: now.Add(-90 * time.Minute),
			Revision: 3, PlaintextCallers: []string{"10.0.0.1", "10.0.0.2"}, SurvivesSeconds: 50 * 3600, Connected: true,
		},
		{Workload: "a", Instance: "a-2", Identity: "spiffe://m/service/a", PlaintextCallers: []string{}, ObservedSerial: "0b", Error: "its clock is off"},
		{Workload: "b", Identity: "spiffe://m/service/b", PlaintextCallers: []string{}, Error: "no instance has connected"},
	}
	socket := fakeServer(t, map[string]any{api.PathStatus: rows})
	status, stdout, stderr := command(t, "status", "--socket", socket)
	if status != exitOK || stderr != "" {
		t.Fatalf("status %d, stderr %q", status, stderr)
	}
	var fields [][]string
	for line := range strings.Lines(stdout) {
		fields = append(fields, strings.Fields(line))
	}
	if got := strings.Join(fields[1], " "); got != "a a-1 spiffe://m/service/a 0a 2d2h 1h30m ago 3 10.0.0.1 10.0.0.2 2d2h -" {
		t.Errorf("row %q", got)
	}
	if got := strings.Join(fields[2], " "); got != "a a-2 spiffe://m/service/a - - - - - - 0b" {
		t.Errorf("row %q", got)
	}
	if !strings.HasSuffix(stdout, "\na-2: its clock is off\nb: no instance has connected\n") {
		t.Errorf("the problems are not below the table:\n%s", stdout)
	}

	_, stdout, _ = command(t, "status", "--socket", socket, "--output", "json")
	var shown []map[string]any
	if err := json.Unmarshal([]byte(stdout), &shown); err != nil || len(shown) != 2 {
		t.Fatalf("%v: %s", err, stdout)
	}
	for _, key := range []string{"workload", "instance", "identity", "serial", "notAfter", "lastRenewal", "revision", "plaintextCallers", "survivesSeconds"} {
		if _, ok := shown[0][key]; !ok {
			t.Errorf("the JSON has no %q", key)
		}
	}
	socket = fakeServer(t, map[string]any{api.PathStatus: &api.Error{Code: api.CodeUnavailable, Message: "the database is locked"}})
	if status, _, stderr := command(t, "status", "--socket", socket); status != exitFailure || !strings.Contains(stderr, "the database is locked") {
		t.Errorf("status %d, stderr %q", status, stderr)
	}
}

func TestRoughly(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m1s", 25 * time.Hour: "25h0m", 49 * time.Hour: "2d1h",
	} {
		if got := roughly(d); got != want {
			t.Errorf("%s is %q, want %q", d, got, want)
		}
	}
}
