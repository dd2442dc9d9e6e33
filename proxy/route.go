package proxy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"countersign.dev/mesh"
	"countersign.dev/policy"
	"countersign.dev/proxy/internal/message"
	"countersign.dev/proxy/internal/relay"
)

// route is a route of a gateway's listener, with its upstreams found.
type route struct {
	match   mesh.Match
	prefix  string // decoded
	path    string // decoded
	to      []destination
	total   int // of the weights
	timeout time.Duration
}

type destination struct {
	upstream *upstream
	weight   int
}

func compileRoutes(in mesh.Inbound, next *state) ([]route, error) {
	routes := make([]route, 0, len(in.Routes))
	for i, r := range in.Routes {
		compiled, err := compileRoute(r, next)
		if err != nil {
			return nil, fmt.Errorf("route %d: %w", i+1, err)
		}
		routes = append(routes, compiled)
	}
	if in.Protocol == mesh.TCP && len(routes) != 1 {
		return nil, fmt.Errorf("a tcp listener has exactly one route, and this one has %d", len(routes))
	}
	return routes, nil
}

func compileRoute(r mesh.Route, next *state) (route, error) {
	compiled := route{match: r.Match, timeout: time.Duration(r.RequestTimeout)}
	for _, path := range []struct {
		from string
		to   *string
	}{{r.Match.Prefix, &compiled.prefix}, {r.Match.Path, &compiled.path}} {
		if path.from == "" {
			continue
		}
		decoded, problem := policy.Canonical(path.from)
		if problem != "" {
			return route{}, fmt.Errorf("path %q: %s", path.from, problem)
		}
		*path.to = decoded
	}
	for _, to := range r.To {
		upstream := next.upstreams[to.Upstream]
		if upstream == nil {
			return route{}, fmt.Errorf("upstream %q is not declared", to.Upstream)
		}
		compiled.to = append(compiled.to, destination{upstream, to.Weight})
		compiled.total += to.Weight
	}
	if compiled.total <= 0 {
		return route{}, fmt.Errorf("its weights sum to %d, so that it leads nowhere", compiled.total)
	}
	return compiled, nil
}

// judgesPaths tells whether the route depends on the path at all.
func (r *route) judgesPaths() bool { return r.path != "" || r.prefix != "" && r.prefix != "/" }

// takes tells whether a request matches. path is decoded, or empty when nobody judges paths.
func (r *route) takes(x *relay.Exchange, path string) bool {
	m := &r.match
	switch {
	case r.path != "" && path != r.path,
		r.judgesPaths() && r.prefix != "" && !below(path, r.prefix),
		len(m.Methods) > 0 && !slices.Contains(m.Methods, x.Method),
		m.Host != "" && !strings.EqualFold(hostOnly(x.Head.Authority), m.Host):
		return false
	}
	for name, value := range m.Headers {
		if !slices.ContainsFunc(x.Head.Fields, func(f message.Field) bool { return f.Value == value && strings.EqualFold(f.Name, name) }) {
			return false
		}
	}
	return true
}

// below tells whether a path is a prefix or below it, on the borders of segments.
func below(path, prefix string) bool {
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(prefix, "/"))
	return ok && (rest == "" && !strings.HasSuffix(prefix, "/") || strings.HasPrefix(rest, "/"))
}

// hostOnly is the host of a Host field without its port and without the root's dot.
func hostOnly(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host = host[:i]
	}
	return strings.TrimSuffix(host, ".")
}

// choose takes one of the upstreams by weight.
func (r *route) choose() *upstream {
	n := rand.IntN(r.total) //nolint:gosec // spreading load needs no secret
	for _, d := range r.to {
		if n -= d.weight; n < 0 {
			return d.upstream
		}
	}
	return r.to[len(r.to)-1].upstream // cannot be: the weights sum to the total
}

// way finds the first route that matches a request; nil when none does. problem says that the path is
// ambiguous: what one route keeps for a service must not be had by another spelling.
func (in *inbound) way(x *relay.Exchange) (r *route, problem string) {
	path := ""
	if in.judgesPaths && x.Path != "*" {
		if path, problem = policy.Canonical(x.Path); problem != "" {
			return nil, problem
		}
	}
	for i := range in.routes {
		if r := &in.routes[i]; r.takes(x, path) {
			return r, ""
		}
	}
	return nil, ""
}
