package stat

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// maxFilter bounds the regular expression that somebody sends.
const maxFilter = 1 << 10

// Handler serves GET /stats as Envoy does: "name: integer" lines, ?filter=REGEX, ?format=json. gauges
// gives further values by their whole name; it may be nil.
func (s *Set) Handler(gauges func() map[string]int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		stats := s.withGauges(gauges)
		if filter := query.Get("filter"); filter != "" {
			if len(filter) > maxFilter {
				http.Error(w, fmt.Sprintf("the filter has more than %d characters", maxFilter), http.StatusBadRequest)
				return
			}
			expression, err := regexp.Compile(filter)
			if err != nil {
				http.Error(w, "the filter is not a regular expression: "+err.Error(), http.StatusBadRequest)
				return
			}
			stats = slices.DeleteFunc(stats, func(stat Stat) bool { return !expression.MatchString(stat.Name) })
		}
		switch format := query.Get("format"); format {
		case "", "text":
			w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
			for _, stat := range stats {
				fmt.Fprintf(w, "%s: %d\n", stat.Name, stat.Value)
			}
		case "json":
			w.Header().Set("Content-Type", "application/json")
			// An error means that the reader has gone.
			_ = json.NewEncoder(w).Encode(map[string][]Stat{"stats": stats})
		default:
			http.Error(w, "the format is neither text nor json; for Prometheus ask /metrics", http.StatusBadRequest)
		}
	})
}

func (s *Set) withGauges(gauges func() map[string]int64) []Stat {
	stats := s.Stats()
	if gauges != nil {
		for name, value := range gauges() {
			stats = append(stats, Stat{name, value})
		}
		slices.SortFunc(stats, func(a, b Stat) int { return cmp.Compare(a.Name, b.Name) })
	}
	return stats
}

// Prometheus serves the same values to Prometheus, from a registry of its own. A value becomes
// countersign_SCOPE_METRIC with a label for its owner; counters end in _total.
func (s *Set) Prometheus(gauges func() map[string]int64) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{s, gauges})
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
}

// collector reads a Set when Prometheus asks. It describes nothing beforehand: ciphers and listeners
// come and go.
type collector struct {
	set    *Set
	gauges func() map[string]int64
}

// Describe implements prometheus.Collector.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collector) Collect(metrics chan<- prometheus.Metric) {
	c.set.mu.RLock()
	defer c.set.mu.RUnlock()
	for key, value := range c.set.values {
		metrics <- constant(key, value.Load())
	}
	if c.gauges != nil {
		for name, value := range c.gauges() {
			kind := prometheus.GaugeValue
			if strings.HasSuffix(name, "_total") {
				kind = prometheus.CounterValue
			}
			desc := prometheus.NewDesc("countersign_"+strings.TrimPrefix(promName(name), "countersign_"), "The value "+name+" of /stats.", nil, nil)
			metrics <- prometheus.MustNewConstMetric(desc, kind, float64(value))
		}
	}
}

func constant(key Key, value int64) prometheus.Metric {
	kind := prometheus.CounterValue
	name := "countersign_" + key.Scope + "_" + promName(key.Metric)
	if key.gauge() {
		kind = prometheus.GaugeValue
	} else if !strings.HasSuffix(name, "_total") {
		name += "_total"
	}
	label := key.Scope
	if label == "http" {
		label = "listener"
	}
	labels, values := []string{label}, []string{key.Owner}
	if key.Detail != "" {
		labels, values = append(labels, "name"), append(values, key.Detail)
	}
	desc := prometheus.NewDesc(name, "Envoy's "+key.Scope+".NAME."+key.Metric+".", labels, nil)
	return prometheus.MustNewConstMetric(desc, kind, float64(value), values...)
}

// promName maps a name to the characters that Prometheus takes.
func promName(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return '_'
	}, name)
}
