package server

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"countersign.dev/durable"
)

// ErrListen says that an address or a socket cannot be listened on.
var ErrListen = errors.New("cannot listen")

// Bounds of connections. One that has not shown a member's certificate yet holds its place only until
// others need it, so that a crowd that never speaks, or speaks of nothing, keeps nobody out for long.
const (
	maxStrangers   = 512
	maxConnections = 8192
)

// connections counts those of the TLS listener by [http.Server.ConnState].
type connections struct {
	mu        sync.Mutex
	all       int
	strangers *list.List // of net.Conn, the oldest first
	places    map[net.Conn]*list.Element
}

func newConnections() *connections {
	return &connections{strangers: list.New(), places: make(map[net.Conn]*list.Element)}
}

// observe closes the oldest stranger when there are too many of them, or of all.
func (c *connections) observe(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew:
		c.all++
		c.places[conn] = c.strangers.PushBack(conn)
		if c.strangers.Len() > maxStrangers || c.all > maxConnections {
			c.drop(c.strangers.Front())
		}
	case http.StateClosed, http.StateHijacked:
		c.forget(conn)
		c.all--
	default:
	}
}

// drop closes a stranger's connection. The caller holds mu.
func (c *connections) drop(place *list.Element) {
	conn, ok := place.Value.(net.Conn)
	if !ok {
		return
	}
	c.forget(conn)
	if secured, ok := conn.(*tls.Conn); ok {
		conn = secured.NetConn() // without the farewell of TLS, which would wait for the stranger
	}
	conn.Close()
}

// forget takes a connection off the list of strangers. The caller holds mu.
func (c *connections) forget(conn net.Conn) {
	if place := c.places[conn]; place != nil {
		c.strangers.Remove(place)
		delete(c.places, conn)
	}
}

// connectionKey finds the connection of a request in its context.
type connectionKey struct{}

// remember puts the connection into the context of its requests.
func (c *connections) remember(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, conn)
}

// known notes that a request came from a member.
func (c *connections) known(ctx context.Context) {
	conn, ok := ctx.Value(connectionKey{}).(net.Conn)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(conn)
}

// listenTLS binds the address of the agents' listener.
func listenTLS(ctx context.Context, address string) (net.Listener, netip.AddrPort, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, netip.AddrPort{}, fmt.Errorf("%w on %s: another program listens there; stop it or give another --listen: %w", ErrListen, address, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, netip.AddrPort{}, fmt.Errorf("%w on %s: this machine has no such address: %w", ErrListen, address, err)
	case err != nil:
		return nil, netip.AddrPort{}, fmt.Errorf("%w on %s: %w", ErrListen, address, err)
	}
	bound, err := netip.ParseAddrPort(listener.Addr().String())
	if err != nil {
		return nil, netip.AddrPort{}, errors.Join(fmt.Errorf("%w on %s: %w", ErrListen, address, err), listener.Close())
	}
	return listener, bound, nil
}

// maxSocketPath is the longest path that the system's sockaddr_un takes: 107 bytes on Linux, 103 on
// the BSDs and macOS.
var maxSocketPath = len(syscall.RawSockaddrUnix{}.Path) - 1

// listenSocket makes the administrator's socket, which nobody but this user can connect to. A socket
// that a dead server has left is replaced; one that answers is not.
func listenSocket(ctx context.Context, path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("%w on the socket %s: its path has %d bytes, and this system allows %d; give a shorter --socket",
			ErrListen, path, len(path), maxSocketPath)
	}
	if err := durable.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("%w on the socket %s: %w", ErrListen, path, err)
	}
	if err := clearSocket(ctx, path); err != nil {
		return nil, err
	}
	listener, err := durable.ListenPrivately(path)
	if err != nil {
		return nil, fmt.Errorf("%w on the socket %s: %w", ErrListen, path, err)
	}
	return listener, nil
}

// clearSocket removes a socket that nobody answers on.
func clearSocket(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w on the socket %s: %w", ErrListen, path, err)
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%w on the socket %s: there is something that is not a socket; move it away or give another --socket", ErrListen, path)
	}
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
		return fmt.Errorf("%w on the socket %s: another server answers there; stop it or give another --socket", ErrListen, path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w on the socket %s: %w", ErrListen, path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w on the socket %s: %w", ErrListen, path, err)
	}
	return nil
}
