package whole_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"countersign.dev/aws/internal/awstest/deployed"
	"countersign.dev/rotate"
)

// ports are those of the example at which tasks show a certificate. The gateway paygate shows none.
var ports = map[string]int{"checkout": 8081, "ledger": 9000, "terminal": 7000}

// payments is the load: a payment for each question about the balance, from each connection at most fifty in a second. What was not booked is an
// answer of 4xx or 5xx.
const payments = `
local n = 0
local body = '{"card": "4111111111111111", "amount": 12.34}'
request = function()
  n = n + 1
  if n % 2 == 0 then return wrk.format("POST", "/payments", {["Content-Type"] = "application/json"}, body) end
  return wrk.format("GET", "/payments/balance")
end
delay = function() return 20 end
response = function(status, headers, body)
  if status >= 300 then io.stdout:write(os.date("!%H:%M:%S "), status, " ", string.sub(body, 1, 300), "\n") end
end
`

// fargate is the example on the doubles.
type fargate struct {
	*deployed.Mesh
	t        *testing.T
	ctx      context.Context //nolint:containedctx // of one test
	entrance string
	seen     []string // ids of all tasks before each round
}

// refused are the lines of the proxies that say why somebody was not served.
func (e *fargate) refused() string {
	var lines []string
	for _, task := range append(e.seen, e.tasks("checkout", "ledger", "terminal", "paygate")...) {
		for line := range strings.Lines(e.ECS.Logs(task, "proxy")) {
			if strings.Contains(line, "[error]") || strings.Contains(line, `"status":50`) || strings.Contains(line, `"responseCode":50`) {
				lines = append(lines, task+" "+line)
			}
		}
	}
	return strings.Join(lines[:min(len(lines), 60)], "")
}

// soaking says that time does not matter: then seconds of AWS are seconds.
func soaking() bool { return os.Getenv("COUNTERSIGN_SOAK") == "1" }

// TestECS goes the whole way of the example: from its generated template, without a single certificate, to rotations by
// deployment under load that lose nothing.
func TestECS(t *testing.T) {
	second, limit := 250*time.Millisecond, 8*time.Minute
	if soaking() {
		second, limit = time.Second, time.Hour
	}
	e := &fargate{Mesh: deploy(t, deployed.Options{Specification: example(t, ""), Second: second, Edit: slowly(t, 16*second)}), t: t}
	var cancel context.CancelFunc
	e.ctx, cancel = context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := e.Deploy(e.ctx, 0, nil); err != nil {
		t.Fatal(err)
	}
	e.unfilled("checkout")
	e.fill()
	if err := e.Deploy(e.ctx, 2, nil); err != nil {
		t.Fatal(err)
	}
	e.answers()

	stop := load(t, 8, "http://"+e.entrance, payments)
	issued := e.PCA.Issued()
	done := e.rotations()
	l := stop()
	t.Logf("%d requests during %d rotations, %d failed", l.requests, done, l.failed)
	if l.failed > 0 || l.requests < 100*done {
		t.Errorf("%d of %d requests were lost\n%s\n%s", l.failed, l.requests, l.output, e.refused())
	}
	if done < 10 || e.PCA.Issued() != issued+done {
		t.Errorf("%d rotations, for which %d certificates were issued", done, e.PCA.Issued()-issued)
	}
	for _, call := range e.Cloud.Calls() {
		if !call.Allowed {
			t.Errorf("%s may not %s on %s: %s", call.Role, call.Action, call.Resource, call.Why)
		}
	}
}

// slowly has checkout's application listen late: after its proxy, which the balancer looks at, has been found well twice.
func slowly(t *testing.T, late time.Duration) func(template string) string {
	const program, command = "EntryPoint: [countersign]\n", "Command: [example, run, checkout,"
	return func(template string) string {
		before, after, found := strings.Cut(template, command)
		at := strings.LastIndex(before, program)
		if !found || at < 0 {
			t.Fatal("the template does not start checkout's application as it did")
		}
		return before[:at] + fmt.Sprintf("EntryPoint: [bash, -c, 'sleep %g; exec countersign \"$@\"', slow]\n", late.Seconds()) + before[at+len(program):] + command + after
	}
}

// unfilled starts a task while there is no certificate: init says what to do, and nothing after it is started.
func (e *fargate) unfilled(workload string) {
	e.t.Helper()
	arn, err := e.StartTask(e.ctx, workload)
	if err != nil {
		e.t.Fatal(err)
	}
	task, err := e.Stopped(e.ctx, workload, arn)
	if err != nil {
		e.t.Fatal(err)
	}
	if c := container(e.t, task, "init"); c.ExitCode == nil || *c.ExitCode != 1 {
		e.t.Errorf("init without a certificate: exit code %v, %s", c.ExitCode, aws.ToString(c.Reason))
	}
	for _, name := range []string{"proxy", "app"} {
		if c := container(e.t, task, name); c.ExitCode != nil || e.ECS.Logs(arn, name) != "" {
			e.t.Errorf("%s was started without a certificate: exit code %v, %q", name, c.ExitCode, e.ECS.Logs(arn, name))
		}
	}
	for _, want := range []string{"nothing has been written to it yet", "countersign rotate once --mesh PATH"} {
		if said := e.ECS.Logs(arn, "init"); !strings.Contains(said, want) {
			e.t.Errorf("init does not say %q: %s", want, said)
		}
	}
	if e.PCA.Issued() != 0 {
		e.t.Errorf("%d certificates were issued", e.PCA.Issued())
	}
}

// container is one of a task's by its name.
func container(t *testing.T, task types.Task, name string) types.Container {
	t.Helper()
	i := slices.IndexFunc(task.Containers, func(c types.Container) bool { return aws.ToString(c.Name) == name })
	if i < 0 {
		t.Fatalf("the task %s has no container %s", aws.ToString(task.TaskArn), name)
	}
	return task.Containers[i]
}

// fill rotates for the first time.
func (e *fargate) fill() {
	e.t.Helper()
	for _, result := range e.rotate() {
		if result.Outcome != rotate.Rotated {
			e.t.Errorf("%s %s: %s %s", result.Service, result.Secret, result.Outcome, result.Error)
		}
	}
	if e.PCA.Issued() != 4 {
		e.t.Errorf("%d certificates were issued, want 4", e.PCA.Issued())
	}
}

// rotate runs `rotate once` as the role of the rotation function.
func (e *fargate) rotate(args ...string) []rotate.Result {
	e.t.Helper()
	r := e.Run(e.ctx, e.Role("rotation"), nil, append([]string{"rotate", "once", "--output", "json"}, args...)...)
	var results []rotate.Result
	if err := json.Unmarshal([]byte(r.Stdout), &results); err != nil || r.Status != 0 {
		e.t.Errorf("countersign rotate once %s: status %d, %v\n%s\n%s", args, r.Status, err, r.Stdout, r.Stderr)
	}
	return results
}

// answers waits until the chain answers at the gateway's balancer.
func (e *fargate) answers() {
	e.t.Helper()
	var err error
	if e.entrance, err = e.Balancer("paygate", 8080); err != nil {
		e.t.Fatal(err)
	}
	if text, err := get(e.ctx, "http://"+e.entrance+"/payments/balance"); err != nil || !strings.Contains(text, "CN=checkout,OU=service") {
		e.t.Fatalf("%s, %v", text, err)
	}
}

// get asks a URL, which has to answer with 200.
func get(ctx context.Context, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s: %s", answer.Status, body)
	}
	return string(body), err
}

// rotations rotates everything some times, callees before their callers, until no replaced task is left, and says how many rotations
// that were.
func (e *fargate) rotations() (done int) {
	e.t.Helper()
	rounds := 3
	if soaking() {
		rounds = 10
	}
	var replaced []string
	for range rounds {
		before := e.tasks("checkout", "ledger", "terminal", "paygate")
		e.seen = append(e.seen, before...)
		for _, result := range e.rotate("--force") {
			if result.Service != "" {
				e.closed(result, before)
				done++
			}
		}
		replaced = before
	}
	// The last ones drain and stop while the load goes on.
	for _, task := range replaced {
		if _, err := e.Stopped(e.ctx, "checkout", task); err != nil {
			e.t.Error(err)
		}
	}
	return done
}

// tasks are the ids of the tasks that workloads have now.
func (e *fargate) tasks(workloads ...string) []string {
	e.t.Helper()
	var ids []string
	for _, workload := range workloads {
		tasks, err := e.Tasks(e.ctx, workload)
		if err != nil || len(tasks) != 2 {
			e.t.Errorf("%s has %d tasks, %v", workload, len(tasks), err)
		}
		for _, task := range tasks {
			ids = append(ids, id(task))
		}
	}
	return ids
}

// id is the last part of a task's ARN.
func id(task types.Task) string {
	arn := aws.ToString(task.TaskArn)
	return arn[strings.LastIndex(arn, "/")+1:]
}

// closed asserts that a rotation was closed by what was seen: each task is new, was seen with the new serial, and shows it to us.
func (e *fargate) closed(result rotate.Result, before []string) {
	e.t.Helper()
	by := rotate.ByHandshake
	if ports[result.Service] == 0 {
		by = rotate.ByReport
	}
	if by == rotate.ByReport {
		e.gatewayShows(result.Serial)
	}
	if result.Outcome != rotate.Rotated || len(result.Seen) != 2 {
		e.t.Errorf("%s: %s %s, seen by %+v", result.Service, result.Outcome, result.Error, result.Seen)
	}
	now := e.tasks(result.Service)
	for _, s := range result.Seen {
		if s.Serial != result.Serial || s.By != by || !slices.Contains(now, s.Instance) || slices.Contains(before, s.Instance) {
			e.t.Errorf("%s: %+v, want the serial %s by %s at one of the tasks %v, before it were %v", result.Service, s, result.Serial, by, now, before)
		}
	}
	tasks, err := e.Tasks(e.ctx, result.Service)
	if err != nil {
		e.t.Error(err)
	}
	for _, task := range tasks {
		if by == rotate.ByReport {
			continue
		}
		address, err := deployed.Address(task, ports[result.Service])
		if err != nil {
			e.t.Error(err)
			continue
		}
		if serial, err := deployed.Serial(e.ctx, address); serial != result.Serial || err != nil {
			e.t.Errorf("%s: the task %s shows %q, %v; want %s", result.Service, id(task), serial, err, result.Serial)
		}
	}
}

// gatewayShows asserts that checkout's proxy has seen a caller with a serial: the gateway has no port to look at.
func (e *fargate) gatewayShows(serial string) {
	e.t.Helper()
	tasks, err := e.Tasks(e.ctx, "checkout")
	if err != nil {
		e.t.Error(err)
	}
	for {
		for _, task := range tasks {
			if tells(e.ECS.Logs(id(task), "proxy"), serial) {
				return
			}
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-e.ctx.Done():
			e.t.Errorf("nobody has called checkout with the serial %s", serial)
			return
		}
	}
}
