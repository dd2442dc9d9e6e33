package whole_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign.dev/aws/internal/awstest/deployed"
	"countersign.dev/aws/internal/awstest/lambdafake"
	"countersign.dev/aws/lambda"
)

// rotation is the rotation function of a mesh that is deployed: what `rotate package` has packed, with the environment and
// the role of the template.
type rotation struct {
	*lambdafake.Function
	t    *testing.T
	mesh *deployed.Mesh
	root string
	log  output
}

// newRotation packs the function of a mesh whose stack is there.
func newRotation(t *testing.T, m *deployed.Mesh) *rotation {
	t.Helper()
	f := &rotation{t: t, mesh: m, root: t.TempDir()}
	if r := m.Run(t.Context(), "root", nil, "rotate", "package", "mesh.yaml", "--out", "function.zip"); r.Status != 0 {
		t.Fatalf("rotate package: %d, %s", r.Status, r.Stderr)
	}
	(&world{t: t}).unpack(filepath.Join(m.Dir, "function.zip"), f.root)
	f.Function = lambdafake.New(t, func(ctx context.Context) *exec.Cmd {
		command := exec.CommandContext(ctx, filepath.Join(f.root, "bootstrap"))
		command.Env = append(append(m.Cloud.Env(m.Role("rotation")), m.FunctionEnv()...), "LAMBDA_TASK_ROOT="+f.root)
		command.Stdout, command.Stderr = &f.log, &f.log
		return command
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the function's log:\n%s", f.log.String())
		}
	})
	return f
}

// invoke gives the function an event. Unless nothing fails, the test has failed.
func (f *rotation) invoke(event string, within time.Duration) lambda.Report {
	f.t.Helper()
	began := time.Now()
	answer, err := f.Invoke([]byte(event), within)
	later(f.t, "after %s: %s (%v)", time.Since(began).Round(time.Millisecond), answer, err)
	var report lambda.Report
	if err == nil {
		err = json.Unmarshal(answer, &report)
	}
	if err != nil || len(report.Failed) > 0 {
		f.t.Fatalf("%s: %s, %v", event, answer, err)
	}
	return report
}

// does invokes the function, which is to have rotated some workloads and to have nothing left.
func (f *rotation) does(event string, want ...string) {
	f.t.Helper()
	report := f.invoke(event, patience)
	var workloads []string
	for _, name := range report.Rotated {
		if !strings.HasSuffix(name, "/bundle") {
			workloads = append(workloads, name)
		}
	}
	if !sameNames(workloads, want) || len(report.Unfinished) > 0 {
		f.t.Errorf("%s: %+v, want %q to be rotated", event, report, want)
	}
}

// patience is what Lambda gives the function of a template.
const patience = 15 * time.Minute

// sameNames compares names in any order.
func sameNames(got, want []string) bool {
	count := make(map[string]int)
	for _, name := range got {
		count[name]++
	}
	for _, name := range want {
		count[name]--
	}
	for _, n := range count {
		if n != 0 {
			return false
		}
	}
	return true
}

// serials are those that each task of a workload shows, which are to be of one certificate; tasks are their ARNs.
func serials(ctx context.Context, t *testing.T, m *deployed.Mesh, workload string, port int) (serial string, tasks []string) {
	t.Helper()
	found, err := m.Tasks(ctx, workload)
	if err != nil || len(found) == 0 {
		t.Fatalf("%s has %d tasks, %v", workload, len(found), err)
	}
	for _, task := range found {
		address, err := deployed.Address(task, port)
		if err != nil {
			t.Fatal(err)
		}
		shown, err := deployed.Serial(ctx, address)
		if err != nil || serial != "" && shown != serial {
			t.Fatalf("%s shows %s, another task %s: %v", address, shown, serial, err)
		}
		serial = shown
		tasks = append(tasks, *task.TaskArn)
	}
	return serial, tasks
}

// pay sends a payment through the whole mesh: from outside to the gateway, and from there into the ledger.
func pay(ctx context.Context, m *deployed.Mesh, gateway string) error {
	entrance, err := m.Balancer(gateway, 8080)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+entrance+"/payments", strings.NewReader(`{"card": "4111111111111111", "amount": 12.34}`))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	if answer.StatusCode/100 != 2 {
		err = fmt.Errorf("a payment is answered with %s", answer.Status)
	}
	return errors.Join(err, answer.Body.Close())
}

// open waits until the first payment is taken: that a service is steady says that its tasks run, and not yet that its balancer has
// found them healthy.
func open(ctx context.Context, t *testing.T, m *deployed.Mesh, gateway string) {
	t.Helper()
	for {
		err := pay(ctx, m, gateway)
		if err == nil {
			return
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("no payment is taken: %v", err)
		}
	}
}

// tells says whether a proxy's access log names a caller with a serial, however it writes what begins with a zero.
func tells(log, serial string) bool {
	for _, digits := range []string{serial, strings.TrimLeft(serial, "0")} {
		if strings.Contains(strings.ToLower(log), `"peerserial":"`+digits+`"`) {
			return true
		}
	}
	return false
}

// calledWith waits until a task of NGINX has logged a caller with a serial.
func calledWith(ctx context.Context, t *testing.T, m *deployed.Mesh, callee, serial string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tasks, err := m.Tasks(ctx, callee)
	if err != nil {
		t.Fatal(err)
	}
	for {
		for _, task := range tasks {
			if tells(m.ECS.Logs(id(task), "proxy"), serial) {
				return
			}
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("nobody has called %s with %s", callee, serial)
		}
	}
}

// allowed makes sure that nobody of a mesh was refused anything.
func allowed(t *testing.T, m *deployed.Mesh) {
	t.Helper()
	for _, call := range m.Cloud.Calls() {
		if !call.Allowed && strings.HasPrefix(call.Role, m.Name) {
			t.Errorf("%s may not %s on %s: %s", call.Role, call.Action, call.Resource, call.Why)
		}
	}
}
