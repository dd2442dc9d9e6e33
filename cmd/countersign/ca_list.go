package main

import (
	"fmt"
	"slices"
	"text/tabwriter"
	"time"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/journal"
)

type caListCmd struct {
	caState
	outputFlag
}

// Help is what --help adds.
func (caListCmd) Help() string {
	return `While a server runs on the state, it is asked: it lists what is valid or expired lately. Otherwise the
journal is read, which knows every certificate since the CA was made. The newest is first.

Examples:
  countersign ca list --state /var/lib/countersign
  countersign ca list --output json | jq '.[] | select(.identity | endswith("/colorteller"))'`
}

// Run lists the certificates.
func (c caListCmd) Run(p *process) error {
	records, err := c.records(p)
	if err != nil {
		return err
	}
	if c.json() {
		return writeJSON(p, records)
	}
	table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	if _, err := fmt.Fprintln(table, "SERIAL\tIDENTITY\tINSTANCE\tNOT BEFORE\tNOT AFTER\tREVOKED"); err != nil {
		return err
	}
	for _, record := range records {
		instance := record.Instance
		if instance == "" {
			instance = "-"
		}
		revoked := "-"
		if !record.Revoked.IsZero() {
			revoked = record.Revoked.UTC().Format(time.RFC3339) + " " + record.Reason
		}
		_, err := fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", record.Serial, record.Identity, instance,
			record.NotBefore.UTC().Format(time.RFC3339), record.NotAfter.UTC().Format(time.RFC3339), revoked)
		if err != nil {
			return err
		}
	}
	return table.Flush()
}

func (c caListCmd) records(p *process) ([]api.CertificateRecord, error) {
	socket, err := c.running(p.ctx)
	if err != nil {
		return nil, err
	}
	if socket != "" {
		records, err := api.NewAdmin(socket).Certificates(p.ctx)
		if err != nil {
			return nil, answered(p, err)
		}
		return records, nil
	}
	if _, err := ca.Read(c.State); err != nil {
		return nil, err
	}
	issued, err := ca.Certificates(journal.Records(ca.JournalDir(c.State)))
	if err != nil {
		return nil, err
	}
	ledger, err := ca.ReadLedger(journal.Records(ca.JournalDir(c.State)))
	if err != nil {
		return nil, err
	}
	records := []api.CertificateRecord{}
	for _, one := range slices.Backward(issued) {
		revoked, _ := ledger.Revoked(one.Serial)
		records = append(records, api.CertificateRecord{
			Revoked: revoked.Time, Reason: string(revoked.Reason),
			Serial:    one.Serial,
			Identity:  one.Identity,
			NotBefore: one.NotBefore,
			NotAfter:  one.NotAfter,
			Instance:  one.Instance,
		})
	}
	return records, nil
}
