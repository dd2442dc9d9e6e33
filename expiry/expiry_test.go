package expiry

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	day        = 24 * time.Hour
	backdating = 5 * time.Minute
	life       = 7 * day
	renewAfter = 5 * day
	apiID      = "spiffe://m.internal/service/api"
)

// noon is a day of which nothing is special.
var noon = time.Date(2027, 3, 14, 12, 0, 0, 0, time.UTC)

// leaf is a certificate of that age.
func leaf(serial string, now time.Time, age time.Duration) Certificate {
	return Certificate{Serial: serial, Identity: apiID, NotBefore: now.Add(-age - backdating), NotAfter: now.Add(life - age)}
}

// served is a pointer to a copy.
func served(c Certificate) *Certificate { return &c }

// healthy is a mesh in which all is well: api gets its certificate from a store and has two listeners.
func healthy(now time.Time) Facts {
	current := leaf("aa01", now, day)
	previous := leaf("aa00", now, 6*day)
	root := CACertificate{
		Subject: "CN=m root", State: Active,
		Certificate: Certificate{Serial: "01", Fingerprint: "f00d", NotBefore: now.Add(-365 * day), NotAfter: now.Add(9 * 365 * day)},
	}
	issuer := CACertificate{
		Subject: "CN=m issuer", State: Active,
		Certificate: Certificate{Serial: "02", Fingerprint: "beef", NotBefore: now.Add(-365 * day), NotAfter: now.Add(2 * 365 * day)},
	}
	server := Certificate{Serial: "03", Identity: "spiffe://m.internal/server/countersign", NotBefore: now.Add(-time.Hour - backdating), NotAfter: now.Add(23 * time.Hour)}
	issued := make(map[string]Issued)
	for _, cert := range []Certificate{current, previous} {
		issued[cert.Serial] = Issued{Serial: cert.Serial, Identity: cert.Identity, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter}
	}
	return Facts{
		Now: now, Backdating: backdating, Issued: issued, Remembered: 30 * day,
		Authority: &Authority{
			Roots: []CACertificate{root}, Issuers: []CACertificate{issuer},
			CRLs: []CRL{{Issuer: "CN=m issuer", ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(23 * time.Hour)}},
		},
		Server: &Server{Address: "10.0.0.1:8443", Served: &server},
		Workloads: []Workload{{
			Name: "api", Identity: apiID, TTL: life, RenewAfter: renewAfter, InstancesKnown: true,
			Stored: &Stored{
				Store: "main", Secret: "m/api",
				Current:  &Version{ID: "v2", Written: now.Add(-day), Certificate: current},
				Previous: &Version{ID: "v1", Written: now.Add(-6 * day), Certificate: previous},
				Bundle:   &Bundle{Secret: "m/bundle", Version: "b1", Roots: []CACertificate{root}},
			},
			Rotation: &Rotation{LastSuccess: now.Add(-day)},
			Instances: []Instance{{
				Name: "api-1", Connected: true, Reported: "aa01", Ends: current.NotAfter, Seen: "aa01",
				Endpoints: []Endpoint{
					{Listener: "0.0.0.0_9080", Address: "10.0.0.2:9080", Served: served(current)},
					{Listener: "0.0.0.0_9090", Address: "10.0.0.2:9090", Served: served(current)},
				},
			}},
		}},
	}
}

// byAgent makes api get its certificate through its agent.
func byAgent(f *Facts) {
	f.Workloads[0].Stored, f.Workloads[0].Rotation = nil, nil
}

// serve makes all listeners of api show a certificate.
func serve(f *Facts, c Certificate) {
	for i := range f.Workloads[0].Instances[0].Endpoints {
		f.Workloads[0].Instances[0].Endpoints[i].Served = served(c)
	}
	f.Workloads[0].Instances[0].Reported, f.Workloads[0].Instances[0].Ends = c.Serial, c.NotAfter
}

// age makes what api has and serves that old.
func age(f *Facts, by time.Duration) {
	cert := leaf("aa01", f.Now, by)
	if f.Workloads[0].Stored != nil {
		f.Workloads[0].Stored.Current.Certificate = cert
		f.Workloads[0].Stored.Current.Written = f.Now.Add(-by)
	}
	if f.Workloads[0].Rotation != nil {
		f.Workloads[0].Rotation.LastSuccess = f.Now.Add(-by)
	}
	f.Issued["aa01"] = Issued{Serial: "aa01", Identity: apiID, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter}
	serve(f, cert)
}

// summary is a finding in a line.
func summary(f Finding) string {
	return strings.Join(strings.Fields(fmt.Sprintf("%s %s %s %s", f.Severity, f.Code, f.Workload, f.Place)), " ")
}

// TestFindings has a case for every way in which the facts can be wrong: exactly these findings, in this order.
func TestFindings(t *testing.T) {
	const (
		store  = "store:main m/api"
		listen = "10.0.0.2:9080 10.0.0.2:9090"
	)
	for name, test := range map[string]struct {
		change func(f *Facts)
		want   []string
		// says are parts of the first finding's words.
		says []string
	}{
		"all is well":             {change: func(*Facts) {}},
		"all is well with agents": {change: byAgent},

		// The four that nobody hears of.
		"a schedule that stopped": {
			change: func(f *Facts) { age(f, renewAfter+8*time.Hour) },
			want:   []string{"warning rotation_overdue api " + store},
			says:   []string{"was due at 2027-03-14T04:00:00Z, 8h0m ago", "nobody has tried it since; the last rotation was tried at 2027-03-09T04:00:00Z", "rotate daemon"},
		},
		"a schedule that stopped, near the end": {
			change: func(f *Facts) { age(f, life-3*time.Hour) },
			want:   []string{"critical expiring api " + store, "critical rotation_overdue api " + store},
			says:   []string{"ends in 3h0m"},
		},
		"a rotation that always fails at once": {
			change: func(f *Facts) {
				age(f, renewAfter+8*time.Hour)
				*f.Workloads[0].Rotation = Rotation{
					LastFailure: noon, LastSuccess: noon.Add(-renewAfter), Failures: 4,
					FailedStep: "issue", LastError: "the CA is down",
				}
			},
			want: []string{"critical rotation_failing api " + store, "warning rotation_overdue api " + store},
			says: []string{"failed 4 times", "at the step issue", "the CA is down"},
		},
		"a rotation that failed once, before it is due": {
			change: func(f *Facts) {
				f.Workloads[0].Rotation.Failures, f.Workloads[0].Rotation.LastFailure = 1, noon
			},
			want: []string{"warning rotation_failing api " + store},
			says: []string{"failed once", "no reason was kept"},
		},
		"a store that was updated while the proxy serves the old one": {
			change: func(f *Facts) {
				serve(f, f.Workloads[0].Stored.Previous.Certificate)
			},
			want: []string{"critical store_ahead_of_endpoint api " + listen, "warning expiring api " + listen},
			says: []string{"it serves aa00", "the store has aa01 since 2027-03-13T12:00:00Z", "countersign init --watch"},
		},
		"a proxy that refused a reload": {
			change: func(f *Facts) {
				old := leaf("aa00", noon, 2*day)
				f.Workloads[0].Stored.Previous.Certificate = old
				serve(f, old)
				f.Workloads[0].Instances[0].Problem = "nginx -t: key values mismatch"
			},
			want: []string{"critical reload_refused api " + listen},
			says: []string{"nginx -t: key values mismatch", "it serves aa00", "the store has aa01"},
		},

		// Rotations.
		"a rotation at work": {
			change: func(f *Facts) {
				old := leaf("aa00", noon, 2*day)
				serve(f, old)
				*f.Workloads[0].Rotation = Rotation{LastSuccess: noon.Add(-7 * day), Step: "deploy", Began: noon.Add(-time.Minute), Holder: "somebody"}
			},
		},
		"a rotation at work on a bundle": {
			change: func(f *Facts) {
				f.Workloads[0].Stored.Bundle.Roots = nil
				f.Workloads[0].Stored.Bundle.Rotation = &Rotation{Step: "deploy", Began: noon, Holder: "somebody"}
			},
		},
		"a rotation that hangs before it has made anything current": {
			change: func(f *Facts) {
				serve(f, leaf("aa00", noon, 2*day))
				*f.Workloads[0].Rotation = Rotation{LastSuccess: noon.Add(-day), Step: "issue", Holder: "somebody"}
			},
			want: []string{"critical store_ahead_of_endpoint api " + listen},
		},
		"a rotation that hangs before its first step": {
			change: func(f *Facts) {
				serve(f, leaf("aa00", noon, 2*day))
				*f.Workloads[0].Rotation = Rotation{LastSuccess: noon.Add(-day), Holder: "somebody"}
			},
			want: []string{"critical store_ahead_of_endpoint api " + listen},
		},
		"a rotation that has issued and not stored yet": {
			change: func(f *Facts) {
				cert := leaf("aa02", noon, time.Hour)
				f.Issued["aa02"] = Issued{Serial: "aa02", Identity: apiID, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter}
				*f.Workloads[0].Rotation = Rotation{LastSuccess: noon.Add(-day), Step: "issue", Holder: "somebody"}
			},
		},
		"a bundle's rotation that hangs before it has made anything current": {
			change: func(f *Facts) {
				f.Workloads[0].Stored.Bundle.Roots = nil
				f.Workloads[0].Stored.Bundle.Rotation = &Rotation{Holder: "somebody"}
			},
			want: []string{"critical bundle_stale store:main m/bundle"},
		},
		"a bundle's rotation that fails": {
			change: func(f *Facts) {
				f.Workloads[0].Stored.Bundle.Rotation = &Rotation{LastSuccess: noon.Add(-day), LastFailure: noon, Failures: 1, LastError: "api still needs it"}
			},
			want: []string{"warning rotation_failing store:main m/bundle"},
			says: []string{"api still needs it"},
		},
		"a rotation that was killed": {
			change: func(f *Facts) {
				*f.Workloads[0].Rotation = Rotation{LastSuccess: noon.Add(-day), Step: "observe", Began: noon.Add(-time.Minute)}
			},
			want: []string{"warning rotation_stuck api " + store},
			says: []string{"a rotation of 2027-03-14T11:59:00Z stands at the step observe, and nobody works on it"},
		},
		"a rotation that was killed before it was begun": {
			change: func(f *Facts) { *f.Workloads[0].Rotation = Rotation{LastSuccess: noon.Add(-day), Step: "issue"} },
			want:   []string{"warning rotation_stuck api " + store},
			says:   []string{"a rotation stands at the step issue"},
		},
		"a rotation that failed in the middle": {
			change: func(f *Facts) {
				*f.Workloads[0].Rotation = Rotation{LastSuccess: noon.Add(-day), LastFailure: noon, Failures: 1, LastError: "nobody could look", Step: "observe", Began: noon.Add(-time.Hour)}
			},
			want: []string{"warning rotation_failing api " + store},
		},
		"a rotation that stands still": {
			change: func(f *Facts) {
				old := leaf("aa00", noon, 2*day)
				serve(f, old)
				*f.Workloads[0].Rotation = Rotation{LastSuccess: noon.Add(-7 * day), Step: "deploy", Began: noon.Add(-time.Hour), Holder: "somebody"}
			},
			want: []string{"critical store_ahead_of_endpoint api " + listen, "critical rotation_stuck api " + store},
		},
		"due, and within the grace": {change: func(f *Facts) { age(f, renewAfter+4*time.Hour) }},
		"never rotated, and overdue": {
			change: func(f *Facts) {
				age(f, renewAfter+8*time.Hour)
				f.Workloads[0].Rotation = nil
			},
			want: []string{"warning rotation_overdue api " + store},
			says: []string{"nobody is known to have tried it"},
		},
		"a rotation that fails from the beginning": {
			change: func(f *Facts) {
				f.Workloads[0].Rotation = &Rotation{LastFailure: noon, Failures: 1, LastError: "no such CA"}
			},
			want: []string{"critical rotation_failing api " + store},
			says: []string{"without one success"},
		},
		"the rotation's own books are unreadable": {
			change: func(f *Facts) { f.Workloads[0].Rotation = &Rotation{Problem: "it is damaged"} },
			want:   []string{"warning rotation_unreadable api " + store},
		},
		"issued and never stored": {
			change: func(f *Facts) {
				cert := leaf("aa02", noon, time.Hour)
				f.Issued["aa02"] = Issued{Serial: "aa02", Identity: apiID, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter}
			},
			want: []string{"warning issued_not_stored api " + store},
			says: []string{"aa02", "aa01"},
		},
		"issued and staged": {
			change: func(f *Facts) {
				cert := leaf("aa02", noon, time.Hour)
				f.Issued["aa02"] = Issued{Serial: "aa02", Identity: apiID, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter}
				f.Workloads[0].Stored.Pending = &Version{ID: "v3", Certificate: cert}
			},
		},
		"a store that went back": {
			change: func(f *Facts) { // the endpoint serves what is newer
				cert := leaf("aa02", noon, time.Hour)
				f.Issued["aa02"] = Issued{Serial: "aa02", Identity: apiID, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter}
				f.Workloads[0].Stored.Previous = &Version{ID: "v3", Certificate: cert}
				serve(f, cert)
			},
			want: []string{"warning endpoint_ahead_of_store api " + listen},
		},
		"a secret that is not there": {
			change: func(f *Facts) {
				f.Workloads[0].Stored.Missing, f.Workloads[0].Stored.Current = true, nil
			},
			want: []string{"critical secret_missing api " + store},
		},
		"a secret that is damaged": {
			change: func(f *Facts) {
				f.Workloads[0].Stored.Code, f.Workloads[0].Stored.Problem = CodeSecretUnreadable, "it is damaged: index"
				f.Workloads[0].Stored.Current = nil
			},
			want: []string{"critical secret_unreadable api " + store},
			says: []string{"it is damaged: index"},
		},

		"a secret that init would refuse": {
			change: func(f *Facts) {
				f.Workloads[0].Stored.Code, f.Workloads[0].Stored.Problem = CodeSecretUnfit, "the key does not belong to the certificate"
			},
			want: []string{"critical secret_unfit api " + store},
		},

		// Agents.
		"an agent that does not renew": {
			change: func(f *Facts) { byAgent(f); age(f, renewAfter+8*time.Hour) },
			want:   []string{"warning rotation_overdue api " + listen},
		},
		"an agent whose renewals fail": {
			change: func(f *Facts) {
				byAgent(f)
				age(f, renewAfter+8*time.Hour)
				f.Workloads[0].Instances[0].Problem = "the server does not answer"
			},
			want: []string{"warning rotation_overdue api " + listen, "warning rotation_failing api " + listen},
		},
		"an agent shortly before the end": {
			change: func(f *Facts) { byAgent(f); age(f, life-time.Hour) },
			want:   []string{"critical expiring api " + listen, "critical rotation_overdue api " + listen},
		},
		"no listener shows the certificate": {
			change: func(f *Facts) {
				byAgent(f)
				age(f, renewAfter+8*time.Hour)
				f.Workloads[0].Instances[0].Endpoints = nil
			},
			want: []string{"warning rotation_overdue api as it reports"},
		},
		"no listener, no report, seen by peers": {
			change: func(f *Facts) {
				byAgent(f)
				age(f, renewAfter+8*time.Hour)
				i := &f.Workloads[0].Instances[0]
				i.Endpoints, i.Reported, i.Ends = nil, "", time.Time{}
			},
			want: []string{"warning rotation_overdue api as its peers saw"},
		},
		"a problem that has nothing to do with it": {
			change: func(f *Facts) { f.Workloads[0].Instances[0].Problem = "the disk is full" },
			want:   []string{"warning instance_problem api"},
			says:   []string{"the disk is full"},
		},
		"an instance that was lost": {
			change: func(f *Facts) { f.Workloads[0].Instances[0].Connected = false },
			want:   []string{"warning instance_lost api"},
		},
		"nobody runs": {
			change: func(f *Facts) { f.Workloads[0].Instances = nil },
			want:   []string{"warning no_instance api"},
		},
		"nobody could be asked who runs": {
			change: func(f *Facts) { f.Workloads[0].Instances, f.Workloads[0].InstancesKnown = nil, false },
		},

		// Certificates.
		"expired in the store and served": {
			change: func(f *Facts) { age(f, life+time.Hour) },
			want:   []string{"critical expired api " + store, "critical rotation_overdue api " + store},
			says:   []string{"has expired at 2027-03-14T11:00:00Z, 1h0m ago"},
		},
		"the last second": {
			change: func(f *Facts) { age(f, life) },
			want:   []string{"critical expired api " + store, "critical rotation_overdue api " + store},
		},
		"an issuer in the chain that ends first": {
			change: func(f *Facts) {
				f.Workloads[0].Stored.Current.NotAfter, f.Workloads[0].Stored.Current.Short = noon.Add(-time.Minute), "CN=old issuer"
			},
			want: []string{"critical expired api " + store, "critical rotation_overdue api " + store},
			says: []string{"CN=old issuer ends before the leaf does"},
		},
		"not yet valid": {
			change: func(f *Facts) { age(f, -time.Hour); f.Issued = nil },
			want:   []string{"critical not_yet_valid api " + store, "critical not_yet_valid api " + listen},
		},
		"served and never issued": {
			change: func(f *Facts) { serve(f, leaf("ee01", noon, day)) },
			want:   []string{"critical unknown_serial api " + listen},
			says:   []string{"ee01, which the CA has never issued"},
		},
		"stored and never issued": {
			change: func(f *Facts) { delete(f.Issued, "aa01") },
			want:   []string{"critical unknown_serial api " + store},
		},
		"stored, and the CA was not asked": {change: func(f *Facts) { f.Issued = nil }},
		"so long expired that the CA has forgotten it": {
			change: func(f *Facts) {
				byAgent(f)
				old := leaf("aa99", noon, life+31*day)
				serve(f, old)
			},
			want: []string{"critical expired api " + listen, "critical rotation_overdue api " + listen},
		},
		"served and revoked": {
			change: func(f *Facts) {
				r := f.Issued["aa01"]
				r.Revoked = noon.Add(-time.Minute)
				f.Issued["aa01"] = r
			},
			want: []string{"critical revoked api " + store},
		},
		"another certificate with the serial of the stored one": {
			change: func(f *Facts) {
				forged := leaf("aa01", noon, day)
				forged.Fingerprint, forged.Untrusted = "bad0", "signed by an unknown authority"
				f.Workloads[0].Stored.Current.Fingerprint = "900d"
				serve(f, forged)
			},
			want: []string{"critical untrusted api " + listen},
		},
		"to be revoked": {
			change: func(f *Facts) {
				byAgent(f)
				r := f.Issued["aa01"]
				r.Revoked = noon.Add(time.Minute)
				f.Issued["aa01"] = r
			},
		},
		"another root": {
			change: func(f *Facts) {
				byAgent(f)
				cert := leaf("aa01", noon, day)
				cert.Untrusted = "signed by an unknown authority"
				serve(f, cert)
			},
			want: []string{"critical untrusted api " + listen},
		},
		"another service's": {
			change: func(f *Facts) {
				byAgent(f)
				cert := leaf("aa01", noon, day)
				cert.Identity = "spiffe://m.internal/service/web"
				serve(f, cert)
			},
			want: []string{"critical wrong_identity api " + listen},
		},
		"nobody's": {
			change: func(f *Facts) {
				byAgent(f)
				cert := leaf("aa01", noon, day)
				cert.Identity = ""
				serve(f, cert)
			},
			want: []string{"critical wrong_identity api " + listen},
			says: []string{"it has no SPIFFE ID"},
		},
		"it says another than it serves": {
			change: func(f *Facts) { byAgent(f); f.Workloads[0].Instances[0].Reported = "aa00" },
			want:   []string{"warning report_differs api " + listen},
		},
		"one listener serves the old one": {
			change: func(f *Facts) {
				f.Workloads[0].Instances[0].Endpoints[1].Served = served(leaf("aa00", noon, 2*day))
			},
			want: []string{"warning report_differs api 10.0.0.2:9090", "critical store_ahead_of_endpoint api 10.0.0.2:9090"},
		},
		"a listener that is not there": {
			change: func(f *Facts) {
				f.Workloads[0].Instances[0].Endpoints[1] = Endpoint{Listener: "0.0.0.0_9090", Address: "10.0.0.2:9090", Problem: "connection refused"}
			},
			want: []string{"critical endpoint_unreachable api 10.0.0.2:9090"},
			says: []string{"0.0.0.0_9090", "connection refused"},
		},

		// Gateways with certificates from elsewhere.
		"a file that ends": {
			change: func(f *Facts) { gateway(f, 398*day-5*day, 398*day-5*day) },
			want:   []string{"critical expiring api /etc/site.pem"},
		},
		"a file that ends in a month": {
			change: func(f *Facts) { gateway(f, 398*day-20*day, 398*day-20*day) },
			want:   []string{"warning expiring api /etc/site.pem"},
		},
		"a file that is new, and the old one served": {
			change: func(f *Facts) { gateway(f, day, 300*day) },
			want:   []string{"critical file_ahead_of_endpoint api 10.0.0.2:443"},
		},
		"a file that is well": {change: func(f *Facts) { gateway(f, day, day) }},
		"a file that cannot be read": {
			change: func(f *Facts) {
				gateway(f, day, day)
				f.Workloads[0].Files[0] = File{Path: "/etc/site.pem", Problem: "permission denied"}
			},
			want: []string{"warning file_unreadable api /etc/site.pem"},
		},

		// The authority.
		"the root ends": {
			change: func(f *Facts) {
				f.Authority.Roots[0].NotBefore, f.Authority.Roots[0].NotAfter = noon.Add(-9*365*day), noon.Add(100*day)
			},
			want: []string{"warning root_expiring ca"},
		},
		"the root ends soon": {
			change: func(f *Facts) { f.Authority.Roots[0].NotAfter = noon.Add(10 * day) },
			want:   []string{"critical root_expiring ca"},
		},
		"the root has ended": {
			change: func(f *Facts) { f.Authority.Roots[0].NotAfter = noon.Add(-day) },
			want:   []string{"critical expired ca"},
			says:   []string{"the root CN=m root has expired"},
		},
		"the issuing CA ends": {
			change: func(f *Facts) {
				f.Authority.Issuers[0].NotBefore, f.Authority.Issuers[0].NotAfter = noon.Add(-3*365*day), noon.Add(100*day)
			},
			want: []string{"warning issuer_expiring ca"},
		},
		"a young issuing CA that cuts leaves short": {
			change: func(f *Facts) {
				f.Authority.Issuers[0].NotBefore, f.Authority.Issuers[0].NotAfter = noon.Add(-backdating), noon.Add(6*day)
			},
			want: []string{"warning issuer_expiring ca"},
			says: []string{"less than a leaf's life"},
		},
		"a retiring root and issuing CA at their ends": {
			change: func(f *Facts) {
				for _, list := range []*[]CACertificate{&f.Authority.Roots, &f.Authority.Issuers} {
					old := (*list)[0]
					old.State, old.Fingerprint, old.NotAfter = Retiring, old.Fingerprint+"00", noon.Add(time.Hour)
					*list = append(*list, old)
				}
				f.Workloads[0].Stored.Bundle.Roots = f.Authority.Roots
			},
		},
		"a bundle without the retiring root": {
			change: func(f *Facts) {
				old := f.Authority.Roots[0]
				old.State, old.Fingerprint = Retiring, "0ff0"
				f.Authority.Roots = append(f.Authority.Roots, old)
			},
			want: []string{"warning bundle_stale store:main m/bundle"},
			says: []string{"(which signs no more)"},
		},
		"the server says that something is wrong with the CA": {
			change: func(f *Facts) { f.Authority.Problem = "the change of the root stands still" },
			want:   []string{"critical ca_problem ca"},
			says:   []string{"stands still"},
		},
		"revocation lists that have ended": {
			change: func(f *Facts) { f.Authority.CRLs[0].NextUpdate = noon.Add(-time.Minute) },
			want:   []string{"critical crl_stale CN=m issuer"},
		},
		"revocation lists that are not made anew": {
			change: func(f *Facts) { f.Authority.CRLs[0].NextUpdate = noon.Add(5 * time.Minute) },
			want:   []string{"warning crl_stale CN=m issuer"},
		},
		"a root's list that ends in two months of three years": {
			change: func(f *Facts) {
				f.Authority.CRLs = append(f.Authority.CRLs, CRL{Issuer: "CN=m root", ThisUpdate: noon.Add(-1000 * day), NextUpdate: noon.Add(60 * day)})
			},
		},
		"a root's list that ends in a few days": {
			change: func(f *Facts) {
				f.Authority.CRLs = append(f.Authority.CRLs, CRL{Issuer: "CN=m root", ThisUpdate: noon.Add(-1000 * day), NextUpdate: noon.Add(6 * day)})
			},
			want: []string{"warning crl_stale CN=m root"},
		},
		"a root's list that ends with its issuing CA": {
			change: func(f *Facts) {
				f.Authority.Issuers[0].NotBefore, f.Authority.Issuers[0].NotAfter = noon.Add(-3*365*day), noon.Add(8*day)
				f.Authority.CRLs = append(f.Authority.CRLs, CRL{Issuer: "CN=m root", ThisUpdate: noon.Add(-1000 * day), NextUpdate: noon.Add(8 * day)})
			},
			want: []string{"critical issuer_expiring ca"},
		},
		"revocation lists of tomorrow": {
			change: func(f *Facts) { f.Authority.CRLs[0].ThisUpdate = noon.Add(time.Hour) },
			want:   []string{"critical crl_stale CN=m issuer"},
		},
		"no revocation lists": {
			change: func(f *Facts) { f.Authority.CRLs, f.Authority.CRLProblem = nil, "the server has none" },
			want:   []string{"critical crl_stale ca"},
		},
		"a bundle without the active root": {
			change: func(f *Facts) { f.Workloads[0].Stored.Bundle.Roots = nil },
			want:   []string{"critical bundle_stale store:main m/bundle"},
		},
		"a bundle without the next root": {
			change: func(f *Facts) {
				next := f.Authority.Roots[0]
				next.Fingerprint, next.State, next.Subject = "cafe", Next, "CN=m root 2"
				f.Authority.Roots = append(f.Authority.Roots, next)
			},
			want: []string{"warning bundle_stale store:main m/bundle"},
			says: []string{"lacks the CA's root CN=m root 2 (which does not sign yet)"},
		},
		"a bundle without the next root, which is new": {
			change: func(f *Facts) {
				next := f.Authority.Roots[0]
				next.Fingerprint, next.State, next.Since = "cafe", Next, noon.Add(-time.Minute)
				f.Authority.Roots = append(f.Authority.Roots, next)
			},
		},
		"a bundle with a root of somebody's": {
			change: func(f *Facts) {
				other := f.Authority.Roots[0]
				other.Fingerprint, other.Subject = "bad0", "CN=somebody"
				f.Workloads[0].Stored.Bundle.Roots = append(slices.Clone(f.Workloads[0].Stored.Bundle.Roots), other)
			},
			want: []string{"warning bundle_stale store:main m/bundle"},
			says: []string{"CN=somebody"},
		},
		"a bundle that is damaged": {
			change: func(f *Facts) { f.Workloads[0].Stored.Bundle = &Bundle{Secret: "m/bundle", Problem: "it is no PEM"} },
			want:   []string{"critical secret_unreadable store:main m/bundle"},
		},
		"a bundle that two share": {
			change: func(f *Facts) {
				f.Workloads[0].Stored.Bundle.Roots = nil
				f.Workloads = append(f.Workloads, f.Workloads[0])
			},
			want: []string{"critical bundle_stale store:main m/bundle"},
		},

		// The server.
		"the server does not renew its own": {
			change: func(f *Facts) {
				f.Server.Served.NotBefore, f.Server.Served.NotAfter = noon.Add(-15*time.Hour-backdating), noon.Add(9*time.Hour)
			},
			want: []string{"warning rotation_overdue 10.0.0.1:8443"},
		},
		"the server's own has ended": {
			change: func(f *Facts) {
				f.Server.Served.NotBefore, f.Server.Served.NotAfter = noon.Add(-25*time.Hour-backdating), noon.Add(-time.Hour)
			},
			want: []string{"critical expired 10.0.0.1:8443"},
		},
		"the server's listener is shut": {
			change: func(f *Facts) { f.Server.Served, f.Server.Problem = nil, "connection refused" },
			want:   []string{"critical endpoint_unreachable 10.0.0.1:8443"},
		},
		"another server": {
			change: func(f *Facts) { f.Server.Served.Untrusted = "signed by an unknown authority" },
			want:   []string{"critical untrusted 10.0.0.1:8443"},
		},
		"the server was not asked": {
			change: func(f *Facts) {
				f.Authority, f.Issued, f.Server = nil, nil, nil
				f.Workloads[0].Instances, f.Workloads[0].InstancesKnown = nil, false
				f.Unreached = []Unreached{{Code: CodeServer, Place: "server.sock", Problem: "no server answers", Lost: "what was issued"}}
			},
			want: []string{"critical server_unreachable server.sock"},
			says: []string{"no server answers; not checked: what was issued"},
		},
		"the store cannot be opened": {
			change: func(f *Facts) {
				f.Workloads[0].Stored = &Stored{Store: "main", Secret: "m/api"}
				f.Unreached = []Unreached{{Code: CodeStore, Place: "store:main", Problem: "permission denied"}}
			},
			want: []string{"critical store_unreadable store:main"},
		},

		"the store cannot be opened, and what is served is overdue": {
			change: func(f *Facts) {
				age(f, renewAfter+8*time.Hour)
				f.Workloads[0].Stored, f.Workloads[0].Rotation = &Stored{Store: "main", Secret: "m/api"}, nil
				f.Unreached = []Unreached{{Code: CodeStore, Place: "store:main", Problem: "permission denied"}}
			},
			want: []string{"critical store_unreadable store:main", "warning rotation_overdue api " + listen},
		},

		// Clocks.
		"this machine's clock is behind": {
			change: func(f *Facts) { f.Now = noon.Add(-2 * day) },
			// All of them begin in the future; nothing but the clock is wrong.
			want: []string{
				"critical clock_skew", "critical crl_stale CN=m issuer", "critical not_yet_valid 10.0.0.1:8443",
				"critical not_yet_valid api store:main m/api", "critical not_yet_valid api " + listen,
			},
			says: []string{"this machine's clock is at least 1d0h behind the server's"},
		},
		"another machine's clock is off": {
			change: func(f *Facts) { f.Workloads[0].Instances[0].ClockOffset = -10 * time.Minute },
			want:   []string{"warning clock_skew api"},
			says:   []string{"10m0s behind the server's"},
		},
		"another machine's clock is a little off": {
			change: func(f *Facts) { f.Workloads[0].Instances[0].ClockOffset = 4 * time.Minute },
		},
	} {
		t.Run(name, func(t *testing.T) {
			facts := healthy(noon)
			test.change(&facts)
			report := Compare(facts, DefaultLimits())
			var got []string
			for _, f := range report.Findings {
				got = append(got, summary(f))
				if f.Action == "" || f.Message == "" {
					t.Errorf("%s says nothing or does not say what to do: %+v", summary(f), f)
				}
			}
			slices.Sort(got)
			want := slices.Sorted(slices.Values(test.want))
			if diff := cmp.Diff(want, got, cmp.Transformer("", func(s []string) []string { return append([]string{}, s...) })); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
			for _, part := range test.says {
				if len(report.Findings) == 0 || !strings.Contains(report.Findings[0].Message+report.Findings[0].Action, part) {
					t.Errorf("the first finding does not say %q: %+v", part, report.Findings)
				}
			}
			if (report.Worst == OK) != (len(report.Findings) == 0) {
				t.Errorf("the worst is %s with %d findings", report.Worst, len(report.Findings))
			}
		})
	}
}

// gateway makes api one that presents a file's certificate at a second listener; both certificates live 398 days
// and have those ages.
func gateway(f *Facts, fileAge, servedAge time.Duration) {
	site := func(age time.Duration) *Certificate {
		return &Certificate{Serial: fmt.Sprintf("c0%d", age/day), NotBefore: noon.Add(-age), NotAfter: noon.Add(398*day - age)}
	}
	w := &f.Workloads[0]
	w.Files = []File{{Path: "/etc/site.pem", Certificate: site(fileAge)}}
	w.Instances[0].Endpoints = append(w.Instances[0].Endpoints, Endpoint{Listener: "0.0.0.0_443", Address: "10.0.0.2:443", File: "/etc/site.pem", Served: site(servedAge)})
}
