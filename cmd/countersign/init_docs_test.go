package main

import (
	"bytes"
	"os"
	"testing"
)

// TestInitPage runs the commands of docs/init.md, sees that they print what it says, and that the Dockerfile in it is
// the repository's.
func TestInitPage(t *testing.T) {
	text, err := os.ReadFile("../../docs/init.md")
	if err != nil {
		t.Fatal(err)
	}
	dockerfile, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(text, append(append([]byte("```dockerfile\n"), dockerfile...), "```\n"...)) {
		t.Error("docs/init.md has another Dockerfile than the repository")
	}
	runPage(t, "init.md", 4, "openssl")
}

// TestStorePage runs the commands of docs/secret-store-to-nginx.md with the real NGINX, and sees that they print what it says.
func TestStorePage(t *testing.T) {
	runPage(t, "secret-store-to-nginx.md", 6, "nginx", "curl")
}
