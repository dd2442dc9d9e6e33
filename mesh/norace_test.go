//go:build !race

package mesh_test

const underRace = false
