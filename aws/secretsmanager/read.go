package secretsmanager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"countersign.dev/aws/session"
	"countersign.dev/secret"
)

// Read gives the value of one version and its id, with one GetSecretValue. version is an id, a stage, or empty for the
// current one: AWS is always told which. The caller owns the value, and overwrites it when it is done with it; the SDK's own copy is left
// to the garbage collector. A secret or version that is not there, or to which nothing was written yet
// ([Placeholder]), is [secret.ErrNotFound].
func (s *Store) Read(ctx context.Context, name, version string) (value []byte, versionID string, err error) {
	if err = CheckName(name); err == nil {
		value, versionID, err = s.read(ctx, name, version)
	}
	if err != nil {
		return nil, "", fmt.Errorf("reading the secret %s: %w", name, err)
	}
	return value, versionID, nil
}

func (s *Store) read(ctx context.Context, name, version string) ([]byte, string, error) {
	input := &sdk.GetSecretValueInput{SecretId: aws.String(name)}
	if version == "" {
		version = string(secret.Current)
	}
	if label := labelOf(version); label != "" {
		input.VersionStage = aws.String(label)
	} else {
		if err := secret.CheckVersion(version); err != nil {
			return nil, "", err
		}
		if len(version) < minToken || (reserved(version) && version != placeholderID) {
			return nil, "", fmt.Errorf("%w: it has no version %q: ids of Secrets Manager have %d to %d characters", secret.ErrNotFound, version, minToken, maxToken)
		}
		input.VersionId = aws.String(version)
	}
	answer, err := s.client.GetSecretValue(ctx, input, at(name))
	if err != nil {
		return nil, "", s.explain(err, "GetSecretValue", name)
	}
	if aws.ToString(answer.ARN) == "" {
		return nil, "", s.strange("GetSecretValue", name, answer.ResultMetadata)
	}
	value := answer.SecretBinary
	if answer.SecretString != nil {
		value = []byte(*answer.SecretString)
	}
	id := aws.ToString(answer.VersionId)
	if isPlaceholder(value) {
		s.mu.Lock()
		s.empty[name+" "+id] = true
		s.mu.Unlock()
		return nil, "", errPlaceholder
	}
	if len(value) == 0 || len(value) > secret.MaxValue || id == "" {
		clear(value)
		return nil, "", fmt.Errorf("%w: AWS gave %d bytes as the version %.80q", secret.ErrCorrupt, len(value), id)
	}
	return value, id, nil
}

// errPlaceholder says that a version holds the placeholder.
var errPlaceholder = fmt.Errorf("%w: nothing has been written to it yet (its value is %s); `countersign rotate once` or `countersign secret put` writes it", secret.ErrNotFound, Placeholder)

// isEmpty tells whether a version holds the placeholder.
func (s *Store) isEmpty(ctx context.Context, name, id string) (bool, error) {
	if id == placeholderID {
		return true, nil
	}
	s.mu.Lock()
	known := s.empty[name+" "+id]
	s.mu.Unlock()
	if known {
		return true, nil
	}
	value, _, err := s.read(ctx, name, id)
	clear(value)
	if errors.Is(err, errPlaceholder) {
		return true, nil
	}
	return false, err
}

// Versions describes the versions of one secret that have a label, the newest first. Size is 0: AWS says it only with the
// value.
func (s *Store) Versions(ctx context.Context, name string) ([]secret.Version, error) {
	err := CheckName(name)
	var versions []secret.Version
	if err == nil {
		versions, err = s.versions(ctx, name)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the versions of the secret %s: %w", name, err)
	}
	return versions, nil
}

// Bounds of [Store.Reach].
const (
	reachTime  = 20 * time.Second // a way to credentials over the network is in it
	reachTries = 3
)

// Reach finds out, in seconds and with one DescribeSecret, whether the store answers this program at all, before it is asked
// many things that would all fail alike. The error is one that any call would meet ([session.Everywhere]); what else the answer
// is, such as that there is no such secret or that this caller may not see it, is nil.
func (s *Store) Reach(ctx context.Context, name string) error {
	within, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	answer, err := s.client.DescribeSecret(within, &sdk.DescribeSecretInput{SecretId: aws.String(name)}, at(name), func(o *sdk.Options) {
		o.RetryMaxAttempts = min(o.Retryer.MaxAttempts(), reachTries)
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil && aws.ToString(answer.ARN) == "" {
		err = s.strange("DescribeSecret", name, answer.ResultMetadata)
	}
	if err = session.Explain(err, "secretsmanager:DescribeSecret", s.resource(name)); session.Everywhere(err) {
		return fmt.Errorf("asking Secrets Manager in the region %s: %w", s.regionOf(name), err)
	}
	return nil
}

// maxPages bounds how many pages of an answer are read: AWS has a hundred entries on each.
const maxPages = 100

// versions takes the labels from one answer and the times from another.
func (s *Store) versions(ctx context.Context, name string) ([]secret.Version, error) {
	now, err := s.describe(ctx, name)
	if err != nil {
		return nil, err
	}
	versions := []secret.Version{}
	pages := sdk.NewListSecretVersionIdsPaginator(s.client, &sdk.ListSecretVersionIdsInput{SecretId: aws.String(name), MaxResults: aws.Int32(100)}) //nolint:mnd // AWS's most
	for range maxPages {
		if !pages.HasMorePages() {
			break
		}
		page, err := pages.NextPage(ctx, at(name))
		if err != nil {
			return nil, s.explain(err, "ListSecretVersionIds", name)
		}
		for _, entry := range page.Versions {
			id := aws.ToString(entry.VersionId)
			if len(now[id]) > 0 && (!reserved(id) || id == placeholderID) {
				versions = append(versions, describeVersion(id, now[id], aws.ToTime(entry.CreatedDate)))
			}
		}
	}
	slices.Reverse(versions) // what has the same time keeps the reverse of AWS's order
	slices.SortStableFunc(versions, func(a, b secret.Version) int { return b.Created.Compare(a.Created) })
	return versions, nil
}

func describeVersion(id string, labels []string, created time.Time) secret.Version {
	stages := []secret.Stage{}
	for _, known := range stageLabels {
		if slices.Contains(labels, known.label) {
			stages = append(stages, known.stage)
		}
	}
	return secret.Version{ID: id, Stages: stages, Created: created.UTC()}
}

// List describes all secrets of the account and region whose names this program could have given, by name. Versions have no times
// and are in no order. It needs secretsmanager:ListSecrets, which is a permission on all secrets.
func (s *Store) List(ctx context.Context) ([]secret.Entry, error) {
	entries := []secret.Entry{}
	pages := sdk.NewListSecretsPaginator(s.client, &sdk.ListSecretsInput{MaxResults: aws.Int32(100)}) //nolint:mnd // AWS's most
	for range maxPages {
		if !pages.HasMorePages() {
			break
		}
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("listing the secrets of the region %s: %w", s.region, s.explain(err, "ListSecrets", allSecrets))
		}
		for _, listed := range page.SecretList {
			name := aws.ToString(listed.Name)
			if listed.DeletedDate != nil || secret.CheckName(name) != nil {
				continue
			}
			entry := secret.Entry{Name: name, Versions: []secret.Version{}}
			for id, labels := range listed.SecretVersionsToStages {
				if len(labels) > 0 && (!reserved(id) || id == placeholderID) {
					entry.Versions = append(entry.Versions, describeVersion(id, labels, time.Time{}))
				}
			}
			slices.SortFunc(entry.Versions, func(a, b secret.Version) int { return strings.Compare(b.ID, a.ID) })
			entries = append(entries, entry)
		}
	}
	slices.SortFunc(entries, func(a, b secret.Entry) int { return strings.Compare(a.Name, b.Name) })
	return entries, nil
}
