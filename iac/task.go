package iac

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"countersign.dev/mesh"
	"countersign.dev/secret"
)

// mostTaskDefinition is how many bytes of JSON a task definition may have.
const mostTaskDefinition = 64 << 10

// Names of containers and volumes.
const (
	initContainer      = "init"
	proxyContainer     = "proxy"
	appContainer       = "app"
	readyContainer     = "ready"
	certificatesVolume = "certificates"
	runVolume          = "proxy"
)

// The images of a task.
var countersignImage = ref{cfn: "CountersignImage", tf: "var.countersign_image", given: "image/countersign"}

// streamModule is the file of NGINX's stream module.
var streamModule = ref{cfn: "NginxStreamModule", tf: "var.nginx_stream_module", given: "stream-module"}

// How large a task is, and its processors, where a template is deployed.
var (
	taskCPU          = ref{cfn: "TaskCpu", tf: "var.task_cpu"}
	taskMemory       = ref{cfn: "TaskMemory", tf: "var.task_memory"}
	taskArchitecture = ref{cfn: "Architecture", tf: "var.architecture"}
)

// proxyImage is the image of an engine.
func proxyImage(e mesh.Engine) ref {
	return ref{cfn: identifier(string(e)) + "Image", tf: "var." + label(string(e)) + "_image", given: "image/" + string(e)}
}

// appImage is the image of a service's application, and appHealth the command that finds it healthy.
func (w *workload) appImage() ref {
	return ref{cfn: w.id + "Image", tf: "var." + label(w.name) + "_image", given: "image/" + w.name}
}

func (w *workload) appHealth() ref {
	return ref{cfn: w.id + "HealthCheck", tf: "var." + label(w.name) + "_health_check", given: "health/" + w.name}
}

// balancer is the address of a called port.
func (d *deployment) balancer(c call) text {
	at := ref{cfn: c.to.id + "Balancer.DNSName", tf: "aws_lb." + label(c.to.name) + ".dns_name", given: fmt.Sprintf("endpoint/%s:%d", c.to.name, c.port)}
	if d.given != nil {
		return say(at) // with its port
	}
	return say(at, ":"+strconv.Itoa(c.port))
}

// plan is a Plan as the init container gets it.
func (w *workload) planText() (string, error) {
	data, err := json.Marshal(w.plan)
	if err != nil {
		return "", fmt.Errorf("the plan of %s: %w", w.name, err)
	}
	return string(data), nil
}

// containers are the container definitions of a workload's task, as the API spells them.
func (d *deployment) containers(w *workload) (list, error) {
	first, err := d.initDefinition(w)
	if err != nil {
		return nil, err
	}
	proxyNote := "The proxy. It starts when init has succeeded, and not when it has only ended (COMPLETE)."
	appNote := "The application. It starts when the proxy serves, because it calls through it, and is stopped before it: ECS stops in the reverse order."
	if w.appFirst() {
		proxyNote += "\nIt serves when the application is healthy, and is stopped before it: ECS stops in the reverse order."
		appNote = "The application. It calls nobody, and does not wait for the proxy."
	}
	all := list{noted{d.initNote(w), first}, noted{proxyNote, d.proxyDefinition(w)}}
	if w.service == nil {
		return all, nil
	}
	app, err := d.appDefinition(w)
	if err != nil {
		return nil, err
	}
	all = append(all, noted{appNote, app})
	if w.gated() {
		all = append(all, noted{readyNote, d.readyDefinition(w)})
	}
	return all, nil
}

// readyNote says what the last container is for.
const readyNote = "Ends at once, when the application is healthy. ECS calls a task RUNNING, and puts it into its target groups, when all of its\n" +
	"containers were started: without this one, requests would come while the application does not listen yet."

// gated says whether a task has to wait for its application: the proxy, which the balancer looks at, is there before it.
func (w *workload) gated() bool {
	return w.service != nil && !w.appFirst() && len(w.plan.Inbound) > 0
}

// readyDefinition is the container that is started last.
func (d *deployment) readyDefinition(w *workload) object {
	o := d.container(w, readyContainer, countersignImage, false, proxyUser)
	return append(o, field{key: "command", value: list{"version"}}, field{key: "dependsOn", value: list{dependency(appContainer, "HEALTHY")}})
}

// appFirst says whether the application starts before the proxy, and ends after it: then nothing comes to it too early or too late. One
// that calls others does so through the proxy, and needs it from its first moment to its last.
func (w *workload) appFirst() bool {
	return w.service != nil && len(w.calls) == 0 && len(w.plan.Inbound) > 0
}

func (d *deployment) initNote(w *workload) string {
	if d.init == InitEnvironment {
		return "Writes the files of the proxy, and ends. Its secrets are read by the *execution* role, before anything runs here, and\n" +
			"no container can get at that role: the task role reads no secret. init starts itself anew without the variables."
	}
	return "Reads the secrets by the task role, writes the files of the proxy, and ends. The application has the same role: it\n" +
		"can read the key of " + w.name + ", and no other."
}

// container is what all have in common.
func (d *deployment) container(w *workload, name string, image ref, essential bool, user string) object {
	return object{
		{key: "name", value: name},
		{key: "image", value: image},
		{key: "essential", value: essential},
		{key: "user", value: user},
		{key: "readonlyRootFilesystem", value: true},
		{key: "linuxParameters", value: object{{key: "capabilities", value: object{{key: "drop", value: list{"ALL"}}}}}},
		{key: "logConfiguration", value: object{
			{key: "logDriver", value: "awslogs"},
			{key: "options", value: object{
				{key: "awslogs-group", value: d.logGroup(w)},
				{key: "awslogs-region", value: say(region)},
				{key: "awslogs-stream-prefix", value: name},
			}},
		}},
	}
}

// mount is one mount point.
func mount(volume, path string, readOnly bool) object {
	o := object{{key: "sourceVolume", value: volume}, {key: "containerPath", value: path}}
	if readOnly {
		o = append(o, field{key: "readOnly", value: true})
	}
	return o
}

func (d *deployment) initDefinition(w *workload) (object, error) {
	plan, err := w.planText()
	if err != nil {
		return nil, err
	}
	o := d.container(w, initContainer, countersignImage, false, proxyUser)
	o = append(o, field{key: "command", value: texts(d.initCommand(w))})
	o = append(o, field{key: "environment", value: list{object{{key: "name", value: planVariable}, {key: "value", value: plan}}}})
	if d.init == InitEnvironment {
		secrets, err := d.injected(w)
		if err != nil {
			return nil, err
		}
		o = append(o, field{key: "secrets", value: secrets})
	}
	return append(o, field{key: "mountPoints", value: list{mount(certificatesVolume, certificatesDir, false), mount(runVolume, runDir, false)}}), nil
}

// initCommand are the arguments of countersign.
func (d *deployment) initCommand(w *workload) []text {
	var args []text
	add := func(flag string, value any) { args = append(args, say(flag), say(value)) }
	args = append(args, say("init"))
	delivery := w.plan.Delivery
	if d.init == InitEnvironment {
		add("--from", "env")
	} else {
		add("--from", "secretsmanager:"+delivery.Secret)
		add("--layout", delivery.Layout)
		for _, role := range slices.Sorted(maps.Keys(delivery.Fields)) {
			add("--field", role+"="+delivery.Fields[role])
		}
		if delivery.Bundle != "" {
			add("--bundle-from", "secret:"+delivery.Bundle)
		}
		if delivery.Store.Region != "" {
			add("--region", delivery.Store.Region)
		}
		if delivery.Store.Endpoint != "" {
			add("--endpoint-url", delivery.Store.Endpoint)
		}
	}
	add("--to", certificatesDir)
	add("--engine", string(w.plan.Proxy.Engine))
	add("--conf", certificatesDir)
	add("--plan", "env:"+planVariable)
	add("--run-dir", runDir)
	add("--connection-age", connectionAge.String())
	if w.plan.Proxy.Engine == mesh.EngineNGINX {
		add("--stream-module", streamModule)
	}
	for _, c := range w.calls {
		add("--endpoint", say(fmt.Sprintf("%s:%d=", c.to.name, c.port), d.balancer(c)))
	}
	return args
}

// injected are the secrets that ECS puts into the environment of init: init's own names for them.
func (d *deployment) injected(w *workload) (list, error) {
	shape, err := w.plan.Delivery.Shape()
	if err != nil {
		return nil, fmt.Errorf("the delivery of %s: %w", w.name, err)
	}
	fields := shape.Fields()
	find := func(name string) *storedSecret {
		i := slices.IndexFunc(w.secrets, func(s *storedSecret) bool { return s.name == name })
		return w.secrets[i]
	}
	var out list
	add := func(variable string, from text) {
		out = append(out, object{{key: "name", value: variable}, {key: "valueFrom", value: from}})
	}
	for _, part := range []struct{ variable, name, field string }{
		{"CERT_PEM", "certificate", fields.Certificate},
		{"CHAIN_PEM", "chain", fields.Chain},
		{"KEY_PEM", "key", fields.Key},
		{"KEY_PASSPHRASE", "passphrase", fields.Passphrase},
		{"CA_BUNDLE", "bundle", fields.Bundle},
	} {
		switch {
		case part.variable == "CA_BUNDLE" && w.plan.Delivery.Bundle != "":
			add(part.variable, say(find(w.plan.Delivery.Bundle).arn))
		case part.field == "":
		case shape.Layout() == secret.LayoutJSON && strings.Contains(part.field, ":"):
			return nil, d.refuse(ErrRefused, at(w.plan.Workload, ".delivery.fields."+part.name), "the field %q has a colon, and ECS could not be told of it: choose another name, or init by the task role", part.field)
		case shape.Layout() == secret.LayoutJSON:
			add(part.variable, say(find(w.plan.Delivery.Secret).arn, ":"+part.field+"::")) // this key of the JSON object, of the current version
		default:
			add(part.variable, say(find(w.plan.Delivery.Secret+"/"+part.field).arn))
		}
	}
	return out, nil
}

// proxyDefinition is the container of NGINX or HAProxy.
func (d *deployment) proxyDefinition(w *workload) object {
	engine := w.plan.Proxy.Engine
	entry, args := "nginx", list{"-e", "stderr", "-c", certificatesDir + "/nginx.conf"}
	if engine == mesh.EngineHAProxy {
		entry, args = "haproxy", list{"-W", "-db", "-f", certificatesDir + "/haproxy.cfg"}
	}
	o := d.container(w, proxyContainer, proxyImage(engine), true, proxyUser)
	o = append(o, field{key: "entryPoint", value: list{entry}}, field{key: "command", value: args})
	after := list{dependency(initContainer, "SUCCESS")}
	if w.appFirst() {
		after = append(after, dependency(appContainer, "HEALTHY"))
	}
	o = append(o, field{key: "dependsOn", value: after})
	var ports, connect []string
	var mappings list
	for _, port := range w.ports() {
		ports = append(ports, strconv.Itoa(port))
		mappings = append(mappings, object{{key: "containerPort", value: port}, {key: "protocol", value: "tcp"}})
		connect = append(connect, connects(port))
	}
	if len(ports) > 0 {
		o = append(o, field{key: "portMappings", value: mappings}, health(list{"CMD", "bash", "-c", strings.Join(connect, " && ")}))
	}
	o = append(o, field{key: "mountPoints", value: list{mount(certificatesVolume, certificatesDir, true), mount(runVolume, runDir, false)}})
	return append(o, field{key: "stopTimeout", value: seconds(proxyStop)})
}

// dependency is what has to be so before a container starts.
func dependency(container, condition string) object {
	return object{{key: "containerName", value: container}, {key: "condition", value: condition}}
}

// connects is a command of bash that ends well when somebody listens.
func connects(port int) string { return fmt.Sprintf("exec 3<>/dev/tcp/127.0.0.1/%d", port) }

func seconds(d time.Duration) int { return int(d / time.Second) }

// health is a health check.
func health(command any) field {
	return field{key: "healthCheck", value: object{
		{key: "command", value: command}, {key: "interval", value: 5}, {key: "timeout", value: 3}, {key: "retries", value: 3}, {key: "startPeriod", value: 30},
	}}
}

// appDefinition is the container of a service's application.
func (d *deployment) appDefinition(w *workload) (object, error) {
	o := d.container(w, appContainer, w.appImage(), true, appUser)
	environment, command, err := w.run()
	if err != nil {
		return nil, err
	}
	if len(command) > 0 {
		o = append(o, field{key: "entryPoint", value: texts(command[:1])})
		if len(command) > 1 {
			o = append(o, field{key: "command", value: texts(command[1:])})
		}
	}
	if len(environment) > 0 {
		o = append(o, field{key: "environment", value: environment})
	}
	if !w.appFirst() {
		o = append(o, field{key: "dependsOn", value: list{dependency(proxyContainer, w.proxyReady())}})
	}
	if len(w.plan.Inbound) > 0 {
		o = append(o, health(d.appHealth(w)))
	}
	return append(o, field{key: "stopTimeout", value: seconds(appStop)}), nil
}

// appHealth is the command that finds the application healthy.
func (d *deployment) appHealth(w *workload) any {
	switch {
	case d.given == nil:
		return say(w.appHealth())
	case len(d.given.Health) > 0:
		return texts(d.given.Health)
	}
	return list{"CMD", "bash", "-c", connects(w.plan.Inbound[0].App)}
}

// proxyReady is what the application waits for: a proxy without a port to connect to has no health.
func (w *workload) proxyReady() string {
	if len(w.plan.Inbound) == 0 {
		return "START"
	}
	return "HEALTHY"
}

// run is how the application is started: as the specification says, or as its image does, with the addresses in the
// environment.
func (w *workload) run() (environment list, command []string, err error) {
	at := map[string]string{}
	for _, v := range w.service.Variables() {
		at[v.Name] = net.JoinHostPort("127.0.0.1", strconv.Itoa(v.Port))
	}
	variable := func(name, value string) {
		environment = append(environment, object{{key: "name", value: name}, {key: "value", value: value}})
	}
	if w.service.Run == nil {
		for _, name := range slices.Sorted(maps.Keys(at)) {
			variable(name, at[name])
		}
		return environment, nil, nil
	}
	expand := func(text string) (string, error) {
		out, err := mesh.Expand(text, func(name string) (string, bool) {
			value, ok := at[name]
			return value, ok
		})
		if err != nil {
			return "", fmt.Errorf("the application of %s: %w", w.name, err)
		}
		return out, nil
	}
	for _, word := range w.service.Run.Command {
		expanded, err := expand(word)
		if err != nil {
			return nil, nil, err
		}
		command = append(command, expanded)
	}
	for _, name := range slices.Sorted(maps.Keys(w.service.Run.Env)) {
		value, err := expand(w.service.Run.Env[name])
		if err != nil {
			return nil, nil, err
		}
		variable(name, value)
	}
	return environment, command, nil
}

// family is the name of a workload's task definition.
func (d *deployment) family(w *workload) string { return d.spec.Mesh + "-" + w.name }

// volumes are those of a task. They live and end with it.
func volumes() list {
	return list{object{{key: "name", value: certificatesVolume}}, object{{key: "name", value: runVolume}}}
}

// taskDefinition is a task definition as RegisterTaskDefinition takes it.
func (d *deployment) taskDefinition(w *workload, cpu, memory, architecture any) (object, error) {
	containers, err := d.containers(w)
	if err != nil {
		return nil, err
	}
	o := object{
		{key: "family", value: d.family(w)},
		{key: "requiresCompatibilities", value: list{"FARGATE"}},
		{key: "networkMode", value: "awsvpc"},
		{key: "cpu", value: cpu},
		{key: "memory", value: memory},
		{key: "runtimePlatform", value: object{{key: "cpuArchitecture", value: architecture}, {key: "operatingSystemFamily", value: "LINUX"}}},
		{key: "taskRoleArn", value: say(w.task.arn)},
		{key: "executionRoleArn", value: say(w.execution.arn)},
		{key: "volumes", value: volumes()},
		{key: "containerDefinitions", value: containers},
	}
	written := compactJSON(o, longest)
	// CloudFormation would put the value of a secret in the place of such a text, for everybody to read who may read task definitions.
	if bytes.Contains(written, []byte(resolve)) {
		return nil, d.refuse(ErrRefused, w.resolved(), "its specification holds %s, which CloudFormation takes for a secret to be put there: write it in another way", resolve)
	}
	if n := len(written); n > mostTaskDefinition {
		return nil, d.refuse(ErrTooLarge, at(w.plan.Workload, ""), "the task definition of %s would have up to %d bytes with its Plan, and ECS takes %d: let %s have fewer rules, routes or calls", w.name, n, mostTaskDefinition, w.name)
	}
	return o, nil
}

// resolve begins what CloudFormation replaces.
const resolve = "{{resolve:"

// resolved are the paths of a text of the workload that CloudFormation would replace: its application's, else it stands
// somewhere in the Plan.
func (w *workload) resolved() []string {
	if w.service != nil && w.service.Run != nil {
		for i, word := range w.service.Run.Command {
			if strings.Contains(word, resolve) {
				return at(w.plan.Workload, fmt.Sprintf(".run.command[%d]", i))
			}
		}
		for _, name := range slices.Sorted(maps.Keys(w.service.Run.Env)) {
			if strings.Contains(w.service.Run.Env[name], resolve) {
				return at(w.plan.Workload, ".run.env."+name)
			}
		}
	}
	return at(w.plan.Workload, "")
}
