package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"countersign.dev/journal"
	"countersign.dev/mesh"
)

// Sentinel errors of the specification to run. One that is not valid is a [mesh.Errors].
var (
	// ErrNoMesh says that none was given and none has run before.
	ErrNoMesh = errors.New("there is no specification to run; give one with --mesh")
	// ErrReadMesh says that its files cannot be read.
	ErrReadMesh = errors.New("--mesh")
)

// lostRevisions is added to the last revision that the journal knows when the database is new:
// changes of endpoints counted on without being recorded there.
const lostRevisions = 1 << 20

// openMesh decides which specification runs, and restores what is known of its instances.
//
// What was applied to the running server outlives a restart; the file comes first only when it was
// changed since it was last loaded.
func (s *Server) openMesh(ctx context.Context) error {
	documents, err := s.store.running(ctx)
	if err != nil {
		return err
	}
	loaded, err := s.store.meta(ctx, metaFile)
	if err != nil {
		return err
	}
	var file []mesh.Document
	if s.cfg.Mesh != "" {
		if file, err = mesh.ReadDocuments(s.cfg.Mesh); err != nil {
			return fmt.Errorf("%w: %w", ErrReadMesh, err)
		}
	}
	isNew := file != nil && (documents == nil || digestOf(file) != loaded)
	if file == nil && documents == nil {
		return ErrNoMesh
	}
	candidate := documents
	if isNew {
		candidate = file
	}
	spec, err := mesh.ParseDocuments(candidate)
	if err != nil {
		if !isNew {
			return fmt.Errorf("the specification that was applied last is not valid for this version of countersign; change the file of --mesh to replace it: %w", err)
		}
		return err
	}
	if err := spec.ServerCan(); err != nil {
		return err
	}
	if err := s.bind(spec.TrustDomain); err != nil {
		return err
	}
	return s.start(ctx, spec, candidate, documents, isNew)
}

// bind settles the trust domain.
func (s *Server) bind(trustDomain string) (err error) {
	if err := s.ca.BindTrustDomain(trustDomain); err != nil {
		return err
	}
	_, err = s.renewTrust()
	return err
}

// start puts the registry into the state of before, or gives it a new specification.
func (s *Server) start(ctx context.Context, spec *mesh.Spec, documents, before []mesh.Document, isNew bool) error {
	revision, err := s.lastRevision(ctx)
	if err != nil {
		return err
	}
	rows, err := s.store.planRows(ctx)
	if err != nil {
		return err
	}
	instances, err := s.store.instances(ctx)
	if err != nil {
		return err
	}
	s.registry = newRegistry(s.store, s.log, s.now, s.timing, s.trust.Load().word())
	if err := s.registry.restore(spec, documents, revision, rows, instances); err != nil {
		return err
	}
	if !isNew {
		return nil
	}
	var difference []string
	if previous, err := mesh.ParseDocuments(before); before != nil && err == nil {
		difference = mesh.Diff(previous, spec)
	}
	_, err = s.put(ctx, spec, documents, digestOf(documents), "file", difference)
	return err
}

// lastRevision is the highest revision that may have been told to anybody. A database that is new
// while the journal is not was lost: then the count goes on above what the journal knows.
func (s *Server) lastRevision(ctx context.Context) (uint64, error) {
	revision, err := s.store.revision(ctx)
	if err != nil || revision > 0 {
		return revision, err
	}
	for record, err := range s.journal.Records() {
		if err != nil {
			return 0, fmt.Errorf("read the journal: %w", err)
		}
		if record.Type != journal.Apply {
			continue
		}
		var facts applied
		if err := json.Unmarshal(record.Data, &facts); err != nil {
			return 0, fmt.Errorf("read the journal's entry %d: %w", record.Index, err)
		}
		revision = max(revision, facts.Revision+lostRevisions)
	}
	return revision, nil
}
