package agent

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/durable"
	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// stateFiles are certificate, key and bundle of a state directory.
func stateFiles(t testing.TB, dir string) (cert, key, bundle []byte) {
	t.Helper()
	files, err := durable.ReadCurrent(dir)
	if err != nil {
		t.Fatal(err)
	}
	return files[certFile], files[keyFile], files[bundleFile]
}

// enrolled leaves a state directory behind and the fake server running.
func enrolled(t *testing.T, r *rig) {
	t.Helper()
	r.start()
	after(time.Minute)
	r.stop()
	r.set(func() { r.applied = nil })
}

func TestStateOfAnother(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		enrolled(t, r)
		defer r.fake.stop()
		for name, c := range map[string]struct {
			change func(*Config)
			want   error
			text   string
		}{
			"CA":       {func(c *Config) { c.Pin = newAuthority(t, "second").pin() }, ErrOtherState, "correct --ca-pin"},
			"instance": {func(c *Config) { c.Instance = "colorteller-2" }, ErrOtherState, "a directory of its own"},
		} {
			cfg := r.config()
			c.change(&cfg)
			if _, err := New(cfg); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("another %s: %v", name, err)
			}
		}
		// The refusals left it as it was, and free.
		r.start()
		after(time.Second)
		if status := r.agent.Status(); !status.Connected || r.fake.enrolled() != 1 {
			t.Errorf("status %+v", status)
		}
		if _, err := New(r.config()); !errors.Is(err, ErrState) || !errors.Is(err, durable.ErrLocked) {
			t.Errorf("a second agent: %v", err)
		}
		r.stop()
	})
}

func TestStateOfAnotherCABeforeEnrolment(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		defer r.fake.stop()
		agent, err := New(r.config())
		if err != nil {
			t.Fatal(err)
		}
		if err := agent.Close(); err != nil {
			t.Fatal(err)
		}
		cfg := r.config()
		cfg.Pin = newAuthority(t, "second").pin()
		if _, err := New(cfg); !errors.Is(err, ErrOtherState) {
			t.Errorf("another CA: %v", err)
		}
	})
}

// TestDamage spoils each file in several ways; the next start works wherever the server or the token
// can make it good, and says what to do where they cannot.
func TestDamage(t *testing.T) {
	spoil := map[string]func([]byte) []byte{
		"emptied":   func([]byte) []byte { return nil },
		"truncated": func(b []byte) []byte { return b[:len(b)/2] },
		"flipped":   func(b []byte) []byte { b = bytes.Clone(b); b[len(b)/2] ^= 1; return b },
		"zeroed":    func(b []byte) []byte { return make([]byte, len(b)) },
	}
	for _, name := range []string{"current/cert.pem", "current/key.pem", "current/ca.pem", "plan.json", "agent.json"} {
		for how, change := range spoil {
			t.Run(how+" "+name, func(t *testing.T) {
				inBubble(t, func(t *testing.T, r *rig) {
					enrolled(t, r)
					path := filepath.Join(r.dir, name)
					data, err := os.ReadFile(path)
					if err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(path, change(data), 0o600); err != nil {
						t.Fatal(err)
					}
					r.fake.set(func() { r.fake.tokens["new-token"] = r.fake.who })
					r.writeToken("new-token")
					agent, err := New(r.config())
					if err != nil && how == "flipped" && name == "agent.json" {
						if !errors.Is(err, ErrOtherState) { // one bit makes another instance of it
							t.Errorf("New: %v", err)
						}
						r.fake.stop()
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					r.run(agent)
					defer r.close()
					after(time.Minute)
					if status := r.agent.Status(); !status.Connected || status.Revision != 1 || status.Problem != "" {
						t.Errorf("status %+v", status)
					}
					if _, err := mtls.LoadIdentity(stateFiles(t, r.dir)); err != nil {
						t.Errorf("what is on the disk now: %v", err)
					}
				})
			})
		}
	}
}

func TestDamageWithoutToken(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		enrolled(t, r)
		defer r.fake.stop()
		if err := os.WriteFile(filepath.Join(r.dir, "current", certFile), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		agent, err := New(r.config())
		if err != nil {
			t.Fatal(err)
		}
		err = agent.Run(t.Context())
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "damaged") || !strings.Contains(err.Error(), "token create") {
			t.Errorf("Run: %v", err)
		}
	})
}

// TestPendingKey continues an enrolment whose answer was lost.
func TestPendingKey(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		after(time.Minute)
		r.stop()
		_, key, _ := stateFiles(t, r.dir)
		// As if the process had died before the answer was on the disk.
		if err := os.Remove(filepath.Join(r.dir, "current")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(r.dir, pendingFile), key, 0o600); err != nil {
			t.Fatal(err)
		}
		r.start()
		after(time.Minute)
		if status := r.agent.Status(); !status.Connected || r.fake.enrolled() != 2 {
			t.Errorf("status %+v", status)
		}
		if _, again, _ := stateFiles(t, r.dir); !bytes.Equal(key, again) {
			t.Error("the second try had another key")
		}
		r.stop()

		// As if it had died before the key was removed.
		if err := os.WriteFile(filepath.Join(r.dir, pendingFile), key, 0o600); err != nil {
			t.Fatal(err)
		}
		r.start()
		after(time.Second)
		if _, err := os.Stat(filepath.Join(r.dir, pendingFile)); err == nil {
			t.Error("the key of a finished enrolment was left behind")
		}
		r.stop()

		// A damaged one is made anew.
		for _, text := range []string{"", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
			if err := os.RemoveAll(filepath.Join(r.dir, "current")); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(r.dir, pendingFile), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			r.fake.set(func() { r.fake.tokens["good-token"] = r.fake.who })
			r.start()
			after(time.Second)
			if _, err := r.agent.Identity(); err != nil {
				t.Errorf("with a damaged key %q: %v", text, err)
			}
			r.stop()
		}
		r.fake.stop()
	})
}

// TestPendingKeyCompromised makes another key when the one of an enrolment is refused for ever.
func TestPendingKeyCompromised(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.fake.set(func() { r.fake.compromised = "any" })
		r.start()
		after(2 * time.Minute)
		if status := r.agent.Status(); !status.Connected || r.fake.enrolled() != 2 {
			t.Errorf("after %d enrolments: %+v", r.fake.enrolled(), status)
		}
		r.stop()
		r.fake.stop()
	})
}

// TestFullDisk goes on in memory and writes when there is room again.
func TestFullDisk(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		defer r.close()
		after(time.Minute)
		serial := r.agent.Status().Serial
		// Whatever the reason: the directory takes no generation and no Plan.
		generations := filepath.Join(r.dir, "generations")
		if err := os.Rename(generations, generations+".away"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(generations, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		after(45 * time.Minute)
		status := r.agent.Status()
		if status.Serial == serial || !strings.Contains(status.Problem, "generations") {
			t.Errorf("status %+v", status)
		}
		if err := os.Remove(generations); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(generations+".away", generations); err != nil {
			t.Fatal(err)
		}
		after(saveInterval + 3*time.Second)
		if status := r.agent.Status(); status.Problem != "" {
			t.Errorf("status %+v", status)
		}
		stored, err := mtls.LoadIdentity(stateFiles(t, r.dir))
		if err != nil || mtls.Serial(stored.Certificate.Leaf) != status.Serial {
			t.Errorf("on the disk: %v", err)
		}
	})
}

// TestFullDiskAtEnrolment sends nothing before the key is safe: the token is not used up.
func TestFullDiskAtEnrolment(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		agent, err := New(r.config())
		if err != nil {
			t.Fatal(err)
		}
		pending := filepath.Join(r.dir, pendingFile)
		if err := os.MkdirAll(filepath.Join(pending, "in the way"), 0o700); err != nil {
			t.Fatal(err)
		}
		r.run(agent)
		defer r.close()
		after(time.Minute)
		if n := r.fake.enrolled(); n != 0 {
			t.Errorf("%d requests without a stored key", n)
		}
		if err := os.RemoveAll(pending); err != nil {
			t.Fatal(err)
		}
		after(20 * time.Second)
		if _, err := agent.Identity(); err != nil {
			t.Error(err)
		}
	})
}

func TestPrepareDir(t *testing.T) {
	r := &rig{t: t, fake: &fake{ca: newAuthority(t, "first")}, net: newPipeNet(), logs: &logBuffer{}}
	open := func(dir string) error {
		r.dir = dir
		agent, err := New(r.config())
		if err == nil {
			err = agent.Close()
		}
		return err
	}
	base := t.TempDir()
	mode := func(dir string) os.FileMode {
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode().Perm()
	}

	dir := filepath.Join(base, "new", "deep")
	if err := open(dir); err != nil || mode(dir) != 0o700 {
		t.Errorf("a new directory: %v, mode %v", err, mode(dir))
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := open(dir); err != nil || mode(dir) != 0o700 {
		t.Errorf("one's own that was opened: %v, mode %v", err, mode(dir))
	}
	empty := filepath.Join(base, "empty")
	if err := os.MkdirAll(filepath.Join(empty, "lost+found"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := open(empty); err != nil || mode(empty) != 0o700 {
		t.Errorf("a fresh mount: %v, mode %v", err, mode(empty))
	}
	foreign := filepath.Join(base, "foreign")
	if err := os.MkdirAll(filepath.Join(foreign, "somebody's"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := open(foreign); !errors.Is(err, ErrState) || mode(foreign) != 0o755 || !strings.Contains(err.Error(), "--state") {
		t.Errorf("somebody else's: %v, mode %v", err, mode(foreign))
	}
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(file); !errors.Is(err, ErrState) {
		t.Errorf("a file: %v", err)
	}
}

func TestPlanOfAnotherIsNotServed(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		enrolled(t, r)
		r.net.setDown(true)
		other := testPlan(mustID(t, id.Service, "other"), 9, time.Hour, time.Minute)
		s := &state{dir: r.dir}
		if err := s.savePlan(other); err != nil {
			t.Fatal(err)
		}
		r.start()
		after(time.Minute)
		if got := r.inForce(); len(got) != 0 {
			t.Errorf("in force: %v", got)
		}
		if !strings.Contains(r.logs.String(), "the stored Plan is damaged") {
			t.Error("nothing was said")
		}
		r.close()
	})
}

// FuzzToken reads token files that nobody has thought of.
func FuzzToken(f *testing.F) {
	f.Add([]byte("good\n"))
	f.Add([]byte("\xff\x00"))
	f.Add([]byte("a b"))
	path := filepath.Join(f.TempDir(), "token")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		token, err := readToken(path)
		if err != nil {
			if !errors.Is(err, ErrToken) || (len(data) > 8 && strings.Contains(err.Error(), string(data))) {
				t.Fatalf("error %v", err)
			}
			return
		}
		if token == "" || len(token) > maxToken || strings.ContainsFunc(token, notTokenRune) {
			t.Fatalf("token %q", token)
		}
	})
}

// FuzzCredentials gives an agent answers that nobody has thought of: none of them is put into use
// unless it is a certificate for the agent's own key.
func FuzzCredentials(f *testing.F) {
	r := &rig{t: f, fake: &fake{ca: newAuthority(f, "first")}, net: newPipeNet(), dir: filepath.Join(f.TempDir(), "state"), logs: &logBuffer{}}
	agent, err := New(r.config())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = agent.Close() })
	key, err := mtls.GenerateKey(mesh.ECDSAP256)
	if err != nil {
		f.Fatal(err)
	}
	ca, now := r.fake.ca, time.Now()
	who := mustID(f, id.Service, "a")
	self := ca.sign(f, mustID(f, id.Server, "countersign"), nil, key.Public(), now, time.Hour)
	good := api.Credentials{
		Identity: who, Chain: pemOf(ca.sign(f, who, nil, key.Public(), now, time.Hour), ca.issuer), Bundle: pemOf(ca.root), ServerTime: now,
	}
	seed, err := json.Marshal(good)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	good.Bundle = pemOf(newAuthority(f, "second").root)
	if seed, err = json.Marshal(good); err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(`{"serverTime":"2026-01-01T00:00:00Z","chain":"-----BEGIN CERTIFICATE-----"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var credentials api.Credentials
		if json.Unmarshal(data, &credentials) != nil {
			return
		}
		err := agent.accept(&credentials, key, []*x509.Certificate{self, ca.issuer, ca.root}, wanted{})
		if err != nil && !errors.Is(err, ErrCredentials) && !errors.Is(err, ErrOtherState) {
			t.Fatalf("an error that nobody can tell: %v", err)
		}
		if err == nil && agent.ID() != who {
			t.Fatalf("in use: %s", agent.ID())
		}
	})
}
