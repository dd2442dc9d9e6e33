package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"countersign.dev/durable"
)

// Log is a journal that is open for writing; one process at a time has it open. It may be used by
// many goroutines.
type Log struct {
	dir      string
	signer   note.Signer
	verifier string
	dropped  int64
	unlock   func() error
	size     atomic.Int64 // of tree, for those who do not want to wait for committing

	mu     sync.Mutex // guards what follows
	queue  []*request
	closed bool

	// committing is held by the goroutine that writes, for as long as it writes, and guards what
	// follows. The others wait for it, and then find their entries written: one fsync is for all.
	committing sync.Mutex
	entries    entriesWriter
	putHead    func(signed []byte) error
	tree       *tree // what the checkpoint covers
	length     int64 // of the bytes that it covers
	// unclean says that the file of entries may hold bytes beyond length.
	unclean bool
	// pending is a commit whose entries are on disk, but whose checkpoint may or may not be.
	pending *commit
}

// entriesWriter is what a Log needs of its file of entries.
type entriesWriter interface {
	io.WriterAt
	Truncate(size int64) error
	Sync() error
	Close() error
}

// request is one entry that waits to be written.
type request struct {
	line  []byte
	done  bool
	index int64
	err   error
}

// commit is a state that a checkpoint was signed for.
type commit struct {
	signed []byte
	tree   *tree
	length int64
}

// Create makes a journal in a directory and opens it. Its first entry is of type [Created] with the
// given data. A creation that a crash interrupted can be repeated; a directory that holds entries or
// a checkpoint is [ErrExists].
func Create(dir string, key *Key, now time.Time, data any) (*Log, error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	l, err := create(dir, key, now, data)
	if err != nil {
		return nil, errors.Join(err, unlock())
	}
	l.unlock = unlock
	return l, nil
}

// create writes the checkpoint last: until it is there, nothing is.
func create(dir string, key *Key, now time.Time, data any) (*Log, error) {
	_, err := os.Lstat(filepath.Join(dir, checkpointFile))
	if err == nil {
		return nil, fmt.Errorf("%w in %s", ErrExists, dir)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("look for a journal: %w", err)
	}
	begun, err := exists(dir)
	if err != nil {
		return nil, fmt.Errorf("look for a journal: %w", err)
	}
	line, err := Entry{Time: now, Type: Created, Data: data}.line()
	if err != nil {
		return nil, err
	}
	if begun {
		// One line without a checkpoint is what an interrupted creation leaves; more is a loss.
		if err := onlyCreation(dir); err != nil {
			return nil, err
		}
	}
	t := &tree{}
	if err := t.add(line); err != nil {
		return nil, err
	}
	root, err := t.root()
	if err != nil {
		return nil, err
	}
	signed, err := checkpoint{origin: key.Name(), size: 1, root: root}.sign(key)
	if err != nil {
		return nil, err
	}
	for _, file := range []durable.File{
		{Name: entriesFile, Data: append(line, '\n'), Perm: 0o600},
		{Name: keyFile, Data: []byte(key.Verifier() + "\n"), Perm: 0o600},
		{Name: checkpointFile, Data: signed, Perm: 0o600},
	} {
		if err := durable.WriteFile(filepath.Join(dir, file.Name), file.Data, file.Perm); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNotRecorded, err)
		}
	}
	return open(dir, key)
}

// onlyCreation refuses a directory whose entries can't be those of an interrupted creation.
func onlyCreation(dir string) error {
	file, err := os.Open(filepath.Join(dir, entriesFile))
	if err != nil {
		return fmt.Errorf("look for a journal: %w", err)
	}
	defer file.Close()
	lines, err := eachLine(file, 2, func(index int64, line []byte) error {
		record, err := parseRecord(index, line)
		if err == nil && record.Type != Created {
			err = ErrExists
		}
		return err
	})
	if err != nil || lines > 1 {
		return fmt.Errorf("%w: %s holds entries, but the checkpoint that signs them is gone; restore %s from a backup", ErrTruncated, dir, checkpointFile)
	}
	return nil
}

// Open opens a journal for writing. It reads all of it: what the checkpoint covers and is not there
// or not the same is [ErrTruncated] or [ErrAltered]; what lies beyond is dropped, see [Log.Dropped].
// A journal of another key is [ErrForged].
func Open(dir string, key *Key) (*Log, error) {
	if begun, err := exists(dir); err != nil {
		return nil, fmt.Errorf("open the journal: %w", err)
	} else if !begun {
		return nil, fmt.Errorf("%w in %s", ErrNoJournal, dir)
	}
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	l, err := open(dir, key)
	if err != nil {
		return nil, errors.Join(err, unlock())
	}
	l.unlock = unlock
	return l, nil
}

func open(dir string, key *Key) (*Log, error) {
	if err := durable.Sweep(dir); err != nil {
		return nil, err
	}
	verifier, err := parseVerifier(key.Verifier())
	if err != nil {
		return nil, err
	}
	head, _, err := readHead(dir, verifier)
	if errors.Is(err, ErrForged) {
		return nil, fmt.Errorf("%w; the journal belongs to another CA, or somebody has replaced it: restore both from one backup", err)
	}
	if err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(dir, entriesFile), os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTruncated, err)
	}
	l := &Log{dir: dir, signer: key, verifier: key.Verifier(), entries: file}
	l.putHead = func(signed []byte) error {
		return durable.WriteFile(filepath.Join(dir, checkpointFile), signed, 0o600)
	}
	if err := l.load(head, file); err != nil {
		return nil, errors.Join(fmt.Errorf("the journal %s: %w; restore it from a backup, and find out who changed it", dir, err), file.Close())
	}
	return l, nil
}

// load checks the entries and cuts off what the checkpoint does not cover.
func (l *Log) load(head checkpoint, file *os.File) (err error) {
	if l.tree, l.length, err = check(head, file); err != nil {
		return err
	}
	l.size.Store(l.tree.size)
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if l.dropped = info.Size() - l.length; l.dropped > 0 {
		l.unclean = true
		return l.settle()
	}
	return nil
}

// Dropped is how many bytes of entries that were never acknowledged Open has cut off.
func (l *Log) Dropped() int64 { return l.dropped }

// VerifierKey is the public key of the checkpoints.
func (l *Log) VerifierKey() string { return l.verifier }

// Size is how many entries the checkpoint covers. It does not wait for the disk.
func (l *Log) Size() int64 { return l.size.Load() }

// Append records an entry and returns its index when it is on disk, covered by a signed checkpoint.
// After [ErrNotRecorded] the entry may or may not be found in the journal later; the next Append
// tries again from a clean state, so that a disk that has space again is enough. [ErrEntry] is the
// caller's mistake. A context that has ended before the entry was queued is [ErrNotRecorded], too;
// afterwards Append waits for the disk whatever the context says.
func (l *Log) Append(ctx context.Context, e Entry) (index int64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNotRecorded, err)
	}
	line, err := e.line()
	if err != nil {
		return 0, err
	}
	r := &request{line: line}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return 0, fmt.Errorf("%w: it is closed", ErrNotRecorded)
	}
	l.queue = append(l.queue, r)
	l.mu.Unlock()

	l.committing.Lock()
	defer l.committing.Unlock()
	if !r.done { // nobody who had the lock before has taken it along
		l.flush()
	}
	return r.index, r.err
}

// flush writes everything that waits. The caller holds committing.
func (l *Log) flush() {
	l.mu.Lock()
	batch := l.queue
	l.queue = nil
	l.mu.Unlock()
	if len(batch) == 0 {
		return
	}
	err := l.settle()
	first := l.tree.size
	if err == nil {
		err = l.write(batch)
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrNotRecorded, err)
	}
	for i, r := range batch {
		r.done, r.index, r.err = true, first+int64(i), err
	}
}

// settle finishes or undoes what a commit that failed has left. A checkpoint that was signed is
// never replaced by another of the same size: it may be on disk, and two signatures over two
// histories would prove a lie. So such a commit is completed; one that was not signed is cut off.
func (l *Log) settle() error {
	if l.pending != nil {
		if err := l.publish(); err != nil {
			return err
		}
	}
	if !l.unclean {
		return nil
	}
	if err := l.entries.Truncate(l.length); err != nil {
		return fmt.Errorf("cut off unfinished entries: %w", err)
	}
	if err := l.entries.Sync(); err != nil {
		return fmt.Errorf("cut off unfinished entries: %w", err)
	}
	l.unclean = false
	return nil
}

// write appends a batch: the entries first and synced, then the checkpoint that covers them. Only
// after that anybody hears of it.
func (l *Log) write(batch []*request) error {
	next := &commit{tree: l.tree.clone()}
	var text []byte
	for _, r := range batch {
		if err := next.tree.add(r.line); err != nil {
			return err
		}
		text = append(append(text, r.line...), '\n')
	}
	next.length = l.length + int64(len(text))

	l.unclean = true
	durable.Step("journal.entries.before")
	if _, err := l.entries.WriteAt(text, l.length); err != nil {
		return fmt.Errorf("write entries: %w", err)
	}
	durable.Step("journal.entries.written")
	if err := l.entries.Sync(); err != nil {
		return fmt.Errorf("sync entries: %w", err)
	}
	durable.Step("journal.entries.synced")
	root, err := next.tree.root()
	if err != nil {
		return err
	}
	next.signed, err = l.signHead(next.tree.size, root)
	if err != nil {
		return err
	}
	l.pending = next
	return l.publish()
}

func (l *Log) signHead(size int64, root tlog.Hash) ([]byte, error) {
	return checkpoint{origin: l.signer.Name(), size: size, root: root}.sign(l.signer)
}

// publish puts the pending commit's checkpoint in place.
func (l *Log) publish() error {
	if err := l.putHead(l.pending.signed); err != nil {
		return fmt.Errorf("write the checkpoint: %w", err)
	}
	durable.Step("journal.checkpoint.after")
	l.tree, l.length = l.pending.tree, l.pending.length
	l.pending, l.unclean = nil, false
	l.size.Store(l.tree.size)
	return nil
}

// Export writes a copy of the journal as it is now; see [Export].
func (l *Log) Export(w io.Writer) error { return Export(l.dir, w) }

// Records reads the journal as it is now; see [Records].
func (l *Log) Records() iter.Seq2[Record, error] { return Records(l.dir) }

// Close writes what waits and lets the next process have the journal. Closing twice is no error.
func (l *Log) Close() error {
	l.mu.Lock()
	closed := l.closed
	l.closed = true
	l.mu.Unlock()
	if closed {
		return nil
	}
	l.committing.Lock()
	defer l.committing.Unlock()
	l.flush()
	return errors.Join(l.entries.Close(), l.unlock())
}
