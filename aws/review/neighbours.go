package review

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// mostNeighbours are how many services of a cluster are looked at beside those of the mesh.
const mostNeighbours = 500

// readNeighbours looks at the services that run in the mesh's clusters and that the specification does not name: whether one of them
// runs what is a workload's, with its roles and so with its key.
func (r *reviewer) readNeighbours(ctx context.Context) {
	var seen []string
	for _, w := range r.workloads {
		cluster := w.plan.ECS.Cluster
		if id := w.place.config.Region + " " + name(cluster); !slices.Contains(seen, id) {
			seen = append(seen, id)
			r.readCluster(ctx, w.place, cluster)
			r.readStrangers(ctx, w.place, cluster)
		}
	}
}

// readCluster looks at those of one cluster.
func (r *reviewer) readCluster(ctx context.Context, p *place, cluster string) {
	subject := r.arn(p, "ecs", "cluster/"+name(cluster))
	var others []string
	pages := ecs.NewListServicesPaginator(p.ecs, &ecs.ListServicesInput{Cluster: &cluster, MaxResults: aws.Int32(100)}) //nolint:mnd // the most that AWS gives
	for pages.HasMorePages() && len(others) <= mostNeighbours {
		page, err := pages.NextPage(ctx)
		if _, missing := errors.AsType[*types.ClusterNotFoundException](err); missing {
			return // its services are missing, which is said
		}
		if err != nil {
			r.unread(err, "ecs:ListServices", "*", "the other services of "+subject)
			return
		}
		for _, arn := range page.ServiceArns {
			if !r.declared(p, cluster, name(arn)) {
				others = append(others, arn)
			}
		}
	}
	if len(others) > mostNeighbours {
		r.add(Unknown, Undecided, subject, fmt.Sprintf("it has more than %d services beside those of the mesh; the others were not looked at", mostNeighbours), "run the mesh in a cluster of its own")
		others = others[:mostNeighbours]
	}
	const atOnce = 10 // https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_DescribeServices.html
	for some := range slices.Chunk(others, atOnce) {
		out, err := p.ecs.DescribeServices(ctx, &ecs.DescribeServicesInput{Cluster: &cluster, Services: some})
		if err != nil {
			r.unread(err, "ecs:DescribeServices", r.arn(p, "ecs", "service/"+name(cluster)+"/*"), "the other services of "+subject)
			return
		}
		for i := range out.Services {
			r.judgeNeighbour(ctx, p, &out.Services[i])
		}
	}
}

// declared tells whether the specification names a service.
func (r *reviewer) declared(p *place, cluster, service string) bool {
	return slices.ContainsFunc(r.workloads, func(w *workload) bool {
		return w.place.config.Region == p.config.Region && name(w.plan.ECS.Cluster) == name(cluster) && name(w.plan.ECS.Service) == service
	})
}

// judgeNeighbour looks at what a service runs that nobody has declared.
func (r *reviewer) judgeNeighbour(ctx context.Context, p *place, s *types.Service) {
	if aws.ToString(s.Status) != "ACTIVE" && s.RunningCount == 0 {
		return // it is on its way out
	}
	r.report.Looked["other services"]++
	definitions := []string{aws.ToString(s.TaskDefinition)}
	for _, d := range s.Deployments {
		definitions = append(definitions, aws.ToString(d.TaskDefinition))
	}
	for _, set := range s.TaskSets {
		definitions = append(definitions, aws.ToString(set.TaskDefinition))
	}
	slices.Sort(definitions)
	var what []string
	for _, definition := range slices.Compact(definitions) {
		if definition != "" {
			what = append(what, r.ofMesh(ctx, p, definition)...)
		}
	}
	if len(what) == 0 {
		return
	}
	slices.Sort(what)
	message := "it is a service that the specification does not name, and runs " + strings.Join(slices.Compact(what), ", ") + ": its tasks have that workload's key"
	if s.EnableExecuteCommand {
		message += "; ECS Exec is enabled for it, so that who may ecs:ExecuteCommand has a shell there"
	}
	r.add(Error, ServiceBeside, aws.ToString(s.ServiceArn), message, "see who made it (CreateService in CloudTrail), and delete it (`aws ecs delete-service --force`); if nobody meant to, rotate the workload. One that is meant belongs into the specification")
}

// readStrangers looks at tasks of a cluster that are of no workload's family and of no service: whether one of them has a workload's role.
func (r *reviewer) readStrangers(ctx context.Context, p *place, cluster string) {
	subject := r.arn(p, "ecs", "cluster/"+name(cluster))
	var others []string
	pages := ecs.NewListTasksPaginator(p.ecs, &ecs.ListTasksInput{Cluster: &cluster})
	for pages.HasMorePages() && len(others) <= mostNeighbours {
		page, err := pages.NextPage(ctx)
		if _, missing := errors.AsType[*types.ClusterNotFoundException](err); missing {
			return // its services are missing, which is said
		}
		if err != nil {
			r.unread(err, "ecs:ListTasks", "*", "the other tasks of "+subject)
			return
		}
		for _, arn := range page.TaskArns {
			if !slices.Contains(r.listed, arn) {
				others = append(others, arn)
			}
		}
	}
	if len(others) > mostNeighbours {
		r.add(Unknown, Undecided, subject, fmt.Sprintf("it has more than %d tasks beside those of the mesh; the others were not looked at", mostNeighbours), "run the mesh in a cluster of its own")
		others = others[:mostNeighbours]
	}
	known := map[string][]string{} // many tasks are of one definition
	const atOnce = 100             // https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_DescribeTasks.html
	for some := range slices.Chunk(others, atOnce) {
		out, err := p.ecs.DescribeTasks(ctx, &ecs.DescribeTasksInput{Cluster: &cluster, Tasks: some})
		if err != nil {
			r.unread(err, "ecs:DescribeTasks", r.arn(p, "ecs", "task/"+name(cluster)+"/*"), "the other tasks of "+subject)
			return
		}
		for i := range out.Tasks {
			r.judgeStranger(ctx, p, &out.Tasks[i], known)
		}
	}
}

// judgeStranger looks at a task of another family; known is what definitions have. Those of services are looked at by their services.
func (r *reviewer) judgeStranger(ctx context.Context, p *place, t *types.Task, known map[string][]string) {
	definition := aws.ToString(t.TaskDefinitionArn)
	if strings.HasPrefix(aws.ToString(t.Group), "service:") || definition == "" {
		return
	}
	r.report.Looked["other tasks"]++
	if _, asked := known[definition]; !asked {
		known[definition] = r.ofMesh(ctx, p, definition)
	}
	what := slices.Clone(known[definition])
	if o := t.Overrides; o != nil {
		what = append(what, r.withRoles(o.TaskRoleArn, o.ExecutionRoleArn)...)
	}
	if len(what) == 0 {
		return
	}
	slices.Sort(what)
	r.add(Error, TaskOutside, aws.ToString(t.TaskArn), "it is a task of no service, and runs "+strings.Join(slices.Compact(what), ", ")+": it gets that workload's key",
		"see who started it and what for (RunTask in CloudTrail), and stop it (`aws ecs stop-task`); if nobody meant to, rotate the workload")
}

// ofMesh says what of the mesh a task definition has: a workload's family, or roles.
func (r *reviewer) ofMesh(ctx context.Context, p *place, definition string) (what []string) {
	family, _, _ := strings.Cut(name(definition), ":")
	for _, w := range r.workloads {
		if w.place.config.Region == p.config.Region && family == w.runs(r) {
			return []string{"the task definition of " + w.name}
		}
	}
	out, err := p.ecs.DescribeTaskDefinition(ctx, &ecs.DescribeTaskDefinitionInput{TaskDefinition: &definition})
	if err != nil {
		r.unread(err, "ecs:DescribeTaskDefinition", definition, definition)
		return nil
	}
	return r.withRoles(out.TaskDefinition.TaskRoleArn, out.TaskDefinition.ExecutionRoleArn)
}

// withRoles says whose some roles are.
func (r *reviewer) withRoles(roles ...*string) (what []string) {
	for _, given := range roles {
		role := r.deployedRole(given)
		for _, w := range r.workloads {
			if role != "" && (role == w.taskRole || role == w.executionRole) {
				what = append(what, "with a role of "+w.name+" ("+role+")")
			}
		}
	}
	return what
}

// runs is the family of a workload's task definition: as deployed, or else by the name that templates give it.
func (w *workload) runs(r *reviewer) string {
	if w.family != "" {
		return w.family
	}
	return r.Spec.Mesh + "-" + w.name
}
