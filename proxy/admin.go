package proxy

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"time"

	"countersign.dev/admin"
)

// appProbe bounds the TCP connect by which readiness finds out about the application.
const appProbe = time.Second

// newAdmin routes the administrator's requests. A path with another method is answered 405.
func (p *Proxy) newAdmin() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /stats", p.stats.Handler(p.gauges))
	mux.Handle("GET /metrics", p.stats.Prometheus(p.gauges))
	mux.HandleFunc("GET /ready", p.serveReady)
	mux.HandleFunc("GET /healthz", p.serveHealth)
	mux.HandleFunc("GET /certs", p.serveCerts)
	mux.HandleFunc("GET /plan", p.servePlan)
	mux.HandleFunc("POST /drain_listeners", func(w http.ResponseWriter, _ *http.Request) {
		p.DrainListeners()
		fmt.Fprintln(w, "OK")
	})
	return mux
}

// gauges are the values that are not counted at a listener or upstream.
func (p *Proxy) gauges() map[string]int64 {
	values := make(map[string]int64)
	if p.cfg.Gauges != nil {
		maps.Copy(values, p.cfg.Gauges())
	}
	stalls := int64(0)
	for _, w := range p.workers {
		stalls += w.loop.Stalls()
	}
	values["countersign.loop_stalls_total"] = stalls
	values["countersign.revoked_cut_total"] = p.revocations.Load()
	values["countersign.access_log_dropped_total"] = p.access.Dropped()
	return values
}

// healthProblem says why the sidecar cannot serve its application; empty when it can.
func (p *Proxy) healthProblem() string {
	plan := p.state.Load().plan
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return "DRAINING"
	case p.identity() == nil:
		return "NO CERTIFICATE"
	case p.identity().Certificate.Leaf.NotAfter.Before(p.cfg.Now()):
		return "CERTIFICATE EXPIRED"
	case plan == nil:
		return "NO PLAN"
	case len(p.outbound) != len(plan.Outbound):
		return "OUTBOUND CLOSED"
	}
	return ""
}

// readyProblem says why peers cannot be served; empty when they can. It asks the application's ports by
// TCP alone: no handshake is made for it.
func (p *Proxy) readyProblem(ctx context.Context) string {
	if problem := p.healthProblem(); problem != "" {
		return problem
	}
	p.mu.Lock()
	drained := p.noBinds
	p.mu.Unlock()
	if drained {
		return "DRAINING"
	}
	for _, in := range p.state.Load().inbound {
		if in.app == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, appProbe)
		c, err := new(net.Dialer).DialContext(ctx, "tcp", in.app.address)
		cancel()
		if err != nil {
			return fmt.Sprintf("APPLICATION DOES NOT ACCEPT ON %s", in.app.address)
		}
		c.Close()
	}
	return ""
}

func (p *Proxy) serveHealth(w http.ResponseWriter, _ *http.Request) {
	admin.WriteState(w, p.healthProblem())
}

func (p *Proxy) serveReady(w http.ResponseWriter, r *http.Request) {
	admin.WriteState(w, p.readyProblem(r.Context()))
}

func (p *Proxy) servePlan(w http.ResponseWriter, _ *http.Request) {
	plan := p.state.Load().plan
	if plan == nil {
		http.Error(w, "no plan is in force yet", http.StatusNotFound)
		return
	}
	admin.WriteJSON(w, plan)
}
