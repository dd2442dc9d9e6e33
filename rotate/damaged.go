package rotate

import (
	"context"
	"errors"
	"fmt"

	"countersign.dev/secret"
)

// damaged says of a current version that cannot be read what helps: a new version, where one can be written.
func damaged(ctx context.Context, err error, store Store, names ...string) error {
	if away := moveAway(ctx, store, names...); away != nil {
		return away
	}
	return fmt.Errorf("%w; or replace it with a new version: --force", err)
}

// moveAway is an error when what a store knows of all versions of a secret is damaged: nothing can be written beside them
// then, and it is not for a rotation to remove them. It is nil when the damage is elsewhere.
func moveAway(ctx context.Context, store Store, names ...string) error {
	for _, name := range names {
		if _, err := store.Versions(ctx, name); errors.Is(err, secret.ErrCorrupt) {
			return fmt.Errorf("%w; or move the directory that this file lies in out of the store, and rotate again: --force does not help here", err)
		}
	}
	return nil
}
