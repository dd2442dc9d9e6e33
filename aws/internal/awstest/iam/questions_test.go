package iam_test

import (
	"maps"
	"slices"
	"strings"

	"countersign.dev/aws/internal/awstest/iam"
	"countersign.dev/mesh"
)

// question is one cell of the matrix, but for who asks.
type question struct {
	action, resource string
	context          map[string][]string
	policy           *iam.Document // of the resource
	decisive         bool
}

func (w *world) asks(role string, q question) bool {
	caller := iam.Caller{Account: account, Role: roleARN(role), Session: "arn:aws:sts::" + account + ":assumed-role/" + role + "/session"}
	context := map[string][]string{"aws:PrincipalArn": {roleARN(role)}, "aws:PrincipalAccount": {account}}
	maps.Copy(context, q.context)
	policies := iam.Policies{Identity: w.roles[role], Resource: q.policy, Decisive: q.decisive}
	return iam.Decide(iam.Request{Caller: caller, Action: q.action, Resource: q.resource, Context: context}, policies).Allowed
}

// everything are all questions.
func (w *world) everything() []question {
	var all []question
	add := func(action, resource string, context map[string][]string) {
		all = append(all, question{action: action, resource: resource, context: context})
	}
	for _, name := range slices.Sorted(maps.Keys(w.secrets)) {
		for _, action := range []string{
			"GetSecretValue", "BatchGetSecretValue", "PutSecretValue", "UpdateSecret", "UpdateSecretVersionStage", "DescribeSecret", "ListSecretVersionIds",
			"GetResourcePolicy", "PutResourcePolicy", "DeleteResourcePolicy", "DeleteSecret", "RotateSecret", "ReplicateSecretToRegions", "CreateSecret",
		} {
			all = append(all, question{action: "secretsmanager:" + action, resource: secretARN(name), policy: w.secrets[name]})
		}
	}
	// Through Secrets Manager: for each secret, for a stranger's, and for one whose ARN only begins so.
	for _, arn := range append(w.secretARNs(), secretARN("orders/api"), secretARN(w.spec.Mesh+"/stranger"), w.secretARNs()[0]+"x") {
		through := map[string][]string{"kms:ViaService": {viaSecretsManager}, "kms:EncryptionContext:SecretARN": {arn}, "kms:EncryptionContext:SecretVersionId": {"v"}}
		for _, action := range []string{"kms:Decrypt", "kms:GenerateDataKey"} {
			all = append(all, question{action: action, resource: keyARN, context: through, policy: w.key, decisive: true})
		}
	}
	for _, action := range []string{"Decrypt", "GenerateDataKey", "Encrypt", "ReEncryptFrom", "CreateGrant", "ListGrants", "PutKeyPolicy", "GetKeyPolicy", "GetKeyRotationStatus", "ScheduleKeyDeletion", "DescribeKey"} {
		for _, service := range []string{"", "s3.eu-central-1.amazonaws.com", viaSecretsManager} {
			context := map[string][]string{}
			if service != "" {
				context["kms:ViaService"] = []string{service}
			}
			all = append(all, question{action: "kms:" + action, resource: keyARN, context: context, policy: w.key, decisive: true})
		}
	}
	for _, template := range []string{leaf, "arn:aws:acm-pca:::template/SubordinateCACertificate_PathLen0/V1", "arn:aws:acm-pca:::template/EndEntityCertificate_APIPassthrough/V1", "arn:aws:acm-pca:::template/RootCACertificate/V1"} {
		add("acm-pca:IssueCertificate", caARN, map[string][]string{"acm-pca:TemplateArn": {template}})
		add("acm-pca:IssueCertificate", strings.Replace(caARN, "1111-", "9999-", 1), map[string][]string{"acm-pca:TemplateArn": {template}})
	}
	for _, action := range []string{"DescribeCertificateAuthority", "GetCertificate", "GetCertificateAuthorityCertificate", "RevokeCertificate", "UpdateCertificateAuthority", "DeleteCertificateAuthority", "GetPolicy", "PutPolicy"} {
		add("acm-pca:"+action, caARN, nil)
	}
	for _, workload := range append(w.spec.Workloads(), mesh.Workload{Name: "elsewhere"}) {
		cluster, name := "payments", workload.Name
		if plan, err := w.spec.Compile(name); err == nil {
			cluster, name = plan.ECS.Cluster, plan.ECS.Service
		}
		for _, action := range []string{"UpdateService", "DescribeServices", "DeleteService"} {
			add("ecs:"+action, "arn:aws:ecs"+prefix+"service/"+cluster+"/"+name, map[string][]string{"ecs:cluster": {"arn:aws:ecs" + prefix + "cluster/" + cluster}})
		}
		for _, action := range []string{"CreateLogStream", "PutLogEvents", "GetLogEvents"} {
			add("logs:"+action, "arn:aws:logs"+prefix+"log-group:/countersign/"+w.spec.Mesh+"/"+workload.Name+":log-stream:x", nil)
		}
	}
	for _, cluster := range []string{w.cluster(), "other"} {
		for _, action := range []string{"ListTasks", "ListServices"} {
			add("ecs:"+action, "*", map[string][]string{"ecs:cluster": {"arn:aws:ecs" + prefix + "cluster/" + cluster}})
		}
		for _, action := range []string{"DescribeTasks", "StopTask", "ExecuteCommand"} {
			add("ecs:"+action, "arn:aws:ecs"+prefix+"task/"+cluster+"/1", nil)
		}
	}
	for _, action := range looks {
		add(action, "*", nil)
	}
	for _, action := range []string{"DescribeRule", "ListTargetsByRule", "DisableRule", "PutTargets"} {
		add("events:"+action, "arn:aws:events"+prefix+"rule/any", nil)
	}
	add("cloudwatch:DescribeAlarms", "arn:aws:cloudwatch"+prefix+"alarm:*", nil)
	add("cloudwatch:DeleteAlarms", "arn:aws:cloudwatch"+prefix+"alarm:any", nil)
	for _, action := range []string{"ecs:RegisterTaskDefinition", "ecs:RunTask", "lambda:UpdateFunctionCode", "iam:PutRolePolicy", "ecr:GetAuthorizationToken", "sts:AssumeRole", "secretsmanager:ListSecrets"} {
		add(action, "*", nil)
	}
	for role := range w.trusts {
		add("iam:PassRole", roleARN(role), nil)
	}
	for _, repository := range []string{"all", "other"} {
		for _, action := range []string{"BatchGetImage", "PutImage"} {
			add("ecr:"+action, "arn:aws:ecr"+prefix+"repository/"+repository, nil)
		}
	}
	add("ec2:CreateNetworkInterface", "*", nil)
	add("ec2:CreateNetworkInterface", "*", map[string][]string{"lambda:SourceFunctionArn": {"arn:aws:lambda" + prefix + "function:" + w.spec.Mesh + "-rotation"}})
	return all
}

// looks are what the auditor may do on everything: these actions know no other resource.
var looks = []string{
	"iam:GetAccountAuthorizationDetails", "ecs:DescribeTaskDefinition", "ecs:ListTaskDefinitions", "events:ListRuleNamesByTarget", "cloudtrail:LookupEvents",
	"elasticloadbalancing:DescribeListeners", "elasticloadbalancing:DescribeRules", "elasticloadbalancing:DescribeSSLPolicies", "elasticloadbalancing:DescribeTargetGroups",
}

// secretARNs are those of all secrets of the mesh.
func (w *world) secretARNs() []string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(w.secrets)) {
		all = append(all, secretARN(name))
	}
	return all
}

func (w *world) cluster() string {
	plan, err := w.spec.Compile(w.spec.Workloads()[0].Name)
	if err != nil {
		w.Fatal(err)
	}
	return plan.ECS.Cluster
}
