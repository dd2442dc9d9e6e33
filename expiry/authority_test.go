package expiry

import (
	"slices"
	"time"
)

// authorityFindings are about the CA, its lists and the server.
var authorityFindings = map[string]findingCase{
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
	"a bundle that may not be read": {
		change: func(f *Facts) {
			f.Workloads[0].Stored.Bundle = &Bundle{Secret: "m/bundle", Problem: "AWS denies it", Remedy: "let the caller do this"}
		},
		want: []string{"critical secret_unreadable store:main m/bundle"},
		says: []string{"let the caller do this"},
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

	"the store does not answer": {
		change: func(f *Facts) {
			f.Workloads[0].Stored = &Stored{Store: "main", Secret: "m/api"}
			f.Unreached = []Unreached{{Code: CodeStore, Place: "store:main", Problem: "no credentials", Remedy: "give this program credentials that hold"}}
		},
		want: []string{"critical store_unreadable store:main"},
		says: []string{"no credentials", "give this program credentials that hold"},
	},

	"the store cannot be opened, and what is served is overdue": {
		change: func(f *Facts) {
			age(f, renewAfter+8*time.Hour)
			f.Workloads[0].Stored, f.Workloads[0].Rotation = &Stored{Store: "main", Secret: "m/api"}, nil
			f.Unreached = []Unreached{{Code: CodeStore, Place: "store:main", Problem: "permission denied"}}
		},
		want: []string{"critical store_unreadable store:main", "warning rotation_overdue api " + listen},
	},
}
