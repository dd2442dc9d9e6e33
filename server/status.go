package server

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"countersign.dev/api"
	"countersign.dev/issue"
	"countersign.dev/mesh"
)

// status lists what the server knows of every instance.
func (s *Server) status(r *http.Request, _ none) ([]api.Status, error) {
	rows, sightings := s.registry.rows()
	for identity, seen := range sightings {
		if err := s.observe(r.Context(), rows, identity, seen); err != nil {
			return nil, err
		}
	}
	if problem := s.caProblem(); problem != "" { // a line for people, as of a workload without an instance
		rows = append(rows, api.Status{Workload: "(CA)", PlaintextCallers: []string{}, Error: problem})
	}
	for i := range rows {
		if r, revoked := s.revocations.ledger.Revoked(rows[i].Serial); revoked {
			rows[i].Error = strings.TrimPrefix(fmt.Sprintf("%s; its certificate was revoked on %s (%s)", rows[i].Error, r.Time.Format(time.RFC3339), r.Reason), "; ")
		}
	}
	if problem := s.crlProblem(); problem != "" {
		for i := range rows {
			if rows[i].Revocation == revocationChecked {
				rows[i].Revocation += "; at the server: " + problem
			}
		}
	}
	return rows, nil
}

// observe fills in what peers saw an identity present. With several instances of one identity, the
// certificate's record tells which of them it was. One that was issued to no instance lies in a secret store
// for all of them: then it was one of those that say that they serve it, or, when none says so, any of them.
func (s *Server) observe(ctx context.Context, rows []api.Status, identity string, seen map[string]time.Time) error {
	latest := make(map[string]time.Time) // by instance
	for serial, at := range seen {
		instance, err := s.store.instanceOf(ctx, identity, serial)
		if err != nil {
			return err
		}
		says := func(row api.Status) bool { return row.Identity == identity && row.Serial == serial }
		admitted := instance == "" && slices.ContainsFunc(rows, says)
		for i := range rows {
			row := &rows[i]
			its := row.Instance == instance || (instance == "" && row.Serial != "" && (!admitted || row.Serial == serial))
			if row.Identity == identity && row.Instance != "" && its && at.After(latest[row.Instance]) {
				latest[row.Instance], row.ObservedSerial, row.ObservedTime = at, serial, at.UTC()
			}
		}
	}
	return nil
}

// rows are the status as far as the registry knows it, and the serials that instances have seen
// their callers present: by identity and serial, when last.
func (r *registry) rows() ([]api.Status, map[string]map[string]time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	rows := []api.Status{}
	sightings := make(map[string]map[string]time.Time)
	for workload, plan := range r.base {
		instances := r.instances[workload]
		if len(instances) == 0 {
			rows = append(rows, api.Status{
				Workload: workload, Identity: plan.Workload.Identity.String(), PlaintextCallers: []string{},
				Revocation: revocationWord(plan), Error: "no instance has connected",
			})
		}
		for _, i := range instances {
			rows = append(rows, r.row(i, plan, now))
			collect(sightings, i.report.Callers)
		}
	}
	slices.SortFunc(rows, func(a, b api.Status) int {
		return strings.Compare(a.Workload+"\x00"+a.Instance, b.Workload+"\x00"+b.Instance)
	})
	return rows, sightings
}

func collect(sightings map[string]map[string]time.Time, callers map[string]api.Caller) {
	for identity, caller := range callers {
		if sightings[identity] == nil {
			sightings[identity] = make(map[string]time.Time)
		}
		if caller.Seen.After(sightings[identity][caller.Serial]) {
			sightings[identity][caller.Serial] = caller.Seen
		}
	}
}

// row is one instance. The caller holds mu.
func (r *registry) row(i *instance, plan *mesh.Plan, now time.Time) api.Status {
	row := api.Status{
		Workload: i.workload, Instance: i.name, Identity: plan.Workload.Identity.String(),
		Serial: i.report.Serial, NotAfter: i.report.NotAfter, LastRenewal: i.report.LastRenewal,
		Revision: i.report.Revision, Connected: i.stream != nil, ClockOffset: i.report.ClockOffset,
		PlaintextCallers: slices.Sorted(maps.Keys(i.report.PlaintextCallers)),
		Revocation:       revocationWord(plan),
		Error:            strings.Join(r.problems(i, now), "; "),
		Problem:          i.report.Problem,
	}
	if row.PlaintextCallers == nil {
		row.PlaintextCallers = []string{}
	}
	if left := i.report.NotAfter.Sub(now); left > 0 {
		row.SurvivesSeconds = int64(left / time.Second)
	}
	return row
}

// revocationChecked is the word for those who look peers up.
const revocationChecked = "check"

// revocationWord says whether peers are looked up in revocation lists. Not to do so is a choice that somebody has made,
// and the lifetime of what cannot be taken back is why it may be one.
func revocationWord(plan *mesh.Plan) string {
	if plan.Revocation.Check {
		return revocationChecked
	}
	return fmt.Sprintf("none: a certificate that is lost is good until it ends, at most %s", time.Duration(plan.Certificate.TTL))
}

// problems are what is wrong with an instance, in words. The caller holds mu.
func (r *registry) problems(i *instance, now time.Time) []string {
	var problems []string
	if i.stream == nil {
		problems = append(problems, "not connected since "+i.lost.UTC().Format(time.RFC3339))
	}
	if i.report.Draining {
		problems = append(problems, "draining")
	}
	if i.report.Instance == "" {
		return append(problems, "it has not reported yet")
	}
	if offset := time.Duration(i.report.ClockOffset); offset.Abs() > issue.ClockAllowance {
		direction := "ahead of"
		if offset < 0 {
			direction = "behind"
		}
		problems = append(problems, fmt.Sprintf("its clock is %s %s the server's, and %s are allowed; set the clocks right",
			offset.Abs().Round(time.Second), direction, issue.ClockAllowance))
	}
	if !now.Before(i.report.NotAfter) {
		problems = append(problems, "its certificate has expired")
	}
	if i.report.Problem != "" {
		problems = append(problems, i.report.Problem)
	}
	return problems
}
