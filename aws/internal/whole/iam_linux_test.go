package whole_test

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"countersign.dev/aws/internal/awstest/deployed"
	"countersign.dev/aws/session"
)

// ask is one cell's question, but for who asks: an action on a resource, and the call that does it.
type ask struct {
	action, resource string // the resource as the table names it: "checkout.rotation", "ca", "another ca"
	call             func(ctx context.Context, config aws.Config) error
	tame             bool // changes nothing that matters, whoever may do it
}

// proof is the example as it is deployed, and what can be asked of it.
type proof struct {
	*testing.T
	*deployed.Mesh
	readers string // "task" or "execution": whose roles read secrets
	asks    []ask
	decided []decided
}

// decided is a question that the front decides without a call: to services for which no client of the SDK is at hand, and what a service asks
// of another one in the caller's name.
type decided struct {
	action, resource, arn string
	context               map[string][]string // the condition keys of the request
}

// The example's specification in words: its workloads, its secrets, and which of them a workload's task needs.
var (
	workloads  = []string{"checkout", "ledger", "paygate", "terminal"}
	allSecrets = []string{
		"checkout", "checkout.rotation", "ledger", "ledger.rotation", "paygate", "paygate.rotation", "terminal", "terminal.rotation",
		"bundle", "bundle.rotation", "pca.budget",
	}
	needed = map[string][]string{
		"checkout": {"checkout", "bundle"}, "ledger": {"ledger", "bundle"}, "paygate": {"paygate", "bundle"}, "terminal": {"terminal", "bundle"},
	}
)

// rotates is what the rotation has to be able to do, by action, and on what.
var rotates = map[string][]string{
	"secretsmanager:GetSecretValue": allSecrets, "secretsmanager:DescribeSecret": allSecrets, "secretsmanager:ListSecretVersionIds": allSecrets,
	"secretsmanager:PutSecretValue": allSecrets, "secretsmanager:UpdateSecretVersionStage": allSecrets,
	"acm-pca:DescribeCertificateAuthority": {"ca"}, "acm-pca:GetCertificateAuthorityCertificate": {"ca"}, "acm-pca:GetCertificate": {"ca"},
	"acm-pca:IssueCertificate": {"ca, EndEntityCertificate/V1"},
	"ecs:UpdateService":        workloads, "ecs:DescribeServices": workloads, "ecs:ListTasks": {"cluster"}, "ecs:DescribeTasks": {"cluster"},
	"logs:CreateLogStream": {"rotation"}, "logs:PutLogEvents": {"rotation"},
	"kms:Decrypt": allSecrets, "kms:GenerateDataKey": allSecrets,
}

// audits is what somebody has to be able to do who has the policy for those who look after the mesh.
var audits = map[string][]string{
	"secretsmanager:DescribeSecret": allSecrets, "secretsmanager:ListSecretVersionIds": allSecrets, "secretsmanager:GetResourcePolicy": allSecrets,
	"acm-pca:DescribeCertificateAuthority": {"ca"}, "kms:DescribeKey": {"key"}, "kms:GetKeyPolicy": {"key"},
	"ecs:DescribeServices": append([]string{"elsewhere"}, workloads...), "ecs:ListServices": {"cluster"}, "ecs:ListTasks": {"cluster"}, "ecs:DescribeTasks": {"cluster"}, "ecs:DescribeTaskDefinition": {"*"}, "ecs:ListTaskDefinitions": {"*"},
	"iam:GetAccountAuthorizationDetails": {"*"}, "cloudtrail:LookupEvents": {"*"}, "cloudwatch:DescribeAlarms": {"alarms"},
	"events:ListRuleNamesByTarget": {"*"}, "events:DescribeRule": {"rule"},
	"elasticloadbalancing:DescribeListeners": {"*"}, "elasticloadbalancing:DescribeRules": {"*"}, "elasticloadbalancing:DescribeSSLPolicies": {"*"}, "elasticloadbalancing:DescribeTargetGroups": {"*"},
}

// may is the table: what each role has to be able to do. Everything else it must not.
func (p *proof) may(role, action, resource string) bool {
	part := strings.TrimPrefix(role, p.Name+"-")
	switch part {
	case "rotation":
		return slices.Contains(rotates[action], resource)
	case "auditor":
		return slices.Contains(audits[action], resource)
	}
	name, kind, _ := strings.Cut(part, "-")
	if !slices.Contains(workloads, name) {
		return false
	}
	if kind == p.readers && (action == "secretsmanager:GetSecretValue" || action == "kms:Decrypt") {
		return slices.Contains(needed[name], resource)
	}
	if kind != "execution" {
		return false
	}
	switch action {
	case "logs:CreateLogStream", "logs:PutLogEvents":
		return resource == name
	case "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer", "ecr:BatchCheckLayerAvailability":
		return resource == "app"
	case "ecr:GetAuthorizationToken":
		return true
	}
	return false
}

// TestIAM proves the policies of the generated template, as they are deployed: each role does what it must, by the SDK and with the
// role's own credentials, and every other call on every other resource of the example is denied; with the policies of
// secrets and of the key, which keep out administrators, too.
func TestIAM(t *testing.T) {
	for _, way := range []struct{ name, init, readers string }{{"proof", "task-role", "task"}, {"proofenv", "environment", "execution"}} {
		t.Run(way.init, func(t *testing.T) {
			p := &proof{T: t, readers: way.readers, Mesh: deploy(t, deployed.Options{Specification: example(t, way.name), Generate: []string{"--init", way.init}})}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			if err := p.Deploy(ctx, 0, nil); err != nil {
				t.Fatal(err)
			}
			p.auditor(ctx)
			p.checked(ctx, 0, "0 findings")
			p.blind(ctx)
			p.prepare(ctx)
			p.askThrough(ctx)
			p.insiders(ctx)
			p.outsiders(ctx)
			p.secondLock(ctx)
			p.checked(ctx, 1, "no_resource_policy", "role/administrator, arn:aws:iam::123456789012:role/orders-task can read its value", "read_by_stranger")
		})
	}
}

// auditor makes a role of the team's own, and gives it the policy for those who look after the mesh.
func (p *proof) auditor(ctx context.Context) {
	role := p.Role("auditor")
	p.Cloud.PutRole(role)
	if _, err := iam.NewFromConfig(p.Cloud.Admin()).AttachRolePolicy(ctx, &iam.AttachRolePolicyInput{RoleName: &role, PolicyArn: aws.String(p.Stack.Outputs["AuditorPolicyArn"])}); err != nil {
		p.Fatal(err)
	}
}

// blind asserts what the auditor does without: `countersign check expiry` knows the tasks, and `rotate status` the versions, and both say of
// each secret that it is not to be read. `secret versions` needs no value.
func (p *proof) blind(ctx context.Context) {
	for _, test := range []struct {
		args, code, known string // known is what is seen without values
		not               string
	}{
		{"check expiry mesh.yaml --settle 0s --output json", `"secret_unreadable"`, `"no_instance"`, `"tasks_unknown"`},
		{"rotate status --output json", "secretsmanager:GetSecretValue on", `"version": "`, `"serial"`},
	} {
		got := p.Mesh.Run(ctx, p.Role("auditor"), nil, strings.Fields(test.args)...)
		if got.Status != 1 || strings.Count(got.Stdout, test.code) < len(workloads) || strings.Count(got.Stdout, test.known) < len(workloads) || strings.Contains(got.Stdout, test.not) {
			p.Errorf("%s: status %d\n%s%s", test.args, got.Status, got.Stdout, got.Stderr)
		}
	}
	if got := p.Mesh.Run(ctx, p.Role("auditor"), nil, "secret", "versions", p.Name+"/checkout", "--store", "secretsmanager:"+p.Cloud.Region); got.Status != 0 || !strings.Contains(got.Stdout, "current") {
		p.Errorf("secret versions: status %d\n%s%s", got.Status, got.Stdout, got.Stderr)
	}
}

// checked runs `countersign check aws` as the auditor, which has to end so and to say that.
func (p *proof) checked(ctx context.Context, status int, wants ...string) {
	p.Helper()
	got := p.Mesh.Run(ctx, p.Role("auditor"), nil, "check", "aws", "mesh.yaml")
	if got.Status != status {
		p.Errorf("check aws: status %d, want %d\n%s%s", got.Status, status, got.Stdout, got.Stderr)
	}
	for _, want := range wants {
		if !strings.Contains(got.Stdout, want) {
			p.Errorf("check aws: it does not say %q\n%s%s", want, got.Stdout, got.Stderr)
		}
	}
	if again := p.Mesh.Run(ctx, p.Role("auditor"), nil, "check", "aws", "mesh.yaml", "--output", "json"); again.Status != status || !json.Valid([]byte(again.Stdout)) {
		p.Errorf("check aws --output json: status %d\n%s%s", again.Status, again.Stdout, again.Stderr)
	}
	for _, flag := range []string{"--since=0s", "--since=2161h", "--timeout=31m", "--region=no region"} {
		if refused := p.Mesh.Run(ctx, p.Role("auditor"), nil, "check", "aws", "mesh.yaml", flag); refused.Status != 2 {
			p.Errorf("check aws %s: status %d, want 2\n%s", flag, refused.Status, refused.Stderr)
		}
	}
}

// refused tells whether a call was denied; whatever else failed was let through by the policies.
func refused(err error) bool {
	return slices.Contains([]string{"AccessDeniedException", "AccessDenied"}, session.Code(err))
}

// insiders asks everything as each role of the mesh.
func (p *proof) insiders(ctx context.Context) {
	roles := []string{p.Role("rotation"), p.Role("auditor")}
	for _, w := range workloads {
		roles = append(roles, p.Role(w+"-task"), p.Role(w+"-execution"))
	}
	cells, allowed := 0, 0
	for _, role := range roles {
		config := p.Cloud.Config(role)
		for _, a := range p.asks {
			want := p.may(role, a.action, a.resource)
			err := a.call(ctx, config)
			if got := !refused(err); got != want || want && err != nil && session.Code(err) != "ResourceNotFoundException" {
				p.Errorf("%s: %s on %s: allowed %t, want %t: %v", role, a.action, a.resource, got, want, err)
			}
			cells++
			if want {
				allowed++
			}
		}
		for _, d := range p.decided {
			decision, err := p.Cloud.Decide(role, d.action, d.arn, d.context)
			if want := p.may(role, d.action, d.resource); err != nil || decision.Allowed != want {
				p.Errorf("%s: %s on %s: allowed %t, want %t: %v %s", role, d.action, d.resource, decision.Allowed, want, err, decision.Why)
			}
			cells++
		}
	}
	p.Logf("%d calls and decisions, %d calls allowed", cells, allowed)
	// The rotation on 11 secrets, the CA, four services and the cluster; each workload its two secrets; the auditor on secrets, the key, the CA, services, one that
	// is not the mesh's, and the cluster.
	if want := 5*len(allSecrets) + 4 + 2*len(workloads) + 2 + 2*len(workloads) + 3*len(allSecrets) + 2 + 1 + len(workloads) + 1 + 3; allowed != want {
		p.Errorf("%d calls are allowed, want %d", allowed, want)
	}
}

// outsiders asks as roles that are none of the mesh's: one that may do everything as far as its own policy goes, one that another team
// gave all secrets and keys, and one without rights.
func (p *proof) outsiders(ctx context.Context) {
	p.Cloud.PutRole("administrator", []byte(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`))
	p.Cloud.PutRole("orders-task", []byte(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":["secretsmanager:*","kms:*"],"Resource":"*"}}`))
	p.Cloud.PutRole("stranger")
	for _, role := range []string{"administrator", "orders-task", "stranger"} {
		config := p.Cloud.Config(role)
		for _, a := range p.asks {
			value := slices.Contains([]string{
				"secretsmanager:GetSecretValue", "secretsmanager:BatchGetSecretValue", "secretsmanager:PutSecretValue", "secretsmanager:UpdateSecret", "secretsmanager:UpdateSecretVersionStage",
				"kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey", "kms:CreateGrant", "sts:AssumeRole",
			}, a.action)
			administers := role != "stranger" && !value
			if administers && !a.tame {
				continue // it would be done
			}
			want := administers && (role == "administrator" || strings.HasPrefix(a.action, "secretsmanager:") || strings.HasPrefix(a.action, "kms:"))
			if err := a.call(ctx, config); refused(err) == want {
				p.Errorf("%s: %s on %s: allowed %t, want %t: %v", role, a.action, a.resource, !want, want, err)
			}
		}
	}
}

// secondLock takes the resource policy from a secret: the key's own policy still keeps everybody out who is not meant.
func (p *proof) secondLock(ctx context.Context) {
	name := p.Name + "/checkout"
	if _, err := secretsmanager.NewFromConfig(p.Cloud.Admin()).DeleteResourcePolicy(ctx, &secretsmanager.DeleteResourcePolicyInput{SecretId: &name}); err != nil {
		p.Fatal(err)
	}
	if _, err := secretsmanager.NewFromConfig(p.Cloud.Admin()).GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: &name}); err != nil {
		p.Fatal(err) // a stranger's read, to be found below
	}
	for role, want := range map[string]bool{"administrator": false, "orders-task": false, p.Role("ledger-" + p.readers): false, p.Role("checkout-" + p.readers): true, p.Role("rotation"): true} {
		_, err := secretsmanager.NewFromConfig(p.Cloud.Config(role)).GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: &name})
		if refused(err) == want {
			p.Errorf("%s reads a secret without a resource policy: %t, want %t: %v", role, !want, want, err)
		}
	}
}
