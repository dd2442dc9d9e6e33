package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Wrk is a load of GET requests over HTTP/1.1, each connection sending one after the other.
type Wrk struct {
	URL         string
	Connections int
}

func (w Wrk) args(duration time.Duration) []string {
	seconds := max(1, int(duration.Round(time.Second)/time.Second))
	// One thread: a second would only take turns with what is measured.
	return []string{"-t", "1", "-c", strconv.Itoa(w.Connections), "-d", fmt.Sprintf("%ds", seconds), "--timeout", "30s", "--latency", w.URL}
}

// Run sends requests for a time, in whole seconds, and fails when more than one of 1,000 fails.
func (w Wrk) Run(ctx context.Context, duration time.Duration) (Result, error) {
	out, err := run(ctx, "wrk", w.args(duration)...)
	if err != nil {
		return Result{}, err
	}
	return w.result(out)
}

func (w Wrk) result(out []byte) (Result, error) {
	r, err := ParseWrk(string(out))
	if err == nil {
		err = r.check()
	}
	if err != nil {
		return Result{}, fmt.Errorf("wrk on %s: %w\n%s", w.URL, err, tail(out))
	}
	return r, nil
}

// While sends requests until something else is done, and gives the result of that time.
func (w Wrk) While(ctx context.Context, something func() error) (Result, error) {
	const longest = time.Hour
	command := exec.CommandContext(ctx, "wrk", w.args(longest)...)
	own(command)
	var out bytes.Buffer
	command.Stdout, command.Stderr = &out, &out
	if err := command.Start(); err != nil {
		return Result{}, err
	}
	err := something()
	// wrk stops at SIGINT and prints what it has.
	err = errors.Join(err, command.Process.Signal(os.Interrupt), command.Wait())
	if err != nil {
		return Result{}, fmt.Errorf("beside wrk on %s: %w", w.URL, err)
	}
	return w.result(out.Bytes())
}

var (
	wrkTotal   = regexp.MustCompile(`(?m)^\s*(\d+) requests in (\S+), (\S+) read$`)
	wrkLatency = regexp.MustCompile(`(?m)^\s*(50|99)%\s+(\S+)[ ]*$`)
	wrkErrors  = regexp.MustCompile(`(?m)^\s*Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)$`)
	wrkStatus  = regexp.MustCompile(`(?m)^\s*Non-2xx or 3xx responses: (\d+)$`)
)

// ParseWrk reads what wrk --latency has printed.
func ParseWrk(text string) (Result, error) {
	total := wrkTotal.FindStringSubmatch(text)
	if total == nil {
		return Result{}, errors.New("its output has no line \"N requests in TIME, BYTES read\"")
	}
	requests, err := strconv.ParseInt(total[1], 10, 64)
	if err != nil {
		return Result{}, fmt.Errorf("its count of requests: %w", err)
	}
	r := Result{Requests: requests}
	if r.Elapsed, err = wrkDuration(total[2]); err != nil {
		return Result{}, err
	}
	if r.Bytes, err = wrkBytes(total[3]); err != nil {
		return Result{}, err
	}
	found := 0
	for _, line := range wrkLatency.FindAllStringSubmatch(text, -1) {
		latency, err := wrkDuration(line[2])
		if err != nil {
			return Result{}, err
		}
		found++
		if line[1] == "50" {
			r.P50 = latency
		} else {
			r.P99 = latency
		}
	}
	if found != 2 {
		return Result{}, fmt.Errorf("its output has %d of the lines \"50%%\" and \"99%%\"; was it run with --latency?", found)
	}
	var counts []string
	if socket := wrkErrors.FindStringSubmatch(text); socket != nil {
		counts = socket[1:]
	}
	if status := wrkStatus.FindStringSubmatch(text); status != nil {
		counts = append(counts, status[1])
		refused, err := strconv.ParseInt(status[1], 10, 64)
		if err != nil {
			return Result{}, fmt.Errorf("its count of other statuses: %w", err)
		}
		r.Requests -= refused
	}
	for _, count := range counts {
		n, err := strconv.ParseInt(count, 10, 64)
		if err != nil {
			return Result{}, fmt.Errorf("its counts of errors: %w", err)
		}
		r.Failed += n
	}
	return r, nil
}

// wrkDuration reads 12.34us, 1.20ms, 5.01s, 1.50m or 1.00h.
func wrkDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a time as wrk writes it", text)
	}
	return d, nil
}

// wrkBytes reads 512.00B, 1.50KB and so on, of 1,024 each.
func wrkBytes(text string) (int64, error) {
	for i, unit := range []string{"KB", "MB", "GB", "TB", "PB", "B"} {
		number, ok := strings.CutSuffix(text, unit)
		if !ok {
			continue
		}
		value, err := strconv.ParseFloat(number, 64)
		if err != nil || value < 0 || value > 1<<20 {
			break
		}
		if unit == "B" {
			return int64(value), nil
		}
		return int64(value * float64(int64(1)<<(10*(i+1)))), nil
	}
	return 0, fmt.Errorf("%q is not a size as wrk writes it", text)
}
