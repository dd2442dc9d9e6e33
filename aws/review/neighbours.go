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
	for _, role := range []string{r.deployedRole(out.TaskDefinition.TaskRoleArn), r.deployedRole(out.TaskDefinition.ExecutionRoleArn)} {
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
