//go:build linux

package ecsfake_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	elbv2 "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"

	"countersign.dev/aws/internal/awstest/ecsfake"
	"countersign.dev/aws/internal/awstest/ecsfake/jail"
)

// How long a second of AWS's lasts in these tests, and one of deregistration delays.
const (
	second = 20 * time.Millisecond
	drain  = 40 * time.Millisecond
)

func TestMain(m *testing.M) {
	if os.Getenv("ECSFAKE_TEST_APP") != "" {
		application()
		return
	}
	if err := ecsfake.Enter(); err != nil && !errors.Is(err, ecsfake.ErrUnavailable) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// application is what this binary is in containers: a server that says which task it is, and drains when it is asked to end.
func application() {
	server := &http.Server{Addr: ":8080", Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, os.Getenv("HOSTNAME"), os.Getenv("VERSION"))
	})}
	ended := make(chan struct{})
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	go func() {
		<-signals
		_ = server.Shutdown(context.Background())
		close(ended)
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		fmt.Println(err)
		os.Exit(1)
	}
	<-ended
}

// rig is a double with clients.
type rig struct {
	*testing.T
	fake *ecsfake.Fake
	ecs  *ecs.Client
	elb  *elbv2.Client
}

// start starts a double, or skips the test where it cannot be.
func start(t *testing.T) *rig {
	t.Helper()
	if !jail.Inside() {
		if os.Getenv("CI") == "true" {
			t.Fatal("namespaces cannot be made; CI has to run as root")
		}
		t.Skip("SKIPPED: the double of ECS needs root")
	}
	secrets := httptest.NewServer(http.HandlerFunc(serveSecrets))
	t.Cleanup(secrets.Close)
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	app := ecsfake.Shell()
	app.Binds = []jail.Bind{{Source: binary, Target: "/app"}}
	app.Command, app.Environment = []string{"/app"}, []string{"ECSFAKE_TEST_APP=1"}
	initial := ecsfake.Shell()
	initial.Dirs = []jail.Dir{{Path: "/tls", UID: 101, GID: 101, Mode: 0o700}}
	initial.Volumes = []string{"/tls"}
	fake, err := ecsfake.New(ecsfake.Options{
		Region: "eu-central-1", Account: "123456789012", Second: second, Drain: drain, Front: secrets.URL, Log: t.Logf,
		Images: map[string]ecsfake.Image{"shell": ecsfake.Shell(), "app": app, "init": initial, "nginx": ecsfake.NGINX()},
		Assume: func(role string) (ecsfake.Credentials, error) {
			return ecsfake.Credentials{AccessKeyID: "AKIA" + role[strings.LastIndex(role, "/")+1:], SecretAccessKey: "secret", Token: "token", Expires: time.Now().Add(time.Hour)}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	server := httptest.NewServer(fake)
	t.Cleanup(server.Close)
	keys := aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: "AKIAADMIN", SecretAccessKey: "secret"}, nil
	})
	r := &rig{
		T: t, fake: fake,
		ecs: ecs.New(ecs.Options{Region: "eu-central-1", BaseEndpoint: &server.URL, Credentials: keys}),
		elb: elbv2.New(elbv2.Options{Region: "eu-central-1", BaseEndpoint: &server.URL, Credentials: keys}),
	}
	if _, err := r.ecs.CreateCluster(t.Context(), &ecs.CreateClusterInput{ClusterName: aws.String("payments")}); err != nil {
		t.Fatal(err)
	}
	return r
}

// serveSecrets is as much of Secrets Manager as injection needs: one secret, for the role exec only.
func serveSecrets(w http.ResponseWriter, r *http.Request) {
	var in map[string]string
	_ = json.NewDecoder(r.Body).Decode(&in)
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	switch {
	case !strings.Contains(r.Header.Get("Authorization"), "AKIAexec/"):
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"__type":"AccessDeniedException","Message":"no identity-based policy allows the secretsmanager:GetSecretValue action"}`)
	case in["VersionStage"] == "AWSPREVIOUS":
		fmt.Fprint(w, `{"SecretString":"{\"key_pem\":\"old\"}"}`)
	default:
		fmt.Fprint(w, `{"SecretString":"{\"key_pem\":\"new\",\"cert_pem\":\"cert\"}"}`)
	}
}

const (
	role     = "arn:aws:iam::123456789012:role/"
	secret   = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/checkout-AbCdEf"
	maxSpell = 20 * time.Second
)

// script is a container of the shell's image.
func script(name, line string) types.ContainerDefinition {
	return types.ContainerDefinition{Name: &name, Image: aws.String("registry.example/shell:1"), Essential: aws.Bool(true), Command: []string{"sh", "-c", line}}
}

// after makes a container wait for another one.
func after(c types.ContainerDefinition, on string, condition types.ContainerCondition) types.ContainerDefinition {
	c.DependsOn = append(c.DependsOn, types.ContainerDependency{ContainerName: &on, Condition: condition})
	return c
}

// definition is a task definition of containers.
func definition(family string, containers ...types.ContainerDefinition) *ecs.RegisterTaskDefinitionInput {
	return &ecs.RegisterTaskDefinitionInput{
		Family: &family, Cpu: aws.String("256"), Memory: aws.String("512"), NetworkMode: types.NetworkModeAwsvpc, RequiresCompatibilities: []types.Compatibility{types.CompatibilityFargate},
		ExecutionRoleArn: aws.String(role + "exec"), TaskRoleArn: aws.String(role + "task"), ContainerDefinitions: containers,
	}
}

// network is what every task of Fargate needs.
var network = &types.NetworkConfiguration{AwsvpcConfiguration: &types.AwsVpcConfiguration{Subnets: []string{"subnet-1"}}}

// task registers a definition and runs one task of it.
func (r *rig) task(in *ecs.RegisterTaskDefinitionInput) string {
	r.Helper()
	if _, err := r.ecs.RegisterTaskDefinition(r.Context(), in); err != nil {
		r.Fatal(err)
	}
	out, err := r.ecs.RunTask(r.Context(), &ecs.RunTaskInput{Cluster: aws.String("payments"), TaskDefinition: in.Family, LaunchType: types.LaunchTypeFargate, NetworkConfiguration: network})
	if err != nil {
		r.Fatal(err)
	}
	return *out.Tasks[0].TaskArn
}

// show describes a task.
func (r *rig) show(arn string) types.Task {
	r.Helper()
	out, err := r.ecs.DescribeTasks(r.Context(), &ecs.DescribeTasksInput{Cluster: aws.String("payments"), Tasks: []string{arn}})
	if err != nil || len(out.Tasks) != 1 {
		r.Fatalf("describe %s: %v, %v", arn, out, err)
	}
	return out.Tasks[0]
}

// await waits until a task is in a state.
func (r *rig) await(arn, status string) types.Task {
	r.Helper()
	var t types.Task
	r.eventually("task "+arn+" to be "+status, func() bool {
		t = r.show(arn)
		return *t.LastStatus == status || *t.LastStatus == "STOPPED"
	})
	if *t.LastStatus != status {
		r.Fatalf("the task is %s, want %s: %s; %s", *t.LastStatus, status, aws.ToString(t.StoppedReason), r.containers(t))
	}
	return t
}

// containers says how a task's containers ended.
func (r *rig) containers(t types.Task) string {
	var words []string
	for _, c := range t.Containers {
		code := "-"
		if c.ExitCode != nil {
			code = fmt.Sprint(*c.ExitCode)
		}
		words = append(words, strings.TrimSpace(*c.Name+" "+code+" "+aws.ToString(c.Reason)))
	}
	return strings.Join(words, "; ")
}

// eventually polls until a condition holds.
func (r *rig) eventually(what string, condition func() bool) {
	r.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(maxSpell); time.Now().Before(deadline); <-ticker.C {
		if condition() {
			return
		}
	}
	r.Fatalf("waited in vain for %s", what)
}

func TestTaskWithInit(t *testing.T) {
	r := start(t)
	first := script("init", "umask 077; id -u; echo pem >/tls/key; cat /etc/hosts | grep -c localhost")
	first.Image, first.User, first.Essential, first.ReadonlyRootFilesystem = aws.String("init"), aws.String("101:101"), aws.Bool(false), aws.Bool(true)
	first.MountPoints = []types.MountPoint{{SourceVolume: aws.String("tls"), ContainerPath: aws.String("/tls")}}
	first.Secrets = []types.Secret{{Name: aws.String("KEY"), ValueFrom: aws.String(secret + ":key_pem::")}}
	proxy := after(script("proxy", "cat /tls/key; touch /tls/x; echo KEY=$KEY; touch /tmp/ready; exec sleep 1000"), "init", types.ContainerConditionSuccess)
	proxy.User, proxy.StopTimeout = aws.String("101"), aws.Int32(2)
	proxy.MountPoints = []types.MountPoint{{SourceVolume: aws.String("tls"), ContainerPath: aws.String("/certs"), ReadOnly: aws.Bool(true)}}
	proxy.Command[2] = strings.ReplaceAll(proxy.Command[2], "/tls", "/certs")
	proxy.HealthCheck = &types.HealthCheck{Command: []string{"CMD-SHELL", "test -e /tmp/ready"}, Interval: aws.Int32(5)}
	proxy.LinuxParameters = &types.LinuxParameters{InitProcessEnabled: aws.Bool(true), Capabilities: &types.KernelCapabilities{Drop: []string{"ALL"}}}
	app := after(script("app", "trap 'echo ended; exit 3' TERM; echo begun; while :; do sleep 0.05; done"), "proxy", types.ContainerConditionHealthy)
	in := definition("checkout", first, proxy, app)
	in.Volumes = []types.Volume{{Name: aws.String("tls")}}
	arn := r.task(in)
	task := r.await(arn, "RUNNING")
	if got := r.containers(task); got != "init 0; proxy -; app -" {
		t.Errorf("containers: %s", got)
	}
	r.eventually("the app to have begun", func() bool { return r.fake.Logs(arn, "app") == "begun\n" })
	r.eventually("what init said", func() bool { return r.fake.Logs(arn, "init") == "101\n1\n" })
	const want = "pem\ntouch: cannot touch '/certs/x': Read-only file system\nKEY=\n"
	r.eventually("what the proxy said", func() bool { return r.fake.Logs(arn, "proxy") == want })
	code, output, err := r.fake.Exec(t.Context(), arn, "proxy", "sh", "-c", "id -u; ls /work /root 2>&1 | wc -l")
	if err != nil || code != 0 || string(output) != "101\n2\n" {
		t.Errorf("exec: code %d, output %q, error %v", code, output, err)
	}
	if _, err := r.ecs.StopTask(t.Context(), &ecs.StopTaskInput{Cluster: aws.String("payments"), Task: &arn, Reason: aws.String("enough")}); err != nil {
		t.Fatal(err)
	}
	task = r.await(arn, "STOPPED")
	if got := r.containers(task); got != "init 0; proxy 143; app 3" || *task.StoppedReason != "enough" || task.StopCode != types.TaskStopCodeUserInitiated {
		t.Errorf("containers: %s; reason %s, %s", got, *task.StoppedReason, task.StopCode)
	}
}

// Containers see each other's processes when the definition says so, and only then.
func TestSharedProcesses(t *testing.T) {
	r := start(t)
	const watch = "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo; done | grep -c '[s]leep 4321'"
	for _, shared := range []bool{false, true} {
		other := script("other", "exec sleep 4321")
		other.StopTimeout = aws.Int32(0)
		in := definition("shared", other, after(script("watcher", "sleep 1000 & exec sleep 1000"), "other", types.ContainerConditionStart))
		in.ContainerDefinitions[1].StopTimeout = aws.Int32(0)
		want := "0\n"
		if shared {
			in.PidMode, want = types.PidModeTask, "1\n"
		}
		arn := r.task(in)
		r.await(arn, "RUNNING")
		if _, output, err := r.fake.Exec(t.Context(), arn, "watcher", "sh", "-c", watch+"; true"); err != nil || string(output) != want {
			t.Errorf("shared %v: the other's processes: %q, %v", shared, output, err)
		}
		if _, err := r.ecs.StopTask(t.Context(), &ecs.StopTaskInput{Cluster: aws.String("payments"), Task: &arn}); err != nil {
			t.Fatal(err)
		}
		r.await(arn, "STOPPED")
	}
}

func TestTaskEnds(t *testing.T) {
	r := start(t)
	optional := func(c types.ContainerDefinition) types.ContainerDefinition {
		c.Essential = aws.Bool(false)
		return c
	}
	sleep := script("proxy", "exec sleep 1000")
	sleep.StopTimeout = aws.Int32(0)
	withSecret := func(valueFrom string) types.ContainerDefinition {
		c := script("init", "echo $A")
		c.Secrets = []types.Secret{{Name: aws.String("A"), ValueFrom: &valueFrom}}
		return c
	}
	image := script("main", "true")
	image.Image = aws.String("registry.example/unknown:1")
	program := script("main", "true")
	program.Command = []string{"no-such-program"}
	slow := script("init", "exec sleep 1000")
	slow.StartTimeout, slow.StopTimeout = aws.Int32(2), aws.Int32(0)
	const unresolved = "dependency graph: failed to resolve container ordering dependency [init] for target [proxy] as dependency "
	for name, c := range map[string]struct {
		definition *ecs.RegisterTaskDefinitionInput
		containers string
		code       types.TaskStopCode
		reason     string
		log        string
	}{
		"init fails": {
			definition("a", optional(script("init", "exit 1")), after(sleep, "init", types.ContainerConditionSuccess)),
			"init 1; proxy - " + unresolved + "did not exit successfully.", types.TaskStopCodeTaskFailedToStart, "Task failed to start", "",
		},
		"COMPLETE does not mind": {
			definition("b", optional(script("init", "exit 1")), after(script("proxy", "echo begun; exit 4"), "init", types.ContainerConditionComplete)),
			"init 1; proxy 4", types.TaskStopCodeEssentialContainerExited, "Essential container in task exited", "",
		},
		"START": {
			definition("c", optional(script("init", "exit 0")), after(script("proxy", "exit 5"), "init", types.ContainerConditionStart)),
			"init 0; proxy 5", types.TaskStopCodeEssentialContainerExited, "Essential container in task exited", "",
		},
		"init takes too long": {
			definition("d", optional(slow), after(sleep, "init", types.ContainerConditionSuccess)),
			"init 137; proxy - " + unresolved + "did not become SUCCESS in time", types.TaskStopCodeTaskFailedToStart, "Task failed to start", "",
		},
		"one essential ends, the other is killed": {
			definition("e", script("init", "exit 0"), sleep), "init 0; proxy 137", types.TaskStopCodeEssentialContainerExited, "Essential container in task exited", "",
		},
		"secret":             {definition("f", withSecret(secret)), "init 0", types.TaskStopCodeEssentialContainerExited, "Essential", `{"key_pem":"new","cert_pem":"cert"}` + "\n"},
		"secret's key":       {definition("g", withSecret(secret+":key_pem::")), "init 0", types.TaskStopCodeEssentialContainerExited, "Essential", "new\n"},
		"secret's stage":     {definition("h", withSecret(secret+":key_pem:AWSPREVIOUS:")), "init 0", types.TaskStopCodeEssentialContainerExited, "Essential", "old\n"},
		"secret without key": {definition("i", withSecret(secret+":nothing::")), "init -", types.TaskStopCodeTaskFailedToStart, "ResourceInitializationError: unable to pull secrets or registry auth: execution resource retrieval failed: unable to retrieve secret from asm: secret " + secret + ": retrieved secret from Secrets Manager did not contain json key nothing", ""},
		"secret denied": {
			func() *ecs.RegisterTaskDefinitionInput {
				in := definition("j", withSecret(secret))
				in.ExecutionRoleArn = aws.String(role + "stranger")
				return in
			}(),
			"init -", types.TaskStopCodeTaskFailedToStart, "failed to fetch secret " + secret + " from secrets manager: operation error Secrets Manager: GetSecretValue, https response error StatusCode: 400", "",
		},
		"no image":   {definition("k", image), "main -", types.TaskStopCodeTaskFailedToStart, "CannotPullContainerError: pull image manifest has been retried 1 time(s): failed to resolve ref registry.example/unknown:1: not found", ""},
		"no program": {definition("l", program), `main - CannotStartContainerError: exec: "no-such-program": executable file not found in $PATH`, types.TaskStopCodeTaskFailedToStart, "CannotStartContainerError", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := &rig{T: t, fake: r.fake, ecs: r.ecs}
			arn := r.task(c.definition)
			task := r.await(arn, "STOPPED")
			if got := r.containers(task); got != c.containers {
				t.Errorf("containers: %s\nwant:       %s", got, c.containers)
			}
			if task.StopCode != c.code || !strings.Contains(*task.StoppedReason, c.reason) {
				t.Errorf("stopped: %s %s\nwant:    %s %s", task.StopCode, *task.StoppedReason, c.code, c.reason)
			}
			if got := r.fake.Logs(arn, "init"); c.log != "" && got != c.log {
				t.Errorf("said %q, want %q", got, c.log)
			}
		})
	}
}

// get asks the agent of a task as the task's programs do.
func (r *rig) get(arn, path string) (int, map[string]any) {
	r.Helper()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
		return r.fake.Dial(ctx, arn, address)
	}}}
	answer, err := client.Get("http://169.254.170.2" + path)
	if err != nil {
		r.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		r.Fatal(err)
	}
	var document map[string]any
	_ = json.Unmarshal(text, &document)
	return answer.StatusCode, document
}

func TestRoleAndMetadata(t *testing.T) {
	r := start(t)
	arn := r.task(definition("checkout", script("app", "env; exec sleep 1000")))
	r.await(arn, "RUNNING")
	environment := map[string]string{}
	r.eventually("the environment", func() bool { return strings.Contains(r.fake.Logs(arn, "app"), "ECS_CONTAINER_METADATA_URI_V4") })
	for _, line := range strings.Split(strings.TrimSpace(r.fake.Logs(arn, "app")), "\n") {
		name, value, _ := strings.Cut(line, "=")
		environment[name] = value
	}
	want := []string{
		"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_EXECUTION_ENV", "AWS_REGION", "ECS_CONTAINER_METADATA_URI_V4",
		"HOME", "HOSTNAME", "PATH", "PWD",
	}
	for name := range environment {
		if !slices.Contains(want, name) && name != "SHLVL" && name != "_" && name != "OLDPWD" {
			t.Errorf("the environment has %s", name)
		}
	}
	code, credentials := r.get(arn, environment["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"])
	if code != 200 || credentials["AccessKeyId"] != "AKIAtask" || credentials["Token"] != "token" || credentials["RoleArn"] != role+"task" {
		t.Errorf("credentials: %d %v", code, credentials)
	}
	if code, _ := r.get(arn, "/v2/credentials/guessed"); code != 400 {
		t.Errorf("credentials of a guessed id: %d", code)
	}
	metadata := strings.TrimPrefix(environment["ECS_CONTAINER_METADATA_URI_V4"], "http://169.254.170.2")
	if code, c := r.get(arn, metadata); code != 200 || c["Name"] != "app" {
		t.Errorf("container: %d %v", code, c)
	}
	if code, task := r.get(arn, metadata+"/task"); code != 200 || task["TaskARN"] != arn || task["Family"] != "checkout" {
		t.Errorf("task: %d %v", code, task)
	}
	front, err := r.fake.Dial(t.Context(), arn, strings.TrimPrefix(environment["AWS_ENDPOINT_URL"], "http://"))
	if err != nil {
		t.Fatal(err)
	}
	front.Close()
}
