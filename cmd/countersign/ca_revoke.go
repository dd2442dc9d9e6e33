package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/issue"
	"countersign.dev/journal"
)

type caRevokeCmd struct {
	Target string `arg:"" name:"serial-or-service" help:"A certificate's serial number, or a workload: NAME, service/NAME, gateway/NAME or its SPIFFE ID."`
	Reason string `placeholder:"REASON" help:"Why, as RFC 5280 says it: unspecified, keyCompromise, affiliationChanged, superseded, cessationOfOperation or privilegeWithdrawn. Default: unspecified."`
	caState
	sealFlags
	outputFlag
}

// Help is what --help adds.
func (caRevokeCmd) Help() string {
	return `Ends certificates before their time, for ever: one by its serial number, or all valid ones of a workload.
It is recorded in the journal first; then the issuing CA's list (CRL) is made anew. Where a server runs it is
asked, and tells every sidecar at once: peers refuse the holder within seconds, also on connections that are
open and on sessions that would be resumed. Without a server, this command opens the CA, and the next start of
the server spreads it.

Whoever held a revoked certificate comes back only with a new join token: those that were made for its
workload before are void, whichever instance they were for. With keyCompromise, all that was renewed with the
certificate is revoked, too, and its key is not certified again. To revoke again what is revoked makes the list
anew, with the next number and the same entries, and the exit status is 0.

Examples:
  countersign ca revoke --state ./state 5d6fa2c0b1e94e0fa7c21f0d3b86a914 --reason keyCompromise
  countersign ca revoke colorteller --reason cessationOfOperation
  countersign ca revoke --state ./state --unsealed service/colorteller`
}

// Run revokes.
func (c caRevokeCmd) Run(p *process) error {
	reason, err := issue.ParseReason(c.Reason)
	if err != nil {
		return usagef("--reason: %w", err)
	}
	target, err := ca.ParseTarget(c.Target)
	if err != nil {
		return usageError{err}
	}
	socket, err := c.running(p.ctx)
	if err != nil {
		return err
	}
	var done *api.RevokeResponse
	if socket != "" {
		c.idle(p)
		done, err = api.NewAdmin(socket).Revoke(p.ctx, api.RevokeRequest{Serial: target.Serial, Workload: target.Workload, Reason: string(reason)})
		if err != nil {
			return answered(p, err)
		}
	} else if done, err = c.byState(p, target, reason); err != nil {
		return err
	}
	return c.show(p, done)
}

// byState opens the CA and its journal.
func (c caRevokeCmd) byState(p *process, target ca.Target, reason issue.Reason) (*api.RevokeResponse, error) {
	sealer, err := c.sealer(p)
	if err != nil {
		return nil, err
	}
	open, log, ledger, err := openLedger(c.State, sealer)
	if err != nil {
		return nil, err
	}
	done, err := revokeInto(p.ctx, log, open, ledger, target, reason)
	if err := errors.Join(err, log.Close()); err != nil {
		return nil, err
	}
	return done, nil
}

// openStopped opens the CA of a state without a server, by one of package ca's functions for that. The journal comes
// first: its lock keeps others from changing the CA after it was read, for as long as somebody looks for a passphrase.
func openStopped(state string, sealer ca.Sealer, opened func(string, ca.Sealer) (*ca.CA, error)) (*ca.CA, *journal.Log, error) {
	log, err := ca.OpenJournal(state, sealer)
	if errors.Is(err, journal.ErrLocked) {
		return nil, nil, fmt.Errorf("a server runs on %s, and its socket is not %s; give its --socket: %w", state, filepath.Join(state, "server.sock"), err)
	}
	if err != nil {
		return nil, nil, err
	}
	open, err := opened(state, sealer)
	if err != nil {
		return nil, nil, errors.Join(err, log.Close())
	}
	return open, log, nil
}

// openLedger opens the CA of a state for what changes its lists.
func openLedger(state string, sealer ca.Sealer) (*ca.CA, *journal.Log, *ca.Ledger, error) {
	open, log, err := openStopped(state, sealer, ca.Open)
	if err != nil {
		return nil, nil, nil, err
	}
	ledger, err := ca.ReadLedger(log.Records())
	if err != nil {
		return nil, nil, nil, errors.Join(err, log.Close())
	}
	return open, log, ledger, nil
}

// revocationRefused is what the journal records of a revocation that was refused.
type revocationRefused struct {
	Target string `json:"target"`
	By     string `json:"by"`
	Reason string `json:"reason"`
}

// revokeInto does what a server does: choose, record, make the list.
func revokeInto(ctx context.Context, log *journal.Log, open *ca.CA, ledger *ca.Ledger, target ca.Target, reason issue.Reason) (*api.RevokeResponse, error) {
	const by = "administrator"
	issued, err := ca.Certificates(log.Records())
	if err != nil {
		return nil, err
	}
	now := time.Now()
	choice, err := choose(log, open, ledger, target, reason, issued, now)
	if err != nil {
		_, recorded := log.Append(ctx, journal.Entry{
			Time: now, Type: journal.RevokeRefused,
			Data: revocationRefused{Target: target.String(), By: by, Reason: err.Error()},
		})
		return nil, errors.Join(usageError{err}, recorded)
	}
	if !choice.IsEmpty() || target.Workload != "" { // without a certificate it is about the join tokens
		if err := ledger.Revoke(ctx, log, choice.Revocation(reason, by), now); err != nil {
			return nil, err
		}
	}
	lists, trouble, err := open.RefreshCRLs(ctx, log, ledger, ca.CRLLife(ca.LongestLife(slices.Values(issued), now)))
	if err := errors.Join(err, trouble); err != nil {
		return nil, fmt.Errorf("the revocation is recorded and holds, but the list is not made; repeat the command: %w", err)
	}
	return &api.RevokeResponse{Revoked: ledger.Rows(choice), CRLNumber: lists[0].Number.Int64()}, nil
}

// choose finds what a target means by the journal, as a server does by its database.
func choose(log *journal.Log, open *ca.CA, ledger *ca.Ledger, target ca.Target, reason issue.Reason, issued []ca.Certificate, now time.Time) (ca.Choice, error) {
	candidates, err := ca.Candidates(issued, target)
	if err != nil {
		return ca.Choice{}, err
	}
	tokens, err := ca.ReadTokens(log.Records())
	if err != nil {
		return ca.Choice{}, err
	}
	choice, err := open.Choose(ledger, target, slices.Values(candidates), tokens.Holders(open.TrustDomain()), now)
	if reason == issue.KeyCompromise {
		return ledger.Compromise(choice, err, target, log.Records(), now)
	}
	return choice, err
}

func (c caRevokeCmd) show(p *process, done *api.RevokeResponse) error {
	if c.json() {
		return writeJSON(p, done)
	}
	var text strings.Builder
	for _, one := range done.Revoked {
		what := "revoked"
		if one.Already {
			what = "was revoked already, on " + one.Time.Format(time.RFC3339)
		}
		if one.Renewed {
			what += ", too: it has that key, or was renewed with it"
		}
		fmt.Fprintf(&text, "%s of %s %s (%s)\n", one.Serial, one.Identity, what, one.Reason)
	}
	if len(done.Revoked) == 0 {
		text.WriteString("no certificate of it is valid; its join tokens are void\n")
	}
	fmt.Fprintf(&text, "CRL number %d\n", done.CRLNumber)
	_, err := p.stdout.Write([]byte(text.String()))
	return err
}
