package up

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A proxy may write no core dump, and an application what `up` may.
func TestCoreDumps(t *testing.T) {
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &was); err != nil {
		t.Fatal(err)
	}
	if was.Max == 0 {
		t.Skip("NOT TESTED: core dumps are forbidden here already (ulimit -H -c is 0)")
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: was.Max, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_CORE, &was); err != nil {
			t.Error(err)
		}
	})
	s := newStarter()
	defer s.close()
	for _, proxy := range []bool{true, false, true} {
		command := exec.CommandContext(t.Context(), "sleep", "100")
		command.SysProcAttr = &syscall.SysProcAttr{}
		if proxy {
			endWithParent(command.SysProcAttr)
		}
		if err := s.start(command); err != nil {
			t.Fatal(err)
		}
		limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", command.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		if err := command.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = command.Wait() // it was killed
		none := false
		for line := range strings.Lines(string(limits)) {
			if rest, ok := strings.CutPrefix(line, "Max core file size"); ok {
				none = strings.Fields(rest)[0] == "0"
			}
		}
		if none != proxy {
			t.Errorf("proxy: %v; a core dump is forbidden: %v\n%s", proxy, none, limits)
		}
	}
}
