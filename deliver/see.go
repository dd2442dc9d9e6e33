package deliver

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"countersign.dev/api"
	"countersign.dev/credential"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/reload"
)

const (
	// often is how many times in a row every listener has to show the new certificate: an old worker may still accept.
	often = 3
	// pause is between two looks at a proxy that was told.
	pause = 30 * time.Millisecond
	// probeTime bounds one look at one listener.
	probeTime = 3 * time.Second
)

// sighting is what one listener showed.
type sighting struct {
	at   Listener
	seen *Seen // nil when nothing was seen
	err  error
}

type sightings []sighting

// provable tells whether a listener can show which certificate it serves.
func provable(l Listener) bool { return l.TLS && l.Own }

// provable tells whether the proxy has such a listener.
func (w *Watcher) provable(plan *mesh.Plan) bool {
	return slices.ContainsFunc(w.cfg.Listeners(plan), provable)
}

// see looks at all listeners at once.
func (w *Watcher) see(ctx context.Context, plan *mesh.Plan, as *credential.Credential) sightings {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	all := w.cfg.Listeners(plan)
	seen := make(sightings, len(all))
	var wait sync.WaitGroup
	for i, l := range all {
		wait.Go(func() {
			s, err := w.cfg.Prober.Probe(ctx, l, as)
			seen[i] = sighting{l, s, err}
		})
	}
	wait.Wait()
	return seen
}

// roots are the subjects of the roots in force, where listeners show them: nil where somebody else writes the configuration.
func (w *Watcher) roots() [][]byte { return w.rootsOf(w.cred) }

func (w *Watcher) rootsOf(cred *credential.Credential) [][]byte {
	if w.cfg.Render == nil || cred == nil {
		return nil
	}
	var subjects [][]byte
	for _, root := range cred.Roots {
		subjects = append(subjects, root.RawSubject)
	}
	return subjects
}

// all tells whether every listener that can shows what is wanted.
func (s sightings) all(want Made, roots [][]byte) bool {
	return !slices.ContainsFunc(s, func(one sighting) bool { return provable(one.at) && one.deviates(want, roots) != "" })
}

// silent tells whether none of them answered.
func (s sightings) silent() bool {
	return !slices.ContainsFunc(s, func(one sighting) bool { return provable(one.at) && one.seen != nil })
}

// deviates says what a listener shows instead of what is wanted, empty when it is that.
func (s sighting) deviates(want Made, roots [][]byte) string {
	switch {
	case s.err != nil:
		return s.err.Error()
	case mtls.Serial(s.seen.Leaf) != want.Serial:
		return fmt.Sprintf("%s shows the serial %s, and %s is wanted", s.at.Address, mtls.Serial(s.seen.Leaf), want.Serial)
	case roots != nil && s.at.Client && len(s.seen.Authorities) > 0 && !sameSet(roots, s.seen.Authorities):
		return s.at.Address + " asks for certificates of other roots than the wanted ones"
	}
	return ""
}

func sameSet(a, b [][]byte) bool {
	in := func(set [][]byte) func([]byte) bool {
		return func(one []byte) bool {
			return !slices.ContainsFunc(set, func(x []byte) bool { return bytes.Equal(x, one) })
		}
	}
	return !slices.ContainsFunc(a, in(b)) && !slices.ContainsFunc(b, in(a))
}

// why says what all of them show instead of what is wanted.
func (s sightings) why(want Made, roots [][]byte) string {
	var texts []string
	for _, one := range s {
		if text := one.deviates(want, roots); provable(one.at) && text != "" {
			texts = append(texts, text)
		}
	}
	return strings.Join(texts, "; ")
}

// served waits until every listener shows what is wanted, several times in a row.
func (w *Watcher) served(ctx context.Context, plan *mesh.Plan, want Made, cred *credential.Credential) error {
	if !w.provable(plan) {
		return nil
	}
	roots := w.rootsOf(cred)
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	row, why := 0, "nobody has looked"
	for {
		seen := w.see(ctx, plan, cred)
		switch {
		case ended(ctx): // what was cut off shows nothing
		case seen.all(want, roots):
			if row++; row == often {
				w.noteSeen(seen, want)
				return nil
			}
		default:
			row, why = 0, seen.why(want, roots)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: it was told %s ago, and %s", reload.ErrNotTaken, w.cfg.Patience, why)
		case <-ticker.C:
		}
	}
}

// ended tells whether a context has ended, or is about to: a connection that its deadline has cut off fails at that moment,
// and the context's own timer may run after it.
func ended(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(deadline)
}

// look looks at the listeners for the status.
func (w *Watcher) look(ctx context.Context, plan *mesh.Plan, have Made) sightings {
	seen := w.see(ctx, plan, w.cred)
	w.noteSeen(seen, have)
	return seen
}

// noteSeen notes for the status what was seen.
func (w *Watcher) noteSeen(seen sightings, have Made) {
	listening := []api.Listening{}
	var leaf *x509.Certificate
	for _, one := range seen {
		if one.err != nil {
			continue
		}
		if one.at.Port != 0 {
			listening = append(listening, api.Listening{Port: one.at.Port, Address: one.at.Address})
		}
		// Of several that show different ones, one that is not wanted is told: not all of them serve what is.
		if provable(one.at) && (leaf == nil || mtls.Serial(leaf) == have.Serial) {
			leaf = one.seen.Leaf
		}
	}
	w.tell(func(s *Status) {
		s.Listening = listening
		there := slices.ContainsFunc(seen, func(one sighting) bool { return provable(one.at) })
		switch {
		case leaf == nil && there: // what was seen before is not served
			s.Serial, s.NotAfter, s.Since = "", time.Time{}, time.Time{}
		case leaf != nil && mtls.Serial(leaf) != s.Serial:
			s.Serial, s.NotAfter, s.Since = mtls.Serial(leaf), leaf.NotAfter, time.Now()
		case leaf == nil && s.Serial != have.Serial && len(s.Chain) > 0:
			s.Serial, s.NotAfter, s.Since = have.Serial, s.Chain[0].NotAfter, time.Now()
		}
	})
}

// inForce notes for the status which generation is in force.
func (w *Watcher) inForce(d *credential.Directory, n uint64, have Made) {
	dir := d.Path(n)
	chain, roots := certificates(filepath.Join(dir, credential.CertFile)), certificates(filepath.Join(dir, credential.BundleFile))
	w.tell(func(s *Status) {
		s.Generation, s.Version, s.Bundle, s.Chain, s.Roots = n, have.Version, have.Bundle, chain, roots
	})
}

// certificates reads a file that a generation has. What cannot be read is not shown.
func certificates(path string) []*x509.Certificate {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var all []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil && block.Type == "CERTIFICATE" {
			all = append(all, cert)
		}
	}
	return all
}
