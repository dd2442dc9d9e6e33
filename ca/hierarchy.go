package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"countersign.dev/durable"
	"countersign.dev/issue"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// hierarchiesDir holds the hierarchies after the first.
const hierarchiesDir = "hierarchies"

// HierarchyState says what a hierarchy is for.
type HierarchyState string

// The states of a hierarchy, in the order in which each passes through them.
const (
	// Next is in the bundle and does not sign yet: everybody is to learn its root first.
	Next HierarchyState = "next"
	// Active signs. There is always exactly one.
	Active HierarchyState = "active"
	// Retiring is in the bundle and signs no leaf any more: those that it has signed are being replaced.
	Retiring HierarchyState = "retiring"
)

// Hierarchy is a root and an issuing CA below it. Several may have the same root: after the issuing CA
// was renewed, the one before is retiring for as long as its leaves live. It is a value and is never
// changed; its certificates are only read.
type Hierarchy struct {
	// ID names it for ever: the issuing certificate's serial.
	ID    string
	State HierarchyState
	// Since is when it came into that state; zero for the first one of a CA.
	Since        time.Time
	Root, Issuer *x509.Certificate

	dir string // where its files are
}

// Pin is the root's, as [mtls.Pin] writes it.
func (h Hierarchy) Pin() string { return mtls.Pin(h.Root) }

// SameRoot tells whether two hierarchies have one root.
func (h Hierarchy) SameRoot(other Hierarchy) bool { return bytes.Equal(h.Root.Raw, other.Root.Raw) }

// Signed tells whether a certificate names this hierarchy's issuing CA as its issuer. It does not verify
// the signature: certificates that come from elsewhere are verified by package mtls.
func (h Hierarchy) Signed(cert *x509.Certificate) bool {
	return bytes.Equal(cert.RawIssuer, h.Issuer.RawSubject) && bytes.Equal(cert.AuthorityKeyId, h.Issuer.SubjectKeyId)
}

// entry is a hierarchy as ca.json lists it.
type entry struct {
	ID    string         `json:"id"`
	State HierarchyState `json:"state"`
	Pin   string         `json:"pin"`
	Since time.Time      `json:"since,omitzero"`
	// First says that its files lie in the directory of the CA itself.
	First bool `json:"first,omitempty"`
}

// dirIn is where the files of a hierarchy are; dir is the CA's.
func (e entry) dirIn(dir string) string {
	if e.First {
		return dir
	}
	return filepath.Join(dir, hierarchiesDir, e.ID)
}

// Hierarchies are all that the CA has: first the active one, then the next one if there is one, then
// those that retire. Together they are what a bundle and its revocation lists are made of. The slice is
// the caller's.
func (a *Authority) Hierarchies() []Hierarchy {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.hierarchies)
}

// HierarchyOf finds the hierarchy that signed a leaf, by the issuer that it names. It is false for a
// leaf of a hierarchy that has been removed.
func (a *Authority) HierarchyOf(leaf *x509.Certificate) (Hierarchy, bool) {
	for _, h := range a.Hierarchies() {
		if h.Signed(leaf) {
			return h, true
		}
	}
	return Hierarchy{}, false
}

// active is the hierarchy that signs.
func (a *Authority) active() Hierarchy {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.hierarchies[0]
}

// readHierarchies reads the certificates of all hierarchies; dir is the CA's directory.
func readHierarchies(dir string, c config) ([]Hierarchy, error) {
	if len(c.Hierarchies) == 0 {
		h, err := readHierarchy(dir, c.Pin)
		if err != nil {
			return nil, err
		}
		h.State = Active
		return []Hierarchy{h}, nil
	}
	path := filepath.Join(dir, configFile)
	var all []Hierarchy
	for _, e := range c.Hierarchies {
		if e.ID == "" || strings.Trim(e.ID, "0123456789abcdef") != "" {
			return nil, fmt.Errorf("%s: %w: %q cannot name a hierarchy; restore it from a backup", path, ErrCorrupt, e.ID)
		}
		h, err := readHierarchy(e.dirIn(dir), e.Pin)
		if err != nil {
			return nil, err
		}
		if h.ID != e.ID {
			return nil, fmt.Errorf("%s: %w: its serial is %s, and %s says %s; restore them from one backup",
				filepath.Join(h.dir, issuerCert), ErrCorrupt, h.ID, configFile, e.ID)
		}
		h.State, h.Since = e.State, e.Since
		all = append(all, h)
	}
	if err := checkStates(all, c.Pin); err != nil {
		return nil, fmt.Errorf("%s: %w: %w; restore it from a backup", path, ErrCorrupt, err)
	}
	return all, nil
}

// checkStates tells whether hierarchies are in the order and the states in which this program writes them.
func checkStates(all []Hierarchy, pin string) error {
	for i, h := range all {
		switch {
		case (h.State == Active) != (i == 0), h.State == Next && i != 1,
			h.State != Active && h.State != Next && h.State != Retiring:
			return fmt.Errorf("hierarchy %d is %q", i+1, h.State)
		case slices.ContainsFunc(all[:i], func(other Hierarchy) bool { return other.ID == h.ID }):
			return fmt.Errorf("the hierarchy %s is listed twice", h.ID)
		}
	}
	if all[0].Pin() != pin {
		return errors.New("its pin is not that of the active hierarchy")
	}
	return nil
}

// readHierarchy reads the two certificates in a directory and checks that they belong together.
func readHierarchy(dir, pin string) (Hierarchy, error) {
	root, err := readCertificate(filepath.Join(dir, rootCert))
	if err != nil {
		return Hierarchy{}, err
	}
	issuer, err := readCertificate(filepath.Join(dir, issuerCert))
	if err != nil {
		return Hierarchy{}, err
	}
	if found := mtls.Pin(root); found != pin {
		return Hierarchy{}, fmt.Errorf("%s: %w: its pin is %s, and %s says %s; restore them from one backup",
			filepath.Join(dir, rootCert), ErrCorrupt, found, configFile, pin)
	}
	if err := issuer.CheckSignatureFrom(root); err != nil {
		return Hierarchy{}, fmt.Errorf("%s: %w: it is not signed by %s: %w", filepath.Join(dir, issuerCert), ErrCorrupt, rootCert, err)
	}
	return Hierarchy{ID: mtls.Serial(issuer), Root: root, Issuer: issuer, dir: dir}, nil
}

// readIssuerKey opens the key of a hierarchy's issuing CA.
func readIssuerKey(h Hierarchy, seal Sealer, method string) (crypto.Signer, error) {
	return readKeyOf(filepath.Join(h.dir, issuerKey), h.Issuer, issuerCert, seal, method)
}

// readKeyOf opens the key in a file and checks that it is that of a certificate.
func readKeyOf(path string, cert *x509.Certificate, certName string, seal Sealer, method string) (crypto.Signer, error) {
	key, err := readKey(path, seal, method)
	if err != nil {
		return nil, err
	}
	public, ok := cert.PublicKey.(interface{ Equal(x crypto.PublicKey) bool })
	if !ok || !public.Equal(key.Public()) {
		return nil, fmt.Errorf("%s: %w: the key does not belong to %s", path, ErrCorrupt, certName)
	}
	return key, nil
}

// RootKeyAtHand tells whether the active root's key lies in the state, so that nobody has to be asked
// for it.
func (a *Authority) RootKeyAtHand() bool {
	there, err := present(filepath.Join(a.active().dir, rootKey))
	return err == nil && there
}

// RootKeyFiles are the files of roots' keys in the state, the active one's first. Each root has at most one, unless
// somebody has put another there, or one where the first root's was.
func (a *Authority) RootKeyFiles() ([]string, error) {
	var files []string
	places := []string{}
	for _, h := range a.Hierarchies() {
		places = append(places, h.dir)
	}
	if first := filepath.Join(a.state, caDir); !slices.Contains(places, first) {
		places = append(places, first)
	}
	for _, dir := range places {
		path := filepath.Join(dir, rootKey)
		there, err := present(path)
		if err != nil {
			return nil, fmt.Errorf("looking for the roots' keys: %w", err)
		}
		if there {
			files = append(files, path)
		}
	}
	return files, nil
}

// dropRootKeys leaves each root's key in one place, with the hierarchy of it that comes first: a copy that is
// forgotten is a key that was not moved to a safer place. What differs from it stays.
func (c *CA) dropRootKeys() error {
	all := c.Hierarchies()
	for i, h := range all {
		first := all[slices.IndexFunc(all, h.SameRoot)]
		if first.ID == all[i].ID {
			continue
		}
		path, kept := filepath.Join(h.dir, rootKey), filepath.Join(first.dir, rootKey)
		same, err := sameFile(path, kept)
		if err != nil {
			return err
		}
		if same {
			if err := durable.Remove(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// sameFile tells whether two files, and neither a link, hold the same.
func sameFile(one, other string) (bool, error) {
	for _, path := range []string{one, other} {
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && (!info.Mode().IsRegular() || info.Size() > maxFile) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	text, err := os.ReadFile(one)
	if err != nil {
		return false, err
	}
	defer clear(text)
	otherText, err := os.ReadFile(other)
	defer clear(otherText)
	return bytes.Equal(text, otherText), err
}

// IssuerDue tells whether the issuing CA that signs is to be renewed: a fifth of its life is left, or less
// than twice the longest life of a leaf (but no more than half of its own), for no leaf outlives it.
func (a *Authority) IssuerDue(now time.Time, longest time.Duration) bool {
	issuer := a.Issuer()
	life := lifeOf(issuer)
	return issuer.NotAfter.Sub(now) < max(life/5, min(2*longest, life/2))
}

// ReadKeyFile opens a private key in a file elsewhere that is stored in the CA's way: a root's that was
// moved out of the state. Errors are fs.ErrNotExist, [ErrExposed], [ErrCorrupt], [ErrSealed] and [ErrWrongKey].
func (c *CA) ReadKeyFile(path string) (crypto.Signer, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w; name the root's key with --root-key", err)
	}
	return readKey(path, c.seal, c.Seal())
}

// IssuerSigner is the open key of a hierarchy's issuing CA, for its revocation list. It is nil when the
// hierarchy has been removed.
func (c *CA) IssuerSigner(h Hierarchy) crypto.Signer {
	c.issuerMu.Lock()
	defer c.issuerMu.Unlock()
	return c.keys[h.ID]
}

// OpenRoot opens the key of a hierarchy's root, which is asked for as rarely as can be: for another
// issuing CA, or for the root's revocation list. Errors are [ErrCorrupt] when it is not in the state,
// [ErrExposed], [ErrSealed] and [ErrWrongKey].
func (c *CA) OpenRoot(h Hierarchy) (crypto.Signer, error) {
	return readKeyOf(filepath.Join(h.dir, rootKey), h.Root, rootCert, c.seal, c.Seal())
}

// bundleOf are the roots of hierarchies in PEM, each once, in their order.
func bundleOf(all []Hierarchy) []byte {
	var out []byte
	for i, h := range all {
		if !slices.ContainsFunc(all[:i], h.SameRoot) {
			out = append(out, encodeCertificate(h.Root)...)
		}
	}
	return out
}

// lifeOf is how long a CA's certificate was made for.
func lifeOf(cert *x509.Certificate) time.Duration {
	return cert.NotAfter.Sub(cert.NotBefore) - issue.ClockAllowance
}

// keyTypeOf names the type of a CA's key.
func keyTypeOf(public crypto.PublicKey) mesh.KeyType {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P384() {
			return mesh.ECDSAP384
		}
	case *rsa.PublicKey:
		if key.N.BitLen() > 3072 {
			return mesh.RSA4096
		}
		return mesh.RSA3072
	case ed25519.PublicKey:
		return mesh.Ed25519
	}
	return mesh.ECDSAP256
}
