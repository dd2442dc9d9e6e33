package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"countersign.dev/id"
)

// Paths of revocation on the administrator's socket.
const (
	PathRevoke = "/v1/revoke" // POST RevokeRequest -> RevokeResponse
	PathCRL    = "/v1/crl"    // GET  -> application/x-pem-file: the CRLs, the issuing CA's first; POST RenewCRLRequest -> RenewCRLResponse
)

// Paths on the plain-HTTP listener for CRLs. The answers are DER, application/pkix-crl (RFC 2585).
const (
	PathIssuerCRL = "/crl/issuer.crl"
	PathRootCRL   = "/crl/root.crl"
)

// CodeRevoked says that the client's certificate was revoked (403).
const CodeRevoked = "revoked"

// RevokeRequest revokes one certificate, or all valid ones of a workload; one of the two is given.
type RevokeRequest struct {
	Serial   string `json:"serial,omitempty"`
	Workload string `json:"workload,omitempty"` // NAME, KIND/NAME or SPIFFE ID
	// Reason is one of those of RFC 5280; empty is unspecified.
	Reason string `json:"reason,omitempty"`
}

// RevokeResponse says what is revoked now.
type RevokeResponse struct {
	Revoked []RevokedCertificate `json:"revoked"`
	// CRLNumber is of the issuing CA's list that they stand on.
	CRLNumber int64 `json:"crlNumber"`
}

// RevokedCertificate is a certificate that was revoked.
type RevokedCertificate struct {
	Serial   string    `json:"serial"`
	Identity id.ID     `json:"identity"`
	NotAfter time.Time `json:"notAfter"`
	Time     time.Time `json:"time"`
	Reason   string    `json:"reason"`
	// Already says that it was revoked before; time and reason are of then.
	Already bool `json:"already,omitempty"`
	// Renewed says that it was not named: its key is compromised, or it was renewed with a certificate whose key is.
	Renewed bool `json:"renewed,omitempty"`
}

// RenewCRLRequest makes the root's CRL anew, and with it the others.
type RenewCRLRequest struct {
	// RootKeyFile is where the root's key is, stored in the CA's way, when it is not in the state. The server reads it.
	RootKeyFile string `json:"rootKeyFile,omitempty"`
}

// RenewCRLResponse holds the new CRLs.
type RenewCRLResponse struct {
	CRL string `json:"crl"` // PEM
}

// RenewCRL makes the root's CRL anew.
func (a *Admin) RenewCRL(ctx context.Context, request RenewCRLRequest) (*RenewCRLResponse, error) {
	return call[*RenewCRLResponse](ctx, a, http.MethodPost, PathCRL, request)
}

// Revoke revokes certificates. When it returns, the revocation is recorded and on the list that agents are told.
func (a *Admin) Revoke(ctx context.Context, request RevokeRequest) (*RevokeResponse, error) {
	return call[*RevokeResponse](ctx, a, http.MethodPost, PathRevoke, request)
}

// CRL gives the CRLs in PEM, as proxies read them.
func (a *Admin) CRL(ctx context.Context) ([]byte, error) {
	response, err := a.do(ctx, http.MethodGet, PathCRL, nil)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("receive the CRLs: %w", err)
	}
	return text, nil
}
