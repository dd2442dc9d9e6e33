package supervise

import (
	"context"
	"encoding/csv"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"countersign.dev/mesh"
)

// sample reads the program's own counters now and then, until the Supervisor ends.
func (s *Supervisor) sample() {
	for s.sampler != nil && pause(s.work, sampling) {
		s.sampleOnce(s.work)
	}
}

// sampleOnce reads the program's own counters, if it has any.
func (s *Supervisor) sampleOnce(ctx context.Context) {
	s.mu.Lock()
	running, good := s.running, s.good
	s.mu.Unlock()
	if s.sampler == nil || running == nil || good == nil {
		return
	}
	s.sampling.Lock()
	defer s.sampling.Unlock()
	if err := s.sampler.sample(ctx, running, good.plan); err != nil && ctx.Err() == nil {
		s.log.DebugContext(ctx, "cannot read the program's counters", "error", err)
	}
}

// sampled reads the counters before they are shown.
func (s *Supervisor) sampled(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.sampleOnce(r.Context())
		next.ServeHTTP(w, r)
	})
}

// haproxySampler turns the counters of HAProxy's workers into those of this process: a worker counts from zero,
// and is gone when its last connection is.
type haproxySampler struct {
	counts *counts
	last   map[int]map[string]int64 // by worker and name: what was counted already
}

func newHAProxySampler(c *counts) sampler {
	return &haproxySampler{counts: c, last: make(map[int]map[string]int64)}
}

func (h *haproxySampler) sample(ctx context.Context, p *process, plan *mesh.Plan) error {
	now, old, err := haproxyWorkers(ctx, p.run)
	if err != nil {
		return err
	}
	all := make(map[int]map[string]int64)
	active := make(map[*atomic.Int64]int64)
	for _, pid := range append(now, old...) {
		text, err := ask(ctx, filepath.Join(p.run, MasterSocket), fmt.Sprintf("@!%d show stat", pid))
		if err != nil {
			return err
		}
		rows, err := readStat(text)
		if err != nil {
			return err
		}
		if all[pid] = h.last[pid]; all[pid] == nil {
			all[pid] = make(map[string]int64)
		}
		for _, row := range rows {
			h.take(row, all[pid], plan, active)
		}
	}
	h.last = all
	for value, n := range active {
		value.Store(n)
	}
	return nil
}

// row is a line of HAProxy's statistics.
type row map[string]string

// readStat reads the answer to "show stat": CSV whose first line has the names.
func readStat(text string) ([]row, error) {
	text = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(text), "# "))
	reader := csv.NewReader(strings.NewReader(text))
	reader.FieldsPerRecord = -1
	records, err := reader.ReadAll()
	if err != nil || len(records) == 0 {
		return nil, fmt.Errorf("reading HAProxy's statistics: %d lines: %w", len(records), err)
	}
	var rows []row
	for _, record := range records[1:] {
		r := make(row)
		for i, value := range record {
			if i < len(records[0]) {
				r[records[0][i]] = value
			}
		}
		rows = append(rows, r)
	}
	return rows, nil
}

func (r row) number(name string) int64 {
	n, err := strconv.ParseInt(r[name], 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// take adds what a row has counted since the last look, and sums up what goes on.
func (h *haproxySampler) take(r row, counted map[string]int64, plan *mesh.Plan, active map[*atomic.Int64]int64) {
	add := func(to *atomic.Int64, name string) int64 {
		key := r["pxname"] + " " + r["svname"] + " " + name
		n := r.number(name)
		more := n - counted[key]
		if counted[key] = n; more < 0 || to == nil {
			return 0
		}
		to.Add(more)
		return more
	}
	c := h.counts
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case r["svname"] == "FRONTEND":
		h.frontend(r, plan, add, active)
	case strings.HasPrefix(r["pxname"], "to_"):
		upstream, ok := plan.Upstream(strings.TrimPrefix(r["pxname"], "to_"))
		if !ok {
			return
		}
		if r["svname"] != "BACKEND" {
			active[c.cluster(upstream.Name, "upstream_cx_active")] += r.number("used_conn_cur") + r.number("idle_conn_cur")
			return
		}
		add(c.cluster(upstream.Name, "upstream_cx_total"), "connect")
		add(c.cluster(upstream.Name, "upstream_cx_connect_fail"), "econ")
		if upstream.TLS {
			add(c.cluster(upstream.Name, "ssl.handshake"), "ssl_sess")
			add(c.cluster(upstream.Name, "ssl.handshake"), "ssl_reused_sess")
		}
		if upstream.Protocol != mesh.TCP {
			add(c.cluster(upstream.Name, "upstream_rq_total"), "req_tot")
			add(c.cluster(upstream.Name, "upstream_rq_5xx"), "hrsp_5xx")
		}
	}
}

// frontend is one of a listener's: a permissive port has three.
func (h *haproxySampler) frontend(r row, plan *mesh.Plan, add func(*atomic.Int64, string) int64, active map[*atomic.Int64]int64) {
	c := h.counts
	count := func(requests *atomic.Int64, classes func(int) *atomic.Int64) {
		c.requests.Add(add(requests, "req_tot"))
		for class := 2; class <= 5; class++ {
			add(classes(class), "hrsp_"+strconv.Itoa(class)+"xx")
		}
	}
	for _, in := range plan.Inbound {
		name := "in" + strconv.Itoa(in.Port)
		p := c.inbound[in.Name]
		if p == nil || r["pxname"] != name && r["pxname"] != name+"_tls" && r["pxname"] != name+"_plain" {
			continue
		}
		if r["pxname"] == name {
			c.connections.Add(add(p.connections, "conn_tot"))
			active[p.active] += r.number("scur")
		}
		add(p.handshakes, "ssl_sess") // the full ones
		if again := add(p.again, "ssl_reused_sess"); p.handshakes != nil {
			p.handshakes.Add(again)
		}
		if p.http != nil {
			count(p.http.RqTotal, p.http.Class)
		}
		return
	}
	for _, out := range plan.Outbound {
		if o := c.outbound[out.Name]; o != nil && r["pxname"] == "out"+strconv.Itoa(out.Listen) {
			c.connections.Add(add(o.connections, "conn_tot"))
			active[o.active] += r.number("scur")
			if o.http != nil {
				count(o.http.RqTotal, o.http.Class)
			}
			return
		}
	}
}
