package up

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// bound lists everything that a placement wants bound, by what it is for.
func bound(p *placement, all []*instance) map[string]netip.AddrPort {
	list := map[string]netip.AddrPort{"server": p.server}
	for _, i := range all {
		list[i.name+" admin"] = i.admin
		for set, ports := range map[string]map[int]netip.AddrPort{"inbound": i.inbound, "app": i.app, "outbound": i.outbound} {
			for port, address := range ports {
				list[fmt.Sprintf("%s %s %d", i.name, set, port)] = address
			}
		}
	}
	return list
}

// listenAll binds every address, which shows that no two are the same and that all are free.
func listenAll(t *testing.T, list map[string]netip.AddrPort) {
	t.Helper()
	for what, address := range list {
		if !address.Addr().IsLoopback() || address.Port() == 0 {
			t.Errorf("%s is %s, want a port on loopback", what, address)
			continue
		}
		listener, err := net.Listen("tcp", address.String())
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		t.Cleanup(func() { listener.Close() })
	}
}

func TestSharedAddress(t *testing.T) {
	all, err := instances(specification(t, twoPorts))
	if err != nil {
		t.Fatal(err)
	}
	p, err := allocate(t.Context(), SharedAddress, all, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.release()
	for _, i := range all {
		if !i.shared || i.peers != netip.MustParseAddr("127.0.0.1") || i.loopback.IsValid() {
			t.Errorf("%s is at %s, loopback %s, shared %v", i.name, i.peers, i.loopback, i.shared)
		}
	}
	p.open()
	listenAll(t, bound(p, all))
}

// ownAddresses allocates, or skips the test where the system has only 127.0.0.1.
func ownAddresses(t *testing.T, all []*instance, prefer ...netip.Prefix) *placement {
	t.Helper()
	p, err := allocate(t.Context(), OwnAddresses, all, prefer)
	if errors.Is(err, errNoOwnAddresses) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.release)
	return p
}

func TestOwnAddresses(t *testing.T) {
	spec := specification(t, twoPorts)
	all, err := instances(spec)
	if err != nil {
		t.Fatal(err)
	}
	p := ownAddresses(t, all)
	for what, address := range bound(p, all) {
		if strings.HasPrefix(address.String(), "127.0.") {
			t.Errorf("%s is on %s, a network that others use", what, address)
		}
	}
	front := all[1]
	if front.inbound[9080].Port() != 9080 || front.app[8080].Port() != 8080 || front.outbound[7100].Port() != 7100 {
		t.Errorf("the ports are not the specification's: %v %v %v", front.inbound, front.app, front.outbound)
	}
	if front.app[8080].Addr() != front.outbound[7100].Addr() || front.app[8080].Addr() == front.peers {
		t.Errorf("application %v and outbound %v have to share an address, and peers connect to another, %s", front.app, front.outbound, front.peers)
	}

	// A second mesh of the same file gets others, although it asks for the same.
	again, err := instances(spec)
	if err != nil {
		t.Fatal(err)
	}
	second := ownAddresses(t, again, p.blocks...)
	if second.blocks[0] == p.blocks[0] {
		t.Errorf("both have %s", p.blocks[0])
	}
	listenAll(t, bound(p, all))
	listenAll(t, bound(second, again))

	// When the first has ended, a third gets what it asks for.
	p.release()
	third, err := allocate(t.Context(), OwnAddresses, again, p.blocks)
	if err != nil {
		t.Fatal(err)
	}
	defer third.release()
	if third.blocks[0] == p.blocks[0] {
		t.Error("addresses that are still bound were given away")
	}
}

func TestAddressesAreKept(t *testing.T) {
	all, err := instances(exampleSpec(t, "colorapp/mesh.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	first := ownAddresses(t, all)
	before := bound(first, all)
	first.release()
	second := ownAddresses(t, all, first.blocks...)
	if after := bound(second, all); fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("the second run is on %v, the first was on %v", after, before)
	}
}

// TestManyInstances: more instances than a block has addresses for.
func TestManyInstances(t *testing.T) {
	all, err := instances(specification(t, `
mesh: many
services:
  one: {ports: [{port: 9080, protocol: http}], instances: 100}
  two: {ports: [{port: 9081, protocol: http}], calls: [{service: one}], instances: 70}
`))
	if err != nil {
		t.Fatal(err)
	}
	p := ownAddresses(t, all)
	if len(p.blocks) != 3 {
		t.Errorf("170 instances have the blocks %v, want 3 of them", p.blocks)
	}
	seen := map[netip.AddrPort]string{}
	for what, address := range bound(p, all) {
		if other, ok := seen[address]; ok {
			t.Errorf("%s and %s are both %s", what, other, address)
		}
		seen[address] = what
	}
}

// TestPortTakenEverywhere: a listener on all addresses excludes every one of ours, and is named.
func TestPortTakenEverywhere(t *testing.T) {
	listener, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	port := listener.Addr().(*net.TCPAddr).Port
	all, err := instances(specification(t, fmt.Sprintf("mesh: m\nservices:\n  a: {ports: [{port: %d, protocol: tcp}]}\n", port)))
	if err != nil {
		t.Fatal(err)
	}
	_, err = allocate(t.Context(), OwnAddresses, all, nil)
	if errors.Is(err, errNoOwnAddresses) {
		t.Skip(err)
	}
	if !errors.Is(err, ErrPort) || !strings.Contains(err.Error(), fmt.Sprint(port)) || !strings.Contains(err.Error(), "choose another port") {
		t.Errorf("allocate = %v, want an ErrPort that names %d and the way out", err, port)
	}
}
