package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"countersign.dev/aws/acm"
	"countersign.dev/aws/acmpca"
	"countersign.dev/aws/ecs"
	"countersign.dev/aws/session"
	"countersign.dev/budget"
	"countersign.dev/mesh"
	"countersign.dev/rotate"
)

// cloud is what rotations use of AWS beside stores, each part opened once: an authority has a rate of its own.
type cloud struct {
	note func(text string) // tells people what stops nothing

	mu       sync.Mutex
	issuers  map[string]*issuer // by their names
	services map[serviceAt]*ecs.Service
}

// issuer is an authority of AWS with its budget.
type issuer struct {
	rotate.Authority
	declared mesh.Authority
	budget   *budget.Budget
}

// serviceAt is a service of Amazon ECS.
type serviceAt struct {
	region string
	mesh.ECSDeploy
}

func newCloud(note func(string)) *cloud {
	return &cloud{note: note, issuers: make(map[string]*issuer), services: make(map[serviceAt]*ecs.Service)}
}

// issuer opens the authority that a specification has under a name; store opens a store of it.
func (w *cloud) issuer(ctx context.Context, spec *mesh.Spec, name string, store func(mesh.Store) (*anyStore, error)) (*issuer, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	declared, err := withARN(name, spec.Authorities[name])
	if err != nil {
		return nil, err
	}
	if opened := w.issuers[name]; opened != nil && sameAuthority(opened.declared, declared) {
		return opened, nil
	}
	counts, err := store(spec.Stores[declared.Budget.Store].Store)
	if err != nil {
		return nil, fmt.Errorf("the store %s, in which its certificates are counted: %w", declared.Budget.Store, err)
	}
	opened := &issuer{declared: declared, budget: budget.New(counts, spec.BudgetSecret(name), declared.Budget.Certificates, time.Now)}
	if declared.Type == mesh.AuthorityACM {
		opened.Authority, err = acm.Open(ctx, acm.Config{
			Authority: declared.ARN, Region: declared.Region, Endpoint: declared.Endpoint, Names: declared.Names, Meter: opened.budget,
		})
	} else {
		opened.Authority, err = acmpca.Open(ctx, acmpca.Config{
			ARN: declared.ARN, Region: declared.Region, Endpoint: declared.Endpoint, Mode: declared.Mode, Template: declared.Template,
			Meter: opened.budget, Note: w.note,
		})
	}
	if err != nil {
		return nil, err
	}
	w.issuers[name] = opened
	return opened, nil
}

// withARN fills in the ARN of a private CA that a template has made.
func withARN(name string, declared mesh.Authority) (mesh.Authority, error) {
	if declared.ARN != "" {
		return declared, nil
	}
	variable := mesh.AuthorityVariable(name)
	if declared.ARN = os.Getenv(variable); declared.ARN == "" {
		return declared, fmt.Errorf("%w: set %s to the ARN of its private CA, or write it as authorities.%s.arn", errNoARN, variable, name)
	}
	declared, err := declared.At(declared.ARN)
	if err != nil {
		return declared, fmt.Errorf("%w: %s: %w", errNoARN, variable, err)
	}
	return declared, nil
}

// errNoARN says that nobody has said which private CA an authority is.
var errNoARN = errors.New("its private CA is not known")

// sameAuthority tells whether two authorities are declared alike.
func sameAuthority(a, b mesh.Authority) bool {
	same := a.Type == b.Type && a.ARN == b.ARN && a.Region == b.Region && a.Endpoint == b.Endpoint && a.Mode == b.Mode &&
		a.Template == b.Template && a.Budget == b.Budget && len(a.Names) == len(b.Names)
	for name, dns := range a.Names {
		same = same && b.Names[name] == dns
	}
	return same
}

// service opens the service of ECS that runs a workload.
func (w *cloud) service(ctx context.Context, plan *mesh.Plan, authority mesh.Authority) (*ecs.Service, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	// Nothing says the region of a cluster: it is where the task's secret is, the environment's where the store names none. A private CA
	// that is shared may be in another one; it says the region only where nothing else does.
	at := serviceAt{region: plan.Delivery.Store.Region, ECSDeploy: *plan.ECS}
	if opened := w.services[at]; opened != nil {
		return opened, nil
	}
	opened, err := ecs.Open(ctx, ecs.Config{Region: at.region, Cluster: at.Cluster, Service: at.Service})
	if errors.Is(err, session.ErrNoRegion) && authority.Region != "" {
		opened, err = ecs.Open(ctx, ecs.Config{Region: authority.Region, Cluster: at.Cluster, Service: at.Service})
	}
	if err != nil {
		return nil, err
	}
	w.services[at] = opened
	return opened, nil
}

// brokenAuthority is an authority that could not be opened.
type brokenAuthority struct{ err error }

// Issue implements [rotate.Authority].
func (b brokenAuthority) Issue(context.Context, rotate.Request) ([]byte, error) { return nil, b.err }

// Trust implements [rotate.Authority].
func (b brokenAuthority) Trust(context.Context) (rotate.Trust, error) {
	return rotate.Trust{}, b.err
}

// brokenService is a service of ECS that could not be opened, and the observer where there is none.
type brokenService struct{ err error }

// Settle implements [rotate.Rollout].
func (b brokenService) Settle(context.Context, rotate.Target, func(string)) {}

// Begin implements [rotate.Rollout].
func (b brokenService) Begin(context.Context, rotate.Target) (string, error) { return "", b.err }

// Wait implements [rotate.Rollout].
func (b brokenService) Wait(context.Context, rotate.Target, string, func(string)) error { return b.err }

// Look implements [rotate.Observer].
func (b brokenService) Look(context.Context, rotate.Target) ([]rotate.Sighting, error) {
	return nil, b.err
}
