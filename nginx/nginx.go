// Package nginx knows how a Plan is said to NGINX: [Render] writes the one configuration file that makes a
// stock NGINX the sidecar of a workload. It reads and starts nothing.
//
// Everything is written through the type conf, in which a text that is not a constant of this package has
// to be quoted before the compiler takes it. What NGINX cannot carry out is refused ([engine.ErrRefused]).
package nginx

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"countersign.dev/engine"
	"countersign.dev/mesh"
)

// DefaultVersion is Debian 12's, and LeastVersion the oldest that is rendered for.
const (
	DefaultVersion = "1.22.1"
	LeastVersion   = "1.22"
)

// DefaultStreamModule is where Debian has the stream module.
const DefaultStreamModule = "/usr/lib/nginx/modules/ngx_stream_module.so"

// How long is waited, as the built-in proxy does.
const (
	connectTimeout   word = "5s"
	headTimeout      word = "10s"
	handshakeTimeout word = "10s"
	idlePeer         word = "5m"
	idleUpstream     word = "20s"
	idleApp          word = "1s" // below what servers use
	// silence bounds the pause between two reads or writes of a message or of a TCP connection.
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
	r := &renderer{plan: plan, o: o.WithDefaults(DefaultVersion), refusal: engine.Refusal{Engine: "nginx"}}
	engine.Check(plan, r.o, &r.refusal)
	if engine.IsVersion(r.o.Version) && !engine.AtLeast(r.o.Version, LeastVersion) {
		r.refusal.Addf("NGINX %s is older than %s, for which nothing is tested", r.o.Version, LeastVersion)
	}
	if err := r.refusal.Err(); err != nil {
		return nil, err
	}
	if r.o.Callers && strings.Contains(r.o.Run, ",") { // which ends the name of a socket in its place
		r.o.Callers = false
		r.note("nobody is told who calls: there is a comma in the run directory's name %s", r.o.Run)
	}
	r.comment("NGINX as the sidecar of the %s %s in the mesh %s. Written by `countersign generate nginx`; do not edit.",
		plan.Workload.Kind, plan.Workload.Name, plan.Mesh)
	r.main()
	r.http()
	if r.needsStream() {
		r.stream()
	}
	for _, w := range r.long {
		r.refusal.Addf("a word of its configuration has %d bytes, and NGINX reads at most %d: shorten what it is made of, or ask for less in one port; it begins with %.80q", len(w), mostWord, string(w))
	}
	if err := r.refusal.Err(); err != nil {
		return nil, err
	}
	return &engine.Config{Text: r.text.String(), Notes: append(r.notes, r.missing.Notes(r.o)...)}, nil
}

// note adds a remark for the person who asked.
func (r *renderer) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

func (r *renderer) main() {
	if r.o.StreamModule != "" && r.needsStream() {
		r.line("load_module", quote(r.o.StreamModule))
	}
	if r.o.User != "" {
		r.line("user", quote(r.o.User))
	}
	r.line("daemon", "off")
	r.line("worker_processes", "auto")
	r.line("pcre_jit", "on") // the policy is regular expressions
	r.line("worker_shutdown_timeout", seconds(r.o.Drain))
	r.line("pid", quote(r.o.InRun("nginx.pid")))
	r.line("error_log", "stderr", "warn")
	r.block(func() { r.line("worker_connections", "8192") }, "events")
}

func seconds(d time.Duration) word { return word(strconv.Itoa(max(int(d.Seconds()), 1)) + "s") }

// needsStream tells whether any port carries bytes, or TLS and plaintext at once.
func (r *renderer) needsStream() bool {
	for _, in := range r.plan.Inbound {
		if in.Protocol == mesh.TCP || in.TLS == mesh.Permissive {
			return true
		}
	}
	for _, out := range r.plan.Outbound {
		if out.Protocol == mesh.TCP {
			return true
		}
	}
	return false
}

// variable is the name of a variable of one listener.
func variable(in mesh.Inbound, name string) word {
	return word("$in" + strconv.Itoa(in.Port) + "_" + name)
}

// upstreamName is the upstream block of a called service. The Plan's name was checked.
func upstreamName(u string) word { return word("to_" + u) }

// appName is the upstream block of the application's port.
func appName(port int) word { return word("app_" + strconv.Itoa(port)) }

// socket is the inner end of a permissive port.
func (r *renderer) socket(in mesh.Inbound, what string) word {
	return quote("unix:" + r.o.InRun("in"+strconv.Itoa(in.Port)+"-"+what+".sock"))
}

// upstreams writes the places that a context sends to: the applications and the instances of called services
// that speak its kind of protocol.
func (r *renderer) upstreams(bytes bool) {
	seen := map[int]bool{}
	for _, in := range r.plan.Inbound {
		if in.App == 0 || (in.Protocol == mesh.TCP) != bytes || seen[in.App] {
			continue
		}
		seen[in.App] = true
		r.block(func() {
			r.line("server", quote(r.o.App(in.App)), "max_fails=0")
			if !bytes {
				r.keepalive(idleApp)
			}
		}, "upstream", appName(in.App))
	}
	for _, u := range r.plan.Upstreams {
		if (u.Protocol == mesh.TCP) != bytes {
			continue
		}
		r.block(func() {
			for _, e := range u.Endpoints {
				r.line("server", quote(e.Address.String()))
			}
			if len(u.Endpoints) == 0 {
				r.comment("%s", engine.Nobody)
				r.line("server", "127.0.0.1:9", "down")
				r.note("no instance of %s is known: calls to it fail until one is given", u.Name)
			}
			if !bytes {
				r.keepalive(idleUpstream)
				r.age()
			}
		}, "upstream", upstreamName(u.Name))
	}
}

func (r *renderer) keepalive(idle word) {
	r.line("keepalive", "64")
	r.line("keepalive_requests", "1000000")
	r.line("keepalive_timeout", idle)
}

// age bounds how old a connection becomes: it is closed after the answer that finds it older.
func (r *renderer) age() {
	if r.o.Age > 0 {
		r.line("keepalive_time", word(strconv.FormatInt(r.o.Age.Milliseconds(), 10)+"ms"))
	}
}

// serverTLS is what a listener shows and asks for.
func (r *renderer) serverTLS(in mesh.Inbound) {
	where := fmt.Sprintf("port %d", in.Port)
	cert, key := r.o.Current("cert.pem"), r.o.Current("key.pem")
	if in.Certificate != nil {
		cert, key = r.file(in.Certificate.Cert, where), r.file(in.Certificate.Key, where)
	}
	r.line("ssl_certificate", quote(cert))
	r.line("ssl_certificate_key", quote(key))
	r.line(append([]word{"ssl_protocols"}, protocols(in.MinTLS)...)...)
	r.line("ssl_ciphers", engine.Ciphers)
	groups, missing := engine.Groups(in.TLSGroups, where, r.o, &r.refusal)
	r.missing.Add(where, missing)
	r.line("ssl_ecdh_curve", word(groups))
	verify := map[mesh.ClientAuth]word{mesh.Require: "on", mesh.Optional: "optional", mesh.None: "off"}[in.ClientAuth]
	r.line("ssl_verify_client", verify)
	if in.ClientAuth != mesh.None {
		r.line("ssl_client_certificate", quote(r.o.Current("ca.pem")))
		r.line("ssl_verify_depth", depth)
		if r.o.CRL {
			r.line("ssl_crl", quote(r.o.Current("crl.pem")))
		}
	}
}

// depth is how many certificates may stand between a leaf and a root: the issuing CA, and a cross-signed
// root while roots are changed. The CAs' own path lengths bind besides.
const depth word = "2"

// clientTLS is how peers are met; module is proxy or grpc.
func (r *renderer) clientTLS(module string, u mesh.Upstream) {
	name := func(s string) word { return word(module + "_ssl_" + s) }
	r.line(name("certificate"), quote(r.o.Current("cert.pem")))
	r.line(name("certificate_key"), quote(r.o.Current("key.pem")))
	r.line(name("trusted_certificate"), quote(r.o.Current("ca.pem")))
	r.line(name("verify"), "on")
	if r.o.CRL {
		r.line(name("crl"), quote(r.o.Current("crl.pem")))
	}
	r.line(name("verify_depth"), depth)
	r.line(name("server_name"), "on")
	r.line(name("name"), quote(u.ServerName))
	r.line(append([]word{name("protocols")}, protocols(u.MinTLS)...)...)
	r.line(name("ciphers"), engine.Ciphers)
	r.line(name("conf_command"), "Ciphersuites", engine.Suites)
	groups, missing := engine.Groups(u.TLSGroups, "upstream "+u.Name, r.o, &r.refusal)
	r.missing.Add("upstream "+u.Name, missing)
	r.line(name("conf_command"), "Groups", word(groups))
}

// file is a file that the specification names. NGINX would take a $ in it for a variable.
func (r *renderer) file(path, where string) string {
	if !strings.HasPrefix(path, "/") || strings.Contains(path, "$") || strings.ContainsFunc(path, func(c rune) bool { return c < 0x20 || c == 0x7f }) || len(path) > 1024 {
		r.refusal.Addf("%s: the file %q cannot be named: it has to be absolute, without $ and control characters, of at most 1024 bytes", where, path)
	}
	return path
}

func protocols(least mesh.TLSVersion) []word {
	if least == mesh.TLS13 {
		return []word{"TLSv1.3"}
	}
	return []word{"TLSv1.2", "TLSv1.3"}
}
