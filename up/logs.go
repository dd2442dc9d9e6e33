package up

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

const (
	tailLines = 10       // of each process are kept for when the mesh does not start
	maxLogged = 64 << 10 // bytes after which a line is written although its end has not come
)

// console is standard error: lines of several processes, each whole, and on a terminal one line below
// them that says how far the start is. It is safe for concurrent use.
type console struct {
	mu       sync.Mutex
	w        io.Writer
	terminal bool
	colour   bool
	last     string // that was waited for
	status   string // the same as it stands on the terminal
	width    int    // of the longest prefix
	prefixes int    // that were given a colour
}

// line writes one line of our own.
func (c *console) line(format string, args ...any) {
	c.write("", fmt.Appendf(nil, format, args...))
}

// progress says what is waited for: on a terminal in a line that the next one replaces, elsewhere in
// lines of its own.
func (c *console) progress(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	c.mu.Lock()
	defer c.mu.Unlock()
	if text == c.last {
		return
	}
	c.last = text
	if !c.terminal {
		fmt.Fprintln(c.w, text)
		return
	}
	fmt.Fprintf(c.w, "\r\x1b[K%s", text)
	c.status = text
}

// settle takes the progress away.
func (c *console) settle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.status != "" {
		fmt.Fprint(c.w, "\r\x1b[K")
		c.status = ""
	}
}

// write writes one line, with the progress kept below it. What cannot be written is lost: standard
// error is where one would say so.
func (c *console) write(prefix string, line []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b bytes.Buffer
	if c.status != "" {
		b.WriteString("\r\x1b[K")
	}
	b.WriteString(prefix)
	b.Write(line)
	b.WriteByte('\n')
	b.WriteString(c.status)
	c.w.Write(b.Bytes()) //nolint:errcheck // see above
}

// reserve makes room for prefixes that come later, so that all lines are aligned.
func (c *console) reserve(names ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range names {
		c.width = max(c.width, len(name))
	}
}

// prefix is what stands before the lines of a process, in a colour of its own on a terminal.
func (c *console) prefix(name string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.width = max(c.width, len(name))
	text := fmt.Sprintf("%-*s | ", c.width, name)
	if !c.colour {
		return text
	}
	colours := []int{36, 33, 32, 35, 34, 96, 93, 92, 95, 94}
	c.prefixes++
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", colours[(c.prefixes-1)%len(colours)], text)
}

// sink takes what one process writes.
type sink interface {
	io.Writer
	io.Closer
	// tail gives the last lines.
	tail() []string
}

// logs makes the sinks.
type logs struct {
	console *console
	dir     string // empty: to the console
}

// open makes the sink of a process; name is what the process is called to people, file without its
// suffix what the log is called.
func (l *logs) open(name, file string) (sink, error) {
	if l.dir == "" {
		return &prefixed{console: l.console, prefix: l.console.prefix(name)}, nil
	}
	f, err := os.OpenFile(filepath.Join(l.dir, file+".log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the log of %s: %w", name, err)
	}
	return logFile{f}, nil
}

// logFile is handed to the process as it is, so that a line is in the file when the process has
// written it, whatever becomes of us.
type logFile struct{ *os.File }

func (f logFile) tail() []string {
	const enough = 8 << 10
	reader, err := os.Open(f.Name())
	if err != nil {
		return nil
	}
	defer reader.Close()
	if info, err := reader.Stat(); err == nil && info.Size() > enough {
		if _, err := reader.Seek(-enough, io.SeekEnd); err != nil {
			return nil
		}
	}
	data, err := io.ReadAll(io.LimitReader(reader, enough))
	text := strings.TrimRight(string(data), "\n")
	if err != nil || text == "" {
		return nil
	}
	lines := strings.Split(text, "\n")
	return lines[max(0, len(lines)-tailLines):]
}

// prefixed writes whole lines to the console. It is safe for concurrent use.
type prefixed struct {
	console *console
	prefix  string

	mu   sync.Mutex
	part []byte // of a line whose end has not come
	last []string
}

// Write implements io.Writer; it never fails.
func (p *prefixed) Write(data []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.part = append(p.part, data...)
	for {
		line, rest, found := bytes.Cut(p.part, []byte("\n"))
		if !found {
			break
		}
		p.emit(line)
		p.part = rest
	}
	if len(p.part) > maxLogged {
		p.emit(p.part)
		p.part = nil
	}
	return len(data), nil
}

// Close writes what is left of a line.
func (p *prefixed) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.part) > 0 {
		p.emit(p.part)
		p.part = nil
	}
	return nil
}

func (p *prefixed) tail() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.last...)
}

// emit writes one line; mu is held.
func (p *prefixed) emit(line []byte) {
	p.console.write(p.prefix, line)
	p.last = append(p.last, string(line))
	if len(p.last) > tailLines {
		p.last = p.last[1:]
	}
}
