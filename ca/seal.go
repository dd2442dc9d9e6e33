package ca

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"

	"countersign.dev/durable"
	"countersign.dev/mtls"
)

// The values of [Sealer.Method].
const (
	MethodKeyFile    = "key-file"
	MethodPassphrase = "passphrase-file"
	MethodUnsealed   = "unsealed"
)

// maxSecretFile bounds a key file or a passphrase file in bytes.
const maxSecretFile = 64 << 10

// Sealer stores private keys so that they are of no use to somebody who has only the disk.
// Implementations are safe for concurrent use. Their errors hold neither key nor passphrase.
type Sealer interface {
	// Seal gives what may be stored for a secret.
	Seal(secret []byte) ([]byte, error)
	// Unseal gives the secret back. The caller overwrites it when it is done. Errors are [ErrSealed],
	// [ErrWrongKey] or [ErrCorrupt].
	Unseal(sealed []byte) ([]byte, error)
	// Method is the way of storing: one of the Method constants.
	Method() string
}

// KeyFile makes a Sealer of a file with an age identity (X25519, or the post-quantum hybrid), as
// age-keygen and [GenerateKeyFile] write it. The file is read now.
func KeyFile(path string) (Sealer, error) {
	text, err := readSecretFile(path)
	if err != nil {
		return nil, fmt.Errorf("the key file: %w", err)
	}
	defer clear(text)
	identities, err := age.ParseIdentities(bytes.NewReader(text))
	if err != nil || len(identities) == 0 { // the error may quote the file
		return nil, fmt.Errorf("the key file %s does not hold an age identity (a line AGE-SECRET-KEY-1...)", path)
	}
	sealer := ageSealer{identities: identities, method: MethodKeyFile, source: "the key file " + path}
	switch identity := identities[0].(type) {
	case *age.X25519Identity:
		sealer.recipient = identity.Recipient()
	case *age.HybridIdentity:
		sealer.recipient = identity.Recipient()
	default:
		return nil, fmt.Errorf("the key file %s holds an age identity of a kind that cannot seal here; make one with age-keygen", path)
	}
	return sealer, nil
}

// GenerateKeyFile makes a file with a new age identity, mode 0600. A file that exists is fs.ErrExist.
// The file survives a crash before anything can be sealed with it.
func GenerateKeyFile(path string) error {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return fmt.Errorf("making a key file: %w", err)
	}
	text := fmt.Appendf(nil, "# seals the keys of a Countersign CA; keep it apart from the CA's state\n# public key: %s\n%s\n", identity.Recipient(), identity)
	if err := durable.CreateFile(path, text, 0o600); err != nil {
		return fmt.Errorf("making a key file: %w", err)
	}
	return nil
}

// PassphraseFile makes a Sealer of a file whose first line is a passphrase; a key is derived from it
// with scrypt, which takes about a second and 256 MB at each use. The file is read now.
func PassphraseFile(path string) (Sealer, error) {
	return passphraseFile(path, 18) // age's own work factor
}

func passphraseFile(path string, workFactor int) (Sealer, error) {
	text, err := readSecretFile(path)
	if err != nil {
		return nil, fmt.Errorf("the passphrase file: %w", err)
	}
	defer clear(text)
	line, _, _ := strings.Cut(string(text), "\n")
	line = strings.TrimSuffix(line, "\r")
	const shortest = 8
	if len(line) < shortest {
		return nil, fmt.Errorf("the first line of the passphrase file %s has fewer than %d characters; write a longer passphrase", path, shortest)
	}
	recipient, err := age.NewScryptRecipient(line)
	if err != nil {
		return nil, fmt.Errorf("the passphrase file %s: %w", path, err)
	}
	recipient.SetWorkFactor(workFactor)
	identity, err := age.NewScryptIdentity(line)
	if err != nil {
		return nil, fmt.Errorf("the passphrase file %s: %w", path, err)
	}
	return ageSealer{
		recipient: recipient, identities: []age.Identity{identity},
		method: MethodPassphrase, source: "the passphrase file " + path,
	}, nil
}

// readSecretFile reads a file that the user named.
func readSecretFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.IsDir() {
		return nil, fmt.Errorf("%s is a directory", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxSecretFile {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxSecretFile)
	}
	return text, nil
}

// ageSealer seals to one recipient.
type ageSealer struct {
	recipient  age.Recipient
	identities []age.Identity
	method     string
	source     string // for messages
}

func (s ageSealer) Method() string { return s.method }

// String keeps what is inside out of logs.
func (s ageSealer) String() string { return s.source }

// GoString keeps what is inside out of logs.
func (s ageSealer) GoString() string { return s.source }

func (s ageSealer) Seal(secret []byte) ([]byte, error) {
	var out bytes.Buffer
	armored := armor.NewWriter(&out)
	w, err := age.Encrypt(armored, s.recipient)
	if err != nil {
		return nil, fmt.Errorf("sealing with %s: %w", s.source, err)
	}
	if _, err := w.Write(secret); err != nil {
		return nil, fmt.Errorf("sealing with %s: %w", s.source, err)
	}
	if err := errors.Join(w.Close(), armored.Close()); err != nil {
		return nil, fmt.Errorf("sealing with %s: %w", s.source, err)
	}
	return out.Bytes(), nil
}

func (s ageSealer) Unseal(sealed []byte) ([]byte, error) {
	if !isSealed(sealed) {
		if looksUnsealed(sealed) {
			return nil, fmt.Errorf("%w: it is not sealed, and %s was given; say --unsealed", ErrSealed, s.source)
		}
		return nil, fmt.Errorf("%w: it is not an age file", ErrCorrupt)
	}
	r, err := age.Decrypt(armor.NewReader(bytes.NewReader(sealed)), s.identities...)
	var noMatch *age.NoIdentityMatchError
	if errors.As(err, &noMatch) {
		return nil, fmt.Errorf("%w: it was not sealed for %s", ErrWrongKey, s.source)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	secret, err := io.ReadAll(io.LimitReader(r, maxFile))
	if err != nil {
		clear(secret)
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return secret, nil
}

// Unsealed stores keys as they are, protected by nothing but the mode of their files. It is for tests,
// for `up`, and for disks that are encrypted as a whole.
func Unsealed() Sealer { return unsealed{} }

type unsealed struct{}

func (unsealed) Method() string                     { return MethodUnsealed }
func (unsealed) Seal(secret []byte) ([]byte, error) { return bytes.Clone(secret), nil }

func (unsealed) Unseal(stored []byte) ([]byte, error) {
	if isSealed(stored) {
		return nil, fmt.Errorf("%w: it is sealed; give --key-file or --passphrase-file", ErrSealed)
	}
	return bytes.Clone(stored), nil
}

func isSealed(data []byte) bool {
	return bytes.HasPrefix(bytes.TrimSpace(data), []byte(armor.Header))
}

// looksUnsealed recognizes what Unsealed stores.
func looksUnsealed(data []byte) bool {
	return bytes.HasPrefix(data, []byte("-----BEGIN PRIVATE KEY-----")) || bytes.HasPrefix(data, []byte("PRIVATE+KEY+"))
}

// readSealed reads and opens a file. Method is how the CA says that it is sealed: a message about a
// wrong flag is of more use than one about a stanza.
func readSealed(path string, seal Sealer, method string) ([]byte, error) {
	if seal == nil {
		return nil, fmt.Errorf("%s: %w: say how with --key-file, --passphrase-file or --unsealed", path, ErrSealed)
	}
	if method != seal.Method() {
		return nil, fmt.Errorf("%s: %w: give --%s, not --%s", path, ErrSealed, method, seal.Method())
	}
	if err := privateFile(path, method); err != nil {
		return nil, err
	}
	data, err := readFile(path, maxFile)
	if err != nil {
		return nil, err
	}
	secret, err := seal.Unseal(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return secret, nil
}

// readKey reads, opens and parses a private key.
func readKey(path string, seal Sealer, method string) (crypto.Signer, error) {
	secret, err := readSealed(path, seal, method)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	key, err := mtls.ParseKey(secret)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, ErrCorrupt, err)
	}
	return key, nil
}

// privateFile refuses a file with a key whose mode lets somebody else at it: a backup was restored without modes,
// perhaps. A sealed one is refused as well: a passphrase can be guessed by whoever has it, and who may write to it puts
// another key there. That it is there is for readFile to say.
func privateFile(path, method string) error {
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm()&0o077 == 0 {
		return nil //nolint:nilerr // what is wrong with it is found when it is read
	}
	if method == MethodUnsealed {
		return fmt.Errorf("%w: %s is not sealed, and others may get at it (mode %04o): `chmod 600 %s`, and if somebody may have read it, make another CA in another --state",
			ErrExposed, path, info.Mode().Perm(), path)
	}
	return fmt.Errorf("%w: others may get at %s (mode %04o): `chmod 600 %s`; it is sealed: whoever has read it needs what opens it, too",
		ErrExposed, path, info.Mode().Perm(), path)
}

// privateDir refuses a directory that others may write to: they could put a CA of their own there. They
// may look into it; what is private in it has directories of its own.
func privateDir(dir string) error {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", dir)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s may be written to by others (mode %04o): `chmod go-w %s` first", dir, info.Mode().Perm(), dir)
	}
	return nil
}
