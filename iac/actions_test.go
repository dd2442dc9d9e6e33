package iac_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"countersign.dev/iac"
)

// rolesMay are all actions that the policies of a kind of role may name. Whoever adds one says so here, of whatever service it is: a matrix of
// questions asks about the services that it knows.
var rolesMay = map[string][]string{
	"reading": {"kms:Decrypt", "secretsmanager:GetSecretValue"},
	"execution": {
		"ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetAuthorizationToken", "ecr:GetDownloadUrlForLayer",
		"logs:CreateLogStream", "logs:PutLogEvents",
	},
	"rotation": {
		"acm-pca:DescribeCertificateAuthority", "acm-pca:GetCertificate", "acm-pca:GetCertificateAuthorityCertificate", "acm-pca:IssueCertificate",
		"ec2:AssignPrivateIpAddresses", "ec2:CreateNetworkInterface", "ec2:DeleteNetworkInterface", "ec2:DescribeNetworkInterfaces", "ec2:DescribeSubnets", "ec2:UnassignPrivateIpAddresses",
		"ecs:DescribeServices", "ecs:DescribeTasks", "ecs:ListTasks", "ecs:UpdateService",
		"kms:Decrypt", "kms:GenerateDataKey", "logs:CreateLogStream", "logs:PutLogEvents",
		"secretsmanager:DescribeSecret", "secretsmanager:GetSecretValue", "secretsmanager:ListSecretVersionIds", "secretsmanager:PutSecretValue", "secretsmanager:UpdateSecretVersionStage",
	},
	"rotation with ACM": {
		"acm:AddTagsToCertificate", "acm:DescribeCertificate", "acm:ExportCertificate", "acm:ListCertificates", "acm:RenewCertificate", "acm:RequestCertificate",
		"secretsmanager:GetRandomPassword",
	},
}

// TestActions asserts that no role's policy names an action that is not said above, nor all actions but some, and that each role of a kind that has
// one has all of its kind.
func TestActions(t *testing.T) {
	for name, write := range variants(t) {
		s := readStack(t, write(iac.CloudFormation))
		byEnvironment, acm := strings.HasSuffix(name, string(iac.InitEnvironment)), s.Resources["RotationOnACM"] != nil
		named := map[string][]string{}
		for id, properties := range s.of("AWS::IAM::Policy") {
			named[id] = allowed(t, name+": "+id, properties)
		}
		for id, properties := range s.of("AWS::IAM::ManagedPolicy") {
			if strings.HasPrefix(id, "RotationSecrets") { // what is too long for the role itself; the auditor's TestAuditorOfPage knows
				named["RotationPolicy"] = append(named["RotationPolicy"], allowed(t, name+": "+id, properties)...)
			}
		}
		for id, got := range named {
			var may []string
			switch {
			case id == "RotationPolicy":
				may = rolesMay["rotation"]
				if acm {
					may = slices.Concat(may, rolesMay["rotation with ACM"])
				}
			case strings.HasSuffix(id, "ExecutionPolicy"):
				may = rolesMay["execution"]
				if byEnvironment {
					may = slices.Concat(may, rolesMay["reading"])
				}
			case strings.HasSuffix(id, "TaskPolicy") && !byEnvironment:
				may = rolesMay["reading"]
			}
			slices.Sort(got)
			may = slices.Sorted(slices.Values(may))
			if got = slices.Compact(got); !slices.Equal(got, may) {
				t.Errorf("%s: %s allows %q, want %q", name, id, got, may)
			}
		}
	}
}

// allowed are the actions that a policy allows by name.
func allowed(t *testing.T, what string, properties map[string]any) (named []string) {
	t.Helper()
	for _, statement := range statements(t, properties["PolicyDocument"]) {
		if statement["Effect"] == "Deny" {
			continue
		}
		if statement["NotAction"] != nil || statement["NotResource"] != nil {
			t.Errorf("%s allows all but some: %v", what, statement)
		}
		for _, action := range all(statement["Action"]) {
			named = append(named, fmt.Sprint(action))
		}
	}
	return named
}
