// Package example knows the small applications of the example meshes: what they answer, and nothing
// about certificates or meshes, because an application behind a sidecar need not.
//
// Each application is a function that serves until its context ends and then finishes what runs. The
// Color App is [Colorteller]; the shop is [Storefront] (HTTP), which calls [Catalog] (gRPC), which
// calls [Stock] (lines over TCP). The payments are [Checkout] (HTTP) and [Terminal] (lines over TCP), which
// both call [Ledger] (gRPC). [Write] writes the specifications.
package example

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
)

// stopTimeout bounds how long an application finishes what runs after it was told to stop.
const stopTimeout = 5 * time.Second

// listen opens the application's listener on addr, a host:port.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("opening the application's listener: %w; give another address with --listen", err)
	}
	return listener, nil
}

// serveGRPC answers gRPC until ctx ends; register is given the address that it listens on.
func serveGRPC(ctx context.Context, addr string, register func(s *grpc.Server, instance string), log *slog.Logger) error {
	listener, err := listen(ctx, addr)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	register(server, listener.Addr().String())
	log.InfoContext(ctx, "serving", "address", listener.Addr().String())
	stop := context.AfterFunc(ctx, func() {
		cut := time.AfterFunc(stopTimeout, server.Stop)
		defer cut.Stop()
		server.GracefulStop()
	})
	defer stop()
	// Serve waits for GracefulStop once that has begun.
	if err := server.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serving gRPC on %s: %w", addr, err)
	}
	return nil
}

// serveHTTP answers HTTP/1.1, and HTTP/2 to clients that know it beforehand, until ctx ends.
func serveHTTP(ctx context.Context, addr string, handler http.Handler, log *slog.Logger) error {
	listener, err := listen(ctx, addr)
	if err != nil {
		return err
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: handler, Protocols: &protocols, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	log.InfoContext(ctx, "serving", "address", listener.Addr().String())
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		stopped <- server.Shutdown(deadline)
	})
	if err := server.Serve(listener); err != nil && (stop() || ctx.Err() == nil) {
		return fmt.Errorf("serving HTTP on %s: %w", addr, err)
	}
	if err := <-stopped; err != nil {
		return fmt.Errorf("finishing the requests that ran: %w", err)
	}
	return nil
}
