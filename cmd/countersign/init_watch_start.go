package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"countersign.dev/api"
	"countersign.dev/deliver"
	"countersign.dev/mesh"
	"countersign.dev/reload"
)

// checkReload says what would only be found out by a rotation that goes wrong.
func (s *watching) checkReload(p *process) error {
	switch method := s.method.(type) {
	case reload.Command:
		if err := runnable("--reload", method.Args); err != nil {
			return err
		}
	case reload.Signal:
		if err := method.Ready(); err != nil { // it may only be starting
			p.log.WarnContext(p.ctx, "the proxy cannot be told of new files at this moment", "reload", method.String(), "error", err)
		}
	}
	if len(s.probes) == 0 && s.conf == nil && s.server == nil {
		p.log.WarnContext(p.ctx, "nobody looks whether the proxy serves what is delivered: it counts as served when the reload went well; name its TLS listeners with --probe")
	}
	return nil
}

// runnable refuses a command whose program is not here.
func runnable(flag string, words []string) error {
	if _, err := exec.LookPath(words[0]); err != nil {
		return usagef("%s: %w; name a program that this user may run", flag, err)
	}
	return nil
}

// firstPlan is how long a watcher waits at its start for the control plane's word: without a Plan it knows neither the
// listeners nor whether callers are looked up.
const firstPlan = 3 * time.Second

// callers learns who calls the proxy, where its configuration lets it tell; nil elsewhere. uid is whom the files belong to, -1 when
// that is this process's user.
func (s *watching) callers(ctx context.Context, w *watchdog, uid int) *deliver.Callers {
	if s.conf == nil || !s.conf.options.Callers {
		return nil
	}
	owner, err := s.conf.sender(uid, os.Geteuid())
	if err != nil { // NGINX would complain at each connection about what it cannot send
		s.conf.options.Callers = false
		w.log.WarnContext(ctx, "nobody is told who calls this proxy: its workers could not tell it", "error", err)
		return nil
	}
	return deliver.NewCallers(deliver.CallersConfig{
		Engine: mesh.Engine(s.conf.proxy.Name), Run: s.conf.options.Run, Owner: owner, Log: w.log, Changed: w.changed,
		Plan: func() *mesh.Plan { return w.watcher.Status().Plan },
	})
}

// sender is the user as whom NGINX's workers send, -1 when it is that of this process. owner is whom the files belong to, -1 for
// the same user.
func (w *writer) sender(owner, euid int) (int, error) {
	switch {
	case w.proxy.Name != reload.NGINX.Name || euid != 0:
		return -1, nil
	case owner > 0: // it does not start as root
		return owner, nil
	case w.options.User == "":
		return 0, errors.New("an NGINX that starts as root gives its workers to another user: name it with --user, and let it reach --run-dir")
	}
	account, err := user.Lookup(w.options.User)
	if err != nil {
		return 0, fmt.Errorf("--user: %w", err)
	}
	if err := enters(account, w.options.Run); err != nil {
		return 0, err
	}
	return strconv.Atoi(account.Uid)
}

// enters is an error when the modes of a directory, or of one above it, keep a user out.
func enters(account *user.User, dir string) error {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return fmt.Errorf("--run-dir: %w", err)
	}
	groups, err := account.GroupIds()
	if err != nil {
		groups = []string{account.Gid}
	}
	for at := dir; account.Uid != "0"; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		if err != nil {
			return fmt.Errorf("--run-dir: %w", err)
		}
		bit := fs.FileMode(0o001)
		if system, ok := info.Sys().(*syscall.Stat_t); ok && strconv.FormatUint(uint64(system.Uid), 10) == account.Uid {
			bit = 0o100
		} else if ok && slices.Contains(groups, strconv.FormatUint(uint64(system.Gid), 10)) {
			bit = 0o010
		}
		if info.Mode().Perm()&bit == 0 {
			return fmt.Errorf("the mode %04o of %s keeps %s out, whom --user names: its workers cannot reach --run-dir; name one that belongs to %s, below directories that it may enter",
				info.Mode().Perm(), at, account.Username, account.Username)
		}
		if at == filepath.Dir(at) {
			break
		}
	}
	return nil
}

// changed lets the server be told soon.
func (w *watchdog) changed() {
	if w.link != nil {
		w.link.ReportSoon()
	}
}

// report is what the server is told.
func (w *watchdog) report(admin string) api.Report {
	r := watchReport(w.watcher.Status(), admin)
	if w.callers != nil {
		r.Callers = w.callers.Report()
	}
	return r
}
