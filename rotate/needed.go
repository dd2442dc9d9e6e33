package rotate

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	"countersign.dev/mtls"
	"countersign.dev/secret"
)

// needing is a root that a shared trust bundle has to keep, and for whom.
type needing struct {
	root *x509.Certificate
	who  string
}

// withNeeded gives the roots of the authority with those that are current and still needed. The error is [ErrInUse] when they
// are not to be brought together: of an authority that is new here nobody knows whether it is the right one. It is that of the store
// when a credential could not be read: a root is not taken away on the chance that nobody needs it.
func (n *bundleRun) withNeeded(bundle, now []byte) ([]byte, error) {
	next, err := mtls.ParseCertificates(bundle)
	if err != nil {
		return bundle, nil //nolint:nilerr // it is refused as a bundle
	}
	current, err := mtls.ParseCertificates(now)
	if err != nil {
		return bundle, nil //nolint:nilerr // what cannot be read, nobody loses
	}
	if within(current, next) {
		return bundle, nil // nothing is taken away, and no credential has to be read
	}
	needs, err := n.needed(next, current)
	if err != nil {
		return bundle, fmt.Errorf("whether somebody still needs a root that leaves the trust bundle: %w", err)
	}
	if len(needs) == 0 {
		return bundle, nil
	}
	var who []string
	kept := [][]byte{bundle}
	for _, need := range needs {
		who = append(who, need.who)
		kept = append(kept, encode(need.root))
	}
	if !n.o.Force && !within(next, current) {
		return bundle, fmt.Errorf("%w: %s; if that authority is meant to take the place of the one of before, bring its root to everybody first (give it to one of the services alone, or go on with --force, which keeps the old root until nobody needs it)",
			ErrInUse, strings.Join(who, ", "))
	}
	n.result.Notes = append(n.result.Notes, "a root that the authority does not have any more stays until nobody needs it, which a later rotation finds out: "+strings.Join(who, ", "))
	return joinPEM(kept...), nil
}

// needed are the roots that are current, are not among the next ones, and that certificates of the users lead to.
func (n *bundleRun) needed(next, current []*x509.Certificate) ([]needing, error) {
	var needs []needing
	for _, user := range n.b.Users {
		versions, shown, err := n.inForce(user)
		if err != nil {
			return nil, err
		}
		var own []needing
		for _, version := range versions {
			need, ok, err := n.needOf(user, version, next, current)
			if err != nil {
				return nil, err
			}
			if ok && !slices.ContainsFunc(own, func(other needing) bool { return other.who == need.who }) {
				own = append(own, need)
			}
		}
		needs = append(append(needs, own...), n.shownNeeds(user, shown, own, next, current)...)
	}
	return needs, nil
}

// inForce are the versions of a user's credential that instances may present or go back to: while one is being brought in, that is
// also the one of before.
func (n *bundleRun) inForce(user Target) ([]string, []Shown, error) {
	versions := []string{""}
	record, err := readRecord(n.ctx, user.Store, user.Secret)
	if err != nil {
		return versions, nil, unlessBroken(err)
	}
	if record.Step != "" {
		for _, version := range []string{record.Version, record.Previous} {
			if version != "" && !slices.Contains(versions, version) {
				versions = append(versions, version)
			}
		}
	}
	return versions, record.Shown, nil
}

// unlessBroken is an error of reading a user's secret, or nil when that is not there or holds nothing of use: it is its own rotation's
// to complain about then, and would stand in the way of all others for ever.
func unlessBroken(err error) error {
	for _, broken := range []error{secret.ErrNotFound, secret.ErrMismatch, secret.ErrInvalid, secret.ErrCorrupt} {
		if errors.Is(err, broken) {
			return nil
		}
	}
	return err
}

// needOf tells whether a version leads to a root that is current, and to none of the next ones.
func (n *bundleRun) needOf(user Target, version string, next, current []*x509.Certificate) (need needing, ok bool, err error) {
	chain, err := n.r.chainOf(n.ctx, user, version)
	if err != nil {
		return needing{}, false, err
	}
	if len(chain) == 0 || n.r.now().After(chain[0].NotAfter) || leadsTo(chain, next, n.r.now()) != nil {
		return needing{}, false, nil
	}
	root := leadsTo(chain, current, n.r.now())
	if root == nil {
		return needing{}, false, nil // it leads nowhere, which is no loss
	}
	return needing{root, fmt.Sprintf("%s (serial %s, issued under %q)", user.Workload.Name, mtls.Serial(chain[0]), root.Subject.CommonName)}, true, nil
}
