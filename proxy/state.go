package proxy

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/policy"
	"countersign.dev/stat"
)

// ErrPlan says that a Plan cannot be carried out, and why.
var ErrPlan = errors.New("the plan cannot be carried out")

// state is a Plan and what was made of it. It is immutable; what it points to may be shared with the
// state before it.
type state struct {
	plan      *mesh.Plan // nil before the first Apply
	epoch     string     // a digest of all that decides about who may connect
	inbound   map[int]*inbound
	outbound  map[int]*outbound
	upstreams map[string]*upstream
}

// inbound is a listener that peers or the outside connect to.
type inbound struct {
	mesh.Inbound
	policy *policy.Policy
	tls    tlsServer // nil when TLS is off
	groups []tls.CurveID
	routes []route // at a gateway
	// judgesPaths tells whether one of the routes depends on the path.
	judgesPaths bool
	app         *app // at a service
	stats       *stat.Listener
	http        *stat.HTTP // nil for tcp
}

// tlsServer makes the configuration of a listener's handshakes.
type tlsServer interface{ Config() *tls.Config }

// outbound is a listener that the application connects to.
type outbound struct {
	mesh.Outbound
	upstream *upstream
	http     *stat.HTTP // nil for tcp
}

// compile makes the state of a Plan, taking over from the last one what has not changed: ticket keys,
// pools of connections and counts. It changes nothing of the last one; see activate.
func (p *Proxy) compile(plan *mesh.Plan, last *state) (*state, error) {
	if plan.Version != mesh.PlanVersion {
		return nil, fmt.Errorf("%w: it has version %d, and this program knows %d; update it", ErrPlan, plan.Version, mesh.PlanVersion)
	}
	epoch, err := digest(plan)
	if err != nil {
		return nil, err
	}
	next := &state{
		plan:      plan,
		epoch:     epoch,
		inbound:   make(map[int]*inbound),
		outbound:  make(map[int]*outbound),
		upstreams: make(map[string]*upstream),
	}
	for _, u := range plan.Upstreams {
		if next.upstreams[u.Name], err = p.keepUpstream(u, last); err != nil {
			return nil, fmt.Errorf("%w: upstream %s: %w", ErrPlan, u.Name, err)
		}
	}
	for _, o := range plan.Outbound {
		upstream := next.upstreams[o.Upstream]
		if upstream == nil {
			return nil, fmt.Errorf("%w: outbound listener %s has the upstream %q, which it does not declare", ErrPlan, o.Name, o.Upstream)
		}
		out := &outbound{Outbound: o, upstream: upstream}
		if o.Protocol != mesh.TCP {
			out.http = p.stats.HTTP(o.Name)
		}
		next.outbound[o.Listen] = out
	}
	for _, i := range plan.Inbound {
		in, err := p.compileInbound(plan, i, next, last)
		if err != nil {
			return nil, fmt.Errorf("%w: inbound listener %s: %w", ErrPlan, i.Name, err)
		}
		next.inbound[i.Port] = in
	}
	return next, nil
}

func (p *Proxy) compileInbound(plan *mesh.Plan, i mesh.Inbound, next, last *state) (*inbound, error) {
	in := &inbound{Inbound: i, stats: p.stats.Listener(i.Name)}
	var err error
	if in.policy, err = policy.Compile(plan.TrustDomain, i.Rules); err != nil {
		return nil, err
	}
	if i.Protocol != mesh.TCP {
		in.http = p.stats.HTTP(i.Name)
	}
	if in.groups, err = mtls.Groups(i.TLSGroups); err != nil {
		return nil, err
	}
	switch before := last.inbound[i.Port]; {
	case i.TLS == mesh.Off:
	case before != nil && before.tls != nil && sameTLS(before.Inbound, i):
		in.tls = before.tls
	case i.Certificate != nil:
		in.tls, err = newFileServer(*i.Certificate, i.MinTLS, in.groups, nextProtos(i.Protocol), p.log)
	default:
		in.tls = mtls.NewServer(p.cfg.Source, mtls.ServerOptions{
			ClientAuth: i.ClientAuth,
			MinVersion: i.MinTLS,
			Groups:     in.groups,
			NextProtos: nextProtos(i.Protocol),
			Epoch:      p.epoch,
			Now:        p.cfg.Now,
		})
	}
	if err != nil {
		return nil, err
	}
	if i.App == 0 {
		in.routes, err = compileRoutes(i, next)
		in.judgesPaths = slices.ContainsFunc(in.routes, func(r route) bool { return r.judgesPaths() })
		return in, err
	}
	if before := last.inbound[i.Port]; before != nil && before.app != nil && before.App == i.App && before.Protocol == i.Protocol {
		in.app = before.app
	} else if in.app, err = p.newApp(i.App, i.Protocol); err != nil {
		return nil, fmt.Errorf("the application's address: %w", err)
	}
	return in, nil
}

// epoch is what session tickets depend on.
func (p *Proxy) epoch() string { return p.state.Load().epoch }

// sameTLS tells whether two listeners take handshakes in the same way.
func sameTLS(a, b mesh.Inbound) bool {
	sameFiles := a.Certificate == nil && b.Certificate == nil ||
		a.Certificate != nil && b.Certificate != nil && *a.Certificate == *b.Certificate
	return sameFiles && a.ClientAuth == b.ClientAuth && a.MinTLS == b.MinTLS && slices.Equal(a.TLSGroups, b.TLSGroups) && (a.Protocol == mesh.TCP) == (b.Protocol == mesh.TCP)
}

// nextProtos are what a listener offers by ALPN: nothing where no protocol is known.
func nextProtos(p mesh.Protocol) []string {
	if p == mesh.TCP {
		return nil
	}
	return []string{"h2", "http/1.1"}
}

// digest names what a Plan says about who may connect and how. It is the same for a Plan that differs
// only in its revision or in where instances are.
func digest(plan *mesh.Plan) (string, error) {
	policy := *plan
	policy.Revision = 0
	policy.Upstreams = make([]mesh.Upstream, len(plan.Upstreams))
	for i, u := range plan.Upstreams {
		u.Endpoints = nil
		policy.Upstreams[i] = u
	}
	text, err := json.Marshal(policy)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrPlan, err)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), nil
}

// activate tells the upstreams, some of which serve the state before already, where instances are.
func (s *state) activate() {
	for _, u := range s.plan.Upstreams {
		s.upstreams[u.Name].setEndpoints(u.Endpoints)
	}
}

// release closes what the next state has not taken over.
func (p *Proxy) release(s, next *state) {
	for port, in := range s.inbound {
		if after := next.inbound[port]; in.app != nil && (after == nil || after.app != in.app) {
			p.retire(in.app.endpoint)
		}
	}
	for name, u := range s.upstreams {
		if next.upstreams[name] != u {
			u.setEndpoints(nil)
		}
	}
}
