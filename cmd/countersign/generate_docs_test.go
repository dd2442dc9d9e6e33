package main

import "testing"

// TestGeneratePage runs the commands of docs/nginx-haproxy.md with the real programs, and sees that they print what
// it says.
func TestGeneratePage(t *testing.T) { runPage(t, "nginx-haproxy.md", 4, "nginx", "haproxy") }
