package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"countersign.dev/api"
	"countersign.dev/expiry"
	"countersign.dev/mesh"
	"countersign.dev/up"
)

type checkCmd struct {
	Expiry checkExpiryCmd `cmd:"" help:"What expires when, which rotation is overdue, and what disagrees."`
	AWS    checkAWSCmd    `cmd:"" name:"aws" help:"What is wrong with a mesh that runs on AWS: who can read which secret, what definitions hold, what keeps silent."`
}

// maxCheck bounds how long a check may take.
const maxCheck = 10 * time.Minute

type checkExpiryCmd struct {
	Path       string            `arg:"" optional:"" help:"The specification: a file, or a directory whose files are merged. Default: the one that the server runs. Give it where the stores are to be looked at also while no server answers."`
	Warn       *expiry.Threshold `placeholder:"LEFT" help:"What a leaf or a certificate file has left when it becomes a warning: a time (30d, 72h), a share of its life (20%), or both, of which the shorter counts. Default: 20%,30d, and for what is rotated not before its rotation is late."`
	Critical   *expiry.Threshold `placeholder:"LEFT" help:"What it has left when it becomes critical. Default: 10%,7d, at most half of --warn, and for what is rotated not before half of what is left when its rotation is late."`
	CAWarn     *expiry.Threshold `name:"ca-warn" placeholder:"LEFT" help:"What a root or an issuing CA has left when it becomes a warning. Default: 20%,180d."`
	CACritical *expiry.Threshold `name:"ca-critical" placeholder:"LEFT" help:"What it has left when it becomes critical. Default: 10%,60d, at most half of --ca-warn."`
	Grace      expiry.Threshold  `default:"10%,1d" help:"How late a rotation may be: a time, or a share of what is left between the day it is due and the expiry."`
	Stuck      time.Duration     `default:"15m" help:"For how long a rotation may be under way."`
	FailOn     string            `enum:"warning,critical" default:"warning" help:"From which severity on the exit status is 1: ${enum}."`
	Settle     time.Duration     `default:"20s" help:"For how long what disagrees is looked at again, because a rotation may be under way; 0s looks once."`
	Timeout    time.Duration     `default:"1m" help:"How long all of it may take; at most 10m."`
	Server     string            `placeholder:"HOST:PORT" help:"The server's listener for agents, to see its certificate. Default: what COUNTERSIGN_RUN says; without either the CA's books say it."`
	Metrics    string            `name:"metrics-file" placeholder:"FILE" help:"Write the result as Prometheus metrics, too, in one step: for the textfile collector of node_exporter."`
	adminFlags
	outputFlag
}

// Help is what --help adds.
func (checkExpiryCmd) Help() string {
	return `Compares three things: what the secret stores hold, what the CA has issued, and what the endpoints serve, as a
full handshake with each shows it. Says what expires when, the most urgent first, and each disagreement as a
finding with what to do: a rotation that is overdue, fails or stands still; a store that was updated while the
proxy serves the old certificate; a proxy that refused a reload; a certificate that the CA never issued.
What cannot be asked is a finding as well: a report never looks better because less was seen. Run it where
the stores can be read and the endpoints be reached, as a user who may; it changes nothing.

Where Amazon ECS runs the services (deploy: {type: ecs, ...}) no server is asked: give the specification. ECS
says which tasks run; each is looked at by a handshake, which is possible inside the VPC alone. Of a task that
shows nothing the time of its start says whether it can have what the store holds.

What is rotated is due at renewAfter, and becomes a warning when its rotation is late. A limit that you give with
--warn or --critical speaks of every leaf that has less left, whether or not its rotation is late.

Examples:
  countersign check expiry --socket ./state/server.sock
  countersign check expiry mesh.yaml --warn 25% --critical 12h --output json
  countersign check expiry payments-ecs/mesh.yaml --timeout 2m
  countersign check expiry --socket ./state/server.sock --metrics-file /var/lib/node_exporter/countersign.prom

Exit status: 0 when all is well, 1 with a finding (--fail-on), 2 for mistakes in what was asked.`
}

// checkedExpiry is the output in JSON.
type checkedExpiry struct {
	Version     int       `json:"version"`
	Mesh        string    `json:"mesh,omitempty"`
	TrustDomain string    `json:"trustDomain,omitempty"`
	Checked     time.Time `json:"checked"`
	expiry.Report
}

// given puts the limits that were asked for in the place of the defaults. What is critical by default is so only after
// half of the warning that was asked for.
func given(warn, critical, asked, askedCritical *expiry.Threshold) {
	if asked != nil {
		*warn, *critical = *asked, critical.Under(*asked)
	}
	if askedCritical != nil {
		*critical = *askedCritical
	}
}

// limits are those of the command line.
func (c *checkExpiryCmd) limits() (expiry.Limits, error) {
	limits := expiry.DefaultLimits()
	limits.Grace, limits.Stuck = c.Grace, c.Stuck
	limits.WarnAlways, limits.CriticalAlways = c.Warn != nil, c.Critical != nil
	given(&limits.Warn, &limits.Critical, c.Warn, c.Critical)
	given(&limits.CAWarn, &limits.CACritical, c.CAWarn, c.CACritical)
	// Critical comes first when it does so for the life of a day or of ten years, and warn does for neither.
	before := func(critical, warn expiry.Threshold) bool {
		const day = 24 * time.Hour
		short, long := critical.Of(day)-warn.Of(day), critical.Of(3650*day)-warn.Of(3650*day)
		return short >= 0 && long >= 0 && short+long > 0
	}
	switch {
	case c.Timeout <= 0 || c.Timeout > maxCheck:
		return limits, usagef("--timeout %s is out of range; give one above 0 and at most %s", c.Timeout, maxCheck)
	case c.Settle < 0 || c.Stuck < 0:
		return limits, usagef("--settle and --stuck are times from 0 on")
	case c.Critical != nil && c.Warn != nil && before(*c.Critical, *c.Warn):
		return limits, usagef("--critical %s comes before --warn %s; give it less", c.Critical, c.Warn)
	case c.CACritical != nil && c.CAWarn != nil && before(*c.CACritical, *c.CAWarn):
		return limits, usagef("--ca-critical %s comes before --ca-warn %s; give it less", c.CACritical, c.CAWarn)
	}
	return limits, nil
}

// Run checks.
func (c *checkExpiryCmd) Run(p *process) error {
	limits, err := c.limits()
	if err != nil {
		return err
	}
	w, err := c.watcher(p)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(p.ctx, c.Timeout, fmt.Errorf("the check was not done after %s; give it more time with --timeout", c.Timeout))
	defer cancel()
	checked, err := c.settled(ctx, p, w, limits)
	if err != nil {
		return because(ctx, err)
	}
	c.compare(ctx, p, w)
	err = c.print(p, checked)
	if c.Metrics != "" {
		err = errors.Join(err, writeExpiryMetrics(c.Metrics, checked))
	}
	if err != nil {
		return err
	}
	return c.status(checked.Report)
}

// compare says when the server runs another specification than the one that was given.
func (c *checkExpiryCmd) compare(ctx context.Context, p *process, w *expiryWatch) {
	if c.Path == "" || w.admin == nil {
		return
	}
	ctx, cancel := w.asking(ctx)
	defer cancel()
	running, err := runningSpec(ctx, w.admin)
	if err != nil {
		return // that the server does not answer is a finding
	}
	if n := len(mesh.Diff(running, w.spec)); n > 0 {
		fmt.Fprintf(p.stderr, "countersign: the running specification differs from %s in %s; what was checked is %s\n", c.Path, count(n, "place"), c.Path)
	}
}

// status is the exit status that a report deserves.
func (c *checkExpiryCmd) status(report expiry.Report) error {
	if report.Worst == expiry.OK || c.FailOn == string(expiry.Critical) && report.Worst != expiry.Critical {
		return nil
	}
	critical := 0
	for _, f := range report.Findings {
		if f.Severity == expiry.Critical {
			critical++
		}
	}
	return exitError{status: exitFailure, message: fmt.Sprintf("%s, %d critical", count(len(report.Findings), "finding"), critical)}
}

// watcher finds out whom to ask.
func (c *checkExpiryCmd) watcher(p *process) (*expiryWatch, error) {
	w := &expiryWatch{log: p.log, stderr: p.stderr, server: c.Server, patience: min(c.Timeout/3, 10*time.Second), cloud: newCloud(nil)}
	if c.Path != "" {
		spec, err := mesh.Load(c.Path)
		if err != nil {
			return nil, invalidSpecification(p, err)
		}
		w.spec = spec
	}
	if path := os.Getenv(up.EnvRun); path != "" && c.Socket == "" {
		// One that cannot be read is an error where the socket is looked up.
		w.document, _ = up.ReadDocument(path)
	}
	if c.Path == "" && !c.asked() {
		return nil, usagef("which mesh? Give the path of its specification, which is enough where certificates come from AWS; of a server give %s", howServer)
	}
	socket, err := c.find()
	switch {
	case err == nil:
		w.admin, w.socket = api.NewAdmin(socket), socket
	case c.Path == "":
		return nil, err
	default:
		w.noServer = err
	}
	return w, nil
}

// settled checks, and looks again for a while at what may only be on its way.
func (c *checkExpiryCmd) settled(ctx context.Context, p *process, w *expiryWatch, limits expiry.Limits) (checkedExpiry, error) {
	deadline := time.Now().Add(c.Settle)
	var checked checkedExpiry
	for looks := 0; ; looks++ {
		facts, err := w.look(ctx)
		switch {
		case err != nil && looks > 0 && errors.Is(err, context.DeadlineExceeded):
			return checked, nil // what was seen is worth more than that it was not seen twice
		case err != nil:
			return checkedExpiry{}, err
		}
		checked = checkedExpiry{
			Version: 1, Mesh: w.mesh, TrustDomain: w.trustDomain, Checked: facts.Now.UTC().Truncate(time.Second),
			Report: expiry.Compare(facts, limits),
		}
		w.fitted(checked.Findings, c.Path)
		if !unsettled(checked.Report) || !time.Now().Add(settlePause).Before(deadline) {
			return checked, nil
		}
		if looks == 0 {
			fmt.Fprintf(p.stderr, "countersign: what was found may only be on its way; looking again for %s at most (--settle)\n", c.Settle)
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return checked, nil
			}
			return checkedExpiry{}, ctx.Err()
		case <-time.After(settlePause):
		}
	}
}

// settlePause is the time between two looks.
const settlePause = 2 * time.Second

// unsettled tells whether there is a finding that the next moments may mend: a rotation moves on, a sidecar starts.
func unsettled(report expiry.Report) bool {
	for _, f := range report.Findings {
		switch f.Code {
		case expiry.CodeStoreAhead, expiry.CodeEndpointAhead, expiry.CodeReportDiffers, expiry.CodeIssuedNotStored,
			expiry.CodeUnknownSerial, expiry.CodeEndpoint, expiry.CodeFileAhead, expiry.CodeInstanceLost, expiry.CodeNoInstance,
			expiry.CodeBundleStale, expiry.CodeRotationStuck, expiry.CodeReloadRefused:
			return true
		default:
		}
	}
	return false
}
