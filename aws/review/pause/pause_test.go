package pause_test

import (
	"errors"
	"testing"
	"time"

	"countersign.dev/aws/review/pause"
)

const day = 24 * time.Hour

// schedules are expressions, and how long they rest at least; 0 for those that are refused.
var schedules = map[string]time.Duration{
	"rate(1 hour)": time.Hour, "rate(15 minutes)": 15 * time.Minute, "rate(30 days)": 30 * day, " rate(1 minute) ": time.Minute,
	"cron(* * * * ? *)":            time.Minute,
	"cron(0 * * * ? *)":            time.Hour,
	"cron(0/10 * * * ? *)":         10 * time.Minute,
	"cron(0,30 * ? * * *)":         30 * time.Minute,
	"cron(0 3 * * ? *)":            24 * time.Hour,
	"cron(0 0/6 * * ? *)":          6 * time.Hour,
	"cron(0 20-4 * * ? *)":         16 * time.Hour,
	"cron(0 8 ? * MON-FRI *)":      3 * day,
	"cron(0 8 ? * SUN *)":          7 * day,
	"cron(0 0 1 * ? *)":            28 * day,
	"cron(0 0 1,15,31 * ? *)":      14 * day,
	"cron(0 0 1 1 ? *)":            11 * 28 * day,
	"cron(0 0 * jan-JUN ? *)":      6 * 28 * day,
	"rate(9223372036 days)":        0,
	"rate(2147483647 days)":        1<<63 - 1,
	"rate(0 hours)":                0,
	"rate(1 fortnight)":            0,
	"rate(1)":                      0,
	"rate(1 hour":                  0,
	"cron(0 0 1 1 ? 2020)":         0,
	"cron(0 0 L * ? *)":            0,
	"cron(0 0 ? * 2#1 *)":          0,
	"cron(61 * * * ? *)":           0,
	"cron(0/0 * * * ? *)":          0,
	"cron(* * * * ?)":              0,
	"at(2026-01-01T00:00:00)":      0,
	"":                             0,
	"cron(0/9999999 * * * ? *)":    time.Hour,
	"cron(5/1 * * * ? *)":          6 * time.Minute,
	"cron(0 0 1/9223372 * ? *)":    28 * day,
	"cron(0 22-2/3 * * ? *)":       21 * time.Hour,
	"cron(0 12 ? * MON,THU *)":     4 * day,
	"cron(0 12 ? * 2-2 *)":         7 * day,
	"cron(0 12 ? FEB,AUG MON *)":   5 * 28 * day,
	"cron(15 10 28-31 * ? *)":      28 * day,
	"cron(0 0-23 1-31 1-12 1-7 *)": time.Hour,
}

// TestAtLeast asserts what is known of each.
func TestAtLeast(t *testing.T) {
	for expression, want := range schedules {
		got, err := pause.AtLeast(expression)
		if got != want || (err != nil) != (want == 0) || err != nil && !errors.Is(err, pause.ErrSchedule) {
			t.Errorf("%q: %s, %v; want %s", expression, got, err, want)
		}
	}
}

// FuzzAtLeast asserts that any text is a schedule, or none.
func FuzzAtLeast(f *testing.F) {
	for expression := range schedules {
		f.Add(expression)
	}
	f.Fuzz(func(t *testing.T, expression string) {
		got, err := pause.AtLeast(expression)
		if (err == nil) == (got <= 0) || err != nil && !errors.Is(err, pause.ErrSchedule) {
			t.Errorf("%q: %s, %v", expression, got, err)
		}
	})
}
