package rotate

import (
	"context"

	"countersign.dev/secret"
)

// ReadRecord reads what a store keeps of the rotations of a secret, a workload's or a shared trust bundle's; an empty
// Record when it keeps nothing. Errors are those of the store, [secret.ErrCorrupt] and [secret.ErrInvalid].
func ReadRecord(ctx context.Context, store Store, name string) (Record, error) {
	if err := secret.CheckName(name + stateSuffix); err != nil {
		return Record{}, err
	}
	return readRecord(ctx, store, name)
}
