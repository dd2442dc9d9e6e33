package mesh_test

import (
	"testing"

	"countersign.dev/mesh"
)

func TestNearest(t *testing.T) {
	known := []string{"accounts", "fraud", "ledger"}
	for name, want := range map[string]string{"fruad": "fraud", "Ledgr": "ledger", "account": "accounts", "fraud": "", "payments": "", "": ""} {
		if got, ok := mesh.Nearest(name, known); ok != (want != "") || (ok && got != want) {
			t.Errorf("%q is taken for %q, %t; want %q", name, got, ok, want)
		}
	}
}
