package rig

import (
	"context"
	"crypto/tls"
	"errors"
	"time"

	"countersign.dev/bench/internal/proc"
)

// Chain is a pair of sidecars that is measured: an application's request goes to the connecting one
// in plaintext, by mutual TLS to the receiving one, and to the origin in plaintext.
type Chain struct {
	Setup string // its name
	// PassThrough tells that HTTP is carried as TCP: each connection of an application is one between the
	// sidecars, too.
	PassThrough bool
	// Where applications connect in plaintext; "" where the chain has no such port.
	HTTP, GRPC, TCP string
	// Where the receiving sidecar takes mutual TLS.
	PeerHTTP, PeerGRPC, PeerTCP string

	Connecting, Receiving []*Child
	others                []*Child // the control plane
	closers               []func()
}

// CPU is the processor time that both sidecars have used so far.
func (c *Chain) CPU() (connecting, receiving time.Duration, err error) {
	connecting, err1 := proc.CPU(pids(c.Connecting)...)
	receiving, err2 := proc.CPU(pids(c.Receiving)...)
	return connecting, receiving, errors.Join(err1, err2)
}

// Memory is what each of the sidecars holds.
func (c *Chain) Memory() (connecting, receiving proc.Memory, err error) {
	connecting, err1 := proc.MemoryOf(pids(c.Connecting)...)
	receiving, err2 := proc.MemoryOf(pids(c.Receiving)...)
	return connecting, receiving, errors.Join(err1, err2)
}

func pids(children []*Child) []int {
	numbers := make([]int, len(children))
	for i, c := range children {
		numbers[i] = c.PID()
	}
	return numbers
}

// Stop ends the chain's processes.
func (c *Chain) Stop() error {
	var errs []error
	for _, group := range [][]*Child{c.Connecting, c.Receiving, c.others} {
		for _, child := range group {
			errs = append(errs, child.Stop())
		}
	}
	for _, closer := range c.closers {
		closer()
	}
	return errors.Join(errs...)
}

// Names are the setups that there can be beside the baseline.
func Names() []string {
	return []string{
		Ours, "haproxy", "haproxy-tcp", "envoy", "envoy-tcp", "ghostunnel",
		MixedOut, MixedIn, NGINXRendered, NGINXDuties, HAProxyRendered, HAProxyDuties,
	}
}

// Setup is a way to build a chain.
type Setup struct {
	Name string
	// Title says what it is, with its version.
	Title string
	// Start builds the chain.
	Start func(ctx context.Context) (*Chain, error)
	// Connect builds the connecting half alone; its TCP port leads to an endpoint of this process. Nil:
	// there is no such half.
	Connect func(ctx context.Context, far Far) (*Chain, error)
}

// Far is an endpoint of this process. It echoes, and gives no session tickets, so that every handshake
// with it is a full one.
type Far struct {
	Identity Identity      // that it shows
	Groups   []tls.CurveID // that it takes; nil: crypto/tls's own
}
