package rotate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"countersign.dev/credential"
	"countersign.dev/durable"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/secret"
)

// exportFormat is the version of the form of an [exporting].
const exportFormat = 1

// exporting is what waits for an [Exporter]'s answer, as it lies in the store under ID-req. It holds no key: there is none yet.
type exporting struct {
	Format      int          `json:"exportFormat"`
	DNSIdentity string       `json:"dnsIdentity"`
	DNSNames    []string     `json:"dnsNames"`
	KeyType     mesh.KeyType `json:"keyType"`
	Created     time.Time    `json:"created"`
	// Replaces is the serial that is not to come back; see [Request].
	Replaces string `json:"replaces,omitempty"`
}

// expected is what a credential of the target has to be. Only where the specification declares a DNS name that says who the
// workload is, a leaf without a SPIFFE ID will do, and that name has to be the leaf's.
func (n *run) expected() credential.Expect {
	want := n.t.Certificate
	expect := credential.Expect{Now: n.r.now(), ID: want.Identity.String(), DNSNames: want.DNSNames}
	if want.DNSIdentity != "" {
		expect.ID, expect.DNSIdentity = "", want.DNSIdentity
	}
	return expect
}

// newer says that the authority has another certificate than the store, or none, where it renews and revokes by itself; empty
// when it has that one.
func (n *run) newer() (string, error) {
	exporter, ok := n.r.authority(n.t).(Exporter)
	if !ok {
		return "", nil
	}
	ask, cancel := context.WithTimeout(n.ctx, askTimeout)
	defer cancel()
	serial, _, err := exporter.Newest(ask, n.t.Workload)
	if err != nil {
		return "", fmt.Errorf("asking the authority which certificate is its newest: %w", err)
	}
	switch serial {
	case mtls.Serial(n.current.leaf):
		return "", nil
	case "":
		n.result.unfit = true // peers may know it, too
		return "the authority has it no more: it was revoked or deleted there", nil
	default:
		return "the authority has renewed it: its newest is " + serial, nil
	}
}

// obtainExport is obtain where the authority makes keys itself. Killed in the middle, it goes on with what was begun: what
// the authority has made already is exported, and nothing is renewed once more.
func (n *run) obtainExport(exporter Exporter) error {
	request, err := n.exportRequest()
	if err != nil {
		return err
	}
	// Once more, when what the authority has had for a while is to be replaced at once itself.
	for range 2 {
		if err := n.exportStaged(exporter, request); err != nil {
			return err
		}
		due, err := n.verify()
		switch {
		case errors.Is(err, ErrUnfit):
			return errors.Join(err, n.discard(n.version))
		case err != nil || !due:
			return err
		}
		serial, err := n.serialOf(n.version)
		if err != nil {
			return err
		}
		if serial == request.Replaces || request.Replaces != "" {
			break
		}
		old := n.version
		request.Replaces = serial
		if err := n.keepExport(request); err != nil {
			return err
		}
		if err := n.discard(old); err != nil {
			return err
		}
	}
	return nil
}

// exportRequest finds the request that a rotation before has left, or makes one. All others are removed.
func (n *run) exportRequest() (*exporting, error) {
	if err := n.begin(StepRequest, "%s", n.result.Reason); err != nil {
		return nil, err
	}
	if n.t.Shape.Layout() != secret.LayoutExported {
		return nil, fmt.Errorf("%w: an authority that makes keys itself exports them encrypted, and the layout %s has no place for a passphrase; write layout: exported", secret.ErrInvalid, n.t.Shape.Layout())
	}
	if err := n.believed(); err != nil {
		return nil, err
	}
	ids, err := n.requests()
	if err != nil {
		return nil, err
	}
	var request *exporting
	for _, id := range ids {
		version := strings.TrimSuffix(id, requestSuffix)
		if request == nil {
			if request, err = n.readExport(id); err != nil {
				return nil, err
			}
			if request != nil {
				n.version = version
				n.say(StepRequest, "going on with the request %s", n.version)
				continue
			}
		}
		if err := n.discard(version); err != nil {
			return nil, err
		}
	}
	if request != nil {
		return request, nil
	}
	want := n.t.Certificate
	request = &exporting{Format: exportFormat, DNSIdentity: want.DNSIdentity, DNSNames: want.DNSNames, KeyType: want.Key, Created: n.r.now().UTC()}
	if n.current.leaf != nil {
		request.Replaces = mtls.Serial(n.current.leaf)
	}
	return request, n.keepExport(request)
}

// keepExport stores a request under an id of its own, with what the authority has kept for the one before.
func (n *run) keepExport(request *exporting) error {
	text, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("writing the request: %w", err)
	}
	receipt := ""
	if n.version != "" && n.record.Request == n.version {
		receipt = n.record.Receipt
	}
	n.version = newVersion(n.r.now())
	if _, err := n.t.Store.Stage(n.ctx, n.t.keySecret(), n.version+requestSuffix, text); err != nil {
		return err
	}
	durable.Step("rotate.request.staged")
	if receipt == "" {
		return nil
	}
	return n.keepReceipt(n.ctx, receipt)
}

// readExport reads a request; nil when it is damaged, or was made for what the workload is no more.
func (n *run) readExport(id string) (*exporting, error) {
	text, _, err := n.t.Store.Read(n.ctx, n.t.keySecret(), id)
	if errors.Is(err, secret.ErrNotFound) || errors.Is(err, secret.ErrCorrupt) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer clear(text) // it may be another kind of request, with a key
	request, ok := parseExport(text)
	want := n.t.Certificate
	if !ok || request.DNSIdentity != want.DNSIdentity || !slices.Equal(request.DNSNames, want.DNSNames) || request.KeyType != want.Key {
		return nil, nil
	}
	return request, nil
}

// parseExport reads an exporting.
func parseExport(text []byte) (*exporting, bool) {
	request := &exporting{}
	if json.Unmarshal(text, request) != nil || request.Format != exportFormat || len(request.DNSNames) == 0 {
		return nil, false
	}
	return request, true
}

// exportStaged has the credential exported and stored, unless a rotation before has done both. An export cannot be had
// twice alike, for its encryption differs: what is there in part is left behind under its id, for another one.
func (n *run) exportStaged(exporter Exporter, request *exporting) error {
	switch there, err := n.stagedParts(); {
	case err != nil:
		return err
	case there == len(n.t.Shape.Names(n.t.Secret)):
		n.say(StepStage, "the version %s is stored already", n.version)
		return nil
	case there > 0:
		old := n.version
		if err := n.keepExport(request); err != nil {
			return err
		}
		if err := n.discard(old); err != nil {
			return err
		}
	}
	if err := n.begin(StepIssue, "asking the authority for a credential under the id %s", n.version); err != nil {
		return err
	}
	ask, cancel := n.asking()
	defer cancel()
	asked := n.ask(nil)
	asked.Key, asked.Replaces = n.t.Certificate.Key, request.Replaces
	material, err := exporter.Export(ask, asked)
	switch {
	case err != nil && n.outer.Err() != nil && n.ctx.Err() == nil:
		return fmt.Errorf("%w: %w", ErrStopped, err)
	case errors.Is(err, ErrUnfit), errors.Is(err, ErrRequest):
		return errors.Join(fmt.Errorf("asking for a credential: %w", err), n.discard(n.version))
	case err != nil:
		return fmt.Errorf("asking for a credential: %w", err)
	}
	defer material.Clear()
	durable.Step("rotate.issued")
	material.Version, material.Bundle = "", nil
	return n.stage(material)
}

// stagedParts is how many of the credential's secrets have the version that is being made.
func (n *run) stagedParts() (int, error) {
	there := 0
	for _, name := range n.t.Shape.Names(n.t.Secret) {
		versions, err := n.t.Store.Versions(n.ctx, name)
		if err != nil && !errors.Is(err, secret.ErrNotFound) {
			return 0, err
		}
		if slices.ContainsFunc(versions, func(v secret.Version) bool { return v.ID == n.version }) {
			there++
		}
	}
	return there, nil
}

// serialOf reads the serial of a version.
func (n *run) serialOf(version string) (string, error) {
	leaf, err := n.leafOf(version)
	return leaf.serial, err
}
