package whole_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/acm"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"countersign.dev/aws/internal/awstest/acmfake"
	"countersign.dev/aws/internal/awstest/deployed"
	"countersign.dev/aws/internal/awstest/pcafake"
	"countersign.dev/secret"
)

// ofACM are payments with certificates of ACM: NGINX calls NGINX, and that calls HAProxy, which know one another by DNS names. The names
// of the workloads put their own renewals behind the 356th day: the test meets their certificates before.
const ofACM = `
mesh: cards
minTLS: "1.3"
revocation: none
stores: {vault: {type: secretsmanager}}
authorities:
  acm:
    type: acm
    names: {cashier: cashier.payments.example, books: books.payments.example, entrance: entrance.payments.example}
    budget: {certificates: 10}
certificates: {authority: acm}
services:
  cashier:
    ports:
      - {port: 8081, protocol: http, app: 18081, allow: [{from: entrance}]}
    calls: [{service: books}]
    proxy: {engine: nginx, version: 1.22.1}
    delivery: &vault {type: store, store: vault, secret: "{mesh}/{service}", bundle: "{mesh}/bundle", layout: exported}
    deploy: &ecs {type: ecs, cluster: cards}
    run: {command: [countersign, example, run, checkout, --listen, "${APP_ADDRESS}", --ledger, "${CALL_BOOKS}"]}
  books:
    ports:
      - {port: 9000, protocol: grpc, app: 19000, allow: [{from: cashier}]}
    proxy: {engine: haproxy, version: 2.6.12}
    delivery: *vault
    deploy: *ecs
    run: {command: [countersign, example, run, ledger, --listen, "${APP_ADDRESS}"]}
gateways:
  entrance:
    listen: [{port: 8080, protocol: http}]
    routes: [{match: {listener: 8080, prefix: /payments}, to: [{service: cashier}]}]
    proxy: {engine: nginx, version: 1.22.1}
    delivery: *vault
    deploy: *ecs
`

// acmTime is the time of ACM and of the CA, and what ACM has said.
type acmTime struct {
	mu     sync.Mutex
	behind time.Duration
	events []string
}

func (c *acmTime) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(-c.behind)
}

// today puts the time right.
func (c *acmTime) today() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.behind = 0
}

func (c *acmTime) hear(event []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, string(event))
}

// told is the last event of a kind about a DNS name.
func (c *acmTime) told(t *testing.T, kind, name string) string {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := len(c.events) - 1; i >= 0; i-- {
		if event := c.events[i]; strings.Contains(event, `"`+kind+`"`) && strings.Contains(event, `"`+name+`"`) {
			return event
		}
	}
	t.Fatalf("ACM does not say %q of %s: %s", kind, name, c.events)
	return ""
}

// acmWay is a mesh with certificates of ACM, its tasks, and its rotation function.
type acmWay struct {
	*deployed.Mesh
	t    *testing.T
	time *acmTime
}

// exported reads the four values of a workload, as a task gets them: the key is encrypted, and the passphrase one that ACM takes.
func (w *acmWay) exported(ctx context.Context, workload string) {
	w.t.Helper()
	shape, err := secret.NewShape(secret.LayoutExported, secret.Fields{})
	if err != nil {
		w.t.Fatal(err)
	}
	names := shape.Names("cards/" + workload)
	if len(names) != 4 {
		w.t.Fatalf("%q, want four", names)
	}
	client := secretsmanager.NewFromConfig(w.Cloud.Admin())
	var values []string
	versions := make(map[string]bool)
	for _, name := range names {
		out, err := client.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: &name, VersionStage: aws.String("AWSCURRENT")})
		if err != nil {
			w.t.Fatal(err)
		}
		values = append(values, aws.ToString(out.SecretString)+string(out.SecretBinary))
		versions[aws.ToString(out.VersionId)] = true
	}
	all := strings.Join(values, "\n")
	if strings.Count(all, "BEGIN ENCRYPTED PRIVATE KEY") != 1 || strings.Contains(all, "BEGIN PRIVATE KEY") || strings.Count(all, "BEGIN CERTIFICATE") < 2 || len(versions) != 1 {
		w.t.Errorf("the four values of %s are not what ACM exports, or of %d versions", workload, len(versions))
	}
	for _, value := range values {
		if !strings.Contains(value, "-----BEGIN") && (len(value) < 4 || strings.ContainsAny(value, "#$%")) {
			w.t.Errorf("a passphrase of %d characters with one that ACM refuses", len(value))
		}
	}
}

// newest is the serial of ACM's certificate for a workload.
func (w *acmWay) newest(ctx context.Context, workload string) string {
	w.t.Helper()
	client := acm.NewFromConfig(w.Cloud.Admin())
	for _, arn := range w.ACM.ARNs() {
		out, err := client.DescribeCertificate(ctx, &acm.DescribeCertificateInput{CertificateArn: &arn})
		if err != nil {
			w.t.Fatal(err)
		}
		if aws.ToString(out.Certificate.DomainName) == workload+".payments.example" {
			return strings.ReplaceAll(aws.ToString(out.Certificate.Serial), ":", "")
		}
	}
	w.t.Fatalf("ACM has none for %s", workload)
	return ""
}

// serve makes sure that every task of cashier and books serves what ACM has, by a handshake with each, and that peers believe
// one another. The entrance has no port to look at.
func (w *acmWay) serve(ctx context.Context) (cashier, books string) {
	w.t.Helper()
	if err := pay(ctx, w.Mesh, "entrance"); err != nil {
		w.t.Error(err)
	}
	cashier, _ = serials(ctx, w.t, w.Mesh, "cashier", 8081)
	books, _ = serials(ctx, w.t, w.Mesh, "books", 9000)
	if cashier != w.newest(ctx, "cashier") || books != w.newest(ctx, "books") {
		w.t.Errorf("cashier serves %s and books %s, ACM has %s and %s", cashier, books, w.newest(ctx, "cashier"), w.newest(ctx, "books"))
	}
	return cashier, books
}

// asked makes sure how often ACM was asked for certificates, and for renewals.
func (w *acmWay) asked(requests, renewals int) {
	w.t.Helper()
	if got := w.ACM.Calls("RequestCertificate"); got != requests {
		w.t.Errorf("%d certificates were requested, want %d", got, requests)
	}
	if got := w.ACM.Calls("RenewCertificate"); got != renewals {
		w.t.Errorf("%d renewals were asked for, want %d", got, renewals)
	}
}

// TestACM goes the way of certificates that ACM makes, with tasks that really run: requested, exported as four values,
// decrypted when tasks start. When ACM cannot renew one, its event has it renewed by us; when it has, its event has it exported; and
// where that event was lost, the schedule sees the other serial.
func TestACM(t *testing.T) {
	t.Parallel()
	w := &acmWay{t: t, time: &acmTime{behind: 351 * 24 * time.Hour}} // 44 days are left of 395
	w.Mesh = deploy(t, deployed.Options{
		Specification: []byte(ofACM),
		PCA:           pcafake.Options{Now: w.time.now, PendingPolls: 1},
		ACM:           acmfake.Options{Now: w.time.now, PendingPolls: 1, Events: w.time.hear},
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if err := w.Deploy(ctx, 0, nil); err != nil {
		t.Fatal(err)
	}
	f := newRotation(t, w.Mesh)
	f.does(schedule, "cashier", "books", "entrance")
	w.asked(3, 0)
	for _, workload := range []string{"cashier", "books", "entrance"} {
		w.exported(ctx, workload)
	}
	if err := w.Deploy(ctx, 1, nil); err != nil {
		t.Fatal(err)
	}
	open(ctx, t, w.Mesh, "entrance")
	cashier, books := w.serve(ctx)
	calledWith(ctx, t, w.Mesh, "cashier", w.newest(ctx, "entrance"))

	w.ACM.Deny("PCA_ACCESS_DENIED")
	w.time.today()
	w.ACM.Tick()
	w.ACM.Deny("")
	ends := w.time.told(t, "ACM Certificate Approaching Expiration", "cashier.payments.example")
	f.does(ends, "cashier")
	w.asked(3, 1)
	w.exported(ctx, "cashier")
	renewed, same := w.serve(ctx)
	if renewed == cashier || same != books {
		t.Errorf("cashier serves %s after %s, books %s after %s", renewed, cashier, same, books)
	}
	f.does(ends) // EventBridge delivers at least once
	w.asked(3, 1)

	w.ACM.Tick() // what ACM renews by itself by now
	available := w.time.told(t, "ACM Certificate Available", "books.payments.example")
	if !strings.Contains(available, `"RENEWAL"`) {
		t.Fatal(available)
	}
	before := w.newest(ctx, "entrance")
	f.does(available, "books")
	w.asked(3, 1)
	w.exported(ctx, "books")
	if _, renewed := w.serve(ctx); renewed == books {
		t.Errorf("books still serves %s", renewed)
	}
	f.does(schedule, "entrance") // its event was lost
	w.asked(3, 1)
	if w.newest(ctx, "entrance") != before {
		t.Error("entrance's was renewed once more")
	}
	f.does(schedule)
	w.serve(ctx)
	calledWith(ctx, t, w.Mesh, "cashier", before)
	allowed(t, w.Mesh)
	if log := f.log.String(); !strings.Contains(log, `"BudgetSpent":6,`) || strings.Contains(log, `"BudgetSpent":7,`) {
		t.Error("three certificates and three renewals are not what was counted")
	}
	if f.Starts() != 1 {
		t.Errorf("the function was started %d times", f.Starts())
	}
}
