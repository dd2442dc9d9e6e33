package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"countersign.dev/aws/session"
	"countersign.dev/mesh"
	"countersign.dev/secret"
	"countersign.dev/secret/filestore"
)

type secretCmd struct {
	Init     secretInitCmd     `cmd:"" help:"Make an encrypted store, and its identity file when there is none."`
	Put      secretPutCmd      `cmd:"" help:"Write a version of a secret and make it current."`
	Get      secretGetCmd      `cmd:"" help:"Print the value of a secret."`
	List     secretListCmd     `cmd:"" help:"List the secrets of a store."`
	Versions secretVersionsCmd `cmd:"" help:"List the versions of a secret."`
}

// storeFlags say which store, and how it is opened.
type storeFlags struct {
	Store        string `required:"" placeholder:"STORE" env:"COUNTERSIGN_STORE" help:"The store: file:DIR is a directory, encrypted with age; secretsmanager:REGION is AWS Secrets Manager, where REGION may be left out for that of the environment."`
	IdentityFile string `placeholder:"FILE" env:"COUNTERSIGN_IDENTITY_FILE" help:"With file:DIR: the age identity of the store, as age-keygen writes it. Nobody but its owner may read the file."`
	EndpointURL  string `name:"endpoint-url" placeholder:"URL" help:"With secretsmanager: the URL of the service, where it is not the usual one."`
	KMSKey       string `name:"kms-key" placeholder:"KEY" help:"With secretsmanager: the key of AWS KMS for a secret that 'put' makes: its id, its alias, or the ARN of either. Default: that of Secrets Manager."`
}

// checkEndpointURL checks the form of --endpoint-url.
func checkEndpointURL(url string) error {
	if url == "" {
		return nil
	}
	if err := mesh.CheckEndpoint(url); err != nil {
		return usagef("--endpoint-url is %s, which is no URL of a service: %w", session.ShowURL(url), err)
	}
	return nil
}

// declared is the store as a specification would declare it.
func (f storeFlags) declared() (mesh.Store, error) {
	kind, rest, ok := strings.Cut(f.Store, ":")
	switch {
	case f.Store == "": // a variable that is set to nothing counts as given
		return mesh.Store{}, usagef("which store? Give --store file:DIR or secretsmanager:REGION, or set COUNTERSIGN_STORE to it")
	case kind == mesh.StoreSecretsManager:
		if err := checkEndpointURL(f.EndpointURL); err != nil {
			return mesh.Store{}, err
		}
		return mesh.Store{Type: kind, Region: rest, Endpoint: f.EndpointURL, KMSKey: f.KMSKey}, nil
	case !ok || kind != mesh.StoreFile:
		return mesh.Store{}, usagef("--store %s: write file:DIR or secretsmanager:REGION; other kinds of stores are not known", f.Store)
	case f.EndpointURL != "" || f.KMSKey != "":
		return mesh.Store{}, usagef("--endpoint-url and --kms-key are of secretsmanager; the store is %s", f.Store)
	case f.IdentityFile == "":
		return mesh.Store{}, usagef("which identity? Give --identity-file FILE, or set COUNTERSIGN_IDENTITY_FILE to it")
	case rest == "":
		return mesh.Store{}, usagef("--store %s: which directory? Write file:DIR", f.Store)
	}
	return mesh.Store{Type: kind, Dir: rest, IdentityFile: f.IdentityFile}, nil
}

// open opens the store.
func (f storeFlags) open(p *process) (*anyStore, error) {
	declared, err := f.declared()
	if err != nil {
		return nil, err
	}
	store, err := openStore(p.ctx, declared)
	if err != nil {
		return nil, secretError(err)
	}
	return store, nil
}

// secretError tells mistakes of the user, which he finds in what he wrote, from failures.
func secretError(err error) error {
	if errors.Is(err, secret.ErrInvalid) || errors.Is(err, filestore.ErrIdentity) {
		return usageError{err}
	}
	return badAWS(err, regionInStore)
}

type secretInitCmd struct {
	storeFlags
	outputFlag
}

// Help is what --help adds.
func (secretInitCmd) Help() string {
	return `An identity file that does not exist is made, as age-keygen would; it must not lie in the store. Whoever
has it reads every secret, and without it nobody does: keep it apart from the store and its backups. A
store that is there is never touched.

Examples:
  countersign secret init --store file:/var/lib/secrets --identity-file /run/keys/secrets.age`
}

// createdStore is the answer of `secret init`.
type createdStore struct {
	Store        string `json:"store"`
	IdentityFile string `json:"identityFile"`
	Recipient    string `json:"recipient"`
}

// Run makes the store.
func (c secretInitCmd) Run(p *process) error {
	declared, err := c.declared()
	if err != nil {
		return err
	}
	if declared.Type != mesh.StoreFile {
		return usagef("--store %s: that store is there already, and is not made here; `secret put` makes a secret in it", c.Store)
	}
	dir := declared.Dir
	made, err := c.makeIdentity(p, dir)
	if err != nil {
		return err
	}
	identity, err := filestore.LoadIdentity(c.IdentityFile)
	if err != nil {
		return usageError{err}
	}
	if _, err := filestore.Create(dir, identity); err != nil {
		if made && !errors.Is(err, filestore.ErrBusy) { // who makes the store now may have found the file, and needs it
			err = errors.Join(err, c.dropIdentity(p, dir))
		}
		return secretError(err)
	}
	if c.json() {
		return writeJSON(p, createdStore{Store: c.Store, IdentityFile: c.IdentityFile, Recipient: identity.Recipient()})
	}
	_, err = fmt.Fprintf(p.stdout, "made the store %s\npublic key %s\n\nNext: countersign secret put NAME FILE --store %s --identity-file %s\n",
		c.Store, identity.Recipient(), c.Store, c.IdentityFile)
	return err
}

// dropIdentity removes the identity file that was made for a store that could not be. A store that is there after all,
// because only its last sync has failed perhaps, is lost without it.
func (c secretInitCmd) dropIdentity(p *process, dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, "store.age")); !errors.Is(err, fs.ErrNotExist) {
		return nil //nolint:nilerr // who cannot tell keeps it
	}
	p.log.InfoContext(p.ctx, "removing the new identity file again: there is no store", "path", c.IdentityFile)
	return os.Remove(c.IdentityFile)
}

// makeIdentity makes the identity file when there is none. What one holds that exists is looked at later.
func (c secretInitCmd) makeIdentity(p *process, dir string) (made bool, err error) {
	inside, err := lies(c.IdentityFile, dir)
	if err != nil {
		return false, usagef("looking whether --identity-file lies in the store: %w", err)
	}
	if inside {
		return false, usagef("--identity-file %s lies in the store that it opens; keep it somewhere else, and out of the store's backups", c.IdentityFile)
	}
	if _, err := os.Lstat(c.IdentityFile); !errors.Is(err, fs.ErrNotExist) {
		return false, nil //nolint:nilerr // whatever is wrong with it, LoadIdentity says it
	}
	// A store that is there belongs to an identity that is elsewhere: another one would only mislead.
	if _, err := os.Lstat(filepath.Join(dir, "store.age")); err == nil {
		return false, fmt.Errorf("%w in %s, and %s does not exist; give the identity file that it was made with, or another directory", filestore.ErrExists, dir, c.IdentityFile)
	}
	if err := filestore.GenerateIdentity(c.IdentityFile); err != nil {
		return false, err
	}
	p.log.InfoContext(p.ctx, "made a new identity file; without it the secrets are lost", "path", c.IdentityFile)
	return true, nil
}

// lies tells whether a file lies in a directory, by whatever links it is reached. Neither needs to be there.
func lies(file, dir string) (bool, error) {
	file, err := followed(file)
	if err != nil {
		return false, err
	}
	dir, err = followed(dir)
	if err != nil {
		return false, err
	}
	return file == dir || strings.HasPrefix(file, dir+string(filepath.Separator)), nil
}

// followed is where a path leads: absolute, and with the links followed in the part of it that is there.
func followed(path string) (string, error) {
	if !filepath.IsAbs(path) {
		here, err := os.Getwd()
		if err != nil {
			return "", err
		}
		path = here + string(filepath.Separator) + path // filepath.Join would take LINK/.. for nothing
	}
	missing := ""
	for {
		found, err := filepath.EvalSymlinks(path)
		if err == nil {
			return filepath.Join(found, missing), nil
		}
		parent, name := filepath.Split(strings.TrimRight(path, string(filepath.Separator)))
		if !errors.Is(err, fs.ErrNotExist) || name == "" {
			return "", err
		}
		path, missing = parent, filepath.Join(name, missing)
	}
}

type secretPutCmd struct {
	Name      string `arg:"" help:"The secret's name: letters, digits and _+=@.- with slashes in between."`
	File      string `arg:"" optional:"" default:"-" help:"The file with the value; - is standard input."`
	VersionID string `placeholder:"ID" help:"The id of the version. Default: a digest of the value, so that writing a value twice makes one version."`
	Pending   bool   `help:"Write the version and leave the current one current."`
	storeFlags
	outputFlag
}

// Help is what --help adds.
func (secretPutCmd) Help() string {
	return `The value is what the file holds, byte by byte, and has at most 65536 bytes. It is written as the pending
version, read back, and then made current in one step; what was current becomes previous. A version that
exists is not written again, so that a put may be repeated; with another value it is refused. When somebody
else, or a rotation, makes a version current meanwhile, that one stays, and the put says so.

The parts of one certificate that are secrets of their own need the same --version-id: write all of them
with --pending, then again without, the certificate last.

Examples:
  export COUNTERSIGN_STORE=file:./secrets COUNTERSIGN_IDENTITY_FILE=id.age
  countersign secret put payments/api credential.json
  countersign secret put payments/api/key_pem key.pem --version-id 2027-01 --pending
  countersign secret get payments/api --version previous --private-key | countersign secret put payments/api`
}

// How the names of secrets end in which rotations keep where they are, and what they have spent.
const (
	rotationNotes = ".rotation"
	budgetNotes   = ".budget"
)

// writtenSecret is the answer of `secret put`.
type writtenSecret struct {
	Name string `json:"name"`
	secret.Version
}

// Run writes the version.
func (c secretPutCmd) Run(p *process) error {
	if err := secret.CheckName(c.Name); err != nil {
		return usageError{err}
	}
	for _, notes := range []string{rotationNotes, budgetNotes} {
		if strings.HasSuffix(c.Name, notes) {
			return usagef("a name that ends in %s is for what a rotation notes of itself; choose another one", notes)
		}
	}
	if c.VersionID != "" {
		if err := secret.CheckVersion(c.VersionID); err != nil {
			return usagef("--version-id: %w", err)
		}
	}
	if _, err := c.declared(); err != nil {
		return err
	}
	file, err := c.source(p)
	if err != nil {
		return usageError{err}
	}
	defer file.Close()
	store, err := c.open(p)
	if err != nil {
		return err
	}
	// What is current is looked at before the value is read: standard input may be made from it, and take its time.
	before, err := currentOf(p, store, c.Name)
	if err != nil {
		return secretError(err)
	}
	value, err := readValue(file, c.File)
	if err != nil {
		return usageError{err}
	}
	defer clear(value)
	version, err := store.Stage(p.ctx, c.Name, c.VersionID, value)
	if err == nil && !c.Pending {
		err = store.Replace(p.ctx, c.Name, version, before)
	}
	if errors.Is(err, secret.ErrReplaced) {
		return fmt.Errorf("%w. The value is kept as the version %s, which is not current; `put` it once more to make it so all the same", err, version)
	}
	if err != nil {
		return secretError(err)
	}
	written, err := describeVersion(p, store, c.Name, version)
	if err != nil {
		return err
	}
	if c.json() {
		return writeJSON(p, writtenSecret{Name: c.Name, Version: written})
	}
	_, err = fmt.Fprintf(p.stdout, "%s version %s is %s\n", c.Name, written.ID, stages(written, "kept, and has no stage"))
	return err
}

// source opens what is to be stored.
func (c secretPutCmd) source(p *process) (io.ReadCloser, error) {
	if c.File == "-" {
		return io.NopCloser(p.stdin), nil
	}
	return os.Open(c.File)
}

// currentOf is the id of the version that is current; empty when none is.
func currentOf(p *process, store *anyStore, name string) (string, error) {
	versions, err := store.Versions(p.ctx, name)
	if errors.Is(err, secret.ErrNotFound) {
		return "", nil
	}
	current, _ := secret.Entry{Versions: versions}.Stage(secret.Current)
	return current.ID, err
}

// readValue reads what is to be stored.
func readValue(in io.Reader, name string) ([]byte, error) {
	if name == "-" {
		name = "standard input"
	}
	value, err := io.ReadAll(io.LimitReader(in, secret.MaxValue+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if len(value) > secret.MaxValue {
		clear(value)
		return nil, fmt.Errorf("%s has more than %d bytes, which is the most that a value has", name, secret.MaxValue)
	}
	if len(value) == 0 {
		return nil, fmt.Errorf("%s is empty", name)
	}
	return value, nil
}

// describeVersion finds a version that was just read or written.
func describeVersion(p *process, store *anyStore, name, id string) (secret.Version, error) {
	versions, err := store.Versions(p.ctx, name)
	if err != nil {
		return secret.Version{}, err
	}
	for _, version := range versions {
		if version.ID == id {
			return version, nil
		}
	}
	return secret.Version{}, fmt.Errorf("the version %s of the secret %s was removed meanwhile; list the `versions` and try again", id, name)
}

// stages are a version's stages in words.
func stages(version secret.Version, none string) string {
	if len(version.Stages) == 0 {
		return none
	}
	var words []string
	for _, stage := range version.Stages {
		words = append(words, string(stage))
	}
	return strings.Join(words, ", ")
}
