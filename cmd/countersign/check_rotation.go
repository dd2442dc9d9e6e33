package main

import (
	"context"

	"countersign.dev/expiry"
	"countersign.dev/mesh"
	"countersign.dev/rotate"
)

// readRotation reads what the rotation of a workload keeps about itself in the store. Nothing at all is an empty one.
func readRotation(ctx context.Context, plan *mesh.Plan, store *anyStore) *expiry.Rotation {
	target, err := rotate.TargetOf(plan)
	if err != nil {
		return &expiry.Rotation{Problem: err.Error()}
	}
	target.Store, target.Keeper = store, store
	r := readRecord(ctx, store, target.Secret)
	if r.Problem != "" {
		return r
	}
	// A request that waits for its certificate is a rotation that has begun, too. What is wrong with the credential is
	// told where that is read.
	status := rotate.ReadStatus(ctx, target)
	r.Step, r.Requested = string(status.Step), status.Requested
	return r
}

// readRecord reads what is kept of the rotations of a secret.
func readRecord(ctx context.Context, store *anyStore, name string) *expiry.Rotation {
	record, err := rotate.ReadRecord(ctx, store, name)
	var holder string
	if err == nil {
		holder, _, err = store.Holder(ctx, name)
	}
	if err != nil {
		return &expiry.Rotation{Problem: err.Error()}
	}
	return &expiry.Rotation{
		LastSuccess: record.LastSuccess, LastFailure: record.LastErrorTime, Failures: int(record.Failures),
		LastError: record.LastError, FailedStep: string(record.LastErrorStep),
		Step: string(record.Step), Began: record.Began, Holder: holder,
	}
}
