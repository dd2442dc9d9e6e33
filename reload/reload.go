// Package reload knows how an NGINX or HAProxy that runs is told to take new files: which command of its own
// tests them, which signal, command or socket makes it take them, and how it is seen that it did.
//
// It never starts a proxy, and it never signals a process of another program: a pid in a file may have been
// given to somebody else since. All waiting ends with the context.
package reload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"unicode/utf8"
)

// Errors of this package. They are wrapped with what was tried and what to do.
var (
	// ErrRefused says that the proxy has looked at the files and does not want them.
	ErrRefused = errors.New("the proxy refuses the new files")
	// ErrNotRunning says that there is no such proxy at the moment. Trying again is right when one is to come.
	ErrNotRunning = errors.New("the proxy does not run")
	// ErrNotTaken says that the proxy was told, and that nothing shows that it did what it was told.
	ErrNotTaken = errors.New("the proxy did not take the new files")
	// ErrOtherProgram says that a pid belongs to something else than the proxy's master process.
	ErrOtherProgram = errors.New("that process is not the proxy's master process")
	// ErrMethod says that a text names no way to reload.
	ErrMethod = errors.New("not a way to reload")
)

// Proxy is a program that can be told.
type Proxy struct {
	// Name is what the program's file is called.
	Name string
	// Signal is what its master process reloads at.
	Signal syscall.Signal
	// testArgs are the arguments of its test; the file comes last.
	testArgs []string
	// lesson says what to do when its master does not take Signal.
	lesson string
	// worker is what the title of a worker begins with, however the program's file is called, and leaving what stands in it
	// when the worker accepts no more; empty when it has no such titles.
	worker, leaving string
}

// The proxies.
var (
	NGINX = Proxy{
		Name: "nginx", Signal: syscall.SIGHUP, testArgs: []string{"-t", "-q", "-c"},
		lesson:  "name the master process, which the file of the directive pid holds",
		worker:  "nginx: worker process",
		leaving: "is shutting down",
	}
	HAProxy = Proxy{
		Name: "haproxy", Signal: syscall.SIGUSR2, testArgs: []string{"-c", "-f"},
		lesson: "start HAProxy as master and worker (-W), and name the master, which is the workers' parent",
	}
)

// Known finds a proxy by its name.
func Known(name string) (Proxy, bool) {
	for _, p := range []Proxy{NGINX, HAProxy} {
		if p.Name == name {
			return p, true
		}
	}
	return Proxy{}, false
}

// TestCommand is the command by which the proxy tests a configuration and the files that it names; program is the
// proxy's own file, or empty for the one in PATH. It is for [Test].
func (p Proxy) TestCommand(program, file string) []string {
	if program == "" {
		program = p.Name
	}
	return append(append([]string{program}, p.testArgs...), file)
}

// Method is a way to tell a proxy. It may be used from several goroutines, but one reload at a time makes sense.
type Method interface {
	// Reload tells the proxy and returns when it has taken the files, as far as the way shows that. The error is
	// [ErrRefused], [ErrNotRunning], [ErrNotTaken], [ErrOtherProgram], or the system's; with the last two of them the
	// proxy was not told.
	Reload(ctx context.Context) error
	// String is the text that [Proxy.Parse] understands.
	String() string
}

// pidForm is a pid.
var pidForm = regexp.MustCompile(`^[1-9][0-9]{0,9}$`)

// Parse reads the text of a way to reload:
//
//	signal:PID        the proxy's signal to its master process
//	pidfile:FILE      the same, to the process that the file names at that time
//	command:WORDS     a command, without a shell: words with spaces between, or a JSON list of texts
//	haproxy:SOCKET    the command reload on HAProxy's master socket (-S)
//
// FILE and SOCKET are absolute paths, or relative to the working directory. The error is [ErrMethod].
func (p Proxy) Parse(text string) (Method, error) {
	kind, rest, _ := strings.Cut(text, ":")
	switch {
	case rest == "":
	case kind == "signal" && pidForm.MatchString(rest):
		pid, err := strconv.ParseInt(rest, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("%w: %q: no process has so high a number", ErrMethod, text)
		}
		return Signal{Proxy: p, PID: int(pid)}, nil
	case kind == "pidfile":
		return Signal{Proxy: p, PIDFile: rest}, nil
	case kind == "command":
		words, err := splitCommand(rest)
		if err != nil {
			return nil, err
		}
		return Command{Args: words}, nil
	case kind == "haproxy" && p.Name == HAProxy.Name:
		return Master{Socket: rest}, nil
	case kind == "haproxy":
		return nil, fmt.Errorf("%w: %q: %s has no master socket; write signal:PID, pidfile:FILE or command:WORDS", ErrMethod, text, p.Name)
	}
	return nil, fmt.Errorf("%w: %q: write signal:PID, pidfile:FILE, command:WORDS or, for HAProxy, haproxy:SOCKET", ErrMethod, text)
}

// ParseCommand reads a command as [Proxy.Parse] does: words with spaces between, or a JSON list of texts. The error is
// [ErrMethod].
func ParseCommand(text string) ([]string, error) { return splitCommand(text) }

func splitCommand(text string) ([]string, error) {
	if !utf8.ValidString(text) {
		return nil, fmt.Errorf("%w: the command is not UTF-8", ErrMethod)
	}
	words := strings.Fields(text)
	if strings.HasPrefix(text, "[") {
		words = nil
		if err := json.Unmarshal([]byte(text), &words); err != nil {
			return nil, fmt.Errorf("%w: the command begins with [ and is no JSON list of texts", ErrMethod)
		}
	}
	if len(words) == 0 || words[0] == "" {
		return nil, fmt.Errorf("%w: the command has no words", ErrMethod)
	}
	if strings.ContainsRune(strings.Join(words, ""), 0) {
		return nil, fmt.Errorf("%w: the command has a zero byte in it", ErrMethod)
	}
	return words, nil
}

// joinCommand is the text of a command.
func joinCommand(words []string) string {
	text := strings.Join(words, " ")
	if again := strings.Fields(text); len(again) == len(words) && !strings.HasPrefix(text, "[") {
		same := true
		for i := range words {
			same = same && again[i] == words[i]
		}
		if same {
			return text
		}
	}
	list, err := json.Marshal(words)
	if err != nil {
		return filepath.Base(words[0]) // texts can always be marshalled
	}
	return string(list)
}
