package rotate

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"countersign.dev/mtls"
)

// Shown is a certificate that instances may present, whatever is current. It is kept for what it says of roots: the version itself may have been
// removed from the store by then.
type Shown struct {
	Serial   string    `json:"serial"`
	NotAfter time.Time `json:"notAfter"`
	// Roots are those of the shared trust bundle that it leads to, each as the SHA-256 of its DER in hex.
	Roots []string `json:"roots"`
}

// digestOf is what a [Shown] calls a root.
func digestOf(root *x509.Certificate) string {
	sum := sha256.Sum256(root.Raw)
	return hex.EncodeToString(sum[:])
}

// show notes what instances may present from the moment on at which another version is made current: what they have by then, and the new one,
// which may be taken back.
func (n *run) show() error {
	if n.t.Bundle == "" {
		return nil // nobody else's roots are meant
	}
	roots, err := mtls.ParseCertificates(n.bundle)
	if err != nil {
		return fmt.Errorf("the trust bundle %s: %w", n.t.Bundle, err)
	}
	for _, version := range []string{n.current.version, n.version} {
		if version == "" {
			continue
		}
		chain, err := n.r.chainOf(n.ctx, n.t, version)
		if err != nil {
			return err
		}
		n.record.show(chain, roots, n.r.now())
	}
	return nil
}

// show adds a certificate. Of those that lead to the same roots the one is kept that ends last, so that there are never more than a few.
func (r *Record) show(chain, roots []*x509.Certificate, now time.Time) {
	shown := Shown{}
	for _, root := range roots {
		if len(chain) > 0 && leadsTo(chain, []*x509.Certificate{root}, now) != nil {
			shown.Roots = append(shown.Roots, digestOf(root))
		}
	}
	if len(shown.Roots) == 0 {
		return // no root is kept for what nobody believes
	}
	slices.Sort(shown.Roots)
	shown.Serial, shown.NotAfter = mtls.Serial(chain[0]), chain[0].NotAfter.UTC()
	all := slices.DeleteFunc(slices.Clone(r.Shown), func(s Shown) bool { return now.After(s.NotAfter) })
	i := slices.IndexFunc(all, func(s Shown) bool { return slices.Equal(s.Roots, shown.Roots) })
	switch {
	case i < 0:
		all = append(all, shown)
	case all[i].NotAfter.Before(shown.NotAfter):
		all[i] = shown
	}
	r.Shown = all
}

// chainOf reads the certificates of a version, the leaf first; none when there is no such version, or nothing in it that anybody could present.
func (r *Rotator) chainOf(ctx context.Context, t Target, version string) ([]*x509.Certificate, error) {
	material, err := t.Shape.Read(ctx, t.Store, t.Secret, version)
	if err != nil {
		return nil, unlessBroken(err)
	}
	chain, err := mtls.ParseCertificates(slices.Concat(material.Certificate, material.Chain))
	material.Clear()
	if err != nil {
		return nil, nil //nolint:nilerr // what cannot be parsed, nobody presents
	}
	return chain, nil
}

// shownNeeds are the roots that instances of a user may still need although no version in force does: what is current was never seen at all of
// them. They are looked at only when there is such a root.
func (n *bundleRun) shownNeeds(user Target, shown []Shown, known []needing, next, current []*x509.Certificate) []needing {
	var needs []needing
	for _, s := range shown {
		leadsTo := func(root *x509.Certificate) bool { return slices.Contains(s.Roots, digestOf(root)) }
		i := slices.IndexFunc(current, leadsTo)
		if i < 0 || slices.ContainsFunc(next, leadsTo) || n.r.now().After(s.NotAfter) {
			continue
		}
		if !slices.ContainsFunc(known, func(need needing) bool { return leadsTo(need.root) }) {
			needs = append(needs, needing{current[i], fmt.Sprintf("%s (instances may still present the serial %s, issued under %q, valid to %s", user.Workload.Name, s.Serial,
				current[i].Subject.CommonName, s.NotAfter.Format(time.RFC3339))})
		}
	}
	if len(needs) == 0 {
		return nil
	}
	why := n.unproven(user, joinPEM(encodeAll(next), encodeAll(current)))
	if why == "" {
		return nil
	}
	for i := range needs {
		needs[i].who += ": " + why + ")"
	}
	return needs
}

// unproven says why it is not known that every instance of a user presents what is current; empty when it is, and when there is none.
func (n *bundleRun) unproven(user Target, roots []byte) string {
	ctx, cancel := context.WithTimeout(n.ctx, askTimeout)
	defer cancel()
	serial := ReadStatus(ctx, user).Serial
	user.Now = Now{Serial: serial, Roots: roots}
	sightings, err := n.r.observer(user).Look(ctx, user)
	if err != nil {
		return err.Error()
	}
	for _, s := range sightings {
		switch {
		case s.Away:
			return s.Instance + " is away, and may be back with it"
		case s.Serial == "" || s.Serial != serial:
			return fmt.Sprintf("%s was not seen with %s", s.Instance, serial)
		case s.Peers != "":
			return fmt.Sprintf("peers saw %s present %s", s.Instance, s.Peers)
		}
	}
	return ""
}

// encodeAll is certificates in PEM.
func encodeAll(certificates []*x509.Certificate) []byte {
	var text []byte
	for _, c := range certificates {
		text = append(text, encode(c)...)
	}
	return text
}
