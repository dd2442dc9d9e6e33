package expiry

import (
	"errors"
	"testing"
	"time"
)

func TestThreshold(t *testing.T) {
	for text, want := range map[string]struct {
		threshold Threshold
		of        time.Duration // of a week
		written   string
	}{
		"20%":        {Threshold{Share: 0.2}, 7 * day / 5, "20%"},
		"30d":        {Threshold{Left: 30 * day}, 7 * day, "30d"},
		"72h":        {Threshold{Left: 72 * time.Hour}, 72 * time.Hour, "3d"},
		"90m":        {Threshold{Left: 90 * time.Minute}, 90 * time.Minute, "1h30m0s"},
		"50%, 1d":    {Threshold{Share: 0.5, Left: day}, day, "50%,1d"},
		"1d,50%":     {Threshold{Share: 0.5, Left: day}, day, "50%,1d"},
		"12.5%,100d": {Threshold{Share: 0.125, Left: 100 * day}, 21 * time.Hour, "12.5%,100d"},
		"0d":         {Threshold{}, 0, "0s"},
		"0s":         {Threshold{}, 0, "0s"},
	} {
		var got Threshold
		if err := got.UnmarshalText([]byte(text)); err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got != want.threshold || got.Of(7*day) != want.of || got.String() != want.written {
			t.Errorf("%q is %+v, %s of a week, written %s; want %+v, %s, %s", text, got, got.Of(7*day), got, want.threshold, want.of, want.written)
		}
	}
	if of := (Threshold{Share: 0.5}).Of(-day); of != 0 {
		t.Errorf("of a life that is none: %s", of)
	}
	for _, text := range []string{"", "20", "0%", "100%", "-5%", "%", "NaN%", "Inf%", "-1h", "-1d", "1.5d", "99999d", "d", "20%,30%", "3d,4d", "20%,", "20%,0d", "1d,2d,20%", "soon"} {
		threshold := Threshold{Share: 0.3}
		if err := threshold.UnmarshalText([]byte(text)); !errors.Is(err, ErrThreshold) {
			t.Errorf("%q: %v, want ErrThreshold", text, err)
		} else if threshold != (Threshold{Share: 0.3}) {
			t.Errorf("%q changed the threshold to %+v", text, threshold)
		}
	}
}

// TestUnder asserts that a default makes room for the threshold that was asked for.
func TestUnder(t *testing.T) {
	for asked, want := range map[string]string{
		"119m":     "10%,59m30s",
		"30d":      "10%,7d",
		"8%":       "4%,7d",
		"25%":      "10%,7d",
		"5%,2d":    "2.5%,1d",
		"0s":       "0s",
		"90%,100d": "10%,7d",
	} {
		var warn Threshold
		if err := warn.UnmarshalText([]byte(asked)); err != nil {
			t.Fatal(err)
		}
		got := DefaultLimits().Critical.Under(warn)
		if got.String() != want {
			t.Errorf("under %s: %s, want %s", asked, got, want)
		}
		for _, life := range []time.Duration{2 * warn.Left, 400 * day} {
			if 2*got.Of(life) > warn.Of(life) {
				t.Errorf("of a life of %s %s is more than half of %s", life, got, asked)
			}
		}
	}
	if got := (Threshold{Left: day}).Under(Threshold{Share: 0.5}); got != (Threshold{Share: 0.25, Left: day}) {
		t.Errorf("a share above a time: %s", got)
	}
}

// FuzzThreshold asserts that what is read is written so that it is read again as the same.
func FuzzThreshold(f *testing.F) {
	for _, text := range []string{"20%", "30d", "72h", "12.5%,30d", "0s", "1e-300%", "20%,", "9223372036854775807ns"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var first, second Threshold
		if first.UnmarshalText([]byte(text)) != nil {
			return
		}
		if of := first.Of(day); of < 0 || of > day {
			t.Errorf("%q of a day is %s", text, of)
		}
		if err := second.UnmarshalText([]byte(first.String())); err != nil {
			t.Fatalf("%q is written %q, which is not read: %v", text, first, err)
		}
		// A share is written as a percentage, which may cost its last digit.
		if second.Left != first.Left || second.Of(100*day)-first.Of(100*day) > time.Microsecond {
			t.Errorf("%q is %+v, and written and read %+v", text, first, second)
		}
	})
}
