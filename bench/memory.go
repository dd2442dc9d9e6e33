package main

import (
	"context"
	"fmt"
	"time"

	"countersign.dev/bench/internal/load"
	"countersign.dev/bench/internal/rig"
	"countersign.dev/bench/internal/tally"
)

// crowds are the numbers of idle connections.
var crowds = []int{1000, 5000}

func idleMetrics() []tally.Metric {
	metrics := []tally.Metric{
		{Name: "rest_connecting", Title: "memory at rest, connecting sidecar", Unit: "MiB", Lower: true},
		{Name: "rest_receiving", Title: "memory at rest, receiving sidecar", Unit: "MiB", Lower: true},
		{Name: "rest_cpu", Title: "CPU at rest, both sidecars, of one processor", Unit: "%", Lower: true},
	}
	for _, kind := range []string{"mtls", "plain"} {
		for _, size := range crowds {
			metrics = append(metrics, tally.Metric{
				Name:  fmt.Sprintf("%s_%d", kind, size),
				Title: fmt.Sprintf("memory per idle %s connection, %d held", map[string]string{"mtls": "mTLS", "plain": "plaintext"}[kind], size),
				Unit:  "KiB", Lower: true,
			})
		}
	}
	return metrics
}

// settle waits until memory has come to rest.
func (b *bench) settle(ctx context.Context) error {
	timer := time.NewTimer(b.Settle)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// idle looks at two sidecars at rest, then with a crowd of idle peers at the receiving one, then with one of
// idle applications at the connecting one. Every connection of a crowd has carried one request.
func idle(ctx context.Context, b *bench, c *rig.Chain) (tally.Sample, error) {
	member, err := b.member(x25519...)
	if err != nil {
		return nil, err
	}
	peers := load.NewCrowd(receiver(c), member.Dial)
	defer peers.Release()
	// What is made at the first request is not the crowd's.
	if err := peers.Grow(ctx, 1); err != nil {
		return nil, err
	}
	sample := make(tally.Sample)
	cpu, err := used(c, func() error { return b.settle(ctx) })
	if err != nil {
		return nil, err
	}
	connecting, receiving, err := c.Memory()
	if err != nil {
		return nil, err
	}
	sample["rest_connecting"], sample["rest_receiving"] = mebi(connecting.RSS), mebi(receiving.RSS)
	sample["rest_cpu"] = 100 * cpu.Seconds() / b.Settle.Seconds()
	err = b.hold(ctx, peers, "mtls", sample, func() (int64, error) {
		_, receiving, err := c.Memory()
		return receiving.RSS, err
	})
	peers.Release()
	if err != nil || c.HTTP == "" || c.PassThrough {
		return sample, err
	}
	applications := load.NewCrowd(load.Port{Address: c.HTTP, Path: rig.PathSmall}, load.Plain)
	defer applications.Release()
	if err := applications.Grow(ctx, 1); err != nil {
		return nil, err
	}
	return sample, b.hold(ctx, applications, "plain", sample, func() (int64, error) {
		connecting, _, err := c.Memory()
		return connecting.RSS, err
	})
}

// hold lets a crowd grow, and says how much memory a connection takes at each size.
func (b *bench) hold(ctx context.Context, crowd *load.Crowd, kind string, sample tally.Sample, rss func() (int64, error)) error {
	before, err := rss()
	if err != nil {
		return err
	}
	for _, size := range crowds {
		if err := crowd.Grow(ctx, size); err != nil {
			return err
		}
		if err := b.settle(ctx); err != nil {
			return err
		}
		held, err := rss()
		if err != nil {
			return err
		}
		if err := crowd.Alive(); err != nil {
			return err
		}
		sample[fmt.Sprintf("%s_%d", kind, size)] = float64(held-before) / 1024 / float64(size)
	}
	return nil
}

// reconnect lets a crowd of peers come back all at once, beside traffic.
func reconnect(ctx context.Context, b *bench, c *rig.Chain) (tally.Sample, error) {
	const patience = 2 * time.Minute
	member, err := b.member(x25519...)
	if err != nil {
		return nil, err
	}
	beside := load.Wrk{URL: "http://" + c.HTTP + rig.PathSmall, Connections: 8}
	var back load.Return
	traffic, err := beside.While(ctx, func() error {
		var err error
		back, err = load.ComeBack(ctx, receiver(c), member.Dial, b.Peers, patience)
		return err
	})
	if err != nil {
		return nil, err
	}
	_, receiving, err := c.Memory()
	if err != nil {
		return nil, err
	}
	return tally.Sample{
		"peak": mebi(receiving.Peak), "back": back.Elapsed.Seconds(), "p99": millis(traffic.P99), "retries": float64(back.Retries),
	}, nil
}
