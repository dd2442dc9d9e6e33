package proxy

import (
	"cmp"
	"maps"
	"slices"

	"countersign.dev/api"
)

// Report is what a Proxy really serves.
type Report struct {
	// Listening are the inbound listeners that accept connections, by port.
	Listening []api.Listening
	// PlaintextCallers counts the plaintext connections to permissive ports by remote IP address. Of
	// many addresses, those beyond the first thousand are counted together as "others".
	PlaintextCallers map[string]int64
	// Callers are the serials that peers presented last, by SPIFFE ID: the thousand seen last.
	Callers map[string]api.Caller
	// Requests, Refused (by the policy) and Connections (from clients, both sides) count since the
	// start.
	Requests, Refused, Connections int64
	// Revision is of the Plan in force, 0 before the first.
	Revision uint64
}

// Report tells what is served at this moment.
func (p *Proxy) Report() Report {
	r := Report{
		Listening:   []api.Listening{},
		Requests:    p.totals.requests.Load(),
		Refused:     p.totals.refused.Load(),
		Connections: p.totals.connections.Load(),
	}
	if plan := p.state.Load().plan; plan != nil {
		r.Revision = plan.Revision
	}
	p.mu.Lock()
	for port, l := range p.inbound {
		if !l.stopped.Load() {
			r.Listening = append(r.Listening, api.Listening{Port: port, Address: l.address.String()})
		}
	}
	p.mu.Unlock()
	slices.SortFunc(r.Listening, func(a, b api.Listening) int { return cmp.Compare(a.Port, b.Port) })
	p.callers.mu.Lock()
	defer p.callers.mu.Unlock()
	r.PlaintextCallers = maps.Clone(p.callers.plaintext)
	r.Callers = maps.Clone(p.callers.peers)
	return r
}
