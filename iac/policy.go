package iac

import (
	"slices"
	"strconv"
	"strings"

	"countersign.dev/mesh"
)

// statement is one of an IAM policy.
type statement struct {
	sid  string
	note string // for who reads it
	deny bool
	// principal is of policies that hang at a resource.
	principal  object
	actions    []string
	resources  []resource
	conditions []condition
}

// resource is what a statement is about. Only [exactly] and [unavoidable] make one.
type resource struct {
	arn    text
	reason string // why it has a wildcard
}

// exactly is one resource. A wildcard in it is a mistake of this package.
func exactly(arn text) resource {
	for _, part := range arn {
		if s, ok := part.(string); ok && strings.ContainsAny(s, "*?") {
			panic("iac: a wildcard in " + s)
		}
	}
	return resource{arn: arn}
}

// unavoidable is a resource with a wildcard that AWS leaves no way around.
func unavoidable(reason string, arn ...any) resource {
	return resource{arn: say(arn...), reason: reason}
}

// condition is one line of a statement's Condition; all have to hold.
type condition struct {
	operator, key string
	values        []text
}

func when(operator, key string, values ...text) condition {
	return condition{operator, key, values}
}

// policy is a document of IAM.
type policy []statement

// document writes a policy.
func (p policy) document() object {
	var statements list
	for _, s := range p {
		note := s.note
		for _, r := range s.resources {
			if r.reason != "" {
				note = strings.TrimPrefix(note+"\n"+wrap("A wildcard, because "+r.reason+"."), "\n")
			}
		}
		var item any = s.object()
		if note != "" {
			item = noted{note, item}
		}
		statements = append(statements, item)
	}
	return object{{key: "Version", value: "2012-10-17"}, {key: "Statement", value: statements}}
}

func (s statement) object() object {
	effect := "Allow"
	if s.deny {
		effect = "Deny"
	}
	o := object{{key: "Sid", value: s.sid}, {key: "Effect", value: effect}}
	if s.principal != nil {
		o = append(o, field{key: "Principal", value: s.principal})
	}
	o = append(o, field{key: "Action", value: texts(s.actions)})
	if len(s.resources) > 0 {
		resources := make([]text, 0, len(s.resources))
		for _, r := range s.resources {
			resources = append(resources, r.arn)
		}
		o = append(o, field{key: "Resource", value: oneOrAll(resources)})
	}
	if len(s.conditions) > 0 {
		o = append(o, field{key: "Condition", value: conditions(s.conditions)})
	}
	return o
}

// conditions groups by operator, in the order in which operators come.
func conditions(all []condition) object {
	var o object
	for _, c := range all {
		i := slices.IndexFunc(o, func(f field) bool { return f.key == c.operator })
		if i < 0 {
			i = len(o)
			o = append(o, field{key: c.operator, value: object{}})
		}
		o[i].value = append(o[i].value.(object), field{key: c.key, value: oneOrAll(c.values)})
	}
	return o
}

// oneOrAll is a list, or its only element.
func oneOrAll(all []text) any {
	if len(all) == 1 {
		return all[0]
	}
	return texts(all)
}

// everyone and accountRoot are principals. A policy at a resource that admits the account leaves it to the policies
// of IAM whom.
func everyone() object { return object{{key: "AWS", value: "*"}} }

func accountRoot() object {
	return object{{key: "AWS", value: say("arn:", partition, ":iam::", account, ":root")}}
}

func service(name string) object { return object{{key: "Service", value: name}} }

// secretsManager is how KMS sees calls that Secrets Manager makes for somebody.
func secretsManager() condition {
	return when("StringEquals", "kms:ViaService", say("secretsmanager.", region, ".amazonaws.com"))
}

// readStatements let a role read a workload's secrets.
func (w *workload) readStatements() policy {
	var resources []resource
	var arns []text
	for _, s := range w.secrets {
		resources, arns = append(resources, exactly(say(s.arn))), append(arns, say(s.arn))
	}
	return policy{
		{sid: "ReadItsSecrets", actions: []string{"secretsmanager:GetSecretValue"}, resources: resources},
		{
			sid: "DecryptThem", actions: []string{"kms:Decrypt"}, resources: []resource{exactly(w.key.arn)},
			conditions: []condition{secretsManager(), when("StringEquals", "kms:EncryptionContext:SecretARN", arns...)},
		},
	}
}

// taskPolicy is what the containers of a task may do: nothing, where ECS reads the secrets.
func (d *deployment) taskPolicy(w *workload) policy {
	if d.init == InitEnvironment {
		return nil
	}
	return w.readStatements()
}

// repositories are where images come from: a parameter, so that they are named exactly.
var repositories = ref{cfn: "ImageRepositories", tf: "var.image_repositories", given: "repository"}

// executionPolicy is what ECS may do to start a task.
func (d *deployment) executionPolicy(w *workload) policy {
	images := []resource{exactly(say(repositories))}
	if d.given != nil {
		images = nil
		for _, arn := range d.given.repositories() {
			images = append(images, exactly(say(arn)))
		}
	}
	p := policy{
		{sid: "PullImages", actions: []string{"ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"}, resources: images},
		{sid: "LogInToRegistry", actions: []string{"ecr:GetAuthorizationToken"}, resources: []resource{unavoidable("the token is for no single repository; the statement above says which can be pulled", "*")}},
		logStatement(d.logGroup(w)),
	}
	if d.init == InitEnvironment {
		p = append(p, w.readStatements()...)
	}
	return p
}

// logStatement lets somebody write to a log group.
func logStatement(group string) statement {
	return statement{
		sid: "WriteItsLog", actions: []string{"logs:CreateLogStream", "logs:PutLogEvents"},
		resources: []resource{unavoidable("the names of log streams are made by AWS", groupARN(group), ":*")},
	}
}

// functionPolicies are what the rotation may do: the policy in its role, and, where AWS would not take that, more that are attached to
// it, with what it may do to secrets.
func (d *deployment) functionPolicies() (own policy, attached []managed) {
	own = append(d.rotateStatements(d.secrets), d.deployStatements()...)
	if own.length() <= mostInline {
		return own, nil
	}
	for i, p := range divided(nil, d.secrets, d.rotateStatements) {
		part := strconv.Itoa(i + 1)
		attached = append(attached, managed{
			name: d.function.name + "-secrets-" + part, id: "RotationSecrets" + part + "Policy",
			what: "What the rotation of the mesh " + d.spec.Mesh + " may do to its secrets, part " + part, policy: p,
		})
	}
	return d.deployStatements(), attached
}

// rotateStatements let the rotation read and write secrets, and have Secrets Manager use their keys for these, and for no others.
func (d *deployment) rotateStatements(secrets []*storedSecret) policy {
	rotate := statement{
		sid:     "RotateSecrets",
		actions: []string{"secretsmanager:DescribeSecret", "secretsmanager:GetSecretValue", "secretsmanager:ListSecretVersionIds", "secretsmanager:PutSecretValue", "secretsmanager:UpdateSecretVersionStage"},
	}
	p := policy{rotate}
	for _, k := range d.keys {
		var arns []text
		for _, s := range secrets {
			if s.key == k {
				p[0].resources, arns = append(p[0].resources, exactly(say(s.arn))), append(arns, say(s.arn))
			}
		}
		if len(arns) > 0 {
			p = append(p, statement{
				sid: "EncryptBy" + k.name, actions: []string{"kms:Decrypt", "kms:GenerateDataKey"}, resources: []resource{exactly(k.arn)},
				conditions: []condition{secretsManager(), when("StringEquals", "kms:EncryptionContext:SecretARN", arns...)},
			})
		}
	}
	return p
}

// deployStatements are what the rotation may do beside reading and writing secrets.
func (d *deployment) deployStatements() policy {
	var p policy
	for _, a := range d.authorities {
		p = append(p, d.issueStatements(a)...)
	}
	p = append(p, statement{sid: "ReplaceTasks", actions: []string{"ecs:DescribeServices", "ecs:UpdateService"}, resources: services(d.workloads)})
	p = append(p, d.taskStatements()...)
	p = append(p, logStatement(d.functionLogGroup()))
	return append(p, d.networkStatements()...)
}

// services are those of workloads.
func services(workloads []*workload) []resource {
	all := make([]resource, 0, len(workloads))
	for _, w := range workloads {
		all = append(all, exactly(w.serviceARN()))
	}
	return all
}

// taskStatements let somebody see which tasks run.
func (d *deployment) taskStatements() policy {
	var clusters []text
	tasks := make([]resource, 0, len(d.clusters))
	for _, c := range d.clusters {
		clusters = append(clusters, clusterARN(c))
		tasks = append(tasks, unavoidable("the ids of tasks are made by ECS", "arn:", partition, ":ecs:", region, ":", account, ":task/"+c+"/*"))
	}
	return policy{
		{
			sid: "ListTasks", actions: []string{"ecs:ListTasks"}, resources: []resource{unavoidable("ecs:ListTasks knows no other resource; the condition names the clusters", "*")},
			conditions: []condition{when("ArnEquals", "ecs:cluster", clusters...)},
		},
		{sid: "LookAtTasks", actions: []string{"ecs:DescribeTasks"}, resources: tasks},
	}
}

// networkStatements let Lambda, and nothing that runs in the function, place the function in the VPC.
func (d *deployment) networkStatements() policy {
	actions := []string{"ec2:AssignPrivateIpAddresses", "ec2:CreateNetworkInterface", "ec2:DeleteNetworkInterface", "ec2:DescribeNetworkInterfaces", "ec2:DescribeSubnets", "ec2:UnassignPrivateIpAddresses"}
	return policy{
		{
			sid: "PlaceInVPC", actions: actions,
			resources: []resource{unavoidable("Lambda makes the network interfaces itself and asks for this when it places a function in a VPC; the next statement keeps the function's own code from it", "*")},
		},
		{
			sid: "NotTheCode", deny: true, actions: actions, resources: []resource{unavoidable("nothing is left out of this refusal", "*")},
			conditions: []condition{when("ArnEquals", "lambda:SourceFunctionArn", d.functionARN())},
		},
	}
}

func (d *deployment) functionARN() text {
	return say("arn:", partition, ":lambda:", region, ":", account, ":function:"+d.function.name)
}

// issueStatements are what the rotation may ask of an authority.
func (d *deployment) issueStatements(a *authority) policy {
	ca := []resource{exactly(a.arn)}
	look := statement{
		sid: "LookAt" + a.id, resources: ca,
		actions: []string{"acm-pca:DescribeCertificateAuthority", "acm-pca:GetCertificate", "acm-pca:GetCertificateAuthorityCertificate"},
	}
	issue := statement{sid: "IssueFrom" + a.id, actions: []string{"acm-pca:IssueCertificate"}, resources: ca}
	if a.Type == mesh.AuthorityACMPCA {
		issue.note = "Leaves only: no other template, so no other CA."
		issue.conditions = []condition{when("StringEquals", "acm-pca:TemplateArn", say(a.Template))}
		return policy{look, issue}
	}
	issue.note = "ACM asks the private CA in the name of who requests a certificate."
	issue.conditions = []condition{when("StringEqualsIfExists", "acm-pca:TemplateArn", say("arn:", partition, ":acm-pca:::template/EndEntityCertificate/V1"))}
	return append(policy{look, issue}, d.acmStatements(a)...)
}

// workloadTag is how a certificate of ACM says whose it is. The rotation writes it with the request.
const workloadTag = "countersign:workload"

// acmStatements let the rotation request certificates for its own workloads, and export these. A certificate has no name
// before it is there; afterwards the tag says whose it is. To tag with a request is to tag certificate/*, to the letter.
func (d *deployment) acmStatements(a *authority) policy {
	var names, workloads []text
	for _, w := range d.workloads {
		if w.authority == a {
			names = append(names, plainTexts(w.plan.Certificate.DNSNames)...)
			workloads = append(workloads, say(w.plan.Workload.Identity.String()))
		}
	}
	certificates := func(name string) []any {
		return []any{"arn:", partition, ":acm:", region, ":", account, ":certificate/" + name}
	}
	const unnamed = "a certificate has no name before it is there"
	return policy{
		{
			sid: "RequestFromACM", actions: []string{"acm:RequestCertificate"},
			resources: []resource{unavoidable(unnamed+"; the conditions name the CA and the DNS names", certificates("*")...)},
			conditions: []condition{
				when("ArnEquals", "acm:CertificateAuthority", a.arn),
				when("ForAllValues:StringEquals", "acm:DomainNames", names...),
			},
		},
		{
			sid: "TagWhatIsRequested", actions: []string{"acm:AddTagsToCertificate"},
			resources:  []resource{unavoidable(unnamed+"; the next statement keeps the rotation from tagging one that is", certificates("*")...)},
			conditions: []condition{when("StringEquals", "aws:RequestTag/"+workloadTag, workloads...)},
		},
		{
			sid: "TagNothingElse", deny: true, actions: []string{"acm:AddTagsToCertificate", "acm:RemoveTagsFromCertificate"},
			resources: []resource{unavoidable("these are the names of all that are there", certificates("????????-????-????-????-????????????")...)},
		},
		{
			sid: "ExportFromACM", actions: []string{"acm:DescribeCertificate", "acm:ExportCertificate", "acm:RenewCertificate"},
			resources:  []resource{unavoidable("ACM makes the names of certificates; the condition says whose", certificates("*")...)},
			conditions: []condition{when("StringEquals", "aws:ResourceTag/"+workloadTag, workloads...)},
		},
		{sid: "FindInACM", actions: []string{"acm:ListCertificates"}, resources: []resource{unavoidable("acm:ListCertificates knows no other resource", "*")}},
		{sid: "MakePassphrases", actions: []string{"secretsmanager:GetRandomPassword"}, resources: []resource{unavoidable("secretsmanager:GetRandomPassword is about no secret", "*")}},
	}
}

// readers are the roles that may read a secret: the rotation's first.
func (d *deployment) readers(s *storedSecret) []text {
	roles := []text{say(d.function.role.arn)}
	for _, w := range s.readers {
		if d.init == InitEnvironment {
			roles = append(roles, say(w.execution.arn))
		} else {
			roles = append(roles, say(w.task.arn))
		}
	}
	return roles
}

// secretPolicy is what hangs at a secret. It refuses reading and writing to all others, administrators included, and
// leaves them administration: whoever changes this policy is seen doing it.
func (d *deployment) secretPolicy(s *storedSecret) policy {
	this := []resource{exactly(say(s.arn))}
	if len(s.readers) == 0 {
		return policy{{
			sid: "NobodyElse", deny: true, principal: everyone(), resources: this, actions: append(readActions(), writeActions()...),
			conditions: []condition{when("ArnNotEquals", "aws:PrincipalArn", say(d.function.role.arn))},
		}}
	}
	return policy{
		{
			sid: "NobodyElseReads", deny: true, principal: everyone(), resources: this,
			actions:    readActions(),
			conditions: []condition{when("ArnNotEquals", "aws:PrincipalArn", d.readers(s)...)},
		},
		{
			sid: "NobodyElseWrites", deny: true, principal: everyone(), resources: this,
			actions:    writeActions(),
			conditions: []condition{when("ArnNotEquals", "aws:PrincipalArn", say(d.function.role.arn))},
		},
	}
}

// readActions and writeActions are what is refused to others.
func readActions() []string {
	return []string{"secretsmanager:BatchGetSecretValue", "secretsmanager:GetSecretValue"}
}

func writeActions() []string {
	return []string{"secretsmanager:PutSecretValue", "secretsmanager:UpdateSecret", "secretsmanager:UpdateSecretVersionStage"}
}

// thisKey is the one resource of a key's own policy.
func thisKey() []resource { return []resource{{arn: say("*")}} }

// administerKey leaves a key's administration to the account, without any use of it.
func administerKey() statement {
	return statement{
		sid: "AdministerWithoutUse", principal: accountRoot(), resources: thisKey(),
		note: "In the policy of a key, * is this key. Who administers it cannot use it; who gives himself the right to, by\nkms:PutKeyPolicy, is seen in CloudTrail.",
		actions: []string{
			"kms:CancelKeyDeletion", "kms:CreateAlias", "kms:DeleteAlias", "kms:DescribeKey", "kms:DisableKey", "kms:EnableKey", "kms:EnableKeyRotation",
			"kms:GetKeyPolicy", "kms:GetKeyRotationStatus", "kms:ListGrants", "kms:ListKeyPolicies", "kms:ListResourceTags", "kms:PutKeyPolicy", "kms:RevokeGrant",
			"kms:ScheduleKeyDeletion", "kms:TagResource", "kms:UntagResource", "kms:UpdateAlias", "kms:UpdateKeyDescription",
		},
	}
}

// keyPolicy hangs at the key of a store's secrets.
func (d *deployment) keyPolicy(k *key) policy {
	roles := []text{say(d.function.role.arn)}
	for _, w := range d.workloads {
		if w.key != k {
			continue
		}
		if d.init == InitEnvironment {
			roles = append(roles, say(w.execution.arn))
		} else {
			roles = append(roles, say(w.task.arn))
		}
	}
	return policy{
		administerKey(),
		{
			sid: "DecryptForItsRoles", principal: accountRoot(), actions: []string{"kms:Decrypt"}, resources: thisKey(),
			note:       "Only these roles, only through Secrets Manager, and only what their own policies name.",
			conditions: []condition{secretsManager(), when("ArnEquals", "aws:PrincipalArn", roles...)},
		},
		{
			sid: "EncryptBySecretsManager", principal: accountRoot(), actions: []string{"kms:GenerateDataKey"}, resources: thisKey(),
			note:       "Who may write a secret may have it encrypted; this stack does so for the first values.",
			conditions: []condition{secretsManager()},
		},
		{
			sid: "TryTheKey", principal: accountRoot(), actions: []string{"kms:Decrypt"}, resources: thisKey(),
			note:       "Secrets Manager decrypts a sample, and no secret, when a secret is made with the key.",
			conditions: []condition{secretsManager(), when("StringEquals", "kms:EncryptionContext:SecretVersionId", say("RequestToValidateKeyAccess"))},
		},
	}
}

// logKeyPolicy hangs at the key of the log groups.
func (d *deployment) logKeyPolicy() policy {
	var groups []text
	for _, name := range d.logGroups() {
		groups = append(groups, groupARN(name))
	}
	return policy{
		administerKey(),
		{
			sid: "EncryptTheLogs", principal: object{{key: "Service", value: say("logs.", region, ".amazonaws.com")}}, resources: thisKey(),
			actions:    []string{"kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey", "kms:ReEncryptFrom", "kms:ReEncryptTo"},
			conditions: []condition{when("ArnEquals", "kms:EncryptionContext:aws:logs:arn", groups...)},
		},
	}
}

// logGroups are the names of all log groups.
func (d *deployment) logGroups() []string {
	groups := []string{d.functionLogGroup()}
	for _, w := range d.workloads {
		groups = append(groups, d.logGroup(w))
	}
	return groups
}

// trust says who may take a role on.
func trust(s string) policy {
	p := policy{{sid: "Assume", principal: service(s), actions: []string{"sts:AssumeRole"}}}
	if s == tasksService {
		p[0].conditions = []condition{when("StringEquals", "aws:SourceAccount", say(account))}
	}
	return p
}

const (
	tasksService  = "ecs-tasks.amazonaws.com"
	lambdaService = "lambda.amazonaws.com"
)
