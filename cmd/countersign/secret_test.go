package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"countersign.dev/durable"
)

// TestSecretsPage runs the commands of docs/secrets.md in the order of the text, and looks at what they
// print.
func TestSecretsPage(t *testing.T) {
	p := openPage(t, "secrets.md")
	script := "set -euo pipefail\n"
	for _, block := range p.atLeast(1) {
		script += block.commands
	}
	out := p.run(script)
	for _, want := range []string{
		"made the store file:./secrets\n", "is current\n", "VERSION ", "NAME ", "`--private-key` prints it all the same\nstatus 2\n",
		"mesh/bundle version 2027-01 is pending\n", "mesh/bundle version 2027-01 is current\n",
		"shop/orders/key_pem version 2027-02 is pending\n", "shop/orders/cert_pem version 2027-02 is current\n",
		"spiffe://shop.internal/service/orders",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in the output:\n%s", want, out)
		}
	}
	// The bundle of two roots, and the one before.
	if got := strings.Count(out, "BEGIN CERTIFICATE"); got != 3 {
		t.Errorf("%d certificates were printed, want 3:\n%s", got, out)
	}
	if strings.Contains(out, "PRIVATE KEY") {
		t.Error("a private key was printed")
	}
	for _, name := range []string{"cert.pem", "key.pem", "ca.pem"} {
		if _, err := os.Stat(filepath.Join(p.dir, "tls", "current", name)); err != nil {
			t.Error(err)
		}
	}
}

// meanwhile is an input that takes its time: something is done before it gives its text.
type meanwhile struct {
	do   func()
	text io.Reader
}

func (m *meanwhile) Read(b []byte) (int, error) {
	if m.do != nil {
		m.do()
		m.do = nil
	}
	return m.text.Read(b)
}

// TestPutOvertaken puts a value while somebody else puts another one: that one stays, and both are told what became of
// theirs.
func TestPutOvertaken(t *testing.T) {
	dir := t.TempDir()
	store := []string{"--store", "file:" + filepath.Join(dir, "store"), "--identity-file", filepath.Join(dir, "id.age")}
	must := func(want int, in io.Reader, args ...string) (string, string) {
		t.Helper()
		var out, errs strings.Builder
		if status := run(t.Context(), append(args, store...), in, &out, &errs); status != want {
			t.Fatalf("%q: status %d, want %d\n%s%s", args, status, want, out.String(), errs.String())
		}
		return out.String(), errs.String()
	}
	must(0, nil, "secret", "init")
	for _, before := range []string{"", "one"} { // the first version of all, and a further one
		name := "a" + before
		if before != "" {
			must(0, strings.NewReader(before), "secret", "put", name, "--version-id", before)
		}
		slow := &meanwhile{do: func() { must(0, strings.NewReader("two"), "secret", "put", name, "--version-id", "two") }, text: strings.NewReader("three")}
		_, errs := must(1, slow, "secret", "put", name, "--version-id", "three")
		for _, want := range []string{
			"the version two, written at ", "is current now where ", "somebody else was faster", "countersign secret versions " + name,
			"kept as the version three, which is not current", "`put` it once more",
		} {
			if !strings.Contains(errs, want) {
				t.Errorf("%q does not say %q", errs, want)
			}
		}
		if value, _ := must(0, nil, "secret", "get", name, "--private-key"); value != "two" {
			t.Errorf("%q is current", value)
		}
		must(0, strings.NewReader("three"), "secret", "put", name, "--version-id", "three")
		if value, _ := must(0, nil, "secret", "get", name, "--private-key"); value != "three" {
			t.Errorf("%q is current", value)
		}
	}
}

// TestInitWhileAnother makes a store: the identity file is in use there, perhaps, and stays.
func TestInitWhileAnother(t *testing.T) {
	dir := t.TempDir()
	store, identity := filepath.Join(dir, "store"), filepath.Join(dir, "id.age")
	if err := os.Mkdir(store, 0o700); err != nil {
		t.Fatal(err)
	}
	unlock, err := durable.Lock(filepath.Join(store, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	initStore := func(want int) {
		t.Helper()
		var out, errs strings.Builder
		if status := run(t.Context(), []string{"secret", "init", "--store", "file:" + store, "--identity-file", identity}, nil, &out, &errs); status != want {
			t.Fatalf("status %d, want %d\n%s%s", status, want, out.String(), errs.String())
		}
	}
	initStore(1)
	before, err := os.ReadFile(identity)
	if err != nil {
		t.Fatal(err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	initStore(0)
	if after, err := os.ReadFile(identity); err != nil || string(after) != string(before) {
		t.Errorf("the identity is another one: %v", err)
	}
}
