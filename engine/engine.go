// Package engine knows what the foreign data planes, NGINX and HAProxy, have in common: where their files
// and sockets are, how the policy of a Plan is said about a certificate's subject, which of the Plan's words
// neither can carry out, and how that is refused.
//
// Neither program shows a certificate's URI SAN to its configuration in the versions that are rendered. So
// a caller is known by the subject that this mesh's authority issues, CN=NAME,OU=KIND,O=TRUST-DOMAIN. Where AWS Certificate
// Manager issues, which knows no SPIFFE ID, that is CN=DNS-NAME, and callees are verified by the same name.
package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

// ErrRefused says that a Plan holds something that the engine cannot carry out. Nothing is rendered then:
// a policy that is left out would be a policy that is weakened.
var ErrRefused = errors.New("the plan cannot be carried out by this proxy")

// Options say where a rendered configuration runs. The zero value of each field that has a default means it.
type Options struct {
	// Certificates is the directory that `countersign init --to` writes: current/cert.pem and so on. Required.
	Certificates string
	// Run is a directory of this instance alone, for the pid file, sockets and scratch files. Required.
	Run string
	// Address is what inbound listeners bind. The zero value is every address, which is refused where the
	// application has the same port on loopback.
	Address netip.Addr
	// NoFlags says that nobody gives flags here, so that refusals advise none.
	NoFlags bool
	// Loopback is where the application is and dials; default 127.0.0.1.
	Loopback netip.Addr
	// Binds replace single addresses, by the names inbound/PORT, outbound/PORT and app/PORT.
	Binds map[string]netip.AddrPort
	// Version is the proxy's, such as 1.22.1; the renderer has a default.
	Version string
	// OpenSSL is the version of the library that the proxy is linked with; default 3.0.
	OpenSSL string
	// User is whom an NGINX that starts as root becomes; default is to say nothing.
	User string
	// Drain bounds how long an old process serves on after a reload; default 30 s.
	Drain time.Duration
	// Age is how old a connection with a peer becomes before it is closed after its next answer, so that peers have moved to
	// other instances by the time this one is stopped. In milliseconds; 0: as old as it likes.
	Age time.Duration
	// StreamModule is the file of NGINX's stream module, where it is one; empty when it is compiled in.
	StreamModule string
	// CRL says that callers' and callees' chains are looked up in current/crl.pem, which has to hold a list of every
	// authority in current/ca.pem and of those that they vouch for: both programs refuse everybody when one is missing.
	CRL bool
	// Callers lets the program tell whoever watches over it which serial each caller presented: NGINX at
	// [CallersSocket], HAProxy in [CallersTable]. NGINX complains on its standard error when nobody listens there.
	Callers bool
	// Generation is a name that the running program gives back: NGINX at /generation of its status page, HAProxy as
	// the description in "show info". It tells whoever has told the program of a new configuration that it is in
	// force. Empty is none.
	Generation string
}

// Config is a rendered configuration.
type Config struct {
	Text string
	// Notes say in which points the proxy does less than the specification may be read to say, without
	// admitting anybody whom the specification does not. They are for the person who asked.
	Notes []string
}

// Refusal collects the reasons why a Plan is refused, so that a person sees all of them at once.
type Refusal struct {
	Engine  string
	Reasons []string
}

// Addf adds a reason once.
func (r *Refusal) Addf(format string, args ...any) {
	if reason := fmt.Sprintf(format, args...); !slices.Contains(r.Reasons, reason) {
		r.Reasons = append(r.Reasons, reason)
	}
}

// Err is nil without a reason, and else wraps [ErrRefused]; [Reasons] gives them back.
func (r *Refusal) Err() error {
	if len(r.Reasons) == 0 {
		return nil
	}
	return &refused{r.Engine, slices.Clone(r.Reasons)}
}

// WithDefaults fills in what is left out.
func (o Options) WithDefaults(version string) Options {
	if !o.Address.IsValid() {
		o.Address = netip.IPv4Unspecified()
	}
	if !o.Loopback.IsValid() {
		o.Loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if o.Version == "" {
		o.Version = version
	}
	if o.OpenSSL == "" {
		o.OpenSSL = "3.0"
	}
	if o.Drain <= 0 {
		o.Drain = 30 * time.Second
	}
	return o
}

// Inbound is where peers are listened for.
func (o Options) Inbound(port int) string { return o.bind("inbound", o.Address, port).String() }

// Outbound is where the application dials.
func (o Options) Outbound(port int) string { return o.bind("outbound", o.Loopback, port).String() }

// App is where the application listens.
func (o Options) App(port int) string { return o.bind("app", o.Loopback, port).String() }

func (o Options) bind(side string, address netip.Addr, port int) netip.AddrPort {
	if bind, ok := o.Binds[side+"/"+strconv.Itoa(port)]; ok {
		return bind
	}
	return netip.AddrPortFrom(address, uint16(port))
}

// Current is a file of the current generation of certificates.
func (o Options) Current(name string) string { return filepath.Join(o.Certificates, "current", name) }

// InRun is a file of the run directory.
func (o Options) InRun(name string) string { return filepath.Join(o.Run, name) }

// IsVersion tells whether a text is a version such as 1.22.1.
func IsVersion(text string) bool { return versionForm.MatchString(text) }

// AtLeast compares dotted versions by their numbers: 1.25.1 is at least 1.25. What is no number counts as 0.
func AtLeast(version, least string) bool {
	have, want := numbers(version), numbers(least)
	for len(have) < len(want) {
		have = append(have, 0)
	}
	return slices.Compare(have[:len(want)], want) >= 0
}

func numbers(version string) []int {
	var parts []int
	for part := range strings.SplitSeq(version, ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			n = 0
		}
		parts = append(parts, n)
	}
	return parts
}

var (
	versionForm = regexp.MustCompile(`^[0-9]{1,4}(\.[0-9]{1,4}){1,2}$`)
	fileForm    = regexp.MustCompile(`^/[A-Za-z0-9_./+@:,=-]*$`)
	nameForm    = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)
	userForm    = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	labelForm   = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,80}$`)
	methodForm  = regexp.MustCompile(`^[A-Z][A-Z0-9_-]{0,31}$`)
	dnsForm     = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?$`)
)

// mostSocket is what sun_path holds on Linux, without the longest name that is given to a socket here.
const mostSocket = 107 - len("/in65535-plain.sock.12345678.tmp")

// Check finds what no engine can carry out, and every text of the Plan that has not the form that a valid
// specification gives it: a Plan is data from elsewhere.
func Check(plan *mesh.Plan, o Options, r *Refusal) {
	if plan.Version != mesh.PlanVersion {
		r.Addf("the plan has the version %d, and only %d is known", plan.Version, mesh.PlanVersion)
	}
	checkOptions(o, r)
	if plan.Workload.Identity.IsZero() || plan.Workload.Identity.TrustDomain() != plan.TrustDomain {
		r.Addf("the workload has no identity of the trust domain %q", plan.TrustDomain)
	}
	seen := map[string]bool{}
	for _, u := range plan.Upstreams {
		checkUpstream(u, r)
		if seen[u.Name] {
			r.Addf("upstream %q is there twice", u.Name)
		}
		seen[u.Name] = true
	}
	checkPlaces(plan, o, r)
	for _, in := range plan.Inbound {
		checkInbound(plan, in, fmt.Sprintf("port %d", in.Port), r)
	}
	for _, out := range plan.Outbound {
		where := callName(out)
		if !isPort(out.Listen) {
			r.Addf("%s: that is no port", where)
		}
		checkProtocol(out.Protocol, where, r)
		if _, ok := plan.Upstream(out.Upstream); !ok {
			r.Addf("%s: upstream %q is not declared", where, out.Upstream)
		}
	}
}

func callName(out mesh.Outbound) string { return fmt.Sprintf("the call on port %d", out.Listen) }

// place is who is to be met at an address.
type place struct {
	who string
	at  netip.AddrPort
}

// meets tells whether a connection to one place may come to the other: a listener on every address is also
// on the addresses of others, and on those of the other family.
func (p place) meets(other place) bool {
	a, b := p.at.Addr().Unmap(), other.at.Addr().Unmap()
	return p.at.Port() == other.at.Port() && (a == b || a.IsUnspecified() || b.IsUnspecified())
}

// checkPlaces refuses two listeners at one place, and a listener where an application is: what is meant for
// the application would come to the listener again, under its policy or under none.
func checkPlaces(plan *mesh.Plan, o Options, r *Refusal) {
	remedy := "say which address peers connect to (--address), or give"
	if o.NoFlags {
		remedy = "give"
	}
	var listeners, apps []place
	for _, in := range plan.Inbound {
		listeners = append(listeners, place{fmt.Sprintf("port %d", in.Port), o.bind("inbound", o.Address, in.Port)})
		if in.App != 0 {
			apps = append(apps, place{fmt.Sprintf("the application of port %d", in.Port), o.bind("app", o.Loopback, in.App)})
		}
	}
	for _, out := range plan.Outbound {
		listeners = append(listeners, place{callName(out), o.bind("outbound", o.Loopback, out.Listen)})
	}
	for i, l := range listeners {
		for _, other := range listeners[:i] {
			if l.meets(other) {
				r.Addf("%s and %s both listen on %s (%s and %s); %s one of them another port", other.who, l.who, l.at, other.at, l.at, remedy)
			}
		}
		for _, app := range apps {
			if l.meets(app) {
				r.Addf("%s listens on %s, where %s is (%s); %s the application another port (app)", l.who, l.at, app.who, app.at, remedy)
			}
		}
	}
}

// Faults are what is wrong with the options, whatever the Plan is. Version and OpenSSL have to be filled in.
func (o Options) Faults() []string {
	var r Refusal
	checkOptions(o, &r)
	return r.Reasons
}

func checkOptions(o Options, r *Refusal) {
	if !IsVersion(o.Version) {
		r.Addf("%q is not a version of the proxy such as 1.22.1 (--proxy-version)", o.Version)
	}
	if !IsVersion(o.OpenSSL) {
		r.Addf("%q is not a version of OpenSSL such as 3.0 (--openssl-version)", o.OpenSSL)
	}
	for what, path := range map[string]string{"certificates": o.Certificates, "run": o.Run} {
		if !fileForm.MatchString(path) {
			r.Addf("the %s directory %q is not an absolute path of letters, digits and _ . / + @ : , = -", what, path)
		}
	}
	if len(o.Run) > mostSocket {
		r.Addf("the run directory %q has more than %d bytes, so that its sockets cannot be bound", o.Run, mostSocket)
	}
	if o.StreamModule != "" && !fileForm.MatchString(o.StreamModule) {
		r.Addf("the stream module %q is not an absolute path (--stream-module)", o.StreamModule)
	}
	if o.User != "" && !userForm.MatchString(o.User) {
		r.Addf("%q is not a user's name (--user)", o.User)
	}
	if o.Generation != "" && !nameForm.MatchString(o.Generation) {
		r.Addf("%q is not the name of a generation: it has letters a-z, digits and -", o.Generation)
	}
	if o.Address.Zone() != "" || o.Loopback.Zone() != "" {
		r.Addf("an address with a zone cannot be bound")
	}
}

func checkUpstream(u mesh.Upstream, r *Refusal) {
	where := fmt.Sprintf("upstream %q", u.Name)
	if !labelForm.MatchString(u.Name) {
		r.Addf("%s: that is not SERVICE_PORT", where)
	}
	checkProtocol(u.Protocol, where, r)
	if u.TLS {
		if u.ServerName != u.Identity.ServerName() && !isDNSIdentity(u.ServerName) || !dnsForm.MatchString(u.ServerName) {
			r.Addf("%s: the server name %q is not NAME.TRUST-DOMAIN of the identity %q, and no DNS name by which a callee can be known instead", where, u.ServerName, u.Identity)
		}
		checkMinTLS(u.MinTLS, where, r)
	}
	for _, e := range u.Endpoints {
		if !e.Address.IsValid() || e.Address.Port() == 0 || e.Address.Addr().Zone() != "" {
			r.Addf("%s: the instance %q has no address", where, e.Instance)
		}
	}
}

func checkInbound(plan *mesh.Plan, in mesh.Inbound, where string, r *Refusal) {
	if !isPort(in.Port) || in.App != 0 && !isPort(in.App) || in.App == 0 && plan.Workload.Kind == id.Service {
		r.Addf("%s: it or the application's port %d is no port", where, in.App)
	}
	checkProtocol(in.Protocol, where, r)
	switch in.TLS {
	case mesh.Strict, mesh.Permissive:
		checkMinTLS(in.MinTLS, where, r)
	case mesh.Off:
	default:
		r.Addf("%s: the TLS mode %q is not known", where, in.TLS)
	}
	switch in.ClientAuth {
	case mesh.Require, mesh.Optional, mesh.None:
	default:
		r.Addf("%s: the client authentication %q is not known", where, in.ClientAuth)
	}
	for i, route := range in.Routes {
		checkRoute(plan, in, route, fmt.Sprintf("%s, route %d", where, i+1), r)
	}
	if in.App == 0 && in.Protocol != mesh.TCP && !admitsOutside(in) {
		r.Addf("%s: a listener for the outside that does not admit everybody is not known: its routes are all that is rendered", where)
	}
	if in.App == 0 && in.Protocol == mesh.TCP && len(in.Routes) != 1 {
		r.Addf("%s: a tcp listener has exactly one route, and this one has %d", where, len(in.Routes))
	}
}

// admitsOutside tells whether a gateway's listener has the one policy that a specification gives it.
func admitsOutside(in mesh.Inbound) bool {
	return in.ClientAuth == mesh.None && len(in.Rules) == 1 && slices.Equal(in.Rules[0].From, []string{mesh.FromAnonymous}) &&
		len(in.Rules[0].Methods) == 0 && len(in.Rules[0].Paths) == 0
}

func checkRoute(plan *mesh.Plan, in mesh.Inbound, route mesh.Route, where string, r *Refusal) {
	if route.RequestTimeout != 0 {
		r.Addf("%s: a bound on the whole request (timeout.request) cannot be said to it: it bounds only the silence between two reads", where)
	}
	total := 0
	for _, to := range route.To {
		total += to.Weight
		upstream, ok := plan.Upstream(to.Upstream)
		if !ok {
			r.Addf("%s: upstream %q is not declared", where, to.Upstream)
		} else if (upstream.Protocol == mesh.TCP) != (in.Protocol == mesh.TCP) {
			r.Addf("%s: upstream %q speaks %s and the listener %s", where, to.Upstream, upstream.Protocol, in.Protocol)
		}
		if to.Weight < 0 {
			r.Addf("%s: the weight %d is negative", where, to.Weight)
		}
	}
	if total <= 0 {
		r.Addf("%s: its weights sum to %d, so that it leads nowhere", where, total)
	}
	checkMethods(route.Match.Methods, where, r)
	for name, value := range route.Match.Headers {
		checkText("the header "+name, value, where, r)
	}
	checkText("the host", route.Match.Host, where, r)
}

func checkMethods(methods []string, where string, r *Refusal) {
	for _, m := range methods {
		if !methodForm.MatchString(m) {
			r.Addf("%s: %q is not an HTTP method", where, m)
		}
	}
}

// checkText refuses what no quoting of either language carries.
func checkText(what, text, where string, r *Refusal) {
	if i := strings.IndexFunc(text, func(c rune) bool { return c < 0x20 || c == 0x7f }); i >= 0 {
		r.Addf("%s: %q has a control character in %s", where, text, what)
	}
	if len(text) > mostText {
		r.Addf("%s: %s has %d bytes, and at most %d are taken", where, what, len(text), mostText)
	}
}

// mostText keeps words below what both languages read; what escaping adds is bounded where it is added.
const mostText = 1024

func checkProtocol(p mesh.Protocol, where string, r *Refusal) {
	switch p {
	case mesh.HTTP, mesh.HTTP2, mesh.GRPC, mesh.TCP:
	default:
		r.Addf("%s: the protocol %q is not known", where, p)
	}
}

func checkMinTLS(v mesh.TLSVersion, where string, r *Refusal) {
	if v != mesh.TLS12 && v != mesh.TLS13 {
		r.Addf("%s: the TLS version %q is not known", where, v)
	}
}

func isPort(port int) bool { return port > 0 && port < 1<<16 }
