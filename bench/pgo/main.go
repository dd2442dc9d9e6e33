// Command pgo makes the profile that the release is optimized by (https://go.dev/doc/pgo): it runs two sidecars
// of package proxy inside this process, lets the load of the benchmark pass through them, and writes what the
// processor did meanwhile.
//
//	go run ./bench/pgo
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"runtime/pprof"
	"syscall"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"countersign.dev/bench/internal/load"
	"countersign.dev/bench/internal/rig"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/proxy"
)

func main() {
	out := flag.String("out", "cmd/countersign/default.pgo", "where the profile is written")
	duration := flag.Duration("duration", 10*time.Second, "of each kind of load")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *out, *duration)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "pgo:", err)
		os.Exit(1)
	}
}

// run builds two sidecars, loads them, and writes the profile when all went well.
func run(ctx context.Context, out string, duration time.Duration) (err error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	r, err := rig.New(ctx, log, "")
	if r != nil {
		defer func() { err = errors.Join(err, r.Close()) }()
	}
	if err != nil {
		return err
	}
	chain, closeChain, err := start(ctx, r)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeChain()) }()
	// A profile that is there is replaced by a whole one or not at all.
	file, err := os.Create(out + ".new")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	if err := pprof.StartCPUProfile(file); err != nil {
		return errors.Join(err, file.Close())
	}
	err = drive(ctx, log, chain, duration)
	pprof.StopCPUProfile()
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	log.InfoContext(ctx, "written", "file", out)
	return os.Rename(file.Name(), out)
}

// start runs the sidecars of both services of the rig's specification, without a control plane.
func start(ctx context.Context, r *rig.Rig) (c *rig.Chain, closeAll func() error, err error) {
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Directory: r.Dir, Content: rig.Specification("")}})
	if err != nil {
		return nil, nil, err
	}
	addresses, err := rig.Ports(6)
	if err != nil {
		return nil, nil, err
	}
	o := r.Origin
	c = &rig.Chain{HTTP: addresses[0], GRPC: addresses[1], TCP: addresses[2]}
	bind := func(side string, http, grpc, tcp string) map[string]string {
		return map[string]string{
			fmt.Sprintf("%s/%d", side, rig.MeshHTTP): http, fmt.Sprintf("%s/%d", side, rig.MeshGRPC): grpc, fmt.Sprintf("%s/%d", side, rig.MeshTCP): tcp,
		}
	}
	inbound := bind("inbound", addresses[3], addresses[4], addresses[5])
	for name, address := range bind("app", o.HTTP, o.GRPC, o.TCP) {
		inbound[name] = address
	}
	endpoints := map[int]string{rig.MeshHTTP: addresses[3], rig.MeshGRPC: addresses[4], rig.MeshTCP: addresses[5]}
	var running []*proxy.Proxy
	closeAll = func() error {
		var errs []error
		for _, p := range running {
			shutdown, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			errs = append(errs, p.Shutdown(shutdown))
			cancel()
		}
		return errors.Join(errs...)
	}
	for _, s := range []struct {
		workload string
		identity rig.Identity
		binds    map[string]string
	}{{"server", r.Server, inbound}, {"client", r.Client, bind("outbound", c.HTTP, c.GRPC, c.TCP)}} {
		p, err := sidecar(spec, s.workload, s.identity, s.binds, endpoints) //nolint:contextcheck // Apply binds sockets by itself
		if p != nil {
			running = append(running, p)
		}
		if err != nil {
			return nil, nil, errors.Join(err, closeAll())
		}
	}
	return c, closeAll, nil
}

// sidecar is one data plane with its Plan in force.
func sidecar(spec *mesh.Spec, workload string, files rig.Identity, binds map[string]string, endpoints map[int]string) (*proxy.Proxy, error) {
	var texts [3][]byte
	for i, path := range []string{files.Chain, files.Key, files.CA} {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		texts[i] = text
	}
	identity, err := mtls.LoadIdentity(texts[0], texts[1], texts[2])
	if err != nil {
		return nil, err
	}
	plan, err := spec.Compile(workload)
	if err != nil {
		return nil, err
	}
	for i := range plan.Upstreams {
		upstream := &plan.Upstreams[i]
		address, err := netip.ParseAddrPort(endpoints[upstream.Port])
		if err != nil {
			return nil, err
		}
		upstream.Endpoints = []mesh.Endpoint{{Instance: upstream.Service + "-1", Address: address}}
	}
	p, err := proxy.New(proxy.Config{
		Source: mtls.NewStatic(identity), Address: netip.MustParseAddr("127.0.0.1"), Instance: workload + "-1", Binds: binds,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	return p, p.Apply(plan)
}

// drive lets one kind of load after the other pass. Small requests, which cost the most of what a mesh
// costs, are the most of it.
func drive(ctx context.Context, log *slog.Logger, c *rig.Chain, duration time.Duration) error {
	wrk := func(path string, connections int) func() error {
		return func() error {
			_, err := load.Wrk{URL: "http://" + c.HTTP + path, Connections: connections}.Run(ctx, duration)
			return err
		}
	}
	for _, kind := range []struct {
		name string
		run  func() error
	}{
		{"128 B, 64 connections", wrk(rig.PathSmall, 64)},
		{"128 B, 512 connections", wrk(rig.PathSmall, 512)},
		{"16 KiB", wrk(rig.PathMiddle, 64)},
		{"1 MiB", wrk(rig.PathLarge, 4)},
		{"gRPC", func() error {
			_, err := load.GRPC{
				URL: "http://" + c.GRPC + rig.Method, Connections: 16, Streams: 4, Message: wrapperspb.Bytes(make([]byte, rig.SmallSize)),
			}.Run(ctx, duration)
			return err
		}},
		{"new connections", func() error {
			_, err := load.Connections(ctx, load.Port{Address: c.TCP}, duration/2, func() load.Dial { return load.Plain })
			return err
		}},
	} {
		log.InfoContext(ctx, "loading", "kind", kind.name)
		if err := kind.run(); err != nil {
			return fmt.Errorf("%s: %w", kind.name, err)
		}
	}
	return nil
}
