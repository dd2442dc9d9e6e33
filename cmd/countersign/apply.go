package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"countersign.dev/api"
	"countersign.dev/mesh"
)

type meshApplyCmd struct {
	Path    string        `arg:"" help:"The specification, a file or a directory."`
	DryRun  bool          `help:"Only show what would change."`
	Timeout time.Duration `default:"30s" help:"How long to wait until every connected sidecar has confirmed."`
	adminFlags
	outputFlag
}

// Help is what --help adds.
func (meshApplyCmd) Help() string {
	return `Replaces the specification that a running server serves, shows the difference, and waits until every
connected sidecar has put it in force. It never asks. The next HTTP request obeys; TCP connections, upgrades
and streams that are forbidden now are closed within a second; all others live on. The file is checked here
first, and nothing is sent when it is not valid.

The exit status is 0 when every connected sidecar has confirmed, 1 when the time was over before that (who is
missing is said), and 2 when the specification is not valid or cannot be applied to this mesh.

Examples:
  countersign mesh apply mesh.yaml --socket ./state/server.sock
  countersign mesh apply mesh/ --dry-run
  countersign mesh apply mesh.yaml --timeout 2m --output json`
}

// applyResult is what --output json shows.
type applyResult struct {
	Revision   uint64   `json:"revision"`
	DryRun     bool     `json:"dryRun"`
	Difference []string `json:"difference"`
	Confirmed  []string `json:"confirmed"`
	Missing    []string `json:"missing"`
}

// Run applies the specification.
func (c meshApplyCmd) Run(p *process) error {
	if c.Timeout < 0 {
		return usagef("--timeout must not be below 0")
	}
	documents, err := mesh.ReadDocuments(c.Path)
	if err != nil {
		return usageError{err}
	}
	if _, err := mesh.ParseDocuments(documents); err != nil {
		return invalidSpecification(p, err)
	}
	admin, err := c.admin()
	if err != nil {
		return err
	}
	answer, err := admin.Apply(p.ctx, api.ApplyRequest{Documents: documents, DryRun: c.DryRun})
	if err != nil {
		return answered(p, err)
	}
	result := applyResult{Revision: answer.Revision, DryRun: c.DryRun, Difference: answer.Difference, Confirmed: []string{}, Missing: []string{}}
	if !c.json() {
		if err := writeDifference(p, result); err != nil {
			return err
		}
	}
	if !c.DryRun {
		confirmation, err := c.wait(p, admin, answer.Revision)
		if err != nil {
			return answered(p, err)
		}
		result.Confirmed, result.Missing = confirmation.Confirmed, confirmation.Missing
	}
	return c.conclude(p, result)
}

// invalidSpecification writes what is wrong with a specification, or why a valid one is of no use to a command, one
// error a line in its own form.
func invalidSpecification(p *process, err error) error {
	invalid, ok := errors.AsType[mesh.Errors](err)
	if one, alone := errors.AsType[*mesh.Error](err); alone && !ok {
		invalid, ok = mesh.Errors{one}, true
	}
	if !ok {
		return usageError{err}
	}
	for _, line := range invalid.Lines() {
		fmt.Fprintln(p.stderr, line)
	}
	return exitError{status: exitUsage}
}

func writeDifference(p *process, result applyResult) error {
	if len(result.Difference) == 0 {
		_, err := fmt.Fprintln(p.stdout, "nothing changes")
		return err
	}
	_, err := fmt.Fprintln(p.stdout, strings.Join(result.Difference, "\n"))
	return err
}

// conclude says how it ended.
func (c meshApplyCmd) conclude(p *process, result applyResult) error {
	if c.json() {
		if err := writeJSON(p, result); err != nil {
			return err
		}
	} else if !c.DryRun && len(result.Missing) == 0 {
		if _, err := fmt.Fprintf(p.stdout, "revision %d is in force at %d sidecars\n", result.Revision, len(result.Confirmed)); err != nil {
			return err
		}
	}
	if len(result.Missing) > 0 {
		return fmt.Errorf("revision %d is applied, but after %s it is not confirmed by %s; `countersign status` shows what they say",
			result.Revision, c.Timeout, strings.Join(result.Missing, ", "))
	}
	return nil
}

// longestWait is for how long one question waits; the server answers none that would wait for hours.
const longestWait = time.Minute

// wait asks until everybody has confirmed or the time is over. On a terminal a line tells who is
// waited for.
func (c meshApplyCmd) wait(p *process, admin *api.Admin, revision uint64) (*api.Confirmation, error) {
	deadline := time.Now().Add(c.Timeout)
	terminal := isTerminal(p.stderr)
	shown := false
	for {
		left := max(0, time.Until(deadline))
		step := min(left, longestWait)
		if terminal {
			step = min(left, time.Second)
		}
		confirmation, err := admin.Confirmed(p.ctx, revision, step)
		if err != nil {
			return nil, err
		}
		if shown {
			fmt.Fprint(p.stderr, "\r\x1b[K")
		}
		if len(confirmation.Missing) == 0 || step == left {
			return confirmation, nil
		}
		if terminal {
			shown = true
			fmt.Fprintf(p.stderr, "waiting for %s (%s)", strings.Join(confirmation.Missing, ", "), left.Round(time.Second))
		}
	}
}
