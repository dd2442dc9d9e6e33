//go:build race

package mesh_test

// The race detector makes everything many times dearer, memory above all.
const underRace = true
