package agent

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/mtls"
)

// TestServesOnWithoutServer is the promise that nothing that serves depends on the control plane.
func TestServesOnWithoutServer(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		defer r.close()
		after(time.Minute)
		r.net.setDown(true)
		dials := r.net.dialed()
		after(10 * time.Minute)
		if n := r.net.dialed() - dials; n < 40 || n > 150 {
			t.Errorf("%d tries in ten minutes", n)
		}
		status := r.agent.Status()
		if status.Connected || status.SurvivesSeconds < 2900 || status.SurvivesSeconds > 2950 || !strings.Contains(status.Problem, "refused") {
			t.Errorf("status %+v", status)
		}
		if r.agent.Gauges()["control_plane.connected_state"] != 0 {
			t.Error("the gauge says connected")
		}
		if _, err := r.agent.Identity(); err != nil {
			t.Error(err)
		}
		if n := strings.Count(r.logs.String(), "serving on with what is held"); n != 1 {
			t.Errorf("the loss is told %d times", n)
		}
		if err := r.agent.Drain(t.Context()); !errors.Is(err, ErrNotConnected) {
			t.Errorf("Drain: %v", err)
		}
		r.net.setDown(false)
		after(reconnectLimit + time.Second)
		status = r.agent.Status()
		if !status.Connected || status.Problem != "" {
			t.Errorf("status after the return %+v", status)
		}
		if revision := r.fake.lastWatch().Revision; revision != 1 {
			t.Errorf("the watch was resumed at revision %d", revision)
		}
		if got := r.inForce(); !slices.Equal(got, []uint64{1}) {
			t.Errorf("Plans in force: %v", got)
		}
	})
}

// TestOutageBeyondTheCertificate lets the certificate end, and the token with it.
func TestOutageBeyondTheCertificate(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		defer r.close()
		after(time.Minute)
		r.net.setDown(true)
		after(2 * time.Hour)
		_, err := r.agent.Identity()
		if !errors.Is(err, mtls.ErrExpired) {
			t.Errorf("the identity after its end: %v", err)
		}
		status := r.agent.Status()
		if status.SurvivesSeconds != 0 || !strings.Contains(status.Problem, "expired") {
			t.Errorf("status %+v", status)
		}
		if n := strings.Count(r.logs.String(), "peers are refused until"); n != 1 {
			t.Errorf("the expiry is told %d times", n)
		}
		r.net.setDown(false)
		after(5 * time.Minute)
		if _, err := r.agent.Identity(); !errors.Is(err, mtls.ErrExpired) {
			t.Errorf("an expired certificate was renewed without a token: %v", err)
		}
		if n := len(r.fake.renewed()); n != 0 {
			t.Errorf("%d renewals by an expired certificate", n)
		}
		if p := r.agent.Status().Problem; !strings.Contains(p, "used_token") {
			t.Errorf("problem %q", p)
		}
		tries := r.fake.enrolled()
		r.fake.set(func() { r.fake.tokens["new-token"] = r.fake.who })
		r.writeToken("new-token")
		after(time.Minute + time.Second)
		if _, err := r.agent.Identity(); err != nil {
			t.Errorf("after the token was replaced: %v", err)
		}
		if tries > 25 {
			t.Errorf("%d tries with a used token in five minutes", tries)
		}
		after(time.Minute)
		if status := r.agent.Status(); status.Problem != "" || !status.Connected {
			t.Errorf("status %+v", status)
		}
	})
}

func TestTokenOfAnotherWorkload(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		defer r.close()
		after(time.Minute)
		r.net.setDown(true)
		after(2 * time.Hour)
		r.fake.set(func() { r.fake.tokens["other"] = mustID(t, id.Service, "other") })
		r.writeToken("other")
		r.net.setDown(false)
		after(5 * time.Minute)
		if _, err := r.agent.Identity(); !errors.Is(err, mtls.ErrExpired) {
			t.Errorf("the identity: %v", err)
		}
		if p := r.agent.Status().Problem; !strings.Contains(p, "state directory of another workload") {
			t.Errorf("problem %q", p)
		}
	})
}

// TestRestart proves that what is on the disk is enough to serve, and is used when the server is away.
func TestRestart(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		after(time.Minute)
		serial := r.agent.Status().Serial
		r.stop()
		r.net.setDown(true)
		r.set(func() { r.applied = nil })
		after(10 * time.Minute)

		r.start()
		after(time.Second)
		if got := r.inForce(); !slices.Equal(got, []uint64{1}) {
			t.Errorf("Plans in force: %v", got)
		}
		status := r.agent.Status()
		if status.Serial != serial || status.Revision != 1 || status.Connected || status.SurvivesSeconds < 2900 {
			t.Errorf("status %+v", status)
		}
		r.net.setDown(false)
		after(time.Minute)
		if r.fake.enrolled() != 1 || len(r.fake.renewed()) != 0 {
			t.Errorf("%d enrolments, %d renewals", r.fake.enrolled(), len(r.fake.renewed()))
		}
		r.close()
	})
}

// TestRestartExpired starts with a certificate that has ended, without the server and then with it.
func TestRestartExpired(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		after(time.Minute)
		r.stop()
		after(3 * time.Hour)
		r.net.setDown(true)

		r.start()
		after(time.Minute)
		if _, err := r.agent.Identity(); !errors.Is(err, mtls.ErrExpired) || !strings.Contains(r.logs.String(), "nothing can be served until") {
			t.Errorf("the identity: %v", err)
		}
		r.fake.set(func() { r.fake.tokens["new-token"] = r.fake.who })
		r.writeToken("new-token")
		r.net.setDown(false)
		after(time.Minute)
		if _, err := r.agent.Identity(); err != nil {
			t.Error(err)
		}
		r.close()
	})
}

func TestRestartExpiredAndRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		after(time.Minute)
		r.stop()
		after(3 * time.Hour)
		agent, err := New(r.config())
		if err != nil {
			t.Fatal(err)
		}
		err = agent.Run(t.Context())
		if !errors.Is(err, ErrRefused) || !errors.Is(err, mtls.ErrExpired) {
			t.Errorf("Run: %v", err)
		}
		r.fake.stop()
	})
}

// TestRestartWithTheClockBack starts with a machine's clock by which the certificate is still good.
func TestRestartWithTheClockBack(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		after(time.Minute)
		r.stop()
		after(3 * time.Hour)
		r.fake.set(func() { r.fake.tokens["new-token"] = r.fake.who })
		r.writeToken("new-token")
		r.set(func() { r.wall = -3 * time.Hour })
		r.start()
		after(time.Minute)
		if _, err := r.agent.Identity(); err != nil {
			t.Error(err)
		}
		if p := r.agent.Status().Problem; !strings.Contains(p, "behind the server's") {
			t.Errorf("problem %q", p)
		}
		r.close()
	})
}
