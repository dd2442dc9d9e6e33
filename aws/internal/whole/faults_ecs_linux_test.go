package whole_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign.dev/aws/internal/awstest/deployed"
	"countersign.dev/rotate"
)

const rolledSpecification = `
mesh: MESH
revocation: none
stores: {vault: {type: secretsmanager}}
authorities: {pca: {type: acmpca, mode: short-lived, create: root, budget: {certificates: 100}}}
certificates: {authority: pca, ttl: 24h}
services:
  w:
    ports: [{port: 9000, protocol: grpc, app: 19000}]
    proxy: {engine: haproxy, version: 2.6.12}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}"}
    deploy: {type: ecs, cluster: MESH}
    run: {command: [countersign, example, run, ledger, --listen, "${APP_ADDRESS}"]}
`

// rolled is a service of two tasks that really run.
type rolled struct {
	*lab
	mesh *deployed.Mesh
}

func newRolled(t *testing.T) *rolled {
	t.Helper()
	path, err := faulty()
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("rolled%d", time.Now().UnixMilli())
	m := deployed.Start(t, deployed.Options{Program: path, Specification: []byte(strings.ReplaceAll(rolledSpecification, "MESH", name)), Log: t.Logf})
	w := &rolled{lab: &lab{t: t, cloud: m.Cloud, pca: m.PCA, name: name, dir: m.Dir, services: []string{"w"}}, mesh: m}
	w.connect()
	if err := m.Deploy(t.Context(), 0, nil); err != nil {
		t.Fatal(err)
	}
	for _, variable := range m.FunctionEnv() {
		if arn, found := strings.CutPrefix(variable, "COUNTERSIGN_AUTHORITY_PCA_ARN="); found {
			w.ca = arn
		}
	}
	w.assume()
	if status, said := w.rotate(); status != 0 {
		t.Fatalf("%d\n%s", status, said)
	}
	if err := m.Deploy(t.Context(), 2, nil); err != nil {
		t.Fatal(err)
	}
	return w
}

// serving gives the tasks when both serve a serial.
func (w *rolled) serving(serial string) []string {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	for {
		found, err := w.mesh.Tasks(ctx, "w")
		var serve []string
		for _, task := range found {
			if address, err := deployed.Address(task, 9000); err == nil {
				if seen, err := deployed.Serial(ctx, address); err == nil && seen == serial {
					serve = append(serve, *task.TaskArn)
				}
			}
		}
		if len(found) == 2 && len(serve) == 2 {
			return serve
		}
		if err != nil || ctx.Err() != nil {
			w.t.Fatalf("%d of %d tasks serve %s: %v, %v", len(serve), len(found), serial, err, ctx.Err())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestRolledBack lets roll-outs fail: new tasks that never become healthy, a roll-out that is refused, one of which nobody knows whether it
// has begun, one that cannot be looked at, and a rotation that is killed while it waits for one.
//
// COUNTERSIGN_SOAK=1 tries more of them.
func TestRolledBack(t *testing.T) {
	t.Parallel()
	w := newRolled(t)
	before, issued := w.current("w"), w.pca.Issued()
	tasks := w.serving(before.serial)

	// New tasks cannot read their certificate: ECS takes the roll-out back, and the old tasks serve what they have served.
	w.faults.meanwhile(func(r *http.Request, action string) *http.Response {
		if action != "secretsmanager:GetSecretValue" || !strings.Contains(r.Header.Get("User-Agent"), "countersign") {
			return nil
		}
		return refusing(400, "AccessDeniedException", "not now")(site{})
	})
	status, said := w.rotate("w", "--force")
	if now := w.current("w"); status != 1 || now != before {
		t.Errorf("status %d, and %s is current\n%s", status, now.serial, said)
	}
	w.says(said, "at the step deploy", "the roll-out of new instances failed", "the container init has ended with 1", "is current again")
	if r := w.record("w"); r.LastErrorStep != rotate.StepDeploy || r.Failures != 1 || r.Step != "" || !strings.Contains(r.LastError, "the roll-out of new instances failed") {
		t.Errorf("%+v", r)
	}
	if now := w.serving(before.serial); !slices.Equal(now, tasks) {
		t.Errorf("%v serve it, and %v did before", now, tasks)
	}
	w.faults.meanwhile(nil)
	w.closed(before, tasks, issued, 2)

	// ECS refuses: nobody was replaced.
	before, issued = w.current("w"), w.pca.Issued()
	tasks = w.serving(before.serial)
	w.faults.set(site{"ecs:UpdateService", "it", 1}, fault{all: true, answer: lasting[1].fault.answer})
	status, said = w.rotate("w", "--force")
	if now := w.current("w"); status != 1 || now != before || !w.faults.end() {
		t.Errorf("status %d, and %s is current\n%s", status, now.serial, said)
	}
	w.says(said, `"Action":"ecs:UpdateService"`, "is current again")
	if now := w.serving(before.serial); !slices.Equal(now, tasks) {
		t.Errorf("%v serve it, and %v did before", now, tasks)
	}
	w.closed(before, tasks, issued, 2)

	// What ECS does not answer, the next rotation asks again: with the same certificate.
	unanswered, steps := []site{{"ecs:UpdateService", "it", 1}}, []string{"rotate.rollout.begun"}
	if soak() {
		unanswered, steps = append(unanswered, site{"ecs:DescribeTasks", "it", 1}, site{"ecs:DescribeServices", "it", 2}), append(steps, "rotate.observe")
	}
	for _, at := range unanswered {
		before, issued = w.current("w"), w.pca.Issued()
		tasks = w.serving(before.serial)
		w.faults.set(at, lasting[3].fault)
		status, said = w.rotate("w", "--force")
		if !w.faults.end() || status != 1 || w.current("w") == before {
			t.Errorf("%s: status %d\n%s", at, status, said)
		}
		w.says(said, "the new version stays current, and the next rotation looks again", "the AWS credentials do not hold")
		w.closed(before, tasks, issued, 1)
	}
	for _, step := range steps {
		before, issued = w.current("w"), w.pca.Issued()
		tasks = w.serving(before.serial)
		if status, _, said := w.run([]string{"COUNTERSIGN_FAULT=" + step}, "rotate", "once", "w", "--force"); status != -1 {
			t.Errorf("nobody was killed at %s: %d\n%s", step, status, said)
		}
		w.closed(before, tasks, issued, 1)
	}
}

// closed ends the work with the next rotation, and expects other tasks that serve another certificate.
func (w *rolled) closed(before held, tasks []string, issued, most int) {
	w.t.Helper()
	w.recovers(before, issued, most)
	now := w.serving(w.current("w").serial)
	if slices.ContainsFunc(now, func(task string) bool { return slices.Contains(tasks, task) }) {
		w.t.Errorf("%v serve it, and %v were to be replaced", now, tasks)
	}
}
