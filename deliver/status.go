package deliver

import (
	"context"
	"crypto/x509"
	"net/http"
	"slices"
	"strings"
	"time"

	"countersign.dev/admin"
	"countersign.dev/api"
	"countersign.dev/mesh"
	"countersign.dev/stat"
)

// Status is what a Watcher knows at a moment. Nobody changes what its slices hold.
type Status struct {
	// Generation, Version and Bundle are of what is in force; Chain and Roots are its certificates.
	Generation      uint64
	Version, Bundle string
	Chain, Roots    []*x509.Certificate
	// Serial is of the certificate that the proxy was seen to serve, NotAfter its end, and Since when it was seen first; empty while
	// the proxy does not answer.
	Serial   string
	NotAfter time.Time
	Since    time.Time
	// Listening are the listeners that answer.
	Listening []api.Listening
	// Plan is the one in force, nil before the first.
	Plan *mesh.Plan
	// Problem says why what is wanted is not served, SourceProblem why it is not known what is wanted; empty when all is well.
	Problem, SourceProblem string
	// Unlisted tells that nothing is delivered because the Plan wants callers looked up and there are no revocation lists.
	Unlisted bool
	// Deliveries, Refused and Rollbacks count since the start: what was served, what was not taken, and how often the
	// generation before was put in force again.
	Deliveries, Refused, Rollbacks int64
}

// Status tells what is served at this moment.
func (w *Watcher) Status() Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status
}

// Problems is all that is wrong, empty when all is well.
func (s Status) Problems() string {
	return strings.Join(slices.DeleteFunc([]string{s.Problem, s.SourceProblem}, func(text string) bool { return text == "" }), "; ")
}

// tell changes the status.
func (w *Watcher) tell(change func(*Status)) {
	w.mu.Lock()
	serial, problem, listening, plan := w.status.Serial, w.status.Problems(), w.status.Listening, w.status.Plan
	change(&w.status)
	news := serial != w.status.Serial || problem != w.status.Problems() || plan != w.status.Plan || !slices.Equal(listening, w.status.Listening)
	w.mu.Unlock()
	if news && w.cfg.Changed != nil {
		w.cfg.Changed()
	}
}

// problem notes what is wrong, and says it in the log when it is new.
func (w *Watcher) problem(ctx context.Context, where *string, err error, message string) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	news := false
	w.tell(func(*Status) {
		news = *where != text
		*where = text
	})
	switch {
	case news && err != nil:
		w.cfg.Log.ErrorContext(ctx, "not as it should be", "what", message, "error", err)
	case news:
		w.cfg.Log.InfoContext(ctx, "well again", "what", message)
	}
}

// Gauges are the numbers for /stats. All are there from the start.
func (w *Watcher) Gauges() map[string]int64 {
	s := w.Status()
	gauges := map[string]int64{
		"countersign.deliveries_total":         s.Deliveries,
		"countersign.delivery_generation":      int64(s.Generation),
		"countersign.delivery_problem_state":   0,
		"countersign.delivery_refused_total":   s.Refused,
		"countersign.delivery_rollbacks_total": s.Rollbacks,
		"countersign.plan_revision":            0,
	}
	if s.Problems() != "" {
		gauges["countersign.delivery_problem_state"] = 1
	}
	if s.Plan != nil {
		gauges["countersign.plan_revision"] = int64(s.Plan.Revision)
	}
	for _, cert := range slices.Concat(s.Chain, s.Roots) {
		days := max(0, int64(time.Until(cert.NotAfter)/(24*time.Hour)))
		if before, ok := gauges["server.days_until_first_cert_expiring"]; !ok || days < before {
			gauges["server.days_until_first_cert_expiring"] = days
		}
	}
	return gauges
}

// readyProblem says why peers cannot be served; empty when they can.
func (s Status) readyProblem() string {
	switch {
	case s.Unlisted:
		return "NO REVOCATION LISTS"
	case len(s.Chain) == 0:
		return "NO CERTIFICATE"
	case s.Serial == "":
		return "THE PROXY DOES NOT SERVE"
	case s.NotAfter.Before(time.Now()):
		return "CERTIFICATE EXPIRED"
	}
	return ""
}

// Admin answers an administrator as the built-in proxy does: /stats, /metrics, /ready, /healthz, /certs and /plan. further gives
// further values for /stats; it may be nil.
func (w *Watcher) Admin(further func() map[string]int64) http.Handler {
	gauges := func() map[string]int64 {
		values := make(map[string]int64)
		if further != nil {
			for name, value := range further() {
				values[name] = value
			}
		}
		for name, value := range w.Gauges() {
			values[name] = value
		}
		return values
	}
	stats := stat.NewSet()
	ready := func(r http.ResponseWriter, _ *http.Request) {
		s := w.Status()
		var remarks []string
		if problem := s.Problems(); problem != "" {
			remarks = append(remarks, problem)
		}
		admin.WriteState(r, s.readyProblem(), remarks...)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /stats", stats.Handler(gauges))
	mux.Handle("GET /metrics", stats.Prometheus(gauges))
	mux.HandleFunc("GET /ready", ready)
	mux.HandleFunc("GET /healthz", ready)
	mux.HandleFunc("GET /certs", func(r http.ResponseWriter, _ *http.Request) {
		s := w.Status()
		answer := admin.Certs{Certificates: []admin.Certificate{}}
		if len(s.Chain) > 0 {
			answer.Certificates = append(answer.Certificates, admin.Pair(s.Chain, s.Roots, w.dir+"/current", time.Now()))
		}
		admin.WriteJSON(r, answer)
	})
	mux.HandleFunc("GET /plan", func(r http.ResponseWriter, _ *http.Request) {
		plan := w.Status().Plan
		if plan == nil {
			http.Error(r, "no plan is in force yet", http.StatusNotFound)
			return
		}
		admin.WriteJSON(r, plan)
	})
	return mux
}
