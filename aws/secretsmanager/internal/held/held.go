// Package held knows how a staging label says who holds a lease, and until when. It needs no SDK.
package held

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Limits of a label.
const (
	MaxLabel  = 256 // AWS's
	MaxHolder = 200 // bytes of a holder's name
)

// prefix comes before the end in milliseconds since 1970, the random word and the holder, with colons in between.
const prefix = "COUNTERSIGN-HELD:"

// Name is who holds a lease.
type Name struct {
	Holder string
	Word   string // tells two holders of one name apart
	Until  time.Time
}

// Label is the label that says it.
func (n Name) Label() string {
	return fmt.Sprintf("%s%d:%s:%s", prefix, n.Until.UnixMilli(), n.Word, url.QueryEscape(n.Holder))
}

// Check tells whether a label can say it.
func (n Name) Check() bool { return printable(n.Holder) && len(n.Label()) <= MaxLabel }

// Parse reads a label; ok is false for one of something else.
func Parse(label string) (n Name, ok bool) {
	text, found := strings.CutPrefix(label, prefix)
	parts := strings.SplitN(text, ":", 3) //nolint:mnd // the end, the word, the holder
	if !found || len(parts) != 3 {
		return Name{}, false
	}
	end, err := strconv.ParseInt(parts[0], 10, 64)
	holder, err2 := url.QueryUnescape(parts[2])
	if err != nil || err2 != nil || !printable(holder) {
		return Name{}, false
	}
	return Name{Holder: holder, Word: parts[1], Until: time.UnixMilli(end).UTC()}, true
}

func printable(text string) bool {
	for _, r := range text {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return text != "" && len(text) <= MaxHolder
}
