package credential

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"software.sslmate.com/src/go-pkcs12"

	"countersign.dev/durable"
)

// The files of a generation.
const (
	// CertFile is the leaf and its issuers, without the root.
	CertFile = "cert.pem"
	// KeyFile is the private key, as PKCS #8 without encryption.
	KeyFile = "key.pem"
	// BundleFile is the roots.
	BundleFile = "ca.pem"
	// CertAndKeyFile is CertFile and KeyFile in one, so that even a reader that does not resolve the link gets a pair.
	CertAndKeyFile = "cert-and-key.pem"
	// PKCS12File is key and chain for Java (RFC 7292), under the passphrase in PassphraseFile.
	PKCS12File = "identity.p12"
	// PassphraseFile is the passphrase of PKCS12File, made anew for each generation: the format demands one, and what
	// protects both files is their mode.
	PassphraseFile = "identity.p12.passphrase"
)

const (
	// lockFile keeps two writers of a directory apart.
	lockFile = ".lock"
	// generationsDir is where [durable.WriteGenerationFor] puts the generations.
	generationsDir = "generations"
)

// Output says where and for whom a credential is written.
type Output struct {
	// Dir gets the generations; Dir/current is the link to the one in force. When it is there already, it has to belong to
	// root, to this process's user or to UID, and not everybody may write to it, unless it has the sticky bit.
	Dir string
	// Mode is what the files with a private key get: 0600, or 0640 for a group. Others never have a part in it.
	Mode fs.FileMode
	// UID and GID become the owner of all files; -1 leaves them as they are made.
	UID, GID int
	// PKCS12 asks for PKCS12File and PassphraseFile.
	PKCS12 bool
	// Further are other files of the generation: a proxy's configuration, a revocation list. Their modes are the caller's.
	Further []durable.File
	// Beside are names that somebody else builds upon in Dir: they may not belong to others either.
	Beside []string
}

// ErrMode says that a mode would give a private key to more than its owner and one group.
var ErrMode = errors.New("a private key's mode is 0600 or less, and at most its group may read it too: 0640")

// CheckMode tells whether files with a private key may have a mode.
func CheckMode(mode fs.FileMode) error {
	if mode&^fs.FileMode(0o640) != 0 || mode&0o400 == 0 {
		return fmt.Errorf("the mode %04o: %w", mode, ErrMode)
	}
	return nil
}

// Write makes the credential the current generation in a directory (see [durable.WriteGenerationFor]): readers that
// resolve Dir/current once see the old set or the new one. When it fails, however it fails, the old one is in force
// and what was written of the new one is gone. The error says what to do about a full or read-only volume, a missing
// privilege, another writer; it is [ErrDirectory] when others could replace what is written.
func (c *Credential) Write(out Output) error {
	if err := CheckMode(out.Mode); err != nil {
		return err
	}
	files, err := c.files(out)
	if err != nil {
		return err
	}
	size := 0
	for _, file := range files {
		size += len(file.Data)
	}
	if err := write(out, files); err != nil {
		return explain(out, size, err)
	}
	return nil
}

func write(out Output, files []durable.File) (err error) {
	access := accessOf(out)
	unlock, err := take(out, access)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := unlock(); err == nil {
			err = closeErr
		}
	}()
	return durable.WriteGenerationFor(out.Dir, files, access)
}

// accessOf is who may reach the generations.
func accessOf(out Output) durable.Access {
	access := durable.Access{UID: out.UID, GID: out.GID, Dir: 0o700}
	if out.Mode&0o040 != 0 {
		access.Dir = 0o750
	}
	return access
}

// take makes the directory when it is missing, keeps other writers out of it, and looks at what is in it.
func take(out Output, access durable.Access) (unlock func() error, err error) {
	if err := durable.MkdirAll(filepath.Dir(filepath.Clean(out.Dir)), 0o755); err != nil {
		return nil, err
	}
	if err := prepare(out, access); err != nil {
		return nil, err
	}
	if unlock, err = durable.Lock(filepath.Join(out.Dir, lockFile)); err != nil {
		return nil, err
	}
	if err = notOurs(out.Dir); err == nil {
		err = durable.MkdirAll(filepath.Join(out.Dir, generationsDir), 0o700)
	}
	if err == nil {
		err = checkEntries(out)
	}
	if err == nil {
		err = durable.Sweep(out.Dir)
	}
	if err != nil {
		return nil, errors.Join(err, unlock())
	}
	return unlock, nil
}

// prepare makes the directory when it is missing. It is opened to its readers at once, and not when all is written:
// killed in between, nobody would do it.
func prepare(out Output, access durable.Access) error {
	dir := out.Dir
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		info, err := os.Stat(dir)
		if err == nil && !info.IsDir() {
			err = fmt.Errorf("%s is not a directory; name one, or one that does not exist and is to be made", dir)
		}
		if err == nil {
			err = checkDirectory(out, info)
		}
		return err
	}
	if err != nil {
		return err
	}
	if access.UID >= 0 || access.GID >= 0 {
		if err := os.Lchown(dir, access.UID, access.GID); err != nil {
			_ = os.Remove(dir) // the first error is the one that counts
			return err
		}
	}
	if err := os.Chmod(dir, access.Dir); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(filepath.Clean(dir)))
}

// notOurs refuses what somebody else has put where the link and the generations belong. It is not removed: it may be a
// proxy's files of before.
func notOurs(dir string) error {
	for _, entry := range []struct {
		name, kind string
		mode       fs.FileMode
	}{
		{"current", "a link to the generation in force", fs.ModeSymlink},
		{generationsDir, "the directory of the generations", fs.ModeDir},
	} {
		path := filepath.Join(dir, entry.name)
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if info.Mode().Type() != entry.mode {
			return fmt.Errorf("%s was not written by this program, which keeps %s under that name; move it away, or name another directory with --to", path, entry.kind)
		}
	}
	return nil
}

// explain adds to an error of the system what to do.
func explain(out Output, size int, err error) error {
	const unchanged = "nothing that was in force has changed"
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("the volume of %s is full; a generation needs about %d KiB, and there may be three of them for a moment; %s: %w", out.Dir, size/1024+20, unchanged, err)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%s is read-only; mount a volume there (a memory disk is best); %s: %w", out.Dir, unchanged, err)
	case errors.Is(err, durable.ErrLocked):
		return fmt.Errorf("another process writes to %s; let one finish before the other; %s: %w", out.Dir, unchanged, err)
	case errors.Is(err, fs.ErrPermission) && (out.UID >= 0 || out.GID >= 0):
		return fmt.Errorf("user %d may not give files to %d:%d; run init as the proxy's user instead, with --owner left out and a volume that belongs to that user; %s: %w",
			os.Geteuid(), out.UID, out.GID, unchanged, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("user %d may not write to %s; give the volume to that user (a VOLUME in the image takes its directory's owner), or run init as the user whom it belongs to; %s: %w",
			os.Geteuid(), out.Dir, unchanged, err)
	}
	return err
}

// files are what a generation consists of.
func (c *Credential) files(out Output) ([]durable.File, error) {
	der, err := x509.MarshalPKCS8PrivateKey(c.key)
	if err != nil {
		return nil, errors.New("encoding the private key failed; it may be of a kind that PKCS #8 does not have")
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	clear(der)
	chain := encode(c.Chain)
	files := []durable.File{
		{Name: CertFile, Data: chain, Perm: out.Mode | 0o044},
		{Name: BundleFile, Data: encode(c.Roots), Perm: out.Mode | 0o044},
		{Name: KeyFile, Data: key, Perm: out.Mode},
		{Name: CertAndKeyFile, Data: bytes.Join([][]byte{chain, key}, nil), Perm: out.Mode},
	}
	files = append(files, out.Further...)
	if !out.PKCS12 {
		return files, nil
	}
	random := make([]byte, 16)
	_, _ = rand.Read(random) // it ends the process rather than fail
	passphrase := hex.EncodeToString(random)
	store, err := pkcs12.Modern.Encode(c.key, c.Leaf(), c.Chain[1:], passphrase)
	if err != nil {
		return nil, errors.New("encoding the PKCS #12 file failed; this kind of key may not be possible there")
	}
	return append(files,
		durable.File{Name: PKCS12File, Data: store, Perm: out.Mode},
		durable.File{Name: PassphraseFile, Data: []byte(passphrase + "\n"), Perm: out.Mode}), nil
}

func encode(certs []*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, cert := range certs {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}) // a buffer takes everything
	}
	return b.Bytes()
}
