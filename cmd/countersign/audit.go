package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"countersign.dev/ca"
	"countersign.dev/journal"
)

type auditCmd struct {
	Log auditLogCmd `cmd:"" help:"The journal: what was issued, refused, enrolled and applied."`
}

type auditLogCmd struct {
	Export auditExportCmd `cmd:"" help:"Copy the journal out, for somebody who checks it elsewhere."`
	Verify auditVerifyCmd `cmd:"" help:"Check a copy of the journal, offline."`
	Key    auditKeyCmd    `cmd:"" help:"Print the key that a copy is checked with."`
	Show   auditShowCmd   `cmd:"" help:"Print the entries of a copy, one JSON text a line."`
}

// journalSource says where the journal is: behind a running server, or in a state directory.
type journalSource struct {
	State string `placeholder:"DIR" help:"Read the journal in this state, whether or not a server runs on it."`
	adminFlags
}

func (s journalSource) check() error {
	if s.State != "" && s.Socket != "" {
		return usagef("--state and --socket exclude each other")
	}
	return nil
}

type auditExportCmd struct {
	Dir string `arg:"" help:"A directory that is empty or does not exist."`
	journalSource
}

// Help is what --help adds.
func (auditExportCmd) Help() string {
	return `Writes three files: checkpoint (size and root hash of a Merkle tree, signed; C2SP tlog-checkpoint),
entries.jsonl (one entry a line; a leaf of the tree is the bytes of a line) and key.pub. Anybody can check
them with 'countersign audit log verify', which needs nothing else.

Examples:
  countersign audit log export ./audit --socket ./state/server.sock
  countersign audit log export ./audit --state ./state`
}

// Run copies the journal.
func (c auditExportCmd) Run(p *process) error {
	if err := c.check(); err != nil {
		return err
	}
	produce := func(w io.Writer) error { return journal.Export(ca.JournalDir(c.State), w) }
	if c.State == "" {
		admin, err := c.admin()
		if err != nil {
			return err
		}
		produce = func(w io.Writer) error { return answered(p, admin.Journal(p.ctx, w)) }
	}
	if err := extract(produce, c.Dir); err != nil {
		if errors.Is(err, os.ErrExist) {
			return usagef("%s is not empty, and what is there is kept; name a directory that is empty or not there yet", c.Dir)
		}
		return err
	}
	vkey, err := journal.VerifierKey(c.Dir)
	if err != nil {
		return err
	}
	size, err := journal.Verify(c.Dir, vkey)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(p.stdout, "%s: %d entries; check them with: countersign audit log verify %s --key %s\n", c.Dir, size, c.Dir, vkey)
	return err
}

// extract writes what a producer sends into a directory.
func extract(produce func(io.Writer) error, dir string) error {
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := produce(w)
		w.CloseWithError(err) // a nil error is the end of the copy
		done <- err
	}()
	err := journal.Extract(r, dir)
	r.CloseWithError(err) // the producer does not wait for a reader that has given up
	if sent := <-done; sent != nil && !errors.Is(sent, io.ErrClosedPipe) && !errors.Is(err, sent) {
		return sent
	}
	return err
}

type auditVerifyCmd struct {
	Dir string `arg:"" help:"A copy that 'audit log export' has made."`
	Key string `required:"" placeholder:"VKEY" help:"The verifier key, as 'audit log key' prints it. Get it from the operator once, and keep it: a key that comes along with a copy proves nothing."`
}

// Help is what --help adds.
func (auditVerifyCmd) Help() string {
	return `Needs no server and no network. It finds a changed byte, a missing or added entry, a cut end and a
checkpoint that another key has signed. The exit status is 0 when the copy is whole, 1 when it is not, and 2
when VKEY is not a key.

Example:
  countersign audit log verify ./audit --key colorapp.internal/journal+1a2b3c4d+Ab...`
}

// Run checks a copy.
func (c auditVerifyCmd) Run(p *process) error {
	size, err := journal.Verify(c.Dir, c.Key)
	if errors.Is(err, journal.ErrKey) {
		return usagef("--key: %w", err)
	}
	if err != nil {
		return fmt.Errorf("the copy in %s does not hold: %w", c.Dir, err)
	}
	_, err = fmt.Fprintf(p.stdout, "%s: %d entries, whole and signed\n", c.Dir, size)
	return err
}

type auditKeyCmd struct {
	journalSource
}

// Help is what --help adds.
func (auditKeyCmd) Help() string {
	return `Prints the key of the journal's signatures in the note format, for 'audit log verify --key'.

Examples:
  countersign audit log key --state ./state
  countersign audit log key --socket ./state/server.sock`
}

// Run prints the key.
func (c auditKeyCmd) Run(p *process) error {
	if err := c.check(); err != nil {
		return err
	}
	if c.State != "" {
		vkey, err := journal.VerifierKey(ca.JournalDir(c.State))
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(p.stdout, vkey)
		return err
	}
	admin, err := c.admin()
	if err != nil {
		return err
	}
	authority, err := admin.CA(p.ctx)
	if err != nil {
		return answered(p, err)
	}
	_, err = fmt.Fprintln(p.stdout, authority.JournalKey)
	return err
}

type auditShowCmd struct {
	Dir string `arg:"" help:"A copy that 'audit log export' has made."`
}

// Help is what --help adds.
func (auditShowCmd) Help() string {
	return `Prints each entry with its index. It does not check the copy: 'audit log verify' does.

Example:
  countersign audit log show ./audit | jq 'select(.type == "issue.issued") | .data.identity'`
}

// Run prints the entries.
func (c auditShowCmd) Run(p *process) error {
	encoder := json.NewEncoder(p.stdout)
	encoder.SetEscapeHTML(false)
	for record, err := range journal.Records(c.Dir) {
		if err != nil {
			return err
		}
		shown := struct {
			Index int64 `json:"index"`
			journal.Record
		}{record.Index, record}
		if err := encoder.Encode(shown); err != nil {
			return err
		}
	}
	return nil
}
