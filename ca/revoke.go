package ca

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"

	"countersign.dev/durable"
	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/journal"
)

// ErrUnknownCertificate says that this CA has issued no such certificate to a member of the mesh.
var ErrUnknownCertificate = errors.New("this CA has issued no such certificate")

// Revocation is the data of a [journal.Revoke] entry: certificates of one identity that hold no more from the entry's
// time on, and with it every join token that was made for the workload before.
type Revocation struct {
	Identity     id.ID          `json:"identity"`
	Certificates []RevokedShort `json:"certificates"`
	Reason       issue.Reason   `json:"reason"`
	// Keys are public keys that are not certified again, because they were compromised: the hex SHA-256 of each.
	Keys []string `json:"keys,omitempty"`
	// By is who asked for it, in words.
	By string `json:"by,omitempty"`
}

// RevokedShort names a revoked certificate in the journal.
type RevokedShort struct {
	Serial string `json:"serial"`
	// Issuer is the authority key identifier, hex: which CA's list it stands on.
	Issuer   string    `json:"issuer"`
	NotAfter time.Time `json:"notAfter"`
}

// Revoked is a certificate that was revoked.
type Revoked struct {
	RevokedShort
	Identity id.ID
	Time     time.Time
	Reason   issue.Reason
}

// Ledger is what a journal says about revocations: who was revoked, and which numbers CRLs have had. It is safe for
// concurrent use.
type Ledger struct {
	mu      sync.Mutex
	revoked map[string]Revoked // guarded by mu, by serial
	keys    map[string]bool    // guarded by mu: those that were compromised
	numbers map[string]int64   // guarded by mu: the last one, by the CA's subject key identifier in hex
}

// ReadLedger reads a journal's records.
func ReadLedger(records iter.Seq2[journal.Record, error]) (*Ledger, error) {
	l := &Ledger{revoked: make(map[string]Revoked), keys: make(map[string]bool), numbers: make(map[string]int64)}
	for record, err := range records {
		if err != nil {
			return nil, fmt.Errorf("reading the journal: %w", err)
		}
		switch record.Type { //nolint:exhaustive // the other types are not about revocation
		case journal.Revoke:
			var r Revocation
			if err := json.Unmarshal(record.Data, &r); err != nil {
				return nil, fmt.Errorf("reading the journal's entry %d: %w", record.Index, err)
			}
			l.add(r, record.Time)
		case journal.CRLIssued:
			var issued issuedCRL
			if err := json.Unmarshal(record.Data, &issued); err != nil {
				return nil, fmt.Errorf("reading the journal's entry %d: %w", record.Index, err)
			}
			l.numbers[issued.Issuer] = max(l.numbers[issued.Issuer], issued.Number)
		}
	}
	return l, nil
}

func (l *Ledger) add(r Revocation, at time.Time) {
	for _, short := range r.Certificates {
		if _, known := l.revoked[short.Serial]; !known { // the first word counts
			l.revoked[short.Serial] = Revoked{RevokedShort: short, Identity: r.Identity, Time: at.UTC(), Reason: r.Reason}
		}
	}
	for _, key := range r.Keys {
		l.keys[key] = true
	}
}

// Revoked tells whether a certificate was revoked, by its serial.
func (l *Ledger) Revoked(serial string) (Revoked, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.revoked[serial]
	return r, ok
}

// All lists everything that was revoked, the latest first.
func (l *Ledger) All() []Revoked {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]Revoked, 0, len(l.revoked))
	for _, r := range l.revoked {
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b Revoked) int { return cmp.Or(b.Time.Compare(a.Time), cmp.Compare(a.Serial, b.Serial)) })
	return all
}

// Revoke records a revocation and then lets it hold: what cannot be recorded does not happen. It makes no CRL.
func (l *Ledger) Revoke(ctx context.Context, to Appender, r Revocation, now time.Time) error {
	if _, err := to.Append(ctx, journal.Entry{Time: now, Type: journal.Revoke, Data: r}); err != nil {
		return fmt.Errorf("revoking %s: recording it: %w", r.Identity, err)
	}
	durable.Step("ca.revoke.recorded")
	l.mu.Lock()
	defer l.mu.Unlock()
	l.add(r, now)
	return nil
}

// next reserves the number of a CA's next CRL. No number is used twice, whatever becomes of the list. It is the time in
// seconds where that is greater than the last one: a state that was put back from a backup does not know the last one,
// and a list with a number of before is taken by nobody.
func (l *Ledger) next(authority *x509.Certificate, now time.Time) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	name := hex.EncodeToString(authority.SubjectKeyId)
	l.numbers[name] = max(l.numbers[name]+1, now.Unix())
	return l.numbers[name]
}

// know learns a number from a list that is kept: that of a new hierarchy comes before its first entry in the journal. A
// list that is missing or damaged teaches nothing.
func (l *Ledger) know(list *x509.RevocationList, err error) error {
	if err != nil {
		if errors.Is(err, ErrNoCRL) || errors.Is(err, ErrCorrupt) {
			return nil
		}
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	name := hex.EncodeToString(list.AuthorityKeyId)
	l.numbers[name] = max(l.numbers[name], list.Number.Int64())
	return nil
}

// keepRevoked is how long a certificate stands on its list after its own end: RFC 5280 section 3.3 wants it on one
// scheduled list beyond that, and a clock may be behind.
const keepRevoked = 7 * 24 * time.Hour

// entries are what a CA's CRL holds.
func (l *Ledger) entries(authority *x509.Certificate, now time.Time) ([]issue.Revoked, error) {
	name := hex.EncodeToString(authority.SubjectKeyId)
	l.mu.Lock()
	defer l.mu.Unlock()
	var entries []issue.Revoked
	for _, r := range l.revoked {
		if r.Issuer != name || now.After(r.NotAfter.Add(keepRevoked)) {
			continue
		}
		serial, ok := new(big.Int).SetString(r.Serial, 16)
		if !ok {
			return nil, fmt.Errorf("the journal revokes %q, which is no serial number", r.Serial)
		}
		entries = append(entries, issue.Revoked{Serial: serial, Time: r.Time, Reason: r.Reason})
	}
	return entries, nil
}

// Short names the certificate as the journal does when it is revoked.
func (c Certificate) Short() (RevokedShort, error) {
	der, err := base64.StdEncoding.DecodeString(c.DER)
	if err != nil {
		return RevokedShort{}, fmt.Errorf("reading certificate %s: %w", c.Serial, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return RevokedShort{}, fmt.Errorf("reading certificate %s: %w", c.Serial, err)
	}
	return ShortOf(c.Serial, cert), nil
}

// ShortOf names a certificate as the journal does when it is revoked.
func ShortOf(serial string, cert *x509.Certificate) RevokedShort {
	return RevokedShort{Serial: serial, Issuer: hex.EncodeToString(cert.AuthorityKeyId), NotAfter: cert.NotAfter.UTC()}
}

// LongestLife is the longest life among the certificates that have not ended. It is what their holders may live
// through without a server.
func LongestLife(certificates iter.Seq[Certificate], now time.Time) time.Duration {
	var longest time.Duration
	for c := range certificates {
		if now.Before(c.NotAfter) {
			longest = max(longest, c.NotAfter.Sub(c.NotBefore.Add(issue.ClockAllowance)))
		}
	}
	return longest
}

// IsOwn tells whether a serial is a root's or an issuing CA's, which no member's revocation is about.
func (a *Authority) IsOwn(serial string) bool {
	n, ok := new(big.Int).SetString(serial, 16)
	return ok && slices.ContainsFunc(a.Hierarchies(), func(h Hierarchy) bool {
		return n.Cmp(h.Root.SerialNumber) == 0 || n.Cmp(h.Issuer.SerialNumber) == 0
	})
}

// sameKey tells whether a certificate was signed by a CA, as far as identifiers tell.
func sameKey(list *x509.RevocationList, authority *x509.Certificate) bool {
	return bytes.Equal(list.AuthorityKeyId, authority.SubjectKeyId) && bytes.Equal(list.RawIssuer, authority.RawSubject)
}

// Target says what to revoke: one certificate, or all of a workload's.
type Target struct {
	// Serial is in lower-case hex; empty when a workload is meant.
	Serial string
	// Workload is NAME, KIND/NAME or a SPIFFE ID.
	Workload string
}

// ErrTarget says that a text names neither a certificate nor a workload.
var ErrTarget = errors.New("that is neither a serial number nor a workload")

// leastSerial is how many hex digits make a text a serial number rather than a name: serials here have 128 bits.
const leastSerial = 16

// ParseTarget reads what an administrator writes: a serial number in hex, with or without colons and in any case, a
// workload's name, kind/name, or SPIFFE ID. The error is [ErrTarget].
func ParseTarget(text string) (Target, error) {
	digits := strings.ToLower(strings.TrimPrefix(strings.ReplaceAll(text, ":", ""), "0x"))
	if n, ok := new(big.Int).SetString(digits, 16); ok && len(digits) >= leastSerial && len(digits) <= 40 && n.Sign() > 0 && !strings.ContainsAny(digits, "+-_/") {
		return Target{Serial: hex.EncodeToString(n.Bytes())}, nil
	}
	if _, err := id.Parse(text); err == nil {
		return Target{Workload: text}, nil
	}
	name := text
	for _, kind := range []id.Kind{id.Service, id.Gateway} {
		if rest, ok := strings.CutPrefix(text, string(kind)+"/"); ok {
			name = rest
		}
	}
	if err := id.CheckDNSName(name); err != nil {
		return Target{}, fmt.Errorf("%w: %.100q; write a serial number as `countersign ca list` shows it, or NAME, service/NAME or gateway/NAME", ErrTarget, text)
	}
	return Target{Workload: text}, nil
}

// String is the target as it was given.
func (t Target) String() string { return cmp.Or(t.Serial, t.Workload) }

// Means tells whether a certificate is meant.
func (t Target) Means(serial string, identity id.ID) bool {
	if t.Serial != "" {
		return t.Serial == serial
	}
	if kind := identity.Kind(); kind != id.Service && kind != id.Gateway {
		return false
	}
	return t.Workload == identity.Name() || t.Workload == string(identity.Kind())+"/"+identity.Name() || t.Workload == identity.String()
}

// Candidate is an issued certificate that may be revoked.
type Candidate struct {
	RevokedShort
	Identity id.ID
}

// Choice is what a target comes to.
type Choice struct {
	Identity id.ID
	// Fresh are the valid certificates to revoke, Already those that were revoked before.
	Fresh   []RevokedShort
	Already []Revoked
	// Keys are those that are not certified again, and Renewed tells which of Fresh were not named but follow from what
	// was, by serial; see [Ledger.Compromise].
	Keys    []string
	Renewed map[string]bool
}

// Choose finds what a target means among the certificates that were issued; those that are not meant may be among them.
// A serial that is not there is [ErrUnknownCertificate], and one whose certificate has ended is [ErrEnded], with whose it was. For a
// workload it takes the certificates that are valid at now; without any it is still a choice, because the workload's
// join tokens go with it, and a workload that never had one is [ErrUnknownCertificate].
func (l *Ledger) Choose(t Target, issued iter.Seq[Candidate], now time.Time) (Choice, error) {
	var choice Choice
	known := false
	for c := range issued {
		if !t.Means(c.Serial, c.Identity) {
			continue
		}
		if known && choice.Identity != c.Identity {
			return Choice{}, fmt.Errorf("%w: %q is a service and a gateway; write service/%s or gateway/%s", ErrTarget, t.Workload, t.Workload, t.Workload)
		}
		choice.Identity, known = c.Identity, true
		revoked, already := l.Revoked(c.Serial)
		switch {
		case already && (t.Serial != "" || now.Before(c.NotAfter)):
			choice.Already = append(choice.Already, revoked)
		case now.Before(c.NotAfter):
			choice.Fresh = append(choice.Fresh, c.RevokedShort)
		case t.Serial != "":
			return choice, fmt.Errorf("%w on %s (serial %s, %s)", ErrEnded, c.NotAfter.UTC().Format(time.RFC3339), c.Serial, c.Identity)
		}
	}
	if !known {
		return Choice{}, fmt.Errorf("%w: %s; `countersign ca list` shows them, with their whole serial numbers", ErrUnknownCertificate, t)
	}
	slices.SortFunc(choice.Fresh, func(a, b RevokedShort) int { return cmp.Compare(a.Serial, b.Serial) })
	return choice, nil
}

// ErrEnded says that a certificate has ended and needs no revocation.
var ErrEnded = errors.New("the certificate is refused without a revocation: it expired")

// ErrIssuingCA says that the serial of a CA was given.
var ErrIssuingCA = errors.New("that is the serial number of the CA itself")
