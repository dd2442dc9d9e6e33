package supervise

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"time"

	"countersign.dev/admin"
	"countersign.dev/mesh"
)

// appProbe bounds the TCP connect by which readiness finds out about the application.
const appProbe = time.Second

// newAdmin routes the administrator's requests, as the built-in proxy does.
func (s *Supervisor) newAdmin() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /stats", s.sampled(s.stats().Handler(s.gauges)))
	mux.Handle("GET /metrics", s.sampled(s.stats().Prometheus(s.gauges)))
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, r *http.Request) { s.writeState(w, s.readyProblem(r.Context())) })
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { s.writeState(w, s.healthProblem()) })
	mux.HandleFunc("GET /certs", s.serveCerts)
	mux.HandleFunc("GET /plan", s.servePlan)
	mux.HandleFunc("POST /drain_listeners", s.serveDrain)
	return mux
}

// writeState says beside the state what is wrong without changing it: a new certificate that is refused, for one.
func (s *Supervisor) writeState(w http.ResponseWriter, problem string) {
	var remarks []string
	s.mu.Lock()
	refused := s.refused
	s.mu.Unlock()
	for _, text := range []string{refused, s.Problem()} {
		if text != "" {
			remarks = append(remarks, text)
		}
	}
	admin.WriteState(w, problem, remarks...)
}

func (s *Supervisor) gauges() map[string]int64 {
	values := make(map[string]int64)
	if s.cfg.Gauges != nil {
		maps.Copy(values, s.cfg.Gauges())
	}
	values["countersign.access_log_dropped_total"] = s.lines.Dropped()
	return values
}

// healthProblem says why the application cannot be served; empty when it can: the program runs, and handshakes have
// shown the certificate that it was given.
func (s *Supervisor) healthProblem() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.cfg.Source.Identity()
	switch {
	case s.closed:
		return "DRAINING"
	case s.good == nil && err != nil:
		return "NO CERTIFICATE"
	case s.good == nil:
		return "NO PLAN"
	case s.seen == nil && s.running != nil:
		return "PROXY IS NOT SEEN TO SERVE"
	case s.seen == nil:
		return "PROXY DOES NOT RUN"
	case s.seen.leaf.NotAfter.Before(s.cfg.Now()):
		return "CERTIFICATE EXPIRED"
	}
	return ""
}

// readyProblem says why peers cannot be served; empty when they can. It asks the application's ports by TCP alone.
func (s *Supervisor) readyProblem(ctx context.Context) string {
	if problem := s.healthProblem(); problem != "" {
		return problem
	}
	s.mu.Lock()
	drained, good := s.drained, s.good
	s.mu.Unlock()
	if drained {
		return "DRAINING"
	}
	for _, in := range good.plan.Inbound {
		if in.App == 0 {
			continue
		}
		address := good.options.App(in.App)
		ctx, cancel := context.WithTimeout(ctx, appProbe)
		c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		cancel()
		if err != nil {
			return fmt.Sprintf("APPLICATION DOES NOT ACCEPT ON %s", address)
		}
		c.Close()
	}
	return ""
}

// serveCerts tells what handshakes showed, and what the program trusts.
func (s *Supervisor) serveCerts(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	seen, good := s.seen, s.good
	s.mu.Unlock()
	answer := admin.Certs{Certificates: []admin.Certificate{}}
	if seen != nil {
		answer.Certificates = append(answer.Certificates, admin.Pair(seen.chain, good.identity.Bundle.Roots(), seen.path, s.cfg.Now()))
	}
	admin.WriteJSON(w, answer)
}

func (s *Supervisor) servePlan(w http.ResponseWriter, _ *http.Request) {
	if plan := s.plan(); plan != nil {
		admin.WriteJSON(w, plan)
		return
	}
	http.Error(w, "no plan is in force yet", http.StatusNotFound)
}

// plan is the one in force, nil before the first.
func (s *Supervisor) plan() *mesh.Plan {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.good == nil {
		return nil
	}
	return s.good.plan
}

// drainPatience bounds a drain that an administrator has asked for.
const drainPatience = time.Minute

// serveDrain drains to the end, also when who asked goes away in the middle.
func (s *Supervisor) serveDrain(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), drainPatience)
	defer cancel()
	if err := s.DrainListeners(ctx); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "OK")
}
