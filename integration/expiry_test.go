package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"countersign.dev/expiry"
)

// silent is a mesh of one service behind NGINX, whose certificate comes from a store and is due at the age of
// renewAfter.
func silent(t *testing.T, renewAfter string) string {
	t.Helper()
	return write(t, `mesh: silent
certificates: {ttl: 24h, renewAfter: `+renewAfter+`}
revocation: none
stores: {vault: {type: file, dir: vault, identityFile: vault-id.txt}}
services:
  front:
    ports: [{port: 9080, protocol: http}]
    proxy: {engine: nginx}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}", bundle: "{mesh}/bundle"}
    run: {command: [countersign, example, run, colorteller, --listen, "${APP_ADDRESS}", --color, yellow]}
`)
}

// refusable is a directory with an nginx that is the real one, and refuses every configuration while the file is there
// whose name is returned.
func refusable(t *testing.T) (dir, refuse string) {
	t.Helper()
	dir = t.TempDir()
	refuse = filepath.Join(dir, "refuse")
	script := fmt.Sprintf(`#!/bin/sh
case " $* " in *" -t "*) test ! -e '%s' || { echo 'nginx: [emerg] cannot load certificate: key values mismatch' >&2; exit 1; };; esac
exec '%s' "$@"
`, refuse, peer(t, "nginx"))
	if err := os.WriteFile(filepath.Join(dir, "nginx"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir, refuse
}

// checkExpiry is what the mesh's watch says, and whether its exit status agrees.
func (r *running) checkExpiry(t *testing.T, args ...string) expiry.Report {
	t.Helper()
	got := r.inside(t, append([]string{"check", "expiry", "--output", "json"}, args...)...)
	var report expiry.Report
	if err := json.Unmarshal([]byte(got.stdout), &report); err != nil {
		t.Fatalf("check expiry: status %d, %v\n%s%s", got.status, err, got.stdout, got.stderr)
	}
	if (got.status == 0) != (len(report.Findings) == 0) || got.status > 1 {
		t.Fatalf("check expiry: status %d with %d findings", got.status, len(report.Findings))
	}
	return report
}

// finds waits for a finding about a workload that says a text.
func (r *running) finds(t *testing.T, code expiry.Code, text string, args ...string) {
	t.Helper()
	await(t, string(code), func() (bool, string) {
		report := r.checkExpiry(t, append([]string{"--settle", "0s"}, args...)...)
		for _, f := range report.Findings {
			if f.Code == code && f.Workload == "front" && strings.Contains(f.Message, text) {
				return true, ""
			}
		}
		return false, fmt.Sprintf("%+v", report.Findings)
	})
}

// Each of the failures that nobody hears of is found while the mesh serves on as if nothing was wrong.
func TestSilentFailures(t *testing.T) {
	t.Parallel() // it waits for a mesh of its own
	peer(t, "nginx")
	begin := func(t *testing.T, renewAfter string, options ...option) *running {
		r := start(t, silent(t, renewAfter), append(options, env("TMPDIR="+shortDir(t)), flags("--no-rotation"))...)
		return r
	}
	t.Run("a schedule that stopped", func(t *testing.T) {
		t.Parallel()
		r := begin(t, "10s")
		r.finds(t, expiry.CodeRotationOverdue, "nobody has tried it since", "--grace", "0s")
		if got := r.inside(t, "rotate", "once"); got.status != 0 {
			t.Fatalf("the rotation: status %d\n%s", got.status, got.stderr)
		}
		if report := r.checkExpiry(t); report.Worst != expiry.OK {
			t.Errorf("it was rotated, and there are %+v", report.Findings)
		}
	})
	t.Run("a store that nobody takes from", func(t *testing.T) {
		t.Parallel()
		r := begin(t, "18h")
		if report := r.checkExpiry(t); report.Worst != expiry.OK {
			t.Fatalf("at first there are %+v", report.Findings)
		}
		watcher := r.instance(t, "front").PID
		if err := syscall.Kill(watcher, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		defer syscall.Kill(watcher, syscall.SIGCONT) //nolint:errcheck // so that it can end
		if got := r.inside(t, "rotate", "once", "--force", "--no-deploy"); got.status != 0 {
			t.Fatalf("the rotation: status %d\n%s", got.status, got.stderr)
		}
		r.finds(t, expiry.CodeStoreAhead, "the new one was never taken")
	})
	t.Run("a reload that is refused, a rotation that always fails", func(t *testing.T) {
		t.Parallel()
		dir, refuse := refusable(t)
		r := begin(t, "18h", env("PATH="+dir+":"+os.Getenv("PATH")))
		if report := r.checkExpiry(t); report.Worst != expiry.OK {
			t.Fatalf("at first there are %+v", report.Findings)
		}
		if err := os.WriteFile(refuse, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := r.inside(t, "rotate", "once", "--force", "--no-deploy"); got.status != 0 {
			t.Fatalf("the rotation: status %d\n%s", got.status, got.stderr)
		}
		r.finds(t, expiry.CodeReloadRefused, "key values mismatch")
		for range 3 {
			if got := r.inside(t, "rotate", "once", "--force", "--timeout", "2s"); got.status != 1 {
				t.Fatalf("the rotation: status %d\n%s", got.status, got.stderr)
			}
		}
		r.finds(t, expiry.CodeRotationFailing, "failed 3 times")
		if err := os.Remove(refuse); err != nil {
			t.Fatal(err)
		}
		if got := r.inside(t, "rotate", "once", "--force"); got.status != 0 {
			t.Fatalf("the rotation: status %d\n%s", got.status, got.stderr)
		}
		if report := r.checkExpiry(t); report.Worst != expiry.OK {
			t.Errorf("all was mended, and there are %+v", report.Findings)
		}
	})
}
