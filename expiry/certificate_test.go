package expiry

import (
	"fmt"
	"time"
)

// certificateFindings are about what is served, of agents, of stores and of files.
var certificateFindings = map[string]findingCase{
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
