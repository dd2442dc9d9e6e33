package agent

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// TestRefusesAnswers spoils certificates on their way to an agent that enrols, and to one that renews:
// the first gets nothing, the second keeps what it has.
func TestRefusesAnswers(t *testing.T) {
	key, err := mtls.GenerateKey(mesh.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]func(f *fake, stranger *authority, c *api.Credentials){
		"no time":  func(_ *fake, _ *authority, c *api.Credentials) { c.ServerTime = time.Time{} },
		"no chain": func(_ *fake, _ *authority, c *api.Credentials) { c.Chain = "" },
		"no issuer": func(_ *fake, _ *authority, c *api.Credentials) {
			c.Chain = c.Chain[:strings.Index(c.Chain, "-----END")] + "-----END CERTIFICATE-----\n"
		},
		"another bundle": func(_ *fake, stranger *authority, c *api.Credentials) { c.Bundle = pemOf(stranger.root) },
		"another identity": func(_ *fake, _ *authority, c *api.Credentials) {
			c.Identity = mustID(t, id.Service, "other")
		},
		"another key": func(f *fake, _ *authority, c *api.Credentials) {
			c.Chain = pemOf(f.ca.sign(t, f.who, nil, key.Public(), f.nowLocked(), time.Hour), f.ca.issuer)
		},
		"another CA's": func(f *fake, stranger *authority, c *api.Credentials) {
			c.Chain = pemOf(stranger.sign(t, f.who, nil, key.Public(), f.nowLocked(), time.Hour), stranger.issuer)
		},
	}
	for name, spoil := range cases {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				stranger := newAuthority(t, "stranger")
				r.fake.mangle = func(c *api.Credentials) { spoil(r.fake, stranger, c) }
				r.start()
				defer r.close()
				after(10 * time.Second)
				if _, err := r.agent.Identity(); err == nil {
					t.Fatal("it was taken")
				}
				if p := r.agent.Status().Problem; !strings.Contains(p, ErrCredentials.Error()) {
					t.Errorf("problem %q", p)
				}
				r.fake.set(func() { r.fake.mangle = nil; clear(r.fake.issued); r.fake.tokens["good-token"] = r.fake.who })
				after(20 * time.Second)
				serial := r.agent.Status().Serial
				if serial == "" {
					t.Fatal("a good one was not taken")
				}
				if name == "another bundle" {
					return // a renewal's is not looked at while the held one will do
				}
				r.fake.set(func() { r.fake.mangle = func(c *api.Credentials) { spoil(r.fake, stranger, c) } })
				after(45 * time.Minute)
				status := r.agent.Status()
				if status.Serial != serial || !strings.Contains(status.Problem, ErrCredentials.Error()) {
					t.Errorf("after a spoilt renewal: %+v, serial before %s", status, serial)
				}
			})
		})
	}
}

// TestOddAnswers lets something answer that is no Countersign server behind the right certificate: a
// misconfigured balancer, for one.
func TestOddAnswers(t *testing.T) {
	var elsewhere atomic.Int64
	cases := map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"a page":       {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502); fmt.Fprint(w, "<html>") }, "502 (Bad Gateway)"},
		"no code":      {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403); fmt.Fprint(w, "{}") }, "is --server the address of a Countersign server?"},
		"long refusal": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500); flood(w) }, "500 (Internal Server Error)"},
		"long answer":  {func(w http.ResponseWriter, _ *http.Request) { flood(w) }, errTooLong.Error()},
		"no JSON":      {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }, "reading the answer to /v1/enroll"},
		"empty":        {func(http.ResponseWriter, *http.Request) {}, "reading the answer to /v1/enroll"},
		"a redirection": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != api.PathEnroll {
				elsewhere.Add(1)
			}
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}, "307"},
		"long head": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Long", strings.Repeat("x", 128<<10))
		}, "asking the server"},
		"never an end": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, "deadline exceeded"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				r.fake.instead = c.answer
				r.start()
				defer r.close()
				after(time.Minute)
				if p := r.agent.Status().Problem; !strings.Contains(p, c.want) {
					t.Errorf("problem %q, want %q", p, c.want)
				}
				r.fake.set(func() { r.fake.instead = nil })
				after(40 * time.Second)
				if _, err := r.agent.Identity(); err != nil {
					t.Error(err)
				}
			})
		})
	}
	if n := elsewhere.Load(); n != 0 {
		t.Errorf("a redirection was followed %d times, with the token", n)
	}
}

func flood(w http.ResponseWriter) {
	block := []byte(strings.Repeat(" ", 64<<10))
	for range 64 {
		if _, err := w.Write(block); err != nil {
			return
		}
	}
}

// TestRefusedByAlert starts with an expired certificate, by a machine's clock that thinks it good, and
// a server that says no more than an alert. The agent asks for the time, and then knows.
func TestRefusedByAlert(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		after(time.Minute)
		r.stop()
		after(3 * time.Hour)
		r.fake.set(func() { r.fake.strict = true; r.fake.tokens["new-token"] = r.fake.who })
		r.writeToken("new-token")
		r.set(func() { r.wall = -3 * time.Hour })
		r.start()
		defer r.close()
		after(time.Minute)
		if _, err := r.agent.Identity(); err != nil {
			t.Error(err)
		}
		if !r.agent.Now().Equal(time.Now()) {
			t.Errorf("the server's time is %s, and here it is taken for %s", time.Now(), r.agent.Now())
		}
		if n := len(r.fake.renewed()); n != 0 {
			t.Errorf("%d renewals by an expired certificate", n)
		}
		if n := r.fake.enrolled(); n != 2 {
			t.Errorf("%d enrolments, want the first and one more", n)
		}
	})
}

// TestRefusedWithoutAWord is the same where the alert is lost: the connection ends, and nothing says why.
func TestRefusedWithoutAWord(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		after(time.Minute)
		r.stop()
		after(3 * time.Hour)
		r.fake.set(func() {
			r.fake.hangUp = true
			r.fake.tokens["new-token"] = r.fake.who
		})
		r.writeToken("new-token")
		r.set(func() { r.wall = -3 * time.Hour })
		r.start()
		defer r.close()
		after(time.Minute)
		if !r.agent.Now().Equal(time.Now()) {
			t.Errorf("the server's time is %s, and here it is taken for %s", time.Now(), r.agent.Now())
		}
		if n := r.fake.enrolled(); n != 2 {
			t.Errorf("%d enrolments, want the first and one more", n)
		}
	})
}

func TestKeyTypes(t *testing.T) {
	for _, kind := range []mesh.KeyType{mesh.ECDSAP256, mesh.ECDSAP384, mesh.RSA2048, mesh.RSA3072, mesh.RSA4096, mesh.Ed25519} {
		key, err := mtls.GenerateKey(kind)
		if err != nil {
			t.Fatal(err)
		}
		if got := keyTypeOf(key.Public()); got != kind {
			t.Errorf("a key of type %s is taken for %q", kind, got)
		}
	}
	if got := keyTypeOf("no key"); got != "" {
		t.Errorf("no key is taken for %q", got)
	}
}
