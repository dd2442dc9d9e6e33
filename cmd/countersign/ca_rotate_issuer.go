package main

import (
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/journal"
	"countersign.dev/mesh"
)

type caRotateIssuerCmd struct {
	RootKey    string        `placeholder:"FILE" help:"The root's key, stored as the CA's keys are, when it was moved out of the state. It stays where it is."`
	IssuerLife time.Duration `help:"How long the certificate of the next issuing CA is valid. Default: as now; never beyond the root's."`
	rotateFlags
	sealFlags
}

// Help is what --help adds.
func (caRotateIssuerCmd) Help() string {
	return `A server renews its issuing CA by itself when a fifth of its life is left, as long as the root's key is in
the state; this command is for a key that is elsewhere, or for a CA that was without a server until its
issuing CA ended. Nobody has to trust anything new. Without a server it opens the CA, and needs to be told how
its keys are stored.

Examples:
  countersign ca rotate issuer --state ./state --root-key /media/safe/root.key
  countersign ca rotate issuer --state ./state --key-file ca.age`
}

// Run makes the issuing CA.
func (c caRotateIssuerCmd) Run(p *process) error {
	socket, err := c.running(p.ctx)
	if err != nil {
		return err
	}
	file := c.RootKey
	if file != "" {
		if file, err = filepath.Abs(file); err != nil {
			return err
		}
	}
	if socket != "" {
		if said := c.given(); len(said) > 0 {
			return usagef("%s: a server runs on the CA, and has opened it; leave that out", strings.Join(said, ", "))
		}
		return c.take(p, api.RotationRequest{Step: api.RotateIssuer, RootKeyFile: file, IssuerLife: mesh.Duration(c.IssuerLife)})
	}
	sealer, err := c.sealer(p)
	if err != nil {
		return err
	}
	authority, err := c.byState(p, sealer, file)
	if err != nil {
		return err
	}
	shown, err := showAuthority(authority)
	if err != nil {
		return err
	}
	if c.json() {
		return writeJSON(p, shown)
	}
	return shown.write(p.stdout)
}

// byState does it without a server.
func (c caRotateIssuerCmd) byState(p *process, sealer ca.Sealer, file string) (*ca.Authority, error) {
	open, log, err := openStopped(c.State, sealer, func(state string, sealer ca.Sealer) (*ca.CA, error) {
		return ca.OpenExpired(state, sealer, time.Now)
	})
	if err != nil {
		return nil, err
	}
	err = c.renew(p, open, log, file)
	if err := errors.Join(err, log.Close()); err != nil {
		return nil, fmt.Errorf("in %s: %w", c.State, err)
	}
	return open.Authority, nil
}

// renew makes the issuing CA with the key in a file, or in the state when there is none.
func (c caRotateIssuerCmd) renew(p *process, open *ca.CA, log *journal.Log, file string) error {
	var key crypto.Signer
	if file != "" {
		var err error
		if key, err = open.ReadKeyFile(file); errors.Is(err, fs.ErrNotExist) {
			return usageError{err}
		} else if err != nil {
			return err
		}
	} else if !open.RootKeyAtHand() {
		return usagef("the root's key is not in %s; give it with --root-key FILE", c.State)
	}
	if _, err := open.RenewIssuer(p.ctx, log, key, c.IssuerLife, ca.Note{By: "administrator"}); err != nil {
		return err
	}
	return open.Settle()
}
