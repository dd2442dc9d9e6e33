package proxy

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strconv"

	"countersign.dev/mesh"
)

// app is the own application's port: plaintext on loopback.
type app struct {
	address string
	h1      *http.Transport // nil where the application speaks HTTP/2, or bytes
	h2      *pool           // nil where it does not speak HTTP/2
}

func (p *Proxy) newApp(port int, protocol mesh.Protocol) *app {
	a := &app{address: p.appAddress(port)}
	switch protocol {
	case mesh.HTTP:
		a.h1 = http1Transport(func(ctx context.Context) (net.Conn, error) { return dialApp(ctx, a.address) })
	case mesh.HTTP2, mesh.GRPC:
		a.h2 = newPool(p.ctx, func(ctx context.Context, _ func()) (net.Conn, *upconn, error) {
			c, err := dialApp(ctx, a.address)
			return c, nil, err
		})
	case mesh.TCP:
	}
	return a
}

// appAddress is where the application listens for the traffic of one of its ports.
func (p *Proxy) appAddress(port int) string {
	if bind, ok := p.cfg.Binds["app/"+strconv.Itoa(port)]; ok {
		return bind
	}
	return netip.AddrPortFrom(p.cfg.AppAddress, uint16(port)).String()
}

// retire lets the connections end when they are idle.
func (a *app) retire() {
	if a.h1 != nil {
		a.h1.CloseIdleConnections()
	}
	if a.h2 != nil {
		a.h2.retire()
	}
}
