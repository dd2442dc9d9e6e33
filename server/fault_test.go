package server

import (
	"bufio"
	"bytes"
	"crypto"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/journal"
	"countersign.dev/mtls"
)

// faulty is the binary with the fault injection: it takes seconds to link, and is the same for all tests.
var faulty struct {
	once sync.Once
	dir  string
	err  error
}

// removeFaulty removes it after the last test.
func removeFaulty() {
	if faulty.dir != "" {
		os.RemoveAll(faulty.dir)
	}
}

// faultyBinary builds the command with the tag that lets a step kill it, once for all tests.
func faultyBinary(t *testing.T) string {
	t.Helper()
	faulty.once.Do(func() {
		if faulty.dir, faulty.err = os.MkdirTemp("", "server-test-"); faulty.err != nil {
			return
		}
		build := exec.Command("go", "build", "-tags", "faultinject", "-o", filepath.Join(faulty.dir, "countersign"), "countersign.dev/cmd/countersign")
		build.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false -pgo=off", "CGO_ENABLED=0") // as the other steps of a check build it
		if output, err := build.CombinedOutput(); err != nil {
			faulty.err = fmt.Errorf("%w\n%s", err, output)
		}
	})
	if faulty.err != nil {
		t.Fatal(faulty.err)
	}
	return filepath.Join(faulty.dir, "countersign")
}

// process is a server in a process of its own.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	info   Info
	ready  bool
	stderr bytes.Buffer
}

// spawn starts a server that dies at a step, by name or number, and waits until it is ready or dead.
func spawn(t *testing.T, binary string, f *fixture, step string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(binary, "server", "--state", f.cfg.State, "--mesh", f.cfg.Mesh,
		"--listen", "127.0.0.1:0", "--unsealed", "--output", "json")}
	p.cmd.Env = append(os.Environ(), "COUNTERSIGN_FAULT="+step)
	p.cmd.Stderr = &p.stderr
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	switch {
	case err == io.EOF && len(line) == 0: //nolint:errorlint // as ReadBytes documents it
	case err != nil:
		t.Fatal(err)
	default:
		if err := json.Unmarshal(line, &p.info); err != nil {
			t.Fatal(err)
		}
		p.ready = true
	}
	return p
}

// end stops the process, if it still runs, and tells whether it was killed by its step.
func (p *process) end() (killed bool) {
	p.t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may be dead already
	err := p.cmd.Wait()
	if err == nil {
		return false
	}
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || status.Signal() != syscall.SIGKILL {
		p.t.Fatalf("the server ended with %v\n%s", err, p.stderr.String())
	}
	return true
}

// visit does what a mesh does, as far as the server lives, and keeps what it was given.
type visit struct {
	token    string
	key      crypto.Signer
	received []string // serials
}

func (v *visit) run(r *remote) error {
	created, err := r.admin.CreateToken(r.f.t.Context(), api.TokenRequest{Workload: "colorteller"})
	if err != nil {
		return err
	}
	v.token = created.Token
	return v.join(r)
}

// join enrols and renews.
func (v *visit) join(r *remote) error {
	p := r.newPeer("colorteller-1")
	p.key = v.key
	defer p.client.CloseIdleConnections()
	if err := p.enroll(v.token); err != nil {
		return err
	}
	v.received = append(v.received, p.serial())
	if err := p.renew(); err != nil {
		return err
	}
	v.received = append(v.received, p.serial())
	documents, err := r.admin.Mesh(r.f.t.Context())
	if err != nil {
		return err
	}
	documents.Documents[0].Content = permissive
	_, err = r.admin.Apply(r.f.t.Context(), api.ApplyRequest{Documents: documents.Documents})
	return err
}

// TestKilledAtEveryStep kills the server at each step between two changes of the disk, from its start
// through the making of a token, an enrolment, a renewal and an apply, and starts it again. Each time
// the journal verifies, it knows every certificate that anybody has, and the token still works for
// the key that it was used with, and for no other.
//
// COUNTERSIGN_SOAK=1 tries every step, otherwise every fifth.
func TestKilledAtEveryStep(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts many processes")
	}
	binary := faultyBinary(t)
	stride := 5
	if os.Getenv("COUNTERSIGN_SOAK") != "" {
		stride = 1
	}
	begin := time.Now()
	step := 1
	for ; ; step += stride {
		if !killedAt(t, binary, step) {
			break
		}
		if t.Failed() {
			t.Fatalf("at step %d", step)
		}
	}
	if step < 100 {
		t.Errorf("everything was done within %d steps; are they counted?", step)
	}
	t.Logf("%d steps, every %dth tried, in %s", step, stride, time.Since(begin).Round(time.Second))
}

// killedAt does one round and tells whether the step was reached.
func killedAt(t *testing.T, binary string, step int) bool {
	t.Helper()
	f := newFixture(t, colorapp)
	defer os.RemoveAll(f.dir)
	key, err := mtls.GenerateKey("ecdsa-p256")
	if err != nil {
		t.Fatal(err)
	}
	v := &visit{key: key}
	p := spawn(t, binary, f, strconv.Itoa(step))
	var visitErr error
	if p.ready {
		visitErr = v.run(f.at(p.info))
	}
	killed := p.end()
	if !killed && visitErr != nil {
		t.Errorf("step %d: nobody was killed, and %v", step, visitErr)
	}

	p = spawn(t, binary, f, "")
	if !p.ready {
		p.end()
		t.Fatalf("step %d: the server does not start again:\n%s", step, p.stderr.String())
	}
	r := f.at(p.info)
	if v.token != "" {
		if err := v.join(r); err != nil {
			t.Errorf("step %d: the same enrolment again: %v", step, err)
		}
		stranger := r.newPeer("colorteller-2")
		wantCode(t, stranger.enroll(v.token), api.CodeUsedToken)
		stranger.client.CloseIdleConnections()
	}
	compare(t, step, f, r, v.received)
	p.end()
	if _, err := journal.Verify(ca.JournalDir(f.cfg.State), p.info.JournalKey); err != nil {
		t.Errorf("step %d: %v", step, err)
	}
	return killed
}

// compare holds what was received and what the database has against the journal.
func compare(t *testing.T, step int, f *fixture, r *remote, received []string) {
	t.Helper()
	recorded := make(map[string]bool)
	intended := make(map[string]bool)
	for record, err := range journal.Records(ca.JournalDir(f.cfg.State)) {
		if err != nil {
			t.Fatal(err)
		}
		var facts struct{ Serial string }
		if err := json.Unmarshal(record.Data, &facts); err != nil {
			t.Fatal(err)
		}
		recorded[facts.Serial] = recorded[facts.Serial] || record.Type == journal.Issued
		intended[facts.Serial] = intended[facts.Serial] || record.Type == journal.IssueIntent
		if record.Type == journal.Issued && !intended[facts.Serial] {
			t.Errorf("step %d: %s was issued without an intent", step, facts.Serial)
		}
	}
	for _, serial := range received {
		if !recorded[serial] {
			t.Errorf("step %d: the journal does not know %s, which a workload has", step, serial)
		}
	}
	stored, err := r.admin.Certificates(f.t.Context())
	if err != nil {
		t.Fatal(err)
	}
	known := make(map[string]bool)
	for _, certificate := range stored {
		known[certificate.Serial] = true
		if !recorded[certificate.Serial] {
			t.Errorf("step %d: the journal does not know %s, which the database has", step, certificate.Serial)
		}
	}
	for serial, issued := range recorded {
		if issued && !known[serial] {
			t.Errorf("step %d: the database does not know %s, which the journal has", step, serial)
		}
	}
}

// TestStepsAreNamed kills the server at steps by their names, so that a step that is taken out is
// noticed.
func TestStepsAreNamed(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts many processes")
	}
	binary := faultyBinary(t)
	for _, name := range []string{
		"journal.entries.before", "journal.entries.written", "journal.entries.synced", "journal.checkpoint.after",
		"ca.issue.prepared", "ca.issue.intent", "ca.issue.signed", "ca.issue.recorded",
		"server.apply.recorded", "server.apply.stored", "server.enroll.recorded", "server.enroll.redeemed",
		"server.renew.recorded", "server.issue.stored",
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, colorapp)
			key, err := mtls.GenerateKey("ecdsa-p256")
			if err != nil {
				t.Fatal(err)
			}
			p := spawn(t, binary, f, name)
			if p.ready {
				if err := (&visit{key: key}).run(f.at(p.info)); err == nil {
					t.Error("everything was done")
				}
			}
			if !p.end() {
				t.Error("nobody was killed")
			}
		})
	}
}
