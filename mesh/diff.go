package mesh

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Diff tells people what changes from one specification to another, one line a change, sorted: "+"
// for what is new, "-" for what is gone, "~" for what is different and how. It is empty when the two
// mean the same.
func Diff(before, after *Spec) []string {
	var d difference
	d.change("mesh", before.Mesh, after.Mesh)
	d.change("trustDomain", before.TrustDomain, after.TrustDomain)
	d.change("minTLS", before.MinTLS, after.MinTLS)
	d.change("tlsGroups", joined(before.TLSGroups), joined(after.TLSGroups))
	d.certificates("certificates", before.Certificates, after.Certificates)
	d.change("revocation", before.Revocation.text(), after.Revocation.text())
	d.declared("store", mapped(before.Stores, DeclaredStore.text), mapped(after.Stores, DeclaredStore.text))
	d.declared("authority", mapped(before.Authorities, Authority.text), mapped(after.Authorities, Authority.text))
	for _, name := range names(before.Services, after.Services) {
		d.within("service "+name, before.Services[name] != nil, after.Services[name] != nil, func(d *difference) {
			d.service(before.Services[name], after.Services[name])
		})
	}
	for _, name := range names(before.Gateways, after.Gateways) {
		d.within("gateway "+name, before.Gateways[name] != nil, after.Gateways[name] != nil, func(d *difference) {
			d.gateway(before.Gateways[name], after.Gateways[name])
		})
	}
	return d.lines
}

// SameTopology tells what differs between two specifications in what a mesh that already runs on this
// machine cannot follow: its workloads, their instances, their ports, their proxies' engines, where these
// have their certificates from and how those are deployed, and how the applications are run. A call may come or go, but not move to another port: its application was told the first. The
// lines are as [Diff]'s; none means that only policy, TLS, certificates and routing differ.
func SameTopology(before, after *Spec) []string {
	lines := Diff(topology(before), topology(after))
	for _, name := range slices.Sorted(maps.Keys(before.Services)) {
		is, ok := after.Services[name]
		if !ok {
			continue
		}
		for _, c := range before.Services[name].Calls {
			i := slices.IndexFunc(is.Calls, func(other Call) bool { return other.Service == c.Service && other.Port == c.Port })
			if i >= 0 && is.Calls[i].Listen != c.Listen {
				lines = append(lines, fmt.Sprintf("~ service %s: call %s:%d listen %d -> %d", name, c.Service, c.Port, c.Listen, is.Calls[i].Listen))
			}
		}
	}
	return lines
}

// topology is a specification with only what SameTopology compares.
func topology(s *Spec) *Spec {
	t := &Spec{
		Mesh: s.Mesh, TrustDomain: s.TrustDomain, Stores: map[string]DeclaredStore{},
		Services: map[string]*Service{}, Gateways: map[string]*Gateway{},
	}
	use := func(d DeliveryPlan) {
		if d.FromStore() {
			t.Stores[d.StoreName] = s.Stores[d.StoreName]
		}
	}
	for name, v := range s.Services {
		service := &Service{Name: v.Name, Instances: v.Instances, Run: v.Run, Proxy: ProxyPlan{Engine: v.Proxy.Engine}, Delivery: v.Delivery, Deploy: v.Deploy, ECS: v.ECS}
		for _, p := range v.Ports {
			service.Ports = append(service.Ports, Port{Port: p.Port, Protocol: p.Protocol, App: p.App})
		}
		use(v.Delivery)
		t.Services[name] = service
	}
	for name, g := range s.Gateways {
		gateway := &Gateway{Name: g.Name, Instances: g.Instances, Proxy: ProxyPlan{Engine: g.Proxy.Engine}, Delivery: g.Delivery, Deploy: g.Deploy, ECS: g.ECS}
		for _, l := range g.Listen {
			gateway.Listen = append(gateway.Listen, GatewayListener{Port: l.Port, Protocol: l.Protocol})
		}
		use(g.Delivery)
		t.Gateways[name] = gateway
	}
	return t
}

// difference collects lines. Its subject is set while a workload is compared.
type difference struct {
	subject string
	lines   []string
}

// names are the keys of two maps, sorted.
func names[V any](a, b map[string]V) []string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return slices.Sorted(maps.Keys(all))
}

// within says that a workload came or went, or compares what it was and is.
func (d *difference) within(subject string, before, after bool, compare func(*difference)) {
	switch {
	case !before:
		d.lines = append(d.lines, "+ "+subject)
	case !after:
		d.lines = append(d.lines, "- "+subject)
	default:
		inner := &difference{subject: subject + ": "}
		compare(inner)
		d.lines = append(d.lines, inner.lines...)
	}
}

func (d *difference) add(sign, line string) {
	d.lines = append(d.lines, sign+" "+d.subject+line)
}

// change says that a value is another.
func (d *difference) change(what string, before, after any) {
	if before != after {
		d.add("~", fmt.Sprintf("%s %v -> %v", what, plain(before), plain(after)))
	}
}

// plain writes a value of the specification as the specification does.
func plain(v any) string {
	if d, ok := v.(Duration); ok {
		return d.String()
	}
	if s := fmt.Sprint(v); s != "" {
		return s
	}
	return "(none)"
}

// set compares two lists whose order means nothing.
func (d *difference) set(what string, before, after []string) {
	for _, s := range before {
		if !slices.Contains(after, s) {
			d.add("-", what+" "+s)
		}
	}
	for _, s := range after {
		if !slices.Contains(before, s) {
			d.add("+", what+" "+s)
		}
	}
}

// ordered compares two lists whose order counts, such as rules and routes.
func (d *difference) ordered(what string, before, after []string) {
	if slices.Equal(before, after) {
		return
	}
	lines := len(d.lines)
	d.set(what, before, after)
	if len(d.lines) == lines {
		d.add("~", what+": the same in another order")
	}
}

func (d *difference) certificates(what string, before, after Certificates) {
	d.change(what+".ttl", before.TTL, after.TTL)
	d.change(what+".renewAfter", before.RenewAfter, after.RenewAfter)
	d.change(what+".key", before.Key, after.Key)
	d.change(what+".authority", before.Authority, after.Authority)
}

// declared compares what is declared by name, each in one line.
func (d *difference) declared(what string, before, after map[string]string) {
	for _, name := range names(before, after) {
		was, had := before[name]
		is, has := after[name]
		switch {
		case !had:
			d.add("+", what+" "+name+": "+is)
		case !has:
			d.add("-", what+" "+name)
		default:
			d.change(what+" "+name+":", was, is)
		}
	}
}

// mapped is a map with every value in one line.
func mapped[V any](values map[string]V, text func(V) string) map[string]string {
	all := map[string]string{}
	for name, v := range values {
		all[name] = text(v)
	}
	return all
}

// proxy compares the sidecar of a workload and how its certificate gets there.
func (d *difference) proxy(wasProxy, isProxy ProxyPlan, was, is DeliveryPlan) {
	d.change("proxy", wasProxy.String(), isProxy.String())
	d.change("delivery", was.String(), is.String())
}

func (d *difference) service(before, after *Service) {
	d.certificates("certificates", before.Certificates, after.Certificates)
	d.set("name", before.Names, after.Names)
	d.change("instances", before.Instances, after.Instances)
	d.proxy(before.Proxy, after.Proxy, before.Delivery, after.Delivery)
	d.change("deploy", before.Deploy, after.Deploy)
	d.change("deploy.ecs", before.ECS.text(), after.ECS.text())
	d.ports(before, after)
	d.set("call", texts(before.Calls, Call.text), texts(after.Calls, Call.text))
	switch {
	case before.Run == nil && after.Run != nil:
		d.add("+", "run")
	case before.Run != nil && after.Run == nil:
		d.add("-", "run")
	case before.Run != nil:
		d.run(before.Run, after.Run)
	}
}

// run says which part of run differs, and not what it holds: an environment may hold what is not for
// every terminal.
func (d *difference) run(before, after *Run) {
	if !slices.Equal(before.Command, after.Command) {
		d.add("~", "run.command")
	}
	if !maps.Equal(before.Env, after.Env) {
		d.add("~", "run.env")
	}
	d.change("run.dir", before.DirText, after.DirText)
}

func (d *difference) ports(before, after *Service) {
	for _, was := range before.Ports {
		is, ok := after.port(was.Port)
		what := fmt.Sprintf("ports[%d]", was.Port)
		if !ok {
			d.add("-", what)
			continue
		}
		d.change(what+".protocol", was.Protocol, is.Protocol)
		d.change(what+".app", was.App, is.App)
		d.change(what+".tls", was.TLS, is.TLS)
		d.change(what+".clientAuth", was.ClientAuth, is.ClientAuth)
		d.change(what+".minTLS", was.MinTLS, is.MinTLS)
		d.change(what+".tlsGroups", joined(was.TLSGroups), joined(is.TLSGroups))
		switch {
		case was.Allow == nil && is.Allow != nil:
			d.add("~", what+".allow the graph -> "+allowText(is.Allow))
		case was.Allow != nil && is.Allow == nil:
			d.add("~", what+".allow "+allowText(was.Allow)+" -> the graph")
		default:
			d.ordered(what+".allow", texts(was.Allow, Allow.text), texts(is.Allow, Allow.text))
		}
	}
	for _, is := range after.Ports {
		if _, ok := before.port(is.Port); !ok {
			d.add("+", fmt.Sprintf("ports[%d] %s", is.Port, is.Protocol))
		}
	}
}

func (d *difference) gateway(before, after *Gateway) {
	d.certificates("certificates", before.Certificates, after.Certificates)
	d.set("name", before.Names, after.Names)
	d.change("instances", before.Instances, after.Instances)
	d.proxy(before.Proxy, after.Proxy, before.Delivery, after.Delivery)
	d.change("deploy", before.Deploy, after.Deploy)
	d.change("deploy.ecs", before.ECS.text(), after.ECS.text())
	d.set("listener", texts(before.Listen, GatewayListener.text), texts(after.Listen, GatewayListener.text))
	d.ordered("route", texts(before.Routes, GatewayRoute.text), texts(after.Routes, GatewayRoute.text))
}

func texts[V any](values []V, text func(V) string) []string {
	all := make([]string, len(values))
	for i, v := range values {
		all[i] = text(v)
	}
	return all
}

func allowText(rules []Allow) string {
	if len(rules) == 0 {
		return "nobody"
	}
	return strings.Join(texts(rules, Allow.text), ", ")
}

// text is a rule in one line.
func (a Allow) text() string {
	parts := []string{"from " + strings.Join(a.From, "|")}
	if len(a.Methods) > 0 {
		parts = append(parts, strings.Join(a.Methods, "|"))
	}
	if len(a.Paths) > 0 {
		parts = append(parts, strings.Join(a.Paths, "|"))
	}
	return strings.Join(parts, " ")
}

func (c Call) text() string {
	return fmt.Sprintf("%s:%d on 127.0.0.1:%d", c.Service, c.Port, c.Listen)
}

func (l GatewayListener) text() string {
	text := fmt.Sprintf("%d %s", l.Port, l.Protocol)
	if l.Certificate != nil {
		text += fmt.Sprintf(" with TLS %s by %s from %s and %s", l.MinTLS, joined(l.TLSGroups), l.Certificate.Cert, l.Certificate.Key)
	}
	return text
}

// text is a route in one line.
func (r GatewayRoute) text() string {
	match := r.Match.String()
	if r.Listener != 0 {
		match = fmt.Sprintf("listener %d %s", r.Listener, match)
	}
	var to []string
	for _, t := range r.To {
		to = append(to, fmt.Sprintf("%s:%d*%d", t.Service, t.Port, t.Weight))
	}
	text := match + " -> " + strings.Join(to, ", ")
	if r.RequestTimeout != 0 {
		text += " within " + r.RequestTimeout.String()
	}
	return text
}

// String is the condition in one line: "everything" when there is none.
func (m Match) String() string {
	var parts []string
	if m.Host != "" {
		parts = append(parts, "host "+m.Host)
	}
	if len(m.Methods) > 0 {
		parts = append(parts, strings.Join(m.Methods, "|"))
	}
	switch {
	case m.Path != "":
		parts = append(parts, m.Path)
	case m.Prefix != "":
		parts = append(parts, strings.TrimSuffix(m.Prefix, "/")+"/...")
	}
	for _, name := range slices.Sorted(maps.Keys(m.Headers)) {
		parts = append(parts, fmt.Sprintf("%s: %s", name, m.Headers[name]))
	}
	if len(parts) == 0 {
		return "everything"
	}
	return strings.Join(parts, " ")
}
