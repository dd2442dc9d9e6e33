package rotate

import (
	"slices"
	"sync"
)

// maxRollouts is how many roll-outs of one wave go on at the same time.
const maxRollouts = 4

// waves puts targets in the order of their turns: a wave calls nobody but those of the waves before and, where workloads call
// one another in a circle, its own. The numbers are indexes of targets, in the order in which they came.
func waves(targets []Target) [][]int {
	index := make(map[string]int, len(targets))
	for i, t := range targets {
		index[t.Workload.Name] = i
	}
	calls := make([][]int, len(targets))
	for i, t := range targets {
		for _, name := range t.Calls {
			if callee, ok := index[name]; ok && callee != i {
				calls[i] = append(calls[i], callee)
			}
		}
	}
	reach := make([][]bool, len(targets))
	for i := range targets {
		reach[i] = make([]bool, len(targets))
		reachable(calls, i, reach[i])
	}
	depth := make([]int, len(targets))
	for changed := true; changed; { // it grows along calls that lead out of circles, of which there are fewer than targets
		changed = false
		for i := range targets {
			for j := range targets {
				least := depth[j] + 1
				if reach[j][i] { // both in one circle
					least = depth[j]
				}
				if reach[i][j] && depth[i] < least {
					depth[i], changed = least, true
				}
			}
		}
	}
	var all [][]int
	for i, d := range depth {
		for len(all) <= d {
			all = append(all, nil)
		}
		all[d] = append(all[d], i)
	}
	return slices.DeleteFunc(all, func(wave []int) bool { return len(wave) == 0 })
}

// reachable marks whom a target calls, and whom they call.
func reachable(calls [][]int, from int, seen []bool) {
	for _, callee := range calls[from] {
		if !seen[callee] {
			seen[callee] = true
			reachable(calls, callee, seen)
		}
	}
}

// inWaves gives each target its turn, wave by wave. Those that are rolled out take their turns at the same time, some of
// them; the others one after the other, before.
func inWaves(targets []Target, turn func(i int)) {
	for _, wave := range waves(targets) {
		var group sync.WaitGroup
		places := make(chan struct{}, maxRollouts)
		for _, i := range wave {
			if targets[i].Rollout == nil {
				turn(i)
			}
		}
		for _, i := range wave {
			if targets[i].Rollout != nil {
				places <- struct{}{}
				group.Go(func() {
					defer func() { <-places }()
					turn(i)
				})
			}
		}
		group.Wait()
	}
}
