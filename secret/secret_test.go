package secret

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestNames(t *testing.T) {
	for _, name := range []string{"a", "A9_+=@-.", "payments/api/key_pem", "-", strings.Repeat("a", MaxName), "a/b.c/d"} {
		if err := CheckName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{
		"", "/", "a/", "/a", "a//b", ".", "..", "a/../b", ".hidden", "a/.b", "a,b", "a b", "a\x00", "a\nb", "ä", "a\\b", "a:b", "a%2fb", "*",
		strings.Repeat("a", MaxName+1),
	} {
		if err := CheckName(name); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v, want ErrInvalid", name, err)
		}
	}
}

func TestVersionIDs(t *testing.T) {
	for _, id := range []string{"1", "2027-01-02.a_b", strings.Repeat("f", MaxVersion), "Current"} {
		if err := CheckVersion(id); err != nil {
			t.Errorf("%q: %v", id, err)
		}
	}
	for _, id := range []string{"", "-a", ".a", "a/b", "a b", "current", "pending", "previous", "a\n", strings.Repeat("f", MaxVersion+1)} {
		if err := CheckVersion(id); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v, want ErrInvalid", id, err)
		}
	}
}

func TestValues(t *testing.T) {
	for size, want := range map[int]error{0: ErrInvalid, 1: nil, MaxValue: nil, MaxValue + 1: ErrInvalid} {
		if err := CheckValue(make([]byte, size)); !errors.Is(err, want) {
			t.Errorf("%d bytes: %v, want %v", size, err, want)
		}
	}
}

func TestHeldError(t *testing.T) {
	err := fmt.Errorf("taking a lease: %w", &HeldError{Name: "a/b", Holder: "rotate on h, pid 7", Until: time.Unix(0, 0)})
	if !errors.Is(err, ErrHeld) || errors.Is(err, ErrLeaseLost) {
		t.Error("it is not ErrHeld alone")
	}
	for _, want := range []string{"a/b", "rotate on h, pid 7", "1970-01-01T00:00:00Z"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}

func TestEntry(t *testing.T) {
	entry := Entry{Versions: []Version{{ID: "2", Stages: []Stage{Pending, Previous}}, {ID: "1", Stages: []Stage{Current}}}}
	for stage, want := range map[Stage]string{Pending: "2", Previous: "2", Current: "1"} {
		if got, ok := entry.Stage(stage); !ok || got.ID != want {
			t.Errorf("%s: %v, %v, want %s", stage, got, ok, want)
		}
	}
	if _, ok := (Entry{}).Stage(Current); ok {
		t.Error("a version without versions")
	}
}

// TestNothingInLogs prints what holds secrets in every way in which one may by accident.
func TestNothingInLogs(t *testing.T) {
	marker := []byte("MARKER")
	m := &Material{Key: bytes.Clone(marker), Passphrase: bytes.Clone(marker)}
	v := Value{Name: "n", Value: bytes.Clone(marker)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(verb+verb, m, v); strings.Contains(text, "MARKER") || strings.Contains(text, "77 65") || strings.Contains(text, "0x4d") {
			t.Errorf("%s: %s", verb, text)
		}
	}
	m.Clear()
	if bytes.Contains(m.Key, marker) || bytes.Contains(m.Passphrase, marker) {
		t.Error("Clear left something")
	}
	(*Material)(nil).Clear()
}
