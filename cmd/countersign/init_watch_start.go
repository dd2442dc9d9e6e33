package main

import (
	"os/exec"
	"time"

	"countersign.dev/reload"
)

// checkReload says what would only be found out by a rotation that goes wrong.
func (s *watching) checkReload(p *process) error {
	switch method := s.method.(type) {
	case reload.Command:
		if err := runnable("--reload", method.Args); err != nil {
			return err
		}
	case reload.Signal:
		if err := method.Ready(); err != nil { // it may only be starting
			p.log.WarnContext(p.ctx, "the proxy cannot be told of new files at this moment", "reload", method.String(), "error", err)
		}
	}
	if len(s.probes) == 0 && s.conf == nil && s.server == nil {
		p.log.WarnContext(p.ctx, "nobody looks whether the proxy serves what is delivered: it counts as served when the reload went well; name its TLS listeners with --probe")
	}
	return nil
}

// runnable refuses a command whose program is not here.
func runnable(flag string, words []string) error {
	if _, err := exec.LookPath(words[0]); err != nil {
		return usagef("%s: %w; name a program that this user may run", flag, err)
	}
	return nil
}

// firstPlan is how long a watcher waits at its start for the control plane's word: without a Plan it knows neither the
// listeners nor whether callers are looked up.
const firstPlan = 3 * time.Second
