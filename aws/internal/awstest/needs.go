package awstest

import (
	"context"
	"strings"
)

// arnOf is the ARN of something in this region and account.
func arnOf(service, resource string) string {
	return "arn:aws:" + service + ":" + Region + ":" + Account + ":" + resource
}

// needs finds what a request touches, as the tables of "actions, resources, and condition keys" say for each service:
// https://docs.aws.amazon.com/service-authorization/latest/reference/reference.html. What is not found there is "*".
func (c *Cloud) needs(ctx context.Context, q *request) ([]need, *refusal) {
	switch q.service {
	case "secretsmanager":
		return c.secretNeeds(ctx, q)
	case "kms":
		return c.keyNeeds(ctx, q)
	case "iam":
		return c.roleNeeds(q), nil
	case "sts":
		return c.assumeNeeds(q), nil
	case "ecs":
		return c.ecsNeeds(ctx, q), nil
	case "acm":
		return c.certificateNeeds(ctx, q)
	case "acm-pca":
		return authorityNeeds(q), nil
	case "events":
		return c.eventNeeds(q), nil
	default:
		var needs []need
		for _, resource := range resourcesOf(q) {
			needs = append(needs, need{action: q.action(), resource: resource, context: contextOf(q)})
		}
		return needs, nil
	}
}

// contextOf are the condition keys of the services without a rule of their own.
func contextOf(q *request) map[string][]string {
	if q.service == "monitoring" {
		return map[string][]string{"cloudwatch:namespace": optional(q.str("Namespace"))}
	}
	return nil
}

// resourcesOf are the ARNs of services whose requests name them plainly.
func resourcesOf(q *request) []string {
	switch q.service {
	case "monitoring":
		return alarms(q)
	case "logs":
		return []string{logGroup(q)}
	case "elasticloadbalancing":
		return balancers(q)
	}
	return []string{"*"}
}

func alarms(q *request) []string {
	var found []string
	for _, name := range append(q.list("AlarmNames"), optional(q.str("AlarmName"))...) {
		found = append(found, arnOf("cloudwatch", "alarm:"+name))
	}
	switch {
	case len(found) > 0:
		return found
	case q.operation == "DescribeAlarms":
		return []string{arnOf("cloudwatch", "alarm:*")}
	default:
		return []string{"*"}
	}
}

func logGroup(q *request) string {
	name := q.str("logGroupName")
	switch {
	case name == "" && q.str("logGroupIdentifier") != "":
		return q.str("logGroupIdentifier")
	case name == "":
		return arnOf("logs", "log-group:*")
	case q.operation == "PutLogEvents" || q.operation == "GetLogEvents":
		return arnOf("logs", "log-group:"+name+":log-stream:"+q.str("logStreamName"))
	default:
		return arnOf("logs", "log-group:"+name+":*")
	}
}

// balancers: describing has no resource; what is being made has a random last part.
func balancers(q *request) []string {
	if strings.HasPrefix(q.operation, "Describe") {
		return []string{"*"}
	}
	for _, name := range []string{"ListenerArn", "TargetGroupArn", "LoadBalancerArn"} {
		if arn := q.str(name); arn != "" {
			return []string{arn}
		}
	}
	switch q.operation {
	case "CreateLoadBalancer":
		kind := "app"
		if q.str("Type") == "network" {
			kind = "net"
		}
		return []string{arnOf("elasticloadbalancing", "loadbalancer/"+kind+"/"+q.str("Name")+"/*")}
	case "CreateTargetGroup":
		return []string{arnOf("elasticloadbalancing", "targetgroup/"+q.str("Name")+"/*")}
	}
	return []string{"*"}
}

// defaultTemplate is what Private CA uses when a request names no template.
const defaultTemplate = "arn:aws:acm-pca:::template/EndEntityCertificate/V1"

func authorityNeeds(q *request) []need {
	n := need{action: q.action(), resource: "*"}
	for _, name := range []string{"CertificateAuthorityArn", "ResourceArn"} {
		if arn := q.str(name); arn != "" {
			n.resource = arn
		}
	}
	if q.operation == "IssueCertificate" {
		template := q.str("TemplateArn")
		if template == "" {
			template = defaultTemplate
		}
		n.context = map[string][]string{"acm-pca:TemplateArn": {template}}
	}
	return []need{n}
}

func (c *Cloud) eventNeeds(q *request) []need {
	bus := q.str("EventBusName")
	if bus == "" {
		bus = "default"
	}
	name := q.str("Name")
	if name == "" {
		name = q.str("Rule")
	}
	n := need{action: q.action(), resource: "*"}
	switch {
	case strings.HasSuffix(q.operation, "EventBus") || q.operation == "PutEvents":
		n.resource = arnOf("events", "event-bus/"+bus)
	case name != "" && bus == "default":
		n.resource = arnOf("events", "rule/"+name)
	case name != "":
		n.resource = arnOf("events", "rule/"+bus+"/"+name)
	case q.str("ResourceARN") != "":
		n.resource = q.str("ResourceARN")
	}
	needs := []need{n}
	if q.operation == "PutTargets" {
		targets, _ := q.params["Targets"].([]any)
		for _, target := range targets {
			fields, _ := target.(map[string]any)
			if arn, _ := fields["RoleArn"].(string); arn != "" {
				needs = append(needs, c.passRole(arn, "events.amazonaws.com"))
			}
		}
	}
	return needs
}

// roleNeeds are those of IAM itself. A role's name stands for its ARN, with its path.
func (c *Cloud) roleNeeds(q *request) []need {
	n := need{action: q.action(), resource: "*"}
	path := q.str("Path")
	if path == "" {
		path = "/"
	}
	switch {
	case q.operation == "CreateRole":
		n.resource = "arn:aws:iam::" + Account + ":role" + path + q.str("RoleName")
	case q.str("RoleName") != "":
		n.resource = c.roleARN(q.str("RoleName"))
	case q.operation == "CreatePolicy":
		n.resource = "arn:aws:iam::" + Account + ":policy" + path + q.str("PolicyName")
	case q.str("PolicyArn") != "":
		n.resource = q.str("PolicyArn")
	}
	return []need{n}
}

// roleARN is the ARN of a role by its name or ARN.
func (c *Cloud) roleARN(name string) string {
	if strings.HasPrefix(name, "arn:") {
		return name
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if known := c.roles[name]; known != nil {
		return known.arn
	}
	return "arn:aws:iam::" + Account + ":role/" + name
}

// passRole is what handing a role to a service needs.
func (c *Cloud) passRole(name, service string) need {
	return need{action: "iam:PassRole", resource: c.roleARN(name), context: map[string][]string{"iam:PassedToService": {service}}}
}

// assumeNeeds: a role's trust policy decides who takes it, as a key's does.
func (c *Cloud) assumeNeeds(q *request) []need {
	n := need{action: q.action(), resource: "*"}
	if q.operation == "AssumeRole" {
		n.resource, n.decisive = q.str("RoleArn"), true
		n.context = map[string][]string{"sts:RoleSessionName": optional(q.str("RoleSessionName"))}
		c.mu.Lock()
		if known := c.roles[nameOf(n.resource)]; known != nil && known.arn == n.resource {
			n.policy = known.trust
		}
		c.mu.Unlock()
	}
	return []need{n}
}
