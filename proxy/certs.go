package proxy

import (
	"net/http"

	"countersign.dev/admin"
)

// serveCerts tells which certificates are presented and trusted: the workload's own, and those in a
// gateway's files.
func (p *Proxy) serveCerts(w http.ResponseWriter, _ *http.Request) {
	answer := admin.Certs{Certificates: []admin.Certificate{}}
	now := p.cfg.Now()
	if identity := p.identity(); identity != nil {
		answer.Certificates = append(answer.Certificates, admin.Pair(admin.Parse(identity.Certificate.Certificate), identity.Bundle.Roots(), admin.InMemory, now))
	}
	for _, in := range p.state.Load().inbound {
		if files, ok := in.tls.(*fileServer); ok {
			_, served := files.current()
			answer.Certificates = append(answer.Certificates, admin.Pair(admin.Parse(served.Certificate), nil, files.files.Cert, now))
		}
	}
	admin.WriteJSON(w, answer)
}
