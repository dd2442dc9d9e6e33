package whole_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign.dev/aws/internal/awstest"
	"countersign.dev/aws/internal/awstest/acmfake"
	"countersign.dev/aws/internal/awstest/pcafake"
	"countersign.dev/mtls"
)

// acmLabSpecification is a mesh whose service has its certificates of ACM, in four secrets, and whose trust bundle is in a fifth.
const acmLabSpecification = `
mesh: MESH
revocation: none
stores: {vault: {type: secretsmanager}}
authorities: {pca: {type: acm, names: {w: w.MESH.example}, budget: {certificates: 5000}}}
certificates: {authority: pca}
services:
  w:
    ports: [{port: 8443, protocol: http, app: 8080}]
    proxy: {engine: nginx}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}", bundle: "{mesh}/bundle", layout: exported}
    deploy: {type: ecs, cluster: MESH}
`

// newACMLab is a lab for that. Its role may do everything: who may do what is for other tests.
func newACMLab(t *testing.T) *lab {
	t.Helper()
	labs.Lock()
	labs.n++
	name := fmt.Sprintf("lab%d-%d", os.Getpid(), labs.n)
	labs.Unlock()
	l := &lab{t: t, cloud: awstest.Start(t), pca: pcafake.New(pcafake.Options{PendingPolls: 1}), name: name, dir: t.TempDir(), services: []string{"w"}}
	l.connect()
	l.cloud.Mount("acm-pca", l.pca)
	l.cloud.Mount("acm", acmfake.New(acmfake.Options{Issuer: acmfake.Through(l.pca), PendingPolls: 1}))
	l.cloud.Mount("ecs", awstest.Moto(t))
	var err error
	if l.ca, err = l.pca.Add(pcafake.CA{}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.dir, "mesh.yaml"), []byte(strings.ReplaceAll(acmLabSpecification, "MESH", name)), 0o600); err != nil {
		t.Fatal(err)
	}
	(&world{t: t, cloud: l.cloud}).services(name, "w")
	l.cloud.PutRole(name+"-rotation", []byte(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`))
	l.assume()
	return l
}

// starts brings the current certificate into files as a task does, which proves it, and gives its serial.
func (l *lab) starts() string {
	l.t.Helper()
	path, err := faulty()
	if err != nil {
		l.t.Fatal(err)
	}
	to := l.t.TempDir()
	command := exec.CommandContext(l.t.Context(), path, "init", "--from", "secretsmanager:"+l.name+"/w", "--layout", "exported", "--bundle-from", "secret:"+l.name+"/bundle", "--to", to)
	command.Env = append([]string{"HOME=" + l.dir}, l.cloud.Env("root")...)
	var said bytes.Buffer
	command.Stdout, command.Stderr = &said, &said
	if err := command.Run(); err != nil {
		l.t.Fatalf("no task could start: %v\n%s", err, said.String())
	}
	text, err := os.ReadFile(filepath.Join(to, "current", "cert.pem"))
	if err != nil {
		l.t.Fatal(err)
	}
	chain, err := mtls.ParseCertificates(text)
	if err != nil {
		l.t.Fatal(err)
	}
	return mtls.Serial(chain[0])
}

// TestACMFaults lets each call of a rotation by ACM fail, one at a time: a task can start at any time, with what was proven; it is said
// what to do; and the next rotation ends the work, with one certificate.
func TestACMFaults(t *testing.T) {
	t.Parallel()
	const none = -1 // there are more than a hundred calls: only COUNTERSIGN_SOAK=1 tries all of them, which takes many minutes
	turns := []int{1, none, none, 3, none, none, none, 0, none, none, 4, none, none, 2, none, none, none}
	together(t, namesOf(lasting), func(t *testing.T, n int) {
		kind := lasting[n]
		if !soak() && !slices.Contains(turns, n) {
			t.Skip("only with COUNTERSIGN_SOAK=1")
		}
		l := newACMLab(t)
		if status, said := l.rotate(); status != 0 {
			t.Fatalf("%d\n%s", status, said)
		}
		sites := l.sites()
		began := time.Now()
		tried := chosen(sites, n, turns)
		for _, at := range tried {
			l.failsACM(at, kind)
			if t.Failed() {
				t.Fatalf("%s: %s", kind.name, at)
			}
		}
		t.Logf("%d of %d calls, %s", len(tried), len(sites), time.Since(began).Round(time.Second))
	})
}

func (l *lab) failsACM(at site, kind trouble) {
	l.t.Helper()
	before, issued := l.starts(), l.pca.Issued()
	l.faults.set(at, kind.fault)
	status, said := l.rotate("w", "--force")
	if !l.faults.end() {
		l.t.Fatalf("%s was not reached\n%s", at, said)
	}
	now := l.starts()
	switch status {
	case 1:
		for _, want := range kind.wants {
			l.says(said, strings.ReplaceAll(want, "ACTION", at.action))
		}
	case 0: // what comes after the end, and is done by the next one
		if now == before {
			l.t.Errorf("it has succeeded, and %s is current\n%s", now, said)
		}
	default:
		l.t.Errorf("status %d\n%s", status, said)
	}
	most := 1
	if strings.Contains(said, "is current again") {
		most++
	}
	args := []string{"w"}
	if now == before {
		args = append(args, "--force")
	}
	if status, said = l.rotate(args...); status != 0 {
		l.t.Fatalf("the next rotation: %d\n%s", status, said)
	}
	if after := l.starts(); after == before {
		l.t.Errorf("after the next rotation %s is current still\n%s", after, said)
	}
	if more := l.pca.Issued() - issued; more < 1 || more > most {
		l.t.Errorf("%d certificates were issued, want at most %d\n%s", more, most, said)
	}
}
