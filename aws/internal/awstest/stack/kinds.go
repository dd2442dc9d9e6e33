package stack

import (
	"context"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	elbv2 "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
)

// clients reach the services.
type clients struct {
	secrets  *secretsmanager.Client
	kms      *kms.Client
	iam      *iam.Client
	ecs      *ecs.Client
	balancer *elbv2.Client
	pca      *acmpca.Client
	events   *eventbridge.Client
	alarms   *cloudwatch.Client
}

// connect makes the clients.
func connect(config aws.Config) clients {
	return clients{
		secrets: secretsmanager.NewFromConfig(config), kms: kms.NewFromConfig(config), iam: iam.NewFromConfig(config), ecs: ecs.NewFromConfig(config),
		balancer: elbv2.NewFromConfig(config), pca: acmpca.NewFromConfig(config), events: eventbridge.NewFromConfig(config), alarms: cloudwatch.NewFromConfig(config),
	}
}

// kinds are the types of resources that the double knows.
var kinds = map[string]kind{
	"AWS::SecretsManager::Secret":                 {makeSecret, true},
	"AWS::SecretsManager::ResourcePolicy":         {makeSecretPolicy, false},
	"AWS::SecretsManager::RotationSchedule":       {recorded[rotationSchedule](func(_ *Stack, _ string, p *rotationSchedule) result { return physical(p.SecretID) }), false},
	"AWS::KMS::Key":                               {makeKey, false},
	"AWS::KMS::Alias":                             {makeAlias, true},
	"AWS::IAM::Role":                              {makeRole, false},
	"AWS::IAM::Policy":                            {makePolicy, false},
	"AWS::IAM::ManagedPolicy":                     {makeManagedPolicy, false},
	"AWS::ECS::Cluster":                           {makeCluster, true},
	"AWS::ECS::TaskDefinition":                    {makeTaskDefinition, false},
	"AWS::ECS::Service":                           {makeService, false},
	"AWS::ElasticLoadBalancingV2::LoadBalancer":   {makeBalancer, true},
	"AWS::ElasticLoadBalancingV2::TargetGroup":    {makeTargetGroup, true},
	"AWS::ElasticLoadBalancingV2::Listener":       {makeListener, true},
	"AWS::ACMPCA::CertificateAuthority":           {makeAuthority, true},
	"AWS::ACMPCA::Certificate":                    {makeCertificate, true},
	"AWS::ACMPCA::CertificateAuthorityActivation": {makeActivation, true},
	"AWS::ACMPCA::Permission":                     {recorded[permission](func(_ *Stack, id string, _ *permission) result { return physical(id) }), false},
	"AWS::Events::Rule":                           {makeRule, false},
	"AWS::CloudWatch::Alarm":                      {makeAlarm, false},
	"AWS::Lambda::Function":                       {recorded(recordFunction), false},
	"AWS::Lambda::EventInvokeConfig":              {recorded[functionEvents](func(_ *Stack, id string, _ *functionEvents) result { return physical(id) }), false},
	"AWS::Lambda::Permission":                     {recorded[functionPermission](func(_ *Stack, id string, _ *functionPermission) result { return physical(id) }), false},
	"AWS::Logs::LogGroup":                         {recorded(recordLogGroup), false},
	"AWS::SNS::Topic":                             {recorded(recordTopic), false},
	"AWS::EC2::SecurityGroup":                     {recorded(recordSecurityGroup), false},
	"AWS::EC2::SecurityGroupIngress":              {recorded[securityGroupRule](func(_ *Stack, id string, _ *securityGroupRule) result { return physical("sgr-" + id) }), false},
	"AWS::EC2::SecurityGroupEgress":               {recorded[securityGroupRule](func(_ *Stack, id string, _ *securityGroupRule) result { return physical("sgr-" + id) }), false},
}

// physical is a result without attributes.
func physical(name string) result { return result{physical: name} }

// recorded makes nothing: the properties are checked, and what the resource is known by is worked out.
func recorded[T any](name func(s *Stack, id string, properties *T) result) maker {
	return func(_ context.Context, s *Stack, id string, properties map[string]any, old *Resource) (result, error) {
		decoded, err := decode[T](properties)
		if err != nil {
			return result{}, err
		}
		if old != nil { // what it is called does not change
			return result{old.Physical, old.Attributes}, nil
		}
		return name(s, id, decoded), nil
	}
}

type rotationSchedule struct {
	SecretID                      string
	RotationLambdaARN             string
	RotateImmediatelyOnUpdate     *bool
	RotationRules                 *struct{ AutomaticallyAfterDays, Duration, ScheduleExpression string }
	ExternalSecretRotationRoleArn string
}

type permission struct {
	Actions                                           []string
	CertificateAuthorityArn, Principal, SourceAccount string
}

type tag struct{ Key, Value string }

type function struct {
	FunctionName                                                *string
	Description, Handler, Role, Runtime, PackageType, KmsKeyArn string
	Architectures, Layers                                       []string
	Code                                                        struct{ S3Bucket, S3Key, S3ObjectVersion, ImageUri, ZipFile string }
	Timeout, MemorySize, ReservedConcurrentExecutions           *int32
	Environment                                                 struct{ Variables map[string]string }
	VpcConfig                                                   struct{ SubnetIDs, SecurityGroupIDs []string }
	DeadLetterConfig                                            struct{ TargetArn string }
	TracingConfig                                               struct{ Mode string }
	LoggingConfig                                               struct{ LogFormat, LogGroup, ApplicationLogLevel, SystemLogLevel string }
	EphemeralStorage                                            struct{ Size *int32 }
	Tags                                                        []tag
}

// recordFunction names a function.
func recordFunction(s *Stack, id string, f *function) result {
	name := *s.named(f.FunctionName, id, 64)
	return result{name, map[string]string{"Arn": s.arn("lambda", "function:"+name)}}
}

type functionPermission struct {
	Action, FunctionName, Principal, SourceArn, SourceAccount string
}

type functionEvents struct {
	FunctionName, Qualifier                        string
	MaximumRetryAttempts, MaximumEventAgeInSeconds *int32
}

type logGroup struct {
	LogGroupName    *string
	RetentionInDays *int32
	KmsKeyID        string
	LogGroupClass   string
	Tags            []tag
}

// recordLogGroup names a log group.
func recordLogGroup(s *Stack, id string, g *logGroup) result {
	name := *s.named(g.LogGroupName, id, 512)
	return result{name, map[string]string{"Arn": s.arn("logs", "log-group:"+name+":*")}}
}

type topic struct {
	TopicName, DisplayName, KmsMasterKeyID *string
	Subscription                           []struct{ Endpoint, Protocol string }
	Tags                                   []tag
}

// recordTopic names a topic.
func recordTopic(s *Stack, id string, t *topic) result {
	name := *s.named(t.TopicName, id, 256)
	return result{s.arn("sns", name), map[string]string{"TopicName": name, "TopicArn": s.arn("sns", name)}}
}

type securityGroupRule struct {
	GroupID, IPProtocol, CidrIP, CidrIPv6, Description  string
	SourceSecurityGroupID, DestinationSecurityGroupID   string
	SourceSecurityGroupName, SourceSecurityGroupOwnerID string
	SourcePrefixListID, DestinationPrefixListID         string
	FromPort, ToPort                                    *int32
}

type securityGroup struct {
	GroupName, GroupDescription, VpcID *string
	SecurityGroupIngress               []securityGroupRule
	SecurityGroupEgress                []securityGroupRule
	Tags                               []tag
}

// recordSecurityGroup names a security group.
func recordSecurityGroup(s *Stack, id string, g *securityGroup) result {
	name := "sg-" + strings.ToLower(id)
	vpc := aws.ToString(g.VpcID)
	return result{name, map[string]string{"GroupId": name, "Id": name, "VpcId": vpc}}
}

// makeAlarm puts an alarm, again when it differs.
func makeAlarm(ctx context.Context, s *Stack, id string, properties map[string]any, old *Resource) (result, error) {
	in, err := decode[cloudwatch.PutMetricAlarmInput](properties)
	if err != nil {
		return result{}, err
	}
	if old != nil {
		in.AlarmName = &old.Physical
	}
	in.AlarmName = s.named(in.AlarmName, id, 255)
	if _, err := s.clients.alarms.PutMetricAlarm(ctx, in); err != nil {
		return result{}, fmt.Errorf("put the alarm: %w", err)
	}
	return result{*in.AlarmName, map[string]string{"Arn": s.arn("cloudwatch", "alarm:"+*in.AlarmName)}}, nil
}

type rule struct {
	Name                                                          *string
	Description, EventBusName, RoleArn, ScheduleExpression, State *string
	EventPattern                                                  any
	Targets                                                       []target
	Tags                                                          []tag
}

type target struct {
	ID, Arn          string
	RoleArn, Input   *string
	InputPath        *string
	RetryPolicy      *struct{ MaximumEventAgeInSeconds, MaximumRetryAttempts *int32 }
	DeadLetterConfig *struct{ Arn *string }
}
