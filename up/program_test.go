package up

import (
	"os"
	"slices"
	"testing"
)

// TestWithProgram lets a command find this program by its name, behind what the user has.
func TestWithProgram(t *testing.T) {
	r := &run{cfg: Config{Executable: "/opt/build/countersign"}}
	path := "PATH=/usr/bin" + string(os.PathListSeparator) + "/opt/build"
	if got := r.withProgram([]string{"A=b", "PATH=/usr/bin"}); !slices.Equal(got, []string{"A=b", path}) {
		t.Errorf("got %q", got)
	}
	r.cfg.Executable = "/opt/build/up.test" // by another name it would not be found
	if got := r.withProgram([]string{"PATH=/usr/bin"}); !slices.Equal(got, []string{"PATH=/usr/bin"}) {
		t.Errorf("got %q", got)
	}
}
