package deliver

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"countersign.dev/credential"
)

// TestMade reads back what a generation was made of, and takes anything else for nothing.
func TestMade(t *testing.T) {
	dir := t.TempDir()
	if m, err := madeOf(dir); err != nil || m != (Made{}) {
		t.Errorf("nothing reads as %+v (%v)", m, err)
	}
	want := Made{Version: "v1", Bundle: "roots", Serial: "0a", Configuration: Digest([]byte("x")), Revocation: Digest([]byte("y"))}
	path := filepath.Join(dir, MadeFile)
	for text, want := range map[string]Made{
		string(want.File().Data):    want,
		"{":                         {},
		`{"version":1}`:             {},
		`{"version":"a","other":1}`: {Version: "a"},
		`{"version":"` + strings.Repeat("a", mostMade) + `"}`: {},
	} {
		ok(t, os.WriteFile(path, []byte(text), 0o600))
		if got, err := madeOf(dir); err != nil || got != want {
			t.Errorf("%.40q reads as %+v (%v)", text, got, err)
		}
	}
	if Digest(nil) != "" || Digest([]byte("a")) == Digest([]byte("b")) {
		t.Error("digests do not tell texts apart")
	}
}

func FuzzMade(f *testing.F) {
	f.Add([]byte(`{"version":"v1"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		m := parseMade(text)
		again, err := json.Marshal(m)
		if err != nil || parseMade(again) != m {
			t.Errorf("%+v reads as another (%v)", m, err)
		}
	})
}

// TestOwnOffer offers what a generation holds, and nothing when a part of it is missing.
func TestOwnOffer(t *testing.T) {
	l := newLab(t)
	current := filepath.Join(l.proxy.dir, "current")
	o, err := ownOffer(current, Made{Version: "v1"})
	ok(t, err)
	key := o.Input.Key.Data
	cred, err := o.Check(l.cfg.Expect())
	ok(t, err)
	if o.Made(cred, nil, nil).Version != "v1" {
		t.Error("it is of another version")
	}
	if strings.Trim(string(key), "\x00") != "" {
		t.Error("the key was not overwritten")
	}
	ok(t, os.Remove(filepath.Join(current, credential.BundleFile)))
	if _, err := ownOffer(current, Made{}); err == nil {
		t.Error("without roots")
	}
}
