//go:build linux

package deployed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/ecs"

	"countersign.dev/aws/internal/awstest"
	"countersign.dev/aws/internal/awstest/acmfake"
	"countersign.dev/aws/internal/awstest/ecsfake"
	"countersign.dev/aws/internal/awstest/ecsfake/jail"
	"countersign.dev/aws/internal/awstest/pcafake"
	"countersign.dev/aws/internal/awstest/stack"
	"countersign.dev/mesh"
)

// streamModule is NGINX's stream module where Debian puts it.
const streamModule = "/usr/lib/nginx/modules/ngx_stream_module.so"

// Options say what is deployed. Program and Specification are needed.
type Options struct {
	// Program is the binary of countersign: what runs in tasks, and what Run runs.
	Program string
	// Specification is the text of the mesh.
	Specification []byte
	// Generate are more arguments of `countersign generate cloudformation`.
	Generate []string
	// Edit changes the template before it is used; nil changes nothing.
	Edit func(template string) string
	// Second is how long a second of AWS's own times lasts (intervals of health checks, deregistration delays), and of the age of
	// connections with the proxies, which goes with those; 20 ms when 0. What else programs in tasks count is real.
	Second time.Duration
	// PCA and ACM say how those doubles behave. ACM issues from PCA where it is not told otherwise.
	PCA pcafake.Options
	ACM acmfake.Options
	// Log is told what the double of ECS does; nil: nobody.
	Log func(format string, arguments ...any)
}

// Mesh is one that is deployed, or about to be. Deploy is not safe for concurrent use; everything else is.
type Mesh struct {
	// Name is the mesh's, with which the names of its roles, secrets and task families begin.
	Name  string
	Cloud *awstest.Cloud
	PCA   *pcafake.Fake
	ACM   *acmfake.Fake
	ECS   *ecsfake.Fake
	// Stack is nil until Deploy.
	Stack *stack.Stack
	// Template is the generated one.
	Template string
	// Dir is a directory of its own, with mesh.yaml in it; programs run there.
	Dir string

	t       testing.TB
	options Options
	spec    *mesh.Spec
	admin   *ecs.Client
}

// Start starts the doubles, and generates the template. It skips the test where namespaces or the doubles cannot be had, and fails it
// there when CI=true. Call ecsfake.Enter in TestMain or main. All ends with the test.
func Start(t testing.TB, o Options) *Mesh {
	t.Helper()
	if !jail.Inside() {
		if os.Getenv("CI") == "true" {
			t.Fatal("namespaces cannot be made; CI has to run as root")
		}
		t.Skip("SKIPPED, AND WITH IT ALL THAT IT WOULD HAVE SHOWN: tasks in namespaces need root")
	}
	if o.Second == 0 {
		o.Second = 20 * time.Millisecond
	}
	m := &Mesh{Cloud: awstest.Start(t), Dir: t.TempDir(), t: t, options: o}
	if err := m.generate(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.PCA = pcafake.New(o.PCA)
	if o.ACM.Issuer == nil {
		o.ACM.Issuer = acmfake.Through(m.PCA)
	}
	m.ACM = acmfake.New(o.ACM)
	var err error
	m.ECS, err = ecsfake.New(ecsfake.Options{
		Region: m.Cloud.Region, Account: m.Cloud.Account, Front: m.Cloud.URL, Second: o.Second, Log: o.Log, Images: m.images(),
		Assume: func(role string) (ecsfake.Credentials, error) {
			c, err := m.Cloud.AssumeAs("ecs-tasks.amazonaws.com", role, "task", "")
			return ecsfake.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, Token: c.SessionToken, Expires: c.Expires}, err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.ECS.Close)
	m.Cloud.Mount("acm-pca", m.PCA)
	m.Cloud.Mount("acm", m.ACM)
	m.Cloud.Mount("ecs", m.ECS)
	m.Cloud.Mount("elasticloadbalancing", m.ECS)
	m.admin = ecs.NewFromConfig(m.config())
	return m
}

// config is for an administrator who looks often, and tries again what breaks on the way: net/http now and then ends a connection
// under a request, which the SDK knows and repeats.
func (m *Mesh) config() aws.Config {
	config := m.Cloud.Admin()
	config.Retryer = func() aws.Retryer { return retry.NewStandard() }
	return config
}

// generate writes the specification and has the program make the template of it.
func (m *Mesh) generate(ctx context.Context) error {
	path := filepath.Join(m.Dir, "mesh.yaml")
	if err := os.WriteFile(path, m.options.Specification, 0o600); err != nil {
		return err
	}
	var err error
	if m.spec, err = mesh.Load(path); err != nil {
		return err
	}
	m.Name = m.spec.Mesh
	command := exec.CommandContext(ctx, m.options.Program, append([]string{"generate", "cloudformation", path}, m.options.Generate...)...)
	var out, said bytes.Buffer
	command.Stdout, command.Stderr = &out, &said
	if err := command.Run(); err != nil {
		return fmt.Errorf("countersign generate cloudformation: %w\n%s", err, said.String())
	}
	// It has to be over before the deregistration delay is.
	age := fmt.Sprintf("--connection-age, '%s'", 30*m.options.Second)
	if m.Template = connectionAge.ReplaceAllString(out.String(), age); m.Template == out.String() && m.options.Second != time.Second {
		return errors.New("the template does not say how old connections become")
	}
	if m.options.Edit != nil {
		m.Template = m.options.Edit(m.Template)
	}
	return nil
}

// connectionAge is how the template says what the proxies are to do with old connections.
var connectionAge = regexp.MustCompile(`--connection-age,\s+'30s'`)

// images are those that the template's parameters name: this machine's programs.
func (m *Mesh) images() map[string]ecsfake.Image {
	app := ecsfake.Image{
		Host: true, Binds: []jail.Bind{{Source: m.options.Program, Target: "/app/countersign"}},
		Environment: []string{"PATH=/app:/usr/sbin:/usr/bin:/sbin:/bin"},
	}
	return map[string]ecsfake.Image{
		"countersign": ecsfake.Countersign(m.options.Program), "nginx": ecsfake.NGINX(), "haproxy": ecsfake.HAProxy(), "app": app,
	}
}

// parameters are the values of the template's parameters.
func (m *Mesh) parameters(count int) map[string]string {
	parameters := map[string]string{
		"VpcId": "vpc-1", "SubnetIds": "subnet-1,subnet-2", "CountersignImage": "countersign", "ImageRepositories": "arn:aws:ecr:eu-central-1:123456789012:repository/app",
		"FunctionBucket": "bucket", "FunctionKey": "function.zip", "AlarmTopic": "arn:aws:sns:eu-central-1:123456789012:alarms", "DesiredCount": strconv.Itoa(count),
	}
	for _, found := range parameter.FindAllStringSubmatch(m.Template, -1) {
		switch name := found[1]; {
		case name == "NginxImage" || name == "HaproxyImage":
			parameters[name] = strings.ToLower(strings.TrimSuffix(name, "Image"))
		case name == "NginxStreamModule":
			parameters[name] = streamModule
		case strings.HasSuffix(name, "Image") && parameters[name] == "":
			parameters[name] = "app"
		}
	}
	return parameters
}

// parameter finds the names of parameters in a generated template.
var parameter = regexp.MustCompile(`(?m)^  '?([A-Za-z0-9]+)'?:`)

// Deploy creates the stack with so many tasks of each service, or updates it, and waits until services are steady, as
// CloudFormation does. More are further parameters of the template.
func (m *Mesh) Deploy(ctx context.Context, count int, more map[string]string) error {
	parameters := m.parameters(count)
	maps.Copy(parameters, more)
	if m.Stack != nil {
		return m.Stack.Update(ctx, []byte(m.Template), parameters)
	}
	created, err := stack.Create(ctx, stack.Options{Config: m.config(), Account: m.Cloud.Account, Name: m.Name}, []byte(m.Template), parameters)
	if err == nil {
		m.Stack = created
	}
	return err
}

// Role is a role of the mesh's by its part: "rotation", "SERVICE-task" or "SERVICE-execution".
func (m *Mesh) Role(part string) string { return m.Name + "-" + part }

// Balancer is where a service's balancer listens, at a port of the service.
func (m *Mesh) Balancer(service string, port int) (string, error) {
	output := logical(service) + "Address"
	address, found := m.ECS.Resolve(m.Stack.Outputs[output])
	if !found {
		return "", fmt.Errorf("the output %s of the stack names no balancer: %q", output, m.Stack.Outputs[output])
	}
	return address.String() + ":" + strconv.Itoa(port), nil
}

// logical is a workload's name in a template, "card-checkout" being CardCheckout.
func logical(workload string) string {
	var id strings.Builder
	for part := range strings.SplitSeq(workload, "-") {
		if part != "" { // a name may have two hyphens in a row
			id.WriteString(strings.ToUpper(part[:1]) + part[1:])
		}
	}
	return id.String()
}

// Result is how a program ended.
type Result struct {
	Status         int
	Stdout, Stderr string
}

// Command is the program as a role runs it ("root": whom no policy stops), in Dir, with the environment that the rotation function has.
func (m *Mesh) Command(ctx context.Context, role string, env []string, args ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, m.options.Program, args...)
	command.Dir = m.Dir
	command.Env = slices.Concat([]string{"HOME=" + m.Dir, "PATH=" + os.Getenv("PATH"), "COUNTERSIGN_MESH=" + filepath.Join(m.Dir, "mesh.yaml")},
		m.Cloud.Env(role), m.FunctionEnv(), env) //nolint:contextcheck // the double of STS is on this machine, and is asked once
	return command
}

// Run runs the program as a role, to its end. A program that could not be started is status -1.
func (m *Mesh) Run(ctx context.Context, role string, env []string, args ...string) Result {
	command := m.Command(ctx, role, env, args...)
	var out, said bytes.Buffer
	command.Stdout, command.Stderr = &out, &said
	if err := command.Run(); err != nil {
		if _, ended := errors.AsType[*exec.ExitError](err); !ended {
			return Result{Status: -1, Stderr: err.Error()}
		}
	}
	return Result{Status: command.ProcessState.ExitCode(), Stdout: out.String(), Stderr: said.String()}
}

// FunctionEnv are the variables that the template gives the rotation function, but for where its specification is.
func (m *Mesh) FunctionEnv() []string {
	if m.Stack == nil {
		return nil
	}
	function, _ := m.Stack.Resource("RotationFunction")
	environment, _ := function.Properties["Environment"].(map[string]any)
	variables, _ := environment["Variables"].(map[string]any)
	var env []string
	for _, name := range slices.Sorted(maps.Keys(variables)) {
		if name != "COUNTERSIGN_MESH" {
			env = append(env, name+"="+fmt.Sprint(variables[name]))
		}
	}
	return env
}
