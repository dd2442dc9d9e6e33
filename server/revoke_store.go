package server

import (
	"context"
	"crypto/x509"
	"database/sql"
	"fmt"

	"countersign.dev/ca"
	"countersign.dev/id"
)

// candidates are the certificates that a target means.
func (s *store) candidates(ctx context.Context, target ca.Target) ([]ca.Candidate, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT serial, identity, der FROM certificates")
	if err != nil {
		return nil, s.explain(err)
	}
	defer rows.Close()
	var found []ca.Candidate
	for rows.Next() {
		var serial, text string
		var der []byte
		if err := rows.Scan(&serial, &text, &der); err != nil {
			return nil, s.explain(err)
		}
		identity, err := id.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("%w: certificate %s: %w", ErrDatabase, serial, err)
		}
		if !target.Means(serial, identity) {
			continue
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%w: a stored certificate cannot be read: %w", ErrDatabase, err)
		}
		found = append(found, ca.Candidate{RevokedShort: ca.ShortOf(serial, cert), Identity: identity})
	}
	return found, s.explain(rows.Err())
}

// tokensOf are the join tokens of a workload; nobody else has any.
func (s *store) tokensOf(ctx context.Context, identity id.ID) ([]string, error) {
	if !isWorkload(identity) {
		return nil, nil
	}
	rows, err := s.db.QueryContext(ctx, "SELECT id FROM tokens WHERE workload = ?", identity.Name())
	if err != nil {
		return nil, s.explain(err)
	}
	defer rows.Close()
	var tokens []string
	for rows.Next() {
		var token string
		if err := rows.Scan(&token); err != nil {
			return nil, s.explain(err)
		}
		tokens = append(tokens, token)
	}
	return tokens, s.explain(rows.Err())
}

// revoke notes what was revoked, and forgets the join tokens that went with it. To do so twice is no error.
func (s *store) revoke(ctx context.Context, revoked []ca.Revoked, tokens []string) error {
	if len(revoked) == 0 && len(tokens) == 0 {
		return nil
	}
	return s.write(ctx, func(tx *sql.Tx) error {
		for _, r := range revoked {
			_, err := tx.ExecContext(ctx, "INSERT OR IGNORE INTO revocations VALUES (?, ?, ?, ?, ?)",
				r.Serial, r.Identity.String(), string(r.Reason), micros(r.Time), micros(r.NotAfter))
			if err != nil {
				return err
			}
		}
		for _, token := range tokens {
			if _, err := tx.ExecContext(ctx, "DELETE FROM tokens WHERE id = ?", token); err != nil {
				return err
			}
		}
		return nil
	})
}
