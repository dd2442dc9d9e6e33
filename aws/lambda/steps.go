package lambda

import (
	"context"
	"fmt"
	"slices"

	"countersign.dev/aws/lambda/event"
	"countersign.dev/rotate"
	"countersign.dev/secret"
)

// Versions tells how far Secrets Manager's own rotation of a secret is; see Rotates of aws/secretsmanager.
type Versions interface {
	Rotates(ctx context.Context, secret, arn, version string) (done bool, err error)
}

// NewSteps makes the steps of Secrets Manager's own rotation of a rotator's: each secret is the credential of one target, in the
// layout json. A credential that is several secrets has one rotation in each, which know nothing of one
// another: those are for the schedule. options are for the last step.
func NewSteps(rotator *rotate.Rotator, versions Versions, targets []rotate.Target, options rotate.Options) Steps {
	return &steps{Versions: versions, rotator: rotator, targets: targets, options: options}
}

type steps struct {
	Versions
	rotator *rotate.Rotator
	targets []rotate.Target
	options rotate.Options
}

// find finds the target of a secret.
func (s *steps) find(arn string) (rotate.Target, error) {
	for _, target := range s.targets {
		names := target.Shape.Names(target.Secret)
		switch {
		case !slices.ContainsFunc(names, func(name string) bool { return event.Names(arn, name) }):
		case target.Shape.Layout() != secret.LayoutJSON:
			return rotate.Target{}, fmt.Errorf("%w: %s is one of %d secrets that hold the credential of %s, and Secrets Manager would rotate each by itself; take its rotation away (`aws secretsmanager cancel-rotate-secret`), and let the schedule rotate it",
				ErrNotSet, arn, len(names), target.Workload.Name)
		default:
			return target, nil
		}
	}
	return rotate.Target{}, fmt.Errorf("%w: %s holds no credential of the mesh that this function knows", ErrNotSet, arn)
}

// Begun is that of [Steps]. It asks about the target's own secret, which has to be the one of the event: that may name one of
// another account or region, which its owner has called the same, and in which he rotates what he likes.
func (s *steps) Begun(ctx context.Context, arn, version string) (bool, error) {
	target, err := s.find(arn)
	if err != nil {
		return false, err
	}
	return s.Rotates(ctx, target.Secret, arn, version)
}

// Create is that of [Steps].
func (s *steps) Create(ctx context.Context, arn, version string) error {
	target, err := s.find(arn)
	if err != nil {
		return err
	}
	return s.rotator.Obtain(ctx, target, version).Err
}

// Test is that of [Steps].
func (s *steps) Test(ctx context.Context, arn, version string) error {
	target, err := s.find(arn)
	if err != nil {
		return err
	}
	return s.rotator.Check(ctx, target, version)
}

// Finish is that of [Steps].
func (s *steps) Finish(ctx context.Context, arn, version string) error {
	target, err := s.find(arn)
	if err != nil {
		return err
	}
	return s.rotator.Bring(ctx, target, version, s.options).Err
}
