// Package haproxy knows how a Plan is said to HAProxy: [Render] writes the one configuration file that makes
// a stock HAProxy the sidecar of a workload. It reads and starts nothing.
//
// Everything is written through the type conf, in which a text that is not a constant of this package has
// to be quoted before the compiler takes it. What HAProxy cannot carry out is refused ([engine.ErrRefused]).
// Regular expressions want a HAProxy with PCRE, which those of Debian and of its authors have.
package haproxy

import (
	"fmt"
	"strconv"
	"time"

	"countersign.dev/engine"
	"countersign.dev/mesh"
)

// DefaultVersion is Debian 12's, and LeastVersion the oldest that is rendered for.
const (
	DefaultVersion = "2.6.12"
	LeastVersion   = "2.6"
)

// How long is waited, as the built-in proxy does.
const (
	connectTimeout word = "5s"
	headTimeout    word = "10s"
	idlePeer       word = "5m"
	// silence bounds the pause between two reads or writes of a message or of a connection.
	silence word = "1h"
	// silentClient is after how long a permissive port takes one who says nothing for a plaintext client.
	silentClient word = "3s"
)

// renderer writes the configuration of one workload.
type renderer struct {
	conf
	plan    *mesh.Plan
	o       engine.Options
	refusal engine.Refusal
	notes   []string
	missing engine.Missing
}

// Render writes the configuration of a Plan. It is the same for the same arguments. The error wraps
// [engine.ErrRefused] and holds every reason.
func Render(plan *mesh.Plan, o engine.Options) (*engine.Config, error) {
	r := &renderer{plan: plan, o: o.WithDefaults(DefaultVersion), refusal: engine.Refusal{Engine: "haproxy"}}
	engine.Check(plan, r.o, &r.refusal)
	if engine.IsVersion(r.o.Version) && !engine.AtLeast(r.o.Version, LeastVersion) {
		r.refusal.Addf("HAProxy %s is older than %s, for which nothing is tested", r.o.Version, LeastVersion)
	}
	if err := r.refusal.Err(); err != nil {
		return nil, err
	}
	r.comment("HAProxy as the sidecar of the %s %s in the mesh %s. Written by `countersign generate haproxy`; do not edit.",
		plan.Workload.Kind, plan.Workload.Name, plan.Mesh)
	r.global()
	for _, in := range plan.Inbound {
		r.inbound(in)
	}
	for _, out := range plan.Outbound {
		r.outbound(out)
	}
	r.backends()
	if r.o.Callers {
		r.section("backend", engine.CallersTable)
		r.line("stick-table", "type", "string", "len", "384", "size", word(strconv.Itoa(engine.MostCallers)),
			"expire", word(strconv.Itoa(int(engine.CallersKept/time.Second))+"s"), "store", "gpt0")
	}
	if err := r.refusal.Err(); err != nil {
		return nil, err
	}
	return &engine.Config{Text: r.text.String(), Notes: append(r.notes, r.missing.Notes(r.o)...)}, nil
}

// note adds a remark for the person who asked.
func (r *renderer) note(text string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(text, args...))
}

func (r *renderer) global() {
	r.section("global")
	// At its default of 1024 bytes a line on a long path is cut off, and is no JSON.
	r.line("log", "stdout", "len", "65535", "format", "raw", "local0")
	if r.o.Generation != "" {
		r.line("description", quote(r.o.Generation))
	}
	r.line("stats", "socket", quote(r.o.InRun(engine.StatsSocket)), "mode", "600", "level", "admin")
	r.line("hard-stop-after", word(strconv.Itoa(max(int(r.o.Drain/time.Second), 1))+"s"))
	for _, side := range []word{"bind", "server"} {
		r.line("ssl-default-"+side+"-ciphers", engine.Ciphers)
		r.line("ssl-default-"+side+"-ciphersuites", engine.Suites)
	}
	// The cache of sessions is one for all ports: a session of a port that asks for no certificate would be
	// resumed on one that requires it. Tickets have each port's own key, and remain.
	r.line("tune.ssl.cachesize", "0")
	r.section("defaults")
	r.line("log", "global")
	r.line("option", "dontlognull")
	r.line("option", "redispatch")
	r.line("timeout", "connect", connectTimeout)
	for _, name := range []word{"client", "server", "tunnel"} {
		r.line("timeout", name, silence)
	}
	r.line("timeout", "http-request", headTimeout)
	r.line("timeout", "http-keep-alive", idlePeer)
}

// appName is the backend of the application's port.
func appName(in mesh.Inbound) word { return word("app_" + strconv.Itoa(in.Port)) }

// upstreamName is the backend of a called service. The Plan's name was checked.
func upstreamName(u string) word { return word("to_" + u) }

// backends writes the places that requests and connections go to.
func (r *renderer) backends() {
	for _, in := range r.plan.Inbound {
		if in.App == 0 {
			continue
		}
		r.section("backend", appName(in))
		r.mode(in.Protocol)
		words := []word{"server", "app", quote(r.o.App(in.App))}
		if in.Protocol == mesh.HTTP2 || in.Protocol == mesh.GRPC {
			words = append(words, "proto", "h2")
		}
		r.line(words...)
	}
	for _, u := range r.plan.Upstreams {
		r.section("backend", upstreamName(u.Name))
		r.mode(u.Protocol)
		if u.Protocol != mesh.TCP {
			r.line("http-reuse", "aggressive")
		}
		if len(u.Endpoints) == 0 {
			r.note("no instance of %s is known: calls to it fail until one is given", u.Name)
		}
		for i, e := range u.Endpoints {
			r.line(append([]word{"server", word("i" + strconv.Itoa(i+1)), quote(e.Address.String())}, r.peer(u)...)...)
		}
	}
}

// reuse is how long requests follow one another on a connection that is left after a number of them, so that it is left in less than its
// age at three requests a second. HAProxy cannot leave a connection over HTTP/2 by its age, and has to be the first to: what it sends
// while the peer closes is not served, and not sent again (it looks the same to HAProxy as a request that was carried out).
const reuse = 300 * time.Millisecond

// peer is how an instance is met.
func (r *renderer) peer(u mesh.Upstream) []word {
	http2 := u.Protocol == mesh.HTTP2 || u.Protocol == mesh.GRPC
	if !u.TLS {
		if http2 {
			return []word{"proto", "h2"}
		}
		return nil
	}
	words := append(r.lists(), "ssl", "crt", quote(r.o.Current("cert-and-key.pem")), "ca-file", quote(r.o.Current("ca.pem")), "verify", "required",
		// Both names were checked to be DNS names, which have no brackets.
		"verifyhost", word(u.ServerName), "sni", word("str("+u.ServerName+")"), "ssl-min-ver", minVersion(u.MinTLS))
	switch {
	case http2:
		words = append(words, "alpn", "h2")
		if r.o.Age > 0 {
			words = append(words, "max-reuse", word(strconv.FormatInt(max(int64(r.o.Age/reuse), 1), 10)))
		}
	case u.Protocol == mesh.HTTP:
		words = append(words, "alpn", "http/1.1")
	}
	where := "upstream " + u.Name
	groups, missing := engine.Groups(u.TLSGroups, where, r.o, &r.refusal)
	r.missing.Add(where, missing)
	if engine.AtLeast(r.o.Version, "3.0") {
		return append(words, "curves", word(groups))
	}
	return words // the server chooses among its own, and those are the declared ones
}

func minVersion(v mesh.TLSVersion) word {
	if v == mesh.TLS13 {
		return "TLSv1.3"
	}
	return "TLSv1.2"
}

func (r *renderer) mode(p mesh.Protocol) {
	if p == mesh.TCP {
		r.line("mode", "tcp")
		return
	}
	r.line("mode", "http")
}

// tls is what a listener shows and asks for.
func (r *renderer) tls(in mesh.Inbound) []word {
	where := fmt.Sprintf("port %d", in.Port)
	cert := r.o.Current("cert-and-key.pem")
	if in.Certificate != nil {
		cert = r.file(in.Certificate, where)
	}
	words := []word{"ssl", "crt", quote(cert), "ssl-min-ver", minVersion(in.MinTLS)}
	groups, missing := engine.Groups(in.TLSGroups, where, r.o, &r.refusal)
	r.missing.Add(where, missing)
	words = append(words, "curves", word(groups))
	if in.Protocol != mesh.TCP {
		words = append(words, "alpn", "h2,http/1.1")
	}
	if in.ClientAuth == mesh.None {
		return append(words, "verify", "none")
	}
	verify := map[mesh.ClientAuth]word{mesh.Require: "required", mesh.Optional: "optional"}[in.ClientAuth]
	return append(append(words, "ca-file", quote(r.o.Current("ca.pem")), "verify", verify), r.lists()...)
}

// lists names the revocation lists, where they are asked for.
func (r *renderer) lists() []word {
	if !r.o.CRL {
		return nil
	}
	return []word{"crl-file", quote(r.o.Current("crl.pem"))}
}

// file is a gateway's own certificate. HAProxy finds the key beside it, by its name.
func (r *renderer) file(files *mesh.CertificateFiles, where string) string {
	for _, path := range []string{files.Cert, files.Key} {
		if problem := fileProblem(path); problem != "" {
			r.refusal.Addf("%s: the file %q cannot be named: %s", where, path, problem)
		}
	}
	if files.Key != files.Cert && files.Key != files.Cert+".key" {
		r.refusal.Addf("%s: the key %q is not found by HAProxy: it has to be in the certificate's file, or in a file of its name with .key after it", where, files.Key)
	}
	return files.Cert
}
