package nginx

import (
	"fmt"
	"strconv"
	"strings"

	"countersign.dev/engine"
	"countersign.dev/mesh"
)

// routes writes the choice of an upstream: a bit for each condition of a route, and then the first route
// whose conditions all hold.
func (r *renderer) routes(in mesh.Inbound) {
	r.comment("Where requests to port %d go.", in.Port)
	var bits []word
	wanted := make([][]int, len(in.Routes)) // the bits that each route wants
	condition := func(i int, source word, expressions ...string) {
		bit := variable(in, "when"+strconv.Itoa(len(bits)+1))
		var choices []choice
		for _, e := range expressions {
			choices = append(choices, choice{quote(e), "1"})
		}
		r.switchOn(source, bit, "0", choices...)
		wanted[i] = append(wanted[i], len(bits))
		bits = append(bits, bit)
	}
	for i, route := range in.Routes {
		m := engine.RouteMatch(in, route.Match, &r.refusal)
		if m.Path != "" {
			condition(i, "$uri", "~"+m.Path)
		}
		if len(m.Methods) > 0 {
			condition(i, "$request_method", "~^(?:"+strings.Join(m.Methods, "|")+")$")
		}
		if m.Host != "" {
			condition(i, "$http_host", "~*"+m.Host)
		}
		for _, h := range m.Headers {
			condition(i, word("$http_"+strings.ReplaceAll(h.Name, "-", "_")), "~^"+quoteMeta(h.Value)+"$")
		}
	}
	// NGINX compares no expression with an empty text: where no route has a condition there has to be another.
	mark := ""
	if len(bits) == 0 {
		mark = "-"
	}
	var choices []choice
	for i, route := range in.Routes {
		pattern := []byte(strings.Repeat(".", len(bits)))
		for _, bit := range wanted[i] {
			pattern[bit] = '1'
		}
		choices = append(choices, choice{matches("^" + mark + string(pattern) + "$"), r.destination(in, i, route, "$request_id")})
	}
	r.switchOn(quote(mark+join(bits)), variable(in, "to"), `""`, choices...)
}

// destination is the upstream of a route: one, or by weight a variable that names one.
func (r *renderer) destination(in mesh.Inbound, i int, route mesh.Route, random word) word {
	var to []mesh.Destination
	total := 0
	for _, d := range route.To {
		if d.Weight > 0 {
			to = append(to, d)
			total += d.Weight
		}
	}
	if len(to) == 1 {
		return upstreamName(to[0].Upstream)
	}
	result := variable(in, fmt.Sprintf("route%d", i+1))
	r.block(func() {
		for _, d := range to[:len(to)-1] {
			share := float64(d.Weight) * 100 / float64(total)
			if share < 0.01 {
				r.refusal.Addf("port %d: a weight of %d in %d is less than NGINX can split off (0.01 %%)", in.Port, d.Weight, total)
			}
			r.line(word(strconv.FormatFloat(share, 'f', 2, 64)+"%"), upstreamName(d.Upstream))
		}
		r.line("*", upstreamName(to[len(to)-1].Upstream))
	}, "split_clients", random, result)
	return result
}

// firstCode is the first of the statuses by which a request is handed to the location of its upstream.
// None of them is HTTP's, and none is ever sent.
const firstCode, mostUpstreams = 510, 89

// gateway writes the locations of a listener for the outside.
func (r *renderer) gateway(in mesh.Inbound) {
	r.line("error_page", "404", "=", "@nowhere")
	r.answer("@nowhere", in.Protocol, "404", "12", engine.NoRoute)
	var upstreams []string
	seen := map[string]bool{}
	judges := false
	for _, route := range in.Routes {
		judges = judges || route.Match.Path != "" || route.Match.Prefix != "" && route.Match.Prefix != "/"
		for _, d := range route.To {
			if d.Weight > 0 && !seen[d.Upstream] {
				seen[d.Upstream] = true
				upstreams = append(upstreams, d.Upstream)
			}
		}
	}
	if len(upstreams) > mostUpstreams {
		r.refusal.Addf("port %d: its routes lead to %d upstreams, and at most %d can be told apart", in.Port, len(upstreams), mostUpstreams)
		return
	}
	code := func(i int) word { return word(strconv.Itoa(firstCode + 1 + i)) }
	if judges {
		r.answer("@ambiguous", in.Protocol, "400", "13", engine.Ambiguous)
		r.line("error_page", firstCodeWord, "=", "@ambiguous")
	}
	for i, u := range upstreams { // beside the others: a location with one of its own would inherit none
		r.line("error_page", code(i), "=", "@"+upstreamName(u))
	}
	r.block(func() {
		if judges {
			r.block(func() { r.line("return", firstCodeWord) }, "if", "($cs_plain", "=", "0)")
		}
		r.block(func() { r.line("return", "404") }, "if", "("+variable(in, "to"), "=", `"")`)
		for i, u := range upstreams {
			r.block(func() { r.line("return", code(i)) }, "if", "("+variable(in, "to"), "=", upstreamName(u)+")")
		}
	}, "location", "/")
	for _, name := range upstreams {
		u, _ := r.plan.Upstream(name)
		r.block(func() {
			r.pass(u.Protocol, upstreamName(name), u, append(claims[:len(claims):len(claims)], field{"X-Forwarded-For", "$remote_addr"}))
		}, "location", "@"+upstreamName(name))
	}
}

// firstCodeWord is firstCode, for a path that cannot be judged.
const firstCodeWord word = "510"
