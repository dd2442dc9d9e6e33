package mesh

import (
	"fmt"
	"strings"
)

// nearest finds the known name that somebody may have meant. It stops looking when it has done a
// fixed amount of work, so that a hostile document cannot keep it busy.
type nearest struct{ work int }

// nearestWork bounds the steps of all comparisons for one specification.
const nearestWork = 5_000_000

// find gives the known name that is nearest to s, if one is near enough to be a slip.
func (n *nearest) find(s string, known []string) (string, bool) {
	best, bestDistance := "", 1+min(len(s), 12)/3 // in a short name every slip makes another name
	folded := strings.ToLower(s)
	for _, k := range known {
		if n.work > nearestWork {
			break
		}
		if len(k)-len(s) >= bestDistance || len(s)-len(k) >= bestDistance {
			n.work++
			continue
		}
		n.work += (len(k) + 1) * (len(s) + 1)
		if d := distance(folded, strings.ToLower(k)); d < bestDistance {
			best, bestDistance = k, d
		}
	}
	return best, best != "" && best != s
}

// Nearest gives the known name that somebody may have meant by a name that is not known; false when none is near.
func Nearest(name string, known []string) (string, bool) { return new(nearest).find(name, known) }

// right words the advice for an unknown name: the nearest known one, or all of them when they are few.
func (n *nearest) right(s string, known []string, none string) string {
	if best, ok := n.find(s, known); ok {
		return fmt.Sprintf("did you mean %q?", best)
	}
	switch {
	case len(known) == 0:
		return none
	case len(known) == 1:
		return "possible is " + known[0]
	case len(known) > 20:
		return fmt.Sprintf("possible are %s and %d others", strings.Join(known[:10], ", "), len(known)-10)
	}
	return "possible are " + strings.Join(known, ", ")
}

// distance is the number of bytes to insert, delete, replace or swap with their neighbour that makes
// b of a (optimal string alignment).
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replace := last[j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			row[j] = min(last[j]+1, row[j-1]+1, replace)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
