package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"countersign.dev/api"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/observe"
	"countersign.dev/rotate"
	"countersign.dev/secret"
	"countersign.dev/up"
)

// rotation is what a rotation works with. With a server, that is authority and knows the instances, and the stores are those
// of the running specification. Without one, the specification is a file, and authorities and instances are AWS's.
type rotation struct {
	admin *api.Admin // nil without a server
	path  string     // of the specification; empty with a server
	cloud *cloud

	mu     sync.Mutex
	stores map[mesh.Store]*anyStore
	read   *mesh.Spec // that of the last targets
}

// worldFlags say which mesh is rotated.
type worldFlags struct {
	Mesh string `placeholder:"PATH" env:"COUNTERSIGN_MESH" help:"The specification, a file or a directory, of a mesh whose certificates come from AWS (authorities of the type acmpca or acm): no server is asked. Default: the mesh of the running server."`
	adminFlags
}

func newRotation(p *process, flags worldFlags) (*rotation, error) {
	w := &rotation{stores: make(map[mesh.Store]*anyStore)}
	w.cloud = newCloud(func(text string) { p.log.WarnContext(p.ctx, "an authority has something to say", "text", text) })
	if flags.Mesh != "" {
		if flags.Socket != "" {
			return nil, usagef("--mesh (or COUNTERSIGN_MESH) is for a mesh without a server, and --socket names one; leave one of the two out")
		}
		w.path = flags.Mesh
		return w, nil
	}
	if !flags.asked() {
		return nil, usagef("which mesh? Where certificates come from AWS (authorities of the type acmpca or acm) give --mesh PATH, or COUNTERSIGN_MESH, with the specification; of a server give %s", howServer)
	}
	admin, err := flags.admin()
	w.admin = admin
	return w, err
}

// rotator wires the parts. Another rotation is waited for as long as wait says. What is of AWS, the targets bring along.
func (w *rotation) rotator(o rotationTimes, wait time.Duration, progress func(string, rotate.Step, string)) (*rotate.Rotator, error) {
	config := rotate.Config{
		Deployer: upDeployer{}, Holder: rotate.Holder(), Timeout: o.Timeout, RolloutTimeout: o.RolloutTimeout, Wait: wait, Progress: progress,
	}
	if w.admin != nil {
		config.Authority, config.Observer = serverAuthority{w.admin}, meshObserver{w.admin}
	} else {
		config.Observer = brokenService{errors.New("without a server nobody knows where its instances are")}
	}
	return rotate.New(config)
}

// spec is the specification that is rotated by.
func (w *rotation) spec(ctx context.Context) (*mesh.Spec, error) {
	if w.admin != nil {
		return runningSpec(ctx, w.admin)
	}
	spec, err := mesh.Load(w.path)
	if err != nil {
		return nil, badSpec{err}
	}
	return spec, nil
}

// badSpec is a specification that could not be loaded from a file, or cannot be rotated by.
type badSpec struct{ error }

// Unwrap gives the reason.
func (b badSpec) Unwrap() error { return b.error }

// refused gives an error about what was asked for the exit status that it deserves.
func (w *rotation) refused(p *process, err error) error {
	if bad, ok := errors.AsType[badSpec](err); ok {
		return invalidSpecification(p, bad.error)
	}
	return answered(p, err)
}

// targets are the workloads of the specification whose certificate comes from a store: all of them, also when a
// service is named, which has to be one of them.
func (w *rotation) targets(ctx context.Context, service string) ([]rotate.Target, error) {
	spec, err := w.spec(ctx)
	if err != nil {
		return nil, err
	}
	return w.targetsOf(ctx, spec, service)
}

func (w *rotation) targetsOf(ctx context.Context, spec *mesh.Spec, service string) ([]rotate.Target, error) {
	w.mu.Lock()
	w.read = spec
	w.mu.Unlock()
	if _, err := targetNames(spec, service); err != nil {
		return nil, err
	}
	names, err := targetNames(spec, "")
	if err != nil {
		return nil, err
	}
	var targets []rotate.Target
	for _, name := range names {
		plan, err := spec.Compile(name)
		if err != nil {
			return nil, fmt.Errorf("compiling the plan of %s: %w", name, err)
		}
		target, err := w.target(ctx, spec, plan)
		if err != nil {
			return nil, err
		}
		targets = append(targets, target)
	}
	return targets, nil
}

// target is what is rotated of one workload. What of it cannot be opened fails when its turn comes, and keeps nobody else
// from his; what can never be is an error.
func (w *rotation) target(ctx context.Context, spec *mesh.Spec, plan *mesh.Plan) (rotate.Target, error) {
	target, err := rotate.TargetOf(plan)
	if err != nil {
		return target, usageError{err}
	}
	if store, err := w.store(ctx, plan.Delivery.Store); err == nil {
		target.Store, target.Keeper = store, store
	} else {
		broken := brokenStore{fmt.Errorf("the store %s: %w", plan.Delivery.StoreName, err)}
		target.Store, target.Keeper = broken, broken
	}
	name, authority := spec.AuthorityOf(plan.Workload.Name)
	switch {
	case authority.Foreign():
		opened, err := w.cloud.issuer(ctx, spec, name, func(declared mesh.Store) (*anyStore, error) { return w.store(ctx, declared) })
		if err != nil {
			target.Authority = brokenAuthority{fmt.Errorf("the authority %s: %w", name, err)}
		} else {
			target.Authority = opened.Authority
		}
	case w.admin == nil:
		own := plan.Workload.Path() + ".certificates.authority"
		return target, badSpec{spec.Refuse(fmt.Sprintf("the certificate of %s comes from the authority of a server, and with --mesh none is asked: "+
			"leave --mesh and COUNTERSIGN_MESH out and give --socket, or choose an authority of the type acmpca or acm", plan.Workload.Name), own, "certificates.authority")}
	}
	if plan.Deploy == mesh.DeployECS {
		service, err := w.cloud.service(ctx, plan, authority)
		if err != nil {
			broken := brokenService{fmt.Errorf("the service %s/%s of ECS: %w", plan.ECS.Cluster, plan.ECS.Service, err)}
			target.Rollout, target.Observer = broken, broken
		} else {
			target.Rollout, target.Observer = service, service
		}
	}
	return target, nil
}

// unknown refuses to rotate what nobody has said the authority of.
func unknown(targets []rotate.Target) error {
	for _, t := range targets {
		if broken, ok := t.Authority.(brokenAuthority); ok && errors.Is(broken.err, errNoARN) {
			return usageError(broken)
		}
	}
	return nil
}

// unseen refuses to rotate instances that nobody could restart or look at.
func (w *rotation) unseen(targets []rotate.Target, service string) error {
	if w.admin != nil {
		return nil
	}
	w.mu.Lock()
	spec := w.read
	w.mu.Unlock()
	var refused mesh.Errors
	for _, t := range targets {
		if t.Rollout == nil && (service == "" || service == t.Workload.Name) {
			refused = append(refused, spec.Refuse(fmt.Sprintf("without a server nobody knows where the instances of %s are, to see them serve the new certificate: "+
				"say that Amazon ECS replaces them (deploy: {type: ecs, ...}), or give --no-deploy to 'rotate once'", t.Workload.Name),
				t.Workload.Path()+".deploy.type", t.Workload.Path()+".deploy"))
		}
	}
	if len(refused) > 0 {
		return badSpec{refused.Sorted()}
	}
	return nil
}

// store opens a store, once.
func (w *rotation) store(ctx context.Context, declared mesh.Store) (*anyStore, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if store := w.stores[declared]; store != nil {
		return store, nil
	}
	store, err := openStore(ctx, declared)
	if err != nil {
		return nil, err
	}
	w.stores[declared] = store
	return store, nil
}

// brokenStore is a store that could not be opened: those who use it fail, and the others do not.
type brokenStore struct{ err error }

// Read implements [rotate.Store].
func (b brokenStore) Read(context.Context, string, string) ([]byte, string, error) {
	return nil, "", b.err
}

// Stage implements [rotate.Store].
func (b brokenStore) Stage(context.Context, string, string, []byte) (string, error) {
	return "", b.err
}

// Replace implements [rotate.Store].
func (b brokenStore) Replace(context.Context, string, string, string) error { return b.err }

// Versions implements [rotate.Store].
func (b brokenStore) Versions(context.Context, string) ([]secret.Version, error) { return nil, b.err }

// Remove implements [rotate.Keeper].
func (b brokenStore) Remove(context.Context, string, string) error { return b.err }

// Lease implements [rotate.Keeper].
func (b brokenStore) Lease(context.Context, string, string, time.Duration) (rotate.Lease, error) {
	return nil, b.err
}

// EndLease implements [rotate.Keeper].
func (b brokenStore) EndLease(context.Context, string, string) error { return b.err }

// Holder implements [rotate.Keeper].
func (b brokenStore) Holder(context.Context, string) (string, time.Time, error) {
	return "", time.Time{}, b.err
}

// serverAuthority is the CA behind the server.
type serverAuthority struct{ admin *api.Admin }

// Issue implements [rotate.Authority]. The names are those that the server's specification says.
func (a serverAuthority) Issue(ctx context.Context, request rotate.Request) ([]byte, error) {
	credentials, err := a.admin.Issue(ctx, api.IssueRequest{Workload: request.Workload.Name, CSR: string(request.CSR), Request: request.ID})
	if refusal, ok := errors.AsType[*api.Error](err); ok && (refusal.Code == api.CodeConflict || refusal.Code == api.CodeRevoked) {
		// Another key has the id, or what was issued for it was revoked: neither ever changes.
		return nil, fmt.Errorf("%w: %w", rotate.ErrRequest, err)
	}
	if err != nil {
		return nil, err
	}
	return []byte(credentials.Chain), nil
}

// Trust implements [rotate.Authority].
func (a serverAuthority) Trust(ctx context.Context) (rotate.Trust, error) {
	ca, err := a.admin.CA(ctx)
	if err != nil {
		return rotate.Trust{}, err
	}
	issuer, err := mtls.ParseCertificates([]byte(ca.Issuer))
	if err != nil {
		return rotate.Trust{}, fmt.Errorf("the issuing CA's certificate: %w", err)
	}
	crl, err := a.admin.CRL(ctx)
	if err != nil {
		return rotate.Trust{}, fmt.Errorf("asking for the revocation lists: %w", err)
	}
	trust := rotate.Trust{Bundle: []byte(cmp.Or(ca.Bundle, ca.Root)), Known: []byte(ca.Root), CRL: crl, Issuer: issuer[0]}
	for _, hierarchy := range ca.Roots {
		trust.Known = slices.Concat(trust.Known, []byte("\n"), []byte(hierarchy.Root))
	}
	return trust, nil
}

// Issued implements [rotate.Books].
func (a serverAuthority) Issued(ctx context.Context, serial string) (bool, error) {
	records, err := a.admin.Certificates(ctx)
	return slices.ContainsFunc(records, func(r api.CertificateRecord) bool { return r.Serial == serial }), err
}

// meshObserver looks at the instances that are registered at the server.
type meshObserver struct{ admin *api.Admin }

// Look implements [rotate.Observer].
func (o meshObserver) Look(ctx context.Context, target rotate.Target) ([]rotate.Sighting, error) {
	ca, err := o.admin.CA(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking for the trust bundle: %w", err)
	}
	roots, err := mtls.ParseCertificates([]byte(cmp.Or(ca.Bundle, ca.Root)))
	if err != nil {
		return nil, fmt.Errorf("the trust bundle: %w", err)
	}
	endpoints, err := o.admin.Endpoints(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking for the endpoints: %w", err)
	}
	rows, err := o.admin.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking for the status of the instances: %w", err)
	}
	found := make([][]rotate.Sighting, len(rows))
	var group errgroup.Group
	group.SetLimit(maxLooks)
	for n, row := range rows {
		if row.Workload != target.Workload.Name || row.Instance == "" {
			continue
		}
		i := slices.IndexFunc(endpoints, func(e api.Instance) bool { return e.Workload == row.Workload && e.Instance == row.Instance })
		switch {
		case i >= 0:
			group.Go(func() error {
				found[n] = lookAt(ctx, target, endpoints[i], row, roots)
				return nil
			})
		case row.Connected: // it has not come so far that peers are told of it
			found[n] = []rotate.Sighting{{Instance: row.Instance, By: rotate.ByReport, Problem: cmp.Or(row.Error, "it is no endpoint for its peers yet")}}
		default:
			found[n] = []rotate.Sighting{{Instance: row.Instance, By: rotate.ByReport, Away: true, Problem: row.Error}}
		}
	}
	_ = group.Wait() // none of them fails
	return slices.Concat(found...), ctx.Err()
}

// maxLooks is how many instances are looked at at a time.
const maxLooks = 16

// lookAt looks at one instance: at every listener that shows the workload's own certificate, or, when there is none,
// at what peers have seen and the instance says.
func lookAt(ctx context.Context, target rotate.Target, instance api.Instance, row api.Status, roots []*x509.Certificate) []rotate.Sighting {
	var sightings []rotate.Sighting
	for _, inbound := range target.Inbound {
		if inbound.TLS == mesh.Off || inbound.Certificate != nil {
			continue
		}
		s := rotate.Sighting{Instance: instance.Instance, Endpoint: inbound.Name, By: rotate.ByHandshake, Problem: row.Error}
		i := slices.IndexFunc(instance.Inbound, func(l api.Listening) bool { return l.Port == inbound.Port })
		if i < 0 {
			s.Problem = strings.TrimPrefix(row.Error+"; it reports no listener for the port "+fmt.Sprint(inbound.Port), "; ")
			sightings = append(sightings, s)
			continue
		}
		leaf, err := observe.Served(ctx, instance.Inbound[i].Address, target.Workload.Identity, inbound.Protocol, roots)
		if err == nil {
			s.Serial = mtls.Serial(leaf)
		} else {
			s.Problem = strings.TrimPrefix(row.Error+"; "+err.Error(), "; ")
		}
		sightings = append(sightings, s)
	}
	if len(sightings) > 0 {
		return sightings
	}
	s := rotate.Sighting{Instance: instance.Instance, Serial: row.ObservedSerial, By: rotate.ByPeers, Problem: row.Error}
	if row.ObservedSerial == "" || row.ObservedSerial != row.Serial {
		// Nobody has called it or was called by it since it changed: what it says is all that there is.
		s.Serial, s.By = row.Serial, rotate.ByReport
		s.Peers, s.PeersAt = row.ObservedSerial, row.ObservedTime // or somebody has seen otherwise
	}
	return []rotate.Sighting{s}
}

// upDeployer restarts instances of `countersign up`, by the socket that its run document names.
type upDeployer struct{}

// controlDocument is what is needed of the run document.
type controlDocument struct {
	Control string `json:"control"`
}

// restartTimeout bounds one restart: an instance drains first.
const restartTimeout = 5 * time.Minute

// Restart implements [rotate.Deployer].
func (upDeployer) Restart(ctx context.Context, _, instance string) error {
	socket, err := controlSocket()
	if err != nil {
		return err
	}
	body, err := json.Marshal(map[string]string{"instance": instance})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, restartTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://countersign/v1/restart", bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("asking 'countersign up' on %s: %w", socket, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return api.DecodeError(response)
	}
	_, err = io.Copy(io.Discard, io.LimitReader(response.Body, 1<<20))
	return err
}

// controlSocket finds the socket of `up`.
func controlSocket() (string, error) {
	path := os.Getenv(up.EnvRun)
	if path == "" {
		return "", errors.New("instances of services with 'deploy: {type: restart}' are restarted by `countersign up`: run the rotation inside it, or choose reload")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading what %s names: %w", up.EnvRun, err)
	}
	var document controlDocument
	if err := json.Unmarshal(data, &document); err != nil || document.Control == "" {
		return "", fmt.Errorf("the file %s, which %s names, does not say where the socket for restarts is; start the mesh with this version of countersign", path, up.EnvRun)
	}
	return document.Control, nil
}
