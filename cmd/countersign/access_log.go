package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
)

// accessLog is a file that somebody may move away while it is written, and that is then opened again
// (logrotate's way). The zero value writes nothing.
type accessLog struct {
	path   string
	stdout io.Writer // instead of a file

	mu   sync.Mutex
	file *os.File // guarded by mu
}

// openAccessLog opens the file of --access-log: "-" is standard output, "" is none.
func openAccessLog(path string, stdout io.Writer) (*accessLog, error) {
	l := &accessLog{path: path}
	switch path {
	case "":
		return l, nil
	case "-":
		l.stdout = stdout
		return l, nil
	}
	return l, l.reopen()
}

// reopen opens the file by its name; when that fails, the old one is written on.
func (l *accessLog) reopen() error {
	file, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return usagef("--access-log: %w", err)
	}
	l.mu.Lock()
	old := l.file
	l.file = file
	l.mu.Unlock()
	if old != nil {
		return old.Close()
	}
	return nil
}

// writer is what the data plane writes to, nil when nothing is to be written.
func (l *accessLog) writer() io.Writer {
	switch {
	case l.path == "":
		return nil
	case l.stdout != nil:
		return l.stdout
	default:
		return l
	}
}

// Write appends one line.
func (l *accessLog) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, err := l.file.Write(line)
	if err != nil {
		return n, fmt.Errorf("writing the access log: %w", err)
	}
	return n, nil
}

// reopenOn opens the file again whenever the process gets a signal, until stop is called. The signal
// does nothing else, also when there is no file.
func (l *accessLog) reopenOn(s os.Signal, log *slog.Logger) (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, s)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range signals {
			if l.path == "" || l.stdout != nil {
				continue
			}
			if err := l.reopen(); err != nil {
				log.Error("cannot open the access log again; the old file is written on", "error", err)
			} else {
				log.Info("opened the access log again", "file", l.path)
			}
		}
	}()
	return sync.OnceFunc(func() {
		signal.Stop(signals)
		close(signals)
		<-ended
	})
}

// Close closes the file.
func (l *accessLog) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		_ = l.file.Close() // each line was written by then
	}
}
