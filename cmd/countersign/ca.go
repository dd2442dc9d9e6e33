package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"countersign.dev/ca"
	"countersign.dev/id"
	"countersign.dev/mesh"
)

type caCmd struct {
	Init   caInitCmd   `cmd:"" help:"Make a CA, before the first start of a server."`
	Show   caShowCmd   `cmd:"" help:"Show the CA: its certificates, its pin, the journal's key."`
	Issue  caIssueCmd  `cmd:"" help:"Issue a certificate by the administrator's word."`
	List   caListCmd   `cmd:"" help:"List the certificates that were issued."`
	Revoke caRevokeCmd `cmd:"" help:"Revoke a certificate, or all of a workload."`
	CRL    caCRLCmd    `cmd:"" name:"crl" help:"Print the lists of revoked certificates (CRLs)."`

	Rotate caRotateCmd `cmd:"" help:"Replace the root, or the issuing CA, without breaking trust."`
	AWS    caAWSCmd    `cmd:"" name:"aws" help:"CAs in AWS Private CA: create, activate."`
}

// sealFlags say how the CA's private keys are stored. Commands that open them embed it.
type sealFlags struct {
	KeyFile        string `placeholder:"FILE" help:"The CA's keys are sealed with the age identity in this file." group:"How the CA's private keys are stored (say one):"`
	PassphraseFile string `placeholder:"FILE" help:"The CA's keys are sealed with the passphrase in the first line of this file." group:"How the CA's private keys are stored (say one):"`
	Unsealed       bool   `help:"The CA's keys are stored as they are, in files of mode 0600." group:"How the CA's private keys are stored (say one):"`
}

// sealChoices explains what a user has to say.
const sealChoices = `say how the CA's private keys are stored:
  --key-file FILE         sealed with an age identity; keep FILE away from the state and its backups
  --passphrase-file FILE  sealed with the passphrase in the first line of FILE (scrypt)
  --unsealed              not sealed: whoever reads the state's disk or a backup of it owns the mesh`

// sealer makes the sealer that the flags describe.
func (f sealFlags) sealer(p *process) (ca.Sealer, error) {
	switch said := f.given(); {
	case len(said) == 0:
		return nil, usagef("%s", sealChoices)
	case len(said) > 1:
		return nil, usagef("--key-file, --passphrase-file and --unsealed exclude one another; %s", sealChoices)
	case f.Unsealed:
		return ca.Unsealed(), nil
	}
	var sealer ca.Sealer
	var err error
	if f.KeyFile != "" {
		sealer, err = ca.KeyFile(f.KeyFile)
	} else {
		sealer, err = ca.PassphraseFile(f.PassphraseFile)
	}
	if err != nil {
		return nil, usageError{err}
	}
	p.warnReadable("--key-file", f.KeyFile)
	p.warnReadable("--passphrase-file", f.PassphraseFile)
	return sealer, nil
}

// warnReadable warns of a file with a secret that everybody on the machine may read. It is no more than a warning: a
// container's secrets are often mounted that way, and whoever runs in it cannot change that.
func (p *process) warnReadable(flag, path string) {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o004 == 0 {
		return // what is wrong with it is found when it is read
	}
	p.log.WarnContext(p.ctx, "everybody on this machine can read a file with a secret; narrow its mode", "flag", flag, "path", path,
		"mode", fmt.Sprintf("%04o", info.Mode().Perm()), "command", "chmod 600 "+path)
}

// given are those of the flags that stand on the command line.
func (f sealFlags) given() []string {
	var flags []string
	for _, flag := range []struct {
		name  string
		given bool
	}{{"--key-file", f.KeyFile != ""}, {"--passphrase-file", f.PassphraseFile != ""}, {"--unsealed", f.Unsealed}} {
		if flag.given {
			flags = append(flags, flag.name)
		}
	}
	return flags
}

// idle remarks that flags say nothing to a server that runs, which has opened the CA long ago. They are no mistake: what
// has to be done in any case, as a revocation has, is asked for in one way with a server and without.
func (f sealFlags) idle(p *process) {
	for _, flag := range f.given() {
		fmt.Fprintf(p.stderr, "note: %s says nothing here: a server runs on the CA, and has opened it\n", flag)
	}
}

// hint is what to repeat on the command line of the next command.
func (f sealFlags) hint() string {
	switch {
	case f.KeyFile != "":
		return "--key-file " + f.KeyFile
	case f.PassphraseFile != "":
		return "--passphrase-file " + f.PassphraseFile
	default:
		return "--unsealed"
	}
}

// outputFlag is how a command writes what a script would read.
type outputFlag struct {
	Output string `help:"How the result is written: ${enum}." enum:"text,json" default:"text"`
}

func (f outputFlag) json() bool { return f.Output == "json" }

type caInitCmd struct {
	State       string        `required:"" placeholder:"DIR" help:"Where the server will keep its state; made when it is missing."`
	TrustDomain string        `placeholder:"NAME" help:"The trust domain to issue for. Without it, and without --mesh, the first start of a server settles it."`
	Mesh        string        `placeholder:"PATH" help:"Take the trust domain of this specification."`
	Key         string        `enum:"ecdsa-p256,ecdsa-p384,rsa-3072,rsa-4096,ed25519" default:"ecdsa-p256" help:"The type of the CA's two keys: ${enum}."`
	RootLife    time.Duration `default:"87600h" help:"How long the root's certificate is valid."`
	IssuerLife  time.Duration `default:"26280h" help:"How long the issuing CA's certificate is valid. No leaf outlives it."`
	sealFlags
	outputFlag
}

// Help is what --help adds.
func (caInitCmd) Help() string {
	return `Makes a root, an issuing CA below it, and the journal that everything is recorded in. A CA that is there
is never touched. With --key-file, a file that does not exist is made; it must not lie in the state.

The root's key, STATE/ca/root.key, is needed again only to make another issuing CA, and the root's list of
revoked ones: move it to a safe place, and bring it for "countersign ca rotate issuer" or "countersign ca crl"
when status asks for it.

Examples:
  countersign ca init --state /var/lib/countersign --mesh mesh.yaml --key-file /run/keys/ca.age
  countersign ca init --state ./state --trust-domain colorapp.internal --unsealed`
}

// Run makes the CA.
func (c caInitCmd) Run(p *process) error {
	trustDomain, err := c.trustDomain(p)
	if err != nil {
		return err
	}
	switch {
	case c.RootLife < time.Hour || c.IssuerLife < time.Hour:
		return usagef("--root-life and --issuer-life are at least 1h")
	case c.IssuerLife > c.RootLife:
		return usagef("--issuer-life %s is longer than --root-life %s", c.IssuerLife, c.RootLife)
	}
	if _, err := ca.Read(c.State); !errors.Is(err, ca.ErrNoCA) {
		if err == nil {
			err = fmt.Errorf("%w in %s; it is kept. Use it, or give another --state", ca.ErrExists, c.State)
		}
		return err
	}
	if err := c.makeKeyFile(p); err != nil {
		return err
	}
	sealer, err := c.sealer(p)
	if err != nil {
		return err
	}
	authority, err := ca.Init(c.State, ca.InitConfig{
		TrustDomain: trustDomain,
		Seal:        sealer,
		KeyType:     mesh.KeyType(c.Key),
		RootLife:    c.RootLife,
		IssuerLife:  c.IssuerLife,
	})
	if err != nil {
		return err
	}
	shown, err := showAuthority(authority)
	if err != nil {
		return err
	}
	if c.json() {
		return writeJSON(p, shown)
	}
	if err := shown.write(p.stdout); err != nil {
		return err
	}
	_, err = fmt.Fprintf(p.stdout, "\nNext: countersign server --state %s --mesh PATH --listen ADDR %s\n", c.State, c.hint())
	return err
}

func (c caInitCmd) trustDomain(p *process) (string, error) {
	switch {
	case c.TrustDomain != "" && c.Mesh != "":
		return "", usagef("--trust-domain and --mesh exclude one another")
	case c.Mesh != "":
		spec, err := loadSpec(p, c.Mesh)
		if err != nil {
			return "", err
		}
		return spec.TrustDomain, nil
	case c.TrustDomain != "":
		if err := id.CheckTrustDomain(c.TrustDomain); err != nil {
			return "", usagef("--trust-domain: %w", err)
		}
	}
	return c.TrustDomain, nil
}

// makeKeyFile makes the key file when there is none: a CA is often the first thing that a person makes,
// and age-keygen may not be at hand.
func (c caInitCmd) makeKeyFile(p *process) error {
	if c.KeyFile == "" || c.PassphraseFile != "" || c.Unsealed {
		return nil
	}
	if _, err := os.Lstat(c.KeyFile); !errors.Is(err, fs.ErrNotExist) {
		return nil // what it holds is looked at by sealer
	}
	state, err := filepath.Abs(c.State)
	if err != nil {
		return err
	}
	file, err := filepath.Abs(c.KeyFile)
	if err != nil {
		return err
	}
	if file == state || strings.HasPrefix(file, state+string(filepath.Separator)) {
		return usagef("--key-file %s lies in the state that it is to seal; keep it somewhere else, and out of the state's backups", c.KeyFile)
	}
	if err := ca.GenerateKeyFile(c.KeyFile); err != nil {
		return usageError{err}
	}
	p.log.InfoContext(p.ctx, "made a new key file; without it the CA's keys are lost", "path", c.KeyFile)
	return nil
}

// writeJSON writes a value as one indented JSON text.
func writeJSON(p *process, value any) error {
	encoder := json.NewEncoder(p.stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}
