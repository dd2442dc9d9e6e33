package credential

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"countersign.dev/durable"
)

// provedLink is beside the link to the current generation, and leads to the last one of which somebody has said that it does.
const provedLink = "proved"

// Directory is a directory of generations in the hands of one who changes it in several steps: a generation is written, looked
// at, made current, and proved, or another one is made current again. Killed between any two steps it holds whole
// generations, and the one that is current but not proved can be told from the one that is both.
//
// Other writers are kept out from [OpenDirectory] to [Directory.Close]. One goroutine at a time may use it.
type Directory struct {
	out    Output
	access durable.Access
	unlock func() error
}

// OpenDirectory takes a directory, which is made when it is missing. Errors are those of [Credential.Write].
func OpenDirectory(out Output) (*Directory, error) {
	if err := CheckMode(out.Mode); err != nil {
		return nil, err
	}
	access := accessOf(out)
	unlock, err := take(out, access)
	if err != nil {
		return nil, explain(out, 0, err)
	}
	return &Directory{out: out, access: access, unlock: unlock}, nil
}

// ReadDirectory is a directory in the hands of one who only reads what is current and proved, and keeps nobody out. It needs no
// closing.
func ReadDirectory(out Output) *Directory {
	return &Directory{out: out, unlock: func() error { return nil }}
}

// Close lets others write.
func (d *Directory) Close() error { return d.unlock() }

// Stage writes a credential as a generation that is not current yet, with further files in it. It gives the generation's number.
// The current generation, the one before it and the proved one stay. Errors are those of [Credential.Write].
func (d *Directory) Stage(c *Credential, further ...durable.File) (uint64, error) {
	out := d.out
	out.Further = slices.Concat(out.Further, further)
	files, err := c.files(out)
	if err != nil {
		return 0, err
	}
	size := 0
	for _, file := range files {
		size += len(file.Data)
	}
	proved, err := d.Proved()
	if err != nil {
		return 0, err
	}
	n, err := durable.StageGenerationFor(d.out.Dir, files, d.access, proved)
	if err != nil {
		return 0, explain(d.out, size, err)
	}
	return n, nil
}

// Activate makes a generation current, in one step.
func (d *Directory) Activate(n uint64) error {
	if err := durable.ActivateGeneration(d.out.Dir, n); err != nil {
		return explain(d.out, 0, err)
	}
	return nil
}

// Discard removes a generation that is not current.
func (d *Directory) Discard(n uint64) error { return durable.RemoveGeneration(d.out.Dir, n) }

// Current is the number of the current generation, 0 when there is none.
func (d *Directory) Current() (uint64, error) { return durable.CurrentGeneration(d.out.Dir) }

// Path is the directory of a generation.
func (d *Directory) Path(n uint64) string { return durable.GenerationPath(d.out.Dir, n) }

// Prove notes that the current generation, n, does. All but that and the one before it are removed.
func (d *Directory) Prove(n uint64) error {
	if err := durable.Symlink(proof(n), filepath.Join(d.out.Dir, provedLink)); err != nil {
		return explain(d.out, 0, fmt.Errorf("noting that generation %d is served: %w", n, err))
	}
	return durable.PruneGenerations(d.out.Dir)
}

// Proved is the number of the generation that was proved last, and 0 when there is none, or it is not there any more.
func (d *Directory) Proved() (uint64, error) {
	target, err := os.Readlink(filepath.Join(d.out.Dir, provedLink))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var n uint64
	if _, err := fmt.Sscanf(filepath.Base(target), "%d", &n); err != nil || target != proof(n) {
		return 0, nil //nolint:nilerr // somebody else's link is no proof
	}
	if info, err := os.Stat(d.Path(n)); err != nil || !info.IsDir() {
		return 0, nil //nolint:nilerr // what is not there is no proof either
	}
	return n, nil
}

// proof is where the link leads.
func proof(n uint64) string { return filepath.Join(generationsDir, fmt.Sprint(n)) }
