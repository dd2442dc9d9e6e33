package integration

import (
	"context"
	"encoding/xml"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// pinned builds a program that tools/go.mod pins, unless it is built already, and gives its path.
func pinned(t *testing.T, name, pkg string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "tools", "bin", name))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // a first build downloads and compiles
	defer cancel()
	command := exec.CommandContext(ctx, "go", "-C", filepath.Join("..", "tools"), "build", "-o", path, pkg)
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := command.CombinedOutput()
	switch {
	case err == nil:
		return path
	case os.Getenv("CI") == "true":
		t.Fatalf("%s cannot be built, and CI=true wants every peer: go %v: %v\n%s", name, command.Args[1:], err, out)
	default:
		t.Skipf("NOT TESTED: %s cannot be built from tools/go.mod: %v\n%s", name, err, out)
	}
	return ""
}

// excepted are cases of h2spec that need not pass, with the reason. One that passes anyway fails the
// test, so that the list does not outlive its reasons.
var excepted = map[string]string{}

// h2spec passes wholly, against gateways, against inbound ports that ask for no certificate, and from
// the application's side.
func TestH2Spec(t *testing.T) {
	program := pinned(t, "h2spec", "github.com/summerwind/h2spec/cmd/h2spec")
	mesh := wire(t)
	doors := []door{
		{"gateway in plaintext", mesh.inbound(t, "edge", 8282), ""},
		{"gateway with a certificate", mesh.inbound(t, "edge", 8283), "h2"},
		{"without client certificates", mesh.inbound(t, "web", 9283), "h2"},
		{"outbound", mesh.outbound(t, "caller", "web", 9282), ""},
	}
	reports, said := make([]string, len(doors)), make([]string, len(doors))
	var running sync.WaitGroup
	for i, d := range doors { // at once, because h2spec waits most of the time
		reports[i] = filepath.Join(t.TempDir(), "junit.xml")
		host, number, err := net.SplitHostPort(d.address)
		if err != nil {
			t.Fatal(err)
		}
		args := []string{"-h", host, "-p", number, "-P", "/bytes/5000", "-o", "2", "-j", reports[i]}
		if d.alpn != "" {
			args = append(args, "-t", "-k")
		}
		running.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			defer cancel()
			out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
			said[i] = fmt.Sprintf("%v\n%s", err, out) // how it went stands in the report
		})
	}
	running.Wait()
	for i, d := range doors {
		t.Run(d.name, func(t *testing.T) { checkH2Spec(t, reports[i], said[i]) })
	}
}

// checkH2Spec compares a report with what is excepted.
func checkH2Spec(t *testing.T, report, said string) {
	t.Helper()
	cases := readJUnit(t, report)
	if len(cases) < 140 {
		t.Fatalf("h2spec ran %d cases: %s", len(cases), said)
	}
	for _, c := range cases {
		reason, isExcepted := excepted[c.id()]
		switch {
		case c.Failure != nil && !isExcepted:
			t.Errorf("%s: %s", c.id(), c.Failure.Text)
		case c.Failure == nil && isExcepted:
			t.Errorf("%s passes, and is excepted because %q", c.id(), reason)
		case c.Skipped != nil && !isExcepted:
			t.Errorf("%s was skipped", c.id())
		}
	}
	t.Logf("%d cases", len(cases))
}

// junitCase is one case of h2spec's report.
type junitCase struct {
	Package string `xml:"package,attr"`
	Class   string `xml:"classname,attr"`
	Failure *struct {
		Text string `xml:",chardata"`
	} `xml:"failure"`
	Skipped *struct{} `xml:"skipped"`
}

func (c junitCase) id() string { return c.Package + ": " + c.Class }

func readJUnit(t *testing.T, path string) []junitCase {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var report struct {
		Suites []struct {
			Cases []junitCase `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(data, &report); err != nil {
		t.Fatalf("h2spec's report: %v", err)
	}
	var all []junitCase
	for _, suite := range report.Suites {
		all = append(all, suite.Cases...)
	}
	return all
}

// The report is read rightly: what fails in it is found.
func TestReadJUnit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "junit.xml")
	const report = `<?xml version="1.0"?><testsuites><testsuite name="a">
<testcase package="http2/3.5" classname="good" time="0.1"></testcase>
<testcase package="http2/3.5" classname="bad" time="0.1"><failure>no GOAWAY</failure></testcase>
<testcase package="http2/3.5" classname="left out" time="0.1"><skipped></skipped></testcase>
</testsuite></testsuites>`
	if err := os.WriteFile(path, []byte(report), 0o600); err != nil {
		t.Fatal(err)
	}
	cases := readJUnit(t, path)
	if len(cases) != 3 || cases[0].Failure != nil || cases[0].Skipped != nil || cases[1].Failure == nil || cases[1].Failure.Text != "no GOAWAY" || cases[2].Skipped == nil || cases[1].id() != "http2/3.5: bad" {
		t.Errorf("the report is read as %+v", cases)
	}
}
