// Package policy knows the two decisions about members of a mesh: who may call whom (this file), and
// who may obtain which name. It decides from what it is given, and keeps and logs nothing.
package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

// ErrRule says that a rule of a Plan cannot be understood. A Plan that holds one is not put in force.
var ErrRule = errors.New("invalid rule")

// Policy decides which callers one listener admits. It is made by [Compile], immutable, and safe for
// concurrent use. The nil Policy admits nobody.
type Policy struct {
	trustDomain string
	rules       []rule
	// paths tells whether any rule speaks of paths. Then every path has to be unambiguous, whoever
	// asks: what one rule leaves to a caller must not depend on how an application reads "%2e%2e".
	paths bool
}

// rule is a mesh.Rule with its texts understood.
type rule struct {
	ids       []id.ID
	any       bool
	anonymous bool
	methods   []string // empty: all
	exact     []string // decoded; with prefixes empty: all
	prefixes  []string // decoded, each ending in "/"
	limited   bool     // methods or paths are given
}

// Decision is whether a caller is admitted, and why not.
type Decision struct {
	Allowed bool
	// Reason is for people and logs; it is empty when Allowed is set. It holds nothing that the
	// caller chose but a method, and that bounded.
	Reason string
}

// Compile understands the rules of a listener in a trust domain. The errors are [ErrRule].
func Compile(trustDomain string, rules []mesh.Rule) (*Policy, error) {
	p := &Policy{trustDomain: trustDomain}
	for i, r := range rules {
		compiled, err := compileRule(r)
		if err != nil {
			return nil, fmt.Errorf("%w: rule %d: %w", ErrRule, i+1, err)
		}
		p.paths = p.paths || len(r.Paths) > 0
		p.rules = append(p.rules, compiled)
	}
	return p, nil
}

func compileRule(r mesh.Rule) (rule, error) {
	compiled := rule{methods: r.Methods, limited: len(r.Methods)+len(r.Paths) > 0}
	for _, from := range r.From {
		switch from {
		case mesh.FromAny:
			compiled.any = true
		case mesh.FromAnonymous:
			compiled.anonymous = true
		default:
			if strings.HasPrefix(from, mesh.FromDNS) {
				return rule{}, fmt.Errorf("%.100q has no SPIFFE ID, and the built-in proxy knows callers by nothing else: let NGINX or HAProxy stand before this port (proxy: engine), or give the caller an authority of the type acmpca", from)
			}
			caller, err := id.Parse(from)
			if err != nil {
				return rule{}, err
			}
			compiled.ids = append(compiled.ids, caller)
		}
	}
	for _, path := range r.Paths {
		base, below := strings.CutSuffix(path, "/*")
		if below {
			base += "/"
		}
		decoded, problem := Canonical(base)
		if problem != "" {
			return rule{}, fmt.Errorf("path %q: %s", path, problem)
		}
		if below {
			compiled.prefixes = append(compiled.prefixes, decoded)
		} else {
			compiled.exact = append(compiled.exact, decoded)
		}
	}
	return compiled, nil
}

// Request decides about one request. The zero caller is one without identity. path is the path as it
// will be forwarded: still percent-encoded, without the query.
//
// Paths are compared after one decoding. Where a rule of the listener speaks of paths, those that
// applications are known to read in several ways are refused ([Canonical]).
func (p *Policy) Request(caller id.ID, method, path string) Decision {
	if reason := p.stranger(caller); reason != "" {
		return Decision{Reason: reason}
	}
	decoded := ""
	if p.paths {
		var problem string
		if decoded, problem = Canonical(path); problem != "" {
			return Decision{Reason: "the path is ambiguous: " + problem}
		}
	}
	known, knownMethod := false, false
	for i := range p.rules {
		r := &p.rules[i]
		if !r.admits(p.trustDomain, caller) {
			continue
		}
		known = true
		if len(r.methods) > 0 && !slices.Contains(r.methods, method) {
			continue
		}
		knownMethod = true
		if r.admitsPath(decoded) {
			return Decision{Allowed: true}
		}
	}
	switch {
	case !known:
		return Decision{Reason: "no rule admits the caller"}
	case !knownMethod:
		return Decision{Reason: "no rule admits the caller with the method " + bounded(method)}
	default:
		return Decision{Reason: "no rule admits the caller to the path"}
	}
}

// Connection decides about one connection that carries no requests. A rule that speaks of methods or
// paths admits none: there are none to compare.
func (p *Policy) Connection(caller id.ID) Decision {
	if reason := p.stranger(caller); reason != "" {
		return Decision{Reason: reason}
	}
	for i := range p.rules {
		if !p.rules[i].limited && p.rules[i].admits(p.trustDomain, caller) {
			return Decision{Allowed: true}
		}
	}
	return Decision{Reason: "no rule admits the caller"}
}

// stranger gives the reason why no rule can admit a caller, if there is one.
func (p *Policy) stranger(caller id.ID) string {
	switch {
	case p == nil:
		return "there is no policy"
	case caller.IsZero(), caller.Kind() == id.Service, caller.Kind() == id.Gateway:
		return ""
	default:
		return fmt.Sprintf("a %s is never admitted", caller.Kind())
	}
}

func (r *rule) admits(trustDomain string, caller id.ID) bool {
	if caller.IsZero() {
		return r.anonymous
	}
	return r.any && caller.TrustDomain() == trustDomain || slices.Contains(r.ids, caller)
}

func (r *rule) admitsPath(decoded string) bool {
	if len(r.exact)+len(r.prefixes) == 0 || slices.Contains(r.exact, decoded) {
		return true
	}
	for _, prefix := range r.prefixes {
		// "/a/*" takes what is below "/a/", and that is not "/a/" itself; "/*" takes every path.
		if strings.HasPrefix(decoded, prefix) && (len(decoded) > len(prefix) || prefix == "/") {
			return true
		}
	}
	return false
}

// bounded keeps what a caller chose from filling a log.
func bounded(s string) string {
	const most = 20
	if len(s) > most {
		s = s[:most] + "..."
	}
	return fmt.Sprintf("%q", s)
}

// Canonical decodes a percent-encoded path once, or says what makes it ambiguous: something in it that
// some application or framework resolves after the decision (dot segments, empty segments, encoded
// separators, dots or percent signs, backslashes, parameters after a semicolon, control characters,
// bytes that are not UTF-8).
func Canonical(path string) (decoded, problem string) {
	if !strings.HasPrefix(path, "/") {
		return "", "it does not begin with /"
	}
	decoded, problem = decode(path)
	if problem != "" {
		return "", problem
	}
	for rest, more := decoded[1:], true; more; {
		var segment string
		segment, rest, more = strings.Cut(rest, "/")
		switch {
		case segment == "." || segment == "..":
			return "", "it has a dot segment"
		case segment == "" && more:
			return "", "it has an empty segment"
		}
	}
	return decoded, ""
}

// decode resolves percent-encodings. Most paths have none, and are returned as they are.
func decode(path string) (decoded, problem string) {
	var out []byte // nil: all so far stands for itself
	for i := 0; i < len(path); i++ {
		b := path[i]
		if b != '%' {
			if problem := rawProblem(b); problem != "" {
				return "", problem
			}
			if out != nil {
				out = append(out, b)
			}
			continue
		}
		if i+2 >= len(path) {
			return "", "it has an incomplete percent-encoding"
		}
		high, low := unhex(path[i+1]), unhex(path[i+2])
		if high < 0 || low < 0 {
			return "", "it has an invalid percent-encoding"
		}
		b = byte(high<<4 | low)
		if strings.IndexByte("/\\%;.?#", b) >= 0 || b < 0x20 || b == 0x7f {
			return "", fmt.Sprintf("it has the character %q in percent-encoding", b)
		}
		if out == nil {
			out = append(make([]byte, 0, len(path)), path[:i]...)
		}
		out = append(out, b)
		i += 2
	}
	if out == nil {
		return path, ""
	}
	if !utf8.Valid(out) {
		return "", "it is not UTF-8"
	}
	return string(out), ""
}

// rawProblem tells what is wrong with a byte that stands in a path as it is.
func rawProblem(b byte) string {
	switch {
	case b <= 0x20 || b >= 0x7f:
		return "it has a control character, a space or a byte beyond ASCII"
	case b == '\\' || b == ';' || b == '?' || b == '#':
		return fmt.Sprintf("it has the character %q", b)
	}
	return ""
}

func unhex(b byte) int {
	switch {
	case b >= '0' && b <= '9':
		return int(b - '0')
	case b >= 'a' && b <= 'f':
		return int(b-'a') + 10
	case b >= 'A' && b <= 'F':
		return int(b-'A') + 10
	}
	return -1
}
