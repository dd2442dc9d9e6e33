package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"countersign.dev/api"
	"countersign.dev/durable"
	"countersign.dev/journal"
	"countersign.dev/mesh"
)

// Bounds of the difference that the journal keeps.
const (
	maxDifference     = 200 // lines
	maxDifferenceLine = 500 // bytes
	maxConfirmWait    = 10 * time.Minute
)

// applied are the facts of a change of the specification, as the journal records them. The documents
// themselves are the operator's to keep; their digests tell which they were.
type applied struct {
	Revision   uint64         `json:"revision,omitempty"`
	Mesh       string         `json:"mesh,omitempty"`
	By         string         `json:"by"`
	Documents  []documentFact `json:"documents"`
	Difference []string       `json:"difference,omitempty"`
	Code       string         `json:"code,omitempty"`
	Reason     string         `json:"reason,omitempty"`
}

type documentFact struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"`
}

func documentFacts(documents []mesh.Document) []documentFact {
	facts := make([]documentFact, len(documents))
	for i, document := range documents {
		sum := sha256.Sum256([]byte(document.Content))
		facts[i] = documentFact{Name: cut(document.Name, maxDifferenceLine), SHA256: hex.EncodeToString(sum[:])}
	}
	return facts
}

// digestOf tells whether a file, or the files of a directory, are the same as when they were loaded.
// How their path was written does not matter.
func digestOf(documents []mesh.Document) string {
	hash := sha256.New()
	for _, document := range documents {
		for _, part := range []string{document.Directory, filepath.Base(document.Name), document.Content} {
			fmt.Fprintf(hash, "%d:%s", len(part), part) // a hash takes everything
		}
	}
	return hex.EncodeToString(hash.Sum(nil))
}

// applyMesh replaces the running specification at the administrator's word.
func (s *Server) applyMesh(r *http.Request, request api.ApplyRequest) (*api.ApplyResponse, error) {
	s.applying.Lock()
	defer s.applying.Unlock()
	running, documents, revision := s.registry.running()
	spec, difference, err := s.judge(running, request.Documents)
	if err != nil {
		return nil, s.recordApplyRefusal(r.Context(), request, err)
	}
	if request.DryRun || slices.Equal(documents, request.Documents) {
		return &api.ApplyResponse{Revision: revision, Difference: difference}, nil
	}
	ctx, cancel := s.toTheEnd(r.Context())
	defer cancel()
	if revision, err = s.put(ctx, spec, request.Documents, "", "administrator", difference); err != nil {
		return nil, err
	}
	return &api.ApplyResponse{Revision: revision, Difference: difference}, nil
}

// judge tells whether documents may replace the running specification, and what that changes.
func (s *Server) judge(running *mesh.Spec, documents []mesh.Document) (*mesh.Spec, []string, error) {
	spec, err := mesh.ParseDocuments(documents)
	if err != nil {
		return nil, nil, invalidSpec(err)
	}
	if err := spec.ServerCan(); err != nil {
		return nil, nil, fmt.Errorf("%w here: %w", errInvalidSpec, err)
	}
	if spec.TrustDomain != running.TrustDomain {
		return nil, nil, detailed{
			fmt.Errorf("%w here: its trust domain is %q, and this mesh is %q for as long as it lives; start another server with another --state",
				errInvalidSpec, spec.TrustDomain, running.TrustDomain), nil,
		}
	}
	if s.cfg.FixedTopology {
		if lines := mesh.SameTopology(running, spec); len(lines) > 0 {
			return nil, nil, detailed{errFixedTopology, lines}
		}
	}
	if err := s.checkable(spec); err != nil {
		return nil, nil, err
	}
	difference := mesh.Diff(running, spec)
	if difference == nil {
		difference = []string{}
	}
	return spec, difference, nil
}

// invalidSpec gives every error of a specification a line.
func invalidSpec(err error) error {
	all, ok := errors.AsType[mesh.Errors](err)
	if !ok {
		return fmt.Errorf("%w: %w", errInvalidSpec, err)
	}
	return detailed{errInvalidSpec, all.Lines()}
}

// put makes a specification the running one: first the journal, then the store, then everybody.
func (s *Server) put(ctx context.Context, spec *mesh.Spec, documents []mesh.Document, file, by string, difference []string) (uint64, error) {
	facts := applied{Mesh: spec.Mesh, By: by, Documents: documentFacts(documents)}
	for _, line := range difference[:min(len(difference), maxDifference)] {
		facts.Difference = append(facts.Difference, cut(line, maxDifferenceLine))
	}
	revision, err := s.registry.apply(ctx, spec, documents, file, func(revision uint64) error {
		facts.Revision = revision
		if err := s.record(ctx, journal.Apply, facts); err != nil {
			return err
		}
		durable.Step("server.apply.recorded")
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("apply the specification: %w", err)
	}
	durable.Step("server.apply.stored")
	s.log.InfoContext(ctx, "specification applied", "mesh", spec.Mesh, "revision", revision, "by", by, "changes", len(difference))
	return revision, nil
}

// recordApplyRefusal puts a refused specification into the journal. A trial run is not a refusal of
// anything.
func (s *Server) recordApplyRefusal(ctx context.Context, request api.ApplyRequest, cause error) error {
	if request.DryRun {
		return cause
	}
	ctx, cancel := s.toTheEnd(ctx)
	defer cancel()
	_, answer := answerOf(cause)
	facts := applied{By: "administrator", Documents: documentFacts(request.Documents), Code: answer.Code, Reason: cut(answer.Message, maxProblem)}
	if err := s.record(ctx, journal.ApplyRefused, facts); err != nil {
		return errors.Join(err, cause)
	}
	return cause
}

// confirmed waits until every connected instance has a revision in force.
func (s *Server) confirmed(w http.ResponseWriter, r *http.Request) error {
	revision, err := strconv.ParseUint(r.URL.Query().Get("revision"), 10, 64)
	if err != nil {
		return fmt.Errorf("%w: revision=%q is no revision", errBadRequest, r.URL.Query().Get("revision"))
	}
	timeout, err := time.ParseDuration(r.URL.Query().Get("timeout"))
	if err != nil || timeout < 0 || timeout > maxConfirmWait {
		return fmt.Errorf("%w: timeout=%q is no duration from 0s to %s", errBadRequest, r.URL.Query().Get("timeout"), maxConfirmWait)
	}
	control := http.NewResponseController(w)
	if err := control.SetWriteDeadline(time.Now().Add(timeout + s.timing.write)); err != nil {
		return fmt.Errorf("set a deadline: %w", err)
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	ctx, stop := s.untilShutdown(ctx)
	defer stop()
	for {
		confirmation, changed := s.registry.confirmed(revision)
		if len(confirmation.Missing) == 0 {
			return writeJSON(w, http.StatusOK, confirmation)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if s.closing.Err() != nil {
				return errShutdown
			}
			return writeJSON(w, http.StatusOK, confirmation)
		}
	}
}
