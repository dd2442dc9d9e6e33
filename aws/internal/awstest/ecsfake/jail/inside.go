//go:build linux

package jail

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// allowed are the capabilities that container runtimes leave to root by default.
var allowed = []int{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL, unix.CAP_SETGID, unix.CAP_SETUID,
	unix.CAP_SETPCAP, unix.CAP_NET_BIND_SERVICE, unix.CAP_NET_RAW, unix.CAP_SYS_CHROOT, unix.CAP_MKNOD, unix.CAP_AUDIT_WRITE, unix.CAP_SETFCAP,
}

// The files that Start hands to the child.
const (
	requestFile   = 3
	answerFile    = 4
	namespaceFile = 5
)

// contain is the first process of a container: it builds the root, gives its powers up and becomes the program.
func contain() {
	runtime.LockOSThread() // the network namespace is this thread's, and so is the program then
	answer := os.NewFile(answerFile, "answer")
	unix.CloseOnExec(answerFile)
	fmt.Fprint(answer, errPrefix+become(answer).Error())
	os.Exit(127)
}

// become reads what the container is to be, and does not return unless it cannot be.
func become(answer *os.File) error {
	var spec Spec
	request := os.NewFile(requestFile, "request")
	text, err := io.ReadAll(request)
	if err != nil {
		return fmt.Errorf("read the description: %w", err)
	}
	request.Close()
	if err := json.Unmarshal(text, &spec); err != nil {
		return fmt.Errorf("read the description: %w", err)
	}
	if err := unix.Setns(namespaceFile, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the task's network: %w", err)
	}
	unix.CloseOnExec(namespaceFile)
	if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if spec.Pause {
		answer.Close()
		pause()
	}
	if err := spec.build(); err != nil {
		return err
	}
	if err := spec.drop(); err != nil {
		return err
	}
	if err := os.Chdir(spec.Directory); err != nil {
		return fmt.Errorf("go to the working directory: %w", err)
	}
	path, err := spec.look(spec.Arguments[0])
	if err != nil {
		return err
	}
	if spec.Init {
		return spec.lead(path, answer)
	}
	return fmt.Errorf("execute %s: %w", path, syscall.Exec(path, spec.Arguments, spec.Environment))
}

// pause collects orphans until it is killed.
func pause() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGCHLD)
	for range signals {
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}

// lead stays the first process, before the program.
func (s *Spec) lead(path string, answer *os.File) error {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals)
	cmd := exec.Command(path, s.Arguments[1:]...) //nolint:noctx // it ends when it does
	cmd.Args[0], cmd.Env = s.Arguments[0], s.Environment
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("execute %s: %w", path, err)
	}
	answer.Close()
	go func() {
		for s := range signals {
			if s != syscall.SIGCHLD && s != syscall.SIGURG {
				_ = cmd.Process.Signal(s) // it may have ended meanwhile
			}
		}
	}()
	os.Exit(collect(cmd.Process.Pid))
	return nil
}

// build makes the root file system, and leaves nothing of the other one in sight.
func (s *Spec) build() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	if err := unix.Mount("root", s.Root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=64m"); err != nil {
		return fmt.Errorf("mount the root: %w", err)
	}
	steps := []func() error{s.system, s.devices, s.image, s.mounts}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	if err := os.Chdir(s.Root); err != nil {
		return fmt.Errorf("go to the new root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("take the new root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("give the old root up: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("go to the new root: %w", err)
	}
	if s.ReadOnly {
		if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
			return fmt.Errorf("make the root read-only: %w", err)
		}
	}
	return nil
}

// system makes the directories that every root has, and this machine's programs visible where they are asked for.
func (s *Spec) system() error {
	for _, dir := range []Dir{{Path: "/etc", Mode: 0o755}, {Path: "/run", Mode: 0o755}, {Path: "/var", Mode: 0o755}, {Path: "/tmp", Mode: 0o777 | os.ModeSticky}} {
		if err := s.directory(dir); err != nil {
			return err
		}
	}
	if !s.Host {
		return nil
	}
	for _, path := range []string{"/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/ssl", "/etc/alternatives", "/etc/localtime"} {
		if target, err := os.Readlink(path); err == nil {
			if err := os.Symlink(target, s.Root+path); err != nil {
				return fmt.Errorf("link %s: %w", path, err)
			}
			continue
		}
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := s.bind(Bind{Source: path, Target: path}); err != nil {
			return err
		}
	}
	return nil
}

// devices mounts /dev and /proc.
func (s *Spec) devices() error {
	for _, disk := range []struct{ path, kind, options string }{{"/dev", "tmpfs", "mode=755,size=64k"}, {"/proc", "proc", ""}} {
		if err := os.MkdirAll(s.Root+disk.path, 0o755); err != nil { //nolint:gosec // as in every root file system
			return fmt.Errorf("make %s: %w", disk.path, err)
		}
		if err := unix.Mount(disk.kind, s.Root+disk.path, disk.kind, unix.MS_NOSUID|unix.MS_NOEXEC, disk.options); err != nil {
			return fmt.Errorf("mount %s: %w", disk.path, err)
		}
	}
	// What concerns the whole machine can be looked at.
	for _, path := range []string{"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"} {
		if _, err := os.Stat(s.Root + path); err != nil {
			continue
		}
		if err := s.bind(Bind{Source: s.Root + path, Target: path}); err != nil {
			return err
		}
	}
	for _, name := range []string{"null", "zero", "full", "random", "urandom"} {
		if err := s.bind(Bind{Source: "/dev/" + name, Target: "/dev/" + name, Writable: true}); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(target, s.Root+"/dev/"+name); err != nil {
			return fmt.Errorf("link /dev/%s: %w", name, err)
		}
	}
	return s.memory(Tmpfs{Path: "/dev/shm", Size: 64 << 20})
}

// image makes the image's own directories, files and links.
func (s *Spec) image() error {
	for _, dir := range s.Dirs {
		if err := s.directory(dir); err != nil {
			return err
		}
	}
	for _, file := range s.Files {
		if err := s.parent(file.Path); err != nil {
			return err
		}
		if err := os.WriteFile(s.Root+file.Path, []byte(file.Content), 0o644); err != nil { //nolint:gosec // public files of an image
			return fmt.Errorf("write %s: %w", file.Path, err)
		}
	}
	for path, target := range s.Links {
		if err := s.parent(path); err != nil {
			return err
		}
		if err := os.Symlink(target, s.Root+path); err != nil {
			return fmt.Errorf("link %s: %w", path, err)
		}
	}
	return nil
}

// mounts makes memory disks and what is shared with other containers.
func (s *Spec) mounts() error {
	for _, disk := range s.Tmpfs {
		if err := s.memory(disk); err != nil {
			return err
		}
	}
	for _, bind := range s.Binds {
		if err := s.bind(bind); err != nil {
			return err
		}
	}
	return nil
}

// parent makes the directories above a path.
func (s *Spec) parent(path string) error {
	if err := s.inRoot(path); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(s.Root+path), 0o755); err != nil { //nolint:gosec // as in every root file system
		return fmt.Errorf("make the directory of %s: %w", path, err)
	}
	return nil
}

// inRoot refuses a path that could lead out of the root.
func (s *Spec) inRoot(path string) error {
	if !filepath.IsAbs(path) || slices.Contains(strings.Split(path, "/"), "..") {
		return fmt.Errorf("the path %q of a container is not absolute, or leads out of it", path)
	}
	return nil
}

// directory makes one with owner and mode.
func (s *Spec) directory(dir Dir) error {
	if err := s.parent(dir.Path); err != nil {
		return err
	}
	path := s.Root + dir.Path
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", dir.Path, err)
	}
	if err := os.Chmod(path, dir.Mode); err != nil {
		return fmt.Errorf("set the mode of %s: %w", dir.Path, err)
	}
	if err := os.Chown(path, dir.UID, dir.GID); err != nil {
		return fmt.Errorf("set the owner of %s: %w", dir.Path, err)
	}
	return nil
}

// memory mounts a memory disk.
func (s *Spec) memory(disk Tmpfs) error {
	if err := s.directory(Dir{Path: disk.Path, Mode: 0o777 | os.ModeSticky}); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", s.Root+disk.Path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, fmt.Sprintf("mode=1777,size=%d", disk.Size)); err != nil {
		return fmt.Errorf("mount a memory disk on %s: %w", disk.Path, err)
	}
	return nil
}

// bind makes a file or directory of the old root visible in the new one.
func (s *Spec) bind(bind Bind) error {
	if err := s.parent(bind.Target); err != nil {
		return err
	}
	info, err := os.Stat(bind.Source)
	if err != nil {
		return fmt.Errorf("look at what %s shows: %w", bind.Target, err)
	}
	target := s.Root + bind.Target
	if info.IsDir() {
		err = os.MkdirAll(target, 0o755) //nolint:gosec // what is mounted there has a mode of its own
	} else if _, missing := os.Stat(target); missing != nil {
		err = os.WriteFile(target, nil, 0o600)
	}
	if err != nil {
		return fmt.Errorf("make %s: %w", bind.Target, err)
	}
	if err := unix.Mount(bind.Source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("show %s in the container: %w", bind.Target, err)
	}
	if bind.Writable {
		return nil
	}
	if err := unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("show %s in the container read-only: %w", bind.Target, err)
	}
	return nil
}

// drop gives up what root may beyond a container, then becomes the user.
func (s *Spec) drop() error {
	for resource, limit := range s.Limits {
		if err := syscall.Setrlimit(resource, &syscall.Rlimit{Cur: limit[0], Max: limit[1]}); err != nil {
			return fmt.Errorf("set the resource limit %d to %v: %w", resource, limit, err)
		}
	}
	for _, file := range []*os.File{os.Stdout, os.Stderr} {
		// Whoever opens /dev/stdout opens the pipe by its owner.
		if err := file.Chown(s.UID, s.GID); err != nil {
			return fmt.Errorf("give the output to the user: %w", err)
		}
	}
	if err := s.dropBounding(); err != nil {
		return err
	}
	if err := syscall.Setgroups([]int{s.GID}); err != nil {
		return fmt.Errorf("set the groups: %w", err)
	}
	if err := syscall.Setgid(s.GID); err != nil {
		return fmt.Errorf("set the group: %w", err)
	}
	if err := syscall.Setuid(s.UID); err != nil {
		return fmt.Errorf("set the user: %w", err)
	}
	return nil
}

// dropBounding limits what a program that the calling thread executes can ever have.
func (s *Spec) dropBounding() error {
	for capability := range unix.CAP_LAST_CAP + 1 {
		if slices.Contains(allowed, capability) && !s.DropAll && !slices.Contains(s.Drop, capability) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(capability), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop the capability %d: %w", capability, err)
		}
	}
	return nil
}
