package ecs

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	awssecrets "github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"countersign.dev/aws/internal/awstest"
	"countersign.dev/aws/internal/awstest/ecsfake"
	"countersign.dev/aws/internal/awstest/ecsfake/jail"
	"countersign.dev/aws/secretsmanager"
	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/rotate"
	"countersign.dev/secret"
)

// part says which container this binary is.
const part = "COUNTERSIGN_TEST_PART"

// TestMain enters namespaces of its own, in which the double of ECS runs tasks; in those, this binary is the containers.
func TestMain(m *testing.M) {
	switch os.Getenv(part) {
	case "init":
		initial()
		return
	case "proxy":
		proxy()
		return
	}
	if err := ecsfake.Enter(); err != nil && !errors.Is(err, ecsfake.ErrUnavailable) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// initial takes no certificate but the one that the file says, when it says one.
func initial() {
	pair, err := tls.X509KeyPair([]byte(os.Getenv("CERT")), []byte(os.Getenv("KEY")))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	only, err := os.ReadFile("/only")
	if err != nil || (len(only) > 0 && string(only) != mtls.Serial(pair.Leaf)) {
		fmt.Println("the certificate is not wanted", err)
		os.Exit(1)
	}
}

// proxy serves what it was started with.
func proxy() {
	pair, err := tls.X509KeyPair([]byte(os.Getenv("CERT")), []byte(os.Getenv("KEY")))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	listener, err := net.Listen("tcp", ":9443")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	go func() {
		<-end
		os.Exit(0)
	}()
	for {
		raw, err := listener.Accept()
		if err != nil {
			os.Exit(1)
		}
		go func() {
			conn := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13})
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			_, _ = io.Copy(io.Discard, conn) // it has no client certificate
			conn.Close()
		}()
	}
}

// Issue implements [rotate.Authority].
func (ca *testCA) Issue(_ context.Context, request rotate.Request) ([]byte, error) {
	csr, err := issue.ParseCSR(request.CSR)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: request.Workload.Name}, DNSNames: request.DNSNames, URIs: []*url.URL{request.Workload.Identity.URL()},
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		NotBefore: time.Now().Add(-issue.ClockAllowance), NotAfter: time.Now().Add(request.TTL),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, csr.PublicKey, ca.key)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), err
}

// Trust implements [rotate.Authority].
func (ca *testCA) Trust(context.Context) (rotate.Trust, error) {
	return rotate.Trust{Bundle: ca.pem, Issuer: ca.cert}, nil
}

// whole is a service on the double of ECS, which takes its certificate from a secret.
type whole struct {
	t      *testing.T
	cloud  *awstest.Cloud
	admin  *awsecs.Client
	name   string // of its secret
	only   string // the file that says which certificate is wanted
	target rotate.Target
}

const (
	executionPolicy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"secretsmanager:GetSecretValue","Resource":"arn:aws:secretsmanager:eu-central-1:123456789012:secret:NAME-??????"}]}`
	rotationPolicy  = `{"Version":"2012-10-17","Statement":[
	{"Effect":"Allow","Action":["ecs:UpdateService","ecs:DescribeServices"],"Resource":"arn:aws:ecs:eu-central-1:123456789012:service/payments/checkout"},
	{"Effect":"Allow","Action":"ecs:DescribeTasks","Resource":"arn:aws:ecs:eu-central-1:123456789012:task/payments/*"},
	{"Effect":"Allow","Action":"ecs:ListTasks","Resource":"*","Condition":{"ArnEquals":{"ecs:cluster":"arn:aws:ecs:eu-central-1:123456789012:cluster/payments"}}},
	{"Effect":"Allow","Action":"secretsmanager:*","Resource":"arn:aws:secretsmanager:eu-central-1:123456789012:secret:NAME*"}
]}`
)

func newWhole(t *testing.T) *whole {
	t.Helper()
	if !jail.Inside() {
		if os.Getenv("CI") == "true" {
			t.Fatal("namespaces cannot be made; CI has to run as root")
		}
		t.Skip("SKIPPED: the double of ECS needs root")
	}
	w := &whole{t: t, cloud: awstest.Start(t), name: "payments/whole-" + strings.ToLower(rand.Text()[:8]), only: filepath.Join(t.TempDir(), "only")}
	w.want("")
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	images := map[string]ecsfake.Image{}
	for _, name := range []string{"init", "proxy"} {
		images[name] = ecsfake.Image{
			Host:    true, // the test binary may be linked with libraries
			Binds:   []jail.Bind{{Source: binary, Target: "/program"}, {Source: w.only, Target: "/only"}},
			Command: []string{"/program"}, Environment: []string{part + "=" + name},
		}
	}
	fake, err := ecsfake.New(ecsfake.Options{
		Region: awstest.Region, Account: awstest.Account, Second: 20 * time.Millisecond, Front: w.cloud.URL, Images: images, Log: t.Logf,
		Assume: func(role string) (ecsfake.Credentials, error) {
			c := w.cloud.Assume(name(role))
			return ecsfake.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, Token: c.SessionToken, Expires: c.Expires}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	w.cloud.Mount("ecs", fake)
	w.cloud.PutRole("whole-execution", w.policy(executionPolicy))
	w.cloud.PutRole("whole-rotation", w.policy(rotationPolicy))
	w.service(w.secret())
	w.open()
	return w
}

// want has tasks come up only with one certificate; empty is any.
func (w *whole) want(serial string) {
	w.t.Helper()
	if err := os.WriteFile(w.only, []byte(serial), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// policy is a policy with the secret's name.
func (w *whole) policy(text string) []byte { return []byte(strings.ReplaceAll(text, "NAME", w.name)) }

// secret makes the service's secrets, as a template does, and gives the ARN of the first.
func (w *whole) secret() string {
	w.t.Helper()
	client := awssecrets.NewFromConfig(w.cloud.Admin())
	var arns []string
	for _, name := range []string{w.name, w.name + ".rotation"} {
		out, err := client.CreateSecret(w.t.Context(), &awssecrets.CreateSecretInput{Name: &name, SecretString: aws.String("PLACEHOLDER")})
		if err != nil {
			w.t.Fatal(err)
		}
		arns = append(arns, *out.ARN)
	}
	return arns[0]
}

// service makes a service without tasks.
func (w *whole) service(arn string) {
	w.t.Helper()
	ctx := w.t.Context()
	w.admin = awsecs.NewFromConfig(w.cloud.Admin())
	secrets := []types.Secret{{Name: aws.String("CERT"), ValueFrom: aws.String(arn + ":cert_pem::")}, {Name: aws.String("KEY"), ValueFrom: aws.String(arn + ":key_pem::")}}
	_, err := w.admin.CreateCluster(ctx, &awsecs.CreateClusterInput{ClusterName: aws.String("payments")})
	if err == nil {
		_, err = w.admin.RegisterTaskDefinition(ctx, &awsecs.RegisterTaskDefinitionInput{
			Family: aws.String("checkout"), Cpu: aws.String("256"), Memory: aws.String("512"), NetworkMode: types.NetworkModeAwsvpc,
			RequiresCompatibilities: []types.Compatibility{types.CompatibilityFargate}, ExecutionRoleArn: aws.String("arn:aws:iam::123456789012:role/whole-execution"),
			ContainerDefinitions: []types.ContainerDefinition{
				{Name: aws.String("init"), Image: aws.String("init"), Essential: aws.Bool(false), Secrets: secrets},
				{
					Name: aws.String("proxy"), Image: aws.String("proxy"), Essential: aws.Bool(true), Secrets: secrets,
					DependsOn: []types.ContainerDependency{{ContainerName: aws.String("init"), Condition: types.ContainerConditionSuccess}},
				},
			},
		})
	}
	if err == nil {
		_, err = w.admin.CreateService(ctx, &awsecs.CreateServiceInput{
			Cluster: aws.String("payments"), ServiceName: aws.String("checkout"), TaskDefinition: aws.String("checkout"), DesiredCount: aws.Int32(0), LaunchType: types.LaunchTypeFargate,
			NetworkConfiguration:    &types.NetworkConfiguration{AwsvpcConfiguration: &types.AwsVpcConfiguration{Subnets: []string{"subnet-1"}}},
			DeploymentConfiguration: &types.DeploymentConfiguration{DeploymentCircuitBreaker: &types.DeploymentCircuitBreaker{Enable: true, Rollback: true}},
		})
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// open makes the target, as the role that rotates.
func (w *whole) open() {
	w.t.Helper()
	for _, variable := range w.cloud.Env("whole-rotation") {
		name, value, _ := strings.Cut(variable, "=")
		w.t.Setenv(name, value)
	}
	store, err := secretsmanager.Open(w.t.Context(), secretsmanager.Config{})
	if err != nil {
		w.t.Fatal(err)
	}
	service, err := Open(w.t.Context(), Config{Cluster: "payments", Service: "checkout"})
	if err != nil {
		w.t.Fatal(err)
	}
	service.first, service.last = 20*time.Millisecond, 100*time.Millisecond
	shape, err := secret.NewShape(secret.LayoutJSON, secret.Fields{})
	if err != nil {
		w.t.Fatal(err)
	}
	who, err := id.New("payments.internal", id.Service, "checkout")
	if err != nil {
		w.t.Fatal(err)
	}
	w.target = rotate.Target{
		Workload: mesh.Workload{Name: "checkout", Kind: id.Service, Identity: who},
		Certificate: mesh.CertificatePlan{
			Identity: who, DNSNames: []string{"checkout", "checkout.payments.internal"}, TTL: mesh.Duration(time.Hour), RenewAfter: mesh.Duration(40 * time.Minute), Key: mesh.ECDSAP256,
		},
		Inbound: []mesh.Inbound{{Name: "0.0.0.0_9443", Port: 9443, Protocol: mesh.HTTP, TLS: mesh.Strict}},
		Secret:  w.name, Shape: shape, StoreName: "vault", Store: store, Keeper: store.Keeper(),
		Rollout: service, Observer: service, Authority: newCA(w.t),
	}
}

// rotate rotates, and expects an outcome.
func (w *whole) rotate(want rotate.Outcome) rotate.Result {
	w.t.Helper()
	result := w.rotateUntil(w.t.Context(), "", rotate.Options{Force: true})
	if result.Outcome != want {
		w.t.Fatalf("%s, %v, want %s", result.Outcome, result.Err, want)
	}
	return result
}

// rotateUntil rotates until it tells of something, as the deadline of a function would end it; empty is to its end.
func (w *whole) rotateUntil(ctx context.Context, end string, o rotate.Options) rotate.Result {
	w.t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := rotate.New(rotate.Config{
		Holder: "a test", Timeout: 30 * time.Second, RolloutTimeout: time.Minute,
		Progress: func(_ string, step rotate.Step, text string) {
			w.t.Logf("%s: %s", step, text)
			if end != "" && strings.Contains(text, end) {
				cancel()
			}
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return r.Rotate(ctx, w.target, o)
}

// deployments is how many the rotations have begun.
func (w *whole) deployments() int {
	n := 0
	for _, call := range w.cloud.Calls() {
		if call.Role == "whole-rotation" && call.Action == "ecs:UpdateService" {
			n++
		}
	}
	return n
}

// scale has the service run so many tasks, and waits until it does.
func (w *whole) scale(count int32) {
	w.t.Helper()
	cluster, service := aws.String("payments"), aws.String("checkout")
	if _, err := w.admin.UpdateService(w.t.Context(), &awsecs.UpdateServiceInput{Cluster: cluster, Service: service, DesiredCount: &count}); err != nil {
		w.t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		out, err := w.admin.DescribeServices(w.t.Context(), &awsecs.DescribeServicesInput{Cluster: cluster, Services: []string{"checkout"}})
		if err != nil || time.Now().After(deadline) {
			w.t.Fatalf("%+v, %v", out, err)
		}
		if s := out.Services[0]; s.RunningCount == count && s.PendingCount == 0 {
			return
		}
	}
}

// serving gives the tasks when each of them was seen, by a handshake, to serve a serial: a task that runs listens soon.
func (w *whole) serving(serial string) []string {
	w.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		sightings, err := w.target.Observer.Look(w.t.Context(), w.target)
		if err != nil {
			w.t.Fatal(err)
		}
		var tasks []string
		for _, s := range sightings {
			if s.By == rotate.ByHandshake && s.Serial == serial {
				tasks = append(tasks, s.Instance)
			}
		}
		if len(tasks) == 2 && len(sightings) == 2 {
			return tasks
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%+v, want %s", sightings, serial)
		}
	}
}

// TestWhole rotates a service whose tasks really run: the first time without tasks, then with two, and then with a
// certificate that no task comes up with, which is taken back, and so is one that may not be deployed.
func TestWhole(t *testing.T) {
	w := newWhole(t)
	first := w.rotate(rotate.Rotated)
	says(t, strings.Join(first.Notes, "; "), "no instance is known")
	w.scale(2)
	before := w.serving(first.Serial)

	second := w.rotate(rotate.Rotated)
	after := w.serving(second.Serial)
	if len(second.Seen) != 2 || slices.ContainsFunc(after, func(task string) bool { return slices.Contains(before, task) }) {
		t.Errorf("%v serve it after %v; seen were %+v", after, before, second.Seen)
	}

	w.want(second.Serial)
	third := w.rotate(rotate.RolledBack)
	says(t, third.Error, "at the step deploy", "deployment failed: tasks failed to start", "the container init has ended with 1", "is current again and was seen everywhere")
	w.serving(second.Serial)
	if s := rotate.ReadStatus(t.Context(), w.target); s.Step != "" || s.Serial != second.Serial || s.Failures != 1 || s.Holder != "" || s.Problem != "" {
		t.Errorf("%+v", s)
	}

	w.want("")
	// Cut off while tasks are replaced, the next one goes on with the same deployment.
	begun := w.deployments()
	cut := w.rotateUntil(t.Context(), "new tasks run", rotate.Options{Force: true})
	if !errors.Is(cut.Err, rotate.ErrStopped) {
		t.Errorf("%v, want ErrStopped", cut.Err)
	}
	fourth := w.rotateUntil(t.Context(), "", rotate.Options{})
	tasks := w.serving(fourth.Serial)
	if fourth.Outcome != rotate.Rotated || fourth.Serial == second.Serial || w.deployments() != begun+1 {
		t.Errorf("%s, %v, %s is current after %d deployments", fourth.Outcome, fourth.Err, fourth.Serial, w.deployments()-begun)
	}
	for _, call := range w.cloud.Calls() {
		if !call.Allowed {
			t.Errorf("%s may not %s on %s: %s", call.Role, call.Action, call.Resource, call.Why)
		}
	}

	// What may not be deployed is taken back, and nobody is replaced.
	w.cloud.PutRole("whole-rotation", w.policy(strings.Replace(rotationPolicy, `"ecs:UpdateService",`, "", 1)))
	fifth := w.rotate(rotate.RolledBack)
	says(t, fifth.Error, "at the step deploy", `{"Effect":"Allow","Action":"ecs:UpdateService","Resource":"arn:aws:ecs:eu-central-1:123456789012:service/payments/checkout"}`, "is current again and was seen everywhere")
	if now := w.serving(fourth.Serial); !slices.Equal(now, tasks) || fifth.Serial != fourth.Serial {
		t.Errorf("%v serve it, want %v; %s is current", now, tasks, fifth.Serial)
	}
}
