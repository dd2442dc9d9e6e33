package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"countersign.dev/cmd/countersign/internal/flags"
	"countersign.dev/mesh"
)

// Where no server says which instances there are, a deployment does: each called port is behind an address that stays,
// such as that of a balancer.

// endpoint is where a called port is reached.
type endpoint struct{ flags.Endpoint }

// endpoints reads --endpoint, and refuses what the Plan does not call.
func (c initEngineFlags) endpoints(plan *mesh.Plan) ([]endpoint, error) {
	var all []endpoint
	for _, text := range c.Endpoint {
		read, err := flags.ParseEndpoint(text)
		if err != nil {
			return nil, usagef("--endpoint %.200q: %w", text, err)
		}
		e := endpoint{read}
		if !slices.ContainsFunc(plan.Upstreams, e.of) {
			return nil, usagef("--endpoint %s: %s does not call the port %d of %s; it calls %s", text, plan.Workload.Name, e.Port, e.Service, called(plan))
		}
		if slices.Contains(all, e) {
			return nil, usagef("--endpoint %s is given twice", text)
		}
		all = append(all, e)
	}
	return all, nil
}

// of tells whether an upstream is what the endpoint is of.
func (e endpoint) of(u mesh.Upstream) bool { return u.Service == e.Service && u.Port == e.Port }

// called names what a workload calls.
func called(plan *mesh.Plan) string {
	var all []string
	for _, u := range plan.Upstreams {
		all = append(all, u.Service+":"+strconv.Itoa(u.Port))
	}
	return cmp.Or(strings.Join(all, ", "), "nobody")
}

const (
	// maxAddresses bounds what one name may stand for.
	maxAddresses = 64
	// lookups is how often a name is looked up that could not be for a moment, and lookupPause is the time in between.
	lookups     = 5
	lookupPause = time.Second
)

// resolver looks names up: [net.Resolver].
type resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// place gives a copy of a Plan the instances that endpoints name: all addresses of a name. Each endpoint is of one of its
// upstreams.
func place(ctx context.Context, names resolver, plan *mesh.Plan, endpoints []endpoint) (*mesh.Plan, error) {
	placed := *plan
	placed.Upstreams = slices.Clone(plan.Upstreams)
	for _, e := range endpoints {
		addresses, err := e.resolve(ctx, names)
		if err != nil {
			return nil, fmt.Errorf("--endpoint %s:%d=%s: %w", e.Service, e.Port, net.JoinHostPort(e.Host, strconv.Itoa(int(e.At))), err)
		}
		u := &placed.Upstreams[slices.IndexFunc(placed.Upstreams, e.of)]
		u.Endpoints = slices.Clone(u.Endpoints)
		for _, address := range addresses {
			at := netip.AddrPortFrom(address, e.At)
			if !slices.ContainsFunc(u.Endpoints, func(other mesh.Endpoint) bool { return other.Address == at }) {
				u.Endpoints = append(u.Endpoints, mesh.Endpoint{Instance: e.Host, Address: at})
			}
		}
	}
	return &placed, nil
}

// place gives the Plan the instances that --endpoint names.
func (w *writer) place(ctx context.Context) (err error) {
	if w.plan == nil {
		return nil
	}
	w.plan, err = place(ctx, net.DefaultResolver, w.read, w.endpoints)
	return err
}

// resolve looks the name up. The addresses come in order, so that the configuration changes only when they do.
func (e endpoint) resolve(ctx context.Context, names resolver) ([]netip.Addr, error) {
	if address, err := netip.ParseAddr(e.Host); err == nil {
		return []netip.Addr{address.Unmap()}, nil
	}
	var addresses []netip.Addr
	var err error
	for try := range lookups {
		if try > 0 {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(lookupPause):
			}
		}
		addresses, err = names.LookupNetIP(ctx, "ip", e.Host)
		if failed, ok := errors.AsType[*net.DNSError](err); err == nil || !ok || !failed.Temporary() {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w; is the name right, and is its zone one that this network sees?", err)
	}
	for i := range addresses {
		addresses[i] = addresses[i].Unmap()
	}
	addresses = slices.DeleteFunc(addresses, func(a netip.Addr) bool { return a.IsUnspecified() || a.Zone() != "" })
	slices.SortFunc(addresses, netip.Addr.Compare)
	addresses = slices.Compact(addresses)
	switch {
	case len(addresses) == 0:
		return nil, errors.New("the name has no address; is it that of the balancer before the service?")
	case len(addresses) > maxAddresses:
		return nil, fmt.Errorf("the name has %d addresses, and at most %d are taken", len(addresses), maxAddresses)
	}
	return addresses, nil
}
