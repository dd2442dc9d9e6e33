package main

import (
	"os"
	"strings"
	"testing"
)

// TestTutorial runs the commands of the tutorial and sees that they print what it says. What needs a
// running mesh is run in one, in the order of the text; what starts one itself is run afterwards.
func TestTutorial(t *testing.T) {
	t.Parallel() // it waits for a mesh of its own
	p := openPage(t, "tutorial-colorapp.md", "curl", "openssl")
	var inside, outside []pageBlock
	for _, block := range p.atLeast(2) {
		if strings.Contains(block.commands, "countersign up") {
			outside = append(outside, block)
		} else {
			inside = append(inside, block)
		}
	}
	if len(inside) == 0 || len(outside) == 0 {
		t.Fatal("the tutorial has no commands")
	}
	p.run("countersign example colorapp .")
	setup := `
GATEWAY=$(tr , '\n' <$COUNTERSIGN_RUN | sed -n 's/.*"address":"\(.*:8080\)"/\1/p')
TELLER=$(tr , '\n' <$COUNTERSIGN_RUN | sed -n 's/.*"address":"\(.*:9080\)"/\1/p' | head -1)
ADMIN=$(tr , '\n' <$COUNTERSIGN_RUN | sed -n 's/.*"admin":"\(.*\)"/\1/p' | tail -1)
`
	p.write("inside.sh", setup+pageScript(inside))
	p.run("countersign up mesh.yaml --logs logs -- bash inside.sh")
	p.run(pageScript(outside))
	p.check()
	if left, err := os.ReadDir(p.temp); err != nil || len(left) != 0 {
		t.Errorf("%v is left (%v)", left, err)
	}
}
