package review

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"countersign.dev/aws/review/leak"
)

// readService reads a service, its task definition and the old revisions of it.
func (r *reviewer) readService(ctx context.Context, w *workload) {
	cluster, service := w.plan.ECS.Cluster, w.plan.ECS.Service
	resource := r.arn(w.place, "ecs", "service/"+name(cluster)+"/"+name(service))
	out, err := w.place.ecs.DescribeServices(ctx, &ecs.DescribeServicesInput{Cluster: &cluster, Services: []string{service}})
	_, noCluster := errors.AsType[*types.ClusterNotFoundException](err)
	switch {
	case err != nil && !noCluster:
		r.unread(err, "ecs:DescribeServices", resource, resource)
		return
	case noCluster || len(out.Services) == 0 || aws.ToString(out.Services[0].Status) != "ACTIVE":
		r.add(Error, ServiceMissing, resource, "there is no such service that is active", "deploy the template of `countersign generate cloudformation`, or see 'deploy' of "+w.name+" in the specification")
		return
	}
	s := &out.Services[0]
	r.report.Looked["services"]++
	r.judgeService(resource, s)
	r.readListeners(ctx, w, s)
	definition := aws.ToString(s.TaskDefinition)
	found, err := w.place.ecs.DescribeTaskDefinition(ctx, &ecs.DescribeTaskDefinitionInput{TaskDefinition: &definition})
	if err != nil {
		r.unread(err, "ecs:DescribeTaskDefinition", definition, definition)
		return
	}
	d := found.TaskDefinition
	w.family, w.taskRole, w.executionRole = aws.ToString(d.Family), r.deployedRole(d.TaskRoleArn), r.deployedRole(d.ExecutionRoleArn)
	r.judgeDefinition(definition, w, d, true)
	r.readTasks(ctx, w, s)
	r.readRevisions(ctx, w, definition)
}

// judgeService looks at how a service is configured, and how its last roll-out went.
func (r *reviewer) judgeService(resource string, s *types.Service) {
	if s.EnableExecuteCommand {
		r.add(Warning, Shell, resource, "ECS Exec is enabled: who may ecs:ExecuteCommand has a shell in its containers, and with it the key", "disable it (enableExecuteCommand: false)")
	}
	const mend = "take the deployment configuration of `countersign generate cloudformation`"
	c := s.DeploymentConfiguration
	if c == nil || c.DeploymentCircuitBreaker == nil || !c.DeploymentCircuitBreaker.Enable || !c.DeploymentCircuitBreaker.Rollback {
		r.add(Warning, Unguarded, resource, "its circuit breaker is off, or does not roll back: a roll-out whose tasks never become healthy does not end by itself", mend)
	}
	if c != nil && aws.ToInt32(c.MinimumHealthyPercent) == 0 && c.MinimumHealthyPercent != nil {
		r.add(Warning, Unguarded, resource, "a roll-out may stop all its tasks before new ones serve (minimumHealthyPercent 0): each rotation is an outage", mend)
	}
	if n := s.NetworkConfiguration; n != nil && n.AwsvpcConfiguration != nil && n.AwsvpcConfiguration.AssignPublicIp == types.AssignPublicIpEnabled {
		r.add(Warning, PublicAddress, resource, "its tasks have public addresses", "set assignPublicIp: DISABLED, and give the subnets endpoints of AWS, or a NAT gateway")
	}
	for _, d := range s.Deployments {
		if d.RolloutState == types.DeploymentRolloutStateFailed {
			r.add(Error, RolloutFailed, resource, "the roll-out "+aws.ToString(d.Id)+" failed: "+aws.ToString(d.RolloutStateReason), "see the events of the service and the logs of its tasks; then rotate again: `countersign rotate once`")
		}
	}
}

// readTasks looks at what runs of a service's family: tasks that nobody keeps, tasks with a shell, and those that run what is old.
func (r *reviewer) readTasks(ctx context.Context, w *workload, s *types.Service) {
	var arns []string
	pages := ecs.NewListTasksPaginator(w.place.ecs, &ecs.ListTasksInput{Cluster: s.ClusterArn, Family: &w.family})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			r.unread(err, "ecs:ListTasks", "*", "the tasks of "+w.name)
			return
		}
		arns = append(arns, page.TaskArns...)
	}
	r.listed = append(r.listed, arns...)
	const atOnce = 100 // https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_DescribeTasks.html
	for some := range slices.Chunk(arns, atOnce) {
		out, err := w.place.ecs.DescribeTasks(ctx, &ecs.DescribeTasksInput{Cluster: s.ClusterArn, Tasks: some})
		if err != nil {
			r.unread(err, "ecs:DescribeTasks", r.arn(w.place, "ecs", "task/"+name(w.plan.ECS.Cluster)+"/*"), "the tasks of "+w.name)
			return
		}
		for i := range out.Tasks {
			r.judgeTask(w, s, &out.Tasks[i])
		}
	}
}

// judgeTask looks at a task that is to run.
func (r *reviewer) judgeTask(w *workload, s *types.Service, t *types.Task) {
	r.report.Looked["tasks"]++
	arn := aws.ToString(t.TaskArn)
	if t.EnableExecuteCommand && !s.EnableExecuteCommand {
		r.add(Warning, Shell, arn, "ECS Exec is enabled for this task, though not for its service: who may ecs:ExecuteCommand has a shell in it, and with it the key", "stop the task (`aws ecs stop-task`); the service starts another one")
	}
	other := r.judgeOverrides(arn, w, t)
	if aws.ToString(t.Group) != "service:"+aws.ToString(s.ServiceName) {
		by := ""
		if t.StartedBy != nil {
			by = " (by " + *t.StartedBy + ")"
		}
		severity, what := Warning, "it was started beside the service"+by+" and has the roles and the secrets of "+w.name
		if len(other) > 0 {
			severity, what = Error, what+", and runs "+strings.Join(other, ", ")
		}
		r.add(severity, TaskOutside, arn, what, "see who started it and what for (RunTask in CloudTrail), and stop it (`aws ecs stop-task`); if nobody meant to, rotate "+w.name)
		return
	}
	if t.StartedAt != nil {
		w.tasks = append(w.tasks, *t)
	}
	if steady := len(s.Deployments) < 2; steady && aws.ToString(t.TaskDefinitionArn) != aws.ToString(s.TaskDefinition) {
		r.add(Error, TaskOutdated, arn, "it runs "+aws.ToString(t.TaskDefinitionArn)+", and its service "+aws.ToString(s.TaskDefinition), "have the service replace its tasks (`aws ecs update-service --force-new-deployment`)")
	}
}

// judgeOverrides looks at what a task was told beside its definition, and names what it runs instead.
func (r *reviewer) judgeOverrides(arn string, w *workload, t *types.Task) (other []string) {
	if t.Overrides == nil {
		return nil
	}
	for i := range t.Overrides.ContainerOverrides {
		o := &t.Overrides.ContainerOverrides[i]
		if len(o.Command) > 0 {
			other = append(other, "another command than its definition says")
		}
		r.judgeOverride(arn, o)
		if w.start != nil && aws.ToString(o.Name) == aws.ToString(w.start.Name) && len(o.Command)+len(o.Environment)+len(o.EnvironmentFiles) > 0 {
			told := *w.start
			told.Environment, told.EnvironmentFiles = slices.Concat(told.Environment, o.Environment), slices.Concat(told.EnvironmentFiles, o.EnvironmentFiles)
			if len(o.Command) > 0 {
				told.Command = o.Command
			}
			r.judgeInit(arn, w, &told)
		}
	}
	if role := r.deployedRole(t.Overrides.TaskRoleArn); role != "" && role != w.taskRole {
		other = append(other, "with the role "+role+" and not that of its definition")
	}
	if role := r.deployedRole(t.Overrides.ExecutionRoleArn); role != "" && role != w.executionRole {
		other = append(other, "with the execution role "+role+" and not that of its definition")
	}
	return slices.Compact(other)
}

// judgeOverride looks for what is secret in what a container was told.
func (r *reviewer) judgeOverride(arn string, o *types.ContainerOverride) {
	texts := []string{strings.Join(o.Command, " ")}
	passphrase, account := leak.Option(o.Command), false
	for _, pair := range o.Environment {
		name, value := aws.ToString(pair.Name), aws.ToString(pair.Value)
		texts = append(texts, name, value)
		passphrase = passphrase || leak.Passphrase(name, value)
		account = account || leak.AccessKey(name, value)
	}
	where := "the container " + aws.ToString(o.Name) + " of this task was started with "
	const mend = "start it by its definition; then rotate, because it has been seen: RunTask stands in CloudTrail with all that it was given"
	if slices.ContainsFunc(texts, func(text string) bool { return leak.Find(text) == leak.Key }) {
		r.add(Error, KeyInDefinition, arn, where+"a private key in its command or its variables", mend)
	}
	if account || slices.ContainsFunc(texts, leak.Account) {
		r.add(Error, KeyInDefinition, arn, where+"the secret access key of an account in its command or its variables", mendAccount)
	}
	if passphrase {
		r.add(Error, PassInDefinition, arn, where+"a passphrase in its command or its variables", mend)
	}
	for _, file := range o.EnvironmentFiles {
		r.add(Unknown, EnvironmentFile, arn, where+"variables from the file "+shortly(aws.ToString(file.Value))+", which is not read here: whoever reads it has what stands in it", "see that no key and no passphrase stands in it, and start the task by its definition")
	}
}

// settled is how long after a version was written all tasks have it: a roll-out takes minutes.
const settled = 2 * time.Hour

// judgeOldest sees whether tasks run that were started before the current version was written: they show the certificate before it.
func (r *reviewer) judgeOldest(w *workload, written time.Time) {
	if r.report.Checked.Sub(written) < settled {
		return
	}
	for i := range w.tasks {
		if t := &w.tasks[i]; t.StartedAt.Before(written) {
			r.add(Error, TaskOutdated, aws.ToString(t.TaskArn), fmt.Sprintf("it was started at %s, before the current version of its secret was written (%s), and shows the certificate before that one until that ends",
				t.StartedAt.UTC().Format(time.RFC3339), written.UTC().Format(time.RFC3339)), "have the service replace its tasks (`aws ecs update-service --force-new-deployment`), and see why the rotation did not: `countersign rotate status`")
		}
	}
}
