package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"countersign.dev/api"
)

type statusCmd struct {
	Watch bool `help:"Show it again every second, until interrupted."`
	adminFlags
	outputFlag
}

// Help is what --help adds.
func (statusCmd) Help() string {
	return `Shows what each instance reports that it really serves: the serial of the certificate that new connections
get, when that ends and when it was obtained, the revision of the Plan in force, who still talks plaintext to
it, and for how long it would go on without the server. A gateway that the outside speaks plaintext to shows
its certificate only to the services behind it; SEEN is the serial that they saw. Only a server knows that: of a
mesh whose certificates come from AWS 'rotate status --mesh PATH' and 'check expiry PATH' show how it stands.

With --output json: an array of objects, one an instance; with --watch, one array a line.

Examples:
  countersign status --socket ./state/server.sock
  countersign up mesh.yaml -- countersign status --output json`
}

// Run shows the status.
func (c statusCmd) Run(p *process) error {
	if !c.asked() {
		return usagef("which server? Give %s; a mesh whose certificates come from AWS has none: `countersign rotate status --mesh PATH` and `countersign check expiry PATH` show how it stands", howServer)
	}
	admin, err := c.admin()
	if err != nil {
		return err
	}
	if !c.Watch {
		rows, err := admin.Status(p.ctx)
		if err != nil {
			return answered(p, err)
		}
		return c.show(p.stdout, rows, time.Now())
	}
	return c.watch(p, admin)
}

// watch shows the status again and again. A server that is away for a while does not end it.
func (c statusCmd) watch(p *process, admin *api.Admin) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for seen := false; ; seen = true {
		rows, err := admin.Status(p.ctx)
		switch {
		case p.ctx.Err() != nil:
			return nil
		case err == nil:
			err = c.redraw(p.stdout, rows)
		case seen && errors.Is(err, api.ErrNoServer):
			_, err = fmt.Fprintf(p.stderr, "countersign: %v\n", err)
		}
		if err != nil {
			return answered(p, err)
		}
		select {
		case <-p.ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// redraw replaces what a terminal shows, and appends anywhere else.
func (c statusCmd) redraw(w io.Writer, rows []api.Status) error {
	if !c.json() {
		separator := "\n"
		if isTerminal(w) {
			separator = "\x1b[H\x1b[2J" // to the upper left corner, and clear
		}
		if _, err := io.WriteString(w, separator); err != nil {
			return err
		}
	}
	return c.show(w, rows, time.Now())
}

func (c statusCmd) show(w io.Writer, rows []api.Status, now time.Time) error {
	if !c.json() {
		return writeStatus(w, rows, now)
	}
	// A workload without an instance is a line for people only: here every element is an instance.
	instances := slices.DeleteFunc(slices.Clone(rows), func(s api.Status) bool { return s.Instance == "" })
	encoder := json.NewEncoder(w)
	if !c.Watch {
		encoder.SetIndent("", "  ")
	}
	return encoder.Encode(instances)
}

// writeStatus writes the table, and below it what is wrong.
func writeStatus(w io.Writer, rows []api.Status, now time.Time) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "WORKLOAD\tINSTANCE\tIDENTITY\tSERIAL\tEXPIRES IN\tLAST RENEWAL\tREVISION\tPLAINTEXT CALLERS\tSURVIVES WITHOUT SERVER\tSEEN")
	var problems []string
	for _, row := range rows {
		fmt.Fprintln(table, strings.Join(statusColumns(row, now), "\t"))
		if row.Error != "" {
			name := row.Instance
			if name == "" {
				name = row.Workload
			}
			problems = append(problems, name+": "+row.Error)
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, line := range revocationLines(rows) {
		if _, err := fmt.Fprintf(w, "\n%s\n", line); err != nil {
			return err
		}
	}
	if len(problems) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "\n%s\n", strings.Join(problems, "\n"))
	return err
}

// revocationLines say who looks nobody up in revocation lists and why, and what is wrong with the lists.
func revocationLines(rows []api.Status) []string {
	who := make(map[string][]string)
	for _, row := range rows {
		if row.Revocation != "" && row.Revocation != "check" && !slices.Contains(who[row.Revocation], row.Workload) {
			who[row.Revocation] = append(who[row.Revocation], row.Workload)
		}
	}
	var lines []string
	for _, word := range slices.Sorted(maps.Keys(who)) {
		lines = append(lines, "revocation: "+word+" ("+strings.Join(who[word], ", ")+")")
	}
	return lines
}

func statusColumns(row api.Status, now time.Time) []string {
	dash := func(s string) string {
		if s == "" {
			return "-"
		}
		return s
	}
	expires, renewed, revision, survives := "-", "-", "-", "-"
	if !row.NotAfter.IsZero() {
		expires = roughly(row.NotAfter.Sub(now))
		survives = roughly(time.Duration(row.SurvivesSeconds) * time.Second)
	}
	if !row.LastRenewal.IsZero() {
		renewed = roughly(now.Sub(row.LastRenewal)) + " ago"
	}
	if row.Revision > 0 {
		revision = strconv.FormatUint(row.Revision, 10)
	}
	return []string{
		row.Workload, dash(row.Instance), row.Identity, dash(row.Serial), expires, renewed, revision,
		dash(strings.Join(row.PlaintextCallers, " ")), survives, dash(row.ObservedSerial),
	}
}

// roughly is a duration in the two units that matter.
func roughly(d time.Duration) string {
	if d <= 0 {
		return "0s"
	}
	const day = 24 * time.Hour
	switch {
	case d >= 2*day:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	default:
		return fmt.Sprintf("%ds", d/time.Second)
	}
}
