// Package flags reads what the values of flags say. It stands apart from the command, because it is foreign text, and the search
// for inputs that break it needs none of what the command is made of.
package flags

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// mostDays is the longest time that is read, a hundred years.
const mostDays = 36500

// Duration reads one time: as Go writes it, or whole days of 24 hours, for the lives of certificates are reckoned in those.
func Duration(text string) (time.Duration, error) {
	if number, ok := strings.CutSuffix(text, "d"); ok {
		days, err := strconv.Atoi(number)
		if err != nil || days < 0 || days > mostDays {
			return 0, fmt.Errorf("%.40q is not a time: write whole days, from 0d to %dd", text, mostDays)
		}
		return time.Duration(days) * 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, NotDuration(text)
	}
	return d, nil
}

// NotDuration is the error of what is no time: it says what to write.
func NotDuration(text string) error {
	return fmt.Errorf("%.40q is not a time here: write one such as 90s, 15m, 12h or 30d", text)
}
