package secretsmanager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"countersign.dev/secret"
)

// Reader reads a store again and again for little: each look asks for the ids of the versions (DescribeSecret), and a value is asked for
// (GetSecretValue) only when its version is another one than at the look before. It keeps the values that it gave last
// in memory, one for each secret and stage that was asked for and one for each secret that was asked for by an id, until
// [Reader.Close]. It is safe for concurrent use; of several that ask for one secret at a time, one asks AWS.
type Reader struct {
	store *Store

	mu     sync.Mutex
	closed bool
	kept   map[string]*keptValue
}

// keptValue is what one question was last answered with.
type keptValue struct {
	turn  chan struct{} // holds one token: who has it asks AWS, and may change the rest
	id    string
	value []byte
}

// ErrClosed says that a reader was closed.
var ErrClosed = errors.New("the reader of the secret store is closed")

// Reader makes a reader of the store.
func (s *Store) Reader() *Reader { return &Reader{store: s, kept: make(map[string]*keptValue)} }

// Read is [Store.Read]. The caller owns the value.
func (r *Reader) Read(ctx context.Context, name, version string) (value []byte, versionID string, err error) {
	if err := CheckName(name); err != nil {
		return nil, "", fmt.Errorf("reading the secret %s: %w", name, err)
	}
	question := name + " " + version
	if version != "" && labelOf(version) == "" {
		question = name + byID // parts are asked for by id: the keys of versions long gone are not to stay
	}
	kept, err := r.entry(question)
	if err == nil {
		value, versionID, err = r.read(ctx, kept, name, version)
	}
	if err != nil {
		return nil, "", fmt.Errorf("reading the secret %s: %w", name, err)
	}
	return value, versionID, nil
}

// byID is behind the name of a secret that was asked for by a version's id. No stage is called so.
const byID = " by id"

// entry is where the answer to a question is kept.
func (r *Reader) entry(question string) (*keptValue, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	kept, ok := r.kept[question]
	if !ok {
		kept = &keptValue{turn: make(chan struct{}, 1)}
		kept.turn <- struct{}{}
		r.kept[question] = kept
	}
	return kept, nil
}

func (r *Reader) read(ctx context.Context, kept *keptValue, name, version string) ([]byte, string, error) {
	select {
	case <-ctx.Done():
		return nil, "", context.Cause(ctx)
	case <-kept.turn:
	}
	defer func() { kept.turn <- struct{}{} }()
	now, err := r.store.describe(ctx, name)
	if err != nil {
		return nil, "", err
	}
	id, err := now.find(name, version)
	if err != nil {
		return nil, "", err
	}
	if kept.id == id {
		return slices.Clone(kept.value), id, nil
	}
	value, id, err := r.store.read(ctx, name, id)
	if err != nil {
		return nil, "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		clear(value)
		return nil, "", ErrClosed
	}
	clear(kept.value)
	kept.id, kept.value = id, value
	return slices.Clone(value), id, nil
}

// Close overwrites what was kept. Readings that are on their way end with [ErrClosed].
func (r *Reader) Close() error {
	r.mu.Lock()
	r.closed = true
	all := r.kept
	r.kept = nil
	r.mu.Unlock()
	for _, kept := range all {
		<-kept.turn
		clear(kept.value)
		kept.id, kept.value = "", nil
		kept.turn <- struct{}{}
	}
	return nil
}

var _ secret.Reader = (*Reader)(nil)
