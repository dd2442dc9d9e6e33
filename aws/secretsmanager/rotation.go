package secretsmanager

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"countersign.dev/secret"
)

// ErrNoRotation says that Secrets Manager's own rotation is not at work on a secret, or not on the version that a step names.
var ErrNoRotation = errors.New("Secrets Manager rotates no such version") //nolint:staticcheck // a name

// Rotates makes sure that a secret has an ARN, and that Secrets Manager's own rotation of it is enabled and has begun for a version: that is
// the pending one. done tells that it is current already. It is what AWS's templates for rotation functions ask before each
// step. Else it is [ErrNoRotation].
func (s *Store) Rotates(ctx context.Context, name, arn, version string) (done bool, err error) {
	err = errors.Join(CheckName(name), secret.CheckVersion(version))
	if err == nil {
		done, err = s.rotates(ctx, name, arn, version)
	}
	if err != nil {
		return false, fmt.Errorf("looking at the rotation of the secret %s: %w", name, err)
	}
	return done, nil
}

func (s *Store) rotates(ctx context.Context, name, arn, version string) (bool, error) {
	answer, err := s.client.DescribeSecret(ctx, &sdk.DescribeSecretInput{SecretId: aws.String(name)}, at(name))
	if err != nil {
		return false, s.explain(err, "DescribeSecret", name)
	}
	labels := described(answer.VersionIdsToStages)
	switch {
	case aws.ToString(answer.ARN) == "":
		return false, s.strange("DescribeSecret", name, answer.ResultMetadata)
	case answer.DeletedDate != nil:
		return false, deleted(name, nil)
	case aws.ToString(answer.ARN) != arn:
		return false, fmt.Errorf("%w: the event is about %s, and this function's secret is %s; give the other one a rotation function of its own", ErrNoRotation, arn, aws.ToString(answer.ARN))
	case !aws.ToBool(answer.RotationEnabled):
		return false, fmt.Errorf("%w: its rotation is not enabled; whoever calls this function is not Secrets Manager", ErrNoRotation)
	case labels.has(version, labelCurrent):
		return true, nil
	case len(labels[version]) == 0:
		return false, fmt.Errorf("%w: the version %s has no stage; begin again with `aws secretsmanager rotate-secret`", ErrNoRotation, version)
	case !labels.has(version, labelPending):
		return false, fmt.Errorf("%w: the version %s is not pending, but %s is; cancel the rotation (`aws secretsmanager cancel-rotate-secret`) and begin again", ErrNoRotation, version, pendingOf(labels))
	}
	return false, nil
}

func pendingOf(labels described) string {
	if id := labels.with(labelPending); id != "" {
		return id
	}
	return "none"
}
