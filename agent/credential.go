package agent

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"countersign.dev/api"
	"countersign.dev/durable"
	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// Sentinel errors about an enrolment.
var (
	// ErrToken says that the token file cannot be read or holds no token.
	ErrToken = errors.New("join token")
	// ErrRefused says that the server will not enrol this workload with this token, however often it
	// is asked.
	ErrRefused = errors.New("the server refused the enrolment")
	// ErrCredentials says that what the server issued is not what was asked for.
	ErrCredentials = errors.New("the server's answer holds no usable certificate")
)

const (
	// maxToken is the greatest size of a token file in bytes.
	maxToken = 4 << 10
	// firstKey is the type of key to enrol with before a Plan has said which is wanted.
	firstKey = mesh.ECDSAP256
)

// readToken reads the token file, which may have been replaced since the last time.
func readToken(path string) (string, error) {
	const advice = "'countersign token create SERVICE' at the server makes one"
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("%w: %w; %s", ErrToken, err, advice)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrToken, err)
	}
	token := strings.TrimSpace(string(data))
	switch {
	case token == "":
		return "", fmt.Errorf("%w: %s is empty; %s", ErrToken, path, advice)
	case len(data) > maxToken || strings.ContainsFunc(token, notTokenRune):
		return "", fmt.Errorf("%w: %s does not hold one line with a token and nothing else; %s", ErrToken, path, advice)
	}
	return token, nil
}

func notTokenRune(r rune) bool { return r <= ' ' || r >= 0x7f }

// enrollFirst tries to enrol until it works, and gives up when trying again cannot help.
func (a *Agent) enrollFirst(ctx context.Context) error {
	tries := newBackoff(500*time.Millisecond, 15*time.Second)
	for {
		err := a.enroll(ctx)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case permanent(err):
			return errors.Join(a.damage, err)
		}
		delay := tries.next()
		a.log.WarnContext(ctx, "cannot enrol yet; trying again", "server", a.cfg.Server.String(), "error", err, "retryIn", delay.Round(time.Millisecond))
		a.setProblem(problemCertificate, err.Error())
		if !pause(ctx, delay) {
			return ctx.Err()
		}
	}
}

// permanent tells whether the same enrolment, tried again, would fail again.
func permanent(err error) bool {
	return errors.Is(err, ErrPin) || errors.Is(err, ErrNotServer) || errors.Is(err, ErrToken) ||
		errors.Is(err, ErrRefused) || errors.Is(err, ErrOtherState)
}

// enroll asks once for a certificate with the join token.
func (a *Agent) enroll(ctx context.Context) error {
	token, err := readToken(a.cfg.TokenFile)
	if err != nil {
		return err
	}
	want := a.wanted()
	a.saving.Lock()
	key, err := a.state.pendingKey(want.keyType())
	a.saving.Unlock()
	if err != nil {
		return err
	}
	csr, err := mtls.NewCSR(key)
	if err != nil {
		return err
	}
	durable.Step("agent.enroll.before")
	credentials, chain, err := a.client.enroll(ctx, api.EnrollRequest{Token: token, Instance: a.cfg.Instance, CSR: string(csr)})
	durable.Step("agent.enroll.after")
	if code(err) == api.CodeRevoked { // this key gets nothing any more; the next try has another
		a.saving.Lock()
		err = errors.Join(err, a.state.dropPending())
		a.saving.Unlock()
	}
	if err != nil {
		return a.explainRefusal(err)
	}
	if err := a.accept(credentials, key, chain, want); err != nil {
		return err
	}
	a.log.InfoContext(ctx, "enrolled", "identity", credentials.Identity.String(), "instance", a.cfg.Instance,
		"serial", a.Status().Serial, "notAfter", a.Status().NotAfter)
	return nil
}

// explainRefusal says what to do about a refusal that trying again does not cure.
func (a *Agent) explainRefusal(err error) error {
	switch code(err) {
	case api.CodeUnknownToken, api.CodeUsedToken, api.CodeExpiredToken, api.CodeForbidden, api.CodeUnauthorized:
		return fmt.Errorf("%w: %w (%s); a new token from 'countersign token create SERVICE' at the server goes into %s",
			ErrRefused, err, code(err), a.cfg.TokenFile)
	case api.CodeNotDeclared:
		return fmt.Errorf("%w: %w; declare the workload in the specification and apply it ('countersign mesh apply'), or use the token of a declared one in %s",
			ErrRefused, err, a.cfg.TokenFile)
	case api.CodeBadRequest, api.CodeWeakKey, api.CodeNameMismatch, api.CodeNotFound, api.CodeTooLarge:
		return fmt.Errorf("%w: %w (%s); do the versions of countersign here and at the server fit together?", ErrRefused, err, code(err))
	default:
		return err
	}
}

// renew asks once for the next certificate, with a fresh key.
func (a *Agent) renew(ctx context.Context) error {
	want := a.wanted()
	key, err := mtls.GenerateKey(want.keyType())
	if err != nil {
		return err
	}
	csr, err := mtls.NewCSR(key)
	if err != nil {
		return err
	}
	durable.Step("agent.renew.before")
	credentials, chain, err := a.client.renewCertificate(ctx, api.RenewRequest{Instance: a.cfg.Instance, CSR: string(csr)})
	durable.Step("agent.renew.after")
	if err != nil {
		return err
	}
	if err := a.accept(credentials, key, chain, want); err != nil {
		return err
	}
	a.log.InfoContext(ctx, "renewed the certificate", "identity", credentials.Identity.String(),
		"serial", a.Status().Serial, "notAfter", a.Status().NotAfter)
	return nil
}

// accept checks what the server issued for key and puts it into use. chain is what the server itself
// has shown on that connection, want what the Plan said when the key was made.
func (a *Agent) accept(credentials *api.Credentials, key crypto.Signer, chain []*x509.Certificate, want wanted) error {
	if credentials.ServerTime.IsZero() {
		return fmt.Errorf("%w: it has no serverTime", ErrCredentials)
	}
	certs, err := mtls.ParseCertificates([]byte(credentials.Chain))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCredentials, err)
	}
	a.observe(credentials.ServerTime)

	a.saving.Lock()
	defer a.saving.Unlock()
	old, _ := a.current()
	identity, err := a.newIdentity(credentials, certs, key, chain, old)
	if err != nil {
		return err
	}
	if old != nil && old.identity.ID != identity.ID {
		return fmt.Errorf("%w workload: %s is %s's, and the token in %s is for %s; write a token for the former there, or name an empty directory with --state",
			ErrOtherState, a.state.dir, old.identity.ID, a.cfg.TokenFile, identity.ID)
	}
	var crls *mtls.CRLs
	if old != nil {
		crls = old.crls
	}
	if credentials.CRL != "" { // they may be older than what the watch brought meanwhile: that is no problem
		if newer, _ := a.updatedCRLs(crls, credentials.CRL, identity); newer != nil {
			crls = newer
		}
	}
	identity = a.checked(identity, crls)
	leaf := identity.Certificate.Leaf
	fresh := &held{identity: identity, crls: crls, lease: lease{
		obtained: time.Now(), issued: credentials.ServerTime, notAfter: leaf.NotAfter, jitter: random(),
	}}
	a.install(fresh, time.Duration(credentials.RenewAfter), want)
	return nil
}

// newIdentity checks credentials by the server's clock: this machine's may be off, and that is told
// elsewhere.
func (a *Agent) newIdentity(credentials *api.Credentials, certs []*x509.Certificate, key crypto.Signer,
	chain []*x509.Certificate, old *held,
) (*mtls.Identity, error) {
	roots := []byte(credentials.Bundle)
	if old != nil {
		// Bundles come by the watch, in their order. A renewal's may be older than what the watch
		// brought meanwhile, and is used only when the new certificate needs it.
		if _, err := old.identity.Bundle.Verify(certs, x509.ExtKeyUsageClientAuth, credentials.ServerTime); err == nil {
			roots = old.identity.Bundle.PEM()
		}
	}
	identity, err := mtls.NewIdentity(certs, key, roots)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCredentials, err)
	}
	if _, err := identity.Bundle.Verify(certs, x509.ExtKeyUsageClientAuth, credentials.ServerTime); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCredentials, err)
	}
	if _, err := verifyServer(identity.Bundle, chain, credentials.ServerTime); err != nil {
		return nil, fmt.Errorf("%w: by its bundle the server itself would not be trusted: %w", ErrCredentials, err)
	}
	if kind := identity.ID.Kind(); identity.ID != credentials.Identity || (kind != id.Service && kind != id.Gateway) {
		return nil, fmt.Errorf("%w: it is for %s", ErrCredentials, identity.ID)
	}
	return identity, nil
}

// install puts a certificate into use. When the disk does not take it, it serves from memory all the
// same (the old one would end sooner), and the write is tried again. The caller holds saving.
func (a *Agent) install(fresh *held, renewAfter time.Duration, want wanted) {
	a.save(fresh)
	a.mu.Lock()
	a.held = fresh
	a.everValid, a.refusedOld, a.damage = true, false, nil
	a.soonAt, a.retryAt = time.Time{}, time.Time{}
	a.renewAfter = renewAfter
	a.tried = want
	drop := a.dropWatch
	a.mu.Unlock()
	a.setProblem(problemCertificate, "")
	a.identityChanged(drop)
}

// identityChanged tells everybody who uses the identity. The watch is opened anew, because the server
// knows a connection by the certificate that it was made with.
func (a *Agent) identityChanged(drop context.CancelCauseFunc) {
	a.client.renew()
	if drop != nil {
		drop(errNewIdentity)
	}
	if a.cfg.OnIdentity != nil {
		a.cfg.OnIdentity()
	}
	wake(a.wakeReport)
	wake(a.wakeRenew)
}

// save writes a certificate to the disk. The caller holds saving; fresh is not in use yet.
func (a *Agent) save(fresh *held) {
	err := a.state.saveIdentity(fresh.identity, fresh.crls)
	if err == nil {
		// The key of an enrolment is not needed any more: it is the certificate's, or nobody's.
		err = a.state.dropPending()
	}
	fresh.saved = err == nil
	a.noteSaved(problemDisk, err)
}

func (a *Agent) noteSaved(about problem, err error) {
	if err == nil {
		a.setProblem(about, "")
		return
	}
	a.log.Error("cannot write to the state directory; serving from memory and trying again", "dir", a.cfg.StateDir, "error", err)
	a.setProblem(about, err.Error())
}

// saveAgain writes what a full disk has not taken.
func (a *Agent) saveAgain() {
	a.saving.Lock()
	defer a.saving.Unlock()
	a.mu.Lock()
	have, plan, planSave := a.held, a.inForce, a.planSave
	a.mu.Unlock()
	if have != nil && !have.saved {
		fresh := *have
		a.save(&fresh)
		a.mu.Lock()
		a.held = &fresh
		a.mu.Unlock()
	}
	if planSave {
		a.savePlan(plan)
	}
}

// savePlan keeps the Plan that is in force. The caller holds saving.
func (a *Agent) savePlan(plan *mesh.Plan) {
	err := a.state.savePlan(plan)
	a.noteSaved(problemPlanDisk, err)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.inForce == plan {
		a.planSave = err != nil
	}
}

// takeBundle puts the roots that came with a Plan into use.
func (a *Agent) takeBundle(text string, chain []*x509.Certificate) error {
	a.saving.Lock()
	defer a.saving.Unlock()
	old, err := a.current()
	if err != nil {
		return err
	}
	bundle, err := mtls.ParseBundle(old.identity.ID.TrustDomain(), []byte(text))
	if err != nil {
		return err
	}
	if bundle.Digest() == old.identity.Bundle.Digest() {
		return nil
	}
	now, _ := a.clock.now()
	if _, err := verifyServer(bundle, chain, now); err != nil {
		return fmt.Errorf("by it the server itself would not be trusted: %w", err)
	}
	fresh := *old
	fresh.identity = a.checked(&mtls.Identity{ID: old.identity.ID, Certificate: old.identity.Certificate, Bundle: bundle}, old.crls)
	if _, err := bundle.Verify(parsedChain(old.identity.Certificate), x509.ExtKeyUsageClientAuth, old.lease.issued); err != nil {
		// The root of our own certificate was removed. The removal holds at once; what is on the disk
		// stays a set that fits together until the renewal that is due now.
		a.log.Warn("the root of this certificate is not trusted any more; renewing", "error", err)
		fresh.orphan = true
	} else {
		a.save(&fresh)
	}
	a.log.Info("the trust bundle has changed", "roots", len(bundle.Roots()))
	a.mu.Lock()
	a.held = &fresh
	a.mu.Unlock()
	a.identityChanged(nil)
	return nil
}

// parsedChain is the chain of a certificate that is known to parse.
func parsedChain(certificate tls.Certificate) []*x509.Certificate {
	var chain []*x509.Certificate
	for _, der := range certificate.Certificate {
		if cert, err := x509.ParseCertificate(der); err == nil {
			chain = append(chain, cert)
		}
	}
	return chain
}

// trust is what a server is believed by at this moment.
func (a *Agent) trust() trust {
	t := trust{pin: a.cfg.Pin}
	if have, err := a.current(); err == nil {
		t.bundle, t.crls = have.identity.Bundle, have.crls
	}
	return t
}

// certificate is what this workload shows to the server.
func (a *Agent) certificate() (*tls.Certificate, error) {
	have, err := a.current()
	if err != nil {
		return nil, err
	}
	certificate := have.identity.Certificate
	return &certificate, nil
}

// wanted is what the server says about the certificate: a Plan its key and names, and what comes with it
// the issuing CA that signs now. Two compare with ==. What is empty is not known, and anything fits.
type wanted struct {
	key      mesh.KeyType
	dnsNames string // sorted, one a line
	issuer   string // a key identifier in hex
}

// wantedNow is what the server said last. The caller holds mu.
func (a *Agent) wantedNow() wanted {
	want := wanted{issuer: a.issuer}
	if a.plan != nil {
		want.key, want.dnsNames = a.plan.Certificate.Key, sortedLines(a.plan.Certificate.DNSNames)
	}
	return want
}

// wanted is what the server said last.
func (a *Agent) wanted() wanted {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.wantedNow()
}

func (w wanted) keyType() mesh.KeyType {
	if w.key == "" {
		return firstKey
	}
	return w.key
}

// fits tells whether a certificate is as wanted; before there is a Plan, each is.
func (w wanted) fits(leaf *x509.Certificate) bool {
	return w.fitsPlan(leaf) && w.fitsIssuer(leaf)
}

func (w wanted) fitsPlan(leaf *x509.Certificate) bool {
	planned := wanted{key: w.key, dnsNames: w.dnsNames}
	return planned == wanted{} || planned == wanted{key: keyTypeOf(leaf.PublicKey), dnsNames: sortedLines(leaf.DNSNames)}
}

// fitsIssuer tells whether the issuing CA that signs now has signed a certificate.
func (w wanted) fitsIssuer(leaf *x509.Certificate) bool {
	return w.issuer == "" || w.issuer == hex.EncodeToString(leaf.AuthorityKeyId)
}

func sortedLines(names []string) string {
	sorted := slices.Clone(names)
	slices.Sort(sorted)
	return strings.Join(sorted, "\n")
}

// keyTypeOf names the type of a public key, empty when a mesh has no word for it.
func keyTypeOf(public crypto.PublicKey) mesh.KeyType {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256():
			return mesh.ECDSAP256
		case elliptic.P384():
			return mesh.ECDSAP384
		}
	case *rsa.PublicKey:
		switch key.N.BitLen() {
		case 2048:
			return mesh.RSA2048
		case 3072:
			return mesh.RSA3072
		case 4096:
			return mesh.RSA4096
		}
	case ed25519.PublicKey:
		return mesh.Ed25519
	}
	return ""
}
