package server

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/journal"
	"countersign.dev/mesh"
)

func openTestStore(t *testing.T, path string) *store {
	t.Helper()
	s, err := openStore(t.Context(), path, func() int64 { return 7 })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestStoreSettings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a dir?with&odd#name%20", "server.db")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	s := openTestStore(t, path)
	for pragma, want := range map[string]string{
		"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "2000", "user_version": "3",
	} {
		var got string
		if err := s.db.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %q, %v, want %q", pragma, got, err, want)
		}
	}
	files, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if info, err := file.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", file.Name(), info.Mode(), err)
		}
	}
}

func TestStoreRefusesDamage(t *testing.T) {
	t.Run("no database", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "server.db")
		if err := os.WriteFile(path, []byte(strings.Repeat("no database at all ", 100)), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := openStore(t.Context(), path, func() int64 { return 7 })
		if !errors.Is(err, ErrDatabase) || !strings.Contains(err.Error(), "backup") {
			t.Errorf("%v, want ErrDatabase that says what to do", err)
		}
	})
	t.Run("a newer form", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "server.db")
		s, err := openStore(t.Context(), path, func() int64 { return 7 })
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.db.ExecContext(t.Context(), "PRAGMA user_version = 99"); err != nil {
			t.Fatal(err)
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		_, err = openStore(t.Context(), path, func() int64 { return 7 })
		if !errors.Is(err, ErrDatabase) || !strings.Contains(err.Error(), "newer version") {
			t.Errorf("%v", err)
		}
	})
	t.Run("a shorter journal", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "server.db")
		s, err := openStore(t.Context(), path, func() int64 { return 7 })
		if err != nil {
			t.Fatal(err)
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		if _, err = openStore(t.Context(), path, func() int64 { return 6 }); !errors.Is(err, journal.ErrTruncated) {
			t.Errorf("%v, want ErrTruncated", err)
		}
	})
}

// lockDatabase holds a write lock from another connection, as another program would.
func lockDatabase(t *testing.T, path string) (release func()) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	tx, err := db.BeginTx(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := errors.Join(tx.Rollback(), db.Close()); err != nil {
			t.Error(err)
		}
	}
}

// TestLockedDatabase locks the database of a running server: each request gets one clear answer, and
// when the lock is gone everything goes on.
func TestLockedDatabase(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	token := r.token("colorteller", 1)
	p := r.newPeer("colorteller-1")
	release := lockDatabase(t, filepath.Join(f.cfg.State, "server.db"))
	message := wantCode(t, p.enroll(token), api.CodeUnavailable)
	if !strings.Contains(message, "locked by another program") {
		t.Errorf("the message %q does not say what is wrong", message)
	}
	release()
	if err := p.enroll(token); err != nil {
		t.Error(err)
	}
	r.stop()
	release = lockDatabase(t, filepath.Join(f.cfg.State, "server.db"))
	defer release()
	f.refuses(ErrDatabaseLocked)
}

func TestStorePrunes(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	p := r.joinAs("colorteller", "colorteller-1")
	later := time.Now().Add(48 * time.Hour)
	if err := errors.Join(r.store.pruneCertificates(t.Context(), later), r.store.pruneTokens(t.Context(), later)); err != nil {
		t.Fatal(err)
	}
	if records, err := r.store.certificates(t.Context()); err != nil || len(records) != 0 {
		t.Errorf("%+v, %v", records, err)
	}
	var left int
	if err := r.store.db.QueryRowContext(t.Context(), "SELECT (SELECT count(*) FROM tokens) + (SELECT count(*) FROM redemptions)").Scan(&left); err != nil || left != 0 {
		t.Errorf("%d tokens and redemptions left, %v", left, err)
	}
	if err := p.renew(); err != nil { // the certificate is its own proof
		t.Error(err)
	}
}

func TestStoreState(t *testing.T) {
	s := openTestStore(t, filepath.Join(t.TempDir(), "server.db"))
	ctx := t.Context()
	if documents, err := s.running(ctx); documents != nil || err != nil {
		t.Errorf("%v, %v", documents, err)
	}
	key := instanceKey{"a", "a-1"}
	full := change{
		revision: 1 << 40, documents: []mesh.Document{{Name: "x", Content: "y"}}, file: "digest",
		plans:     map[string]planRow{"a": {5, "d"}, "b": {6, "e"}},
		instances: map[instanceKey]*instanceRow{key: {report: api.Report{Instance: "a-1"}, away: true}},
	}
	if err := s.save(ctx, full); err != nil {
		t.Fatal(err)
	}
	if err := s.save(ctx, change{revision: 1<<40 + 1, gone: []string{"b"}, plans: map[string]planRow{"a": {7, "f"}}}); err != nil {
		t.Fatal(err)
	}
	revision, err := s.revision(ctx)
	if err != nil || revision != 1<<40+1 {
		t.Errorf("revision %d, %v", revision, err)
	}
	if documents, err := s.running(ctx); err != nil || len(documents) != 1 || documents[0].Content != "y" {
		t.Errorf("%v, %v", documents, err)
	}
	if rows, err := s.planRows(ctx); err != nil || len(rows) != 1 || rows["a"] != (planRow{7, "f"}) {
		t.Errorf("%v, %v", rows, err)
	}
	if instances, err := s.instances(ctx); err != nil || !instances[key].away || instances[key].report.Instance != "a-1" {
		t.Errorf("%v, %v", instances, err)
	}
	if err := s.save(ctx, change{instances: map[instanceKey]*instanceRow{key: nil}}); err != nil {
		t.Fatal(err)
	}
	if instances, err := s.instances(ctx); err != nil || len(instances) != 0 {
		t.Errorf("%v, %v", instances, err)
	}
}
