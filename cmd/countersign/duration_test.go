package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

// TestDurations asserts that whoever writes something else than a time is told what to write.
func TestDurations(t *testing.T) {
	for line, want := range map[string]string{
		"verify --timeout -5s":                                              `--timeout: "-5s" is not a time here: write one such as 90s, 15m, 12h or 30d`,
		"verify --timeout=-5s --socket s":                                   "--timeout -5s is out of range",
		"verify --timeout":                                                  "is not a time here",
		"verify --timeout --output json":                                    `"--output" is not a time here`,
		"ca init --state s --unsealed --root-life x":                        `--root-life: "x" is not a time here`,
		"ca init --state s --unsealed --root-life 400d --issuer-life 3650d": "--issuer-life 87600h0m0s is longer than --root-life 9600h0m0s",
	} {
		var stderr bytes.Buffer
		status := run(t.Context(), strings.Fields(line), strings.NewReader(""), io.Discard, &stderr)
		if status != exitUsage || !strings.Contains(stderr.String(), want) {
			t.Errorf("%s: status %d, %s; want %q", line, status, &stderr, want)
		}
	}
}
