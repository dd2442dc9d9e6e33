// Package api knows the messages between an agent, an administrator and the control plane: JSON
// over HTTP, their paths, their fields and their errors, and how an administrator sends them.
//
// Times are RFC 3339 in UTC. Certificates are PEM texts. Unknown fields are refused by the server
// and ignored by its clients, so that a server may be updated first.
package api

import (
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

// Paths on the TLS listener. Enroll needs a join token; the others need the workload's certificate.
const (
	PathEnroll = "/v1/enroll" // POST EnrollRequest -> Credentials
	PathRenew  = "/v1/renew"  // POST RenewRequest  -> Credentials
	PathWatch  = "/v1/watch"  // POST WatchRequest  -> a stream of Event, one JSON text a line
	PathReport = "/v1/report" // POST Report        -> ReportResponse
)

// Paths on the administrator's UNIX socket.
const (
	PathStatus       = "/v1/status"       // GET  -> []Status
	PathMesh         = "/v1/mesh"         // GET  -> MeshResponse
	PathApply        = "/v1/apply"        // POST ApplyRequest -> ApplyResponse
	PathConfirmed    = "/v1/confirmed"    // GET  ?revision=N&timeout=30s -> Confirmation
	PathTokens       = "/v1/tokens"       // POST TokenRequest -> TokenResponse
	PathProbe        = "/v1/probe"        // POST ProbeRequest -> Credentials of the probe
	PathEndpoints    = "/v1/endpoints"    // GET  -> []Instance
	PathCA           = "/v1/ca"           // GET  -> CAResponse
	PathIssue        = "/v1/issue"        // POST IssueRequest -> Credentials
	PathCertificates = "/v1/certificates" // GET  -> []CertificateRecord
	PathRotation     = "/v1/ca/rotation"  // GET  ?check=true -> Rotation; POST RotationRequest -> Rotation
	PathJournal      = "/v1/journal"      // GET  -> application/x-tar: the journal as journal.Export writes it
)

// EnrollRequest asks for a first certificate. The token names the workload, so the request does not.
type EnrollRequest struct {
	Token    string `json:"token"`
	Instance string `json:"instance"`
	// CSR is a PEM certificate request. Names in it are not needed; names that differ from what the
	// token's workload may have are refused.
	CSR string `json:"csr"`
}

// RenewRequest asks for the next certificate of the workload that the client's certificate names.
type RenewRequest struct {
	Instance string `json:"instance"`
	CSR      string `json:"csr"`
}

// Credentials are a certificate and what is needed to use it.
type Credentials struct {
	Identity id.ID `json:"identity"`
	// Chain is the leaf and its issuers without the root; Bundle the roots to trust.
	Chain  string `json:"chain"`
	Bundle string `json:"bundle"`
	// CRL are the revocation lists of all that the bundle vouches for, PEM; empty when they are so long that
	// only the stream of Events has them.
	CRL string `json:"crl,omitempty"`
	// RenewAfter is the age at which to ask again, counted from ServerTime.
	RenewAfter mesh.Duration `json:"renewAfter"`
	ServerTime time.Time     `json:"serverTime"`
}

// WatchRequest opens the stream of Plans and registers the instance for as long as it is open.
type WatchRequest struct {
	Instance string `json:"instance"`
	// Revision is the last one that the agent holds, 0 for none: the stream is silent until the
	// Plan or the bundle differs from it.
	Revision uint64 `json:"revision"`
}

// Event is one line of the stream. The first comes at once.
type Event struct {
	// Plan is whole, never a difference; nil in an event that only shows that the server lives.
	Plan *mesh.Plan `json:"plan,omitempty"`
	// Bundle comes with every Plan: the roots to trust, PEM.
	Bundle string `json:"bundle,omitempty"`
	// Issuer comes with every Plan: the subject key identifier, in hex, of the issuing CA that signs at
	// this moment. Whose certificate names another one renews it soon, at a moment of its own choice.
	Issuer string `json:"issuer,omitempty"`
	// CRL comes with the first event and whenever it has changed, with a Plan or without: the revocation
	// lists of all that the bundle vouches for, PEM.
	CRL        string    `json:"crl,omitempty"`
	ServerTime time.Time `json:"serverTime"`
}

// Report is what an instance really serves. It is sent when something changed and every few
// seconds, and makes the instance an endpoint for its peers while Listening is true.
type Report struct {
	Instance string `json:"instance"`
	// Serial is of the certificate that new connections get: lower-case hex, at least two digits, even.
	Serial   string    `json:"serial"`
	NotAfter time.Time `json:"notAfter"`
	// LastRenewal is when that certificate was obtained.
	LastRenewal time.Time `json:"lastRenewal"`
	// Revision is of the Plan that is in force.
	Revision uint64 `json:"revision"`
	// Bundle is the trust bundle that is in use: the hex digest that mtls.Bundle.Digest gives.
	Bundle string `json:"bundle,omitempty"`
	// Listening are the listeners that accept connections, by Inbound port.
	Listening []Listening `json:"listening"`
	// Draining is set while the instance shuts down: peers stop choosing it.
	Draining bool `json:"draining,omitempty"`
	// PlaintextCallers counts plaintext connections by remote address, since the start.
	PlaintextCallers map[string]int64 `json:"plaintextCallers,omitempty"`
	// Callers are the serials that peers presented lately, by SPIFFE ID.
	Callers map[string]Caller `json:"callers,omitempty"`
	// Requests, Refused and Connections count since the start.
	Requests    int64 `json:"requests"`
	Refused     int64 `json:"refused"`
	Connections int64 `json:"connections"`
	// ClockOffset is the instance's clock minus the server's, as the instance sees it.
	ClockOffset mesh.Duration `json:"clockOffset"`
	// Problem is the last thing that went wrong and still holds, for people; empty when all is well.
	Problem string `json:"problem,omitempty"`
	// PID is the process's own.
	PID int `json:"pid"`
	// Admin is the address of the admin listener, empty when there is none.
	Admin string `json:"admin,omitempty"`
}

// Listening is one bound listener.
type Listening struct {
	Port    int    `json:"port"`    // as in the Plan
	Address string `json:"address"` // host:port as bound, which peers are told
}

// Caller is what one peer was seen to present.
type Caller struct {
	Serial string    `json:"serial"`
	Seen   time.Time `json:"seen"`
}

// ReportResponse answers a Report.
type ReportResponse struct {
	ServerTime time.Time `json:"serverTime"`
}

// Status is one row of `countersign status`.
type Status struct {
	Workload         string        `json:"workload"`
	Instance         string        `json:"instance"`
	Identity         string        `json:"identity"`
	Serial           string        `json:"serial"`
	NotAfter         time.Time     `json:"notAfter"`
	LastRenewal      time.Time     `json:"lastRenewal"`
	Revision         uint64        `json:"revision"`
	PlaintextCallers []string      `json:"plaintextCallers"`
	SurvivesSeconds  int64         `json:"survivesSeconds"`
	Connected        bool          `json:"connected"`
	ObservedSerial   string        `json:"observedSerial,omitempty"` // what peers saw it present
	ObservedTime     time.Time     `json:"observedTime,omitzero"`    // when they last did, by their clocks
	ClockOffset      mesh.Duration `json:"clockOffset"`
	// Revocation says whether it looks peers up in revocation lists: "check", or "none" and why that will do.
	Revocation string `json:"revocation,omitempty"`
	Error      string `json:"error,omitempty"`
	// Problem is the part of Error that the instance itself reports.
	Problem string `json:"problem,omitempty"`
}

// Instance is a registered instance with what it listens on.
type Instance struct {
	Workload string      `json:"workload"`
	Kind     id.Kind     `json:"kind"`
	Instance string      `json:"instance"`
	Serial   string      `json:"serial"`
	Revision uint64      `json:"revision"`
	PID      int         `json:"pid"`
	Admin    string      `json:"admin"`
	Inbound  []Listening `json:"inbound"`
}

// MeshResponse is the running specification.
type MeshResponse struct {
	Revision  uint64          `json:"revision"`
	Documents []mesh.Document `json:"documents"`
}

// ApplyRequest replaces the running specification.
type ApplyRequest struct {
	Documents []mesh.Document `json:"documents"`
	DryRun    bool            `json:"dryRun"`
}

// ApplyResponse says what an apply changed or would change.
type ApplyResponse struct {
	Revision uint64 `json:"revision"`
	// Difference is for people: one line a change, "+", "-" or "~" and what.
	Difference []string `json:"difference"`
}

// Confirmation says who has put a revision in force.
type Confirmation struct {
	Revision uint64 `json:"revision"`
	// Confirmed and Missing are instances; only connected ones count.
	Confirmed []string `json:"confirmed"`
	Missing   []string `json:"missing"`
}

// TokenRequest asks for a join token.
type TokenRequest struct {
	Workload string        `json:"workload"`
	TTL      mesh.Duration `json:"ttl"`
	Uses     int           `json:"uses"`
}

// TokenResponse holds the token; it is shown once and stored only as a hash.
type TokenResponse struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// ProbeRequest asks for the certificate of spiffe://TRUST-DOMAIN/probe/verify.
type ProbeRequest struct {
	CSR string        `json:"csr"`
	TTL mesh.Duration `json:"ttl"` // at most five minutes
}

// IssueRequest asks the CA for a workload's certificate by the administrator's word.
type IssueRequest struct {
	Workload string `json:"workload"`
	CSR      string `json:"csr"`
	// Request makes the request one that may be repeated: for the same workload, id and key there is one
	// certificate, which is given again. With another key it is [CodeConflict]. 1 to 64 letters, digits
	// and _.-; empty asks for a new certificate each time.
	Request string `json:"request,omitempty"`
}

// CAResponse describes the certificate authority.
type CAResponse struct {
	TrustDomain string `json:"trustDomain"`
	Root        string `json:"root"`   // PEM
	Issuer      string `json:"issuer"` // PEM
	Pin         string `json:"pin"`    // sha256:HEX of the root's DER
	JournalKey  string `json:"journalKey"`
	// Bundle is the roots to trust, PEM: what goes out with every certificate.
	Bundle string `json:"bundle"`
	// Roots are all hierarchies: first the one that Root, Issuer and Pin are of, which signs.
	Roots []Hierarchy `json:"roots,omitempty"`
}

// CertificateRecord is a certificate that the CA has issued.
type CertificateRecord struct {
	Serial    string    `json:"serial"`
	Identity  id.ID     `json:"identity"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	Instance  string    `json:"instance,omitempty"`
	// Revoked is when it was revoked, and Reason why; zero and empty when it was not.
	Revoked time.Time `json:"revoked,omitzero"`
	Reason  string    `json:"reason,omitempty"`
}

// Error is the body of every answer that is not 2xx.
type Error struct {
	// Code is one of the Code constants; programs branch on it.
	Code string `json:"code"`
	// Message says what was wrong and what to do; it holds no secret.
	Message string `json:"message"`
	// Details are further lines: every error of a specification, for one.
	Details []string `json:"details,omitempty"`
}

// Error implements the error interface.
func (e *Error) Error() string { return e.Message }

// The codes of [Error].
const (
	CodeBadRequest    = "bad_request"    // 400
	CodeUnauthorized  = "unauthorized"   // 401: no token, no certificate
	CodeForbidden     = "forbidden"      // 403: a token or certificate that does not allow it
	CodeNotFound      = "not_found"      // 404
	CodeConflict      = "conflict"       // 409
	CodeInvalidSpec   = "invalid_spec"   // 422: Details hold the errors
	CodeFixedTopology = "fixed_topology" // 422: refused under `up`
	CodeTooLarge      = "too_large"      // 413
	CodeRateLimited   = "rate_limited"   // 429
	CodeInternal      = "internal"       // 500
	CodeNotRecorded   = "not_recorded"   // 503: the journal could not be written; nothing was issued
	CodeUnavailable   = "unavailable"    // 503
	CodeUnknownToken  = "unknown_token"  // 403
	CodeUsedToken     = "used_token"     // 403
	CodeExpiredToken  = "expired_token"  // 403
	CodeNotDeclared   = "not_declared"   // 403: the workload is not in the specification any more
	CodeWeakKey       = "weak_key"       // 400
	CodeNameMismatch  = "name_mismatch"  // 403: the CSR asks for other names
	CodeExpiredCert   = "expired_cert"   // 401
)
