package expiry

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Limits say from when on something is a finding.
type Limits struct {
	// Warn and Critical are for leaves, CAWarn and CACritical for roots and issuing CAs.
	Warn, Critical     Threshold
	CAWarn, CACritical Threshold
	// WarnAlways and CriticalAlways say that Warn and Critical speak of a leaf that has less left also while its rotation
	// is not late, because somebody has asked for that very limit.
	WarnAlways, CriticalAlways bool
	// Grace is how late a rotation may be, as a part of the time between the day it is due and the expiry.
	Grace Threshold
	// Stuck is for how long a rotation may stand at one step.
	Stuck time.Duration
}

// DefaultLimits are generous with certificates that live for years, and in proportion with those that live
// for hours.
func DefaultLimits() Limits {
	const day = 24 * time.Hour
	return Limits{
		Warn:       Threshold{Share: 0.20, Left: 30 * day},
		Critical:   Threshold{Share: 0.10, Left: 7 * day},
		CAWarn:     Threshold{Share: 0.20, Left: 180 * day},
		CACritical: Threshold{Share: 0.10, Left: 60 * day},
		Grace:      Threshold{Share: 0.10, Left: day},
		Stuck:      15 * time.Minute,
	}
}

// Threshold is an amount of time, given as such, as a share of a life, or as both: the shorter counts.
type Threshold struct {
	// Share is from 0 to 1; 0 is none.
	Share float64
	// Left is 0 for none.
	Left time.Duration
}

// ErrThreshold says that a text is no threshold.
var ErrThreshold = errors.New("no threshold")

// Of is the threshold for a life of that length: never negative, and never more than the life.
func (t Threshold) Of(life time.Duration) time.Duration {
	life = max(0, life)
	of := life
	if t.Share > 0 {
		of = min(of, time.Duration(t.Share*float64(life)))
	}
	if t.Left > 0 || t.Share <= 0 {
		of = min(of, t.Left)
	}
	return of
}

// Under is the shorter of a threshold and half of another one, for any life that is longer than the other one. It is 0
// when the other one is.
func (t Threshold) Under(other Threshold) Threshold {
	if other == (Threshold{}) {
		return other
	}
	if half := other.Share / 2; half > 0 && (t.Share <= 0 || half < t.Share) {
		t.Share = half
	}
	if half := max(other.Left/2, 1); other.Left > 0 && (t.Left <= 0 || half < t.Left) {
		t.Left = half
	}
	return t
}

// String is the form that [Threshold.UnmarshalText] reads.
func (t Threshold) String() string {
	var parts []string
	if t.Share > 0 {
		parts = append(parts, strconv.FormatFloat(t.Share*100, 'f', -1, 64)+"%")
	}
	switch day := 24 * time.Hour; {
	case t.Left > 0 && t.Left%day == 0:
		parts = append(parts, strconv.FormatInt(int64(t.Left/day), 10)+"d")
	case t.Left > 0 || t.Share <= 0:
		parts = append(parts, t.Left.String())
	}
	return strings.Join(parts, ",")
}

// UnmarshalText reads "20%", "30d", "72h", or a share and a time with a comma between: "20%,30d". A day has
// 24 hours. The error is [ErrThreshold].
func (t *Threshold) UnmarshalText(text []byte) error {
	parts := strings.Split(string(text), ",")
	if len(parts) > 2 {
		return fmt.Errorf("%w: %.40q: write a share of the life (20%%), a time (30d, 72h), or both with a comma", ErrThreshold, text)
	}
	var read Threshold
	var share, left bool
	for _, part := range parts {
		part = strings.TrimSpace(part)
		number, isShare := strings.CutSuffix(part, "%")
		switch {
		case isShare && !share:
			percent, err := strconv.ParseFloat(number, 64)
			if err != nil || !(percent > 0 && percent < 100) {
				return fmt.Errorf("%w: %.40q: a share is more than 0%% and less than 100%%", ErrThreshold, part)
			}
			read.Share, share = percent/100, true
		case !isShare && !left:
			d, err := duration(part)
			if err != nil {
				return err
			}
			read.Left, left = d, true
		default:
			return fmt.Errorf("%w: %.40q: give one share and one time at most", ErrThreshold, text)
		}
	}
	if share && left && read.Left == 0 {
		return fmt.Errorf("%w: %.40q: a time of 0 makes the share pointless", ErrThreshold, text)
	}
	*t = read
	return nil
}

// duration reads a time as Go does, and whole days.
func duration(text string) (time.Duration, error) {
	const mostDays = 36500
	if number, ok := strings.CutSuffix(text, "d"); ok {
		days, err := strconv.Atoi(number)
		if err != nil || days < 0 || days > mostDays {
			return 0, fmt.Errorf("%w: %.40q: write whole days, from 0d to %dd", ErrThreshold, text, mostDays)
		}
		return time.Duration(days) * 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%w: %.40q: write a time such as 30d, 72h or 90m", ErrThreshold, text)
	}
	return d, nil
}
