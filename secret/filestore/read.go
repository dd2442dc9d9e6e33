package filestore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"countersign.dev/secret"
)

// Read gives the value of one version and its id. version is an id, a stage (pending, current, previous),
// or empty for the current one. The caller owns the value, and overwrites it when it is done with it.
//
// A secret or version that is not there is [secret.ErrNotFound]. One whose file is damaged is
// [secret.ErrCorrupt] with the file's path; no other version is given in its place.
func (s *Store) Read(ctx context.Context, name, version string) (value []byte, versionID string, err error) {
	found, value, err := s.read(ctx, name, version)
	if err != nil {
		return nil, "", fmt.Errorf("reading the secret %s: %w", name, err)
	}
	return value, found.ID, nil
}

func (s *Store) read(ctx context.Context, name, version string) (indexed, []byte, error) {
	if err := secret.CheckName(name); err != nil {
		return indexed{}, nil, err
	}
	var before []byte
	for {
		if err := ctx.Err(); err != nil {
			return indexed{}, nil, err
		}
		index, raw, err := s.index(name)
		if err != nil {
			return indexed{}, nil, err
		}
		found, err := find(index, version)
		if err != nil {
			return indexed{}, nil, err
		}
		value, err := s.value(name, found)
		// A writer may have removed the version since the index was read. Then there is a newer index.
		if !errors.Is(err, fs.ErrNotExist) {
			return found, value, err
		}
		if bytes.Equal(raw, before) {
			return indexed{}, nil, corrupt(s.valuePath(name, found.ID), "it is missing")
		}
		before = raw
	}
}

// index reads the index of a secret, and gives the file as it is too.
func (s *Store) index(name string) (record, []byte, error) {
	err := privateDir(s.secretDir(name))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, nil, fmt.Errorf("%w; `countersign secret list` shows what is", secret.ErrNotFound)
	}
	if err != nil {
		return record{}, nil, err
	}
	path := s.indexPath(name)
	index, _, raw, err := s.loadRaw(path, kindIndex, name)
	// A secret's directory is put in place with its index, and stays: one without it was damaged.
	if errors.Is(err, fs.ErrNotExist) {
		err = corrupt(path, "it is missing")
	}
	return index, raw, err
}

// find finds a version by id or stage.
func find(index record, version string) (indexed, error) {
	if version == "" {
		version = string(secret.Current)
	}
	for _, candidate := range index.Versions {
		if candidate.ID == version || slices.Contains(candidate.Stages, secret.Stage(version)) {
			return candidate, nil
		}
	}
	if secret.IsStage(version) {
		return indexed{}, fmt.Errorf("%w: no version of it is %s; `countersign secret versions %s` shows what is", secret.ErrNotFound, version, index.Name)
	}
	return indexed{}, fmt.Errorf("%w: it has no version %.80q; `countersign secret versions %s` shows which it has", secret.ErrNotFound, version, index.Name)
}

// value reads one value and compares it with what the index says of it. A file that is missing is
// fs.ErrNotExist.
func (s *Store) value(name string, version indexed) ([]byte, error) {
	path := s.valuePath(name, version.ID)
	r, value, err := s.load(path, kindVersion, name)
	if err != nil {
		return nil, err
	}
	switch {
	case r.ID != version.ID:
		err = corrupt(path, fmt.Sprintf("it belongs to the version %s", r.ID))
	case len(value) != version.Size || digestOf(value) != version.SHA256:
		err = corrupt(path, "it holds another value than the index says")
	}
	if err != nil {
		clear(value)
		return nil, err
	}
	return value, nil
}

// Versions describes the versions of one secret, the newest first.
func (s *Store) Versions(ctx context.Context, name string) ([]secret.Version, error) {
	err := secret.CheckName(name)
	if err == nil {
		err = ctx.Err()
	}
	var index record
	if err == nil {
		index, _, err = s.index(name)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the versions of the secret %s: %w", name, err)
	}
	return describe(index), nil
}

func describe(index record) []secret.Version {
	var versions []secret.Version
	for _, version := range slices.Backward(index.Versions) {
		stages := []secret.Stage{}
		for _, stage := range []secret.Stage{secret.Pending, secret.Current, secret.Previous} {
			if slices.Contains(version.Stages, stage) {
				stages = append(stages, stage)
			}
		}
		versions = append(versions, secret.Version{ID: version.ID, Stages: stages, Created: version.Created, Size: version.Size})
	}
	return versions
}

// List describes all secrets, by name. When some are damaged it gives the others, and an error that joins
// one for each that is.
func (s *Store) List(ctx context.Context) ([]secret.Entry, error) {
	directories, err := os.ReadDir(s.path(secretsDir))
	if err != nil {
		return nil, fmt.Errorf("listing the secrets of %s: %w", s.dir, err)
	}
	entries := []secret.Entry{}
	var damaged []error
	for _, directory := range directories {
		name, ok := nameOf(directory.Name())
		if !ok {
			continue
		}
		versions, err := s.Versions(ctx, name)
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("listing the secrets of %s: %w", s.dir, ctx.Err())
		case err != nil:
			damaged = append(damaged, err)
		default:
			entries = append(entries, secret.Entry{Name: name, Versions: versions})
		}
	}
	slices.SortFunc(entries, func(a, b secret.Entry) int { return strings.Compare(a.Name, b.Name) })
	return entries, errors.Join(damaged...)
}
