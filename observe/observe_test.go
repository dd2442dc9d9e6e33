package observe

import (
	"context"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/api"
	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// deviations observes one target and returns the names of the checks that deviate.
func deviations(t *testing.T, o *Observer, target Target) ([]string, Report) {
	t.Helper()
	report, err := o.Observe(t.Context(), []Target{target})
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, f := range report.Findings {
		if f.Expected == "" || f.Observed == "" || f.Workload != "callee" || f.Instance != "callee-1" || f.Endpoint != "0.0.0.0_9080" {
			t.Errorf("incomplete finding %+v", f)
		}
		names = append(names, f.Check)
	}
	return names, report
}

func check(t *testing.T, report Report, name string) Check {
	t.Helper()
	i := slices.IndexFunc(report.Endpoints[0].Checks, func(c Check) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("no check %s among %+v", name, report.Endpoints[0].Checks)
	}
	return report.Endpoints[0].Checks[i]
}

// A sidecar that keeps its promises has no finding, whatever it speaks; and the report says what was
// seen.
func TestGoodSidecar(t *testing.T) {
	for _, protocol := range []mesh.Protocol{mesh.HTTP, mesh.HTTP2, mesh.GRPC, mesh.TCP} {
		t.Run(string(protocol), func(t *testing.T) {
			ca := newTestCA(t)
			s := ca.good(protocol)
			names, report := deviations(t, ca.observer(nil), target(t, protocol, s.start(t), s))
			if len(names) > 0 {
				t.Fatalf("findings at a good sidecar: %+v", report.Findings)
			}
			seen := report.Endpoints[0]
			if diff := cmp.Diff([]string{"1.2", "1.3"}, seen.Accepted); diff != "" {
				t.Errorf("accepted versions (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff([]string{"1.0", "1.1"}, seen.Refused); diff != "" {
				t.Errorf("refused versions (-want +got):\n%s", diff)
			}
			leaf := s.config.Certificates[0].Leaf
			if seen.Identity != "spiffe://test.internal/service/callee" || seen.Serial != mtls.Serial(leaf) || !seen.NotAfter.Equal(leaf.NotAfter) || !strings.HasPrefix(seen.Cipher, "TLS_") || seen.Group != "X25519MLKEM768" {
				t.Errorf("observation %+v", seen)
			}
			for _, name := range []string{CheckNoCertificate, CheckStranger, CheckExpired} {
				if c := check(t, report, name); c.Result != Pass || !strings.Contains(c.Observed, "refused (alert") {
					t.Errorf("%s: %+v, want a refusal by an alert", name, c)
				}
			}
			if c := check(t, report, CheckPolicy); c.Result != Pass {
				t.Errorf("policy: %+v", c)
			}
			if c := check(t, report, CheckPlaintext); c.Result != Pass || !strings.Contains(c.Observed, "refused") {
				t.Errorf("plaintext: %+v", c)
			}
		})
	}
}

// Each promise that is broken is a finding, and the only one.
func TestDeviations(t *testing.T) {
	everybody := func(*x509.Certificate) bool { return true }
	respoil := func(change func(*x509.Certificate)) func(*testCA, *sidecar, *Target) {
		return func(ca *testCA, s *sidecar, target *Target) {
			s.config.Certificates[0] = ca.leaf(target.Workload.Identity, change)
		}
	}
	tests := []struct {
		name  string
		spoil func(ca *testCA, s *sidecar, t *Target)
		want  []string
	}{
		{"TLS 1.1 is accepted", func(_ *testCA, s *sidecar, _ *Target) {
			s.config.MinVersion, s.config.CipherSuites = tls.VersionTLS11, allSuites()
		}, []string{CheckTLS11, CheckWeakCiphers}},
		{"TLS 1.0 is accepted", func(_ *testCA, s *sidecar, _ *Target) {
			s.config.MinVersion, s.config.CipherSuites = tls.VersionTLS10, allSuites()
		}, []string{CheckTLS10, CheckTLS11, CheckWeakCiphers}},
		{"weak ciphers are accepted", func(_ *testCA, s *sidecar, _ *Target) { s.config.CipherSuites = allSuites() }, []string{CheckWeakCiphers}},
		{"TLS 1.2 is accepted though 1.3 is declared", func(_ *testCA, _ *sidecar, t *Target) { t.Inbound.MinTLS = mesh.TLS13 }, []string{CheckTLS12}},
		{"a key exchange too many", func(_ *testCA, s *sidecar, _ *Target) {
			s.config.CurvePreferences = append(s.config.CurvePreferences, tls.CurveP521)
		}, []string{CheckGroups}},
		{"a key exchange that is declared elsewhere", func(_ *testCA, _ *sidecar, t *Target) {
			t.Inbound.TLSGroups = []mesh.TLSGroup{mesh.X25519, mesh.Secp256r1}
		}, []string{CheckGroups}},
		{"a key exchange of TLS 1.2 too many", func(_ *testCA, s *sidecar, _ *Target) {
			s.config.CurvePreferences, s.config.MaxVersion = append(s.config.CurvePreferences, tls.CurveP521), tls.VersionTLS12
		}, []string{CheckTLS13, CheckGroups}},
		{"TLS 1.3 is refused", func(_ *testCA, s *sidecar, _ *Target) { s.config.MaxVersion = tls.VersionTLS12 }, []string{CheckTLS13}},
		{"a client without certificate is let in", func(_ *testCA, s *sidecar, _ *Target) { s.config.ClientAuth = tls.VerifyClientCertIfGiven }, []string{CheckNoCertificate}},
		{"no certificate is asked for", func(_ *testCA, s *sidecar, _ *Target) { s.config.ClientAuth = tls.NoClientCert }, []string{CheckAsksClient, CheckNoCertificate, CheckStranger, CheckExpired}},
		{"any certificate will do", func(_ *testCA, s *sidecar, _ *Target) { s.config.ClientAuth = tls.RequireAnyClientCert }, []string{CheckStranger, CheckExpired}},
		{"an expired certificate will do", func(_ *testCA, s *sidecar, _ *Target) {
			s.config.Time = func() time.Time { return time.Now().Add(-time.Minute) }
		}, []string{CheckExpired}},
		{"plaintext is served", func(_ *testCA, s *sidecar, _ *Target) {
			s.plain, s.allowed = true, func(peer *x509.Certificate) bool { return peer == nil }
		}, []string{CheckPlaintext}},
		{"everybody is allowed", func(_ *testCA, s *sidecar, _ *Target) { s.allowed = everybody }, []string{CheckPolicy}},
		{"another workload's certificate", func(ca *testCA, s *sidecar, t *Target) {
			other := mustID(ca.t, id.Service, "other")
			s.config.Certificates[0] = ca.leaf(other, func(c *x509.Certificate) { c.DNSNames = t.Certificate.DNSNames })
		}, []string{CheckIdentity}},
		{"two identities", respoil(func(c *x509.Certificate) { c.URIs = append(c.URIs, &url.URL{Scheme: "https", Host: "x"}) }), []string{CheckIdentity}},
		{"a certificate of another CA", func(ca *testCA, s *sidecar, t *Target) {
			s.config.Certificates[0] = newTestCA(ca.t).leaf(t.Workload.Identity, nil)
		}, []string{CheckTrust}},
		{"no server certificate by its use", respoil(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), []string{CheckTrust}},
		{"an expired certificate", respoil(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), []string{CheckExpiry}},
		{"a certificate of tomorrow", respoil(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(30*time.Minute), time.Now().Add(40*time.Minute)
		}), []string{CheckTrust, CheckExpiry}},
		{"a name is missing", respoil(func(c *x509.Certificate) { c.DNSNames = c.DNSNames[:1] }), []string{CheckNames}},
		{"a name too many", respoil(func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "other.test.internal") }), []string{CheckNames}},
		{"it lives too long", respoil(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(2 * time.Hour) }), []string{CheckLifetime}},
		{"another key", func(ca *testCA, s *sidecar, t *Target) {
			s.config.Certificates[0] = ca.leafWithKey(t.Workload.Identity, nil, ecdsaKey(ca.t, elliptic.P384()))
		}, []string{CheckKey}},
		{"another serial than reported", func(_ *testCA, _ *sidecar, t *Target) { t.Serial = "00" }, []string{CheckSerial}},
		{"plaintext is declared and refused", func(_ *testCA, _ *sidecar, t *Target) { t.Inbound.TLS = mesh.Permissive }, []string{CheckPlaintext}},
		{"TLS is off and served", func(_ *testCA, _ *sidecar, t *Target) { t.Inbound.TLS = mesh.Off }, []string{CheckTLS12, CheckTLS13, CheckPlaintext}},
	}
	for _, test := range tests {
		for _, protocol := range []mesh.Protocol{mesh.HTTP, mesh.GRPC, mesh.TCP} {
			t.Run(test.name+"/"+string(protocol), func(t *testing.T) {
				t.Parallel()
				ca := newTestCA(t)
				s := ca.good(protocol)
				made := target(t, protocol, "", s)
				serial := made.Serial
				test.spoil(ca, s, &made)
				made.Address = s.start(t)
				if made.Serial == serial {
					made.Serial = mtls.Serial(s.config.Certificates[0].Leaf)
				}
				want := test.want
				if protocol == mesh.TCP && made.Inbound.TLS != mesh.Strict {
					// A close without an alert may as well be the application's, which did not
					// understand: what is stricter than declared is not found there.
					want = slices.DeleteFunc(slices.Clone(want), func(c string) bool { return c == CheckPlaintext })
				}
				got, report := deviations(t, ca.observer(nil), made)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("deviations (-want +got):\n%s\n%+v", diff, report.Findings)
				}
			})
		}
	}
}

// A sidecar that accepts what it should refuse is found through TLS 1.2 even where an application says
// nothing, and where the policy closes the connection afterwards.
func TestAcceptedByTLSThenClosed(t *testing.T) {
	ca := newTestCA(t)
	s := ca.good(mesh.TCP)
	s.config.ClientAuth, s.config.MaxVersion = tls.RequireAnyClientCert, tls.VersionTLS12
	s.allowed = func(*x509.Certificate) bool { return false }
	got, report := deviations(t, ca.observer(nil), target(t, mesh.TCP, s.start(t), s))
	if diff := cmp.Diff([]string{CheckTLS13, CheckStranger, CheckExpired}, got); diff != "" {
		t.Errorf("deviations (-want +got):\n%s", diff)
	}
	if c := check(t, report, CheckStranger); !strings.Contains(c.Observed, "let in by TLS, then closed") {
		t.Errorf("stranger: %+v", c)
	}
}

// The modes that let callers in without identity have no finding when they do what they declare.
func TestOpenModes(t *testing.T) {
	anonymous := []mesh.Rule{{From: []string{mesh.FromAny, mesh.FromAnonymous}}}
	nobody := func(peer *x509.Certificate) bool { return peer == nil }
	tests := []struct {
		name  string
		setup func(s *sidecar, t *Target)
		want  []string
	}{
		{"permissive", func(s *sidecar, t *Target) { s.plain, t.Inbound.TLS = true, mesh.Permissive }, nil},
		{"permissive, but TLS without certificate is let in", func(s *sidecar, t *Target) {
			s.plain, t.Inbound.TLS, s.config.ClientAuth = true, mesh.Permissive, tls.VerifyClientCertIfGiven
		}, []string{CheckNoCertificate}},
		{"optional", func(s *sidecar, t *Target) {
			s.config.ClientAuth, t.Inbound.ClientAuth = tls.VerifyClientCertIfGiven, mesh.Optional
		}, nil},
		{"optional, but required", func(_ *sidecar, t *Target) { t.Inbound.ClientAuth = mesh.Optional }, []string{CheckNoCertificate}},
		{"optional, but any", func(s *sidecar, t *Target) {
			s.config.ClientAuth, t.Inbound.ClientAuth = tls.RequestClientCert, mesh.Optional
		}, []string{CheckStranger, CheckExpired}},
		{"none", func(s *sidecar, t *Target) { s.config.ClientAuth, t.Inbound.ClientAuth = tls.NoClientCert, mesh.None }, nil},
		{"none, but asks", func(s *sidecar, t *Target) {
			s.config.ClientAuth, t.Inbound.ClientAuth = tls.VerifyClientCertIfGiven, mesh.None
		}, []string{CheckAsksClient, CheckStranger, CheckExpired}},
		{"off", func(s *sidecar, t *Target) { s.config, t.Inbound.TLS, t.Serial = nil, mesh.Off, "" }, nil},
	}
	for _, test := range tests {
		for _, protocol := range []mesh.Protocol{mesh.HTTP, mesh.HTTP2, mesh.TCP} {
			t.Run(test.name+"/"+string(protocol), func(t *testing.T) {
				t.Parallel()
				ca := newTestCA(t)
				s := ca.good(protocol)
				s.allowed = nobody
				made := target(t, protocol, "", s)
				made.Inbound.Rules = anonymous
				test.setup(s, &made)
				made.Address = s.start(t)
				if got, report := deviations(t, ca.observer(nil), made); !slices.Equal(got, test.want) {
					t.Errorf("deviations %v, want %v: %+v", got, test.want, report.Findings)
				}
				if protocol == mesh.TCP {
					return
				}
				// The same sidecar, but the specification leaves anonymous callers out.
				made.Inbound.Rules = []mesh.Rule{{From: []string{mesh.FromAny}}}
				if got, _ := deviations(t, ca.observer(nil), made); !slices.ContainsFunc(got, func(c string) bool { return c == CheckNoCertificate || c == CheckPlaintext }) {
					t.Errorf("deviations %v, want that an anonymous caller was admitted", got)
				}
			})
		}
	}
}

// An endpoint that is down, and one that accepts and never speaks, are findings; neither holds the
// observer up for long.
func TestDownAndMute(t *testing.T) {
	ca := newTestCA(t)
	o := ca.observer(func(c *Config) { c.Timeout = 200 * time.Millisecond })
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mute := listener.Addr().String()
	got, _ := deviations(t, o, target(t, mesh.HTTP, mute, nil))
	if diff := cmp.Diff([]string{CheckTLS10, CheckTLS11, CheckTLS12, CheckTLS13, CheckWeakCiphers, CheckPlaintext}, got); diff != "" {
		t.Errorf("a mute endpoint (-want +got):\n%s", diff)
	}
	listener.Close()
	got, report := deviations(t, o, target(t, mesh.HTTP, mute, nil))
	if diff := cmp.Diff([]string{CheckReachable}, got); diff != "" {
		t.Errorf("a closed endpoint (-want +got):\n%s", diff)
	}
	if o := report.Findings[0].Observed; !strings.Contains(o, "connection refused") {
		t.Errorf("observed %q", o)
	}
}

// An application that answers past its sidecar is a finding.
func TestBypass(t *testing.T) {
	ca := newTestCA(t)
	s := ca.good(mesh.HTTP)
	made := target(t, mesh.HTTP, s.start(t), s)
	application, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	made.Closed = []Closed{{CheckBypass, application.Addr().String()}}
	if got, _ := deviations(t, ca.observer(nil), made); !slices.Equal(got, []string{CheckBypass}) {
		t.Errorf("deviations %v", got)
	}
	made.Closed[0].Check = CheckExposed
	if got, _ := deviations(t, ca.observer(nil), made); !slices.Equal(got, []string{CheckExposed}) {
		t.Errorf("deviations %v", got)
	}
	application.Close()
	if got, _ := deviations(t, ca.observer(nil), made); len(got) > 0 {
		t.Errorf("deviations %v with nobody there", got)
	}
}

// A gateway's public listener presents the configured certificate, and lets everybody in.
func TestGateway(t *testing.T) {
	ca := newTestCA(t)
	s := ca.good(mesh.HTTP)
	s.config.ClientAuth = tls.NoClientCert
	s.allowed = func(*x509.Certificate) bool { return true }
	public := newTestCA(t).leaf(mustID(t, id.Gateway, "public"), func(c *x509.Certificate) { c.URIs = nil })
	s.config.Certificates[0] = public
	made := target(t, mesh.HTTP, s.start(t), s)
	made.Workload.Kind = id.Gateway
	made.Inbound.ClientAuth, made.Inbound.Rules = mesh.None, nil
	made.Inbound.Certificate = &mesh.CertificateFiles{Cert: "/etc/public.pem"}
	made.Public = public.Leaf
	o := ca.observer(nil)
	if got, report := deviations(t, o, made); len(got) > 0 {
		t.Errorf("findings %+v", report.Findings)
	}
	made.Public = ca.cert
	if got, _ := deviations(t, o, made); !slices.Equal(got, []string{CheckConfigured}) {
		t.Errorf("deviations %v with another certificate", got)
	}
	made.Public, made.PublicProblem = nil, "permission denied"
	got, report := deviations(t, o, made)
	if c := check(t, report, CheckConfigured); len(got) > 0 || c.Result != Skipped || c.Observed != "permission denied" {
		t.Errorf("deviations %v, check %+v", got, c)
	}
}

// A renewal between the report and the handshake is no finding, nor one that is about to come: the
// observer looks and asks again.
func TestSettles(t *testing.T) {
	ca := newTestCA(t)
	s := ca.good(mesh.HTTP)
	right := s.config.Certificates[0]
	var old atomic.Bool
	old.Store(true)
	wrong := ca.leafWithKey(mustID(t, id.Service, "callee"), nil, ecdsaKey(t, elliptic.P384()))
	s.config.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		if old.Load() {
			return &wrong, nil
		}
		return &right, nil
	}
	made := target(t, mesh.HTTP, s.start(t), s)
	made.Serial = "0badc0de"
	asked := 0
	o := ca.observer(func(c *Config) {
		c.Settle = time.Minute
		c.Serial = func(_ context.Context, workload, instance string) (string, error) {
			if asked++; workload != "callee" || instance != "callee-1" {
				t.Errorf("asked for %s %s", workload, instance)
			}
			old.Store(asked < 2)
			if asked < 4 {
				return "0badc0de", nil
			}
			return mtls.Serial(right.Leaf), nil
		}
	})
	if got, report := deviations(t, o, made); len(got) > 0 || asked != 4 {
		t.Errorf("asked %d times, findings %+v", asked, report.Findings)
	}

	made.Serial = "0badc0de"
	failing := ca.observer(func(c *Config) {
		c.Settle = time.Minute
		c.Serial = func(context.Context, string, string) (string, error) { return "", io.ErrUnexpectedEOF }
	})
	if _, err := failing.Observe(t.Context(), []Target{made}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v when the server fails", err)
	}

	// What does not settle is a finding all the same.
	never := ca.observer(func(c *Config) { c.Settle = 300 * time.Millisecond })
	if got, _ := deviations(t, never, made); !slices.Equal(got, []string{CheckSerial}) {
		t.Errorf("deviations %v, want that of the serial", got)
	}
}

// The certificate that is to have expired is waited for.
func TestWaitsForExpiry(t *testing.T) {
	ca := newTestCA(t)
	s := ca.good(mesh.HTTP)
	made := target(t, mesh.HTTP, s.start(t), s)
	soon := ca.leaf(mustID(t, id.Probe, "verify"), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(time.Second) })
	o := ca.observer(func(c *Config) { c.Expired = &soon })
	if got, report := deviations(t, o, made); len(got) > 0 || check(t, report, CheckExpired).Result != Pass {
		t.Errorf("deviations %v: %+v", got, check(t, report, CheckExpired))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := o.Observe(ctx, []Target{made}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v of an observation that was called off", err)
	}
	without := ca.observer(func(c *Config) { c.Expired = nil })
	if got, report := deviations(t, without, made); len(got) > 0 || check(t, report, CheckExpired).Result != Skipped {
		t.Errorf("deviations %v: %+v", got, check(t, report, CheckExpired))
	}
}

// Two observations of the same endpoints are the same, and progress reaches its end.
func TestDeterministic(t *testing.T) {
	ca := newTestCA(t)
	var targets []Target
	for _, protocol := range []mesh.Protocol{mesh.HTTP, mesh.GRPC, mesh.TCP} {
		s := ca.good(protocol)
		s.allowed = func(*x509.Certificate) bool { return true }
		targets = append(targets, target(t, protocol, s.start(t), s))
	}
	progress := make(chan [2]int, 10_000)
	o := ca.observer(func(c *Config) {
		c.Parallel = 3
		c.Progress = func(done, of int) { progress <- [2]int{done, of} }
	})
	observe := func() Report {
		report, err := o.Observe(t.Context(), targets)
		if err != nil {
			t.Fatal(err)
		}
		for i := range report.Endpoints {
			report.Endpoints[i].Cipher = ""
		}
		return report
	}
	first, second := observe(), observe()
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("two observations differ:\n%s", diff)
	}
	if len(first.Findings) != 3 {
		t.Errorf("%d findings, want one per target: %+v", len(first.Findings), first.Findings)
	}
	close(progress)
	best := [2]int{}
	for p := range progress {
		best = [2]int{max(best[0], p[0]), max(best[1], p[1])}
	}
	if best[0] == 0 || best[0] != best[1] {
		t.Errorf("progress ended at %v", best)
	}
}

func TestNewRefuses(t *testing.T) {
	ca := newTestCA(t)
	probe := ca.leaf(mustID(t, id.Probe, "verify"), nil)
	for name, config := range map[string]Config{
		"no roots":        {Probe: probe},
		"no probe":        {Roots: []*x509.Certificate{ca.cert}},
		"expired no leaf": {Roots: []*x509.Certificate{ca.cert}, Probe: probe, Expired: &tls.Certificate{}},
	} {
		if _, err := New(config); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// What is declared and what is registered are joined by name and port.
func TestTargets(t *testing.T) {
	plan := func(name string, inbound ...mesh.Inbound) *mesh.Plan {
		return &mesh.Plan{Workload: mesh.Workload{Name: name, Kind: id.Service, Identity: mustID(t, id.Service, name)}, Inbound: inbound}
	}
	plans := []*mesh.Plan{
		plan("b", mesh.Inbound{Name: "0.0.0.0_9080", Port: 9080, App: 8080}, mesh.Inbound{Name: "0.0.0.0_9081", Port: 9081, App: 9080}),
		plan("a", mesh.Inbound{Name: "0.0.0.0_9090", Port: 9090, App: 9090}),
		plan("absent", mesh.Inbound{Port: 1}),
	}
	plans[0].Outbound = []mesh.Outbound{{Listen: 9100}, {Listen: 9081}, {Listen: 8080}}
	instances := []api.Instance{
		{Workload: "b", Instance: "b-2", Serial: "aa", Inbound: []api.Listening{{Port: 9081, Address: "127.0.0.3:9081"}, {Port: 9080, Address: "127.0.0.3:9080"}}},
		{Workload: "b", Instance: "b-1", Inbound: []api.Listening{{Port: 9080, Address: "127.0.0.2:40001"}, {Port: 7, Address: "127.0.0.2:7"}}},
		{Workload: "stray", Instance: "stray-1"},
		{Workload: "a", Instance: "a-1", Inbound: []api.Listening{{Port: 9090, Address: "127.0.0.4:9090"}}},
	}
	targets, findings := Targets(plans, instances)
	var got []string
	for _, target := range targets {
		got = append(got, fmt.Sprint(target.Instance, " ", target.Address, " ", target.Closed))
	}
	want := []string{
		"a-1 127.0.0.4:9090 []", "b-1 127.0.0.2:40001 []",
		"b-2 127.0.0.3:9080 [{bypass 127.0.0.3:8080} {exposed 127.0.0.3:9100}]", "b-2 127.0.0.3:9081 []",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("targets (-want +got):\n%s", diff)
	}
	got = nil
	for _, f := range findings {
		got = append(got, strings.Join([]string{f.Workload, f.Instance, f.Endpoint, f.Check}, " "))
	}
	if diff := cmp.Diff([]string{"absent   endpoint", "b b-1 0.0.0.0_9081 endpoint", "b b-1 7 declared", "stray stray-1  declared"}, got); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
}

// A TLS server of net/http answers plaintext with a sentence: bytes, if not the application's. The
// observer does not take them for a refusal.
func TestNetHTTPAnswersPlaintext(t *testing.T) {
	ca := newTestCA(t)
	s := ca.good(mesh.HTTP)
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		TLSConfig: s.config, Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo),
	}
	done := make(chan error, 1)
	go func() { done <- server.ServeTLS(listener, "", "") }()
	t.Cleanup(func() {
		server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	_, report := deviations(t, ca.observer(nil), target(t, mesh.HTTP, listener.Addr().String(), s))
	if c := check(t, report, CheckPlaintext); c.Result != Deviates || !strings.Contains(c.Observed, "400") {
		t.Errorf("plaintext: %+v", c)
	}
}

// Findings of both kinds stand in one order.
func TestReportAdd(t *testing.T) {
	report := Report{Findings: []Finding{{Workload: "b", Instance: "b-1", Check: CheckTrust}, {Workload: "b", Instance: "b-1", Check: CheckExpiry}}}
	report.Add(Finding{Workload: "b", Check: CheckEndpoint}, Finding{Workload: "a", Check: CheckDeclared})
	var got []string
	for _, f := range report.Findings {
		got = append(got, f.Workload+" "+f.Check)
	}
	if diff := cmp.Diff([]string{"a declared", "b endpoint", "b trust", "b expiry"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
