package acm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/service/acm"
	"github.com/aws/aws-sdk-go-v2/service/acm/types"

	"countersign.dev/aws/acm"
	"countersign.dev/aws/internal/awstest"
	"countersign.dev/aws/internal/awstest/acmfake"
	"countersign.dev/aws/internal/awstest/pcafake"
	"countersign.dev/aws/secretsmanager"
	"countersign.dev/aws/session"
	"countersign.dev/budget"
	"countersign.dev/credential"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/rotate"
)

// specification is a mesh whose one service has certificates of ACM. The CA's ARN and the endpoint are filled in.
const specification = `
mesh: %[3]s
trustDomain: payments.internal
stores: {vault: {type: secretsmanager, endpoint: %[2]q}}
authorities:
  acm: {type: acm, arn: %[1]q, endpoint: %[2]q, names: {checkout: checkout.payments.example}, budget: {certificates: 3}}
certificates: {authority: acm}
services:
  checkout:
    ports: [{port: 9443, protocol: http}]
    proxy: {engine: nginx}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}", bundle: "{mesh}/bundle", layout: exported}
`

// policy is what a rotation with ACM needs of it and of its CA, and no more: certificates have no names before they exist, so
// that a tag tells whose they are. A tag is given with the request alone, of which the resource is "certificate/*" to the letter: with
// the last statement nobody makes somebody else's certificate his own.
const policy = `{"Version":"2012-10-17","Statement":[
 {"Effect":"Allow","Action":"acm:ListCertificates","Resource":"*"},
 {"Effect":"Allow","Action":["acm:RequestCertificate","acm:AddTagsToCertificate"],"Resource":"arn:aws:acm:eu-central-1:123456789012:certificate/*",
  "Condition":{"StringEquals":{"aws:RequestTag/countersign:workload":"spiffe://payments.internal/service/checkout","acm:CertificateAuthority":"%[1]s"}}},
 {"Effect":"Allow","Action":["acm:DescribeCertificate","acm:ExportCertificate","acm:RenewCertificate"],"Resource":"arn:aws:acm:eu-central-1:123456789012:certificate/*",
  "Condition":{"StringEquals":{"aws:ResourceTag/countersign:workload":"spiffe://payments.internal/service/checkout"}}},
 {"Effect":"Deny","Action":["acm:AddTagsToCertificate","acm:RemoveTagsFromCertificate"],"Resource":"arn:aws:acm:eu-central-1:123456789012:certificate/????????-????-????-????-????????????"},
 {"Effect":"Allow","Action":["acm-pca:DescribeCertificateAuthority","acm-pca:GetCertificateAuthorityCertificate"],"Resource":"%[1]s"},
 {"Effect":"Allow","Action":["acm-pca:IssueCertificate","acm-pca:GetCertificate"],"Resource":"%[1]s",
  "Condition":{"StringEqualsIfExists":{"acm-pca:TemplateArn":"arn:aws:acm-pca:::template/EndEntityCertificate/V1"}}},
 {"Effect":"Allow","Action":"secretsmanager:GetRandomPassword","Resource":"*"},
 {"Effect":"Allow","Action":"secretsmanager:*","Resource":"arn:aws:secretsmanager:eu-central-1:123456789012:secret:%[2]s/*"}]}`

// way is the ACM way on doubles: moto's Secrets Manager, fakes of ACM and Private CA, policies enforced.
type way struct {
	t         *testing.T
	cloud     *awstest.Cloud
	fake      *acmfake.Fake
	mesh, arn string // the mesh's name, and the ARN of the CA
	store     *secretsmanager.Store
	authority *acm.Authority
	target    rotate.Target
	rotator   *rotate.Rotator

	mu     sync.Mutex
	later  time.Duration
	events []event
}

// event is what is needed of a document of EventBridge.
type event struct {
	Kind      string   `json:"detail-type"`
	Resources []string `json:"resources"`
	Detail    struct{ Action, CommonName string }
}

func newWay(t *testing.T) *way {
	t.Helper()
	cloud := awstest.Start(t)
	w := &way{t: t, cloud: cloud, mesh: strings.ToLower(t.Name())}
	pca := pcafake.New(pcafake.Options{Now: w.now, PendingPolls: 1})
	root, err := pca.Add(pcafake.CA{Name: "Payments root"})
	if err != nil {
		t.Fatal(err)
	}
	if w.arn, err = pca.Add(pcafake.CA{Name: "Payments issuing", Parent: root}); err != nil {
		t.Fatal(err)
	}
	w.fake = acmfake.New(acmfake.Options{Issuer: acmfake.Through(pca), Now: w.now, PendingPolls: 1, Events: func(document []byte) {
		var e event
		if err := json.Unmarshal(document, &e); err != nil {
			t.Error(err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.events = append(w.events, e)
	}})
	cloud.Mount("acm", w.fake)
	cloud.Mount("acm-pca", pca)
	cloud.PutRole("rotation", fmt.Appendf(nil, policy, w.arn, w.mesh))
	for _, variable := range cloud.Env("rotation") {
		key, value, _ := strings.Cut(variable, "=")
		t.Setenv(key, value)
	}
	w.open(fmt.Sprintf(specification, w.arn, cloud.URL, w.mesh))
	return w
}

// open makes of a specification what the program makes of it.
func (w *way) open(text string) {
	w.t.Helper()
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Directory: "/", Content: text}})
	if err != nil {
		w.t.Fatal(err)
	}
	plan, err := spec.Compile("checkout")
	if err != nil {
		w.t.Fatal(err)
	}
	if w.target, err = rotate.TargetOf(plan); err != nil {
		w.t.Fatal(err)
	}
	vault := spec.Stores["vault"]
	if w.store, err = secretsmanager.Open(w.t.Context(), secretsmanager.Config{Region: vault.Region, Endpoint: vault.Endpoint}); err != nil {
		w.t.Fatal(err)
	}
	name, declared := spec.AuthorityOf("checkout")
	w.authority, err = acm.Open(w.t.Context(), acm.Config{
		Authority: declared.ARN, Region: declared.Region, Endpoint: declared.Endpoint, Names: declared.Names, Now: w.now,
		Meter: budget.New(w.store, spec.BudgetSecret(name), declared.Budget.Certificates, w.now),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.target.Store, w.target.Keeper, w.target.Authority, w.target.Observer = w.store, w.store.Keeper(), w.authority, w
	if w.rotator, err = rotate.New(rotate.Config{Holder: "a test", Now: w.now}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *way) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Add(w.later)
}

func (w *way) wait(days int) {
	w.mu.Lock()
	w.later += time.Duration(days) * 24 * time.Hour
	w.mu.Unlock()
	w.fake.Tick()
}

// Look starts an instance, as `countersign init` would: it reads the four values, decrypts the key, and serves what fits.
func (w *way) Look(ctx context.Context, t rotate.Target) ([]rotate.Sighting, error) {
	material, err := t.Shape.Read(ctx, w.store, t.Secret, "")
	if err != nil {
		return []rotate.Sighting{{Instance: "checkout-1", By: rotate.ByHandshake, Problem: err.Error()}}, nil
	}
	defer material.Clear()
	bundle, _, err := w.store.Read(ctx, t.Bundle, "")
	if err != nil {
		return nil, err
	}
	parsed, err := credential.Parse(credential.Input{
		Certificate: credential.Value{Name: "certificate", Data: material.Certificate}, Chain: credential.Value{Name: "chain", Data: material.Chain},
		Key: credential.Value{Name: "private_key", Data: material.Key}, Passphrase: credential.Value{Name: "passphrase", Data: material.Passphrase},
		Bundle: credential.Value{Name: "bundle", Data: bundle},
	})
	if err == nil {
		err = parsed.Check(credential.Expect{Now: w.now(), DNSIdentity: t.Certificate.DNSIdentity, DNSNames: t.Certificate.DNSNames})
	}
	if err != nil {
		return nil, err
	}
	return []rotate.Sighting{{Instance: "checkout-1", Endpoint: "0.0.0.0_9443", By: rotate.ByHandshake, Serial: mtls.Serial(parsed.Leaf())}}, nil
}

// rotate rotates everything, and expects an outcome for the workload.
func (w *way) rotate(want rotate.Outcome) rotate.Result {
	w.t.Helper()
	results := w.rotator.RotateAll(w.t.Context(), []rotate.Target{w.target}, rotate.Options{})
	for _, result := range results {
		if result.Err != nil {
			w.t.Fatalf("%s: %v", result.Secret, result.Err)
		}
	}
	last := results[len(results)-1]
	if last.Outcome != want {
		w.t.Fatalf("%s (%s), want %s", last.Outcome, last.Reason, want)
	}
	return last
}

// told expects an event about the workload, and gives the certificate's ARN.
func (w *way) told(kind, action string) string {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.events {
		if e.Kind == kind && e.Detail.Action == action && e.Detail.CommonName == "checkout.payments.example" {
			return e.Resources[0]
		}
	}
	w.t.Fatalf("no event %s, %s: %+v", kind, action, w.events)
	return ""
}

// TestTheACMWay goes it as a whole: request, export, four values, decrypted at start, seen; ACM renews by itself and says so; ACM
// cannot, says that the end is near, and is told to; the budget ends it.
func TestTheACMWay(t *testing.T) {
	w := newWay(t)
	first := w.rotate(rotate.Rotated)
	if len(first.Seen) != 1 || first.Seen[0].Serial != first.Serial {
		t.Errorf("seen: %+v", first.Seen)
	}
	for _, part := range []string{"certificate", "chain", "private_key", "passphrase"} {
		if _, id, err := w.store.Read(t.Context(), w.mesh+"/checkout/"+part, ""); err != nil || id != first.Version {
			t.Errorf("%s: version %s, %v", part, id, err)
		}
	}
	w.rotate(rotate.Nothing)

	w.wait(336) // ACM renews what was exported 60 days before its end
	arn := w.told("ACM Certificate Available", "RENEWAL")
	if workload, err := w.authority.Find(t.Context(), arn); err != nil || workload != "checkout" {
		t.Errorf("%q, %v", workload, err)
	}
	second := w.rotate(rotate.Rotated)
	if !strings.Contains(second.Reason, "renewed it") || second.Serial == first.Serial || w.fake.Calls("RenewCertificate") != 0 {
		t.Errorf("%+v after %d renewals by us", second, w.fake.Calls("RenewCertificate"))
	}

	w.fake.Deny("PCA_ACCESS_DENIED")
	w.wait(351)
	arn = w.told("ACM Certificate Approaching Expiration", "")
	early := rotate.Options{Early: true} // what the event means
	if r := w.rotator.Rotate(t.Context(), w.target, early); !errors.Is(r.Err, acm.ErrFailed) || !strings.Contains(r.Error, "create-permission") {
		t.Errorf("%v, want ErrFailed and what to do", r.Err)
	}
	w.fake.Deny("")
	before := w.fake.Calls("RenewCertificate")
	third := w.rotator.Rotate(t.Context(), w.target, early)
	if third.Err != nil || third.Outcome != rotate.Rotated || third.Serial == second.Serial || w.fake.Calls("RenewCertificate") != before+1 {
		t.Errorf("%+v after %d renewals by us", third, w.fake.Calls("RenewCertificate")-before)
	}
	w.rotate(rotate.Nothing)

	// Three were paid for in two years, and the budget is for a month: two more may be made in this one.
	for range 2 {
		if r := w.rotator.Rotate(t.Context(), w.target, rotate.Options{Force: true}); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	w.fake.Revoke(arn) // what is revoked is due, and there is no budget for another one
	before = w.fake.Calls("RequestCertificate")
	if r := w.rotator.Rotate(t.Context(), w.target, rotate.Options{}); !errors.Is(r.Err, budget.ErrSpent) || w.fake.Calls("RequestCertificate") != before {
		t.Errorf("%v after %d requests, want ErrSpent", r.Err, w.fake.Calls("RequestCertificate"))
	}
	w.wait(31)
	w.rotate(rotate.Rotated)
}

// TestTheACMBudget stops renewals at the limit.
func TestTheACMBudget(t *testing.T) {
	w := newWay(t)
	w.rotate(rotate.Rotated)
	for range 2 {
		if r := w.rotator.Rotate(t.Context(), w.target, rotate.Options{Force: true}); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	before := w.fake.Calls("RenewCertificate")
	if r := w.rotator.Rotate(t.Context(), w.target, rotate.Options{Force: true}); !errors.Is(r.Err, budget.ErrSpent) || w.fake.Calls("RenewCertificate") != before {
		t.Errorf("%v after %d renewals, want ErrSpent", r.Err, w.fake.Calls("RenewCertificate"))
	}
}

// TestOthersCertificates keeps the rotation from certificates that are not the mesh's, by the policy that it has.
func TestOthersCertificates(t *testing.T) {
	w := newWay(t)
	w.rotate(rotate.Rotated)
	name := "ledger.payments.example"
	other, err := sdk.NewFromConfig(w.cloud.Admin()).RequestCertificate(t.Context(), &sdk.RequestCertificateInput{DomainName: &name, CertificateAuthorityArn: &w.arn})
	if err != nil {
		t.Fatal(err)
	}
	key, value := "countersign:workload", w.target.Workload.Identity.String()
	_, retagged := sdk.NewFromConfig(w.cloud.Config("rotation")).AddTagsToCertificate(t.Context(), &sdk.AddTagsToCertificateInput{
		CertificateArn: other.CertificateArn, Tags: []types.Tag{{Key: &key, Value: &value}},
	})
	if err := session.Explain(retagged, "acm:AddTagsToCertificate", *other.CertificateArn); !errors.Is(err, session.ErrDenied) {
		t.Errorf("tagging: %v, want ErrDenied", err)
	}
	if err := find(t, w, *other.CertificateArn); !errors.Is(err, acm.ErrUnknown) {
		t.Errorf("finding: %v, want ErrUnknown", err)
	}
	// Somebody else's of the workload's own name: who it is of is not for the rotation to decide.
	mine := "checkout.payments.example"
	taken, err := sdk.NewFromConfig(w.cloud.Admin()).RequestCertificate(t.Context(), &sdk.RequestCertificateInput{
		DomainName: &mine, CertificateAuthorityArn: &w.arn, KeyAlgorithm: types.KeyAlgorithmEcPrime256v1,
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // ACM issues it meanwhile
		if _, err := sdk.NewFromConfig(w.cloud.Admin()).DescribeCertificate(t.Context(), &sdk.DescribeCertificateInput{CertificateArn: taken.CertificateArn}); err != nil {
			t.Fatal(err)
		}
	}
	if err := find(t, w, *taken.CertificateArn); !errors.Is(err, session.ErrDenied) {
		t.Errorf("finding it: %v, want ErrDenied", err)
	}
	if r := w.rotator.Rotate(t.Context(), w.target, rotate.Options{}); !errors.Is(r.Err, session.ErrDenied) {
		t.Errorf("rotating beside it: %v, want ErrDenied", r.Err)
	}
}

func find(t *testing.T, w *way, arn string) error {
	t.Helper()
	_, err := w.authority.Find(t.Context(), arn)
	return err
}
