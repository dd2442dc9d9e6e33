package mesh

import "regexp"

// The table of the specification: every key, what it may hold, what it means and what holds when it
// is left out. specShape is its root.
var specShape = &shape{
	kind: mappingKind, name: "specification",
	doc: "The whole specification: one file, or the files of a directory, whose `services`, `gateways`, `stores` and " +
		"`authorities` are joined while every other key stands in one of them.",
	fields: []field{
		{
			name: "mesh", shape: meshName, required: true,
			doc:     "The name of the mesh.",
			missing: "name the mesh, such as \"mesh: shop\"",
		},
		{
			name: "trustDomain", shape: trustDomainName, otherwise: "the mesh's name and `.internal`",
			doc: "The trust domain: the authority of every SPIFFE ID and the end of every workload's DNS name. " +
				"The certificate authority is bound to it for ever.",
		},
		{
			name: "certificates", shape: certificatesShape, otherwise: "the defaults below",
			doc: "What the certificates of the workloads are like.",
		},
		{
			name: "minTLS", shape: enum("TLS version", string(TLS12), string(TLS13)), preset: string(TLS12),
			doc: "The lowest TLS version that is spoken. In quotes: 1.2 without them is a number.",
		},
		{
			name: "tlsGroups", shape: tlsGroups, preset: groupNames(DefaultTLSGroups()),
			doc: "The key exchanges that are spoken, by their names at IANA, in the order in which they are preferred: the " +
				"order shown. Those with MLKEM, of TLS 1.3 only, are safe against the quantum computers of the future.",
		},
		{
			name: "revocation", shape: enum("word for revocation", revocationCheck, revocationNone), preset: revocationCheck,
			doc: "Whether certificates are looked up in revocation lists: `check` refuses what was revoked, `none` relies on the " +
				"certificates' short lives, and is said in `countersign status`.",
		},
		{
			name: "staleCRL", shape: enum("word for stale lists", string(StaleRefuse), string(StaleServe)), preset: string(StaleRefuse),
			doc: "What happens when a revocation list is older than it may be: `refuse` refuses the certificates that it speaks " +
				"for, `serve` uses the old list and raises an alarm; the engines nginx and haproxy are given no list then, and let in also who is on the old one.",
		},
		{
			name: "stores", shape: &shape{kind: dictionaryKind, name: "stores", keys: meshName, elem: storeShape},
			doc: "Secret stores by name, for `delivery`.",
		},
		{
			name: "authorities", shape: &shape{kind: dictionaryKind, name: "authorities", keys: meshName, elem: authorityShape},
			doc: "Certificate authorities by name, for `certificates.authority`.",
		},
		{
			name: "services", shape: &shape{kind: dictionaryKind, name: "services", keys: workloadName, elem: serviceShape},
			doc: "The services by name. A service is a workload with an application, and its name is its identity: " +
				"`spiffe://TRUST-DOMAIN/service/NAME`.",
		},
		{
			name: "gateways", shape: &shape{kind: dictionaryKind, name: "gateways", keys: workloadName, elem: gatewayShape},
			doc: "The gateways by name. A gateway lets traffic from outside into the mesh; its identity is " +
				"`spiffe://TRUST-DOMAIN/gateway/NAME`. No gateway has the name of a service.",
		},
	},
}

var certificatesShape = &shape{
	kind: mappingKind, name: "certificates",
	doc: "The mesh says what certificates are like; a service or a gateway may say it anew, field by field.",
	fields: []field{
		{
			name: "ttl", shape: ttl, otherwise: "`168h`",
			doc: "How long a certificate is valid from its issue.",
		},
		{
			name: "renewAfter", shape: renewAfter, otherwise: "5/7 of `ttl`",
			doc: "The age at which a certificate is replaced; below `ttl`. Where a service or a gateway gives a `ttl` " +
				"and no `renewAfter`, it is 5/7 of that `ttl`, whatever the mesh says. A certificate in a store is taken up earlier, by " +
				"a part of it from nothing to a tenth that the workload's name decides, so that not all are rotated at once.",
		},
		{
			name: "key", shape: enum("key type", string(ECDSAP256), string(ECDSAP384), string(RSA2048), string(RSA3072), string(RSA4096), string(Ed25519)),
			otherwise: "`ecdsa-p256`",
			doc:       "The algorithm and the size of the key, which the workload, or with a store the rotation, makes itself.",
		},
		{
			name: "authority", shape: authorityReference, otherwise: "the certificate authority of the server",
			doc: "Who issues, by a name below `authorities`.",
		},
	},
}

var serviceShape = &shape{
	kind: mappingKind, name: "service",
	doc: "With no `allow` a port admits exactly the services that call it and the gateways that route to it, and " +
		"callers without identity where the TLS mode lets them connect. The graph is the policy.",
	fields: append([]field{
		{
			name: "ports", shape: &shape{kind: listKind, name: "ports", elem: portShape},
			doc: "Where peers connect. A service that only calls others has none.",
		},
		{
			name: "tls", shape: tlsMode, preset: string(Strict),
			doc: "What the ports take: `strict` is TLS alone, `permissive` TLS and plaintext on one port, `off` plaintext alone.",
		},
		{
			name: "clientAuth", shape: clientAuth, preset: string(Require),
			doc: "What the ports ask of a TLS client: `require` a certificate of the mesh, `optional` a good one or " +
				"none, `none` nothing. With `tls: off` there is nobody to ask.",
		},
		{
			name: "allow", shape: &shape{kind: listKind, name: "rules", elem: allowShape}, otherwise: "the graph",
			doc: "Who is admitted, in words, instead of the graph: a request passes when one rule matches. An empty list admits nobody.",
		},
		{
			name: "names", shape: &shape{kind: listKind, name: "DNS names", elem: dnsName},
			doc: "Further DNS names of the certificate, beside `NAME` and `NAME.TRUST-DOMAIN`. A DNS name belongs to one workload.",
		},
		{
			name: "certificates", shape: certificatesShape, otherwise: "the mesh's",
			doc: "What differs in this service's certificates.",
		},
		{
			name: "calls", shape: &shape{kind: listKind, name: "calls", elem: callShape},
			doc: "Whom the application calls.",
		},
		{
			name: "instances", shape: instanceCount, preset: 1,
			doc: "How many instances `countersign up` starts.",
		},
		{
			name: "run", shape: runShape,
			doc: "How `countersign up` starts the application; nothing else reads it.",
		},
	}, deliveryFields()...),
}

var portShape = &shape{
	kind: mappingKind, name: "port",
	doc: "The sidecar binds `port` on the task's address and hands what it admits to the application on loopback. " +
		"`tls`, `clientAuth` and `allow` replace what the service says.",
	fields: []field{
		{
			name: "port", shape: portNumber, required: true, missing: "say where peers connect, such as \"port: 9080\"",
			doc: "The port on which peers connect.",
		},
		{
			name: "protocol", shape: protocol, required: true, missing: "say what the application speaks: http, http2, grpc or tcp",
			doc: "What the application speaks: `http` is HTTP/1.1, `http2` HTTP/2 with prior knowledge, `grpc` HTTP/2 " +
				"whose refusals are gRPC statuses, `tcp` anything else.",
		},
		{
			name: "app", shape: portNumber, otherwise: "the same number as `port`",
			doc: "The application's port on loopback.",
		},
		{name: "tls", shape: tlsMode, otherwise: "the service's", doc: "As on the service, for this port."},
		{name: "clientAuth", shape: clientAuth, otherwise: "the service's", doc: "As on the service, for this port."},
		{
			name: "minTLS", shape: enum("TLS version", string(TLS12), string(TLS13)), otherwise: "the mesh's",
			doc: "The lowest TLS version that this port and its callers speak.",
		},
		{
			name: "tlsGroups", shape: tlsGroups, otherwise: "the mesh's",
			doc: "The key exchanges that this port and its callers speak.",
		},
		{
			name: "allow", shape: &shape{kind: listKind, name: "rules", elem: allowShape}, otherwise: "the service's, or the graph",
			doc: "As on the service, for this port.",
		},
	},
}

var allowShape = &shape{
	kind: mappingKind, name: "rule",
	doc: "A rule admits its callers to its methods and paths. On a port with `clientAuth: none` or `tls: off` nobody " +
		"has an identity, so only `anonymous` may be listed.",
	fields: []field{
		{
			name: "from", shape: &shape{kind: oneOrListKind, name: "callers", elem: callerName, nonEmpty: true}, required: true,
			missing: "name a service or a gateway, or write any or anonymous",
			doc: "The callers, one or a list: a service's or gateway's name, its SPIFFE ID, `any` for every service and " +
				"gateway of the trust domain, `anonymous` for a caller without identity.",
		},
		{
			name: "methods", shape: &shape{kind: listKind, name: "HTTP methods", elem: method, nonEmpty: true}, otherwise: "every method",
			doc: "The HTTP methods; not on tcp ports. gRPC is POST.",
		},
		{
			name: "paths", shape: &shape{kind: listKind, name: "paths", elem: rulePath, nonEmpty: true}, otherwise: "every path",
			doc: "The paths: `/a` is that path alone, `/a/*` everything below `/a/` but not `/a`; not on tcp ports. " +
				"A gRPC method is the path `/package.Service/Method`.",
		},
	},
}

var callShape = &shape{
	kind: mappingKind, name: "call",
	doc: "The application dials `listen` on loopback, and the sidecar carries it to an instance of the service.",
	fields: []field{
		{
			name: "service", shape: serviceReference, required: true, missing: "name the service that is called",
			doc: "The service that is called.",
		},
		{
			name: "port", shape: portNumber, otherwise: "the service's only port",
			doc: "Which of its ports; needed when it has several.",
		},
		{
			name: "listen", shape: portNumber, otherwise: "the same number as `port`",
			doc: "The loopback port that the application dials. It differs from the other calls' and from the application's own ports.",
		},
	},
}

var runShape = &shape{
	kind: mappingKind, name: "run",
	doc: "In `command` and `env`, `${APP_ADDRESS}` stands for the host and port on which the application has to listen for " +
		"the service's first port, and `${APP_ADDRESS_9080}` for its port 9080, whatever its `app` is. `${CALL_CATALOG}` stands " +
		"for where it dials the service catalog: upper case, with `_` for every other character; when it calls several ports " +
		"of a service, `${CALL_CATALOG_9000}` and so on instead. `$$` is a dollar sign, and any other `${...}` is an error.",
	fields: []field{
		{
			name: "command", shape: &shape{kind: listKind, name: "texts", elem: written, nonEmpty: true}, required: true,
			missing: "give the program and its arguments as a list",
			doc:     "The program and its arguments; no shell reads it. `countersign` is the running binary itself.",
		},
		{
			name: "env", shape: &shape{kind: dictionaryKind, name: "texts by name", keys: environmentName, elem: written},
			doc: "Environment variables beside those that `countersign up` has.",
		},
		{
			name: "dir", shape: fileName, otherwise: "the directory of this file",
			doc: "The working directory; relative to the directory of this file.",
		},
	},
}

var gatewayShape = &shape{
	kind: mappingKind, name: "gateway",
	fields: append([]field{
		{
			name: "listen", shape: &shape{kind: listKind, name: "listeners", elem: listenerShape, nonEmpty: true}, required: true,
			missing: "say where the outside connects, such as \"listen: [{port: 8080, protocol: http}]\"",
			doc:     "Where the outside connects.",
		},
		{
			name: "routes", shape: &shape{kind: listKind, name: "routes", elem: routeShape},
			doc: "Where requests go: the first route that matches takes the request, and without one the answer is 404. " +
				"A tcp listener has exactly one route.",
		},
		{
			name: "names", shape: &shape{kind: listKind, name: "DNS names", elem: dnsName},
			doc: "Further DNS names of the certificate, as on a service.",
		},
		{
			name: "certificates", shape: certificatesShape, otherwise: "the mesh's",
			doc: "What differs in this gateway's certificates.",
		},
		{
			name: "instances", shape: instanceCount, preset: 1,
			doc: "How many instances `countersign up` starts.",
		},
	}, deliveryFields()...),
}

var listenerShape = &shape{
	kind: mappingKind, name: "listener",
	doc: "Plaintext, unless it has a certificate to show.",
	fields: []field{
		{
			name: "port", shape: portNumber, required: true, missing: "say where the outside connects, such as \"port: 8080\"",
			doc: "The port.",
		},
		{
			name: "protocol", shape: protocol, required: true, missing: "say what clients speak: http, http2, grpc or tcp",
			doc: "What clients speak, as on a service's port.",
		},
		{
			name: "certificate", shape: certificateShape, otherwise: "plaintext",
			doc: "A certificate to show to the outside, from elsewhere; clients are asked for none.",
		},
		{
			name: "minTLS", shape: enum("TLS version", string(TLS12), string(TLS13)), otherwise: "the mesh's",
			doc: "The lowest TLS version; only with a certificate.",
		},
		{
			name: "tlsGroups", shape: tlsGroups, otherwise: "the mesh's",
			doc: "The key exchanges that are spoken; only with a certificate.",
		},
	},
}

var certificateShape = &shape{
	kind: mappingKind, name: "certificate",
	doc: "PEM files on the host of the gateway; relative paths start at the directory of this file.",
	fields: []field{
		{name: "cert", shape: fileName, required: true, missing: "name the file of the certificate chain", doc: "The certificate and its issuers."},
		{name: "key", shape: fileName, required: true, missing: "name the file of the private key", doc: "Its private key."},
	},
}

var routeShape = &shape{
	kind: mappingKind, name: "route",
	fields: []field{
		{
			name: "match", shape: matchShape, otherwise: "every request",
			doc: "Which requests the route takes. Every condition that is set has to hold.",
		},
		{
			name: "to", shape: &shape{kind: listKind, name: "destinations", elem: destinationShape, nonEmpty: true}, required: true,
			missing: "say where the requests go, such as \"to: [{service: NAME}]\"",
			doc:     "Where the requests go, by weight.",
		},
		{
			name: "timeout", shape: timeoutShape,
			doc: "How long a request may take.",
		},
	},
}

var matchShape = &shape{
	kind: mappingKind, name: "match",
	exclusive: [2]string{"prefix", "path"},
	fields: []field{
		{
			name: "listener", shape: portNumber, otherwise: "every listener that is not tcp",
			doc: "The port of one of the gateway's listeners. The route of a tcp listener matches by it alone.",
		},
		{
			name: "prefix", shape: routePrefix,
			doc: "The path begins with these segments: `/a` takes `/a` and `/a/b`, not `/ab`; `/` takes every path.",
		},
		{name: "path", shape: routePath, doc: "The path is exactly this. Not together with `prefix`."},
		{
			name: "methods", shape: &shape{kind: listKind, name: "HTTP methods", elem: method, nonEmpty: true}, otherwise: "every method",
			doc: "The method is one of these.",
		},
		{
			name: "headers", shape: &shape{kind: dictionaryKind, name: "header values by name", keys: headerName, elem: headerValue},
			doc: "Each of these headers is there with exactly this value; names in any case.",
		},
		{name: "host", shape: hostName, doc: "The host that the client asked for, without port and in any case."},
	},
}

var destinationShape = &shape{
	kind: mappingKind, name: "destination",
	fields: []field{
		{
			name: "service", shape: serviceReference, required: true, missing: "name a service",
			doc: "The service.",
		},
		{
			name: "port", shape: portNumber, otherwise: "the service's only port",
			doc: "Which of its ports; needed when it has several.",
		},
		{
			name: "weight", shape: weight, preset: 1,
			doc: "The share of the requests, relative to the sum of the route's weights; 0 takes none.",
		},
	},
}

var timeoutShape = &shape{
	kind: mappingKind, name: "timeout",
	fields: []field{
		{
			name: "request", shape: timeout, otherwise: "no bound",
			doc: "From the head of the request to the end of the response.",
		},
	},
}

// The enumerations that stand in several places.
var (
	protocol   = enum("protocol", string(HTTP), string(HTTP2), string(GRPC), string(TCP))
	tlsMode    = enum("TLS mode", string(Strict), string(Permissive), string(Off))
	clientAuth = enum("kind of client authentication", string(Require), string(Optional), string(None))
)

func enum(name string, words ...string) *shape {
	return &shape{kind: textKind, name: name, words: words}
}

func init() {
	compiledPatterns[durationPattern] = regexp.MustCompile(durationPattern)
	compiledPatterns[pathPattern] = regexp.MustCompile(pathPattern)
	for _, s := range shapes(specShape) {
		if s.pattern != "" && compiledPatterns[s.pattern] == nil {
			compiledPatterns[s.pattern] = regexp.MustCompile(s.pattern)
		}
	}
}

// shapes lists root and every shape below it, each once, in the order of the table.
func shapes(root *shape) []*shape {
	var all []*shape
	seen := map[*shape]bool{}
	var walk func(*shape)
	walk = func(s *shape) {
		if s == nil || seen[s] {
			return
		}
		seen[s] = true
		all = append(all, s)
		walk(s.keys)
		walk(s.elem)
		for _, f := range s.fields {
			walk(f.shape)
		}
	}
	walk(root)
	return all
}
