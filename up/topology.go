package up

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

// instance is one sidecar with its application, and where they are. After the addresses were allocated
// nothing of it changes but what is atomic.
type instance struct {
	name    string        // unique in the mesh: "colorteller-1"
	service *mesh.Service // nil at a gateway
	// planned is the Plan without endpoints; `mesh apply` replaces it.
	planned atomic.Pointer[mesh.Plan]
	// sidecar is `countersign proxy`, or where the certificate comes from a store `countersign init
	// --watch`, and then proxy is the NGINX or HAProxy beside it. Each is nil where there is none (yet); a
	// restart of the instance replaces the first two.
	sidecar, proxy, application atomic.Pointer[child]
	// restarting is held while that happens, and mender is what follows when it leaves the instance down.
	restarting sync.Mutex
	mender     atomic.Pointer[mender]

	inbound map[int]netip.AddrPort // by port: what the sidecar binds and advertises to peers
	// app and outbound are on one address where addresses are one's own: by the application's port,
	// and by the port that the application dials.
	app      map[int]netip.AddrPort
	outbound map[int]netip.AddrPort
	admin    netip.AddrPort
	// peers is the address of inbound, which the sidecar advertises.
	peers netip.Addr
	// loopback is the address of app and outbound; it is not valid when shared.
	loopback netip.Addr
	// runDir is where the proxy has its sockets when the certificate comes from a store.
	runDir string
	// shared tells that ports were replaced, so that the sidecar has to be told each of them.
	shared bool
}

// instances lists what `up` runs of a specification, in the order of the workloads' names.
func instances(spec *mesh.Spec) ([]*instance, error) {
	var all []*instance
	for _, workload := range spec.Workloads() {
		plan, err := spec.Compile(workload.Name)
		if err != nil {
			return nil, fmt.Errorf("compiling the plan of %s: %w", workload.Name, err)
		}
		service, count := spec.Services[workload.Name], 1
		if service != nil {
			count = service.Instances
		} else if gateway := spec.Gateways[workload.Name]; gateway != nil {
			count = gateway.Instances
		}
		for n := range max(count, 1) {
			i := &instance{name: workload.Name + "-" + strconv.Itoa(n+1), service: service}
			i.planned.Store(plan)
			all = append(all, i)
		}
	}
	return all, nil
}

// plan is the instance's Plan as the running specification has it, without endpoints.
func (i *instance) plan() *mesh.Plan { return i.planned.Load() }

// fromStore tells whether the certificate comes from a secret store. It does not change while the mesh runs.
func (i *instance) fromStore() bool { return i.plan().Delivery.FromStore() }

// engine is which proxy the sidecar is. It does not change while the mesh runs.
func (i *instance) engine() mesh.Engine { return i.plan().Proxy.Engine }

// children are the processes that there are, in the order in which they are stopped.
func (i *instance) children() []*child {
	var all []*child
	for _, p := range []*atomic.Pointer[child]{&i.sidecar, &i.proxy, &i.application} {
		if c := p.Load(); c != nil {
			all = append(all, c)
		}
	}
	return all
}

// runs tells whether `up` starts the application.
func (i *instance) runs() bool { return i.service != nil && i.service.Run != nil }

// labels are what the instance's processes are called in front of their lines.
func (i *instance) labels() []string {
	labels := []string{i.name}
	if i.fromStore() {
		labels = append(labels, i.name+" init", i.name+" "+string(i.engine()))
	}
	if i.runs() {
		labels = append(labels, i.name+" app")
	}
	return labels
}

// appPorts are the ports that the application listens on, in the order of the service's ports and
// each once: two ports of a service may lead to one of the application.
func (i *instance) appPorts() []int {
	if i.service == nil {
		return nil
	}
	var ports []int
	for _, port := range i.service.Ports {
		if !slices.Contains(ports, port.App) {
			ports = append(ports, port.App)
		}
	}
	return ports
}

// appAddresses are where the application listens, in the order of appPorts.
func (i *instance) appAddresses() []string {
	addresses := []string{}
	for _, port := range i.appPorts() {
		addresses = append(addresses, i.app[port].String())
	}
	return addresses
}

// binds are the `--bind` flags of the sidecar: empty where its addresses are its own and every port
// is the specification's.
func (i *instance) binds() []string {
	if !i.shared {
		return nil
	}
	var binds []string
	for _, set := range []struct {
		name  string
		ports map[int]netip.AddrPort
	}{{"inbound", i.inbound}, {"app", i.app}, {"outbound", i.outbound}} {
		for port, address := range set.ports {
			binds = append(binds, fmt.Sprintf("%s/%d=%s", set.name, port, address))
		}
	}
	slices.Sort(binds)
	return binds
}

// stopOrder groups the instances by when they are stopped: a workload after everybody who calls it,
// so that nobody loses what they call while they still finish their own work. Workloads that call one
// another in a circle are stopped together.
func stopOrder(all []*instance) [][]*instance {
	callers := map[string]map[string]bool{} // by service
	left := map[string][]*instance{}
	for _, i := range all {
		name := i.plan().Workload.Name
		left[name] = append(left[name], i)
		for _, upstream := range i.plan().Upstreams {
			if upstream.Service == name {
				continue
			}
			if callers[upstream.Service] == nil {
				callers[upstream.Service] = map[string]bool{}
			}
			callers[upstream.Service][name] = true
		}
	}
	var order [][]*instance
	for len(left) > 0 {
		var names []string
		for name := range left {
			if !slices.ContainsFunc(keys(callers[name]), func(caller string) bool { return left[caller] != nil }) {
				names = append(names, name)
			}
		}
		if len(names) == 0 { // only circles, and what they call, are left
			names = keys(left)
		}
		slices.Sort(names)
		var group []*instance
		for _, name := range names {
			group = append(group, left[name]...)
		}
		for _, name := range names {
			delete(left, name)
		}
		order = append(order, group)
	}
	return order
}

func keys[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	return names
}

// pids are the processes of an instance.
type pids struct{ sidecar, engine, app int }

// pids are those of the moment.
func (i *instance) pids() pids {
	pid := pids{sidecar: i.sidecar.Load().lastPID(), engine: i.proxy.Load().lastPID(), app: i.application.Load().lastPID()}
	if pid.engine == 0 {
		pid.engine = supervised(i)
	}
	return pid
}

// describe writes an instance as the run document has it.
func (i *instance) describe(state string, pid pids) Workload {
	w := Workload{
		Name:      i.plan().Workload.Name,
		Kind:      i.plan().Workload.Kind,
		Instance:  i.name,
		PID:       pid.sidecar,
		Admin:     "http://" + i.admin.String(),
		Identity:  i.plan().Workload.Identity,
		State:     state,
		Engine:    i.engine(),
		EnginePID: pid.engine,
		Delivery:  i.plan().Delivery.Type,
		Inbound:   []Inbound{},
		Outbound:  []Outbound{},
	}
	for _, in := range i.plan().Inbound {
		w.Inbound = append(w.Inbound, Inbound{in.Name, i.inbound[in.Port].String(), in.Protocol, in.TLS, in.ClientAuth})
	}
	for _, out := range i.plan().Outbound {
		address, known := i.outbound[out.Listen]
		if !known { // a call that `mesh apply` added
			address = netip.AddrPortFrom(i.loopback, uint16(out.Listen))
		}
		if upstream, ok := i.plan().Upstream(out.Upstream); ok && address.IsValid() {
			w.Outbound = append(w.Outbound, Outbound{upstream.Service, upstream.Port, address.String(), out.Protocol})
		}
	}
	if w.Kind == id.Service {
		w.App = &App{PID: pid.app, Addresses: i.appAddresses()}
	}
	return w
}
