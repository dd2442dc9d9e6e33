package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"countersign.dev/credential"
	"countersign.dev/deliver"
	"countersign.dev/durable"
	"countersign.dev/id"
	"countersign.dev/mtls"
)

type initCmd struct {
	From       string `placeholder:"SOURCE" help:"Where certificate and key come from: env, the environment, as ECS injects secrets; file:DIR, an encrypted store; or secretsmanager:NAME-OR-ARN, a secret of AWS Secrets Manager. Needed, but on ECS the default is secretsmanager: and what COUNTERSIGN_SECRET names."`
	BundleFrom string `placeholder:"SOURCE" help:"Takes the roots from elsewhere: env:NAME, a variable, pem:FILE, a file, or secret:NAME, a secret of the store. Default: from where the certificate comes from."`
	To         string `required:"" placeholder:"DIR" help:"The directory, best on a memory disk, whose link DIR/current leads to the files."`

	initStoreFlags
	initEngineFlags
	initWatchFlags

	CertEnv       string `default:"CERT_PEM" placeholder:"NAME" help:"The variable with the leaf and its issuers. Default: ${default}."`
	ChainEnv      string `default:"CHAIN_PEM" placeholder:"NAME" help:"The variable with the issuers, where they are apart from the leaf; it may be missing. Default: ${default}."`
	KeyEnv        string `default:"KEY_PEM" placeholder:"NAME" help:"The variable with the private key. Default: ${default}."`
	PassphraseEnv string `default:"KEY_PASSPHRASE" placeholder:"NAME" help:"The variable with what opens an encrypted key; it may be missing. Default: ${default}."`
	BundleEnv     string `default:"CA_BUNDLE" placeholder:"NAME" help:"The variable with the roots. Default: ${default}."`

	ExpectID     string        `name:"expect-id" placeholder:"SPIFFE-ID" help:"The SPIFFE ID that the certificate has to have. Default: any, or with --conf that of the Plan's workload."`
	ExpectName   []string      `sep:"none" placeholder:"DNS-NAME" help:"A DNS name that the certificate has to be valid for. May be repeated."`
	MinRemaining time.Duration `default:"0s" help:"How long the certificate, its issuers and a root of theirs have to be valid from now on. Default: ${default}."`

	Mode   string `default:"0600" placeholder:"MODE" help:"The mode of the files with the private key: 0600, or 0640 for a group. Default: ${default}."`
	Owner  string `placeholder:"UID[:GID]" help:"Gives the files to this user and group, in numbers. That needs a privilege: better run init as the proxy's user. Default: as they are made."`
	PKCS12 bool   `name:"pkcs12" help:"Also write identity.p12, for Java, and its passphrase, which is made anew each time."`

	// dnsIdentity is the DNS name that the leaf has to have instead of a SPIFFE ID.
	dnsIdentity string

	HandedOver int `hidden:"" default:"0" help:"The descriptor from which a process that has cleaned its environment gets the values."`
}

// Help is what --help adds.
func (initCmd) Help() string {
	return `The init container of a proxy that is not ours: takes certificate, private key and roots, repairs what a
transport does to such texts, checks that they belong together and will do, writes them in one step and
ends. DIR/current then has cert.pem (leaf and issuers), key.pem, ca.pem and cert-and-key.pem. When
anything is wrong, the message says what to mend, the exit status is 1, and what was in DIR stays in
force. No message holds a value.

The environment of a process can be read for as long as it lives; therefore with --from env this one starts
itself anew with an empty one before it does anything else, and gets the values through a pipe.

With --from secretsmanager:NAME the secret is read by the credentials of the process, on ECS those of the
task role. The values of ECS 'secrets' (--from env) are read by the execution role, before this starts.

With --watch it stays, as the sidecar of NGINX or HAProxy: it sees each new version in the store, checks and
writes it, lets the proxy test it, reloads the proxy, and makes full handshakes until the new serial is
served. What the proxy does not take is undone. --conf writes the proxy's configuration as well.

Exit status: 0; 1 when a certificate, a key or a file is wrong; 2 for a mistake in what was asked for.

Examples:
  countersign init --from env --to /run/tls
  countersign init --from env --bundle-from pem:/etc/roots.pem --expect-id spiffe://shop.internal/service/orders --to /run/tls
  countersign init --from file:/secrets --identity-file /run/keys/secrets.age --secret shop/orders --layout json --to /run/tls
  countersign init --from secretsmanager:shop/orders --region eu-central-1 --to /run/tls
  countersign init --to /run/tls --engine nginx --conf /run/conf --plan env:COUNTERSIGN_PLAN --endpoint catalog:9000=catalog.internal:9000
  countersign init --from file:/secrets --identity-file /run/keys/secrets.age --secret shop/orders --layout json --to /run/tls \
    --engine nginx --conf /run/conf --plan plan.json --crl crl.pem
  countersign init --from file:/secrets --identity-file /run/keys/secrets.age --secret shop/orders --layout json --to /run/tls \
    --watch --engine nginx --reload pidfile:/run/nginx.pid --test 'nginx -t' --probe 10.0.1.17:8443 --admin 127.0.0.1:9901`
}

// initInputs are the names by which a source is asked for each value.
type initInputs struct {
	cert, chain, key, passphrase, bundle string
}

// Run does the whole.
func (c initCmd) Run(p *process) error {
	c, err := c.settled()
	if err != nil {
		return err
	}
	out, err := c.output()
	if err != nil {
		return err
	}
	if err := c.checkSource(); err != nil {
		return err
	}
	if err := c.checkExpected(); err != nil {
		return err
	}
	if c.HandedOver != 0 {
		if c.variables, err = receive(c.HandedOver); err != nil {
			return err
		}
	}
	if err := c.checkWatch(); err != nil {
		return err
	}
	if c.Watch {
		return c.watch(p, out)
	}
	conf, err := c.writer(c.To, false, func(notes []string) { writeNotes(p, notes) })
	if err != nil {
		return err
	}
	if conf != nil {
		if err := deliver.CheckPlan(conf.plan, c.ExpectID); err != nil {
			return err
		}
		switch dns := conf.plan.Certificate.DNSIdentity; {
		case dns != "":
			c.dnsIdentity = dns
		case c.ExpectID == "":
			c.ExpectID = conf.plan.Workload.Identity.String()
		}
	}
	source, err := c.openSource(p.ctx)
	if err != nil {
		return err
	}
	offer, err := source.Offer(p.ctx)
	if err != nil {
		return c.hinted(err)
	}
	cred, err := offer.Check(c.expect())
	if err != nil {
		return c.hinted(err)
	}
	if conf != nil {
		if err := conf.place(p.ctx); err != nil {
			return err
		}
	}
	if err := p.ctx.Err(); err != nil {
		return fmt.Errorf("ended before anything was written: %w", err)
	}
	if err := c.write(p, out, conf, offer, cred); err != nil {
		return err
	}
	return c.describe(p, cred)
}

// write makes the files of a credential, and with conf of the proxy's configuration, the generation in force.
func (c initCmd) write(p *process, out credential.Output, conf *writer, offer *deliver.Offer, cred *credential.Credential) (err error) {
	var lists, configuration []byte
	if conf == nil {
		lists, err = c.lists()
	} else {
		lists, err = c.listsFor(conf.plan)
	}
	if err != nil {
		return err
	}
	if lists != nil {
		out.Further = append(out.Further, durable.File{Name: deliver.RevocationFile, Data: lists, Perm: 0o644})
	}
	var link confLink
	if conf != nil {
		if configuration, err = conf.text(conf.plan, lists != nil); err != nil {
			return err
		}
		if link, err = conf.prepare(); err != nil {
			return err
		}
		defer link.drop()
		if conf.plan.Revocation.Check && lists == nil {
			p.log.WarnContext(p.ctx, "the specification wants revoked callers refused, and nobody is looked up without revocation lists; give --crl")
		}
		out.Further = append(out.Further, conf.file(configuration))
	}
	if c.fromStore() {
		out.Further = append(out.Further, offer.Made(cred, configuration, lists).File())
	}
	if err := cred.Write(out); err != nil {
		return fmt.Errorf("writing the files (--to): %w", err)
	}
	return link.put()
}

// expect is what the flags ask of the credential.
func (c initCmd) expect() credential.Expect {
	return credential.Expect{Now: time.Now(), MinRemaining: c.MinRemaining, ID: c.ExpectID, DNSNames: c.ExpectName, DNSIdentity: c.dnsIdentity}
}

// open finds the environment, or what was handed over of it, and what it calls the values.
func (c initCmd) open() (secretSource, initInputs) {
	inputs := initInputs{cert: c.CertEnv, chain: c.ChainEnv, key: c.KeyEnv, passphrase: c.PassphraseEnv, bundle: c.BundleEnv}
	if c.variables == nil {
		return environment{}, inputs
	}
	return c.variables, inputs
}

// read asks the sources for all values.
func (c initCmd) read(ctx context.Context, source secretSource, names initInputs) (credential.Input, error) {
	var in credential.Input
	var missing []error
	for _, value := range []struct {
		to          *credential.Value
		name, field string
		optional    bool
	}{
		{&in.Certificate, names.cert, "cert_pem", false},
		{&in.Chain, names.chain, "chain_pem", true},
		{&in.Key, names.key, "key_pem", false},
		{&in.Passphrase, names.passphrase, "key_passphrase", true},
	} {
		data, _, err := source.Read(ctx, value.name, "")
		if err != nil && (!value.optional || !errors.Is(err, fs.ErrNotExist)) {
			missing = append(missing, err)
		}
		*value.to = credential.Value{Name: value.name, Field: value.field, Data: data}
	}
	var err error
	in.Bundle, err = c.readBundle(ctx, source, names.bundle)
	return in, errors.Join(append(missing, err)...)
}

// readBundle asks for the roots, in the source that --bundle-from names.
func (c initCmd) readBundle(ctx context.Context, source secretSource, name string) (credential.Value, error) {
	const field = "ca_bundle"
	kind, rest, _ := strings.Cut(c.BundleFrom, ":")
	switch {
	case c.BundleFrom == "":
	case kind == "pem":
		data, err := readRoots(rest)
		return credential.Value{Name: rest, Field: field, Data: data}, err
	default:
		name = c.bundleVariable()
	}
	data, _, err := source.Read(ctx, name, "")
	return credential.Value{Name: name, Field: field, Data: data}, err
}

// maxRoots is the greatest size of a file with roots in bytes.
const maxRoots = 1 << 20

// readRoots reads a file that a deployment has put there. To open a named pipe would wait for somebody to write into it,
// and no signal would end that.
func readRoots(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("reading the roots: %w; see that --bundle-from names a file with them that can be read here", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading the roots: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("reading the roots: %s is not an ordinary file; see that --bundle-from names one", name)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxRoots+1))
	if err != nil {
		return nil, fmt.Errorf("reading the roots: %w", err)
	}
	if len(data) > maxRoots {
		return nil, fmt.Errorf("reading the roots: %s has more than %d bytes; see that --bundle-from names the right file", name, maxRoots)
	}
	return data, nil
}

// bundleVariable is the variable with the roots.
func (c initCmd) bundleVariable() string {
	if name, ok := strings.CutPrefix(c.BundleFrom, "env:"); ok {
		return name
	}
	return c.BundleEnv
}

// checkExpected refuses expectations that no certificate could fulfil.
func (c initCmd) checkExpected() error {
	if c.ExpectID != "" {
		parsed, err := url.Parse(c.ExpectID)
		if err != nil || parsed.Scheme != "spiffe" || parsed.Host == "" || parsed.Path == "" || parsed.RawQuery != "" || parsed.Fragment != "" || parsed.String() != c.ExpectID {
			return usagef("--expect-id %q is not a SPIFFE ID: write spiffe://TRUST-DOMAIN/PATH", c.ExpectID)
		}
	}
	for _, name := range c.ExpectName {
		if err := id.CheckDNSName(name); err != nil {
			return usagef("--expect-name: %w", err)
		}
	}
	if c.MinRemaining < 0 {
		return usagef("--min-remaining %s is less than nothing", c.MinRemaining)
	}
	kind, rest, _ := strings.Cut(c.BundleFrom, ":")
	if c.BundleFrom != "" && (rest == "" || (kind != "env" && kind != "pem" && kind != "secret")) {
		return usagef("--bundle-from %q is none of env:NAME, pem:FILE and secret:NAME", c.BundleFrom)
	}
	return c.checkVariables()
}

// checkVariables refuses names that no variable can have.
func (c initCmd) checkVariables() error {
	for _, variable := range []struct{ flag, name string }{
		{"--cert-env", c.CertEnv},
		{"--chain-env", c.ChainEnv},
		{"--key-env", c.KeyEnv},
		{"--passphrase-env", c.PassphraseEnv},
		{"--bundle-env", c.BundleEnv},
		{"--bundle-from", c.bundleVariable()},
	} {
		if variable.name == "" || strings.Contains(variable.name, "=") {
			return usagef("%s: %q is not the name of a variable; leave the flag out for the usual one", variable.flag, variable.name)
		}
	}
	return nil
}

// output reads the flags about files.
func (c initCmd) output() (credential.Output, error) {
	out := credential.Output{Dir: c.To, UID: -1, GID: -1, PKCS12: c.PKCS12}
	if c.To == "" {
		return out, usagef("--to is empty; name the directory that gets the files")
	}
	mode, err := strconv.ParseUint(c.Mode, 8, 32)
	if err != nil {
		return out, usagef("--mode %q is not a mode: write 0600 or 0640", c.Mode)
	}
	out.Mode = fs.FileMode(mode)
	if err := credential.CheckMode(out.Mode); err != nil {
		return out, usageError{err}
	}
	if c.Owner == "" {
		return out, nil
	}
	uid, gid, both := strings.Cut(c.Owner, ":")
	if out.UID, err = number(uid); err == nil && both {
		out.GID, err = number(gid)
	}
	if err != nil {
		return out, usagef("--owner %q: write UID or UID:GID, in numbers; an empty image knows no names", c.Owner)
	}
	return out, nil
}

// writeNotes says in which points a proxy does less than a specification may be read to say.
func writeNotes(p *process, notes []string) {
	for _, note := range notes {
		fmt.Fprintf(p.stderr, "note: %s\n", note)
	}
}

// number reads a user's or a group's number.
func number(text string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 31)
	return int(n), err
}

// describe says what was done.
func (c initCmd) describe(p *process, cred *credential.Credential) error {
	for _, note := range cred.Notes {
		level := slog.LevelInfo
		if note.Usual {
			level = slog.LevelDebug
		}
		p.log.Log(p.ctx, level, "repaired", "value", note.Text)
	}
	leaf := cred.Leaf()
	var names []string
	for _, uri := range leaf.URIs {
		names = append(names, uri.String())
	}
	for _, name := range leaf.DNSNames {
		if id.CheckDNSName(name) != nil {
			name = strconv.Quote(name) // a certificate of somebody else may have anything there, also what moves a cursor
		}
		names = append(names, name)
	}
	_, err := fmt.Fprintf(p.stdout, "%s\nserial %s, valid to %s\n%s\n", strings.Join(names, ", "), mtls.Serial(leaf), leaf.NotAfter.UTC().Format(time.RFC3339), filepath.Join(c.To, "current"))
	return err
}

// secretSource is where values come from: an environment, a store.
type secretSource interface {
	// Read gives the value of a name, at a version or, when that is empty, the current one, and what the version is
	// called. What is not there is fs.ErrNotExist.
	Read(ctx context.Context, name, version string) (value []byte, versionID string, err error)
}

// environment is the variables of this process. They have no versions.
type environment struct{}

func (environment) Read(_ context.Context, name, _ string) ([]byte, string, error) {
	value, ok := os.LookupEnv(name)
	if !ok {
		return nil, "", unset(name)
	}
	return []byte(value), "", nil
}

// unset says that there is no variable of a name. It is fs.ErrNotExist.
type unset string

func (u unset) Error() string {
	return string(u) + ": the variable is not set; put the secret into it, or name another one (--cert-env, --key-env, --bundle-env)"
}

func (unset) Is(target error) bool { return target == fs.ErrNotExist }
