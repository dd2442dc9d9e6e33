package flags

import (
	"strings"
	"testing"
	"time"
)

// TestDuration asserts what is read as a time, and that whoever writes something else is told what to write.
func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"90s": 90 * time.Second, "1h30m": 90 * time.Minute, "0d": 0, "30d": 720 * time.Hour, "36500d": 36500 * 24 * time.Hour, "-5s": -5 * time.Second, "0": 0,
	} {
		if got, err := Duration(text); got != want || err != nil {
			t.Errorf("%q: %s, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		"": "such as 90s", "10y": "such as 90s", "d": "whole days", "1.5d": "whole days", "-1d": "whole days", "36501d": "whole days", "9223372036854775808d": "whole days",
	} {
		if got, err := Duration(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %s, %v; want %q", text, got, err, want)
		}
	}
}

// TestEndpoint asserts what each part of an endpoint may be.
func TestEndpoint(t *testing.T) {
	got, err := ParseEndpoint("catalog:9000=[2001:db8::1]:443")
	if want := (Endpoint{"catalog", 9000, "2001:db8::1", 443}); got != want || err != nil {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for text, want := range map[string]string{
		"catalog:9000":           "write SERVICE:PORT=HOST:PORT",
		"catalog=host:1":         "write SERVICE:PORT=HOST:PORT",
		"Cat:9000=host:1":        "write SERVICE:PORT=HOST:PORT",
		"catalog:0=host:1":       "write SERVICE:PORT=HOST:PORT",
		"catalog:9000=host":      "write SERVICE:PORT=HOST:PORT",
		"catalog:9000=host:0":    "write SERVICE:PORT=HOST:PORT",
		"catalog:9000=a b:1":     `"a b" is neither a DNS name nor an IP address`,
		"catalog:9000=0.0.0.0:1": "nobody is reached at 0.0.0.0",
	} {
		if got, err := ParseEndpoint(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v; want %q", text, got, err, want)
		}
	}
}

// FuzzDuration asserts that nothing but a time is read, and that a day has 24 hours.
func FuzzDuration(f *testing.F) {
	for _, text := range []string{"90s", "30d", "-1d", "1e3d", "9223372036854775807ns", "+5d"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := Duration(text)
		if err != nil {
			return
		}
		if strings.HasSuffix(text, "d") && (d < 0 || d%(24*time.Hour) != 0 || d > mostDays*24*time.Hour) {
			t.Errorf("%q is %s", text, d)
		}
	})
}

// FuzzEndpoint proves that what is taken names a port, a service and a place that the configuration can hold.
func FuzzEndpoint(f *testing.F) {
	for _, text := range []string{"catalog:9000=catalog.internal:443", "a:1=[::1]:2", "a:1=[fe80::1%25eth0]:2", "a:0=b:1", "a:1=b:65536", "=:", "a:1=b c:1", "a:1=;:1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		e, err := ParseEndpoint(text)
		if err != nil {
			return
		}
		if e.Port < 1 || e.Port > 65535 || e.At == 0 || e.Service == "" || strings.ContainsAny(e.Service+e.Host, " \t\r\n;{}\"'\\%") {
			t.Errorf("%q is taken as %+v", text, e)
		}
	})
}
