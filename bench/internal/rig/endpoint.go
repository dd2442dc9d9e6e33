package rig

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
)

// endpoint listens where a chain's connecting side dials for TCP.
func (r *Rig) endpoint(ctx context.Context, c *Chain, far Far) error {
	certificate, pool, err := far.Identity.Load()
	if err != nil {
		return err
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
		SessionTicketsDisabled: true, CurvePreferences: far.Groups,
	}
	listen := net.ListenConfig{}
	var listener net.Listener
	err = await(ctx, "the address "+c.PeerTCP+" being free", func() error {
		listener, err = listen.Listen(ctx, "tcp", c.PeerTCP)
		return err
	})
	if err != nil {
		return fmt.Errorf("an endpoint without tickets: %w", err)
	}
	c.closers = append(c.closers, func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // closed, or of no use any more: the load then says so
			}
			go echo(tls.Server(conn, config))
		}
	}()
	return nil
}

// echo sends back what comes until the peer closes.
func echo(conn net.Conn) {
	defer conn.Close()
	// A small buffer: thousands of these are idle at once.
	buffer := make([]byte, 512)
	for {
		n, err := conn.Read(buffer)
		if err != nil {
			return
		}
		if _, err := conn.Write(buffer[:n]); err != nil {
			return
		}
	}
}
