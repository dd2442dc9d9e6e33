package up

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// envHelper makes this test binary play another process's part.
const envHelper = "COUNTERSIGN_UP_TEST_HELPER"

func TestMain(m *testing.M) {
	if name := filepath.Base(os.Args[0]); name == "nginx" || name == "haproxy" {
		os.Exit(fakeEngine(name, os.Args[1:]))
	}
	if len(os.Args) > 1 && os.Getenv(envJournal) != "" {
		if slices.Contains([]string{"server", "proxy", "app", "init", "rotate"}, os.Args[1]) {
			os.Exit(fakeMain(os.Args[1:]))
		}
	}
	if helper, ok := helpers[os.Getenv(envHelper)]; ok {
		helper()
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// helpers are the parts, by name. Each says on standard output what the test has to know.
var helpers = map[string]func(){
	// parent starts a child and waits to be killed.
	"parent": func() {
		s := newStarter()
		command := exec.Command("sleep", "1000")
		if err := s.start(command); err != nil {
			fmt.Println("error:", err)
			return
		}
		fmt.Println(command.Process.Pid)
		select {}
	},
	// adopter starts a child that leaves its group and its parent behind, and ends what it adopted.
	"adopter": func() {
		adopted, err := adoptOrphans()
		if err != nil {
			fmt.Println("error:", err)
			return
		}
		s := newStarter()
		defer s.close()
		var out bytes.Buffer
		command := exec.Command("sh", "-c", "setsid sh -c 'echo $$; exec sleep 1000 >/dev/null' & sleep 0.2")
		command.Stdout = &out
		if err := s.start(command); err != nil {
			fmt.Println("error:", err)
			return
		}
		if err := (&running{command: command}).wait(); err != nil {
			fmt.Println("error:", err)
			return
		}
		pid, err := strconv.Atoi(strings.TrimSpace(out.String()))
		fmt.Println(pid, err, "alive:", alive(pid))
		fmt.Println(adopted.end(time.Now().Add(10*time.Second)), "alive:", alive(pid))
	},
}

// helper starts a part and gives its output, line by line.
func helper(t *testing.T, name string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), envHelper+"="+name)
	command.Stderr = os.Stderr
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	})
	return command, bufio.NewScanner(out)
}

// alive tells whether a process runs; a zombie does not.
func alive(pid int) bool {
	if pid <= 0 || syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return !os.IsNotExist(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); {
		if time.Now().After(deadline) {
			t.Fatalf("it does not come about that %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(data []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(data)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
