package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

	"countersign.dev/bench/internal/load"
	"countersign.dev/bench/internal/rig"
	"countersign.dev/bench/internal/tally"
)

// x25519 are the groups of the row that is compared: the one that all setups have.
var x25519 = []tls.CurveID{tls.X25519}

// receiver is the port of the receiving sidecar that connections are made to: HTTP where there is
// one, for the connection to the application behind it is not a new one each time.
func receiver(c *rig.Chain) load.Port {
	if c.PeerHTTP != "" && !c.PassThrough {
		return load.Port{Address: c.PeerHTTP, Path: rig.PathSmall}
	}
	return load.Port{Address: c.PeerTCP}
}

// member is a peer with the certificate of the connecting service. It does not look whom it speaks to, to be
// quick: the checks have.
func (b *bench) member(groups ...tls.CurveID) (*load.Member, error) {
	certificate, pool, err := b.rig.Client.Load()
	if err != nil {
		return nil, err
	}
	return load.NewMember(&certificate, pool, rig.ServerDNS, groups...).Careless(), nil
}

// perConnection opens connections for half of a run's time and gives the processor time of each side for
// one of them.
func (b *bench) perConnection(ctx context.Context, c *rig.Chain, p load.Port, dial func() load.Dial) (connecting, receiving float64, err error) {
	var count int64
	cpu1, cpu2, err := usedBySide(c, func() error {
		var err error
		count, err = load.Connections(ctx, p, max(time.Second, b.Duration/2), dial)
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	if count == 0 {
		return 0, 0, fmt.Errorf("no connection was made to %s", p)
	}
	return micros(cpu1) / float64(count), micros(cpu2) / float64(count), nil
}

// fullHandshakes opens connections to the receiving sidecar, and then to the connecting one, each of which makes
// it open one to an endpoint that gives no tickets. Both are the sum of the two.
func fullHandshakes(groups ...tls.CurveID) func(context.Context, *bench, *rig.Chain) (tally.Sample, error) {
	return func(ctx context.Context, b *bench, c *rig.Chain) (tally.Sample, error) {
		member, err := b.member(groups...)
		if err != nil {
			return nil, err
		}
		_, receiving, err := b.perConnection(ctx, c, receiver(c), func() load.Dial { return member.Dial })
		if err != nil {
			return nil, err
		}
		sample := tally.Sample{receivingCPU.Name: receiving}
		half, err := b.connectingHalf(ctx, c, groups...)
		if err != nil || half == nil {
			return sample, err
		}
		connecting, _, err := b.perConnection(ctx, half, load.Port{Address: half.TCP}, func() load.Dial { return load.Plain })
		if err != nil {
			return nil, err
		}
		sample[bothCPU.Name] = connecting + receiving
		return sample, nil
	}
}

// connectingHalf is a chain's connecting half before an endpoint without tickets, started when it is
// needed first; nil when there is none.
func (b *bench) connectingHalf(ctx context.Context, c *rig.Chain, groups ...tls.CurveID) (*rig.Chain, error) {
	setup := b.setup(c.Setup)
	if setup == nil || setup.Connect == nil || c.TCP == "" {
		return nil, nil
	}
	key := fmt.Sprint(setup.Name, groups)
	if half := b.halves[key]; half != nil {
		return half, nil
	}
	half, err := setup.Connect(ctx, rig.Far{Identity: b.rig.Server, Groups: groups})
	if err != nil {
		return nil, fmt.Errorf("starting the connecting half of %s: %w", setup.Name, err)
	}
	b.halves[key] = half
	return half, nil
}

// resumedHandshakes is the same with resumed sessions. Between the sidecars themselves it is up to them:
// they resume where they can.
func resumedHandshakes(ctx context.Context, b *bench, c *rig.Chain) (tally.Sample, error) {
	member, err := b.member(x25519...)
	if err != nil {
		return nil, err
	}
	_, receiving, err := b.perConnection(ctx, c, receiver(c), member.Resuming)
	if err != nil {
		return nil, err
	}
	sample := tally.Sample{receivingCPU.Name: receiving}
	if c.TCP == "" {
		return sample, nil
	}
	cpu1, cpu2, err := b.perConnection(ctx, c, load.Port{Address: c.TCP}, func() load.Dial { return load.Plain })
	if err != nil {
		return nil, err
	}
	sample[bothCPU.Name] = cpu1 + cpu2
	return sample, nil
}
