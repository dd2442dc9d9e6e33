package mesh_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/mesh"
)

const onAWS = `
mesh: payments
stores: {vault: {type: secretsmanager, region: eu-central-1}}
authorities:
  pca: {type: acmpca}
  far-away: {type: acmpca, arn: "arn:aws-cn:acm-pca:cn-north-1:111122223333:certificate-authority/11111111-2222-3333-4444-555555555555", mode: short-lived, budget: {certificates: 7}}
  acm: {type: acm, names: {ledger: ledger.example.com}}
certificates: {authority: pca}
services:
  checkout:
    ports: [{port: 9000, protocol: http}, {port: 9001, protocol: http, allow: [{from: any}]}]
    proxy: {engine: nginx}
    delivery: {type: store, store: vault, secret: "{service}"}
    deploy: {type: ecs, cluster: payments}
  ledger:
    ports: [{port: 7000, protocol: http}]
    names: [ledger.example.com, ledger.example.org]
    calls: [{service: checkout, port: 9000}]
    certificates: {authority: acm, renewAfter: 8000h}
    proxy: {engine: nginx}
    delivery: {type: store, store: vault, secret: "{service}", layout: exported, bundle: bundle}
`

// TestAuthorities proves what a specification says about authorities of AWS, and what it fills in.
func TestAuthorities(t *testing.T) {
	spec := parse(t, onAWS)
	want := map[string]mesh.Authority{
		"pca": {
			Type: mesh.AuthorityACMPCA, Mode: mesh.ModeGeneralPurpose, Template: "arn:aws:acm-pca:::template/EndEntityCertificate/V1",
			Create: mesh.CreateRoot, Budget: mesh.Budget{Certificates: 1000, Store: "vault"},
		},
		"far-away": {
			Type: mesh.AuthorityACMPCA, ARN: "arn:aws-cn:acm-pca:cn-north-1:111122223333:certificate-authority/11111111-2222-3333-4444-555555555555",
			Region: "cn-north-1", Mode: mesh.ModeShortLived, Template: "arn:aws-cn:acm-pca:::template/EndEntityCertificate/V1",
			Budget: mesh.Budget{Certificates: 7, Store: "vault"},
		},
		"acm": {
			Type: mesh.AuthorityACM, Mode: mesh.ModeGeneralPurpose, Create: mesh.CreateRoot,
			Names: map[string]string{"ledger": "ledger.example.com"}, Budget: mesh.Budget{Certificates: 1000, Store: "vault"},
		},
	}
	if diff := cmp.Diff(want, spec.Authorities); diff != "" {
		t.Errorf("authorities (-want +got):\n%s", diff)
	}
	for workload, want := range map[string]string{"checkout": "pca acmpca", "ledger": "acm acm", "nobody": "pca acmpca"} {
		if name, authority := spec.AuthorityOf(workload); name+" "+authority.Type != want {
			t.Errorf("the authority of %s is %s %s, want %s", workload, name, authority.Type, want)
		}
	}
	if name, authority := parse(t, "mesh: m\nservices: {a: {}}").AuthorityOf("a"); name != "" || authority.Type != mesh.AuthorityEmbedded {
		t.Errorf("the default is %q, %+v", name, authority)
	}
	if got := spec.BudgetSecret("pca"); got != "payments/pca.budget" {
		t.Errorf("the budget's secret is %q", got)
	}
	if got := mesh.AuthorityVariable("far-away"); got != "COUNTERSIGN_AUTHORITY_FAR_AWAY_ARN" {
		t.Errorf("the variable is %q", got)
	}
}

// TestNamedByDNS proves what Plans say about a workload whose certificates have no SPIFFE ID.
func TestNamedByDNS(t *testing.T) {
	ledger := plan(t, onAWS, "ledger")
	if diff := cmp.Diff([]string{"ledger.example.com", "ledger.example.org"}, ledger.Certificate.DNSNames); diff != "" {
		t.Errorf("its names (-want +got):\n%s", diff)
	}
	if c := ledger.Certificate; c.TTL.String() != "9480h" || c.RenewAfter.String() != "8000h" || c.Authority != "acm" || c.DNSIdentity != "ledger.example.com" {
		t.Errorf("its certificate is %+v", c)
	}
	checkout := plan(t, onAWS, "checkout")
	if checkout.Certificate.DNSIdentity != "" {
		t.Errorf("a workload with a SPIFFE ID has the DNS identity %q", checkout.Certificate.DNSIdentity)
	}
	rules := [][]string{checkout.Inbound[0].Rules[0].From, checkout.Inbound[1].Rules[0].From}
	if diff := cmp.Diff([][]string{{"dns:ledger.example.com"}, {"any", "dns:ledger.example.com"}}, rules); diff != "" {
		t.Errorf("who is let in (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(&mesh.ECSDeploy{Cluster: "payments", Service: "checkout"}, checkout.ECS); diff != "" || checkout.Deploy != mesh.DeployECS {
		t.Errorf("deploy %q (-want +got):\n%s", checkout.Deploy, diff)
	}
	called := parse(t, strings.Replace(onAWS, "    deploy: {type: ecs, cluster: payments}", "    calls: [{service: ledger}]", 1))
	caller, err := called.Compile("checkout")
	if err != nil {
		t.Fatal(err)
	}
	if u := caller.Upstreams[0]; u.ServerName != "ledger.example.com" || u.Identity.String() != "spiffe://payments.internal/service/ledger" {
		t.Errorf("the far end is %q, %s", u.ServerName, u.Identity)
	}
}

// TestAt proves that an ARN that is learned later is checked as one that is written, and decides region and partition.
func TestAt(t *testing.T) {
	const china = "arn:aws-cn:acm-pca:cn-north-1:111122223333:certificate-authority/11111111-2222-3333-4444-555555555555"
	got, err := parse(t, onAWS).Authorities["pca"].At(china)
	if err != nil || got.ARN != china || got.Region != "cn-north-1" || got.Template != "arn:aws-cn:acm-pca:::template/EndEntityCertificate/V1" {
		t.Errorf("got %+v, %v", got, err)
	}
	if got, err := parse(t, onAWS).Authorities["acm"].At(china); err != nil || got.Template != "" {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, arn := range []string{"", "x", strings.Replace(china, "aws-cn", "aws", 1), strings.Replace(china, "1111", "*", 1)} {
		if _, err := parse(t, onAWS).Authorities["pca"].At(arn); err == nil {
			t.Errorf("%q is taken", arn)
		}
	}
	if _, err := (mesh.Authority{Type: mesh.AuthorityACMPCA, Region: "eu-central-1"}).At(china); err == nil || !strings.Contains(err.Error(), "the specification says eu-central-1") {
		t.Errorf("a CA of another region: %v", err)
	}
}

// TestServerCan proves that a server is told of no workload whose certificates it does not issue.
func TestServerCan(t *testing.T) {
	err := parse(t, onAWS).ServerCan()
	if !errors.Is(err, mesh.ErrForeignAuthority) {
		t.Fatalf("got %v, want ErrForeignAuthority", err)
	}
	for _, part := range []string{"service checkout from pca (acmpca)", "service ledger from acm (acm)", "countersign rotate once --mesh PATH"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
	if at, ok := errors.AsType[*mesh.Error](err); !ok || at.Line == 0 || !strings.HasSuffix(at.Path, "certificates.authority") {
		t.Errorf("%v has the place %+v", err, at)
	}
	own := parse(t, "mesh: m\nauthorities: {own: {type: embedded}, pca: {type: acmpca, budget: {store: s}}}\nstores: {s: {type: secretsmanager}}\ncertificates: {authority: own}\nservices: {a: {}}")
	if err := own.ServerCan(); err != nil {
		t.Errorf("an authority that nobody uses: %v", err)
	}
}

// TestDiffOnAWS proves that no change of what is said about AWS goes unnoticed.
func TestDiffOnAWS(t *testing.T) {
	after := strings.NewReplacer(
		"region: eu-central-1", "region: eu-west-1, kmsKey: alias/a",
		"pca: {type: acmpca}", "pca: {type: acmpca, region: eu-west-1, endpoint: \"https://example.com\", create: subordinate}",
		"budget: {certificates: 7}", "budget: {certificates: 8}",
		"names: {ledger: ledger.example.com}", "names: {ledger: ledger.example.org}",
		"cluster: payments", "cluster: other, service: pay",
	).Replace(onAWS)
	want := []string{
		"~ store vault: secretsmanager region=eu-central-1 -> secretsmanager region=eu-west-1 kmsKey=alias/a",
		"~ authority acm: acm mode=general-purpose create=root ledger=ledger.example.com within 1000 a month, counted in vault -> acm mode=general-purpose create=root ledger=ledger.example.org within 1000 a month, counted in vault",
		"~ authority far-away: acmpca arn=arn:aws-cn:acm-pca:cn-north-1:111122223333:certificate-authority/11111111-2222-3333-4444-555555555555 region=cn-north-1 mode=short-lived template=arn:aws-cn:acm-pca:::template/EndEntityCertificate/V1 within 7 a month, counted in vault -> acmpca arn=arn:aws-cn:acm-pca:cn-north-1:111122223333:certificate-authority/11111111-2222-3333-4444-555555555555 region=cn-north-1 mode=short-lived template=arn:aws-cn:acm-pca:::template/EndEntityCertificate/V1 within 8 a month, counted in vault",
		"~ authority pca: acmpca mode=general-purpose template=arn:aws:acm-pca:::template/EndEntityCertificate/V1 create=root within 1000 a month, counted in vault -> acmpca region=eu-west-1 endpoint=https://example.com mode=general-purpose template=arn:aws:acm-pca:::template/EndEntityCertificate/V1 create=subordinate within 1000 a month, counted in vault",
		"~ service checkout: deploy.ecs payments/checkout -> other/pay",
	}
	if diff := cmp.Diff(want, mesh.Diff(parse(t, onAWS), parse(t, after))); diff != "" {
		t.Errorf("Diff (-want +got):\n%s", diff)
	}
	fixed := []string{want[0], want[4]}
	if diff := cmp.Diff(fixed, mesh.SameTopology(parse(t, onAWS), parse(t, after))); diff != "" {
		t.Errorf("SameTopology (-want +got):\n%s", diff)
	}
}
