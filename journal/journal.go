// Package journal knows what was issued, refused, enrolled and applied, in which order, and proves
// that nobody changed it afterwards: an append-only Merkle log (RFC 6962, golang.org/x/mod/sumdb/tlog)
// whose head is signed.
//
// A journal is a directory:
//
//	checkpoint     origin, size and root hash, signed (C2SP tlog-checkpoint, signed note)
//	entries.jsonl  one JSON text a line; a leaf is the bytes of a line without its newline
//	key.pub        the verifier key of the note format
//
// Those three are also what [Export] copies and [Verify] reads. An entry counts when a checkpoint
// covers it; lines beyond the checkpoint were never acknowledged to anyone and are dropped by the
// next [Open]. Lines below it that are missing or altered make Open refuse.
package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Sentinel errors.
var (
	// ErrNotRecorded says that an entry is not known to be on disk. What it announced must not be done.
	ErrNotRecorded = errors.New("the journal cannot be written")
	// ErrLocked says that another process writes this journal.
	ErrLocked = errors.New("the journal is in use by another process; stop the other server first")
	// ErrNoJournal says that there is no journal in a directory.
	ErrNoJournal = errors.New("there is no journal")
	// ErrExists says that there is a journal already.
	ErrExists = errors.New("there is a journal already")
	// ErrKey says that a text is no key of the note format.
	ErrKey = errors.New("malformed journal key")
	// ErrForged says that a checkpoint does not carry a signature of the expected key.
	ErrForged = errors.New("the checkpoint is not signed by the given key")
	// ErrTruncated says that entries below the checkpoint are missing.
	ErrTruncated = errors.New("entries are missing")
	// ErrAltered says that the entries are not those that the checkpoint was made for.
	ErrAltered = errors.New("entries were altered")
	// ErrEntry says that an entry cannot be written as one line of JSON.
	ErrEntry = errors.New("invalid journal entry")
)

// MaxEntry is the greatest length of an entry in bytes.
const MaxEntry = 1 << 20

// Type says what an entry tells.
type Type string

// The types of entries.
const (
	Created       Type = "journal.created" // always entry 0
	IssueIntent   Type = "issue.intent"    // a certificate is about to be signed
	Issued        Type = "issue.issued"    // it was signed
	IssueRefused  Type = "issue.refused"
	Enroll        Type = "enroll" // a join token was accepted
	EnrollRefused Type = "enroll.refused"
	Renew         Type = "renew" // a certificate was accepted as the proof for its successor
	RenewRefused  Type = "renew.refused"
	TokenCreated  Type = "token.created"
	TokenRefused  Type = "token.refused"
	Apply         Type = "apply" // a specification is about to run
	ApplyRefused  Type = "apply.refused"
	Probe         Type = "probe" // a verifier is about to get a certificate
	ProbeRefused  Type = "probe.refused"
	Revoke        Type = "revoke" // certificates hold no more from here on
	RevokeRefused Type = "revoke.refused"
	CRLIssued     Type = "crl.issued" // a list of revoked certificates is about to be given out

	CARotate        Type = "ca.rotate" // the hierarchies of the CA are about to change
	CARotateRefused Type = "ca.rotate.refused"
)

// Entry is what [Log.Append] records.
type Entry struct {
	Time time.Time
	Type Type
	// Data is marshalled as JSON; it must be an object whose numbers are integers, and hold no secret.
	Data any
}

// Record is an entry as it stands in the journal.
type Record struct {
	Index int64           `json:"-"`
	Time  time.Time       `json:"time"`
	Type  Type            `json:"type"`
	Data  json.RawMessage `json:"data"`
}

// line is the entry's one and only spelling: members sorted, no white space, nothing escaped that
// need not be (after RFC 8785). The leaf hash is over these bytes, so a reader never has to repeat
// the spelling; it is stable so that people can compare entries.
func (e Entry) line() ([]byte, error) {
	data, err := plain(e.Data)
	if err != nil {
		return nil, fmt.Errorf("%w of type %s: %w", ErrEntry, e.Type, err)
	}
	var buf bytes.Buffer
	encoder := json.NewEncoder(&buf)
	encoder.SetEscapeHTML(false)
	err = encoder.Encode(map[string]any{
		"data": data,
		"time": e.Time.UTC().Format(time.RFC3339Nano),
		"type": e.Type,
	})
	if err != nil {
		return nil, fmt.Errorf("%w of type %s: %w", ErrEntry, e.Type, err)
	}
	line := bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
	if len(line) > MaxEntry {
		return nil, fmt.Errorf("%w of type %s: it has %d bytes, and at most %d are possible", ErrEntry, e.Type, len(line), MaxEntry)
	}
	return line, nil
}

// plain turns a value into maps, slices, texts and integers, whose members Go marshals in order.
func plain(v any) (map[string]any, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var object map[string]any
	if err := decoder.Decode(&object); err != nil {
		return nil, fmt.Errorf("the data is not an object: %w", err)
	}
	if object == nil {
		return nil, errors.New("the data is null")
	}
	return object, checkNumbers(object)
}

// checkNumbers refuses fractions: they have many spellings.
func checkNumbers(v any) error {
	switch v := v.(type) {
	case json.Number:
		if strings.ContainsAny(v.String(), ".eE") {
			return fmt.Errorf("the number %s is not an integer", v)
		}
	case []any:
		for _, element := range v {
			if err := checkNumbers(element); err != nil {
				return err
			}
		}
	case map[string]any:
		for _, member := range v {
			if err := checkNumbers(member); err != nil {
				return err
			}
		}
	}
	return nil
}

// parseRecord reads a line back.
func parseRecord(index int64, line []byte) (Record, error) {
	r := Record{Index: index}
	if err := json.Unmarshal(line, &r); err != nil {
		return Record{}, fmt.Errorf("entry %d: %w: %w", index, ErrEntry, err)
	}
	return r, nil
}
