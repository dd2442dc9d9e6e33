package observe

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// clockAllowance is by how much a leaf's NotBefore may lie before its issue; it is not part of the ttl.
const clockAllowance = 5 * time.Minute

// judge compares what was seen of a target with what is declared for it.
func (o *Observer) judge(t *Target, f *facts) Observation {
	seen := Observation{Workload: t.Workload.Name, Instance: t.Instance, Endpoint: t.Inbound.Name, Address: t.Address, Accepted: []string{}, Refused: []string{}}
	if down := f.unreachable(); down != "" {
		seen.Checks = []Check{{CheckReachable, "accepts connections", down, Deviates}}
		return seen
	}
	seen.Checks = []Check{{CheckReachable, "accepts connections", "accepts connections", Pass}}
	for i, v := range versions {
		if f.version[i].agreed != nil {
			seen.Accepted = append(seen.Accepted, versionName(v))
		} else {
			seen.Refused = append(seen.Refused, versionName(v))
		}
		seen.Checks = append(seen.Checks, o.judgeVersion(t, v, f.version[i]))
	}
	if agreed, _ := f.newest(); agreed != nil {
		seen.Cipher, seen.Group = tls.CipherSuiteName(agreed.CipherSuite), groupName(agreed.CurveID)
		seen.describe(agreed.PeerCertificates)
		if t.Inbound.TLS != mesh.Off {
			seen.Checks = append(seen.Checks, o.judgeCertificate(t, f, agreed.PeerCertificates)...)
		}
	}
	seen.Checks = append(seen.Checks, o.judgeClients(t, f)...)
	for i, closed := range t.Closed {
		check := Check{closed.Check, "nobody answers at " + closed.Address, "nobody answers", Pass}
		if f.closed[i].ending != unreachable {
			check.Observed, check.Result = "accepts connections", Deviates
		}
		seen.Checks = append(seen.Checks, check)
	}
	return seen
}

// unreachable tells that no connection came about at all, and why.
func (f *facts) unreachable() string {
	for _, out := range f.version {
		if out.ending != unreachable {
			return ""
		}
	}
	return f.version[len(versions)-1].how
}

// describe takes down the chain that was presented.
func (seen *Observation) describe(chain []*x509.Certificate) {
	leaf := chain[0]
	if peer, err := id.FromCertificate(leaf); err == nil {
		seen.Identity = peer.String()
	}
	seen.Serial, seen.NotBefore, seen.NotAfter = mtls.Serial(leaf), leaf.NotBefore.UTC(), leaf.NotAfter.UTC()
	for _, cert := range chain {
		seen.Chain = append(seen.Chain, cert.Subject.String())
	}
}

// names of the checks of versions, by versions.
var versionChecks = map[uint16]string{
	tls.VersionTLS10: CheckTLS10, tls.VersionTLS11: CheckTLS11, tls.VersionTLS12: CheckTLS12, tls.VersionTLS13: CheckTLS13,
}

// judgeVersion compares whether a version is accepted.
func (o *Observer) judgeVersion(t *Target, v uint16, out *outcome) Check {
	off := t.Inbound.TLS == mesh.Off
	lowest := uint16(tls.VersionTLS12)
	if t.Inbound.MinTLS == mesh.TLS13 {
		lowest = tls.VersionTLS13
	}
	check := Check{Name: versionChecks[v], Expected: "refused", Observed: out.how, Result: Pass}
	if out.agreed != nil {
		check.Observed = "accepted"
	} else if out.ending == refused {
		check.Observed = "refused (" + out.how + ")"
	}
	switch {
	case off && out.agreed != nil && t.Inbound.Protocol == mesh.TCP && o.trust(out.agreed.PeerCertificates, x509.ExtKeyUsageServerAuth) != nil:
		check.Observed = "accepted by the application itself: the certificate is not of the mesh"
	case off:
		check.Result = verdict(out.agreed == nil)
	case v >= lowest:
		check.Expected = "accepted"
		check.Result = verdict(out.agreed != nil)
	default:
		check.Result = verdict(out.agreed == nil && out.ending == refused)
	}
	return check
}

// judgeCertificate compares the presented chain with the declared one.
func (o *Observer) judgeCertificate(t *Target, f *facts, chain []*x509.Certificate) []Check {
	leaf, now := chain[0], o.now()
	expiry := Check{CheckExpiry, "valid now", "valid until " + leaf.NotAfter.UTC().Format(time.RFC3339), verdict(!now.After(leaf.NotAfter) && !now.Before(leaf.NotBefore))}
	if now.Before(leaf.NotBefore) {
		expiry.Observed = "not valid before " + leaf.NotBefore.UTC().Format(time.RFC3339)
	}
	if t.Inbound.Certificate != nil {
		return []Check{expiry, t.judgeConfigured(leaf)}
	}
	trust := Check{CheckTrust, "a chain to the trust bundle", "a chain to the trust bundle", Pass}
	if err := o.trust(chain, x509.ExtKeyUsageServerAuth); err != nil {
		trust.Observed, trust.Result = plain(err), Deviates
	}
	identity := Check{Name: CheckIdentity, Expected: t.Workload.Identity.String()}
	if peer, err := id.FromCertificate(leaf); err != nil {
		identity.Observed, identity.Result = err.Error(), Deviates
	} else {
		identity.Observed, identity.Result = peer.String(), verdict(peer == t.Workload.Identity)
	}
	declared, presented := sorted(t.Certificate.DNSNames), sorted(leaf.DNSNames)
	ttl := time.Duration(t.Certificate.TTL)
	return []Check{
		trust, identity, expiry,
		{CheckNames, strings.Join(declared, " "), strings.Join(presented, " "), verdict(slices.Equal(declared, presented))},
		{CheckKey, string(t.Certificate.Key), keyType(leaf), verdict(keyType(leaf) == string(t.Certificate.Key))},
		{
			CheckLifetime, "at most " + ttl.String(), max(leaf.NotAfter.Sub(leaf.NotBefore)-clockAllowance, 0).String(),
			verdict(leaf.NotAfter.Sub(leaf.NotBefore) <= ttl+clockAllowance+time.Second),
		},
		{CheckSerial, cmp.Or(f.serial, "none") + " as reported", mtls.Serial(leaf), verdict(f.serial == mtls.Serial(leaf))},
	}
}

// judgeConfigured compares a gateway's certificate with that of the configured file.
func (t *Target) judgeConfigured(leaf *x509.Certificate) Check {
	if t.Public == nil {
		return Check{CheckConfigured, "the certificate of " + t.Inbound.Certificate.Cert, t.PublicProblem, Skipped}
	}
	return Check{CheckConfigured, "the certificate of " + t.Inbound.Certificate.Cert + ", serial " + mtls.Serial(t.Public), "serial " + mtls.Serial(leaf), verdict(t.Public.Equal(leaf))}
}

// trust verifies a chain against the bundle. Expiry is another check: here the time is one at which
// the leaf is valid.
func (o *Observer) trust(chain []*x509.Certificate, usage x509.ExtKeyUsage) error {
	options := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: o.now(), KeyUsages: []x509.ExtKeyUsage{usage}}
	for _, root := range o.config.Roots {
		options.Roots.AddCert(root)
	}
	for _, issuer := range chain[1:] {
		options.Intermediates.AddCert(issuer)
	}
	if options.CurrentTime.After(chain[0].NotAfter) {
		options.CurrentTime = chain[0].NotAfter
	}
	_, err := chain[0].Verify(options)
	return err
}

// judgeClients compares who is let in.
func (o *Observer) judgeClients(t *Target, f *facts) []Check {
	plain := judgeClient(t, CheckPlaintext, t.Inbound.TLS != mesh.Strict, f.plain)
	if t.Inbound.TLS == mesh.Off {
		return []Check{plain}
	}
	checks := []Check{judgeVersions(f.weak, CheckWeakCiphers)}
	agreed, i := f.newest()
	if i < 0 {
		return append(checks, plain)
	}
	checks = append(checks, judgeGroups(t, agreed, &f.groups))
	auth := t.Inbound.ClientAuth
	asks := Check{CheckAsksClient, "asked for", "not asked for", Pass}
	if auth == mesh.None {
		asks.Expected = "not asked for"
	}
	asked := false
	for _, out := range f.none {
		asked = asked || out != nil && out.asked
	}
	if asked {
		asks.Observed = "asked for"
	}
	asks.Result = verdict(asks.Observed == asks.Expected)
	checks = append(checks, asks,
		worst(t, CheckNoCertificate, auth != mesh.Require, &f.none),
		worst(t, CheckStranger, auth == mesh.None, &f.stranger))
	if o.config.Expired == nil {
		checks = append(checks, Check{CheckExpired, "refused", "there was no expired certificate to try", Skipped})
	} else {
		checks = append(checks, worst(t, CheckExpired, auth == mesh.None, &f.expired))
	}
	checks = append(checks, plain)
	if auth != mesh.None {
		checks = append(checks, judgePolicy(t, &f.probe))
	}
	return checks
}

// judgeVersions judges a handshake that has to fail.
func judgeVersions(out *outcome, name string) Check {
	if out.agreed != nil {
		return Check{name, "refused", "accepted: " + tls.CipherSuiteName(out.agreed.CipherSuite), Deviates}
	}
	return Check{name, "refused", how(out), verdict(out.ending == refused)}
}

// worst judges a client over all versions: the first that deviates speaks for them.
func worst(t *Target, name string, letIn bool, all *perVersion) Check {
	var first *Check
	for i, out := range all {
		if out == nil {
			continue
		}
		check := judgeClient(t, name, letIn, out)
		if check.Result == Deviates {
			check.Observed = "TLS " + versionName(versions[i]) + ": " + check.Observed
			return check
		}
		if first == nil {
			first = &check
		}
	}
	if first == nil {
		return Check{name, "refused", "no version of TLS was accepted", Skipped}
	}
	return *first
}

// judgeClient judges one anonymous client, or one whose certificate is worth nothing.
func judgeClient(t *Target, name string, letIn bool, out *outcome) Check {
	if !letIn {
		check := Check{name, "refused", how(out), verdict(out.ending == refused && (!out.accepted || t.ClosesLate))}
		if out.accepted && out.ending == refused {
			check.Observed = "let in by TLS, then " + out.how
		}
		return check
	}
	check := Check{name, "let in", how(out), Pass}
	tcp := t.Inbound.Protocol == mesh.TCP
	switch {
	case out.ending == unreachable:
		check.Result = Deviates
	case !t.gateway() && !admitsAnonymous(t.Inbound.Rules):
		check.Expected = "let in by TLS, refused by the policy"
		check.Result = verdict(out.denied || tcp && out.ending == refused && !out.alert)
	case out.ending == refused && !tcp, out.alert:
		// On a tcp port an application may well close upon what it does not understand.
		check.Result = Deviates
	}
	return check
}

// judgePolicy judges the observer's own identity, which is good and in nobody's policy.
func judgePolicy(t *Target, all *perVersion) Check {
	expected := "let in by TLS, refused by the policy"
	observed := ""
	for i, out := range all {
		if out == nil {
			continue
		}
		ok := out.denied
		if t.Inbound.Protocol == mesh.TCP {
			ok = out.ending == refused && !out.alert
		}
		if !ok {
			return Check{CheckPolicy, expected, "TLS " + versionName(versions[i]) + ": " + how(out), Deviates}
		}
		observed = how(out)
	}
	return Check{CheckPolicy, expected, observed, Pass}
}

// admitsAnonymous tells whether a rule names callers without identity.
func admitsAnonymous(rules []mesh.Rule) bool {
	return slices.ContainsFunc(rules, func(r mesh.Rule) bool { return slices.Contains(r.From, mesh.FromAnonymous) })
}

// how says how a connection ended, for people.
func how(out *outcome) string {
	switch out.ending {
	case unreachable:
		return "unreachable: " + out.how
	case refused:
		return "refused (" + out.how + ")"
	default:
		return out.how
	}
}

func verdict(ok bool) Result {
	if ok {
		return Pass
	}
	return Deviates
}

func sorted(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return s
}

// keyType names a key as a specification does.
func keyType(cert *x509.Certificate) string {
	switch key := cert.PublicKey.(type) {
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256():
			return string(mesh.ECDSAP256)
		case elliptic.P384():
			return string(mesh.ECDSAP384)
		}
		return "ecdsa " + key.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("rsa-%d", key.Size()*8)
	case ed25519.PublicKey:
		return string(mesh.Ed25519)
	default:
		return cert.PublicKeyAlgorithm.String()
	}
}
