package rotate

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"countersign.dev/mesh"
	"countersign.dev/secret"
)

// silent is an authority that may take questions and answer none.
type silent struct {
	*authority
	hangs atomic.Bool
}

func (s *silent) Trust(ctx context.Context) (Trust, error) {
	if s.hangs.Load() {
		<-ctx.Done()
		return Trust{}, ctx.Err()
	}
	return s.authority.Trust(ctx)
}

func (s *silent) Issue(ctx context.Context, request Request) ([]byte, error) {
	if s.hangs.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return s.authority.Issue(ctx, request)
}

func (s *silent) Issued(ctx context.Context, _ string) (bool, error) {
	<-ctx.Done()
	return false, ctx.Err()
}

// metrics are what a daemon answers.
func (d *Daemon) metrics(t *testing.T) string {
	t.Helper()
	recorder := httptest.NewRecorder()
	d.ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	return recorder.Body.String()
}

// TestSilentServer: a server that takes questions and answers none makes every round fail in a bounded time, which is
// counted and shown; when it answers again, the daemon goes on by itself, and at once.
func TestSilentServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, secret.LayoutJSON)
		w.target.Certificate.TTL, w.target.Certificate.RenewAfter = mesh.Duration(20*time.Hour), mesh.Duration(15*time.Hour)
		server := &silent{authority: w.authority}
		w.config.Authority = server
		const patience = 15 * time.Second
		d := &Daemon{Rotator: w.rotator(), Log: slog.New(slog.DiscardHandler), Targets: func(ctx context.Context) ([]Target, error) {
			if !server.hangs.Load() {
				return []Target{w.target}, nil
			}
			select {
			case <-ctx.Done():
			case <-time.After(patience):
			}
			return nil, errors.New("the server does not answer")
		}}
		// A daemon that has never met the server has nothing to count it for but itself.
		server.hangs.Store(true)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); d.Run(ctx) }()
		time.Sleep(2 * (patience + firstRetry))
		synctest.Wait()
		says(t, d.metrics(t), "\ncountersign_rotate_server_up 0\n", "\ncountersign_rotate_server_failures_total 2\n")

		server.hangs.Store(false)
		time.Sleep(patience + firstRetry + minIdle)
		synctest.Wait()
		first := w.currentSerial()
		if first == "" {
			t.Fatal("it did not go on")
		}
		says(t, d.metrics(t), "\ncountersign_rotate_server_up 1\n", `countersign_rotate_failures_total{service="orders"} 0`)

		// One that has met it counts the failure for what it knows.
		server.hangs.Store(true)
		time.Sleep(maxIdle + patience + askTimeout + time.Second)
		synctest.Wait()
		if s := ReadStatus(t.Context(), w.target); s.Failures != 1 || s.LastErrorStep != StepLook || s.Serial != first {
			t.Errorf("%+v", s)
		}
		says(t, d.metrics(t), "\ncountersign_rotate_server_up 0\n", `countersign_rotate_failures_total{service="orders"} 1`)
		var held, longest time.Duration
		const look = 5 * time.Second
		for range time.Hour / look {
			time.Sleep(look)
			synctest.Wait()
			if holder, _, err := w.files.Holder(t.Context(), w.target.Secret); err != nil {
				t.Fatal(err)
			} else if holder == "" {
				held = -look
			}
			held += look
			longest = max(longest, held)
		}
		if longest == 0 || longest > askTimeout+look {
			t.Errorf("it was in flight for %s at a time", longest)
		}
		s := ReadStatus(t.Context(), w.target)
		if s.Failures < 8 || s.Serial != first {
			t.Errorf("%+v", s)
		}

		// It has just failed, and would wait ten minutes: not for a server that is there.
		for n := s.Failures; s.Failures == n; s = ReadStatus(t.Context(), w.target) {
			time.Sleep(time.Second)
			synctest.Wait()
		}
		server.hangs.Store(false)
		time.Sleep(maxIdle + 2*time.Second)
		synctest.Wait()
		if s := ReadStatus(t.Context(), w.target); s.Failures != 0 || s.Holder != "" || s.LastError != "" {
			t.Errorf("it did not go on: %+v", s)
		}
		says(t, d.metrics(t), "\ncountersign_rotate_server_up 1\n", `countersign_rotate_in_flight{service="orders"} 0`)
		cancel()
		<-ended
	})
}

// TestSilentAuthority: one that takes a request, or is asked what it has issued, and says nothing is given up.
func TestSilentAuthority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, secret.LayoutJSON)
		first := w.first()
		server := &silent{authority: w.authority}
		w.config.Authority = server
		w.config.Progress = func(_ string, step Step, _ string) { server.hangs.Store(step == StepIssue) }
		began := time.Now()
		result := w.must(Options{Force: true}, Failed)
		if result.Step != StepIssue || !errors.Is(result.Err, context.DeadlineExceeded) || time.Since(began) > askTimeout+time.Second {
			t.Errorf("after %s: %s", time.Since(began), result.Error)
		}
		w.config.Progress = nil
		server.hangs.Store(false)
		if again := w.must(Options{}, Rotated); again.Serial == first.Serial || w.authority.issued() != 2 {
			t.Errorf("%+v, %d were issued", again, w.authority.issued())
		}
		w.authority.signer = newHierarchy(t, "second")
		w.authority.bundle = []*hierarchy{w.authority.signer}
		began = time.Now()
		says(t, w.must(Options{}, Failed).Error, "asking whether the authority has issued what is current")
		if time.Since(began) > askTimeout+time.Second {
			t.Errorf("it took %s", time.Since(began))
		}
	})
}
