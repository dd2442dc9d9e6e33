package proc

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// Machine says where figures were measured.
type Machine struct {
	CPU    string `json:"cpu"`    // the model's name
	Cores  int    `json:"cores"`  // as many as this process may use
	Kernel string `json:"kernel"` // its release
	MiB    int64  `json:"mib"`    // of memory
}

// ThisMachine describes the machine. What cannot be read is empty.
func ThisMachine() Machine {
	m := Machine{CPU: runtime.GOARCH, Cores: runtime.NumCPU(), Kernel: runtime.GOOS}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if model := ParseModel(string(text)); model != "" {
			m.CPU = model
		}
	}
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = "Linux " + strings.TrimSpace(string(text))
	}
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		var kib int64
		if _, err := fmt.Sscanf(string(text), "MemTotal: %d kB", &kib); err == nil {
			m.MiB = kib >> 10
		}
	}
	return m
}

// ParseModel finds the name of the processor in the content of /proc/cpuinfo; "" when it has none.
func ParseModel(text string) string {
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(line, ":")
		if ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// Busy is the processor time that the machine has spent on processes, or that its host took away,
// since it was started; over all processors.
func Busy() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("reading how busy the machine is: %w", err)
	}
	return ParseBusy(string(text))
}

// ParseBusy reads the content of /proc/stat. Interrupts are left out: on loopback they are the
// network's work for the processes that are measured, and no process's own.
func ParseBusy(text string) (time.Duration, error) {
	line, _, _ := strings.Cut(text, "\n")
	fields := strings.Fields(line)
	// cpu user nice system idle iowait irq softirq steal
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, fmt.Errorf("%q is not the first line of /proc/stat", line)
	}
	var sum int64
	for _, i := range []int{1, 2, 3, 8} {
		ticks, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("the first line of /proc/stat: %w", err)
		}
		sum += ticks
	}
	return time.Duration(sum) * tick, nil
}

// Watch tells how much else the machine did in a while.
type Watch struct {
	root       int
	began      time.Time
	busy, ours time.Duration
}

// NewWatch begins a while. What descends from root counts as one's own.
func NewWatch(root int) (*Watch, error) {
	w := &Watch{root: root, began: time.Now()}
	var err1, err2 error
	w.busy, err1 = Busy()
	w.ours, err2 = CPU(root)
	return w, errors.Join(err1, err2)
}

// Foreign is the share of the machine's processors, 0 to 1, that others have used since the while began.
func (w *Watch) Foreign() (float64, error) {
	busy, err1 := Busy()
	ours, err2 := CPU(w.root)
	if err := errors.Join(err1, err2); err != nil {
		return 0, err
	}
	return foreign(busy-w.busy, ours-w.ours, time.Since(w.began), runtime.NumCPU()), nil
}

func foreign(busy, ours, wall time.Duration, cores int) float64 {
	return max(0, float64(busy-ours)/(float64(wall)*float64(cores)))
}
