package whole_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/acm"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	pcatypes "github.com/aws/aws-sdk-go-v2/service/acmpca/types"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	kmstypes "github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"countersign.dev/aws/internal/awstest/pcafake"
)

// add adds a question.
func (p *proof) add(action, resource string, call func(ctx context.Context, config aws.Config) error) {
	verb := action[strings.Index(action, ":")+1:]
	tame := strings.HasPrefix(verb, "Describe") || strings.HasPrefix(verb, "List") || strings.HasPrefix(verb, "Get")
	p.asks = append(p.asks, ask{action, resource, call, tame})
}

// prepare writes all questions.
func (p *proof) prepare(ctx context.Context) {
	for _, name := range allSecrets {
		p.askSecret(ctx, name)
	}
	p.askKey(ctx)
	p.askAuthorities()
	p.askTasks()
	p.askAround()
	for _, w := range append([]string{"rotation"}, workloads...) {
		group := "/countersign/" + p.Name + "/" + w
		if w == "rotation" {
			group = "/aws/lambda/" + p.Name + "-rotation"
		}
		for _, action := range []string{"CreateLogStream", "PutLogEvents", "GetLogEvents", "DeleteLogStream"} {
			p.decide("logs:"+action, w, "arn:aws:logs:eu-central-1:123456789012:log-group:"+group+":log-stream:x")
		}
	}
	for _, repository := range []string{"app", "other"} {
		for _, action := range []string{"BatchCheckLayerAvailability", "BatchGetImage", "GetDownloadUrlForLayer", "PutImage"} {
			p.decide("ecr:"+action, repository, "arn:aws:ecr:eu-central-1:123456789012:repository/"+repository)
		}
	}
	for _, action := range []string{"ecr:GetAuthorizationToken", "s3:PutObject", "ssm:StartSession", "cloudtrail:StopLogging"} {
		p.decide(action, "*", "*")
	}
	for _, action := range []string{"UpdateFunctionCode", "UpdateFunctionConfiguration", "InvokeFunction", "AddPermission", "DeleteFunction"} {
		p.decide("lambda:"+action, "function", "arn:aws:lambda:eu-central-1:123456789012:function:"+p.Role("rotation"))
	}
	for action := range audits {
		if slices.Contains(audits[action], "*") {
			p.decide(action, "*", "*")
		}
	}
	for _, action := range []string{"DescribeAlarms", "DeleteAlarms", "DisableAlarmActions"} {
		p.decide("cloudwatch:"+action, "alarms", "arn:aws:cloudwatch:eu-central-1:123456789012:alarm:*")
	}
	for _, action := range []string{"DescribeRule", "DisableRule", "PutTargets"} {
		p.decide("events:"+action, "rule", "arn:aws:events:eu-central-1:123456789012:rule/any")
	}
	p.decide("ecs:UpdateService", "of another cluster", "arn:aws:ecs:eu-central-1:123456789012:service/elsewhere/checkout")
}

// decide adds a question that is decided without a call.
func (p *proof) decide(action, resource, arn string) {
	p.decided = append(p.decided, decided{action: action, resource: resource, arn: arn})
}

// askThrough asks what Secrets Manager asks of KMS in the caller's name, for each secret: it says which one it is for; and the same for the
// secret of another mesh, and through another service. It asks for what would copy a secret, take it away or have others rotate it, too.
func (p *proof) askThrough(ctx context.Context) {
	key, _ := p.Stack.Resource("VaultKey")
	through := func(action, resource, arn, service string) {
		p.decided = append(p.decided, decided{"kms:" + action, resource, key.Attributes["Arn"], map[string][]string{
			"kms:ViaService": {service + ".eu-central-1.amazonaws.com"}, "kms:EncryptionContext:SecretARN": {arn}, "kms:EncryptionContext:SecretVersionId": {"00000000-0000-0000-0000-000000000001"},
			"kms:EncryptionContextKeys": {"SecretARN", "SecretVersionId"},
		}})
	}
	for _, name := range allSecrets {
		described, err := secretsmanager.NewFromConfig(p.Cloud.Admin()).DescribeSecret(ctx, &secretsmanager.DescribeSecretInput{SecretId: aws.String(p.Name + "/" + name)})
		if err != nil {
			p.Fatal(err)
		}
		for _, action := range []string{"Decrypt", "GenerateDataKey"} {
			through(action, name, *described.ARN, "secretsmanager")
			through(action, name+" through another service", *described.ARN, "ssm")
		}
		for _, action := range []string{"ReplicateSecretToRegions", "RotateSecret", "CancelRotateSecret", "RestoreSecret", "TagResource", "UntagResource", "ValidateResourcePolicy"} {
			p.decide("secretsmanager:"+action, name, *described.ARN)
		}
	}
	for _, action := range []string{"Decrypt", "GenerateDataKey"} { // by nobody: each role has it for its own secrets alone
		through(action, "a stranger's secret", "arn:aws:secretsmanager:eu-central-1:123456789012:secret:orders/api-AbCdEf", "secretsmanager")
		through(action, "a secret that is named like the mesh", "arn:aws:secretsmanager:eu-central-1:123456789012:secret:"+p.Name+"/stranger-AbCdEf", "secretsmanager")
	}
	roles := []string{p.Role("rotation")}
	for _, w := range workloads {
		roles = append(roles, p.Role(w+"-task"), p.Role(w+"-execution"))
	}
	for _, role := range roles {
		for _, action := range []string{"PassRole", "PutRolePolicy", "AttachRolePolicy", "DeleteRolePolicy", "UpdateAssumeRolePolicy", "CreateServiceLinkedRole"} {
			p.decide("iam:"+action, role, "arn:aws:iam::123456789012:role/"+role)
		}
		p.decide("sts:AssumeRole", role, "arn:aws:iam::123456789012:role/"+role)
	}
}

// askSecret asks about a secret.
func (p *proof) askSecret(ctx context.Context, resource string) {
	name := p.Name + "/" + resource
	described, err := secretsmanager.NewFromConfig(p.Cloud.Admin()).DescribeSecret(ctx, &secretsmanager.DescribeSecretInput{SecretId: &name})
	if err != nil {
		p.Fatal(err)
	}
	id, current := described.ARN, ""
	for version := range described.VersionIdsToStages {
		current = version
	}
	add := func(action string, call func(ctx context.Context, c *secretsmanager.Client) error) {
		p.add("secretsmanager:"+action, resource, func(ctx context.Context, config aws.Config) error {
			return call(ctx, secretsmanager.NewFromConfig(config))
		})
	}
	add("GetSecretValue", func(ctx context.Context, c *secretsmanager.Client) error {
		_, err := c.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: id})
		return err
	})
	add("BatchGetSecretValue", func(ctx context.Context, c *secretsmanager.Client) error {
		_, err := c.BatchGetSecretValue(ctx, &secretsmanager.BatchGetSecretValueInput{SecretIdList: []string{*id}})
		return err
	})
	add("DescribeSecret", func(ctx context.Context, c *secretsmanager.Client) error {
		_, err := c.DescribeSecret(ctx, &secretsmanager.DescribeSecretInput{SecretId: id})
		return err
	})
	add("ListSecretVersionIds", func(ctx context.Context, c *secretsmanager.Client) error {
		_, err := c.ListSecretVersionIds(ctx, &secretsmanager.ListSecretVersionIdsInput{SecretId: id})
		return err
	})
	add("PutSecretValue", func(ctx context.Context, c *secretsmanager.Client) error {
		_, err := c.PutSecretValue(ctx, &secretsmanager.PutSecretValueInput{SecretId: id, SecretString: aws.String("probe"), VersionStages: []string{"PROBE"}})
		return err
	})
	add("UpdateSecretVersionStage", func(ctx context.Context, c *secretsmanager.Client) error {
		_, err := c.UpdateSecretVersionStage(ctx, &secretsmanager.UpdateSecretVersionStageInput{SecretId: id, VersionStage: aws.String("OTHER"), MoveToVersionId: &current})
		return err
	})
	add("UpdateSecret", func(ctx context.Context, c *secretsmanager.Client) error {
		_, err := c.UpdateSecret(ctx, &secretsmanager.UpdateSecretInput{SecretId: id, SecretString: aws.String("mine")})
		return err
	})
	add("GetResourcePolicy", func(ctx context.Context, c *secretsmanager.Client) error {
		_, err := c.GetResourcePolicy(ctx, &secretsmanager.GetResourcePolicyInput{SecretId: id})
		return err
	})
	add("PutResourcePolicy", func(ctx context.Context, c *secretsmanager.Client) error {
		_, err := c.PutResourcePolicy(ctx, &secretsmanager.PutResourcePolicyInput{SecretId: id, ResourcePolicy: aws.String(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":"*","Action":"*","Resource":"*"}}`)})
		return err
	})
	add("DeleteResourcePolicy", func(ctx context.Context, c *secretsmanager.Client) error {
		_, err := c.DeleteResourcePolicy(ctx, &secretsmanager.DeleteResourcePolicyInput{SecretId: id})
		return err
	})
	add("DeleteSecret", func(ctx context.Context, c *secretsmanager.Client) error {
		_, err := c.DeleteSecret(ctx, &secretsmanager.DeleteSecretInput{SecretId: id})
		return err
	})
}

// askKey asks about the key of the secrets, directly and not through Secrets Manager: nobody may.
func (p *proof) askKey(ctx context.Context) {
	found, ok := p.Stack.Resource("VaultKey")
	if !ok {
		p.Fatal("the stack has no VaultKey")
	}
	id := aws.String(found.Attributes["Arn"])
	encrypted, err := kms.NewFromConfig(p.Cloud.Admin()).Encrypt(ctx, &kms.EncryptInput{KeyId: id, Plaintext: []byte("a")})
	if err != nil {
		p.Fatal(err)
	}
	add := func(action string, call func(ctx context.Context, c *kms.Client) error) {
		p.add("kms:"+action, "key", func(ctx context.Context, config aws.Config) error { return call(ctx, kms.NewFromConfig(config)) })
	}
	add("Decrypt", func(ctx context.Context, c *kms.Client) error {
		_, err := c.Decrypt(ctx, &kms.DecryptInput{KeyId: id, CiphertextBlob: encrypted.CiphertextBlob})
		return err
	})
	add("Encrypt", func(ctx context.Context, c *kms.Client) error {
		_, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: id, Plaintext: []byte("a")})
		return err
	})
	add("GenerateDataKey", func(ctx context.Context, c *kms.Client) error {
		_, err := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: id, KeySpec: "AES_256"})
		return err
	})
	add("CreateGrant", func(ctx context.Context, c *kms.Client) error {
		_, err := c.CreateGrant(ctx, &kms.CreateGrantInput{KeyId: id, GranteePrincipal: aws.String("arn:aws:iam::123456789012:role/stranger"), Operations: []kmstypes.GrantOperation{kmstypes.GrantOperationDecrypt}})
		return err
	})
	add("DescribeKey", func(ctx context.Context, c *kms.Client) error {
		_, err := c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: id})
		return err
	})
	add("GetKeyPolicy", func(ctx context.Context, c *kms.Client) error {
		_, err := c.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: id, PolicyName: aws.String("default")})
		return err
	})
	add("PutKeyPolicy", func(ctx context.Context, c *kms.Client) error {
		_, err := c.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: id, PolicyName: aws.String("default"), Policy: aws.String(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":"*","Action":"*","Resource":"*"}}`)})
		return err
	})
	add("DisableKey", func(ctx context.Context, c *kms.Client) error {
		_, err := c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: id})
		return err
	})
	add("ScheduleKeyDeletion", func(ctx context.Context, c *kms.Client) error {
		_, err := c.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: id})
		return err
	})
}

// askAuthorities asks about the private CA, and about another one.
func (p *proof) askAuthorities() {
	other, err := p.PCA.Add(pcafake.CA{})
	if err != nil {
		p.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "probe"}}, key)
	if err != nil {
		p.Fatal(err)
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	for resource, arn := range map[string]string{"ca": p.Stack.Outputs["PcaAuthorityArn"], "another ca": other} {
		add := func(action, resource string, call func(ctx context.Context, c *acmpca.Client) error) {
			p.add("acm-pca:"+action, resource, func(ctx context.Context, config aws.Config) error { return call(ctx, acmpca.NewFromConfig(config)) })
		}
		for _, template := range []string{"EndEntityCertificate/V1", "EndEntityCertificate_APIPassthrough/V1", "SubordinateCACertificate_PathLen0/V1", "RootCACertificate/V1"} {
			add("IssueCertificate", resource+", "+template, func(ctx context.Context, c *acmpca.Client) error {
				_, err := c.IssueCertificate(ctx, &acmpca.IssueCertificateInput{
					CertificateAuthorityArn: &arn, Csr: csr, SigningAlgorithm: pcatypes.SigningAlgorithmSha384withecdsa, TemplateArn: aws.String("arn:aws:acm-pca:::template/" + template),
					Validity: &pcatypes.Validity{Type: pcatypes.ValidityPeriodTypeDays, Value: aws.Int64(1)},
				})
				return err
			})
		}
		add("DescribeCertificateAuthority", resource, func(ctx context.Context, c *acmpca.Client) error {
			_, err := c.DescribeCertificateAuthority(ctx, &acmpca.DescribeCertificateAuthorityInput{CertificateAuthorityArn: &arn})
			return err
		})
		add("GetCertificateAuthorityCertificate", resource, func(ctx context.Context, c *acmpca.Client) error {
			_, err := c.GetCertificateAuthorityCertificate(ctx, &acmpca.GetCertificateAuthorityCertificateInput{CertificateAuthorityArn: &arn})
			return err
		})
		add("GetCertificate", resource, func(ctx context.Context, c *acmpca.Client) error {
			_, err := c.GetCertificate(ctx, &acmpca.GetCertificateInput{CertificateAuthorityArn: &arn, CertificateArn: aws.String(arn + "/certificate/00000000000000000000000000000000")})
			return err
		})
		add("RevokeCertificate", resource, func(ctx context.Context, c *acmpca.Client) error {
			_, err := c.RevokeCertificate(ctx, &acmpca.RevokeCertificateInput{CertificateAuthorityArn: &arn, CertificateSerial: aws.String("00:01"), RevocationReason: pcatypes.RevocationReasonUnspecified})
			return err
		})
		add("UpdateCertificateAuthority", resource, func(ctx context.Context, c *acmpca.Client) error {
			_, err := c.UpdateCertificateAuthority(ctx, &acmpca.UpdateCertificateAuthorityInput{CertificateAuthorityArn: &arn, Status: pcatypes.CertificateAuthorityStatusDisabled})
			return err
		})
		add("DeleteCertificateAuthority", resource, func(ctx context.Context, c *acmpca.Client) error {
			_, err := c.DeleteCertificateAuthority(ctx, &acmpca.DeleteCertificateAuthorityInput{CertificateAuthorityArn: &arn})
			return err
		})
		add("PutPolicy", resource, func(ctx context.Context, c *acmpca.Client) error {
			_, err := c.PutPolicy(ctx, &acmpca.PutPolicyInput{ResourceArn: &arn, Policy: aws.String("{}")})
			return err
		})
	}
}

// askTasks asks about services, tasks and their definitions, and about those of another cluster.
func (p *proof) askTasks() {
	add := func(action, resource string, call func(ctx context.Context, c *ecs.Client) error) {
		p.add("ecs:"+action, resource, func(ctx context.Context, config aws.Config) error { return call(ctx, ecs.NewFromConfig(config)) })
	}
	for _, service := range append([]string{"elsewhere"}, workloads...) {
		add("UpdateService", service, func(ctx context.Context, c *ecs.Client) error {
			_, err := c.UpdateService(ctx, &ecs.UpdateServiceInput{Cluster: &p.Name, Service: &service, ForceNewDeployment: true})
			return err
		})
		add("DescribeServices", service, func(ctx context.Context, c *ecs.Client) error {
			_, err := c.DescribeServices(ctx, &ecs.DescribeServicesInput{Cluster: &p.Name, Services: []string{service}})
			return err
		})
		add("DeleteService", service, func(ctx context.Context, c *ecs.Client) error {
			_, err := c.DeleteService(ctx, &ecs.DeleteServiceInput{Cluster: &p.Name, Service: &service})
			return err
		})
		family := aws.String(p.Name + "-" + service)
		add("RunTask", service, func(ctx context.Context, c *ecs.Client) error {
			_, err := c.RunTask(ctx, &ecs.RunTaskInput{Cluster: &p.Name, TaskDefinition: family, LaunchType: types.LaunchTypeFargate})
			return err
		})
		add("RegisterTaskDefinition", service, func(ctx context.Context, c *ecs.Client) error {
			_, err := c.RegisterTaskDefinition(ctx, &ecs.RegisterTaskDefinitionInput{Family: family, TaskRoleArn: aws.String("arn:aws:iam::123456789012:role/" + p.Role("rotation")), ContainerDefinitions: []types.ContainerDefinition{{Name: aws.String("a"), Image: aws.String("a")}}})
			return err
		})
	}
	for resource, cluster := range map[string]string{"cluster": p.Name, "another cluster": "elsewhere"} {
		task := "arn:aws:ecs:eu-central-1:123456789012:task/" + cluster + "/00000000000000000000000000000000"
		add("ListTasks", resource, func(ctx context.Context, c *ecs.Client) error {
			_, err := c.ListTasks(ctx, &ecs.ListTasksInput{Cluster: &cluster})
			return err
		})
		add("ListServices", resource, func(ctx context.Context, c *ecs.Client) error {
			_, err := c.ListServices(ctx, &ecs.ListServicesInput{Cluster: &cluster})
			return err
		})
		add("DescribeTasks", resource, func(ctx context.Context, c *ecs.Client) error {
			_, err := c.DescribeTasks(ctx, &ecs.DescribeTasksInput{Cluster: &cluster, Tasks: []string{task}})
			return err
		})
		add("StopTask", resource, func(ctx context.Context, c *ecs.Client) error {
			_, err := c.StopTask(ctx, &ecs.StopTaskInput{Cluster: &cluster, Task: &task})
			return err
		})
		add("ExecuteCommand", resource, func(ctx context.Context, c *ecs.Client) error {
			_, err := c.ExecuteCommand(ctx, &ecs.ExecuteCommandInput{Cluster: &cluster, Task: &task, Command: aws.String("sh"), Interactive: true})
			return err
		})
	}
}

// askAround asks for what would widen a role's rights, and stop or blind the rotation: nobody of the mesh may.
func (p *proof) askAround() {
	for _, part := range []string{"rotation", "checkout-task", "ledger-execution"} {
		role := p.Role(part)
		p.add("iam:PutRolePolicy", part, func(ctx context.Context, config aws.Config) error {
			_, err := iam.NewFromConfig(config).PutRolePolicy(ctx, &iam.PutRolePolicyInput{RoleName: &role, PolicyName: aws.String("more"), PolicyDocument: aws.String(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`)})
			return err
		})
		p.add("iam:UpdateAssumeRolePolicy", part, func(ctx context.Context, config aws.Config) error {
			_, err := iam.NewFromConfig(config).UpdateAssumeRolePolicy(ctx, &iam.UpdateAssumeRolePolicyInput{RoleName: &role, PolicyDocument: aws.String(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"sts:AssumeRole","Principal":{"AWS":"*"}}}`)})
			return err
		})
		p.add("sts:AssumeRole", part, func(ctx context.Context, config aws.Config) error {
			_, err := sts.NewFromConfig(config).AssumeRole(ctx, &sts.AssumeRoleInput{RoleArn: aws.String("arn:aws:iam::123456789012:role/" + role), RoleSessionName: aws.String("mine")})
			return err
		})
	}
	rule, _ := p.Stack.Resource("RotationSchedule")
	alarm, _ := p.Stack.Resource("CheckoutOverdueAlarm")
	if rule.Physical == "" || alarm.Physical == "" {
		p.Fatal("the stack has no schedule, or no alarm")
	}
	for action, call := range map[string]func(ctx context.Context, config aws.Config) error{
		"secretsmanager:ListSecrets": func(ctx context.Context, config aws.Config) error {
			_, err := secretsmanager.NewFromConfig(config).ListSecrets(ctx, &secretsmanager.ListSecretsInput{})
			return err
		},
		"secretsmanager:CreateSecret": func(ctx context.Context, config aws.Config) error {
			_, err := secretsmanager.NewFromConfig(config).CreateSecret(ctx, &secretsmanager.CreateSecretInput{Name: aws.String(p.Name + "/mine"), SecretString: aws.String("a")})
			return err
		},
		"events:DisableRule": func(ctx context.Context, config aws.Config) error {
			_, err := eventbridge.NewFromConfig(config).DisableRule(ctx, &eventbridge.DisableRuleInput{Name: &rule.Physical})
			return err
		},
		"events:RemoveTargets": func(ctx context.Context, config aws.Config) error {
			_, err := eventbridge.NewFromConfig(config).RemoveTargets(ctx, &eventbridge.RemoveTargetsInput{Rule: &rule.Physical, Ids: []string{"rotation"}})
			return err
		},
		"cloudwatch:DeleteAlarms": func(ctx context.Context, config aws.Config) error {
			_, err := cloudwatch.NewFromConfig(config).DeleteAlarms(ctx, &cloudwatch.DeleteAlarmsInput{AlarmNames: []string{alarm.Physical}})
			return err
		},
		"acm:ListCertificates": func(ctx context.Context, config aws.Config) error {
			_, err := acm.NewFromConfig(config).ListCertificates(ctx, &acm.ListCertificatesInput{})
			return err
		},
		"acm:ExportCertificate": func(ctx context.Context, config aws.Config) error {
			_, err := acm.NewFromConfig(config).ExportCertificate(ctx, &acm.ExportCertificateInput{CertificateArn: aws.String(fmt.Sprintf("arn:aws:acm:eu-central-1:%s:certificate/1", p.Cloud.Account)), Passphrase: []byte("open sesame")})
			return err
		},
	} {
		p.add(action, "*", call)
	}
}
