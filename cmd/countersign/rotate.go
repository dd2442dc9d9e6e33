package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"countersign.dev/mesh"
	"countersign.dev/rotate"
	"countersign.dev/secret"
)

type rotateCmd struct {
	Once   rotateOnceCmd   `cmd:"" help:"Rotate what is due, and end."`
	Daemon rotateDaemonCmd `cmd:"" help:"Rotate what is due, for as long as this runs."`
	Status rotateStatusCmd `cmd:"" help:"What the stores hold, when it is due, and how the last rotations ended."`

	Package rotatePackageCmd `cmd:"" help:"The rotation function for AWS Lambda: this program and the specification in a ZIP file."`
}

type rotateOnceCmd struct {
	Service  *string       `arg:"" optional:"" help:"The service or gateway. Default: all whose certificate comes from a store."`
	DryRun   bool          `help:"Say what would be done, and why. Nothing is written and no lease is taken."`
	Force    bool          `help:"Rotate although nothing is due, replace a current version that is damaged, and let another authority take the place of the one of before."`
	NoDeploy bool          `help:"Make the new version current, and go no further: nothing is restarted and nobody is looked at."`
	Wait     time.Duration `default:"0s" help:"How long to wait for another rotation of the same secret before this one gives up. Default: not at all."`
	Publish  bool          `name:"cloudwatch" help:"Tell Amazon CloudWatch at the end how all services stand, by PutMetricData in the region of the environment. The function for Lambda does so by its log."`
	rotationTimes
	worldFlags
	outputFlag
}

// rotationTimes say how long a rotation may take.
type rotationTimes struct {
	Timeout        time.Duration `default:"2m" help:"How long the endpoints of a service may take to serve the new certificate before the old one is brought back. Default: ${default}."`
	RolloutTimeout time.Duration `default:"30m" help:"With deploy: {type: ecs}: how long the tasks of a service may take to be replaced before the old certificate is brought back. Default: ${default}."`
}

// check refuses times that cannot be meant.
func (t rotationTimes) check() error {
	switch {
	case t.Timeout <= 0 || t.Timeout > time.Hour:
		return usagef("--timeout %s is out of range; give one above 0 and at most 1h", t.Timeout)
	case t.RolloutTimeout <= 0 || t.RolloutTimeout > maxRollout:
		return usagef("--rollout-timeout %s is out of range; give one above 0 and at most %s", t.RolloutTimeout, maxRollout)
	}
	return nil
}

// maxRollout is for tasks that drain for as long as ECS lets them.
const maxRollout = 3 * time.Hour

// Help is what --help adds.
func (rotateOnceCmd) Help() string {
	return `For services whose certificate comes from a secret store. Each rotation has these steps: a key and a
request are stored; the authority is asked; the new version is stored, read back and checked as
'countersign init' checks it; it is made current; instances are restarted one after the other where the
specification says so (deploy: restart), else their watchers reload them; and every endpoint is looked at
until it serves the new serial. What fails after that is undone: the version of before becomes current
again, is deployed and observed. A process that is killed leaves nothing half: the next one goes on where
it was, with the same request. Trust bundles that services share come first, for all who use them, also
when one service is named.

A lease in the store keeps two from working on one service. The second one fails, and says who has it and what
he is at; with --wait it waits for him, and finds nothing to do when he has done it, also with --force. For a trust
bundle that services share it waits for a minute at least, so that two may rotate different services at once.

Certificates of AWS Private CA and of ACM (authorities of the type acmpca and acm) need no server: --mesh names
the specification. Where Amazon ECS replaces the tasks (deploy: {type: ecs}), the roll-out is watched, every new
task is looked at until it serves the new serial, and no old one is left; services come before their callers.
Such certificates cost money: each is counted before it is asked for, in the secret MESH/AUTHORITY.budget, and
none is asked for beyond the budget of the month. --dry-run says how many would be issued, and what they cost.

Exit status: 0 when nothing was due or all went well, 1 when something failed, or would in a trial run, or somebody
else is at it, 2 for a mistake in what was asked for, or in what is configured for AWS. Progress goes to standard
error.

Examples:
  countersign rotate once --mesh mesh.yaml --dry-run
  countersign rotate once --mesh mesh.yaml
  countersign rotate once payments --force --mesh mesh.yaml
  countersign rotate once --dry-run --socket /var/lib/countersign/server.sock
  countersign up mesh.yaml -- countersign rotate once --output json`
}

// Run rotates.
func (c *rotateOnceCmd) Run(p *process) error {
	if err := c.check(); err != nil {
		return err
	}
	if c.Wait < 0 || c.Wait > maxRollout {
		return usagef("--wait %s is out of range; give one of at most %s", c.Wait, maxRollout)
	}
	service := ""
	if c.Service != nil {
		if service = *c.Service; service == "" { // a variable of a script that is not set would rotate, and pay, everything
			return usagef("the service's name is empty; name one, or leave it out for all")
		}
	}
	world, err := newRotation(p, c.worldFlags)
	if err != nil {
		return err
	}
	targets, err := world.targets(p.ctx, service)
	if err == nil {
		err = unknown(targets)
	}
	if err == nil && !c.NoDeploy {
		err = world.unseen(targets, service)
	}
	if err != nil {
		return world.refused(p, err)
	}
	if err := world.unreached(p, ofService(targets, service)); err != nil {
		return err
	}
	rotator, err := world.rotator(c.rotationTimes, c.Wait, func(workload string, step rotate.Step, text string) {
		fmt.Fprintf(p.stderr, "%s: %s: %s\n", workload, step, text)
	})
	if err != nil {
		return err
	}
	results := rotator.RotateAll(p.ctx, targets, rotate.Options{Force: c.Force, NoDeploy: c.NoDeploy, DryRun: c.DryRun, Service: service})
	switch {
	case c.DryRun:
		err = c.trial(p, world, targets, results)
	case c.json():
		err = writeJSON(p, results)
	default:
		err = printResults(p, results)
	}
	if c.Publish && !c.DryRun {
		err = errors.Join(err, world.publish(p.ctx, targets))
	}
	return cmp.Or(err, c.verdict(p, results))
}

// verdict says what failed, once more and together, and makes it the exit status.
func (c *rotateOnceCmd) verdict(p *process, results []rotate.Result) error {
	failed, busy, stopped := 0, 0, 0
	for _, result := range results {
		if result.Err != nil {
			failed++
			switch {
			case errors.Is(result.Err, rotate.ErrStopped): // also while it waited for somebody else
				stopped++
			case errors.Is(result.Err, secret.ErrHeld):
				busy++
			}
			fmt.Fprintf(p.stderr, "countersign: %s: %s\n", cmp.Or(result.Service, result.Secret), result.Error)
		}
	}
	switch {
	case failed > 0 && failed == busy:
		return exitError{status: exitFailure, message: fmt.Sprintf("%s of %d left to others who are at it; --wait 5m waits for them, and `countersign rotate status` shows how far they are", count(failed, "rotation"), len(results))}
	case stopped > 0 && failed == stopped+busy:
		return exitError{status: exitFailure, message: fmt.Sprintf("interrupted: %s of %d stopped, and the next `countersign rotate once` goes on from there", count(stopped, "rotation"), len(results))}
	case failed > 0:
		return exitError{status: exitFailure, message: fmt.Sprintf("%s of %d failed", count(failed, "rotation"), len(results))}
	case p.ctx.Err() != nil:
		return exitError{status: exitFailure, message: "interrupted before everything was looked at"}
	default:
		return nil
	}
}

// nothingToRotate is said where an empty list would look like a mistake.
const nothingToRotate = "Nothing to rotate: no certificate comes from a store (delivery: {type: store}); agents renew theirs themselves."

// printResults writes one line a result.
func printResults(p *process, results []rotate.Result) error {
	var out strings.Builder
	if len(results) == 0 {
		fmt.Fprintln(&out, nothingToRotate)
	}
	for _, result := range results {
		fmt.Fprintf(&out, "%s: %s\n", cmp.Or(result.Service, "trust bundle "+result.Secret), describeResult(result))
		for _, note := range result.Notes {
			fmt.Fprintf(&out, "  %s\n", note)
		}
	}
	_, err := p.stdout.Write([]byte(out.String()))
	return err
}

func describeResult(r rotate.Result) string {
	serves := "version " + r.Version
	if r.Serial != "" {
		serves = fmt.Sprintf("serial %s, valid to %s", r.Serial, r.NotAfter.Format(time.RFC3339))
	}
	switch {
	case r.Err != nil:
		return fmt.Sprintf("%s, at the step %s; standard error says why", r.Outcome, r.Step)
	case r.Outcome == rotate.Nothing && r.Due.IsZero():
		return "nothing is due: it is what the authority says"
	case r.Outcome == rotate.Nothing:
		return "nothing is due before " + r.Due.Format(time.RFC3339) + "; " + serves
	case r.Outcome == rotate.WouldRotate:
		return "would rotate: " + r.Reason
	case r.Outcome == rotate.Promoted:
		return serves + ", is current; nobody was looked at (" + r.Reason + ")"
	case r.Serial == "":
		return "brought up to date (" + r.Reason + ")"
	default:
		return fmt.Sprintf("rotated, and %s: %s (%s)", seenAt(r.Seen), serves, r.Reason)
	}
}

// seenAt says at how many places something was seen, and for how many there is only an instance's own word.
func seenAt(sightings []rotate.Sighting) string {
	seen, said := 0, 0
	for _, s := range sightings {
		switch {
		case s.Away:
		case s.By == rotate.ByReport:
			said++
		default:
			seen++
		}
	}
	text := "seen at " + count(seen, "place")
	if said > 0 {
		text += fmt.Sprintf(" (of %s there is only its own word)", count(said, "instance"))
	}
	return text
}

type rotateDaemonCmd struct {
	Metrics string `placeholder:"ADDR" help:"Serve /metrics for Prometheus on this address, host:port. There is no access control: choose a loopback address."`
	Publish bool   `name:"cloudwatch" help:"Tell Amazon CloudWatch every five minutes how all services stand, by PutMetricData in the region of the environment."`
	rotationTimes
	worldFlags
}

// Help is what --help adds.
func (rotateDaemonCmd) Help() string {
	return `Does what 'rotate once' does whenever something is due, and looks again every minute in any case: the
specification, the trust bundle or the authority may have changed. What fails is tried again after ten
seconds, then later each time, up to ten minutes; where AWS was paid for a certificate that could not be
used, after five minutes, up to three hours. SIGTERM ends it between two steps of a rotation; the next start
goes on from there.

The metrics: countersign_rotate_certificate_expiry_days, countersign_rotate_last_success_timestamp_seconds,
countersign_rotate_failures_total and countersign_rotate_in_flight, each by service; and whether the server
answers, countersign_rotate_server_up, with countersign_rotate_server_failures_total. A server that says
nothing is given up after fifteen seconds for each question. What fails for that is counted for every
service that the daemon knows, and is tried again as soon as the server answers. With --cloudwatch Amazon
CloudWatch is told what 'rotate once --cloudwatch' tells, every five minutes and at the end: an alarm that
takes missing data for bad notices a daemon that has gone.

Examples:
  countersign rotate daemon --mesh mesh.yaml
  countersign rotate daemon --socket /var/lib/countersign/server.sock --metrics 127.0.0.1:9464`
}

// Run rotates until it is told to end.
func (c *rotateDaemonCmd) Run(p *process) error {
	if err := c.check(); err != nil {
		return err
	}
	world, err := newRotation(p, c.worldFlags)
	if err != nil {
		return err
	}
	targets := func(ctx context.Context) ([]rotate.Target, error) {
		targets, err := world.targets(ctx, "")
		return targets, cmp.Or(err, unknown(targets), world.unseen(targets, ""), unconfigured(targets))
	}
	if world.admin == nil { // a mistake in the file is better said now than in each round
		if _, err := targets(p.ctx); err != nil {
			return world.refused(p, err)
		}
	}
	rotator, err := world.rotator(c.rotationTimes, 0, func(workload string, step rotate.Step, text string) {
		p.log.InfoContext(p.ctx, "rotating", "workload", workload, "step", string(step), "text", text)
	})
	if err != nil {
		return err
	}
	daemon := &rotate.Daemon{Rotator: rotator, Log: p.log, Targets: targets}
	stop, err := c.serve(p, daemon)
	if err != nil {
		return err
	}
	if c.Publish {
		publishing(p.ctx, daemon.Run, daemon.Known, world.published(p))
	} else {
		daemon.Run(p.ctx)
	}
	return stop()
}

// serve serves the metrics.
func (c *rotateDaemonCmd) serve(p *process, daemon *rotate.Daemon) (stop func() error, err error) {
	if c.Metrics == "" {
		return func() error { return nil }, nil
	}
	var listen net.ListenConfig
	listener, err := listen.Listen(p.ctx, "tcp", c.Metrics)
	if err != nil {
		if _, port, splitErr := net.SplitHostPort(c.Metrics); splitErr != nil || port == "" {
			return nil, usagef("--metrics %q is not of the form HOST:PORT, such as 127.0.0.1:9464", c.Metrics)
		}
		return nil, fmt.Errorf("--metrics %s: %w; choose another address", c.Metrics, err)
	}
	p.log.InfoContext(p.ctx, "serving metrics", "address", listener.Addr().String())
	server := &http.Server{Handler: daemon, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	return func() error {
		err := server.Close()
		if serveErr := <-ended; !errors.Is(serveErr, http.ErrServerClosed) {
			err = errors.Join(err, serveErr)
		}
		return err
	}, nil
}

type rotateStatusCmd struct {
	Service string `arg:"" optional:"" help:"The service or gateway. Default: all whose certificate comes from a store."`
	worldFlags
	outputFlag
}

// Help is what --help adds.
func (rotateStatusCmd) Help() string {
	return `Shows for each service whose certificate comes from a store what is current there, when that is due, which
step a rotation is at, when one last came to its end, how the last one failed, and who holds the lease.
That is kept in the store itself, as the secret NAME.rotation. Below it, for each authority of AWS, how much of
the month's budget is spent. With --output json: an array of objects.

Exit status: 0; 1 when a store, or something in it, could not be read; 2 for a mistake in what was asked for, or in
what is configured for AWS.

Examples:
  countersign rotate status --mesh mesh.yaml
  countersign rotate status payments --output json --socket /var/lib/countersign/server.sock`
}

// Run shows the status.
func (c *rotateStatusCmd) Run(p *process) error {
	world, err := newRotation(p, c.worldFlags)
	if err != nil {
		return err
	}
	targets, err := world.targets(p.ctx, c.Service)
	if err != nil {
		return world.refused(p, err)
	}
	targets = ofService(targets, c.Service)
	if err := world.unreached(p, storesAlone(targets)); err != nil {
		return err
	}
	statuses := []rotate.Status{}
	for _, target := range targets {
		statuses = append(statuses, rotate.ReadStatus(p.ctx, target))
	}
	budgets := world.cloud.spending(p.ctx, targets)
	switch {
	case c.json():
		err = writeJSON(p, withBudgets(targets, statuses, budgets))
	case len(statuses) == 0:
		_, err = fmt.Fprintln(p.stdout, nothingToRotate)
	default:
		err = cmp.Or(printRotations(p, statuses, bundleProblems(p.ctx, targets), time.Now()), printBudgets(p.stdout, budgets))
	}
	return cmp.Or(err, unreadable(statuses))
}

// unreadable makes what could not be read the exit status.
func unreadable(statuses []rotate.Status) error {
	failed := 0
	for _, status := range statuses {
		if status.Problem != "" {
			failed++
		}
	}
	if failed == 0 {
		return nil
	}
	return exitError{status: exitFailure, message: fmt.Sprintf("of %s something could not be read", count(failed, "service"))}
}

// bundleProblems says of each trust bundle that some targets share how its last rotation failed.
func bundleProblems(ctx context.Context, targets []rotate.Target) []string {
	var problems []string
	for _, bundle := range rotate.SharedBundles(targets) {
		record, err := rotate.ReadRecord(ctx, bundle.Store, bundle.Name)
		switch {
		case err != nil:
			problems = append(problems, fmt.Sprintf("trust bundle %s: %v", bundle.Name, err))
		case record.LastError != "":
			problems = append(problems, fmt.Sprintf("trust bundle %s: the last rotation failed at %s, at the step %s: %s",
				bundle.Name, record.LastErrorTime.Format(time.RFC3339), record.LastErrorStep, record.LastError))
		}
	}
	return problems
}

// printRotations writes the table, and below it what is wrong, with the bundles first.
func printRotations(p *process, statuses []rotate.Status, problems []string, now time.Time) error {
	table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "SERVICE\tSECRET\tVERSION\tSERIAL\tEXPIRES IN\tDUE IN\tSTEP\tLAST SUCCESS\tFAILURES\tLEASE")
	for _, s := range statuses {
		expires, due, success := "-", "-", "-"
		switch {
		case !s.NotAfter.IsZero():
			expires, due = roughly(s.NotAfter.Sub(now)), roughly(s.Due.Sub(now))
		case s.Version == "" && s.Problem == "":
			due = "now" // there is none yet
		}
		if !s.LastSuccess.IsZero() {
			success = roughly(now.Sub(s.LastSuccess)) + " ago"
		}
		fmt.Fprintln(table, strings.Join([]string{
			s.Service, s.Secret, cmp.Or(s.Version, "-"), cmp.Or(s.Serial, "-"), expires, due,
			cmp.Or(string(s.Step), "-"), success, fmt.Sprint(s.Failures), cmp.Or(s.Holder, "-"),
		}, "\t"))
		if s.LastError != "" {
			problems = append(problems, fmt.Sprintf("%s: the last rotation failed at %s, at the step %s: %s", s.Service, s.LastErrorTime.Format(time.RFC3339), s.LastErrorStep, s.LastError))
		}
		if s.Problem != "" {
			problems = append(problems, s.Service+": "+s.Problem)
		}
	}
	if err := table.Flush(); err != nil || len(problems) == 0 {
		return err
	}
	_, err := fmt.Fprintf(p.stdout, "\n%s\n", strings.Join(problems, "\n"))
	return err
}

// targetNames are the workloads of a specification whose certificate comes from a store.
func targetNames(spec *mesh.Spec, service string) ([]string, error) {
	var names []string
	known := false
	for _, workload := range spec.Workloads() {
		known = known || workload.Name == service
		plan, err := spec.Compile(workload.Name)
		if err != nil {
			return nil, err
		}
		if plan.Delivery.FromStore() {
			names = append(names, workload.Name)
		}
	}
	slices.Sort(names)
	switch {
	case service == "":
		return names, nil
	case slices.Contains(names, service):
		return []string{service}, nil
	case known:
		return nil, usagef("the certificate of %s does not come from a store: its agent renews it by itself", service)
	case len(names) == 0:
		return nil, usagef("the specification does not declare %q", service)
	default:
		if meant, ok := mesh.Nearest(service, names); ok {
			return nil, usagef("the specification does not declare %q; did you mean %q?", service, meant)
		}
		return nil, usagef("the specification does not declare %q; from a store come the certificates of %s", service, strings.Join(names, ", "))
	}
}
