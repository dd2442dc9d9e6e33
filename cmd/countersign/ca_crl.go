package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/durable"
	"countersign.dev/issue"
	"countersign.dev/mtls"
)

type caCRLCmd struct {
	Show      bool   `help:"Show what stands in the lists instead of the lists."`
	Out       string `placeholder:"FILE" help:"Write the lists to FILE, in one step."`
	RenewRoot bool   `help:"Make the root's list anew. It opens the root's key; a server that runs does it itself."`
	RootKey   string `placeholder:"FILE" help:"With --renew-root: where the root's key is, if it is not in the state any more. A server that runs has to be able to read it."`
	caState
	sealFlags
	outputFlag
}

// Help is what --help adds.
func (caCRLCmd) Help() string {
	return `Prints the lists of revoked certificates (CRLs) in PEM: the issuing CA's and the root's, one after the
other, as the ssl_crl of NGINX and the crl-file of HAProxy want them. Both check the whole chain: without the
root's list they refuse everybody. While a server runs on the state, it is asked.

The issuing CA's list is made anew at every revocation, at every start of the server and every six hours. The
root's list is made with the CA, and is valid for as long as the issuing CA; --renew-root makes another. A
server that runs warns 30 days before the root's list ends.

Examples:
  countersign ca crl --state ./state > crl.pem
  countersign ca crl --state ./state --show
  countersign ca crl --output json | jq '.[0].revoked'
  countersign ca crl --state ./state --renew-root --root-key /media/safe/root.key --key-file ca.age`
}

// listed is one CRL, for --show and --output json.
type listed struct {
	Issuer     string       `json:"issuer"`
	Number     string       `json:"number"`
	ThisUpdate time.Time    `json:"thisUpdate"`
	NextUpdate time.Time    `json:"nextUpdate"`
	Revoked    []listedLine `json:"revoked"`
	PEM        string       `json:"pem"`
}

type listedLine struct {
	Serial string    `json:"serial"`
	Time   time.Time `json:"time"`
	Reason string    `json:"reason"`
}

// Run prints the lists.
func (c caCRLCmd) Run(p *process) error {
	switch {
	case c.Show && (c.Out != "" || c.json()):
		return usagef("--show excludes --out and --output json")
	case c.Out != "" && c.json():
		return usagef("--out writes PEM; --output json is for standard output")
	case c.RootKey != "" && !c.RenewRoot:
		return usagef("--root-key is for --renew-root")
	}
	if said := c.given(); len(said) > 0 && !c.RenewRoot {
		return usagef("%s: only --renew-root opens a key; leave that out", strings.Join(said, ", "))
	}
	if c.RenewRoot {
		if err := c.renewRoot(p); err != nil {
			return err
		}
	}
	text, err := c.lists(p.ctx, p)
	if err != nil {
		return err
	}
	switch {
	case c.json():
		described, err := describeLists(text)
		if err != nil {
			return err
		}
		return writeJSON(p, described)
	case c.Show:
		return c.table(p, text)
	case c.Out != "":
		return durable.WriteFile(c.Out, text, 0o644)
	}
	_, err = p.stdout.Write(text)
	return err
}

// renewRoot makes the root's list.
func (c caCRLCmd) renewRoot(p *process) error {
	socket, err := c.running(p.ctx)
	if err != nil {
		return err
	}
	file := c.RootKey
	if file != "" {
		if file, err = filepath.Abs(file); err != nil {
			return err
		}
		if _, err := os.Stat(file); err != nil {
			return usagef("--root-key: %w", err)
		}
	}
	if socket != "" {
		c.idle(p)
		_, err := api.NewAdmin(socket).RenewCRL(p.ctx, api.RenewCRLRequest{RootKeyFile: file})
		return answered(p, err)
	}
	sealer, err := c.sealer(p)
	if err != nil {
		return err
	}
	open, log, ledger, err := openLedger(c.State, sealer)
	if err != nil {
		return err
	}
	_, err = open.RenewRootCRL(p.ctx, log, ledger, open.Hierarchies()[0], file)
	if errors.Is(err, ca.ErrNoRootKey) {
		err = usageError{err}
	}
	return errors.Join(err, log.Close())
}

// lists are the CRLs in PEM.
func (c caCRLCmd) lists(ctx context.Context, p *process) ([]byte, error) {
	socket, err := c.running(ctx)
	if err != nil {
		return nil, err
	}
	if socket != "" {
		text, err := api.NewAdmin(socket).CRL(ctx)
		if err != nil {
			return nil, answered(p, err)
		}
		return text, nil
	}
	authority, err := ca.Read(c.State)
	if err != nil {
		return nil, err
	}
	lists, err := authority.CRLs()
	if err != nil {
		return nil, err
	}
	return ca.EncodeCRLs(lists), nil
}

// describeLists says what stands in lists.
func describeLists(text []byte) ([]listed, error) {
	described := []listed{}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading a CRL: %w", err)
		}
		one := listed{
			Issuer: list.Issuer.String(), Number: list.Number.String(), ThisUpdate: list.ThisUpdate.UTC(), NextUpdate: list.NextUpdate.UTC(),
			Revoked: []listedLine{}, PEM: string(pem.EncodeToMemory(block)),
		}
		for _, entry := range list.RevokedCertificateEntries {
			reason, ok := issue.ReasonOf(entry.ReasonCode)
			if !ok {
				reason = issue.Unspecified
			}
			serial := mtls.Serial(&x509.Certificate{SerialNumber: entry.SerialNumber})
			one.Revoked = append(one.Revoked, listedLine{Serial: serial, Time: entry.RevocationTime.UTC(), Reason: string(reason)})
		}
		described = append(described, one)
	}
	return described, nil
}

// table shows the lists to people.
func (c caCRLCmd) table(p *process, text []byte) error {
	described, err := describeLists(text)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	for i, one := range described {
		if i > 0 {
			fmt.Fprintln(table)
		}
		fmt.Fprintf(table, "%s\nnumber %s, made %s, valid to %s, revoked: %d\n", one.Issuer, one.Number,
			one.ThisUpdate.Format(time.RFC3339), one.NextUpdate.Format(time.RFC3339), len(one.Revoked))
		for _, line := range one.Revoked {
			fmt.Fprintf(table, "%s\t%s\t%s\n", line.Serial, line.Time.Format(time.RFC3339), line.Reason)
		}
	}
	return table.Flush()
}
