package supervise

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a running program: its master and all that the master started.
type process struct {
	pid  int
	run  string
	gone chan struct{} // closed when the master is gone, and everything that it started

	mu     sync.Mutex
	reaped bool     // guarded by mu: pid may be somebody else's
	words  []string // guarded by mu: what it complained of last
}

// signal tells the master something.
func (p *process) signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		_ = syscall.Kill(p.pid, s) // it may be gone already, which gone says
	}
}

// kill ends the master and everything that it started. Its process group is its own.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		_ = syscall.Kill(-p.pid, syscall.SIGKILL)
	}
}

func (p *process) isGone() bool {
	select {
	case <-p.gone:
		return true
	default:
		return false
	}
}

// mostWords is how many complaints are kept for an error's text.
const mostWords = 4

// hear takes in a complaint.
func (p *process) hear(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.words) == mostWords {
		p.words = p.words[1:]
	}
	p.words = append(p.words, line)
}

func (p *process) lastWords() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.words, " | ")
}

// start starts the program in a run directory of its own and waits until it is seen to serve. The caller holds
// change.
func (s *Supervisor) start(ctx context.Context, g *generation) error {
	s.starts++
	run := filepath.Join(s.cfg.RunDir.Path, strconv.Itoa(s.starts))
	if err := os.Mkdir(run, 0o700); err != nil {
		return fmt.Errorf("%w: making a run directory: %w", ErrNotInForce, err)
	}
	err := s.prepare(ctx, run, g)
	if err == nil {
		err = g.link(s.cfg.Binary.Engine.file)
	}
	if err != nil {
		_ = os.RemoveAll(run)
		return err
	}
	p, err := s.launch(run) //nolint:contextcheck // the program outlives who starts it
	if err != nil {
		_ = os.RemoveAll(run)
		return fmt.Errorf("%w: starting %s: %w", ErrNotInForce, s.cfg.Binary.Path, err)
	}
	seen, err := s.observe(ctx, p, g)
	if err != nil {
		p.kill()
		<-p.gone
		_ = os.RemoveAll(run)
		return fmt.Errorf("%w: %w", ErrNotInForce, err)
	}
	s.reloads = nil
	s.accept(p, g, seen)
	s.tasks.Go(func() { s.watch(p) })
	return nil
}

// launch starts the program with its output on pipes to here.
func (s *Supervisor) launch(run string) (*process, error) {
	out, outEnd, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	complaints, complaintsEnd, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, out.Close(), outEnd.Close())
	}
	widen(out)
	p := &process{run: run, gone: make(chan struct{})}
	err = launch(p, s.cfg.Binary, outEnd, complaintsEnd)
	// What is left of these ends is the program's; when all of it is gone, both pipes end.
	err = errors.Join(err, outEnd.Close(), complaintsEnd.Close())
	if err != nil {
		return nil, errors.Join(err, out.Close(), complaints.Close())
	}
	s.reads.Go(func() {
		defer out.Close()
		s.readLog(out)
	})
	s.reads.Go(func() {
		defer complaints.Close()
		s.readComplaints(p, complaints)
	})
	return p, nil
}

// watch waits for the end of the program and starts it again, unless that is what was wanted.
func (s *Supervisor) watch(p *process) {
	select {
	case <-s.work.Done():
		return
	case <-p.gone:
	}
	s.mu.Lock()
	if s.running != p || s.retired == p {
		s.mu.Unlock()
		return
	}
	s.running, s.seen, s.unsure = nil, nil, false
	s.mu.Unlock()
	_ = os.RemoveAll(p.run) // keys and stale sockets; Close removes what is left
	began := time.Now()
	s.setProblem(problemProcess, "its process has ended, and is started again: "+p.lastWords())
	s.log.Error("the program has ended by itself; starting it again", "pid", p.pid, "lastWords", p.lastWords())
	tries := backoff{first: 100 * time.Millisecond, most: 10 * time.Second}
	for pause(s.work, tries.next()) {
		err := s.restart()
		if err == nil {
			s.log.Info("the program runs again", "after", time.Since(began).Round(time.Millisecond))
			return
		}
		if s.work.Err() != nil {
			return
		}
		s.setProblem(problemProcess, fmt.Sprintf("its process has ended, and cannot be started again: %v", err))
		s.log.Error("the program cannot be started again; it is tried on", "error", err)
	}
}

// restart starts the program with what was good, and with the newest identity that it takes.
func (s *Supervisor) restart() error {
	if err := s.lock(s.work); err != nil {
		return err
	}
	defer s.unlock()
	s.mu.Lock()
	running, good := s.running, s.good
	s.mu.Unlock()
	if running != nil {
		return nil // a Plan came first
	}
	newest, err := s.cfg.Source.Identity()
	if err != nil {
		newest = good.identity
	}
	err = s.bring(s.work, good.plan, newest)
	if err != nil && newest != good.identity && s.work.Err() == nil {
		return s.bring(s.work, good.plan, good.identity)
	}
	return err
}

// readComplaints passes on what the program says on its standard error.
func (s *Supervisor) readComplaints(p *process, r io.Reader) {
	const mostLines, interval = 100, time.Second
	lines, left, since := bufio.NewReaderSize(r, 64<<10), mostLines, time.Now()
	suppressed := 0
	for {
		text, _, err := lines.ReadLine()
		if err != nil {
			return
		}
		line := redact(strings.TrimSpace(strings.ToValidUTF8(string(text), "?")))
		if line == "" {
			continue
		}
		level := levelOf(line)
		if level >= slog.LevelWarn {
			p.hear(line)
		}
		if time.Since(since) > interval {
			if suppressed > 0 {
				s.log.Warn("the program said more than is passed on", "lines", suppressed)
			}
			left, since, suppressed = mostLines, time.Now(), 0
		}
		if left--; left < 0 {
			suppressed++
			continue
		}
		s.log.Log(context.Background(), level, "the program says", "text", line)
	}
}

// levelOf reads how either program marks its lines.
func levelOf(line string) slog.Level {
	// The last one is NGINX's way to close on whom the policy of a tcp port does not admit.
	for _, usual := range []string{"stopped (cumulated conns", "Former worker", "New worker", "Loading success", "Reloading HAProxy", "Exiting Master process", "All workers exited", `no host in upstream ""`} {
		if strings.Contains(line, usual) {
			return slog.LevelDebug
		}
	}
	for mark, level := range map[string]slog.Level{
		"[emerg]": slog.LevelError, "[alert]": slog.LevelError, "[crit]": slog.LevelError, "[ALERT]": slog.LevelError,
		"[error]": slog.LevelWarn, "[warn]": slog.LevelWarn, "[WARNING]": slog.LevelWarn,
	} {
		if strings.Contains(line, mark) {
			return level
		}
	}
	return slog.LevelDebug
}
