package main

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"countersign.dev/mesh"
	"countersign.dev/reload"
)

// TestWatchStart expects a watcher to say at its start what would otherwise be found out by a rotation that goes wrong.
func TestWatchStart(t *testing.T) {
	probes := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8443")}
	for name, test := range map[string]struct {
		s     watching
		usage string
		log   string // empty: nothing is said
	}{
		"a command that is here":  {watching{method: reload.Command{Args: []string{"true"}}, probes: probes}, "", ""},
		"a command that is not":   {watching{method: reload.Command{Args: []string{"nosuchprogram"}}, probes: probes}, "--reload: exec: \"nosuchprogram\"", ""},
		"another program":         {watching{method: reload.Signal{Proxy: reload.NGINX, PID: os.Getpid()}, probes: probes}, "", "the proxy cannot be told of new files at this moment"},
		"no pid file":             {watching{method: reload.Signal{Proxy: reload.NGINX, PIDFile: filepath.Join(t.TempDir(), "pid")}, probes: probes}, "", "there is no pid file"},
		"a master that may start": {watching{method: reload.Master{Socket: "/nowhere"}, probes: probes}, "", ""},
		"nobody who looks":        {watching{method: reload.Command{Args: []string{"true"}}}, "", "name its TLS listeners with --probe"},
		"the Plan's listeners":    {watching{method: reload.Command{Args: []string{"true"}}, conf: &writer{}}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			err := test.s.checkReload(&process{ctx: t.Context(), log: newLogger(&log, "text", "info")})
			usage, wrong := errors.AsType[usageError](err)
			if wrong != (test.usage != "") || wrong && !strings.Contains(usage.Error(), test.usage) || !wrong && err != nil {
				t.Errorf("%v, want %q", err, test.usage)
			}
			if said := log.String(); (said != "") != (test.log != "") || !strings.Contains(said, test.log) {
				t.Errorf("it says %q, want %q", said, test.log)
			}
		})
	}
}

// TestSender expects to know as whom NGINX's workers send, or that it is not known.
func TestSender(t *testing.T) {
	account, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	nobody, err := strconv.Atoi(account.Uid)
	if err != nil {
		t.Fatal(err)
	}
	closed := t.TempDir()
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		proxy, user string
		owner, euid int
		want        int
		refused     string
		run         string
	}{
		"the same user":               {"nginx", "", -1, 101, -1, "", ""},
		"the same user, a name":       {"nginx", "nobody", -1, 101, -1, "", ""},
		"root, and workers of root":   {"nginx", "root", -1, 0, 0, "", ""},
		"root, and other workers":     {"nginx", "", -1, 0, 0, "name it with --user", ""},
		"root, and a name of nobody":  {"nginx", "nosuchuser", -1, 0, 0, "--user: ", ""},
		"root, and the files another": {"nginx", "", 101, 0, 101, "", ""},
		"root, and others who can":    {"nginx", "nobody", -1, 0, nobody, "", "/"},
		"root, and others who cannot": {"nginx", "nobody", -1, 0, 0, "keeps nobody out", closed},
		"HAProxy is asked":            {"haproxy", "", -1, 0, -1, "", ""},
	} {
		proxy, _ := reload.Known(test.proxy)
		w := &writer{proxy: proxy}
		w.options.User, w.options.Run = test.user, test.run
		got, err := w.sender(test.owner, test.euid)
		if got != test.want || (err != nil) != (test.refused != "") || err != nil && !strings.Contains(err.Error(), test.refused) {
			t.Errorf("%s: %d, %v; want %d, %q", name, got, err, test.want, test.refused)
		}
	}
	if os.Geteuid() != 0 {
		return
	}
	// What nobody can send is not asked for.
	var log bytes.Buffer
	proxy, _ := reload.Known("nginx")
	s := watching{conf: &writer{proxy: proxy}}
	s.conf.options.Callers = true
	w := &watchdog{log: newLogger(&log, "text", "info")}
	if callers := s.callers(t.Context(), w, -1); callers != nil || s.conf.options.Callers || !strings.Contains(log.String(), "name it with --user") {
		t.Errorf("%v, %t, %s", callers, s.conf.options.Callers, log.String())
	}
}

// TestWatchFirstPlan starts a watcher that has its first Plan from a control plane: nothing is wrong until it comes.
func TestWatchFirstPlan(t *testing.T) {
	l := newWatchLab(t, "nginx")
	socket, member := l.startServer()
	serial := l.put("v1", mesh.ECDSAP256)
	l.once(l.conf()...)
	l.startProxy(l.file("conf/nginx.conf"), serial)
	var flags []string
	for i, given := 0, l.conf(); i < len(given); i++ {
		if given[i] == "--plan" {
			i++
			continue
		}
		flags = append(flags, given[i])
	}
	l.startWatch(append(append(flags, "--reload", l.way()), member...)...)
	l.eventually("the server knows what is served", func() bool {
		s := l.row(socket)
		return s.Serial == serial && s.Connected && s.Error == ""
	})
	if said := l.watch.output(); strings.Contains(said, "not as it should be") || strings.Contains(said, "by the reload alone") {
		t.Errorf("a start that goes well says:\n%s", said)
	}
}
