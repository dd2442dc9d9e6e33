package filestore

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"filippo.io/age"

	"countersign.dev/durable"
)

// maxIdentityFile bounds an identity file in bytes.
const maxIdentityFile = 64 << 10

// ErrIdentity says that an identity file cannot be used: it is missing, open to others, somebody else's, or
// not one. Its errors hold no part of the file.
var ErrIdentity = errors.New("unusable identity file")

// Identity is what a store is encrypted to and decrypted with. It is safe for concurrent use.
type Identity struct {
	identities []age.Identity // any of them decrypts
	recipient  age.Recipient  // of the first
	public     string
	digestKey  []byte // for the ids that [Store.Stage] gives
	source     string
}

// String keeps what is inside out of logs.
func (i *Identity) String() string { return "the identity file " + i.source }

// GoString keeps what is inside out of logs.
func (i *Identity) GoString() string { return i.String() }

// Recipient is the public key of the identity, age1... . It can encrypt and not decrypt.
func (i *Identity) Recipient() string { return i.public }

// GenerateIdentity makes a file with a new age identity (X25519) as age-keygen does, mode 0600. A file that
// exists is fs.ErrExist and is not touched. The file is on the disk when this returns: nothing can be
// encrypted to an identity that a crash then loses.
func GenerateIdentity(path string) error {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return fmt.Errorf("making an identity file: %w", err)
	}
	text := fmt.Appendf(nil, "# created: %s\n# public key: %s\n%s\n", time.Now().Format(time.RFC3339), identity.Recipient(), identity)
	err = durable.CreateFile(path, text, 0o600)
	if errors.Is(err, fs.ErrNotExist) { // it is not made: a disk for identities that is not mounted would be covered
		return fmt.Errorf("making an identity file: %w; make the directory %s first", err, filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("making an identity file: %w", err)
	}
	return nil
}

// LoadIdentity reads a file of age identities, one a line, as age-keygen and [GenerateIdentity] write it
// (X25519, or the post-quantum hybrid). Each of them decrypts; what is written is encrypted to the first,
// so that a store moves to a new identity by putting it in front. A file that its group or others may
// read is refused, and so are one that belongs to another user than root and the process's own, and what is
// not a regular file. Errors are [ErrIdentity].
func LoadIdentity(path string) (*Identity, error) {
	text, err := readIdentityFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIdentity, err)
	}
	defer clear(text)
	identities, err := age.ParseIdentities(bytes.NewReader(text))
	if err != nil || len(identities) == 0 { // the error may quote the file
		return nil, fmt.Errorf("%w: %s does not hold an age identity (a line AGE-SECRET-KEY-1..., as age-keygen writes it)", ErrIdentity, path)
	}
	loaded := &Identity{identities: identities, source: path}
	var private string
	switch first := identities[0].(type) {
	case *age.X25519Identity:
		loaded.recipient, loaded.public, private = first.Recipient(), first.Recipient().String(), first.String()
	case *age.HybridIdentity:
		loaded.recipient, loaded.public, private = first.Recipient(), first.Recipient().String(), first.String()
	default:
		return nil, fmt.Errorf("%w: %s holds an age identity of a kind that cannot encrypt here; make one with age-keygen", ErrIdentity, path)
	}
	loaded.digestKey, err = hkdf.Key(sha256.New, []byte(private), nil, "countersign secret store: version ids", sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrIdentity, path, err)
	}
	return loaded, nil
}

func readIdentityFile(path string) ([]byte, error) {
	// A pipe is not waited for: nobody may ever write to it.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: give the file that the store was made with, or make a new store with `countersign secret init`", err)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file: copy what it gives to a file of mode 0600", path)
	}
	if err := checkOwner(path, info, os.Geteuid()); err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s may be used by others (mode %04o): `chmod 600 %s`; if somebody may have read it, make another identity and another store, and new keys for what is in this one",
			path, info.Mode().Perm(), path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxIdentityFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxIdentityFile {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxIdentityFile)
	}
	return text, nil
}

// digest is the id of a version that its writer gave none. It is a keyed digest: version ids are names of
// files and are printed, and a plain digest of a short passphrase could be searched for.
func (i *Identity) digest(name string, value []byte) string {
	mac := hmac.New(sha256.New, i.digestKey)
	fmt.Fprintf(mac, "%d:%s:", len(name), name)
	mac.Write(value)
	return hex.EncodeToString(mac.Sum(nil)[:16])
}
