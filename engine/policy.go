package engine

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/policy"
)

// DN is the subject of a member's certificate as both programs print it: by RFC 2253, the last part of the
// encoding first.
func DN(member id.ID) string {
	return "CN=" + escapeDN(member.Name()) + ",OU=" + escapeDN(string(member.Kind())) + ",O=" + escapeDN(member.TrustDomain())
}

// escapeDN follows RFC 2253 section 2.4. The names of this mesh need none of it; that is no reason to
// depend on it.
func escapeDN(text string) string {
	var b strings.Builder
	for i := range len(text) {
		c := text[i]
		switch {
		case c < 0x20 || c >= 0x7f:
			fmt.Fprintf(&b, `\%02X`, c)
			continue
		case strings.IndexByte(`,+"\<>;`, c) >= 0, c == ' ' && (i == 0 || i == len(text)-1), c == '#' && i == 0:
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
	return b.String()
}

// NamedDN is the subject of a certificate that has no SPIFFE ID, as [DN] spells one: the DNS name alone. A member's has
// three parts, so that the two are never alike.
func NamedDN(name string) string { return "CN=" + escapeDN(name) }

// isDNSIdentity tells whether a text can be the DNS name that a workload is known by: ACM issues for no other.
func isDNSIdentity(name string) bool {
	const maxCommonName = 64 // RFC 5280, appendix A.1
	return strings.Contains(name, ".") && len(name) <= maxCommonName && id.CheckDNSName(name) == nil
}

// NamedCallers are the DNS names of a Plan's rules, sorted: callers that have no SPIFFE ID.
func NamedCallers(plan *mesh.Plan) []string {
	var names []string
	for _, in := range plan.Inbound {
		for _, rule := range in.Rules {
			for _, from := range rule.From {
				if name, named := strings.CutPrefix(from, mesh.FromDNS); named && isDNSIdentity(name) {
					names = append(names, name)
				}
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// callers are who one rule admits, as regular expressions on the whole subject.
func callers(trustDomain string, from []string, where string, r *Refusal) (subjects []string, anonymous bool) {
	for _, text := range from {
		switch text {
		case mesh.FromAnonymous:
			anonymous = true
		case mesh.FromAny:
			subjects = append(subjects, `CN=[a-z0-9-]+,OU=(?:service|gateway),O=`+regexp.QuoteMeta(escapeDN(trustDomain)))
		default:
			if name, named := strings.CutPrefix(text, mesh.FromDNS); named {
				if !isDNSIdentity(name) {
					r.Addf("%s: %q is no DNS name that a rule can name", where, text)
					continue
				}
				subjects = append(subjects, regexp.QuoteMeta(NamedDN(name)))
				continue
			}
			caller, err := id.Parse(text)
			switch {
			case err != nil:
				r.Addf("%s: the caller %q is none that a rule can name: %v", where, text, err)
			case caller.Kind() != id.Service && caller.Kind() != id.Gateway:
				r.Addf("%s: a %s is never admitted, and a rule names %s", where, caller.Kind(), caller)
			default:
				subjects = append(subjects, regexp.QuoteMeta(DN(caller)))
			}
		}
	}
	return subjects, anonymous
}

// Rule is a rule of a Plan in the words that both programs have. An empty list of methods or paths
// restricts nothing.
type Rule struct {
	// Subjects are regular expressions; one of them has to match the whole of a proved subject.
	Subjects  []string
	Anonymous bool
	Methods   []string
	// Paths are regular expressions on the decoded path, anchored at both ends where they have to be. They mean
	// what they say only for a request whose path matches [PlainPath].
	Paths []string
}

// Rules compiles the policy of a listener. A caller is admitted when one of them matches; a rule that
// speaks of methods or paths admits nobody to a tcp port, which has none.
func Rules(plan *mesh.Plan, in mesh.Inbound, r *Refusal) []Rule {
	where := fmt.Sprintf("port %d", in.Port)
	rules := make([]Rule, 0, len(in.Rules))
	for _, from := range in.Rules {
		rule := Rule{Methods: from.Methods}
		rule.Subjects, rule.Anonymous = callers(plan.TrustDomain, from.From, where, r)
		checkMethods(from.Methods, where, r)
		for _, path := range from.Paths {
			base, below := strings.CutSuffix(path, "/*")
			if below {
				base += "/"
			}
			decoded, ok := plain(base, where, r)
			switch {
			case !ok:
			case below && base == "/":
				rule.Paths = append(rule.Paths, "^/")
			case below: // "/a/*" is what is below "/a/", and not "/a/" itself
				rule.Paths = append(rule.Paths, "^"+regexp.QuoteMeta(decoded)+".")
			default:
				rule.Paths = append(rule.Paths, "^"+regexp.QuoteMeta(decoded)+"$")
			}
		}
		if in.Protocol == mesh.TCP && len(from.Methods)+len(from.Paths) > 0 {
			continue
		}
		rules = append(rules, rule)
	}
	return rules
}

// plain decodes a path of the specification.
func plain(path, where string, r *Refusal) (string, bool) {
	checkText("the path", path, where, r)
	decoded, problem := policy.Canonical(path)
	if problem != "" {
		r.Addf("%s: the path %q cannot be compared: %s", where, path, problem)
	}
	return decoded, problem == ""
}

// JudgesPaths tells whether any of the rules speaks of paths.
func JudgesPaths(rules []Rule) bool {
	return slices.ContainsFunc(rules, func(r Rule) bool { return len(r.Paths) > 0 })
}

// Match is a route's condition in the words that both programs have. Empty fields restrict nothing.
type Match struct {
	Path    string // a regular expression on the decoded path
	Methods []string
	// Headers are exact values, in the order of their names, which are in lower case.
	Headers []Header
	Host    string // a regular expression on the Host field, to be compared without regard to case
}

// Header is one field that a route asks for.
type Header struct{ Name, Value string }

// RouteMatch compiles a route's condition.
func RouteMatch(in mesh.Inbound, m mesh.Match, r *Refusal) Match {
	where := fmt.Sprintf("a route of port %d", in.Port)
	compiled := Match{Methods: m.Methods}
	switch {
	case m.Path != "":
		if decoded, ok := plain(m.Path, where, r); ok {
			compiled.Path = "^" + regexp.QuoteMeta(decoded) + "$"
		}
	case m.Prefix != "" && m.Prefix != "/":
		if decoded, ok := plain(m.Prefix, where, r); ok {
			end := "(?:/|$)" // on the borders of segments
			if strings.HasSuffix(decoded, "/") {
				end = ""
			}
			compiled.Path = "^" + regexp.QuoteMeta(decoded) + end
		}
	}
	if m.Host != "" {
		compiled.Host = "^" + regexp.QuoteMeta(strings.ToLower(m.Host)) + `\.?(?::[0-9]*)?$`
	}
	for _, name := range slices.Sorted(maps.Keys(m.Headers)) {
		if !headerForm.MatchString(name) {
			r.Addf("%s: the header %q cannot be asked for: only letters, digits and hyphens can", where, name)
		}
		compiled.Headers = append(compiled.Headers, Header{strings.ToLower(name), m.Headers[name]})
	}
	return compiled
}

var headerForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,126}[A-Za-z0-9])?$`)

// The parts of [PlainPath].
const (
	hexDigit = `[0-9A-Fa-f]`
	further  = `%[89ABab]` + hexDigit
	// encoded are the characters that may stand in percent-encoding: of ASCII all but /\%;.?# and the control
	// characters, and beyond it whatever is UTF-8 (RFC 3629 section 4).
	encoded = `%(?:2[0-246-9A-Da-d]|3[0-9AaC-Ec-e]|5[0-9ABabD-Fd-f]|7[0-9A-Ea-e]|[46]` + hexDigit + `)` +
		`|%(?:[Cc][2-9A-Fa-f]|[Dd]` + hexDigit + `)` + further +
		`|%[Ee](?:0%[ABab]` + hexDigit + `|[1-9A-CEFa-cef]` + further + `|[Dd]%[89]` + hexDigit + `)` + further +
		`|%[Ff](?:0%[9ABab]` + hexDigit + `|[1-3]` + further + `|4%8` + hexDigit + `)` + further + further
	rawChar = `[!"$&-.0-:<->@-\[\]-~]`
	noDot   = `(?:[!"$&--0-:<->@-\[\]-~]|` + encoded + `)`
	anyChar = `(?:` + rawChar + `|` + encoded + `)`
	// rest is any number of characters, so written that nothing is tried twice and that a long path of few
	// encoded characters needs little of PCRE's stack.
	rest    = rawChar + `*(?:(?:` + encoded + `)` + rawChar + `*)*`
	segment = `(?:\.?` + noDot + `|\.\.` + anyChar + `)` + rest
)

// PlainPath is a regular expression for the paths that policy.Canonical takes, as they are sent and with or
// without a query: those that every application reads in one way. It is written so that PCRE and Go's
// package regexp read it alike, and a fuzz test compares the two.
const PlainPath = `^(?:/|(?:/` + segment + `)+/?)(?:\?|$)`

// groupNames are OpenSSL's names of the key exchanges.
var groupNames = map[mesh.TLSGroup]string{
	mesh.X25519MLKEM768: "X25519MLKEM768", mesh.SecP256r1MLKEM768: "SecP256r1MLKEM768", mesh.SecP384r1MLKEM1024: "SecP384r1MLKEM1024",
	mesh.X25519: "X25519", mesh.Secp256r1: "P-256", mesh.Secp384r1: "P-384", mesh.Secp521r1: "P-521",
}

// Missing collects the key exchanges that are left out, and where, for one remark on all of them.
type Missing struct {
	groups, where []string
}

// Add notes what [Groups] has left out.
func (m *Missing) Add(where string, groups []mesh.TLSGroup) {
	for _, g := range groups {
		if !slices.Contains(m.groups, string(g)) {
			m.groups = append(m.groups, string(g))
		}
		if !slices.Contains(m.where, where) {
			m.where = append(m.where, where)
		}
	}
}

// Notes is the remark, or nothing.
func (m *Missing) Notes(o Options) []string {
	if len(m.groups) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("OpenSSL %s does not speak %s, and the other key exchanges are used: %s (--openssl-version says which one the proxy is linked with)",
		o.OpenSSL, strings.Join(m.groups, ", "), strings.Join(m.where, ", "))}
}

// Groups gives the key exchanges that the proxy's OpenSSL speaks, in OpenSSL's list form, and those that
// it does not. A list of which nothing is left is refused.
func Groups(groups []mesh.TLSGroup, where string, o Options, r *Refusal) (list string, missing []mesh.TLSGroup) {
	if groups == nil {
		groups = mesh.DefaultTLSGroups()
	}
	var names []string
	for _, g := range groups {
		name, known := groupNames[g]
		switch {
		case !known:
			r.Addf("%s: the key exchange %q is not known", where, g)
		case strings.Contains(name, "MLKEM") && !AtLeast(o.OpenSSL, "3.5"):
			missing = append(missing, g)
		default:
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		r.Addf("%s: of its key exchanges (tlsGroups) OpenSSL %s speaks none", where, o.OpenSSL)
	}
	return strings.Join(names, ":"), missing
}

// Suites are those of TLS 1.3, which all are AEAD, in the same order: OpenSSL's own begins with AES-256.
const Suites = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"

// Ciphers are the suites of TLS 1.2 that are spoken: forward secret and AEAD. Those of TLS 1.3 all are.
const Ciphers = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:" +
	"ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"

// The answers to requests that are not passed on, as the built-in proxy words them.
const (
	Denied    = "no rule admits the caller"
	NoRoute   = "no route matches this request"
	Ambiguous = "the path is ambiguous"
	Nobody    = "no instance is known"
	Tunnel    = "CONNECT asks for a tunnel, which is not served"
	Switched  = "the answer changes to a protocol that was not asked for"
)

// JSONError is the body of such an answer.
func JSONError(reason string) string { return `{"error":"` + reason + `"}` }
