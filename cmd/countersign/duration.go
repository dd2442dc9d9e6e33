package main

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"
)

// mostDays is the longest time that is read, a hundred years.
const mostDays = 36500

// durations reads the times of flags: as Go does, and whole days, for the lives of certificates are reckoned in those.
func durations() kong.Option {
	return kong.TypeMapper(reflect.TypeFor[time.Duration](), kong.MapperFunc(func(ctx *kong.DecodeContext, target reflect.Value) error {
		token := ctx.Scan.Pop()
		text, ok := token.Value.(string)
		if !ok || !token.IsValue() {
			text = token.String() // another flag, or the end of the line
		}
		d, err := parseDuration(text)
		if err == nil && !token.IsValue() {
			err = notDuration(text)
		}
		if err != nil {
			return err
		}
		target.SetInt(int64(d))
		return nil
	}))
}

// parseDuration reads one time.
func parseDuration(text string) (time.Duration, error) {
	if number, ok := strings.CutSuffix(text, "d"); ok {
		days, err := strconv.Atoi(number)
		if err != nil || days < 0 || days > mostDays {
			return 0, fmt.Errorf("%.40q is not a time: write whole days, from 0d to %dd", text, mostDays)
		}
		return time.Duration(days) * 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, notDuration(text)
	}
	return d, nil
}

func notDuration(text string) error {
	return fmt.Errorf("%.40q is not a time here: write one such as 90s, 15m, 12h or 30d", text)
}
