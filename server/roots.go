package server

import (
	"context"
	"crypto"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/durable"
	"countersign.dev/journal"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// Sentinel errors of a change of the CA's root.
var (
	errBlocked = errors.New("somebody would be cut off")
	errRootKey = errors.New("the root's key")
)

// How often the CA's own affairs are looked after.
const (
	tendInterval = time.Minute
	issuerRetry  = time.Hour // after an issuing CA could not be renewed
	rootWarning  = 365 * 24 * time.Hour
	probeReserve = time.Minute // that a probe's certificate has to live on to be used again
)

// Who takes a step, for the journal.
const (
	byServer = "server"
	byAdmin  = "administrator"
)

// trust is what everybody is told to trust, and who signs. It is not changed after it was made.
type trust struct {
	bundle *mtls.Bundle
	pem    string // the active root first
	issuer string // the subject key identifier of the issuing CA that signs, hex
}

// word tells one trust from another.
func (t *trust) word() string { return t.pem + t.issuer }

// rotation is the server's part in changes of the CA.
type rotation struct {
	mu sync.Mutex // one step, or one look at who stands in its way, at a time

	probe      tls.Certificate // guarded by mu: what endpoints are looked at with
	probeOf    string          // guarded by mu: the hierarchy that it is of
	tended     time.Time       // guarded by mu: when the CA was last looked after
	issuerNext time.Time       // guarded by mu: before then the issuing CA is not tried again

	failed atomic.Pointer[string] // why the issuing CA could not be renewed
}

// renewTrust takes down what the CA's hierarchies make of the trust.
func (s *Server) renewTrust() (*trust, error) {
	text := s.ca.BundlePEM()
	bundle, err := mtls.ParseBundle(s.ca.TrustDomain(), text)
	if err != nil {
		return nil, err
	}
	t := &trust{bundle: bundle, pem: string(text), issuer: hex.EncodeToString(s.ca.Issuer().SubjectKeyId)}
	s.trust.Store(t)
	return t, nil
}

// bindStore binds the database to the CA's active root.
func (s *Server) bindStore(ctx context.Context) error {
	var pins []string
	for _, h := range s.ca.Hierarchies() {
		pins = append(pins, h.Pin())
	}
	return s.store.bind(ctx, pins)
}

// shownHierarchies are hierarchies as an administrator is told them.
func shownHierarchies(all []ca.Hierarchy) []api.Hierarchy {
	var shown []api.Hierarchy
	for _, h := range all {
		shown = append(shown, api.Hierarchy{
			ID: h.ID, State: string(h.State), Since: h.Since, Pin: h.Pin(),
			Root: encodeCertificate(h.Root), Issuer: encodeCertificate(h.Issuer),
		})
	}
	return shown
}

// nextStep is the step that a change of the root comes to next; empty when there is no change.
func nextStep(all []ca.Hierarchy) string {
	for _, h := range all {
		switch {
		case h.State == ca.Next:
			return api.RotateActivate
		case h.State == ca.Retiring && !h.SameRoot(all[0]):
			return api.RotateFinish
		}
	}
	return ""
}

// rotationHandler shows the change of the root, or takes it a step further.
func (s *Server) rotationHandler() http.Handler {
	show := endpoint(s, http.MethodGet, 0, s.showRotation)
	step := endpoint(s, http.MethodPost, maxBody, s.rotate)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			show.ServeHTTP(w, r)
			return
		}
		step.ServeHTTP(w, r)
	})
}

func (s *Server) showRotation(r *http.Request, _ none) (*api.Rotation, error) {
	shown := s.shownRotation()
	if shown.Next == "" || r.URL.Query().Get("check") != "true" {
		return shown, nil
	}
	s.rotation.mu.Lock()
	defer s.rotation.mu.Unlock()
	blockers, err := s.blockers(r.Context(), shown.Next)
	if err != nil {
		return nil, err
	}
	shown.Checked, shown.Blockers = true, blockers
	return shown, nil
}

// rotateFacts are what the journal records of a refused step.
type rotateFacts struct {
	Step     string   `json:"step"`
	Blockers []string `json:"blockers,omitempty"`
	Code     string   `json:"code"`
	Reason   string   `json:"reason"`
}

// rotate takes one step in the change of the root.
func (s *Server) rotate(r *http.Request, request api.RotationRequest) (*api.Rotation, error) {
	s.rotation.mu.Lock()
	defer s.rotation.mu.Unlock()
	if err := s.step(r.Context(), request); err != nil {
		ctx, cancel := s.toTheEnd(r.Context())
		defer cancel()
		return nil, s.recordAdminRefusal(ctx, journal.CARotateRefused, err, func(code, reason string) any {
			facts := rotateFacts{Step: cut(request.Step, maxAdmin), Code: code, Reason: reason}
			if d, ok := errors.AsType[detailed](err); ok {
				facts.Blockers = boundedLines(d.lines)
			}
			return facts
		})
	}
	return s.shownRotation(), nil
}

// shownRotation is how far the change of the root is, as far as nobody has to be looked at.
func (s *Server) shownRotation() *api.Rotation {
	all := s.ca.Hierarchies()
	shown := &api.Rotation{Roots: shownHierarchies(all), Next: nextStep(all), Blockers: []api.Blocker{}, Problem: s.caProblem()}
	want := s.trust.Load().bundle.Digest()
	for _, m := range s.registry.members() {
		if m.connected && m.report.Bundle != "" && m.report.Bundle != want {
			shown.Lagging = append(shown.Lagging, m.blocker("it has not taken in the trust bundle of this moment yet"))
		}
	}
	return shown
}

func boundedLines(lines []string) []string {
	var bounded []string
	for _, line := range lines[:min(len(lines), maxDifference)] {
		bounded = append(bounded, cut(line, maxDifferenceLine))
	}
	return bounded
}

// step does what a request says. The look at who stands in the way ends when the client goes away; what has
// begun to take effect is brought to its end. The caller holds rotation.mu.
func (s *Server) step(asking context.Context, request api.RotationRequest) error {
	if request.Force != "" && request.Force != api.CutOff {
		return fmt.Errorf("%w: force is the word %q or nothing, not %q", errBadRequest, api.CutOff, cut(request.Force, maxAdmin))
	}
	note := ca.Note{By: byAdmin}
	if request.Step == api.RotateActivate || request.Step == api.RotateFinish {
		if err := s.gate(asking, request, &note); err != nil {
			return err
		}
	}
	ctx, cancel := s.toTheEnd(asking)
	defer cancel()
	err := s.take(ctx, request, note)
	if err != nil && !s.trustMoved() {
		return err
	}
	return errors.Join(err, s.hierarchiesChanged(ctx, request.Step))
}

// trustMoved tells whether the CA is ahead of what the server tells: a step may fail after it has taken effect.
func (s *Server) trustMoved() bool {
	told := s.trust.Load()
	return told.pem != string(s.ca.BundlePEM()) || told.issuer != hex.EncodeToString(s.ca.Issuer().SubjectKeyId)
}

// take lets the CA take a step that nothing stands in the way of.
func (s *Server) take(ctx context.Context, request api.RotationRequest, note ca.Note) error {
	switch request.Step {
	case api.RotateStart:
		cfg := ca.RootConfig{KeyType: request.Key, RootLife: time.Duration(request.RootLife), IssuerLife: time.Duration(request.IssuerLife)}
		if err := checkRoot(cfg); err != nil {
			return err
		}
		if _, err := s.ca.StartRoot(ctx, s.journal, cfg, note); errors.Is(err, ca.ErrLife) {
			return fmt.Errorf("%w: %w", errBadRequest, err)
		} else if err != nil {
			return err
		}
	case api.RotateCancel:
		if err := s.ca.CancelRoot(ctx, s.journal, note); err != nil {
			return err
		}
	case api.RotateActivate, api.RotateFinish:
		if err := s.bindStore(ctx); err != nil { // to a root that is there afterwards, too
			return err
		}
		act := s.ca.Activate
		if request.Step == api.RotateFinish {
			act = s.ca.FinishRoot
		}
		if err := act(ctx, s.journal, note); err != nil {
			return err
		}
	case api.RotateIssuer:
		if err := s.renewIssuer(ctx, request, note); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%w: %q is no step; say %s, %s, %s, %s or %s", errBadRequest, cut(request.Step, maxAdmin),
			api.RotateStart, api.RotateActivate, api.RotateFinish, api.RotateCancel, api.RotateIssuer)
	}
	return nil
}

// checkRoot refuses what no root is made of.
func checkRoot(cfg ca.RootConfig) error {
	switch cfg.KeyType {
	case "", mesh.ECDSAP256, mesh.ECDSAP384, mesh.RSA3072, mesh.RSA4096, mesh.Ed25519:
	default:
		return fmt.Errorf("%w: a CA's key is not of the type %q", errBadRequest, cut(string(cfg.KeyType), maxAdmin))
	}
	for _, life := range []time.Duration{cfg.RootLife, cfg.IssuerLife} {
		if life < 0 || life != 0 && life < time.Minute {
			return fmt.Errorf("%w: a CA does not live for %s", errBadRequest, life)
		}
	}
	if cfg.RootLife != 0 && cfg.IssuerLife > cfg.RootLife {
		return fmt.Errorf("%w: the issuing CA would live %s, longer than the root (%s)", errBadRequest, cfg.IssuerLife, cfg.RootLife)
	}
	return nil
}

// gate refuses a step that somebody stands in the way of, unless the administrator has said the word:
// then it notes who they are.
func (s *Server) gate(ctx context.Context, request api.RotationRequest, note *ca.Note) error {
	if next := nextStep(s.ca.Hierarchies()); next != request.Step {
		return fmt.Errorf("%w as far as that: %s", ca.ErrNotRotating, stepAdvice(next))
	}
	blockers, err := s.blockers(ctx, request.Step)
	var lines []string
	for _, b := range blockers {
		lines = append(lines, b.String())
	}
	switch {
	case request.Force != "":
		note.Forced = request.Force
		if err != nil {
			lines = append(lines, "it could not be found out who else: "+err.Error())
		}
		note.Blockers = boundedLines(lines)
		return nil
	case err != nil:
		return err
	case len(lines) == 0:
		return nil
	case request.Step == api.RotateActivate:
		return detailed{fmt.Errorf("%w: not everybody has been seen to accept the next root; mend that and repeat the step", errBlocked), lines}
	default:
		return detailed{fmt.Errorf("%w: the root of before is still needed; mend that and repeat the step", errBlocked), lines}
	}
}

func stepAdvice(next string) string {
	if next == "" {
		return "`countersign ca rotate start` begins it"
	}
	return "`countersign ca rotate " + next + "` comes first"
}

// hierarchiesChanged puts in force what the CA has become: the server's own certificate first, so that
// whoever connects because of the news finds it.
func (s *Server) hierarchiesChanged(ctx context.Context, step string) error {
	trusted, err := s.renewTrust()
	if err != nil {
		return err
	}
	s.log.InfoContext(ctx, "the hierarchies of the CA have changed", "step", step, "pin", s.ca.Pin(), "roots", len(trusted.bundle.Roots()))
	s.tendLeaf(ctx)
	if err := s.bindStore(ctx); err != nil {
		s.log.ErrorContext(ctx, "cannot note the root in the database; the next start does it", "error", err)
	}
	durable.Step("server.rotate.changed")
	// Whoever learns of a root or of an issuing CA has its list, too.
	if err := s.refreshCRLs(ctx); err != nil {
		s.log.ErrorContext(ctx, "not all is well with the revocation lists", "error", err)
	}
	s.registry.retrust(ctx, trusted.word())
	if err := s.ca.Settle(); err != nil {
		s.log.ErrorContext(ctx, "cannot bring the CA's files up to date; it is tried again", "error", err)
	}
	return nil
}

// tendLeaf renews the server's own certificate when another issuing CA than its own signs now. The caller
// holds rotation.mu.
func (s *Server) tendLeaf(ctx context.Context) {
	active := s.ca.Hierarchies()[0]
	if active.Signed(s.leaf.held.Load().Certificate.Leaf) {
		return
	}
	if err := s.leaf.renew(ctx); err != nil {
		s.log.ErrorContext(ctx, "cannot renew the server's own certificate; it is tried again", "error", err)
	}
}

// tendCA looks after what time and failures ask for: a certificate of the server's own that is of an
// issuing CA of before, an issuing CA that nears its end, one that nothing needs any more.
func (s *Server) tendCA(ctx context.Context) {
	if !s.rotation.mu.TryLock() {
		return // a step is being taken
	}
	defer s.rotation.mu.Unlock()
	now := s.now()
	if now.Sub(s.rotation.tended).Abs() < tendInterval {
		return
	}
	s.rotation.tended = now
	if err := s.ca.Settle(); err != nil {
		s.log.ErrorContext(ctx, "cannot bring the CA's files up to date; it is tried again", "error", err)
	}
	s.tendLeaf(ctx)
	if s.ca.IssuerDue(now, s.registry.longestTTL()) && s.ca.RootKeyAtHand() && !now.Before(s.rotation.issuerNext) {
		s.rotation.issuerNext = now.Add(issuerRetry)
		err := s.renewIssuer(ctx, api.RotationRequest{}, ca.Note{By: byServer})
		if err == nil || s.trustMoved() {
			err = errors.Join(err, s.hierarchiesChanged(ctx, api.RotateIssuer))
		}
		if err != nil {
			s.log.ErrorContext(ctx, "cannot renew the issuing CA; it is tried again in an hour", "error", err)
		}
	}
	if err := s.dropIssuers(ctx); err != nil {
		s.log.ErrorContext(ctx, "cannot remove an issuing CA that nothing needs; it is tried again", "error", err)
	}
}

// renewIssuer gives the active root another issuing CA.
func (s *Server) renewIssuer(ctx context.Context, request api.RotationRequest, note ca.Note) error {
	var key crypto.Signer
	if request.RootKeyFile != "" {
		var err error
		if key, err = s.ca.ReadKeyFile(request.RootKeyFile); err != nil {
			return fmt.Errorf("%w: %w", errRootKey, err)
		}
	} else if !s.ca.RootKeyAtHand() {
		return fmt.Errorf("%w is not in the state; give it with --root-key FILE", errRootKey)
	}
	_, err := s.ca.RenewIssuer(ctx, s.journal, key, time.Duration(request.IssuerLife), note)
	if err != nil {
		why := err.Error()
		s.rotation.failed.Store(&why)
		return err
	}
	s.rotation.failed.Store(nil)
	if request.RootKeyFile != "" { // while it is at hand: its list has to last as long as the new issuing CA
		if err := s.renewRootCRL(ctx, request.RootKeyFile); err != nil {
			s.log.ErrorContext(ctx, "cannot make the root's revocation list", "error", err)
		}
	}
	return nil
}

// dropIssuers removes issuing CAs of the active root whose last certificates have ended.
func (s *Server) dropIssuers(ctx context.Context) error {
	all := s.ca.Hierarchies()
	if len(all) == 1 {
		return nil
	}
	living, err := s.store.unexpired(ctx, s.now())
	if err != nil {
		return err
	}
	return s.ca.DropIssuers(ctx, s.journal, func(h ca.Hierarchy) bool {
		for _, c := range living {
			if h.Signed(c.cert) {
				return true
			}
		}
		return false
	}, ca.Note{By: byServer})
}

// caProblem is what an administrator has to do about the CA, empty when there is nothing.
func (s *Server) caProblem() string {
	now := s.now()
	root, issuer := s.ca.Root(), s.ca.Issuer()
	due := s.ca.IssuerDue(now, s.registry.longestTTL())
	switch {
	case now.Add(min(rootWarning, root.NotAfter.Sub(root.NotBefore)/5)).After(root.NotAfter) && nextStep(s.ca.Hierarchies()) == "":
		return fmt.Sprintf("the root ends on %s; `countersign ca rotate run` replaces it", root.NotAfter.UTC().Format(time.RFC3339))
	case !due:
		return s.crlProblem()
	case !s.ca.RootKeyAtHand():
		return fmt.Sprintf("the issuing CA ends on %s, and no certificate outlives it; its root's key is not in the state: `countersign ca rotate issuer --root-key FILE` renews it",
			issuer.NotAfter.UTC().Format(time.RFC3339))
	default:
		why := "it is about to be renewed"
		if failed := s.rotation.failed.Load(); failed != nil {
			why = *failed
		}
		return fmt.Sprintf("the issuing CA ends on %s, and no certificate outlives it: %s", issuer.NotAfter.UTC().Format(time.RFC3339), why)
	}
}
