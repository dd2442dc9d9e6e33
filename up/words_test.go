package up

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestControlSocketIsTaken: what a killed run has left is replaced, and nothing else is.
func TestControlSocketIsTaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	left.Close()
	if err := removeSocket(path); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := removeSocket(path); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("over a file: %v", err)
	}
}
