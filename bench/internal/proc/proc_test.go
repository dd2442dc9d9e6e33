package proc

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseStat(t *testing.T) {
	tests := map[string]struct {
		text string
		want Stat
		ok   bool
	}{
		"a worker": {
			"4711 (nginx) S 4710 4710 4710 0 -1 4194624 500 600 0 0 123 77 10 20 20 0 1 0 345 5000 300 18446744073709551615\n",
			Stat{PID: 4711, Parent: 4710, State: 'S', Own: 2 * time.Second, Waited: 300 * time.Millisecond},
			true,
		},
		"a name of spaces and parentheses": {
			"12 (a) R 1 (b) Z 7 1 1 0 -1 0 0 0 0 0 1 0 0 0 20\n",
			Stat{PID: 12, Parent: 7, State: 'Z', Own: 10 * time.Millisecond},
			true,
		},
		"no name":         {"12 nginx S 1", Stat{}, false},
		"cut off":         {"12 (nginx) S 1 1 1 0", Stat{}, false},
		"no number":       {"x (nginx) S 7 1 1 0 -1 0 0 0 0 0 1 0 0 0 20", Stat{}, false},
		"times of letter": {"1 (nginx) S 7 1 1 0 -1 0 0 0 0 0 a 0 0 0 20", Stat{}, false},
		"empty":           {"", Stat{}, false},
	}
	for name, test := range tests {
		got, err := ParseStat(test.text)
		if (err == nil) != test.ok {
			t.Errorf("%s: error %v", name, err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestTree(t *testing.T) {
	all := map[int]Stat{1: {PID: 1}, 2: {PID: 2, Parent: 1}, 3: {PID: 3, Parent: 2}, 4: {PID: 4, Parent: 2}, 5: {PID: 5, Parent: 1}}
	var pids []int
	for _, s := range Tree(all, 2) {
		pids = append(pids, s.PID)
	}
	slices.Sort(pids)
	if diff := cmp.Diff([]int{2, 3, 4}, pids); diff != "" {
		t.Error(diff)
	}
	if tree := Tree(all, 9); tree != nil {
		t.Errorf("a process that is not there has the tree %v", tree)
	}
}

func TestParseMemory(t *testing.T) {
	got, err := ParseMemory("Name:\tnginx\nVmPeak:\t   99 kB\nVmHWM:\t   20 kB\nVmRSS:\t   12 kB\nThreads:\t1\n")
	if err != nil || got != (Memory{RSS: 12 << 10, Peak: 20 << 10}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, text := range []string{"", "VmRSS:\t12 kB\n", "VmHWM:\t20 kB\nVmRSS:\tmuch kB\n"} {
		if got, err := ParseMemory(text); err == nil {
			t.Errorf("%q gives %+v and no error", text, got)
		}
	}
}

func TestParseBusy(t *testing.T) {
	got, err := ParseBusy("cpu  100 20 30 4000 500 60 70 8 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n")
	if want := 1580 * time.Millisecond; err != nil || got != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
	for _, text := range []string{"", "cpu 1 2 3", "intr 1 2 3 4 5 6 7 8 9", "cpu  1 x 3 4 5 6 7 8 0 0"} {
		if got, err := ParseBusy(text); err == nil {
			t.Errorf("%q gives %s and no error", text, got)
		}
	}
}

func TestForeign(t *testing.T) {
	for _, test := range []struct {
		busy, ours time.Duration
		want       float64
	}{
		{15 * time.Second, 10 * time.Second, 0.25},
		{10 * time.Second, 10 * time.Second, 0},
		{9 * time.Second, 10 * time.Second, 0}, // two clocks of 10 ms never agree wholly
	} {
		if got := foreign(test.busy, test.ours, 10*time.Second, 2); got != test.want {
			t.Errorf("%s busy and %s of it ours: %v, want %v", test.busy, test.ours, got, test.want)
		}
	}
}

func TestParseModel(t *testing.T) {
	if got := ParseModel("processor\t: 0\nmodel name\t: Some(R) CPU @ 3 GHz\n"); got != "Some(R) CPU @ 3 GHz" {
		t.Errorf("%q", got)
	}
	if got := ParseModel("processor\t: 0\n"); got != "" {
		t.Errorf("%q of a text without a model", got)
	}
}

// The parsers read what this system really writes.
func TestThisProcess(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skipf("NOT TESTED: this system has no /proc (%v)", err)
	}
	watch, err := NewWatch(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	m, err := MemoryOf(os.Getpid())
	if err != nil || m.RSS < 1<<20 || m.Peak < 1<<20 {
		t.Errorf("this test holds %+v, %v", m, err)
	}
	if share, err := watch.Foreign(); err != nil || share < 0 {
		t.Errorf("others used %v, %v", share, err)
	}
	if _, err := CPU(1 << 30); err == nil {
		t.Error("a process that cannot be has used processor time")
	}
	if m := ThisMachine(); m.Cores < 1 || m.CPU == "" || m.Kernel == "" {
		t.Errorf("%+v", m)
	}
}
