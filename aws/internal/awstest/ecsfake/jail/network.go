//go:build linux

package jail

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// bridgeName is the interface of this process's own network namespace that all tasks hang on.
const bridgeName = "tasks"

// Network is a bridge with a private /16, on which this process has the first address. It is safe for
// concurrent use. It lives as long as the process: there is one.
type Network struct {
	index  int
	prefix netip.Prefix

	mu   sync.Mutex
	last netip.Addr
	made int
}

// NewNetwork makes the bridge with 10.0.0.1/16. Only a process inside of Enter's namespaces may; ErrUnavailable otherwise.
func NewNetwork() (*Network, error) {
	if !inside {
		return nil, ErrUnavailable
	}
	n := &Network{prefix: netip.MustParsePrefix("10.0.0.0/16")}
	n.last = n.prefix.Addr().Next()
	err := onThread(nil, func() error {
		if err := addBridge(bridgeName); err != nil {
			return fmt.Errorf("make the bridge %s: %w", bridgeName, err)
		}
		bridge, err := net.InterfaceByName(bridgeName)
		if err != nil {
			return fmt.Errorf("find the bridge %s: %w", bridgeName, err)
		}
		n.index = bridge.Index
		return addAddress(n.index, netip.PrefixFrom(n.last, n.prefix.Bits()))
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

// Gateway is this process's own address on the bridge.
func (n *Network) Gateway() netip.Addr { return n.prefix.Addr().Next() }

// Prefix is the range of all addresses.
func (n *Network) Prefix() netip.Prefix { return n.prefix }

// Address gives an address of the network that was never given before.
func (n *Network) Address() (netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	next := n.last.Next()
	if !n.prefix.Contains(next.Next()) {
		return netip.Addr{}, errors.New("all addresses of the network were given away")
	}
	n.last = next
	return next, nil
}

// AddHost gives this process another address on the bridge, for something that listens in it.
func (n *Network) AddHost() (netip.Addr, error) {
	address, err := n.Address()
	if err != nil {
		return netip.Addr{}, err
	}
	err = onThread(nil, func() error { return addAddress(n.index, netip.PrefixFrom(address, 32)) })
	if err != nil {
		return netip.Addr{}, fmt.Errorf("add the address %s to the bridge: %w", address, err)
	}
	return address, nil
}

// Join makes a network namespace with an address on the bridge.
func (n *Network) Join() (*Space, error) {
	address, err := n.Address()
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.made++
	name := fmt.Sprintf("task%d", n.made)
	n.mu.Unlock()
	space := &Space{Address: address}
	err = onThread(nil, func() error {
		home, err := openThreadNamespace()
		if err != nil {
			return err
		}
		defer home.Close()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		if space.namespace, err = openThreadNamespace(); err != nil {
			return err
		}
		if err := linkUp(1); err != nil {
			return fmt.Errorf("set the loopback interface up: %w", err)
		}
		return n.connect(space, name, home)
	})
	if err != nil {
		space.Close()
		return nil, fmt.Errorf("join %s to the bridge: %w", address, err)
	}
	return space, nil
}

// connect lays the wire between a namespace, in which the calling thread is, and the bridge at home.
func (n *Network) connect(space *Space, name string, home *os.File) error {
	if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("go home: %w", err)
	}
	if err := addPair(name, n.index, int(space.namespace.Fd())); err != nil {
		return fmt.Errorf("make a pair of interfaces: %w", err)
	}
	if err := unix.Setns(int(space.namespace.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the namespace: %w", err)
	}
	wire, err := net.InterfaceByName("eth0")
	if err != nil {
		return fmt.Errorf("find eth0: %w", err)
	}
	if err := linkUp(wire.Index); err != nil {
		return fmt.Errorf("set eth0 up: %w", err)
	}
	if err := addAddress(wire.Index, netip.PrefixFrom(space.Address, n.prefix.Bits())); err != nil {
		return fmt.Errorf("give eth0 its address: %w", err)
	}
	return addDefaultRoute(n.Gateway())
}

// Space is the network namespace of one task.
type Space struct {
	// Address is the task's address on the bridge.
	Address netip.Addr

	mu        sync.RWMutex // held for reading while somebody enters
	namespace *os.File
}

// Listen opens a TCP socket in the namespace that this process accepts from. An address outside of
// 127.0.0.0/8 is added to the loopback interface first, so that nobody else reaches it.
func (s *Space) Listen(ctx context.Context, address netip.AddrPort) (net.Listener, error) {
	var listener net.Listener
	err := s.inside(func() error {
		if !address.Addr().IsLoopback() {
			if err := addAddress(1, netip.PrefixFrom(address.Addr(), 32)); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("add %s: %w", address.Addr(), err)
			}
		}
		var err error
		listener, err = new(net.ListenConfig).Listen(ctx, "tcp4", address.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s in the task's network: %w", address, err)
	}
	return listener, nil
}

// Dial connects from inside of the namespace, as a process of the task would.
func (s *Space) Dial(ctx context.Context, address string) (net.Conn, error) {
	var conn net.Conn
	err := s.inside(func() error {
		var err error
		conn, err = new(net.Dialer).DialContext(ctx, "tcp4", address)
		return err
	})
	return conn, err
}

// inside calls a function on a thread that stands in the namespace.
func (s *Space) inside(f func() error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.namespace == nil {
		return errors.New("the task's network is gone")
	}
	return onThread(s.namespace, f)
}

// Close gives the namespace up; it is gone when its last process and socket are.
func (s *Space) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.namespace != nil {
		s.namespace.Close()
		s.namespace = nil
	}
}

// openThreadNamespace opens the network namespace of the calling thread.
func openThreadNamespace() (*os.File, error) {
	file, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	if err != nil {
		return nil, fmt.Errorf("open the thread's network namespace: %w", err)
	}
	return file, nil
}

// onThread calls a function on a thread of its own, in a network namespace (nil: this process's), and throws
// the thread away afterwards: whatever the function did to it concerns nobody else.
func onThread(namespace *os.File, f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if namespace != nil {
			if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
				result <- fmt.Errorf("enter a network namespace: %w", err)
				return
			}
		}
		result <- f()
	}()
	return <-result
}
