package journal

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// maxCheckpoint bounds a checkpoint file: three short lines and some signatures.
const maxCheckpoint = 64 << 10

// checkpoint is the body of a C2SP tlog-checkpoint (https://c2sp.org/tlog-checkpoint).
type checkpoint struct {
	origin string
	size   int64
	root   tlog.Hash
}

// sign writes the checkpoint as a signed note.
func (c checkpoint) sign(signer note.Signer) ([]byte, error) {
	text := c.origin + "\n" + strconv.FormatInt(c.size, 10) + "\n" + c.root.String() + "\n"
	signed, err := note.Sign(&note.Note{Text: text}, signer)
	if err != nil {
		return nil, fmt.Errorf("sign the checkpoint of size %d: %w", c.size, err)
	}
	return signed, nil
}

// openCheckpoint verifies a signed note and reads its body. Lines after the root hash are
// extensions, which are none of ours; signatures of other keys (witnesses) are ignored.
func openCheckpoint(signed []byte, verifier note.Verifier) (checkpoint, error) {
	opened, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return checkpoint{}, fmt.Errorf("%w (%s+%08x): %w", ErrForged, verifier.Name(), verifier.KeyHash(), err)
	}
	for _, signature := range opened.Sigs {
		// Base64 of 68 bytes has two bits to spare. Package note ignores them, so that a signature would
		// have four spellings, and a changed byte would go unnoticed.
		if _, err := base64.StdEncoding.Strict().DecodeString(signature.Base64); err != nil {
			return checkpoint{}, fmt.Errorf("%w: its signature is not in canonical base64", ErrForged)
		}
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) < 4 {
		return checkpoint{}, fmt.Errorf("%w: a checkpoint has three lines", ErrForged)
	}
	if lines[0] != verifier.Name() {
		return checkpoint{}, fmt.Errorf("%w: it is of the origin %q, and the key is of %q", ErrForged, lines[0], verifier.Name())
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || strconv.FormatInt(size, 10) != lines[1] {
		return checkpoint{}, fmt.Errorf("%w: %q is no size", ErrForged, lines[1])
	}
	root, err := tlog.ParseHash(lines[2])
	if err != nil {
		return checkpoint{}, fmt.Errorf("%w: %q is no root hash", ErrForged, lines[2])
	}
	return checkpoint{origin: lines[0], size: size, root: root}, nil
}

// errLongLine says that a line is longer than an entry can be.
var errLongLine = errors.New("a line is longer than any entry")
