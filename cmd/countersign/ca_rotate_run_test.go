package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/journal"
)

// scripted is a server that answers requests about the CA's rotation one after the other, as a test says:
// with a rotation or a refusal; nil breaks the connection.
type scripted struct {
	t       *testing.T
	answers []any
	steps   []string // that were asked for
	done    chan struct{}
	changes []ca.Change // that the journal has
}

// journal sends a journal with the changes.
func (s *scripted) journal(w http.ResponseWriter) {
	dir := s.t.TempDir()
	key, err := journal.GenerateKey("a.internal/journal")
	if err != nil {
		s.t.Error(err)
		return
	}
	log, err := journal.Create(dir, key, time.Now(), struct{}{})
	if err != nil {
		s.t.Error(err)
		return
	}
	defer log.Close()
	for _, change := range s.changes {
		if _, err := log.Append(context.Background(), journal.Entry{Time: time.Now(), Type: journal.CARotate, Data: change}); err != nil {
			s.t.Error(err)
		}
	}
	if err := log.Export(w); err != nil {
		s.t.Error(err)
	}
}

func (s *scripted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == api.PathCA { // a client that waits for long asks whether anybody is there
		_, _ = io.WriteString(w, "{}")
		return
	}
	if r.URL.Path == api.PathJournal {
		s.steps = append(s.steps, "journal")
		s.journal(w)
		return
	}
	if r.Method == http.MethodPost {
		var request api.RotationRequest
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
			s.t.Error(err)
		}
		s.steps = append(s.steps, request.Step)
	} else {
		s.steps = append(s.steps, "?"+r.URL.Query().Get("check"))
	}
	if len(s.answers) == 0 {
		s.t.Errorf("one request too many: %s", s.steps[len(s.steps)-1])
		panic(http.ErrAbortHandler)
	}
	answer := s.answers[0]
	s.answers = s.answers[1:]
	w.Header().Set("Content-Type", "application/json")
	switch answer.(type) {
	case nil:
		panic(http.ErrAbortHandler)
	case *api.Error: // its code says what it is
		w.WriteHeader(http.StatusConflict)
	}
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		s.t.Error(err)
	}
}

// runScripted runs `ca rotate run` against such a server.
func runScripted(t *testing.T, c caRotateRunCmd, answers ...any) (steps, stderr string, err error) {
	t.Helper()
	if c.Timeout == 0 {
		c.Timeout = time.Minute
	}
	c.Interval = time.Millisecond
	return askScripted(t, removed, func(p *process, socket string) error {
		c.Socket = socket
		return c.Run(p)
	}, answers...)
}

// gone is a pin of a root that was removed.
var gone = "sha256:" + strings.Repeat("0", 64)

// removed are the changes of a root that was replaced: the next one signs, and the one with the pin gone is removed.
var removed = []ca.Change{{Step: ca.StepActivate, Pin: "sha256:" + strings.Repeat("2", 64)}, {Step: ca.StepFinish, Pin: gone}}

// askScripted runs a command against such a server, whose journal has these changes.
func askScripted(t *testing.T, changes []ca.Change, run func(p *process, socket string) error, answers ...any) (steps, stderr string, err error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "cs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	script := &scripted{t: t, answers: answers, done: make(chan struct{}), changes: changes}
	server := &http.Server{Handler: script, ReadHeaderTimeout: time.Minute}
	go func() { defer close(script.done); _ = server.Serve(listener) }()
	var out, errs bytes.Buffer
	err = run(&process{ctx: context.Background(), stdout: &out, stderr: &errs, log: slog.New(slog.DiscardHandler)}, socket)
	server.Close()
	<-script.done
	return strings.Join(script.steps, " "), errs.String(), err
}

// TestRunGoesOn lets everything happen to a run that can happen on its way.
func TestRunGoesOn(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	authority, err := ca.Init(state, ca.InitConfig{TrustDomain: "a.internal", Seal: ca.Unsealed()})
	if err != nil {
		t.Fatal(err)
	}
	certs, err := ca.Read(state)
	if err != nil {
		t.Fatal(err)
	}
	pemOf := string(certs.BundlePEM())
	root := api.Hierarchy{State: "active", Pin: authority.Pin(), Root: pemOf, Issuer: pemOf}
	at := func(next string, blockers ...string) *api.Rotation {
		r := &api.Rotation{Roots: []api.Hierarchy{root}, Next: next, Checked: true}
		if next != "" {
			r.Roots = append(r.Roots, api.Hierarchy{State: "next", Pin: authority.Pin(), Root: pemOf, Issuer: pemOf})
		}
		for _, who := range blockers {
			r.Blockers = append(r.Blockers, api.Blocker{Workload: who, Reason: "a reason"})
		}
		return r
	}
	lagging := at("")
	lagging.Lagging = []api.Blocker{{Workload: "late", Reason: "a reason"}}
	conflict := &api.Error{Code: api.CodeConflict, Message: "no"}
	away := &api.Error{Code: api.CodeUnavailable, Message: "the server is shutting down"}
	never := "sha256:" + strings.Repeat("1", 64)
	for _, test := range []struct {
		name    string
		command caRotateRunCmd
		answers []any
		steps   string
		says    string // in this order, divided by |
		fails   string
	}{
		{
			"everything in order",
			caRotateRunCmd{},
			[]any{at(""), at("activate"), at("activate"), at("finish"), at("finish"), at(""), at("")},
			"?false start ?true activate ?true finish ?false", "next root is made|signs|is gone", "",
		},
		{
			"waiting",
			caRotateRunCmd{},
			[]any{at("activate"), at("activate", "a", "b"), at("activate", "b", "a"), at("activate", "a"), at("activate"), at("finish"), at("finish"), at(""), lagging, lagging, at("")},
			"?false ?true ?true ?true ?true activate ?true finish ?false ?false ?false", "2 reasons:\n  a: a reason\n  b: a reason\n|1 reason:\n  a: a reason\n|signs|gone|gone everywhere:\n  late", "",
		},
		{
			"the server is away and comes back",
			caRotateRunCmd{},
			[]any{at("finish"), nil, away, at("finish"), at(""), at("")},
			"?false ?true ?true ?true finish ?false", "waiting for it|is gone", "",
		},
		{
			"the server dies in a step that it has taken",
			caRotateRunCmd{},
			[]any{at("activate"), at("activate"), nil, at("finish"), at("finish"), at(""), at("")},
			"?false ?true activate ?false ?true finish ?false", "is gone", "",
		},
		{
			"the server dies before it has made the next root",
			caRotateRunCmd{},
			[]any{at(""), nil, at("")},
			"?false start ?false", "", "repeat the command",
		},
		{
			"somebody comes before the step",
			caRotateRunCmd{},
			[]any{at("finish"), at("finish"), conflict, at("finish"), at("finish"), at(""), at("")},
			"?false ?true finish ?false ?true finish ?false", "is gone", "",
		},
		{
			"another administrator is quicker",
			caRotateRunCmd{},
			[]any{at("activate"), at("finish"), conflict, at("finish"), at("finish"), at(""), at("")},
			"?false ?true activate ?false ?true finish ?false", "is gone", "",
		},
		{"nothing to do", caRotateRunCmd{Replace: gone}, []any{at("")}, "?false journal", "is gone already", ""},
		{"a pin that is none of its", caRotateRunCmd{Replace: never}, []any{at("")}, "?false journal", "", "--replace: no root of this CA ever had the pin " + never},
		{"a pin that is none of its, on the way", caRotateRunCmd{Replace: never}, []any{at("activate")}, "?false journal", "", "no root of this CA ever had the pin"},
		{"no server at the start", caRotateRunCmd{}, []any{away}, "?false", "", "shutting down"},
		{"not in time", caRotateRunCmd{Timeout: time.Nanosecond}, nil, "", "", "was not replaced within 1ns"},
	} {
		t.Run(test.name, func(t *testing.T) {
			steps, stderr, err := runScripted(t, test.command, test.answers...)
			if steps != test.steps {
				t.Errorf("asked %s, want %s", steps, test.steps)
			}
			rest := stderr
			for words := range strings.SplitSeq(test.says, "|") {
				_, after, found := strings.Cut(rest, words)
				if !found {
					t.Errorf("does not say %q in %q", words, stderr)
				}
				rest = after
			}
			if (err == nil) != (test.fails == "") || err != nil && !strings.Contains(err.Error(), test.fails) {
				t.Errorf("ended with %v, want %q", err, test.fails)
			}
			if _, usage := errors.AsType[usageError](err); usage != strings.HasPrefix(test.name, "a pin") {
				t.Errorf("%v is a mistake of the user: %t", err, usage)
			}
		})
	}
}

// TestStepsRepeated asserts that a step that was the last one is no failure when it is repeated, and any other is.
func TestStepsRepeated(t *testing.T) {
	refused := &api.Error{Code: api.CodeConflict, Message: "not as far as that"}
	at := func(next string) *api.Rotation { return &api.Rotation{Next: next} }
	issuer := ca.Change{Step: ca.StepIssuer}
	for name, test := range map[string]struct {
		step, next string
		changes    []ca.Change
		done       bool
	}{
		"activate":                       {api.RotateActivate, api.RotateFinish, removed[:1], true},
		"finish":                         {api.RotateFinish, "", removed, true},
		"finish, and another issuing CA": {api.RotateFinish, "", append(slices.Clone(removed), issuer), true},
		"finish before activate":         {api.RotateFinish, api.RotateActivate, removed, false},
		"finish when somebody needs it":  {api.RotateFinish, api.RotateFinish, removed[:1], false},
		"finish of nothing":              {api.RotateFinish, "", []ca.Change{issuer}, false},
		"finish after a cancel":          {api.RotateFinish, "", append(slices.Clone(removed), ca.Change{Step: ca.StepCancel}), false},
		"activate after all":             {api.RotateActivate, "", removed, false},
		"activate when somebody is away": {api.RotateActivate, api.RotateActivate, nil, false},
		"start":                          {api.RotateStart, api.RotateActivate, []ca.Change{{Step: ca.StepStart}}, false},
	} {
		answers := []any{refused}
		if test.step != api.RotateStart {
			answers = append(answers, at(test.next))
		}
		_, stderr, err := askScripted(t, test.changes, func(p *process, socket string) error {
			f := rotateFlags{}
			f.Socket = socket
			return f.take(p, api.RotationRequest{Step: test.step})
		}, answers...)
		if done := strings.Contains(stderr, test.step+" is already done"); done != test.done || (err == nil) != test.done {
			t.Errorf("%s: %v, %q; done before: want %t", name, err, stderr, test.done)
		}
	}
}

// TestRotateRunInterrupted asserts that Ctrl-C is answered with what is true then: nothing is undone.
func TestRotateRunInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var stderr bytes.Buffer
	status := run(ctx, []string{"ca", "rotate", "run", "--socket", filepath.Join(t.TempDir(), "server.sock")}, strings.NewReader(""), io.Discard, &stderr)
	if status != exitFailure || stderr.String() != "countersign: interrupted; what was done stays: the same command goes on from there\n" {
		t.Errorf("status %d, and it says: %s", status, stderr.String())
	}
}
