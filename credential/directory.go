package credential

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// ErrDirectory says that somebody else could put other files in the place of what is written to a directory.
var ErrDirectory = errors.New("not a place for a private key")

// worldWritable is the bit of a mode by which everybody may make, rename and remove what is in a directory.
const worldWritable fs.FileMode = 0o002

// checkDirectory asks of a directory that is there already whether it is safe to write to: a proxy that starts from it
// takes what it finds for its certificate, its key and the roots that it believes.
func checkDirectory(out Output, info fs.FileInfo) error {
	if owner, known := ownerOf(info); known && !trusted(out, owner) {
		return fmt.Errorf("%s belongs to user %d, who can replace what is written there, and this is user %d: %w; run init as the directory's owner, name that owner with --owner, or give the directory to root or to the user of init",
			out.Dir, owner, os.Geteuid(), ErrDirectory)
	}
	// With the sticky bit nobody can touch what belongs to others; see checkEntries for what may be there before.
	if info.Mode()&worldWritable != 0 && info.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("%s may be written to by everybody (mode %04o), and who does can replace the certificate, the key and the roots: %w; take a directory below it, which init makes for its user alone: --to %s",
			out.Dir, info.Mode().Perm(), ErrDirectory, filepath.Join(out.Dir, "tls"))
	}
	return nil
}

// checkEntries looks, in a directory that everybody may make files in, at the entries that are built upon: somebody may
// have made them first. It is asked when they are there, and none of them can be replaced afterwards.
func checkEntries(out Output) error {
	info, err := os.Stat(out.Dir)
	if err != nil || info.Mode()&worldWritable == 0 {
		return err
	}
	for _, name := range slices.Concat([]string{lockFile, generationsDir, "current", provedLink}, out.Beside) {
		path := filepath.Join(out.Dir, name)
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if owner, known := ownerOf(info); known && !trusted(out, owner) {
			return fmt.Errorf("%s belongs to user %d, and everybody may make files beside it: %w; take a directory below, which init makes for its user alone: --to %s",
				path, owner, ErrDirectory, filepath.Join(out.Dir, "tls"))
		}
	}
	return nil
}

// trusted tells whether a user may own what a key is written into: one who has the key anyway.
func trusted(out Output, uid int) bool {
	return uid == 0 || uid == os.Geteuid() || uid == out.UID
}
