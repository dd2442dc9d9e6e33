package main

import (
	"errors"
	"strings"
	"testing"
)

// TestYes takes nothing but a yes for one.
func TestYes(t *testing.T) {
	for answer, agreed := range map[string]bool{
		"y\n": true, "yes\n": true, " Y \r\n": true, "YES": true, "": false, "\n": false, "n\n": false, "no\n": false, "yes please\n": false, strings.Repeat("y", 200): false,
	} {
		err := yes(strings.NewReader(answer))
		var exit exitError
		if (err == nil) != agreed || err != nil && (!errors.As(err, &exit) || exit.status != exitFailure) {
			t.Errorf("%.20q: %v", answer, err)
		}
	}
}
