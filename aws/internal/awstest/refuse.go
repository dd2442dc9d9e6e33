package awstest

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/aws/smithy-go/encoding/cbor"
)

// refusal is why the front itself answers. Each protocol has its own names for the same thing.
type refusal struct {
	kind    kind
	message string
	code    string // in place of the kind's, where a service has its own
}

type kind int

const (
	denied kind = iota
	badSignature
	badToken
	expiredToken
	noToken
	malformed
	unavailable
)

// names are the error codes: of the JSON protocols and CBOR, and of the query protocol.
// https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html
var names = map[kind][2]string{
	denied:       {"AccessDeniedException", "AccessDenied"},
	badSignature: {"InvalidSignatureException", "SignatureDoesNotMatch"},
	badToken:     {"UnrecognizedClientException", "InvalidClientTokenId"},
	expiredToken: {"ExpiredTokenException", "ExpiredToken"},
	noToken:      {"MissingAuthenticationTokenException", "MissingAuthenticationToken"},
	malformed:    {"ValidationException", "ValidationError"},
	unavailable:  {"ServiceUnavailableException", "ServiceUnavailable"},
}

// protocol is how a service writes its requests and errors.
type protocol int

const (
	jsonProtocol protocol = iota
	queryProtocol
	cborProtocol
)

// write answers in the protocol's form.
func (f *refusal) write(w http.ResponseWriter, p protocol) {
	code := f.code
	if code == "" {
		code = names[f.kind][0]
		if p == queryProtocol {
			code = names[f.kind][1]
		}
	}
	w.Header().Set("X-Amzn-Requestid", "00000000-0000-0000-0000-000000000000")
	switch p {
	case queryProtocol:
		w.Header().Set("Content-Type", "text/xml")
		w.WriteHeader(f.status(p))
		_, _ = fmt.Fprintf(w, "<ErrorResponse><Error><Type>Sender</Type><Code>%s</Code><Message>%s</Message></Error>"+ //nolint:gosec // escaped, and no browser reads it
			"<RequestId>00000000-0000-0000-0000-000000000000</RequestId></ErrorResponse>", code, xmlText(f.message))
	case cborProtocol:
		w.Header().Set("Content-Type", "application/cbor")
		w.Header().Set("Smithy-Protocol", "rpc-v2-cbor")
		w.WriteHeader(f.status(p))
		_, _ = w.Write(cbor.Encode(cbor.Map{"__type": cbor.String(code), "message": cbor.String(f.message)}))
	case jsonProtocol:
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		w.Header().Set("X-Amzn-Errortype", code)
		w.WriteHeader(f.status(p))
		_ = json.NewEncoder(w).Encode(map[string]string{"__type": code, "Message": f.message})
	}
}

// status is 400 for the JSON protocols, where the query protocol has 403 for everything about who one is.
func (f *refusal) status(p protocol) int {
	switch {
	case f.kind == unavailable:
		return http.StatusServiceUnavailable
	case p == jsonProtocol || f.kind == malformed:
		return http.StatusBadRequest
	default:
		return http.StatusForbidden
	}
}
