package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"countersign.dev/id"
	"countersign.dev/secret"
)

// The patterns of texts. The schema repeats them, so they use only what Go's and ECMA-262's regular
// expressions have in common.
const (
	labelPattern       = `^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`
	dnsNamePattern     = `^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`
	hostPattern        = `^([A-Za-z0-9.-]+|\[?[0-9A-Fa-f:.]+\]?)$`
	durationPattern    = `^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$`
	methodPattern      = `^[A-Z][A-Z0-9_-]*$`
	headerPattern      = "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"
	headerValuePattern = `^[!-~]([ -~]*[!-~])?$`
	environmentPattern = `^[A-Za-z_][A-Za-z0-9_]*$`
	pathPattern        = `^/[!-~]*$`
	// A secret's name in a store, in whose place of letters {mesh} and {service} may stand.
	templatePattern     = `^([A-Za-z0-9_+=@-]|\{(mesh|service)\})([A-Za-z0-9_+=@.-]|\{(mesh|service)\})*(/([A-Za-z0-9_+=@-]|\{(mesh|service)\})([A-Za-z0-9_+=@.-]|\{(mesh|service)\})*)*$`
	proxyVersionPattern = `^[0-9]{1,4}(\.[0-9]{1,4}){1,2}$`
	// A rule's path ends in /* or holds no asterisk; no path of a rule or route has a query.
	// Nor does it have what applications read in several ways.
	rulePathPattern = `^/([!"$-)+-:<->@-\[\]-~]*(/\*)?|\*)$`
	prefixPattern   = `^/([!"$-)+-:<->@-\[\]-~]*[!"$-)+-.0-:<->@-\[\]-~])?$`
	exactPattern    = `^/[!"$-)+-:<->@-\[\]-~]*$`
)

// The shapes of texts.
var (
	workloadName = &shape{
		kind: textKind, name: "DNS label", pattern: labelPattern, maxLen: 63, reserved: []string{FromAny, FromAnonymous},
		check: func(s string) (string, string) {
			return checkName(s, id.CheckLabel, "use a DNS label: 1 to 63 of a-z, 0-9 and -, with no - at the ends")
		},
	}
	meshName = &shape{
		kind: textKind, name: "DNS label", pattern: labelPattern, maxLen: 63,
		check: func(s string) (string, string) {
			return checkName(s, id.CheckLabel, "use a DNS label: 1 to 63 of a-z, 0-9 and -, with no - at the ends")
		},
	}
	trustDomainName = &shape{
		kind: textKind, name: "DNS name", pattern: dnsNamePattern, maxLen: id.MaxTrustDomain,
		check: func(s string) (string, string) {
			return checkName(s, id.CheckTrustDomain, fmt.Sprintf("use a DNS name in lower case of at most %d characters, such as shop.internal", id.MaxTrustDomain))
		},
	}
	dnsName = &shape{
		kind: textKind, name: "DNS name", pattern: dnsNamePattern, maxLen: 253,
		check: func(s string) (string, string) {
			if _, err := netip.ParseAddr(s); err == nil {
				return quote(s) + " is an IP address", "use a DNS name"
			}
			return checkName(s, id.CheckDNSName, "use a DNS name in lower case, such as teller.example.com")
		},
	}
	hostName = &shape{
		kind: textKind, name: "host name", maxLen: 253, pattern: hostPattern,
		check: func(s string) (string, string) {
			address, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
			switch bracketed := strings.HasPrefix(s, "["); {
			case err == nil && address.Is6() && !bracketed:
				return quote(s) + " is an IPv6 address without brackets", fmt.Sprintf("write %q", "["+s+"]")
			case err == nil && address.Is6() == bracketed:
				return "", ""
			}
			return checkName(strings.ToLower(s), id.CheckDNSName, "use a DNS name or an IP address, without a port")
		},
	}
	// callerName is checked against the specification's names later; here only its form is.
	callerName = &shape{
		kind: textKind, name: "caller", maxLen: 300,
		pattern: `^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?|spiffe://[a-z0-9.-]+/(service|gateway)/[a-z0-9-]+)$`,
		check:   checkCaller,
	}
	serviceReference   = &shape{kind: textKind, name: "name of a service", maxLen: 63}
	storeReference     = &shape{kind: textKind, name: "name of a store", maxLen: 63}
	authorityReference = &shape{kind: textKind, name: "name of an authority", maxLen: 63}
	secretName         = &shape{kind: textKind, name: "name of a secret", pattern: templatePattern, maxLen: secret.MaxName, check: checkSecretName}
	secretField        = &shape{kind: textKind, name: "name of a field", pattern: `^.+$`, maxLen: secret.MaxName, check: checkSecretField}
	proxyVersion       = &shape{
		kind: textKind, name: "version", pattern: proxyVersionPattern,
		check: func(s string) (string, string) {
			return checkPattern(s, proxyVersionPattern, "version of a proxy", "write two or three numbers, such as 1.22.1")
		},
	}
	method = &shape{
		kind: textKind, name: "HTTP method", pattern: methodPattern, maxLen: 32,
		check: func(s string) (string, string) {
			if upper := strings.ToUpper(s); upper != s && compiled(methodPattern).MatchString(upper) {
				return quote(s) + " is not in upper case, and HTTP methods are compared by case", "write " + upper
			}
			return checkPattern(s, methodPattern, "HTTP method", "write one such as GET")
		},
	}
	headerName = &shape{
		kind: textKind, name: "header name", pattern: headerPattern, maxLen: 128,
		check: func(s string) (string, string) {
			if strings.EqualFold(s, "host") {
				return quote(s) + " is not matched as a header", `use "host" beside "headers"`
			}
			return checkPattern(s, headerPattern, "header name", "write one such as x-version")
		},
	}
	headerValue = &shape{
		kind: writtenKind, name: "text", pattern: headerValuePattern, maxLen: 1024,
		check: func(s string) (string, string) {
			return checkPattern(s, headerValuePattern, "header's value", "write visible ASCII characters, with spaces only between them")
		},
	}
	rulePath    = &shape{kind: textKind, name: "path", pattern: rulePathPattern, maxLen: 1024, check: checkRulePath}
	routePath   = &shape{kind: textKind, name: "path", pattern: exactPattern, maxLen: 1024, check: checkRoutePath}
	routePrefix = &shape{kind: textKind, name: "path", pattern: prefixPattern, maxLen: 1024, check: checkPrefix}

	environmentName = &shape{
		kind: textKind, name: "environment name", pattern: environmentPattern, maxLen: 256,
		check: func(s string) (string, string) {
			return checkPattern(s, environmentPattern, "name of an environment variable", "use letters, digits and _, with no digit in front")
		},
	}
	written = &shape{
		kind: writtenKind, name: "text", maxLen: 32 << 10,
		check: checkNUL,
	}
	fileName = &shape{
		kind: textKind, name: "file name", pattern: `^.+$`, maxLen: 4096,
		check: func(s string) (string, string) {
			if s == "" {
				return "is empty", "write a path, absolute or relative to this file's directory"
			}
			return checkNUL(s)
		},
	}
)

// checkNUL refuses what no operating system passes on.
func checkNUL(s string) (string, string) {
	if strings.ContainsRune(s, 0) {
		return "holds a NUL character", "remove it"
	}
	return "", ""
}

// checkName words what package id finds wrong with a name.
func checkName(s string, check func(string) error, right string) (string, string) {
	err := check(s)
	if err == nil {
		return "", ""
	}
	kind := "DNS label"
	switch {
	case errors.Is(err, id.ErrTrustDomain):
		kind = "trust domain"
	case strings.Contains(right, "DNS name"):
		kind = "DNS name"
	}
	return fmt.Sprintf("%s is not a %s", quote(s), kind), right
}

func checkPattern(s, pattern, what, right string) (string, string) {
	if compiled(pattern).MatchString(s) {
		return "", ""
	}
	article := "a "
	if what[0] == 'H' {
		article = "an "
	}
	return quote(s) + " is not " + article + what, right
}

// checkCaller looks at the form of an entry of allow.from.
func checkCaller(s string) (string, string) {
	if !strings.Contains(s, ":") {
		return checkName(s, id.CheckLabel, "name a service or a gateway, or write any, anonymous or a SPIFFE ID")
	}
	parsed, err := id.Parse(s)
	if err != nil {
		return quote(s) + " is not a SPIFFE ID of a service or a gateway", "write spiffe://TRUST-DOMAIN/service/NAME or spiffe://TRUST-DOMAIN/gateway/NAME"
	}
	switch parsed.Kind() {
	case id.Service, id.Gateway:
		return "", ""
	case id.Probe, id.Server:
	}
	return fmt.Sprintf("%s is the identity of a %s, which no policy admits", quote(s), parsed.Kind()), "name a service or a gateway"
}

// checkPath finds what no path of the specification may be like.
func checkPath(s string) (string, string) {
	switch {
	case !strings.HasPrefix(s, "/"):
		return quote(s) + " does not begin with a slash", fmt.Sprintf("write %q", "/"+strings.TrimLeft(s, " "))
	case strings.ContainsAny(s, "?#"):
		return quote(s) + " holds a query or a fragment", "write the path alone"
	case !compiled(pathPattern).MatchString(s):
		return quote(s) + " holds a space or a character outside ASCII", "write such characters percent-encoded"
	}
	decoded, wrong := decodePath(s)
	if wrong != "" {
		return quote(s) + " " + wrong, "write the path as clients and applications agree on it"
	}
	segments := strings.Split(decoded[1:], "/")
	for i, segment := range segments {
		switch {
		case segment == "." || segment == "..":
			return quote(s) + " holds a dot segment, which applications resolve", "write the path without it"
		case segment == "" && i < len(segments)-1:
			return quote(s) + " holds an empty segment, which applications leave out", "write one slash"
		}
	}
	return "", ""
}

// decodePath decodes a path once. It refuses what the sidecar refuses in a request's path where a rule
// speaks of paths, because applications differ about what it means: such a rule could never match.
func decodePath(s string) (decoded, wrong string) {
	if i := strings.IndexAny(s, `\;`); i >= 0 {
		return "", fmt.Sprintf("holds the character %q", s[i])
	}
	decoded, err := url.PathUnescape(s)
	switch {
	case err != nil:
		return "", "holds an incomplete or invalid percent-encoding"
	case !utf8.ValidString(decoded):
		return "", "is not UTF-8 when it is decoded"
	}
	for i := 0; i+2 < len(s); i++ {
		if s[i] != '%' {
			continue
		}
		c, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err == nil && (c < ' ' || c == 0x7f || strings.IndexByte(`/\%;.?#`, byte(c)) >= 0) {
			return "", fmt.Sprintf("holds the character %q percent-encoded", rune(c))
		}
	}
	return decoded, ""
}

func checkRulePath(s string) (string, string) {
	if wrong, right := checkPath(s); wrong != "" {
		return wrong, right
	}
	if strings.Contains(strings.TrimSuffix(s, "/*"), "*") {
		return quote(s) + " holds an asterisk that is not the whole last segment", "write /a for one path, or /a/* for everything below /a/"
	}
	return "", ""
}

func checkRoutePath(s string) (string, string) {
	if wrong, right := checkPath(s); wrong != "" {
		return wrong, right
	}
	if strings.Contains(s, "*") {
		return quote(s) + " holds an asterisk, and no path is a pattern here", `use "prefix" for everything below a path`
	}
	return "", ""
}

func checkPrefix(s string) (string, string) {
	if wrong, right := checkPath(s); wrong != "" {
		return wrong, right
	}
	trimmed := strings.TrimRight(strings.TrimSuffix(s, "*"), "/")
	if s != "/" && trimmed != s {
		if trimmed == "" {
			trimmed = "/"
		}
		return quote(s) + " ends in a slash or an asterisk", fmt.Sprintf("write %q: it takes that path and all below it", trimmed)
	}
	return checkRoutePath(s)
}

// checkSecretName looks at the name of a secret before {mesh} and {service} are replaced in it.
func checkSecretName(s string) (string, string) {
	const write = "write letters, digits and _+=@.- with single slashes between segments, such as {mesh}/{service}; no segment begins with a dot"
	if s == "" {
		return "is empty", write
	}
	if compiled(templatePattern).MatchString(s) {
		return "", ""
	}
	for rest := s; ; {
		_, after, open := strings.Cut(rest, "{")
		if !open {
			break
		}
		word, behind, closed := strings.Cut(after, "}")
		if !closed {
			return quote(s) + " has a { that is not closed", "write {mesh} or {service}"
		}
		if word != "mesh" && word != "service" {
			return quote("{"+word+"}") + " stands for nothing", "possible are {mesh} and {service}"
		}
		rest = behind
	}
	return quote(s) + " is not the name of a secret", write
}

// checkSecretField looks at the name of a field as far as every layout allows it.
func checkSecretField(s string) (string, string) {
	if s == "" {
		return "is empty", "name the field, or leave it out for the usual name"
	}
	return checkNUL(s)
}

// The bounds of durations.
const (
	minTTL     = time.Second
	maxTTL     = 365 * 24 * time.Hour
	minRenew   = 100 * time.Millisecond
	minTimeout = time.Millisecond
	maxTimeout = 24 * time.Hour
)

// The shapes of numbers and durations.
var (
	portNumber    = &shape{kind: integerKind, name: "port", min: 1, max: 65535}
	instanceCount = &shape{kind: integerKind, name: "number", min: 1, max: 100}
	weight        = &shape{kind: integerKind, name: "number", min: 0, max: 1_000_000}
	ttl           = &shape{kind: durationKind, name: "duration", shortest: minTTL, longest: maxTTL}
	renewAfter    = &shape{kind: durationKind, name: "duration", shortest: minRenew, longest: maxTTL}
	timeout       = &shape{kind: durationKind, name: "duration", shortest: minTimeout, longest: maxTimeout}
)
