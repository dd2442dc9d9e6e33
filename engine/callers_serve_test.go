package engine_test

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"

	"countersign.dev/deliver"
	"countersign.dev/engine"
	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// listener is one who learns from a program that runs who calls it.
type listener struct {
	callers *deliver.Callers
	stop    func()
}

func listen(t *testing.T, f foreign, plan *mesh.Plan, run string) *listener {
	t.Helper()
	l := &listener{callers: deliver.NewCallers(deliver.CallersConfig{
		Engine: mesh.Engine(f.name), Run: run, Owner: -1, Plan: func() *mesh.Plan { return plan }, Log: slog.New(slog.DiscardHandler),
	})}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { l.callers.Run(ctx); close(ended) }()
	l.stop = func() { cancel(); <-ended }
	t.Cleanup(l.stop)
	return l
}

// learns waits until a caller is known by the serial of its certificate.
func (l *listener) learns(t *testing.T, who id.ID, serial string) {
	t.Helper()
	eventually(t, who.String()+" is known by "+serial, func() bool { return l.callers.Report()[who.String()].Serial == serial })
}

// serialOf is the number of the certificate that a client shows.
func serialOf(t *testing.T, config *tls.Config) string {
	t.Helper()
	pair, err := config.GetClientCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	return mtls.Serial(pair.Leaf)
}

// TestCallers asserts that both programs tell who calls, in each way to call, that nobody else is told of, and that they serve
// whether somebody listens or not.
func TestCallers(t *testing.T) {
	for _, f := range engines {
		t.Run(f.name, func(t *testing.T) {
			f.path(t)
			spec, ca := parse(t, world), newAuthority(t)
			back := freeAddress(t, 9080, 9081, 9082, 9090, 7000, 7001, 18080, 19090, 17000)
			serveApplication(t, back)
			plan, dir := compile(t, spec, "back"), t.TempDir()
			ca.write(t, dir, plan.Workload.Identity)
			o := options(dir)
			o.Address, o.Loopback, o.CRL, o.Callers = back, back, true, true
			f.start(t, dir, plan, o)
			p := &place{ca: ca, back: back.String(), front1: member(t, "front"), other: member(t, "other")}
			call := func(who id.ID, port string, protos ...string) string {
				t.Helper()
				config := p.tls(t, who, protos...)
				if strings.HasPrefix(port, "7") {
					echo(t, config, p.back+":"+port)
					return serialOf(t, config)
				}
				if status, _, err := ask(t, config, "GET", "https://"+p.back+":"+port+"/seen", ""); err != nil || status != 200 {
					t.Fatalf("%v on port %s: %d, %v", protos, port, status, err)
				}
				return serialOf(t, config)
			}
			missed := call(p.front1, "9080") // nobody listens yet
			l := listen(t, f, plan, o.Run)
			if f.name == "haproxy" {
				l.learns(t, p.front1, missed)
			} else {
				eventually(t, "somebody listens", func() bool {
					info, err := os.Stat(o.InRun(engine.CallersSocket))
					return err == nil && info.Mode().Perm() == 0o600
				})
			}
			l.learns(t, p.front1, call(p.front1, "9080", "http/1.1"))
			l.learns(t, p.front1, call(p.front1, "9080", "h2"))
			l.learns(t, p.front1, call(p.front1, "9081"))
			l.learns(t, p.front1, call(p.front1, "7000"))
			l.learns(t, p.front1, call(p.front1, "7001"))
			everyConnection(t, p, l)

			// Nobody is told of who proved nothing, nor of the workload itself.
			if status, _, err := ask(t, p.tls(t, id.ID{}), "GET", "https://"+p.back+":9082/x", ""); err != nil || status != 200 {
				t.Errorf("anonymous: %d, %v", status, err)
			}
			if status, _, err := ask(t, p.tls(t, plan.Workload.Identity), "GET", "https://"+p.back+":9080/x", ""); err != nil || status != 403 {
				t.Errorf("as itself: %d, %v", status, err)
			}
			p.strangers(t)
			config := p.tls(t, p.other) // who is refused by the policy has proved itself
			if status, _, err := ask(t, config, "GET", "https://"+p.back+":9080/seen", ""); err != nil || status != 403 {
				t.Errorf("other: %d, %v", status, err)
			}
			l.learns(t, p.other, serialOf(t, config))
			if known := l.callers.Report(); len(known) != 2 {
				t.Errorf("known are %v", known)
			}
			comesBack(t, f, plan, o, l, call, p.front1)
		})
	}
}

// echo sends a line to a tcp port, whose application sends it back.
func echo(t *testing.T, config *tls.Config, address string) {
	t.Helper()
	conn, err := (&tls.Dialer{Config: config}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const words = "hello\n"
	if _, err := io.WriteString(conn, words); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, len(words))
	if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != words {
		t.Fatalf("%s answers %q, %v", address, answer, err)
	}
}

// everyConnection keeps one connection, and calls on another with a newer certificate: the kept one says nothing any more.
func everyConnection(t *testing.T, p *place, l *listener) {
	t.Helper()
	kept := &http.Transport{TLSClientConfig: p.tls(t, p.front1)}
	defer kept.CloseIdleConnections()
	get := func() {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+p.back+":9080/seen", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		response, err := kept.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		var body [4 << 10]byte
		for err == nil {
			_, err = response.Body.Read(body[:])
		}
		response.Body.Close()
	}
	get()
	l.learns(t, p.front1, serialOf(t, kept.TLSClientConfig))
	newer := p.tls(t, p.front1)
	if status, _, err := ask(t, newer, "GET", "https://"+p.back+":9080/seen", ""); err != nil || status != 200 {
		t.Fatalf("%d, %v", status, err)
	}
	l.learns(t, p.front1, serialOf(t, newer))
	for range 3 {
		get()
	}
	third := p.tls(t, p.other) // whoever comes after it is known when it has been looked at
	if status, _, err := ask(t, third, "GET", "https://"+p.back+":9080/seen", ""); err != nil || status != 403 {
		t.Fatalf("%d, %v", status, err)
	}
	l.learns(t, p.other, serialOf(t, third))
	if got := l.callers.Report()[p.front1.String()].Serial; got != serialOf(t, newer) {
		t.Errorf("the kept connection is told of again: %s", got)
	}
}

// comesBack lets the listener go away, and the socket: the program serves, and both are found again.
func comesBack(t *testing.T, f foreign, plan *mesh.Plan, o engine.Options, l *listener, call func(id.ID, string, ...string) string, who id.ID) {
	t.Helper()
	if f.name == "nginx" {
		if err := os.Remove(o.InRun(engine.CallersSocket)); err != nil {
			t.Fatal(err)
		}
		l.learnsAgain(t, func() (id.ID, string) { return who, call(who, "9080") })
	}
	l.stop()
	if _, err := os.Lstat(o.InRun(engine.CallersSocket)); !os.IsNotExist(err) {
		t.Errorf("the socket is left behind: %v", err)
	}
	missed := call(who, "9080")
	l = listen(t, f, plan, o.Run)
	if f.name == "haproxy" {
		l.learns(t, who, missed)
		return
	}
	l.learnsAgain(t, func() (id.ID, string) { return who, call(who, "9080") })
}

// learnsAgain calls until a call is known: each of NGINX's workers finds by one that is lost that the socket is another.
func (l *listener) learnsAgain(t *testing.T, call func() (id.ID, string)) {
	t.Helper()
	who, serial := call()
	eventually(t, "calls are known again", func() bool {
		if l.callers.Report()[who.String()].Serial == serial {
			return true
		}
		who, serial = call()
		return false
	})
}

// TestCallersNotTold asserts that a path which ends a word of NGINX's leaves out what it would spoil, and says so.
func TestCallersNotTold(t *testing.T) {
	plan := compile(t, parse(t, world), "back")
	o := engine.Options{Certificates: "/certs", Run: "/run/a,b", Callers: true, Address: netip.MustParseAddr("127.0.0.9")}
	config, err := engines[0].render(plan, o)
	if err != nil || strings.Contains(config.Text, "callers") || !strings.Contains(strings.Join(config.Notes, "\n"), "a comma in the run directory's name /run/a,b") {
		t.Errorf("%v, %v", err, config)
	}
}
