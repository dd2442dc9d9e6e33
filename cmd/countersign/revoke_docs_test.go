package main

import "testing"

// TestRevokePage runs the commands of docs/revoke.md and sees that they print what it says.
func TestRevokePage(t *testing.T) { runPage(t, "revoke.md", 3, "curl", "openssl") }
