//go:build linux

package supervise

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestRunDir is about places that are not fit for keys.
func TestRunDir(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	disk := t.TempDir()
	if memory, _, err := inMemory(disk); err != nil || memory {
		t.Skipf("NOT TESTED: temporary files are in memory here (%v)", err)
	}
	if _, err := NewRunDir(disk, false, log); !errors.Is(err, ErrRunDir) || !strings.Contains(err.Error(), "neither tmpfs nor ramfs") || !strings.Contains(err.Error(), "--run-dir") {
		t.Errorf("a disk: %v", err)
	}
	dir, err := NewRunDir(disk, true, log)
	if err != nil {
		t.Errorf("a disk that is allowed: %v", err)
	}
	if info, err := os.Stat(dir.Path); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	memory := memoryDir(t)
	for name, path := range map[string]string{"nothing": filepath.Join(memory, "none"), "a file": filepath.Join(memory, "file")} {
		if name == "a file" {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := NewRunDir(path, false, log); !errors.Is(err, ErrRunDir) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, path := range map[string]string{"a comma": filepath.Join(memory, "a,mode,777"), "a long one": filepath.Join(memory, strings.Repeat("a", 60))} {
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := NewRunDir(path, false, log); !errors.Is(err, ErrRunDir) || !strings.Contains(err.Error(), "cannot be named") {
			t.Errorf("%s: %v", name, err)
		}
	}
	open := filepath.Join(memory, "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := NewRunDir(open, false, log); !errors.Is(err, ErrRunDir) || !strings.Contains(err.Error(), "others could replace") {
		t.Errorf("a directory of everybody: %v", err)
	}
}

// TestRunDirOfAnother has root in the runtime directory of somebody else, which `su` leaves in the environment.
func TestRunDirOfAnother(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: only root can give a directory away")
	}
	const somebody = 65533
	his := memoryDir(t)
	if err := os.Chown(his, somebody, somebody); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	if dir, err := NewRunDir(his, false, log); !errors.Is(err, ErrRunDir) || !strings.Contains(err.Error(), fmt.Sprintf("belongs to the user %d", somebody)) {
		t.Errorf("%v, %v", dir, err)
	}
	t.Setenv("XDG_RUNTIME_DIR", his)
	dir, err := NewRunDir("", true, log)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Remove() //nolint:errcheck // it is empty
	if strings.HasPrefix(dir.Path, his) {
		t.Errorf("keys would be in %s", dir.Path)
	}
}

// TestLeftovers is about an earlier start that was killed, and a neighbour that was not.
func TestLeftovers(t *testing.T) {
	memory, log := memoryDir(t), new(text1)
	logger := slog.New(slog.NewTextHandler(log, nil))
	first, err := NewRunDir(memory, false, logger)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.unlock(); err != nil { // as the kernel does when a process is killed
		t.Fatal(err)
	}
	orphan := orphanIn(t, first.Path, "nginx-debug")
	visitor := orphanIn(t, first.Path, "sh")
	stranger := filepath.Join(memory, "countersign-up-1")
	if err := os.Mkdir(stranger, 0o700); err != nil {
		t.Fatal(err)
	}
	neighbour, err := NewRunDir(memory, false, logger)
	if err != nil {
		t.Fatal(err)
	}
	other := orphanIn(t, neighbour.Path, "nginx")
	second, err := NewRunDir(memory, false, logger)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(first.Path); !errors.Is(err, fs.ErrNotExist) || second.Path == first.Path {
		t.Errorf("what the first start has left is still there: %v", err)
	}
	if left := inside(first.Path); !slices.Equal(left, []int{visitor.Process.Pid}) {
		t.Errorf("%v are left, want %d alone, who only looks around", left, visitor.Process.Pid)
	}
	if _, err := os.Stat(stranger); err != nil {
		t.Errorf("what is not a run directory: %v", err)
	}
	if len(inside(neighbour.Path)) != 1 {
		t.Error("a neighbour's process is gone")
	}
	if !strings.Contains(log.String(), fmt.Sprintf("pid=%d", orphan.Process.Pid)) || strings.Contains(log.String(), fmt.Sprintf("pid=%d", other.Process.Pid)) {
		t.Errorf("log: %s", log)
	}
}
