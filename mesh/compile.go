package mesh

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"countersign.dev/id"
)

// ErrNoWorkload says that a specification declares no workload of a name.
var ErrNoWorkload = errors.New("no such workload")

// Workloads are the services and gateways, sorted by name.
func (s *Spec) Workloads() []Workload {
	workloads := make([]Workload, 0, len(s.Services)+len(s.Gateways))
	for _, v := range s.Services {
		workloads = append(workloads, Workload{v.Name, id.Service, v.Identity})
	}
	for _, g := range s.Gateways {
		workloads = append(workloads, Workload{g.Name, id.Gateway, g.Identity})
	}
	slices.SortFunc(workloads, func(a, b Workload) int { return cmp.Compare(a.Name, b.Name) })
	return workloads
}

// Compile makes the Plan of the workload of a name: everything that the specification says to it.
// Its revision is 0 and its upstreams have no endpoints, which only a server knows. What is compiled
// twice is equal. A name that is not declared is an [ErrNoWorkload].
func (s *Spec) Compile(name string) (*Plan, error) {
	if service, ok := s.Services[name]; ok {
		return s.compileService(service), nil
	}
	if gateway, ok := s.Gateways[name]; ok {
		return s.compileGateway(gateway), nil
	}
	names := make([]string, 0, len(s.Services)+len(s.Gateways))
	for _, w := range s.Workloads() {
		names = append(names, w.Name)
	}
	var near nearest
	return nil, fmt.Errorf("%w: %q; %s", ErrNoWorkload, name, near.right(name, names, "the specification declares none"))
}

// plan is what every Plan holds.
func (s *Spec) plan(workload Workload, c Certificates, names []string) *Plan {
	return &Plan{
		Version:     PlanVersion,
		Mesh:        s.Mesh,
		TrustDomain: s.TrustDomain,
		Workload:    workload,
		Certificate: CertificatePlan{
			Identity:    workload.Identity,
			DNSIdentity: s.dnsIdentity(workload.Name),
			DNSNames:    s.certificateNames(workload, names),
			TTL:         c.TTL,
			RenewAfter:  c.RenewAfter,
			Key:         c.Key,
			Authority:   c.Authority,
		},
		Revocation: s.Revocation,
		Inbound:    []Inbound{},
		Outbound:   []Outbound{},
		Upstreams:  []Upstream{},
	}
}

func (s *Spec) compileService(v *Service) *Plan {
	plan := s.plan(Workload{v.Name, id.Service, v.Identity}, v.Certificates, v.Names)
	plan.Proxy, plan.Delivery, plan.Deploy, plan.ECS = v.Proxy, v.Delivery, v.Deploy, v.ECS
	for _, p := range v.Ports {
		plan.Inbound = append(plan.Inbound, Inbound{
			Name:       inboundName(p.Port),
			Port:       p.Port,
			Protocol:   p.Protocol,
			App:        p.App,
			TLS:        p.TLS,
			ClientAuth: p.ClientAuth,
			MinTLS:     p.MinTLS,
			TLSGroups:  p.TLSGroups,
			Rules:      s.rules(v, p),
		})
	}
	called := map[string]Upstream{}
	for _, c := range v.Calls {
		upstream := s.upstream(c.Service, c.Port)
		called[upstream.Name] = upstream
		plan.Outbound = append(plan.Outbound, Outbound{
			Name:     fmt.Sprintf("127.0.0.1_%d", c.Listen),
			Listen:   c.Listen,
			Protocol: upstream.Protocol,
			Upstream: upstream.Name,
		})
	}
	plan.Upstreams = sortedUpstreams(called)
	return plan
}

func (s *Spec) compileGateway(g *Gateway) *Plan {
	plan := s.plan(Workload{g.Name, id.Gateway, g.Identity}, g.Certificates, g.Names)
	plan.Proxy, plan.Delivery, plan.Deploy, plan.ECS = g.Proxy, g.Delivery, g.Deploy, g.ECS
	called := map[string]Upstream{}
	for _, l := range g.Listen {
		in := Inbound{
			Name:        inboundName(l.Port),
			Port:        l.Port,
			Protocol:    l.Protocol,
			TLS:         Off,
			ClientAuth:  None,
			MinTLS:      l.MinTLS,
			TLSGroups:   l.TLSGroups,
			Rules:       []Rule{{From: []string{FromAnonymous}}},
			Certificate: l.Certificate,
		}
		if l.Certificate != nil {
			in.TLS = Strict
		}
		for _, r := range g.Routes {
			if !r.takes(l) {
				continue
			}
			route := Route{Match: r.Match, RequestTimeout: r.RequestTimeout}
			for _, to := range r.To {
				upstream := s.upstream(to.Service, to.Port)
				called[upstream.Name] = upstream
				route.To = append(route.To, Destination{upstream.Name, to.Weight})
			}
			in.Routes = append(in.Routes, route)
		}
		plan.Inbound = append(plan.Inbound, in)
	}
	plan.Upstreams = sortedUpstreams(called)
	return plan
}

// takes tells whether a route is meant for a listener.
func (r GatewayRoute) takes(l GatewayListener) bool {
	if r.Listener == 0 {
		return l.Protocol != TCP
	}
	return r.Listener == l.Port
}

// upstream describes one port of a called service.
func (s *Spec) upstream(service string, port int) Upstream {
	called := s.Services[service]
	p, _ := called.port(port)
	return Upstream{
		Name:       fmt.Sprintf("%s_%d", service, port),
		Service:    service,
		Port:       port,
		Protocol:   p.Protocol,
		Identity:   called.Identity,
		ServerName: cmp.Or(s.dnsIdentity(service), called.Identity.ServerName()),
		TLS:        p.TLS != Off,
		MinTLS:     p.MinTLS,
		TLSGroups:  p.TLSGroups,
		Endpoints:  []Endpoint{},
	}
}

// port finds a port by its number.
func (v *Service) port(number int) (Port, bool) {
	for _, p := range v.Ports {
		if p.Port == number {
			return p, true
		}
	}
	return Port{}, false
}

func sortedUpstreams(byName map[string]Upstream) []Upstream {
	upstreams := make([]Upstream, 0, len(byName))
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		upstreams = append(upstreams, byName[name])
	}
	return upstreams
}

func inboundName(port int) string { return fmt.Sprintf("0.0.0.0_%d", port) }

// admitsAnonymous tells whether a caller without identity can connect to a port at all.
func (p Port) admitsAnonymous() bool {
	return p.TLS != Strict || p.ClientAuth != Require
}

// identifies tells whether a caller of a port can have an identity.
func (p Port) identifies() bool { return p.TLS != Off && p.ClientAuth != None }

// rules are the policy of a port: the words of its allow list, or the graph.
func (s *Spec) rules(v *Service, p Port) []Rule {
	if p.Allow == nil {
		return s.graphRules(v, p)
	}
	rules := make([]Rule, 0, len(p.Allow))
	for _, a := range p.Allow {
		rule := Rule{Methods: a.Methods, Paths: a.Paths}
		for _, from := range a.From {
			rule.From = append(rule.From, s.caller(v, from)...)
		}
		rules = append(rules, rule)
	}
	return rules
}

// caller spells an entry of allow.from as a Rule of a service does.
func (s *Spec) caller(v *Service, from string) []string {
	if from == FromAny && v.Proxy.Real() {
		return append([]string{FromAny}, s.dnsPeers()...)
	}
	if w, ok := s.workloadOf(from); ok {
		return []string{s.peerName(w)}
	}
	return []string{from} // any or anonymous
}

// graphRules admit the workloads that declare to call the port, and anonymous callers where they can
// connect.
func (s *Spec) graphRules(v *Service, p Port) []Rule {
	var from []string
	if p.identifies() {
		for _, w := range s.callers(v.Name, p.Port) {
			from = append(from, s.peerName(w))
		}
	}
	if p.admitsAnonymous() {
		from = append(from, FromAnonymous)
	}
	if len(from) == 0 {
		return []Rule{}
	}
	return []Rule{{From: from}}
}

// callers are the workloads whose own part of the specification calls or routes to a port, sorted by
// name.
func (s *Spec) callers(service string, port int) []Workload {
	var callers []Workload
	for _, v := range s.Services {
		if slices.ContainsFunc(v.Calls, func(c Call) bool { return c.Service == service && c.Port == port }) {
			callers = append(callers, Workload{v.Name, id.Service, v.Identity})
		}
	}
	for _, g := range s.Gateways {
		if slices.ContainsFunc(g.Routes, func(r GatewayRoute) bool {
			return slices.ContainsFunc(r.To, func(to RouteDestination) bool { return to.Service == service && to.Port == port })
		}) {
			callers = append(callers, Workload{g.Name, id.Gateway, g.Identity})
		}
	}
	slices.SortFunc(callers, func(a, b Workload) int { return cmp.Compare(a.Name, b.Name) })
	return callers
}
