package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"countersign.dev/rotate"
	"countersign.dev/secret"
)

// TestVerdict says of what was left to others that it was, and of what was interrupted that, also where it was waiting for them.
func TestVerdict(t *testing.T) {
	held := fmt.Errorf("another rotation of it is under way: %w", &secret.HeldError{Name: "shop/one", Holder: "somebody"})
	waited := fmt.Errorf("%w: %w", rotate.ErrStopped, held)
	plain := errors.New("no")
	for name, test := range map[string]struct {
		errs    []error
		stopped bool // the process was told to end
		want    string
		not     string
	}{
		"well":             {[]error{nil}, false, "", "."},
		"ended":            {[]error{nil}, true, "interrupted before everything was looked at", "."},
		"left to others":   {[]error{held, nil}, false, "1 rotation of 2 left to others who are at it; --wait 5m", "interrupted"},
		"waiting":          {[]error{waited}, true, "interrupted: 1 rotation of 1 stopped, and the next `countersign rotate once` goes on", "left to others"},
		"two of them":      {[]error{waited, rotate.ErrStopped, nil}, true, "interrupted: 2 rotations of 3 stopped", "left to others"},
		"others, and then": {[]error{held, waited}, true, "interrupted: 1 rotation of 2 stopped", "left to others"},
		"one failed":       {[]error{waited, plain}, true, "2 rotations of 2 failed", "interrupted"},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if test.stopped {
			cancel()
		}
		var results []rotate.Result
		for _, err := range test.errs {
			results = append(results, rotate.Result{Service: "one", Err: err})
		}
		var stderr bytes.Buffer
		err := (&rotateOnceCmd{}).verdict(&process{ctx: ctx, stderr: &stderr}, results)
		ended, ok := errors.AsType[exitError](err)
		if (test.want == "") != (err == nil) || err != nil && (!ok || ended.status != exitFailure || !strings.Contains(ended.message, test.want) || strings.Contains(ended.message, test.not)) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// TestPublishing tells CloudWatch at once, every five minutes, and when the last rotation of the daemon has ended, which is after the signal.
func TestPublishing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		known := func() []rotate.Target {
			if time.Since(began) < 90*time.Second { // its first round has not begun
				return nil
			}
			return []rotate.Target{}
		}
		time.AfterFunc(12*time.Minute, cancel)
		var told []time.Duration
		publishing(ctx, func(ctx context.Context) {
			<-ctx.Done()
			time.Sleep(2 * time.Minute) // the rotation in progress comes to its end
		}, known, func([]rotate.Target) { told = append(told, time.Since(began)) })
		if want := []time.Duration{90 * time.Second, 390 * time.Second, 690 * time.Second, 14 * time.Minute}; !slices.Equal(told, want) {
			t.Errorf("told after %s, want %s", told, want)
		}
		// A daemon that has met nothing has nothing to tell.
		publishing(ctx, func(context.Context) {}, func() []rotate.Target { return nil }, func([]rotate.Target) { t.Error("it tells of nothing") })
	})
}
