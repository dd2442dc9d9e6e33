package main

import (
	"path/filepath"
	"testing"
)

// TestRotateRootsPage runs the commands of docs/rotate-roots.md in a running mesh, in their order, and sees
// that they print what it says.
func TestRotateRootsPage(t *testing.T) {
	t.Parallel() // it waits for a mesh of its own
	p := openPage(t, "rotate-roots.md")
	mesh, err := filepath.Abs("../../examples/colorapp/rotation.yaml")
	if err != nil {
		t.Fatal(err)
	}
	p.write("inside.sh", pageScript(p.atLeast(3)))
	p.run("countersign up '" + mesh + "' --logs logs -- bash inside.sh")
	p.check()
}
