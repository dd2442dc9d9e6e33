package filestore

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"filippo.io/age"

	"countersign.dev/durable"
	"countersign.dev/secret"
)

// What the files are; it stands inside each, so that one cannot be put in another's place.
const (
	kindStore   = "countersign secret store"
	kindIndex   = "index"
	kindVersion = "version"
	kindLease   = "lease"
	format      = 1
)

// Sizes in bytes: of what is inside a file, and of what encryption adds at most (header, nonce, a tag
// for each 64 KiB; the hybrid's header is the longest).
const (
	maxRecord   = 64 << 10
	maxOverhead = 16 << 10
	maxFile     = maxRecord + secret.MaxValue + maxOverhead
)

// record is what all files begin with: one line of JSON. A version's value follows it, as it is.
type record struct {
	Format int    `json:"format"`
	Kind   string `json:"kind"`
	Name   string `json:"name,omitempty"`
	// Of a version.
	ID string `json:"id,omitempty"`
	// Of an index: oldest first.
	Versions []indexed `json:"versions,omitempty"`
	// Of a lease.
	Holder  string    `json:"holder,omitempty"`
	Token   string    `json:"token,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
}

// indexed is one version in an index. The digest ties the value to it.
type indexed struct {
	ID      string         `json:"id"`
	Stages  []secret.Stage `json:"stages"`
	Created time.Time      `json:"created"`
	Size    int            `json:"size"`
	SHA256  string         `json:"sha256"`
}

func digestOf(value []byte) string {
	sum := sha256.Sum256(value)
	return hex.EncodeToString(sum[:])
}

// marshal writes a record and what follows it.
func marshal(r record, value []byte) ([]byte, error) {
	r.Format = format
	line, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("writing a record: %w", err)
	}
	if len(line)+1 > maxRecord {
		return nil, fmt.Errorf("writing a record: it has %d bytes, and at most %d are read", len(line), maxRecord-1)
	}
	return slices.Concat(line, []byte{'\n'}, value), nil
}

// unmarshal reads what marshal wrote, and refuses a record of another kind or of another secret. The
// value is a part of data.
func unmarshal(data []byte, kind, name string) (record, []byte, error) {
	line, value, ok := bytes.Cut(data, []byte{'\n'})
	if !ok || len(line) >= maxRecord {
		return record{}, nil, errors.New("its first line has no end")
	}
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.DisallowUnknownFields()
	var r record
	if err := decoder.Decode(&r); err != nil { // a lease's token should not be in a message
		return record{}, nil, errors.New("its first line does not parse")
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return record{}, nil, errors.New("its first line goes on after its end")
	}
	switch {
	case r.Format != format:
		return record{}, nil, fmt.Errorf("it has the format %d, and this program knows %d", r.Format, format)
	case r.Kind != kind:
		return record{}, nil, fmt.Errorf("it is of the kind %.40q where %q belongs", r.Kind, kind)
	case r.Name != name:
		return record{}, nil, fmt.Errorf("it belongs to the secret %.80q, not to %q", r.Name, name)
	case kind != kindVersion && len(value) > 0:
		return record{}, nil, errors.New("something follows its first line")
	}
	return r, value, nil
}

// checkIndex refuses an index that no writer of this package leaves.
func checkIndex(r record) error {
	ids, stages := make(map[string]bool), make(map[secret.Stage]bool)
	if len(r.Versions) == 0 || len(r.Versions) > maxVersions {
		return fmt.Errorf("it lists %d versions", len(r.Versions))
	}
	for _, version := range r.Versions {
		switch sum, err := hex.DecodeString(version.SHA256); {
		case secret.CheckVersion(version.ID) != nil || ids[version.ID]:
			return fmt.Errorf("it lists the version %.80q, which cannot be or is there twice", version.ID)
		case version.Size <= 0 || version.Size > secret.MaxValue || err != nil || len(sum) != sha256.Size || version.Created.IsZero():
			return fmt.Errorf("what it says of the version %s is not whole", version.ID)
		}
		ids[version.ID] = true
		for _, stage := range version.Stages {
			if !secret.IsStage(string(stage)) || stages[stage] {
				return fmt.Errorf("the version %s has the stage %.40q, which cannot be or is there twice", version.ID, stage)
			}
			stages[stage] = true
		}
	}
	return nil
}

// seal encrypts to the store's identity.
func (s *Store) seal(plain []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := age.Encrypt(&out, s.identity.recipient)
	if err != nil {
		return nil, fmt.Errorf("encrypting: %w", err)
	}
	if _, err := w.Write(plain); err != nil {
		return nil, fmt.Errorf("encrypting: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("encrypting: %w", err)
	}
	return out.Bytes(), nil
}

// unseal decrypts what was read from a file.
func (i *Identity) unseal(sealed []byte) ([]byte, error) {
	r, err := age.Decrypt(bytes.NewReader(sealed), i.identities...)
	if err != nil {
		return nil, err
	}
	// No more than sealed comes out of it: age does not compress.
	plain := make([]byte, 0, len(sealed))
	buffer := bytes.NewBuffer(plain)
	if _, err := buffer.ReadFrom(r); err != nil {
		clear(buffer.Bytes())
		return nil, err
	}
	return buffer.Bytes(), nil
}

// load reads and opens a file. A file that is missing is fs.ErrNotExist; one that is not whole is
// [secret.ErrCorrupt] with its path. The caller clears the value.
func (s *Store) load(path, kind, name string) (record, []byte, error) {
	r, value, _, err := s.loadRaw(path, kind, name)
	return r, value, err
}

// loadRaw is load, and gives the file as it is on the disk too: no two writings of it are equal.
func (s *Store) loadRaw(path, kind, name string) (record, []byte, []byte, error) {
	sealed, err := readFile(path)
	if err != nil {
		return record{}, nil, nil, err
	}
	plain, err := s.identity.unseal(sealed)
	if err != nil {
		var noMatch *age.NoIdentityMatchError
		if errors.As(err, &noMatch) {
			return record{}, nil, nil, corrupt(path, "it was not encrypted to "+s.identity.String())
		}
		return record{}, nil, nil, corrupt(path, "it does not decrypt: it is cut off, or was changed") // age's error may quote it
	}
	r, value, err := unmarshal(plain, kind, name)
	if err == nil && kind == kindIndex {
		err = checkIndex(r)
	}
	if err != nil {
		clear(plain)
		return record{}, nil, nil, corrupt(path, err.Error())
	}
	return r, value, sealed, nil
}

func corrupt(path, why string) error {
	return fmt.Errorf("%s: %w: %s; restore it from a backup", path, secret.ErrCorrupt, why)
}

// readFile reads a regular file of a bounded size.
func readFile(path string) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, corrupt(path, "it is not a regular file")
	}
	if err := guardFile(path, info); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, corrupt(path, fmt.Sprintf("it has more than %d bytes", maxFile))
	}
	return data, nil
}

// save encrypts and writes a file, durably and in one step.
func (s *Store) save(path string, r record, value []byte) error {
	plain, err := marshal(r, value)
	if err != nil {
		return err
	}
	defer clear(plain)
	sealed, err := s.seal(plain)
	if err != nil {
		return err
	}
	return durable.WriteFile(path, sealed, fileMode)
}

// Modes of what is made. They are narrowed by the umask, never widened.
const (
	fileMode fs.FileMode = 0o600
	dirMode  fs.FileMode = 0o700
)
