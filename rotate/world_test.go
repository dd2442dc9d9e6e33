package rotate

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/secret"
	"countersign.dev/secret/filestore"
)

// hierarchy is a root with an issuing CA.
type hierarchy struct {
	root, issuer *x509.Certificate
	rootPEM      []byte
	key, rootKey crypto.Signer
}

func newHierarchy(t testing.TB, name string) *hierarchy {
	t.Helper()
	h := &hierarchy{}
	rootKey := newKey(t)
	h.key, h.rootKey = newKey(t), rootKey
	template := func(name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: serial(t), Subject: pkix.Name{CommonName: name, Organization: []string{"shop.internal"}}, IsCA: true, BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: serial(t).Bytes(), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		}
	}
	root := template(name + " root")
	h.root = sign(t, root, root, rootKey.Public(), rootKey)
	h.rootPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.root.Raw})
	h.issuer = sign(t, template(name+" issuer"), h.root, h.key.Public(), rootKey)
	return h
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func sign(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// authority is a CA in memory that keeps to the rules, unless a test lets it break them.
type authority struct {
	t      *testing.T
	signer *hierarchy
	bundle []*hierarchy
	// lists are the revocation lists.
	lists  []byte
	listed int64 // the number of the last one
	gone   map[*x509.Certificate][]string
	// down is what it answers instead.
	down error
	// spoil changes what is about to be signed, answer what is about to be answered.
	spoil  func(*x509.Certificate)
	answer func(chain []byte) []byte
	key    crypto.PublicKey // certified instead of the request's

	mu      sync.Mutex
	answers map[string][]byte
	asked   []string
}

func (a *authority) Trust(context.Context) (Trust, error) {
	if a.down != nil {
		return Trust{}, a.down
	}
	var bundle []byte
	for _, h := range a.bundle {
		bundle = append(bundle, h.rootPEM...)
	}
	return Trust{Bundle: bundle, Issuer: a.signer.issuer, CRL: a.lists}, nil
}

func (a *authority) Issue(_ context.Context, request Request) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = append(a.asked, request.ID)
	if a.down != nil {
		return nil, a.down
	}
	if chain := a.answers[request.ID]; chain != nil {
		return chain, nil
	}
	csr, err := issue.ParseCSR(request.CSR)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial(a.t), Subject: pkix.Name{CommonName: request.Workload.Name}, DNSNames: request.DNSNames,
		URIs: []*url.URL{request.Workload.Identity.URL()}, KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		NotBefore:   time.Now().Add(-issue.ClockAllowance), NotAfter: time.Now().Add(request.TTL),
	}
	if a.spoil != nil {
		a.spoil(template)
	}
	public := crypto.PublicKey(csr.PublicKey)
	if a.key != nil {
		public = a.key
	}
	leaf := sign(a.t, template, a.signer.issuer, public, a.signer.key)
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})
	chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.signer.issuer.Raw})...)
	if a.answer != nil {
		chain = a.answer(chain)
	}
	a.answers[request.ID] = chain
	return chain, nil
}

// revoke puts serials on the list of an issuing CA.
func (a *authority) revoke(h *hierarchy, serials ...string) { a.list(h.issuer, h.key, nil, serials...) }

// list makes the next list of a CA, with the serials of its lists before.
func (a *authority) list(by *x509.Certificate, key crypto.Signer, extra []pkix.Extension, serials ...string) {
	a.t.Helper()
	a.listed++
	if a.gone == nil {
		a.gone = make(map[*x509.Certificate][]string)
	}
	a.gone[by] = append(a.gone[by], serials...)
	list := &x509.RevocationList{Number: big.NewInt(a.listed), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour), ExtraExtensions: extra}
	for _, text := range a.gone[by] {
		serial, ok := new(big.Int).SetString(text, 16)
		if !ok {
			a.t.Fatal(text)
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, by, key)
	if err != nil {
		a.t.Fatal(err)
	}
	a.lists = append(a.lists, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...)
}

// issued is how many certificates there are.
func (a *authority) issued() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.answers)
}

// fleet are the instances of a workload: what each serves, and how it takes what is current.
type fleet struct {
	w *world
	// reload lets everybody serve what is current whenever they are looked at; else they wait for a restart.
	reload bool
	// refuses are serials that nobody takes, all when it says so.
	refuses func(serial string) bool
	// blind is why nobody can be looked at.
	blind error
	by    By
	alone bool // nobody else will ever see it
	// others are what peers saw while an instance says that it serves a serial.
	others func(serial string) (string, time.Time)
	// broken is what a restart of an instance says; it is gone afterwards when gone says so.
	broken map[string]error
	gone   bool

	// lost is an instance that the server has lost; it is back after some looks, when back says so.
	lost string
	back int

	mu       sync.Mutex
	serves   map[string]string
	restarts []string
	looks    int
}

func (f *fleet) take(instance string) {
	if serial := f.w.currentSerial(); serial != "" && (f.refuses == nil || !f.refuses(serial)) {
		f.serves[instance] = serial
	}
}

func (f *fleet) Restart(_ context.Context, workload, instance string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if workload != f.w.target.Workload.Name {
		return errors.New("another workload")
	}
	f.restarts = append(f.restarts, instance)
	if err := f.broken[instance]; err != nil {
		if f.gone {
			delete(f.serves, instance)
		}
		return err
	}
	f.take(instance)
	return nil
}

func (f *fleet) Look(context.Context, Target) ([]Sighting, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looks++
	if f.blind != nil {
		return nil, f.blind
	}
	var sightings []Sighting
	for _, instance := range []string{"orders-2", "orders-1"} {
		if _, ok := f.serves[instance]; !ok {
			continue
		}
		if f.reload {
			f.take(instance)
		}
		if instance == f.lost && (f.back == 0 || f.looks < f.back) {
			sightings = append(sightings, Sighting{Instance: instance, By: ByReport, Away: true, Problem: "not connected"})
			continue
		}
		s := Sighting{Instance: instance, Endpoint: "0.0.0.0_9080", Serial: f.serves[instance], By: f.by, Alone: f.alone}
		if f.others != nil {
			s.Peers, s.PeersAt = f.others(s.Serial)
		}
		if f.refuses != nil {
			s.Problem = "nginx -t refused the new files"
		}
		sightings = append(sightings, s)
	}
	return sightings, nil
}

// world is a store, an authority and a fleet.
type world struct {
	dir       string // the store is in it
	t         *testing.T
	files     *filestore.Store
	authority *authority
	fleet     *fleet
	target    Target
	config    Config
	progress  strings.Builder
	quiet     bool // one of many: a failure is not told at length
}

// keeper gives filestore's leases as this package declares them.
type keeper struct{ *filestore.Store }

func (k keeper) Lease(ctx context.Context, name, holder string, ttl time.Duration) (Lease, error) {
	lease, err := k.Store.Lease(ctx, name, holder, ttl)
	if err != nil {
		return nil, err
	}
	return lease, nil
}

// memoryDir is a directory in memory where there is one: what survives the loss of power is filestore's to test, and every
// test here writes hundreds of files that are synced.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "rotate-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func newWorld(t *testing.T, layout secret.Layout) *world {
	t.Helper()
	dir := memoryDir(t)
	file := filepath.Join(dir, "id.age")
	if err := filestore.GenerateIdentity(file); err != nil {
		t.Fatal(err)
	}
	identity, err := filestore.LoadIdentity(file)
	if err != nil {
		t.Fatal(err)
	}
	files, err := filestore.Create(filepath.Join(dir, "store"), identity)
	if err != nil {
		t.Fatal(err)
	}
	shape, err := secret.NewShape(layout, secret.Fields{})
	if err != nil {
		t.Fatal(err)
	}
	who, err := id.New("shop.internal", id.Service, "orders")
	if err != nil {
		t.Fatal(err)
	}
	h := newHierarchy(t, "first")
	w := &world{t: t, dir: dir, files: files, authority: &authority{t: t, signer: h, bundle: []*hierarchy{h}, answers: map[string][]byte{}}}
	w.target = Target{
		Workload: mesh.Workload{Name: "orders", Kind: id.Service, Identity: who},
		Certificate: mesh.CertificatePlan{
			Identity: who, DNSNames: []string{"orders", "orders.shop.internal"}, TTL: mesh.Duration(time.Hour), RenewAfter: mesh.Duration(40 * time.Minute), Key: mesh.ECDSAP256,
		},
		Secret: "shop/orders", Shape: shape, StoreName: "vault", Store: files, Keeper: keeper{files},
	}
	if layout == secret.LayoutExported {
		w.target.Bundle = "shop/bundle"
	}
	w.fleet = &fleet{w: w, reload: true, by: ByHandshake, serves: map[string]string{"orders-1": "", "orders-2": ""}}
	w.config = Config{
		Authority: w.authority, Deployer: w.fleet, Observer: w.fleet, Holder: "a test", Timeout: 300 * time.Millisecond,
		Progress: func(workload string, step Step, text string) {
			fmt.Fprintf(&w.progress, "%s: %s: %s\n", workload, step, text)
		},
		leaseTTL: 5 * time.Minute, bundleWait: 20 * time.Millisecond, poll: 2 * time.Millisecond, unseen: 20 * time.Millisecond, away: 50 * time.Millisecond,
	}
	t.Cleanup(func() {
		if t.Failed() && !w.quiet {
			t.Log(w.progress.String())
		}
	})
	return w
}

func (w *world) rotator() *Rotator {
	w.t.Helper()
	r, err := New(w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// run rotates bundle and target.
func (w *world) run(o Options) Result {
	w.t.Helper()
	results := w.rotator().RotateAll(w.t.Context(), []Target{w.target}, o)
	for _, result := range results[:len(results)-1] {
		if result.Err != nil {
			w.t.Errorf("the bundle: %v", result.Err)
		}
	}
	return results[len(results)-1]
}

// must rotates and expects an outcome. What is to succeed has the time that a loaded machine takes.
func (w *world) must(o Options, want Outcome) Result {
	w.t.Helper()
	timeout := w.config.Timeout
	if want != Failed && want != RolledBack {
		w.config.Timeout = max(timeout, 30*time.Second)
	}
	result := w.run(o)
	w.config.Timeout = timeout
	if result.Outcome != want || (result.Err != nil) != (want == Failed || want == RolledBack) {
		w.t.Fatalf("%s, %v, want %s", result.Outcome, result.Err, want)
	}
	return result
}

// first makes a first version that everybody serves.
func (w *world) first() Result {
	w.t.Helper()
	return w.must(Options{}, Rotated)
}

func (w *world) currentSerial() string {
	material, err := w.target.Shape.Read(w.t.Context(), w.files, w.target.Secret, "")
	if err != nil {
		return ""
	}
	chain, err := mtls.ParseCertificates(material.Certificate)
	if err != nil {
		return ""
	}
	return mtls.Serial(chain[0])
}

// check expects the store to be as a rotation that has ended leaves it: what is current is fit, and no key is there that
// nobody is to use.
func (w *world) check() {
	w.t.Helper()
	w.checkCurrent()
	for _, name := range w.target.Shape.Names(w.target.Secret) {
		versions, err := w.files.Versions(w.t.Context(), name)
		if errors.Is(err, secret.ErrNotFound) {
			continue
		}
		if err != nil {
			w.t.Fatal(err)
		}
		for _, version := range versions {
			if len(version.Stages) == 0 || version.Has(secret.Pending) {
				w.t.Errorf("%s has the version %s %v", name, version.ID, version.Stages)
			}
		}
	}
	record, err := readRecord(w.t.Context(), w.files, w.target.Secret)
	if err != nil || record.Step != "" {
		w.t.Errorf("the record is %+v, %v", record, err)
	}
	if holder, _, err := w.files.Holder(w.t.Context(), w.target.Secret); err != nil || holder != "" {
		w.t.Errorf("%q has the lease, %v", holder, err)
	}
}

// checkCurrent expects what is current, if anything is, to be fit: at any moment.
func (w *world) checkCurrent() {
	w.t.Helper()
	material, err := w.target.Shape.Read(w.t.Context(), w.files, w.target.Secret, "")
	if errors.Is(err, secret.ErrNotFound) {
		return
	}
	if err != nil {
		w.t.Fatal(err)
	}
	defer material.Clear()
	n := &run{r: w.rotator(), t: w.target, ctx: w.t.Context()}
	bundle := material.Bundle
	if w.target.Bundle != "" {
		if bundle, _, err = w.files.Read(w.t.Context(), w.target.Bundle, ""); err != nil {
			w.t.Fatal(err)
		}
	}
	if _, err := n.fit(material, bundle); err != nil {
		w.t.Errorf("what is current is not fit: %v", err)
	}
}

// says expects a text to hold others.
func says(t *testing.T, text string, wanted ...string) {
	t.Helper()
	for _, want := range wanted {
		if !strings.Contains(text, want) {
			t.Errorf("%q does not say %q", text, want)
		}
	}
}
