// Package rig builds what is measured: pairs of sidecars of the product and of its peers on loopback,
// each with mutual TLS between them, all under one authority and in front of one application; and it
// sees that they really do that.
package rig

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Module is the product's module, in whose checkout the release binary is built.
const Module = "countersign.dev"

// patience bounds every wait for something that has to happen.
const patience = 30 * time.Second

// Rig is a temporary directory with the product's binary, an authority, the certificates of both
// sidecars, and the application. Its methods may be called by one goroutine at a time.
type Rig struct {
	Dir    string
	Binary string // the product as it is released
	Origin *Origin
	Client Identity // of the connecting sidecar
	Server Identity // of the receiving sidecar
	Log    *slog.Logger

	files  int  // that a process may open
	serial int  // of files and directories
	built  bool // the binary was built here

	mu       sync.Mutex
	children []*Child // guarded by mu: what has to be stopped
}

// New builds the binary, or takes the one that is named, makes the authority and starts the
// application. Close has to be called also when it fails.
func New(ctx context.Context, log *slog.Logger, binary string) (*Rig, error) {
	dir, err := os.MkdirTemp("", "countersign-bench-")
	if err != nil {
		return nil, err
	}
	r := &Rig{Dir: dir, Binary: binary, Log: log}
	if r.files, err = raiseLimit(); err != nil {
		return r, err
	}
	if r.Binary == "" {
		r.Binary = filepath.Join(dir, "countersign")
		log.InfoContext(ctx, "building the release binary")
		if err := build(ctx, r.Binary); err != nil {
			return r, err
		}
		r.built = true
	}
	if err := r.authority(ctx); err != nil {
		return r, err
	}
	r.Origin, err = r.startOrigin(ctx)
	return r, err
}

// build makes the product's binary as it is released.
func build(ctx context.Context, path string) error {
	command := exec.CommandContext(ctx, "go", "build", "-pgo=auto", "-trimpath", "-ldflags=-s -w", "-o", path, Module+"/cmd/countersign")
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("building the product: %w\n%s", err, out)
	}
	return nil
}

// Close stops every process, the last started first, and removes the directory.
func (r *Rig) Close() error {
	r.mu.Lock()
	children := r.children
	r.children = nil
	r.mu.Unlock()
	var errs []error
	for i := len(children) - 1; i >= 0; i-- {
		errs = append(errs, children[i].Stop())
	}
	if r.Origin != nil {
		r.Origin.close()
	}
	return errors.Join(append(errs, os.RemoveAll(r.Dir))...)
}

// name makes a name that no other part of the rig has.
func (r *Rig) name(what string) string {
	r.serial++
	return fmt.Sprintf("%02d-%s", r.serial, what)
}

// directory makes an empty directory.
func (r *Rig) directory(what string) (string, error) {
	dir := filepath.Join(r.Dir, r.name(what))
	return dir, os.Mkdir(dir, 0o700)
}

// Countersign runs a command of the product to its end and gives its standard output.
func (r *Rig) Countersign(ctx context.Context, args ...string) (string, error) {
	command := exec.CommandContext(ctx, r.Binary, args...)
	var stderr strings.Builder
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("countersign %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out), nil
}

// Ports gives addresses on loopback that the kernel says are free.
func Ports(n int) ([]string, error) {
	addresses := make([]string, n)
	for i := range addresses {
		// All are held until the last is known, so that none is given twice.
		listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it does not wait
		if err != nil {
			return nil, fmt.Errorf("finding a free port: %w", err)
		}
		defer listener.Close()
		addresses[i] = listener.Addr().String()
	}
	return addresses, nil
}

// port is the number in an address.
func port(address string) string {
	_, number, _ := net.SplitHostPort(address)
	return number
}

// await polls until a condition holds.
func await(ctx context.Context, what string, holds func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := holds()
		if err == nil {
			return nil
		}
		if errors.Is(err, errGone) {
			return fmt.Errorf("%s: %w", what, err)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s did not happen within %s: %w", what, patience, err)
		}
		timer := time.NewTimer(20 * time.Millisecond)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// accepting waits until something listens at addresses.
func accepting(ctx context.Context, child *Child, addresses ...string) error {
	for _, address := range addresses {
		err := await(ctx, child.Name+" listening on "+address, func() error {
			if ended := child.Ended(); ended != nil {
				return ended
			}
			conn, err := net.DialTimeout("tcp", address, time.Second) //nolint:noctx // bounded by its timeout
			if err != nil {
				return err
			}
			return conn.Close()
		})
		if err != nil {
			return fmt.Errorf("%w\n%s", err, child.Tail())
		}
	}
	return nil
}

var errGone = errors.New("it has ended")

// copyTree copies a directory with its modes, for every process but its owner's to be kept out.
func copyTree(from, to string) error {
	tree := os.DirFS(from)
	return fs.WalkDir(tree, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(to, filepath.FromSlash(path))
		if entry.IsDir() {
			return os.Mkdir(target, 0o700)
		}
		text, err := fs.ReadFile(tree, path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, text, 0o600)
	})
}
