//go:build linux

package review_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	ecstypes "github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"countersign.dev/aws/review"
)

// alter changes what an action is answered, where the request has some text in it: what the doubles refuse to take, AWS may show.
func (w *world) alter(action, about string, change func(answer string) string) {
	var again atomic.Bool
	w.cloud.Fault(func(r *http.Request, asked string) *http.Response {
		body, err := io.ReadAll(r.Body)
		if err != nil || asked != action || !strings.Contains(string(body), about) || !again.CompareAndSwap(false, true) {
			r.Body = io.NopCloser(bytes.NewReader(body))
			return nil
		}
		defer again.Store(false)
		same, err := http.NewRequestWithContext(r.Context(), r.Method, w.cloud.URL+r.URL.RequestURI(), bytes.NewReader(body))
		if err != nil {
			w.Error(err)
			return nil
		}
		same.Header, same.Host = r.Header.Clone(), r.Host
		response, err := http.DefaultClient.Do(same)
		if err != nil {
			w.Error(err)
			return nil
		}
		text, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		changed := change(string(text))
		if err != nil || changed == string(text) {
			w.Errorf("%s was to be answered otherwise: %v %s", action, err, text)
		}
		response.Header.Del("Content-Length")
		response.Body = io.NopCloser(strings.NewReader(changed))
		return response
	})
}

// straight ends that.
func (w *world) straight() { w.cloud.Fault(nil) }

// replaced puts texts in the place of others.
func replaced(pairs ...string) func(string) string {
	return strings.NewReplacer(pairs...).Replace
}

// answer answers actions where the request has some text in it.
func (w *world) answer(answers map[string]string, status int, about string) {
	w.cloud.Fault(func(r *http.Request, asked string) *http.Response {
		body, err := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		answer, known := answers[asked]
		if err != nil || !known || !strings.Contains(string(body), about) {
			return nil
		}
		return &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {"application/x-amz-json-1.1"}}, Body: io.NopCloser(strings.NewReader(answer))}
	})
}

// steady waits until a service has one deployment.
func (w *world) steady(service string) {
	w.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		found := try[*ecs.DescribeServicesOutput](w)(ecs.NewFromConfig(w.cloud.Admin()).DescribeServices(w.Context(), &ecs.DescribeServicesInput{Cluster: aws.String("payments"), Services: []string{service}})).Services
		if len(found) == 1 && len(found[0].Deployments) == 1 {
			return
		}
		if time.Now().After(deadline) {
			w.Fatalf("%s has not become steady: %d deployments", service, len(found[0].Deployments))
		}
	}
}

const regional = "arn:aws:ecs:eu-central-1:123456789012:"

// running are tasks of checkout: one of an old revision with a shell, and two that were started by hand.
func running() map[string]string {
	task := func(id, more string) string {
		return fmt.Sprintf(`{"taskArn":"%stask/payments/payments-checkout-%s","startedAt":%d,"lastStatus":"RUNNING",%s}`, regional, id, time.Now().Add(-time.Hour).Unix(), more)
	}
	tasks := []string{
		task("1", `"group":"service:checkout","enableExecuteCommand":true,"taskDefinitionArn":"`+regional+`task-definition/payments-checkout:2"`),
		task("2", `"group":"family:payments-checkout","startedBy":"eve","overrides":{"containerOverrides":[]}`),
		task("3", `"group":"family:payments-checkout","overrides":{"taskRoleArn":"`+accountARN+`role/payments-ledger-task","executionRoleArn":"`+accountARN+`role/payments-checkout-execution","containerOverrides":[`+
			`{"name":"init","environment":[{"name":"COUNTERSIGN_PLAN","value":"{}"},{"name":"AWS_SECRET_ACCESS_KEY","value":"`+strings.Repeat("x", 40)+`"}],"environmentFiles":[{"type":"s3","value":"arn:aws:s3:::bucket/init.env"}]},{"name":"app","command":["sh","-c","cat /tls/key.pem"],"environment":[{"name":"K","value":"-----BEGIN PRIVATE KEY-----"},{"name":"KEY_PASSPHRASE","value":"open sesame"}]}]}`),
	}
	return map[string]string{
		"ecs:ListTasks":     `{"taskArns":["` + regional + `task/payments/payments-checkout-1","` + regional + `task/payments/payments-checkout-2","` + regional + `task/payments/payments-checkout-3"]}`,
		"ecs:DescribeTasks": `{"tasks":[` + strings.Join(tasks, ",") + `],"failures":[]}`,
	}
}

// faultsOfServices are about how services are configured, and about what runs.
func faultsOfServices() []fault {
	configuration := func(breaker bool, minimum int32) func(*world) {
		return func(w *world) {
			w.update(func(in *ecs.UpdateServiceInput) {
				in.DeploymentConfiguration = &ecstypes.DeploymentConfiguration{
					MinimumHealthyPercent: aws.Int32(minimum), MaximumPercent: aws.Int32(200), DeploymentCircuitBreaker: &ecstypes.DeploymentCircuitBreaker{Enable: breaker, Rollback: breaker},
				}
			})
		}
	}
	public := func(how ecstypes.AssignPublicIp) func(*world) {
		return func(w *world) {
			w.update(func(in *ecs.UpdateServiceInput) {
				in.NetworkConfiguration = &ecstypes.NetworkConfiguration{AwsvpcConfiguration: &ecstypes.AwsVpcConfiguration{Subnets: []string{"subnet-1"}, AssignPublicIp: how}}
			})
		}
	}
	return []fault{
		together(fault{
			name: "no circuit breaker, and an outage for each rotation", plant: configuration(false, 0), mend: configuration(true, 100),
			want: []string{"warning rollout_unguarded", "warning rollout_unguarded"}, saying: []string{"service/payments/checkout: its circuit breaker is off", "may stop all its tasks"},
		}, fault{
			name: "public addresses", plant: public(ecstypes.AssignPublicIpEnabled), mend: public(ecstypes.AssignPublicIpDisabled),
			want: []string{"warning public_address"}, saying: []string{"service/payments/checkout: its tasks have public addresses"},
		}),
		{
			name: "a roll-out that failed", plant: func(w *world) {
				w.alter("ecs:DescribeServices", `"ledger"`, func(answer string) string {
					return strings.ReplaceAll(strings.ReplaceAll(answer, `"COMPLETED"`, `"FAILED"`), `"IN_PROGRESS"`, `"FAILED"`)
				})
			},
			mend: (*world).straight, want: []string{"error rollout_failed"}, saying: []string{"service/payments/ledger: the roll-out ecs-svc/"},
		},
		{
			name: "tasks",
			plant: func(w *world) {
				w.steady("checkout")
				w.answer(running(), http.StatusOK, "payments-checkout")
			}, look: func(c *review.Config) { c.Now = func() time.Time { return time.Now().Add(3 * time.Hour) } }, mend: (*world).straight,
			want: []string{"error init_differs", "unknown environment_file", "error key_in_definition", "error key_in_definition", "error passphrase_in_definition", "error task_outdated", "error task_outdated", "error task_outside_service", "warning shell", "warning task_outside_service"},
			saying: []string{
				"task/payments/payments-checkout-1: it was started at", "task/payments/payments-checkout-1: it runs " + regional + "task-definition/payments-checkout:2, and its service", "task/payments/payments-checkout-1: ECS Exec is enabled for this task",
				"task/payments/payments-checkout-2: it was started beside the service (by eve)", "task/payments/payments-checkout-3: the container app of this task was started with a private key", "and runs another command than its definition says, with the role " + accountARN + "role/payments-ledger-task and not that of its definition",
				"task/payments/payments-checkout-3: its init container has another Plan than that of the specification", "the container init of this task was started with the secret access key of an account", "with variables from the file arn:aws:s3:::bucket/init.env",
			},
		},
	}
}

// faultsOfDefinitions are what a definition takes from elsewhere, and what its containers get beside their own.
func faultsOfDefinitions() []fault {
	const about = "payments-checkout:"
	altered := func(name string, change func(string) string, saying []string, want ...string) fault {
		return fault{
			name: name, plant: func(w *world) { w.alter("ecs:DescribeTaskDefinition", about, change) }, mend: (*world).straight, want: want, saying: saying,
		}
	}
	const app, disk = `"name":"app"`, `{"name":"certificates"}`
	return []fault{
		altered("all that a container can have", replaced(`"linuxParameters":{"capabilities":{"drop":["ALL"]}}`, `"were":{}`,
			app, app+`,"environmentFiles":[{"type":"s3","value":"arn:aws:s3:::bucket/app.env"}],"privileged":true,"linuxParameters":{"capabilities":{"add":["SYS_PTRACE","NET_BIND_SERVICE"]},"devices":[{"hostPath":"/dev/mem"}]},`+
				`"repositoryCredentials":{"credentialsParameter":"arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/terminal-AbCdEf"}`,
			`"networkMode":"awsvpc"`, `"networkMode":"host","pidMode":"host"`,
			`"volumes":[`, `"volumes":[{"name":"docker","host":{"sourcePath":"/var/run/docker.sock"}},{"name":"above","host":{"sourcePath":"/var/./lib/"}},{"name":"beside","host":{"sourcePath":"/var/libs"}},`,
			disk, `{"name":"certificates","host":{"sourcePath":"/data/tls"}}`),
			[]string{
				"the container app takes variables from the file arn:aws:s3:::bucket/app.env", "the container app is privileged", "the container app has the capability SYS_PTRACE:", "the container app has devices of the host", "the network of the host",
				"see the processes", "the volume docker is /var/run/docker.sock of the host", "the volume above is /var/./lib/ of the host", "lie in the directory /data/tls of the host", "the container app gives payments/terminal to the registry of its image",
			},
			"unknown environment_file", "error container_rights", "error container_rights", "error container_rights", "error container_rights", "error container_rights", "error container_rights", "error container_rights", "error volume_outlives_task", "error secret_of_another"),
		altered("a shared file system", replaced(disk, `{"name":"certificates","efsVolumeConfiguration":{"fileSystemId":"fs-1"}}`), []string{"lie in the file system fs-1 (EFS)"}, "error volume_outlives_task"),
		{name: "what others have", plant: func(w *world) {
			w.define(func(_ *ecs.RegisterTaskDefinitionInput, all map[string]*ecstypes.ContainerDefinition) {
				const from = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/"
				all["app"].Secrets = []ecstypes.Secret{{Name: aws.String("OTHER"), ValueFrom: aws.String(from + "ledger-AbCdEf:key::")}}
				all["app"].Command = append(all["app"].Command, "--key-passphrase", "open sesame")
				all["proxy"].LogConfiguration.SecretOptions = []ecstypes.Secret{{Name: aws.String("splunk-token"), ValueFrom: aws.String(from + "checkout.rotation-AbCdEf")}}
				all["ready"].LogConfiguration.Options["splunk-token"] = "11111111-2222-3333-4444-555555555555"
			})
		}, want: []string{"error passphrase_in_definition", "error passphrase_in_definition", "error secret_of_another", "error secret_of_another"}, saying: []string{
			"the container app gets payments/ledger, which is not for checkout", "the container app has a passphrase in its command", "the container proxy gives payments/checkout.rotation to the option splunk-token of its log",
			"the container ready has a credential in the option splunk-token of its log",
		}},
	}
}
