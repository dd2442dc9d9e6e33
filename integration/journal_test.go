package integration

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"countersign.dev/api"
)

// The journal of a mesh that has done something can be copied out and checked offline, and the check
// finds every kind of damage.
func TestJournal(t *testing.T) {
	mesh := start(t, colorapp("mesh.yaml"))
	mesh.admin(t, "token", "create", "colorteller")
	mesh.admin(t, "verify")
	dir := filepath.Join(t.TempDir(), "copy")
	mesh.admin(t, "audit", "log", "export", dir)
	authority, err := api.NewAdmin(mesh.Server.Socket).CA(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	verify := func(dir string) result {
		return countersign(t, "audit", "log", "verify", dir, "--key", authority.JournalKey)
	}
	if got := verify(dir); got.status != 0 {
		t.Fatalf("the copy does not verify: %s", got.stderr)
	}
	entries, err := os.ReadFile(filepath.Join(dir, "entries.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(entries)
	for _, want := range []string{"spiffe://colorapp.internal/service/colorteller", "spiffe://colorapp.internal/probe/verify", `"token.created"`, `"issue.intent"`, `"issue.issued"`, `"enroll"`} {
		if !strings.Contains(text, want) {
			t.Errorf("the journal says nothing of %s", want)
		}
	}
	lines := bytes.SplitAfter(entries, []byte("\n"))
	without := func(i int) []byte {
		return bytes.Join(append(append([][]byte{}, lines[:i]...), lines[i+1:]...), nil)
	}
	swapped := append([][]byte{}, lines...)
	swapped[1], swapped[2] = swapped[2], swapped[1]
	damage := map[string]map[string][]byte{
		"the first entry is missing": {"entries.jsonl": without(0)},
		"an entry is missing":        {"entries.jsonl": without(len(lines) / 2)},
		"the last entry is missing":  {"entries.jsonl": without(len(lines) - 2)},
		"two entries are swapped":    {"entries.jsonl": bytes.Join(swapped, nil)},
		"the tail is cut":            {"entries.jsonl": entries[:len(entries)-20]},
		"nothing is left":            {"entries.jsonl": nil},
		"an entry is there twice":    {"entries.jsonl": bytes.Join(append([][]byte{lines[0]}, lines...), nil)},
	}
	checkpoint, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(checkpoint)-1; at += len(checkpoint) / 8 {
		damage["a bit of the checkpoint at "+string(rune('0'+at*8/len(checkpoint)))] = map[string][]byte{"checkpoint": flipped(checkpoint, at)}
	}
	for at := 0; at < len(entries); at += len(entries) / 16 {
		damage["a bit of the entries at "+string(rune('a'+at*16/len(entries)))] = map[string][]byte{"entries.jsonl": flipped(entries, at)}
	}
	for name, files := range damage {
		t.Run(name, func(t *testing.T) {
			broken := t.TempDir()
			if err := os.CopyFS(broken, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			for file, data := range files {
				path := filepath.Join(broken, file)
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := verify(broken); got.status != 1 || got.stderr == "" {
				t.Errorf("status %d, want 1: %s%s", got.status, got.stdout, got.stderr)
			}
		})
	}
	if got := countersign(t, "audit", "log", "verify", dir, "--key", "not a key"); got.status != 2 {
		t.Errorf("status %d with a bad key", got.status)
	}
}

func flipped(data []byte, at int) []byte {
	changed := bytes.Clone(data)
	changed[at] ^= 1
	return changed
}
