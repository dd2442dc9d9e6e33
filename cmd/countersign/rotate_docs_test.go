package main

import "testing"

// TestRotatePage runs the commands of docs/rotate.md, and sees that they print what it says.
func TestRotatePage(t *testing.T) {
	p := openPage(t, "rotate.md")
	p.run("set -e\n" + pageScript(p.atLeast(4)) + "\nwait")
	p.check()
}
