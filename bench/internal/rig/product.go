package rig

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// The setups of the product.
const (
	Ours     = "ours"
	MixedOut = "ours-nginx" // our sidecar calls, NGINX receives
	MixedIn  = "nginx-ours" // NGINX calls, our sidecar receives
)

// Product is the product between its own sidecars. They have their own TLS groups, unless an endpoint
// takes only X25519: then that is what the specification says, where it can.
func (r *Rig) Product(ctx context.Context) (*Setup, error) {
	version, err := r.Countersign(ctx, "version")
	if err != nil {
		return nil, err
	}
	choosable, err := r.TakesGroups(ctx)
	if err != nil {
		return nil, err
	}
	return &Setup{
		Name: Ours, Title: strings.TrimSpace(version) + r.commit(ctx),
		Start: func(ctx context.Context) (*Chain, error) {
			m, err := r.StartMesh(ctx, Ours, "")
			return chainOf(m), err
		},
		Connect: func(ctx context.Context, far Far) (*Chain, error) {
			groups := ""
			if choosable && slices.Equal(far.Groups, []tls.CurveID{tls.X25519}) {
				groups = "x25519"
			}
			m, err := r.StartMesh(ctx, Ours+"-connecting", groups)
			if err == nil {
				err = m.Behead()
			}
			if err != nil {
				return chainOf(m), err
			}
			return &m.Chain, r.endpoint(ctx, &m.Chain, far)
		},
	}, nil
}

// commit says which commit the binary was built from, where that can be known.
func (r *Rig) commit(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil || !r.built {
		return ""
	}
	return ", commit " + strings.TrimSpace(string(out))
}

func chainOf(m *Mesh) *Chain {
	if m == nil {
		return nil
	}
	return &m.Chain
}

// Mixed is one sidecar of the product and one NGINX, connecting or receiving.
func (r *Rig) Mixed(name string) *Setup {
	start := r.oursToNGINX
	if name == MixedIn {
		start = r.nginxToOurs
	}
	return &Setup{Name: name, Title: fmt.Sprintf("one side each: %s", name), Start: start}
}

// oursToNGINX is a mesh whose receiving sidecar was replaced: the connecting one still dials where it
// was, and finds NGINX there with the certificate of the same service.
func (r *Rig) oursToNGINX(ctx context.Context) (*Chain, error) {
	m, err := r.StartMesh(ctx, MixedOut, "")
	if err != nil {
		return chainOf(m), err
	}
	if err := m.Behead(); err != nil {
		return &m.Chain, err
	}
	e, err := r.endpoints()
	if err != nil {
		return &m.Chain, err
	}
	e.PeerHTTP, e.PeerGRPC, e.PeerTCP = m.PeerHTTP, m.PeerGRPC, m.PeerTCP
	return &m.Chain, r.nginxReceiving(ctx, &m.Chain, e)
}

// nginxToOurs is a mesh whose receiving sidecar is called by NGINX with the certificate of the
// connecting service.
func (r *Rig) nginxToOurs(ctx context.Context) (*Chain, error) {
	m, err := r.StartMesh(ctx, MixedIn, "")
	if err != nil {
		return chainOf(m), err
	}
	err = nil
	for _, child := range m.Connecting {
		err = errors.Join(err, child.Stop())
	}
	if err != nil {
		return &m.Chain, err
	}
	e, err := r.endpoints()
	if err != nil {
		return &m.Chain, err
	}
	e.PeerHTTP, e.PeerGRPC, e.PeerTCP = m.PeerHTTP, m.PeerGRPC, m.PeerTCP
	return &m.Chain, r.nginxConnecting(ctx, &m.Chain, e)
}
