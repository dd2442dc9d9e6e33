package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"countersign.dev/api"
	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/server"
)

type serverCmd struct {
	State     string   `required:"" placeholder:"DIR" help:"The state that 'countersign ca init' has made."`
	Mesh      string   `placeholder:"PATH" help:"The specification, a file or a directory. What 'mesh apply' has changed since outlives a restart, until PATH itself changes. Not needed when a specification has run in DIR before."`
	Listen    string   `required:"" placeholder:"HOST:PORT" help:"Where agents connect (HTTPS). Port 0 is any that is free."`
	Socket    string   `placeholder:"PATH" help:"The administrator's socket. Default: server.sock in the state."`
	CRLListen string   `name:"crl-listen" placeholder:"HOST:PORT" help:"Serve the revocation lists over plain HTTP there, /crl/issuer.crl and /crl/root.crl (DER), for those who are no agents. Default: nowhere."`
	Name      []string `placeholder:"DNS" help:"A further DNS name for the server's own certificate; may be repeated."`
	// FixedTopology is what `up` says: it starts no further processes for a server that runs.
	FixedTopology bool `help:"Refuse to apply what changes workloads, instances, ports or run."`
	sealFlags
	outputFlag
}

// Help is what --help adds.
func (serverCmd) Help() string {
	return `The control plane: lets workloads in by join tokens, issues and renews their certificates, tells each its
Plan, and hears what each really serves. It answers 'status', 'verify', 'mesh apply', 'token create' and
'audit log' on a UNIX socket that only its own user can open. Everything that it issues, refuses or applies
is recorded in a signed journal first. Workloads serve on without it for as long as their certificates live.

When it is ready, it writes one line to standard output: where agents find it and the pin that they
need, with --output json as a JSON object. SIGTERM ends it in good order.

Examples:
  countersign ca init --state ./state --mesh mesh.yaml --key-file ca.age
  countersign server --state ./state --mesh mesh.yaml --listen 10.0.0.5:8443 --key-file ca.age
  countersign server --state ./state --mesh mesh.yaml --listen 0.0.0.0:8443 --name control.example.com --unsealed`
}

// Run serves until a signal.
func (c serverCmd) Run(p *process) error {
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return usagef("--listen %q is not of the form HOST:PORT", c.Listen)
	}
	if _, _, err := net.SplitHostPort(c.CRLListen); c.CRLListen != "" && err != nil {
		return usagef("--crl-listen %q is not of the form HOST:PORT", c.CRLListen)
	}
	for _, name := range c.Name {
		if err := id.CheckDNSName(name); err != nil {
			return usagef("--name: %w", err)
		}
	}
	seal, err := c.sealer(p)
	if err != nil {
		return err
	}
	s, err := server.New(p.ctx, server.Config{
		State: c.State, Mesh: c.Mesh, Listen: c.Listen, CRLListen: c.CRLListen, Socket: c.Socket, Names: c.Name,
		Seal: seal, FixedTopology: c.FixedTopology, Log: p.log,
	})
	if err != nil {
		return startError(p, err)
	}
	if err := c.ready(p, s.Info()); err != nil {
		return errors.Join(err, s.Close())
	}
	return s.Run(p.ctx)
}

// startError tells what is wrong with the specification in its own form, one error a line.
func startError(p *process, err error) error {
	if _, ok := errors.AsType[mesh.Errors](err); ok || errors.Is(err, mesh.ErrForeignAuthority) {
		return invalidSpecification(p, err)
	}
	if errors.Is(err, server.ErrNoMesh) || errors.Is(err, server.ErrReadMesh) {
		return usageError{err}
	}
	return err
}

// ready says that connections are taken, and where.
func (c serverCmd) ready(p *process, info server.Info) error {
	if c.json() {
		return json.NewEncoder(p.stdout).Encode(info)
	}
	if info.CRL != "" {
		p.log.InfoContext(p.ctx, "the revocation lists are served", "issuer", info.CRL+api.PathIssuerCRL, "root", info.CRL+api.PathRootCRL)
	}
	_, err := fmt.Fprintf(p.stdout, "mesh %s: server ready at %s, --ca-pin %s, socket %s\n", info.Mesh, info.URL, info.CAPin, info.Socket)
	return err
}
