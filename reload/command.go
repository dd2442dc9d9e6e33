package reload

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

const (
	// mostOutput is how much of what a command says is kept, in bytes. What matters comes first.
	mostOutput = 4 << 10
	// killWait is how long a command that was killed may keep its output open, through a child of its own.
	killWait = time.Second
)

// Test runs a proxy's own test of its configuration; see [Proxy.TestCommand]. When the proxy refuses, the error is
// [ErrRefused] and holds what it says, without anything that may be a key. A command that cannot be started, or does
// not end in time, is another error: nothing is known about the files then.
func Test(ctx context.Context, command []string) error {
	output, err := run(ctx, command)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.Exited():
		return fmt.Errorf("%w: %s ends with status %d and says: %s", ErrRefused, name(command), exit.ExitCode(), output)
	}
	return fmt.Errorf("testing the new files: %w", err)
}

// Command is a command that makes a proxy take new files, such as nginx -s reload. It counts as done when the command ends
// with status 0.
type Command struct {
	// Args are the program and its arguments; no shell reads them.
	Args []string
}

// String implements [Method].
func (c Command) String() string { return "command:" + joinCommand(c.Args) }

// Reload implements [Method]. A status that is not 0 is [ErrNotTaken]: what the proxy does is not known.
func (c Command) Reload(ctx context.Context) error {
	output, err := run(ctx, c.Args)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return fmt.Errorf("%w: %s ends with status %d and says: %s", ErrNotTaken, name(c.Args), exit.ExitCode(), output)
	}
	if err != nil {
		return fmt.Errorf("reloading: %w", err)
	}
	return nil
}

func name(command []string) string { return filepath.Base(command[0]) }

// run runs a command and gives what it says, fit for a log.
func run(ctx context.Context, command []string) (string, error) {
	if len(command) == 0 {
		return "", fmt.Errorf("%w: the command has no words", ErrMethod)
	}
	var said bounded
	c := exec.CommandContext(ctx, command[0], command[1:]...) // the user's command, by its words and without a shell
	c.Stdout, c.Stderr = &said, &said
	c.WaitDelay = killWait
	inGroup(c)
	err := c.Run()
	if ctx.Err() != nil {
		return "", fmt.Errorf("%s did not end in time, and was ended: %w", name(command), context.Cause(ctx))
	}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%w; is it in this image?", err)
	}
	if errors.Is(err, exec.ErrWaitDelay) { // the command has ended well, and left a child that keeps the output open
		err = nil
	}
	return said.text(), err
}

// bounded keeps the beginning of what is written to it.
type bounded struct {
	kept bytes.Buffer
	more bool
}

func (b *bounded) Write(p []byte) (int, error) {
	room := mostOutput - b.kept.Len()
	if room < len(p) {
		b.more = true
		b.kept.Write(p[:room])
		return len(p), nil
	}
	return b.kept.Write(p)
}

// text is one line for a log.
func (b *bounded) text() string {
	text := Redact(b.kept.String())
	if b.more {
		text += " [and more]"
	}
	if strings.TrimSpace(text) == "" {
		return "nothing"
	}
	return text
}

var (
	privateBlock = regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|$)`)
	longWord     = regexp.MustCompile(`[A-Za-z0-9+/=_.@,:-]{40,}`)
	encoded      = regexp.MustCompile(`[A-Za-z0-9+/=_-]{40,}`)
)

// Redact makes what a program says fit for a log: one line without control characters, and without anything that may be a
// part of a private key. A proxy does not print keys; but it quotes lines of its configuration that it does not
// understand, and somebody may have included the wrong file. Paths stay.
func Redact(text string) string {
	text = privateBlock.ReplaceAllString(text, "[a private key, not shown]")
	text = longWord.ReplaceAllStringFunc(text, func(word string) string {
		path, _, _ := strings.Cut(word, ":")
		if filepath.IsAbs(path) {
			if _, err := os.Lstat(filepath.Dir(path)); err == nil && filepath.Dir(path) != "/" {
				return word
			}
		}
		return encoded.ReplaceAllString(word, "[not shown]")
	})
	text = strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return ' '
		case r < 0x20, r == 0x7f, r == '\uFFFD':
			return -1
		}
		return r
	}, strings.ReplaceAll(strings.TrimSpace(text), "\n", "; "))
	return text
}

// inGroup gives a command a process group of its own, and ends all of it when the time is up.
func inGroup(c *exec.Cmd) {
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
}
