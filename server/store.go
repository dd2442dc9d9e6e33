package server

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"modernc.org/sqlite" // the driver "sqlite"
	sqlitelib "modernc.org/sqlite/lib"

	"countersign.dev/durable"
	"countersign.dev/journal"
)

// Sentinel errors of the database.
var (
	// ErrDatabaseLocked says that another program holds the database.
	ErrDatabaseLocked = errors.New("the database is locked by another program; close whatever has it open")
	// ErrDatabase says that the database cannot be used.
	ErrDatabase = errors.New("the database cannot be used")

	errNotFound = errors.New("not found")
)

// busyTimeout is how long a statement waits for a lock that another program holds. It is short: a
// registry that waits holds up everybody who reports.
const busyTimeout = 2 * time.Second

// store is the server's memory: tokens and who redeemed them, the certificates, the instances and
// the running specification. What it holds was recorded in the journal before, where that matters;
// a store that is lost costs the tokens and the running specification, not the trust.
//
// It is safe for concurrent use; SQLite lets one writer in at a time.
type store struct {
	db   *sql.DB
	path string
	// recorded is how many entries the journal has. Every transaction notes it.
	recorded func() int64
}

// migrations bring a database from the version that is their index to the next one. What stands
// here is never changed, only added to.
var migrations = []string{`
CREATE TABLE meta (
	name  TEXT PRIMARY KEY,
	value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE tokens (
	id       TEXT PRIMARY KEY,   -- the first half of the hash in hex
	hash     BLOB NOT NULL,      -- SHA-256 of the token
	workload TEXT NOT NULL,
	expires  INTEGER NOT NULL,   -- times are microseconds since 1970
	uses     INTEGER NOT NULL,
	used     INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE TABLE redemptions (
	token      TEXT NOT NULL REFERENCES tokens ON DELETE CASCADE,
	public_key TEXT NOT NULL,    -- SHA-256 of the SubjectPublicKeyInfo in hex
	serial     TEXT,             -- of the certificate, when it came to one
	PRIMARY KEY (token, public_key)
) STRICT, WITHOUT ROWID;
CREATE TABLE certificates (
	serial     TEXT PRIMARY KEY,
	identity   TEXT NOT NULL,
	instance   TEXT NOT NULL,
	not_before INTEGER NOT NULL,
	not_after  INTEGER NOT NULL,
	der        BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX certificates_by_end ON certificates (not_after);
CREATE TABLE instances (
	workload TEXT NOT NULL,
	instance TEXT NOT NULL,
	report   TEXT NOT NULL,      -- the last api.Report that changed what peers are told
	away     INTEGER NOT NULL,   -- 1: it was lost for longer than is forgiven
	PRIMARY KEY (workload, instance)
) STRICT, WITHOUT ROWID;
CREATE TABLE plans (
	workload TEXT PRIMARY KEY,
	revision INTEGER NOT NULL,   -- at which the Plan last changed
	digest   TEXT NOT NULL
) STRICT, WITHOUT ROWID;
`, `
CREATE TABLE requests (         -- those that may be repeated, see api.IssueRequest
	identity   TEXT NOT NULL,
	request    TEXT NOT NULL,
	public_key TEXT NOT NULL,    -- SHA-256 of the SubjectPublicKeyInfo in hex
	serial     TEXT NOT NULL REFERENCES certificates ON DELETE CASCADE,
	PRIMARY KEY (identity, request)
) STRICT, WITHOUT ROWID;
CREATE INDEX requests_by_serial ON requests (serial);
`, `
CREATE TABLE revocations (
	serial    TEXT PRIMARY KEY,
	identity  TEXT NOT NULL,
	reason    TEXT NOT NULL,
	at        INTEGER NOT NULL,
	not_after INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
`}

// openStore opens or makes the database in a file and brings it to the current form. A journal that
// has fewer entries than it had when the database was written last is refused: somebody has put back
// an older copy of it, and what happened since would be forgotten.
func openStore(ctx context.Context, path string, recorded func() int64) (*store, error) {
	query := url.Values{
		"_pragma": {
			"busy_timeout(" + fmt.Sprint(busyTimeout.Milliseconds()) + ")",
			"journal_mode(WAL)",
			"synchronous(FULL)", // NORMAL could forget the last commits after a loss of power
			"foreign_keys(1)",
		},
		"_txlock": {"immediate"},
	}
	// SQLite would make the file readable to others; its companions get the mode of the file.
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDatabase, err)
	}
	if err := file.Close(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDatabase, err)
	}
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?"+query.Encode())
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDatabase, path, err)
	}
	db.SetMaxOpenConns(1) // one writer is all that SQLite knows, and reads here are short
	s := &store{db: db, path: path, recorded: recorded}
	if err := s.migrate(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	// SQLite makes the file; its name must be as durable as the journal that it follows.
	if err := durable.SyncDir(filepath.Dir(path)); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

func (s *store) close() error { return s.explain(s.db.Close()) }

// explain turns an error of SQLite into a sentinel and a message that says what to do.
func (s *store) explain(err error) error {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code() & 0xff { // the rest is the extended part of the code
	case sqlitelib.SQLITE_BUSY, sqlitelib.SQLITE_LOCKED:
		return fmt.Errorf("%w (%s): %w", ErrDatabaseLocked, s.path, err)
	case sqlitelib.SQLITE_FULL:
		return fmt.Errorf("%w: %s: the disk is full; make room: %w", ErrDatabase, s.path, err)
	case sqlitelib.SQLITE_CORRUPT, sqlitelib.SQLITE_NOTADB:
		return fmt.Errorf("%w: %s is damaged; restore it from a backup, or move it away and start again: "+
			"the certificates are read from the journal, tokens have to be made anew: %w", ErrDatabase, s.path, err)
	default:
		return fmt.Errorf("%w: %s: %w", ErrDatabase, s.path, err)
	}
}

// migrate checks the database and runs the migrations that it lacks, each whole or not at all.
func (s *store) migrate(ctx context.Context) error {
	var check string
	if err := s.db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&check); err != nil {
		return s.explain(err)
	}
	if check != "ok" {
		return fmt.Errorf("%w: %s is damaged (%s); restore it from a backup, or move it away and start again: "+
			"the certificates are read from the journal, tokens have to be made anew", ErrDatabase, s.path, check)
	}
	return s.write(ctx, func(tx *sql.Tx) error {
		var version int
		if err := tx.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
			return err
		}
		if version > len(migrations) {
			return fmt.Errorf("%w: %s was written by a newer version of countersign (form %d, and this one knows %d); use that version",
				ErrDatabase, s.path, version, len(migrations))
		}
		if err := s.checkRecorded(ctx, tx, version); err != nil {
			return err
		}
		for _, statements := range migrations[version:] {
			if _, err := tx.ExecContext(ctx, statements); err != nil {
				return err
			}
		}
		_, err := tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", len(migrations)))
		return err
	})
}

// write runs f in a transaction that holds the write lock from its start.
func (s *store) write(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return s.explain(err)
	}
	defer tx.Rollback() // does nothing after Commit
	if err := f(tx); err != nil {
		return s.explain(err)
	}
	if err := putMeta(ctx, tx, metaJournal, strconv.FormatInt(s.recorded(), 10)); err != nil {
		return s.explain(err)
	}
	return s.explain(tx.Commit())
}

// checkRecorded compares the journal with what a database of some version says of it.
func (s *store) checkRecorded(ctx context.Context, tx *sql.Tx, version int) error {
	if version == 0 {
		return nil
	}
	var text string
	if err := tx.QueryRowContext(ctx, "SELECT value FROM meta WHERE name = ?", metaJournal).Scan(&text); err != nil {
		return err
	}
	known, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return fmt.Errorf("%w: %s: the journal's length is %q", ErrDatabase, s.path, text)
	}
	if recorded := s.recorded(); known > recorded {
		return fmt.Errorf("%w: the journal has %d entries, and it had %d when %s was written: an older copy was put back; restore the newest",
			journal.ErrTruncated, recorded, known, s.path)
	}
	return nil
}

// meta reads a named value; "" when there is none.
func (s *store) meta(ctx context.Context, name string) (string, error) {
	var value string
	err := s.db.QueryRowContext(ctx, "SELECT value FROM meta WHERE name = ?", name).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return value, s.explain(err)
}

// putMeta writes a named value.
func putMeta(ctx context.Context, tx *sql.Tx, name, value string) error {
	_, err := tx.ExecContext(ctx, "INSERT INTO meta VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", name, value)
	return err
}

// micros writes a time as the database keeps it.
func micros(t time.Time) int64 { return t.UnixMicro() }

// fromMicros reads it back.
func fromMicros(us int64) time.Time { return time.UnixMicro(us).UTC() }
