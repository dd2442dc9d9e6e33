package whole_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

// What is shown of the course of a test that has failed: the last of its lines, none longer than so many bytes.
const (
	shownLines = 40
	shownBytes = 300
)

// course is what happened in one test.
type course struct {
	mu    sync.Mutex
	lines []string // the last ones
}

// courses are by test (testing.TB), for as long as it runs.
var courses sync.Map

// later notes what happens in a test without an error. It is shown when the test has failed, after its errors: of a long
// output the beginning is read first, and sometimes nothing else. With -v it is shown at once. It may be called by many
// goroutines until the test ends.
func later(t testing.TB, format string, arguments ...any) {
	t.Helper()
	if testing.Verbose() {
		t.Logf(format, arguments...)
		return
	}
	kept, known := courses.LoadOrStore(t, &course{})
	c := kept.(*course)
	if !known {
		t.Cleanup(func() {
			courses.Delete(t)
			if t.Failed() {
				t.Logf("before that, the last of it:\n%s", c)
			}
		})
	}
	c.add(fmt.Sprintf(format, arguments...))
}

func (c *course) add(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if len(line) > shownBytes {
			line = line[:shownBytes] + " ..."
		}
		c.lines = append(c.lines, line)
	}
	c.lines = c.lines[max(0, len(c.lines)-shownLines):]
}

func (c *course) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.lines, "\n")
}

// TestLater keeps the last lines, and of each the beginning.
func TestLater(t *testing.T) {
	var c course
	for n := range 100 {
		c.add(fmt.Sprintf("step %d\n%s\n", n, strings.Repeat("x", 1000)))
	}
	lines := strings.Split(c.String(), "\n")
	if len(lines) != shownLines || lines[0] != "step 80" || lines[shownLines-2] != "step 99" || len(lines[1]) > shownBytes+10 {
		t.Errorf("%d lines, from %q to %q", len(lines), lines[0], lines[len(lines)-2])
	}
}
