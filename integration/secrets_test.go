package integration

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"countersign.dev/api"
)

// envPlanted holds what the search has to find, to show that it would find the rest.
const envPlanted = "COUNTERSIGN_TEST_PLANTED"

// haystack is a place where a secret may have got to, and what stands there.
type haystack struct {
	where string
	data  []byte
}

// No private key and no token stands in a log, a command line or an environment. The search proves
// itself by a marker that was planted in each of the three.
func TestNoSecretLeaks(t *testing.T) {
	const marker = "planted-5f2c9a"
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	spec := fmt.Sprintf(`mesh: secretive
certificates: {ttl: 12s, renewAfter: 4s}
services:
  loud:
    ports: [{port: 9080, protocol: http}]
    run: {command: [%q, "--planted", %q], env: {%s: loud, %s: "${APP_ADDRESS}", %s: %s}}
gateways:
  door:
    listen: [{port: 8080, protocol: http}]
    routes: [{match: {prefix: /}, to: [{service: loud}]}]
`, self, marker, envRole, envListen, envPlanted, marker)
	mesh := start(t, write(t, spec), flags("--log-level", "debug"))
	get(t, "http://"+mesh.inbound(t, "door", 8080)+"/")
	mesh.admin(t, "verify")
	token := strings.TrimSpace(mesh.admin(t, "token", "create", "loud"))
	wrong := strings.TrimSpace(mesh.admin(t, "token", "create", "door"))
	impersonateWith(t, mesh, "loud", "second", "127.0.0.1:1", token)
	serial := mesh.status(t)["loud-1"].Serial
	await(t, "a renewal", func() (bool, string) {
		now := mesh.status(t)["loud-1"].Serial
		return now != serial, now
	})

	secrets := map[string][]byte{"a join token": []byte(token), "another join token": []byte(wrong)}
	if !strings.HasPrefix(token, "csjoin_") {
		t.Fatal("a join token does not begin as this test believes")
	}
	keys := privateKeys(t, mesh.State)
	if len(keys) < 4 { // root, issuer, and each sidecar's
		t.Fatalf("only %d private keys were found in %s", len(keys), mesh.State)
	}
	for path, lines := range keys {
		for i, line := range lines {
			secrets[fmt.Sprintf("%s, line %d", path, i+1)] = line
		}
	}
	places := haystacks(t, mesh)
	found := map[string]bool{}
	for _, place := range places {
		kind, _, _ := strings.Cut(place.where, " ")
		if bytes.Contains(place.data, []byte(marker)) {
			found[kind] = true
		}
		for what, secret := range secrets {
			if bytes.Contains(place.data, secret) {
				t.Errorf("%s stands in %s", what, place.where)
			}
		}
		// PEM, age, the note format, join tokens: as they begin, whosever they are.
		for _, begin := range []string{"PRIVATE KEY-----", "AGE-SECRET-KEY-", "PRIVATE+KEY+", "csjoin_"} {
			if bytes.Contains(place.data, []byte(begin)) {
				t.Errorf("what begins with %s stands in %s", begin, place.where)
			}
		}
	}
	for _, kind := range []string{"log", "argv", "environ"} {
		if !found[kind] {
			t.Errorf("the search does not find what was planted in %s: it proves nothing", kind)
		}
	}
	t.Logf("%d places were searched for %d secrets", len(places), len(secrets))
}

// privateKeys are the lines of the private keys below a directory, by file.
func privateKeys(t *testing.T, dir string) map[string][][]byte {
	t.Helper()
	keys := map[string][][]byte{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return nil //nolint:nilerr // a generation that was replaced meanwhile
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil //nolint:nilerr // the same
		}
		block, _ := pem.Decode(data)
		if block == nil || !strings.HasSuffix(block.Type, "PRIVATE KEY") {
			return nil
		}
		info, err := entry.Info()
		if err == nil && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has the mode %v, want 0600", path, info.Mode().Perm())
		}
		for line := range bytes.Lines(data) {
			// The first line of PKCS #8 is the same for every key of a type; the others are the key.
			if line = bytes.TrimSpace(line); len(line) > 20 && !bytes.HasPrefix(line, []byte("-----")) && !bytes.HasPrefix(line, []byte("MIG")) {
				keys[path] = append(keys[path], line)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// haystacks are all logs, command lines and environments of a mesh.
func haystacks(t *testing.T, mesh *running) []haystack {
	t.Helper()
	var places []haystack
	files, err := filepath.Glob(filepath.Join(mesh.logs, "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no logs in %s (%v)", mesh.logs, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		places = append(places, haystack{"log " + filepath.Base(file), data})
	}
	ours := append(descendants(t, mesh.command.Process.Pid), process{pid: mesh.command.Process.Pid})
	if len(ours) < 5 { // up, server, two sidecars, an application
		t.Fatalf("only %d processes were found", len(ours))
	}
	for _, p := range ours {
		for kind, file := range map[string]string{"argv": "cmdline", "environ": "environ"} {
			data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.pid, file))
			if err != nil {
				t.Logf("NOT SEARCHED: the %s of %v: %v (it takes root)", kind, p.args, err)
				continue
			}
			places = append(places, haystack{fmt.Sprintf("%s of %d %v", kind, p.pid, p.args), data})
		}
	}
	return places
}

// A passphrase stays in its file: the server that unseals its keys with it has it neither on its command
// line nor in its environment nor in its log, and the keys lie sealed.
func TestPassphraseStaysInItsFile(t *testing.T) {
	const passphrase = "correct horse battery staple 7f3a"
	dir := shortDir(t)
	file := filepath.Join(dir, "passphrase")
	if err := os.WriteFile(file, []byte(passphrase+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	server := &control{state: filepath.Join(dir, "state"), spec: write(t, fmt.Sprintf(loneService, 9080)), address: freeAddress(t), seal: []string{"--passphrase-file", file}}
	server.init(t)
	if keys := privateKeys(t, server.state); len(keys) > 0 {
		t.Errorf("private keys lie open: %v", keys)
	}
	server.start(t, binary, "COUNTERSIGN_LOG_LEVEL=debug")
	if !server.ready(t) {
		t.Fatal(server.log.String())
	}
	if _, err := probe(t, api.NewAdmin(server.socket)); err != nil {
		t.Error(err)
	}
	places := []haystack{{"log", []byte(server.log.String())}}
	for _, name := range []string{"cmdline", "environ"} {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", server.command.Process.Pid, name))
		if err != nil {
			t.Logf("NOT SEARCHED: %v (it takes root)", err)
		}
		places = append(places, haystack{name, data})
	}
	for _, place := range places {
		if bytes.Contains(place.data, []byte(passphrase)) {
			t.Errorf("the passphrase stands in its %s", place.where)
		}
	}
}

// A core dump of a sidecar or of the server is not written: its memory holds keys.
func TestNoCoreDump(t *testing.T) {
	mesh := start(t, colorapp("mesh.yaml"))
	for _, words := range [][]string{{"server"}, {"proxy", "colorteller-1"}} {
		pid := mesh.find(t, words...)
		limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
		if err != nil {
			t.Logf("NOT TESTED: %v", err)
			continue
		}
		for line := range strings.Lines(string(limits)) {
			if fields := strings.Fields(line); strings.HasPrefix(line, "Max core file size") && fields[4] != "0" {
				t.Errorf("%v may write a core file: %s", words, line)
			}
		}
		info, err := os.Stat(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil {
			t.Fatal(err)
		}
		// The files in /proc of a process that is not dumpable belong to root, whoever runs it.
		if owner := info.Sys().(*syscall.Stat_t).Uid; os.Getuid() != 0 && owner != 0 {
			t.Errorf("%v is dumpable: its environment belongs to %d", words, owner)
		}
	}
	began := time.Now()
	pid := mesh.find(t, "server")
	if err := syscall.Kill(pid, syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	await(t, "the server comes back", func() (bool, string) {
		now := mesh.find(t, "server")
		return now != 0 && now != pid, fmt.Sprint(now)
	})
	for _, p := range descendants(t, mesh.command.Process.Pid) {
		cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", p.pid))
		if err != nil {
			continue
		}
		cores, _ := filepath.Glob(filepath.Join(cwd, "core*"))
		for _, core := range cores {
			if info, err := os.Stat(core); err == nil && info.Mode().IsRegular() && info.ModTime().After(began) {
				t.Errorf("a core dump: %s", core)
			}
		}
	}
}
