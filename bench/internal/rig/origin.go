package rig

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// What the origin answers over HTTP, and its gRPC method.
const (
	pathSmall  = "/128"
	PathSmall  = pathSmall // 128 bytes
	PathMiddle = "/16k"    // 16 KiB
	PathLarge  = "/1m"     // 1 MiB
	Method     = "/bench.Bench/Echo"
)

// SmallSize is the size of the body at PathSmall.
const SmallSize = 128

// The first byte of a TCP connection says what the origin does with the rest.
const (
	TCPCount = 'c' // counts and drops it
	TCPEcho  = 'e' // sends it back
)

// Origin is the application behind every receiving sidecar: NGINX with fixed bodies, a gRPC server,
// and a TCP server. The latter two run in this process.
type Origin struct {
	HTTP, GRPC, TCP string // addresses

	nginx    *Child
	rpc      *grpc.Server
	tcp      net.Listener
	received atomic.Int64
}

// Received is how many bytes came over TCPCount connections so far.
func (o *Origin) Received() int64 { return o.received.Load() }

func (r *Rig) startOrigin(ctx context.Context) (*Origin, error) {
	o := &Origin{}
	if err := r.startBodies(ctx, o); err != nil {
		return o, err
	}
	listen := net.ListenConfig{}
	rpc, err := listen.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return o, err
	}
	o.GRPC = rpc.Addr().String()
	o.rpc = grpc.NewServer()
	o.rpc.RegisterService(&service, nil)
	go func() { _ = o.rpc.Serve(rpc) }() // it ends with close
	if o.tcp, err = listen.Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
		return o, err
	}
	o.TCP = o.tcp.Addr().String()
	go o.serveTCP()
	return o, nil
}

// startBodies starts NGINX with the fixed bodies.
func (r *Rig) startBodies(ctx context.Context, o *Origin) error {
	dir, err := r.directory("origin")
	if err != nil {
		return err
	}
	for path, size := range map[string]int{PathMiddle: 16 << 10, PathLarge: 1 << 20} {
		if err := os.WriteFile(filepath.Join(dir, path[1:]), []byte(strings.Repeat("x", size)), 0o600); err != nil {
			return err
		}
	}
	addresses, err := Ports(1)
	if err != nil {
		return err
	}
	o.HTTP = addresses[0]
	config := originConfig{nginxBase: r.nginxBase(dir), HTTP: o.HTTP, Small: strings.Repeat("x", SmallSize)}
	o.nginx, err = r.nginx(ctx, "origin", "nginx-origin.conf", dir, config)
	if err != nil {
		return err
	}
	return accepting(ctx, o.nginx, o.HTTP)
}

func (o *Origin) close() {
	if o.rpc != nil {
		o.rpc.Stop()
	}
	if o.tcp != nil {
		o.tcp.Close()
	}
}

// service is the gRPC application: one unary method that answers with what it was sent.
var service = grpc.ServiceDesc{
	ServiceName: "bench.Bench",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{
		MethodName: "Echo",
		Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var message wrapperspb.BytesValue
			err := decode(&message)
			return &message, err
		},
	}},
}

func (o *Origin) serveTCP() {
	for {
		conn, err := o.tcp.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // no descriptors are left; some will be
			continue
		}
		go o.serve(conn)
	}
}

func (o *Origin) serve(conn net.Conn) {
	defer conn.Close()
	first := make([]byte, 1)
	if _, err := io.ReadFull(conn, first); err != nil {
		return
	}
	switch first[0] {
	case TCPCount:
		buffer := make([]byte, 256<<10)
		for {
			n, err := conn.Read(buffer)
			o.received.Add(int64(n))
			if err != nil {
				return
			}
		}
	case TCPEcho:
		echo(conn)
	}
}
