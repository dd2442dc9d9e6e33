package main

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"countersign.dev/bench/internal/load"
	"countersign.dev/bench/internal/rig"
	"countersign.dev/bench/internal/tally"
)

// requests is a run of wrk through a chain.
func requests(path string, connections int) func(context.Context, *bench, *rig.Chain) (tally.Sample, error) {
	return func(ctx context.Context, b *bench, c *rig.Chain) (tally.Sample, error) {
		wrk := load.Wrk{URL: "http://" + c.HTTP + path, Connections: connections}
		var result load.Result
		connecting, receiving, err := usedBySide(c, func() error {
			var err error
			result, err = wrk.Run(ctx, b.Duration)
			return err
		})
		if err != nil {
			return nil, err
		}
		sample := requestSample(result, connecting+receiving)
		sample["cpu_connecting"] = micros(connecting) / float64(result.Requests)
		sample["cpu_receiving"] = micros(receiving) / float64(result.Requests)
		return sample, nil
	}
}

// requestSample is what every load of requests measures.
func requestSample(r load.Result, cpu time.Duration) tally.Sample {
	return tally.Sample{
		"cpu":        micros(cpu) / float64(r.Requests),
		"rate":       r.PerSecond(),
		"p50":        millis(r.P50),
		"p99":        millis(r.P99),
		"throughput": mebi(r.Bytes) / r.Elapsed.Seconds(),
	}
}

// beside is small requests beside large ones on other connections. What counts is the former's
// latency; that the latter go on meanwhile is shown by their throughput.
func beside(ctx context.Context, b *bench, c *rig.Chain) (tally.Sample, error) {
	large := load.Wrk{URL: "http://" + c.HTTP + rig.PathLarge, Connections: 4}
	small := load.Wrk{URL: "http://" + c.HTTP + rig.PathSmall, Connections: 8}
	var answered load.Result
	streams, err := large.While(ctx, func() error {
		var err error
		answered, err = small.Run(ctx, b.Duration)
		return err
	})
	if err != nil {
		return nil, err
	}
	sample := requestSample(answered, 0)
	delete(sample, "cpu") // it cannot be said which requests used it
	sample["throughput"] = mebi(streams.Bytes) / streams.Elapsed.Seconds()
	return sample, nil
}

// calls is a run of h2load through a chain.
func calls(ctx context.Context, b *bench, c *rig.Chain) (tally.Sample, error) {
	grpc := load.GRPC{
		URL: "http://" + c.GRPC + rig.Method, Connections: 16, Streams: 4,
		Message: wrapperspb.Bytes(make([]byte, rig.SmallSize)),
	}
	var result load.Result
	cpu, err := used(c, func() error {
		var err error
		result, err = grpc.Run(ctx, b.Duration)
		return err
	})
	if err != nil {
		return nil, err
	}
	return requestSample(result, cpu), nil
}

// bulk is bytes in one direction over TCP.
func bulk(ctx context.Context, b *bench, c *rig.Chain) (tally.Sample, error) {
	const connections = 4
	before := b.rig.Origin.Received()
	began := time.Now()
	cpu, err := used(c, func() error { return load.Upload(ctx, c.TCP, connections, b.Duration, rig.TCPCount) })
	if err != nil {
		return nil, err
	}
	received := b.rig.Origin.Received() - before
	return tally.Sample{
		"throughput": mebi(received) / time.Since(began).Seconds(),
		"cpu":        millis(cpu) / (mebi(received) / 1024),
	}, nil
}
