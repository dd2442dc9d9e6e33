package rotate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"countersign.dev/mtls"
	"countersign.dev/secret"
)

// RotateAll brings everything up to date: the shared trust bundles first, then the workloads, in waves: whoever is called
// before those who call him. They have their turns one after the other; of those that are rolled out, some at the same time.
// What fails for one does not keep the others from their turn; when ctx ends, the rest has none. Results are in the order of
// the targets. Targets are always all that there are, also when the options name one service: a bundle is brought up to date
// for all its users or for none.
func (r *Rotator) RotateAll(ctx context.Context, targets []Target, o Options) []Result {
	results := []Result{}
	for _, bundle := range SharedBundles(targets) {
		if ctx.Err() == nil && slices.ContainsFunc(bundle.Users, o.chooses) {
			results = append(results, r.RotateBundle(ctx, bundle, o))
		}
	}
	rotated := make([]*Result, len(targets))
	inWaves(targets, func(i int) {
		if ctx.Err() == nil && o.chooses(targets[i]) {
			result := r.Rotate(ctx, targets[i], o)
			rotated[i] = &result
		}
	})
	for _, result := range rotated {
		if result != nil {
			results = append(results, *result)
		}
	}
	return results
}

// chooses tells whether a target is to have its turn.
func (o Options) chooses(t Target) bool { return o.Service == "" || o.Service == t.Workload.Name }

// Status is what a store says of the rotation of one workload.
type Status struct {
	Service string `json:"service"`
	Secret  string `json:"secret"`
	Store   string `json:"store"`
	// Version, Serial and NotAfter are of what is current; Due is when that is to be replaced. They are empty when there
	// is none.
	Version  string    `json:"version,omitempty"`
	Serial   string    `json:"serial,omitempty"`
	NotAfter time.Time `json:"notAfter,omitzero"`
	Due      time.Time `json:"due,omitzero"`
	// Step is set while a rotation is in progress, or was when it died; Bringing is the version that it brings in.
	// Requested is when its request was made, while that waits for its certificate: nothing was made current then.
	Step      Step      `json:"step,omitempty"`
	Bringing  string    `json:"bringing,omitempty"`
	Requested time.Time `json:"requested,omitzero"`
	// Rollout is the roll-out that the rotation in progress waits for; empty when it has begun none.
	Rollout string `json:"rollout,omitempty"`
	// LastSuccess, LastError and Failures are as in [Record].
	LastSuccess   time.Time `json:"lastSuccess,omitzero"`
	LastError     string    `json:"lastError,omitempty"`
	LastErrorStep Step      `json:"lastErrorStep,omitempty"`
	LastErrorTime time.Time `json:"lastErrorTime,omitzero"`
	Failures      int64     `json:"failures"`
	FailuresTotal int64     `json:"failuresTotal"`
	// Holder has the lease until Until; nobody has when it is empty.
	Holder string    `json:"holder,omitempty"`
	Until  time.Time `json:"until,omitzero"`
	// Problem says what of all this could not be read.
	Problem string `json:"problem,omitempty"`
}

// ReadStatus reads what a store says of the rotation of a workload. It takes no lease, asks nobody and never fails as a
// whole: what could not be read stands in Problem.
func ReadStatus(ctx context.Context, t Target) Status {
	s := Status{Service: t.Workload.Name, Secret: t.Secret, Store: t.StoreName}
	var problems []error
	material, err := t.Shape.Read(ctx, t.Store, t.Secret, "")
	switch {
	case err == nil:
		problems = append(problems, s.current(t, material))
		material.Clear()
	case !errors.Is(err, secret.ErrNotFound):
		problems = append(problems, err)
		s.Version, _ = currentVersion(ctx, t.Store, t.keySecret()) // who may not read values may know which there are; why not is told already
	}
	record, err := readRecord(ctx, t.Store, t.Secret)
	problems = append(problems, err)
	s.Step, s.Bringing = record.Step, record.Version
	if record.Step != "" {
		s.Rollout = record.Rollout
	}
	s.LastSuccess, s.Failures, s.FailuresTotal = record.LastSuccess, record.Failures, record.FailuresTotal
	s.LastError, s.LastErrorStep, s.LastErrorTime = record.LastError, record.LastErrorStep, record.LastErrorTime
	if s.Step == "" {
		n := &run{t: t, ctx: ctx, current: current{version: s.Version}}
		waiting, err := n.requests()
		problems = append(problems, err)
		if len(waiting) > 0 {
			s.Step, s.Bringing = StepIssue, strings.TrimSuffix(waiting[0], requestSuffix)
			s.Requested = madeAt(s.Bringing)
		}
	}
	s.Holder, s.Until, err = t.Keeper.Holder(ctx, t.Secret)
	var texts []string
	for _, problem := range append(problems, err) {
		if problem != nil && !slices.ContainsFunc(texts, func(text string) bool { return strings.HasSuffix(text, problem.Error()) }) {
			texts = append(texts, problem.Error())
		}
	}
	s.Problem = strings.ReplaceAll(strings.Join(texts, "; "), "\n", "; ")
	return s
}

// current describes what is current.
func (s *Status) current(t Target, m *secret.Material) error {
	s.Version = m.Version
	chain, err := mtls.ParseCertificates(m.Certificate)
	if err != nil {
		return fmt.Errorf("the version %s of %s holds no certificate that can be read: %w", m.Version, t.Secret, err)
	}
	leaf := chain[0]
	s.Serial, s.NotAfter = mtls.Serial(leaf), leaf.NotAfter.UTC()
	s.Due = DueAt(leaf, time.Duration(t.Certificate.RenewAfter), t.Workload.Name).UTC()
	return nil
}

// WriteMetrics writes statuses in the text format of Prometheus. Time is given, so that days can be counted.
func WriteMetrics(w io.Writer, statuses []Status, now time.Time) error {
	var out strings.Builder
	for _, metric := range []struct {
		name, kind, help string
		value            func(Status) (float64, bool)
	}{
		{"countersign_rotate_certificate_expiry_days", "gauge", "Days until the certificate that is current in the store ends; below 0 when it has.", func(s Status) (float64, bool) {
			return s.NotAfter.Sub(now).Hours() / 24, !s.NotAfter.IsZero()
		}},
		{"countersign_rotate_last_success_timestamp_seconds", "gauge", "When a rotation last came to its end; absent when none ever did.", func(s Status) (float64, bool) {
			return float64(s.LastSuccess.UnixMilli()) / 1000, !s.LastSuccess.IsZero()
		}},
		{"countersign_rotate_failures_total", "counter", "Rotations that failed, of all time and by whatever process.", func(s Status) (float64, bool) {
			return float64(s.FailuresTotal), true
		}},
		{"countersign_rotate_in_flight", "gauge", "1 while somebody holds the lease on the service's secret.", func(s Status) (float64, bool) {
			return map[bool]float64{true: 1}[s.Holder != ""], true
		}},
	} {
		fmt.Fprintf(&out, "# HELP %s %s\n# TYPE %s %s\n", metric.name, metric.help, metric.name, metric.kind)
		for _, status := range statuses {
			if value, ok := metric.value(status); ok {
				fmt.Fprintf(&out, "%s{service=%q} %v\n", metric.name, status.Service, value)
			}
		}
	}
	_, err := io.WriteString(w, out.String())
	return err
}
