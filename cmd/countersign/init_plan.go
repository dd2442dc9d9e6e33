package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"reflect"
	"strings"
	"time"

	"countersign.dev/mesh"
)

// mostPlan is the greatest size of a Plan in bytes.
const mostPlan = 16 << 20

// planVariable is the variable that --plan names, empty when it names a file.
func (c initEngineFlags) planVariable() string {
	name, ok := strings.CutPrefix(c.Plan, "env:")
	if !ok {
		return ""
	}
	return name
}

// readPlan reads a Plan that a deployment has put there.
func (c initEngineFlags) readPlan() (*mesh.Plan, error) {
	text, err := c.planText()
	if err != nil {
		return nil, err
	}
	var plan mesh.Plan
	if err := json.Unmarshal(text, &plan); err != nil {
		return nil, fmt.Errorf("--plan %s does not hold one Plan; write one with `countersign mesh plan --workload NAME --output json`", c.Plan)
	}
	if plan.Version != mesh.PlanVersion {
		return nil, fmt.Errorf("--plan %s: it has version %d, and this binary knows version %d", c.Plan, plan.Version, mesh.PlanVersion)
	}
	return &plan, nil
}

// planText is what --plan names.
func (c initEngineFlags) planText() ([]byte, error) {
	name := c.planVariable()
	switch {
	case !strings.HasPrefix(c.Plan, "env:"):
		return readOrdinary("--plan", c.Plan, mostPlan)
	case name == "" || strings.Contains(name, "="):
		return nil, usagef("--plan %q: which variable? Write env:NAME", c.Plan)
	}
	text, set := []byte(nil), false
	if values, ok := c.variables.(handedOver); ok {
		text, set = values[name]
	} else {
		var value string
		value, set = os.LookupEnv(name)
		text = []byte(value)
	}
	if !set {
		return nil, fmt.Errorf("--plan %s: the variable is not set; put the Plan into it, as `countersign mesh plan --workload NAME --output json` prints it", c.Plan)
	}
	return text, nil
}

// followPlan reads --plan again when it changes.
func (s *watching) followPlan(ctx context.Context, w *watchdog) {
	ticker := time.NewTicker(s.cmd.Interval)
	defer ticker.Stop()
	plan := s.conf.read
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		fresh, err := s.cmd.readPlan()
		if err != nil {
			w.log.WarnContext(ctx, "the plan cannot be read; the one before stays", "error", err)
			continue
		}
		if reflect.DeepEqual(plan, fresh) {
			continue
		}
		if err := s.takePlan(ctx, w, fresh); err != nil {
			w.log.WarnContext(ctx, "the new plan is not in force", "error", err)
			continue
		}
		plan = fresh
	}
}

// takePlan gives the watcher a Plan that was read again, with the instances that --endpoint names.
func (s *watching) takePlan(ctx context.Context, w *watchdog, plan *mesh.Plan) error {
	endpoints, err := s.cmd.endpoints(plan)
	if err != nil {
		return err
	}
	if plan, err = place(ctx, net.DefaultResolver, plan, endpoints); err != nil {
		return err
	}
	return w.watcher.Take(plan)
}
