package agent

import (
	"bytes"
	"crypto"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"countersign.dev/durable"
	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// Sentinel errors about the state directory.
var (
	// ErrState says that the state directory cannot be used as it is.
	ErrState = errors.New("state directory")
	// ErrOtherState says that it belongs to another CA, instance or workload.
	ErrOtherState = errors.New("state directory of another")
)

// The files of a state directory, beside the certificate's generations (see [durable.WriteGeneration]).
const (
	lockFile    = "lock"            // held as long as an agent uses the directory
	bindingFile = "agent.json"      // whose directory this is
	pendingFile = "pending-key.pem" // the key of an enrolment that is under way
	planFile    = "plan.json"       // the last Plan that was in force

	certFile   = "cert.pem" // in a generation: the leaf and its issuers,
	keyFile    = "key.pem"  // its key,
	bundleFile = "ca.pem"   // the roots to trust,
	crlFile    = "crl.pem"  // and the revocation lists, when there are any
)

// binding says whose a state directory is. It is written before anything else is.
type binding struct {
	Version  int    `json:"version"` // bindingVersion
	Instance string `json:"instance"`
	Pin      string `json:"pin"`
}

const bindingVersion = 1

// state keeps what has to survive the process. Its methods are called by one goroutine at a time.
type state struct {
	dir    string
	log    *slog.Logger
	unlock func() error
}

// stored is what a state directory held when it was opened.
type stored struct {
	identity *mtls.Identity // nil: no certificate, or a damaged one
	crls     *mtls.CRLs     // nil: none, or damaged ones
	plan     *mesh.Plan     // nil: none, or a damaged one
	damage   error          // why the certificate that was there is of no use; nil when there is none
}

// openState takes a state directory for this process and reads what is in it. Damage that can be
// made good by asking the server again is logged and survived; a directory that belongs to somebody
// else is refused with [ErrOtherState], one that another process uses with [durable.ErrLocked].
func openState(dir, instance string, pin string, log *slog.Logger) (*state, *stored, error) {
	if err := prepareDir(dir, log); err != nil {
		return nil, nil, err
	}
	unlock, err := durable.Lock(filepath.Join(dir, lockFile))
	if errors.Is(err, durable.ErrLocked) {
		return nil, nil, fmt.Errorf("%w %s: %w; each instance needs a directory of its own", ErrState, dir, err)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w %s: %w", ErrState, dir, err)
	}
	s := &state{dir: dir, log: log, unlock: unlock}
	have, err := s.load(instance, pin)
	if err != nil {
		_ = s.close() // the first error is the one that counts
		return nil, nil, err
	}
	return s, have, nil
}

// prepareDir sees to it that the directory is there and that nobody else can read in it.
func prepareDir(dir string, log *slog.Logger) error {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err := durable.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("%w: %w", ErrState, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	if !info.IsDir() {
		return fmt.Errorf("%w %s: it is not a directory; name another with --state", ErrState, dir)
	}
	if info.Mode().Perm()&0o077 == 0 {
		return nil
	}
	// It is open to others. A fresh mount or our own may be closed; somebody's /tmp may not.
	ours, err := emptyOrOurs(dir)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	if !ours {
		return fmt.Errorf("%w %s: it holds other files and has mode %#o; name an empty directory with --state, or one that does not exist yet",
			ErrState, dir, info.Mode().Perm())
	}
	err = os.Chmod(dir, 0o700) //nolint:gosec // a directory has to be searchable by its owner
	if err != nil && info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%w %s: others may write to it (mode %#o), and that cannot be changed: %w; run chmod 700 as its owner",
			ErrState, dir, info.Mode().Perm(), err)
	}
	if err != nil { // what is secret in it has mode 0600
		log.Warn("the state directory can be listed by others", "dir", dir, "error", err)
	}
	return nil
}

func emptyOrOurs(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	empty := true
	for _, entry := range entries {
		switch entry.Name() {
		case bindingFile, lockFile:
			return true, nil
		case "lost+found":
		default:
			empty = false
		}
	}
	return empty, nil
}

// load reads the directory after it was locked.
func (s *state) load(instance string, pin string) (*stored, error) {
	if err := durable.Sweep(s.dir); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	have := &stored{}
	files, err := durable.ReadCurrent(s.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	default:
		have.identity, err = mtls.LoadIdentity(files[certFile], files[keyFile], files[bundleFile])
		if err != nil {
			have.damage = fmt.Errorf("the certificate in %s is damaged: %w", s.path("current"), err)
			s.log.Warn("the stored certificate is damaged; enrolling again", "dir", s.path("current"), "error", err)
		}
		if have.crls, err = mtls.ParseCRLs(files[crlFile]); err != nil {
			s.log.Warn("the stored revocation lists are damaged; waiting for the server to send them again", "dir", s.path("current"), "error", err)
		}
	}
	if err := s.bind(instance, pin, have.identity); err != nil {
		return nil, err
	}
	if err := s.dropFinishedKey(files[keyFile], have.identity); err != nil {
		return nil, err
	}
	have.plan, err = s.loadPlan(have.identity)
	return have, err
}

// bind compares whose directory this is with who asks, and writes it down when it is new.
func (s *state) bind(instance string, pin string, identity *mtls.Identity) error {
	want := binding{Version: bindingVersion, Instance: instance, Pin: pin}
	data, err := os.ReadFile(s.path(bindingFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	var have binding
	known := err == nil
	if known {
		if err := json.Unmarshal(data, &have); err != nil || have.Version != bindingVersion || have.Pin == "" {
			// What it said is also in the certificate, but for the instance's name.
			s.log.Warn("the file that says whose state this is, is damaged; writing it anew", "file", s.path(bindingFile))
			known = false
		}
	}
	if known && have == want {
		return nil
	}
	if known && have.Instance != instance {
		return fmt.Errorf("%w instance: %s belongs to %q, and --instance is %q; give each instance a directory of its own",
			ErrOtherState, s.dir, have.Instance, instance)
	}
	// After a rotation of the root the pin is a new one, and the bundle, which came over a
	// connection that the old one vouched for, holds both.
	if identity != nil && (!known || have.Pin != want.Pin) && !hasRoot(identity.Bundle.Roots(), pin) {
		return fmt.Errorf("%w CA: the certificates in %s have the root %s, and --ca-pin is %s; correct --ca-pin, or name an empty directory with --state to enrol there",
			ErrOtherState, s.dir, mtls.Pin(identity.Bundle.Roots()[0]), pin)
	}
	if identity == nil && known && have.Pin != want.Pin {
		return fmt.Errorf("%w CA: %s was made for the pin %s, and --ca-pin is %s; correct --ca-pin, or name an empty directory with --state",
			ErrOtherState, s.dir, have.Pin, pin)
	}
	if data, err = json.Marshal(want); err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	return s.write(bindingFile, append(data, '\n'))
}

// dropFinishedKey removes the key of an enrolment that was finished but for this removal.
func (s *state) dropFinishedKey(key []byte, identity *mtls.Identity) error {
	pending, err := os.ReadFile(s.path(pendingFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	if identity == nil || !bytes.Equal(pending, key) {
		return nil
	}
	return s.dropPending()
}

// loadPlan reads the last Plan. A damaged one is of no importance as soon as the server answers.
func (s *state) loadPlan(identity *mtls.Identity) (*mesh.Plan, error) {
	data, err := os.ReadFile(s.path(planFile))
	if errors.Is(err, fs.ErrNotExist) || identity == nil {
		return nil, nil //nolint:nilnil // no Plan is no error
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	plan, err := parsePlan(data)
	if err == nil {
		err = checkPlan(plan, identity.ID)
	}
	if err != nil {
		s.log.Warn("the stored Plan is damaged; waiting for the server to send it again", "file", s.path(planFile), "error", err)
		return nil, nil //nolint:nilnil // the same as none
	}
	return plan, nil
}

// checkPlan refuses a Plan that is for somebody else.
func checkPlan(plan *mesh.Plan, own id.ID) error {
	if plan.Workload.Identity != own || plan.Certificate.Identity != own || plan.TrustDomain != own.TrustDomain() {
		return fmt.Errorf("%w: it is for %q, and this is %s", ErrPlan, plan.Workload.Identity, own)
	}
	return nil
}

// pendingKey is the key to enrol with: the one of an attempt that was cut off, or a new one, which
// is on the disk before anybody is told of it. The server gives the same answer to the same token
// and key, so that an attempt that died anywhere is simply made again.
func (s *state) pendingKey(kind mesh.KeyType) (crypto.Signer, error) {
	data, err := os.ReadFile(s.path(pendingFile))
	if err == nil {
		if key, err := mtls.ParseKey(data); err == nil {
			return key, nil
		}
		s.log.Warn("the stored key of an unfinished enrolment is damaged; making a new one", "file", s.path(pendingFile))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	key, err := mtls.GenerateKey(kind)
	if err != nil {
		return nil, err
	}
	if data, err = mtls.MarshalKey(key); err != nil {
		return nil, err
	}
	return key, s.write(pendingFile, data)
}

// dropPending forgets the key of an enrolment.
func (s *state) dropPending() error {
	if err := durable.Remove(s.path(pendingFile)); err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	return nil
}

// saveIdentity makes a certificate, its key, its bundle and the revocation lists the current ones, in one step.
func (s *state) saveIdentity(identity *mtls.Identity, crls *mtls.CRLs) error {
	key, ok := identity.Certificate.PrivateKey.(crypto.Signer)
	if !ok {
		return fmt.Errorf("%w: the key of the certificate cannot sign", ErrState)
	}
	keyPEM, err := mtls.MarshalKey(key)
	if err != nil {
		return err
	}
	files := []durable.File{
		{Name: certFile, Data: encodeChain(identity.Certificate.Certificate), Perm: 0o600},
		{Name: keyFile, Data: keyPEM, Perm: 0o600},
		{Name: bundleFile, Data: identity.Bundle.PEM(), Perm: 0o600},
	}
	if lists := crls.PEM(); len(lists) > 0 {
		files = append(files, durable.File{Name: crlFile, Data: lists, Perm: 0o600})
	}
	if err := durable.WriteGeneration(s.dir, files); err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	return nil
}

// savePlan keeps the Plan that is in force.
func (s *state) savePlan(plan *mesh.Plan) error {
	data, err := json.MarshalIndent(plan, "", "  ")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	return s.write(planFile, append(data, '\n'))
}

// close gives the directory free for another process.
func (s *state) close() error { return s.unlock() }

func (s *state) path(name string) string { return filepath.Join(s.dir, name) }

func (s *state) write(name string, data []byte) error {
	if err := durable.WriteFile(s.path(name), data, 0o600); err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	return nil
}

// encodeChain writes a leaf and its issuers in PEM.
func encodeChain(ders [][]byte) []byte {
	var out []byte
	for _, der := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}
