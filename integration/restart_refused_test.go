package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// stubborn is an NGINX that does not start with its files for as long as there are files in a directory: it takes one away
// each time, but for the one called always. It is put in front of the real one on PATH.
func stubborn(t *testing.T) (path, tokens string) {
	t.Helper()
	bin, tokens := t.TempDir(), t.TempDir()
	script := fmt.Sprintf(`#!/bin/sh
case " $* " in *" -t "* | *" -V "*) exec %[1]s "$@" ;; esac
for token in %[2]s/*; do
  test -e "$token" || break
  test "$token" = %[2]s/always || rm "$token"
  echo "cannot load certificate: refused for a test" >&2
  exit 1
done
exec %[1]s "$@"
`, peer(t, "nginx"), tokens)
	if err := os.WriteFile(filepath.Join(bin, "nginx"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return bin + string(filepath.ListSeparator) + os.Getenv("PATH"), tokens
}

// Where instances are restarted for a new certificate, and the proxy does not start with it, the certificate of before
// comes back and the instance serves it again. When the proxy does not start with that either, the instance is started as
// soon as it does, without anybody's help. Requests are not lost: there is another instance.
func TestRestartThatTheProxyRefuses(t *testing.T) {
	t.Parallel() // it waits for a mesh of its own
	path, tokens := stubborn(t)
	r := start(t, mixed(t, "front", "restart"), flags("--no-rotation"), env("TMPDIR="+shortDir(t), "PATH="+path))
	stop := r.load(t)
	before := r.serials(t)
	refuse := func(names ...string) {
		t.Helper()
		for _, name := range names {
			if err := os.WriteFile(filepath.Join(tokens, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	fails := func(wanted ...string) {
		t.Helper()
		got := r.inside(t, "rotate", "once", "front", "--force")
		if got.status != 1 {
			t.Fatalf("status %d\n%s%s", got.status, got.stdout, got.stderr)
		}
		for _, want := range append(wanted, "front-1 does not serve after its restart", "nginx of front-1 has ended with status 1", "refused for a test") {
			if !strings.Contains(got.stderr, want) {
				t.Errorf("it does not say %q:\n%s", want, got.stderr)
			}
		}
	}
	refuse("1", "2", "3", "4", "5")
	fails("of before is current again and was seen everywhere")
	if after := r.serials(t); !reflect.DeepEqual(before, after) {
		t.Errorf("served are %v, before %v", after, before)
	}

	refuse("always")
	fails("of before is current again and was not seen everywhere")
	if serial, err := servedSerial(t.Context(), r.instance(t, "front").Inbound[0].Address); err == nil {
		t.Errorf("front-1 serves %s although its proxy cannot start", serial)
	}
	if err := os.Remove(filepath.Join(tokens, "always")); err != nil {
		t.Fatal(err)
	}
	await(t, "that front-1 serves again", func() (bool, string) {
		serial, err := servedSerial(t.Context(), r.instance(t, "front").Inbound[0].Address)
		return serial == before["front"][0], fmt.Sprint(serial, err)
	})
	if got := r.inside(t, "rotate", "once", "front", "--force"); got.status != 0 {
		t.Errorf("status %d\n%s%s", got.status, got.stdout, got.stderr)
	}
	if after := r.serials(t)["front"]; len(after) != 1 || after[0] == before["front"][0] {
		t.Errorf("front serves %v, before %v", after, before)
	}
	if asked := stop(); asked < 100 {
		t.Errorf("only %d requests were made", asked)
	}
}
