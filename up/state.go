package up

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"countersign.dev/durable"
)

// ErrState says that a state directory cannot be used.
var ErrState = errors.New("the state directory cannot be used")

const (
	temporaryPrefix = "countersign-up-"
	lockName        = "up.lock"
	madeName        = "made.json"
	// maxRunPath is how long the path of a directory may be in which an NGINX or HAProxy has its sockets.
	maxRunPath = 70
	// maxSocketPath is what fits into a sockaddr_un everywhere (104 characters on macOS), with its end.
	maxSocketPath = 103
)

// state is the directory that holds everything of a run:
//
//	up.lock         held while `up` runs
//	run.json        the run document, while `up` runs
//	addresses.json  the networks that the addresses are in, for the next run
//	ca.pem          the root certificate
//	made.json       what a temporary run has made elsewhere, and removes at its end
//	server/         the server's state
//	tokens/         a join token for each instance, while `up` runs
//	sidecars/       a directory for each instance; where its certificate comes from a store, with
//	                certs/, conf/ and run/ of its NGINX or HAProxy, agent/ of its watcher, plan.json and crl.pem
type state struct {
	dir       string // absolute
	socket    string // the server's, which may have to be elsewhere to be short enough
	control   string // that of `up` itself
	socketDir string // made for what needs a short path, empty when nothing does
	runDirs   int    // in socketDir
	temporary bool
	made      []madePath // see made.json
	unlock    func() error
}

// openState makes or reuses dir, or makes a temporary directory when dir is empty, and keeps other
// `up`s out of it.
func openState(dir string) (_ *state, err error) {
	s := &state{temporary: dir == ""}
	if s.temporary {
		removeAbandoned(os.TempDir())
		s.dir, s.unlock, err = makeTemporary()
	} else {
		s.dir, s.unlock, err = claimDirectory(dir)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	for _, name := range []string{"server", "tokens", "sidecars"} {
		if err := durable.MkdirAll(s.path(name), 0o700); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrState, err)
		}
	}
	if s.socket, err = s.short(s.path("server.sock"), maxSocketPath); err != nil {
		return nil, err
	}
	if s.control, err = s.short(s.path("control.sock"), maxSocketPath); err != nil {
		return nil, err
	}
	return s, nil
}

// short is a path of at most so many bytes: path itself, or one of its name in a directory that is made for
// such.
func (s *state) short(path string, most int) (string, error) {
	if len(path) <= most {
		return path, nil
	}
	if s.socketDir == "" {
		dir, err := os.MkdirTemp(shortTemporary(), temporaryPrefix)
		if err != nil {
			return "", fmt.Errorf("%w: making a directory with a short name for sockets: %w", ErrState, err)
		}
		s.socketDir = dir
	}
	return filepath.Join(s.socketDir, filepath.Base(path)), nil
}

// shortTemporary is the shorter one of the places for temporary files.
func shortTemporary() string {
	if dir := os.TempDir(); len(dir) <= 40 {
		return dir
	}
	return "/tmp"
}

// makeTemporary makes a directory and locks it before somebody's removeAbandoned gets it.
func makeTemporary() (string, func() error, error) {
	var last error
	for range 10 {
		dir, err := os.MkdirTemp("", temporaryPrefix)
		if err != nil {
			return "", nil, fmt.Errorf("%w: %w; set TMPDIR, or name a directory with --state", ErrState, err)
		}
		unlock, err := durable.Lock(filepath.Join(dir, lockName))
		if err == nil {
			if _, err = os.Lstat(filepath.Join(dir, lockName)); err == nil {
				return dir, unlock, nil
			}
			last = errors.Join(err, unlock())
			continue
		}
		last = err
	}
	return "", nil, fmt.Errorf("%w: %w", ErrState, last)
}

// claimDirectory makes and locks a directory that the user named.
func claimDirectory(dir string) (string, func() error, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return "", nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	unlock, err := durable.Lock(filepath.Join(dir, lockName))
	switch {
	case errors.Is(err, durable.ErrLocked):
		return "", nil, fmt.Errorf("%w: another 'countersign up' runs on %s; stop it, or give another --state", ErrState, dir)
	case err != nil:
		return "", nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	return dir, unlock, nil
}

// removeAbandoned removes the temporary directories of `up`s that were killed, private keys and all. A
// directory is abandoned when it is this user's and nobody holds its lock.
func removeAbandoned(parent string) {
	locks, err := filepath.Glob(filepath.Join(parent, temporaryPrefix+"*", lockName))
	if err != nil {
		return // the pattern is bad: TMPDIR has a [ in it
	}
	for _, path := range locks {
		dir := filepath.Dir(path)
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() {
			continue
		}
		if owner, ok := info.Sys().(*syscall.Stat_t); !ok || int(owner.Uid) != os.Getuid() {
			continue
		}
		unlock, err := durable.Lock(path)
		if err != nil {
			continue
		}
		for _, made := range readMade(dir) {
			if made.Born != 0 { // else it may be another one of the same number
				_ = made.remove() // the next run tries it no more
			}
		}
		os.RemoveAll(dir)
		_ = unlock() // the file is gone
	}
}

// path names something in the directory.
func (s *state) path(elements ...string) string {
	return filepath.Join(append([]string{s.dir}, elements...)...)
}

func (s *state) documentPath() string           { return s.path("run.json") }
func (s *state) sidecar(instance string) string { return s.path("sidecars", instance) }
func (s *state) token(instance string) string   { return s.path("tokens", instance) }

// runDir is where the proxy of an instance has its sockets.
func (s *state) runDir(instance string) (string, error) {
	path := filepath.Join(s.sidecar(instance), "run")
	if len(path) <= maxRunPath {
		return path, nil
	}
	s.runDirs++
	return s.short(filepath.Join(path, fmt.Sprintf("run-%d", s.runDirs)), maxRunPath)
}

// writeToken stores a join token where the sidecar reads it.
func (s *state) writeToken(instance, token string) error {
	if err := durable.WriteFile(s.token(instance), []byte(token+"\n"), 0o600); err != nil {
		return fmt.Errorf("storing the join token of %s: %w", instance, err)
	}
	return nil
}

// madePath is something that a temporary run makes outside its directory. What is at that path later need not be
// the same: who clears up after a killed run may make what is to last there.
type madePath struct {
	Path string `json:"path"`
	// Device and Inode are of what was made, and Born when its inode was (Unix, in nanoseconds): the number of one
	// that is gone is given to the next. All are 0 until it was made.
	Device uint64 `json:"device,omitempty"`
	Inode  uint64 `json:"inode,omitempty"`
	Born   int64  `json:"born,omitempty"`
}

// remove removes what was made, and nothing else that has its path now.
func (m madePath) remove() error {
	if now, err := identify(m.Path); err != nil || m.Inode == 0 || now != m {
		return nil //nolint:nilerr // it is gone, or not ours
	}
	return os.RemoveAll(m.Path)
}

// willMake takes down which of some paths do not exist. What a temporary run makes is of no use to the next
// one: its authority ends with it. So it is removed at the end, or by the next run when this one is killed.
// Whatever is there already stays; of a directory that is empty, what was put into it goes. made is to be called when they
// were made, whether or not that went well.
func (s *state) willMake(paths ...string) (made func() error, err error) {
	if !s.temporary {
		return func() error { return nil }, nil
	}
	first := len(s.made)
	var empty []string
	for _, path := range paths {
		path, err := filepath.Abs(path)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrState, err)
		}
		switch inside, err := os.ReadDir(path); {
		case errors.Is(err, fs.ErrNotExist):
			if _, err := os.Lstat(path); err != nil { // else it is a link that leads nowhere
				s.made = append(s.made, madePath{Path: path})
			}
		case err == nil && len(inside) == 0:
			empty = append(empty, path)
		}
	}
	return func() error {
		for _, dir := range empty {
			inside, err := os.ReadDir(dir)
			if err != nil {
				return fmt.Errorf("%w: %w", ErrState, err)
			}
			for _, entry := range inside {
				s.made = append(s.made, madePath{Path: filepath.Join(dir, entry.Name())})
			}
		}
		for n := first; n < len(s.made); n++ {
			if now, err := identify(s.made[n].Path); err == nil {
				s.made[n] = now
			}
		}
		data, err := json.Marshal(s.made)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrState, err)
		}
		return durable.WriteFile(s.path(madeName), data, 0o600)
	}, nil
}

// readMade is what an abandoned run has noted.
func readMade(dir string) (made []madePath) {
	data, err := os.ReadFile(filepath.Join(dir, madeName))
	if err != nil || json.Unmarshal(data, &made) != nil {
		return nil
	}
	return slices.DeleteFunc(made, func(m madePath) bool { return !filepath.IsAbs(m.Path) })
}

// blocks are the networks of the last run on this state, none when there was none.
func (s *state) blocks() []netip.Prefix {
	data, err := os.ReadFile(s.path("addresses.json"))
	if err != nil {
		return nil
	}
	var blocks, usable []netip.Prefix
	if json.Unmarshal(data, &blocks) != nil {
		return nil // then they are chosen anew
	}
	for _, block := range blocks {
		if block.Bits() == 24 && block == block.Masked() && block.Addr().Is4() && block.Addr().IsLoopback() {
			usable = append(usable, block)
		}
	}
	return usable
}

// keepBlocks remembers the networks, so that addresses stay the same from run to run where they can.
func (s *state) keepBlocks(blocks []netip.Prefix) error {
	if s.temporary {
		return nil
	}
	data, err := json.Marshal(blocks)
	if err != nil {
		return fmt.Errorf("remembering the addresses: %w", err)
	}
	return durable.WriteFile(s.path("addresses.json"), append(data, '\n'), 0o600)
}

// close removes what has no meaning after the run: everything when the directory is temporary.
func (s *state) close() error {
	var errs []error
	if s.socketDir != "" {
		errs = append(errs, os.RemoveAll(s.socketDir))
	}
	if s.temporary {
		for _, made := range s.made {
			errs = append(errs, made.remove())
		}
		errs = append(errs, os.RemoveAll(s.dir))
	} else {
		errs = append(errs, os.RemoveAll(s.documentPath()), os.RemoveAll(s.path("tokens")), os.RemoveAll(s.path("server.sock")), os.RemoveAll(s.path("control.sock")))
	}
	errs = append(errs, s.unlock())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clearing up after the run: %w", err)
	}
	return nil
}
