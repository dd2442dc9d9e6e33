package main

import (
	"context"
	"fmt"

	"countersign.dev/aws/lambda"
	"countersign.dev/aws/lambda/event"
	"countersign.dev/aws/secretsmanager"
	"countersign.dev/rotate"
)

// functionSteps are the steps of Secrets Manager's own rotation. Each reads the specification anew, as every event does.
type functionSteps struct{ *function }

// of are the steps for the secret of an ARN, in the store that it lies in.
func (s functionSteps) of(ctx context.Context, arn string) (lambda.Steps, error) {
	if err := s.ready(ctx); err != nil {
		return nil, err
	}
	_, targets := s.known()
	for _, t := range targets {
		store, ok := t.Store.(*anyStore)
		if !ok {
			continue
		}
		cloud, ok := store.Store.(*secretsmanager.Store)
		if !ok {
			continue
		}
		for _, name := range t.Shape.Names(t.Secret) {
			if event.Names(arn, name) {
				return lambda.NewSteps(s.rotator, cloud, targets, rotate.Options{}), nil
			}
		}
	}
	return nil, fmt.Errorf("%w: %.200s is the secret of no workload that this function rotates", lambda.ErrNotSet, arn)
}

// Begun implements [lambda.Steps].
func (s functionSteps) Begun(ctx context.Context, arn, version string) (bool, error) {
	steps, err := s.of(ctx, arn)
	if err != nil {
		return false, err
	}
	return steps.Begun(ctx, arn, version)
}

// Create implements [lambda.Steps].
func (s functionSteps) Create(ctx context.Context, arn, version string) error {
	steps, err := s.of(ctx, arn)
	if err != nil {
		return err
	}
	return steps.Create(ctx, arn, version)
}

// Test implements [lambda.Steps].
func (s functionSteps) Test(ctx context.Context, arn, version string) error {
	steps, err := s.of(ctx, arn)
	if err != nil {
		return err
	}
	return steps.Test(ctx, arn, version)
}

// Finish implements [lambda.Steps].
func (s functionSteps) Finish(ctx context.Context, arn, version string) error {
	steps, err := s.of(ctx, arn)
	if err != nil {
		return err
	}
	return steps.Finish(ctx, arn, version)
}
