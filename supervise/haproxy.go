package supervise

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"countersign.dev/engine"
	"countersign.dev/reload"
)

// HAProxy is the engine of that name.
var HAProxy = &Engine{
	name: "haproxy", file: "haproxy.cfg",
	build: "-vv", read: readHAProxy,
	test: func(conf, _ string) []string { return []string{"-c", "-q", "-f", conf} },
	serve: func(conf, run string) []string {
		return []string{"-W", "-S", filepath.Join(run, MasterSocket) + ",mode,600", "-f", conf}
	},
	tell: func(p *process) reload.Method { return haproxyMaster(p.run) },
	quit: syscall.SIGUSR1, stop: syscall.SIGTERM,
	inForce: haproxyInForce,
	leaving: func(ctx context.Context, p *process) (int, error) {
		_, old, err := haproxyWorkers(ctx, p.run)
		return len(old), err
	},
	older: func(ctx context.Context, p *process) (*reload.OldWorkers, error) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return haproxyMaster(p.run).Older(ctx)
	},
	sampler: newHAProxySampler,
}

// MasterSocket is where HAProxy's master listens for its administrator, in the run directory.
const MasterSocket = "master.sock"

var (
	haproxyVersion = regexp.MustCompile(`(?m)^HAProxy version ([0-9]+(?:\.[0-9]+)+)`)
	haproxyOpenSSL = regexp.MustCompile(`(?m)^Running on OpenSSL version : OpenSSL ([0-9.]+)`)
)

// readHAProxy takes in what `haproxy -vv` writes.
func readHAProxy(output string, b *Binary) error {
	version := haproxyVersion.FindStringSubmatch(output)
	if version == nil {
		return fmt.Errorf("it does not say that it is HAProxy: %s", firstLines([]byte(output)))
	}
	b.Version = version[1]
	library := haproxyOpenSSL.FindStringSubmatch(output)
	if library == nil {
		return fmt.Errorf("HAProxy %s does not run with OpenSSL, for which the configuration is written", b.Version)
	}
	b.OpenSSL = strings.Trim(library[1], ".")
	return nil
}

// mostSaid bounds an answer of HAProxy's: a line for each of thousands of servers, and then some.
const mostSaid = 16 << 20

// ask gives one command to a socket of HAProxy and reads the answer.
func ask(ctx context.Context, socket, command string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return reload.Ask(ctx, socket, command, mostSaid)
}

var haproxyDescription = regexp.MustCompile(`(?m)^description: (.*)$`)

// haproxyInForce asks the newest worker.
func haproxyInForce(ctx context.Context, run string) (string, error) {
	text, err := ask(ctx, filepath.Join(run, engine.StatsSocket), "show info")
	if err != nil {
		return "", err
	}
	if name := haproxyDescription.FindStringSubmatch(text); name != nil {
		return strings.TrimSpace(name[1]), nil
	}
	return "", nil
}

// haproxyMaster is how the master is spoken to.
func haproxyMaster(run string) reload.Master {
	return reload.Master{Socket: filepath.Join(run, MasterSocket)}
}

// haproxyWorkers asks the master for the process ids of its workers, and of those of earlier generations.
func haproxyWorkers(ctx context.Context, run string) (now, old []int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return haproxyMaster(run).Workers(ctx)
}
