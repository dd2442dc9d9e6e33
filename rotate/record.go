package rotate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"time"
	"unicode/utf8"

	"countersign.dev/durable"
	"countersign.dev/secret"
)

// recordFormat is the version of a Record's form.
const recordFormat = 1

// maxError bounds the error that a Record keeps, in bytes.
const maxError = 4 << 10

// Record is what a store keeps of the rotations of one secret, as the secret NAME.rotation in JSON. It holds nothing that
// is to be kept from anybody.
type Record struct {
	Format int `json:"format"`
	// Step is set while a version is brought in that may be current already: promote, deploy, observe or rollback.
	Step Step `json:"step,omitempty"`
	// Version is being brought in, Previous was current before; empty when there was none.
	Version  string    `json:"version,omitempty"`
	Previous string    `json:"previous,omitempty"`
	Began    time.Time `json:"began,omitzero"`
	// Problem is why Version is taken back.
	Problem string `json:"problem,omitempty"`
	// FailedStep is where that was found.
	FailedStep Step `json:"failedStep,omitempty"`
	// NoDeploy is set when nobody is to be looked at.
	NoDeploy bool `json:"noDeploy,omitempty"`
	// There are the instances that the server knew of and had not lost before Version was made current: one of them that
	// is away afterwards may be so because of it. It is empty when nobody could look.
	There []string `json:"there,omitempty"`
	// Restarted are the instances, as WORKLOAD/INSTANCE, that have been restarted with Version, which is a trust bundle, and
	// were seen to serve again.
	Restarted []string `json:"restarted,omitempty"`
	// Request is the id that an authority was asked under that gave Receipt to be kept.
	Request string `json:"request,omitempty"`
	Receipt string `json:"receipt,omitempty"`
	// Rollout is the roll-out that was begun last for Version or, on the way back, for Previous, which RolloutOf says: the
	// version, or VERSION/WORKLOAD where Version is a trust bundle. RolloutBegan is when that was asked for.
	Rollout      string    `json:"rollout,omitempty"`
	RolloutOf    string    `json:"rolloutOf,omitempty"`
	RolloutBegan time.Time `json:"rolloutBegan,omitzero"`
	// Shown is what instances may present of the versions that were brought in since all instances were last seen to serve what was current, where
	// a trust bundle is shared: with NoDeploy nobody is seen, and a root must not leave the bundle on the chance that nobody needs it.
	Shown []Shown `json:"shown,omitempty"`

	// LastSuccess is when a rotation last came to its end, and LastSerial what it brought.
	LastSuccess time.Time `json:"lastSuccess,omitzero"`
	LastSerial  string    `json:"lastSerial,omitempty"`
	// LastError is of the last rotation when that failed, with its step and time. Failures counts those since the last
	// success, or since a look last found that nothing is due, FailuresTotal those of all time.
	LastError     string    `json:"lastError,omitempty"`
	LastErrorStep Step      `json:"lastErrorStep,omitempty"`
	LastErrorTime time.Time `json:"lastErrorTime,omitzero"`
	Failures      int64     `json:"failures,omitempty"`
	FailuresTotal int64     `json:"failuresTotal,omitempty"`
	// Costly counts those among Failures that have cost something, and LastCostly is when the last of them did.
	Costly     int64     `json:"costly,omitempty"`
	LastCostly time.Time `json:"lastCostly,omitzero"`
}

// readRecord reads the record of a secret; an empty one when there is none.
func readRecord(ctx context.Context, store Store, name string) (Record, error) {
	text, _, err := store.Read(ctx, name+stateSuffix, "")
	if errors.Is(err, secret.ErrNotFound) {
		return Record{Format: recordFormat}, nil
	}
	if err != nil {
		return Record{}, err
	}
	record, err := parseRecord(text)
	if err != nil {
		return Record{}, fmt.Errorf("%s: %w", name+stateSuffix, err)
	}
	return record, nil
}

// notes are the Record of a rotation and the version of it that the rotation has read or written last: another one
// is not written over.
type notes struct {
	record  Record
	stored  Record // as it was read or written last
	read    bool   // the record was: what is not known is not written over
	version string
}

// open reads the record. It looks at the version before: when the record changes in between, it is not written.
func (n *notes) open(ctx context.Context, store Store, name string, o Options, result *Result) (err error) {
	n.version, err = currentVersion(ctx, store, name+stateSuffix)
	if err != nil && !errors.Is(err, secret.ErrCorrupt) { // damaged, it does not open either
		return err
	}
	if n.record, err = readRecord(ctx, store, name); err != nil {
		if err := unread(err, o, result); err != nil {
			return err
		}
	}
	n.read, n.stored = true, n.record
	return nil
}

// write stores the record in place of the one that was read or written last.
func (n *notes) write(ctx context.Context, store Store, name string) error {
	id, err := writeRecord(ctx, store, name, n.record, n.version)
	if err != nil {
		return err
	}
	n.version, n.stored = id, n.record
	return nil
}

// Thrifty is a [Store] that bears few writes: one that keeps every version for a day, and has room for some only. That a
// rotation failed once more, at the same step, is written to it after a while, and counted then: tried again and
// again, it would leave no room for the rotation that succeeds.
type Thrifty interface{ FewWrites() bool }

// failuresApart is the least time between two notes of the same failure in a store that bears few writes.
const failuresApart = 20 * time.Minute

// repeats tells whether a failure needs no note of its own.
func (n *notes) repeats(store Store, step Step, err error, now time.Time) bool {
	thrifty, ok := store.(Thrifty)
	return ok && thrifty.FewWrites() && n.record.Failures > 0 && n.record.LastErrorStep == step && n.record.lastCost() == costly(step, err) &&
		now.Sub(n.record.LastErrorTime) < failuresApart && reflect.DeepEqual(n.record, n.stored)
}

// currentVersion is the id of the current version, from the description alone; empty when there is none.
func currentVersion(ctx context.Context, store Store, name string) (string, error) {
	versions, err := store.Versions(ctx, name)
	if errors.Is(err, secret.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	current, _ := secret.Entry{Versions: versions}.Stage(secret.Current)
	return current.ID, nil
}

// unread is what becomes of a rotation whose record could not be read: nil when it goes on with an empty one. That is so
// only when the record is damaged, and somebody wants it: any other may hold a rotation in progress, of a newer program, too.
func unread(err error, o Options, result *Result) error {
	switch {
	case !errors.Is(err, secret.ErrCorrupt):
		return err
	case !o.Force:
		return fmt.Errorf("%w; or go on without it, although it may say that a rotation is in progress: --force", err)
	}
	result.Notes = append(result.Notes, "what was known of the rotations before is lost, also whether one was in progress: "+err.Error())
	return nil
}

func parseRecord(text []byte) (Record, error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	var record Record
	if err := decoder.Decode(&record); err != nil {
		return Record{}, fmt.Errorf("%w: it is not a record of rotations; is a secret of this name somebody else's?", secret.ErrCorrupt)
	}
	if record.Format != recordFormat {
		return Record{}, fmt.Errorf("%w: it has the format %d, and this program knows %d; use the newer program", secret.ErrInvalid, record.Format, recordFormat)
	}
	for _, version := range []string{record.Version, record.Previous} {
		if version != "" && secret.CheckVersion(version) != nil {
			return Record{}, fmt.Errorf("%w: it names the version %.80q, which cannot be", secret.ErrCorrupt, version)
		}
	}
	switch record.Step {
	case "":
	case StepPromote, StepDeploy, StepObserve, StepRollback:
		if record.Version == "" {
			return Record{}, fmt.Errorf("%w: it has a step and no version", secret.ErrCorrupt)
		}
	default:
		return Record{}, fmt.Errorf("%w: it has the step %.40q, which this program does not know; use the newer program", secret.ErrInvalid, record.Step)
	}
	return record, nil
}

// writeRecord stores a record in place of the version with an id, and gives its own.
func writeRecord(ctx context.Context, store Store, name string, record Record, replaces string) (string, error) {
	record.Format = recordFormat
	text, err := json.Marshal(record)
	if err != nil {
		return "", fmt.Errorf("writing the record of %s: %w", name, err)
	}
	id, err := store.Stage(ctx, name+stateSuffix, "", text)
	if err != nil {
		return "", err
	}
	if err := store.Replace(ctx, name+stateSuffix, id, replaces); err != nil {
		return "", err
	}
	durable.Step("rotate.record.written")
	return id, nil
}

// failed notes a failure.
func (r *Record) failed(step Step, err error, now time.Time) {
	text := err.Error()
	if len(text) > maxError {
		end := maxError
		for end > 0 && !utf8.RuneStart(text[end]) {
			end--
		}
		text = text[:end]
	}
	r.LastError, r.LastErrorStep, r.LastErrorTime = text, step, now.UTC()
	r.Failures++
	r.FailuresTotal++
	if costly(step, err) {
		r.Costly++
		r.LastCostly = r.LastErrorTime
	}
}

// lastCost tells whether the last failure has cost something.
func (r *Record) lastCost() bool { return r.Costly > 0 && r.LastCostly.Equal(r.LastErrorTime) }

// clearFailure forgets how the last rotation failed, but not that it did; it tells whether there was anything to forget.
func (r *Record) clearFailure() bool {
	if r.Failures == 0 && r.LastError == "" {
		return false
	}
	r.LastError, r.LastErrorStep, r.LastErrorTime, r.Failures = "", "", time.Time{}, 0
	r.Costly, r.LastCostly = 0, time.Time{}
	return true
}

// succeeded notes the end of a rotation after which all instances serve what is current.
func (r *Record) succeeded(serial string, now time.Time) {
	*r = Record{LastSuccess: now.UTC(), LastSerial: serial, FailuresTotal: r.FailuresTotal}
}

// ended forgets the version that was being brought in.
func (r *Record) ended() {
	r.Step, r.Version, r.Previous, r.Problem, r.FailedStep, r.NoDeploy, r.Began, r.There = "", "", "", "", "", false, time.Time{}, nil
	r.Request, r.Receipt, r.Rollout, r.RolloutOf, r.RolloutBegan = "", "", "", "", time.Time{}
}
