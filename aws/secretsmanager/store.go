// Package secretsmanager knows how credentials lie in AWS Secrets Manager: as versions with staging labels, of which one is
// current, and how exclusive work on one is arranged there. It is the store of the type secretsmanager.
//
// Stages are AWS's own: pending is AWSPENDING, current AWSCURRENT, previous AWSPREVIOUS, which AWS moves by itself to the
// version that AWSCURRENT was taken from. A version's id is the ClientRequestToken that it was written with, so that
// writing it twice writes it once. AWSCURRENT moves by UpdateSecretVersionStage with RemoveFromVersionId, which AWS
// refuses when the label is elsewhere by then: that is the compare-and-swap of [Store.Replace].
//
// AWS makes the first version of a secret current whatever labels it is written with. A new secret is therefore made
// with the value [Placeholder], which is also what templates make it with, and which reads as nothing.
//
// AWS deletes versions by itself, some time after they have lost their last label, and only when there are more than a
// hundred; nobody else can. A version that is staged under an id of the caller's has a label of its own (COUNTERSIGN- and the id)
// until [Store.Remove] takes all its labels away: it is not listed then any more, although who may read the secret and
// knows the id still could.
//
// What each call needs: Read of a version secretsmanager:GetSecretValue; [Reader] DescribeSecret as well; Versions
// ListSecretVersionIds; writing DescribeSecret, PutSecretValue, GetSecretValue and UpdateSecretVersionStage, and CreateSecret only
// where the secret does not exist; a lease the same on the secret NAME.rotation. With a key of one's own: kms:Decrypt
// for reading, and kms:GenerateDataKey too for writing.
package secretsmanager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/smithy-go/middleware"

	"countersign.dev/aws/session"
	"countersign.dev/secret"
)

// Placeholder is the value of a secret to which nothing has been written yet.
const Placeholder = "PLACEHOLDER"

// Staging labels.
const (
	labelPending  = "AWSPENDING"
	labelCurrent  = "AWSCURRENT"
	labelPrevious = "AWSPREVIOUS"
	keepPrefix    = "COUNTERSIGN-" // and a version's id
)

// stageLabels are the stages as AWS calls them, in the order of secret.Version.
var stageLabels = []struct {
	stage secret.Stage
	label string
}{{secret.Pending, labelPending}, {secret.Current, labelCurrent}, {secret.Previous, labelPrevious}}

// Ids of versions that are none of a caller's. They are ClientRequestTokens: 32 to 64 characters.
const (
	placeholderID = "countersign-placeholder-version-1"
	boardID       = "countersign-lease-carrier-version-1"
	otherID       = "countersign-lease-carrier-version-2"
)

// Limits of a ClientRequestToken.
const (
	minToken = 32
	maxToken = 64
)

// ErrDeleted says that a secret was deleted and is kept for its recovery window.
var ErrDeleted = errors.New("the secret is scheduled for deletion")

// Config says which store. The zero value is that of the environment.
type Config struct {
	// Region and Endpoint are as in [session.Config].
	Region, Endpoint string
	// KMSKey is the key that new secrets are encrypted with: an id, an ARN or alias/NAME; empty is aws/secretsmanager.
	// Secrets that exist keep theirs.
	KMSKey string
}

// Store is AWS Secrets Manager in one region of one account. Names of secrets are names, or ARNs for what exists. It is safe for
// concurrent use. Errors are those of packages secret and session, and [ErrDeleted]; none holds a value.
type Store struct {
	client *sdk.Client
	region string
	kmsKey string

	mu    sync.Mutex
	empty map[string]bool // versions that hold the placeholder, as NAME and a space and the id
}

// Open makes the client of a store. Nothing is asked yet, so that credentials that do not hold are found by the first call.
func Open(ctx context.Context, c Config) (*Store, error) {
	loaded, err := session.Load(ctx, session.Config{Region: c.Region, Endpoint: c.Endpoint})
	if err != nil {
		return nil, fmt.Errorf("opening the secret store: %w", err)
	}
	return newStore(loaded, c.KMSKey), nil
}

func newStore(c aws.Config, kmsKey string) *Store {
	return &Store{client: sdk.NewFromConfig(c), region: c.Region, kmsKey: kmsKey, empty: make(map[string]bool)}
}

var secretARN = regexp.MustCompile(`^arn:(aws[a-z-]*):secretsmanager:([a-z0-9-]{1,40}):([0-9]{12}):secret:([A-Za-z0-9/_+=.@-]{1,512})$`)

// Region is the region that an ARN of a secret names; empty for a name.
func Region(nameOrARN string) string {
	if found := secretARN.FindStringSubmatch(nameOrARN); found != nil {
		return found[2]
	}
	return ""
}

// CheckName says what is wrong with the name or ARN of a secret: [secret.ErrInvalid].
func CheckName(nameOrARN string) error {
	if strings.HasPrefix(nameOrARN, "arn:") {
		if !secretARN.MatchString(nameOrARN) {
			return fmt.Errorf("%w ARN of a secret: %.200q: write arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME-XXXXXX as `aws secretsmanager describe-secret` shows it", secret.ErrInvalid, nameOrARN)
		}
		return nil
	}
	return secret.CheckName(nameOrARN)
}

// checkVersion says what is wrong with an id that something is to be written under.
func checkVersion(id string) error {
	if err := secret.CheckVersion(id); err != nil {
		return err
	}
	if len(id) < minToken {
		return fmt.Errorf("%w version id: %q has %d characters, and Secrets Manager takes %d to %d; leave it out, so that it is made from the value, or write a longer one such as a UUID", secret.ErrInvalid, id, len(id), minToken, maxToken)
	}
	if reserved(id) {
		return fmt.Errorf("%w version id: %q is the store's own", secret.ErrInvalid, id)
	}
	return nil
}

func reserved(id string) bool { return id == placeholderID || id == boardID || id == otherID }

// FewWrites tells package rotate to write seldom: AWS keeps each version for a day, and about a hundred of a secret.
func (s *Store) FewWrites() bool { return true }

// at asks the region of an ARN.
func at(name string) func(*sdk.Options) {
	return func(o *sdk.Options) {
		if region := Region(name); region != "" {
			o.Region = region
		}
	}
}

// explain makes of an error of the SDK one of package secret, where it is one, and says what to do.
func (s *Store) explain(err error, operation, name string) error {
	if err == nil {
		return nil
	}
	explained := session.Explain(err, "secretsmanager:"+operation, s.resource(name))
	switch {
	case errors.Is(explained, session.ErrKey):
		return explained
	case errors.Is(explained, session.ErrDenied) && name == allSecrets:
		return explained
	case errors.Is(explained, session.ErrDenied):
		return fmt.Errorf("%w; or it does not exist any more, or under another ARN, which AWS says in the same words to a role that may only what it names: `aws secretsmanager describe-secret --secret-id %s`", explained, name)
	}
	known := session.Known(explained) // there is more to be said
	if operation == "UpdateSecretVersionStage" && elsewhere(err) {
		explained = known // somebody else was faster, and asking again does help
	}
	switch text := err.Error(); session.Code(err) {
	case "ResourceNotFoundException":
		advice := ""
		if operation == "PutSecretValue" { // it was there a moment ago
			advice = "; somebody has deleted it, as CloudTrail shows (DeleteSecret): where a template made it, " + remake
		}
		return fmt.Errorf("%w (Secrets Manager, region %s): %w%s", secret.ErrNotFound, s.regionOf(name), explained, advice)
	case "ResourceExistsException":
		return fmt.Errorf("%w: %w; give another id, or none", secret.ErrConflict, known)
	case "LimitExceededException":
		return fmt.Errorf("%w, and what was current is unharmed: %w; a secret has room for about a hundred versions, of which AWS removes old ones after a day, and for twenty staging labels on all of them together: "+
			"`aws secretsmanager describe-secret --secret-id %s` shows them, and `update-secret-version-stage --remove-from-version-id` takes one away", secret.ErrFull, known, name)
	case "InvalidRequestException":
		if strings.Contains(text, "delet") {
			return deleted(name, known)
		}
	case "InvalidParameterException", "ValidationException":
		return fmt.Errorf("%w request: %w", secret.ErrInvalid, explained)
	}
	return explained
}

// strange is the error of an answer without the ARN of a secret, which each of Secrets Manager's has. Nothing is taken from it: it
// would look like a secret without versions.
func (s *Store) strange(operation, name string, answer middleware.Metadata) error {
	return session.Strange("Secrets Manager", "ARN", "secretsmanager:"+operation, s.resource(name), answer)
}

// remake is how a secret that is gone comes back.
const remake = "let that make it again, which hangs the policy at it that keeps others out"

func deleted(name string, err error) error {
	wrapped := fmt.Errorf("%w: bring it back with `aws secretsmanager restore-secret --secret-id %s`, or end its recovery window with `delete-secret --force-delete-without-recovery` and let it be made anew", ErrDeleted, name)
	if err != nil {
		return fmt.Errorf("%w (%w)", wrapped, err)
	}
	return wrapped
}

func (s *Store) regionOf(name string) string {
	if region := Region(name); region != "" {
		return region
	}
	return s.region
}

// allSecrets stands in place of a name for what is done to no one secret: a policy allows that on everything or not at all.
const allSecrets = "*"

// resource is a secret's ARN as a policy names it: AWS adds a hyphen and six characters to a name.
func (s *Store) resource(name string) string {
	if strings.HasPrefix(name, "arn:") || name == allSecrets {
		return name
	}
	partition := "aws"
	switch {
	case strings.HasPrefix(s.region, "cn-"):
		partition = "aws-cn"
	case strings.HasPrefix(s.region, "us-gov-"):
		partition = "aws-us-gov"
	}
	return fmt.Sprintf("arn:%s:secretsmanager:%s:*:secret:%s-??????", partition, s.region, name)
}

// described is which versions of a secret have which labels. Versions without a label are as good as removed.
type described map[string][]string

// describe asks for the labels of all versions. A secret that was deleted is [ErrDeleted].
func (s *Store) describe(ctx context.Context, name string) (described, error) {
	answer, err := s.client.DescribeSecret(ctx, &sdk.DescribeSecretInput{SecretId: aws.String(name)}, at(name))
	if err != nil {
		return nil, s.explain(err, "DescribeSecret", name)
	}
	if aws.ToString(answer.ARN) == "" {
		return nil, s.strange("DescribeSecret", name, answer.ResultMetadata)
	}
	if answer.DeletedDate != nil {
		return nil, deleted(name, nil)
	}
	d := make(described)
	for id, labels := range answer.VersionIdsToStages {
		if len(labels) > 0 {
			d[id] = labels
		}
	}
	return d, nil
}

// with is the version that has a label; empty when none has.
func (d described) with(label string) string {
	for id, labels := range d {
		if slices.Contains(labels, label) {
			return id
		}
	}
	return ""
}

func (d described) has(id, label string) bool { return slices.Contains(d[id], label) }

// find is the id of a version that is named by its id, its stage, or nothing for the current one.
func (d described) find(name, version string) (string, error) {
	if version == "" {
		version = string(secret.Current)
	}
	if label := labelOf(version); label != "" {
		if id := d.with(label); id != "" {
			return id, nil
		}
		return "", fmt.Errorf("%w: no version of it is %s; `countersign secret versions %s` shows what is", secret.ErrNotFound, version, name)
	}
	if len(d[version]) == 0 || (reserved(version) && version != placeholderID) {
		return "", fmt.Errorf("%w: it has no version %.80q; `countersign secret versions %s` shows which it has", secret.ErrNotFound, version, name)
	}
	return version, nil
}

// labelOf is AWS's name of a stage; empty for what is no stage.
func labelOf(stage string) string {
	for _, known := range stageLabels {
		if string(known.stage) == stage {
			return known.label
		}
	}
	return ""
}

// isPlaceholder tells whether a value is none.
func isPlaceholder(value []byte) bool {
	return bytes.Equal(bytes.TrimSpace(value), []byte(Placeholder))
}

// move attaches a label to a version and takes it from another one, in one step; each may be empty.
func (s *Store) move(ctx context.Context, name, label, to, from string) error {
	input := &sdk.UpdateSecretVersionStageInput{SecretId: aws.String(name), VersionStage: aws.String(label)}
	if to != "" {
		input.MoveToVersionId = aws.String(to)
	}
	if from != "" {
		input.RemoveFromVersionId = aws.String(from)
	}
	_, err := s.client.UpdateSecretVersionStage(ctx, input, at(name))
	return s.explain(err, "UpdateSecretVersionStage", name)
}

// detach takes a label from a version. One that is not there is no error.
func (s *Store) detach(ctx context.Context, name, label, from string) error {
	err := s.move(ctx, name, label, "", from)
	if err == nil || !elsewhere(err) {
		return err
	}
	now, err2 := s.describe(ctx, name)
	if err2 != nil {
		return err2
	}
	if now.has(from, label) {
		return err
	}
	return nil
}

// elsewhere tells whether an error of move may mean that the label is not where it was.
func elsewhere(err error) bool {
	switch session.Code(err) {
	case "InvalidParameterException", "InvalidRequestException", "ResourceNotFoundException":
		return true
	}
	return false
}
