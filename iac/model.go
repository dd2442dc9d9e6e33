package iac

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/secret"
)

// The facts of where a template is deployed.
var (
	partition = ref{cfn: "AWS::Partition", tf: "local.partition", given: "partition"}
	region    = ref{cfn: "AWS::Region", tf: "var.region", given: "region"}
	account   = ref{cfn: "AWS::AccountId", tf: "local.account", given: "account"}
	topic     = ref{cfn: "AlarmTopic", tf: "var.alarm_topic", given: "topic"}
)

// deployment is everything that a specification takes on AWS, in the order in which it is written.
type deployment struct {
	spec        *mesh.Spec
	init        Init
	keys        []*key
	secrets     []*storedSecret
	authorities []*authority
	clusters    []string
	workloads   []*workload
	function    *function
	given       *Given // nil where a template is made
}

// key is the KMS key of a store's secrets.
type key struct {
	store string
	name  string // of the resources
	alias string
	arn   text
	own   bool // a template makes it
}

// storedSecret is one secret of Secrets Manager.
type storedSecret struct {
	name    string
	id      string // of the resources, in the manner of CloudFormation
	path    string // of the specification: what made it
	what    string
	arn     ref
	key     *key
	readers []*workload // who reads it beside the function
}

// authority is a private CA.
type authority struct {
	name string
	id   string
	mesh.Authority
	arn text
	own bool // a template makes it
}

// role is one of IAM.
type role struct {
	name string // as IAM has it
	id   string
	arn  ref
}

// workload is a service or gateway, as a service of ECS.
type workload struct {
	name      string
	id        string
	plan      *mesh.Plan
	service   *mesh.Service // nil for a gateway
	authority *authority
	secrets   []*storedSecret // what its init reads
	key       *key
	task      role
	execution role
	callers   []*workload
	calls     []call
}

// call is one port of a called service.
type call struct {
	to   *workload
	port int
}

// function rotates.
type function struct {
	name string
	role role
}

// build makes the deployment of a specification, or says everything that is in the way; more is what is checked beside what all outputs
// have in common.
func build(spec *mesh.Spec, o Options, more ...func(*mesh.Spec, *refusal)) (*deployment, error) {
	d := &deployment{spec: spec, init: o.Init}
	if d.init == "" {
		d.init = InitTaskRole
	}
	if d.init != InitTaskRole && d.init != InitEnvironment {
		return nil, fmt.Errorf("%w: init by %q is not known: task-role and environment are", ErrRefused, d.init)
	}
	r := refusal{spec: spec}
	for _, look := range append(more, check) {
		look(spec, &r)
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	name := spec.Mesh + "-rotation"
	d.function = &function{name: name, role: newRole(name, "Rotation")}
	for _, member := range spec.Workloads() {
		if err := d.workload(member.Name); err != nil {
			return nil, err
		}
	}
	for _, a := range d.authorities {
		k := d.keyOf(a.Budget.Store)
		d.secret("authorities."+a.name, spec.BudgetSecret(a.name), "how many certificates "+a.name+" issued this month", k)
	}
	d.graph()
	d.names(&r)
	return d, r.err()
}

// newRole names a role. id is what the identifiers of its resources begin with.
func newRole(name, id string) role {
	return role{name: name, id: id + "Role", arn: ref{cfn: id + "Role.Arn", tf: "aws_iam_role." + label(name) + ".arn", given: "role/" + name}}
}

// workload adds a workload with everything that it alone needs.
func (d *deployment) workload(name string) error {
	plan, err := d.spec.Compile(name)
	if err != nil {
		return err
	}
	shape, err := plan.Delivery.Shape()
	if err != nil {
		return fmt.Errorf("the delivery of %s: %w", name, err)
	}
	w := &workload{name: name, id: identifier(name), plan: plan, service: d.spec.Services[name], key: d.keyOf(plan.Delivery.StoreName)}
	w.task = newRole(d.spec.Mesh+"-"+name+"-task", w.id+"Task")
	w.execution = newRole(d.spec.Mesh+"-"+name+"-execution", w.id+"Execution")
	w.authority = d.authorityOf(name)
	own := plan.Workload.Path() + ".delivery.secret"
	for _, full := range shape.Names(plan.Delivery.Secret) {
		what := "the certificate and key of " + name
		if field, ok := strings.CutPrefix(full, plan.Delivery.Secret+"/"); ok && shape.Layout() != secret.LayoutJSON {
			what += ": " + field
		}
		s := d.secret(own, full, what, w.key)
		s.readers, w.secrets = append(s.readers, w), append(w.secrets, s)
	}
	d.secret(own, plan.Delivery.Secret+".rotation", "how the rotation of "+name+" went", w.key)
	if bundle := plan.Delivery.Bundle; bundle != "" {
		shared := plan.Workload.Path() + ".delivery.bundle"
		s := d.secret(shared, bundle, "the roots that its readers believe", w.key)
		s.readers, w.secrets = append(s.readers, w), append(w.secrets, s)
		d.secret(shared, bundle+".rotation", "how the last change of "+bundle+" went", w.key)
	}
	if !slices.Contains(d.clusters, plan.ECS.Cluster) {
		d.clusters = append(d.clusters, plan.ECS.Cluster)
	}
	d.workloads = append(d.workloads, w)
	return nil
}

// secret adds a secret, or finds it. The path is that of the part of the specification that wants it.
func (d *deployment) secret(path, name, what string, k *key) *storedSecret {
	for _, s := range d.secrets {
		if s.name == name && s.key == k {
			return s
		}
	}
	s := &storedSecret{name: name, id: identifier(strings.TrimPrefix(name, d.spec.Mesh+"/")) + "Secret", path: path, what: what, key: k}
	s.arn = ref{cfn: s.id, tf: "aws_secretsmanager_secret." + s.label(d) + ".arn", given: name}
	d.secrets = append(d.secrets, s)
	return s
}

// label is what a secret is called in Terraform.
func (s *storedSecret) label(d *deployment) string {
	return label(strings.TrimPrefix(s.name, d.spec.Mesh+"/"))
}

// acm tells whether ACM issues anything.
func (d *deployment) acm() bool {
	return slices.ContainsFunc(d.authorities, func(a *authority) bool { return a.Type == mesh.AuthorityACM })
}

// described are the type of a CA, its mode, and what is to be known of it.
func (a *authority) described() (kind, usage, note string) {
	kind, usage, note = "ROOT", "GENERAL_PURPOSE", "Billed by the month while it is there."
	if a.Mode == mesh.ModeShortLived {
		usage = "SHORT_LIVED_CERTIFICATE"
	}
	if a.Create == mesh.CreateSubordinate {
		kind = "SUBORDINATE"
		if a.Parent == "" {
			note += " It issues nothing until `countersign ca aws activate` has brought its certificate."
		}
	}
	return kind, usage, note
}

// taskNote says whom a task role is for.
func (d *deployment) taskNote(w *workload) string {
	if d.init == InitEnvironment {
		return "The containers of " + w.name + ". They read no secret: ECS does."
	}
	return "The containers of " + w.name + "."
}

// What stands in every output.
const (
	healthNote   = "Health is a TCP connection: a balancer has no certificate that the proxy would take."
	shellNote    = "A shell in a container could read the key."
	acmNote      = "ACM renews by itself what was exported, and says so; then it is exported again."
	onceNote     = "What failed is tried again by the schedule. Lambda would do so twice at once, and each try may cost a certificate."
	alarmsTitle  = "Alarms. Data that is missing is an alarm, too: a schedule that stopped silently is one"
	graceSeconds = 60
	caKey        = "EC_secp384r1"
)

// keyOf is the key of a store's secrets.
func (d *deployment) keyOf(store string) *key {
	for _, k := range d.keys {
		if k.store == store {
			return k
		}
	}
	said := d.spec.Stores[store].KMSKey
	k := &key{store: store, name: identifier(store) + "Key", own: true, alias: "alias/" + d.spec.Mesh + "-" + store}
	k.arn = say(ref{cfn: k.name + ".Arn", tf: "aws_kms_key." + label(store) + ".arn", given: "key/" + store})
	switch {
	case strings.HasPrefix(said, "alias/"):
		k.alias = said
	case strings.HasPrefix(said, "arn:"):
		k.own, k.arn = false, say(said)
	case said != "":
		k.own, k.arn = false, say("arn:", partition, ":kms:", region, ":", account, ":key/"+said)
	}
	d.keys = append(d.keys, k)
	return k
}

// authorityOf is who issues for a workload.
func (d *deployment) authorityOf(workload string) *authority {
	name, said := d.spec.AuthorityOf(workload)
	for _, a := range d.authorities {
		if a.name == name {
			return a
		}
	}
	a := &authority{name: name, id: identifier(name) + "Authority", Authority: said, own: said.ARN == ""}
	a.arn = say(said.ARN)
	if a.own {
		a.arn = say(ref{cfn: a.id + ".Arn", tf: "aws_acmpca_certificate_authority." + label(name) + ".arn", given: "authority/" + name})
	}
	d.authorities = append(d.authorities, a)
	return a
}

// graph finds who calls whom.
func (d *deployment) graph() {
	byName := map[string]*workload{}
	for _, w := range d.workloads {
		byName[w.name] = w
	}
	for _, w := range d.workloads {
		for _, u := range w.plan.Upstreams {
			to := byName[u.Service]
			w.calls = append(w.calls, call{to, u.Port})
			if !slices.Contains(to.callers, w) {
				to.callers = append(to.callers, w)
			}
		}
	}
}

// names finds names that AWS does not take, and such as would be one identifier.
func (d *deployment) names(r *refusal) {
	taken := map[string]string{}
	claim := func(id, what, path string) {
		if other, ok := taken[id]; ok && other != what {
			r.addAt([]string{path}, "%s and %s would both be %s in the template: rename one of them", other, what, id)
		}
		taken[id] = what
	}
	labels := map[string]string{}
	stores := map[string]string{}
	for _, s := range d.secrets {
		claim(s.id, "the secret "+s.name, s.path)
		if other, ok := stores[s.name]; ok {
			r.addAt([]string{s.path}, "the secret %s would lie in the stores %s and %s, which are one place in a stack: give it another name in one of them", s.name, other, s.key.store)
		}
		stores[s.name] = s.key.store
		if other, ok := labels[s.arn.tf]; ok {
			r.addAt([]string{s.path}, "the secrets %s and %s would both be %s in Terraform: rename one of them", other, s.name, s.arn.tf)
		}
		labels[s.arn.tf] = s.name
	}
	for _, w := range d.workloads {
		path := w.plan.Workload.Path()
		claim(w.id, fmt.Sprintf("the %s %s", w.plan.Workload.Kind, w.name), path)
		for _, name := range []string{w.task.name, w.execution.name} {
			if len(name) > mostRole {
				r.addAt([]string{path}, "the role %s would have %d characters, and IAM takes %d: shorten the name of the mesh or of %s", name, len(name), mostRole, w.name)
			}
		}
	}
	if len(d.function.name) > mostRole {
		r.addAt([]string{"mesh"}, "the function %s would have %d characters, and AWS takes %d: shorten the name of the mesh", d.function.name, len(d.function.name), mostRole)
	}
	for _, a := range d.authorities {
		claim(a.id, "the authority "+a.name, "authorities."+a.name)
	}
	for _, k := range d.keys {
		claim(k.name, "the key of the store "+k.store, "stores."+k.store)
	}
	for _, w := range d.workloads {
		claim(w.cluster(), "the cluster "+w.plan.ECS.Cluster, w.plan.Workload.Path()+".deploy.cluster")
	}
}

// mostRole is how long the names of roles and functions may be.
const mostRole = 64

// cluster is the identifier of a workload's cluster.
func (w *workload) cluster() string { return identifier(w.plan.ECS.Cluster) + "Cluster" }

// gateway tells whether the outside connects to a workload.
func (w *workload) gateway() bool { return w.plan.Workload.Kind == id.Gateway }

// ports are where peers connect, in the order of the specification.
func (w *workload) ports() []int {
	var ports []int
	for _, in := range w.plan.Inbound {
		ports = append(ports, in.Port)
	}
	return ports
}

// engines are the proxies that are used.
func (d *deployment) engines() []mesh.Engine {
	set := map[mesh.Engine]bool{}
	for _, w := range d.workloads {
		set[w.plan.Proxy.Engine] = true
	}
	return slices.Sorted(maps.Keys(set))
}

// logGroup is the log group of a workload's containers.
func (d *deployment) logGroup(w *workload) string {
	return "/countersign/" + d.spec.Mesh + "/" + w.name
}

// functionLogGroup is that of the function, whose name Lambda wants.
func (d *deployment) functionLogGroup() string { return "/aws/lambda/" + d.function.name }

// groupARN is the ARN of a log group.
func groupARN(name string) text {
	return say("arn:", partition, ":logs:", region, ":", account, ":log-group:"+name)
}

// serviceARN is the ARN of a workload's service.
func (w *workload) serviceARN() text {
	return say("arn:", partition, ":ecs:", region, ":", account, ":service/"+w.plan.ECS.Cluster+"/"+w.plan.ECS.Service)
}

func clusterARN(cluster string) text {
	return say("arn:", partition, ":ecs:", region, ":", account, ":cluster/"+cluster)
}
