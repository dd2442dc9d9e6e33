//go:build unix

package ca

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"countersign.dev/durable"
	"countersign.dev/journal"
	"countersign.dev/mtls"
)

// faultChild, when set, makes the test binary carry out one operation and end: it is the process that
// dies. It has the form OPERATION:STATE.
const faultChild = "CA_FAULT_CHILD"

// delivered is where the child puts the certificate that it got, as an agent would.
const delivered = "delivered.pem"

// TestFaultChild is the process that dies; by itself it does nothing.
func TestFaultChild(t *testing.T) {
	operation, state, ok := strings.Cut(os.Getenv(faultChild), ":")
	if !ok {
		return
	}
	syscall.Umask(0)
	switch operation {
	case "init":
		if _, err := Init(state, InitConfig{TrustDomain: trustDomain, Seal: Unsealed()}); err != nil {
			t.Fatal(err)
		}
	case "issue":
		issued := issueInto(t, state, Unsealed())
		if err := durable.WriteFile(filepath.Join(state, delivered), issued.ChainPEM, 0o600); err != nil {
			t.Fatal(err)
		}
	case "revoke":
		revokeFirst(t, state)
	default:
		for _, change := range rootChanges {
			if change.name == operation {
				c := openAll(t, state, Unsealed(), change.now())
				c.must(change.do(c))
			}
		}
	}
}

// rootChange is a change of hierarchies with the states before and after it.
type rootChange struct {
	name          string
	later         time.Duration
	before        []string // the changes that come first
	do            func(c *opened) error
	was, is, keys string
}

func (r rootChange) now() func() time.Time {
	return func() time.Time { return time.Now().Add(r.later) }
}

var rootChanges = []rootChange{
	{name: "start", was: "active", is: "active next", keys: "3 5", do: func(c *opened) error {
		_, err := c.StartRoot(c.t.Context(), c.log, RootConfig{}, Note{})
		return err
	}},
	{name: "activate", before: []string{"start"}, was: "active next", is: "active retiring", keys: "5 5", do: func(c *opened) error {
		return c.Activate(c.t.Context(), c.log, Note{})
	}},
	{name: "finish", before: []string{"start", "activate"}, was: "active retiring", is: "active", keys: "5 3", do: func(c *opened) error {
		return c.FinishRoot(c.t.Context(), c.log, Note{})
	}},
	{name: "issuer", later: DefaultIssuerLife, was: "active", is: "active retiring", keys: "3 4", do: func(c *opened) error {
		_, err := c.RenewIssuer(c.t.Context(), c.log, nil, 0, Note{})
		return err
	}},
}

// steps calls try with the steps at which a process is to die: the first, every strideth from there, and the last one. try tells
// whether it died.
func steps(stride int, try func(step int) (died bool)) {
	last, step := 0, 1
	for try(step) {
		last, step = step, step+stride
	}
	for step--; step > last && !try(step); {
		step--
	}
}

// strideOf is a stride, and 1 with COUNTERSIGN_SOAK=1.
func strideOf(stride int) int {
	if os.Getenv("COUNTERSIGN_SOAK") != "" {
		return 1
	}
	return stride
}

// crashChange expects the state before or the one after, whole, and that the next start clears away what
// was left and can make the change when it was not made.
func crashChange(t *testing.T, binary string, change rootChange) {
	before, after, stride := 0, 0, strideOf(6)
	steps(stride, func(step int) bool {
		state := newState(t, Unsealed())
		c := openAll(t, state, Unsealed(), change.now())
		for _, name := range change.before {
			for _, first := range rootChanges {
				if first.name == name {
					c.must(first.do(c))
				}
			}
		}
		if err := c.log.Close(); err != nil {
			t.Fatal(err)
		}
		died := runChild(t, binary, change.name+":"+state, strconv.Itoa(step))
		c = openAll(t, state, Unsealed(), change.now())
		c.must(nil)
		was, is, _ := strings.Cut(change.keys, " ")
		switch {
		case c.states() == change.was && died:
			before++
			if got := strconv.Itoa(c.keys()); got != was {
				t.Errorf("step %d, before: %s keys, want %s", step, got, was)
			}
			c.must(change.do(c))
		case c.states() == change.is:
			after++
		default:
			t.Fatalf("step %d: %s", step, c.states())
		}
		if got := strconv.Itoa(c.keys()); got != is || c.states() != change.is {
			t.Errorf("step %d, after: %s with %s keys, want %s with %s", step, c.states(), got, change.is, is)
		}
		c.leaf()
		if onDisk, err := os.ReadFile(c.BundleFile()); err != nil || string(onDisk) != string(c.BundlePEM()) {
			t.Errorf("step %d: the bundle's file differs from the bundle, %v", step, err)
		}
		vkey := c.log.VerifierKey()
		if err := c.log.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := journal.Verify(JournalDir(state), vkey); err != nil {
			t.Errorf("step %d: %v", step, err)
		}
		return died
	})
	if before*stride < 10 || after == 0 {
		t.Errorf("%d crashes left the state before and %d the one after: the faults are not where they should be", before, after)
	}
}

// buildFaulty builds this test with faults in it.
func buildFaulty(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "ca.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-tags", "faultinject", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as the other steps of a check build the packages below it
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the process that dies: %v\n%s", err, output)
	}
	return binary
}

// runChild tells whether the child was killed by the fault.
func runChild(t *testing.T, binary, operation, step string) bool {
	t.Helper()
	child := exec.CommandContext(t.Context(), binary, "-test.run", "^TestFaultChild$")
	child.Env = append(os.Environ(), faultChild+"="+operation, "COUNTERSIGN_FAULT="+step)
	output, err := child.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGKILL {
			return true
		}
	}
	if err != nil {
		t.Fatalf("step %s: %v\n%s", step, err, output)
	}
	return false
}

// TestCrashAtEveryStep kills a process at steps of making a CA and of issuing a certificate.
func TestCrashAtEveryStep(t *testing.T) {
	binary := buildFaulty(t)
	t.Run("init", func(t *testing.T) { crashInit(t, binary) })
	t.Run("issue", func(t *testing.T) { crashIssue(t, binary) })
	t.Run("revoke", func(t *testing.T) { crashRevoke(t, binary) })
	for _, change := range rootChanges {
		t.Run(change.name, func(t *testing.T) { crashChange(t, binary, change) })
	}
}

// crashInit expects a whole CA or none, and that the next Init succeeds where there is none.
func crashInit(t *testing.T, binary string) {
	whole, none, stride := 0, 0, strideOf(4)
	steps(stride, func(step int) bool {
		state := filepath.Join(t.TempDir(), "state")
		died := runChild(t, binary, "init:"+state, strconv.Itoa(step))
		_, err := Read(state)
		switch {
		case err == nil:
			whole++
		case errors.Is(err, ErrNoCA) && died:
			none++
			if _, err := Init(state, InitConfig{TrustDomain: trustDomain, Seal: Unsealed()}); err != nil {
				t.Fatalf("step %d: the next init: %v", step, err)
			}
		default:
			t.Fatalf("step %d: %v", step, err)
		}
		issueInto(t, state, Unsealed())
		checkPrivate(t, state, true)
		entries, err := os.ReadDir(state)
		if err != nil || len(entries) != 3 { // ca, ca.lock, journal
			t.Errorf("step %d: there is %v, %v", step, entries, err)
		}
		return died
	})
	if none*stride < 40 || whole < 2 {
		t.Errorf("%d crashes left none and %d a whole CA: the faults are not where they should be", none, whole)
	}
}

// crashIssue expects that the journal verifies, and knows every certificate that somebody got, and the
// intent of every one that was recorded.
func crashIssue(t *testing.T, binary string) {
	got, lost, stride := 0, 0, strideOf(3)
	steps(stride, func(step int) bool {
		state := newState(t, Unsealed())
		died := runChild(t, binary, "issue:"+state, strconv.Itoa(step))
		log, err := OpenJournal(state, Unsealed())
		if err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		vkey := log.VerifierKey()
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := journal.Verify(JournalDir(state), vkey); err != nil {
			t.Errorf("step %d: %v", step, err)
		}
		issued, err := Certificates(journal.Records(JournalDir(state)))
		if err != nil {
			t.Fatal(err)
		}
		intents := 0
		for record, err := range journal.Records(JournalDir(state)) {
			if err != nil {
				t.Fatal(err)
			}
			if record.Type == journal.IssueIntent {
				intents++
			}
		}
		if len(issued) > intents {
			t.Errorf("step %d: %d were issued, and %d were intended", step, len(issued), intents)
		}
		text, err := os.ReadFile(filepath.Join(state, delivered))
		if err != nil {
			lost++
		} else {
			got++
			certs, err := mtls.ParseCertificates(text)
			if err != nil || len(issued) != 1 || issued[0].Serial != mtls.Serial(certs[0]) {
				t.Errorf("step %d: somebody has a certificate that the journal does not know: %v, %v", step, issued, err)
			}
		}
		issueInto(t, state, Unsealed())
		return died
	})
	if lost*stride < 15 || got < 2 {
		t.Errorf("%d crashes before a certificate was delivered, %d after: the faults are not where they should be", lost, got)
	}
}
