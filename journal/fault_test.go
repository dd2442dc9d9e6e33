package journal

import (
	"context"
	"errors"
	"io"
	"syscall"
	"testing"
)

// fullDisk is a file of entries on a disk that fills up.
type fullDisk struct {
	entriesWriter
	room     int // bytes that may still be written
	failSync bool
}

func (d *fullDisk) WriteAt(p []byte, at int64) (int, error) {
	if len(p) > d.room {
		n, err := d.entriesWriter.WriteAt(p[:d.room], at)
		if err == nil {
			err = syscall.ENOSPC
		}
		d.room = 0
		return n, err
	}
	d.room -= len(p)
	return d.entriesWriter.WriteAt(p, at)
}

func (d *fullDisk) Sync() error {
	if d.failSync {
		return syscall.EIO
	}
	return d.entriesWriter.Sync()
}

// TestFailureAndRecovery fails one append at each of its steps, and then lets the disk recover.
func TestFailureAndRecovery(t *testing.T) {
	const plenty = 1 << 30
	cases := map[string]struct {
		room             int
		failSync, noHead bool
		headFirst        bool // the checkpoint is in place, and only its directory's fsync failed
		size             int64
	}{
		"half an entry":           {room: 30, size: 5},
		"no byte":                 {room: 0, size: 5},
		"the entries' fsync":      {room: plenty, failSync: true, size: 5},
		"the checkpoint":          {room: plenty, noHead: true, size: 6},
		"the checkpoint's rename": {room: plenty, noHead: true, headFirst: true, size: 6},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			key := newKey(t)
			l := newLog(t, key, 3)
			disk := &fullDisk{entriesWriter: l.entries, room: c.room, failSync: c.failSync}
			l.entries = disk
			putHead, headFails := l.putHead, c.noHead
			l.putHead = func(signed []byte) error {
				if !headFails {
					return putHead(signed)
				}
				if c.headFirst {
					if err := putHead(signed); err != nil {
						return err
					}
				}
				return syscall.ENOSPC
			}
			for range 2 { // it stays broken for as long as the disk does
				_, err := l.Append(t.Context(), Entry{Time: epoch, Type: Issued, Data: facts{"lost": 1}})
				if !errors.Is(err, ErrNotRecorded) {
					t.Fatalf("%v, want ErrNotRecorded", err)
				}
				if err := Export(l.dir, io.Discard); err != nil {
					t.Errorf("what was recorded before cannot be exported: %v", err)
				}
			}
			disk.room, disk.failSync, headFails = plenty, false, false
			index, err := l.Append(t.Context(), Entry{Time: epoch, Type: Issued, Data: facts{"found": 1}})
			if err != nil || index != c.size-1 {
				t.Fatalf("after recovery: index %d, %v", index, err)
			}
			if size, err := Verify(l.dir, key.Verifier()); err != nil || size != c.size {
				t.Errorf("after recovery: size %d, %v, want %d", size, err, c.size)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l, err = Open(l.dir, key)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestAppendRefuses(t *testing.T) {
	l := newLog(t, newKey(t), 0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Append(ctx, Entry{Time: epoch, Type: Apply, Data: facts{}}); !errors.Is(err, ErrNotRecorded) {
		t.Errorf("an ended context: %v, want ErrNotRecorded", err)
	}
	if _, err := l.Append(t.Context(), Entry{Time: epoch, Type: Apply, Data: facts{"a": 0.5}}); !errors.Is(err, ErrEntry) {
		t.Errorf("a fraction: %v, want ErrEntry", err)
	}
	if got := l.Size(); got != 1 {
		t.Errorf("size %d, want 1", got)
	}
}

// BenchmarkAppend counts what an acknowledged entry costs:
// go test ./journal -run '^$' -bench Append.
func BenchmarkAppend(b *testing.B) {
	l := newLog(b, newKey(b), 0)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := l.Append(context.Background(), Entry{Time: epoch, Type: Issued, Data: facts{"serial": "00"}}); err != nil {
				b.Error(err)
			}
		}
	})
}
