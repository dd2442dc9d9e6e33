//go:build linux

package review_test

import (
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	ecstypes "github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// serve makes a service of no task, and remove takes it away.
func (w *world) serve(service, definition string) {
	w.Helper()
	try[*ecs.CreateServiceOutput](w)(ecs.NewFromConfig(w.cloud.Admin()).CreateService(w.Context(), &ecs.CreateServiceInput{
		Cluster: aws.String("payments"), ServiceName: &service, TaskDefinition: &definition, DesiredCount: aws.Int32(0), LaunchType: ecstypes.LaunchTypeFargate,
		NetworkConfiguration: &ecstypes.NetworkConfiguration{AwsvpcConfiguration: &ecstypes.AwsVpcConfiguration{Subnets: []string{"subnet-1"}}},
	}))
}

func (w *world) remove(service string) {
	w.Helper()
	try[*ecs.DeleteServiceOutput](w)(ecs.NewFromConfig(w.cloud.Admin()).DeleteService(w.Context(), &ecs.DeleteServiceInput{Cluster: aws.String("payments"), Service: &service, Force: aws.Bool(true)}))
}

// register makes a task definition of another family, like the ledger's, with roles.
func (w *world) register(family string, task, execution *string) {
	w.Helper()
	client := ecs.NewFromConfig(w.cloud.Admin())
	d := try[*ecs.DescribeTaskDefinitionOutput](w)(client.DescribeTaskDefinition(w.Context(), &ecs.DescribeTaskDefinitionInput{TaskDefinition: aws.String("payments-ledger:1")})).TaskDefinition
	try[*ecs.RegisterTaskDefinitionOutput](w)(client.RegisterTaskDefinition(w.Context(), &ecs.RegisterTaskDefinitionInput{
		Family: &family, ContainerDefinitions: d.ContainerDefinitions, Volumes: d.Volumes, Cpu: d.Cpu, Memory: d.Memory, NetworkMode: d.NetworkMode,
		TaskRoleArn: task, ExecutionRoleArn: execution, RequiresCompatibilities: d.RequiresCompatibilities, RuntimePlatform: d.RuntimePlatform,
	}))
}

// faultsOfNeighbours are services of the cluster that nobody has declared.
func faultsOfNeighbours() []fault {
	return []fault{{
		name: "services that nobody declared", plant: func(w *world) {
			w.register("debug", aws.String(accountARN+"role/payments-ledger-task"), aws.String(accountARN+"role/nobody"))
			w.register("injected", nil, aws.String(accountARN+"role/payments-terminal-execution"))
			w.register("theirs", nil, aws.String(accountARN+"role/nobody"))
			w.serve("ledger-debug", "payments-ledger")
			w.serve("by-role", "debug")
			w.serve("by-execution", "injected")
			w.serve("another", "theirs")
			w.alter("ecs:DescribeServices", "ledger-debug", func(answer string) string {
				return strings.ReplaceAll(answer, `"enableExecuteCommand":false`, `"enableExecuteCommand":true`)
			})
		},
		mend: func(w *world) {
			w.straight()
			for _, service := range []string{"ledger-debug", "by-role", "by-execution", "another"} {
				w.remove(service)
			}
		},
		want: []string{"error service_undeclared", "error service_undeclared", "error service_undeclared"},
		saying: []string{
			"service/payments/ledger-debug: it is a service that the specification does not name, and runs the task definition of ledger", "ECS Exec is enabled for it",
			"service/payments/by-role: it is a service that the specification does not name, and runs with a role of ledger (" + accountARN + "role/payments-ledger-task)",
			"service/payments/by-execution: it is a service that the specification does not name, and runs with a role of terminal",
		},
	}, {
		name: "tasks of a stranger's family", plant: func(w *world) {
			w.register("strange", aws.String(accountARN+"role/payments-ledger-task"), aws.String(accountARN+"role/nobody"))
			w.register("plain", nil, aws.String(accountARN+"role/nobody"))
			task := func(id, group, family, overrides string) string {
				return `{"taskArn":"` + regional + `task/payments/` + id + `","group":"` + group + `","taskDefinitionArn":"` + regional + `task-definition/` + family + `:1","overrides":{` + overrides + `}}`
			}
			tasks := []string{
				task("1", "family:strange", "strange", ""), task("2", "family:plain", "plain", `"executionRoleArn":"`+accountARN+`role/payments-terminal-execution"`),
				task("3", "family:plain", "plain", ""), task("4", "service:by-role", "strange", ""),
			}
			w.answer(map[string]string{"ecs:ListTasks": `{"taskArns":["` + regional + `task/payments/1"]}`, "ecs:DescribeTasks": `{"tasks":[` + strings.Join(tasks, ",") + `],"failures":[]}`}, http.StatusOK, `"cluster":"payments"`)
		},
		mend: (*world).straight,
		want: []string{"error task_outside_service", "error task_outside_service"},
		saying: []string{
			"task/payments/1: it is a task of no service, and runs with a role of ledger (" + accountARN + "role/payments-ledger-task)",
			"task/payments/2: it is a task of no service, and runs with a role of terminal (" + accountARN + "role/payments-terminal-execution)",
		},
	}}
}
