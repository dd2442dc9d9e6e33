package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// The lab is one mesh that many tests share, because starting one takes seconds. A test that changes
// or breaks a mesh starts its own.
//
//	caller    has no application: the tests dial its outbound listeners
//	stranger  dials the same, but nobody allows it
//	recorder  HTTP/1.1 (9080), HTTP/2 (9082), gRPC (9090), TCP (7000), and HTTP/1.1 permissive (9081)
//	edge      a gateway in front of all of them
func labSpec() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	run := func(role string, port int) string {
		return fmt.Sprintf(`{command: [%q], env: {%s: %s, %s: "${APP_ADDRESS_%d}"}}`, self, envRole, role, envListen, port)
	}
	calls := func(base int) string {
		return fmt.Sprintf(`
      - {service: recorder, port: 9080, listen: %d}
      - {service: recorder, port: 9081, listen: %d}
      - {service: modern, listen: %d}
      - {service: rpc, listen: %d}
      - {service: lines, listen: %d}`, base, base+1, base+2, base+3, base+4)
	}
	allow := "allow: [{from: [caller, edge]}]"
	return `mesh: lab
services:
  caller:
    ports: [{port: 9000, protocol: tcp}]
    calls:` + calls(9100) + `
  stranger:
    ports: [{port: 9000, protocol: tcp}]
    calls:` + calls(9200) + `
  recorder:
    ports:
      - {port: 9080, protocol: http}
      - {port: 9081, protocol: http, app: 9080, tls: permissive, allow: [{from: [caller, anonymous]}]}
    ` + allow + `
    run: ` + run("http", 9080) + `
  modern:
    ports: [{port: 9082, protocol: http2}]
    ` + allow + `
    run: ` + run("http", 9082) + `
  rpc:
    ports: [{port: 9090, protocol: grpc}]
    ` + allow + `
    run: ` + run("grpc", 9090) + `
  lines:
    ports: [{port: 7000, protocol: tcp}]
    ` + allow + `
    run: ` + run("tcp", 7000) + `
gateways:
  edge:
    listen:
      - {port: 8080, protocol: http}
      - {port: 8082, protocol: http2}
      - {port: 8090, protocol: grpc}
      - {port: 7070, protocol: tcp}
    routes:
      - {match: {listener: 8080, prefix: /}, to: [{service: recorder, port: 9080}]}
      - {match: {listener: 8082, prefix: /}, to: [{service: modern}]}
      - {match: {listener: 8090, prefix: /}, to: [{service: rpc}]}
      - {match: {listener: 7070}, to: [{service: lines}]}
`, nil
}

var theLab struct {
	once sync.Once
	dir  string
	mesh *running
	err  error
}

// lab starts the shared mesh, or gives the one that runs.
func lab(t *testing.T) *running {
	t.Helper()
	theLab.once.Do(func() { theLab.mesh, theLab.err = startLab() })
	if theLab.err != nil {
		t.Fatalf("the shared mesh: %v", theLab.err)
	}
	return theLab.mesh
}

func startLab() (*running, error) {
	dir, err := os.MkdirTemp("", "countersign-lab-")
	if err != nil {
		return nil, err
	}
	theLab.dir = dir
	spec, err := labSpec()
	if err != nil {
		return nil, err
	}
	path, logs := filepath.Join(dir, "mesh.yaml"), filepath.Join(dir, "logs")
	if err := os.WriteFile(path, []byte(spec), 0o600); err != nil {
		return nil, err
	}
	if err := os.Mkdir(logs, 0o700); err != nil {
		return nil, err
	}
	return launch(path, logs)
}

// stopLab ends the shared meshes, if tests have started them, as a user would.
func stopLab() error {
	defer func() { _ = os.RemoveAll(theLab.dir) }()
	err := stopWire()
	if theLab.mesh == nil {
		return err
	}
	failed := theLab.mesh.stop(syscall.SIGINT)
	if failed != nil {
		fmt.Fprintln(os.Stderr, theLab.mesh.tails())
	}
	return errors.Join(err, failed)
}
