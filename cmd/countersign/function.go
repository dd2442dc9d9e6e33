package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"countersign.dev/aws/acm"
	"countersign.dev/aws/cloudwatch"
	"countersign.dev/aws/lambda"
	"countersign.dev/mesh"
	"countersign.dev/rotate"
)

// Started by Lambda under the name bootstrap, the program is the rotation function: it does what `rotate once --mesh` does,
// when an event says so. The specification lies beside it, or where COUNTERSIGN_MESH says.

const (
	meshVariable      = "COUNTERSIGN_MESH"
	taskRoot          = "LAMBDA_TASK_ROOT" // where a function's files are
	meshInFunction    = "mesh.yaml"
	meshDirInFunction = "mesh" // in its place, where the specification has several files
	// approaching is what a certificate of ACM has left at most when it is renewed because an event says that it ends: ACM
	// renews at that time by itself, and has not. An event that comes twice renews once.
	approaching = 60 * 24 * time.Hour
)

// function is the rotation function. Its methods are called by one goroutine at a time.
type function struct {
	p       *process
	world   *rotation
	rotator *rotate.Rotator

	// What the last event was answered with, for the metrics.
	mu      sync.Mutex
	spec    *mesh.Spec
	targets []rotate.Target
}

// newFunction makes the function of the specification that lies beside the program. What of it could never be rotated by this
// function is said before there is an event: AWS is not asked.
func newFunction(p *process) (*function, error) {
	path := os.Getenv(meshVariable)
	if path == "" {
		path = filepath.Join(os.Getenv(taskRoot), meshInFunction)
		directory := filepath.Join(os.Getenv(taskRoot), meshDirInFunction)
		if info, err := os.Stat(directory); err == nil && info.IsDir() {
			path = directory
		}
	}
	world, err := newRotation(p, worldFlags{Mesh: path})
	if err != nil {
		return nil, err
	}
	f := &function{p: p, world: world}
	f.rotator, err = world.rotator(rotationTimes{Timeout: rotate.DefaultTimeout, RolloutTimeout: rotate.DefaultRolloutTimeout}, 0,
		func(workload string, step rotate.Step, text string) {
			p.log.InfoContext(p.ctx, "rotating", "workload", workload, "step", string(step), "text", text)
		})
	if err != nil {
		return nil, err
	}
	return f, f.ready(p.ctx)
}

// serveFunction answers events for as long as Lambda wants. It returns the exit status when the function cannot be made, which
// Lambda is told with the reason, so that whoever invokes the function reads it.
func serveFunction(ctx context.Context, stdout, stderr io.Writer) int {
	p := &process{ctx: ctx, stdout: stdout, stderr: stderr, log: newLogger(stderr, "json", os.Getenv("COUNTERSIGN_LOG_LEVEL"))}
	err := harden("function")
	if err == nil {
		var f *function
		if f, err = newFunction(p); err == nil {
			lambda.Serve(ctx, &lambda.Handler{Work: f, Steps: functionSteps{f}, Measure: f.measure, Log: p.log})
		}
	}
	return notMade(ctx, err, stderr)
}

// notMade tells Lambda, and so whoever invokes the function, why it cannot be made. It gives the exit status.
func notMade(ctx context.Context, why error, stderr io.Writer) int {
	code := status(why, stderr) // first, because Lambda may end the process as soon as it has been told
	if why != nil {
		if err := lambda.Refuse(ctx, why); err != nil {
			status(err, stderr)
		}
	}
	return code
}

// ready reads the specification, and opens what it names.
func (f *function) ready(ctx context.Context) error {
	spec, err := f.world.spec(ctx)
	if err != nil {
		return err
	}
	targets, err := f.world.targetsOf(ctx, spec, "")
	if err = cmp.Or(err, unknown(targets)); err == nil {
		err = cmp.Or(f.world.unseen(targets, ""), unconfigured(targets))
	}
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.spec, f.targets = spec, targets
	return nil
}

// known are the specification and the targets of the last event.
func (f *function) known() (*mesh.Spec, []rotate.Target) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.spec, f.targets
}

// RotateDue implements [lambda.Work].
func (f *function) RotateDue(ctx context.Context, patient bool) (lambda.Report, error) {
	if err := f.ready(ctx); err != nil {
		return lambda.Report{}, err
	}
	_, targets := f.known()
	var names []string
	for _, t := range targets {
		names = append(names, t.Workload.Name)
	}
	return lambda.ReportOf(names, f.rotator.RotateAll(ctx, targets, rotate.Options{Patient: patient})), nil
}

// ApproachingExpiration implements [lambda.Work].
func (f *function) ApproachingExpiration(ctx context.Context, certificate string) (lambda.Report, error) {
	return f.exported(ctx, certificate, true)
}

// Renewed implements [lambda.Work].
func (f *function) Renewed(ctx context.Context, certificate string) (lambda.Report, error) {
	return f.exported(ctx, certificate, false)
}

// exported rotates the workload whose certificate ACM has told of. An account has certificates of others, too: there is
// nothing to do for these.
func (f *function) exported(ctx context.Context, certificate string, ends bool) (lambda.Report, error) {
	if err := f.ready(ctx); err != nil {
		return lambda.Report{}, err
	}
	target, exporter, err := f.whose(ctx, certificate)
	if errors.Is(err, acm.ErrUnknown) {
		f.p.log.InfoContext(ctx, "the certificate is none of this mesh", "certificate", certificate, "reason", err)
		return lambda.Report{Nothing: []string{certificate}}, nil
	}
	if err != nil {
		return lambda.Report{}, err
	}
	o := rotate.Options{Service: target.Workload.Name}
	if ends {
		_, end, err := exporter.Newest(ctx, target.Workload)
		if err != nil {
			return lambda.Report{}, fmt.Errorf("asking ACM for the certificate of %s: %w", target.Workload.Name, err)
		}
		// Nobody is there to answer for more than that: --force is a person's.
		o.Early = !end.IsZero() && time.Until(end) <= approaching
	}
	_, targets := f.known()
	return lambda.ReportOf([]string{o.Service}, f.rotator.RotateAll(ctx, targets, o)), nil
}

// finder is an authority that knows whose certificate an ARN names: [acm.Authority].
type finder interface {
	rotate.Exporter
	Find(ctx context.Context, certificate string) (workload string, err error)
}

// whose finds the workload of a certificate. [acm.ErrUnknown] says that it is nobody's here.
func (f *function) whose(ctx context.Context, certificate string) (rotate.Target, finder, error) {
	spec, targets := f.known()
	reason := fmt.Errorf("%w: no workload has certificates of ACM", acm.ErrUnknown)
	var asked []rotate.Authority
	for _, t := range targets {
		if _, declared := spec.AuthorityOf(t.Workload.Name); declared.Type != mesh.AuthorityACM {
			continue
		}
		if broken, ok := t.Authority.(brokenAuthority); ok {
			return t, nil, broken.err // it may be its certificate
		}
		authority, ok := t.Authority.(finder)
		if !ok || slices.Contains(asked, t.Authority) {
			continue
		}
		asked = append(asked, t.Authority)
		workload, err := authority.Find(ctx, certificate)
		if errors.Is(err, acm.ErrUnknown) {
			reason = err
			continue
		}
		if err != nil {
			return t, nil, fmt.Errorf("finding out whose certificate %s is: %w", certificate, err)
		}
		i := slices.IndexFunc(targets, func(other rotate.Target) bool {
			return other.Workload.Name == workload && other.Authority == t.Authority
		})
		if i < 0 {
			reason = fmt.Errorf("%w: %s has its certificates from elsewhere by now", acm.ErrUnknown, workload)
			continue
		}
		return targets[i], authority, nil
	}
	return rotate.Target{}, nil, reason
}

// measure writes the metrics, of which CloudWatch takes notice in the function's log.
func (f *function) measure(ctx context.Context) error {
	spec, targets := f.known()
	if spec == nil {
		return nil // the event did not get as far
	}
	metrics, err := f.world.metrics(ctx, spec, targets)
	return errors.Join(err, cloudwatch.WriteEmbedded(f.p.stdout, metrics, time.Now()))
}

// metrics are those of a mesh, as far as they can be had.
func (w *rotation) metrics(ctx context.Context, spec *mesh.Spec, targets []rotate.Target) ([]cloudwatch.Metric, error) {
	var statuses []rotate.Status
	for _, t := range targets {
		statuses = append(statuses, rotate.ReadStatus(ctx, t))
	}
	budgets, err := w.cloud.budgets(ctx)
	return cloudwatch.Metrics(spec.Mesh, statuses, budgets, time.Now()), err
}

// publishTimeout is how long telling CloudWatch may take, also when the process is to end.
const publishTimeout = 30 * time.Second

// publish tells CloudWatch how the services stand.
func (w *rotation) publish(ctx context.Context, targets []rotate.Target) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), publishTimeout)
	defer cancel()
	spec, err := w.spec(ctx)
	if err != nil {
		return fmt.Errorf("publishing metrics: %w", err)
	}
	metrics, err := w.metrics(ctx, spec, targets)
	publisher, err2 := cloudwatch.Open(ctx, cloudwatch.Config{})
	if err2 == nil {
		err2 = publisher.Publish(ctx, metrics, time.Now())
	}
	return errors.Join(err, err2)
}

// publishEvery is the time between two tellings of a daemon: alarms look at hours.
const publishEvery = 5 * time.Minute

// publishing runs a daemon, and has it told how the services stand that it knows: again and again while it runs, and once more when it has ended,
// which is after its last rotation.
func publishing(ctx context.Context, run func(context.Context), known func() []rotate.Target, publish func([]rotate.Target)) {
	var group sync.WaitGroup
	group.Go(func() {
		for wait := time.Duration(0); ; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
			wait = time.Second // its first round has not begun
			if targets := known(); targets != nil && ctx.Err() == nil {
				wait = publishEvery
				publish(targets)
			}
		}
	})
	run(ctx)
	group.Wait()
	if targets := known(); targets != nil {
		publish(targets)
	}
}

// published is [rotation.publish] for a daemon, which rotates also when nobody can be told: what fails is logged.
func (w *rotation) published(p *process) func([]rotate.Target) {
	return func(targets []rotate.Target) {
		if err := w.publish(p.ctx, targets); err != nil {
			p.log.WarnContext(p.ctx, "metrics not published", "error", err)
		}
	}
}

// budgets are what was spent by each authority.
func (w *cloud) budgets(ctx context.Context) ([]cloudwatch.Budget, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []cloudwatch.Budget
	var failed []error
	for name, issuer := range w.issuers {
		used, limit, _, err := issuer.budget.State(ctx)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		all = append(all, cloudwatch.Budget{Authority: name, Used: used, Limit: limit})
	}
	slices.SortFunc(all, func(a, b cloudwatch.Budget) int { return cmp.Compare(a.Authority, b.Authority) })
	return all, errors.Join(failed...)
}
