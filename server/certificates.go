package server

import (
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"countersign.dev/api"
	"countersign.dev/id"
	"countersign.dev/mtls"
)

// keepExpired is how long the store remembers a certificate after its end. The journal remembers it
// for ever.
const keepExpired = 30 * 24 * time.Hour

// redemption says which token, or which request that may be repeated, and which key a certificate answers.
type redemption struct {
	token     string // empty when it answers a request
	request   string
	publicKey string
}

// putCertificate stores an issued certificate, and, when it answers a redemption, that it does.
// Storing it twice is no error.
func (s *store) putCertificate(ctx context.Context, cert *x509.Certificate, instance string, answers *redemption) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		owned := ownedCertificate{cert: cert, instance: instance}
		if answers != nil {
			owned.request = answers.request
		}
		if _, err := addCertificate(ctx, tx, owned); err != nil {
			return err
		}
		if answers == nil || answers.token == "" {
			return nil
		}
		_, err := tx.ExecContext(ctx, "UPDATE redemptions SET serial = ? WHERE token = ? AND public_key = ?",
			mtls.Serial(cert), answers.token, answers.publicKey)
		return err
	})
}

// addCertificates stores those of the certificates that are not stored yet, and says how many.
func (s *store) addCertificates(ctx context.Context, certificates []ownedCertificate) (added int64, err error) {
	err = s.write(ctx, func(tx *sql.Tx) error {
		for _, c := range certificates {
			n, err := addCertificate(ctx, tx, c)
			if err != nil {
				return err
			}
			added += n
		}
		return nil
	})
	return added, err
}

// ownedCertificate is a certificate, the instance that it was issued to and the request that it answers;
// both may be empty.
type ownedCertificate struct {
	cert              *x509.Certificate
	instance, request string
}

func addCertificate(ctx context.Context, tx *sql.Tx, c ownedCertificate) (added int64, err error) {
	identity, err := id.FromCertificate(c.cert)
	if err != nil {
		return 0, err
	}
	result, err := tx.ExecContext(ctx, "INSERT OR IGNORE INTO certificates VALUES (?, ?, ?, ?, ?, ?)",
		mtls.Serial(c.cert), identity.String(), c.instance, micros(c.cert.NotBefore), micros(c.cert.NotAfter), c.cert.Raw)
	if err != nil {
		return 0, err
	}
	if added, err = result.RowsAffected(); err != nil || c.request == "" {
		return added, err
	}
	// The later one counts: it was issued because nobody trusted the one before any more.
	_, err = tx.ExecContext(ctx, "INSERT OR REPLACE INTO requests VALUES (?, ?, ?, ?)",
		identity.String(), c.request, keyDigest(c.cert.RawSubjectPublicKeyInfo), mtls.Serial(c.cert))
	return added, err
}

// certificates lists what is remembered, newest first.
func (s *store) certificates(ctx context.Context) ([]api.CertificateRecord, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT c.serial, c.identity, c.instance, c.not_before, c.not_after, coalesce(r.at, 0), coalesce(r.reason, '')
		FROM certificates c LEFT JOIN revocations r ON r.serial = c.serial ORDER BY c.not_before DESC, c.serial`)
	if err != nil {
		return nil, s.explain(err)
	}
	defer rows.Close()
	records := []api.CertificateRecord{}
	for rows.Next() {
		var record api.CertificateRecord
		var identity string
		var notBefore, notAfter, revoked int64
		if err := rows.Scan(&record.Serial, &identity, &record.Instance, &notBefore, &notAfter, &revoked, &record.Reason); err != nil {
			return nil, s.explain(err)
		}
		if record.Identity, err = id.Parse(identity); err != nil {
			return nil, fmt.Errorf("%w: certificate %s: %w", ErrDatabase, record.Serial, err)
		}
		record.NotBefore, record.NotAfter = fromMicros(notBefore), fromMicros(notAfter)
		if revoked != 0 {
			record.Revoked = fromMicros(revoked)
		}
		records = append(records, record)
	}
	return records, s.explain(rows.Err())
}

// unexpired are the certificates that have not ended at a time.
func (s *store) unexpired(ctx context.Context, now time.Time) ([]ownedCertificate, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT der, instance FROM certificates WHERE not_after > ?", micros(now))
	if err != nil {
		return nil, s.explain(err)
	}
	defer rows.Close()
	var living []ownedCertificate
	for rows.Next() {
		var der []byte
		var c ownedCertificate
		if err := rows.Scan(&der, &c.instance); err != nil {
			return nil, s.explain(err)
		}
		if c.cert, err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("%w: a stored certificate cannot be read: %w", ErrDatabase, err)
		}
		living = append(living, c)
	}
	return living, s.explain(rows.Err())
}

// instanceOf says which instance a certificate of an identity was issued to; "" when that is not
// known.
func (s *store) instanceOf(ctx context.Context, identity, serial string) (string, error) {
	var instance string
	err := s.db.QueryRowContext(ctx, "SELECT coalesce(max(instance), '') FROM certificates WHERE serial = ? AND identity = ?", serial, identity).Scan(&instance)
	return instance, s.explain(err)
}

// requested finds the certificate that a request was answered with, and the digest of its key; nil when
// there is none.
func (s *store) requested(ctx context.Context, identity, request string) (der []byte, publicKey string, err error) {
	err = s.db.QueryRowContext(ctx, `SELECT c.der, r.public_key FROM requests r JOIN certificates c ON c.serial = r.serial
		WHERE r.identity = ? AND r.request = ?`, identity, request).Scan(&der, &publicKey)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, "", nil
	}
	return der, publicKey, s.explain(err)
}

// pruneCertificates forgets certificates that ended before a time.
func (s *store) pruneCertificates(ctx context.Context, before time.Time) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "DELETE FROM revocations WHERE not_after < ?", micros(before)); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, "DELETE FROM certificates WHERE not_after < ?", micros(before))
		return err
	})
}
