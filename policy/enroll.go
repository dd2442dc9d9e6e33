package policy

import (
	"errors"
	"fmt"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

// Sentinel errors of who may obtain which name.
var (
	// ErrNotDeclared says that a specification has no such workload, or has it as another kind.
	ErrNotDeclared = errors.New("the running specification does not declare it")
	// ErrNoWorkload says that an identity is not one that workloads have.
	ErrNoWorkload = errors.New("it is the identity of neither a service nor a gateway")
)

// The bounds of a probe's certificate.
const (
	// MaxProbeTTL is the longest life that a probe's certificate can have.
	MaxProbeTTL = 5 * time.Minute
	// ProbeName is the last segment of a probe's SPIFFE ID.
	ProbeName = "verify"
)

// Enrollment says what a workload may obtain a certificate for: exactly what the specification
// declares, whatever a request asks for. A workload that is not declared is [ErrNotDeclared].
func Enrollment(spec *mesh.Spec, workload string) (mesh.CertificatePlan, error) {
	if spec.Services[workload] == nil && spec.Gateways[workload] == nil {
		return mesh.CertificatePlan{}, fmt.Errorf("the workload %q: %w", workload, ErrNotDeclared)
	}
	plan, err := spec.Compile(workload)
	if err != nil {
		return mesh.CertificatePlan{}, fmt.Errorf("compile the Plan of %q: %w", workload, err)
	}
	return plan.Certificate, nil
}

// Renewal says what the holder of a certificate may obtain next. The identity must be that of a
// workload ([ErrNoWorkload]: a probe and the server renew nothing) and still be declared with the
// same kind ([ErrNotDeclared]).
func Renewal(spec *mesh.Spec, holder id.ID) (mesh.CertificatePlan, error) {
	if holder.Kind() != id.Service && holder.Kind() != id.Gateway {
		return mesh.CertificatePlan{}, fmt.Errorf("%s: %w", holder, ErrNoWorkload)
	}
	plan, err := Enrollment(spec, holder.Name())
	if err != nil {
		return mesh.CertificatePlan{}, err
	}
	if plan.Identity != holder {
		return mesh.CertificatePlan{}, fmt.Errorf("%s: %w: the workload %q is %s now", holder, ErrNotDeclared, holder.Name(), plan.Identity)
	}
	return plan, nil
}

// Probe is the identity of a verifier in a trust domain and the life of its certificate. A ttl that
// is 0 or above [MaxProbeTTL] becomes [MaxProbeTTL].
func Probe(trustDomain string, ttl time.Duration) (id.ID, time.Duration, error) {
	probe, err := id.New(trustDomain, id.Probe, ProbeName)
	if err != nil {
		return id.ID{}, 0, err
	}
	if ttl < 0 {
		return id.ID{}, 0, fmt.Errorf("a life of %s is not possible", ttl)
	}
	if ttl == 0 || ttl > MaxProbeTTL {
		ttl = MaxProbeTTL
	}
	return probe, ttl, nil
}
