// Package pcafake is AWS Private CA as far as Countersign, its templates and its tests use it: an http.Handler that speaks the
// service's protocol (AWS JSON 1.1), signs for real, and refuses what AWS refuses, with AWS's own errors.
//
// It knows what other doubles leave out: the validity that was asked for, idempotency tokens and their five minutes, certificates
// that are not ready when they are first asked for, templates, the limits of a CA in short-lived mode and of a CA's own end,
// CRL locations, throttling, and states of a CA. It checks no signature of a call and no policy: that is done by who stands
// before it.
package pcafake

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Options say how the service behaves. The zero value is right for most tests.
type Options struct {
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Region and Account stand in ARNs; empty is eu-central-1 and 123456789012.
	Region, Account string
	// PendingPolls is how often a new certificate, or a new CA, is not ready when it is looked at.
	PendingPolls int
	// Throttle tells of each call whether there were too many. Nil throttles none.
	Throttle func(action string) bool
	// Fail tells whether a request, accepted at first, ends without a certificate. Nil lets none fail.
	Fail func(csr *x509.CertificateRequest) bool
	// Tamper changes what is about to be signed, as no honest CA would. Nil changes nothing.
	Tamper func(template *x509.Certificate)
	// Lose, when it says true after a call was carried out, has the answer replaced by a failure of the service. Nil loses none.
	Lose func(action string) bool
}

// idempotent is how long AWS knows a request again by its token.
const idempotent = 5 * time.Minute

// Fake is the service. It is safe for concurrent use.
type Fake struct {
	o Options

	mu          sync.Mutex
	authorities map[string]*authority // by ARN
	tokens      map[string]token      // of CreateCertificateAuthority
	calls       map[string]int
	issued      int
}

// token is what a request with an idempotency token has made, and when.
type token struct {
	arn string
	at  time.Time
}

// authority is one CA. Its fields are the Fake's to lock.
type authority struct {
	arn, kind, mode string
	config          configuration
	revocation      *revocation
	key             crypto.Signer
	csr             []byte // PEM
	status          string
	pending         int // looks until it is ready
	cert            *x509.Certificate
	chain           []*x509.Certificate // up to the root; empty for a root
	created         time.Time
	changed         time.Time
	tags            map[string]string
	policy          string
	tokens          map[string]token
	certificates    map[string]*certificate // by ARN
	revoked         []x509.RevocationListEntry
	crls            int64
}

// certificate is one that was asked for.
type certificate struct {
	cert    *x509.Certificate // nil: it failed
	chain   []*x509.Certificate
	pending int
}

// States of a CA.
const (
	creating = "CREATING"
	waiting  = "PENDING_CERTIFICATE"
	active   = "ACTIVE"
	disabled = "DISABLED"
	expired  = "EXPIRED"
	deleted  = "DELETED"
)

// Modes and types of a CA.
const (
	generalPurpose = "GENERAL_PURPOSE"
	shortLived     = "SHORT_LIVED_CERTIFICATE"
	typeRoot       = "ROOT"
	typeSub        = "SUBORDINATE"
)

// New makes a service without a CA.
func New(o Options) *Fake {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Region == "" {
		o.Region = "eu-central-1"
	}
	if o.Account == "" {
		o.Account = "123456789012"
	}
	return &Fake{o: o, authorities: make(map[string]*authority), tokens: make(map[string]token), calls: make(map[string]int)}
}

// Calls is how often an action was asked for, such as IssueCertificate, refused calls among them.
func (f *Fake) Calls(action string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[action]
}

// Issued is how many end-entity certificates were made: what AWS bills.
func (f *Fake) Issued() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.issued
}

// fault is an error of the service.
type fault struct {
	status        int
	code, message string
}

func (e *fault) Error() string { return e.code + ": " + e.message }

// refuse makes an error of the caller.
func refuse(code, format string, args ...any) error {
	return &fault{http.StatusBadRequest, code, fmt.Sprintf(format, args...)}
}

func invalid(format string, args ...any) error { return refuse("ValidationException", format, args...) }

// target is the prefix of the header that names the action.
const target = "ACMPrivateCA."

// ServeHTTP answers a call; a GET of /crl/ID.crl gives a CA's revocation list, as its bucket would.
func (f *Fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/crl/") {
		f.serveCRL(w, r)
		return
	}
	answer, err := f.answer(r)
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.Header().Set("X-Amzn-Requestid", randomID())
	if err != nil {
		var refusal *fault
		if !errors.As(err, &refusal) {
			refusal = &fault{http.StatusInternalServerError, "InternalFailure", err.Error()}
		}
		w.Header().Set("X-Amzn-Errortype", refusal.code)
		w.WriteHeader(refusal.status)
		_ = json.NewEncoder(w).Encode(map[string]string{"__type": refusal.code, "message": refusal.message})
		return
	}
	if answer != nil {
		_ = json.NewEncoder(w).Encode(answer)
	}
}

// maxBody is more than any call has, in bytes.
const maxBody = 1 << 20

func (f *Fake) answer(r *http.Request) (any, error) {
	action, ok := strings.CutPrefix(r.Header.Get("X-Amz-Target"), target)
	handle := actions[action]
	if r.Method != http.MethodPost || !ok || handle == nil {
		return nil, refuse("UnknownOperationException", "there is no action %q here", r.Header.Get("X-Amz-Target"))
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return nil, refuse("SerializationException", "%v", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[action]++
	if f.o.Throttle != nil && f.o.Throttle(action) {
		return nil, refuse("ThrottlingException", "Rate exceeded")
	}
	in := input{}
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, refuse("SerializationException", "the body is not what %s takes: %v", action, err)
	}
	out, err := handle(f, in)
	if err == nil && f.o.Lose != nil && f.o.Lose(action) {
		return nil, &fault{http.StatusInternalServerError, "InternalFailure", "the answer was lost"}
	}
	return out, err
}

// input is what all calls carry, each its part of it.
type input struct {
	CertificateAuthorityArn           string
	CertificateAuthorityConfiguration *configuration
	CertificateAuthorityType          string
	RevocationConfiguration           *revocation
	KeyStorageSecurityStandard        string
	UsageMode                         string
	IdempotencyToken                  string
	Tags                              []tag
	Status                            string
	Csr                               []byte
	SigningAlgorithm                  string
	TemplateArn                       string
	Validity, ValidityNotBefore       *validity
	APIPassthrough                    *passthrough `json:"ApiPassthrough"`
	CertificateArn                    string
	Certificate, CertificateChain     []byte
	CertificateSerial                 string
	RevocationReason                  string
	ResourceArn, Policy               string
	MaxResults                        int
	NextToken, ResourceOwner          string
	PermanentDeletionTimeInDays       int
}

type tag struct{ Key, Value string }

// output is an answer.
type output map[string]any

var actions = map[string]func(*Fake, input) (any, error){
	"CreateCertificateAuthority":            (*Fake).create,
	"DescribeCertificateAuthority":          (*Fake).describe,
	"GetCertificateAuthorityCsr":            (*Fake).getCSR,
	"ImportCertificateAuthorityCertificate": (*Fake).importCertificate,
	"GetCertificateAuthorityCertificate":    (*Fake).getAuthorityCertificate,
	"ListCertificateAuthorities":            (*Fake).list,
	"UpdateCertificateAuthority":            (*Fake).update,
	"DeleteCertificateAuthority":            (*Fake).remove,
	"RestoreCertificateAuthority":           (*Fake).restore,
	"IssueCertificate":                      (*Fake).issue,
	"GetCertificate":                        (*Fake).getCertificate,
	"RevokeCertificate":                     (*Fake).revoke,
	"PutPolicy":                             (*Fake).putPolicy,
	"GetPolicy":                             (*Fake).getPolicy,
	"DeletePolicy":                          (*Fake).deletePolicy,
	"TagCertificateAuthority":               (*Fake).tag,
	"UntagCertificateAuthority":             (*Fake).untag,
	"ListTags":                              (*Fake).listTags,
}

var (
	authorityARN   = regexp.MustCompile(`^arn:aws[a-z-]*:acm-pca:[a-z0-9-]+:[0-9]{12}:certificate-authority/[0-9a-f-]{36}$`)
	certificateARN = regexp.MustCompile(`^(arn:aws[a-z-]*:acm-pca:[a-z0-9-]+:[0-9]{12}:certificate-authority/[0-9a-f-]{36})/certificate/[0-9a-f]{32}$`)
)

// find gives a CA that was not deleted, brought to the time.
func (f *Fake) find(arn string) (*authority, error) {
	a, err := f.findDeleted(arn)
	if err == nil && a.status == deleted {
		return nil, refuse("InvalidStateException", "The certificate authority %s is in the state DELETED.", arn)
	}
	return a, err
}

// findDeleted gives any CA.
func (f *Fake) findDeleted(arn string) (*authority, error) {
	if !authorityARN.MatchString(arn) {
		return nil, refuse("InvalidArnException", "The ARN %q is not valid.", arn)
	}
	a := f.authorities[arn]
	if a == nil {
		return nil, refuse("ResourceNotFoundException", "Could not find the certificate authority %s.", arn)
	}
	if a.status == active && f.now().After(a.cert.NotAfter) {
		a.status = expired
	}
	return a, nil
}

// sorted gives the CAs in the order of their ARNs.
func (f *Fake) sorted() []*authority {
	var all []*authority
	for _, arn := range slices.Sorted(maps.Keys(f.authorities)) {
		all = append(all, f.authorities[arn])
	}
	return all
}

// seconds is how AWS JSON writes a time.
func seconds(at time.Time) float64 { return float64(at.UnixMilli()) / 1000 }

// randomID is a random UUID.
func randomID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // crypto/rand ends the process rather than fail
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	text := hex.EncodeToString(b[:])
	return text[:8] + "-" + text[8:12] + "-" + text[12:16] + "-" + text[16:20] + "-" + text[20:]
}

// encode writes certificates as PEM.
func encode(certs ...*x509.Certificate) string {
	var text strings.Builder
	for _, cert := range certs {
		_ = pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	}
	return text.String()
}

// now is the time in UTC: a day of a validity has 24 hours.
func (f *Fake) now() time.Time { return f.o.Now().UTC() }
