package acmpca

import (
	"context"
	"crypto/x509"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign.dev/aws/internal/awstest/pcafake"
	"countersign.dev/budget"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/rotate"
	"countersign.dev/secret"
	"countersign.dev/secret/filestore"
)

// specification is a mesh whose certificates a private CA issues.
const specification = `
mesh: payments
trustDomain: payments.internal
stores:
  vault: {type: file, dir: STORE, identityFile: ID}
authorities:
  pca: {type: acmpca, arn: "ARN", mode: short-lived, budget: {certificates: 2}}
services:
  checkout:
    ports: [{port: 9443, app: 8080, protocol: http}]
    proxy: {engine: nginx}
    certificates: {authority: pca, ttl: 90h}
    delivery: {type: store, store: vault, secret: payments/checkout}
`

// rotation is a service whose certificate a private CA issues, in a real store, with a real budget.
type rotation struct {
	*world

	store  *filestore.Store
	target rotate.Target
	budget *budget.Budget
}

// keeper gives leases as package rotate declares them.
type keeper struct{ *filestore.Store }

func (k keeper) Lease(ctx context.Context, name, holder string, ttl time.Duration) (rotate.Lease, error) {
	lease, err := k.Store.Lease(ctx, name, holder, ttl)
	if err != nil {
		return nil, err
	}
	return lease, nil
}

func newRotation(t *testing.T, o pcafake.Options) *rotation {
	t.Helper()
	w := newWorld(t, o, pcafake.CA{ShortLived: true})
	w.now = time.Now() // leases have no other clock
	w.arn = w.add(pcafake.CA{ShortLived: true, Name: "of today"})
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	if err := filestore.GenerateIdentity(file("id")); err != nil {
		t.Fatal(err)
	}
	identity, err := filestore.LoadIdentity(file("id"))
	if err != nil {
		t.Fatal(err)
	}
	r := &rotation{world: w}
	if r.store, err = filestore.Create(file("store"), identity); err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("STORE", file("store"), "ID", file("id"), "ARN", w.arn).Replace(specification)
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Directory: dir, Content: text}})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := spec.Compile("checkout")
	if err != nil {
		t.Fatal(err)
	}
	if r.target, err = rotate.TargetOf(plan); err != nil {
		t.Fatal(err)
	}
	name, declared := spec.AuthorityOf("checkout")
	r.budget = budget.New(r.store, spec.BudgetSecret(name), declared.Budget.Certificates, func() time.Time { return w.now })
	r.target.Store, r.target.Keeper = r.store, keeper{r.store}
	return r
}

// nobody sees no instance.
type nobody struct{}

func (nobody) Look(context.Context, rotate.Target) ([]rotate.Sighting, error) { return nil, nil }

// rotator is one as a process has it that was just started.
func (r *rotation) rotator(holder string) (*rotate.Rotator, rotate.Target) {
	r.t.Helper()
	target := r.target
	target.Authority = r.open(func(c *Config) { c.Mode, c.Meter = mesh.ModeShortLived, r.budget })
	target.Observer = nobody{}
	rotator, err := rotate.New(rotate.Config{Holder: holder})
	if err != nil {
		r.t.Fatal(err)
	}
	return rotator, target
}

func (r *rotation) rotate(force bool) rotate.Result {
	r.t.Helper()
	rotator, target := r.rotator("a test")
	return rotator.Rotate(r.t.Context(), target, rotate.Options{Force: force, NoDeploy: true})
}

// TestRotation fills a store, and stops at the budget, in this process and in the next.
func TestRotation(t *testing.T) {
	r := newRotation(t, pcafake.Options{PendingPolls: 1})
	first := r.rotate(false)
	if first.Outcome != rotate.Promoted {
		t.Fatalf("%s: %v", first.Outcome, first.Err)
	}
	material, err := r.target.Shape.Read(t.Context(), r.store, r.target.Secret, "")
	if err != nil {
		t.Fatal(err)
	}
	chain, err := mtls.ParseCertificates(material.Certificate)
	if err != nil || mtls.Serial(chain[0]) != first.Serial || chain[0].Subject.String() != "CN=checkout,OU=service,O=payments.internal" {
		t.Errorf("in the store is %v, %v", chain, err)
	}
	if again := r.rotate(false); again.Outcome != rotate.Nothing {
		t.Errorf("at once again: %s: %v", again.Outcome, again.Err)
	}
	second := r.rotate(true)
	if second.Outcome != rotate.Promoted || second.Serial == first.Serial {
		t.Errorf("forced: %s: %v", second.Outcome, second.Err)
	}
	for range 2 {
		third := r.rotate(true)
		if third.Outcome != rotate.Failed || !errors.Is(third.Err, budget.ErrSpent) || !strings.Contains(third.Error, "2 of 2 certificates") {
			t.Errorf("beyond the budget: %s: %v", third.Outcome, third.Err)
		}
	}
	current, err := r.target.Shape.Read(t.Context(), r.store, r.target.Secret, string(secret.Current))
	if err != nil {
		t.Fatal(err)
	}
	if chain, err := mtls.ParseCertificates(current.Certificate); err != nil || mtls.Serial(chain[0]) != second.Serial {
		t.Errorf("what is current was replaced: %v", err)
	}
	if r.fake.Issued() != 2 {
		t.Errorf("%d certificates were issued", r.fake.Issued())
	}
}

// TestTriggers rotates fifty times at once: one certificate is issued.
func TestTriggers(t *testing.T) {
	r := newRotation(t, pcafake.Options{PendingPolls: 2})
	var group sync.WaitGroup
	results := make([]rotate.Result, 50)
	for i := range results {
		rotator, target := r.rotator("trigger " + string(rune('A'+i)))
		group.Go(func() { results[i] = rotator.Rotate(t.Context(), target, rotate.Options{NoDeploy: true}) })
	}
	group.Wait()
	done := 0
	for _, result := range results {
		switch {
		case result.Outcome == rotate.Promoted:
			done++
		case result.Outcome == rotate.Nothing, errors.Is(result.Err, secret.ErrHeld), errors.Is(result.Err, filestore.ErrBusy):
		default:
			t.Errorf("%s: %v", result.Outcome, result.Err)
		}
	}
	if done != 1 || r.fake.Issued() != 1 {
		t.Errorf("%d have rotated, and %d certificates were issued", done, r.fake.Issued())
	}
}

// TestRefusalIsFree has a schedule try at each run what AWS refuses, since nothing is issued then; not what may have been issued.
func TestRefusalIsFree(t *testing.T) {
	r := newRotation(t, pcafake.Options{})
	run := func(patient bool) rotate.Result {
		rotator, target := r.rotator("a test")
		return rotator.Rotate(t.Context(), target, rotate.Options{NoDeploy: true, Patient: patient})
	}
	for _, why := range []string{"ThrottlingException", "AccessDeniedException"} {
		r.spoil = refuse("IssueCertificate", 400, why, "no")
		for range 2 {
			if result := run(true); result.Outcome != rotate.Failed || !result.Next.IsZero() || result.Step != rotate.StepIssue {
				t.Errorf("%s: %s, again at %s: %v", why, result.Outcome, result.Next, result.Err)
			}
		}
	}
	r.spoil = refuse("IssueCertificate", 500, "InternalFailure", "no")
	if result := run(true); result.Outcome != rotate.Failed || result.Next.IsZero() {
		t.Errorf("no answer: %s, again at %s: %v", result.Outcome, result.Next, result.Err)
	}
	r.spoil = nil
	if result := run(true); result.Outcome != rotate.Waiting {
		t.Errorf("and then: %s: %v", result.Outcome, result.Err)
	}
	if result := run(false); result.Outcome != rotate.Promoted {
		t.Errorf("by hand: %s: %v", result.Outcome, result.Err)
	}
	if used, _, _, err := r.budget.State(t.Context()); r.fake.Issued() != 1 || used != 1 || err != nil {
		t.Errorf("%d certificates were issued, %d counted, %v", r.fake.Issued(), used, err)
	}
}

// TestRotationStopped ends a rotation while the certificate is not ready: the next one takes that certificate, hours later.
func TestRotationStopped(t *testing.T) {
	r := newRotation(t, pcafake.Options{PendingPolls: 2})
	ctx, cancel := context.WithCancel(t.Context())
	polls := 0
	r.spoil = r.onGet(func() {
		if polls++; polls == 1 {
			cancel()
		}
	})
	rotator, target := r.rotator("a test")
	if result := rotator.Rotate(ctx, target, rotate.Options{NoDeploy: true}); result.Outcome != rotate.Failed {
		t.Fatalf("%s: %v", result.Outcome, result.Err)
	}
	r.spoil = nil
	r.now = r.now.Add(3 * time.Hour)
	if result := r.rotate(false); result.Outcome != rotate.Promoted {
		t.Errorf("%s: %v", result.Outcome, result.Err)
	}
	if used, _, _, err := r.budget.State(t.Context()); r.fake.Issued() != 1 || used != 1 || err != nil {
		t.Errorf("%d certificates were issued, %d counted, %v", r.fake.Issued(), used, err)
	}
}

// TestWrongCertificate leaves what is current when the CA answers with another certificate.
func TestWrongCertificate(t *testing.T) {
	wrong := false
	r := newRotation(t, pcafake.Options{Tamper: func(c *x509.Certificate) {
		if wrong {
			c.NotAfter = c.NotAfter.Add(24 * time.Hour)
		}
	}})
	first := r.rotate(false)
	wrong = true
	second := r.rotate(true)
	if second.Outcome != rotate.Failed || !errors.Is(second.Err, rotate.ErrUnfit) {
		t.Errorf("%s: %v", second.Outcome, second.Err)
	}
	if now := r.rotate(false); now.Outcome != rotate.Nothing || now.Serial != first.Serial {
		t.Errorf("afterwards: %s: %v", now.Outcome, now.Err)
	}
}
