package load

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
)

// GRPC is a load of unary gRPC calls over HTTP/2 with prior knowledge.
type GRPC struct {
	URL         string // of the method
	Connections int
	Streams     int           // calls at once on each connection
	Message     proto.Message // the request
}

// Run calls for a time, in whole seconds, and fails when more than one of 1,000 calls fails.
func (g GRPC) Run(ctx context.Context, duration time.Duration) (Result, error) {
	dir, err := os.MkdirTemp("", "bench-h2load-")
	if err != nil {
		return Result{}, err
	}
	defer os.RemoveAll(dir)
	body, log := filepath.Join(dir, "body"), filepath.Join(dir, "log")
	frame, err := Frame(g.Message)
	if err != nil {
		return Result{}, err
	}
	if err := os.WriteFile(body, frame, 0o600); err != nil {
		return Result{}, err
	}
	seconds := max(1, int(duration.Round(time.Second)/time.Second))
	out, err := run(ctx, "h2load", "-t", "1", "-c", strconv.Itoa(g.Connections), "-m", strconv.Itoa(g.Streams),
		"-D", strconv.Itoa(seconds), "--log-file", log, "-d", body,
		"-H", "content-type: application/grpc", "-H", "te: trailers", g.URL)
	if err != nil {
		return Result{}, err
	}
	r, err := ParseH2load(string(out))
	if err != nil {
		return Result{}, fmt.Errorf("h2load on %s: %w\n%s", g.URL, err, tail(out))
	}
	file, err := os.Open(log)
	if err != nil {
		return Result{}, fmt.Errorf("h2load's log: %w", err)
	}
	defer file.Close()
	times, err := ParseH2loadLog(file)
	if err != nil {
		return Result{}, err
	}
	r.P50, r.P99 = percentile(times, 0.5), percentile(times, 0.99)
	if err := r.check(); err != nil {
		return Result{}, fmt.Errorf("h2load on %s: %w\n%s", g.URL, err, tail(out))
	}
	return r, nil
}

// Frame is a message as gRPC sends it: uncompressed, its length before it.
func Frame(m proto.Message) ([]byte, error) {
	data, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("writing the request: %w", err)
	}
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(data))), data...), nil
}

var (
	h2Elapsed  = regexp.MustCompile(`(?m)^finished in (\S+), `)
	h2Requests = regexp.MustCompile(`(?m)^requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout$`)
	h2Status   = regexp.MustCompile(`(?m)^status codes: (\d+) 2xx, `)
	h2Traffic  = regexp.MustCompile(`(?m)^traffic: \S+ \((\d+)\) total`)
)

// ParseH2load reads what h2load has printed. It says nothing of percentiles: its log does.
func ParseH2load(text string) (Result, error) {
	elapsed, requests := h2Elapsed.FindStringSubmatch(text), h2Requests.FindStringSubmatch(text)
	status, traffic := h2Status.FindStringSubmatch(text), h2Traffic.FindStringSubmatch(text)
	if elapsed == nil || requests == nil || status == nil || traffic == nil {
		return Result{}, errors.New("its output lacks one of the lines \"finished in\", \"requests:\", \"status codes:\", \"traffic:\"")
	}
	var r Result
	var err error
	if r.Elapsed, err = time.ParseDuration(elapsed[1]); err != nil {
		return Result{}, fmt.Errorf("its time: %w", err)
	}
	var failed, errored, timeout int64
	texts := []string{status[1], traffic[1], requests[5], requests[6], requests[7]}
	for i, to := range []*int64{&r.Requests, &r.Bytes, &failed, &errored, &timeout} {
		if *to, err = strconv.ParseInt(texts[i], 10, 64); err != nil {
			return Result{}, fmt.Errorf("its counts: %w", err)
		}
	}
	// Errored and timed out calls are among the failed ones.
	r.Failed = max(failed, errored+timeout)
	return r, nil
}

// ParseH2loadLog reads h2load's --log-file: start, status and microseconds, separated by tabs.
func ParseH2loadLog(in io.Reader) ([]time.Duration, error) {
	var all []time.Duration
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), "\t")
		if len(fields) < 3 {
			return nil, fmt.Errorf("%q is not a line of h2load's log", lines.Text())
		}
		micros, err := strconv.ParseInt(fields[2], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%q is not a line of h2load's log: %w", lines.Text(), err)
		}
		all = append(all, time.Duration(micros)*time.Microsecond)
	}
	return all, lines.Err()
}
