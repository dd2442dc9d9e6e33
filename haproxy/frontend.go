package haproxy

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"countersign.dev/engine"
	"countersign.dev/mesh"
)

// fileProblem says why a path cannot stand in the configuration.
func fileProblem(path string) string {
	switch {
	case !strings.HasPrefix(path, "/"):
		return "it is not absolute"
	case strings.ContainsFunc(path, func(c rune) bool { return c < 0x20 || c == 0x7f }):
		return "it has a control character"
	case len(path) > 1024:
		return "it has more than 1024 bytes"
	}
	return ""
}

// subject is the caller's, as RFC 2253 prints it; absent where nothing was proved.
const subject word = "ssl_c_s_dn(,0,rfc2253)"

func name(side string, port int, part string) word {
	return word(side + strconv.Itoa(port) + part)
}

// inbound writes a port for peers or for the outside.
func (r *renderer) inbound(in mesh.Inbound) {
	address := quote(r.o.Inbound(in.Port))
	switch in.TLS {
	case mesh.Off:
		r.frontend(in, name("in", in.Port, ""), []word{address})
	case mesh.Strict:
		r.frontend(in, name("in", in.Port, ""), append([]word{address}, r.tls(in)...))
	case mesh.Permissive:
		r.sniff(in)
		inner := func(what string) []word {
			return []word{quote("unix@" + r.o.InRun("in"+strconv.Itoa(in.Port)+"-"+what+".sock")), "mode", "600", "accept-proxy"}
		}
		r.frontend(in, name("in", in.Port, "_tls"), append(inner("tls"), r.tls(in)...))
		r.frontend(in, name("in", in.Port, "_plain"), inner("plain"))
	}
}

// tellCallers notes when a caller whose certificate was proved has connected, once, after its handshake.
func (r *renderer) tellCallers() {
	r.line("tcp-request", "session", "set-var(sess.caller)", subject, "if", "proved")
	r.line("tcp-request", "session", "set-var(sess.serial)", "ssl_c_serial,hex", "if", "proved")
	r.line("tcp-request", "session", "track-sc0", "var(sess.serial),concat(/,sess.caller)", "table", engine.CallersTable, "if", "proved")
	r.line("tcp-request", "session", "sc-set-gpt0(0)", word("date(0,ms),mod("+strconv.FormatInt(engine.CallersClock, 10)+")"), "if", "proved")
}

// sniff takes TLS and plaintext on one port, and hands each to its own inner socket.
func (r *renderer) sniff(in mesh.Inbound) {
	r.section("frontend", name("in", in.Port, ""))
	r.line("mode", "tcp")
	r.line("no", "log")
	r.line("bind", quote(r.o.Inbound(in.Port)))
	r.line("tcp-request", "inspect-delay", silentClient)
	r.line("tcp-request", "content", "accept", "if", "{", "req.ssl_hello_type", "1", "}")
	r.line("tcp-request", "content", "accept", "if", "{", "req.len", "gt", "0", "}")
	r.line("use_backend", name("in", in.Port, "_to_tls"), "if", "{", "req.ssl_hello_type", "1", "}")
	r.line("default_backend", name("in", in.Port, "_to_plain"))
	for _, what := range []string{"tls", "plain"} {
		r.section("backend", name("in", in.Port, "_to_"+what))
		r.line("mode", "tcp")
		r.line("server", "inner", quote("unix@"+r.o.InRun("in"+strconv.Itoa(in.Port)+"-"+what+".sock")), "send-proxy-v2")
	}
}

// frontend writes one listening socket of a port.
func (r *renderer) frontend(in mesh.Inbound, called word, bind []word) {
	r.section("frontend", called)
	r.mode(in.Protocol)
	r.line(append([]word{"bind"}, bind...)...)
	r.line("acl", "proved", "ssl_c_used")
	if r.o.Callers && slices.Contains(bind, "ssl") && in.ClientAuth != mesh.None {
		r.tellCallers()
	}
	if in.Protocol == mesh.TCP {
		r.bytesLog(in.Name, "inbound")
		r.admitBytes(in)
		return
	}
	admitted := ""
	if in.App != 0 {
		admitted = `,"admitted":"%[var(txn.admitted)]"`
	}
	r.age(in)
	r.requests(in.Name, "inbound", admitted)
	r.typeOfRefusals(in)
	r.tunnels(in.Protocol)
	if in.App != 0 {
		r.admit(in)
	}
	r.takeClaims()
	if in.App == 0 {
		r.line("http-request", "del-header", "X-Forwarded-For")
		r.forwardedFor()
		r.routes(in)
		return
	}
	r.passed(in)
	r.line("http-request", "del-header", "X-Forwarded-For", "unless", "proved")
	r.forwardedFor()
	own := format(r.plan.Workload.Identity.String())
	r.line("http-request", "set-header", "X-Client-Cert", "%["+subject+"]", "if", "proved")
	r.line("http-request", "set-header", "X-Forwarded-Client-Cert",
		quote("By="+own+`;Hash=%[ssl_c_der,sha2(256),hex,lower];Subject="%[`+string(subject)+`]"`), "if", "proved")
	r.line("default_backend", appName(in))
}

// age bounds how old a connection becomes: it is closed after the answer that finds it older.
func (r *renderer) age(in mesh.Inbound) {
	if r.o.Age <= 0 {
		return
	}
	r.line("tcp-request", "session", "set-var(sess.began)", "date(0,ms)")
	r.line("http-after-response", "set-header", "Connection", "close", "if", "{", "date(0,ms),sub(sess.began)", "ge", word(strconv.FormatInt(r.o.Age.Milliseconds(), 10)), "}",
		"!{", "status", "101", "}") // there it says what the connection becomes
	r.note("port %d: connections over HTTP/1 are closed when they are %s old; HAProxy ends those over HTTP/2 only when it is stopped, or as a caller after many requests", in.Port, r.o.Age)
}

// requests writes what every listener for requests does first.
// more is added to a line of the access log.
func (r *renderer) requests(listener, direction, more string) {
	r.line("option", "idle-close-on-response")
	r.comment("Fields with other characters in their names than letters, digits and hyphens may be read as others.")
	r.line("option", "http-restrict-req-hdr-names", "delete")
	r.line("http-request", "set-var(txn.method)", "method")
	r.line("http-request", "set-var(txn.path)", "path")
	r.line("http-request", "set-header", "Host", word(r.plan.Workload.Identity.ServerName()), "unless", "{", "req.hdr(host)", "-m", "found", "}")
	r.line("log-format", quote(`{"time":"%[date,utime(%Y-%m-%dT%H:%M:%SZ)]","listener":"`+r.listenerName(listener)+`","direction":"`+direction+
		`","protocol":"%HV","remote":"%ci:%cp","subject":"%[`+string(subject)+`,json(utf8s)]","peerSerial":"%[ssl_c_serial,hex]","tls":"%[ssl_fc_protocol]",`+
		`"method":"%[var(txn.method),json(utf8s)]","path":"%[var(txn.path),json(utf8s)]","status":%ST,"milliseconds":%Ta,"upstream":"%si:%sp","end":"%ts"`+more+`}`))
	r.errorLog(listener, direction)
}

func (r *renderer) bytesLog(listener, direction string) {
	r.line("log-format", quote(`{"time":"%[date,utime(%Y-%m-%dT%H:%M:%SZ)]","listener":"`+r.listenerName(listener)+`","direction":"`+direction+
		`","protocol":"tcp","remote":"%ci:%cp","subject":"%[`+string(subject)+`,json(utf8s)]","peerSerial":"%[ssl_c_serial,hex]","tls":"%[ssl_fc_protocol]",`+
		`"bytesIn":%U,"bytesOut":%B,"milliseconds":%Tt,"upstream":"%si:%sp","end":"%ts"}`))
	r.errorLog(listener, direction)
}

// errorLog writes what the log says of a connection that failed before there was anything else to say: in
// its TLS handshake, most often. Without it HAProxy writes a line that is no JSON.
func (r *renderer) errorLog(listener, direction string) {
	r.line("error-log-format", quote(`{"time":"%[date,utime(%Y-%m-%dT%H:%M:%SZ)]","listener":"`+r.listenerName(listener)+`","direction":"`+direction+
		`","remote":"%ci:%cp","error":"%[fc_err_str,json(utf8s)]","tlsError":"%[ssl_fc_err_str,json(utf8s)]","certificateError":"%[ssl_c_err]"}`))
}

// listenerName is a listener's name in the statistics, which goes into a log-format.
func (r *renderer) listenerName(name string) string {
	if !listenerForm.MatchString(name) {
		r.refusal.Addf("%q is not the name of a listener", name)
	}
	return name
}

var listenerForm = regexp.MustCompile(`^[0-9.]+_[0-9]+$`)

// tunnels lets no request pass that would make of its connection something that nobody judges, but for
// WebSockets.
func (r *renderer) tunnels(protocol mesh.Protocol) {
	r.answer(protocol, "400", "13", engine.Tunnel, "if", "{", "method", "CONNECT", "}")
	// A list of protocols, in one field or in several, lets the application choose another than the WebSocket.
	r.line("http-request", "set-var(txn.websocket)", "int(1)", "if",
		"{", "req.fhdr_cnt(upgrade)", "eq", "1", "}", "{", "req.fhdr(upgrade)", "-m", "str", "-i", "websocket", "}")
	r.line("http-request", "del-header", "Upgrade", "unless", "{", "var(txn.websocket)", "-m", "found", "}")
	r.line("http-request", "del-header", "HTTP2-Settings")
	// HAProxy tunnels after any 101, whatever was asked for.
	r.line("http-response", "set-var(txn.switched)", "int(1)", "if", "{", "var(txn.websocket)", "-m", "found", "}",
		"{", "res.fhdr_cnt(upgrade)", "eq", "1", "}", "{", "res.fhdr(upgrade)", "-m", "str", "-i", "websocket", "}")
	r.line("http-response", "deny", "status", "502", "content-type", "application/json", "string", quote(engine.JSONError(engine.Switched)),
		"if", "{", "status", "101", "}", "!{", "var(txn.switched)", "-m", "found", "}")
}

// takeClaims removes what a caller says about its own certificate, and the announcement of trailers, which
// might say it later.
func (r *renderer) takeClaims() {
	for _, field := range []word{"X-Client-Cert", "X-Forwarded-Client-Cert", "Trailer"} {
		r.line("http-request", "del-header", field)
	}
}

func (r *renderer) forwardedFor() {
	r.line("http-request", "add-header", "X-Forwarded-For", "%[src]")
}

// typeOfRefusals lets refusals of a gRPC port have gRPC's content type, which an answer without content
// cannot be given where it is made. It stands before the answers.
func (r *renderer) typeOfRefusals(in mesh.Inbound) {
	if in.Protocol == mesh.GRPC {
		r.line("http-after-response", "set-header", "Content-Type", "application/grpc", "unless", "{", "var(txn.passed)", "-m", "found", "}")
	}
}

// passed ends what [renderer.typeOfRefusals] began: from here on the upstream answers.
func (r *renderer) passed(in mesh.Inbound) {
	if in.Protocol == mesh.GRPC {
		r.line("http-request", "set-var(txn.passed)", "int(1)")
	}
}

// answer writes how a request is answered that is not passed on. The condition follows.
func (r *renderer) answer(protocol mesh.Protocol, status, grpcStatus word, reason string, condition ...word) {
	words := []word{"http-request", "return", "status", status, "content-type", "application/json", "string", quote(engine.JSONError(reason))}
	if protocol == mesh.GRPC {
		words = []word{
			"http-request", "return", "status", "200", "hdr", "grpc-status", grpcStatus, "hdr", "grpc-message", quote(format(reason)),
		}
	}
	r.line(append(words, condition...)...)
}

// callerACL declares who one rule's callers are.
func (r *renderer) callerACL(rule engine.Rule, n string) {
	for _, s := range rule.Subjects {
		r.line("acl", word("from"+n), subject, "-m", "reg", "--", quote("^(?:"+s+")$"))
	}
}

// admit writes the policy of a port that carries requests.
func (r *renderer) admit(in mesh.Inbound) {
	rules := engine.Rules(r.plan, in, &r.refusal)
	var plain []word
	if engine.JudgesPaths(rules) {
		r.plainPath()
		plain = []word{"plain"}
	}
	for i, rule := range rules {
		n := strconv.Itoa(i + 1)
		r.callerACL(rule, n)
		conditions := append([]word{}, plain...)
		for _, m := range rule.Methods {
			r.line("acl", word("method"+n), "method", "-m", "str", "--", quote(m))
		}
		if len(rule.Methods) > 0 {
			conditions = append(conditions, word("method"+n))
		}
		for _, p := range rule.Paths {
			r.line("acl", word("path"+n), "var(txn.decoded)", "-m", "reg", "--", quote(p))
		}
		if len(rule.Paths) > 0 {
			conditions = append(conditions, word("path"+n))
		}
		admitted := []word{"http-request", "set-var(txn.admitted)", "int(1)", "if"}
		if len(rule.Subjects) > 0 {
			r.line(append(append(admitted[:4:4], "proved", word("from"+n)), conditions...)...)
		}
		if rule.Anonymous {
			r.line(append(append(admitted[:4:4], "!proved"), conditions...)...)
		}
	}
	r.answer(in.Protocol, "403", "7", engine.Denied, "unless", "{", "var(txn.admitted)", "-m", "found", "}")
}

// plainPath declares what is needed to judge paths.
func (r *renderer) plainPath() {
	r.line("acl", "plain", "path", "-m", "reg", "--", quote(engine.PlainPath))
	r.line("http-request", "set-var(txn.decoded)", "path,url_dec")
}

// admitBytes writes the policy of a tcp port, and where its connections go.
func (r *renderer) admitBytes(in mesh.Inbound) {
	var route *mesh.Route
	total := 0
	if in.App == 0 {
		route = &in.Routes[0]
		for _, d := range route.To {
			total += d.Weight
		}
		r.line("tcp-request", "content", "set-var(sess.dice)", word("rand("+strconv.Itoa(total)+")"))
	}
	for i, rule := range engine.Rules(r.plan, in, &r.refusal) {
		n := strconv.Itoa(i + 1)
		r.callerACL(rule, n)
		if len(rule.Subjects) > 0 {
			r.line("tcp-request", "content", "accept", "if", "proved", word("from"+n))
		}
		if rule.Anonymous {
			r.line("tcp-request", "content", "accept", "if", "!proved")
		}
	}
	r.line("tcp-request", "content", "reject")
	if route == nil {
		r.line("default_backend", appName(in))
		return
	}
	r.shares("sess.dice", route.To)
}

// shares leads to the destinations of a route by weight; the conditions come first.
func (r *renderer) shares(dice word, to []mesh.Destination, conditions ...word) {
	sum := 0
	for _, d := range to {
		if d.Weight == 0 {
			continue
		}
		sum += d.Weight
		words := append([]word{"use_backend", upstreamName(d.Upstream), "if"}, conditions...)
		r.line(append(words, "{", "var("+dice+")", "-m", "int", "lt", word(strconv.Itoa(sum)), "}")...)
	}
}

// routes writes where a gateway's requests go: the first route that matches is kept in a variable.
func (r *renderer) routes(in mesh.Inbound) {
	r.plainPath()
	judges := false
	for i, route := range in.Routes {
		n := strconv.Itoa(i + 1)
		m := engine.RouteMatch(in, route.Match, &r.refusal)
		judges = judges || route.Match.Path != "" || route.Match.Prefix != "" && route.Match.Prefix != "/"
		conditions := []word{"!{", "var(txn.route)", "-m", "found", "}"}
		condition := func(what string, words ...word) {
			r.line(append([]word{"acl", word(what + n)}, words...)...)
			if conditions[len(conditions)-1] != word(what+n) {
				conditions = append(conditions, word(what+n))
			}
		}
		if m.Path != "" {
			condition("path", "var(txn.decoded)", "-m", "reg", "--", quote(m.Path))
		}
		for _, method := range m.Methods {
			condition("method", "method", "-m", "str", "--", quote(method))
		}
		if m.Host != "" {
			condition("host", "req.hdr(host)", "-m", "reg", "-i", "--", quote(m.Host))
		}
		for j, h := range m.Headers { // the name was checked: letters, digits and hyphens
			condition(fmt.Sprintf("header%d_", j+1), word("req.fhdr("+h.Name+")"), "-m", "str", "--", quote(h.Value))
		}
		r.line(append([]word{"http-request", "set-var(txn.route)", word("int(" + n + ")"), "if"}, conditions...)...)
	}
	if judges {
		r.answer(in.Protocol, "400", "13", engine.Ambiguous, "unless", "plain")
	}
	r.answer(in.Protocol, "404", "12", engine.NoRoute, "unless", "{", "var(txn.route)", "-m", "found", "}")
	r.passed(in)
	this := func(i int) []word {
		return []word{"{", "var(txn.route)", "-m", "int", word(strconv.Itoa(i + 1)), "}"}
	}
	for i, route := range in.Routes {
		total := 0
		for _, d := range route.To {
			total += d.Weight
		}
		r.line(append([]word{"http-request", "set-var(txn.dice)", word("rand(" + strconv.Itoa(total) + ")"), "if"}, this(i)...)...)
	}
	for i, route := range in.Routes {
		r.shares("txn.dice", route.To, this(i)...)
	}
}

// outbound writes a listener for the application.
func (r *renderer) outbound(out mesh.Outbound) {
	peer, _ := r.plan.Upstream(out.Upstream)
	r.section("frontend", name("out", out.Listen, ""))
	r.mode(out.Protocol)
	r.line("bind", quote(r.o.Outbound(out.Listen)))
	if out.Protocol == mesh.TCP {
		r.bytesLog(out.Name, "outbound")
	} else {
		r.line("timeout", "http-keep-alive", silence)
		r.requests(out.Name, "outbound", "")
		r.tunnels(out.Protocol)
		r.takeClaims()
	}
	r.line("default_backend", upstreamName(peer.Name))
}
