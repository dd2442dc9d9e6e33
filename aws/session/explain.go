package session

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"countersign.dev/aws/session/internal/words"
)

// Errors of AWS, by what helps. The SDK's own error is behind each of them.
var (
	// ErrDenied says that the caller may not do it. The message names action, resource and the line that a policy lacks.
	ErrDenied = errors.New("AWS denies it")
	// ErrThrottled says that there were too many calls, and that the tries did not help.
	ErrThrottled = errors.New("AWS throttles it")
	// ErrCredentials says that there are no credentials, or that they do not hold any more.
	ErrCredentials = errors.New("the AWS credentials do not hold")
	// ErrUnavailable says that AWS could not be reached, or failed itself; nobody knows whether the call was carried out.
	ErrUnavailable = errors.New("AWS does not answer as it should")
	// ErrKey says that the KMS key of what was asked for is disabled, gone or out of the caller's reach.
	ErrKey = errors.New("the KMS key cannot be used")
)

// Error is an error of AWS with what to do about it. errors.Is finds the sentinel of this package that it belongs to,
// when there is one, and errors.As the SDK's own error. What AWS wrote is shown in one line and cut, and not at all
// when it quotes a key.
type Error struct {
	// Action is such as secretsmanager:GetSecretValue, and Resource what it was to be done to. They are AWS's words
	// where its message has some.
	Action, Resource string
	// Caller is the ARN of who was denied; empty when AWS does not say.
	Caller string
	// Code is AWS's name of the error; empty when the call did not get that far.
	Code string

	kind    error
	general *general // nil where more is known
	advice  string
	err     error
}

func (e *Error) Error() string {
	text := e.Action
	if e.Resource != "" {
		text += " on " + e.Resource
	}
	if e.kind != nil {
		text += ": " + e.kind.Error()
	}
	text += ": " + said(e.err)
	if e.advice != "" {
		text += "; " + e.advice
	}
	return text
}

// Unwrap gives the sentinel and the SDK's error.
func (e *Error) Unwrap() []error {
	if e.kind == nil {
		return []error{e.err}
	}
	if errors.Is(e.kind, ErrKey) && deniedCodes[e.Code] {
		return []error{e.kind, ErrDenied, e.err}
	}
	return []error{e.kind, e.err}
}

// Explain says what an error of the SDK means, and what to do. action is such as secretsmanager:GetSecretValue, resource
// an ARN where one is known; its account may be *, which is filled in when AWS names the caller. Nil is nil, and an error that is
// explained already is left as it is.
func Explain(err error, action, resource string) error {
	if err == nil {
		return nil
	}
	if _, done := errors.AsType[*Error](err); done {
		return err
	}
	e := &Error{Action: action, Resource: resource, Code: Code(err), err: err}
	for _, judge := range []func(*Error) bool{(*Error).key, (*Error).denied, (*Error).throttled, (*Error).credentials, (*Error).unavailable, (*Error).otherwise} {
		if judge(e) {
			break
		}
	}
	return e
}

// Code is AWS's name of an error, such as ResourceNotFoundException; empty for one that is not AWS's.
func Code(err error) string {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return api.ErrorCode()
	}
	return ""
}

// message is what AWS wrote to an error.
func message(err error) string {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return api.ErrorMessage()
	}
	return ""
}

// said is what is shown of an error: AWS's words, or the SDK's.
func said(err error) string {
	text := err.Error()
	if code := Code(err); code == unknownError {
		text = fmt.Sprintf("an answer of the status %d that holds no error of AWS", status(err))
		if m := message(err); m != "" && m != code {
			text += ": " + m
		}
	} else if code != "" {
		text = code
		if m := message(err); m != "" {
			text += ": " + m
		}
	}
	if shown := words.Show(text); shown != "" {
		return shown
	}
	return words.Show(Code(err)) + " (its message quotes what was sent, and is not shown)"
}

var deniedCodes = map[string]bool{
	"AccessDeniedException": true, "AccessDenied": true, "UnauthorizedOperation": true, "UnauthorizedException": true,
	"NotAuthorized": true, "AuthorizationError": true, "AuthorizationErrorException": true, "Forbidden": true,
}

var keyCodes = map[string]bool{
	"DecryptionFailure": true, "EncryptionFailure": true, "DisabledException": true, "KMSInvalidStateException": true,
	"KeyUnavailableException": true, "KMSAccessDeniedException": true, "KMSDisabledException": true, "KMSNotFoundException": true,
	"InvalidKeyUsageException": true, "IncorrectKeyException": true,
}

// key judges errors of the KMS key behind what was asked for.
func (e *Error) key() bool {
	text := message(e.err)
	read := words.Read(text)
	switch {
	case keyCodes[e.Code]:
	case !read.OfKMS && !strings.HasPrefix(e.Action, "kms:"):
		return false
	case deniedCodes[e.Code]:
		e.take(read)
		e.kind = ErrKey
		action := "kms:Decrypt"
		if strings.HasPrefix(e.Action, "kms:") {
			action = e.Action
		}
		e.advice = e.policy(action, keyARN(read)) + ", and see that the key's own policy (its resource policy) lets the role use it through the service"
		return true
	case strings.Contains(text, "disabled"), strings.Contains(text, "pending deletion"), strings.Contains(text, "invalid state"), strings.Contains(text, "does not exist"):
	default:
		return false
	}
	e.kind = ErrKey
	e.advice = fmt.Sprintf("see in what state the key %s is (`aws kms describe-key`), enable it again (`aws kms enable-key`) or cancel its deletion (`aws kms cancel-key-deletion`), and see that its policy and the role's allow kms:Decrypt and kms:GenerateDataKey; what is encrypted with it is not lost as long as it exists", keyARN(read))
	return true
}

// keyARN is the key that a message names.
func keyARN(m words.Message) string {
	if m.Key != "" {
		return m.Key
	}
	return "KEY-ARN (of the secret: `aws secretsmanager describe-secret` shows its KmsKeyId)"
}

// denied judges refusals by IAM.
func (e *Error) denied() bool {
	if !deniedCodes[e.Code] {
		return false
	}
	read := words.Read(message(e.err))
	e.take(read)
	e.kind = ErrDenied
	if read.Deny != "" {
		e.advice = fmt.Sprintf("an explicit deny in a %s forbids it, and no allowing line helps: if the caller is to do this, take it out of that deny's condition or name it there; else see who runs under this role", read.Deny)
		return true
	}
	e.advice = e.policy(e.Action, e.Resource)
	return true
}

// take takes caller, action and resource from a message, where it has them.
func (e *Error) take(m words.Message) {
	const parts = 6 // of an ARN
	e.Caller = m.Caller
	caller, resource := strings.SplitN(m.Caller, ":", parts), strings.SplitN(e.Resource, ":", parts)
	if len(caller) == parts && len(resource) == parts && resource[4] == "*" {
		resource[1], resource[4] = caller[1], caller[4]
		e.Resource = strings.Join(resource, ":")
	}
	if m.Action != "" {
		e.Action = m.Action
	}
	if strings.HasPrefix(m.Resource, "arn:") || e.Resource == "" {
		e.Resource = m.Resource
	}
}

// policy says which line is missing from which policy.
func (e *Error) policy(action, resource string) string {
	statement, err := json.Marshal(struct {
		Effect, Action, Resource string
	}{"Allow", action, resource})
	if err != nil {
		return ""
	}
	who := "the caller"
	if e.Caller != "" {
		who = e.Caller
	}
	return fmt.Sprintf("add to the policy of the role of %s: %s", who, statement)
}

// throttled judges too many calls. A quota (LimitExceededException) is none: waiting does not help there.
func (e *Error) throttled() bool {
	_, throttle := retry.DefaultThrottleErrorCodes[e.Code]
	if (!throttle && status(e.err) != http.StatusTooManyRequests) || e.Code == "LimitExceededException" {
		return false
	}
	e.kind = ErrThrottled
	e.advice = e.tries() + "wait a minute and try again, see what else calls this service in the account and region, and let fewer instances ask at one time"
	return true
}

// tries says how often a call was tried; nothing when that is not known.
func (e *Error) tries() string {
	if end, ok := errors.AsType[*retry.MaxAttemptsError](e.err); ok && end.Attempt > 1 {
		return fmt.Sprintf("it was tried %d times; ", end.Attempt)
	}
	return ""
}

var credentialCodes = map[string]string{
	"ExpiredTokenException": "", "ExpiredToken": "", "TokenRefreshRequired": "", "InvalidToken": "",
	"UnrecognizedClientException": "", "InvalidClientTokenId": "", "InvalidAccessKeyId": "", "AuthFailure": "",
	"MissingAuthenticationToken": "", "MissingAuthenticationTokenException": "", "NotSignedUp": "", "OptInRequired": "",
	"RequestExpired": "clock", "RequestTimeTooSkewed": "clock", "RequestInTheFuture": "clock",
	"InvalidSignatureException": "clock", "SignatureDoesNotMatch": "clock", "IncompleteSignature": "", "IncompleteSignatureException": "",
}

// credentials judges credentials that are missing or do not hold.
func (e *Error) credentials() bool {
	hint, known := credentialCodes[e.Code]
	text := e.err.Error()
	none := e.Code == "" && (strings.Contains(text, "get credentials") || strings.Contains(text, "failed to refresh cached credentials") || strings.Contains(text, "static credentials are empty"))
	if !known && !none {
		return false
	}
	e.kind = ErrCredentials
	switch {
	case none:
		e.advice = "on ECS, give the task definition a taskRoleArn and do not set AWS_ACCESS_KEY_ID; on Lambda, the function's role is used; elsewhere sign in (`aws sso login`) or set AWS_PROFILE"
	case hint == "clock":
		e.advice = "see that this machine's clock is right (AWS allows five minutes), and that AWS_SECRET_ACCESS_KEY belongs to AWS_ACCESS_KEY_ID"
	default:
		e.advice = "they have ended, or are of another account: where they stand in the environment or a file, renew them (`aws sso login`) or take them out, so that the role's are used, which renew themselves"
	}
	return true
}

// status is the status of an answer over HTTP; 0 when there was none.
func status(err error) int {
	if answered, ok := errors.AsType[interface {
		error
		HTTPStatusCode() int
	}](err); ok {
		return answered.HTTPStatusCode()
	}
	return 0
}

// unreadable tells whether an answer was none that the SDK could read.
func unreadable(err error) bool {
	_, ok := errors.AsType[*smithy.DeserializationError](err)
	return ok
}

// unavailable judges failures of AWS itself, and of the way there.
func (e *Error) unavailable() bool {
	var network net.Error
	var name *net.DNSError
	var unknown *tls.CertificateVerificationError
	var unsent *smithyhttp.RequestSendError
	place := standIn(e.err)
	instead := func(otherwise, here string) {
		if e.advice = otherwise; place != "" {
			e.advice = fmt.Sprintf(here, place)
		}
	}
	switch {
	case errors.Is(e.err, context.Canceled):
		return false
	case errors.As(e.err, &unknown):
		e.advice = "this machine does not believe the certificate of the endpoint: see whether a proxy opens TLS on the way, and AWS_CA_BUNDLE"
	case errors.As(e.err, &name):
		instead("the endpoint's name cannot be resolved: see the region, and the VPC's DNS and interface endpoint for this service",
			"the name of the endpoint cannot be resolved: it is %s; correct it, or leave it out")
	case status(e.err) >= http.StatusInternalServerError && (place == "" || !stranger(e.err)):
		e.advice = e.tries() + "try again later, and see https://health.aws.amazon.com for the region"
		if place != "" {
			e.advice += "; the answer is of " + place
		}
	case errors.Is(e.err, context.DeadlineExceeded), errors.As(e.err, &network), errors.As(e.err, &unsent):
		instead("see that this network leads to the service: a route to the internet or an interface endpoint (PrivateLink) whose security group lets port 443 in; and try again",
			"nothing answers at %s; correct it, start what should listen there, or leave it out for AWS itself")
	case stranger(e.err):
		instead("what answers is not AWS: see whether a proxy (HTTPS_PROXY) or a gateway answers in its place",
			"what answers is not AWS: it is %s; correct it, or leave it out for AWS itself")
	default:
		return false
	}
	e.kind = ErrUnavailable
	return true
}

// Everywhere tells whether an explained error is one that any other call of this program would meet as well: nobody
// knows who it is, or nothing answers.
func Everywhere(err error) bool {
	return errors.Is(err, ErrCredentials) || errors.Is(err, ErrUnavailable)
}

// Remedy says in a few words what kind of thing helps against an explained error, for those who show its message, which has the
// details, and what to do, in two places. It begins with a verb, and is empty for errors that are not explained, and for those that somebody knows more of ([Known]).
func Remedy(err error) string {
	switch {
	case errors.Is(err, ErrKey):
		return "put the KMS key in order"
	case errors.Is(err, ErrDenied):
		return "let the caller do this"
	case errors.Is(err, ErrThrottled):
		return "wait until AWS is asked less"
	case errors.Is(err, ErrCredentials):
		return "give this program credentials that hold"
	case errors.Is(err, ErrUnavailable):
		return "see that AWS can be reached from here"
	case errors.Is(err, ErrConfig):
		return "correct what is configured"
	default:
		return generalRemedy(err)
	}
}
