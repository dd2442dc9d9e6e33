//go:build linux

package stack_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"countersign.dev/aws/internal/awstest"
	"countersign.dev/aws/internal/awstest/ecsfake"
	"countersign.dev/aws/internal/awstest/ecsfake/jail"
	"countersign.dev/aws/internal/awstest/pcafake"
	"countersign.dev/aws/internal/awstest/stack"
)

func TestMain(m *testing.M) {
	if err := ecsfake.Enter(); err != nil && !errors.Is(err, ecsfake.ErrUnavailable) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// start begins a cloud with ECS, balancers and Private CA in it.
func start(t *testing.T) (*awstest.Cloud, *ecsfake.Fake) {
	t.Helper()
	return startWith(t, map[string]ecsfake.Image{"shell": ecsfake.Shell()})
}

// startWith begins one with other images.
func startWith(t *testing.T, images map[string]ecsfake.Image) (*awstest.Cloud, *ecsfake.Fake) {
	t.Helper()
	if !jail.Inside() {
		if os.Getenv("CI") == "true" {
			t.Fatal("namespaces cannot be made; CI has to run as root")
		}
		t.Skip("SKIPPED: the double of ECS needs root")
	}
	cloud := awstest.Start(t)
	fake, err := ecsfake.New(ecsfake.Options{
		Region: cloud.Region, Account: cloud.Account, Front: cloud.URL, Second: 20 * time.Millisecond, Log: t.Logf,
		Images: images,
		Assume: func(role string) (ecsfake.Credentials, error) {
			c, err := cloud.AssumeAs("ecs-tasks.amazonaws.com", role, "task", "")
			return ecsfake.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, Token: c.SessionToken, Expires: c.Expires}, err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	cloud.Mount("ecs", fake)
	cloud.Mount("elasticloadbalancing", fake)
	cloud.Mount("acm-pca", pcafake.New(pcafake.Options{PendingPolls: 1}))
	return cloud, fake
}

const whole = `
Parameters:
  Mesh: {Type: String}
  DesiredCount: {Type: Number, Default: 0}
  Word: {Type: String, Default: first}
  State: {Type: String, Default: ENABLED, AllowedValues: [ENABLED, DISABLED]}
Resources:
  Key:
    Type: AWS::KMS::Key
    Properties:
      EnableKeyRotation: true
      KeyPolicy: {Version: '2012-10-17', Statement: [{Effect: Allow, Principal: {AWS: !Sub 'arn:${AWS::Partition}:iam::${AWS::AccountId}:root'}, Action: 'kms:*', Resource: '*'}]}
  KeyAlias: {Type: AWS::KMS::Alias, Properties: {AliasName: !Sub 'alias/${Mesh}', TargetKeyId: !Ref Key}}
  Secret: {Type: AWS::SecretsManager::Secret, Properties: {Name: !Sub '${Mesh}/checkout', KmsKeyId: !GetAtt Key.Arn, SecretString: '{"word": "open"}'}}
  Budget:
    Type: AWS::SecretsManager::Secret
    Properties: {Name: !Sub '${Mesh}/pca.budget', GenerateSecretString: {SecretStringTemplate: '{"a": "b"}', GenerateStringKey: c, PasswordLength: 20}}
  SecretPolicy:
    Type: AWS::SecretsManager::ResourcePolicy
    Properties:
      SecretId: !Ref Secret
      ResourcePolicy:
        Version: '2012-10-17'
        Statement:
          - {Effect: Deny, Principal: {AWS: '*'}, Action: secretsmanager:GetSecretValue, Resource: '*', Condition: {ArnNotEquals: {aws:PrincipalArn: !GetAtt Execution.Arn}}}
  Execution:
    Type: AWS::IAM::Role
    Properties:
      RoleName: !Sub '${Mesh}-execution'
      AssumeRolePolicyDocument: &trust {Version: '2012-10-17', Statement: [{Effect: Allow, Principal: {Service: ecs-tasks.amazonaws.com}, Action: sts:AssumeRole}]}
  ExecutionPolicy:
    Type: AWS::IAM::Policy
    Properties:
      PolicyName: read
      Roles: [!Ref Execution]
      PolicyDocument:
        Version: '2012-10-17'
        Statement: [{Effect: Allow, Action: secretsmanager:GetSecretValue, Resource: !Ref Secret}, {Effect: Allow, Action: kms:Decrypt, Resource: !GetAtt Key.Arn}]
  Attached:
    Type: AWS::IAM::ManagedPolicy
    Properties:
      ManagedPolicyName: !Sub '${Mesh}-attached'
      Description: what is attached
      Roles: [!Ref Execution]
      PolicyDocument: {Version: '2012-10-17', Statement: [{Effect: Allow, Action: ecs:StopTask, Resource: !Sub 'arn:aws:ecs:eu-central-1:123456789012:task/${Word}/1'}]}
  Logs: {Type: AWS::Logs::LogGroup, Properties: {LogGroupName: !Sub '/${Mesh}', RetentionInDays: 30}}
  Group: {Type: AWS::EC2::SecurityGroup, Properties: {GroupDescription: tasks, VpcId: vpc-1}}
  Ingress: {Type: AWS::EC2::SecurityGroupIngress, Properties: {GroupId: !GetAtt Group.GroupId, IpProtocol: tcp, FromPort: 1, ToPort: 1, CidrIp: 10.0.0.0/8}}
  Cluster: {Type: AWS::ECS::Cluster, Properties: {ClusterName: !Ref Mesh, ClusterSettings: [{Name: containerInsights, Value: enabled}]}}
  Balancer:
    Type: AWS::ElasticLoadBalancingV2::LoadBalancer
    Properties: {Type: network, Scheme: internal, Subnets: [subnet-1], SecurityGroups: [!GetAtt Group.GroupId], LoadBalancerAttributes: [{Key: load_balancing.cross_zone.enabled, Value: 'true'}]}
  Target:
    Type: AWS::ElasticLoadBalancingV2::TargetGroup
    Properties: {TargetType: ip, Protocol: TCP, Port: 80, VpcId: vpc-1, HealthCheckIntervalSeconds: 5, HealthyThresholdCount: 2, TargetGroupAttributes: [{Key: deregistration_delay.timeout_seconds, Value: '1'}]}
  Listener:
    Type: AWS::ElasticLoadBalancingV2::Listener
    Properties: {LoadBalancerArn: !Ref Balancer, Protocol: TCP, Port: 80, DefaultActions: [{Type: forward, TargetGroupArn: !Ref Target}]}
  Task:
    Type: AWS::ECS::TaskDefinition
    Properties:
      Family: !Ref Mesh
      NetworkMode: awsvpc
      RequiresCompatibilities: [FARGATE]
      Cpu: 256
      Memory: '512'
      ExecutionRoleArn: !GetAtt Execution.Arn
      ContainerDefinitions:
        - Name: app
          Image: shell
          Command: [sh, -c, 'echo $SECRET $WORD; exec sleep 1000']
          StopTimeout: 0
          Environment: [{Name: WORD, Value: !Ref Word}]
          Secrets: [{Name: SECRET, ValueFrom: !Sub '${Secret}:word::'}]
          LogConfiguration: {LogDriver: awslogs, Options: {awslogs-group: !Ref Logs}}
  Service:
    Type: AWS::ECS::Service
    DependsOn: [ExecutionPolicy, SecretPolicy]
    Properties:
      ServiceName: checkout
      Cluster: !Ref Cluster
      TaskDefinition: !Ref Task
      LaunchType: FARGATE
      DesiredCount: !Ref DesiredCount
      DeploymentConfiguration: {MinimumHealthyPercent: 100, MaximumPercent: 200, DeploymentCircuitBreaker: {Enable: true, Rollback: true}}
      NetworkConfiguration: {AwsvpcConfiguration: {AssignPublicIp: DISABLED, Subnets: [subnet-1], SecurityGroups: [!GetAtt Group.GroupId]}}
  Authority:
    Type: AWS::ACMPCA::CertificateAuthority
    Properties: {Type: ROOT, UsageMode: SHORT_LIVED_CERTIFICATE, KeyAlgorithm: EC_secp384r1, SigningAlgorithm: SHA384WITHECDSA, Subject: {CommonName: test}}
  AuthorityCertificate:
    Type: AWS::ACMPCA::Certificate
    Properties:
      CertificateAuthorityArn: !GetAtt Authority.Arn
      CertificateSigningRequest: !GetAtt Authority.CertificateSigningRequest
      SigningAlgorithm: SHA384WITHECDSA
      TemplateArn: arn:aws:acm-pca:::template/RootCACertificate/V1
      Validity: {Type: YEARS, Value: 10}
  Activation:
    Type: AWS::ACMPCA::CertificateAuthorityActivation
    Properties: {CertificateAuthorityArn: !Ref Authority, Certificate: !GetAtt AuthorityCertificate.Certificate, Status: ACTIVE}
  Function:
    Type: AWS::Lambda::Function
    Properties: {FunctionName: !Sub '${Mesh}-rotation', Runtime: provided.al2023, Handler: bootstrap, Code: {S3Bucket: a, S3Key: b}, Role: !GetAtt Execution.Arn, Timeout: 900, Environment: {Variables: {A: !GetAtt Authority.Arn}}}
  Schedule:
    Type: AWS::Events::Rule
    Properties: {ScheduleExpression: rate(1 hour), State: !Ref State, Targets: [{Id: rotation, Arn: !GetAtt Function.Arn}]}
  Topic: {Type: AWS::SNS::Topic, Properties: {TopicName: alarms}}
  Alarm:
    Type: AWS::CloudWatch::Alarm
    Properties: {Namespace: Countersign, MetricName: Failures, Statistic: Sum, Period: 3600, EvaluationPeriods: 1, ComparisonOperator: GreaterThanThreshold, Threshold: 0, TreatMissingData: breaching, AlarmActions: [!Ref Topic]}
Outputs:
  Address: {Value: !GetAtt Balancer.DNSName}
  Authority: {Value: !GetAtt Authority.Arn}
  Policy: {Value: !Ref Attached}
`

func TestCreateAndUpdate(t *testing.T) {
	cloud, fake := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	text := []byte(strings.ReplaceAll(whole, "&trust ", ""))
	options := stack.Options{Config: cloud.Admin(), Account: cloud.Account, Name: "stacktest"}
	s, err := stack.Create(ctx, options, text, map[string]string{"Mesh": "stacktest"})
	remove(t, s)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := fake.Resolve(s.Outputs["Address"]); !ok {
		t.Errorf("the balancer %s has no address", s.Outputs["Address"])
	}
	ca, err := acmpca.NewFromConfig(cloud.Admin()).DescribeCertificateAuthority(ctx, &acmpca.DescribeCertificateAuthorityInput{CertificateAuthorityArn: aws.String(s.Outputs["Authority"])})
	if err != nil || ca.CertificateAuthority.Status != "ACTIVE" {
		t.Errorf("the CA: %v, %v", ca, err)
	}
	function, _ := s.Resource("Function")
	if environment := fmt.Sprint(function.Properties["Environment"]); !strings.Contains(environment, s.Outputs["Authority"]) {
		t.Errorf("the function's environment: %s", environment)
	}
	budget, err := secretsmanager.NewFromConfig(cloud.Admin()).GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: aws.String("stacktest/pca.budget")})
	if err != nil || !strings.HasPrefix(*budget.SecretString, `{"a":"b","c":"`) {
		t.Errorf("the generated secret: %v", err)
	}
	attached := func(word string, want bool) {
		t.Helper()
		decision, err := cloud.Decide("stacktest-execution", "ecs:StopTask", "arn:aws:ecs:eu-central-1:123456789012:task/"+word+"/1", nil)
		if err != nil || decision.Allowed != want {
			t.Errorf("by the attached policy tasks of %s may be stopped: %t, want %t: %v", word, decision.Allowed, want, err)
		}
	}
	if attached("first", true); s.Outputs["Policy"] != "arn:aws:iam::123456789012:policy/stacktest-attached" {
		t.Errorf("the policy is %s", s.Outputs["Policy"])
	}
	client := ecs.NewFromConfig(cloud.Admin())
	tasks := func() []string {
		t.Helper()
		out, err := client.ListTasks(ctx, &ecs.ListTasksInput{Cluster: aws.String("stacktest"), ServiceName: aws.String("checkout")})
		if err != nil {
			t.Fatal(err)
		}
		return out.TaskArns
	}
	if got := tasks(); len(got) != 0 {
		t.Errorf("tasks before the count is raised: %v", got)
	}
	update := func(parameters map[string]string) {
		t.Helper()
		parameters["Mesh"] = "stacktest"
		if err := s.Update(ctx, text, parameters); err != nil {
			t.Fatal(err)
		}
	}
	update(map[string]string{"DesiredCount": "1"})
	first := tasks()
	if len(first) != 1 {
		t.Fatalf("tasks %v", first)
	}
	said(t, fake, first[0], "open first\n")
	update(map[string]string{"DesiredCount": "1", "Word": "second", "State": "DISABLED"})
	second := tasks()
	if len(second) != 1 || slices.Equal(first, second) {
		t.Fatalf("tasks %v after %v", second, first)
	}
	said(t, fake, second[0], "open second\n")
	attached("first", false)
	attached("second", true)
	rule, err := eventbridge.NewFromConfig(cloud.Admin()).DescribeRule(ctx, &eventbridge.DescribeRuleInput{Name: aws.String(s.Resources("AWS::Events::Rule")[0].Physical)})
	if err != nil || rule.State != "DISABLED" {
		t.Errorf("the schedule: %v, %v", rule, err)
	}
	shown, err := client.DescribeServices(ctx, &ecs.DescribeServicesInput{Cluster: aws.String("stacktest"), Services: []string{"checkout"}})
	if err != nil || shown.Services[0].Deployments[0].RolloutState != types.DeploymentRolloutStateCompleted {
		t.Errorf("the service after the update: %v, %v", shown, err)
	}
	if err := s.Update(ctx, []byte(strings.Replace(string(text), "  Topic: ", "  Other: ", 1)), map[string]string{"Mesh": "stacktest"}); err == nil {
		t.Error("a template in which nothing is called Topic is no error")
	}
	if err := s.Update(ctx, text, map[string]string{"Mesh": "other"}); err == nil || !strings.Contains(err.Error(), "which the double does not do for this type") {
		t.Errorf("another name for what cannot be changed: %v", err)
	}
}

// remove deletes a stack at the end of the test, and looks whether it is empty.
func remove(t *testing.T, s *stack.Stack) {
	t.Helper()
	t.Cleanup(func() {
		roles := s.Resources("AWS::IAM::Role")
		if err := s.Delete(context.Background()); err != nil {
			t.Error(err)
		}
		if left := s.Resources("AWS::IAM::Role"); len(roles) == 0 || len(left) != 0 {
			t.Errorf("%d roles before, and %d after the stack was deleted", len(roles), len(left))
		}
	})
}

// said waits until the application of a task has said something, which comes through a pipe.
func said(t *testing.T, fake *ecsfake.Fake, task, want string) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); <-ticker.C {
		if fake.Logs(task, "app") == want {
			return
		}
	}
	t.Errorf("task %s says %q, want %q", task, fake.Logs(task, "app"), want)
}

// The example's generated template creates a stack as it is, and again when that was deleted.
func TestExample(t *testing.T) {
	cloud, _ := start(t)
	text, err := os.ReadFile("../../../../examples/payments-ecs/cloudformation.yaml")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 2 {
		s, err := stack.Create(ctx, stack.Options{Config: cloud.Admin(), Account: cloud.Account, Name: "example"}, text, map[string]string{
			"VpcId": "vpc-1", "SubnetIds": "subnet-1,subnet-2", "CountersignImage": "countersign", "NginxImage": "nginx", "HaproxyImage": "haproxy",
			"CheckoutImage": "app", "LedgerImage": "app", "TerminalImage": "app", "ImageRepositories": "arn:aws:ecr:eu-central-1:123456789012:repository/app",
			"FunctionBucket": "bucket", "FunctionKey": "function.zip", "AlarmTopic": "arn:aws:sns:eu-central-1:123456789012:alarms",
		})
		if err != nil {
			t.Fatal(errors.Join(err, s.Delete(ctx)))
		}
		if services := s.Resources("AWS::ECS::Service"); len(services) != 4 || s.Outputs["PcaAuthorityArn"] == "" {
			t.Errorf("%d services, outputs %v", len(services), s.Outputs)
		}
		if err := s.Delete(ctx); err != nil {
			t.Error(err)
		}
	}
}

func TestRefuses(t *testing.T) {
	cloud, _ := start(t)
	for name, c := range map[string]struct{ resource, want string }{
		"type":             {"{Type: AWS::S3::Bucket}", "the type AWS::S3::Bucket is not understood"},
		"property":         {"{Type: AWS::ECS::Cluster, Properties: {Colour: red}}", "Properties.Colour: there is no such member"},
		"recorded":         {"{Type: AWS::EC2::SecurityGroup, Properties: {SecurityGroupIngress: [{Colour: red}]}}", "Properties.SecurityGroupIngress[0].Colour: there is no such member"},
		"value":            {"{Type: AWS::ECS::TaskDefinition, Properties: {Family: refused, Cpu: [1]}}", "Properties.Cpu: want one value"},
		"refused":          {"{Type: AWS::ECS::TaskDefinition, Properties: {Family: refused, ContainerDefinitions: []}}", "Container list cannot be empty"},
		"attribute":        {"{Type: AWS::ECS::Cluster, Properties: {ClusterName: !GetAtt B.Colour}}", "the attribute Colour of B (AWS::Logs::LogGroup) is not understood"},
		"rule":             {"{Type: AWS::Events::Rule, Properties: {ScheduleExpression: rate(1 hour)}}", "a rule without targets"},
		"secret":           {"{Type: AWS::SecretsManager::Secret, Properties: {SecretString: a, GenerateSecretString: {}}}", "exclude each other"},
		"policy of nobody": {"{Type: AWS::IAM::Policy, Properties: {PolicyName: a, PolicyDocument: {}}}", "a policy of no role"},
	} {
		t.Run(name, func(t *testing.T) {
			text := "Resources: {A: " + c.resource + ", B: {Type: AWS::Logs::LogGroup}}"
			_, err := stack.Create(t.Context(), stack.Options{Config: cloud.Admin(), Account: cloud.Account, Name: "refused"}, []byte(text), nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}
