package nginx

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"countersign.dev/engine"
	"countersign.dev/mesh"
)

// http writes everything that carries requests, and the status page.
func (r *renderer) http() {
	r.block(func() {
		for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
			r.line(word(kind+"_temp_path"), quote(r.o.InRun(kind)))
		}
		r.line("server_tokens", "off")
		r.line("default_type", "application/octet-stream")
		r.comment("Bodies are passed on as they come, of any size.")
		r.line("client_max_body_size", "0")
		r.line("proxy_buffering", "off")
		r.line("proxy_request_buffering", "off")
		r.line("proxy_http_version", "1.1")
		r.line("client_header_timeout", headTimeout)
		r.line("keepalive_timeout", idlePeer)
		r.line("keepalive_requests", "1000000")
		for _, name := range []word{"client_body_timeout", "send_timeout", "proxy_read_timeout", "proxy_send_timeout", "grpc_read_timeout", "grpc_send_timeout"} {
			r.line(name, silence)
		}
		r.line("proxy_connect_timeout", connectTimeout)
		r.line("grpc_connect_timeout", connectTimeout)
		r.comment("Fields whose names have other characters than letters, digits and hyphens are dropped: applications may read them as others.")
		r.line("ignore_invalid_headers", "on")
		r.line("underscores_in_headers", "off")
		r.callers()
		if r.o.Callers {
			r.comment("Who calls with which certificate is told once for each connection.")
			r.switchOn("$connection_requests", "$cs_first", `""`, choice{"1", "$cs_caller"})
			r.line("log_format", callersLog, "escape=json", callersFormat)
		}
		r.requests()
		r.upstreams(false)
		for _, in := range r.plan.Inbound {
			if in.Protocol != mesh.TCP {
				r.inbound(in)
			}
		}
		for _, out := range r.plan.Outbound {
			if out.Protocol != mesh.TCP {
				r.outbound(out)
			}
		}
		r.block(func() {
			r.line("listen", quote("unix:"+r.o.InRun("status.sock")))
			r.line("access_log", "off")
			r.block(func() { r.line("stub_status") }, "location", "=", "/stub_status")
			if r.o.Generation != "" {
				r.block(func() { r.line("return", "200", quote(r.o.Generation)) }, "location", "=", "/generation")
			}
		}, "server")
	}, "http")
}

// callers writes who it is that speaks, and what the application is told about it. A client whose
// certificate is not good never gets as far as these are used.
func (r *renderer) callers() {
	r.comment("Who speaks: the subject of a certificate that was proved, or nobody in particular.")
	r.switchOn("$ssl_client_verify", "$cs_who", "refused",
		choice{"SUCCESS", "$ssl_client_s_dn"}, choice{"NONE", "anonymous"}, choice{`""`, "anonymous"})
	r.switchOn("$ssl_client_verify", "$cs_subject", `""`, choice{"SUCCESS", "$ssl_client_s_dn"})
	r.switchOn("$ssl_client_verify", "$cs_forwarded_client_cert", `""`, choice{"SUCCESS", r.forwardedClientCert()})
	r.switchOn("$ssl_client_verify", "$cs_forwarded_for", "$remote_addr", choice{"SUCCESS", "$proxy_add_x_forwarded_for"})
	domain := r.plan.TrustDomain
	known := []choice{{
		matches("^CN=(?<cs_name>[a-z0-9-]+),OU=(?<cs_kind>service|gateway),O=" + regexp.QuoteMeta(domain) + "$"),
		quote("spiffe://" + domain + "/$cs_kind/$cs_name"),
	}}
	for _, name := range engine.NamedCallers(r.plan) {
		known = append(known, choice{matches("^" + regexp.QuoteMeta(engine.NamedDN(name)) + "$"), quote(mesh.FromDNS + name)})
	}
	r.switchOn("$cs_who", "$cs_caller", `""`, known...)
}

// forwardedClientCert is what is told of a caller whose certificate was proved.
func (r *renderer) forwardedClientCert() word {
	return quote("By=" + r.plan.Workload.Identity.String() + `;Subject="$ssl_client_s_dn"`)
}

// told is what the application is told about the caller. Where nobody gets as far without a good certificate, it is
// said without the detours by which the other listeners find out whether there is one: each costs something in every
// request.
func (r *renderer) told(proved bool) []field {
	if proved {
		return []field{
			{"X-Client-Cert", "$ssl_client_s_dn"},
			{"X-Forwarded-Client-Cert", r.forwardedClientCert()},
			{"X-Forwarded-For", "$proxy_add_x_forwarded_for"},
		}
	}
	return []field{
		{"X-Client-Cert", "$cs_subject"},
		{"X-Forwarded-Client-Cert", "$cs_forwarded_client_cert"},
		{"X-Forwarded-For", "$cs_forwarded_for"},
	}
}

// requests writes what is looked at in a request.
func (r *renderer) requests() {
	r.comment("A WebSocket is the one change of protocol that is passed on.")
	r.switchOn("$http_upgrade", "$cs_upgrade", `""`, choice{`"~*^websocket$"`, "websocket"})
	r.switchOn("$cs_upgrade", "$cs_connection", "upgrade", choice{`""`, `""`})
	r.switchOn("$http_host", "$cs_host", "$http_host", choice{`""`, quote(r.plan.Workload.Identity.ServerName())})
	r.comment("Paths that every application reads in one way; $uri is their decoding.")
	r.switchOn("$request_uri", "$cs_plain", "0", choice{matches(engine.PlainPath), "1"})
	r.switchOn("$request_uri", "$cs_path", "$request_uri", choice{`"~^(?<cs_sent>[^?]*)\\?"`, "$cs_sent"})
}

// inbound writes a listener for peers or for the outside.
func (r *renderer) inbound(in mesh.Inbound) {
	if in.App == 0 {
		r.routes(in)
	} else {
		r.admission(in)
	}
	admitted := word(`""`)
	if in.App != 0 {
		admitted = variable(in, "admits")
	}
	r.logFormat(logName("in", in.Port), in.Name, "inbound", "$cs_caller", "$ssl_client_serial", "$ssl_protocol",
		pair{"verify", "$ssl_client_verify"}, pair{"admitted", admitted})
	http2 := in.Protocol != mesh.HTTP
	switch in.TLS {
	case mesh.Off:
		r.server(in, quote(r.o.Inbound(in.Port)), false, http2, false)
	case mesh.Strict:
		r.server(in, quote(r.o.Inbound(in.Port)), true, true, false)
	case mesh.Permissive:
		r.server(in, r.socket(in, "tls"), true, true, true)
		r.server(in, r.socket(in, "plain"), false, http2, true)
	}
}

// server writes one listening socket of a port. behind tells that the stream module stands in front.
func (r *renderer) server(in mesh.Inbound, address word, tls, http2, behind bool) {
	r.block(func() {
		r.listen(address, tls, http2, behind)
		if in.App != 0 && in.Protocol != mesh.HTTP {
			r.comment("Over HTTP/2 peers leave by themselves: what they send while NGINX closes a connection is not served.")
			r.line("keepalive_time", "365d")
		} else {
			r.age()
		}
		r.line("access_log", "/dev/stdout", logName("in", in.Port))
		if tls {
			r.tellCallers(in, "$cs_first")
		}
		if behind {
			r.line("set_real_ip_from", "unix:")
			r.line("real_ip_header", "proxy_protocol")
		}
		if tls {
			r.serverTLS(in)
			r.strangers(in)
		}
		r.line("error_page", "403", "=", "@denied")
		r.answer("@denied", in.Protocol, "403", "7", engine.Denied)
		if in.App == 0 {
			r.gateway(in)
			return
		}
		r.block(func() {
			r.block(func() { r.line("return", "403") }, "if", "("+variable(in, "admits"), "=", "0)")
			r.pass(in.Protocol, appName(in.App), nil, r.told(tls && in.ClientAuth == mesh.Require))
		}, "location", "/")
	}, "server")
}

// listen writes the socket; since 1.25.1 HTTP/2 is a directive of its own.
func (r *renderer) listen(address word, tls, http2, behind bool) {
	words := []word{"listen", address}
	if tls {
		words = append(words, "ssl")
	}
	own := engine.AtLeast(r.o.Version, "1.25.1")
	if http2 && !own {
		words = append(words, "http2")
	}
	if behind {
		words = append(words, "proxy_protocol")
	}
	r.line(words...)
	if http2 && own {
		r.line("http2", "on")
	}
}

// strangers closes on whoever has not proved what the port asks for: a bad certificate (495), none (496),
// no TLS (497), and where one is required also on requests that were not understood (400, 494).
func (r *renderer) strangers(in mesh.Inbound) {
	r.line("error_page", "495", "496", "497", "=", "@close")
	r.block(func() { r.line("return", "444") }, "location", "@close")
	if in.ClientAuth == mesh.Require {
		r.line("error_page", "400", "414", "494", "=", malformed)
		r.block(func() {
			r.line("internal")
			r.block(func() { r.line("return", "444") }, "if", "($ssl_client_verify", "!=", "SUCCESS)")
			r.line("return", "400")
		}, "location", "=", malformed)
	}
}

// malformed is a location with a path of its own: a named one cannot be reached without a path, which a
// request may lack that was not understood.
const malformed word = "/@malformed"

// admission writes the policy of a port: a bit for each rule whose callers the client is among, and then
// the rules themselves on these bits, the method and the path.
func (r *renderer) admission(in mesh.Inbound) {
	rules := engine.Rules(r.plan, in, &r.refusal)
	r.comment("Whom port %d admits.", in.Port)
	var bits []word
	for i, rule := range rules {
		from := rule.Subjects
		if rule.Anonymous {
			from = append(from, "anonymous")
		}
		bit := variable(in, "from"+strconv.Itoa(i+1))
		var admitted []choice
		for _, subject := range from {
			admitted = append(admitted, choice{matches("^(?:" + subject + ")$"), "1"})
		}
		r.switchOn("$cs_who", bit, "0", admitted...)
		bits = append(bits, bit)
	}
	plain := "."
	if engine.JudgesPaths(rules) {
		plain = "1"
	}
	var choices []choice
	for i, rule := range rules {
		expression := "^" + bitPattern(len(rules), i) + " " + plain
		methods, paths := "[^ ]+", ""
		if len(rule.Methods) > 0 {
			methods = "(?:" + strings.Join(rule.Methods, "|") + ")" // of letters, digits, _ and -
		}
		if len(rule.Paths) == 0 {
			choices = append(choices, choice{matches(expression + " " + methods + " "), "1"})
		}
		for _, paths = range rule.Paths {
			choices = append(choices, choice{matches(expression + " " + methods + " " + strings.TrimPrefix(paths, "^")), "1"})
		}
	}
	source := join(bits) + " . $request_method $uri"
	if plain == "1" { // the expression is not cheap
		source = join(bits) + " $cs_plain $request_method $uri"
	}
	r.switchOn(quote(source), variable(in, "admits"), "0", choices...)
}

// bitPattern is one bit that is set among others that do not matter.
func bitPattern(of, set int) string {
	return strings.Repeat(".", set) + "1" + strings.Repeat(".", of-set-1)
}

func join(words []word) string {
	var b strings.Builder
	for _, w := range words {
		b.WriteString(string(w))
	}
	return b.String()
}

// field is one that the next hop is told.
type field struct{ name, value word }

// claims takes away what only the receiving sidecar may say.
var claims = []field{{"X-Client-Cert", `""`}, {"X-Forwarded-Client-Cert", `""`}}

// pass writes where requests go. peer is nil for the application.
func (r *renderer) pass(protocol mesh.Protocol, to word, peer *mesh.Upstream, fields []field) {
	module, scheme := "proxy", "http"
	if protocol != mesh.HTTP { // the one module that speaks HTTP/2 to an upstream
		module, scheme = "grpc", "grpc"
	}
	encrypted := peer != nil && peer.TLS
	if encrypted {
		scheme += "s"
	}
	r.line(word(module+"_pass"), word(scheme+"://")+to)
	set := word(module + "_set_header")
	r.line(set, "Host", "$cs_host")
	r.line(set, "Trailer", `""`) // there are none any more
	if module == "proxy" {
		r.line(set, "Connection", "$cs_connection")
		r.line(set, "Upgrade", "$cs_upgrade")
	}
	for _, f := range fields {
		r.line(set, f.name, f.value)
	}
	if encrypted {
		r.clientTLS(module, *peer)
	}
}

// outbound writes a listener for the application.
func (r *renderer) outbound(out mesh.Outbound) {
	peer, _ := r.plan.Upstream(out.Upstream)
	r.logFormat(logName("out", out.Listen), out.Name, "outbound", quote(r.plan.Workload.Identity.String()), `""`, `""`)
	r.block(func() {
		r.listen(quote(r.o.Outbound(out.Listen)), false, out.Protocol != mesh.HTTP, false)
		r.line("access_log", "/dev/stdout", logName("out", out.Listen))
		r.line("keepalive_timeout", silence)
		r.block(func() { r.pass(peer.Protocol, upstreamName(peer.Name), peer, claims) }, "location", "/")
	}, "server")
}

// answer writes a location that answers by itself: JSON, or a gRPC status without content, which is sent
// as the one block of fields that there is.
func (r *renderer) answer(name word, protocol mesh.Protocol, status, grpcStatus word, reason string) {
	r.block(func() {
		if protocol == mesh.GRPC {
			r.line("default_type", "application/grpc")
			r.line("add_header", "grpc-status", grpcStatus, "always")
			r.line("add_header", "grpc-message", quote(reason), "always")
			r.line("return", "200", `""`)
			return
		}
		r.line("default_type", "application/json")
		r.line("return", status, quote(engine.JSONError(reason)))
	}, "location", name)
}

func logName(side string, port int) word { return word(side + strconv.Itoa(port)) }

// pair is a member of a line of the access log.
type pair struct {
	name  string
	value word
}

// logFormat writes what the access log says of a request: no header's value, no body and no query.
func (r *renderer) logFormat(name word, listener, direction string, caller, serial, tls word, more ...pair) {
	var further strings.Builder
	for _, p := range more {
		fmt.Fprintf(&further, `,"%s":"%s"`, p.name, bare(p.value))
	}
	r.line("log_format", name, "escape=json", quote(fmt.Sprintf(
		`{"time":"$time_iso8601","listener":"%s","direction":"%s","protocol":"$server_protocol","remote":"$remote_addr:$remote_port",`+
			`"caller":"%s","peerSerial":"%s","tls":"%s","method":"$request_method","path":"$cs_path","status":$status,`+
			`"bytesOut":$body_bytes_sent,"seconds":$request_time,"upstream":"$upstream_addr","upstreamStatus":"$upstream_status"%s}`,
		r.listenerName(listener), direction, bare(caller), bare(serial), bare(tls), further.String())))
}

// What is told of a caller whose certificate was proved, and under which name.
const (
	callersLog    word = "callers"
	callersFormat word = `"$ssl_client_serial $ssl_client_s_dn"`
)

// tellCallers sends what is told of a caller to whoever watches, when a variable is not empty. NGINX does not wait for him:
// a datagram that finds no place is lost.
func (r *renderer) tellCallers(in mesh.Inbound, when word) {
	if r.o.Callers && in.ClientAuth != mesh.None {
		r.line("access_log", quote("syslog:server=unix:"+r.o.InRun(engine.CallersSocket)+",nohostname,tag="+engine.CallersTag), callersLog, "if="+when)
	}
}

// bare takes the quotation marks of a word away that is to stand inside of another.
func bare(w word) string { return strings.TrimSuffix(strings.TrimPrefix(string(w), `"`), `"`) }

// listenerName is a listener's name in the statistics, which goes where variables are known.
func (r *renderer) listenerName(name string) string {
	if !listenerForm.MatchString(name) {
		r.refusal.Addf("%q is not the name of a listener", name)
	}
	return name
}

var listenerForm = regexp.MustCompile(`^[0-9.]+_[0-9]+$`)
