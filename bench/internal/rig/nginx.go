package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Baseline is the name of the setup that all others are compared with.
const Baseline = "nginx"

// nginx starts one NGINX.
func (r *Rig) nginx(ctx context.Context, name, config, dir string, data any) (*Child, error) {
	program, err := findNGINX()
	if err != nil {
		return nil, err
	}
	path, err := configure(dir, config, data)
	if err != nil {
		return nil, err
	}
	return r.start(ctx, name, program, "-p", dir, "-c", path, "-e", "stderr")
}

// findNGINX looks where Debian puts it, too: not every PATH has /usr/sbin.
func findNGINX() (string, error) { return find("nginx", "nginx-light") }

// find looks for a program in PATH and in /usr/sbin.
func find(name, pkg string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	path := filepath.Join("/usr/sbin", name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	return "", fmt.Errorf("%s is not installed (Debian package: %s; `tools/install-peers.sh bench` installs it)", name, pkg)
}

// streamModule tells whether NGINX can do TCP, and which module has to be loaded for it.
func streamModule(ctx context.Context, program string) (module string, ok bool) {
	out, _ := exec.CommandContext(ctx, program, "-V").CombinedOutput() // what it cannot say it does not have
	options := string(out)
	if !strings.Contains(options, "--with-stream=dynamic") {
		return "", strings.Contains(options, "--with-stream")
	}
	for option := range strings.FieldsSeq(options) {
		if dir, found := strings.CutPrefix(option, "--modules-path="); found {
			path := filepath.Join(dir, "ngx_stream_module.so")
			_, err := os.Stat(path)
			return path, err == nil
		}
	}
	return "", false
}

// NGINX is the baseline: two workers, no access log, TLS 1.3 with AES-128-GCM and X25519, certificates
// of both sides checked, kept connections to upstreams.
func (r *Rig) NGINX(ctx context.Context) (*Setup, error) {
	program, err := findNGINX()
	if err != nil {
		return nil, err
	}
	return &Setup{
		Name: Baseline, Title: version(ctx, program, "-v"),
		Start:   r.startNGINX,
		Connect: r.connecting(Baseline, r.nginxConnecting),
	}, nil
}

func (r *Rig) startNGINX(ctx context.Context) (*Chain, error) {
	e, err := r.endpoints()
	if err != nil {
		return nil, err
	}
	c := &Chain{Setup: Baseline}
	return c, errors.Join(r.nginxReceiving(ctx, c, e), r.nginxConnecting(ctx, c, e))
}

// nginxReceiving adds the receiving half to a chain.
func (r *Rig) nginxReceiving(ctx context.Context, c *Chain, e endpoints) error {
	child, config, err := r.nginxHalf(ctx, "receiving", e)
	if err != nil {
		return err
	}
	c.Receiving = []*Child{child}
	c.PeerHTTP, c.PeerGRPC = e.PeerHTTP, e.PeerGRPC
	listening := []string{e.PeerHTTP, e.PeerGRPC}
	if config.Stream {
		c.PeerTCP = e.PeerTCP
		listening = append(listening, e.PeerTCP)
	}
	return accepting(ctx, child, listening...)
}

// nginxConnecting adds the connecting half to a chain.
func (r *Rig) nginxConnecting(ctx context.Context, c *Chain, e endpoints) error {
	child, config, err := r.nginxHalf(ctx, "connecting", e)
	if err != nil {
		return err
	}
	c.Connecting = []*Child{child}
	c.HTTP, c.GRPC = e.HTTP, e.GRPC
	listening := []string{e.HTTP, e.GRPC}
	if config.Stream {
		c.TCP = e.TCP
		listening = append(listening, e.TCP)
	}
	return accepting(ctx, child, listening...)
}

func (r *Rig) nginxHalf(ctx context.Context, half string, e endpoints) (*Child, peerConfig, error) {
	dir, err := r.directory("nginx-" + half)
	if err != nil {
		return nil, peerConfig{}, err
	}
	program, err := findNGINX()
	if err != nil {
		return nil, peerConfig{}, err
	}
	config := r.peerConfig(dir, e)
	config.StreamModule, config.Stream = streamModule(ctx, program)
	child, err := r.nginx(ctx, "nginx-"+half, "nginx-"+half+".conf", dir, config)
	return child, config, err
}

// connecting is a Connect of peers whose configuration names the far end.
func (r *Rig) connecting(name string, half func(context.Context, *Chain, endpoints) error) func(context.Context, Far) (*Chain, error) {
	return func(ctx context.Context, far Far) (*Chain, error) {
		e, err := r.endpoints()
		if err != nil {
			return nil, err
		}
		c := &Chain{Setup: name + "-connecting", PeerTCP: e.PeerTCP}
		return c, errors.Join(r.endpoint(ctx, c, far), half(ctx, c, e))
	}
}
