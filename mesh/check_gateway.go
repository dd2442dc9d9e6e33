package mesh

import (
	"fmt"
	"strconv"
	"strings"
)

// listeners checks the listeners of a gateway among themselves.
func (c checker) listeners(v *value, gateway *Gateway) {
	first := map[int]int{}
	for i, l := range gateway.Listen {
		written := v.get("listen").item(i)
		switch {
		case l.Certificate != nil:
			c.checkGroups(written, l.TLSGroups, l.MinTLS)
		case !written.isBad():
			c.withoutTLS(written, "is without effect on a listener without a certificate", "remove it, or give a certificate")
		}
		if l.Port == 0 {
			continue
		}
		if j, taken := first[l.Port]; taken {
			c.wrong(written.get("port"), fmt.Sprintf("%d is the port of listen[%d], too", l.Port, j), "give every listener a port of its own")
			continue
		}
		first[l.Port] = i
	}
}

// routes checks the routes of a gateway against its listeners and against the services.
func (c checker) routes(v *value, gateway *Gateway) {
	byPort := map[int]GatewayListener{}
	var ports []string
	complete := len(gateway.Listen) > 0 // and every listener is understood
	for _, l := range gateway.Listen {
		byPort[l.Port] = l
		ports = append(ports, strconv.Itoa(l.Port))
		complete = complete && l.Port != 0 && l.Protocol != ""
	}
	routesOf := map[int]int{} // the first route of a tcp listener
	for i, route := range gateway.Routes {
		written := v.get("routes").item(i)
		match := written.get("match")
		listener, known := byPort[route.Listener]
		chosen := match.get("listener")
		switch {
		case !complete || match.isBad() || chosen.isBad():
			known = false
		case chosen == nil:
			listener, known = c.anyListener(written, gateway)
		case !known:
			c.wrong(chosen, fmt.Sprintf("no listener has the port %d", route.Listener), c.nearest.right(chosen.numeral(), ports, ""))
		}
		if known && listener.Protocol == TCP {
			c.tcpRoute(written, listener)
			if j, again := routesOf[listener.Port]; again {
				c.wrong(chosen, fmt.Sprintf("the tcp listener %d has routes[%d] already", listener.Port, j), "keep one route, whose \"to\" may have several destinations")
			} else {
				routesOf[listener.Port] = i
			}
		}
		c.headers(match.get("headers"))
		c.destinations(written, gateway, listener, known)
	}
	for i, l := range gateway.Listen {
		if _, ok := routesOf[l.Port]; !ok && l.Protocol == TCP && l.Port != 0 && complete && c.routesUnderstood(v) {
			c.wrong(v.get("listen").item(i), fmt.Sprintf("the tcp listener %d has no route", l.Port), fmt.Sprintf("add a route with \"match: {listener: %d}\"", l.Port))
		}
	}
}

// routesUnderstood tells whether every route's listener could be read.
func (c checker) routesUnderstood(v *value) bool {
	routes := v.get("routes")
	if routes.isBad() {
		return false
	}
	for _, r := range routes.list() {
		match := r.get("match")
		if r.bad || match.isBad() || match.get("listener").isBad() {
			return false
		}
	}
	return true
}

// numeral is a number as text.
func (v *value) numeral() string { return strconv.FormatInt(v.int(), 10) }

// anyListener stands for the listeners that are not tcp, which a route without a listener takes.
func (c checker) anyListener(route *value, gateway *Gateway) (GatewayListener, bool) {
	for _, l := range gateway.Listen {
		if l.Protocol != TCP {
			return l, true
		}
	}
	parent := route
	if match := route.get("match"); match != nil {
		parent = match
	}
	path := join(join(route.path, "match"), "listener")
	c.add(parent.key, path, "is missing, and every listener is tcp", fmt.Sprintf("write the port of one, such as %d", gateway.Listen[0].Port))
	return GatewayListener{}, false
}

// tcpRoute reports what the route of a tcp listener cannot say.
func (c checker) tcpRoute(route *value, listener GatewayListener) {
	for _, m := range members(route.get("match")) {
		if m.name != "listener" {
			c.wrong(m.value, fmt.Sprintf("listener %d is tcp, which has no requests to tell apart", listener.Port), "match by \"listener\" alone")
		}
	}
	if request := route.get("timeout").get("request"); request != nil {
		c.wrong(request, fmt.Sprintf("listener %d is tcp, which has no requests to bound", listener.Port), "remove it")
	}
}

// headers finds a header that is named twice in different case.
func (c checker) headers(v *value) {
	first := map[string]string{}
	for _, m := range members(v) {
		folded := strings.ToLower(m.name)
		if other, again := first[folded]; again {
			c.add(m.at, m.value.path, fmt.Sprintf("is the header %q again", other), "remove one of the two: headers have no case")
			continue
		}
		first[folded] = m.name
	}
}

// destinations checks where a route sends to.
func (c checker) destinations(route *value, gateway *Gateway, listener GatewayListener, known bool) {
	to := route.get("to")
	sum, weighed := int64(0), true
	for _, d := range to.list() {
		w := d.get("weight")
		sum += numberOr(w, 1)
		weighed = weighed && !d.bad && (w == nil || !w.bad)
		port, ok := c.target(d)
		if ok {
			c.meets(d.get("service"), gateway.Name, gateway.Proxy, c.spec.Services[d.get("service").text], port)
		}
		if !ok || !known || port.Protocol == "" || (port.Protocol == TCP) == (listener.Protocol == TCP) {
			continue
		}
		at := firstWritten(d, "port", "service")
		c.wrong(at, fmt.Sprintf("port %d of %s speaks %s, and listener %d %s", port.Port, d.get("service").text, port.Protocol, listener.Port, listener.Protocol),
			"send tcp to tcp, and requests to a port that speaks http, http2 or grpc")
	}
	if to.isGood() && weighed && len(to.items) > 0 && sum == 0 {
		c.wrong(to, "the weights sum to 0", "give at least one destination a weight above 0")
	}
}
