package mesh

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"countersign.dev/id"
)

// PlanVersion is the version of the Plan's form. A reader refuses a Plan of a version that it does
// not know: guessing at a policy is worse than keeping the last one that was understood.
const PlanVersion = 1

// Plan is everything that one workload has to know to serve its traffic: the narrow waist between
// what a mesh declares and whatever carries it out. It holds no secret and no type of a Go library,
// so that any data plane can be driven from its JSON.
//
// A Plan is made by [Spec.Compile], is complete in itself (never a difference to an earlier one) and
// is not changed after it was made; copies may be read by many goroutines.
type Plan struct {
	// Version is [PlanVersion].
	Version int `json:"version"`
	// Mesh and TrustDomain name the mesh.
	Mesh        string `json:"mesh"`
	TrustDomain string `json:"trustDomain"`
	// Revision counts the states of the mesh as the server sees them, from 1; 0 means "compiled
	// from a file, not from a server".
	Revision uint64 `json:"revision"`
	// Workload says whom the Plan is for.
	Workload Workload `json:"workload"`
	// Certificate says what the workload's leaf has to hold.
	Certificate CertificatePlan `json:"certificate"`
	// Proxy says which proxy is the sidecar, Delivery how its certificate gets there, and Deploy how a
	// rotated one gets to work; Deploy is empty unless the certificate comes from a store.
	Proxy    ProxyPlan    `json:"proxy,omitzero"`
	Delivery DeliveryPlan `json:"delivery,omitzero"`
	Deploy   Deploy       `json:"deploy,omitzero"`
	// ECS says which service of Amazon ECS runs the workload; nil unless Deploy is [DeployECS].
	ECS *ECSDeploy `json:"ecs,omitempty"`
	// Revocation says whether callers' and callees' certificates are looked up in revocation lists.
	Revocation RevocationPlan `json:"revocation,omitzero"`
	// Inbound are the listeners for peers (a service) or for the outside (a gateway).
	Inbound []Inbound `json:"inbound"`
	// Outbound are the loopback listeners that the application dials.
	Outbound []Outbound `json:"outbound"`
	// Upstreams are the services that Outbound and the routes of Inbound refer to, by name.
	Upstreams []Upstream `json:"upstreams"`
}

// Workload is a member of the mesh that runs as one or several instances.
type Workload struct {
	Name     string  `json:"name"`
	Kind     id.Kind `json:"kind"` // service or gateway
	Identity id.ID   `json:"identity"`
}

// CertificatePlan says what a workload's leaf has to hold.
type CertificatePlan struct {
	Identity id.ID `json:"identity"`
	// DNSIdentity is set where ACM issues, whose certificates have no SPIFFE ID: the DNS name that has to be the common
	// name of the leaf's Subject and one of its names, by which peers know the workload instead of by Identity.
	DNSIdentity string `json:"dnsIdentity,omitzero"`
	// DNSNames are NAME, NAME.TRUST-DOMAIN and the declared further names; where DNSIdentity is set, that
	// instead of the first two.
	DNSNames []string `json:"dnsNames"`
	TTL      Duration `json:"ttl"`
	// RenewAfter is the age at which the leaf is replaced; always below TTL.
	RenewAfter Duration `json:"renewAfter"`
	Key        KeyType  `json:"key"`
	// Authority is who issues, by its name in the specification; empty for the server's own.
	Authority string `json:"authority,omitzero"`
}

// Inbound is a listener on the task's address.
type Inbound struct {
	// Name is the name by which statistics speak of the listener: Envoy's "0.0.0.0_PORT". It is the
	// same wherever the listener is really bound.
	Name     string   `json:"name"`
	Port     int      `json:"port"`
	Protocol Protocol `json:"protocol"`
	// App is the application's port on loopback; 0 at a gateway.
	App        int        `json:"app,omitempty"`
	TLS        TLSMode    `json:"tls"`
	ClientAuth ClientAuth `json:"clientAuth"`
	MinTLS     TLSVersion `json:"minTLS"`
	// TLSGroups are the key exchanges that are spoken, in the order of [TLSGroups]. In a Plan of a
	// program that knew none it is nil and means [DefaultTLSGroups].
	TLSGroups []TLSGroup `json:"tlsGroups"`
	// Rules are the policy: a caller is admitted when one rule matches. With no rule nobody is.
	Rules []Rule `json:"rules"`
	// Certificate names files for the outside to see instead of the workload's own leaf; gateways only.
	Certificate *CertificateFiles `json:"certificate,omitempty"`
	// Routes are tried in order; the first match wins. Gateways only.
	Routes []Route `json:"routes,omitempty"`
}

// CertificateFiles are PEM files on the host that serves the gateway. The paths are absolute.
type CertificateFiles struct {
	Cert string `json:"cert"`
	Key  string `json:"key"`
}

// Rule admits callers. An empty list of methods or of paths restricts nothing.
type Rule struct {
	// From are SPIFFE IDs in their URI form, [FromAny] or [FromAnonymous]; for NGINX and HAProxy also DNS names behind
	// [FromDNS].
	From    []string `json:"from"`
	Methods []string `json:"methods,omitempty"`
	// Paths are exact ("/a") or a prefix with all below it ("/a/*": "/a/b", but neither "/a" nor
	// "/ab"; "/*" is every path).
	Paths []string `json:"paths,omitempty"`
}

// The words that may stand in [Rule.From] beside SPIFFE IDs.
const (
	// FromAny is every service and gateway of the trust domain, never a probe.
	FromAny = "any"
	// FromAnonymous is a caller without identity.
	FromAnonymous = "anonymous"
)

// Route sends the requests that match to one of several upstreams.
type Route struct {
	Match Match         `json:"match"`
	To    []Destination `json:"to"`
	// RequestTimeout bounds a request from its head to the end of its response; 0 means no bound.
	RequestTimeout Duration `json:"requestTimeout,omitzero"`
}

// Match says which requests a route takes. Every condition that is set has to hold.
type Match struct {
	// Prefix matches on segment borders: "/a" takes "/a" and "/a/b", not "/ab"; "/" takes all.
	Prefix string `json:"prefix,omitempty"`
	// Path matches exactly.
	Path    string   `json:"path,omitempty"`
	Methods []string `json:"methods,omitempty"`
	// Headers match exactly, by name without regard to case.
	Headers map[string]string `json:"headers,omitempty"`
	// Host is compared without port and without regard to case.
	Host string `json:"host,omitempty"`
}

// Destination is one of a route's upstreams.
type Destination struct {
	Upstream string `json:"upstream"` // an Upstream.Name
	Weight   int    `json:"weight"`   // relative to the sum of the route's weights; 0 takes nothing
}

// Outbound is a listener on loopback that the application dials instead of the called service.
type Outbound struct {
	// Name is the statistics' name: "127.0.0.1_LISTEN".
	Name     string   `json:"name"`
	Listen   int      `json:"listen"`
	Protocol Protocol `json:"protocol"`
	Upstream string   `json:"upstream"` // an Upstream.Name
}

// Upstream is one port of a called service.
type Upstream struct {
	// Name is "SERVICE_PORT", the name of Envoy's cluster in statistics.
	Name     string   `json:"name"`
	Service  string   `json:"service"`
	Port     int      `json:"port"`
	Protocol Protocol `json:"protocol"`
	// Identity is what the far end has to prove; ServerName is sent as SNI. Where ACM issues for the far end, its
	// certificate has no SPIFFE ID, and ServerName, the DNS name that is declared for it, is what it has to prove.
	Identity   id.ID  `json:"identity"`
	ServerName string `json:"serverName"`
	// TLS is false when the service declares its port off: the connection is plaintext then.
	TLS    bool       `json:"tls"`
	MinTLS TLSVersion `json:"minTLS"`
	// TLSGroups are as [Inbound].TLSGroups.
	TLSGroups []TLSGroup `json:"tlsGroups"`
	// Endpoints are the instances that are known to serve, filled in by the server.
	Endpoints []Endpoint `json:"endpoints"`
}

// Endpoint is where one instance serves one port.
type Endpoint struct {
	Instance string         `json:"instance"`
	Address  netip.AddrPort `json:"address"`
}

// Protocol is what an application speaks.
type Protocol string

// The protocols.
const (
	HTTP  Protocol = "http"  // HTTP/1.1
	HTTP2 Protocol = "http2" // HTTP/2, with prior knowledge towards the application
	GRPC  Protocol = "grpc"  // HTTP/2 whose refusals are gRPC statuses
	TCP   Protocol = "tcp"
)

// TLSMode says what a listener takes.
type TLSMode string

// The modes.
const (
	Strict     TLSMode = "strict"     // TLS only
	Permissive TLSMode = "permissive" // TLS and plaintext on one port
	Off        TLSMode = "off"        // plaintext only
)

// ClientAuth says what a TLS listener asks of its clients.
type ClientAuth string

// The kinds of client authentication.
const (
	Require  ClientAuth = "require"
	Optional ClientAuth = "optional" // a certificate that is sent has to be good
	None     ClientAuth = "none"     // none is asked for
)

// TLSVersion is the lowest version that is accepted: "1.2" or "1.3".
type TLSVersion string

// The versions.
const (
	TLS12 TLSVersion = "1.2"
	TLS13 TLSVersion = "1.3"
)

// KeyType is the algorithm and size of a leaf's key.
type KeyType string

// The key types.
const (
	ECDSAP256 KeyType = "ecdsa-p256"
	ECDSAP384 KeyType = "ecdsa-p384"
	RSA2048   KeyType = "rsa-2048"
	RSA3072   KeyType = "rsa-3072"
	RSA4096   KeyType = "rsa-4096"
	Ed25519   KeyType = "ed25519"
)

// Duration is a time.Duration that is written in JSON as Go writes it: "168h0m0s".
type Duration time.Duration

// MarshalJSON implements json.Marshaler.
func (d Duration) MarshalJSON() ([]byte, error) {
	return json.Marshal(time.Duration(d).String())
}

// String is the duration as a specification writes it: 168h.
func (d Duration) String() string { return brief(time.Duration(d)) }

// UnmarshalJSON implements json.Unmarshaler.
func (d *Duration) UnmarshalJSON(data []byte) error {
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("a duration is a text such as \"15s\": %w", err)
	}
	parsed, err := time.ParseDuration(s)
	if err != nil {
		return err
	}
	*d = Duration(parsed)
	return nil
}

// Upstream finds an upstream by name.
func (p *Plan) Upstream(name string) (*Upstream, bool) {
	for i := range p.Upstreams {
		if p.Upstreams[i].Name == name {
			return &p.Upstreams[i], true
		}
	}
	return nil, false
}
