// Package load puts load on a pair of sidecars and says what came of it: requests by wrk and h2load,
// bytes over TCP, handshakes, connections that are held, crowds that come back all at once.
package load

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// Result is what a load of requests came to.
type Result struct {
	Requests int64         // that were answered with a 2xx status
	Failed   int64         // answered otherwise, or not at all
	Bytes    int64         // of responses
	Elapsed  time.Duration // in which this happened
	P50, P99 time.Duration // of the time from request to answer
}

// PerSecond is the rate of good answers.
func (r Result) PerSecond() float64 { return float64(r.Requests) / r.Elapsed.Seconds() }

// tolerated is the share of failed requests up to which a load is worth a figure.
const tolerated = 0.001

// check refuses a load whose figures say nothing.
func (r Result) check() error {
	switch {
	case r.Requests <= 0 || r.Elapsed <= 0:
		return errors.New("no request was answered")
	case float64(r.Failed) > tolerated*float64(r.Requests):
		return fmt.Errorf("%d requests failed beside %d that were answered", r.Failed, r.Requests)
	}
	return nil
}

// tail is the end of what a program wrote, for an error.
func tail(out []byte) string {
	const most = 2000
	text := strings.TrimSpace(string(out))
	return text[max(0, len(text)-most):]
}

// run runs a load generator to its end and gives what it wrote.
func run(ctx context.Context, program string, args ...string) ([]byte, error) {
	command := exec.CommandContext(ctx, program, args...)
	own(command)
	command.WaitDelay = time.Second
	out, err := command.CombinedOutput()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, tail(out))
	}
	return out, nil
}

// percentile is the value below which a share of all lies (nearest rank). It sorts its argument.
func percentile(all []time.Duration, share float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	rank := int(share*float64(len(all))+0.999999) - 1
	return all[min(max(rank, 0), len(all)-1)]
}
