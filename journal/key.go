package journal

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// Key signs checkpoints: an Ed25519 key of the note format. Its name is the journal's origin.
type Key struct {
	note.Signer
	secret   string
	verifier string
}

// GenerateKey makes a key for a journal of that origin: a name without scheme, such as
// "colorapp.internal/journal".
func GenerateKey(origin string) (*Key, error) {
	secret, verifier, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return nil, fmt.Errorf("make a journal key: %w", err)
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		return nil, fmt.Errorf("%w: the origin %q is not possible in the note format", ErrKey, origin)
	}
	return &Key{Signer: signer, secret: secret, verifier: verifier}, nil
}

// ParseKey reads what [Key.Secret] wrote.
func ParseKey(secret []byte) (*Key, error) {
	text := string(bytes.TrimSpace(secret))
	signer, err := note.NewSigner(text)
	if err != nil {
		return nil, fmt.Errorf("%w: it is no signer key of the note format", ErrKey)
	}
	// PRIVATE+KEY+NAME+HASH+base64(1, seed); NewSigner has checked the form.
	parts := strings.SplitN(text, "+", 5)
	raw, err := base64.StdEncoding.DecodeString(parts[len(parts)-1])
	if err != nil || len(raw) != 1+ed25519.SeedSize {
		return nil, fmt.Errorf("%w: it is no Ed25519 key", ErrKey)
	}
	public, ok := ed25519.NewKeyFromSeed(raw[1:]).Public().(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%w: it is no Ed25519 key", ErrKey)
	}
	verifier, err := note.NewEd25519VerifierKey(signer.Name(), public)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return &Key{Signer: signer, secret: text, verifier: verifier}, nil
}

// Secret is the private key as the note format writes it. It is to be sealed before it is stored.
func (k *Key) Secret() []byte { return []byte(k.secret + "\n") }

// Verifier is the public half: the VKEY of `audit log verify`.
func (k *Key) Verifier() string { return k.verifier }

// String keeps the secret out of logs.
func (k *Key) String() string { return "journal key " + k.verifier }

// GoString keeps the secret out of logs.
func (k *Key) GoString() string { return k.String() }

// parseVerifier reads a VKEY.
func parseVerifier(vkey string) (note.Verifier, error) {
	verifier, err := note.NewVerifier(strings.TrimSpace(vkey))
	if err != nil {
		return nil, fmt.Errorf("%w: a verifier key looks like NAME+HASH+BASE64, and `countersign audit log key` prints it", ErrKey)
	}
	return verifier, nil
}
