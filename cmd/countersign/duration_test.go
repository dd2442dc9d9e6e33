package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"
)

// TestDurations asserts what is read as a time, and that whoever writes something else is told what to write.
func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"90s": 90 * time.Second, "1h30m": 90 * time.Minute, "0d": 0, "30d": 720 * time.Hour, "36500d": 36500 * 24 * time.Hour, "-5s": -5 * time.Second, "0": 0,
	} {
		if got, err := parseDuration(text); got != want || err != nil {
			t.Errorf("%q: %s, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		"": "such as 90s", "10y": "such as 90s", "d": "whole days", "1.5d": "whole days", "-1d": "whole days", "36501d": "whole days", "9223372036854775808d": "whole days",
	} {
		if got, err := parseDuration(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %s, %v; want %q", text, got, err, want)
		}
	}
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

// FuzzDuration asserts that nothing but a time is read, and that a day has 24 hours.
func FuzzDuration(f *testing.F) {
	for _, text := range []string{"90s", "30d", "-1d", "1e3d", "9223372036854775807ns", "+5d"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := parseDuration(text)
		if err != nil {
			return
		}
		if strings.HasSuffix(text, "d") && (d < 0 || d%(24*time.Hour) != 0 || d > mostDays*24*time.Hour) {
			t.Errorf("%q is %s", text, d)
		}
	})
}
