package rotate

import (
	"cmp"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"countersign.dev/credential"
	"countersign.dev/durable"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/secret"
)

// pendingFormat is the version of a pending request's form.
const pendingFormat = 1

// pending is a key that waits for its certificate, as it lies in the store under ID-req. It is key material as a whole.
type pending struct {
	Format   int          `json:"format"`
	Identity string       `json:"identity"`
	DNSNames []string     `json:"dnsNames"`
	KeyType  mesh.KeyType `json:"keyType"`
	Layout   string       `json:"layout"`
	Created  time.Time    `json:"created"`
	CSR      string       `json:"csr"`
	// Key is as it will be stored, and so is the passphrase: written twice, they are the same.
	Key        string `json:"key"`
	Passphrase string `json:"passphrase,omitempty"`
}

// String keeps the key out of logs.
func (p *pending) String() string { return "a pending request (not shown)" }

// GoString keeps the key out of logs.
func (p *pending) GoString() string { return p.String() }

// ourVersion is what the ids of versions that a rotation has made look like.
var ourVersion = regexp.MustCompile(`^[0-9]{8}T[0-9]{6}Z-[0-9a-f]{16}(-req)?$`)

// newVersion makes an id: the time, for people, and 64 random bits. It is the request's id as well.
func newVersion(now time.Time) string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // crypto/rand ends the process rather than fail
	return now.UTC().Format(versionTime) + "-" + hex.EncodeToString(b[:])
}

// versionTime is the form of the time that an id begins with.
const versionTime = "20060102T150405Z"

// madeAt is the time that an id of ours says, in UTC; zero when it says none.
func madeAt(id string) time.Time {
	text, _, _ := strings.Cut(id, "-")
	at, err := time.Parse(versionTime, text)
	if err != nil {
		return time.Time{}
	}
	return at
}

// requests are the ids of versions that hold a request that waits, the newest first. Those of a version that is or was
// current have had their answer.
func (n *run) requests() ([]string, error) {
	versions, err := n.t.Store.Versions(n.ctx, n.t.keySecret())
	if errors.Is(err, secret.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	used := map[string]bool{n.abandoned + requestSuffix: true, n.current.version + requestSuffix: true}
	for _, version := range versions {
		if version.Has(secret.Previous) || version.Has(secret.Current) {
			used[version.ID+requestSuffix] = true
		}
	}
	var ids []string
	for _, version := range versions {
		if !used[version.ID] && ourVersion.MatchString(version.ID) && strings.HasSuffix(version.ID, requestSuffix) {
			ids = append(ids, version.ID)
		}
	}
	return ids, nil
}

// obtain brings a new version as far as pending, and checks it.
func (n *run) obtain() error {
	if exporter, ok := n.r.authority(n.t).(Exporter); ok {
		return n.obtainExport(exporter)
	}
	for {
		request, found, err := n.request()
		if err != nil {
			return err
		}
		due, err := n.complete(request)
		request.clear()
		if err != nil {
			never := errors.Is(err, ErrRequest)
			if !never && !errors.Is(err, ErrUnfit) {
				return err
			}
			// Asked again, the answer would be the same.
			if err2 := n.discard(n.version); err2 != nil || !found || !never {
				return errors.Join(err, err2)
			}
			n.say(StepIssue, "the request of a rotation before is of no use any more, and another one is made: %v", err)
			continue
		}
		if !due || !found {
			return nil
		}
		// What a rotation that died long ago has asked for is of no use any more.
		if err := n.discard(n.version); err != nil {
			return err
		}
	}
}

// request finds the request that a rotation before has left, or makes one. All others are removed.
func (n *run) request() (request *pending, found bool, err error) {
	if err := n.begin(StepRequest, "%s", n.result.Reason); err != nil {
		return nil, false, err
	}
	if err := n.believed(); err != nil {
		return nil, false, err
	}
	ids, err := n.requests()
	if err != nil {
		return nil, false, err
	}
	for _, id := range ids {
		if request == nil {
			if request, err = n.readRequest(id); err != nil {
				return nil, false, err
			}
			if request != nil {
				n.version = strings.TrimSuffix(id, requestSuffix)
				n.say(StepRequest, "going on with the request %s", n.version)
				continue
			}
		}
		if err := n.discard(strings.TrimSuffix(id, requestSuffix)); err != nil {
			return nil, false, err
		}
	}
	if request != nil {
		return request, true, nil
	}
	request, err = n.newRequest(newVersion(n.r.now()))
	return request, false, err
}

// believed makes sure, before anything is asked for, that the proxy will have the root of what the authority signs.
func (n *run) believed() error {
	if n.t.Bundle == "" || n.trust.Issuer == nil {
		return nil
	}
	roots, err := mtls.ParseCertificates(n.bundle)
	if err != nil {
		return fmt.Errorf("the trust bundle %s: %w", n.t.Bundle, err)
	}
	if signedUnder(roots, n.trust.Issuer) {
		return n.distributed()
	}
	return fmt.Errorf("%w: the trust bundle %s does not have the root that the authority issues under; it has to be brought up to date first", ErrUnfit, n.t.Bundle)
}

// signedUnder tells whether one of some roots has signed an issuing CA.
func signedUnder(roots []*x509.Certificate, issuer *x509.Certificate) bool {
	return slices.ContainsFunc(roots, func(root *x509.Certificate) bool { return issuer.CheckSignatureFrom(root) == nil })
}

// distributed makes sure that nobody presents a certificate under a root that some of those who share the bundle have not
// started with yet: its deployment has ended, or the bundle of before had the root as well.
func (n *run) distributed() error {
	if n.o.NoDeploy {
		return nil
	}
	record, err := readRecord(n.ctx, n.t.Store, n.t.Bundle)
	if errors.Is(err, secret.ErrCorrupt) && n.o.Force {
		return nil // nothing is known of it
	}
	if err != nil || record.Step == "" {
		return err
	}
	before, _, err := n.t.Store.Read(n.ctx, n.t.Bundle, string(secret.Previous))
	if errors.Is(err, secret.ErrNotFound) {
		return nil // nobody runs with another one
	}
	if err != nil {
		return fmt.Errorf("the trust bundle of before: %w", err)
	}
	if roots, err := mtls.ParseCertificates(before); err == nil && signedUnder(roots, n.trust.Issuer) {
		return nil
	}
	return fmt.Errorf("%w: the root that the authority issues under is new in the trust bundle %s, and not everybody who shares it was seen to run with it yet (%s); its deployment has to end first",
		ErrUnfit, n.t.Bundle, cmp.Or(record.LastError, "it was begun at "+record.Began.Format(time.RFC3339)))
}

// readRequest reads a pending request; nil when it is damaged, or was made for what the workload is no more.
func (n *run) readRequest(id string) (*pending, error) {
	text, _, err := n.t.Store.Read(n.ctx, n.t.keySecret(), id)
	if errors.Is(err, secret.ErrNotFound) || errors.Is(err, secret.ErrCorrupt) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer clear(text)
	request, ok := parsePending(text)
	want := n.t.Certificate
	if !ok || request.Identity != want.Identity.String() || !slices.Equal(request.DNSNames, want.DNSNames) ||
		request.KeyType != want.Key || request.Layout != string(n.t.Shape.Layout()) {
		return nil, nil
	}
	return request, nil
}

// parsePending reads a pending request.
func parsePending(text []byte) (*pending, bool) {
	request := &pending{}
	if json.Unmarshal(text, request) != nil || request.Format != pendingFormat || request.CSR == "" || len(request.Key) == 0 {
		return nil, false
	}
	return request, true
}

// newRequest makes a key and a request for a version, and stores both before anybody is asked.
func (n *run) newRequest(version string) (*pending, error) {
	key, err := mtls.GenerateKey(n.t.Certificate.Key)
	if err != nil {
		return nil, err
	}
	now := n.r.now()
	want := n.t.Certificate
	// The names stand in it for authorities that take them from there; one that knows better makes sure that they are right.
	csr, err := mtls.NewNamedCSR(key, want.Identity, want.DNSNames)
	if err != nil {
		return nil, err
	}
	request := &pending{
		Format: pendingFormat, Identity: want.Identity.String(), DNSNames: want.DNSNames, KeyType: want.Key,
		Layout: string(n.t.Shape.Layout()), Created: now.UTC(), CSR: string(csr),
	}
	if err := request.keep(key); err != nil {
		return nil, err
	}
	text, err := json.Marshal(request)
	if err != nil {
		return nil, errors.New("writing the request: it has no JSON")
	}
	defer clear(text)
	n.version = version
	if _, err := n.t.Store.Stage(n.ctx, n.t.keySecret(), n.version+requestSuffix, text); err != nil {
		return nil, err
	}
	durable.Step("rotate.request.staged")
	return request, nil
}

// keep puts the key into the request as it will be stored.
func (p *pending) keep(key crypto.Signer) error {
	if p.Layout != string(secret.LayoutExported) {
		text, err := mtls.MarshalKey(key)
		p.Key = string(text)
		return err
	}
	passphrase := credential.NewPassphrase()
	text, err := credential.EncryptKey(key, passphrase)
	p.Key, p.Passphrase = string(text), string(passphrase)
	return err
}

// clear drops the key. Strings cannot be overwritten; it only lets go of them.
func (p *pending) clear() { p.Key, p.Passphrase = "", "" }

// complete has the request certified, stores the whole version, reads it back and checks it. due tells that the
// certificate is one to be replaced at once.
func (n *run) complete(request *pending) (due bool, err error) {
	if err := n.begin(StepIssue, "asking the authority under the id %s", n.version); err != nil {
		return false, err
	}
	ask, cancel := n.asking()
	defer cancel()
	chain, err := n.r.authority(n.t).Issue(ask, n.ask([]byte(request.CSR)))
	switch {
	case err != nil && n.outer.Err() != nil && n.ctx.Err() == nil:
		return false, fmt.Errorf("%w: %w", ErrStopped, err)
	case err != nil:
		return false, fmt.Errorf("asking for a certificate: %w", err)
	}
	durable.Step("rotate.issued")
	material, err := n.material(request, chain)
	if err != nil {
		return false, err
	}
	defer material.Clear()
	if err := n.stage(material); err != nil {
		return false, err
	}
	return n.verify()
}

// ask is the request under the version's id, with what the authority has kept for it.
func (n *run) ask(csr []byte) Request {
	request := Request{
		ID: n.version, Workload: n.t.Workload, DNSNames: n.t.Certificate.DNSNames,
		CSR: csr, TTL: time.Duration(n.t.Certificate.TTL), Keep: n.keepReceipt,
	}
	if n.record.Request == n.version {
		request.Receipt = n.record.Receipt
	}
	return request
}

// keepReceipt stores what an authority wants to know again when it is asked under the same id.
func (n *run) keepReceipt(_ context.Context, receipt string) error {
	if len(receipt) > MaxReceipt {
		return fmt.Errorf("%w: the receipt has %d bytes, and at most %d are kept", secret.ErrInvalid, len(receipt), MaxReceipt)
	}
	if n.record.Request == n.version && n.record.Receipt == receipt {
		return nil
	}
	n.record.Request, n.record.Receipt = n.version, receipt
	// It was paid for: that is written down also when the one who asks has run out of time.
	if err := n.write(n.ctx, n.t.Store, n.t.Secret); err != nil { //nolint:contextcheck // see above
		return fmt.Errorf("keeping the receipt of the request %s: %w", n.version, err)
	}
	return nil
}

// asking bounds a question to the authority. One that the workload has for itself may have to be waited for; it knows by
// the receipt what it was asked before, and is left in the middle when the process is to end.
func (n *run) asking() (context.Context, context.CancelFunc) {
	if n.t.Authority == nil {
		return context.WithTimeout(n.ctx, askTimeout)
	}
	ask, cancel := context.WithTimeout(n.ctx, issueTimeout)
	stop := context.AfterFunc(n.outer, cancel)
	return ask, func() { stop(); cancel() }
}

// material puts the parts together as the layout wants them.
func (n *run) material(request *pending, chain []byte) (*secret.Material, error) {
	certificates, err := mtls.ParseCertificates(chain)
	if err != nil {
		return nil, fmt.Errorf("%w: what the authority answered is no chain of certificates: %w", ErrUnfit, err)
	}
	var leaf, others []byte
	for i, certificate := range certificates {
		block := encode(certificate)
		if i == 0 {
			leaf = block
		} else {
			others = append(others, block...)
		}
	}
	m := &secret.Material{Certificate: leaf, Key: []byte(request.Key)}
	if n.t.Shape.Layout() == secret.LayoutExported {
		m.Chain, m.Passphrase = others, []byte(request.Passphrase)
	} else {
		m.Certificate = append(m.Certificate, others...)
	}
	if n.t.Bundle == "" {
		m.Bundle = n.trust.Bundle
		n.bundle = n.trust.Bundle
	}
	return m, nil
}

// encode is a certificate in PEM.
func encode(certificate *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})
}

// stage stores all parts under one id. What a rotation before has stored differently under the same id, because the
// trust bundle was another one then, is replaced: it was never current.
func (n *run) stage(m *secret.Material) error {
	if err := n.begin(StepStage, "storing the version %s", n.version); err != nil {
		return err
	}
	values, err := n.t.Shape.Encode(n.t.Secret, m)
	if err != nil { // too large, or without an issuer where the layout has a place for it
		return fmt.Errorf("%w: %w", ErrUnfit, err)
	}
	for _, value := range values {
		_, err := n.t.Store.Stage(n.ctx, value.Name, n.version, value.Value)
		if errors.Is(err, secret.ErrConflict) {
			if err = n.t.Keeper.Remove(n.ctx, value.Name, n.version); err == nil {
				_, err = n.t.Store.Stage(n.ctx, value.Name, n.version, value.Value)
			}
			if errors.Is(err, secret.ErrConflict) {
				// A store that cannot remove a version at once keeps its id: another request has another one.
				err = fmt.Errorf("%w: %w", ErrUnfit, err)
			}
		}
		if n.t.Shape.Layout() == secret.LayoutJSON {
			clear(value.Value)
		}
		if err != nil {
			return err
		}
		durable.Step("rotate.version.staged")
	}
	return nil
}

// verify reads the version back and checks it.
func (n *run) verify() (due bool, err error) {
	if err := n.begin(StepVerify, "reading %s back and checking it", n.version); err != nil {
		return false, err
	}
	m, err := n.t.Shape.Read(n.ctx, n.t.Store, n.t.Secret, n.version)
	if err != nil {
		return false, err
	}
	defer m.Clear()
	bundle := m.Bundle
	if n.t.Bundle != "" {
		bundle = n.bundle
	}
	leaf, err := n.fit(m, bundle)
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrUnfit, err)
	}
	return !n.r.now().Before(n.due(leaf)), nil
}

// discard removes a version that is not current, and its request, from all secrets of the credential.
func (n *run) discard(version string) error {
	var all []error
	for _, name := range n.t.Shape.Names(n.t.Secret) {
		all = append(all, n.t.Keeper.Remove(n.ctx, name, version))
	}
	// The request last: it is what says that there is something to be removed.
	all = append(all, n.t.Keeper.Remove(n.ctx, n.t.keySecret(), version+requestSuffix))
	if err := errors.Join(all...); err != nil {
		return fmt.Errorf("removing what is not to be used: %w", err)
	}
	return nil
}

// clean removes what rotations have left and nobody needs: requests, and versions of ours that have no stage. The
// previous one stays, for the way back; what people have stored by hand is theirs.
func (n *run) clean() error {
	if err := n.lease.sure(n.ctx); err != nil {
		return err // what waits there is another one's by now
	}
	for _, name := range n.t.Shape.Names(n.t.Secret) {
		versions, err := n.t.Store.Versions(n.ctx, name)
		if errors.Is(err, secret.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		for _, version := range versions {
			if !ourVersion.MatchString(version.ID) || version.Has(secret.Current) || version.Has(secret.Previous) {
				continue
			}
			if err := n.t.Keeper.Remove(n.ctx, name, version.ID); err != nil {
				return err
			}
		}
	}
	return nil
}
