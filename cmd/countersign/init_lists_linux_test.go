package main

import (
	"encoding/json"
	"encoding/pem"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign.dev/issue"
	"countersign.dev/mesh"
)

// lists writes a file with the revocation list of the issuing authority.
func (l *watchLab) lists() string {
	l.t.Helper()
	now := time.Now()
	list, err := issue.NewCRL(l.ca.Issuing, l.ca.Key, issue.CRLConfig{Number: 1, Now: now, NextUpdate: now.Add(time.Hour)})
	l.ok(err)
	l.ok(os.WriteFile(l.file("lists.pem"), pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list.Raw}), 0o600))
	return l.file("lists.pem")
}

// checked are the flags for a configuration, without leave to do without revocation lists.
func (l *watchLab) checked(further ...string) []string {
	return append(slices.DeleteFunc(l.conf(), func(flag string) bool { return flag == "--accept-revoked" }), further...)
}

// TestInitLists: where revoked callers are to be refused, no configuration comes into force that looks nobody up, unless that was
// accepted; the lists in force stay when no others are given.
func TestInitLists(t *testing.T) {
	l := newWatchLab(t, "haproxy")
	l.put("v1", mesh.ECDSAP256)
	configuration := func() string {
		text, err := os.ReadFile(l.file("tls/current/haproxy.cfg"))
		l.ok(err)
		return string(text)
	}
	output, err := initCommand(t, nil, l.args(l.checked()...)...).CombinedOutput()
	if err == nil || !strings.Contains(string(output), "there are no revocation lists: give --crl FILE (`countersign ca crl` prints them), or --accept-revoked") {
		t.Errorf("without lists: %v\n%s", err, output)
	}
	if _, err := os.Lstat(l.file("tls/current")); !os.IsNotExist(err) {
		t.Errorf("something is in force after a refusal (%v)", err)
	}
	l.once(l.checked("--accept-revoked")...)
	if text := configuration(); strings.Contains(text, "crl-file") {
		t.Errorf("without lists, which was accepted:\n%s", text)
	}
	l.once(l.checked("--crl", l.lists())...)
	given, err := os.ReadFile(l.file("tls/current/crl.pem"))
	l.ok(err)
	l.ok(os.Remove(l.file("lists.pem")))
	for _, flags := range [][]string{l.checked(), l.checked("--accept-revoked")} {
		l.once(flags...)
		kept, err := os.ReadFile(l.file("tls/current/crl.pem"))
		if err != nil || string(kept) != string(given) || !strings.Contains(configuration(), "crl-file") {
			t.Errorf("the lists in force did not stay (%v):\n%s", err, configuration())
		}
	}
}

// TestWatchLists: the watcher keeps the lists that init has put in force, and without any it puts nothing in force.
func TestWatchLists(t *testing.T) {
	l := newWatchLab(t, "haproxy")
	l.put("v1", mesh.ECDSAP256)
	l.once(l.checked("--accept-revoked")...)
	l.startWatch(l.checked("--reload", "command:true")...)
	l.says("/ready", "NO REVOCATION LISTS")
	l.watch.kill()
	l.once(l.checked("--crl", l.lists())...)
	l.startWatch(l.checked("--reload", "haproxy:"+l.file("master.sock"))...) // nobody is there: the files stay for its start
	serial := l.put("v2", mesh.ECDSAP256)
	l.says("/certs", serial)
	if text, err := os.ReadFile(l.file("tls/current/haproxy.cfg")); err != nil || !strings.Contains(string(text), "crl-file") {
		t.Errorf("the lists in force did not stay (%v):\n%s", err, text)
	}
}

// TestInitOtherPlan: the Plan of another workload is refused, with --expect-id and without.
func TestInitOtherPlan(t *testing.T) {
	l := newWatchLab(t, "haproxy")
	l.put("v1", mesh.ECDSAP256)
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Directory: l.dir, Content: l.specification()}})
	l.ok(err)
	plan, err := spec.Compile("client")
	l.ok(err)
	text, err := json.Marshal(plan)
	l.ok(err)
	l.ok(os.WriteFile(l.file("plan.json"), text, 0o600))
	const own = "spiffe://shop.internal/service/orders"
	for _, test := range []struct {
		flags []string
		want  string
	}{
		{nil, `the leaf has the SPIFFE ID "` + own + `", and spiffe://shop.internal/service/client is expected`},
		{[]string{"--expect-id", own}, "the plan is another workload's: it is of spiffe://shop.internal/service/client, and " + own + " is expected"},
		{[]string{"--expect-id", own, "--watch", "--reload", "command:true"}, "the plan is another workload's"},
	} {
		output, err := initCommand(t, nil, l.args(append(l.conf(), test.flags...)...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(output), test.want) {
			t.Errorf("%q: %v\n%s", test.flags, err, output)
		}
		if _, err := os.Lstat(l.file("tls/current")); !os.IsNotExist(err) {
			t.Errorf("%q: something is in force (%v)", test.flags, err)
		}
	}
}
