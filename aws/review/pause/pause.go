// Package pause reads schedules of EventBridge, and tells how long they rest.
package pause

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// ErrSchedule says that an expression is no schedule, or one whose rests are not worked out here.
var ErrSchedule = errors.New("not a schedule that can be read")

const day = 24 * time.Hour

// AtLeast is how long the longest rest between two runs is at least: what a rate says, and of a cron expression the longest rest that one of its
// fields makes by itself. The form is that of
// https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-scheduled-rule-pattern.html. Its errors are [ErrSchedule].
func AtLeast(expression string) (time.Duration, error) {
	kind, rest, opened := strings.Cut(strings.TrimSpace(expression), "(")
	inside, closed := strings.CutSuffix(rest, ")")
	fields := strings.Fields(inside)
	switch {
	case opened && closed && kind == "rate" && len(fields) == 2:
		return rate(fields[0], fields[1])
	case opened && closed && kind == "cron" && len(fields) == 6:
		return cron(fields)
	}
	return 0, fmt.Errorf("%w: %.80q is neither rate(VALUE UNIT) nor cron with six fields", ErrSchedule, expression)
}

func rate(value, unit string) (time.Duration, error) {
	n, err := strconv.ParseInt(value, 10, 32)
	one := map[string]time.Duration{"minute": time.Minute, "hour": time.Hour, "day": day}[strings.TrimSuffix(unit, "s")]
	if err != nil || n < 1 || one == 0 {
		return 0, fmt.Errorf("%w: rate(%.20s %.20s)", ErrSchedule, value, unit)
	}
	if n > math.MaxInt64/int64(one) {
		return math.MaxInt64, nil
	}
	return time.Duration(n) * one, nil
}

// field is one field of a cron expression: its first and last value, their names, and how long from one to the next.
type field struct {
	low, high int
	names     []string
	one       time.Duration
}

var fields = []field{
	{0, 59, nil, time.Minute},
	{0, 23, nil, time.Hour},
	{1, 31, nil, day},
	{1, 12, []string{"JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"}, 28 * day},
	{1, 7, []string{"SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"}, day},
}

// cron is the longest rest that one of the fields makes. A field that every value fits makes none.
func cron(words []string) (time.Duration, error) {
	if year := words[len(words)-1]; year != "*" {
		return 0, fmt.Errorf("%w: it is for the years %.40q only", ErrSchedule, year)
	}
	longest := time.Minute
	for i, f := range fields {
		gap, err := f.gap(words[i])
		if err != nil {
			return 0, fmt.Errorf("%w: %w", ErrSchedule, err)
		}
		if gap > 1 {
			steps := gap
			if f.one == 28*day {
				steps-- // from the end of one month to the beginning of another
			}
			longest = max(longest, time.Duration(steps)*f.one)
		}
	}
	return longest, nil
}

// gap is how many values lie between one that fits and the next, over the end, too. The last days of a month may be missing.
func (f field) gap(text string) (int, error) {
	fits, err := f.fits(text)
	if err != nil {
		return 0, err
	}
	size := f.high - f.low + 1
	if f.high == 31 {
		const shortest = 28
		for i := shortest; i < size; i++ { // as if they were on the shortest month's last day
			fits[shortest-1] = fits[shortest-1] || fits[i]
		}
		size, fits = shortest, fits[:shortest]
	}
	widest, first, last := 0, -1, -1
	for i, fit := range fits {
		switch {
		case !fit:
			continue
		case last < 0:
			first = i
		default:
			widest = max(widest, i-last)
		}
		last = i
	}
	if first < 0 {
		return 0, fmt.Errorf("nothing fits %.40q", text)
	}
	return max(widest, first+size-last), nil
}

// fits are the values that fit a field.
func (f field) fits(text string) ([]bool, error) {
	all := make([]bool, f.high-f.low+1)
	for part := range strings.SplitSeq(text, ",") {
		span, step, stepped := strings.Cut(part, "/")
		every := 1
		if stepped {
			var err error
			if every, err = strconv.Atoi(step); err != nil || every < 1 {
				return nil, fmt.Errorf("%.40q has no step", part)
			}
		}
		from, to := f.low, f.high
		if span != "*" && span != "?" {
			first, last, ranged := strings.Cut(span, "-")
			var err error
			if from, err = f.value(first); err != nil {
				return nil, err
			}
			switch {
			case ranged:
				if to, err = f.value(last); err != nil {
					return nil, err
				}
			case !stepped:
				to = from
			}
		}
		if to < from {
			to += len(all) // over the end
		}
		for i := from; i <= to; i += every {
			all[(i-f.low)%len(all)] = true
			if every > len(all) {
				break
			}
		}
	}
	return all, nil
}

func (f field) value(text string) (int, error) {
	for i, name := range f.names {
		if strings.EqualFold(name, text) {
			return f.low + i, nil
		}
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < f.low || n > f.high {
		return 0, fmt.Errorf("%.40q is none of %d to %d", text, f.low, f.high)
	}
	return n, nil
}
