package up

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
)

// A block is 127.A.B.0/24: the server is on .1 of the first, and then come three addresses for each
// instance, one for inbound, one for the application and the outbound listeners, one for the admin
// listener.
const (
	perInstance       = 3
	instancesPerBlock = (254 - 1) / perInstance
	// blockAttempts bounds how many blocks are tried before a port counts as taken everywhere.
	blockAttempts = 16
)

// allocateOwn claims as many blocks as the instances need.
func allocateOwn(ctx context.Context, all []*instance, prefer []netip.Prefix) (*placement, error) {
	p := &placement{open: func() {}}
	var claims []net.Listener
	p.release = func() {
		for _, claim := range claims {
			claim.Close()
		}
	}
	rest, needServer := all, true
	var last error
	for attempt := 0; len(rest) > 0 || needServer; attempt++ {
		if attempt >= blockAttempts+len(prefer) {
			p.release()
			return nil, fmt.Errorf("%w: %w, and so it was on every loopback address that was tried: a process that listens on that port on all addresses excludes ours; stop it (ss -ltnp names it), or choose another port", ErrPort, last)
		}
		block := randomBlock()
		if attempt < len(prefer) {
			block = prefer[attempt]
		}
		claim, err := claimBlock(ctx, block)
		if err != nil { // another `up` has it
			last = err
			continue
		}
		here := rest[:min(len(rest), instancesPerBlock)]
		switch err := fill(ctx, p, block, here, needServer); {
		case errors.Is(err, errInUse):
			claim.Close()
			last = err
			continue
		case err != nil:
			claim.Close()
			p.release()
			return nil, err
		}
		claims = append(claims, claim)
		p.blocks = append(p.blocks, block)
		rest, needServer = rest[len(here):], false
	}
	return p, nil
}

// randomBlock stays clear of the low networks, where other programs have their habits (127.0.0.53,
// 127.0.1.1).
func randomBlock() netip.Prefix {
	a, b := byte(16+rand.IntN(240)), byte(rand.IntN(256)) //nolint:gosec // it has to be different, not secret
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{127, a, b, 0}), 24)
}

// claimBlock takes a block for this process. The claim is a UNIX socket in the abstract name space: it
// leaves no file, ends with the process, however that ends, and is seen exactly where the addresses
// are, in the network name space.
func claimBlock(ctx context.Context, block netip.Prefix) (net.Listener, error) {
	var config net.ListenConfig
	claim, err := config.Listen(ctx, "unix", "@countersign-up/"+block.String())
	if err != nil {
		return nil, fmt.Errorf("claiming the addresses %s: %w", block, err)
	}
	return claim, nil
}

// fill places the instances, and the server when it has no place yet, in a block, and sees that every
// port can be bound.
func fill(ctx context.Context, p *placement, block netip.Prefix, here []*instance, withServer bool) error {
	next := block.Addr().Next()
	take := func() netip.Addr {
		address := next
		next = next.Next()
		return address
	}
	server := take()
	if withServer {
		p.server = netip.AddrPortFrom(server, serverPort)
		if err := probe(ctx, p.server); err != nil {
			return err
		}
	}
	for _, i := range here {
		addresses := map[role]netip.Addr{inboundRole: take(), appRole: take(), adminRole: take()}
		addresses[outboundRole] = addresses[appRole]
		i.peers, i.loopback = addresses[inboundRole], addresses[appRole]
		err := i.place(func(r role, port int) (netip.AddrPort, error) {
			address := netip.AddrPortFrom(addresses[r], uint16(port))
			return address, probe(ctx, address)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
