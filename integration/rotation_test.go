package integration

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign.dev/api"
)

// rotating is the specification of the Color App whose certificates live shortly: as long as in the
// example in the long form, and otherwise so short that a test sees several.
func rotating(t *testing.T) (spec string, ttl, load time.Duration) {
	t.Helper()
	data, err := os.ReadFile(colorapp("rotation.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if soak {
		return string(data), time.Minute, 75 * time.Second
	}
	short := strings.Replace(string(data), "{ttl: 60s, renewAfter: 20s}", "{ttl: 12s, renewAfter: 4s}", 1)
	if short == string(data) {
		t.Fatal("rotation.yaml does not say what this test replaces")
	}
	return short, 12 * time.Second, 15 * time.Second
}

// Certificates rotate under load without a failed request, and connections age out with them.
func TestRotationUnderLoad(t *testing.T) {
	spec, ttl, load := rotating(t)
	mesh := start(t, write(t, spec))
	rotateUnderLoad(t, mesh, ttl, load)
}

// The same while the policy changes every second.
func TestRotationWhileThePolicyChanges(t *testing.T) {
	spec, ttl, load := rotating(t)
	mesh := start(t, write(t, spec))
	narrow := strings.Replace(spec, "  colorteller:\n", "  colorteller:\n    allow: [{from: colorgateway, methods: [GET], paths: [/color]}]\n", 1)
	wide := strings.Replace(spec, "  colorteller:\n", "  colorteller:\n    allow: [{from: any}]\n", 1)
	paths := []string{mesh.variant(t, "narrow.yaml", narrow), mesh.variant(t, "wide.yaml", wide)}
	ctx, stop := context.WithCancel(t.Context())
	var applying sync.WaitGroup
	applied := 0
	applying.Go(func() {
		for tick := time.NewTicker(time.Second); ; applied++ {
			got := countersign(t, "mesh", "apply", paths[applied%2], "--socket", mesh.Server.Socket)
			if got.status != 0 {
				t.Errorf("apply %d: status %d\n%s%s", applied, got.status, got.stdout, got.stderr)
			}
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
			}
		}
	})
	rotateUnderLoad(t, mesh, ttl, load)
	stop()
	applying.Wait()
	t.Logf("%d policies were applied", applied)
	if applied < 5 {
		t.Errorf("only %d policies were applied", applied)
	}
}

// rotateUnderLoad loads the gateway and watches the wire meanwhile.
func rotateUnderLoad(t *testing.T, mesh *running, ttl, load time.Duration) {
	t.Helper()
	teller := mesh.inbound(t, "colorteller", 9080)
	ctx, stop := context.WithCancel(t.Context())
	served, presented := map[string]bool{}, map[string]bool{}
	ages := newAges(t, teller)
	var watching sync.WaitGroup
	watching.Go(func() {
		for ctx.Err() == nil {
			if serial, err := servedSerial(ctx, teller); err == nil {
				served[serial] = true
			}
			// The gateway has no TLS listener: its peers say what it presents.
			rows, err := api.NewAdmin(mesh.Server.Socket).Status(ctx)
			for _, row := range rows {
				if err == nil && row.Workload == "colorgateway" && row.ObservedSerial != "" {
					presented[row.ObservedSerial] = true
				}
			}
			ages.look(t)
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	})
	wrk(t, 32, load, "http://"+mesh.inbound(t, "colorgateway", 8080)+"/color")
	stop()
	watching.Wait()
	// The first certificate is no rotation.
	if len(served) < 3 {
		t.Errorf("colorteller served %d certificates in %s, want two rotations: %v", len(served), load, served)
	}
	if len(presented) < 3 {
		t.Errorf("colorgateway presented %d certificates in %s, want two rotations: %v", len(presented), load, presented)
	}
	t.Logf("colorteller served %d serials, colorgateway presented %d; %d connections between them, the oldest was %s old", len(served), len(presented), len(ages.first), ages.oldest.Round(time.Millisecond))
	if len(ages.first) == 0 {
		t.Error("no connection was seen between the sidecars")
	}
	// A certificate has at most its ttl left when a connection begins.
	if ages.oldest > ttl {
		t.Errorf("a connection was %s old, and certificates live for %s", ages.oldest, ttl)
	}
}

// loaded is what wrk has counted.
type loaded struct{ requests, failed int64 }

var (
	wrkRequests = regexp.MustCompile(`(?m)^\s*(\d+) requests in `)
	wrkErrors   = regexp.MustCompile(`Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)`)
	wrkRefused  = regexp.MustCompile(`Non-2xx or 3xx responses: (\d+)`)
	wrkRate     = regexp.MustCompile(`Requests/sec:\s*([\d.]+)`)
)

// wrk loads a URL and fails the test when one request fails.
func wrk(t *testing.T, connections int, load time.Duration, url string) loaded {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), load+patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, peer(t, "wrk"), "-t", "1", "-c", strconv.Itoa(connections), "-d", fmt.Sprintf("%ds", int(load.Seconds())), "--timeout", "20s", url).CombinedOutput()
	if err != nil {
		t.Errorf("wrk: %v\n%s", err, out)
		return loaded{}
	}
	got, err := parseWrk(string(out))
	if err != nil {
		t.Errorf("wrk: %v\n%s", err, out)
	}
	if got.failed > 0 || got.requests == 0 {
		t.Errorf("%d requests failed of %d\n%s", got.failed, got.requests, out)
	}
	if rate := wrkRate.FindStringSubmatch(string(out)); rate != nil {
		t.Logf("%d requests, %s a second, %d failed", got.requests, rate[1], got.failed)
	}
	return got
}

func parseWrk(out string) (loaded, error) {
	var got loaded
	found := wrkRequests.FindStringSubmatch(out)
	if found == nil {
		return got, fmt.Errorf("no number of requests in its output")
	}
	var numbers []string
	for _, failures := range []*regexp.Regexp{wrkErrors, wrkRefused} {
		if line := failures.FindStringSubmatch(out); line != nil {
			numbers = append(numbers, line[1:]...)
		}
	}
	var err error
	if got.requests, err = strconv.ParseInt(found[1], 10, 64); err != nil {
		return got, err
	}
	for _, text := range numbers {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return got, err
		}
		got.failed += n
	}
	return got, nil
}

// The reading of wrk's output finds failures: a load test that cannot fail proves nothing.
func TestParseWrk(t *testing.T) {
	const good = "  2 threads and 32 connections\n  1207 requests in 1.00s, 140KB read\nRequests/sec:   1206.5\n"
	for text, want := range map[string]loaded{
		good: {1207, 0},
		good + "  Socket errors: connect 1, read 2, write 3, timeout 4\n":                                        {1207, 10},
		good + "  Non-2xx or 3xx responses: 5\n":                                                                 {1207, 5},
		good + "  Socket errors: connect 0, read 1, write 0, timeout 0\n  Non-2xx or 3xx responses: 7\nRequests": {1207, 8},
	} {
		if got, err := parseWrk(text); err != nil || got != want {
			t.Errorf("%q is read as %+v (%v), want %+v", text, got, err, want)
		}
	}
	if _, err := parseWrk("unable to connect to 127.0.0.1:1 Connection refused"); err == nil {
		t.Error("an output without a count is accepted")
	}
}

// ages notes since when each connection to an address has been seen, by the kernel's table.
type ages struct {
	to     string // as /proc/net/tcp spells it
	first  map[string]time.Time
	oldest time.Duration
}

func newAges(t *testing.T, address string) *ages {
	t.Helper()
	if _, err := os.Stat("/proc/net/tcp"); err != nil {
		t.Skipf("NOT TESTED: this system has no /proc/net/tcp (%v)", err)
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		t.Fatal(err)
	}
	ip := at.Addr().As4()
	little := []byte{ip[3], ip[2], ip[1], ip[0]}
	return &ages{to: strings.ToUpper(hex.EncodeToString(little)) + fmt.Sprintf(":%04X", at.Port()), first: map[string]time.Time{}}
}

// look reads the table. Only the side that dials is counted, and only while it is established.
func (a *ages) look(t *testing.T) {
	data, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Error(err)
		return
	}
	now := time.Now()
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[2] != a.to || fields[3] != "01" {
			continue
		}
		since, known := a.first[fields[1]]
		if !known {
			a.first[fields[1]], since = now, now
		}
		a.oldest = max(a.oldest, now.Sub(since))
	}
}

// The table is read rightly: a connection that a test makes and holds is found, with its age.
func TestAges(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	seen := newAges(t, listener.Addr().String())
	conn := dialTCP(t, listener.Addr().String())
	await(t, "the connection is in the table, and ages", func() (bool, string) {
		seen.look(t)
		return seen.oldest > 0, fmt.Sprint(seen.first)
	})
	if len(seen.first) != 1 {
		t.Errorf("%d connections were found, want that of %s", len(seen.first), conn.LocalAddr())
	}
}
