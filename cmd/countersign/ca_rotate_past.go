package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/journal"
)

// rotationChanges are all changes of the CA's hierarchies that the server's journal knows, in order.
func rotationChanges(ctx context.Context, admin *api.Admin) (changes []ca.Change, err error) {
	dir, err := os.MkdirTemp("", "countersign-journal-")
	if err != nil {
		return nil, fmt.Errorf("making room for the journal: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	copied := filepath.Join(dir, "journal")
	if err := extract(func(w io.Writer) error { return admin.Journal(ctx, w) }, copied); err != nil {
		return nil, fmt.Errorf("looking up in the journal what was done: %w", err)
	}
	for record, err := range journal.Records(copied) {
		if err != nil {
			return nil, fmt.Errorf("looking up in the journal what was done: %w", err)
		}
		if record.Type != journal.CARotate {
			continue
		}
		var change ca.Change
		if err := json.Unmarshal(record.Data, &change); err != nil {
			return nil, fmt.Errorf("entry %d of the journal: %w", record.Index, err)
		}
		changes = append(changes, change)
	}
	return changes, nil
}
