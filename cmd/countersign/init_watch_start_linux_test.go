package main

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
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
