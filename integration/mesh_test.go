package integration

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/up"
)

// patience bounds every wait for something that has to happen; on a loaded machine it takes a while.
const patience = 60 * time.Second

// running is a mesh that `countersign up` runs.
type running struct {
	up.Document
	spec    string // the specification's path
	logs    string // one file a process
	command *exec.Cmd
	stderr  *bytes.Buffer // of up itself; to be read when it has ended
	ended   chan error    // gets the result of Wait
	once    sync.Once
	result  error
}

// colorapp is the path of one of the Color App's specifications.
func colorapp(name string) string {
	path, err := filepath.Abs(filepath.Join("..", "examples", "colorapp", name))
	if err != nil {
		panic(err) // there is no working directory
	}
	return path
}

// write writes a specification into a directory of the test's own.
func write(t *testing.T, spec string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(path, []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// variant writes another specification beside a mesh's own, as an editor would: relative paths in it
// start at the same place.
func (r *running) variant(t *testing.T, name, spec string) string {
	t.Helper()
	path := filepath.Join(filepath.Dir(r.spec), name)
	if err := os.WriteFile(path, []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// option changes how a mesh is started.
type option func(*exec.Cmd)

// env adds to the environment of `up` and of all that it starts.
func env(pairs ...string) option { return func(c *exec.Cmd) { c.Env = append(c.Env, pairs...) } }

// flags adds to the command line.
func flags(args ...string) option { return func(c *exec.Cmd) { c.Args = append(c.Args, args...) } }

// start runs the mesh of a specification until the test ends, and then sees that it ends well.
func start(t *testing.T, spec string, options ...option) *running {
	t.Helper()
	logs := t.TempDir()
	r, err := launch(spec, logs, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.stop(syscall.SIGINT); err != nil {
			t.Errorf("the end of the mesh: %v", err)
		}
		if t.Failed() {
			t.Log(r.tails())
		}
	})
	return r
}

// launch starts `up` and waits for the document.
func launch(spec, logs string, options ...option) (*running, error) {
	command := exec.CommandContext(context.Background(), binary, "up", spec, "--output", "json", "--logs", logs)
	command.Env = os.Environ()
	// A process group of its own, as a shell gives it: Ctrl-C reaches all of it.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	for _, o := range options {
		o(command)
	}
	r := &running{spec: spec, logs: logs, command: command, stderr: &bytes.Buffer{}, ended: make(chan error, 1)}
	command.Stderr = r.stderr
	stdout, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	first := make(chan []byte, 1)
	go func() {
		in := bufio.NewReader(stdout)
		line, _ := in.ReadBytes('\n')
		first <- line
		rest, _ := io.ReadAll(in)
		err := command.Wait()
		if len(rest) > 0 && err == nil {
			err = fmt.Errorf("more than one line on standard output: %q", rest)
		}
		r.ended <- err
	}()
	select {
	case line := <-first:
		if err := json.Unmarshal(line, &r.Document); err != nil {
			return nil, fmt.Errorf("up did not start: %w (stdout %q)\n%s", errors.Join(err, r.stop(syscall.SIGINT)), line, r.tails())
		}
		return r, nil
	case <-time.After(patience):
		return nil, fmt.Errorf("up was not ready after %s: %w\n%s", patience, r.stop(syscall.SIGINT), r.tails())
	}
}

// stop ends the mesh as a user does, and returns how it ended. It may be called again.
func (r *running) stop(signal syscall.Signal) error {
	r.once.Do(func() {
		if err := r.command.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			r.result = err
		}
		select {
		case err := <-r.ended:
			r.result = errors.Join(r.result, err)
		case <-time.After(patience):
			r.result = fmt.Errorf("up had not ended %s after %v; killed", patience, signal)
			_ = syscall.Kill(-r.command.Process.Pid, syscall.SIGKILL)
			_ = gone(r.ended)
		}
	})
	return r.result
}

// gone waits for the end of what was killed, however it ended.
func gone(ended <-chan error) error { return <-ended }

// tails is the end of every log, for a test that has failed: not so much that what failed is not read for it. The mesh
// has ended.
func (r *running) tails() string {
	var out strings.Builder
	fmt.Fprintf(&out, "--- up\n%s", lastLines(r.stderr.Bytes(), 20))
	files, _ := filepath.Glob(filepath.Join(r.logs, "*"))
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil {
			fmt.Fprintf(&out, "--- %s\n%s", filepath.Base(file), lastLines(data, 10))
		}
	}
	return out.String()
}

func lastLines(data []byte, n int) []byte {
	lines := bytes.SplitAfter(data, []byte("\n"))
	lines = lines[max(0, len(lines)-n-1):]
	for i, line := range lines {
		if len(line) > 400 {
			lines[i] = append(slices.Clone(line[:400]), " ...\n"...)
		}
	}
	return bytes.Join(lines, nil)
}

// instance finds an instance of a workload: the first, unless a number is given.
func (r *running) instance(t *testing.T, workload string, number ...int) up.Workload {
	t.Helper()
	want := workload + "-1"
	if len(number) > 0 {
		want = fmt.Sprintf("%s-%d", workload, number[0])
	}
	for _, w := range r.Workloads {
		if w.Name == workload && w.Instance == want {
			return w
		}
	}
	t.Fatalf("the document has no instance %s: %+v", want, r.Workloads)
	return up.Workload{}
}

// inbound is where peers reach a port of a workload's first instance.
func (r *running) inbound(t *testing.T, workload string, port int) string {
	t.Helper()
	for _, in := range r.instance(t, workload).Inbound {
		if in.Name == fmt.Sprintf("0.0.0.0_%d", port) {
			return in.Address
		}
	}
	t.Fatalf("%s has no inbound listener for port %d", workload, port)
	return ""
}

// outbound is what the application of a workload's first instance dials to call a service.
func (r *running) outbound(t *testing.T, workload, service string, port int) string {
	t.Helper()
	for _, out := range r.instance(t, workload).Outbound {
		if out.Service == service && out.Port == port {
			return out.Address
		}
	}
	t.Fatalf("%s has no outbound listener for %s:%d", workload, service, port)
	return ""
}

// result is how a command ended.
type result struct {
	status         int
	stdout, stderr string
}

// countersign runs a command of the binary.
func countersign(t *testing.T, args ...string) result {
	t.Helper()
	return execute(t, nil, binary, args...)
}

// execute runs a program to its end, with text on its standard input.
func execute(t *testing.T, stdin io.Reader, program string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	command := exec.CommandContext(ctx, program, args...)
	command.Stdin, command.Stdout, command.Stderr = stdin, &stdout, &stderr
	command.WaitDelay = time.Second
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s %v: %v\n%s", filepath.Base(program), args, err, stderr.String())
	}
	return result{command.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// admin runs a command that speaks to the mesh's server, and fails the test unless it ends with 0.
func (r *running) admin(t *testing.T, args ...string) string {
	t.Helper()
	got := countersign(t, append(args, "--socket", r.Server.Socket)...)
	if got.status != 0 {
		t.Fatalf("countersign %v: status %d\n%s%s", args, got.status, got.stdout, got.stderr)
	}
	return got.stdout
}

// status asks the server about its instances, by instance.
func (r *running) status(t *testing.T) map[string]api.Status {
	t.Helper()
	rows, err := api.NewAdmin(r.Server.Socket).Status(t.Context())
	if err != nil {
		t.Fatalf("status: %v", err)
	}
	byInstance := map[string]api.Status{}
	for _, row := range rows {
		byInstance[row.Instance] = row
	}
	return byInstance
}

// stats asks an instance's admin listener for its statistics.
func stats(t *testing.T, w up.Workload) map[string]int64 {
	t.Helper()
	body := get(t, w.Admin+"/stats")
	values := map[string]int64{}
	for line := range strings.Lines(body) {
		name, number, ok := strings.Cut(strings.TrimSpace(line), ": ")
		var value int64
		if _, err := fmt.Sscanf(number, "%d", &value); !ok || err != nil {
			t.Fatalf("a line of /stats is %q, not NAME: INTEGER", line)
		}
		values[name] = value
	}
	return values
}

// client speaks plaintext HTTP, a connection a request.
var client = &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}

// get fetches a page that has to be there.
func get(t *testing.T, url string) string {
	t.Helper()
	status, body := fetch(t, url)
	if status != http.StatusOK {
		t.Fatalf("GET %s: status %d\n%s", url, status, body)
	}
	return body
}

// fetch gives a page and its status.
func fetch(t *testing.T, url string) (int, string) {
	t.Helper()
	status, body, err := try(t, url)
	if err != nil {
		t.Fatal(err)
	}
	return status, body
}

// try gives a page and its status, or says why there is none.
func try(t *testing.T, url string) (int, string, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

// await polls until a condition holds, and fails the test when it does not in time. The condition
// says what it sees, for that failure.
func await(t *testing.T, what string, holds func() (bool, string)) {
	t.Helper()
	began := time.Now()
	for {
		ok, seen := holds()
		if ok {
			return
		}
		if time.Since(began) > patience {
			t.Fatalf("%s did not happen within %s; last seen: %s", what, patience, seen)
		}
		time.Sleep(50 * time.Millisecond) // between two looks
	}
}

// servedSerial makes a handshake with an inbound listener and returns the serial of the certificate
// that it presents. No client certificate is needed to see it.
func servedSerial(ctx context.Context, address string) (string, error) {
	var serial string
	dialer := tls.Dialer{Config: &tls.Config{
		InsecureSkipVerify: true, // it is looked at, not trusted
		VerifyConnection: func(cs tls.ConnectionState) error {
			serial = fmt.Sprintf("%x", cs.PeerCertificates[0].SerialNumber.Bytes())
			return errSeen
		},
	}}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err == nil {
		conn.Close()
	}
	if serial != "" {
		return serial, nil
	}
	return "", err
}

// errSeen ends a handshake whose certificate has been seen.
var errSeen = errors.New("seen")
