package iac

import "strconv"

// auditorPolicies are what somebody may do who looks after the mesh and reads no secret: what `countersign check aws` asks for, and which
// tasks run. They are for a role that is there already, and several where AWS would not take one.
func (d *deployment) auditorPolicies() []managed {
	policies := divided(d.auditorStatements(), d.secrets, describeStatements)
	var all []managed
	for i, p := range policies {
		m := managed{name: d.spec.Mesh + "-auditor", id: "AuditorPolicy", what: "Looks at the mesh " + d.spec.Mesh + " and reads no secret (countersign check aws)", policy: p}
		if i > 0 {
			part := strconv.Itoa(i + 1)
			m.name, m.id, m.what = m.name+"-"+part, "Auditor"+part+"Policy", m.what+", part "+part
		}
		all = append(all, m)
	}
	return all
}

// auditorTitle stands above them.
const auditorTitle = "For your own role that looks after the mesh (countersign check aws): it reads no secret, and changes nothing"

// describeStatements let the auditor see what secrets are and what hangs at them, without their values.
func describeStatements(secrets []*storedSecret) policy {
	s := statement{sid: "LookAtSecrets", actions: []string{"secretsmanager:DescribeSecret", "secretsmanager:GetResourcePolicy", "secretsmanager:ListSecretVersionIds"}}
	for _, secret := range secrets {
		s.resources = append(s.resources, exactly(say(secret.arn)))
	}
	return policy{s}
}

// auditorStatements are what the auditor sees beside services and secrets.
func (d *deployment) auditorStatements() policy {
	keys := make([]resource, 0, len(d.keys))
	for _, k := range d.keys {
		keys = append(keys, exactly(k.arn))
	}
	anywhere := func(reason string) []resource { return []resource{unavoidable(reason, "*")} }
	p := policy{
		{sid: "WhoMayDoWhat", actions: []string{"iam:GetAccountAuthorizationDetails"}, resources: anywhere("the rights of all roles and users are asked for together: who else can read a secret is among them")},
		{sid: "LookAtKeys", actions: []string{"kms:DescribeKey", "kms:GetKeyPolicy", "kms:GetKeyRotationStatus", "kms:ListGrants"}, resources: keys},
	}
	authorities := make([]resource, 0, len(d.authorities))
	for _, a := range d.authorities {
		authorities = append(authorities, exactly(a.arn))
	}
	if len(authorities) > 0 {
		p = append(p, statement{sid: "LookAtAuthorities", actions: []string{"acm-pca:DescribeCertificateAuthority", "acm-pca:GetPolicy"}, resources: authorities})
	}
	p = append(p, d.taskStatements()...)
	return append(
		append(p, d.serviceStatements()...),
		statement{
			sid: "LookAtTaskDefinitions", actions: []string{"ecs:DescribeTaskDefinition", "ecs:ListTaskDefinitions"},
			resources: anywhere("these two know no other resource"),
		},
		statement{
			sid: "LookAtBalancers", resources: anywhere("these four know no other resource"),
			actions: []string{"elasticloadbalancing:DescribeListeners", "elasticloadbalancing:DescribeRules", "elasticloadbalancing:DescribeSSLPolicies", "elasticloadbalancing:DescribeTargetGroups"},
		},
		statement{sid: "FindTheSchedule", actions: []string{"events:ListRuleNamesByTarget"}, resources: anywhere("events:ListRuleNamesByTarget knows no other resource")},
		statement{
			sid: "LookAtTheSchedule", actions: []string{"events:DescribeRule", "events:ListTargetsByRule"},
			resources: []resource{unavoidable("whatever rule starts the rotation is looked at, and it may be another one than this stack's", "arn:", partition, ":events:", region, ":", account, ":rule/*")},
		},
		statement{
			sid: "LookAtAlarms", actions: []string{"cloudwatch:DescribeAlarms"},
			resources: []resource{unavoidable("alarms are found by what they watch, and not by their names", "arn:", partition, ":cloudwatch:", region, ":", account, ":alarm:*")},
		},
		statement{sid: "WhoHasRead", actions: []string{"cloudtrail:LookupEvents"}, resources: anywhere("cloudtrail:LookupEvents knows no other resource")},
	)
}

// serviceStatements let somebody see all services of the mesh's clusters: one that nobody has declared may run a workload's tasks.
func (d *deployment) serviceStatements() policy {
	var clusters []text
	all := make([]resource, 0, len(d.clusters))
	for _, c := range d.clusters {
		clusters = append(clusters, clusterARN(c))
		all = append(all, unavoidable("services that nobody has declared have names that nobody knows", "arn:", partition, ":ecs:", region, ":", account, ":service/"+c+"/*"))
	}
	return policy{
		{
			sid: "ListServices", actions: []string{"ecs:ListServices"}, resources: []resource{unavoidable("ecs:ListServices knows no other resource; the condition names the clusters", "*")},
			conditions: []condition{when("ArnEquals", "ecs:cluster", clusters...)},
		},
		{sid: "LookAtServices", actions: []string{"ecs:DescribeServices"}, resources: all},
	}
}
