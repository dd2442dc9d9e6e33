package rotate

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"countersign.dev/secret"
	"countersign.dev/secret/filestore"
)

// hanging is a store that takes its Nth call and never answers it.
type hanging struct {
	*filestore.Store
	calls int
}

func (h *hanging) answers(ctx context.Context) error {
	if h.calls--; h.calls == -1 {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (h *hanging) Read(ctx context.Context, name, version string) (value []byte, id string, err error) {
	if err := h.answers(ctx); err != nil {
		return nil, "", err
	}
	return h.Store.Read(ctx, name, version)
}

func (h *hanging) Stage(ctx context.Context, name, id string, value []byte) (string, error) {
	if err := h.answers(ctx); err != nil {
		return "", err
	}
	return h.Store.Stage(ctx, name, id, value)
}

func (h *hanging) Replace(ctx context.Context, name, version, replaces string) error {
	if err := h.answers(ctx); err != nil {
		return err
	}
	return h.Store.Replace(ctx, name, version, replaces)
}

// TestEnds cuts a step whose call nobody answers when it is time, whichever call it is: the lease is given back, and
// the next rotation brings the work to its end with the one certificate.
func TestEnds(t *testing.T) {
	const work, steps, all = 10 * time.Minute, 11 * time.Minute, 12 * time.Minute
	cuts := 0
	for calls, reached := 0, true; reached; calls++ {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, secret.LayoutJSON)
			store := &hanging{w.files, calls}
			target := w.target
			target.Store = store
			began := time.Now()
			ctx, cancel := context.WithDeadline(WithEnds(t.Context(), began.Add(steps), began.Add(all)), began.Add(work))
			defer cancel()
			result := w.rotator().Rotate(ctx, target, Options{})
			if reached = store.calls < 0; !reached {
				return
			}
			if took := time.Since(began); took > steps {
				t.Errorf("call %d: it lasted for %s", calls, took)
			}
			if result.Err != nil {
				if cuts++; !errors.Is(result.Err, ErrStopped) {
					t.Errorf("call %d: %v, want ErrStopped", calls, result.Err)
				}
			}
			if holder, _, err := w.files.Holder(t.Context(), w.target.Secret); holder != "" || err != nil {
				t.Errorf("call %d: the lease is held by %q, %v", calls, holder, err)
			}
			if s := ReadStatus(t.Context(), w.target); s.Failures != 0 {
				t.Errorf("call %d: it was recorded as a failure: %s", calls, s.LastError)
			}
			w.run(Options{})
			w.check()
			if issued := w.authority.issued(); issued != 1 {
				t.Errorf("call %d: %d certificates were issued", calls, issued)
			}
		})
	}
	if cuts < 8 {
		t.Errorf("%d calls were cut", cuts)
	}
}

// TestDetached lasts as long as it is given, and no longer than everything may.
func TestDetached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		for most, want := range map[time.Duration]time.Duration{time.Second: time.Second, time.Minute: 5 * time.Second} {
			ctx, cancel := Detached(WithEnds(gone, now.Add(time.Second), now.Add(5*time.Second)), most)
			if until, ok := ctx.Deadline(); !ok || until.Sub(now) != want || ctx.Err() != nil {
				t.Errorf("%s: until %s, %v", most, until.Sub(now), ctx.Err())
			}
			cancel()
		}
		ctx, cancel := Detached(gone, time.Minute)
		defer cancel()
		if until, ok := ctx.Deadline(); !ok || until.Sub(now) != time.Minute || ctx.Err() != nil {
			t.Errorf("without ends: until %s, %v", until.Sub(now), ctx.Err())
		}
	})
}
