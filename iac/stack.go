package iac

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"countersign.dev/mesh"
)

// network makes the security groups: who calls whom is said in the specification, and nobody else gets a connection.
// The groups of tasks refer to those of balancers and of the rotation, and these to nobody: rules in the other
// direction are resources of their own.
func (t *template) network() {
	t.begin("Who may connect to whom: the graph of the specification")
	securityGroup := func(id, what string, in, out list) {
		o := object{{key: "GroupDescription", value: what}, {key: "VpcId", value: param("VpcId")}}
		if len(in) > 0 {
			o = append(o, field{key: "SecurityGroupIngress", value: in})
		}
		if len(out) > 0 {
			o = append(o, field{key: "SecurityGroupEgress", value: out})
		}
		t.add(id, "AWS::EC2::SecurityGroup", "", o)
	}
	toAWS := rule("CidrIp", param("AwsApiCidr"), httpsPort, "the endpoints of AWS")
	securityGroup("RotationGroup", "the rotation of the mesh "+t.d.spec.Mesh, nil, list{toAWS})
	for _, w := range t.d.workloads {
		in, out := list{}, list{toAWS}
		for _, port := range w.plan.Inbound {
			in = append(in, rule("SourceSecurityGroupId", group(w.id+"BalancerGroup"), port.Port, "from its balancer"))
			if port.TLS != mesh.Off {
				in = append(in, rule("SourceSecurityGroupId", group("RotationGroup"), port.Port, "the rotation sees what is shown"))
			}
		}
		for _, c := range w.calls {
			out = append(out, rule("DestinationSecurityGroupId", group(c.to.id+"BalancerGroup"), c.port, "calls "+c.to.name))
		}
		securityGroup(w.id+"Group", "tasks of "+w.name, in, out)
		if len(w.plan.Inbound) > 0 {
			securityGroup(w.id+"BalancerGroup", "the balancer of "+w.name, nil, nil)
		}
	}
	for _, w := range t.d.workloads {
		for _, in := range w.plan.Inbound {
			t.connections(w, in)
		}
	}
}

const httpsPort = 443

// rule is a rule of a security group for one port.
func rule(peerKey string, peer text, port int, why string) object {
	return object{
		{key: "IpProtocol", value: "tcp"},
		{key: "FromPort", value: port},
		{key: "ToPort", value: port},
		{key: peerKey, value: peer},
		{key: "Description", value: why},
	}
}

// group is the id of a security group.
func group(id string) text { return say(ref{cfn: id + ".GroupId"}) }

// connections let a port be reached by its callers through the balancer, and by the rotation, which looks at what it
// shows.
func (t *template) connections(w *workload, in mesh.Inbound) {
	port := strconv.Itoa(in.Port)
	tasks, balancer := w.id+"Group", w.id+"BalancerGroup"
	add := func(id, kind, on, peerKey string, peer text, why string) {
		t.add(id, "AWS::EC2::SecurityGroup"+kind, "", append(object{{key: "GroupId", value: group(on)}}, rule(peerKey, peer, in.Port, why)...))
	}
	add(w.id+"BalancerTo"+port, "Egress", balancer, "DestinationSecurityGroupId", group(tasks), "to its tasks")
	if in.TLS != mesh.Off {
		add("RotationTo"+w.id+port, "Egress", "RotationGroup", "DestinationSecurityGroupId", group(tasks), "sees what "+w.name+" shows")
	}
	if w.gateway() {
		add(w.id+"BalancerFromClients"+port, "Ingress", balancer, "CidrIp", param("ClientCidr"), "the outside")
	}
	for _, caller := range w.callers {
		if slices.Contains(caller.calls, call{w, in.Port}) {
			add(w.id+"BalancerFrom"+caller.id+port, "Ingress", balancer, "SourceSecurityGroupId", group(caller.id+"Group"), "from "+caller.name)
		}
	}
}

// workloads make clusters, balancers, task definitions and services.
func (t *template) workloads() error {
	t.begin("Clusters")
	for _, c := range t.d.clusters {
		t.add(identifier(c)+"Cluster", "AWS::ECS::Cluster", "", object{
			{key: "ClusterName", value: c},
			{key: "ClusterSettings", value: list{object{{key: "Name", value: "containerInsights"}, {key: "Value", value: "enabled"}}}},
		})
	}
	for _, w := range t.d.workloads {
		t.begin(fmt.Sprintf("The %s %s", w.plan.Workload.Kind, w.name))
		t.balancer(w)
		definition, err := t.d.taskDefinition(w, taskCPU, taskMemory, taskArchitecture)
		if err != nil {
			return err
		}
		t.add(w.id+"Task", "AWS::ECS::TaskDefinition", "", pascal(definition).(object))
		t.service(w)
	}
	return nil
}

// balancer makes a workload's balancer, with a target group and a listener for each port. TLS ends in the tasks.
func (t *template) balancer(w *workload) {
	if len(w.plan.Inbound) == 0 {
		return
	}
	attribute := func(key, value string) object { return object{{key: "Key", value: key}, {key: "Value", value: value}} }
	t.add(w.id+"Balancer", "AWS::ElasticLoadBalancingV2::LoadBalancer", "", object{
		{key: "Type", value: "network"},
		{key: "Scheme", value: "internal"},
		{key: "Subnets", value: param("SubnetIds")},
		{key: "SecurityGroups", value: list{group(w.id + "BalancerGroup")}},
		{key: "LoadBalancerAttributes", value: list{attribute("load_balancing.cross_zone.enabled", "true")}},
	})
	for i, port := range w.ports() {
		note := ""
		if i == 0 {
			note = healthNote
		}
		p := strconv.Itoa(port)
		t.add(w.id+"Target"+p, "AWS::ElasticLoadBalancingV2::TargetGroup", note, object{
			{key: "TargetType", value: "ip"},
			{key: "Protocol", value: "TCP"},
			{key: "Port", value: port},
			{key: "VpcId", value: param("VpcId")},
			{key: "HealthCheckProtocol", value: "TCP"},
			{key: "HealthCheckIntervalSeconds", value: 10},
			{key: "HealthCheckTimeoutSeconds", value: 5},
			{key: "HealthyThresholdCount", value: 2},
			{key: "UnhealthyThresholdCount", value: 2},
			{key: "TargetGroupAttributes", value: list{attribute("deregistration_delay.timeout_seconds", strconv.Itoa(seconds(deregistration)))}},
		})
		t.add(w.id+"Listener"+p, "AWS::ElasticLoadBalancingV2::Listener", "", object{
			{key: "LoadBalancerArn", value: param(w.id + "Balancer")},
			{key: "Protocol", value: "TCP"},
			{key: "Port", value: port},
			{key: "DefaultActions", value: list{object{{key: "Type", value: "forward"}, {key: "TargetGroupArn", value: param(w.id + "Target" + p)}}}},
		})
	}
}

// service makes a workload's service.
func (t *template) service(w *workload) {
	after := []string{w.execution.policy()}
	if t.d.init != InitEnvironment {
		after = append(after, w.task.policy())
	}
	o := object{
		{key: "ServiceName", value: w.plan.ECS.Service},
		{key: "Cluster", value: param(w.cluster())},
		{key: "TaskDefinition", value: param(w.id + "Task")},
		{key: "LaunchType", value: "FARGATE"},
		{key: "DesiredCount", value: param("DesiredCount")},
		{key: "EnableExecuteCommand", value: false, note: shellNote},
		{key: "DeploymentConfiguration", value: object{
			{key: "MinimumHealthyPercent", value: 100},
			{key: "MaximumPercent", value: 200},
			{key: "DeploymentCircuitBreaker", value: object{{key: "Enable", value: true}, {key: "Rollback", value: true}}},
		}},
		{key: "NetworkConfiguration", value: object{{key: "AwsvpcConfiguration", value: object{
			{key: "AssignPublicIp", value: "DISABLED"},
			{key: "Subnets", value: param("SubnetIds")},
			{key: "SecurityGroups", value: list{group(w.id + "Group")}},
		}}}},
	}
	var balancers list
	for _, port := range w.ports() {
		p := strconv.Itoa(port)
		after = append(after, w.id+"Listener"+p)
		balancers = append(balancers, object{{key: "ContainerName", value: proxyContainer}, {key: "ContainerPort", value: port}, {key: "TargetGroupArn", value: param(w.id + "Target" + p)}})
	}
	if len(balancers) > 0 {
		o = append(o, field{key: "LoadBalancers", value: balancers}, field{key: "HealthCheckGracePeriodSeconds", value: graceSeconds})
	}
	t.add(w.id+"Service", "AWS::ECS::Service", "", o, dependsOn(after...))
}

// Of the function: how long it may run, and how many of it at once. A second one finds the leases of the first.
const (
	functionSeconds = 900
	functionsAtOnce = 2
	functionMiB     = 512
)

// rotation makes the function and what starts it.
func (t *template) rotation() {
	schedule, often := t.d.schedule()
	t.begin("The rotation: " + often + " what is due, and what ACM tells")
	function := object{
		{key: "FunctionName", value: t.d.function.name},
		{key: "Description", value: "Rotates the certificates of the mesh " + t.d.spec.Mesh},
		{key: "Runtime", value: "provided.al2023"},
		{key: "Handler", value: "bootstrap"},
		{key: "Architectures", value: list{either{"Arm", "arm64", "x86_64"}}},
		{key: "Code", value: object{{key: "S3Bucket", value: param("FunctionBucket")}, {key: "S3Key", value: param("FunctionKey")}}},
		{key: "Role", value: say(t.d.function.role.arn)},
		{key: "Timeout", value: functionSeconds},
		{key: "MemorySize", value: functionMiB},
		{key: "ReservedConcurrentExecutions", value: functionsAtOnce},
		{key: "VpcConfig", value: object{{key: "SubnetIds", value: param("SubnetIds")}, {key: "SecurityGroupIds", value: list{group("RotationGroup")}}}},
	}
	if variables := t.d.functionVariables(); len(variables) > 0 {
		function = append(function, field{key: "Environment", value: object{{key: "Variables", value: variables}}})
	}
	after := []string{t.d.function.role.policy(), "RotationLogs"}
	_, attached := t.d.functionPolicies()
	for _, m := range attached {
		after = append(after, m.id)
	}
	t.add("RotationFunction", "AWS::Lambda::Function", "", function, dependsOn(after...))
	t.add("RotationInvocations", "AWS::Lambda::EventInvokeConfig", onceNote, object{
		{key: "FunctionName", value: param("RotationFunction")},
		{key: "Qualifier", value: "$LATEST"},
		{key: "MaximumRetryAttempts", value: 0},
		{key: "MaximumEventAgeInSeconds", value: seconds(t.d.every())},
	})
	t.trigger("RotationSchedule", "", object{{key: "Description", value: "Rotates what is due in the mesh " + t.d.spec.Mesh}, {key: "ScheduleExpression", value: schedule}, {key: "State", value: "ENABLED"}})
	if t.d.acm() {
		t.trigger("RotationOnACM", acmNote, object{
			{key: "Description", value: "Tells the rotation of the mesh " + t.d.spec.Mesh + " what ACM says"},
			{key: "EventPattern", value: eventPattern()},
			{key: "State", value: "ENABLED"},
		})
	}
}

// eventPattern are the events of ACM that concern certificates.
func eventPattern() object {
	return object{{key: "source", value: list{"aws.acm"}}, {key: "detail-type", value: list{"ACM Certificate Approaching Expiration", "ACM Certificate Available"}}}
}

// functionVariables is the function's environment. Nothing in it is secret. Where the specification lies is not said: the
// package has it beside the program, as a file or as a directory.
func (d *deployment) functionVariables() object {
	o := object{{key: "COUNTERSIGN_LOG_LEVEL", value: "info"}}
	for _, a := range d.authorities {
		if a.own {
			o = append(o, field{key: mesh.AuthorityVariable(a.name), value: a.arn})
		}
	}
	return o
}

// trigger adds a rule of EventBridge that invokes the function, which only this rule may.
func (t *template) trigger(id, note string, properties object) {
	target := object{{key: "Id", value: "rotation"}, {key: "Arn", value: say(ref{cfn: "RotationFunction.Arn"})}}
	t.add(id, "AWS::Events::Rule", note, append(properties, field{key: "Targets", value: list{target}}))
	t.add(id+"Permission", "AWS::Lambda::Permission", "", object{
		{key: "Action", value: "lambda:InvokeFunction"},
		{key: "FunctionName", value: param("RotationFunction")},
		{key: "Principal", value: "events.amazonaws.com"},
		{key: "SourceArn", value: say(ref{cfn: id + ".Arn"})},
	})
}

// alarm is one alarm. Data that is missing breaches: a schedule that stopped silently is an alarm.
type alarm struct {
	id, description     string
	namespace, metric   string
	dimensions          [][2]text
	statistic, operator string
	threshold           any // an int, or a number as text
}

// alarmPeriod holds what at least one run of the schedule tells, wherever its borders fall: a run tells at its end, which may come as late as the
// function may run.
func (d *deployment) alarmPeriod() time.Duration { return 2*d.every() + functionSeconds*time.Second }

// alarmsOf are all alarms.
func (d *deployment) alarmsOf() []alarm {
	meshName := [2]text{say("Mesh"), say(d.spec.Mesh)}
	all := []alarm{{
		id: "RotationErrors", description: "The rotation of the mesh " + d.spec.Mesh + " failed, or did not run",
		namespace: "AWS/Lambda", metric: "Errors", dimensions: [][2]text{{say("FunctionName"), say(d.function.name)}},
		statistic: "Sum", operator: "GreaterThanThreshold", threshold: 0,
	}}
	for _, w := range d.workloads {
		dimensions := [][2]text{meshName, {say("Service"), say(w.name)}}
		ttl, renew := time.Duration(w.plan.Certificate.TTL), time.Duration(w.plan.Certificate.RenewAfter)
		spare := ttl - renew
		all = append(all, alarm{
			id: w.id + "Expiry", description: "The certificate of " + w.name + " ends soon: half of the time to rotate it has gone",
			namespace: namespace, metric: "DaysToExpiry", dimensions: dimensions,
			statistic: "Minimum", operator: "LessThanThreshold", threshold: float(spare.Hours() / 2 / 24),
		}, alarm{
			id: w.id + "Overdue", description: "The last rotation of " + w.name + " that succeeded is long ago",
			namespace: namespace, metric: "HoursSinceSuccess", dimensions: dimensions,
			statistic: "Maximum", operator: "GreaterThanThreshold", threshold: float((renew + spare/2).Hours()),
		}, alarm{
			id: w.id + "Failures", description: "A rotation of " + w.name + " failed",
			namespace: namespace, metric: "Failures", dimensions: dimensions,
			statistic: "Sum", operator: "GreaterThanThreshold", threshold: 0,
		})
	}
	for _, a := range d.authorities {
		all = append(all, alarm{
			id: a.id + "Budget", description: "Four fifths of what " + a.name + " may issue this month are spent",
			namespace: namespace, metric: "BudgetSpent", dimensions: [][2]text{meshName, {say("Authority"), say(a.name)}},
			statistic: "Maximum", operator: "GreaterThanOrEqualToThreshold", threshold: max(a.Budget.Certificates*4/5, 1),
		})
	}
	return all
}

// namespace is where the rotation puts its metrics.
const namespace = "Countersign"

// float is a number of at most four places: days, of which a hundredth is a quarter of an hour.
func float(f float64) number {
	return number(strings.TrimSuffix(strings.TrimRight(strconv.FormatFloat(f, 'f', 4, 64), "0"), "."))
}

// number is a number as it is written.
type number string

func (t *template) alarms() {
	t.begin(alarmsTitle)
	for _, a := range t.d.alarmsOf() {
		var dimensions list
		for _, d := range a.dimensions {
			dimensions = append(dimensions, object{{key: "Name", value: d[0]}, {key: "Value", value: d[1]}})
		}
		t.add(a.id+"Alarm", "AWS::CloudWatch::Alarm", "", object{
			{key: "AlarmDescription", value: a.description},
			{key: "Namespace", value: a.namespace},
			{key: "MetricName", value: a.metric},
			{key: "Dimensions", value: dimensions},
			{key: "Statistic", value: a.statistic},
			{key: "Period", value: seconds(t.d.alarmPeriod())},
			{key: "EvaluationPeriods", value: 1},
			{key: "ComparisonOperator", value: a.operator},
			{key: "Threshold", value: a.threshold},
			{key: "TreatMissingData", value: "breaching"},
			{key: "AlarmActions", value: list{say(topic)}},
		})
	}
}
