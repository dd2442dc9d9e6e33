package awstest

import (
	"context"
	"strings"
)

const tasksService = "ecs-tasks.amazonaws.com"

// ecsNeeds follows https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonelasticcontainerservice.html.
func (c *Cloud) ecsNeeds(ctx context.Context, q *request) []need {
	cluster := q.str("cluster")
	if cluster == "" {
		cluster = "default"
	}
	if q.operation == "CreateCluster" {
		cluster = q.str("clusterName")
	}
	clusterName := nameOf(cluster)
	extra := map[string][]string{"ecs:cluster": {arnOf("ecs", "cluster/"+clusterName)}}
	var needs []need
	for _, resource := range ecsResources(q, clusterName) {
		needs = append(needs, need{action: q.action(), resource: resource, context: extra})
	}
	switch q.operation {
	case "RegisterTaskDefinition":
		needs = append(needs, c.passTaskRoles(q.params)...)
	case "RunTask", "StartTask":
		overrides, _ := q.params["overrides"].(map[string]any)
		needs = append(needs, c.passTaskRoles(overrides)...)
		// Who starts a task hands over the roles of its definition too.
		answer, err := c.inside(ctx, "ecs", "AmazonEC2ContainerServiceV20141113.DescribeTaskDefinition", map[string]any{"taskDefinition": q.str("taskDefinition")})
		if definition, _ := answer["taskDefinition"].(map[string]any); err == nil {
			needs = append(needs, c.passTaskRoles(definition)...)
		}
	}
	return needs
}

// passTaskRoles are the roles that a task definition or an override names.
func (c *Cloud) passTaskRoles(of map[string]any) []need {
	var needs []need
	for _, name := range []string{"taskRoleArn", "executionRoleArn"} {
		if role, _ := of[name].(string); role != "" {
			needs = append(needs, c.passRole(role, tasksService))
		}
	}
	return needs
}

// ecsResources are the ARNs that the operation is decided on. Lists have none, or one that only * matches.
func ecsResources(q *request, cluster string) []string {
	full := func(kind, inCluster, name string) string {
		if strings.HasPrefix(name, "arn:") {
			return name
		}
		return arnOf("ecs", kind+"/"+inCluster+nameOf(name))
	}
	all := func(kind string, names []string) []string {
		if len(names) == 0 {
			return []string{"*"}
		}
		var found []string
		for _, name := range names {
			found = append(found, full(kind, cluster+"/", name))
		}
		return found
	}
	switch q.operation {
	case "CreateCluster", "DeleteCluster":
		return []string{arnOf("ecs", "cluster/"+cluster)}
	case "DescribeClusters":
		var found []string
		for _, name := range q.list("clusters") {
			found = append(found, full("cluster", "", name))
		}
		if len(found) == 0 {
			found = []string{arnOf("ecs", "cluster/default")}
		}
		return found
	case "CreateService":
		return []string{full("service", cluster+"/", q.str("serviceName"))}
	case "UpdateService", "DeleteService":
		return []string{full("service", cluster+"/", q.str("service"))}
	case "DescribeServices":
		return all("service", q.list("services"))
	case "DescribeTasks":
		return all("task", q.list("tasks"))
	case "StopTask":
		return []string{full("task", cluster+"/", q.str("task"))}
	case "RunTask", "StartTask":
		return []string{taskDefinition(q.str("taskDefinition"))}
	case "RegisterTaskDefinition":
		return []string{taskDefinition(q.str("family"))}
	case "TagResource", "UntagResource", "ListTagsForResource":
		return []string{q.str("resourceArn")}
	default:
		return []string{"*"}
	}
}

// taskDefinition is the ARN of FAMILY:REVISION; a family alone stands for any revision.
func taskDefinition(name string) string {
	if strings.HasPrefix(name, "arn:") {
		return name
	}
	if !strings.Contains(name, ":") {
		name += ":*"
	}
	return arnOf("ecs", "task-definition/"+name)
}
