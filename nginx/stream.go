package nginx

import (
	"fmt"
	"regexp"

	"countersign.dev/engine"
	"countersign.dev/mesh"
)

// quoteMeta is a text as a regular expression that PCRE reads as Go does.
func quoteMeta(text string) string { return regexp.QuoteMeta(text) }

// stream writes everything that carries bytes, and the ports that take TLS and plaintext.
func (r *renderer) stream() {
	r.block(func() {
		r.line("proxy_connect_timeout", connectTimeout)
		r.line("proxy_timeout", silence)
		r.line("proxy_half_close", "on")
		r.line("ssl_handshake_timeout", handshakeTimeout)
		r.switchOn("$ssl_client_verify", "$cs_who", "refused",
			choice{"SUCCESS", "$ssl_client_s_dn"}, choice{"NONE", "anonymous"}, choice{`""`, "anonymous"})
		if r.o.Callers {
			r.switchOn("$ssl_client_verify", "$cs_proved", `""`, choice{"SUCCESS", "$ssl_client_serial"})
			r.line("log_format", callersLog, "escape=json", callersFormat)
		}
		r.upstreams(true)
		for _, in := range r.plan.Inbound {
			if in.TLS == mesh.Permissive {
				r.sniff(in)
			}
			if in.Protocol == mesh.TCP {
				r.inboundBytes(in)
			}
		}
		for _, out := range r.plan.Outbound {
			if out.Protocol == mesh.TCP {
				r.outboundBytes(out)
			}
		}
	}, "stream")
}

// sniff takes TLS and plaintext on one port, and hands each to its own inner socket.
func (r *renderer) sniff(in mesh.Inbound) {
	r.comment("Port %d takes TLS and plaintext.", in.Port)
	r.switchOn("$ssl_preread_protocol", variable(in, "inner"), r.socket(in, "tls"), choice{`""`, r.socket(in, "plain")})
	r.block(func() {
		r.line("listen", quote(r.o.Inbound(in.Port)))
		r.line("ssl_preread", "on")
		r.line("preread_timeout", silentClient)
		r.line("proxy_protocol", "on")
		r.line("proxy_pass", variable(in, "inner"))
	}, "server")
}

// inboundBytes writes a tcp port. Who is not admitted is led to an empty name, so that the connection is
// closed before a byte of it is passed on.
func (r *renderer) inboundBytes(in mesh.Inbound) {
	var to word
	if in.App == 0 {
		to = r.destination(in, 0, in.Routes[0], quote("$remote_addr $remote_port $msec"))
	} else {
		to = appName(in.App)
	}
	r.comment("Whom port %d admits.", in.Port)
	var admitted []choice
	for _, rule := range engine.Rules(r.plan, in, &r.refusal) {
		for _, subject := range rule.Subjects {
			admitted = append(admitted, choice{matches("^(?:" + subject + ")$"), to})
		}
		if rule.Anonymous {
			admitted = append(admitted, choice{matches("^anonymous$"), to})
		}
	}
	r.switchOn("$cs_who", variable(in, "to"), `""`, admitted...)
	r.bytesLog(logName("in", in.Port), in.Name, "inbound", "$cs_who", "$ssl_client_serial")
	switch in.TLS {
	case mesh.Off:
		r.bytesServer(in, quote(r.o.Inbound(in.Port)), false, false)
	case mesh.Strict:
		r.bytesServer(in, quote(r.o.Inbound(in.Port)), true, false)
	case mesh.Permissive:
		r.bytesServer(in, r.socket(in, "tls"), true, true)
		r.bytesServer(in, r.socket(in, "plain"), false, true)
	}
}

func (r *renderer) bytesServer(in mesh.Inbound, address word, tls, behind bool) {
	r.block(func() {
		words := []word{"listen", address}
		if tls {
			words = append(words, "ssl")
		}
		if behind {
			words = append(words, "proxy_protocol")
		}
		r.line(words...)
		r.line("access_log", "/dev/stdout", logName("in", in.Port))
		if behind {
			r.line("set_real_ip_from", "unix:")
		}
		if tls {
			r.serverTLS(in)
			r.tellCallers(in, "$cs_proved")
		}
		// A gateway's upstream says by itself how it is met, and only one kind of it can stand behind a name.
		if in.App == 0 {
			r.gatewayBytes(in)
		}
		r.line("proxy_pass", variable(in, "to"))
	}, "server")
}

// gatewayBytes writes how the upstreams of a tcp route are met. One server block meets all of its
// upstreams in one way, so that they may differ only in their names.
func (r *renderer) gatewayBytes(in mesh.Inbound) {
	var first *mesh.Upstream
	for _, d := range in.Routes[0].To {
		u, ok := r.plan.Upstream(d.Upstream)
		if d.Weight == 0 || !ok {
			continue
		}
		if first == nil {
			first = u
			continue
		}
		if first.TLS || u.TLS {
			r.refusal.Addf("port %d: a tcp route of NGINX splits only between upstreams in plaintext: it expects one name of all of them", in.Port)
		}
	}
	if first != nil && first.TLS {
		r.line("proxy_ssl", "on")
		r.clientTLS("proxy", *first)
	}
}

func (r *renderer) outboundBytes(out mesh.Outbound) {
	peer, _ := r.plan.Upstream(out.Upstream)
	r.bytesLog(logName("out", out.Listen), out.Name, "outbound", quote(r.plan.Workload.Identity.String()), `""`)
	r.block(func() {
		r.line("listen", quote(r.o.Outbound(out.Listen)))
		r.line("access_log", "/dev/stdout", logName("out", out.Listen))
		if peer.TLS {
			r.line("proxy_ssl", "on")
			r.clientTLS("proxy", *peer)
		}
		r.line("proxy_pass", upstreamName(peer.Name))
	}, "server")
}

// bytesLog writes what the access log says of a connection.
func (r *renderer) bytesLog(name word, listener, direction string, caller, serial word) {
	r.line("log_format", name, "escape=json", quote(fmt.Sprintf(
		`{"time":"$time_iso8601","listener":"%s","direction":"%s","protocol":"tcp","remote":"$remote_addr:$remote_port","caller":"%s",`+
			`"peerSerial":"%s","tls":"$ssl_protocol","bytesIn":$bytes_received,"bytesOut":$bytes_sent,"seconds":$session_time,"upstream":"$upstream_addr","verify":"$ssl_client_verify"}`,
		r.listenerName(listener), direction, bare(caller), bare(serial))))
}
