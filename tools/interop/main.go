// Command interop is grpc-go's own interoperability client, in the cases that need no credentials:
//
//	interop            lists the cases
//	interop ADDRESS    runs all of them, ADDRESS CASE one
//
// Each case is a process of its own, because the functions of package interop end the process when
// they fail; they say why on standard error. A line on standard output tells how each case ended, and
// the status is 0 when all have passed. The other side is google.golang.org/grpc/interop/server.
package main

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
)

// theCase is one of the interoperability cases: it returns when it passes.
type theCase func(context.Context, *grpc.ClientConn, testgrpc.TestServiceClient)

// call makes a case of a function that needs no more than the stub.
func call(f func(context.Context, testgrpc.TestServiceClient, ...grpc.CallOption)) theCase {
	return func(ctx context.Context, _ *grpc.ClientConn, stub testgrpc.TestServiceClient) { f(ctx, stub) }
}

// plain makes a case of a function without options.
func plain(f func(context.Context, testgrpc.TestServiceClient)) theCase {
	return func(ctx context.Context, _ *grpc.ClientConn, stub testgrpc.TestServiceClient) { f(ctx, stub) }
}

// cases are those of the interoperability specification, less those that need credentials, a load
// balancer or (pick_first_unary) several servers.
var cases = map[string]theCase{
	"empty_unary":                 call(interop.DoEmptyUnaryCall),
	"large_unary":                 call(interop.DoLargeUnaryCall),
	"client_streaming":            call(interop.DoClientStreaming),
	"server_streaming":            call(interop.DoServerStreaming),
	"ping_pong":                   call(interop.DoPingPong),
	"empty_stream":                call(interop.DoEmptyStream),
	"timeout_on_sleeping_server":  call(interop.DoTimeoutOnSleepingServer),
	"cancel_after_begin":          call(interop.DoCancelAfterBegin),
	"cancel_after_first_response": call(interop.DoCancelAfterFirstResponse),
	"status_code_and_message":     call(interop.DoStatusCodeAndMessage),
	"special_status_message":      call(interop.DoSpecialStatusMessage),
	"custom_metadata":             call(interop.DoCustomMetadata),
	"orca_per_rpc":                plain(interop.DoORCAPerRPCTest),
	"orca_oob":                    plain(interop.DoORCAOOBTest),
	"unimplemented_method": func(ctx context.Context, conn *grpc.ClientConn, _ testgrpc.TestServiceClient) {
		interop.DoUnimplementedMethod(ctx, conn)
	},
	"unimplemented_service": func(ctx context.Context, conn *grpc.ClientConn, _ testgrpc.TestServiceClient) {
		interop.DoUnimplementedService(ctx, testgrpc.NewUnimplementedServiceClient(conn))
	},
	"rpc_soak": func(ctx context.Context, conn *grpc.ClientConn, _ testgrpc.TestServiceClient) {
		soak(ctx, conn.Target(), func() (*grpc.ClientConn, func()) { return conn, func() {} })
	},
	"channel_soak": func(ctx context.Context, conn *grpc.ClientConn, _ testgrpc.TestServiceClient) {
		soak(ctx, conn.Target(), func() (*grpc.ClientConn, func()) {
			another, err := dial(conn.Target())
			if err != nil {
				fail(err)
			}
			return another, func() { _ = another.Close() }
		})
	},
}

// patience bounds a case. Nothing is measured: a slow machine is no failure.
const patience = time.Minute

// soak is the short form of the soak tests: calls of a few hundred KiB, two at a time.
func soak(ctx context.Context, target string, channel func() (*grpc.ClientConn, func())) {
	interop.DoSoakTest(ctx, interop.SoakTestConfig{
		RequestSize: 271828, ResponseSize: 314159, Iterations: 20, NumWorkers: 2, MaxFailures: 0,
		PerIterationMaxAcceptableLatency: patience, OverallTimeout: patience, ServerAddr: target, ChannelForTest: channel,
	})
}

// dial makes a channel; the load balancer is the one that the ORCA cases look into.
func dial(target string) (*grpc.ClientConn, error) {
	return grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"test_backend_metrics_load_balancer": {}}]}`))
}

func main() {
	switch len(os.Args) {
	case 1:
		fmt.Println(strings.Join(slices.Sorted(maps.Keys(cases)), "\n"))
	case 2:
		if !all(os.Args[1]) {
			os.Exit(1)
		}
	default:
		one(os.Args[1], os.Args[2])
	}
}

// all runs every case against an address, some at a time, and tells whether all have passed.
func all(address string) bool {
	var mu sync.Mutex
	var running sync.WaitGroup
	passed, places := true, make(chan struct{}, 6)
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		running.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			var stderr bytes.Buffer
			command := exec.CommandContext(context.Background(), os.Args[0], address, name)
			command.Stderr = &stderr
			err := command.Run()
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				passed = false
				fmt.Printf("FAIL %s: %v: %s\n", name, err, strings.Join(strings.Fields(stderr.String()), " "))
				return
			}
			fmt.Println("PASS", name)
		})
	}
	running.Wait()
	return passed
}

// one runs a case and returns when it has passed.
func one(address, name string) {
	run := cases[name]
	if run == nil {
		fail(fmt.Errorf("there is no case %q", name))
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// A case that waits without regard to its context is ended from outside.
	time.AfterFunc(patience+5*time.Second, func() { fail(fmt.Errorf("the case did not end within %s", patience)) })
	conn, err := dial("passthrough:///" + address)
	if err != nil {
		fail(err)
	}
	run(ctx, conn, testgrpc.NewTestServiceClient(conn))
	_ = conn.Close()
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "interop:", err)
	os.Exit(1)
}
