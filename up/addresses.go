package up

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"syscall"

	"countersign.dev/mesh"
)

// Addresses says how instances get addresses on this machine.
type Addresses string

// The ways.
const (
	// AutoAddresses is OwnAddresses where the system has them, and else SharedAddress.
	AutoAddresses Addresses = "auto"
	// OwnAddresses gives each instance addresses of its own in 127.0.0.0/8, so that the specification's
	// ports stay as they are. Linux has them without further ado.
	OwnAddresses Addresses = "own"
	// SharedAddress puts everything on 127.0.0.1 and replaces every port by a free one.
	SharedAddress Addresses = "shared"
)

// The ports of what has no port in the specification, on addresses of its own.
const (
	serverPort = 8443
	adminPort  = 9901
)

var (
	// ErrPort says that a port of the specification cannot be bound on this machine.
	ErrPort = errors.New("a port cannot be bound")
	// errNoOwnAddresses says that the system has only 127.0.0.1.
	errNoOwnAddresses = errors.New("this system has no loopback addresses but 127.0.0.1")
)

// placement is where the parts of a mesh are: what allocate has put into the instances, and the rest.
type placement struct {
	server netip.AddrPort
	// blocks are the claimed networks, empty with SharedAddress.
	blocks []netip.Prefix
	// open gives the ports to those who will use them; it is called once, before the first of them
	// starts. release gives the claims back, at the end.
	open    func()
	release func()
}

// allocate gives the server and every instance its addresses. The blocks in prefer are tried first:
// those that an earlier run of the same state had.
func allocate(ctx context.Context, how Addresses, all []*instance, prefer []netip.Prefix) (*placement, error) {
	switch how {
	case SharedAddress:
		return allocateShared(ctx, all)
	case OwnAddresses:
		return allocateOwn(ctx, all, prefer)
	default:
		p, err := allocateOwn(ctx, all, prefer)
		if errors.Is(err, errNoOwnAddresses) {
			return allocateShared(ctx, all)
		}
		return p, err
	}
}

// allocateShared finds free ports on 127.0.0.1. They are held until open is called, so that no two
// parts get the same one.
func allocateShared(ctx context.Context, all []*instance) (_ *placement, err error) {
	var held []net.Listener
	letGo := func() {
		for _, listener := range held {
			listener.Close()
		}
	}
	defer func() {
		if err != nil {
			letGo()
		}
	}()
	var config net.ListenConfig
	free := func() (netip.AddrPort, error) {
		listener, err := config.Listen(ctx, "tcp4", "127.0.0.1:0")
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("%w: finding a free port on 127.0.0.1: %w", ErrPort, err)
		}
		held = append(held, listener)
		return netip.ParseAddrPort(listener.Addr().String())
	}
	p := &placement{open: letGo, release: func() {}}
	if p.server, err = free(); err != nil {
		return nil, err
	}
	for _, i := range all {
		i.shared, i.peers = true, p.server.Addr()
		if err := i.place(func(role, int) (netip.AddrPort, error) { return free() }); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// role is what an address of an instance is for.
type role int

const (
	inboundRole role = iota
	appRole
	outboundRole
	adminRole
)

// place asks for the address of everything that an instance binds.
func (i *instance) place(address func(r role, port int) (netip.AddrPort, error)) (err error) {
	i.inbound, i.app, i.outbound = map[int]netip.AddrPort{}, map[int]netip.AddrPort{}, map[int]netip.AddrPort{}
	for _, in := range i.plan().Inbound {
		if i.inbound[in.Port], err = address(inboundRole, in.Port); err != nil {
			return err
		}
	}
	for _, port := range i.appPorts() {
		if i.app[port], err = address(appRole, port); err != nil {
			return err
		}
	}
	for _, out := range i.plan().Outbound {
		if i.outbound[out.Listen], err = address(outboundRole, out.Listen); err != nil {
			return err
		}
	}
	i.admin, err = address(adminRole, adminPort)
	return err
}

// probe tells whether an address can be bound, by binding it for a moment.
func probe(ctx context.Context, address netip.AddrPort) error {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address.String())
	switch {
	case err == nil:
		return listener.Close()
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return errNoOwnAddresses
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: port %d needs a privilege that this user does not have; choose a port from 1024 on, or run as root", ErrPort, address.Port())
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w: %s is in use", errInUse, address)
	default:
		return fmt.Errorf("%w: %w", ErrPort, err)
	}
}

// errInUse says that somebody listens there already.
var errInUse = errors.New("the address is taken")

// expand replaces the variables in a text of run.command or run.env.
func (i *instance) expand(text string) (string, error) {
	return mesh.Expand(text, func(name string) (string, bool) {
		for _, variable := range i.service.Variables() {
			if variable.Name != name {
				continue
			}
			if variable.App {
				return i.app[variable.Port].String(), true
			}
			return i.outbound[variable.Port].String(), true
		}
		return "", false
	})
}
