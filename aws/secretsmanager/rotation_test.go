package secretsmanager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager/types"

	"countersign.dev/aws/internal/awstest"
	"countersign.dev/aws/lambda"
	spiffe "countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/issue/issuetest"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/rotate"
	"countersign.dev/secret"
)

// world is a workload whose credential lies in Secrets Manager, with an authority, and instances that take what is current.
type world struct {
	t      *testing.T
	store  *Store
	cloud  *awstest.Cloud
	ca     *issuetest.Authority
	target rotate.Target

	mu      sync.Mutex
	answers map[string][]byte
	deaf    bool // the instances take nothing
	served  string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	store, cloud, name := start(t)
	w := &world{t: t, store: store, cloud: cloud, ca: issuetest.New(t), answers: make(map[string][]byte)}
	who, err := spiffe.New("shop.internal", spiffe.Service, "orders")
	if err != nil {
		t.Fatal(err)
	}
	shape, err := secret.NewShape(secret.LayoutJSON, secret.Fields{})
	if err != nil {
		t.Fatal(err)
	}
	w.target = rotate.Target{
		Workload: mesh.Workload{Name: "orders", Kind: spiffe.Service, Identity: who},
		Certificate: mesh.CertificatePlan{
			Identity: who, DNSNames: []string{"orders", "orders.shop.internal"}, TTL: mesh.Duration(time.Hour), RenewAfter: mesh.Duration(40 * time.Minute), Key: mesh.ECDSAP256,
		},
		Secret: name, Shape: shape, StoreName: "vault", Store: store, Keeper: store.Keeper(), Observer: w,
	}
	return w
}

func (w *world) Trust(context.Context) (rotate.Trust, error) {
	return rotate.Trust{Bundle: issuetest.PEM(w.ca.Root), Issuer: w.ca.Issuing}, nil
}

func (w *world) Issue(_ context.Context, request rotate.Request) ([]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if chain := w.answers[request.ID]; chain != nil {
		return chain, nil
	}
	csr, err := issue.ParseCSR(request.CSR)
	if err != nil {
		return nil, err
	}
	profile, err := issue.NewProfile(issue.ProfileConfig{TrustDomain: "shop.internal", MaxTTL: 24 * time.Hour})
	if err != nil {
		return nil, err
	}
	issuer, err := issue.NewIssuer(w.ca.Issuing, w.ca.Key, profile, time.Now)
	if err != nil {
		return nil, err
	}
	prepared, err := issuer.Prepare(issue.Request{ID: request.Workload.Identity, PublicKey: csr.PublicKey, DNSNames: request.DNSNames, TTL: request.TTL})
	if err != nil {
		return nil, err
	}
	leaf, err := issuer.Issue(prepared)
	if err != nil {
		return nil, err
	}
	chain := issuetest.PEM(leaf, w.ca.Issuing)
	w.answers[request.ID] = chain
	return chain, nil
}

func (w *world) Look(ctx context.Context, t rotate.Target) ([]rotate.Sighting, error) {
	current, err := t.Shape.Read(ctx, w.store, t.Secret, "")
	if err != nil && !errors.Is(err, secret.ErrNotFound) {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil && !w.deaf {
		chain, err := mtls.ParseCertificates(current.Certificate)
		if err != nil {
			return nil, err
		}
		w.served = mtls.Serial(chain[0])
	}
	return []rotate.Sighting{{Instance: "task-1", Endpoint: "10.0.0.1:443", Serial: w.served, By: rotate.ByHandshake}}, nil
}

func (w *world) Restart(context.Context, string, string) error { return errors.New("nobody restarts") }

func (w *world) rotator() *rotate.Rotator {
	w.t.Helper()
	r, err := rotate.New(rotate.Config{Authority: w, Deployer: w, Observer: w, Holder: rotate.Holder(), Timeout: 2 * time.Second})
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) rotate(o rotate.Options, want rotate.Outcome) rotate.Result {
	w.t.Helper()
	result := w.rotator().Rotate(w.t.Context(), w.target, o)
	if result.Outcome != want {
		w.t.Fatalf("%s, %v, want %s", result.Outcome, result.Err, want)
	}
	return result
}

func TestRotation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.rotate(rotate.Options{}, rotate.Rotated)
	w.rotate(rotate.Options{}, rotate.Nothing)
	second := w.rotate(rotate.Options{Force: true}, rotate.Rotated)
	w.deaf = true
	third := w.rotate(rotate.Options{Force: true}, rotate.RolledBack)
	if third.Serial != second.Serial || second.Serial == first.Serial {
		t.Errorf("%s, %s, and back to %s", first.Serial, second.Serial, third.Serial)
	}
	w.deaf = false
	w.rotate(rotate.Options{}, rotate.Nothing)
	versions, err := w.store.Versions(t.Context(), w.target.Secret)
	if err != nil {
		t.Fatal(err)
	}
	for _, version := range versions {
		if strings.HasSuffix(version.ID, "-req") || (len(version.Stages) == 0 && version.ID != placeholderID) {
			t.Errorf("%s was left", version.ID)
		}
	}
	status := rotate.ReadStatus(t.Context(), w.target)
	if status.Serial != second.Serial || status.Holder != "" || status.FailuresTotal != 1 || status.Problem != "" {
		t.Errorf("%+v", status)
	}
}

// Whichever call fails, and however often: what is current is never unproved, and the rotation comes to its end with at most one more
// certificate.
func TestRotationThroughFaults(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	before := w.rotate(rotate.Options{}, rotate.Rotated)
	for _, broken := range []string{"DescribeSecret", "PutSecretValue", "GetSecretValue", "UpdateSecretVersionStage", "ListSecretVersionIds"} {
		for _, turn := range []int32{1, 2, 5} {
			var count atomic.Int32
			w.cloud.Fault(func(_ *http.Request, action string) *http.Response {
				if action == "secretsmanager:"+broken && count.Add(1) == turn {
					return refuse(500, "InternalServiceError", "")
				}
				return nil
			})
			issued := len(w.answers)
			w.rotator().Rotate(t.Context(), w.target, rotate.Options{Force: true})
			w.cloud.Fault(nil)
			current, err := w.target.Shape.Read(t.Context(), w.store, w.target.Secret, "")
			if err != nil {
				t.Fatalf("%s, turn %d: %v", broken, turn, err)
			}
			if w.answers[current.Version] == nil {
				t.Errorf("%s, turn %d: current is %s, which nobody has issued", broken, turn, current.Version)
			}
			deadline := time.Now().Add(30 * time.Second)
			for {
				result := w.rotator().Rotate(t.Context(), w.target, rotate.Options{})
				if result.Err == nil {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("%s, turn %d: %v", broken, turn, result.Err)
				}
				// A lease that could not be given back would run out.
				if err := w.store.EndLease(t.Context(), w.target.Secret, rotate.Holder()); err != nil {
					t.Fatal(err)
				}
			}
			if more := len(w.answers) - issued; more > 1 {
				t.Errorf("%s, turn %d: %d certificates", broken, turn, more)
			}
		}
	}
	if status := rotate.ReadStatus(t.Context(), w.target); status.Serial == before.Serial || status.Problem != "" {
		t.Errorf("%+v", status)
	}
}

const token = "c8a55f1e-6c1e-4a3b-9a37-4b8a8a7d9f1%d"

// begin lets Secrets Manager begin a rotation. moto has no function to call, and says so after it has done what AWS does: the
// test is the function.
func (w *world) begin(n int) (arn, version string) {
	w.t.Helper()
	version = fmt.Sprintf(token, n)
	_, err := w.store.client.RotateSecret(w.t.Context(), &sdk.RotateSecretInput{
		SecretId: aws.String(w.target.Secret), ClientRequestToken: aws.String(version),
		RotationLambdaARN: aws.String("arn:aws:lambda:eu-central-1:123456789012:function:countersign-rotation"),
		RotationRules:     &types.RotationRulesType{AutomaticallyAfterDays: aws.Int64(30)},
	})
	if missing := (&types.ResourceNotFoundException{}); err != nil && !errors.As(err, &missing) {
		w.t.Fatal(err)
	}
	described, err := w.store.client.DescribeSecret(w.t.Context(), &sdk.DescribeSecretInput{SecretId: aws.String(w.target.Secret)})
	if err != nil || described.VersionIdsToStages[version] == nil || !aws.ToBool(described.RotationEnabled) {
		w.t.Fatalf("the rotation was not begun: %+v, %v", described, err)
	}
	return aws.ToString(described.ARN), version
}

func stepEvent(step, arn, version string) json.RawMessage {
	return json.RawMessage(fmt.Sprintf(`{"Step":%q,"SecretId":%q,"ClientRequestToken":%q}`, step, arn, version))
}

// Secrets Manager's own rotation, each step twice, as AWS may order it.
func TestSecretsManagersOwnRotation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.rotate(rotate.Options{}, rotate.Rotated)
	arn, version := w.begin(1)
	h := &lambda.Handler{Log: slog.New(slog.DiscardHandler), Steps: lambda.NewSteps(w.rotator(), w.store, []rotate.Target{w.target}, rotate.Options{})}
	for _, step := range []string{"createSecret", "createSecret", "setSecret", "testSecret", "testSecret"} {
		if _, err := h.Handle(t.Context(), stepEvent(step, arn, version)); err != nil {
			t.Fatalf("%s: %v", step, err)
		}
		if _, current, err := w.store.Read(t.Context(), w.target.Secret, ""); err != nil || current != first.Version {
			t.Fatalf("after %s current is %s, %v", step, current, err)
		}
	}
	if _, pending, err := w.store.Read(t.Context(), w.target.Secret, "pending"); err != nil || pending != version {
		t.Errorf("pending is %s, %v", pending, err)
	}
	for range 2 {
		if _, err := h.Handle(t.Context(), stepEvent("finishSecret", arn, version)); err != nil {
			t.Fatal(err)
		}
	}
	if _, current, err := w.store.Read(t.Context(), w.target.Secret, ""); err != nil || current != version || len(w.answers) != 2 {
		t.Errorf("at the end current is %s, %v, with %d certificates", current, err, len(w.answers))
	}
	if _, previous, err := w.store.Read(t.Context(), w.target.Secret, "previous"); err != nil || previous != first.Version {
		t.Errorf("the way back leads to %s, %v", previous, err)
	}
	for id := range staged(t, w.store, w.target.Secret) {
		if strings.HasSuffix(id, "-req") {
			t.Errorf("%s was left", id)
		}
	}
	w.rotate(rotate.Options{}, rotate.Nothing)
	// What nobody serves is taken back, and the invocation fails.
	arn, version = w.begin(2)
	w.deaf = true
	for _, step := range []string{"createSecret", "testSecret"} {
		if _, err := h.Handle(t.Context(), stepEvent(step, arn, version)); err != nil {
			t.Fatalf("%s: %v", step, err)
		}
	}
	if _, err := h.Handle(t.Context(), stepEvent("finishSecret", arn, version)); !errors.Is(err, rotate.ErrNotServed) {
		t.Errorf("nobody serves it: %v", err)
	}
	if _, current, err := w.store.Read(t.Context(), w.target.Secret, ""); err != nil || current != fmt.Sprintf(token, 1) {
		t.Errorf("after a rotation that failed current is %s, %v", current, err)
	}
}

// A step that comes before its time is refused and changes nothing: the steps in their order come to their end.
func TestOwnRotationOutOfOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.rotate(rotate.Options{}, rotate.Rotated)
	arn, version := w.begin(1)
	h := &lambda.Handler{Log: slog.New(slog.DiscardHandler), Steps: lambda.NewSteps(w.rotator(), w.store, []rotate.Target{w.target}, rotate.Options{})}
	for step, want := range map[string]error{"testSecret": secret.ErrNotFound, "finishSecret": rotate.ErrTooEarly} {
		if _, err := h.Handle(t.Context(), stepEvent(step, arn, version)); !errors.Is(err, want) {
			t.Errorf("%s before createSecret: %v", step, err)
		}
	}
	if _, current, err := w.store.Read(t.Context(), w.target.Secret, ""); err != nil || current != first.Version || len(w.answers) != 1 {
		t.Errorf("current is %s, %v, with %d certificates", current, err, len(w.answers))
	}
	for _, step := range []string{"createSecret", "setSecret", "testSecret", "finishSecret"} {
		if _, err := h.Handle(t.Context(), stepEvent(step, arn, version)); err != nil {
			t.Fatalf("%s: %v", step, err)
		}
	}
	if _, current, err := w.store.Read(t.Context(), w.target.Secret, ""); err != nil || current != version || len(w.answers) != 2 {
		t.Errorf("at the end current is %s, %v, with %d certificates", current, err, len(w.answers))
	}
}

// AWS has room for twenty labels on all versions of a secret together: a rotation that is over leaves none behind.
func TestOwnRotationLeavesNoLabels(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.rotate(rotate.Options{}, rotate.Rotated)
	h := &lambda.Handler{Log: slog.New(slog.DiscardHandler), Steps: lambda.NewSteps(w.rotator(), w.store, []rotate.Target{w.target}, rotate.Options{})}
	const rotations = 4
	for n := range rotations {
		arn, version := w.begin(n)
		for _, step := range []string{"createSecret", "createSecret", "testSecret", "finishSecret"} {
			if _, err := h.Handle(t.Context(), stepEvent(step, arn, version)); err != nil {
				t.Fatalf("%s: %v", step, err)
			}
		}
	}
	now, err := w.store.describe(t.Context(), w.target.Secret)
	if err != nil {
		t.Fatal(err)
	}
	for id, labels := range now {
		for _, label := range labels {
			if label != labelCurrent && label != labelPrevious && label != labelPending {
				t.Errorf("the version %s has kept the label %s", id, label)
			}
		}
	}
	if len(now) != 2 {
		t.Errorf("labels are on the versions %v; want them on the current one and the one before", now)
	}
	w.rotate(rotate.Options{}, rotate.Nothing)
}

func TestOwnRotationRefuses(t *testing.T) {
	w := newWorld(t)
	first := w.rotate(rotate.Options{}, rotate.Rotated)
	arn := func(name string) string {
		return "arn:aws:secretsmanager:eu-central-1:123456789012:secret:" + name + "-AbCdEf"
	}
	described, err := w.store.client.DescribeSecret(t.Context(), &sdk.DescribeSecretInput{SecretId: aws.String(w.target.Secret)})
	if err != nil {
		t.Fatal(err)
	}
	own, version := aws.ToString(described.ARN), fmt.Sprintf(token, 1)
	target := w.target
	if target.Shape, err = secret.NewShape(secret.LayoutExported, secret.Fields{}); err != nil {
		t.Fatal(err)
	}
	target.Secret = "other"
	h := &lambda.Handler{Log: slog.New(slog.DiscardHandler), Steps: lambda.NewSteps(w.rotator(), w.store, []rotate.Target{w.target, target}, rotate.Options{})}
	refused := func(name, arn, version string, is error, want string) {
		t.Helper()
		for _, step := range []string{"createSecret", "setSecret", "testSecret", "finishSecret"} {
			if _, err := h.Handle(t.Context(), stepEvent(step, arn, version)); !errors.Is(err, is) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s, %s: %v", name, step, err)
			}
		}
	}
	refused("not enabled", own, version, ErrNoRotation, "is not enabled")
	refused("another secret", arn("foreign"), version, lambda.ErrNotSet, "no credential of the mesh")
	refused("one of several", arn("other/private_key"), version, lambda.ErrNotSet, "let the schedule")
	own, version = w.begin(1)
	refused("another version", own, fmt.Sprintf(token, 2), ErrNoRotation, "has no stage")
	stage(t, w.store, w.target.Secret, id33, "somebody's")
	if _, err := h.Handle(t.Context(), stepEvent("createSecret", own, version)); !errors.Is(err, ErrNoRotation) {
		t.Errorf("a version that is pending no more: %v", err)
	}
	if _, current, err := w.store.Read(t.Context(), w.target.Secret, ""); err != nil || current != first.Version || len(w.answers) != 1 {
		t.Errorf("current is %s, %v, with %d certificates", current, err, len(w.answers))
	}
	if _, err := w.store.Rotates(t.Context(), "a b", own, version); !errors.Is(err, secret.ErrInvalid) {
		t.Errorf("no name: %v", err)
	}
	if _, err := w.store.Rotates(t.Context(), "none/such", own, version); !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("no secret: %v", err)
	}
}

// A rotation of a stranger's secret moves nothing here, even where the ids are the same.
func TestRotationOfAStranger(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.rotate(rotate.Options{}, rotate.Rotated)
	h := &lambda.Handler{Log: slog.New(slog.DiscardHandler), Steps: lambda.NewSteps(w.rotator(), w.store, []rotate.Target{w.target}, rotate.Options{})}
	own, version := w.begin(1)
	for _, arn := range []string{
		strings.Replace(own, ":123456789012:", ":999999999999:", 1), strings.Replace(own, ":eu-central-1:", ":us-east-1:", 1), own[:len(own)-6] + "000000",
	} {
		for _, step := range []string{"createSecret", "setSecret", "testSecret", "finishSecret"} {
			if _, err := h.Handle(t.Context(), stepEvent(step, arn, version)); !errors.Is(err, ErrNoRotation) || !strings.Contains(err.Error(), own) {
				t.Errorf("%s of %s: %v", step, arn, err)
			}
		}
	}
	if _, current, err := w.store.Read(t.Context(), w.target.Secret, ""); err != nil || current != first.Version || len(w.answers) != 1 {
		t.Errorf("current is %s, %v, with %d certificates", current, err, len(w.answers))
	}
}

// id33 is an id of nobody's rotation.
const id33 = "somebody-has-put-this-by-hand-0001"

var _ lambda.Versions = (*Store)(nil)

// However many are told to rotate at one time, one certificate is asked for.
func TestManyTriggersIssueOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const triggers = 50
	var group sync.WaitGroup
	for range triggers {
		group.Go(func() {
			result := w.rotator().Rotate(t.Context(), w.target, rotate.Options{})
			if result.Err != nil && !errors.Is(result.Err, secret.ErrHeld) && !errors.Is(result.Err, secret.ErrLeaseLost) && !errors.Is(result.Err, errContended) {
				t.Errorf("%s: %v", result.Outcome, result.Err)
			}
		})
	}
	group.Wait()
	w.rotator().Rotate(t.Context(), w.target, rotate.Options{}) // where a machine stood still for longer than a lease
	w.rotate(rotate.Options{}, rotate.Nothing)
	if len(w.answers) != 1 {
		t.Errorf("%d certificates were issued", len(w.answers))
	}
}
