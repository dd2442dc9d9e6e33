// Package filestore knows how to keep secrets in a directory, each file encrypted with age
// (age-encryption.org/v1), in versions and stages as a secret store of a cloud has them. It is the store
// for one machine and for tests; several processes may use one directory at a time.
//
// What is on the disk:
//
//	DIR/store.age                what this directory is; tells a wrong identity from damage
//	DIR/lock                     held by the one process that writes, for as long as a write takes
//	DIR/queue                    held by the one whose turn is next, while it waits for that lock
//	DIR/secrets/NAME/index.age   the versions of a secret, their stages and the digests of their values
//	DIR/secrets/NAME/v-ID.age    one value
//	DIR/leases/NAME.age          who works on NAME alone, and until when
//	DIR/staging/                 secrets that are being made
//
// NAME has commas in place of slashes. Files are 0600 and directories 0700. Each file says inside what it
// is and to which secret it belongs, and the index holds the digest of each value, so that files cannot
// be put in one another's place; only an older copy of a whole secret cannot be told from the newest. What
// belongs to another user than root and the process's own, or what others may write to, is refused.
// Names, ids, sizes and times of writing are visible to whoever sees the directory.
//
// A value is written and synced before the index that names it, and the index is replaced in one step
// (package durable): killed at any point, a store holds what it held before or what it was to hold.
// Files that no index names are never read, and the next write removes them. Readers take no lock and
// write nothing, so that a store may be mounted read-only.
package filestore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"filippo.io/age"

	"countersign.dev/durable"
	"countersign.dev/secret"
)

// Names in a store's directory.
const (
	storeFile  = "store.age"
	lockFile   = "lock"
	queueFile  = "queue"
	secretsDir = "secrets"
	leasesDir  = "leases"
	stagingDir = "staging"
	indexFile  = "index.age"
)

// Limits of a store.
const (
	maxVersions = 16   // of a secret; the oldest without a stage goes first
	maxSecrets  = 4096 // in a store
)

// lockWait is how long a writer waits for another one, unless its context ends before.
const lockWait = 10 * time.Second

// Errors of this package, beside those of package secret.
var (
	// ErrNoStore says that there is no store in a directory.
	ErrNoStore = errors.New("there is no secret store")
	// ErrExists says that there is one.
	ErrExists = errors.New("there is a secret store already")
	// ErrBusy says that other writers kept the store's lock for too long. Its errors name the one that has it, where that
	// can be seen. Trying again is right.
	ErrBusy = errors.New("another process is writing to the store")
)

// Store is a secret store in a directory. It is safe for concurrent use, also by several processes; it
// holds nothing open and needs no closing. Errors are those of package secret and of this one.
type Store struct {
	dir      string
	identity *Identity
}

// Create makes a store in a directory, which is made when it is missing and must be empty else, but for
// what a crash of Create has left. A store that is there is [ErrExists].
func Create(dir string, identity *Identity) (*Store, error) {
	s := &Store{dir: dir, identity: identity}
	if err := s.create(); err != nil {
		return nil, fmt.Errorf("making a secret store in %s: %w", dir, full(err))
	}
	return s, nil
}

func (s *Store) create() error {
	if err := durable.MkdirAll(s.dir, dirMode); err != nil {
		return err
	}
	if err := s.private(); err != nil {
		return err
	}
	if err := s.onlyOurs(); err != nil {
		return err
	}
	unlock, err := durable.Lock(s.path(lockFile))
	if errors.Is(err, durable.ErrLocked) {
		return s.busy(lockFile)
	}
	if err != nil {
		return err
	}
	defer unlock() //nolint:errcheck // nothing was written to it
	if _, err := os.Lstat(s.path(storeFile)); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = fmt.Errorf("%w; it is kept", ErrExists)
		}
		return err
	}
	for _, dir := range []string{secretsDir, leasesDir, stagingDir} {
		if err := durable.MkdirAll(s.path(dir), dirMode); err != nil {
			return err
		}
	}
	if err := durable.Sweep(s.dir); err != nil {
		return err
	}
	return s.save(s.path(storeFile), record{Kind: kindStore}, nil)
}

// onlyOurs refuses a directory with something else in it: somebody named the wrong one.
func (s *Store) onlyOurs() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		switch name := entry.Name(); {
		case name == storeFile:
			return fmt.Errorf("%w; it is kept", ErrExists)
		case name == lockFile, name == queueFile, name == secretsDir, name == leasesDir, name == stagingDir, strings.HasPrefix(name, "."+storeFile):
		default:
			return fmt.Errorf("%w directory: %s is in it; name an empty one, or one that does not exist", secret.ErrInvalid, name)
		}
	}
	return nil
}

// Open opens the store in a directory. None there is [ErrNoStore]; a store of another identity is
// [ErrIdentity]; what others may write to or own is refused.
func Open(dir string, identity *Identity) (*Store, error) {
	s := &Store{dir: dir, identity: identity}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("opening the secret store %s: %w", dir, err)
	}
	return s, nil
}

func (s *Store) open() error {
	if err := s.private(); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: the directory does not exist; `countersign secret init` makes one", ErrNoStore)
		}
		return err
	}
	path := s.path(storeFile)
	sealed, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if entries, err := os.ReadDir(s.path(secretsDir)); err == nil && len(entries) > 0 {
			return corrupt(path, "it is missing")
		}
		return fmt.Errorf("%w: %s is missing; `countersign secret init` makes one", ErrNoStore, storeFile)
	}
	if err != nil {
		return err
	}
	_, err = age.Decrypt(strings.NewReader(string(sealed)), s.identity.identities...)
	var noMatch *age.NoIdentityMatchError
	if errors.As(err, &noMatch) {
		return fmt.Errorf("%w: the store was made with another identity than that of %s", ErrIdentity, s.identity.source)
	}
	_, _, err = s.load(path, kindStore, "")
	return err
}

func (s *Store) path(names ...string) string {
	return filepath.Join(append([]string{s.dir}, names...)...)
}

// directory spells a secret's name as one name of a file: a comma is in no secret's name.
func directory(name string) string { return strings.ReplaceAll(name, "/", ",") }

// nameOf undoes directory. Names that directory does not give are of no secret.
func nameOf(directory string) (string, bool) {
	name := strings.ReplaceAll(directory, ",", "/")
	return name, secret.CheckName(name) == nil
}

func (s *Store) secretDir(name string) string { return s.path(secretsDir, directory(name)) }
func (s *Store) indexPath(name string) string { return filepath.Join(s.secretDir(name), indexFile) }
func (s *Store) valuePath(name, id string) string {
	return filepath.Join(s.secretDir(name), valueFile(id))
}
func valueFile(id string) string { return "v-" + id + ".age" }

// lockPause is the longest pause between two looks at a lock that another one holds. Pauses are by chance and do not grow:
// one who has waited for long must not look more rarely than one who has just come.
const lockPause = 4 * time.Millisecond

// locked runs a function while no other writer runs. Only one waits for the lock itself, and holds another one meanwhile,
// for which all others wait: whoever writes again and again finds it held, and cannot overtake those who wait all the time.
func (s *Store) locked(ctx context.Context, run func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, lockWait, ErrBusy)
	defer cancel()
	leave, err := s.await(ctx, queueFile)
	if err != nil {
		return err
	}
	unlock, err := s.await(ctx, lockFile)
	_ = leave() // nothing was written to either
	if err != nil {
		return err
	}
	if err = s.private(); err == nil {
		err = run()
	}
	_ = unlock()
	return full(err)
}

// await takes a lock when nobody holds it any more.
func (s *Store) await(ctx context.Context, name string) (unlock func() error, err error) {
	for ctx.Err() == nil {
		unlock, err := durable.Lock(s.path(name))
		if err == nil {
			return unlock, nil
		}
		if !errors.Is(err, durable.ErrLocked) {
			return nil, full(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(lockPause/2 + rand.N(lockPause/2)): //nolint:gosec // chance is no secret
		}
	}
	if err := context.Cause(ctx); !errors.Is(err, ErrBusy) {
		return nil, err
	}
	return nil, s.busy(name)
}

// full makes [secret.ErrFull] of what a system says when there is no room.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w, and what was current is unharmed; make room and try again: %w", secret.ErrFull, err)
	}
	return err
}
