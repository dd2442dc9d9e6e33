package engine

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

// refused is what a [Refusal] becomes.
type refused struct {
	engine  string
	reasons []string
}

// Error says all reasons.
func (r *refused) Error() string {
	return fmt.Sprintf("%s: %v:\n  - %s", r.engine, ErrRefused, strings.Join(r.reasons, "\n  - "))
}

// Unwrap implements errors.Is for [ErrRefused].
func (*refused) Unwrap() error { return ErrRefused }

// Reasons are why a Plan was refused, one by one; none of another error.
func Reasons(err error) []string {
	if r, ok := errors.AsType[*refused](err); ok {
		return slices.Clone(r.reasons)
	}
	return nil
}

// Placed says the reasons of a refusal of a workload's Plan as errors of the specification that it was compiled from, each
// with its place, and behind them, as in err, those that are about no part of it. It wraps [ErrRefused]; another error
// stays as it is.
func Placed(spec *mesh.Spec, workload mesh.Workload, err error) error {
	r, ok := errors.AsType[*refused](err)
	if !ok {
		return err
	}
	var placed mesh.Errors
	var others []string
	for _, reason := range r.reasons {
		if paths := Paths(spec, workload, reason); len(paths) > 0 {
			placed = append(placed, spec.Refuse(reason, paths...))
		} else {
			others = append(others, "  - "+reason)
		}
	}
	return fmt.Errorf("%s: %w:\n%s", r.engine, ErrRefused, strings.Join(append(placed.Sorted().Lines(), others...), "\n"))
}

// How reasons begin that are about a listener, one of its routes, a call, or a port that is called, and how they name a
// field of it.
var (
	aboutPort     = regexp.MustCompile(`^(?:a route of |(the call on ))?port ([0-9]{1,5})(?:, route ([0-9]{1,5}))?\b`)
	aboutUpstream = regexp.MustCompile(`^upstream "?([a-z0-9-]+)_([0-9]{1,5})\b`)
	aboutField    = regexp.MustCompile(`\(([a-z][A-Za-z.]*)\)`)
)

// Paths are where a specification says what a reason is about, the closest first, as [mesh.Spec.Refuse] takes them: the
// listener, route or call of the workload, the port that it calls, or the version of its proxy. None are known for a reason about the whole, or
// about what is no part of the specification, such as a flag.
func Paths(spec *mesh.Spec, workload mesh.Workload, reason string) []string {
	if said, ok := spec.ProxyOf(workload.Name); ok && said.Version != "" && strings.Contains(reason, " "+said.Version+" is older than ") {
		return []string{workload.Path() + ".proxy.version"}
	}
	entry := ""
	if found := aboutPort.FindStringSubmatch(reason); found != nil {
		port, _ := strconv.Atoi(found[2])
		route, _ := strconv.Atoi(found[3]) // 0: none is named
		switch {
		case workload.Kind == id.Gateway:
			entry = ofGateway(spec.Gateways[workload.Name], workload.Path(), port, route)
		case found[1] != "":
			entry = callOf(spec.Services[workload.Name], workload.Path(), port)
		default:
			entry = portOf(spec.Services[workload.Name], workload.Path(), port)
		}
	} else if found := aboutUpstream.FindStringSubmatch(reason); found != nil {
		port, _ := strconv.Atoi(found[2])
		called := mesh.Workload{Name: found[1], Kind: id.Service}
		entry = portOf(spec.Services[called.Name], called.Path(), port)
	}
	if entry == "" {
		return nil
	}
	if field := aboutField.FindStringSubmatch(reason); field != nil {
		return []string{entry + "." + field[1], entry}
	}
	return []string{entry}
}

// portOf is the path of a port of a service, empty when it has none of the number.
func portOf(service *mesh.Service, path string, port int) string {
	if service == nil {
		return ""
	}
	return entryOf(path+".ports", slices.IndexFunc(service.Ports, func(p mesh.Port) bool { return p.Port == port }))
}

// callOf is the path of the call that is dialled on a port.
func callOf(service *mesh.Service, path string, port int) string {
	if service == nil {
		return ""
	}
	return entryOf(path+".calls", slices.IndexFunc(service.Calls, func(c mesh.Call) bool { return c.Listen == port }))
}

// ofGateway is the path of a listener of a gateway, or of one of the routes that the listener has, by its number there.
func ofGateway(gateway *mesh.Gateway, path string, port, route int) string {
	if gateway == nil {
		return ""
	}
	i := slices.IndexFunc(gateway.Listen, func(l mesh.GatewayListener) bool { return l.Port == port })
	if i < 0 {
		return ""
	}
	for j, r := range gateway.Routes {
		if r.Listener == port || r.Listener == 0 && gateway.Listen[i].Protocol != mesh.TCP {
			if route--; route == 0 {
				return entryOf(path+".routes", j)
			}
		}
	}
	return entryOf(path+".listen", i)
}

// entryOf is the path of an entry of a list, empty when it has no such entry.
func entryOf(list string, i int) string {
	if i < 0 {
		return ""
	}
	return fmt.Sprintf("%s[%d]", list, i)
}
