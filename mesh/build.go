package mesh

import (
	"path/filepath"
	"time"

	"countersign.dev/id"
)

// The defaults that the table can only say in words.
const (
	defaultTTL           = 168 * time.Hour
	defaultKey           = ECDSAP256
	trustDomainSuffix    = ".internal"
	renewNumerator       = 5
	renewDenominator     = 7
	renewAfterResolution = time.Millisecond
)

// builder makes a Spec of what was read. What is bad in it stays zero; lists keep their indexes.
type builder struct {
	*report
	documents []Document
}

func (b builder) spec(root *value) *Spec {
	s := &Spec{
		Mesh:        root.get("mesh").str(),
		TrustDomain: root.get("trustDomain").str(),
		MinTLS:      TLSVersion(textOr(root.get("minTLS"), string(TLS12))),
		TLSGroups:   groupsOr(root.get("tlsGroups"), DefaultTLSGroups()),
		Revocation:  revocation(root),
		Stores:      b.stores(root.get("stores")),
		Services:    map[string]*Service{},
		Gateways:    map[string]*Gateway{},
	}
	s.Authorities = authorities(s, root.get("authorities"))
	if root.get("trustDomain") == nil && s.Mesh != "" {
		s.TrustDomain = s.Mesh + trustDomainSuffix
	}
	s.Certificates = certificates(root.get("certificates"), Certificates{
		TTL: Duration(defaultTTL), RenewAfter: renewAfterOf(Duration(defaultTTL)), Key: defaultKey,
	})
	for _, m := range members(root.get("services")) {
		s.Services[m.name] = b.service(s, m.name, m.value)
	}
	for _, m := range members(root.get("gateways")) {
		s.Gateways[m.name] = b.gateway(s, m.name, m.value)
	}
	fillCalledPorts(s)
	return s
}

// fillCalledPorts gives calls and destinations without a port the only port that there is.
func fillCalledPorts(s *Spec) {
	for _, service := range s.Services {
		for i := range service.Calls {
			call := &service.Calls[i]
			if call.Port == 0 {
				call.Port = s.onlyPort(call.Service)
			}
			if call.Listen == 0 {
				call.Listen = call.Port
			}
		}
	}
	for _, gateway := range s.Gateways {
		for i := range gateway.Routes {
			for j := range gateway.Routes[i].To {
				if to := &gateway.Routes[i].To[j]; to.Port == 0 {
					to.Port = s.onlyPort(to.Service)
				}
			}
		}
	}
}

// onlyPort is the port of a service that has exactly one, else 0.
func (s *Spec) onlyPort(service string) int {
	if called, ok := s.Services[service]; ok && len(called.Ports) == 1 {
		return called.Ports[0].Port
	}
	return 0
}

// certificates are the mesh's, or what differs from them.
func certificates(v *value, inherited Certificates) Certificates {
	c := inherited
	if ttl := v.get("ttl"); ttl != nil {
		c.TTL = Duration(ttl.int())
		c.RenewAfter = renewAfterOf(c.TTL)
	}
	if renew := v.get("renewAfter"); renew != nil {
		c.RenewAfter = Duration(renew.int())
	}
	c.Key = KeyType(textOr(v.get("key"), string(c.Key)))
	c.Authority = textOr(v.get("authority"), c.Authority)
	return c
}

func renewAfterOf(ttl Duration) Duration {
	return Duration((time.Duration(ttl) / renewDenominator * renewNumerator).Truncate(renewAfterResolution))
}

func (b builder) service(s *Spec, name string, v *value) *Service {
	service := &Service{
		Name:         name,
		Identity:     identity(s.TrustDomain, id.Service, name),
		Certificates: ofACM(s, v.get("certificates"), certificates(v.get("certificates"), s.Certificates)),
		Names:        v.get("names").texts(),
		Instances:    int(numberOr(v.get("instances"), 1)),
		Run:          b.run(v.get("run")),
		Proxy:        proxy(v.get("proxy")),
		ProxySaid:    v.get("proxy") != nil,
		Delivery:     delivery(s, name, v.get("delivery")),
	}
	service.Deploy = deploy(service.Delivery, v.get("deploy"))
	service.ECS = ecsDeploy(service.Deploy, name, v.get("deploy"))
	for _, p := range v.get("ports").list() {
		service.Ports = append(service.Ports, port(s, v, p))
	}
	for _, c := range v.get("calls").list() {
		service.Calls = append(service.Calls, Call{
			Service: c.get("service").str(),
			Port:    int(c.get("port").int()),
			Listen:  int(c.get("listen").int()),
		})
	}
	return service
}

// port fills in what the service and the mesh say for all ports.
func port(s *Spec, service, v *value) Port {
	p := Port{
		Port:       int(v.get("port").int()),
		Protocol:   Protocol(v.get("protocol").str()),
		App:        int(v.get("app").int()),
		TLS:        TLSMode(textOr(firstOf("tls", v, service), string(Strict))),
		ClientAuth: ClientAuth(textOr(firstOf("clientAuth", v, service), string(Require))),
		MinTLS:     TLSVersion(textOr(v.get("minTLS"), string(s.MinTLS))),
		TLSGroups:  groupsOr(v.get("tlsGroups"), s.TLSGroups),
	}
	if v.get("app") == nil {
		p.App = p.Port
	}
	if p.TLS == Off {
		p.ClientAuth = None // there is no handshake in which to ask
	}
	if rules := firstOf("allow", v, service); rules != nil {
		p.Allow = []Allow{}
		for _, rule := range rules.items {
			p.Allow = append(p.Allow, Allow{
				From:    rule.get("from").texts(),
				Methods: rule.get("methods").texts(),
				Paths:   rule.get("paths").texts(),
			})
		}
	}
	return p
}

func (b builder) run(v *value) *Run {
	if v == nil {
		return nil
	}
	directory := b.documents[v.at.file].Directory
	run := &Run{Command: v.get("command").texts(), Dir: directory}
	if dir := v.get("dir").str(); dir != "" {
		run.Dir, run.DirText = resolve(directory, dir), dir
	}
	for _, m := range members(v.get("env")) {
		if run.Env == nil {
			run.Env = map[string]string{}
		}
		run.Env[m.name] = m.value.str()
	}
	return run
}

func (b builder) gateway(s *Spec, name string, v *value) *Gateway {
	g := &Gateway{
		Name:         name,
		Identity:     identity(s.TrustDomain, id.Gateway, name),
		Certificates: ofACM(s, v.get("certificates"), certificates(v.get("certificates"), s.Certificates)),
		Names:        v.get("names").texts(),
		Instances:    int(numberOr(v.get("instances"), 1)),
		Proxy:        proxy(v.get("proxy")),
		ProxySaid:    v.get("proxy") != nil,
		Delivery:     delivery(s, name, v.get("delivery")),
	}
	g.Deploy = deploy(g.Delivery, v.get("deploy"))
	g.ECS = ecsDeploy(g.Deploy, name, v.get("deploy"))
	for _, l := range v.get("listen").list() {
		listener := GatewayListener{
			Port:      int(l.get("port").int()),
			Protocol:  Protocol(l.get("protocol").str()),
			MinTLS:    TLSVersion(textOr(l.get("minTLS"), string(s.MinTLS))),
			TLSGroups: groupsOr(l.get("tlsGroups"), s.TLSGroups),
		}
		if c := l.get("certificate"); c != nil {
			directory := b.documents[c.at.file].Directory
			listener.Certificate = &CertificateFiles{
				Cert: resolve(directory, c.get("cert").str()),
				Key:  resolve(directory, c.get("key").str()),
			}
		}
		g.Listen = append(g.Listen, listener)
	}
	for _, r := range v.get("routes").list() {
		g.Routes = append(g.Routes, route(r))
	}
	return g
}

func route(v *value) GatewayRoute {
	match := v.get("match")
	r := GatewayRoute{
		Listener: int(match.get("listener").int()),
		Match: Match{
			Prefix:  match.get("prefix").str(),
			Path:    match.get("path").str(),
			Methods: match.get("methods").texts(),
			Host:    match.get("host").str(),
		},
		RequestTimeout: Duration(v.get("timeout").get("request").int()),
	}
	for _, m := range members(match.get("headers")) {
		if r.Match.Headers == nil {
			r.Match.Headers = map[string]string{}
		}
		r.Match.Headers[m.name] = m.value.str()
	}
	for _, to := range v.get("to").list() {
		r.To = append(r.To, RouteDestination{
			Service: to.get("service").str(),
			Port:    int(to.get("port").int()),
			Weight:  int(numberOr(to.get("weight"), 1)),
		})
	}
	return r
}

// identity is the SPIFFE ID of a workload, none when its name or the trust domain is bad.
func identity(trustDomain string, kind id.Kind, name string) id.ID {
	identity, err := id.New(trustDomain, kind, name)
	if err != nil {
		return id.ID{}
	}
	return identity
}

func resolve(directory, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(directory, path)
}

// firstOf is the first of some mappings' member of a name that was written.
func firstOf(name string, in ...*value) *value {
	for _, v := range in {
		if found := v.get(name); found != nil {
			return found
		}
	}
	return nil
}

func textOr(v *value, otherwise string) string {
	if v == nil {
		return otherwise
	}
	return v.text
}

func numberOr(v *value, otherwise int64) int64 {
	if v == nil {
		return otherwise
	}
	return v.number
}

func members(v *value) []member {
	if v == nil {
		return nil
	}
	return v.members
}
