// Package acmfake knows how AWS Certificate Manager behaves towards those who use private certificates: it is a small ACM
// that speaks the wire protocol (AWS JSON 1.1), so that the AWS SDK talks to it unmodified. What it knows are the
// operations and the rules that this product relies on: who issues, what may be exported with which passphrase, what may
// be renewed and when ACM does it by itself, and the events that say so. moto exports a self-signed leaf and has no
// RenewCertificate; that is why this exists.
//
// It does not know public and imported certificates, ACME, and validation by mail or DNS: a private certificate needs none.
package acmfake

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Options say how a [Fake] behaves. The zero value is an ACM of its own account with a CA of its own.
type Options struct {
	// Region and Account stand in ARNs; the defaults are eu-central-1 and 123456789012.
	Region, Account string
	// Issuer is the private CA; nil is one that issues for no ARN at all.
	Issuer Issuer
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// PendingPolls is how many looks (DescribeCertificate) see a requested certificate PENDING_VALIDATION, and a renewed one
	// PENDING_AUTO_RENEWAL; the work is done by the look after.
	PendingPolls int
	// PageSize bounds an answer of ListCertificates; 0 is ACM's 1000.
	PageSize int
	// Throttle refuses an operation with ThrottlingException when it says so; nil refuses none.
	Throttle func(operation string) bool
	// Events is given each event document as EventBridge would deliver it; nil drops them. It is called by the goroutine
	// that caused it, and without a lock.
	Events func(document []byte)
}

// Fake is ACM as an http.Handler. It is safe for concurrent use.
type Fake struct {
	o Options

	mu     sync.Mutex
	certs  map[string]*certificate // by ARN
	order  []string                // ARNs as they were made
	tokens map[string]token        // idempotency tokens
	calls  map[string]int
	denied string // why the CA lets ACM not renew
	events [][]byte
}

// token is a request that is known by its idempotency token for an hour.
type token struct {
	arn   string
	until time.Time
}

// New makes a Fake.
func New(o Options) *Fake {
	if o.Region == "" {
		o.Region = "eu-central-1"
	}
	if o.Account == "" {
		o.Account = "123456789012"
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.PageSize == 0 {
		o.PageSize = 1000
	}
	return &Fake{o: o, certs: make(map[string]*certificate), tokens: make(map[string]token), calls: make(map[string]int)}
}

// Calls is how often an operation was called, those that were refused among them.
func (f *Fake) Calls(operation string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[operation]
}

// apiError is an error as ACM answers it.
type apiError struct {
	code, message string
	status        int
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

func refuse(code, format string, args ...any) error {
	return &apiError{code: code, message: fmt.Sprintf(format, args...), status: http.StatusBadRequest}
}

// maxRequest bounds a request's body, in bytes.
const maxRequest = 1 << 20

// ServeHTTP answers one call of the API.
func (f *Fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	operation, ok := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "CertificateManager.")
	body, err := io.ReadAll(io.LimitReader(r.Body, maxRequest))
	if err != nil || r.Method != http.MethodPost || !ok {
		respond(w, nil, refuse("UnknownOperationException", "no operation of ACM"))
		return
	}
	f.mu.Lock()
	f.calls[operation]++
	var answer any
	if f.o.Throttle != nil && f.o.Throttle(operation) {
		err = refuse("ThrottlingException", "Rate exceeded")
	} else {
		answer, err = f.call(operation, body)
	}
	events := f.events
	f.events = nil
	f.mu.Unlock()
	for _, event := range events {
		if f.o.Events != nil {
			f.o.Events(event)
		}
	}
	respond(w, answer, err)
}

func respond(w http.ResponseWriter, answer any, err error) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.Header().Set("X-Amzn-RequestId", newUUID())
	var refused *apiError
	switch {
	case errors.As(err, &refused):
		w.WriteHeader(refused.status)
		answer = map[string]string{"__type": refused.code, "message": refused.message}
	case err != nil:
		w.WriteHeader(http.StatusInternalServerError)
		answer = map[string]string{"__type": "InternalFailure", "message": err.Error()}
	case answer == nil: // operations without an answer have no body at all
		return
	}
	text, err := json.Marshal(answer)
	if err != nil {
		panic("acmfake: an answer without JSON: " + err.Error())
	}
	_, _ = w.Write(text)
}

// call does one operation.
func (f *Fake) call(operation string, body []byte) (any, error) {
	operations := map[string]func([]byte) (any, error){
		"RequestCertificate":        f.request,
		"DescribeCertificate":       f.describe,
		"GetCertificate":            f.get,
		"ListCertificates":          f.list,
		"ExportCertificate":         f.export,
		"RenewCertificate":          f.renew,
		"DeleteCertificate":         f.remove,
		"AddTagsToCertificate":      f.addTags,
		"ListTagsForCertificate":    f.listTags,
		"RemoveTagsFromCertificate": f.removeTags,
	}
	do, ok := operations[operation]
	if !ok {
		return nil, refuse("UnknownOperationException", "this ACM does not know %s", operation)
	}
	return do(body)
}

// read reads the members of a request. What is not known is ignored, as AWS does.
func read(body []byte, into any) error {
	if err := json.Unmarshal(body, into); err != nil {
		return refuse("SerializationException", "the request is not JSON of the operation's form")
	}
	return nil
}

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	text := hex.EncodeToString(b[:])
	return text[:8] + "-" + text[8:12] + "-" + text[12:16] + "-" + text[16:20] + "-" + text[20:]
}

// seconds is a time as AWS JSON writes it.
func seconds(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return float64(t.UnixMilli()) / 1000
}
