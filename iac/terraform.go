package iac

import (
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/v2/hclwrite"

	"countersign.dev/mesh"
)

// terraform is a configuration of Terraform that is being made.
type terraform struct {
	d       *deployment
	blocks  []block
	section string
	refusal refusal
}

// Terraform writes the configuration of Terraform with everything that a specification takes: the same as
// [CloudFormation], but that its secrets have no first value, because Terraform would want to read it. It is the same
// for the same arguments, and its errors are the same.
func Terraform(spec *mesh.Spec, o Options) ([]byte, error) {
	d, err := build(spec, o, checkStack)
	if err != nil {
		return nil, err
	}
	if err := d.checkPolicies(); err != nil {
		return nil, err
	}
	t := &terraform{d: d, refusal: refusal{spec: spec}}
	t.variables()
	t.keys()
	t.roles()
	t.secrets()
	t.privateCAs()
	t.logs()
	t.network()
	if err := t.workloads(); err != nil {
		return nil, err
	}
	t.rotation()
	t.alarms()
	t.outputs()
	if err := t.refusal.err(); err != nil {
		return nil, err
	}
	w := &hclWriter{}
	w.comment(d.header("generate terraform"))
	for _, b := range t.blocks {
		w.b.WriteString("\n")
		w.block(b)
	}
	return hclwrite.Format([]byte(w.b.String())), nil
}

// begin starts a part: its title stands above the next block.
func (t *terraform) begin(title string) { t.section = title + "\n\n" }

func (t *terraform) add(b block) {
	if b.kind != "locals" && b.kind != "terraform" && slices.ContainsFunc(t.blocks, func(other block) bool { return other.kind == b.kind && slices.Equal(other.labels, b.labels) }) {
		t.refusal.addAt(t.d.namer(b.labels[len(b.labels)-1]), "two things would both be %s in the configuration: rename the service, gateway, store, authority or secret whose name makes it so", strings.Join(b.labels, "."))
	}
	b.note, t.section = t.section+b.note, ""
	t.blocks = append(t.blocks, b)
}

// resource adds a resource.
func (t *terraform) resource(kind, name, note string, body ...any) {
	t.add(block{kind: "resource", labels: []string{kind, name}, note: note, body: body})
}

// arg is an argument, and sub a block in a resource.
func arg(name string, value any) argument { return argument{name: name, value: value} }

func sub(kind string, body ...any) block { return block{kind: kind, body: body} }

// attribute is an attribute of a resource.
func attribute(kind, name, of string) expression { return expression(kind + "." + name + "." + of) }

func (t *terraform) variables() {
	t.add(block{kind: "terraform", body: []any{
		arg("required_version", ">= 1.9"),
		sub("required_providers", arg("aws", object{{key: "source", value: "hashicorp/aws"}, {key: "version", value: ">= 6.0"}})),
	}})
	variable := func(name, kind, description string, more ...any) {
		t.add(block{kind: "variable", labels: []string{name}, body: append([]any{arg("type", expression(kind)), arg("description", description)}, more...)})
	}
	otherwise := func(value any) argument { return arg("default", value) }
	variable("region", "string", "The region, the provider's.")
	variable("vpc_id", "string", "The VPC.")
	variable("subnet_ids", "list(string)", "Private subnets of it, from which the endpoints of AWS can be reached.")
	variable("aws_api_cidr", "string", "Where tasks and the rotation reach the endpoints of AWS, on port 443. Narrow it to the VPC when it has interface endpoints.", otherwise("0.0.0.0/0"))
	if slices.ContainsFunc(t.d.workloads, (*workload).gateway) {
		variable("client_cidr", "string", "Whose connections the gateways accept.", otherwise("10.0.0.0/8"))
	}
	variable("countersign_image", "string", "The image of countersign, best with its digest.")
	for _, e := range t.d.engines() {
		variable(label(string(e))+"_image", "string", "The image of "+string(e)+", with a bash for its health check.")
		if e == mesh.EngineNGINX {
			variable("nginx_stream_module", "string", "The file of NGINX's stream module; none where it is compiled in, as in NGINX's own image.", otherwise("none"))
		}
	}
	for _, w := range t.d.workloads {
		if w.service == nil {
			continue
		}
		variable(label(w.name)+"_image", "string", "The image of the application of "+w.name+".")
		if len(w.plan.Inbound) > 0 {
			variable(label(w.name)+"_health_check", "list(string)", "The command that finds the application of "+w.name+" healthy.",
				otherwise(list{"CMD", "bash", "-c", connects(w.plan.Inbound[0].App)}))
		}
	}
	variable("image_repositories", "list(string)", "The ECR repositories of these images, by ARN, without wildcards.", sub("validation",
		arg("condition", expression(`alltrue([for arn in var.image_repositories : can(regex("^arn:[^*?]+:repository/[^*?]+$", arn))])`)),
		arg("error_message", "Each has to be the ARN of one repository.")))
	variable("architecture", "string", "The processors of tasks and rotation: X86_64 or ARM64.", otherwise("X86_64"), sub("validation",
		arg("condition", expression(`contains(["X86_64", "ARM64"], var.architecture)`)), arg("error_message", "Write X86_64 or ARM64.")))
	variable("task_cpu", "number", "CPU units of a task, for application and proxy together.", otherwise(512))
	variable("task_memory", "number", "MiB of a task.", otherwise(1024))
	variable("desired_count", "number", "Tasks of each service. 0 until the first rotation has filled the secrets.", otherwise(0))
	variable("function_bucket", "string", "The S3 bucket with the package that 'countersign rotate package' wrote.")
	variable("function_key", "string", "The package's key there.")
	variable("alarm_topic", "string", "The SNS topic that gets the alarms, by ARN.")
	t.add(block{kind: "data", labels: []string{"aws_partition", "current"}})
	t.add(block{kind: "data", labels: []string{"aws_caller_identity", "current"}})
	t.add(block{kind: "locals", body: []any{
		arg("partition", expression("data.aws_partition.current.partition")), arg("account", expression("data.aws_caller_identity.current.account_id")),
	}})
}

// preventDestroy keeps what holds something that cannot be made again.
func preventDestroy() block { return sub("lifecycle", arg("prevent_destroy", true)) }

func (t *terraform) keys() {
	t.begin("Keys: one for the secrets of each store, one for the logs")
	key := func(name, description string, p policy) {
		t.resource("aws_kms_key", name, "", arg("description", description), arg("enable_key_rotation", true), arg("policy", encoded{p.document()}), preventDestroy())
	}
	for _, k := range t.d.keys {
		if !k.own {
			continue
		}
		key(label(k.store), "The secrets of the mesh "+t.d.spec.Mesh+" in the store "+k.store, t.d.keyPolicy(k))
		t.resource("aws_kms_alias", label(k.store), "", arg("name", k.alias), arg("target_key_id", attribute("aws_kms_key", label(k.store), "key_id")))
	}
	key("countersign_logs", "The logs of the mesh "+t.d.spec.Mesh, t.d.logKeyPolicy())
}

func (t *terraform) role(r role, note, service string, p policy) {
	name := label(r.name)
	t.resource("aws_iam_role", name, note, arg("name", r.name), arg("assume_role_policy", encoded{trust(service).document()}))
	if len(p) > 0 {
		t.resource("aws_iam_role_policy", name, "", arg("name", r.name), arg("role", attribute("aws_iam_role", name, "id")), arg("policy", encoded{p.document()}))
	}
}

func (t *terraform) roles() {
	t.begin("Roles: for each service one for its containers and one for ECS, and that of the rotation")
	for _, w := range t.d.workloads {
		t.role(w.task, t.d.taskNote(w), tasksService, t.d.taskPolicy(w))
		t.role(w.execution, "ECS, when it starts a task of "+w.name+".", tasksService, t.d.executionPolicy(w))
	}
	own, attached := t.d.functionPolicies()
	t.role(t.d.function.role, "The rotation.", lambdaService, own)
	for _, m := range attached {
		t.managed(m)
		t.resource("aws_iam_role_policy_attachment", label(m.name), "",
			arg("role", attribute("aws_iam_role", label(t.d.function.role.name), "name")), arg("policy_arn", attribute("aws_iam_policy", label(m.name), "arn")))
	}
	t.begin(auditorTitle)
	for _, m := range t.d.auditorPolicies() {
		t.managed(m)
	}
}

// managed adds a policy that is attached to roles.
func (t *terraform) managed(m managed) {
	t.resource("aws_iam_policy", label(m.name), "", arg("name", m.name), arg("description", m.what), arg("policy", encoded{m.policy.document()}))
}

func (t *terraform) secrets() {
	t.begin("Secrets. They have no value until the first rotation: Terraform would have to read it, and nobody but their roles may")
	for _, s := range t.d.secrets {
		name := s.label(t.d)
		t.resource("aws_secretsmanager_secret", name, "", arg("name", s.name), arg("description", "Countersign: "+s.what), arg("kms_key_id", s.key.arn))
		t.resource("aws_secretsmanager_secret_policy", name, "",
			arg("secret_arn", s.arn), arg("block_public_policy", true), arg("policy", encoded{t.d.secretPolicy(s).document()}))
	}
}

func (t *terraform) privateCAs() {
	t.begin("Private CA")
	for _, a := range t.d.authorities {
		if !a.own {
			continue
		}
		kind, usage, note := a.described()
		name := label(a.name)
		t.resource("aws_acmpca_certificate_authority", name, note,
			arg("type", kind), arg("usage_mode", usage),
			sub("certificate_authority_configuration",
				arg("key_algorithm", caKey), arg("signing_algorithm", "SHA384WITHECDSA"),
				sub("subject", arg("common_name", commonName(t.d.spec.Mesh, a.name)), arg("organization", t.d.spec.TrustDomain))),
			preventDestroy())
		t.activate(a, name)
		if a.Type == mesh.AuthorityACM {
			t.resource("aws_acmpca_permission", name, "ACM renews by itself what it issued.",
				arg("certificate_authority_arn", a.arn), arg("actions", list{"IssueCertificate", "GetCertificate", "ListPermissions"}),
				arg("principal", "acm.amazonaws.com"), arg("source_account", say(account)))
		}
	}
}

// activate gives a CA its certificate, when it can be had in AWS.
func (t *terraform) activate(a *authority, name string) {
	signer, kind, years := a.arn, "RootCACertificate/V1", rootYears
	if a.Create == mesh.CreateSubordinate {
		if a.Parent == "" {
			return
		}
		signer, kind, years = say(a.Parent), "SubordinateCACertificate_PathLen0/V1", subordinateYears
	}
	t.resource("aws_acmpca_certificate", name, "",
		arg("certificate_authority_arn", signer),
		arg("certificate_signing_request", attribute("aws_acmpca_certificate_authority", name, "certificate_signing_request")),
		arg("signing_algorithm", "SHA384WITHECDSA"),
		arg("template_arn", say("arn:", partition, ":acm-pca:::template/"+kind)),
		sub("validity", arg("type", "YEARS"), arg("value", years)))
	body := []any{arg("certificate_authority_arn", a.arn), arg("certificate", attribute("aws_acmpca_certificate", name, "certificate"))}
	if a.Create == mesh.CreateSubordinate {
		body = append(body, arg("certificate_chain", attribute("aws_acmpca_certificate", name, "certificate_chain")))
	}
	t.resource("aws_acmpca_certificate_authority_certificate", name, "", body...)
}

func (t *terraform) logs() {
	t.begin("Logs")
	group := func(name, path string) {
		t.resource("aws_cloudwatch_log_group", name, "", arg("name", path), arg("retention_in_days", logDays), arg("kms_key_id", attribute("aws_kms_key", "countersign_logs", "arn")))
	}
	for _, w := range t.d.workloads {
		group(label(w.name), t.d.logGroup(w))
	}
	group(t.function(), t.d.functionLogGroup())
}

// function is the label of the function and of what it has.
func (t *terraform) function() string { return label(t.d.function.name) }

// groupOf is a security group's id.
func groupOf(name string) expression { return attribute("aws_security_group", name, "id") }

func (t *terraform) network() {
	t.begin("Who may connect to whom: the graph of the specification")
	rule := func(kind, name, on string, port int, why string, peer argument) {
		t.resource("aws_vpc_security_group_"+kind+"_rule", name, "",
			arg("security_group_id", groupOf(on)), arg("ip_protocol", "tcp"), arg("from_port", port), arg("to_port", port), peer, arg("description", why))
	}
	to := func(name string) argument { return arg("referenced_security_group_id", groupOf(name)) }
	group := func(name, what string, api bool) {
		t.resource("aws_security_group", name, "", arg("description", what), arg("vpc_id", expression("var.vpc_id")))
		if api {
			rule("egress", name+"_to_aws", name, httpsPort, "the endpoints of AWS", arg("cidr_ipv4", expression("var.aws_api_cidr")))
		}
	}
	rotation := t.function()
	group(rotation, "the rotation of the mesh "+t.d.spec.Mesh, true)
	for _, w := range t.d.workloads {
		tasks, balancer := label(w.name), label(w.name)+"_balancer"
		group(tasks, "tasks of "+w.name, true)
		if len(w.plan.Inbound) > 0 {
			group(balancer, "the balancer of "+w.name, false)
		}
		for _, in := range w.plan.Inbound {
			port := "_" + strconv.Itoa(in.Port)
			rule("egress", balancer+port, balancer, in.Port, "to its tasks", to(tasks))
			rule("ingress", tasks+port, tasks, in.Port, "from its balancer", to(balancer))
			if in.TLS != mesh.Off {
				rule("egress", rotation+"_to_"+tasks+port, rotation, in.Port, "sees what "+w.name+" shows", to(tasks))
				rule("ingress", tasks+"_from_"+rotation+port, tasks, in.Port, "the rotation sees what is shown", to(rotation))
			}
			if w.gateway() {
				rule("ingress", balancer+"_from_clients"+port, balancer, in.Port, "the outside", arg("cidr_ipv4", expression("var.client_cidr")))
			}
		}
		for _, c := range w.calls {
			called, port := label(c.to.name), "_"+strconv.Itoa(c.port)
			rule("egress", tasks+"_to_"+called+port, tasks, c.port, "calls "+c.to.name, to(called+"_balancer"))
			rule("ingress", called+"_balancer_from_"+tasks+port, called+"_balancer", c.port, "from "+w.name, to(tasks))
		}
	}
}

func (t *terraform) workloads() error {
	t.begin("Clusters")
	for _, c := range t.d.clusters {
		t.resource("aws_ecs_cluster", label(c), "", arg("name", c), sub("setting", arg("name", "containerInsights"), arg("value", "enabled")))
	}
	for _, w := range t.d.workloads {
		t.begin("The " + string(w.plan.Workload.Kind) + " " + w.name)
		t.balancer(w)
		if err := t.task(w); err != nil {
			return err
		}
		t.service(w)
	}
	return nil
}

func (t *terraform) balancer(w *workload) {
	if len(w.plan.Inbound) == 0 {
		return
	}
	name := label(w.name)
	t.resource("aws_lb", name, "", arg("load_balancer_type", "network"), arg("internal", true), arg("subnets", expression("var.subnet_ids")),
		arg("security_groups", list{groupOf(name + "_balancer")}), arg("enable_cross_zone_load_balancing", true))
	for i, port := range w.ports() {
		note := ""
		if i == 0 {
			note = healthNote
		}
		full := name + "_" + strconv.Itoa(port)
		t.resource("aws_lb_target_group", full, note,
			arg("target_type", "ip"), arg("protocol", "TCP"), arg("port", port), arg("vpc_id", expression("var.vpc_id")), arg("deregistration_delay", seconds(deregistration)),
			sub("health_check", arg("protocol", "TCP"), arg("interval", 10), arg("timeout", 5), arg("healthy_threshold", 2), arg("unhealthy_threshold", 2)))
		t.resource("aws_lb_listener", full, "",
			arg("load_balancer_arn", attribute("aws_lb", name, "arn")), arg("protocol", "TCP"), arg("port", port),
			sub("default_action", arg("type", "forward"), arg("target_group_arn", attribute("aws_lb_target_group", full, "arn"))))
	}
}

func (t *terraform) task(w *workload) error {
	definition, err := t.d.taskDefinition(w, taskCPU, taskMemory, taskArchitecture)
	if err != nil {
		return err
	}
	var body []any
	for _, f := range definition {
		switch f.key {
		case "runtimePlatform":
			body = append(body, sub("runtime_platform", arg("cpu_architecture", taskArchitecture), arg("operating_system_family", "LINUX")))
		case "volumes":
			for _, volume := range f.value.(list) {
				body = append(body, sub("volume", arg("name", volume.(object)[0].value)))
			}
		case "containerDefinitions":
			body = append(body, arg("container_definitions", encoded{f.value}))
		default:
			body = append(body, arg(snake(f.key), f.value))
		}
	}
	t.resource("aws_ecs_task_definition", label(w.name), "", body...)
	return nil
}

func (t *terraform) service(w *workload) {
	name := label(w.name)
	after := list{expression("aws_iam_role_policy." + label(w.execution.name))}
	if t.d.init != InitEnvironment {
		after = append(after, expression("aws_iam_role_policy."+label(w.task.name)))
	}
	body := []any{
		arg("name", w.plan.ECS.Service),
		arg("cluster", attribute("aws_ecs_cluster", label(w.plan.ECS.Cluster), "id")),
		arg("task_definition", attribute("aws_ecs_task_definition", name, "arn")),
		arg("launch_type", "FARGATE"),
		arg("desired_count", expression("var.desired_count")),
		argument{name: "enable_execute_command", value: false, note: shellNote},
		arg("deployment_minimum_healthy_percent", 100),
		arg("deployment_maximum_percent", 200),
	}
	if len(w.plan.Inbound) > 0 {
		body = append(body, arg("health_check_grace_period_seconds", graceSeconds))
	}
	body = append(body,
		sub("deployment_circuit_breaker", arg("enable", true), arg("rollback", true)),
		sub("network_configuration", arg("assign_public_ip", false), arg("subnets", expression("var.subnet_ids")), arg("security_groups", list{groupOf(name)})))
	for _, port := range w.ports() {
		full := name + "_" + strconv.Itoa(port)
		after = append(after, expression("aws_lb_listener."+full))
		body = append(body, sub("load_balancer", arg("container_name", proxyContainer), arg("container_port", port), arg("target_group_arn", attribute("aws_lb_target_group", full, "arn"))))
	}
	t.resource("aws_ecs_service", name, "", append(body, arg("depends_on", after))...)
}

func (t *terraform) rotation() {
	schedule, often := t.d.schedule()
	t.begin("The rotation: " + often + " what is due, and what ACM tells")
	name := t.function()
	function := []any{
		arg("function_name", t.d.function.name),
		arg("description", "Rotates the certificates of the mesh "+t.d.spec.Mesh),
		arg("runtime", "provided.al2023"),
		arg("handler", "bootstrap"),
		arg("architectures", expression(`[var.architecture == "ARM64" ? "arm64" : "x86_64"]`)),
		arg("s3_bucket", expression("var.function_bucket")),
		arg("s3_key", expression("var.function_key")),
		arg("role", t.d.function.role.arn),
		arg("timeout", functionSeconds),
		arg("memory_size", functionMiB),
		arg("reserved_concurrent_executions", functionsAtOnce),
		sub("vpc_config", arg("subnet_ids", expression("var.subnet_ids")), arg("security_group_ids", list{groupOf(name)})),
	}
	if variables := t.d.functionVariables(); len(variables) > 0 {
		function = append(function, sub("environment", arg("variables", variables)))
	}
	after := list{expression("aws_iam_role_policy." + label(t.d.function.role.name)), expression("aws_cloudwatch_log_group." + name)}
	_, attached := t.d.functionPolicies()
	for _, m := range attached {
		after = append(after, expression("aws_iam_role_policy_attachment."+label(m.name)))
	}
	t.resource("aws_lambda_function", name, "", append(function, arg("depends_on", after))...)
	t.resource("aws_lambda_function_event_invoke_config", name, onceNote,
		arg("function_name", attribute("aws_lambda_function", name, "function_name")),
		arg("maximum_retry_attempts", 0),
		arg("maximum_event_age_in_seconds", seconds(t.d.every())))
	t.trigger(name+"_schedule", "", arg("description", "Rotates what is due in the mesh "+t.d.spec.Mesh), arg("schedule_expression", schedule))
	if t.d.acm() {
		t.trigger(name+"_on_acm", acmNote, arg("description", "Tells the rotation of the mesh "+t.d.spec.Mesh+" what ACM says"), arg("event_pattern", encoded{eventPattern()}))
	}
}

// trigger adds a rule of EventBridge that invokes the function, which only such rules may.
func (t *terraform) trigger(name, note string, body ...any) {
	function := t.function()
	t.resource("aws_cloudwatch_event_rule", name, note, append([]any{arg("name", strings.ReplaceAll(name, "_", "-"))}, append(body, arg("state", "ENABLED"))...)...)
	t.resource("aws_cloudwatch_event_target", name, "", arg("rule", attribute("aws_cloudwatch_event_rule", name, "name")), arg("target_id", "rotation"), arg("arn", attribute("aws_lambda_function", function, "arn")))
	t.resource("aws_lambda_permission", name, "", arg("action", "lambda:InvokeFunction"), arg("function_name", attribute("aws_lambda_function", function, "function_name")),
		arg("principal", "events.amazonaws.com"), arg("source_arn", attribute("aws_cloudwatch_event_rule", name, "arn")))
}

func (t *terraform) alarms() {
	t.begin(alarmsTitle)
	for _, a := range t.d.alarmsOf() {
		var dimensions object
		for _, d := range a.dimensions {
			name, _ := d[0].literal()
			dimensions = append(dimensions, field{key: name, value: d[1]})
		}
		t.resource("aws_cloudwatch_metric_alarm", label(snake(a.id)), "",
			arg("alarm_name", t.d.spec.Mesh+"-"+a.id),
			arg("alarm_description", a.description),
			arg("namespace", a.namespace),
			arg("metric_name", a.metric),
			arg("dimensions", dimensions),
			arg("statistic", a.statistic),
			arg("period", seconds(t.d.alarmPeriod())),
			arg("evaluation_periods", 1),
			arg("comparison_operator", a.operator),
			arg("threshold", a.threshold),
			arg("treat_missing_data", "breaching"),
			arg("alarm_actions", list{say(topic)}))
	}
}

func (t *terraform) outputs() {
	output := func(name, description string, value any) {
		t.add(block{kind: "output", labels: []string{name}, body: []any{arg("description", description), arg("value", value)}})
	}
	output("rotation_function", "Rotates what is due when it is invoked.", attribute("aws_lambda_function", t.function(), "function_name"))
	for _, m := range t.d.auditorPolicies() {
		output(label(m.name)+"_policy", m.what+".", attribute("aws_iam_policy", label(m.name), "arn"))
	}
	for _, a := range t.d.authorities {
		if a.own {
			output(label(a.name)+"_arn", "The private CA "+a.name+".", a.arn)
		}
	}
	for _, w := range t.d.workloads {
		if len(w.plan.Inbound) > 0 {
			output(label(w.name)+"_address", "Where "+w.name+" is reached.", attribute("aws_lb", label(w.name), "dns_name"))
		}
	}
}
