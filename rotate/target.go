package rotate

import (
	"fmt"
	"slices"

	"countersign.dev/credential"
	"countersign.dev/mesh"
	"countersign.dev/secret"
)

// TargetOf is what a Plan says of a workload whose certificate comes from a store; the store itself is for the caller to
// open. The error is [secret.ErrInvalid].
func TargetOf(plan *mesh.Plan) (Target, error) {
	shape, err := plan.Delivery.Shape()
	if err != nil {
		return Target{}, fmt.Errorf("the delivery of %s: %w", plan.Workload.Name, err)
	}
	t := Target{
		Workload: plan.Workload, Certificate: plan.Certificate, Inbound: plan.Inbound,
		Secret: plan.Delivery.Secret, Bundle: plan.Delivery.Bundle, Shape: shape,
		Restart: plan.Deploy == mesh.DeployRestart, StoreName: plan.Delivery.StoreName,
	}
	for _, upstream := range plan.Upstreams {
		if !slices.Contains(t.Calls, upstream.Service) {
			t.Calls = append(t.Calls, upstream.Service)
		}
	}
	if err := t.check(); err != nil {
		return Target{}, fmt.Errorf("the delivery of %s: %w", plan.Workload.Name, err)
	}
	return t, nil
}

// stateSuffix is what the name of a [Record] ends with.
const stateSuffix = ".rotation"

// requestSuffix is what the version of a key and a request ends with that wait for a certificate.
const requestSuffix = "-req"

// authority is who issues for a target.
func (r *Rotator) authority(t Target) Authority {
	if t.Authority != nil {
		return t.Authority
	}
	return r.config.Authority
}

// observer is who looks at a target.
func (r *Rotator) observer(t Target) Observer {
	if t.Observer != nil {
		return t.Observer
	}
	return r.config.Observer
}

// deployed tells whether instances take a new version only when somebody restarts or replaces them.
func (t Target) deployed() bool { return t.Restart || t.Rollout != nil }

// check says what a target lacks to be rotated by this Rotator.
func (r *Rotator) check(t Target) error {
	switch {
	case r.authority(t) == nil:
		return fmt.Errorf("%w: nobody is known who issues for %s", secret.ErrInvalid, t.Workload.Name)
	case r.observer(t) == nil:
		return fmt.Errorf("%w: nobody is known who could look at %s", secret.ErrInvalid, t.Workload.Name)
	case t.Restart && t.Rollout != nil:
		return fmt.Errorf("%w: the instances of %s are either restarted or replaced", secret.ErrInvalid, t.Workload.Name)
	case t.Restart && r.config.Deployer == nil:
		return fmt.Errorf("%w: nobody is known who could restart %s", secret.ErrInvalid, t.Workload.Name)
	}
	return t.check()
}

// check says what cannot be rotated.
func (t Target) check() error {
	if t.Shape.Layout() == secret.LayoutBundle || t.Shape.Layout() == "" {
		return fmt.Errorf("%w layout for a credential: %q", secret.ErrInvalid, t.Shape.Layout())
	}
	if t.Shape.Layout() == secret.LayoutExported && t.Bundle == "" {
		return fmt.Errorf("%w: the layout exported has no place for a trust bundle; name a secret for it with delivery.bundle", secret.ErrInvalid)
	}
	return secret.CheckName(t.Secret + stateSuffix)
}

// keySecret is the secret that holds the private key: whoever may read a request's key may read the key anyway.
func (t Target) keySecret() string {
	if t.Shape.Layout() == secret.LayoutJSON {
		return t.Secret
	}
	return t.Secret + "/" + t.Shape.Fields().Key
}

// input is what a credential's parts are called in errors.
func (t Target) input(m *secret.Material, bundle []byte) credential.Input {
	fields := t.Shape.Fields()
	value := func(field string, data []byte) credential.Value {
		return credential.Value{Name: t.Secret + " " + field, Field: field, Data: data}
	}
	in := credential.Input{
		Certificate: value(fields.Certificate, m.Certificate), Chain: value(fields.Chain, m.Chain),
		Key: value(fields.Key, m.Key), Passphrase: value(fields.Passphrase, m.Passphrase),
		Bundle: value(fields.Bundle, bundle),
	}
	if t.Bundle != "" {
		in.Bundle.Name = t.Bundle
	}
	return in
}
