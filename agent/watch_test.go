package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/id"
	"countersign.dev/mesh"
)

func TestNewPlans(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		defer r.close()
		after(time.Minute)
		for revision := range uint64(3) {
			r.fake.push(func() { r.fake.plan = testPlan(r.fake.who, revision+2, time.Hour, 40*time.Minute) })
			after(time.Millisecond)
			if report := r.fake.lastReport(); report.Revision != revision+2 {
				t.Errorf("revision %d is confirmed as %d", revision+2, report.Revision)
			}
		}
		if got := r.inForce(); !slices.Equal(got, []uint64{1, 2, 3, 4}) {
			t.Errorf("in force: %v", got)
		}
		data, err := os.ReadFile(filepath.Join(r.dir, planFile))
		if err != nil {
			t.Fatal(err)
		}
		if plan, err := parsePlan(data); err != nil || plan.Revision != 4 {
			t.Errorf("on the disk: %v, %v", plan, err)
		}
	})
}

// TestPlanThatCannotBeApplied keeps the old one, says so, and tries again.
func TestPlanThatCannotBeApplied(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		defer r.close()
		after(time.Minute)
		r.set(func() { r.applyErr = errors.New("port 9080 is in use") })
		r.fake.push(func() { r.fake.plan = testPlan(r.fake.who, 2, time.Hour, 40*time.Minute) })
		after(time.Minute)
		report := r.fake.lastReport()
		if report.Revision != 1 || !strings.Contains(report.Problem, "port 9080 is in use") {
			t.Errorf("report %+v", report)
		}
		if data, err := os.ReadFile(filepath.Join(r.dir, planFile)); err != nil || strings.Contains(string(data), `"revision": 2`) {
			t.Errorf("a Plan that is not in force is on the disk: %v", err)
		}
		r.set(func() { r.applyErr = nil })
		after(16 * time.Second)
		if report := r.fake.lastReport(); report.Revision != 2 || report.Problem != "" {
			t.Errorf("report %+v", report)
		}
	})
}

func TestRefusesPlans(t *testing.T) {
	cases := map[string]struct {
		spoil func(*mesh.Plan)
		want  string
	}{
		"another version":            {func(p *mesh.Plan) { p.Version = 2 }, "install the server's version"},
		"another workload":           {func(p *mesh.Plan) { p.Workload.Identity = mustID(t, id.Service, "other") }, "it is for"},
		"another certificate":        {func(p *mesh.Plan) { p.Certificate.Identity = mustID(t, id.Service, "other") }, "it is for"},
		"another trust domain's":     {func(p *mesh.Plan) { p.TrustDomain = "other.internal" }, "it is for"},
		"no workload and no version": {func(p *mesh.Plan) { *p = mesh.Plan{Revision: 2} }, "version 0"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				r.start()
				defer r.close()
				after(time.Minute)
				r.fake.push(func() {
					r.fake.plan = testPlan(r.fake.who, 2, time.Hour, 40*time.Minute)
					c.spoil(r.fake.plan)
				})
				after(time.Minute)
				report := r.fake.lastReport()
				if report.Revision != 1 || !strings.Contains(report.Problem, c.want) {
					t.Errorf("report %+v", report)
				}
				if !r.agent.Status().Connected {
					t.Error("the watch was given up")
				}
				r.fake.push(func() { r.fake.plan = testPlan(r.fake.who, 3, time.Hour, 40*time.Minute) })
				after(time.Second)
				if report := r.fake.lastReport(); report.Revision != 3 || report.Problem != "" {
					t.Errorf("report %+v", report)
				}
			})
		})
	}
}

// TestSilentServer gives up a watch on which nothing comes, also when the connection is open.
func TestSilentServer(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		defer r.close()
		after(time.Minute)
		r.fake.set(func() { r.fake.mute = true })
		after(silence + time.Second)
		status := r.agent.Status()
		if status.Connected || !strings.Contains(status.Problem, "silent") {
			t.Errorf("status %+v", status)
		}
		r.fake.push(func() { r.fake.mute = false })
		after(reconnectLimit + time.Second)
		if !r.agent.Status().Connected {
			t.Error("the watch did not come back")
		}
	})
}

// TestJunkOnTheWatch costs a reconnection with back-off, and nothing else.
func TestJunkOnTheWatch(t *testing.T) {
	for name, junk := range map[string][]byte{
		"no JSON": []byte("<html>"), "no time": []byte("{}"), "too long": bytes.Repeat([]byte("a"), maxEvent+1),
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				r.start()
				defer r.close()
				after(time.Minute)
				r.fake.push(func() { r.fake.junk = junk })
				dials := r.fake.watched()
				after(30 * time.Second)
				if n := r.fake.watched() - dials; n < 3 || n > 20 {
					t.Errorf("%d watches in half a minute", n)
				}
				if status := r.agent.Status(); status.Connected || !strings.Contains(status.Problem, ErrEvent.Error()) {
					t.Errorf("status %+v", status)
				}
				if _, err := r.agent.Identity(); err != nil {
					t.Error(err)
				}
				r.fake.set(func() { r.fake.junk = nil })
				after(reconnectLimit + time.Second)
				if status := r.agent.Status(); !status.Connected || status.Problem != "" {
					t.Errorf("status %+v", status)
				}
			})
		})
	}
}

// TestWatchThatEndsAtOnce is not reopened ten times a second.
func TestWatchRefused(t *testing.T) {
	for _, code := range []string{api.CodeNotDeclared, api.CodeUnauthorized, api.CodeExpiredCert, api.CodeInternal} {
		t.Run(code, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				r.start()
				defer r.close()
				after(time.Minute)
				r.fake.set(func() { r.fake.fail[api.PathWatch] = &api.Error{Code: code} })
				r.net.setDown(true)
				r.net.setDown(false)
				dials := r.net.dialed()
				after(5 * time.Minute)
				if n := r.net.dialed() - dials; n > 100 {
					t.Errorf("%d connections in five minutes", n)
				}
				if p := r.agent.Status().Problem; !strings.Contains(p, code) {
					t.Errorf("problem %q", p)
				}
				if _, err := r.agent.Identity(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// FuzzEvents reads streams that nobody has thought of.
func FuzzEvents(f *testing.F) {
	who, err := id.New(testDomain, id.Service, "a")
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(api.Event{Plan: testPlan(who, 1, time.Hour, time.Minute), Bundle: "x", ServerTime: time.Unix(1, 0)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(good, '\n'))
	f.Add([]byte("{\"serverTime\":\"2026-01-01T00:00:00Z\"}\n\n"))
	f.Add([]byte("{\"serverTime\":\"2026-01-01T00:00:00Z\",\"plan\":null}"))
	f.Add([]byte("{\"plan\":{\"version\":1}}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := newEventReader(bytes.NewReader(data))
		r.limit = 4 << 10
		read := 0
		for {
			e, err := r.next()
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, ErrEvent) {
					t.Fatalf("an error that nobody can tell: %v", err)
				}
				return
			}
			if read++; read > len(data) {
				t.Fatal("more events than bytes")
			}
			if e.ServerTime.IsZero() || len(e.Plan) > r.limit || len(e.Bundle) > r.limit {
				t.Fatalf("an event that should have been refused: %+v", e)
			}
			if !e.hasPlan() {
				continue
			}
			plan, err := parsePlan(e.Plan)
			if err != nil {
				if !errors.Is(err, ErrPlan) {
					t.Fatalf("an error that nobody can tell: %v", err)
				}
				continue
			}
			if plan.Version != mesh.PlanVersion {
				t.Fatalf("a Plan of version %d", plan.Version)
			}
		}
	})
}

func TestEventReader(t *testing.T) {
	line := func(n int) string { // one event of n bytes, with its newline
		head, tail := `{"serverTime":"2026-01-01T00:00:00Z","bundle":"`, "\"}\n"
		return head + strings.Repeat("x", n-len(head)-len(tail)) + tail
	}
	const limit = 100 << 10
	for _, n := range []int{60, 16 << 10, 16<<10 + 1, limit} {
		r := newEventReader(strings.NewReader(line(n) + line(60)))
		r.limit = limit
		for range 2 {
			if e, err := r.next(); err != nil || e.Bundle == "" {
				t.Errorf("an event of %d bytes: %v", n, err)
			}
		}
		if _, err := r.next(); !errors.Is(err, io.EOF) {
			t.Errorf("at the end: %v", err)
		}
	}
	for name, text := range map[string]string{
		"one byte too long": line(limit + 1), "no end": strings.Repeat("x", 10*limit), "cut off": line(60)[:59],
	} {
		r := newEventReader(strings.NewReader(text))
		r.limit = limit
		if _, err := r.next(); !errors.Is(err, ErrEvent) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
