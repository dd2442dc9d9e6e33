package ca

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"countersign.dev/api"
	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/journal"
)

// Choose is [Ledger.Choose] for an administrator: a CA's own serial is [ErrIssuingCA], and a workload that never had a
// certificate is a choice, too, when it is among the workloads that may hold a join token.
func (a *Authority) Choose(l *Ledger, t Target, issued iter.Seq[Candidate], workloads iter.Seq[id.ID], now time.Time) (Choice, error) {
	if t.Serial != "" && a.IsOwn(t.Serial) {
		return Choice{}, fmt.Errorf("%w: %s; a CA is not revoked but replaced", ErrIssuingCA, t.Serial)
	}
	choice, err := l.Choose(t, issued, now)
	if t.Serial != "" || !errors.Is(err, ErrUnknownCertificate) {
		return choice, err
	}
	var meant []id.ID
	for workload := range workloads {
		if t.Means("", workload) && !slices.Contains(meant, workload) {
			meant = append(meant, workload)
		}
	}
	switch len(meant) {
	case 0:
		return Choice{}, err
	case 1:
		return Choice{Identity: meant[0]}, nil
	default:
		return Choice{}, fmt.Errorf("%w: it had no certificate yet, and %q may be a service or a gateway; write service/%s or gateway/%s",
			ErrTarget, t.Workload, t.Workload, t.Workload)
	}
}

// IsEmpty tells whether there is nothing to record about certificates or keys.
func (c Choice) IsEmpty() bool { return len(c.Fresh) == 0 && len(c.Keys) == 0 }

// Revocation is what the journal records of a choice.
func (c Choice) Revocation(reason issue.Reason, by string) Revocation {
	return Revocation{Identity: c.Identity, Certificates: c.Fresh, Keys: c.Keys, Reason: reason, By: by}
}

// Rows are a choice that was carried out, as the administrator is told it.
func (l *Ledger) Rows(c Choice) []api.RevokedCertificate {
	rows := []api.RevokedCertificate{}
	add := func(r Revoked, already bool) {
		rows = append(rows, api.RevokedCertificate{
			Serial: r.Serial, Identity: r.Identity, NotAfter: r.NotAfter, Time: r.Time, Reason: string(r.Reason), Already: already, Renewed: c.Renewed[r.Serial],
		})
	}
	for _, fresh := range c.Fresh {
		if r, ok := l.Revoked(fresh.Serial); ok {
			add(r, false)
		}
	}
	for _, r := range c.Already {
		add(r, true)
	}
	return rows
}

// Candidates are those of the certificates in a journal that a target means.
func Candidates(issued []Certificate, t Target) ([]Candidate, error) {
	var candidates []Candidate
	for _, certificate := range issued {
		if !t.Means(certificate.Serial, certificate.Identity) {
			continue
		}
		short, err := certificate.Short()
		if err != nil {
			return nil, err
		}
		candidates = append(candidates, Candidate{RevokedShort: short, Identity: certificate.Identity})
	}
	return candidates, nil
}

// Tokens are the join tokens that a journal knows, by the names that it gives them.
type Tokens struct {
	// Open are those that no revocation came after, by workload; they may have ended, or be used up.
	Open map[string][]string
	// Void are those that one came after.
	Void []string
}

// ReadTokens reads a journal's records, by their order.
func ReadTokens(records iter.Seq2[journal.Record, error]) (Tokens, error) {
	t := Tokens{Open: make(map[string][]string)}
	for record, err := range records {
		if err != nil {
			return Tokens{}, fmt.Errorf("reading the journal: %w", err)
		}
		switch record.Type { //nolint:exhaustive // the other types are not about tokens
		case journal.TokenCreated:
			var facts struct{ Token, Workload string }
			if err := json.Unmarshal(record.Data, &facts); err != nil {
				return Tokens{}, fmt.Errorf("reading the journal's entry %d: %w", record.Index, err)
			}
			t.Open[facts.Workload] = append(t.Open[facts.Workload], facts.Token)
		case journal.Revoke:
			var r Revocation
			if err := json.Unmarshal(record.Data, &r); err != nil {
				return Tokens{}, fmt.Errorf("reading the journal's entry %d: %w", record.Index, err)
			}
			if kind := r.Identity.Kind(); kind == id.Service || kind == id.Gateway {
				t.Void = append(t.Void, t.Open[r.Identity.Name()]...)
				delete(t.Open, r.Identity.Name())
			}
		}
	}
	return t, nil
}

// Holders are whom the open tokens may be of. A journal does not say whether a name is a service's or a gateway's, so
// that each is there as both.
func (t Tokens) Holders(trustDomain string) iter.Seq[id.ID] {
	return func(yield func(id.ID) bool) {
		for name := range t.Open {
			for _, kind := range []id.Kind{id.Service, id.Gateway} {
				holder, err := id.Parse("spiffe://" + trustDomain + "/" + string(kind) + "/" + name)
				if err == nil && !yield(holder) {
					return
				}
			}
		}
	}
}
