package server

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"countersign.dev/api"
	"countersign.dev/mesh"
)

// Names in the store's table meta.
const (
	metaRevision  = "revision"
	metaDocuments = "documents"
	metaFile      = "file"    // what --mesh held when it was last loaded
	metaJournal   = "journal" // how many entries the journal had; it never has fewer
	metaPin       = "pin"     // of the CA's root
)

// planRow is what the store keeps of a Plan: enough to tell after a restart whether it changed.
type planRow struct {
	revision uint64
	digest   string
}

// instanceKey names an instance.
type instanceKey struct{ workload, instance string }

// change is what one transaction stores of a new state of the mesh. Nil members stay as they are.
type change struct {
	revision  uint64
	plans     map[string]planRow
	gone      []string // workloads that have no Plan any more
	documents []mesh.Document
	file      string
	instances map[instanceKey]*instanceRow // nil: the instance is forgotten
}

// instanceRow is what the store keeps of an instance.
type instanceRow struct {
	report api.Report
	away   bool // it was lost for longer than is forgiven
}

// save stores a change, whole or not at all.
func (s *store) save(ctx context.Context, c change) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		if err := putMeta(ctx, tx, metaRevision, strconv.FormatUint(c.revision, 10)); err != nil {
			return err
		}
		for workload, row := range c.plans {
			_, err := tx.ExecContext(ctx, `INSERT INTO plans VALUES (?, ?, ?)
				ON CONFLICT (workload) DO UPDATE SET revision = excluded.revision, digest = excluded.digest`,
				workload, int64(row.revision), row.digest)
			if err != nil {
				return err
			}
		}
		for _, workload := range c.gone {
			if _, err := tx.ExecContext(ctx, "DELETE FROM plans WHERE workload = ?", workload); err != nil {
				return err
			}
		}
		if err := saveDocuments(ctx, tx, c); err != nil {
			return err
		}
		for key, row := range c.instances {
			if err := saveInstance(ctx, tx, key, row); err != nil {
				return err
			}
		}
		return nil
	})
}

func saveDocuments(ctx context.Context, tx *sql.Tx, c change) error {
	if c.documents != nil {
		text, err := json.Marshal(c.documents)
		if err != nil {
			return err
		}
		if err := putMeta(ctx, tx, metaDocuments, string(text)); err != nil {
			return err
		}
	}
	if c.file != "" {
		return putMeta(ctx, tx, metaFile, c.file)
	}
	return nil
}

func saveInstance(ctx context.Context, tx *sql.Tx, key instanceKey, row *instanceRow) error {
	if row == nil {
		_, err := tx.ExecContext(ctx, "DELETE FROM instances WHERE workload = ? AND instance = ?", key.workload, key.instance)
		return err
	}
	text, err := json.Marshal(row.report)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO instances VALUES (?, ?, ?, ?)
		ON CONFLICT (workload, instance) DO UPDATE SET report = excluded.report, away = excluded.away`,
		key.workload, key.instance, string(text), row.away)
	return err
}

// bind settles which CA a database belongs to, and refuses that of another one. pins are those of the
// CA's roots, the active one first, which the database is bound to from then on.
func (s *store) bind(ctx context.Context, pins []string) error {
	bound, err := s.meta(ctx, metaPin)
	switch {
	case err != nil:
		return err
	case bound != "" && !slices.Contains(pins, bound):
		return fmt.Errorf("%w: %s belongs to another CA (%s, and here is %s); restore both from one backup, or move it away", ErrDatabase, s.path, bound, pins[0])
	case bound != pins[0]:
		return s.write(ctx, func(tx *sql.Tx) error { return putMeta(ctx, tx, metaPin, pins[0]) })
	default:
		return nil
	}
}

// revision is the last one that was given out.
func (s *store) revision(ctx context.Context) (uint64, error) {
	text, err := s.meta(ctx, metaRevision)
	if err != nil || text == "" {
		return 0, err
	}
	revision, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: %s: the revision is %q", ErrDatabase, s.path, text)
	}
	return revision, nil
}

// running is the specification that ran last; nil when none ever did.
func (s *store) running(ctx context.Context) ([]mesh.Document, error) {
	text, err := s.meta(ctx, metaDocuments)
	if err != nil || text == "" {
		return nil, err
	}
	var documents []mesh.Document
	if err := json.Unmarshal([]byte(text), &documents); err != nil {
		return nil, fmt.Errorf("%w: %s: the running specification cannot be read: %w", ErrDatabase, s.path, err)
	}
	return documents, nil
}

// planRows reads what is known of the Plans.
func (s *store) planRows(ctx context.Context) (map[string]planRow, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT workload, revision, digest FROM plans")
	if err != nil {
		return nil, s.explain(err)
	}
	defer rows.Close()
	plans := make(map[string]planRow)
	for rows.Next() {
		var workload string
		var revision int64
		var row planRow
		if err := rows.Scan(&workload, &revision, &row.digest); err != nil {
			return nil, s.explain(err)
		}
		row.revision = uint64(revision)
		plans[workload] = row
	}
	return plans, s.explain(rows.Err())
}

// instances reads what is known of all instances.
func (s *store) instances(ctx context.Context) (map[instanceKey]instanceRow, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT workload, instance, report, away FROM instances")
	if err != nil {
		return nil, s.explain(err)
	}
	defer rows.Close()
	instances := make(map[instanceKey]instanceRow)
	for rows.Next() {
		var key instanceKey
		var row instanceRow
		var text string
		if err := rows.Scan(&key.workload, &key.instance, &text, &row.away); err != nil {
			return nil, s.explain(err)
		}
		if err := json.Unmarshal([]byte(text), &row.report); err != nil {
			return nil, fmt.Errorf("%w: %s: the report of %s: %w", ErrDatabase, s.path, key.instance, err)
		}
		instances[key] = row
	}
	return instances, s.explain(rows.Err())
}
