package journal

import (
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// tree is the right edge of a Merkle tree: the O(log n) hashes by which it grows and from which its
// root follows. Everything left of the edge can be computed again from the entries.
type tree struct {
	size int64
	edge map[int64]tlog.Hash // by stored hash index
}

// ReadHashes implements tlog.HashReader over the edge.
func (t *tree) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		hash, ok := t.edge[index]
		if !ok {
			return nil, fmt.Errorf("hash %d is not on the edge of a tree of size %d", index, t.size)
		}
		hashes[i] = hash
	}
	return hashes, nil
}

// add appends a record.
func (t *tree) add(record []byte) error {
	hashes, err := tlog.StoredHashes(t.size, record, t)
	if err != nil {
		return err
	}
	if t.edge == nil {
		t.edge = make(map[int64]tlog.Hash)
	}
	first := tlog.StoredHashIndex(0, t.size)
	for i, hash := range hashes {
		t.edge[first+int64(i)] = hash
	}
	t.size++
	return t.prune()
}

// prune forgets what the next additions and the root do not need. TreeHash asks for exactly the
// subtrees that the edge consists of.
func (t *tree) prune() error {
	edge := make(map[int64]tlog.Hash, len(t.edge))
	_, err := tlog.TreeHash(t.size, tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes, err := t.ReadHashes(indexes)
		for i, hash := range hashes {
			edge[indexes[i]] = hash
		}
		return hashes, err
	}))
	if err != nil {
		return err
	}
	t.edge = edge
	return nil
}

// root is the hash of the whole tree (RFC 6962 section 2.1).
func (t *tree) root() (tlog.Hash, error) { return tlog.TreeHash(t.size, t) }

// clone makes a copy that grows by itself.
func (t *tree) clone() *tree {
	edge := make(map[int64]tlog.Hash, len(t.edge))
	for index, hash := range t.edge {
		edge[index] = hash
	}
	return &tree{size: t.size, edge: edge}
}
