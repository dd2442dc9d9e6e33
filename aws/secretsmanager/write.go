package secretsmanager

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"countersign.dev/aws/session"
	"countersign.dev/durable"
	"countersign.dev/secret"
)

// Stage writes a version, reads it back, and lets it be the pending one; what was pending before is so no more. An empty id
// stands for a digest of name and value, which says of two versions whether they hold the same, and nothing else as long as
// the value cannot be guessed. It gives the id. A secret that does not exist is made first, with [Placeholder]
// as its current version.
//
// Writing is idempotent: a version that is there with the same value is kept, and it becomes pending unless it is
// current. With another value it is [secret.ErrConflict], and nothing changes; that is so also of a version that was
// removed, as long as AWS has not deleted it. An id has 32 to 64 characters: [secret.ErrInvalid]. A version that has labels, and
// none of its own, as Secrets Manager's own rotation makes it, is given none, and goes when it is not the previous one any more.
//
// A version whose id ends in -req is the request of a rotation: it is kept, and never pending. While Secrets Manager's own
// rotation runs, AWSPENDING has to stay on the version that it is for.
func (s *Store) Stage(ctx context.Context, name, id string, value []byte) (versionID string, err error) {
	err = errors.Join(CheckName(name), secret.CheckValue(value))
	if err == nil && isPlaceholder(value) {
		err = fmt.Errorf("%w value: %s stands for none", secret.ErrInvalid, Placeholder)
	}
	var labels []string
	switch {
	case err != nil:
	case id == "":
		id = digest(name, value)
	default:
		err = checkVersion(id)
		labels = []string{keepPrefix + id}
	}
	if err != nil {
		return "", fmt.Errorf("writing the secret %s: %w", name, err)
	}
	if err := s.stage(ctx, name, id, value, labels); err != nil {
		return "", fmt.Errorf("writing version %s of the secret %s: %w", id, name, err)
	}
	return id, nil
}

// digest is the id of a value that is given none.
func digest(name string, value []byte) string {
	sum := sha256.New()
	fmt.Fprintf(sum, "countersign secretsmanager\x00%s\x00", name)
	sum.Write(value)
	return hex.EncodeToString(sum.Sum(nil))
}

func (s *Store) stage(ctx context.Context, name, id string, value []byte, labels []string) error {
	now, err := s.ensure(ctx, name)
	if err != nil {
		return err
	}
	written := false
	if len(now[id]) > 0 {
		// One that AWS's own rotation has begun has labels, and no value yet. It keeps those that it has: with one of its own it
		// would never go, and all versions of a secret have room for twenty labels together.
		if !now.has(id, keepPrefix+id) {
			labels = nil
		}
		if written, err = s.same(ctx, name, id, value); err != nil {
			return err
		}
	}
	if !written {
		attached := labels
		if !isRequest(id) {
			attached = append([]string{labelPending}, labels...)
		}
		if err := s.put(ctx, name, id, value, attached); err != nil {
			return err
		}
		durable.Step("secretsmanager.put")
		if err := s.readBack(ctx, name, id, value); err != nil {
			return err
		}
		// One that was there without a label is left as it was by AWS.
		if now, err = s.describe(ctx, name); err != nil {
			return err
		}
	}
	// A version that was there already has kept the labels that it had.
	for _, label := range labels {
		if !now.has(id, label) {
			if err := s.move(ctx, name, label, id, ""); err != nil {
				return err
			}
		}
	}
	if isRequest(id) {
		return nil
	}
	return s.pend(ctx, name, id, now)
}

// pend makes a version the pending one. Of several who do that at one time, such as processes that count in one budget, AWS
// refuses those who were overtaken; they look again.
func (s *Store) pend(ctx context.Context, name, id string, now described) error {
	var last error
	for range attempts {
		if now.has(id, labelPending) || now.has(id, labelCurrent) {
			return nil
		}
		err := s.move(ctx, name, labelPending, id, now.with(labelPending))
		if err == nil || !elsewhere(err) {
			return err
		}
		last = err
		if err := pause(ctx); err != nil {
			return errors.Join(err, last)
		}
		if now, err = s.describe(ctx, name); err != nil {
			return err
		}
	}
	return last
}

// readBack makes sure that a version holds what was written. AWS may take a moment to give it.
func (s *Store) readBack(ctx context.Context, name, id string, value []byte) error {
	const tries = 5
	for range tries {
		if written, err := s.same(ctx, name, id, value); err != nil || written {
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: it was written, and AWS does not give it back", secret.ErrCorrupt)
}

func isRequest(id string) bool { return strings.HasSuffix(id, "-req") }

// same tells whether a version has a value, and is [secret.ErrConflict] when it is another one.
func (s *Store) same(ctx context.Context, name, id string, value []byte) (bool, error) {
	stored, _, err := s.read(ctx, name, id)
	defer clear(stored)
	switch {
	case errors.Is(err, secret.ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	case !bytes.Equal(stored, value):
		return false, fmt.Errorf("%w; give another id, or none", secret.ErrConflict)
	}
	return true, nil
}

// put writes a version. One that is there with the same value is left by AWS, with the labels that it has.
func (s *Store) put(ctx context.Context, name, id string, value []byte, labels []string) error {
	input := &sdk.PutSecretValueInput{SecretId: aws.String(name), ClientRequestToken: aws.String(id), VersionStages: labels}
	// Text is written as text: the console shows it, and ECS puts no other into an environment.
	if utf8.Valid(value) {
		input.SecretString = aws.String(string(value))
	} else {
		input.SecretBinary = value
	}
	_, err := s.client.PutSecretValue(ctx, input, at(name))
	return s.explain(err, "PutSecretValue", name)
}

// ensure sees to it that a secret exists and that something is current in it: AWS makes whatever is written first current.
func (s *Store) ensure(ctx context.Context, name string) (described, error) {
	now, err := s.describe(ctx, name)
	if errors.Is(err, secret.ErrNotFound) && Region(name) == "" {
		if err := s.create(ctx, name); err != nil {
			return nil, err
		}
		now, err = s.describe(ctx, name)
	}
	if err != nil || now.with(labelCurrent) != "" {
		return now, err
	}
	if err := s.put(ctx, name, placeholderID, []byte(Placeholder), []string{labelCurrent}); err != nil {
		return nil, err
	}
	return s.describe(ctx, name)
}

// create makes a secret. Somebody else may have been faster.
func (s *Store) create(ctx context.Context, name string) error {
	input := &sdk.CreateSecretInput{
		Name: aws.String(name), ClientRequestToken: aws.String(placeholderID), SecretString: aws.String(Placeholder),
		Description: aws.String("Written by countersign; see `countersign secret versions`"),
	}
	if s.kmsKey != "" {
		input.KmsKeyId = aws.String(s.kmsKey)
	}
	_, err := s.client.CreateSecret(ctx, input)
	if session.Code(err) == "ResourceExistsException" {
		return nil
	}
	err = s.explain(err, "CreateSecret", name)
	switch {
	case errors.Is(err, session.ErrDenied): // as a role of the templates is, on purpose
		return fmt.Errorf("there is no secret of that name; where a template made it, %s, before you let this role make secrets: %w", remake, err)
	case err != nil:
		return fmt.Errorf("making the secret: %w", err)
	}
	durable.Step("secretsmanager.created")
	return nil
}

// Promote makes a version current: what was current becomes previous, and the version is pending no more. version is an id or a
// stage, previous for the way back. When it is current already, nothing changes but that. Its value is read first: one
// that cannot be is not made current. It asks nothing of what is current; where others may have changed that,
// [Store.Replace] is right.
func (s *Store) Promote(ctx context.Context, name, version string) error {
	return s.makeCurrent(ctx, name, version, nil)
}

// Replace is [Store.Promote] that names the version which it replaces, by its id: the one that was current when the caller
// looked, or empty when none was, or only [Placeholder]. AWS compares it when it moves the label. When another version is
// current by then, nothing changes, and the error is a [*secret.ReplacedError]. A version that is current
// already is no error, so that a Replace may be repeated.
func (s *Store) Replace(ctx context.Context, name, version, replaces string) error {
	return s.makeCurrent(ctx, name, version, &replaces)
}

func (s *Store) makeCurrent(ctx context.Context, name, version string, replaces *string) error {
	err := CheckName(name)
	if err == nil && version == "" {
		err = fmt.Errorf("%w version: say which", secret.ErrInvalid)
	}
	if err == nil && replaces != nil && *replaces != "" {
		err = secret.CheckVersion(*replaces)
	}
	if err == nil {
		err = s.promote(ctx, name, version, replaces)
	}
	if err != nil {
		return fmt.Errorf("making version %.80q of the secret %s current: %w", version, name, err)
	}
	return nil
}

func (s *Store) promote(ctx context.Context, name, version string, replaces *string) error {
	now, err := s.describe(ctx, name)
	if err != nil {
		return err
	}
	current := now.with(labelCurrent)
	id, notFound := now.find(name, version)
	if err := s.overtaken(ctx, name, current, id, replaces); err != nil {
		return err
	}
	if notFound != nil {
		return notFound
	}
	if id != current {
		value, _, err := s.read(ctx, name, id)
		clear(value)
		if err != nil {
			return err
		}
		if err := s.swap(ctx, name, id, current, replaces); err != nil {
			return err
		}
		durable.Step("secretsmanager.promoted")
	}
	if now.has(id, labelPending) {
		// It is current. That it is pending as well harms nobody, and the next version that is staged takes the label.
		_ = s.detach(ctx, name, labelPending, id)
	}
	return nil
}

// swap moves AWSCURRENT. When AWS refuses that, or nobody knows whether it was done, what is current is looked at.
func (s *Store) swap(ctx context.Context, name, id, current string, replaces *string) error {
	err := s.move(ctx, name, labelCurrent, id, current)
	if err == nil || (!elsewhere(err) && !errors.Is(err, session.ErrUnavailable)) {
		return err
	}
	now, err2 := s.describe(ctx, name)
	if err2 != nil {
		return err
	}
	if now.with(labelCurrent) == id {
		return nil
	}
	expected := current
	if replaces != nil {
		expected = *replaces
	}
	if moved := now.with(labelCurrent); moved != current {
		return &secret.ReplacedError{Name: name, Expected: expected, Current: moved, Written: s.written(ctx, name, moved)}
	}
	return err
}

// overtaken is the error when another version is current than the one to be replaced and the one that is to be current,
// which is empty when it is not there. Nil replaces anything.
func (s *Store) overtaken(ctx context.Context, name, current, version string, replaces *string) error {
	if replaces == nil || current == *replaces || (current == version && version != "") {
		return nil
	}
	if *replaces == "" && current != "" {
		if empty, err := s.isEmpty(ctx, name, current); err != nil || empty {
			return err
		}
	}
	return &secret.ReplacedError{Name: name, Expected: *replaces, Current: current, Written: s.written(ctx, name, current)}
}

// written is when a version was written; zero when that cannot be found out.
func (s *Store) written(ctx context.Context, name, id string) time.Time {
	versions, err := s.versions(ctx, name)
	if err != nil {
		return time.Time{}
	}
	for _, version := range versions {
		if version.ID == id {
			return version.Created
		}
	}
	return time.Time{}
}

// Remove takes all labels from a version that is not current: nobody is given it any more, and AWS deletes it in its own time.
// version is an id or a stage. One that is not there is no error, so that a removal may be repeated; the current version is
// [secret.ErrInvalid].
func (s *Store) Remove(ctx context.Context, name, version string) error {
	err := CheckName(name)
	if err == nil && version == "" {
		err = fmt.Errorf("%w version: say which", secret.ErrInvalid)
	}
	if err == nil {
		err = s.remove(ctx, name, version)
	}
	if err != nil {
		return fmt.Errorf("removing version %.80q of the secret %s: %w", version, name, err)
	}
	return nil
}

func (s *Store) remove(ctx context.Context, name, version string) error {
	now, err := s.describe(ctx, name)
	if errors.Is(err, secret.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	id, err := now.find(name, version)
	if errors.Is(err, secret.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if now.has(id, labelCurrent) {
		return fmt.Errorf("%w: it is the current one; make another current first", secret.ErrInvalid)
	}
	for _, label := range now[id] {
		if err := s.detach(ctx, name, label, id); err != nil {
			return err
		}
	}
	return nil
}
