package filestore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"countersign.dev/durable"
	"countersign.dev/secret"
)

// Stage writes a version and lets it be the pending one; what was pending before is so no more. An empty
// id stands for a digest of name and value that is keyed with the store's identity. It gives the id.
//
// Writing is idempotent: a version that is there with the same value is kept, its file written again if
// it is damaged, and it becomes pending unless it is current. With another value it is
// [secret.ErrConflict], and nothing changes. A full disk is [secret.ErrFull], and nothing changes. Of
// versions without a stage the oldest are removed when there would be more than 16 in all.
func (s *Store) Stage(ctx context.Context, name, id string, value []byte) (versionID string, err error) {
	if err := errors.Join(secret.CheckName(name), secret.CheckValue(value)); err != nil {
		return "", fmt.Errorf("writing the secret %s: %w", name, err)
	}
	if id == "" {
		id = s.identity.digest(name, value)
	}
	if err := secret.CheckVersion(id); err != nil {
		return "", fmt.Errorf("writing the secret %s: %w", name, err)
	}
	if err := s.locked(ctx, func() error { return s.stage(name, id, value) }); err != nil {
		return "", fmt.Errorf("writing version %s of the secret %s: %w", id, name, err)
	}
	return id, nil
}

func (s *Store) stage(name, id string, value []byte) error {
	index, _, err := s.index(name)
	if errors.Is(err, secret.ErrNotFound) {
		return s.makeSecret(name, id, value)
	}
	if err != nil {
		return err
	}
	if err := s.sweep(name, index); err != nil {
		return err
	}
	if at := position(index, id); at >= 0 {
		return s.stageAgain(name, index, at, value)
	}
	if err := s.writeValue(s.secretDir(name), name, id, value); err != nil {
		return err
	}
	label(&index, -1, secret.Pending)
	index.Versions = append(index.Versions, newVersion(id, value))
	removed := prune(&index)
	if err := s.writeIndex(name, index); err != nil {
		// The index may be in place although its directory could not be synced: only what no index names
		// may go, which gives a full disk its room back.
		if now, _, readErr := s.index(name); readErr == nil && position(now, id) < 0 {
			_ = os.Remove(s.valuePath(name, id)) // the first error is the one that counts
		}
		return err
	}
	for _, version := range removed {
		// What cannot be removed now is swept by the next write.
		_ = durable.Remove(s.valuePath(name, version.ID))
	}
	return nil
}

// stageAgain stages a version that is there.
func (s *Store) stageAgain(name string, index record, at int, value []byte) error {
	version := index.Versions[at]
	if version.Size != len(value) || version.SHA256 != digestOf(value) {
		return fmt.Errorf("%w; give another id, or none", secret.ErrConflict)
	}
	stored, err := s.value(name, version)
	clear(stored)
	if errors.Is(err, secret.ErrCorrupt) || errors.Is(err, fs.ErrNotExist) {
		err = s.writeValue(s.secretDir(name), name, version.ID, value)
	}
	if err != nil {
		return err
	}
	if slices.Contains(version.Stages, secret.Current) || slices.Contains(version.Stages, secret.Pending) {
		return nil
	}
	label(&index, at, secret.Pending)
	return s.writeIndex(name, index)
}

// makeSecret puts a new secret in place with its index, in one step: a directory without an index is
// damage, never a beginning.
func (s *Store) makeSecret(name, id string, value []byte) error {
	present, err := os.ReadDir(s.path(secretsDir))
	if err != nil {
		return err
	}
	if len(present) >= maxSecrets {
		return fmt.Errorf("%w: it has %d secrets; make another store", secret.ErrFull, len(present))
	}
	leftovers, err := os.ReadDir(s.path(stagingDir))
	if err != nil {
		return err
	}
	for _, leftover := range leftovers {
		if err := durable.RemoveAll(s.path(stagingDir, leftover.Name())); err != nil {
			return err
		}
	}
	staging := s.path(stagingDir, directory(name))
	err = durable.MkdirAll(staging, dirMode)
	if err == nil {
		err = s.writeValue(staging, name, id, value)
	}
	if err == nil {
		index := record{Kind: kindIndex, Name: name, Versions: []indexed{newVersion(id, value)}}
		err = s.save(filepath.Join(staging, indexFile), index, nil)
	}
	if err == nil {
		err = durable.Rename(staging, s.secretDir(name))
	}
	if err != nil {
		_ = os.RemoveAll(staging) // a full disk gets its room back; the first error is the one that counts
	}
	return err
}

// Promote makes a version current, in one step: what was current becomes previous, and the version is
// pending no more. version is an id or a stage, previous for the way back. When it is current already,
// nothing changes but that.
//
// The version's value is read and checked first: one that is damaged is [secret.ErrCorrupt], and what is
// current stays. One that is not there is [secret.ErrNotFound].
//
// It asks nothing of what is current: it is for who is alone with the secret. Where others may have made another
// version current since it was looked at, [Store.Replace] is right.
func (s *Store) Promote(ctx context.Context, name, version string) error {
	return s.makeCurrent(ctx, name, version, nil)
}

// Replace is [Store.Promote] that names the version which it replaces, by its id: the one that was current when the
// caller looked, or empty when none was. The store's lock is held while that is compared. When another version is
// current by then, nothing changes, and the error is a [*secret.ReplacedError], whatever else is wrong. A version that
// is current already is no error, so that a Replace may be repeated. (In AWS Secrets Manager it is
// UpdateSecretVersionStage with RemoveFromVersionId.)
func (s *Store) Replace(ctx context.Context, name, version, replaces string) error {
	return s.makeCurrent(ctx, name, version, &replaces)
}

// makeCurrent is Promote, and Replace when it is given what is to be replaced.
func (s *Store) makeCurrent(ctx context.Context, name, version string, replaces *string) error {
	err := secret.CheckName(name)
	if err == nil && version == "" {
		err = fmt.Errorf("%w version: say which", secret.ErrInvalid)
	}
	if err == nil && replaces != nil && *replaces != "" {
		err = secret.CheckVersion(*replaces) // a stage would be compared with what is current now, and say nothing
	}
	if err == nil {
		err = s.locked(ctx, func() error { return s.promote(name, version, replaces) })
	}
	if err != nil {
		return fmt.Errorf("making version %.80q of the secret %s current: %w", version, name, err)
	}
	return nil
}

func (s *Store) promote(name, version string, replaces *string) error {
	index, _, err := s.index(name)
	if err != nil {
		return err
	}
	current := slices.IndexFunc(index.Versions, func(v indexed) bool { return slices.Contains(v.Stages, secret.Current) })
	found, err := find(index, version)
	if refused := overtaken(index, current, found.ID, replaces); refused != nil {
		return refused
	}
	if err != nil {
		return err
	}
	value, err := s.value(name, found)
	clear(value)
	if errors.Is(err, fs.ErrNotExist) {
		err = corrupt(s.valuePath(name, found.ID), "it is missing")
	}
	if err != nil {
		return err
	}
	if err := s.sweep(name, index); err != nil {
		return err
	}
	at := position(index, found.ID)
	if at == current && !slices.Contains(found.Stages, secret.Pending) {
		return nil
	}
	if at != current {
		label(&index, current, secret.Previous)
		label(&index, at, secret.Current)
	}
	if slices.Contains(index.Versions[at].Stages, secret.Pending) {
		label(&index, -1, secret.Pending)
	}
	return s.writeIndex(name, index)
}

// overtaken is the error when another version is current, at a position, than the one to be replaced and the one that
// is to be current, which is empty when it is not there. Nil replaces anything.
func overtaken(index record, current int, version string, replaces *string) error {
	if replaces == nil {
		return nil
	}
	var now indexed
	if current >= 0 {
		now = index.Versions[current]
	}
	if now.ID == *replaces || (now.ID == version && version != "") {
		return nil
	}
	return &secret.ReplacedError{Name: index.Name, Expected: *replaces, Current: now.ID, Written: now.Created}
}

func newVersion(id string, value []byte) indexed {
	return indexed{
		ID: id, Stages: []secret.Stage{secret.Pending}, Created: time.Now().UTC().Truncate(time.Millisecond),
		Size: len(value), SHA256: digestOf(value),
	}
}

func position(index record, id string) int {
	return slices.IndexFunc(index.Versions, func(v indexed) bool { return v.ID == id })
}

// label moves a stage to the version at a position, from wherever it was; -1 is nowhere. A version that
// becomes current is previous no more.
func label(index *record, at int, stage secret.Stage) {
	for i := range index.Versions {
		stages := slices.DeleteFunc(slices.Clone(index.Versions[i].Stages), func(s secret.Stage) bool {
			return s == stage || (i == at && stage == secret.Current && s == secret.Previous)
		})
		if i == at {
			stages = append(stages, stage)
		}
		index.Versions[i].Stages = stages
	}
}

// prune takes the oldest versions without a stage out of the index until it is not too long.
func prune(index *record) (removed []indexed) {
	for len(index.Versions) > maxVersions {
		at := slices.IndexFunc(index.Versions, func(v indexed) bool { return len(v.Stages) == 0 })
		removed = append(removed, index.Versions[at]) // three stages leave one without
		index.Versions = slices.Delete(index.Versions, at, at+1)
	}
	return removed
}

func (s *Store) writeIndex(name string, index record) error {
	return s.save(s.indexPath(name), index, nil)
}

// writeValue writes a value into the directory of its secret, and reads it back: an index is to name only
// what was seen to be whole.
func (s *Store) writeValue(dir, name, id string, value []byte) error {
	path := filepath.Join(dir, valueFile(id))
	if err := s.save(path, record{Kind: kindVersion, Name: name, ID: id}, value); err != nil {
		return err
	}
	_, stored, err := s.load(path, kindVersion, name)
	same := bytes.Equal(stored, value)
	clear(stored)
	if err == nil && !same {
		err = corrupt(path, "it holds another value than was written")
	}
	return err
}

// sweep removes what a crash has left beside a secret: files that no index names.
func (s *Store) sweep(name string, index record) error {
	dir := s.secretDir(name)
	if err := durable.Sweep(dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		id, ok := strings.CutPrefix(entry.Name(), "v-")
		if !ok || position(index, strings.TrimSuffix(id, ".age")) >= 0 {
			continue
		}
		if err := durable.Remove(filepath.Join(dir, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}
