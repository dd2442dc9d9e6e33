package up

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func write(t *testing.T, s sink, text string) {
	t.Helper()
	if _, err := fmt.Fprint(s, text); err != nil {
		t.Fatal(err)
	}
}

func TestPrefixedLines(t *testing.T) {
	text := new(buffer)
	l := &logs{console: &console{w: text}}
	l.console.reserve("server", "colorteller-1 app")
	long, err := l.open("colorteller-1", "colorteller-1")
	if err != nil {
		t.Fatal(err)
	}
	short, err := l.open("server", "server")
	if err != nil {
		t.Fatal(err)
	}
	write(t, long, "first\nsec")
	write(t, short, "between\n")
	write(t, long, "ond\nlast")
	if err := long.Close(); err != nil {
		t.Fatal(err)
	}
	want := "colorteller-1     | first\nserver            | between\ncolorteller-1     | second\ncolorteller-1     | last\n"
	if diff := cmp.Diff(want, text.String()); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestTails(t *testing.T) {
	dir := t.TempDir()
	for name, l := range map[string]*logs{
		"console": {console: &console{w: new(buffer)}},
		"file":    {console: &console{w: new(buffer)}, dir: dir},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := l.open("x", "x")
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if tail := s.tail(); len(tail) != 0 {
				t.Errorf("an empty log ends with %q", tail)
			}
			var want []string
			for n := range 5000 {
				write(t, s, fmt.Sprintf("line %d\n", n))
				if n >= 5000-tailLines {
					want = append(want, fmt.Sprintf("line %d", n))
				}
			}
			if diff := cmp.Diff(want, s.tail()); diff != "" {
				t.Errorf("tail (-want +got):\n%s", diff)
			}
		})
	}
	info, err := os.Stat(filepath.Join(dir, "x.log"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the log is %v (%v), want mode 0600", info, err)
	}
}

// TestEndlessLine: a process that never ends its line costs bounded memory.
func TestEndlessLine(t *testing.T) {
	text := new(buffer)
	s, err := (&logs{console: &console{w: text}}).open("x", "x")
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		write(t, s, strings.Repeat("a", 10_000))
	}
	if rest := len(s.(*prefixed).part); rest > maxLogged {
		t.Errorf("%d bytes are held back", rest)
	}
}

// TestProgress: on a terminal the progress stays below the lines and goes away; elsewhere it is lines.
func TestProgress(t *testing.T) {
	text := new(buffer)
	c := &console{w: text, terminal: true}
	c.progress("waiting for %d", 2)
	c.progress("waiting for %d", 2)
	c.line("a line")
	c.settle()
	c.line("another")
	want := "\r\x1b[Kwaiting for 2\r\x1b[Ka line\nwaiting for 2\r\x1b[Kanother\n"
	if diff := cmp.Diff(want, text.String()); diff != "" {
		t.Errorf("on a terminal (-want +got):\n%s", diff)
	}
	text = new(buffer)
	c = &console{w: text}
	c.progress("waiting")
	c.progress("waiting")
	c.settle()
	if diff := cmp.Diff("waiting\n", text.String()); diff != "" {
		t.Errorf("elsewhere (-want +got):\n%s", diff)
	}
}
