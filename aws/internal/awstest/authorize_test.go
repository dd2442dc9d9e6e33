package awstest_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"countersign.dev/aws/internal/awstest"
)

// policy wraps statements.
func policy(statements ...string) string {
	return `{"Version":"2012-10-17","Statement":[` + strings.Join(statements, ",") + `]}`
}

func allow(resource string, actions ...string) string {
	return `{"Effect":"Allow","Action":["` + strings.Join(actions, `","`) + `"],"Resource":"` + resource + `"}`
}

// newSecret makes a secret as the account's root and returns its ARN.
func newSecret(t *testing.T, cloud *awstest.Cloud, name string, key *string) string {
	t.Helper()
	made, err := secretsmanager.NewFromConfig(cloud.Admin()).CreateSecret(t.Context(),
		&secretsmanager.CreateSecretInput{Name: &name, SecretString: aws.String("PLACEHOLDER"), KmsKeyId: key})
	if err != nil {
		t.Fatal(err)
	}
	return aws.ToString(made.ARN)
}

// read asks for a secret's value as the role.
func read(t *testing.T, cloud *awstest.Cloud, role, id string) error {
	t.Helper()
	_, err := secretsmanager.NewFromConfig(cloud.Config(role)).GetSecretValue(t.Context(),
		&secretsmanager.GetSecretValueInput{SecretId: &id, VersionStage: aws.String("AWSCURRENT")})
	return err
}

// TestSecretPolicies: who may read a secret by its own and the secret's policy, by name and by ARN.
func TestSecretPolicies(t *testing.T) {
	t.Parallel()
	cloud := awstest.Start(t)
	mine, other := newSecret(t, cloud, "policies/mine", nil), newSecret(t, cloud, "policies/other", nil)
	cloud.PutRole("policies-reader", []byte(policy(allow(mine, "secretsmanager:GetSecretValue"))))
	cloud.PutRole("policies-admin", []byte(allowAll))
	for _, id := range []string{mine, "policies/mine", mine[:len(mine)-7]} {
		if err := read(t, cloud, "policies-reader", id); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	err := read(t, cloud, "policies-reader", other)
	if code(err) != "AccessDeniedException" || !strings.Contains(err.Error(), "User: arn:aws:sts::123456789012:assumed-role/policies-reader/test is not authorized to perform: "+
		"secretsmanager:GetSecretValue on resource: "+other+" because no identity-based policy allows the secretsmanager:GetSecretValue action") {
		t.Errorf("another's: %v", err)
	}
	if err := read(t, cloud, "policies-reader", "policies/absent"); code(err) != "AccessDeniedException" {
		t.Errorf("one that is not there, not allowed: %v", err)
	}
	if err := read(t, cloud, "policies-admin", "policies/absent"); code(err) != "ResourceNotFoundException" {
		t.Errorf("one that is not there, allowed: %v", err)
	}
	admin := secretsmanager.NewFromConfig(cloud.Admin())
	deny := policy(`{"Effect":"Deny","Principal":"*","Action":"secretsmanager:GetSecretValue","Resource":"*","Condition":{"ArnNotEquals":{"aws:PrincipalArn":"arn:aws:iam::123456789012:role/policies-reader"}}}`)
	if err := read(t, cloud, "policies-admin", mine); err != nil {
		t.Fatalf("before the secret has a policy: %v", err)
	}
	if _, err := admin.PutResourcePolicy(t.Context(), &secretsmanager.PutResourcePolicyInput{SecretId: &mine, ResourcePolicy: &deny}); err != nil {
		t.Fatal(err)
	}
	if err := read(t, cloud, "policies-admin", mine); code(err) != "AccessDeniedException" || !strings.Contains(err.Error(), "with an explicit deny in a resource-based policy") {
		t.Errorf("by the secret's policy: %v", err)
	}
	if err := read(t, cloud, "policies-reader", mine); err != nil {
		t.Errorf("by the secret's policy, the reader: %v", err)
	}
	if !slices.ContainsFunc(cloud.Calls(), func(call awstest.Call) bool {
		return call.Role == "policies-reader" && call.Action == "secretsmanager:GetSecretValue" && call.Resource == mine && call.Allowed &&
			call.Caller == "arn:aws:sts::123456789012:assumed-role/policies-reader/test"
	}) {
		t.Errorf("the log of calls lacks the reader's: %+v", cloud.Calls())
	}
}

// TestMalformedPolicies refuses policies that could not be evaluated, where they are put.
func TestMalformedPolicies(t *testing.T) {
	t.Parallel()
	cloud := awstest.Start(t)
	unknown := policy(`{"Effect":"Allow","Principal":"*","Action":"*","Resource":"*","Condition":{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}}`)
	arn := newSecret(t, cloud, "malformed", nil)
	_, err := secretsmanager.NewFromConfig(cloud.Admin()).PutResourcePolicy(t.Context(), &secretsmanager.PutResourcePolicyInput{SecretId: &arn, ResourcePolicy: &unknown})
	if code(err) != "MalformedPolicyDocumentException" || !strings.Contains(err.Error(), "IpAddress") {
		t.Errorf("PutResourcePolicy: %v", err)
	}
	_, err = iam.NewFromConfig(cloud.Admin()).CreateRole(t.Context(), &iam.CreateRoleInput{RoleName: aws.String("malformed"), AssumeRolePolicyDocument: &unknown})
	if code(err) != "MalformedPolicyDocument" {
		t.Errorf("CreateRole: %v", err)
	}
}

// TestKeys: Secrets Manager asks KMS for the caller, by the key's own policy and state.
func TestKeys(t *testing.T) {
	t.Parallel()
	cloud := awstest.Start(t)
	keys := kms.NewFromConfig(cloud.Admin())
	made, err := keys.CreateKey(t.Context(), &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	key := aws.ToString(made.KeyMetadata.Arn)
	secret := newSecret(t, cloud, "keys", &key)
	get := allow(secret, "secretsmanager:GetSecretValue")
	via := `{"Effect":"Allow","Action":"kms:Decrypt","Resource":"` + key + `","Condition":{"StringEquals":{"kms:ViaService":"secretsmanager.eu-central-1.amazonaws.com"},` +
		`"StringLike":{"kms:EncryptionContext:SecretARN":"` + secret + `"}}}`
	cloud.PutRole("keys-reader", []byte(policy(get, via)))
	cloud.PutRole("keys-without", []byte(policy(get)))
	cloud.PutRole("keys-elsewhere", []byte(policy(get, strings.Replace(via, "eu-central-1", "us-east-1", 1))))
	if err := read(t, cloud, "keys-reader", secret); err == nil {
		// The other service of that name in the condition; the key itself is no better reached directly.
		_, err = kms.NewFromConfig(cloud.Config("keys-reader")).GenerateDataKey(t.Context(), &kms.GenerateDataKeyInput{KeyId: &key, KeySpec: "AES_256"})
		if code(err) != "AccessDeniedException" {
			t.Errorf("the key past Secrets Manager: %v", err)
		}
	} else {
		t.Errorf("with the key: %v", err)
	}
	for _, role := range []string{"keys-without", "keys-elsewhere"} {
		if err := read(t, cloud, role, secret); code(err) != "AccessDeniedException" || !strings.Contains(err.Error(), "Access to KMS is not allowed") {
			t.Errorf("%s: %v", role, err)
		}
	}
	alone := policy(`{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::123456789012:role/keys-without"},"Action":"kms:Decrypt","Resource":"*"}`)
	if _, err := keys.PutKeyPolicy(t.Context(), &kms.PutKeyPolicyInput{KeyId: &key, PolicyName: aws.String("default"), Policy: &alone}); err != nil {
		t.Fatal(err)
	}
	if err := read(t, cloud, "keys-without", secret); err != nil {
		t.Errorf("by the key's policy: %v", err)
	}
	if err := read(t, cloud, "keys-reader", secret); code(err) != "AccessDeniedException" {
		t.Errorf("a key that no longer hands over to the account: %v", err)
	}
	if _, err := keys.DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: made.KeyMetadata.KeyId}); err != nil {
		t.Fatal(err)
	}
	if err := read(t, cloud, "keys-without", secret); code(err) != "DecryptionFailure" || !strings.Contains(err.Error(), "Disabled") {
		t.Errorf("a disabled key: %v", err)
	}
}

// TestKeyOfNewSecret: who makes a secret with a key has to be able to use it, on a sample, and need not be able to decrypt any secret.
func TestKeyOfNewSecret(t *testing.T) {
	t.Parallel()
	cloud := awstest.Start(t)
	made, err := kms.NewFromConfig(cloud.Admin()).CreateKey(t.Context(), &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	key := aws.ToString(made.KeyMetadata.Arn)
	sample := `{"Effect":"Allow","Action":"kms:Decrypt","Resource":"` + key + `","Condition":{"StringEquals":{"kms:EncryptionContext:SecretVersionId":"RequestToValidateKeyAccess"}}}`
	cloud.PutRole("deployer", []byte(policy(allow("*", "secretsmanager:CreateSecret", "secretsmanager:GetSecretValue"), allow(key, "kms:GenerateDataKey"), sample)))
	cloud.PutRole("deployer-without", []byte(policy(allow("*", "secretsmanager:CreateSecret"), allow(key, "kms:GenerateDataKey"))))
	create := func(role string) error {
		_, err := secretsmanager.NewFromConfig(cloud.Config(role)).CreateSecret(t.Context(), &secretsmanager.CreateSecretInput{
			Name: aws.String("key-of-" + role), SecretString: aws.String("PLACEHOLDER"), KmsKeyId: &key,
		})
		return err
	}
	if err := create("deployer"); err != nil {
		t.Errorf("with the sample: %v", err)
	}
	if err := read(t, cloud, "deployer", "key-of-deployer"); code(err) != "AccessDeniedException" {
		t.Errorf("what it has made: %v", err)
	}
	if err := create("deployer-without"); code(err) != "AccessDeniedException" {
		t.Errorf("without the sample: %v", err)
	}
}

// TestRoles: who takes a role, by whose word, and what changes when IAM is told.
func TestRoles(t *testing.T) {
	t.Parallel()
	cloud := awstest.Start(t)
	roles := iam.NewFromConfig(cloud.Admin())
	trust := policy(`{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::123456789012:role/roles-from"},"Action":"sts:AssumeRole"}`)
	_, err := roles.CreateRole(t.Context(), &iam.CreateRoleInput{RoleName: aws.String("roles-to"), Path: aws.String("/app/"), AssumeRolePolicyDocument: &trust})
	if err != nil {
		t.Fatal(err)
	}
	const to = "arn:aws:iam::123456789012:role/app/roles-to"
	cloud.PutRole("roles-from")
	cloud.PutRole("roles-stranger", []byte(policy(allow("*", "sts:AssumeRole"))))
	assume := &sts.AssumeRoleInput{RoleArn: aws.String(to), RoleSessionName: aws.String("s")}
	if _, err := sts.NewFromConfig(cloud.Config("roles-stranger")).AssumeRole(t.Context(), assume); code(err) != "AccessDenied" {
		t.Errorf("whom the role does not trust: %v", err)
	}
	taken, err := sts.NewFromConfig(cloud.Config("roles-from")).AssumeRole(t.Context(), assume)
	if err != nil {
		t.Fatalf("whom the role trusts: %v", err)
	}
	config := cloud.Config("roles-from")
	config.Credentials = aws.CredentialsProviderFunc(func(ctx) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: *taken.Credentials.AccessKeyId, SecretAccessKey: *taken.Credentials.SecretAccessKey, SessionToken: *taken.Credentials.SessionToken}, nil
	})
	secrets := secretsmanager.NewFromConfig(config)
	list := func() error {
		_, err := secrets.ListSecrets(t.Context(), &secretsmanager.ListSecretsInput{})
		return err
	}
	if err := list(); code(err) != "AccessDeniedException" {
		t.Errorf("before it has a policy: %v", err)
	}
	document := policy(allow("*", "secretsmanager:ListSecrets"))
	inline := &iam.PutRolePolicyInput{RoleName: aws.String("roles-to"), PolicyName: aws.String("p"), PolicyDocument: &document}
	if _, err := roles.PutRolePolicy(t.Context(), inline); err != nil {
		t.Fatal(err)
	}
	if err := list(); err != nil {
		t.Errorf("with an inline policy: %v", err)
	}
	if _, err := roles.DeleteRolePolicy(t.Context(), &iam.DeleteRolePolicyInput{RoleName: inline.RoleName, PolicyName: inline.PolicyName}); err != nil {
		t.Fatal(err)
	}
	if err := list(); code(err) != "AccessDeniedException" {
		t.Errorf("after it was taken away: %v", err)
	}
	made, err := roles.CreatePolicy(t.Context(), &iam.CreatePolicyInput{PolicyName: aws.String("roles-list"), PolicyDocument: &document})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := roles.AttachRolePolicy(t.Context(), &iam.AttachRolePolicyInput{RoleName: inline.RoleName, PolicyArn: made.Policy.Arn}); err != nil {
		t.Fatal(err)
	}
	if err := list(); err != nil {
		t.Errorf("with a managed policy: %v", err)
	}
	version := &iam.CreatePolicyVersionInput{PolicyArn: made.Policy.Arn, PolicyDocument: aws.String(policy(allow("*", "sqs:ListQueues")))}
	if _, err := roles.CreatePolicyVersion(t.Context(), version); err != nil {
		t.Fatal(err)
	}
	if err := list(); err != nil {
		t.Errorf("with a version that is not the default: %v", err)
	}
	version.SetAsDefault = true
	if _, err := roles.CreatePolicyVersion(t.Context(), version); err != nil {
		t.Fatal(err)
	}
	if err := list(); code(err) != "AccessDeniedException" {
		t.Errorf("with another version of the managed policy: %v", err)
	}
}

// TestAssumeAs: a service takes a role that trusts it.
func TestAssumeAs(t *testing.T) {
	t.Parallel()
	cloud := awstest.Start(t)
	trust := policy(`{"Effect":"Allow","Principal":{"Service":"ecs-tasks.amazonaws.com"},"Action":"sts:AssumeRole","Condition":{"StringEquals":{"aws:SourceAccount":"123456789012"},"ArnLike":{"aws:SourceArn":"arn:aws:ecs:eu-central-1:123456789012:*"}}}`)
	_, err := iam.NewFromConfig(cloud.Admin()).CreateRole(t.Context(), &iam.CreateRoleInput{RoleName: aws.String("assume-as"), AssumeRolePolicyDocument: &trust})
	if err != nil {
		t.Fatal(err)
	}
	const task = "arn:aws:ecs:eu-central-1:123456789012:task/c/1"
	credentials, err := cloud.AssumeAs("ecs-tasks.amazonaws.com", "arn:aws:iam::123456789012:role/assume-as", "task-1", task)
	if err != nil || credentials.SessionToken == "" {
		t.Errorf("the service: %v", err)
	}
	for _, test := range []struct{ service, role, source string }{
		{"lambda.amazonaws.com", "assume-as", task},
		{"ecs-tasks.amazonaws.com", "assume-as", "arn:aws:ecs:us-east-1:123456789012:task/c/1"},
		{"ecs-tasks.amazonaws.com", "absent", task},
	} {
		if _, err := cloud.AssumeAs(test.service, test.role, "x", test.source); err == nil {
			t.Errorf("%+v: no error", test)
		}
	}
}

// TestDecide: what a role could do, by its policies and the resource's, without doing it.
func TestDecide(t *testing.T) {
	t.Parallel()
	cloud := awstest.Start(t)
	mine, other := newSecret(t, cloud, "decide/mine", nil), newSecret(t, cloud, "decide/other", nil)
	cloud.PutRole("decide", []byte(policy(allow("*", "secretsmanager:GetSecretValue", "kms:*"))))
	deny := policy(`{"Effect":"Deny","Principal":"*","Action":"secretsmanager:GetSecretValue","Resource":"*","Condition":{"ArnNotEquals":{"aws:PrincipalArn":"arn:aws:iam::123456789012:role/somebody"}}}`)
	if _, err := secretsmanager.NewFromConfig(cloud.Admin()).PutResourcePolicy(t.Context(), &secretsmanager.PutResourcePolicyInput{SecretId: &other, ResourcePolicy: &deny}); err != nil {
		t.Fatal(err)
	}
	made, err := kms.NewFromConfig(cloud.Admin()).CreateKey(t.Context(), &kms.CreateKeyInput{
		Policy: aws.String(policy(`{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::123456789012:role/somebody"},"Action":"kms:*","Resource":"*"}`)),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		action, resource string
		want             bool
	}{
		{"secretsmanager:GetSecretValue", mine, true},
		{"secretsmanager:PutSecretValue", mine, false},
		{"secretsmanager:GetSecretValue", other, false},
		{"kms:Decrypt", *made.KeyMetadata.Arn, false},
		{"ecs:UpdateService", "*", false},
	} {
		got, err := cloud.Decide("decide", test.action, test.resource, nil)
		if err != nil || got.Allowed != test.want {
			t.Errorf("%s on %s: %+v, %v", test.action, test.resource, got, err)
		}
	}
	if _, err := cloud.Decide("absent", "ecs:UpdateService", "*", nil); err == nil {
		t.Error("a role that is not there: no error")
	}
}

// recorder is a service that notes which operations reach it.
type recorder struct{ targets []string }

func (r *recorder) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	target := request.Header.Get("X-Amz-Target")
	r.targets = append(r.targets, target)
	if strings.HasSuffix(target, ".DescribeTaskDefinition") {
		_, _ = io.WriteString(w, `{"taskDefinition":{"taskRoleArn":"arn:aws:iam::123456789012:role/ecs-task","executionRoleArn":"arn:aws:iam::123456789012:role/ecs-execution"}}`)
		return
	}
	_, _ = io.WriteString(w, `{}`)
}

// TestECS: clusters, services and tasks by ARN, and the roles that a task gets.
func TestECS(t *testing.T) {
	t.Parallel()
	cloud := awstest.Start(t)
	service := &recorder{}
	client := func(role string) *ecs.Client { return ecs.NewFromConfig(cloud.Config(role)) }
	cloud.PutRole("ecs-deployer", []byte(policy(
		allow("arn:aws:ecs:eu-central-1:123456789012:service/payments/checkout", "ecs:UpdateService", "ecs:DescribeServices"),
		`{"Effect":"Allow","Action":["ecs:ListTasks","ecs:DescribeTasks","ecs:RunTask","ecs:RegisterTaskDefinition"],"Resource":"*","Condition":{"ArnEquals":{"ecs:cluster":"arn:aws:ecs:eu-central-1:123456789012:cluster/payments"}}}`,
		`{"Effect":"Allow","Action":"iam:PassRole","Resource":"arn:aws:iam::123456789012:role/ecs-task","Condition":{"StringEquals":{"iam:PassedToService":"ecs-tasks.amazonaws.com"}}}`)))
	deployer := client("ecs-deployer")
	if _, err := deployer.ListTasks(t.Context(), &ecs.ListTasksInput{Cluster: aws.String("payments")}); code(err) != "NothingMounted" {
		t.Errorf("before anything is mounted: %v", err)
	}
	cloud.Mount("ecs", service)
	update := func(cluster, service string) error {
		_, err := deployer.UpdateService(t.Context(), &ecs.UpdateServiceInput{Cluster: &cluster, Service: &service, ForceNewDeployment: true})
		return err
	}
	run := func(role string) error {
		_, err := client(role).RunTask(t.Context(), &ecs.RunTaskInput{Cluster: aws.String("payments"), TaskDefinition: aws.String("checkout:1")})
		return err
	}
	list := func(cluster string) error {
		_, err := deployer.ListTasks(t.Context(), &ecs.ListTasksInput{Cluster: &cluster})
		return err
	}
	none := func() error {
		_, err := deployer.DescribeServices(t.Context(), &ecs.DescribeServicesInput{Cluster: aws.String("payments"), Services: []string{}})
		return err
	}
	for _, test := range []struct {
		name    string
		err     error
		allowed bool
	}{
		{"its service", update("payments", "checkout"), true},
		{"its service by ARN", update("arn:aws:ecs:eu-central-1:123456789012:cluster/payments", "arn:aws:ecs:eu-central-1:123456789012:service/payments/checkout"), true},
		{"another service", update("payments", "ledger"), false},
		{"another cluster", update("other", "checkout"), false},
		{"the cluster's tasks", list("payments"), true},
		{"another cluster's tasks", list("other"), false},
		{"services by no name", none(), false},
		{"a task whose execution role may not be passed", run("ecs-deployer"), false},
	} {
		if (test.err == nil) != test.allowed || test.err != nil && code(test.err) != "AccessDeniedException" {
			t.Errorf("%s: %v", test.name, test.err)
		}
	}
	if err := run("ecs-deployer"); !strings.Contains(fmt.Sprint(err), "iam:PassRole on resource: arn:aws:iam::123456789012:role/ecs-execution") {
		t.Errorf("PassRole: %v", err)
	}
	if slices.Contains(service.targets, "AmazonEC2ContainerServiceV20141113.RunTask") {
		t.Error("a request that was refused reached the service")
	}
}

// TestFaults: answers in place of the service's, and answers that get lost.
func TestFaults(t *testing.T) {
	t.Parallel()
	cloud := awstest.Start(t)
	client := secretsmanager.NewFromConfig(cloud.Admin())
	cloud.Fault(func(_ *http.Request, action string) *http.Response {
		if action != "secretsmanager:CreateSecret" {
			return nil
		}
		return &http.Response{
			StatusCode: http.StatusBadRequest, Header: http.Header{"X-Amzn-Errortype": {"ThrottlingException"}},
			Body: io.NopCloser(strings.NewReader(`{"__type":"ThrottlingException","Message":"Rate exceeded"}`)),
		}
	})
	create := &secretsmanager.CreateSecretInput{Name: aws.String("faults"), SecretString: aws.String("x"), ClientRequestToken: aws.String("00000000-0000-0000-0000-000000000001")}
	if _, err := client.CreateSecret(t.Context(), create); code(err) != "ThrottlingException" {
		t.Errorf("throttled: %v", err)
	}
	cloud.Fault(nil)
	cloud.Lose(func(action string) bool { return action == "secretsmanager:CreateSecret" })
	if _, err := client.CreateSecret(t.Context(), create); err == nil || errors.As(err, new(interface{ ErrorCode() string })) {
		t.Errorf("an answer that was lost: %v", err)
	}
	cloud.Lose(nil)
	if _, err := client.DescribeSecret(t.Context(), &secretsmanager.DescribeSecretInput{SecretId: create.Name}); err != nil {
		t.Errorf("what was done although the answer was lost: %v", err)
	}
}
