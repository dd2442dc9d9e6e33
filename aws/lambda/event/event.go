// Package event knows which events the rotation function is told about by AWS, and what they mean: the schedule of EventBridge, two
// events of AWS Certificate Manager, and the four steps of Secrets Manager's own rotation. It needs no SDK.
package event

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"countersign.dev/secret"
)

// Kind is what an event is about.
type Kind string

// The kinds.
const (
	// Schedule says that it is time to look what is due.
	Schedule Kind = "schedule"
	// Approaching says that a certificate of ACM ends soon: "ACM Certificate Approaching Expiration".
	Approaching Kind = "approaching expiration"
	// Renewed says that ACM has renewed a certificate by itself: "ACM Certificate Available" with the action RENEWAL.
	Renewed Kind = "renewed"
	// Available says that a certificate of ACM is there in another way than by renewal: somebody has just asked for it, and
	// nothing is to be done.
	Available Kind = "available"
	// Rotation is a step of Secrets Manager's own rotation.
	Rotation Kind = "rotation"
)

// Step is a step of Secrets Manager's own rotation.
type Step string

// The steps, in their order.
const (
	Create Step = "createSecret"
	Set    Step = "setSecret"
	Test   Step = "testSecret"
	Finish Step = "finishSecret"
)

// MaxSize bounds an event, in bytes: what Lambda takes of an asynchronous one.
const MaxSize = 1 << 20

// ErrEvent says that an event is none that the function knows.
var ErrEvent = errors.New("the event is none that this function knows")

// Event is one event. What is of another kind is empty.
type Event struct {
	Kind Kind
	// ID, Time, Account and Region are EventBridge's.
	ID      string
	Time    time.Time
	Account string
	Region  string
	// Certificate is the ARN of a certificate in ACM, CommonName its name and DaysToExpiry the days that it has left.
	Certificate  string
	CommonName   string
	DaysToExpiry int
	// Action is what ACM did to make a certificate available: RENEWAL, ISSUANCE, IMPORT or REIMPORT.
	Action string
	// Step, Secret and Token are of a rotation: the secret's ARN, and the id that its next version is to have.
	Step   Step
	Secret string
	Token  string
}

// String is for logs.
func (e Event) String() string {
	switch e.Kind {
	case Rotation:
		return fmt.Sprintf("%s of %s for the version %s", e.Step, e.Secret, e.Token)
	case Approaching, Renewed, Available:
		return fmt.Sprintf("%s: %s (%s)", e.Kind, e.Certificate, e.CommonName)
	case Schedule:
	}
	return string(e.Kind)
}

// document is what both senders write. Keys that are not known here are left alone: AWS adds some.
type document struct {
	ID         string          `json:"id"`
	DetailType *string         `json:"detail-type"`
	Source     string          `json:"source"`
	Account    string          `json:"account"`
	Time       time.Time       `json:"time"`
	Region     string          `json:"region"`
	Resources  []string        `json:"resources"`
	Detail     json.RawMessage `json:"detail"`

	Step   *string `json:"Step"`
	Secret string  `json:"SecretId"`
	Token  string  `json:"ClientRequestToken"`
}

// lazily compiles an expression when it is wanted first: only the rotation function is sent events.
func lazily(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}

var (
	certificateARN = lazily(`^arn:aws[a-z-]*:acm:[a-z0-9-]{1,40}:[0-9]{12}:certificate/[A-Za-z0-9-]{1,64}$`)
	secretARN      = lazily(`^arn:aws[a-z-]*:secretsmanager:[a-z0-9-]{1,40}:[0-9]{12}:secret:[A-Za-z0-9/_+=.@-]{1,512}$`)
	word           = lazily(`^[A-Za-z0-9 ._*@=/+-]{0,253}$`)
)

// Parse reads an event. What is none of those of this package is [ErrEvent], with what was sent and what to do.
func Parse(data []byte) (Event, error) {
	e, err := parse(data)
	if err != nil {
		return Event{}, fmt.Errorf("%w: %w", ErrEvent, err)
	}
	return e, nil
}

func parse(data []byte) (Event, error) {
	if len(data) > MaxSize {
		return Event{}, fmt.Errorf("it has %d bytes, and %d are taken", len(data), MaxSize)
	}
	var d document
	if err := json.Unmarshal(data, &d); err != nil {
		return Event{}, errors.New("it is no JSON object with the fields of an event of AWS in it")
	}
	switch {
	case d.DetailType != nil && d.Step != nil:
		return Event{}, errors.New("it is from EventBridge and from Secrets Manager at once")
	case d.Step != nil:
		return d.rotation()
	case d.DetailType == nil:
		return Event{}, errors.New("it has neither a detail-type, as those of EventBridge do, nor a Step, as those of Secrets Manager do; to rotate what is due by hand, send " +
			`{"source": "aws.events", "detail-type": "Scheduled Event"}`)
	}
	e := Event{ID: clean(d.ID), Time: d.Time.UTC(), Account: clean(d.Account), Region: clean(d.Region)}
	switch from := d.Source + ": " + *d.DetailType; from {
	case "aws.events: Scheduled Event", "aws.scheduler: Scheduled Event":
		e.Kind = Schedule
		return e, nil
	case "aws.acm: ACM Certificate Approaching Expiration":
		e.Kind = Approaching
	case "aws.acm: ACM Certificate Available":
		e.Kind = Available
	default:
		return Event{}, fmt.Errorf("it is %.120q; narrow the rule of EventBridge that sends it to \"Scheduled Event\", \"ACM Certificate Approaching Expiration\" and \"ACM Certificate Available\"", from)
	}
	return e, d.certificate(&e)
}

// clean drops what is no plain word: it goes to logs.
func clean(text string) string {
	if !word().MatchString(text) {
		return ""
	}
	return text
}

// certificate reads what ACM says of a certificate.
func (d document) certificate(e *Event) error {
	if len(d.Resources) != 1 || !certificateARN().MatchString(d.Resources[0]) {
		return fmt.Errorf("it is from ACM, and its resources are not the ARN of one certificate: %.200q", d.Resources)
	}
	var detail struct {
		Action       string
		CommonName   string
		DaysToExpiry int
	}
	if err := json.Unmarshal(d.Detail, &detail); err != nil {
		return errors.New("it is from ACM, and its detail is not what ACM writes")
	}
	e.Certificate, e.CommonName, e.DaysToExpiry = d.Resources[0], clean(detail.CommonName), detail.DaysToExpiry
	if e.Kind != Available {
		return nil
	}
	switch detail.Action {
	case "RENEWAL":
		e.Kind = Renewed
	case "ISSUANCE", "IMPORT", "REIMPORT":
	default:
		return fmt.Errorf("ACM made the certificate %s available by the action %.40q, which is not known here", e.Certificate, detail.Action)
	}
	e.Action = detail.Action
	return nil
}

// rotation reads a step of Secrets Manager.
func (d document) rotation() (Event, error) {
	e := Event{Kind: Rotation, Step: Step(*d.Step), Secret: d.Secret, Token: d.Token}
	switch e.Step {
	case Create, Set, Test, Finish:
	default:
		return Event{}, fmt.Errorf("it is from Secrets Manager, and %.40q is no step of a rotation", *d.Step)
	}
	if !secretARN().MatchString(e.Secret) {
		return Event{}, fmt.Errorf("it is from Secrets Manager, and its SecretId is not the ARN of a secret: %.200q", e.Secret)
	}
	const shortest = 32
	if len(e.Token) < shortest || secret.CheckVersion(e.Token) != nil {
		return Event{}, fmt.Errorf("it is from Secrets Manager, and its ClientRequestToken is no id of a version: %.100q", e.Token)
	}
	return e, nil
}

// Names tells whether an ARN is of the secret with a name: AWS adds a hyphen and six characters.
func Names(arn, name string) bool {
	const added = len("-AbCdEf")
	_, rest, found := strings.Cut(arn, ":secret:")
	return found && secretARN().MatchString(arn) && len(rest) == len(name)+added && strings.HasPrefix(rest, name+"-")
}
