package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

// tokenPrefix makes a join token recognizable, to people and to scanners for leaked secrets.
const tokenPrefix = "csjoin_"

// Bounds of tokens.
const (
	defaultTokenTTL = 10 * time.Minute
	maxTokenTTL     = 30 * 24 * time.Hour
	maxTokenUses    = 10_000
)

// Sentinel errors of join tokens.
var (
	errUnknownToken = errors.New("the join token is not known here; make one with `countersign token create`")
	errUsedToken    = errors.New("the join token has been used as often as it may be; make another with `countersign token create`")
	errExpiredToken = errors.New("the join token has expired; make another with `countersign token create`")
)

// token is what the store keeps of a join token: everything but the token.
type token struct {
	id       string
	hash     [sha256.Size]byte
	workload string
	expires  time.Time
	uses     int
	used     int
}

// newToken makes a token of 256 random bits and its record.
func newToken(workload string, uses int, expires time.Time) (text string, t token) {
	var secret [32]byte
	_, _ = rand.Read(secret[:]) // crypto/rand ends the process rather than fail
	text = tokenPrefix + base64.RawURLEncoding.EncodeToString(secret[:])
	t = token{hash: sha256.Sum256([]byte(text)), workload: workload, uses: uses, expires: expires}
	t.id = tokenID(t.hash)
	return text, t
}

// tokenID names a token in the journal and is what it is looked up by: half of its hash, which says
// nothing about the token. The other half is compared in constant time.
func tokenID(hash [sha256.Size]byte) string { return hex.EncodeToString(hash[:sha256.Size/2]) }

// wellFormedToken tells whether a text can be a token at all.
func wellFormedToken(text string) bool {
	encoded, ok := strings.CutPrefix(text, tokenPrefix)
	raw, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	return ok && err == nil && len(raw) == 32
}

// putToken stores a new token.
func (s *store) putToken(ctx context.Context, t token) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO tokens (id, hash, workload, expires, uses) VALUES (?, ?, ?, ?, ?)",
			t.id, t.hash[:], t.workload, micros(t.expires), t.uses)
		return err
	})
}

// findToken looks a presented token up. One that is not known is errUnknownToken; whether it may
// still be used is not asked here.
func (s *store) findToken(ctx context.Context, text string) (token, error) {
	presented := sha256.Sum256([]byte(text))
	t := token{id: tokenID(presented)}
	var stored []byte
	var expires int64
	err := s.db.QueryRowContext(ctx, "SELECT hash, workload, expires, uses, used FROM tokens WHERE id = ?", t.id).
		Scan(&stored, &t.workload, &expires, &t.uses, &t.used)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return token{}, s.explain(err)
	}
	if err != nil || subtle.ConstantTimeCompare(stored, presented[:]) != 1 {
		return token{}, errUnknownToken
	}
	t.hash, t.expires = presented, fromMicros(expires)
	return t, nil
}

// redeemed finds the certificate that a token was already exchanged for with the same public key. It
// is nil when there is none, or none that has not expired.
func (s *store) redeemed(ctx context.Context, tokenID, publicKey string, now time.Time) (der []byte, err error) {
	err = s.db.QueryRowContext(ctx, `SELECT c.der FROM redemptions r JOIN certificates c ON c.serial = r.serial
		WHERE r.token = ? AND r.public_key = ? AND c.not_after > ?`, tokenID, publicKey, micros(now)).Scan(&der)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return der, s.explain(err)
}

// redeemable tells whether redeem would succeed now.
func (s *store) redeemable(ctx context.Context, tokenID, publicKey string, now time.Time) error {
	_, err := checkRedemption(ctx, s.db, tokenID, publicKey, now)
	return s.explain(err)
}

// rowQuerier is the database, or a transaction on it.
type rowQuerier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// redeem uses a token up, once for each public key: an agent that was killed before it could keep
// the answer asks again with the key that it keeps, and is not refused. A key whose certificate has
// expired meanwhile costs another use. The check and the counting are one transaction.
func (s *store) redeem(ctx context.Context, tokenID, publicKey string, now time.Time) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		counted, err := checkRedemption(ctx, tx, tokenID, publicKey, now)
		if err != nil || counted {
			return err
		}
		if _, err := tx.ExecContext(ctx, "UPDATE tokens SET used = used + 1 WHERE id = ?", tokenID); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO redemptions (token, public_key) VALUES (?, ?)
			ON CONFLICT DO UPDATE SET serial = NULL`, tokenID, publicKey)
		return err
	})
}

// checkRedemption tells whether a public key may be certified for a token, and whether that use was
// counted already: then it may, whatever became of the token.
func checkRedemption(ctx context.Context, q rowQuerier, tokenID, publicKey string, now time.Time) (counted bool, err error) {
	var expires int64
	var uses, used int
	err = q.QueryRowContext(ctx, "SELECT expires, uses, used FROM tokens WHERE id = ?", tokenID).Scan(&expires, &uses, &used)
	if errors.Is(err, sql.ErrNoRows) {
		return false, errUnknownToken
	}
	if err != nil {
		return false, err
	}
	if counted, err = openRedemption(ctx, q, tokenID, publicKey); err != nil || counted {
		return counted, err
	}
	switch {
	case used >= uses:
		return false, errUsedToken
	case !now.Before(fromMicros(expires)):
		return false, errExpiredToken
	default:
		return false, nil
	}
}

// openRedemption tells whether a use was counted for a public key that has not come to a certificate.
func openRedemption(ctx context.Context, q rowQuerier, tokenID, publicKey string) (bool, error) {
	var serial sql.NullString
	err := q.QueryRowContext(ctx, "SELECT serial FROM redemptions WHERE token = ? AND public_key = ?", tokenID, publicKey).Scan(&serial)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil && !serial.Valid, err
}

// pruneTokens forgets tokens that expired before a time.
func (s *store) pruneTokens(ctx context.Context, before time.Time) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM tokens WHERE expires < ?", micros(before))
		if err != nil {
			return fmt.Errorf("forget old tokens: %w", err)
		}
		return nil
	})
}
