// Package expiry knows what silence hides: it compares what secret stores hold, what the CA has issued and
// what endpoints serve, and says what expires when, which rotation is overdue, and where the three disagree.
//
// It is pure. Facts come in, with the time; a report goes out. Nothing is asked here: whoever gathers the
// facts says for each source that did not answer that it did not, and that is a finding as well, so that a
// report never looks better because less was seen.
package expiry

import (
	"cmp"
	"slices"
	"time"
)

// Code says what a finding is about. Codes do not change.
type Code string

// The codes.
const (
	// A certificate, wherever it is.
	CodeExpired       Code = "expired"        // its end has passed
	CodeExpiring      Code = "expiring"       // its end is nearer than a limit
	CodeNotYetValid   Code = "not_yet_valid"  // its beginning lies in the future
	CodeUnknownSerial Code = "unknown_serial" // it is in use, and the CA has never issued it
	CodeRevoked       Code = "revoked"        // it is in use, and was revoked
	CodeUntrusted     Code = "untrusted"      // its chain leads to no root of the mesh
	CodeWrongIdentity Code = "wrong_identity" // it is somebody else's

	// The authority.
	CodeRootExpiring   Code = "root_expiring"
	CodeIssuerExpiring Code = "issuer_expiring"
	CodeCRLStale       Code = "crl_stale"  // a revocation list has ended, or is not there
	CodeCAProblem      Code = "ca_problem" // the server says that something is wrong with the CA

	// The rotation.
	CodeRotationOverdue  Code = "rotation_overdue"    // due, and not done: a schedule that stopped
	CodeRotationFailing  Code = "rotation_failing"    // tried, and failed
	CodeRotationStuck    Code = "rotation_stuck"      // begun, and neither done nor failed
	CodeRotationUnknown  Code = "rotation_unreadable" // what the rotation keeps about itself cannot be read
	CodeIssuedNotStored  Code = "issued_not_stored"   // the CA has issued a newer one than the store has
	CodeStoreAhead       Code = "store_ahead_of_endpoint"
	CodeEndpointAhead    Code = "endpoint_ahead_of_store"
	CodeReloadRefused    Code = "reload_refused" // the proxy was given the new one, and does not take it
	CodeBundleStale      Code = "bundle_stale"   // a stored trust bundle is not the CA's
	CodeReportDiffers    Code = "report_differs" // an instance says that it serves another one than it does
	CodeInstanceProblem  Code = "instance_problem"
	CodeInstanceLost     Code = "instance_lost" // registered, and not connected to the server
	CodeNoInstance       Code = "no_instance"   // declared, and not running
	CodeNotLookedAt      Code = "not_looked_at" // nobody knows where its instances are
	CodeClockSkew        Code = "clock_skew"
	CodeSecretMissing    Code = "secret_missing"
	CodeSecretUnreadable Code = "secret_unreadable" // damaged, or not of its layout
	CodeSecretUnfit      Code = "secret_unfit"      // `countersign init` would refuse it
	CodeFileUnreadable   Code = "file_unreadable"
	CodeFileAhead        Code = "file_ahead_of_endpoint" // a gateway does not serve what its file holds

	// What could not be asked.
	CodeStore    Code = "store_unreadable"
	CodeServer   Code = "server_unreachable"
	CodeEndpoint Code = "endpoint_unreachable"
	CodeTasks    Code = "tasks_unknown" // Amazon ECS does not say which tasks run
)

// Severity says how bad a finding is.
type Severity string

// The severities.
const (
	OK       Severity = "ok"
	Warning  Severity = "warning"
	Critical Severity = "critical"
)

// rank orders severities, the worst first.
func (s Severity) rank() int {
	switch s {
	case Critical:
		return 0
	case Warning:
		return 1
	default:
		return 2
	}
}

// Worse tells whether s is worse than other.
func (s Severity) Worse(other Severity) bool { return s.rank() < other.rank() }

// Finding is something that is wrong, and what to do about it.
type Finding struct {
	Code     Code     `json:"code"`
	Severity Severity `json:"severity"`
	// Workload and Instance are empty when the finding is about none in particular.
	Workload string `json:"workload,omitempty"`
	Instance string `json:"instance,omitempty"`
	// Place is where: "store:NAME SECRET", an address, a path, "ca".
	Place   string `json:"place,omitempty"`
	Serial  string `json:"serial,omitempty"`
	Message string `json:"message"`
	Action  string `json:"action"`
	// Deadline is when somebody is refused unless something is done; zero when that is not known.
	Deadline time.Time `json:"deadline,omitzero"`
}

// Kind says what an item is.
type Kind string

// The kinds of items.
const (
	KindRoot     Kind = "root"
	KindIssuer   Kind = "issuer"
	KindCRL      Kind = "crl"
	KindServer   Kind = "server"
	KindStored   Kind = "stored"   // the current version of a secret
	KindServed   Kind = "served"   // what an endpoint presents
	KindReported Kind = "reported" // what an instance says that it has, or must have by its start, where no endpoint shows it
	KindFile     Kind = "file"     // a certificate file of a gateway
	KindBundle   Kind = "bundle"   // a trust bundle in a store
)

// State says in a word how an item is.
type State string

// The states.
const (
	StateOK          State = "ok"
	StateDue         State = "due" // to be rotated, and not late yet
	StateOverdue     State = "overdue"
	StateExpiring    State = "expiring"
	StateExpired     State = "expired"
	StateNotYetValid State = "not_yet_valid"
	StateRetiring    State = "retiring" // it may end: another one has taken its place
	StateBehind      State = "behind"   // it is not the one that the store or the file holds
	StateWrong       State = "wrong"    // nobody should use it: revoked, never issued, somebody else's
	StateUnknown     State = "unknown"  // it could not be looked at
)

// Item is something that expires.
type Item struct {
	Kind     Kind   `json:"kind"`
	Workload string `json:"workload,omitempty"`
	Instance string `json:"instance,omitempty"`
	Place    string `json:"place,omitempty"`
	Serial   string `json:"serial,omitempty"`
	// NotAfter is zero when it is not known. SecondsLeft is negative for what has ended.
	NotBefore   time.Time `json:"notBefore,omitzero"`
	NotAfter    time.Time `json:"notAfter,omitzero"`
	SecondsLeft int64     `json:"secondsLeft"`
	// Due is when it is to be replaced; zero where nobody replaces it on a schedule.
	Due      time.Time `json:"due,omitzero"`
	State    State     `json:"state"`
	Severity Severity  `json:"severity"`
}

// Report is the comparison: both lists with the most urgent first.
type Report struct {
	// Worst is of all findings.
	Worst Severity `json:"worst"`
	// EndpointsSeen is how many listeners of instances have shown a certificate.
	EndpointsSeen int       `json:"endpointsSeen"`
	Items         []Item    `json:"items"`
	Findings      []Finding `json:"findings"`
}

// Compare makes the report. It may be called by many goroutines.
func Compare(facts Facts, limits Limits) Report {
	c := &comparison{facts: facts, limits: limits, now: facts.Now}
	c.sources()
	c.authority()
	c.server()
	for i := range facts.Workloads {
		c.workload(&facts.Workloads[i])
	}
	c.clock()
	return c.report()
}

// comparison collects what a Report is made of.
type comparison struct {
	facts    Facts
	limits   Limits
	now      time.Time
	items    []Item
	findings []Finding
}

// find notes a finding.
func (c *comparison) find(f Finding) { c.findings = append(c.findings, f) }

// mark gives the newest item a state, unless its dates give it a worse one.
func (c *comparison) mark(state State, severity Severity) {
	item := &c.items[len(c.items)-1]
	if item.Severity != Critical || item.State == StateExpiring {
		item.State, item.Severity = state, severity
	}
}

// report sorts what was collected.
func (c *comparison) report() Report {
	report := Report{Worst: OK, EndpointsSeen: c.facts.seen(), Items: c.items, Findings: c.findings}
	if report.Items == nil {
		report.Items = []Item{}
	}
	if report.Findings == nil {
		report.Findings = []Finding{}
	}
	for _, f := range report.Findings {
		if f.Severity.Worse(report.Worst) {
			report.Worst = f.Severity
		}
	}
	slices.SortStableFunc(report.Items, func(a, b Item) int {
		return cmp.Or(cmp.Compare(a.Severity.rank(), b.Severity.rank()), earlier(a.NotAfter, b.NotAfter), cmp.Compare(a.Workload, b.Workload), cmp.Compare(a.Instance, b.Instance))
	})
	slices.SortStableFunc(report.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Severity.rank(), b.Severity.rank()), earlier(a.Deadline, b.Deadline), cmp.Compare(a.Workload, b.Workload), cmp.Compare(a.Instance, b.Instance))
	})
	return report
}

// earlier compares two times; one that is not known comes first, because nobody can say that it is far.
func earlier(a, b time.Time) int {
	switch {
	case a.IsZero() != b.IsZero():
		if a.IsZero() {
			return -1
		}
		return 1
	default:
		return a.Compare(b)
	}
}

// sources notes what gave nothing.
func (c *comparison) sources() {
	for _, u := range c.facts.Unreached {
		var action string
		switch u.Code {
		case CodeServer:
			action = "start `countersign server`, or give its --socket; certificates that are in use stay valid until they end, and nobody gets a new one meanwhile"
		case CodeStore:
			action = "run the check where the store is and as a user who may read it; see that the identity file is the store's"
		case CodeTasks:
			action = "run the check as somebody who may call ecs:ListTasks, ecs:DescribeTasks and ecs:DescribeServices there (docs/check-expiry.md has the policy), and see 'deploy' in the specification"
		default:
			action = "see that it can be read from here, and check again"
		}
		c.find(Finding{Code: u.Code, Severity: Critical, Place: u.Place, Message: u.Problem + lost(u.Lost), Action: cmp.Or(u.Remedy, action)})
	}
}

func lost(what string) string {
	if what == "" {
		return ""
	}
	return "; not checked: " + what
}
