package awstest_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/acm"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	catypes "github.com/aws/aws-sdk-go-v2/service/acmpca/types"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	cwtypes "github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	ecstypes "github.com/aws/aws-sdk-go-v2/service/ecs/types"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	evtypes "github.com/aws/aws-sdk-go-v2/service/eventbridge/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"countersign.dev/aws/internal/awstest"
)

// TestNeeds: what each request is decided on. The services behind the front do nothing.
func TestNeeds(t *testing.T) {
	t.Parallel()
	cloud := awstest.Start(t)
	for _, service := range []string{"ecs", "acm", "acm-pca", "events", "monitoring", "elasticloadbalancing"} {
		cloud.Mount(service, &recorder{})
	}
	const (
		ca   = "arn:aws:acm-pca:eu-central-1:111122223333:certificate-authority/1"
		cert = "arn:aws:acm:eu-central-1:123456789012:certificate/1"
		task = "arn:aws:ecs:eu-central-1:123456789012:task/c/1"
		role = "arn:aws:iam::123456789012:role/"
		lb   = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:"
	)
	key := newSecret(t, cloud, "needs", nil)
	config := cloud.Admin()
	services, pca, events := ecs.NewFromConfig(config), acmpca.NewFromConfig(config), eventbridge.NewFromConfig(config)
	balancers, alarms, secrets := elb.NewFromConfig(config), cloudwatch.NewFromConfig(config), secretsmanager.NewFromConfig(config)
	for name, test := range map[string]struct {
		ask  func()
		want []string // action and ARN
	}{
		"a task definition and its roles": {func() {
			_, _ = services.RegisterTaskDefinition(t.Context(), &ecs.RegisterTaskDefinitionInput{
				Family: aws.String("f"), TaskRoleArn: aws.String(role + "t"), ExecutionRoleArn: aws.String("e"),
				ContainerDefinitions: []ecstypes.ContainerDefinition{},
			})
		}, []string{"ecs:RegisterTaskDefinition arn:aws:ecs:eu-central-1:123456789012:task-definition/f:*", "iam:PassRole " + role + "t", "iam:PassRole " + role + "e"}},
		"tasks": {func() {
			_, _ = services.DescribeTasks(t.Context(), &ecs.DescribeTasksInput{Cluster: aws.String("c"), Tasks: []string{"1", task}})
		}, []string{"ecs:DescribeTasks " + task, "ecs:DescribeTasks " + task}},
		"a cluster that is not named": {func() {
			_, _ = services.StopTask(t.Context(), &ecs.StopTaskInput{Task: aws.String("1")})
		}, []string{"ecs:StopTask arn:aws:ecs:eu-central-1:123456789012:task/default/1"}},
		"clusters": {func() {
			_, _ = services.DescribeClusters(t.Context(), &ecs.DescribeClustersInput{Clusters: []string{"a", "b"}})
		}, []string{"ecs:DescribeClusters arn:aws:ecs:eu-central-1:123456789012:cluster/a", "ecs:DescribeClusters arn:aws:ecs:eu-central-1:123456789012:cluster/b"}},
		"a service": {func() {
			_, _ = services.CreateService(t.Context(), &ecs.CreateServiceInput{Cluster: aws.String("c"), ServiceName: aws.String("s")})
		}, []string{"ecs:CreateService arn:aws:ecs:eu-central-1:123456789012:service/c/s"}},
		"a CA of another account": {func() {
			_, _ = pca.IssueCertificate(t.Context(), &acmpca.IssueCertificateInput{
				CertificateAuthorityArn: aws.String(ca), Csr: []byte("x"), SigningAlgorithm: catypes.SigningAlgorithmSha256withecdsa, Validity: days(1),
			})
		}, []string{"acm-pca:IssueCertificate " + ca}},
		"CAs": {func() { _, _ = pca.ListCertificateAuthorities(t.Context(), &acmpca.ListCertificateAuthoritiesInput{}) }, []string{"acm-pca:ListCertificateAuthorities *"}},
		"a certificate of ACM": {func() {
			_, _ = acm.NewFromConfig(config).RenewCertificate(t.Context(), &acm.RenewCertificateInput{CertificateArn: aws.String(cert)})
		}, []string{"acm:RenewCertificate " + cert}},
		"a new certificate of ACM": {func() {
			_, _ = acm.NewFromConfig(config).RequestCertificate(t.Context(), &acm.RequestCertificateInput{DomainName: aws.String("d"), CertificateAuthorityArn: aws.String(ca)})
		}, []string{"acm:RequestCertificate arn:aws:acm:eu-central-1:123456789012:certificate/*"}},
		"a rule's targets and their role": {func() {
			_, _ = events.PutTargets(t.Context(), &eventbridge.PutTargetsInput{Rule: aws.String("r"), Targets: []evtypes.Target{{Id: aws.String("1"), Arn: aws.String("a"), RoleArn: aws.String(role + "e")}}})
		}, []string{"events:PutTargets arn:aws:events:eu-central-1:123456789012:rule/r", "iam:PassRole " + role + "e"}},
		"a rule of another bus": {func() {
			_, _ = events.DescribeRule(t.Context(), &eventbridge.DescribeRuleInput{Name: aws.String("r"), EventBusName: aws.String("b")})
		}, []string{"events:DescribeRule arn:aws:events:eu-central-1:123456789012:rule/b/r"}},
		"alarms": {func() {
			_, _ = alarms.DescribeAlarms(t.Context(), &cloudwatch.DescribeAlarmsInput{AlarmNames: []string{"a"}})
		}, []string{"cloudwatch:DescribeAlarms arn:aws:cloudwatch:eu-central-1:123456789012:alarm:a"}},
		"all alarms": {func() { _, _ = alarms.DescribeAlarms(t.Context(), &cloudwatch.DescribeAlarmsInput{}) }, []string{"cloudwatch:DescribeAlarms arn:aws:cloudwatch:eu-central-1:123456789012:alarm:*"}},
		"a balancer that is made": {func() {
			_, _ = balancers.CreateLoadBalancer(t.Context(), &elb.CreateLoadBalancerInput{Name: aws.String("n"), Type: elbtypes.LoadBalancerTypeEnumNetwork})
		}, []string{"elasticloadbalancing:CreateLoadBalancer " + lb + "loadbalancer/net/n/*"}},
		"a target group": {func() {
			_, _ = balancers.RegisterTargets(t.Context(), &elb.RegisterTargetsInput{TargetGroupArn: aws.String(lb + "targetgroup/g/1"), Targets: []elbtypes.TargetDescription{}})
		}, []string{"elasticloadbalancing:RegisterTargets " + lb + "targetgroup/g/1"}},
		"target groups": {func() { _, _ = balancers.DescribeTargetGroups(t.Context(), &elb.DescribeTargetGroupsInput{}) }, []string{"elasticloadbalancing:DescribeTargetGroups *"}},
		"a role by its name": {func() {
			_, _ = iam.NewFromConfig(config).GetRole(t.Context(), &iam.GetRoleInput{RoleName: aws.String("r")})
		}, []string{"iam:GetRole " + role + "r"}},
		"secrets by a list": {func() {
			_, _ = secrets.BatchGetSecretValue(t.Context(), &secretsmanager.BatchGetSecretValueInput{SecretIdList: []string{"needs"}})
		}, []string{"secretsmanager:BatchGetSecretValue " + key, "secretsmanager:GetSecretValue " + key}},
		"a secret that gets a rotation function": {func() {
			_, _ = secrets.RotateSecret(t.Context(), &secretsmanager.RotateSecretInput{SecretId: aws.String("needs"), RotationLambdaARN: aws.String("arn:aws:lambda:eu-central-1:123456789012:function:f")})
		}, []string{"secretsmanager:RotateSecret " + key, "lambda:InvokeFunction arn:aws:lambda:eu-central-1:123456789012:function:f"}},
		"a secret of another account": {func() {
			_, _ = secrets.DescribeSecret(t.Context(), &secretsmanager.DescribeSecretInput{SecretId: aws.String("arn:aws:secretsmanager:eu-central-1:111122223333:secret:s-AbCdEf")})
		}, []string{"secretsmanager:DescribeSecret arn:aws:secretsmanager:eu-central-1:111122223333:secret:s-AbCdEf"}},
	} {
		before := len(cloud.Calls())
		test.ask()
		var got []string
		for _, call := range cloud.Calls()[before:] {
			got = append(got, call.Action+" "+call.Resource)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

// TestConditions: what a request says about itself beside its ARN.
func TestConditions(t *testing.T) {
	t.Parallel()
	cloud := awstest.Start(t)
	cloud.Mount("acm-pca", &recorder{})
	cloud.Mount("acm", &recorder{})
	cloud.PutRole("conditions", []byte(policy(
		`{"Effect":"Allow","Action":"acm:RequestCertificate","Resource":"*","Condition":{"ForAllValues:StringEquals":{"acm:DomainNames":["a","b"]},"ArnEquals":{"acm:CertificateAuthority":"arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/1"}}}`,
		`{"Effect":"Allow","Action":"acm-pca:IssueCertificate","Resource":"*","Condition":{"StringEquals":{"acm-pca:TemplateArn":"arn:aws:acm-pca:::template/EndEntityCertificate/V1"}}}`,
		`{"Effect":"Allow","Action":"cloudwatch:PutMetricData","Resource":"*","Condition":{"StringEquals":{"cloudwatch:namespace":"Countersign"}}}`,
		`{"Effect":"Allow","Action":"secretsmanager:GetSecretValue","Resource":"*","Condition":{"StringEquals":{"secretsmanager:VersionStage":"AWSCURRENT"}}}`)))
	newSecret(t, cloud, "conditions", nil)
	config := cloud.Config("conditions")
	issue := func(template *string) error {
		_, err := acmpca.NewFromConfig(config).IssueCertificate(t.Context(), &acmpca.IssueCertificateInput{
			CertificateAuthorityArn: aws.String("arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/1"), Csr: []byte("x"),
			SigningAlgorithm: catypes.SigningAlgorithmSha256withecdsa, Validity: days(1), TemplateArn: template,
		})
		return err
	}
	request := func(authority string, names ...string) error {
		_, err := acm.NewFromConfig(config).RequestCertificate(t.Context(), &acm.RequestCertificateInput{
			DomainName: &names[0], SubjectAlternativeNames: names, CertificateAuthorityArn: aws.String("arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/" + authority),
		})
		return err
	}
	put := func(namespace string) error {
		_, err := cloudwatch.NewFromConfig(config).PutMetricData(t.Context(), &cloudwatch.PutMetricDataInput{Namespace: &namespace, MetricData: []cwtypes.MetricDatum{{MetricName: aws.String("m"), Value: aws.Float64(1)}}})
		return err
	}
	get := func(stage string) error {
		_, err := secretsmanager.NewFromConfig(config).GetSecretValue(t.Context(), &secretsmanager.GetSecretValueInput{SecretId: aws.String("conditions"), VersionStage: &stage})
		return err
	}
	for _, test := range []struct {
		name    string
		err     error
		allowed bool
	}{
		{"the default template", issue(nil), true},
		{"the template that is allowed", issue(aws.String("arn:aws:acm-pca:::template/EndEntityCertificate/V1")), true},
		{"another template", issue(aws.String("arn:aws:acm-pca:::template/RootCACertificate/V1")), false},
		{"names of ACM", request("1", "a", "b"), true},
		{"another name of ACM", request("1", "a", "c"), false},
		{"another CA of ACM", request("2", "a"), false},
		{"the namespace", put("Countersign"), true},
		{"another namespace", put("AWS/ECS"), false},
		{"the stage", get("AWSCURRENT"), true},
		{"another stage", get("AWSPREVIOUS"), false},
	} {
		if denied := strings.HasPrefix(code(test.err), "AccessDenied"); denied == test.allowed || test.allowed && test.err != nil {
			t.Errorf("%s: %v", test.name, test.err)
		}
	}
}
