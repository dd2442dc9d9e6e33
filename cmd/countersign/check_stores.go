package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"countersign.dev/aws/session"
	"countersign.dev/credential"
	"countersign.dev/expiry"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/rotate"
	"countersign.dev/secret"
)

// openedStore is a store of the specification; store is nil when it could not be opened.
type openedStore struct {
	store   *anyStore
	needed  []string // the workloads whose secrets are in it
	problem error
}

// readStores reads what every workload's secret holds. A store is opened once, and one that does not answer is asked nothing
// more. An error is a mistake in what is configured for AWS, when for that nothing at all can be looked at.
func (s *seen) readStores(ctx context.Context) error {
	opened := make(map[mesh.Store]*openedStore)
	var order []mesh.Store
	for _, plan := range s.plans {
		if !plan.Delivery.FromStore() {
			continue
		}
		declared := plan.Delivery.Store
		if opened[declared] == nil {
			o := &openedStore{}
			o.open(ctx, declared, s.stderr, plan.Delivery.Secret)
			opened[declared] = o
			order = append(order, declared)
		}
		opened[declared].needed = append(opened[declared].needed, plan.Workload.Name)
	}
	for _, declared := range order {
		if o := opened[declared]; o.problem != nil {
			lost := "the secrets of " + strings.Join(o.needed, ", ")
			if session.Everywhere(o.problem) || errors.Is(o.problem, session.ErrConfig) {
				lost += ", and what their tasks serve"
				s.silent = append(s.silent, declared)
			}
			s.facts.Unreached = append(s.facts.Unreached, expiry.Unreached{
				Code: expiry.CodeStore, Place: "store:" + placeOf(declared), Problem: o.problem.Error(), Lost: lost, Remedy: remedyFor(o.problem),
			})
		}
	}
	for n, plan := range s.plans {
		if !plan.Delivery.FromStore() {
			continue
		}
		w := &s.facts.Workloads[n]
		w.Stored = &expiry.Stored{Store: plan.Delivery.StoreName, Secret: plan.Delivery.Secret}
		if store := opened[plan.Delivery.Store].store; store != nil {
			s.readSecret(ctx, plan, store, w)
		}
	}
	if s.spec != nil && s.spec.ServerCan() != nil && s.document == nil { // all that there is to look at lies in stores
		return allMistaken(opened)
	}
	return nil
}

// open opens a store and sees whether it answers at all.
func (o *openedStore) open(ctx context.Context, declared mesh.Store, stderr io.Writer, name string) {
	store, err := openStore(ctx, declared)
	if err == nil {
		err = patiently(stderr, "asking the store "+placeOf(declared), func() error { return store.reach(ctx, name) })
	}
	if o.problem = err; err == nil {
		o.store = store
	}
}

// allMistaken gives a mistake in what is configured for AWS when no store can be opened for that.
func allMistaken(opened map[mesh.Store]*openedStore) error {
	var mistake error
	for _, o := range opened {
		if !errors.Is(o.problem, session.ErrConfig) {
			return nil
		}
		mistake = o.problem
	}
	return badAWS(mistake, regionInSpec)
}

// remedyFor is what to do about what AWS does not answer; empty for what is wrong with a secret itself.
func remedyFor(err error) string {
	if remedy := session.Remedy(err); remedy != "" {
		return remedy + " (the message says how), and check again; nothing has to be rotated for it"
	}
	return ""
}

// fitted names in the commands that findings advise what they need here: the specification where there is no server, and the store.
func (w *expiryWatch) fitted(findings []expiry.Finding, path string) {
	for i, f := range findings {
		if path != "" && w.admin == nil {
			for _, command := range []string{"once", "status", "daemon"} {
				command = "`countersign rotate " + command
				f.Action = strings.ReplaceAll(f.Action, command, command+" --mesh "+word(path))
			}
		}
		place, _ := strings.CutPrefix(f.Place, "store:")
		name, _, _ := strings.Cut(place, " ")
		if declared, ok := w.stores[name]; ok {
			const command = "`countersign secret versions"
			f.Action = strings.ReplaceAll(f.Action, command, command+storeFlagsOf(declared.Store))
		}
		findings[i].Action = f.Action
	}
}

// storeFlagsOf are the flags of `secret` that open a store.
func storeFlagsOf(declared mesh.Store) string {
	if declared.Type == mesh.StoreFile {
		return " --store " + word("file:"+declared.Dir) + " --identity-file " + word(declared.IdentityFile)
	}
	flags := " --store " + declared.Type + ":" + declared.Region
	if declared.Endpoint != "" {
		flags += " --endpoint-url " + word(declared.Endpoint)
	}
	return flags
}

// word is a word for a shell.
func word(text string) string {
	if strings.ContainsFunc(text, func(r rune) bool {
		return !strings.ContainsRune("/._:@=+,-", r) && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) {
		return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
	}
	return text
}

// readSecret reads a workload's secret, its trust bundle, and what its rotation keeps about itself.
func (s *seen) readSecret(ctx context.Context, plan *mesh.Plan, store *anyStore, w *expiry.Workload) {
	shape, err := plan.Delivery.Shape()
	if err != nil {
		w.Stored.Code, w.Stored.Problem = expiry.CodeSecretUnreadable, err.Error()
		return
	}
	material, err := shape.Read(ctx, store, plan.Delivery.Secret, "")
	defer material.Clear()
	var bundle []byte
	if name := plan.Delivery.Bundle; name != "" {
		bundle, w.Stored.Bundle = readStoredBundle(ctx, store, name)
		w.Stored.Bundle.Rotation = readRecord(ctx, store, name)
	} else if err == nil && len(material.Bundle) > 0 {
		bundle = material.Bundle
		w.Stored.Bundle = bundleOf(plan.Delivery.Secret, material.Version, bundle)
	}
	switch {
	case errors.Is(err, secret.ErrNotFound):
		w.Stored.Missing = true
	case err != nil:
		w.Stored.Code, w.Stored.Problem, w.Stored.Remedy = expiry.CodeSecretUnreadable, err.Error(), remedyFor(err)
	default:
		s.readCurrent(plan, shape, material, bundle, w.Stored)
	}
	w.Stored.Previous = s.version(ctx, store, shape, plan, secret.Previous)
	w.Stored.Pending = s.version(ctx, store, shape, plan, secret.Pending)
	if w.Stored.Current != nil {
		w.Stored.Current.Written = written(ctx, store, shape.Names(plan.Delivery.Secret)[0], w.Stored.Current.ID)
	}
	w.Rotation = readRotation(ctx, plan, store)
}

// readCurrent looks at the current version as `countersign init` will, apart from its dates: what it would refuse is
// a finding before a proxy starts with it.
func (s *seen) readCurrent(plan *mesh.Plan, shape secret.Shape, material *secret.Material, bundle []byte, stored *expiry.Stored) {
	fields := shape.Fields()
	value := func(field string, data []byte) credential.Value {
		return credential.Value{Name: plan.Delivery.Secret + " " + field, Field: field, Data: data}
	}
	in := credential.Input{
		Certificate: value(fields.Certificate, material.Certificate), Chain: value(fields.Chain, material.Chain),
		Key: value(fields.Key, material.Key), Passphrase: value(fields.Passphrase, material.Passphrase), Bundle: value(fields.Bundle, bundle),
	}
	parsed, err := credential.Parse(in)
	if err != nil {
		// The certificate alone may be well, and says when all of it ends.
		if chain, err := mtls.ParseCertificates(slices.Concat(material.Certificate, material.Chain)); err == nil {
			stored.Current = &expiry.Version{ID: material.Version, Certificate: s.certificate(chain)}
		}
		if len(bundle) == 0 {
			err = fmt.Errorf("it has no trust bundle: %w", err)
		}
		stored.Code, stored.Problem = expiry.CodeSecretUnfit, err.Error()
		return
	}
	stored.Current = &expiry.Version{ID: material.Version, Certificate: s.certificate(parsed.Chain)}
	at := s.facts.Now
	if begin := parsed.Leaf().NotBefore; at.Before(begin) {
		at = begin
	}
	if end := stored.Current.NotAfter; at.After(end) {
		at = end
	}
	if err := parsed.Check(credential.Expect{Now: at}); err != nil && stored.Current.Untrusted == "" {
		stored.Code, stored.Problem = expiry.CodeSecretUnfit, err.Error()
	}
}

// version reads the certificate of a version that is not in use; nil when there is none. A request that waits for its
// certificate is none either.
func (s *seen) version(ctx context.Context, store rotate.Store, shape secret.Shape, plan *mesh.Plan, stage secret.Stage) *expiry.Version {
	material, err := shape.Read(ctx, store, plan.Delivery.Secret, string(stage))
	if err != nil {
		return nil
	}
	defer material.Clear()
	chain, err := mtls.ParseCertificates(slices.Concat(material.Certificate, material.Chain))
	if err != nil {
		return nil
	}
	return &expiry.Version{ID: material.Version, Certificate: s.certificate(chain)}
}

// written is when a version was written; zero when that is not known any more.
func written(ctx context.Context, store rotate.Store, name, version string) time.Time {
	versions, err := store.Versions(ctx, name)
	if err != nil {
		return time.Time{}
	}
	for _, v := range versions {
		if v.ID == version {
			return v.Created
		}
	}
	return time.Time{}
}

// readStoredBundle reads a trust bundle that is a secret of its own.
func readStoredBundle(ctx context.Context, store rotate.Store, name string) ([]byte, *expiry.Bundle) {
	value, version, err := store.Read(ctx, name, "")
	if err != nil {
		return nil, &expiry.Bundle{Secret: name, Problem: err.Error(), Remedy: remedyFor(err)}
	}
	return value, bundleOf(name, version, value)
}

// bundleOf reads the roots of a bundle.
func bundleOf(name, version string, value []byte) *expiry.Bundle {
	bundle := &expiry.Bundle{Secret: name, Version: version}
	roots, err := mtls.ParseCertificates(value)
	if err != nil {
		bundle.Problem = err.Error()
		return bundle
	}
	seen := make(map[string]bool)
	for _, root := range roots {
		if ca := caCertificate(root, ""); !seen[ca.Fingerprint] {
			seen[ca.Fingerprint] = true
			bundle.Roots = append(bundle.Roots, ca)
		}
	}
	return bundle
}
