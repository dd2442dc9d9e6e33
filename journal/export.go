package journal

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"countersign.dev/durable"
)

// The most that a copy may hold; what is larger is no copy of a journal that anybody keeps.
const maxExport = 1 << 40

// Export writes a copy of the journal in a directory as a tar of its three files. It may run beside
// a [Log] that appends: the copy is of the moment of its checkpoint. What is copied is checked
// against the checkpoint first, so a damaged journal is refused with the errors of [Verify].
func Export(dir string, w io.Writer) error {
	head, signed, err := readHead(dir, nil)
	if err != nil {
		return err
	}
	vkey, err := VerifierKey(dir)
	if err != nil {
		return err
	}
	file, err := os.Open(filepath.Join(dir, entriesFile))
	if err != nil {
		return fmt.Errorf("open the journal: %w", err)
	}
	defer file.Close()
	_, length, err := check(head, file)
	if err != nil {
		return fmt.Errorf("the journal %s: %w", dir, err)
	}
	archive := tar.NewWriter(w)
	if err := putMember(archive, keyFile, []byte(vkey+"\n")); err != nil {
		return err
	}
	if err := putMember(archive, checkpointFile, signed); err != nil {
		return err
	}
	if err := archive.WriteHeader(member(entriesFile, length)); err != nil {
		return fmt.Errorf("copy the journal: %w", err)
	}
	if _, err := io.Copy(archive, io.NewSectionReader(file, 0, length)); err != nil {
		return fmt.Errorf("copy the journal: %w", err)
	}
	if err := archive.Close(); err != nil {
		return fmt.Errorf("copy the journal: %w", err)
	}
	return nil
}

func member(name string, size int64) *tar.Header {
	return &tar.Header{Name: name, Mode: 0o600, Size: size, ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg}
}

func putMember(archive *tar.Writer, name string, data []byte) error {
	if err := archive.WriteHeader(member(name, int64(len(data)))); err != nil {
		return fmt.Errorf("copy the journal: %w", err)
	}
	if _, err := archive.Write(data); err != nil {
		return fmt.Errorf("copy the journal: %w", err)
	}
	return nil
}

// Extract writes what [Export] wrote into a directory, which must be empty or not exist. It takes
// those three files in their order and nothing else, and checks nothing: see [Verify].
func Extract(r io.Reader, dir string) error {
	if err := emptyDir(dir); err != nil {
		return err
	}
	archive := tar.NewReader(r)
	for _, name := range []string{keyFile, checkpointFile, entriesFile} {
		header, err := archive.Next()
		if err != nil {
			return fmt.Errorf("the copy of the journal ends before %s: %w", name, noEOF(err))
		}
		if header.Name != name || header.Typeflag != tar.TypeReg || header.Size > maxExport {
			return fmt.Errorf("the copy of the journal holds %q where %s belongs", header.Name, name)
		}
		if err := extractFile(archive, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if _, err := archive.Next(); !errors.Is(err, io.EOF) {
		return errors.New("the copy of the journal does not end where it should")
	}
	return durable.SyncDir(dir)
}

// noEOF tells an end that comes too early from one that is right.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// emptyDir makes a directory, or accepts an empty one.
func emptyDir(dir string) error {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	present, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look into %s: %w", dir, err)
	}
	if len(present) > 0 {
		return fmt.Errorf("%w: %s is not empty", os.ErrExist, dir)
	}
	return nil
}

// extractFile streams one member into a new file.
func extractFile(r io.Reader, path string) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write the copy of the journal: %w", err)
	}
	_, err = io.Copy(file, r)
	if err == nil {
		err = file.Sync()
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("write the copy of the journal: %w", err)
	}
	return nil
}
