package ca

import (
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"countersign.dev/id"
	"countersign.dev/journal"
)

// ErrCompromised says that somebody asks for a certificate of a key that may be in other hands.
var ErrCompromised = errors.New("the key was compromised, and is not certified again; make another key")

// keyDigest names a public key: the hex SHA-256 of its SubjectPublicKeyInfo.
func keyDigest(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

// CheckKey refuses a public key (its SubjectPublicKeyInfo) that was compromised: [ErrCompromised].
func (l *Ledger) CheckKey(spki []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.keys[keyDigest(spki)] {
		return ErrCompromised
	}
	return nil
}

// lineage is what a journal says of the certificates of one identity: which key each has, and which keys were certified
// with one of them as the proof.
type lineage struct {
	issued map[string]descendant // by serial
	byKey  map[string][]string   // serials
	next   map[string][]string   // keys, by the serial of the certificate that proved them
}

type descendant struct {
	RevokedShort
	key string
}

func readLineage(records iter.Seq2[journal.Record, error], identity id.ID) (*lineage, error) {
	l := &lineage{issued: make(map[string]descendant), byKey: make(map[string][]string), next: make(map[string][]string)}
	for record, err := range records {
		if err != nil {
			return nil, fmt.Errorf("reading the journal: %w", err)
		}
		switch record.Type { //nolint:exhaustive // the other types give nobody a certificate
		case journal.Issued:
			err = l.addIssued(record, identity)
		case journal.Renew:
			var facts struct{ Serial, PublicKey string }
			if err = json.Unmarshal(record.Data, &facts); err == nil {
				l.next[facts.Serial] = append(l.next[facts.Serial], facts.PublicKey)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("reading the journal's entry %d: %w", record.Index, err)
		}
	}
	return l, nil
}

func (l *lineage) addIssued(record journal.Record, identity id.ID) error {
	var c Certificate
	if err := json.Unmarshal(record.Data, &c); err != nil || c.Identity != identity {
		return err
	}
	der, err := base64.StdEncoding.DecodeString(c.DER)
	if err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	d := descendant{RevokedShort: ShortOf(c.Serial, cert), key: keyDigest(cert.RawSubjectPublicKeyInfo)}
	l.issued[c.Serial] = d
	l.byKey[d.key] = append(l.byKey[d.key], c.Serial)
	return nil
}

// of are the keys of certificates, of those that were got with them as the proof, and so on.
func (l *lineage) of(serials []string) map[string]bool {
	keys := make(map[string]bool)
	for len(serials) > 0 {
		serial := serials[0]
		serials = serials[1:]
		reached := l.next[serial]
		if d, known := l.issued[serial]; known {
			reached = append(slices.Clone(reached), d.key)
		}
		for _, key := range reached {
			if !keys[key] {
				keys[key] = true
				serials = append(serials, l.byKey[key]...)
			}
		}
	}
	return keys
}

// Compromise widens what [Authority.Choose] gave, an [ErrEnded] too, to what may be in a thief's hands: all valid
// certificates of the same keys, and all that were renewed with one of them, by the journal's records. Those keys are
// refused from then on, see [Ledger.CheckKey]. A certificate that has ended, and without any of those, stays [ErrEnded].
func (l *Ledger) Compromise(c Choice, chosen error, t Target, records iter.Seq2[journal.Record, error], now time.Time) (Choice, error) {
	if chosen != nil && !errors.Is(chosen, ErrEnded) {
		return Choice{}, chosen
	}
	lineage, err := readLineage(records, c.Identity)
	if err != nil {
		return Choice{}, err
	}
	named := make(map[string]bool)
	if t.Serial != "" {
		named[t.Serial] = true
	}
	for _, short := range c.Fresh {
		named[short.Serial] = true
	}
	for _, r := range c.Already {
		named[r.Serial] = true
	}
	var starts []string
	for serial := range named {
		starts = append(starts, serial)
	}
	c.Renewed = make(map[string]bool)
	for key := range lineage.of(starts) {
		if !l.compromised(key) {
			c.Keys = append(c.Keys, key)
		}
		for _, serial := range lineage.byKey[key] {
			d := lineage.issued[serial]
			if _, revoked := l.Revoked(serial); revoked || named[serial] || !now.Before(d.NotAfter) {
				continue
			}
			c.Fresh = append(c.Fresh, d.RevokedShort)
			c.Renewed[serial] = true
		}
	}
	if chosen != nil && len(c.Fresh) == 0 {
		return Choice{}, chosen
	}
	slices.Sort(c.Keys)
	slices.SortFunc(c.Fresh, func(a, b RevokedShort) int { return cmp.Compare(a.Serial, b.Serial) })
	return c, nil
}

func (l *Ledger) compromised(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.keys[key]
}
