package main

import "testing"

// TestKeysPage runs the commands of docs/keys.md and sees that they print what it says: most of them in a running
// mesh, those marked outside without one, and those marked rotation in one whose certificates live shortly.
func TestKeysPage(t *testing.T) {
	t.Parallel() // it waits for a mesh of its own
	p := openPage(t, "keys.md", "curl", "openssl")
	inside, outside, rotation := p.atLeast(8), p.blocks["outside"], p.blocks["rotation"]
	if len(p.blocks) != 3 || len(outside) < 3 || len(rotation) != 1 {
		t.Fatalf("docs/keys.md has other blocks of commands than this test knows: %v", p.blocks)
	}
	setup := `
TELLER=$(tr , '\n' <$COUNTERSIGN_RUN | sed -n 's/.*"address":"\(.*:9080\)"/\1/p' | head -1)
ADMIN=$(tr , '\n' <$COUNTERSIGN_RUN | sed -n 's/.*"admin":"\(.*\)"/\1/p' | tail -1)
`
	p.write("inside.sh", setup+pageScript(inside)+"true\n")
	p.write("rotation.sh", setup+pageScript(rotation)+"true\n")
	p.run("countersign example colorapp . && sed -i 's/ttl: .*}/ttl: 12s, renewAfter: 3s}/' rotation.yaml && grep 'renewAfter: 3s' rotation.yaml")
	p.run("countersign up mesh.yaml --logs logs -- bash inside.sh")
	p.run("countersign up rotation.yaml --logs rotation -- bash rotation.sh")
	p.run(pageScript(outside) + "true")
	p.check()
}

// TestPaymentsPage runs the commands of docs/payments.md on real NGINX and HAProxy.
func TestPaymentsPage(t *testing.T) {
	t.Parallel() // it waits for a mesh of its own
	p := openPage(t, "payments.md", "curl", "nginx", "haproxy")
	setup := `
at() { tr , '\n' <$COUNTERSIGN_RUN | sed -n "s/.*\"address\":\"\(.*:$1\)\"/\1/p" | head -1; }
GATE=$(at 8080) BOOKS=$(at 8090) TILL=$(at 7070)
`
	p.write("inside.sh", setup+pageScript(p.atLeast(8))+"true\n")
	p.run("countersign example payments . && countersign up mesh.yaml --logs logs -- bash inside.sh")
	p.check()
}
