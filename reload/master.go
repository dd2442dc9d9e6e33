package reload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Master tells HAProxy through its master socket (haproxy -W -S SOCKET), which says what became of it: HAProxy
// 2.7 and later answer the command itself, and the ones before show the number of failed reloads afterwards.
type Master struct {
	// Socket is the path of the UNIX socket.
	Socket string
}

// mostAnswer is the greatest length of an answer in bytes: that of 2.7 holds what the new process says at its start.
const mostAnswer = 64 << 10

// String implements [Method].
func (m Master) String() string { return "haproxy:" + m.Socket }

// Reload implements [Method].
func (m Master) Reload(ctx context.Context) error {
	var before masterState
	err := soon(ctx, func() (again bool, err error) {
		before, err = m.state(ctx)
		return errors.Is(err, ErrNotRunning) || cut(err), err
	})
	if err != nil {
		return err
	}
	answer, err := m.ask(ctx, "reload")
	switch {
	case err != nil && !cut(err):
		return err
	case strings.Contains(answer, "Success=1"):
		return nil
	case strings.Contains(answer, "Success=0"):
		_, said, _ := strings.Cut(answer, "--")
		return fmt.Errorf("%w: HAProxy says: %s", ErrRefused, Redact(first(said, mostOutput)))
	case strings.Contains(answer, "Permission denied"):
		return fmt.Errorf("%w: the master socket %s does not allow it: it needs level admin, which is what it has when nothing is said", ErrNotTaken, m.Socket)
	}
	return m.await(ctx, before)
}

// cut tells whether a connection ended in the middle, as they do when the master replaces itself.
func cut(err error) bool { return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) }

// await waits for what the master counts.
func (m Master) await(ctx context.Context, before masterState) error {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	again := time.NewTimer(resend)
	defer again.Stop()
	answered := false
	for {
		now, err := m.state(ctx)
		answered = answered || err == nil
		switch {
		case err == nil && now.reloads > before.reloads && now.failed > 0:
			return fmt.Errorf("%w: HAProxy has failed to load them; its log says why", ErrRefused)
		case err == nil && now.reloads > before.reloads:
			return nil
		}
		select {
		case <-ctx.Done():
			if !answered {
				return fmt.Errorf("%w: HAProxy does not come back on its master socket: %w", ErrNotTaken, err)
			}
			return fmt.Errorf("%w: HAProxy counts %d reloads as before", ErrNotTaken, before.reloads)
		case <-again.C:
			_, _ = m.ask(ctx, "reload") // it may have come while the master replaced itself; the count tells
		case <-ticker.C:
		}
	}
}

// masterState is what the master tells of itself.
type masterState struct{ reloads, failed int }

// masterLine is the master's line in the answer to show proc: its pid, its type, how often it has reloaded and, since 2.5,
// how often in vain since the last success.
var masterLine = regexp.MustCompile(`(?m)^[0-9]+\s+master\s+([0-9]{1,9})\s(?:\s*\[failed: ([0-9]{1,9})\])?`)

func (m Master) state(ctx context.Context) (masterState, error) {
	answer, err := m.ask(ctx, "show proc")
	if err != nil {
		return masterState{}, err
	}
	return parseMaster(answer)
}

// parseMaster reads the answer to show proc.
func parseMaster(answer string) (masterState, error) {
	match := masterLine.FindStringSubmatch(answer)
	if match == nil {
		return masterState{}, fmt.Errorf("%w: what answers is not HAProxy's master socket (-S); the stats socket knows no reload", ErrOtherProgram)
	}
	var s masterState
	s.reloads, _ = strconv.Atoi(match[1]) // digits, and not many
	s.failed, _ = strconv.Atoi(match[2])  // the same, or nothing, which is 0
	return s, nil
}

// ask sends one command and reads the answer to its end.
func (m Master) ask(ctx context.Context, command string) (string, error) {
	answer, err := Ask(ctx, m.Socket, command, mostAnswer)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return "", fmt.Errorf("%w: nobody answers on the master socket %s (haproxy -W -S %s)", ErrNotRunning, m.Socket, m.Socket)
	}
	return answer, err
}

// Ask sends one command to a UNIX socket of HAProxy's, its master's or its statistics', and reads the answer to its end, at
// most that many bytes of it.
func Ask(ctx context.Context, socket, command string, most int64) (string, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return "", fmt.Errorf("asking HAProxy: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })() // ends what waits
	if _, err := io.WriteString(conn, command+"\n"); err != nil {
		return "", fmt.Errorf("asking HAProxy: %w", err)
	}
	if half, ok := conn.(*net.UnixConn); ok {
		if err := half.CloseWrite(); err != nil {
			return "", fmt.Errorf("asking HAProxy: %w", err)
		}
	}
	answer, err := io.ReadAll(io.LimitReader(conn, most))
	if err != nil {
		return "", fmt.Errorf("asking HAProxy: %w", err)
	}
	return string(answer), nil
}

// first is the beginning of a text.
func first(text string, most int) string { return text[:min(len(text), most)] }
