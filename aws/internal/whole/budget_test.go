package whole_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"countersign.dev/aws/internal/awstest/lambdafake"
	"countersign.dev/aws/internal/awstest/pcafake"
	"countersign.dev/aws/lambda"
)

// ended is how a process has ended, and what it has said.
type ended struct {
	status int
	said   string
}

// atOnce starts processes together, each with its arguments, and waits for all.
func (l *lab) atOnce(arguments ...[]string) []ended {
	l.t.Helper()
	path, err := faulty()
	if err != nil {
		l.t.Fatal(err)
	}
	all := make([]ended, len(arguments))
	commands := make([]*exec.Cmd, len(arguments))
	outputs := make([]bytes.Buffer, len(arguments))
	for i, args := range arguments {
		commands[i] = l.command(path, []string{"GOMAXPROCS=1"}, args...)
		commands[i].Stdout, commands[i].Stderr = &outputs[i], &outputs[i]
		if err := commands[i].Start(); err != nil {
			l.t.Fatal(err)
		}
	}
	for i, command := range commands {
		_ = command.Wait() // the status says it
		all[i] = ended{command.ProcessState.ExitCode(), outputs[i].String()}
	}
	return all
}

// spent is the count of the lab's budget.
func (l *lab) spent() (month string, used int) {
	l.t.Helper()
	out, err := l.secrets.GetSecretValue(l.t.Context(), &secretsmanager.GetSecretValueInput{SecretId: aws.String(l.name + "/pca.budget"), VersionStage: aws.String("AWSCURRENT")})
	if err != nil {
		l.t.Fatal(err)
	}
	var count struct {
		Month string
		Used  int
	}
	if err := json.Unmarshal([]byte(*out.SecretString), &count); err != nil {
		l.t.Fatal(err)
	}
	return count.Month, count.Used
}

// counted expects as many certificates to be issued as were counted.
func (l *lab) counted(want int) {
	l.t.Helper()
	if month, used := l.spent(); used != want || l.pca.Issued() != want || month != time.Now().UTC().Format("2006-01") {
		l.t.Errorf("%d were counted in %s, and %d issued, want %d", used, month, l.pca.Issued(), want)
	}
}

// TestBudget has certificates counted by many processes. Its tests run at once, each with a mesh of its own.
func TestBudget(t *testing.T) {
	t.Parallel()
	tests := []func(*testing.T){budgetStops, budgetMonth, manyTriggers, manyInvocations}
	together(t, []string{"stops", "month", "many triggers", "many invocations"}, func(t *testing.T, n int) { tests[n](t) })
}

// budgetStops issues as many as the budget allows, each time from another process, and then none; and of two that are started
// together when one is left, one.
func budgetStops(t *testing.T) {
	t.Helper()
	l := newLab(t, 3, pcafake.Options{}, "a", "b")
	if status, said := l.rotate(); status != 0 {
		t.Fatalf("%d\n%s", status, said)
	}
	l.counted(2)
	if status, said := l.rotate("a", "--force"); status != 0 {
		t.Fatalf("%d\n%s", status, said)
	}
	l.counted(3)
	a, b := l.current("a"), l.current("b")
	for _, service := range []string{"a", "b", "a"} {
		status, said := l.rotate(service, "--force")
		if status != 1 {
			t.Errorf("status %d\n%s", status, said)
		}
		l.says(said, "the budget is spent: 3 of 3 certificates of "+time.Now().UTC().Format("2006-01"), "no further one is asked for before", "raise budget.certificates")
		if r := l.record(service); !strings.Contains(r.LastError, "the budget is spent") {
			t.Errorf("%+v", r)
		}
	}
	l.counted(3)
	if l.current("a") != a || l.current("b") != b {
		t.Error("what is current has changed")
	}
	if l.pca.Calls("IssueCertificate") != 3 {
		t.Errorf("%d were asked for", l.pca.Calls("IssueCertificate"))
	}

	// One more may be spent, and two ask for it. Each goes on with the request of before.
	l.specify(4)
	good, refused := 0, 0
	for _, end := range l.atOnce([]string{"rotate", "once", "a", "--force"}, []string{"rotate", "once", "b", "--force"}) {
		switch {
		case end.status == 0:
			good++
		case end.status == 1 && strings.Contains(end.said, "the budget is spent: 4 of 4"):
			refused++
		default:
			t.Errorf("%d\n%s", end.status, end.said)
		}
	}
	if good != 1 || refused != 1 {
		t.Errorf("%d have got one, and %d were refused", good, refused)
	}
	l.counted(4)

	// With enough of it, the one that was refused has its certificate, and the other one is not asked for again.
	l.specify(10)
	if status, said := l.rotate(); status != 0 {
		t.Errorf("%d\n%s", status, said)
	}
	l.counted(5)
	for service, before := range map[string]held{"a": a, "b": b} {
		if l.current(service) == before {
			t.Errorf("%s has the certificate of before", service)
		}
		l.tidy(service)
	}
}

// budgetMonth has a budget that was spent in the month before, and one that a clock that was ahead has written.
func budgetMonth(t *testing.T) {
	t.Helper()
	l := newLab(t, 2, pcafake.Options{}, "w")
	now := time.Now().UTC()
	first := time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC)
	count := func(month time.Time) map[string]any {
		return map[string]any{"format": 1, "month": month.Format("2006-01"), "used": 2, "day": month.Format("2006-01-02"), "writes": 2}
	}
	l.write(l.name+"/pca.budget", count(first.Add(-time.Second)))
	if status, said := l.rotate(); status != 0 {
		t.Fatalf("%d\n%s", status, said)
	}
	l.counted(1)
	before := l.current("w")
	l.write(l.name+"/pca.budget", count(first.AddDate(0, 1, 0)))
	status, said := l.rotate("--force")
	if status != 1 || l.current("w") != before || l.pca.Issued() != 1 {
		t.Errorf("status %d, %d issued", status, l.pca.Issued())
	}
	l.says(said, "the budget is spent", "by this machine's clock", "aws secretsmanager put-secret-value")
	// What it says to do helps.
	l.write(l.name+"/pca.budget", map[string]any{"format": 1, "month": now.Format("2006-01"), "used": 1})
	l.recovers(before, 1, 1)
	l.counted(2)
}

// manyTriggers starts a rotation fifty times at once: each service has one certificate, and whoever came late says so.
func manyTriggers(t *testing.T) {
	t.Helper()
	l := newLab(t, 100, pcafake.Options{PendingPolls: 2}, "a", "b")
	once := []string{"rotate", "once"}
	var all [][]string
	for range 50 {
		all = append(all, once)
	}
	good := 0
	for _, end := range l.atOnce(all...) {
		switch {
		case end.status == 0:
			good++
		case end.status == 1 && strings.Contains(end.said, "another rotation of it is under way") && strings.Contains(end.said, "left to others who are at it; --wait 5m waits for them"):
		default:
			t.Errorf("%d\n%s", end.status, end.said)
		}
	}
	t.Logf("%d of %d found nothing to do, or did it", good, len(all))
	l.counted(2)
	// Those who wait have nothing left to do, also when each was to do it in any case.
	for _, end := range l.atOnce(slices.Repeat([][]string{{"rotate", "once", "--wait", "5m", "--force"}}, 5)...) {
		if end.status != 0 {
			t.Errorf("waiting: %d\n%s", end.status, end.said)
		}
	}
	if got := l.pca.Issued(); got < 4 || got > 2+2*5 {
		t.Errorf("%d were issued", got)
	}
	issued := l.pca.Issued()
	if status, said := l.rotate(); status != 0 || strings.Count(said, "nothing is due") != 2 {
		t.Errorf("%d\n%s", status, said)
	}
	l.counted(issued)
	for _, service := range l.services {
		l.tidy(service)
	}
}

// manyInvocations has the schedule invoke the rotation function fifty times at once, each time in an environment of its own, as Lambda does with
// invocations that come together: each service has one certificate, nobody fails, and who was late leaves the work to the others.
func manyInvocations(t *testing.T) {
	t.Helper()
	l := newLab(t, 100, pcafake.Options{PendingPolls: 2}, "a", "b")
	path, err := faulty()
	bootstrap := filepath.Join(l.dir, "bootstrap")
	if err == nil {
		err = os.Symlink(path, bootstrap)
	}
	if err != nil {
		t.Fatal(err)
	}
	functions := make([]*lambdafake.Function, 50)
	for i := range functions {
		functions[i] = lambdafake.New(t, func(context.Context) *exec.Cmd { return l.command(bootstrap, []string{"GOMAXPROCS=1"}) })
	}
	reports := make([]lambda.Report, len(functions))
	errs := make([]error, len(functions))
	invoke := func(i int) {
		var text []byte
		if text, errs[i] = functions[i].Invoke([]byte(schedule), 4*time.Minute); errs[i] == nil {
			reports[i] = lambda.Report{}
			errs[i] = json.Unmarshal(text, &reports[i])
		}
	}
	var group sync.WaitGroup
	for i := range functions {
		group.Go(func() { invoke(i) })
	}
	group.Wait()
	var rotated, left []string
	for i, r := range reports {
		if errs[i] != nil || len(r.Failed)+len(r.Waiting) > 0 || len(r.Rotated)+len(r.Nothing)+len(r.Unfinished) != len(l.services) {
			t.Errorf("%+v, %v", r, errs[i])
		}
		rotated, left = append(rotated, r.Rotated...), append(left, r.Unfinished...)
	}
	if slices.Sort(rotated); !slices.Equal(rotated, l.services) {
		t.Errorf("they have rotated %v", rotated)
	}
	t.Logf("of %d times %d services %d were left to others", len(functions), len(l.services), len(left))
	l.counted(len(l.services))
	if invoke(0); errs[0] != nil || !slices.Equal(reports[0].Nothing, l.services) {
		t.Errorf("and then: %+v, %v", reports[0], errs[0])
	}
	l.counted(len(l.services))
	for i, function := range functions {
		if function.Starts() != 1 {
			t.Errorf("the function %d was started %d times", i, function.Starts())
		}
	}
	for _, service := range l.services {
		l.tidy(service)
	}
}
