package whole_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"countersign.dev/aws/internal/awstest"
	"countersign.dev/aws/internal/awstest/pcafake"
	"countersign.dev/mtls"
	"countersign.dev/rotate"
)

// faulty is the binary with the faults that kill it, built once.
var faulty = sync.OnceValues(func() (string, error) {
	path := filepath.Join(programDir, "faulty")
	build := exec.Command("go", "build", "-tags", "faultinject", "-o", path, "countersign.dev/cmd/countersign")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as its other tests build it
	if output, err := build.CombinedOutput(); err != nil {
		return "", errors.Join(err, errors.New(string(output)))
	}
	return path, nil
})

// labSpecification is a mesh that is rotated by ECS, which has no tasks: so that everything is asked, and nobody waited for.
const labSpecification = `
mesh: MESH
revocation: none
stores: {vault: {type: secretsmanager}}
authorities: {pca: {type: acmpca, mode: short-lived, budget: {certificates: BUDGET}}}
certificates: {authority: pca, ttl: 24h}
services:
`

const labService = `  SERVICE:
    ports: [{port: 8443, protocol: http, app: 8080}]
    proxy: {engine: nginx}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}"}
    deploy: {type: ecs, cluster: MESH}
`

// lab is a mesh with its secrets, their key, a private CA and the role of the rotation function, whose policies are the
// generated ones, and a cloud of its own, so that faults of one lab are nobody else's.
type lab struct {
	t        *testing.T
	cloud    *awstest.Cloud
	pca      *pcafake.Fake
	secrets  *secretsmanager.Client // the account's root
	keys     *kms.Client
	name     string
	dir      string
	key, ca  string // ARNs
	services []string
	faults   *injector
	env      []string // of the rotation function's role
}

// labs counts meshes, whose names are to be different.
var labs struct {
	sync.Mutex
	n int
}

func newLab(t *testing.T, budget int, o pcafake.Options, services ...string) *lab {
	t.Helper()
	labs.Lock()
	labs.n++
	name := fmt.Sprintf("lab%d-%d", os.Getpid(), labs.n)
	labs.Unlock()
	l := &lab{t: t, cloud: awstest.Start(t), pca: pcafake.New(o), name: name, dir: t.TempDir(), services: services}
	l.connect()
	l.cloud.Mount("acm-pca", l.pca)
	l.cloud.Mount("ecs", awstest.Moto(t))
	var err error
	if l.ca, err = l.pca.Add(pcafake.CA{ShortLived: true}); err != nil {
		t.Fatal(err)
	}
	l.specify(budget)
	(&world{t: t, cloud: l.cloud}).services(name, services...)
	made, err := l.keys.CreateKey(t.Context(), &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	l.key = *made.KeyMetadata.Arn
	for _, secret := range l.secretNames() {
		l.place(secret)
	}
	l.permit()
	return l
}

// connect makes what the test itself asks and disturbs AWS with.
func (l *lab) connect() {
	l.faults = newInjector(l.cloud)
	l.secrets, l.keys = secretsmanager.NewFromConfig(l.cloud.Admin()), kms.NewFromConfig(l.cloud.Admin())
}

// specify writes the specification with a budget.
func (l *lab) specify(budget int) {
	l.t.Helper()
	text := labSpecification
	for _, service := range l.services {
		text += strings.ReplaceAll(labService, "SERVICE", service)
	}
	text = strings.NewReplacer("MESH", l.name, "BUDGET", fmt.Sprint(budget)).Replace(text)
	if err := os.WriteFile(filepath.Join(l.dir, "mesh.yaml"), []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// secretNames are all secrets of the mesh.
func (l *lab) secretNames() []string {
	names := []string{l.name + "/pca.budget"}
	for _, service := range l.services {
		names = append(names, l.secret(service), l.secret(service)+".rotation")
	}
	return names
}

func (l *lab) secret(service string) string { return l.name + "/" + service }

// place makes a secret as a template does.
func (l *lab) place(name string) {
	l.t.Helper()
	_, err := l.secrets.CreateSecret(l.t.Context(), &secretsmanager.CreateSecretInput{Name: &name, SecretString: aws.String("PLACEHOLDER"), KmsKeyId: &l.key})
	if err != nil {
		l.t.Fatal(err)
	}
}

// permit gives role, secrets and key the policies that are generated for them.
func (l *lab) permit() {
	l.t.Helper()
	args := []string{"generate", "iam", "mesh.yaml", "--arn", "repository/NAME=arn:aws:ecr:eu-central-1:123456789012:repository/app", "--arn", "key/vault=" + l.key, "--arn", "authority/pca=" + l.ca}
	arns := make(map[string]string)
	for _, name := range l.secretNames() {
		described, err := l.secrets.DescribeSecret(l.t.Context(), &secretsmanager.DescribeSecretInput{SecretId: &name})
		if err != nil {
			l.t.Fatal(err)
		}
		arns[name] = *described.ARN
		args = append(args, "--arn", name+"="+*described.ARN)
	}
	status, out, said := l.run(nil, args...)
	var made struct {
		Roles []struct {
			Role   string
			Policy json.RawMessage
		}
		Secrets []struct {
			Secret         string
			ResourcePolicy json.RawMessage
		}
		Keys []struct{ Policy json.RawMessage }
	}
	if err := json.Unmarshal([]byte(out), &made); status != 0 || err != nil || len(made.Keys) != 1 || len(made.Secrets) != len(arns) {
		l.t.Fatalf("%d, %v: %s%s", status, err, out, said)
	}
	for _, role := range made.Roles {
		if role.Role == l.name+"-rotation" {
			l.cloud.PutRole(role.Role, role.Policy)
		}
	}
	for _, secret := range made.Secrets {
		_, err := l.secrets.PutResourcePolicy(l.t.Context(), &secretsmanager.PutResourcePolicyInput{SecretId: aws.String(arns[secret.Secret]), ResourcePolicy: aws.String(string(secret.ResourcePolicy))})
		if err != nil {
			l.t.Fatal(err)
		}
	}
	_, err := l.keys.PutKeyPolicy(l.t.Context(), &kms.PutKeyPolicyInput{KeyId: &l.key, PolicyName: aws.String("default"), Policy: aws.String(string(made.Keys[0].Policy))})
	if err != nil {
		l.t.Fatal(err)
	}
	l.assume()
}

// assume takes new credentials of the rotation function's role.
func (l *lab) assume() {
	l.env = l.cloud.Env(l.name + "-rotation")
	l.faults.watch(l.env)
}

// command is the program, as the rotation function's role.
func (l *lab) command(path string, env []string, args ...string) *exec.Cmd {
	command := exec.CommandContext(l.t.Context(), path, args...)
	command.Dir = l.dir
	command.Env = append(append([]string{"HOME=" + l.dir, "PATH=" + os.Getenv("PATH"), "COUNTERSIGN_AUTHORITY_PCA_ARN=" + l.ca, "COUNTERSIGN_MESH=mesh.yaml"}, l.env...), env...)
	return command
}

// run runs the program to its end; the status of one that was killed is -1.
func (l *lab) run(env []string, args ...string) (status int, stdout, stderr string) {
	l.t.Helper()
	path, err := faulty()
	if err != nil {
		l.t.Fatal(err)
	}
	command := l.command(path, env, args...)
	var out, said bytes.Buffer
	command.Stdout, command.Stderr = &out, &said
	l.faults.begin()
	began := time.Now()
	err = command.Run()
	later(l.t, "countersign %s: %d after %s, with %d calls", strings.Join(args[:min(4, len(args))], " "), command.ProcessState.ExitCode(), time.Since(began).Round(time.Millisecond), len(l.faults.trace()))
	if _, ended := errors.AsType[*exec.ExitError](err); err != nil && !ended {
		l.t.Fatal(err)
	}
	return command.ProcessState.ExitCode(), out.String(), said.String()
}

// rotate is `rotate once`, and gives both outputs together.
func (l *lab) rotate(args ...string) (status int, said string) {
	l.t.Helper()
	status, stdout, stderr := l.run(nil, append([]string{"rotate", "once"}, args...)...)
	return status, stdout + stderr
}

// held is what a secret holds as current.
type held struct{ version, serial, text string }

// current reads what is current, and expects it to be proven: a key with its certificate, by the lab's CA and for the service, valid
// now. A secret to which nothing has been written has no version.
func (l *lab) current(service string) held {
	l.t.Helper()
	out, err := l.secrets.GetSecretValue(l.t.Context(), &secretsmanager.GetSecretValueInput{SecretId: aws.String(l.secret(service)), VersionStage: aws.String("AWSCURRENT")})
	if err != nil {
		l.t.Fatal(err)
	}
	text := aws.ToString(out.SecretString)
	if text == "PLACEHOLDER" {
		return held{text: text}
	}
	var value struct {
		Certificate string `json:"cert_pem"`
		Key         string `json:"key_pem"`
		Bundle      string `json:"ca_bundle"`
	}
	if err := json.Unmarshal([]byte(text), &value); err != nil {
		l.t.Fatal(err)
	}
	pair, err := tls.X509KeyPair([]byte(value.Certificate), []byte(value.Key))
	if err != nil {
		l.t.Fatalf("what is current of %s: %v", service, err)
	}
	roots, bundle := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(l.root())
	bundle.AppendCertsFromPEM([]byte(value.Bundle))
	for _, pool := range []*x509.CertPool{roots, bundle} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: service + "." + l.name + ".internal"}); err != nil {
			l.t.Errorf("what is current of %s: %v", service, err)
		}
	}
	if want := "spiffe://" + l.name + ".internal/service/" + service; len(pair.Leaf.URIs) != 1 || pair.Leaf.URIs[0].String() != want {
		l.t.Errorf("what is current of %s names %v", service, pair.Leaf.URIs)
	}
	if life := time.Until(pair.Leaf.NotAfter); life > 24*time.Hour || life < 23*time.Hour {
		l.t.Errorf("what is current of %s is valid for %s", service, life)
	}
	return held{version: *out.VersionId, serial: mtls.Serial(pair.Leaf), text: text}
}

// root is the certificate of the lab's CA.
func (l *lab) root() []byte {
	l.t.Helper()
	out, err := acmpca.NewFromConfig(l.cloud.Admin()).GetCertificateAuthorityCertificate(l.t.Context(), &acmpca.GetCertificateAuthorityCertificateInput{CertificateAuthorityArn: &l.ca})
	if err != nil {
		l.t.Fatal(err)
	}
	return []byte(*out.Certificate)
}

// record is what the store keeps of the rotations of a service.
func (l *lab) record(service string) (record rotate.Record) {
	l.t.Helper()
	out, err := l.secrets.GetSecretValue(l.t.Context(), &secretsmanager.GetSecretValueInput{SecretId: aws.String(l.secret(service) + ".rotation"), VersionStage: aws.String("AWSCURRENT")})
	if err != nil {
		l.t.Fatal(err)
	}
	if text := aws.ToString(out.SecretString); text != "PLACEHOLDER" {
		if err := json.Unmarshal([]byte(text), &record); err != nil {
			l.t.Fatal(err)
		}
	}
	return record
}

// labels are the labels of a secret's versions, but those of stages that are where they may be, and of leases that rest.
var resting = regexp.MustCompile(`^(AWSCURRENT|AWSPREVIOUS|COUNTERSIGN-LEASE|COUNTERSIGN-CARRIER-[12]|COUNTERSIGN-[0-9]{8}T[0-9]{6}Z-[0-9a-f]{16})$`)

// tidy expects nothing to be left of rotations: no failure, no step, no request, no pending version, no lease.
func (l *lab) tidy(service string) {
	l.t.Helper()
	if r := l.record(service); r.Step != "" || r.LastError != "" || r.Failures != 0 || r.Receipt != "" || r.LastSerial != l.current(service).serial {
		l.t.Errorf("%s: the record after a rotation that has succeeded is %+v", service, r)
	}
	for _, name := range []string{l.secret(service), l.secret(service) + ".rotation"} {
		described, err := l.secrets.DescribeSecret(l.t.Context(), &secretsmanager.DescribeSecretInput{SecretId: &name})
		if err != nil {
			l.t.Fatal(err)
		}
		for id, labels := range described.VersionIdsToStages {
			for _, label := range labels {
				// What is current may be pending as well.
				alsoPending := label == "AWSPENDING" && strings.Contains(strings.Join(labels, " "), "AWSCURRENT")
				if !resting.MatchString(label) && !alsoPending {
					l.t.Errorf("%s: the version %s has the label %s", name, id, label)
				}
			}
		}
	}
}

// says expects texts.
func (l *lab) says(said string, wants ...string) {
	l.t.Helper()
	for _, want := range wants {
		if !strings.Contains(said, want) {
			l.t.Errorf("it does not say %q:\n%s", want, said)
		}
	}
}
