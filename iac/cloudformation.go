package iac

import (
	"fmt"
	"slices"
	"strings"

	"countersign.dev/mesh"
)

// The limits of a template of CloudFormation.
const (
	mostTemplate   = 1 << 20 // bytes, from S3
	directTemplate = 51200   // bytes, in a request
	mostResources  = 500
	mostParameters = 200
)

// template is a template of CloudFormation that is being made.
type template struct {
	d          *deployment
	parameters object
	conditions object
	resources  object
	outputs    object
	section    string
	count      int
	refusal    refusal
}

// CloudFormation writes the template of a stack with everything that a specification takes. It is the same for the
// same arguments. The error wraps [ErrRefused] with all reasons, or [ErrTooLarge].
func CloudFormation(spec *mesh.Spec, o Options) ([]byte, error) {
	d, err := build(spec, o, checkStack)
	if err != nil {
		return nil, err
	}
	if err := d.checkPolicies(); err != nil {
		return nil, err
	}
	t := &template{d: d, refusal: refusal{spec: spec}}
	t.parameter()
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
	t.output()
	if err := t.refusal.err(); err != nil {
		return nil, err
	}
	if t.count > mostResources || len(t.parameters) > mostParameters {
		return nil, d.refuse(ErrTooLarge, []string{whole}, "the template would have %d resources and %d parameters, and CloudFormation takes %d and %d: deploy the mesh as two", t.count, len(t.parameters), mostResources, mostParameters)
	}
	return t.write()
}

func (t *template) write() ([]byte, error) {
	w := &yamlWriter{}
	w.comment(t.d.header("generate cloudformation"), 0)
	w.members(object{
		{key: "AWSTemplateFormatVersion", value: "2010-09-09"},
		{key: "Description", value: "The mesh " + t.d.spec.Mesh + " on ECS, by Countersign"},
		{key: "Parameters", value: t.parameters},
	}, 0)
	if len(t.conditions) > 0 {
		w.members(object{{key: "Conditions", value: t.conditions}}, 0)
	}
	w.members(object{{key: "Resources", value: t.resources}, {key: "Outputs", value: t.outputs}}, 0)
	text := w.b.String()
	if len(text) > mostTemplate {
		return nil, t.d.refuse(ErrTooLarge, []string{whole}, "the template has %d bytes, and CloudFormation takes %d: deploy the mesh as two", len(text), mostTemplate)
	}
	return []byte(text), nil
}

// header says what a file is.
func (d *deployment) header(command string) string {
	by := "its task role"
	if d.init == InitEnvironment {
		by = "ECS with its execution role, into the environment of its init container"
	}
	return fmt.Sprintf("The mesh %s on Amazon ECS. Written by `countersign %s`; do not edit, write it again.\n", d.spec.Mesh, command) +
		"Each secret is read by its own service (" + by + ")\nand by the rotation. docs/ecs.md says what is where, and why."
}

// begin starts a part of the template: its title stands above the next resource.
func (t *template) begin(title string) { t.section = "\n" + title + "\n\n" }

// option changes how a resource is declared.
type option func(*object)

func dependsOn(ids ...string) option {
	return func(o *object) {
		if len(ids) > 0 {
			*o = append(*o, field{key: "DependsOn", value: texts(ids)})
		}
	}
}

// kept is a resource that outlives the stack: what it holds cannot be made again.
func kept() option {
	return func(o *object) {
		*o = append(*o, field{key: "DeletionPolicy", value: "Retain"}, field{key: "UpdateReplacePolicy", value: "Retain"})
	}
}

// add adds a resource.
func (t *template) add(id, kind, note string, properties object, options ...option) {
	o := object{{key: "Type", value: kind}}
	for _, option := range options {
		option(&o)
	}
	if len(properties) > 0 {
		o = append(o, field{key: "Properties", value: properties})
	}
	t.once(id, kind)
	note = strings.TrimSuffix(t.section+note, "\n")
	t.section = ""
	t.resources = append(t.resources, field{key: id, value: o, note: note})
	t.count++
}

// once refuses a name that the template has already: of two YAML keys, the later one would silently count.
func (t *template) once(id, kind string) {
	named := func(f field) bool { return f.key == id }
	if slices.ContainsFunc(t.resources, named) || slices.ContainsFunc(t.parameters, named) {
		t.refusal.addAt(t.d.namer(id), "two things would both be %s in the template, one of them a %s: rename the service, gateway, store, authority or secret whose name makes it so", id, kind)
	}
}

// parameter declares the parameters.
func (t *template) parameter() {
	declare := func(name, kind, description string, more ...field) {
		o := object{{key: "Type", value: kind}}
		o = append(append(o, more...), field{key: "Description", value: description})
		t.once(name, "parameter")
		t.parameters = append(t.parameters, field{key: name, value: o})
	}
	otherwise := func(value any) field { return field{key: "Default", value: value} }
	declare("VpcId", "AWS::EC2::VPC::Id", "The VPC.")
	declare("SubnetIds", "List<AWS::EC2::Subnet::Id>", "Private subnets of it, from which the endpoints of AWS can be reached.")
	declare("AwsApiCidr", "String", "Where tasks and the rotation reach the endpoints of AWS, on port 443. Narrow it to the VPC when it has interface endpoints.", otherwise("0.0.0.0/0"))
	if slices.ContainsFunc(t.d.workloads, (*workload).gateway) {
		declare("ClientCidr", "String", "Whose connections the gateways accept.", otherwise("10.0.0.0/8"))
	}
	declare("CountersignImage", "String", "The image of countersign, best with its digest.")
	for _, e := range t.d.engines() {
		declare(proxyImage(e).cfn, "String", "The image of "+string(e)+", with a bash for its health check.")
		if e == mesh.EngineNGINX {
			declare(streamModule.cfn, "String", "The file of NGINX's stream module; none where it is compiled in, as in NGINX's own image.", otherwise("none"))
		}
	}
	for _, w := range t.d.workloads {
		if w.service == nil {
			continue
		}
		declare(w.appImage().cfn, "String", "The image of the application of "+w.name+".")
		if len(w.plan.Inbound) > 0 {
			declare(w.appHealth().cfn, "CommaDelimitedList", "The command that finds the application of "+w.name+" healthy.",
				otherwise("CMD,bash,-c,"+connects(w.plan.Inbound[0].App)))
		}
	}
	declare(repositories.cfn, "CommaDelimitedList", "The ECR repositories of these images, by ARN, without wildcards.",
		field{key: "AllowedPattern", value: `^arn:[^*?]+:repository/[^*?]+$`})
	declare("Architecture", "String", "The processors of tasks and rotation.", otherwise("X86_64"), field{key: "AllowedValues", value: list{"X86_64", "ARM64"}})
	declare("TaskCpu", "String", "CPU units of a task, for application and proxy together.", otherwise("512"))
	declare("TaskMemory", "String", "MiB of a task.", otherwise("1024"))
	declare("DesiredCount", "Number", "Tasks of each service. 0 until the first rotation has filled the secrets.", otherwise(0), field{key: "MinValue", value: 0})
	declare("FunctionBucket", "String", "The S3 bucket with the package that 'countersign rotate package' wrote.")
	declare("FunctionKey", "String", "The package's key there.")
	declare(topic.cfn, "String", "The SNS topic that gets the alarms, by ARN.")
	for _, a := range t.d.authorities {
		if a.own && a.Parent != "" {
			declare(a.id+"ParentChain", "String", "The certificate of "+a.Parent+" and its issuers, in PEM, from 'aws acm-pca get-certificate-authority-certificate'.")
		}
	}
	t.conditions = object{{key: "Arm", value: equals{"Architecture", "ARM64"}}}
}

// equals is a condition of a template: a parameter has a value.
type equals [2]string

// param is a parameter.
func param(name string) text { return say(ref{cfn: name}) }

func (t *template) keys() {
	t.begin("Keys: one for the secrets of each store, one for the logs")
	for _, k := range t.d.keys {
		if !k.own {
			continue
		}
		t.add(k.name, "AWS::KMS::Key", "", object{
			{key: "Description", value: "The secrets of the mesh " + t.d.spec.Mesh + " in the store " + k.store},
			{key: "EnableKeyRotation", value: true},
			{key: "KeyPolicy", value: t.d.keyPolicy(k).document()},
		}, kept())
		t.add(k.name+"Alias", "AWS::KMS::Alias", "", object{{key: "AliasName", value: k.alias}, {key: "TargetKeyId", value: param(k.name)}})
	}
	t.add("LogsKey", "AWS::KMS::Key", "", object{
		{key: "Description", value: "The logs of the mesh " + t.d.spec.Mesh},
		{key: "EnableKeyRotation", value: true},
		{key: "KeyPolicy", value: t.d.logKeyPolicy().document()},
	}, kept())
}

// role adds a role, and its policy when it has one.
func (t *template) role(r role, note, service string, p policy) {
	t.add(r.id, "AWS::IAM::Role", note, object{
		{key: "RoleName", value: r.name},
		{key: "AssumeRolePolicyDocument", value: trust(service).document()},
	})
	if len(p) > 0 {
		t.add(r.policy(), "AWS::IAM::Policy", "", object{
			{key: "PolicyName", value: r.name},
			{key: "Roles", value: list{param(r.id)}},
			{key: "PolicyDocument", value: p.document()},
		})
	}
}

// policy is the identifier of a role's policy.
func (r role) policy() string { return strings.TrimSuffix(r.id, "Role") + "Policy" }

func (t *template) roles() {
	t.begin("Roles: for each service one for its containers and one for ECS, and that of the rotation")
	for _, w := range t.d.workloads {
		t.role(w.task, t.d.taskNote(w), tasksService, t.d.taskPolicy(w))
		t.role(w.execution, "ECS, when it starts a task of "+w.name+".", tasksService, t.d.executionPolicy(w))
	}
	own, attached := t.d.functionPolicies()
	t.role(t.d.function.role, "The rotation.", lambdaService, own)
	for _, m := range attached {
		t.managed(m, field{key: "Roles", value: list{param(t.d.function.role.id)}})
	}
	t.begin(auditorTitle)
	for _, m := range t.d.auditorPolicies() {
		t.managed(m)
	}
}

// managed adds a policy that is attached to roles.
func (t *template) managed(m managed, more ...field) {
	t.add(m.id, "AWS::IAM::ManagedPolicy", "", append(object{
		{key: "ManagedPolicyName", value: m.name}, {key: "Description", value: m.what},
	}, append(more, field{key: "PolicyDocument", value: m.policy.document()})...))
}

func (t *template) secrets() {
	t.begin("Secrets: they hold " + placeholder + " until the first rotation")
	for _, s := range t.d.secrets {
		t.add(s.id, "AWS::SecretsManager::Secret", "", object{
			{key: "Name", value: s.name},
			{key: "Description", value: "Countersign: " + s.what},
			{key: "KmsKeyId", value: s.key.arn},
			{key: "SecretString", value: placeholder},
		})
		t.add(s.id+"Policy", "AWS::SecretsManager::ResourcePolicy", "", object{
			{key: "SecretId", value: say(s.arn)},
			{key: "BlockPublicPolicy", value: true},
			{key: "ResourcePolicy", value: t.d.secretPolicy(s).document()},
		})
	}
}

func (t *template) privateCAs() {
	t.begin("Private CA")
	for _, a := range t.d.authorities {
		if !a.own {
			continue
		}
		kind, usage, note := a.described()
		t.add(a.id, "AWS::ACMPCA::CertificateAuthority", note, object{
			{key: "Type", value: kind},
			{key: "UsageMode", value: usage},
			{key: "KeyAlgorithm", value: caKey},
			{key: "SigningAlgorithm", value: "SHA384WITHECDSA"},
			{key: "Subject", value: object{{key: "CommonName", value: commonName(t.d.spec.Mesh, a.name)}, {key: "Organization", value: t.d.spec.TrustDomain}}},
		}, kept())
		t.activate(a)
		if a.Type == mesh.AuthorityACM {
			t.add(a.id+"Permission", "AWS::ACMPCA::Permission", "ACM renews by itself what it issued.", object{
				{key: "CertificateAuthorityArn", value: a.arn},
				{key: "Actions", value: list{"IssueCertificate", "GetCertificate", "ListPermissions"}},
				{key: "Principal", value: "acm.amazonaws.com"},
				{key: "SourceAccount", value: say(account)},
			})
		}
	}
}

// Years that the certificates of CAs are valid for.
const (
	rootYears        = 10
	subordinateYears = 3
)

// activate gives a CA its certificate, when it can be had in AWS.
func (t *template) activate(a *authority) {
	signer, kind, years := a.arn, "RootCACertificate/V1", rootYears
	activation := object{{key: "CertificateAuthorityArn", value: a.arn}, {key: "Certificate", value: say(ref{cfn: a.id + "Certificate.Certificate"})}, {key: "Status", value: "ACTIVE"}}
	if a.Create == mesh.CreateSubordinate {
		if a.Parent == "" {
			return
		}
		signer, kind, years = say(a.Parent), "SubordinateCACertificate_PathLen0/V1", subordinateYears
		activation = append(activation, field{key: "CertificateChain", value: param(a.id + "ParentChain")})
	}
	t.add(a.id+"Certificate", "AWS::ACMPCA::Certificate", "", object{
		{key: "CertificateAuthorityArn", value: signer},
		{key: "CertificateSigningRequest", value: say(ref{cfn: a.id + ".CertificateSigningRequest"})},
		{key: "SigningAlgorithm", value: "SHA384WITHECDSA"},
		{key: "TemplateArn", value: say("arn:", partition, ":acm-pca:::template/"+kind)},
		{key: "Validity", value: object{{key: "Type", value: "YEARS"}, {key: "Value", value: years}}},
	})
	t.add(a.id+"Activation", "AWS::ACMPCA::CertificateAuthorityActivation", "", activation)
}

// logDays is how long logs are kept, which assessors of PCI DSS ask for.
const logDays = 365

func (t *template) logs() {
	t.begin("Logs")
	group := func(id, name string) {
		t.add(id, "AWS::Logs::LogGroup", "", object{
			{key: "LogGroupName", value: name}, {key: "RetentionInDays", value: logDays}, {key: "KmsKeyId", value: say(ref{cfn: "LogsKey.Arn"})},
		})
	}
	for _, w := range t.d.workloads {
		group(w.id+"Logs", t.d.logGroup(w))
	}
	group("RotationLogs", t.d.functionLogGroup())
}

// output names what somebody needs who goes on from here.
func (t *template) output() {
	add := func(name, description string, value text) {
		t.outputs = append(t.outputs, field{key: name, value: object{{key: "Description", value: description}, {key: "Value", value: value}}})
	}
	add("RotationFunction", "Rotates what is due when it is invoked.", param("RotationFunction"))
	for _, m := range t.d.auditorPolicies() {
		add(m.id+"Arn", m.what+".", param(m.id))
	}
	for _, a := range t.d.authorities {
		if a.own {
			add(a.id+"Arn", "The private CA "+a.name+".", a.arn)
		}
	}
	for _, w := range t.d.workloads {
		if len(w.plan.Inbound) > 0 {
			add(w.id+"Address", "Where "+w.name+" is reached.", say(ref{cfn: w.id + "Balancer.DNSName"}))
		}
	}
}
