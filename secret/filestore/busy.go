package filestore

import (
	"fmt"
	"os"

	"countersign.dev/durable"
)

// busy is [ErrBusy] for one who has waited for one of the two locks: who keeps it, and what to do about that. A process that
// is killed while it writes harms nothing: that is what the store is made for.
func (s *Store) busy(name string) error {
	holder, name, known := s.inTheWay(name)
	path := s.path(name)
	if !known {
		return fmt.Errorf("%w, and which one cannot be seen from here: try again, and when it stays so, look for a process of another user, container or machine "+
			"that stands still with the file %s open (`fuser -v %s` there, as root), and end it", ErrBusy, path, path)
	}
	if holder.PID == os.Getpid() {
		return fmt.Errorf("%w: another part of this very process keeps the lock %s; try again", ErrBusy, path)
	}
	host, err := os.Hostname()
	if err != nil {
		host = "this machine"
	}
	who := fmt.Sprintf("%s on %s keeps the lock %s", holder, host, path)
	if holder.Stopped {
		return fmt.Errorf("%w: %s, and is stopped: let it go on with `kill -CONT %d`, or end it with `kill -KILL %d`, and try again; the store survives either",
			ErrBusy, who, holder.PID, holder.PID)
	}
	return fmt.Errorf("%w: %s: try again, and when it stays so, end it with `kill %d`; the store survives that", ErrBusy, who, holder.PID)
}

// inTheWay finds the process for which one waits who waits for a lock, and the lock that it holds. Whoever holds the place of the next one waits for
// the writer himself, unless he is stopped, or nobody writes.
func (s *Store) inTheWay(name string) (holder durable.Process, lock string, known bool) {
	writer, known := durable.LockHolder(s.path(lockFile))
	if name == lockFile || (known && writer.Stopped) {
		return writer, lockFile, known
	}
	next, waits := durable.LockHolder(s.path(name))
	if waits && (next.Stopped || (!known && s.idle())) {
		return next, name, true
	}
	return writer, lockFile, known
}

// idle tells whether nobody writes, also nobody who cannot be seen.
func (s *Store) idle() bool {
	unlock, err := durable.Lock(s.path(lockFile))
	if err != nil {
		return false
	}
	return unlock() == nil
}
