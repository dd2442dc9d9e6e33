package journal

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"countersign.dev/durable"
)

// The files of a journal.
const (
	checkpointFile = "checkpoint"
	entriesFile    = "entries.jsonl"
	keyFile        = "key.pub"
)

// eachLine calls f with every whole line of r up to a count; what comes after is not read. It
// returns how many there were. A line is everything before a "\n": nothing is trimmed, because a
// trimmed byte would be a byte that nobody checks.
func eachLine(r io.Reader, count int64, f func(index int64, line []byte) error) (int64, error) {
	reader := bufio.NewReaderSize(r, 64<<10)
	var long []byte
	for index := int64(0); index < count; index++ {
		line, err := reader.ReadSlice('\n')
		for long = long[:0]; errors.Is(err, bufio.ErrBufferFull); line, err = reader.ReadSlice('\n') {
			if long = append(long, line...); len(long) > MaxEntry {
				return index, fmt.Errorf("entry %d: %w", index, errLongLine)
			}
		}
		if errors.Is(err, io.EOF) {
			return index, nil // a line without an end is no line
		}
		if err != nil {
			return index, fmt.Errorf("read entry %d: %w", index, err)
		}
		if len(long) > 0 {
			long = append(long, line...)
			line = long
		}
		if err := f(index, bytes.TrimSuffix(line, []byte("\n"))); err != nil {
			return index, err
		}
	}
	return count, nil
}

// check reads the entries that a checkpoint covers and compares their root with the checkpoint's. It
// returns the tree and how many bytes of r it consists of.
func check(head checkpoint, r io.Reader) (*tree, int64, error) {
	t := &tree{}
	var length int64
	got, err := eachLine(r, head.size, func(_ int64, line []byte) error {
		length += int64(len(line)) + 1
		return t.add(line)
	})
	if errors.Is(err, errLongLine) {
		return nil, 0, fmt.Errorf("%w: %w", ErrAltered, err)
	}
	if err != nil {
		return nil, 0, err
	}
	if got < head.size {
		return nil, 0, fmt.Errorf("%w: the signed checkpoint counts %d, and %d are there", ErrTruncated, head.size, got)
	}
	root, err := t.root()
	if err != nil {
		return nil, 0, err
	}
	if root != head.root {
		return nil, 0, fmt.Errorf("%w: the root hash of the first %d is %s, and the signed checkpoint says %s", ErrAltered, head.size, root, head.root)
	}
	return t, length, nil
}

// readHead reads and verifies the checkpoint of a directory. A nil verifier stands for the key that
// lies in the directory.
func readHead(dir string, verifier note.Verifier) (checkpoint, []byte, error) {
	if verifier == nil {
		vkey, err := VerifierKey(dir)
		if err != nil {
			return checkpoint{}, nil, err
		}
		if verifier, err = parseVerifier(vkey); err != nil {
			return checkpoint{}, nil, fmt.Errorf("%s: %w", filepath.Join(dir, keyFile), err)
		}
	}
	signed, err := readSmall(filepath.Join(dir, checkpointFile))
	if err != nil {
		return checkpoint{}, nil, err
	}
	head, err := openCheckpoint(signed, verifier)
	if err != nil {
		return checkpoint{}, nil, fmt.Errorf("%s: %w", filepath.Join(dir, checkpointFile), err)
	}
	return head, signed, nil
}

// VerifierKey reads the public key that lies beside a journal or in a copy of it. Somebody who
// forges a journal forges that too: an auditor gets the key some other way.
func VerifierKey(dir string) (string, error) {
	text, err := readSmall(filepath.Join(dir, keyFile))
	return string(bytes.TrimSpace(text)), err
}

// readSmall reads a file of at most [maxCheckpoint] bytes; [ErrNoJournal] when it is not there.
func readSmall(path string) ([]byte, error) {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s does not exist", ErrNoJournal, path)
	}
	if err != nil {
		return nil, fmt.Errorf("open the journal: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxCheckpoint))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return text, nil
}

// exists tells whether a directory holds a journal, whole or not.
func exists(dir string) (bool, error) {
	_, err := os.Lstat(filepath.Join(dir, checkpointFile))
	if errors.Is(err, os.ErrNotExist) {
		info, err := os.Lstat(filepath.Join(dir, entriesFile))
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		// An empty file of entries is left by a creation that did not come to its end.
		return err == nil && info.Size() > 0, err
	}
	return err == nil, err
}

// Records reads the entries that the checkpoint covers, in order. It checks nothing but their form:
// see [Verify]. Reading while a [Log] appends is possible.
func Records(dir string) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		head, _, err := readHead(dir, nil)
		if err != nil {
			yield(Record{}, err)
			return
		}
		file, err := os.Open(filepath.Join(dir, entriesFile))
		if err != nil {
			yield(Record{}, fmt.Errorf("open the journal: %w", err))
			return
		}
		defer file.Close()
		stop := errors.New("enough")
		got, err := eachLine(file, head.size, func(index int64, line []byte) error {
			record, err := parseRecord(index, line)
			if err != nil {
				return err
			}
			if !yield(record, nil) {
				return stop
			}
			return nil
		})
		switch {
		case errors.Is(err, stop):
		case err != nil:
			yield(Record{}, err)
		case got < head.size:
			yield(Record{}, fmt.Errorf("%w: the signed checkpoint counts %d, and %d are there", ErrTruncated, head.size, got))
		}
	}
}

// Verify checks a journal or a copy of one against a verifier key: the signature of the checkpoint,
// that the entries are exactly those that it was made for, and that the key in the directory, if it
// is there, is the given one. Nil means that not one byte differs. A malformed key is [ErrKey];
// everything else that is wrong with the copy is [ErrForged], [ErrTruncated], [ErrAltered] or
// [ErrNoJournal].
func Verify(dir, vkey string) (size int64, err error) {
	verifier, err := parseVerifier(vkey)
	if err != nil {
		return 0, err
	}
	head, _, err := readHead(dir, verifier)
	if err != nil {
		return 0, err
	}
	if err := checkKeyFile(dir, strings.TrimSpace(vkey)); err != nil {
		return 0, err
	}
	file, err := os.Open(filepath.Join(dir, entriesFile))
	if errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("%w: %s does not exist", ErrNoJournal, filepath.Join(dir, entriesFile))
	}
	if err != nil {
		return 0, fmt.Errorf("open the journal: %w", err)
	}
	defer file.Close()
	return head.size, verify(head, file)
}

// checkKeyFile refuses a copy beside which another key lies: somebody may take that one for the right
// one the next time. A copy without it is whole.
func checkKeyFile(dir, vkey string) error {
	path := filepath.Join(dir, keyFile)
	text, err := readSmall(path)
	if errors.Is(err, ErrNoJournal) {
		return nil
	}
	if err != nil {
		return err
	}
	if string(text) != vkey+"\n" {
		return fmt.Errorf("%w: %s holds another key than the given one", ErrAltered, path)
	}
	return nil
}

// verify checks that r holds the entries of a checkpoint and nothing else.
func verify(head checkpoint, r io.ReadSeeker) error {
	_, length, err := check(head, r)
	if err != nil {
		return err
	}
	end, err := r.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("find the end of the entries: %w", err)
	}
	if end != length {
		return fmt.Errorf("%w: %d bytes follow the %d entries that the checkpoint counts", ErrAltered, end-length, head.size)
	}
	return nil
}

// lock keeps other writers away.
func lock(dir string) (func() error, error) {
	unlock, err := durable.Lock(filepath.Join(dir, "lock"))
	if errors.Is(err, durable.ErrLocked) {
		return nil, fmt.Errorf("%w (%s)", ErrLocked, dir)
	}
	return unlock, err
}
