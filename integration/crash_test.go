package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// faulty builds the binary that kills itself at a step that COUNTERSIGN_FAULT numbers.
var faulty = sync.OnceValues(func() (string, error) {
	path := binary + "-fault"
	return path, build(path, "-tags", "faultinject")
})

// crashProgram gives that binary.
func crashProgram(t *testing.T) string {
	t.Helper()
	path, err := faulty()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// stride is how many steps a crash test goes on at a time: all of them are tried in the long form.
func stride() int {
	if soak {
		return 1
	}
	return 11
}

// maxSteps bounds the search for the last step.
const maxSteps = 5000

// The server is killed between any two changes of the disk while it starts and issues. Whenever it
// happens, it starts again, the journal verifies, and knows every certificate that anybody got.
func TestServerCrashes(t *testing.T) {
	t.Parallel() // it waits for a mesh of its own
	program := crashProgram(t)
	tried, began := 0, time.Now()
	for step := 1; ; step += stride() {
		if step > maxSteps {
			t.Fatalf("a start and an issue take more than %d steps", maxSteps)
		}
		server := newControl(t, shortDir(t), write(t, fmt.Sprintf(loneService, 9080)))
		server.start(t, program, "COUNTERSIGN_FAULT="+strconv.Itoa(step))
		var held []string
		if server.ready(t) {
			held = issueUntilItDies(t, server)
		}
		killed := killedItself(server.stop(syscall.SIGTERM))
		server.start(t, binary)
		if !server.ready(t) {
			t.Fatalf("killed at step %d, the server does not start again: %s", step, server.log.String())
		}
		if _, err := probe(t, api.NewAdmin(server.socket)); err != nil {
			t.Errorf("killed at step %d, the server issues nothing: %v", step, err)
		}
		journalHolds(t, server, held...)
		if err := server.stop(syscall.SIGTERM); err != nil {
			t.Errorf("killed at step %d, the next server ends with %v: %s", step, err, server.log.String())
		}
		if t.Failed() {
			t.Fatalf("step %d", step)
		}
		if !killed {
			break
		}
		tried++
	}
	t.Logf("killed at %d steps, %d apart, in %s", tried, stride(), time.Since(began).Round(time.Second))
	if tried < 5 {
		t.Errorf("the server died at %d steps only: the injection does not work", tried)
	}
}

// issueUntilItDies obtains certificates and a token; it returns the serials that it got.
func issueUntilItDies(t *testing.T, server *control) []string {
	t.Helper()
	admin := api.NewAdmin(server.socket)
	var serials []string
	for range 2 {
		credentials, err := probe(t, admin)
		if err != nil {
			return serials
		}
		chain, err := mtls.ParseCertificates([]byte(credentials.Chain))
		if err != nil {
			t.Fatal(err)
		}
		serials = append(serials, mtls.Serial(chain[0]))
		if _, err := admin.CreateToken(t.Context(), api.TokenRequest{Workload: "alone", TTL: mesh.Duration(time.Minute), Uses: 1}); err != nil {
			return serials
		}
	}
	return serials
}

// killedItself tells whether a process ended by the signal of the injection.
func killedItself(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// A sidecar is killed between any two changes of the disk while it enrols and renews. Whenever it
// happens, the next start works, with the same token and the same state.
func TestSidecarCrashes(t *testing.T) {
	t.Parallel() // it waits for a mesh of its own
	program := crashProgram(t)
	spec := strings.Replace(fmt.Sprintf(loneService, port(t)), "services:", "certificates: {ttl: 3s, renewAfter: 1s}\nservices:", 1)
	server := newControl(t, shortDir(t), write(t, spec))
	server.start(t, binary)
	if !server.ready(t) {
		t.Fatal(server.log.String())
	}
	tried, began := 0, time.Now()
	for step := 1; ; step += stride() {
		if step > maxSteps {
			t.Fatalf("an enrolment and a renewal take more than %d steps", maxSteps)
		}
		state, token := t.TempDir(), server.token(t, "alone")
		log, killed := server.crash(t, program, step, token, state)
		if !killed {
			break // it went on to its second renewal
		}
		tried++
		if !server.serves(t, token, state) {
			t.Fatalf("killed at step %d, the sidecar does not serve again\n%s", step, log)
		}
	}
	journalHolds(t, server)
	t.Logf("killed at %d steps, %d apart, in %s", tried, stride(), time.Since(began).Round(time.Second))
	if tried < 3 {
		t.Errorf("the sidecar died at %d steps only: the injection does not work", tried)
	}
}

// stateSerial is the serial of the certificate in a sidecar's state; empty when there is none.
func stateSerial(state string) string {
	data, err := os.ReadFile(filepath.Join(state, "current", "cert.pem"))
	if err != nil {
		return ""
	}
	chain, err := mtls.ParseCertificates(data)
	if err != nil {
		return "damaged: " + err.Error()
	}
	return mtls.Serial(chain[0])
}

// crash runs a sidecar that kills itself at a step, or ends it when it has renewed twice.
func (c *control) crash(t *testing.T, program string, step int, token, state string) (log string, killed bool) {
	t.Helper()
	command, ended, out := c.launchSidecar(t, program, token, state, []string{"COUNTERSIGN_FAULT=" + strconv.Itoa(step)})
	serials := map[string]bool{}
	await(t, "the sidecar dies or renews", func() (bool, string) {
		select {
		case err := <-ended:
			ended <- err
			killed = killedItself(err)
			if !killed {
				t.Fatalf("step %d: it ended with %v\n%s", step, err, out.String())
			}
			return true, ""
		default:
		}
		if serial := stateSerial(state); serial != "" {
			serials[serial] = true
		}
		return len(serials) >= 3, out.String()
	})
	_ = command.Process.Signal(syscall.SIGTERM) // it may have ended
	_ = gone(ended)
	return out.String(), killed
}

// serves tells whether a sidecar starts from a state and connects to the server.
func (c *control) serves(t *testing.T, token, state string) bool {
	t.Helper()
	command, ended, out := c.launchSidecar(t, binary, token, state, nil)
	died := false
	await(t, "the sidecar connects", func() (bool, string) {
		select {
		case err := <-ended:
			ended <- err
			died = true
			t.Logf("it ended with %v\n%s", err, out.String())
			return true, ""
		default:
		}
		rows, err := api.NewAdmin(c.socket).Status(t.Context())
		if err != nil {
			return false, err.Error()
		}
		for _, row := range rows {
			if row.Instance == "one" && row.Connected && row.Serial != "" && row.Serial == stateSerial(state) {
				return true, ""
			}
		}
		return false, fmt.Sprint(rows) + out.String()
	})
	_ = command.Process.Signal(syscall.SIGTERM) // it may have ended
	err := <-ended
	if err != nil && !died {
		t.Errorf("SIGTERM: %v\n%s", err, bytes.TrimSpace([]byte(out.String())))
	}
	return !died
}
