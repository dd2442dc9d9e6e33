package main

import (
	"bufio"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"golang.org/x/term"

	"countersign.dev/aws/acmpca"
	"countersign.dev/durable"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

type caAWSCmd struct {
	Create   caAWSCreateCmd   `cmd:"" help:"Make a CA in AWS Private CA, and give it its certificate."`
	Activate caAWSActivateCmd `cmd:"" help:"Give a CA in AWS Private CA its certificate."`
}

// pcaFlags say where AWS is asked, and that what it takes is agreed to.
type pcaFlags struct {
	EndpointURL string `name:"endpoint-url" placeholder:"URL" help:"Ask there rather than AWS, such as a double of it or an interface endpoint. Default: AWS, or AWS_ENDPOINT_URL."`
	Yes         bool   `help:"Agree to what AWS takes for it. Without a terminal it has to be said here."`
	outputFlag
}

type caAWSCreateCmd struct {
	Type               string        `enum:"root,subordinate" default:"root" help:"What it is: ${enum}."`
	CommonName         string        `required:"" placeholder:"NAME" help:"The CN of its subject." group:"The subject of the CA:"`
	Organization       string        `placeholder:"NAME" help:"Its O." group:"The subject of the CA:"`
	OrganizationalUnit string        `placeholder:"NAME" help:"Its OU." group:"The subject of the CA:"`
	Country            string        `placeholder:"CC" help:"Its C, two letters." group:"The subject of the CA:"`
	Province           string        `placeholder:"NAME" help:"Its ST: state or province." group:"The subject of the CA:"`
	Locality           string        `placeholder:"NAME" help:"Its L." group:"The subject of the CA:"`
	KeyAlgorithm       string        `default:"EC_secp384r1" placeholder:"NAME" help:"The kind of its key, by AWS's name: EC_secp384r1, EC_prime256v1, EC_secp521r1, RSA_2048, RSA_3072 or RSA_4096. Default: ${default}."`
	Mode               string        `enum:"general-purpose,short-lived" default:"general-purpose" help:"What it may issue: ${enum}. A short-lived one issues for at most 7 days, and costs less."`
	Validity           time.Duration `placeholder:"TIME" help:"How long its own certificate is valid, such as 3650d. Default: 3650d for a root, 1095d below --parent."`
	Parent             string        `placeholder:"ARN" help:"For a subordinate: the CA that signs it. Without it one outside of AWS does, with --csr-out and activate."`
	CSROut             string        `name:"csr-out" placeholder:"FILE" help:"For a subordinate without --parent: where the certificate request is written that somebody else is to sign."`
	Idempotency        string        `placeholder:"TOKEN" help:"A name for this CA: the same command with the same name makes no second one. Default: one that follows from the other flags."`
	Region             string        `placeholder:"NAME" help:"The region to make it in. Default: that of the environment (AWS_REGION)."`
	pcaFlags
}

// Help is what --help adds.
func (caAWSCreateCmd) Help() string {
	return `Makes a CA in AWS Private CA whose keys never leave it. A root signs itself, a subordinate is signed by --parent,
and both issue at once. Without --parent, a subordinate's certificate request is written to --csr-out; when
somebody has signed it: countersign ca aws activate.

AWS takes money for a CA for as long as it exists, and for each certificate: the command says how much, and
asks. It may be repeated after it was cut off at any point: it finds the CA that it has made by a tag, and goes on
with it. Credentials are taken as the tools of AWS take them.

Examples:
  countersign ca aws create --common-name "Payments root" --organization Example --mode short-lived
  countersign ca aws create --type subordinate --common-name "Payments issuing" --parent "$ROOT_ARN" --yes
  countersign ca aws create --type subordinate --common-name "Payments issuing" --csr-out issuing.csr`
}

// Times that a CA's certificate is valid when nothing is said.
const (
	defaultRootLife = 3650 * 24 * time.Hour
	defaultSubLife  = 1095 * 24 * time.Hour
)

var (
	idempotencyForm = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,36}$`)
	countryForm     = regexp.MustCompile(`^[A-Z]{2}$`)
)

// Run makes the CA.
func (c caAWSCreateCmd) Run(p *process) error {
	if err := c.check(); err != nil {
		return err
	}
	admin, err := acmpca.OpenAdmin(p.ctx, acmpca.AdminConfig{Region: c.Region, Endpoint: c.EndpointURL})
	if err != nil {
		return usageError{badAWS(err, regionByFlag)}
	}
	wanted := acmpca.NewCA{
		Type: c.Type, Mode: c.Mode, KeyAlgorithm: c.KeyAlgorithm, Token: c.Idempotency, Parent: c.Parent,
		Subject: acmpca.Subject{
			CommonName: c.CommonName, Organization: c.Organization, OrganizationalUnit: c.OrganizationalUnit,
			Country: c.Country, State: c.Province, Locality: c.Locality,
		},
	}
	found, err := admin.Find(p.ctx, wanted)
	if err != nil {
		return err
	}
	var state acmpca.State
	if found != nil {
		fmt.Fprintf(p.stderr, "countersign: this command has made %s before, and goes on with it; for another one, give another --idempotency\n", found.ARN)
		if state, err = admin.Describe(p.ctx, found.ARN); err != nil { // it may still be in the making
			return err
		}
	} else if state, err = c.make(p, admin, wanted); err != nil {
		return err
	}
	switch {
	case state.Active():
	case !state.Pending():
		return fmt.Errorf("%s is in the state %s; look after it with the tools of AWS, or give another --idempotency to make another one", state.ARN, state.Status)
	case c.Type == acmpca.TypeSubordinate && c.Parent == "":
		csr, err := admin.CSR(p.ctx, state.ARN)
		if err != nil {
			return err
		}
		if err := durable.WriteFile(c.CSROut, csr, 0o644); err != nil {
			return fmt.Errorf("%s is made; writing its certificate request: %w; repeat the command", state.ARN, err)
		}
	default:
		if err := admin.Sign(p.ctx, state.ARN, c.Parent, c.Validity); err != nil {
			return fmt.Errorf("%s is made and has no certificate yet: %w; repeat the command, which goes on with it", state.ARN, err)
		}
		if state, err = admin.Describe(p.ctx, state.ARN); err != nil {
			return err
		}
	}
	return c.show(p, state)
}

// make says what it costs, and makes the CA.
func (c caAWSCreateCmd) make(p *process, admin *acmpca.Admin, wanted acmpca.NewCA) (acmpca.State, error) {
	if c.Parent != "" {
		if err := admin.CanSign(p.ctx, c.Parent, c.Validity); err != nil {
			return acmpca.State{}, err
		}
	}
	authority, certificate := acmpca.Price(c.Mode)
	cost := fmt.Sprintf("A private CA (%s) costs %s until it is deleted, also while it issues nothing, and its certificates cost %s", c.Mode, authority, certificate)
	if err := c.agree(p, cost); err != nil {
		return acmpca.State{}, err
	}
	return admin.Create(p.ctx, wanted)
}

// check refuses flags that do not go together, and fills in what follows from others.
func (c *caAWSCreateCmd) check() error {
	if err := checkEndpointURL(c.EndpointURL); err != nil {
		return err
	}
	sub := c.Type == acmpca.TypeSubordinate
	switch {
	case !sub && (c.Parent != "" || c.CSROut != ""):
		return usagef("a root signs itself: --parent and --csr-out are for --type subordinate")
	case sub && (c.Parent == "") == (c.CSROut == ""):
		return usagef("say who signs the subordinate CA: --parent ARN for a CA in AWS, or --csr-out FILE for one outside")
	case !slices.Contains(acmpca.KeyAlgorithms(), c.KeyAlgorithm):
		return usagef("--key-algorithm %q is none of %s", c.KeyAlgorithm, strings.Join(acmpca.KeyAlgorithms(), ", "))
	case c.Idempotency != "" && !idempotencyForm.MatchString(c.Idempotency):
		return usagef("--idempotency %.80q is not 1 to 36 letters, digits and _.-", c.Idempotency)
	case c.Country != "" && !countryForm.MatchString(c.Country):
		return usagef("--country %.20q is not two capital letters, such as DE", c.Country)
	case c.Validity < 0 || (c.Validity > 0 && c.Validity < time.Hour):
		return usagef("--validity is at least 1h")
	case c.Validity > 0 && c.CSROut != "":
		return usagef("--validity is for whoever signs the request of --csr-out to say")
	}
	for name, value := range map[string]string{
		"--common-name": c.CommonName, "--organization": c.Organization, "--organizational-unit": c.OrganizationalUnit, "--province": c.Province, "--locality": c.Locality,
	} {
		if len([]rune(value)) > 64 || strings.ContainsFunc(value, unicode.IsControl) || value != strings.TrimSpace(value) {
			return usagef("%s %.80q is longer than 64 characters, or has some that no name has", name, value)
		}
	}
	if c.CommonName == "" {
		return usagef("--common-name is empty")
	}
	if c.Parent != "" {
		if _, err := acmpca.RegionOf(c.Parent); err != nil {
			return usagef("--parent: %w", err)
		}
	}
	if c.CSROut != "" { // a CA whose request cannot be written would cost money all the same
		if at, err := os.Stat(filepath.Dir(c.CSROut)); err != nil || !at.IsDir() {
			return usagef("--csr-out %s: there is no directory %s; make it first", c.CSROut, filepath.Dir(c.CSROut))
		}
		if at, err := os.Stat(c.CSROut); err == nil && at.IsDir() {
			return usagef("--csr-out %s is a directory; name a file", c.CSROut)
		}
	}
	if c.Validity == 0 {
		c.Validity = defaultRootLife
		if sub {
			c.Validity = defaultSubLife
		}
	}
	return nil
}

func (c caAWSCreateCmd) show(p *process, state acmpca.State) error {
	next := "countersign ca aws activate --arn " + state.ARN + " --certificate FILE --chain FILE, when " + c.CSROut + " is signed"
	if state.Active() {
		next = "name it in the specification: authorities: {NAME: {type: acmpca, arn: " + state.ARN + ", mode: " + state.Mode + "}}"
	}
	return c.pcaFlags.show(p, state, c.CSROut, next)
}

type caAWSActivateCmd struct {
	ARN         string        `name:"arn" required:"" placeholder:"ARN" help:"The CA."`
	Certificate string        `placeholder:"FILE" help:"Its certificate, PEM, as somebody outside of AWS has signed it."`
	Chain       string        `placeholder:"FILE" help:"With --certificate: the CAs above it up to the root, PEM, in this order. They may stand in the file of --certificate as well."`
	Parent      string        `placeholder:"ARN" help:"The CA in AWS that signs it."`
	Validity    time.Duration `placeholder:"TIME" help:"How long the certificate is valid that AWS signs. Default: 3650d for a root, 1095d below --parent."`
	pcaFlags
}

// Help is what --help adds.
func (caAWSActivateCmd) Help() string {
	return `Gives a CA in AWS Private CA that waits for it its certificate, after which it issues: one that was signed outside
of AWS (--certificate, --chain), or by a CA in AWS (--parent); a root signs itself. What is brought is checked
first: it has to be for the CA's own request, be a CA's, be valid now and lead to the root. Nothing is changed
when it is not.

Examples:
  countersign ca aws activate --arn "$ARN" --certificate issuing.pem --chain root.pem
  countersign ca aws activate --arn "$ARN" --parent "$ROOT_ARN" --yes`
}

// maxChain bounds the files that are read, in bytes: AWS takes no more.
const maxChain = 2 << 20

// Run activates the CA.
func (c caAWSActivateCmd) Run(p *process) error {
	region, err := c.check()
	if err != nil {
		return err
	}
	admin, err := acmpca.OpenAdmin(p.ctx, acmpca.AdminConfig{Region: region, Endpoint: c.EndpointURL})
	if err != nil {
		return usageError{err}
	}
	state, err := admin.Describe(p.ctx, c.ARN)
	if err != nil {
		return err
	}
	switch {
	case c.Certificate != "":
		err = c.bring(p, admin)
	case state.Active():
		fmt.Fprintln(p.stderr, "countersign: it is active already; nothing was changed")
	case !state.Pending():
		err = fmt.Errorf("%s is in the state %s, in which it takes no certificate", c.ARN, state.Status)
	default:
		err = c.sign(p, admin, state)
	}
	if err != nil {
		return err
	}
	if state, err = admin.Describe(p.ctx, c.ARN); err != nil {
		return err
	}
	return c.show(p, state, "", "name it in the specification: authorities: {NAME: {type: acmpca, arn: "+state.ARN+", mode: "+state.Mode+"}}")
}

// check refuses flags that do not go together, and gives the CA's region.
func (c caAWSActivateCmd) check() (string, error) {
	if err := checkEndpointURL(c.EndpointURL); err != nil {
		return "", err
	}
	region, err := acmpca.RegionOf(c.ARN)
	switch {
	case err != nil:
		return "", usagef("--arn: %w", err)
	case c.Certificate != "" && c.Parent != "":
		return "", usagef("--certificate and --parent exclude one another: somebody outside of AWS has signed it, or a CA in AWS does")
	case c.Chain != "" && c.Certificate == "":
		return "", usagef("--chain goes with --certificate")
	case c.Validity != 0 && c.Certificate != "":
		return "", usagef("--validity is for certificates that AWS signs; --certificate has its own")
	case c.Validity != 0 && c.Validity < time.Hour:
		return "", usagef("--validity is at least 1h")
	}
	if c.Parent != "" {
		if _, err := acmpca.RegionOf(c.Parent); err != nil {
			return "", usagef("--parent: %w", err)
		}
		if c.Parent == c.ARN {
			return "", usagef("--parent is the CA itself: a root signs itself without it, and a subordinate CA needs another one")
		}
	}
	for flag, file := range map[string]string{"--certificate": c.Certificate, "--chain": c.Chain} {
		if file == "" || file == "-" {
			continue
		}
		if at, err := os.Stat(file); err != nil {
			return "", usagef("%s: %w", flag, err)
		} else if at.IsDir() {
			return "", usagef("%s %s is a directory; name the file", flag, file)
		}
	}
	return region, nil
}

// bring imports what was signed outside of AWS.
func (c caAWSActivateCmd) bring(p *process, admin *acmpca.Admin) error {
	certificate, err := readInput(p, c.Certificate, maxChain)
	if err != nil {
		return fmt.Errorf("--certificate: %w", err)
	}
	certs, err := mtls.ParseCertificates(certificate)
	if err != nil {
		return usagef("--certificate %s: %w", c.Certificate, err)
	}
	// What lies above it is often delivered in the same file.
	certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certs[0].Raw})
	var chain []byte
	for _, above := range certs[1:] {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: above.Raw})...)
	}
	if c.Chain != "" {
		more, err := readInput(p, c.Chain, maxChain)
		if err != nil {
			return fmt.Errorf("--chain: %w", err)
		}
		chain = append(chain, more...)
	}
	return admin.Import(p.ctx, c.ARN, certificate, chain)
}

// sign has AWS sign it.
func (c caAWSActivateCmd) sign(p *process, admin *acmpca.Admin, state acmpca.State) error {
	life := c.Validity
	if state.Type == acmpca.TypeRoot {
		if c.Parent != "" {
			return usagef("%s is a root, which signs itself; leave out --parent", c.ARN)
		}
		if life == 0 {
			life = defaultRootLife
		}
		return admin.Sign(p.ctx, c.ARN, "", life)
	}
	if c.Parent == "" {
		return usagef("%s is a subordinate CA: say who signs it, by --parent ARN, or bring what somebody has signed, by --certificate FILE --chain FILE", c.ARN)
	}
	if life == 0 {
		life = defaultSubLife
	}
	if err := admin.CanSign(p.ctx, c.Parent, life); err != nil {
		return err
	}
	_, price := acmpca.Price(mesh.ModeGeneralPurpose)
	if err := c.agree(p, "The parent's certificate for it costs "+price); err != nil {
		return err
	}
	return admin.Sign(p.ctx, c.ARN, c.Parent, life)
}

// agree says what AWS takes, and asks when nobody has said --yes.
func (f pcaFlags) agree(p *process, cost string) error {
	cost += fmt.Sprintf(" (US East, as of %s; see https://aws.amazon.com/private-ca/pricing/).", acmpca.PricesOf)
	fmt.Fprintln(p.stderr, cost)
	if f.Yes {
		return nil
	}
	if file, ok := p.stdin.(*os.File); !ok || !term.IsTerminal(int(file.Fd())) {
		return usagef("nothing was made: there is no terminal to ask on; say --yes to agree")
	}
	fmt.Fprint(p.stderr, "Go on? [y/N] ")
	answer := make(chan error, 1)
	go func() { answer <- yes(p.stdin) }()
	select {
	case err := <-answer:
		return err
	case <-p.ctx.Done(): // nobody answers any more
		fmt.Fprintln(p.stderr)
		return exitError{exitFailure, "nothing was made"}
	}
}

// yes reads an answer: anything but yes is a no.
func yes(r io.Reader) error {
	line, err := bufio.NewReader(io.LimitReader(r, 100)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if answer := strings.ToLower(strings.TrimSpace(line)); answer != "y" && answer != "yes" {
		return exitError{exitFailure, "nothing was made"}
	}
	return nil
}

// shownPCA is what the commands print.
type shownPCA struct {
	acmpca.State

	CSRFile string `json:"csrFile,omitempty"`
}

// show prints a CA, and what comes next.
func (f pcaFlags) show(p *process, state acmpca.State, csr, next string) error {
	if state.Active() {
		csr = ""
	}
	if f.json() {
		return writeJSON(p, shownPCA{state, csr})
	}
	w := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "ARN\t%s\ntype\t%s, %s, %s\nsubject\t%s\nstate\t%s\n", state.ARN, state.Type, state.Mode, state.Key, state.Subject, state.Status)
	if !state.NotAfter.IsZero() {
		fmt.Fprintf(w, "valid to\t%s\n", state.NotAfter.Format(time.RFC3339))
	}
	if csr != "" {
		fmt.Fprintf(w, "request\t%s\n", csr)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(p.stdout, "\nNext: %s\n", next)
	return err
}
