// Package secret knows how certificates, private keys and trust bundles lie in a secret store: what a
// version and its stages are, which names are possible, and in which layouts a credential is split over
// the values of a store. It is the vocabulary that stores and their consumers share; a store itself is
// an interface that its consumer declares, of at most four methods (read a version, write a staged one,
// make one current in place of another, list).
//
// Stages are those of AWS Secrets Manager in short words. A version is written as pending, looked at, and
// then made current in one step; the one that was current before is previous, for the way back.
package secret

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Stage is a label that at most one version of a secret has at a time. A version may have several, or
// none: it is history then, and a store removes it sooner or later.
type Stage string

// The stages.
const (
	Pending  Stage = "pending"  // written, and not in use yet (AWSPENDING)
	Current  Stage = "current"  // what a reader gets who asks for nothing else (AWSCURRENT)
	Previous Stage = "previous" // was current before (AWSPREVIOUS)
)

// Limits, those of AWS Secrets Manager where it has one.
const (
	MaxValue   = 64 << 10 // bytes of a value
	MaxName    = 200      // bytes of a name
	MaxVersion = 64       // bytes of a version's id
)

// Errors of stores. They are wrapped with what was being done to which secret, and never hold a value.
var (
	// ErrNotFound says that there is no such secret, or that it has no such version.
	ErrNotFound = errors.New("it is not in the store")
	// ErrHeld says that somebody else holds the lease; the error is a [*HeldError].
	ErrHeld = errors.New("the lease is held by somebody else")
	// ErrLeaseLost says that a lease ran out and that its holder must not go on.
	ErrLeaseLost = errors.New("the lease was lost")
	// ErrFull says that the store has no room: its disk or its quota is full. What was current still is.
	ErrFull = errors.New("the store is full")
	// ErrCorrupt says that what the store holds is damaged; the message names the file.
	ErrCorrupt = errors.New("it is damaged")
	// ErrConflict says that a version of this id exists and has another value.
	ErrConflict = errors.New("a version of this id has another value")
	// ErrMismatch says that the parts of a credential are not all of one version.
	ErrMismatch = errors.New("the parts are of different versions")
	// ErrReplaced says that another version is current than the one that was to be replaced; the error is a
	// [*ReplacedError], and nothing was changed.
	ErrReplaced = errors.New("another version was made current meanwhile")
	// ErrInvalid says that a name, an id or a value cannot be stored, or does not have its layout's form.
	ErrInvalid = errors.New("invalid")
)

// HeldError says who holds a lease. errors.Is(err, [ErrHeld]) holds for it.
type HeldError struct {
	Name   string    // what the lease is on
	Holder string    // as the holder called itself
	Until  time.Time // when it runs out unless it is renewed
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("the lease on %s is held by %s until %s; wait for it to end, or for that time if its holder is dead",
		e.Name, e.Holder, e.Until.UTC().Format(time.RFC3339))
}

// Is lets errors.Is find [ErrHeld].
func (e *HeldError) Is(target error) bool { return target == ErrHeld }

// ReplacedError says what is current where another version was to be replaced. errors.Is(err, [ErrReplaced]) holds for it.
type ReplacedError struct {
	Name     string    // the secret
	Expected string    // the version that was to be replaced; empty for none
	Current  string    // the version that is current; empty for none
	Written  time.Time // when that was written; zero when that is not known
}

func (e *ReplacedError) Error() string {
	version := func(id string) string {
		if id == "" {
			return "no version"
		}
		return "the version " + id
	}
	written := ""
	if !e.Written.IsZero() {
		written = ", written at " + e.Written.UTC().Format(time.RFC3339) + ","
	}
	return fmt.Sprintf("%s%s is current now where %s was to be replaced: somebody else was faster, and nothing was changed; see `countersign secret versions %s`, and begin again",
		version(e.Current), written, version(e.Expected), e.Name)
}

// Is lets errors.Is find [ErrReplaced].
func (e *ReplacedError) Is(target error) bool { return target == ErrReplaced }

// Version describes one version of a secret, without its value.
type Version struct {
	ID      string    `json:"version"`
	Stages  []Stage   `json:"stages"` // in the order pending, current, previous; never nil
	Created time.Time `json:"created"`
	Size    int       `json:"size"` // bytes of the value
}

// Has tells whether the version has the stage.
func (v Version) Has(stage Stage) bool { return slices.Contains(v.Stages, stage) }

// Entry describes one secret of a store: its versions, the newest first.
type Entry struct {
	Name     string    `json:"name"`
	Versions []Version `json:"versions"`
}

// Stage finds the version that has a stage.
func (e Entry) Stage(stage Stage) (Version, bool) {
	for _, version := range e.Versions {
		if version.Has(stage) {
			return version, true
		}
	}
	return Version{}, false
}

var (
	nameSegment = regexp.MustCompile(`^[A-Za-z0-9_+=@-][A-Za-z0-9_+=@.-]*$`)
	versionID   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)
)

// CheckName says what is wrong with the name of a secret. Names are segments of letters, digits and
// _+=@.- with slashes in between, as in AWS Secrets Manager; a segment does not begin with a dot.
// The error is [ErrInvalid].
func CheckName(name string) error {
	if name == "" || len(name) > MaxName {
		return fmt.Errorf("%w name of a secret: it has %d bytes, and 1 to %d are possible", ErrInvalid, len(name), MaxName)
	}
	for segment := range strings.SplitSeq(name, "/") {
		if !nameSegment.MatchString(segment) {
			return fmt.Errorf("%w name of a secret: %q: write letters, digits and _+=@.- with single slashes in between, and no dot first", ErrInvalid, name)
		}
	}
	return nil
}

// CheckVersion says what is wrong with a version's id. Ids are letters, digits and _.- and none of the
// words that are stages. The error is [ErrInvalid].
func CheckVersion(id string) error {
	if len(id) > MaxVersion || !versionID.MatchString(id) {
		return fmt.Errorf("%w version id: %.80q: write up to %d letters, digits and _.-", ErrInvalid, id, MaxVersion)
	}
	if IsStage(id) {
		return fmt.Errorf("%w version id: %q is a stage's name", ErrInvalid, id)
	}
	return nil
}

// IsStage tells whether a word is the name of a stage.
func IsStage(word string) bool {
	switch Stage(word) {
	case Pending, Current, Previous:
		return true
	}
	return false
}

// CheckValue says what is wrong with a value. The error is [ErrInvalid].
func CheckValue(value []byte) error {
	switch {
	case len(value) == 0:
		return fmt.Errorf("%w value: it is empty", ErrInvalid)
	case len(value) > MaxValue:
		return fmt.Errorf("%w value: it has %d bytes, and a value has at most %d", ErrInvalid, len(value), MaxValue)
	}
	return nil
}
