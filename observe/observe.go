// Package observe knows what the endpoints of a mesh show on the wire: it makes handshakes with them
// as a friend, as a stranger, as nobody, with an expired certificate and in plaintext, and compares
// what happens with what the specification declares.
//
// It believes nothing that an endpoint or a server says about itself, and shares no code with the
// side that it looks at: package mtls verifies for the sidecars, crypto/x509 and this package for the
// observer, so that a mistake in one is not repeated by the other. It reads and writes no file.
//
// What it asks of an application is harmless: a HEAD of [ProbePath], a call of a gRPC method that
// nobody has, blank lines on a tcp port, and those only where a caller like that is let in.
package observe

import (
	"cmp"
	"crypto/x509"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"countersign.dev/api"
	"countersign.dev/id"
	"countersign.dev/mesh"
)

// ProbePath is the path of the request that is sent where a caller is let in.
const ProbePath = "/.well-known/countersign-verify"

// Target is one inbound listener of one instance, and what is declared for it.
type Target struct {
	Workload mesh.Workload
	Instance string
	// Address is where the instance listens, host:port.
	Address string
	// Inbound is the listener as declared.
	Inbound mesh.Inbound
	// Certificate is what the workload's leaf is declared to hold.
	Certificate mesh.CertificatePlan
	// Serial is the serial that the instance reports, lower-case hex.
	Serial string
	// Public is the certificate that Inbound.Certificate names; nil when it could not be read, and
	// PublicProblem says why then.
	Public        *x509.Certificate
	PublicProblem string
	// ClosesLate says that whoever has not proved himself is closed after the handshake, without an answer: NGINX's way.
	ClosesLate bool
	// Closed are addresses at which nobody may answer. They belong to the instance, and are looked at
	// with the first of its targets that they concern.
	Closed []Closed
}

// Closed is an address at which nobody may answer.
type Closed struct {
	Check   string // CheckBypass or CheckExposed
	Address string // host:port
}

// Finding is a deviation of what was observed from what is declared.
type Finding struct {
	Workload string `json:"workload"`
	// Instance and Endpoint are empty when the finding is about all of them. An endpoint is the
	// name of a listener, such as "0.0.0.0_9080".
	Instance string `json:"instance,omitempty"`
	Endpoint string `json:"endpoint,omitempty"`
	// Check is one of the Check constants.
	Check    string `json:"check"`
	Expected string `json:"expected"`
	Observed string `json:"observed"`
}

// Observation is what one endpoint showed.
type Observation struct {
	Workload string `json:"workload"`
	Instance string `json:"instance"`
	Endpoint string `json:"endpoint"`
	Address  string `json:"address"`
	// Accepted and Refused are TLS versions: "1.0" to "1.3".
	Accepted []string `json:"accepted"`
	Refused  []string `json:"refused"`
	// Cipher is the cipher suite of the newest version, by its IANA name.
	Cipher string `json:"cipher,omitempty"`
	// Group is the key exchange of the newest version, as a specification names it.
	Group string `json:"group,omitempty"`
	// Identity, Serial, Chain, NotBefore and NotAfter are of the certificate that was presented; they
	// are empty where no TLS is spoken. Chain holds the subjects, the leaf's first.
	Identity  string    `json:"identity,omitempty"`
	Serial    string    `json:"serial,omitempty"`
	Chain     []string  `json:"chain,omitempty"`
	NotBefore time.Time `json:"notBefore,omitzero"`
	NotAfter  time.Time `json:"notAfter,omitzero"`
	// Checks are in the order in which they are made, deviations among them.
	Checks []Check `json:"checks"`
}

// Check is one comparison.
type Check struct {
	// Name is one of the Check constants.
	Name     string `json:"name"`
	Expected string `json:"expected"`
	Observed string `json:"observed"`
	Result   Result `json:"result"`
}

// Result is how a comparison ended.
type Result string

// The results of a [Check].
const (
	// Pass says that what was observed is what was expected.
	Pass Result = "pass"
	// Deviates makes the check a finding.
	Deviates Result = "deviates"
	// Skipped says that the check could not be made; Check.Observed says why.
	Skipped Result = "skipped"
)

// The names of checks, which do not change.
const (
	CheckDeclared      = "declared"           // the workload, or the listener, stands in the specification
	CheckEndpoint      = "endpoint"           // a declared workload has an instance, a declared port a listener
	CheckReachable     = "reachable"          // the endpoint accepts TCP connections
	CheckTLS10         = "tls-1.0"            // the version is accepted or refused as declared
	CheckTLS11         = "tls-1.1"            //
	CheckTLS12         = "tls-1.2"            //
	CheckTLS13         = "tls-1.3"            //
	CheckWeakCiphers   = "weak-ciphers"       // TLS 1.2 without AEAD or without forward secrecy is refused
	CheckGroups        = "tls-groups"         // a declared key exchange is used, and no other is accepted
	CheckTrust         = "trust"              // the chain leads to the mesh's trust bundle
	CheckIdentity      = "identity"           // the one URI SAN is the declared SPIFFE ID
	CheckNames         = "names"              // the DNS names are the declared ones
	CheckKey           = "key"                // the key is of the declared type
	CheckExpiry        = "expiry"             // the certificate is valid now
	CheckLifetime      = "lifetime"           // the certificate does not live longer than declared
	CheckSerial        = "serial"             // the serial is the one that the instance reports
	CheckConfigured    = "configured"         // a gateway presents the certificate of the configured file
	CheckAsksClient    = "client-certificate" // the endpoint asks for one, or does not
	CheckNoCertificate = "no-certificate"     // a TLS client without a certificate
	CheckStranger      = "stranger"           // a client whose certificate is of another CA with the same names
	CheckExpired       = "expired"            // a client whose certificate has expired
	CheckPlaintext     = "plaintext"          // a client that does not speak TLS
	CheckPolicy        = "policy"             // an identity that nobody allowed: the observer's own
	CheckBypass        = "bypass"             // the application is not reachable past the sidecar
	CheckExposed       = "exposed"            // what the application dials is not reachable by others
)

// Targets joins what is declared with the instances that are registered. What does not join is a
// finding: a declared workload without an instance, a declared port without a listener, an instance
// or a listener that nobody declared. Both results are sorted.
func Targets(plans []*mesh.Plan, instances []api.Instance) ([]Target, []Finding) {
	var targets []Target
	var findings []Finding
	declared := map[string]bool{}
	for _, plan := range plans {
		declared[plan.Workload.Name] = true
		found := false
		for _, instance := range instances {
			if instance.Workload != plan.Workload.Name {
				continue
			}
			found = true
			t, f := instanceTargets(plan, instance)
			targets, findings = append(targets, t...), append(findings, f...)
		}
		if !found {
			findings = append(findings, Finding{
				Workload: plan.Workload.Name, Check: CheckEndpoint,
				Expected: "at least one instance", Observed: "none is registered at the server",
			})
		}
	}
	for _, instance := range instances {
		if !declared[instance.Workload] {
			findings = append(findings, Finding{
				Workload: instance.Workload, Instance: instance.Instance, Check: CheckDeclared,
				Expected: "no instance: the specification has no workload of this name", Observed: "an instance is registered at the server",
			})
		}
	}
	slices.SortFunc(targets, func(a, b Target) int {
		return cmp.Or(cmp.Compare(a.Workload.Name, b.Workload.Name), cmp.Compare(a.Instance, b.Instance), cmp.Compare(a.Inbound.Port, b.Inbound.Port))
	})
	sortFindings(findings)
	return targets, findings
}

// instanceTargets joins the declared listeners of a workload with those of one instance.
func instanceTargets(plan *mesh.Plan, instance api.Instance) ([]Target, []Finding) {
	var targets []Target
	var findings []Finding
	declared := map[int]bool{}
	for _, inbound := range plan.Inbound {
		declared[inbound.Port] = true
		i := slices.IndexFunc(instance.Inbound, func(l api.Listening) bool { return l.Port == inbound.Port })
		if i < 0 {
			findings = append(findings, Finding{
				Workload: instance.Workload, Instance: instance.Instance, Endpoint: inbound.Name, Check: CheckEndpoint,
				Expected: "a listener for port " + strconv.Itoa(inbound.Port), Observed: "the instance reports none",
			})
			continue
		}
		address := instance.Inbound[i].Address
		targets = append(targets, Target{
			Workload: plan.Workload, Instance: instance.Instance, Address: address, Inbound: inbound,
			Certificate: plan.Certificate, Serial: instance.Serial, ClosesLate: plan.Proxy.Engine == mesh.EngineNGINX,
		})
	}
	if len(targets) > 0 {
		targets[0].Closed = closed(plan, targets[0].Inbound, targets[0].Address)
	}
	for _, l := range instance.Inbound {
		if !declared[l.Port] {
			findings = append(findings, Finding{
				Workload: instance.Workload, Instance: instance.Instance, Endpoint: strconv.Itoa(l.Port), Check: CheckDeclared,
				Expected: "no listener for port " + strconv.Itoa(l.Port), Observed: "the instance listens at " + l.Address,
			})
		}
	}
	return targets, findings
}

// closed says where nobody may answer at the address of the sidecar's listeners: at the application's
// ports, for that would be past the sidecar, and at those that the application dials, for who reaches
// them speaks in its name. A port that is a listener's as well is no such place: the two exclude each
// other on one address. None can be told where listeners are bound to other ports than the declared
// ones, as on systems without loopback addresses of one's own.
func closed(plan *mesh.Plan, inbound mesh.Inbound, address string) []Closed {
	at, err := netip.ParseAddrPort(address)
	if err != nil || int(at.Port()) != inbound.Port {
		return nil
	}
	known := map[int]bool{0: true} // a gateway has no application
	for _, listener := range plan.Inbound {
		known[listener.Port] = true
	}
	var all []Closed
	add := func(check string, port int) {
		if !known[port] {
			known[port] = true
			all = append(all, Closed{check, net.JoinHostPort(at.Addr().String(), strconv.Itoa(port))})
		}
	}
	for _, listener := range plan.Inbound {
		add(CheckBypass, listener.App)
	}
	for _, call := range plan.Outbound {
		add(CheckExposed, call.Listen)
	}
	return all
}

// gateway tells whether the target faces the outside.
func (t *Target) gateway() bool { return t.Workload.Kind == id.Gateway }

// finding makes a finding of a check.
func (t *Target) finding(c Check) Finding {
	return Finding{Workload: t.Workload.Name, Instance: t.Instance, Endpoint: t.Inbound.Name, Check: c.Name, Expected: c.Expected, Observed: c.Observed}
}

// Add puts findings in their places among those of the report.
func (r *Report) Add(findings ...Finding) {
	r.Findings = append(r.Findings, findings...)
	sortFindings(r.Findings)
}

// sortFindings orders findings by place, and leaves the order of checks at one place.
func sortFindings(findings []Finding) {
	slices.SortStableFunc(findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Workload, b.Workload), cmp.Compare(a.Instance, b.Instance), cmp.Compare(a.Endpoint, b.Endpoint))
	})
}
