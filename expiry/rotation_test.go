package expiry

import "time"

// rotationFindings are about rotations, and what they leave in stores.
var rotationFindings = map[string]findingCase{
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
	"a rotation that hangs before it has made anything current, for long": {
		change: func(f *Facts) {
			*f.Workloads[0].Rotation = Rotation{LastSuccess: noon.Add(-day), Step: "issue", Requested: noon.Add(-16 * time.Minute), Holder: "somebody"}
		},
		want: []string{"critical rotation_stuck api " + store},
		says: []string{"a rotation of 2027-03-14T11:44:00Z is still at the step issue, for 16m0s; somebody works on it", "countersign rotate once api"},
	},
	"a rotation that has asked just now": {
		change: func(f *Facts) {
			*f.Workloads[0].Rotation = Rotation{LastSuccess: noon.Add(-day), Step: "issue", Requested: noon.Add(-14 * time.Minute), Holder: "somebody"}
		},
	},
	"a rotation that asks again for what it was refused": {
		change: func(f *Facts) {
			*f.Workloads[0].Rotation = Rotation{
				LastSuccess: noon.Add(-day), LastFailure: noon.Add(-time.Minute), Failures: 2, LastError: "the CA is down", Step: "issue", Requested: noon.Add(-time.Hour), Holder: "somebody",
			}
		},
		want: []string{"warning rotation_failing api " + store},
	},
	"a rotation that was killed long ago, before it was begun": {
		change: func(f *Facts) {
			*f.Workloads[0].Rotation = Rotation{LastSuccess: noon.Add(-day), Step: "issue", Requested: noon.Add(-time.Hour)}
		},
		want: []string{"critical rotation_stuck api " + store},
		says: []string{"a rotation of 2027-03-14T11:00:00Z stands at the step issue, and nobody works on it"},
	},
	"a rotation that was tried since it was due": {
		change: func(f *Facts) {
			age(f, renewAfter+8*time.Hour)
			*f.Workloads[0].Rotation = Rotation{LastSuccess: noon.Add(-renewAfter), Step: "issue", Requested: noon.Add(-time.Minute), Holder: "somebody"}
		},
		want: []string{"warning rotation_overdue api " + store},
		says: []string{"it was last tried at 2027-03-14T11:59:00Z"},
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
	"a secret that may not be read": {
		change: func(f *Facts) {
			s := f.Workloads[0].Stored
			s.Code, s.Problem, s.Remedy, s.Current = CodeSecretUnreadable, "AWS denies it", "let the caller do this", nil
		},
		want: []string{"critical secret_unreadable api " + store},
		says: []string{"AWS denies it", "let the caller do this"},
	},

	"a secret that init would refuse": {
		change: func(f *Facts) {
			f.Workloads[0].Stored.Code, f.Workloads[0].Stored.Problem = CodeSecretUnfit, "the key does not belong to the certificate"
		},
		want: []string{"critical secret_unfit api " + store},
	},
}
