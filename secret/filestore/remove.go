package filestore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"countersign.dev/durable"
	"countersign.dev/secret"
)

// Remove removes a version that is not current, whatever else its stage is: of a key that nobody is to
// use any more, nothing is kept. version is an id or a stage. A secret whose only version it was is removed as a
// whole. One that is not there is no error, so that a removal may be repeated; the current version is
// [secret.ErrInvalid].
//
// The index goes first: killed in between, the value is left in a file that is never read, and the next write
// to the secret removes it.
func (s *Store) Remove(ctx context.Context, name, version string) error {
	err := secret.CheckName(name)
	if err == nil && version == "" {
		err = fmt.Errorf("%w version: say which", secret.ErrInvalid)
	}
	if err == nil {
		err = s.locked(ctx, func() error { return s.remove(name, version) })
	}
	if err != nil {
		return fmt.Errorf("removing version %.80q of the secret %s: %w", version, name, err)
	}
	return nil
}

func (s *Store) remove(name, version string) error {
	index, _, err := s.index(name)
	if errors.Is(err, secret.ErrNotFound) {
		return durable.RemoveAll(s.path(stagingDir, directory(name))) // what a crash has left of it
	}
	if err != nil {
		return err
	}
	found, err := find(index, version)
	switch {
	case errors.Is(err, secret.ErrNotFound):
		return s.sweep(name, index) // what a crash has left of it
	case err != nil:
		return err
	case slices.Contains(found.Stages, secret.Current):
		return fmt.Errorf("%w: it is the current one; make another current first", secret.ErrInvalid)
	case len(index.Versions) == 1:
		return s.removeSecret(name)
	}
	at := position(index, found.ID)
	index.Versions = slices.Delete(index.Versions, at, at+1)
	if err := s.writeIndex(name, index); err != nil {
		return err
	}
	return s.sweep(name, index)
}

// removeSecret takes a secret out of sight in one step, and removes it then. What a crash leaves of it among
// the secrets that are being made, the next new secret removes.
func (s *Store) removeSecret(name string) error {
	away := s.path(stagingDir, directory(name))
	if err := durable.RemoveAll(away); err != nil {
		return err
	}
	if err := durable.Rename(s.secretDir(name), away); err != nil {
		return err
	}
	return durable.RemoveAll(away)
}

// EndLease ends the lease of a holder, by the holder's name, whatever time it has left. It is for those who know that the
// holder is dead: a process of this machine whose id nobody has any more. When somebody else has the lease by now, or
// nobody, nothing changes.
func (s *Store) EndLease(ctx context.Context, name, holder string) error {
	err := secret.CheckName(name)
	if err == nil {
		err = s.locked(ctx, func() error {
			l := &Lease{store: s, name: name}
			now, valid, err := l.held()
			if err != nil || !valid || now.Holder != holder {
				return err
			}
			return durable.Remove(l.path())
		})
	}
	if err != nil {
		return fmt.Errorf("ending the lease on %s: %w", name, err)
	}
	return nil
}

// Holder says who holds the lease of a name, and until when; the holder is empty when nobody does. It takes no
// lock.
func (s *Store) Holder(ctx context.Context, name string) (holder string, until time.Time, err error) {
	err = errors.Join(secret.CheckName(name), ctx.Err())
	if err == nil {
		l := &Lease{store: s, name: name}
		var now record
		var valid bool
		if now, valid, err = l.held(); err == nil && valid {
			return now.Holder, now.Expires, nil
		}
	}
	if err != nil {
		return "", time.Time{}, fmt.Errorf("reading the lease on %s: %w", name, err)
	}
	return "", time.Time{}, nil
}
