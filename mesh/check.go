package mesh

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"countersign.dev/id"
)

// checker finds what is wrong between parts that are each well formed. It walks the specification and
// what was read side by side: the first has the values with every default, the second says what was
// written, and where. What is bad in itself was reported before and is zero in the specification.
type checker struct {
	*report
	spec *Spec
	root *value
	// services and gateways are the declared names, sorted; callers are what may stand in allow.from.
	services, gateways, callers []string
	// ports are the ports of each service, nil where one of them is bad.
	ports map[string]map[int]Port
}

func newChecker(r *report, s *Spec, root *value) checker {
	c := checker{
		report: r, spec: s, root: root,
		services: slices.Sorted(maps.Keys(s.Services)),
		gateways: slices.Sorted(maps.Keys(s.Gateways)),
		ports:    map[string]map[int]Port{},
	}
	c.callers = slices.Concat(c.services, c.gateways, []string{FromAny, FromAnonymous})
	for name, service := range s.Services {
		written := root.get("services").get(name)
		understood := !written.isBad() && !written.get("ports").isBad()
		ports := map[int]Port{}
		for _, p := range service.Ports {
			understood = understood && p.Port != 0
			ports[p.Port] = p
		}
		if understood {
			c.ports[name] = ports
		}
	}
	return c
}

func (c checker) check() {
	c.trustDomain()
	c.workloadNames()
	c.dnsNames()
	c.deliveries()
	c.authorities()
	c.certificates(c.root.get("certificates"), c.spec.Certificates, c.spec.Certificates)
	c.checkGroups(c.root, c.spec.TLSGroups, c.spec.MinTLS)
	for _, m := range members(c.root.get("services")) {
		service := c.spec.Services[m.name]
		c.issued(m, service.Certificates, service.Delivery)
		c.certificates(m.value.get("certificates"), service.Certificates, c.spec.Certificates)
		c.inbound(m.value, service)
		c.rules(m.value, service)
		c.calls(m.value, service)
		c.run(m.value.get("run"), service)
	}
	for _, m := range members(c.root.get("gateways")) {
		gateway := c.spec.Gateways[m.name]
		c.issued(m, gateway.Certificates, gateway.Delivery)
		c.certificates(m.value.get("certificates"), gateway.Certificates, c.spec.Certificates)
		c.listeners(m.value, gateway)
		c.routes(m.value, gateway)
	}
}

// wrong reports a value.
func (c checker) wrong(v *value, wrong, right string) { c.add(v.at, v.path, wrong, right) }

// missing reports a field that only this specification needs.
func (c checker) missing(parent *value, name, wrong, right string) {
	c.add(parent.key, join(parent.path, name), wrong, right)
}

// trustDomain checks the one that follows from the mesh's name.
func (c checker) trustDomain() {
	name := c.root.get("mesh")
	if c.root.get("trustDomain") != nil || !name.isGood() || id.CheckTrustDomain(c.spec.TrustDomain) == nil {
		return
	}
	c.wrong(name, fmt.Sprintf("makes the trust domain %q, which is longer than %d characters", c.spec.TrustDomain, id.MaxTrustDomain),
		fmt.Sprintf("shorten it to %d characters, or set trustDomain", id.MaxTrustDomain-len(trustDomainSuffix)))
}

// workloadNames finds a service and a gateway of one name.
func (c checker) workloadNames() {
	for _, m := range members(c.root.get("gateways")) {
		service := c.root.get("services").get(m.name)
		if service == nil {
			continue
		}
		first, second, kind := service, m.value, "service"
		if first.key.compare(second.key) > 0 {
			first, second, kind = second, first, "gateway"
		}
		c.add(second.key, second.path, fmt.Sprintf("is the name of a %s, too, at %s", kind, c.place(first.key)),
			"give the two different names: a name is an identity")
	}
}

// dnsNames finds DNS names that two workloads would have in their certificates.
func (c checker) dnsNames() {
	owner := map[string]string{} // what has a name, as errors say it
	for _, kind := range []string{"services", "gateways"} {
		for _, m := range members(c.root.get(kind)) {
			who := strings.TrimSuffix(kind, "s") + " " + m.name
			for _, name := range []string{m.name, m.name + "." + c.spec.TrustDomain} {
				if owner[name] == "" {
					owner[name] = who
				}
			}
		}
	}
	for _, kind := range []string{"services", "gateways"} {
		for _, m := range members(c.root.get(kind)) {
			who := strings.TrimSuffix(kind, "s") + " " + m.name
			for _, v := range m.value.get("names").list() {
				switch has := owner[v.text]; {
				case v.bad:
				case has == who:
					c.wrong(v, fmt.Sprintf("%q is a name of this %s already", v.text, strings.TrimSuffix(kind, "s")), "remove it")
				case has != "":
					c.wrong(v, fmt.Sprintf("%q is a name of %s", v.text, has), "give it to one of the two: a DNS name belongs to one workload")
				default:
					owner[v.text] = who
				}
			}
		}
	}
	c.mappedNames(owner)
}

// certificates checks the authority, and renewAfter where it is written against the ttl that holds there.
func (c checker) certificates(v *value, effective, mesh Certificates) {
	c.authority(v)
	renew := v.get("renewAfter")
	if !renew.isGood() || effective.TTL == 0 || effective.RenewAfter < effective.TTL {
		return
	}
	whose := "the ttl"
	if v.get("ttl") == nil {
		whose = "the mesh's ttl"
		if c.root.get("certificates").get("ttl") == nil {
			whose = "the default ttl"
		}
	}
	c.wrong(renew, fmt.Sprintf("%s is not below %s of %s", effective.RenewAfter, whose, effective.TTL),
		fmt.Sprintf("write less than %s, or leave it out for %s", effective.TTL, renewAfterOf(effective.TTL)))
}

// inbound checks the ports of a service among themselves and against the service's own words.
func (c checker) inbound(v *value, service *Service) {
	if auth := v.get("clientAuth"); v.get("tls").str() == string(Off) {
		c.nobodyToAsk(auth)
	}
	first := map[int]int{}
	for i, p := range service.Ports {
		written := v.get("ports").item(i)
		if p.TLS == Off {
			c.nobodyToAsk(written.get("clientAuth"))
			c.withoutTLS(written, "is without effect where tls is off", "remove it")
		} else {
			c.checkGroups(written, p.TLSGroups, p.MinTLS)
		}
		if p.Port == 0 {
			continue
		}
		if j, taken := first[p.Port]; taken {
			c.wrong(written.get("port"), fmt.Sprintf("%d is the port of ports[%d], too", p.Port, j), "give every port a number of its own")
			continue
		}
		first[p.Port] = i
	}
}

// withoutTLS reports what is written about TLS where there is none.
func (c checker) withoutTLS(v *value, wrong, right string) {
	for _, name := range []string{"minTLS", "tlsGroups"} {
		if written := v.get(name); written.isGood() {
			c.wrong(written, wrong, right)
		}
	}
}

// nobodyToAsk reports client authentication that is asked for where there is no TLS.
func (c checker) nobodyToAsk(clientAuth *value) {
	if text := clientAuth.str(); text != "" && text != string(None) {
		c.wrong(clientAuth, fmt.Sprintf("%q is without effect where tls is off", text), "remove it, or choose tls: strict or permissive")
	}
}

// rules checks the allow lists of a service: its own for the ports that have none, and the ports'.
func (c checker) rules(v *value, service *Service) {
	var inherit []Port
	for i, p := range service.Ports {
		own := v.get("ports").item(i).get("allow")
		if own == nil {
			inherit = append(inherit, p)
			continue
		}
		for _, rule := range own.list() {
			c.rule(rule, service, []Port{p})
		}
	}
	for _, rule := range v.get("allow").list() {
		c.rule(rule, service, inherit)
	}
}

// rule checks one rule for the ports that it stands for.
func (c checker) rule(v *value, service *Service, ports []Port) {
	for _, p := range ports {
		if p.Protocol != TCP {
			continue
		}
		for _, name := range []string{"methods", "paths"} {
			if condition := v.get(name); condition != nil {
				c.wrong(condition, fmt.Sprintf("port %d speaks tcp, which has no %s", p.Port, name), "remove it, or write a rule of its own for each port")
			}
		}
		break
	}
	from := v.get("from").list()
	for _, caller := range from {
		if caller.bad {
			continue
		}
		c.caller(caller)
		c.listed(caller, service, ports)
		for _, p := range ports {
			if caller.text != FromAnonymous && !p.identifies() {
				because := "tls: off"
				if p.TLS != Off {
					because = "clientAuth: none"
				}
				c.wrong(caller, fmt.Sprintf("no caller of port %d has an identity, because of %s", p.Port, because), "list only anonymous there, or nobody, or let callers prove who they are")
				break
			}
		}
	}
}

// caller finds out whether an entry of allow.from is known.
func (c checker) caller(v *value) {
	if v.text == FromAny || v.text == FromAnonymous || c.root.get("services").isBad() || c.root.get("gateways").isBad() {
		return
	}
	if c.spec.Services[v.text] != nil || c.spec.Gateways[v.text] != nil {
		return
	}
	spiffe, err := id.Parse(v.text)
	if err != nil {
		c.wrong(v, quote(v.text)+" is no service or gateway", c.nearest.right(v.text, c.callers, ""))
		return
	}
	if c.spec.TrustDomain == "" {
		return // which is bad itself
	}
	kind, names, declared := "service", c.services, c.spec.Services[spiffe.Name()] != nil
	if spiffe.Kind() == id.Gateway {
		kind, names, declared = "gateway", c.gateways, c.spec.Gateways[spiffe.Name()] != nil
	}
	switch {
	case spiffe.TrustDomain() != c.spec.TrustDomain:
		c.wrong(v, fmt.Sprintf("%s is of another trust domain than %s, from which nobody is let in", quote(v.text), c.spec.TrustDomain), "name a workload of this mesh")
	case !declared:
		c.wrong(v, fmt.Sprintf("%s is the identity of no %s", quote(v.text), kind), c.nearest.right(spiffe.Name(), names, "the mesh has no "+kind))
	}
}

// target finds the port that a call or a destination means, and reports what stands against it.
func (c checker) target(v *value) (Port, bool) {
	name := v.get("service")
	if !name.isGood() || c.root.get("services").isBad() {
		return Port{}, false
	}
	service := c.spec.Services[name.text]
	if service == nil {
		wrong := quote(name.text) + " is no service"
		if c.spec.Gateways[name.text] != nil {
			wrong = quote(name.text) + " is a gateway, and only services are called"
		}
		c.wrong(name, wrong, c.nearest.right(name.text, c.services, "declare it below services"))
		return Port{}, false
	}
	ports, port := c.ports[name.text], v.get("port")
	switch {
	case ports == nil || port.isBad():
		return Port{}, false // which of them is meant cannot be known
	case len(ports) == 0:
		c.wrong(name, fmt.Sprintf("service %s has no ports", name.text), "give it one, or name another service")
		return Port{}, false
	case port == nil && len(service.Ports) > 1:
		c.missing(v, "port", fmt.Sprintf("is missing, and service %s has several ports", name.text), "write one of "+strings.Join(portNumbers(ports), ", "))
		return Port{}, false
	case port == nil:
		return service.Ports[0], true
	}
	found, ok := ports[int(port.number)]
	if !ok {
		c.wrong(port, fmt.Sprintf("service %s has no port %d", name.text, port.number), c.nearest.right(port.numeral(), portNumbers(ports), ""))
	}
	return found, ok
}

// portNumbers are the numbers of some ports as text, in order, as far as an error can list them.
func portNumbers(ports map[int]Port) []string {
	var numbers []string
	for _, n := range slices.Sorted(maps.Keys(ports)) {
		if len(numbers) == 20 {
			break
		}
		numbers = append(numbers, strconv.Itoa(n))
	}
	return numbers
}

// calls checks what a service calls, and that its application's address has room for it.
func (c checker) calls(v *value, service *Service) {
	taken := map[int]string{} // what listens on a port of the application's address
	for i, p := range service.Ports {
		if p.App != 0 && taken[p.App] == "" {
			taken[p.App] = fmt.Sprintf("the application, for ports[%d]", i)
		}
	}
	seen := map[Call]int{}
	for i, written := range v.get("calls").list() {
		port, ok := c.target(written)
		if !ok {
			continue
		}
		call := service.Calls[i]
		same := Call{Service: call.Service, Port: port.Port}
		if j, again := seen[same]; again {
			c.wrong(written.get("service"), fmt.Sprintf("port %d of %s is called by calls[%d] already", port.Port, call.Service, j), "remove one of the two")
			continue
		}
		seen[same] = i
		c.meets(written.get("service"), service.Name, service.Proxy, c.spec.Services[call.Service], port)
		if listen := written.get("listen"); listen.isBad() {
			continue
		}
		if other := taken[call.Listen]; other != "" {
			c.add(firstWritten(written, "listen", "port", "service").at, join(written.path, "listen"),
				fmt.Sprintf("%d on loopback is taken by %s", call.Listen, other), "choose another port for \"listen\"")
			continue
		}
		taken[call.Listen] = fmt.Sprintf("calls[%d]", i)
	}
}

// firstWritten is the first of some members that was written.
func firstWritten(v *value, names ...string) *value {
	for _, name := range names {
		if found := v.get(name); found != nil {
			return found
		}
	}
	return v
}

// run checks the texts that `up` will expand.
func (c checker) run(v *value, service *Service) {
	if v == nil {
		return
	}
	known, ambiguous := map[string]int{}, map[string]bool{}
	var names []string
	for _, variable := range service.Variables() {
		if port, again := known[variable.Name]; again && port != variable.Port {
			ambiguous[variable.Name] = true
		}
		known[variable.Name] = variable.Port
		names = append(names, variable.Name)
	}
	texts := slices.Clone(v.get("command").list())
	if len(texts) > 0 && !texts[0].bad && texts[0].text == "" {
		c.wrong(texts[0], "is empty", "name the program that is run")
	}
	for _, m := range members(v.get("env")) {
		texts = append(texts, m.value)
	}
	for _, text := range texts {
		var unknown []string
		_, err := Expand(text.text, func(name string) (string, bool) {
			if _, ok := known[name]; !ok || ambiguous[name] {
				unknown = append(unknown, name)
			}
			return "", true
		})
		switch {
		case len(unknown) > 0 && ambiguous[unknown[0]]:
			c.wrong(text, quote("${"+unknown[0]+"}")+" stands for two calls", "rename one of the services, or write the address out")
		case len(unknown) > 0:
			c.wrong(text, quote("${"+unknown[0]+"}")+" stands for nothing",
				c.nearest.right(unknown[0], names, "this service has neither ports nor calls")+" ($${ writes ${ itself)")
		case err != nil:
			c.wrong(text, "a ${ is not closed", "close it with }, or write $${ for ${ itself")
		}
	}
}
