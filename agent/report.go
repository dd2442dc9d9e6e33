package agent

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"countersign.dev/api"
	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

const (
	// reportInterval is the time between reports when nothing changes.
	reportInterval = 2 * time.Second
	// newsGap is how long the data plane's news wait for more: where two instances of a caller connect by
	// turns, each with a serial of its own, there is news with every connection.
	newsGap = 50 * time.Millisecond
	// reportTimeout bounds one report: a late one is worth less than the next.
	reportTimeout = 5 * time.Second
	// saveInterval is the time between tries to write what a full disk has not taken.
	saveInterval = 10 * time.Second
)

// Status is what the agent knows of itself.
type Status struct {
	Identity id.ID
	Instance string
	// Serial is of the certificate that new connections get, in lower-case hex; empty before the
	// enrolment.
	Serial      string
	NotAfter    time.Time
	LastRenewal time.Time // on the server's clock
	Revision    uint64    // of the Plan in force
	Connected   bool      // the watch is open
	// SurvivesSeconds is how long the workload can serve without the server: until NotAfter.
	SurvivesSeconds int64
	ClockOffset     time.Duration // this machine's clock minus the server's
	Problem         string        // empty when all is well
}

// Status gives the state of this moment.
func (a *Agent) Status() Status {
	now, _ := a.clock.now()
	status := Status{Instance: a.cfg.Instance, ClockOffset: a.clock.offset(), Problem: a.problem()}
	a.mu.Lock()
	defer a.mu.Unlock()
	status.Connected = a.connected
	if a.inForce != nil {
		status.Revision = a.inForce.Revision
	}
	if a.held != nil {
		status.Identity = a.held.identity.ID
		status.Serial = mtls.Serial(a.held.identity.Certificate.Leaf)
		status.NotAfter = a.held.lease.notAfter.UTC()
		status.LastRenewal = a.held.lease.issued.UTC()
		status.SurvivesSeconds = max(0, int64(a.held.lease.notAfter.Sub(now)/time.Second))
	}
	return status
}

// Gauges are the numbers for /stats, by Envoy's names where Envoy has one. All are there from the
// start.
func (a *Agent) Gauges() map[string]int64 {
	status := a.Status()
	gauges := map[string]int64{
		"control_plane.connected_state":         0,
		"countersign.clock_offset_seconds":      int64(status.ClockOffset / time.Second),
		"countersign.plan_revision":             int64(status.Revision),
		"countersign.survives_seconds":          status.SurvivesSeconds,
		"server.days_until_first_cert_expiring": 0,
	}
	a.listGauges(gauges)
	a.mu.Lock()
	defer a.mu.Unlock()
	gauges["countersign.renewal_failures_total"], gauges["countersign.renewals_total"] = a.failures, a.renewals
	if status.Connected {
		gauges["control_plane.connected_state"] = 1
	}
	if a.held != nil {
		now, _ := a.clock.now()
		gauges["server.days_until_first_cert_expiring"] = max(0, int64(firstExpiry(a.held.identity).Sub(now)/(24*time.Hour)))
	}
	return gauges
}

// firstExpiry is the earliest end among the chain and the roots.
func firstExpiry(identity *mtls.Identity) time.Time {
	first := identity.Certificate.Leaf.NotAfter
	for _, cert := range append(parsedChain(identity.Certificate), identity.Bundle.Roots()...) {
		if cert.NotAfter.Before(first) {
			first = cert.NotAfter
		}
	}
	return first
}

// reportLoop tells the server what is served: when something changed, and every few seconds.
func (a *Agent) reportLoop(ctx context.Context) error {
	ticker := time.NewTicker(reportInterval)
	defer ticker.Stop()
	lastSave := time.Now()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		case <-a.wakeReport:
		}
		if time.Since(lastSave) >= saveInterval {
			lastSave = time.Now()
			a.saveAgain()
		}
		if !a.Status().Connected {
			continue
		}
		if err := a.sendReport(ctx); err != nil && ctx.Err() == nil {
			// The watch says whether the server is there; a report that is lost is followed by another.
			a.log.DebugContext(ctx, "a report did not arrive", "error", err)
		}
	}
}

// ReportSoon sends the next report without waiting for its time: the data plane has news. It does not
// block.
func (a *Agent) ReportSoon() {
	if a.news.CompareAndSwap(false, true) {
		time.AfterFunc(newsGap, func() {
			a.news.Store(false)
			wake(a.wakeReport)
		})
	}
}

// sendReport tells the server once what is served.
func (a *Agent) sendReport(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	answer, err := a.client.report(ctx, a.makeReport())
	if err != nil {
		return err
	}
	a.observe(answer.ServerTime)
	return nil
}

// makeReport completes what the data plane reports.
func (a *Agent) makeReport() api.Report {
	var report api.Report
	if a.cfg.Report != nil {
		report = a.cfg.Report()
	}
	status := a.Status()
	report.Instance = a.cfg.Instance
	if !a.cfg.Foreign {
		if report.Serial == "" { // or the data plane was seen to serve another, still
			report.Serial, report.NotAfter = status.Serial, status.NotAfter
		}
		report.LastRenewal = status.LastRenewal
	}
	report.ClockOffset = mesh.Duration(status.ClockOffset)
	report.PID = os.Getpid()
	if report.Revision == 0 {
		report.Revision = status.Revision
	}
	report.Problem = strings.Trim(report.Problem+"; "+status.Problem, "; ")
	a.mu.Lock()
	if a.held != nil && report.Bundle == "" {
		report.Bundle = a.held.identity.Bundle.Digest()
	}
	report.Draining = a.draining
	a.mu.Unlock()
	return report
}

// ErrNotConnected says that the server could not be told anything.
var ErrNotConnected = errors.New("the server is not connected")

// Drain tells the server that this instance shuts down, so that its peers stop choosing it, and
// returns when the server has heard it. All later reports say it, too. It does not wait for a server
// that is away: then the error is [ErrNotConnected].
func (a *Agent) Drain(ctx context.Context) error {
	a.mu.Lock()
	a.draining = true
	connected := a.connected
	a.mu.Unlock()
	if !connected {
		return ErrNotConnected
	}
	return a.sendReport(ctx)
}
