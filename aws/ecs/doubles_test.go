package ecs_test

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"countersign.dev/aws/ecs"
	"countersign.dev/aws/internal/awstest"
	"countersign.dev/aws/session"
	"countersign.dev/mesh"
	"countersign.dev/rotate"
)

// policy is what docs/ecs-deploy.md says that the role needs.
const policy = `{"Version":"2012-10-17","Statement":[
	{"Effect":"Allow","Action":["ecs:UpdateService","ecs:DescribeServices"],"Resource":"arn:aws:ecs:eu-central-1:123456789012:service/CLUSTER/checkout"},
	{"Effect":"Allow","Action":"ecs:DescribeTasks","Resource":"arn:aws:ecs:eu-central-1:123456789012:task/CLUSTER/*"},
	{"Effect":"Allow","Action":"ecs:ListTasks","Resource":"*","Condition":{"ArnEquals":{"ecs:cluster":"arn:aws:ecs:eu-central-1:123456789012:cluster/CLUSTER"}}}
]}`

// deployed makes a cluster with a service of two tasks in a double.
func deployed(t *testing.T, cloud *awstest.Cloud, double http.Handler, cluster string) *awsecs.Client {
	t.Helper()
	cloud.Mount("ecs", double)
	admin := awsecs.NewFromConfig(cloud.Admin())
	name := aws.String("checkout")
	if _, err := admin.CreateCluster(t.Context(), &awsecs.CreateClusterInput{ClusterName: &cluster}); err != nil {
		t.Fatal(err)
	}
	_, err := admin.RegisterTaskDefinition(t.Context(), &awsecs.RegisterTaskDefinitionInput{
		Family: name, Memory: aws.String("512"),
		ContainerDefinitions: []types.ContainerDefinition{{Name: aws.String("app"), Image: aws.String("app@sha256:00"), Essential: aws.Bool(true)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = admin.CreateService(t.Context(), &awsecs.CreateServiceInput{
		Cluster: &cluster, ServiceName: name, TaskDefinition: name, DesiredCount: aws.Int32(2), LaunchType: types.LaunchTypeEc2,
		DeploymentController:    &types.DeploymentController{Type: types.DeploymentControllerTypeEcs},
		DeploymentConfiguration: &types.DeploymentConfiguration{DeploymentCircuitBreaker: &types.DeploymentCircuitBreaker{Enable: true, Rollback: true}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return admin
}

// open opens a service as a role, which gets its credentials from the environment.
func open(t *testing.T, cloud *awstest.Cloud, role, cluster, service string) *ecs.Service {
	t.Helper()
	for _, variable := range cloud.Env(role) {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
	}
	s, err := ecs.Open(t.Context(), ecs.Config{Cluster: cluster, Service: service})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestDoubles follows a forced deployment in the doubles that others wrote, with the permissions that the documents name and
// no others.
func TestDoubles(t *testing.T) {
	for name, double := range map[string]func(testing.TB) http.Handler{"ministack": awstest.Ministack, "moto": awstest.Moto} {
		t.Run(name, func(t *testing.T) {
			cloud := awstest.Start(t)
			cluster := "doubles-" + strings.ToLower(rand.Text()[:8])
			admin := deployed(t, cloud, double(t), cluster)
			cloud.PutRole("ecs-rotation", []byte(strings.ReplaceAll(policy, "CLUSTER", cluster)))
			s := open(t, cloud, "ecs-rotation", cluster, "checkout")
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			gateway := rotate.Target{Workload: mesh.Workload{Name: "checkout"}} // without a listener that anybody could look at

			id, err := s.Begin(ctx, gateway)
			if err != nil {
				t.Fatal(err)
			}
			described, err := admin.DescribeServices(ctx, &awsecs.DescribeServicesInput{Cluster: &cluster, Services: []string{"checkout"}})
			if err != nil || !strings.HasPrefix(id, aws.ToString(described.Services[0].Deployments[0].Id)+"@") {
				t.Errorf("the deployment %s, %+v, %v", id, described, err)
			}
			if name == "ministack" { // moto starts no tasks, so that a deployment never ends there
				if err := s.Wait(ctx, gateway, id, func(text string) { t.Log(text) }); err != nil {
					t.Error(err)
				}
			}
			gateway.Now = rotate.Now{Serial: "77", Rollout: id}
			seen, err := s.Look(ctx, gateway)
			if err != nil {
				t.Error(err)
			}
			if name == "ministack" && (len(seen) != 2 || seen[0].Serial != "77" || seen[1].Serial != "77") {
				t.Errorf("%+v, want both of the new tasks, and none of before", seen)
			}
			for _, call := range cloud.Calls() {
				if !call.Allowed {
					t.Errorf("%s may not %s on %s: %s", call.Role, call.Action, call.Resource, call.Why)
				}
			}

			for what, want := range map[[2]string]string{{cluster, "absent"}: "has no service absent (MISSING)", {"absent", "checkout"}: "there is no cluster absent"} {
				if _, err := open(t, cloud, "root", what[0], what[1]).Begin(ctx, gateway); !errors.Is(err, rotate.ErrRolloutFailed) || !strings.Contains(err.Error(), want) {
					t.Errorf("%s: %v", want, err)
				}
			}
			cloud.PutRole("ecs-nobody")
			stranger := open(t, cloud, "ecs-nobody", cluster, "checkout")
			if _, err := stranger.Begin(ctx, gateway); !errors.Is(err, session.ErrDenied) || !errors.Is(err, rotate.ErrRolloutFailed) ||
				!strings.Contains(err.Error(), `{"Effect":"Allow","Action":"ecs:DescribeServices","Resource":"arn:aws:ecs:eu-central-1:123456789012:service/`+cluster+`/checkout"}`) {
				t.Errorf("%v, want ErrDenied with the line that is missing", err)
			}
		})
	}
}
