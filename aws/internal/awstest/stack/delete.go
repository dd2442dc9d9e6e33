package stack

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
)

// removers delete resources of the types whose doubles outlive a test: another stack could not have their names.
var removers = map[string]func(ctx context.Context, s *Stack, r Resource) error{
	"AWS::SecretsManager::Secret": func(ctx context.Context, s *Stack, r Resource) error {
		_, err := s.clients.secrets.DeleteSecret(ctx, &secretsmanager.DeleteSecretInput{SecretId: &r.Physical, ForceDeleteWithoutRecovery: aws.Bool(true)})
		return err
	},
	"AWS::KMS::Key": func(ctx context.Context, s *Stack, r Resource) error {
		_, err := s.clients.kms.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: &r.Physical, PendingWindowInDays: aws.Int32(7)})
		return err
	},
	"AWS::KMS::Alias": func(ctx context.Context, s *Stack, r Resource) error {
		_, err := s.clients.kms.DeleteAlias(ctx, &kms.DeleteAliasInput{AliasName: &r.Physical})
		return err
	},
	"AWS::IAM::Role":          removeRole,
	"AWS::IAM::ManagedPolicy": removePolicy,
	"AWS::ECS::Service":       removeService,
	"AWS::Events::Rule": func(ctx context.Context, s *Stack, r Resource) error {
		targets, err := s.clients.events.ListTargetsByRule(ctx, &eventbridge.ListTargetsByRuleInput{Rule: &r.Physical})
		if err != nil {
			return err
		}
		var ids []string
		for _, t := range targets.Targets {
			ids = append(ids, aws.ToString(t.Id))
		}
		if _, err := s.clients.events.RemoveTargets(ctx, &eventbridge.RemoveTargetsInput{Rule: &r.Physical, Ids: ids}); err != nil {
			return err
		}
		_, err = s.clients.events.DeleteRule(ctx, &eventbridge.DeleteRuleInput{Name: &r.Physical})
		return err
	},
	"AWS::CloudWatch::Alarm": func(ctx context.Context, s *Stack, r Resource) error {
		_, err := s.clients.alarms.DeleteAlarms(ctx, &cloudwatch.DeleteAlarmsInput{AlarmNames: []string{r.Physical}})
		return err
	},
}

// removeService deletes a service, and waits until its tasks have stopped.
func removeService(ctx context.Context, s *Stack, r Resource) error {
	cluster := aws.String(fmt.Sprint(r.Properties["Cluster"]))
	if _, err := s.clients.ecs.DeleteService(ctx, &ecs.DeleteServiceInput{Cluster: cluster, Service: &r.Physical, Force: aws.Bool(true)}); err != nil {
		return err
	}
	for {
		out, err := s.clients.ecs.DescribeServices(ctx, &ecs.DescribeServicesInput{Cluster: cluster, Services: []string{r.Physical}})
		if err != nil || len(out.Services) == 0 {
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// removeRole deletes a role with its policies.
func removeRole(ctx context.Context, s *Stack, r Resource) error {
	policies, err := s.clients.iam.ListRolePolicies(ctx, &iam.ListRolePoliciesInput{RoleName: &r.Physical})
	if err != nil {
		return err
	}
	for _, name := range policies.PolicyNames {
		if _, err := s.clients.iam.DeleteRolePolicy(ctx, &iam.DeleteRolePolicyInput{RoleName: &r.Physical, PolicyName: &name}); err != nil {
			return err
		}
	}
	attached, err := s.clients.iam.ListAttachedRolePolicies(ctx, &iam.ListAttachedRolePoliciesInput{RoleName: &r.Physical})
	if err != nil {
		return err
	}
	for _, policy := range attached.AttachedPolicies {
		if _, err := s.clients.iam.DetachRolePolicy(ctx, &iam.DetachRolePolicyInput{RoleName: &r.Physical, PolicyArn: policy.PolicyArn}); err != nil {
			return err
		}
	}
	_, err = s.clients.iam.DeleteRole(ctx, &iam.DeleteRoleInput{RoleName: &r.Physical})
	return err
}

// removePolicy deletes a managed policy with its versions. Other roles than the stack's may have it, too: AWS would refuse then, and leaves it
// to people; here they are the test's.
func removePolicy(ctx context.Context, s *Stack, r Resource) error {
	attached, err := s.clients.iam.ListEntitiesForPolicy(ctx, &iam.ListEntitiesForPolicyInput{PolicyArn: &r.Physical})
	if err != nil {
		return err
	}
	for _, role := range attached.PolicyRoles {
		if _, err := s.clients.iam.DetachRolePolicy(ctx, &iam.DetachRolePolicyInput{RoleName: role.RoleName, PolicyArn: &r.Physical}); err != nil {
			return err
		}
	}
	versions, err := s.clients.iam.ListPolicyVersions(ctx, &iam.ListPolicyVersionsInput{PolicyArn: &r.Physical})
	if err != nil {
		return err
	}
	for _, version := range versions.Versions {
		if version.IsDefaultVersion {
			continue
		}
		if _, err := s.clients.iam.DeletePolicyVersion(ctx, &iam.DeletePolicyVersionInput{PolicyArn: &r.Physical, VersionId: version.VersionId}); err != nil {
			return err
		}
	}
	_, err = s.clients.iam.DeletePolicy(ctx, &iam.DeletePolicyInput{PolicyArn: &r.Physical})
	return err
}

// Delete deletes what other stacks of the same template would meet, in the opposite order of creation: services,
// secrets, keys, roles, policies, rules and alarms, also those that a template retains. The rest ends with its double. It goes on
// after an error, and can be called for a stack that was created only in part.
func (s *Stack) Delete(ctx context.Context) error {
	var failed []error
	for _, id := range slices.Backward(s.order) {
		r := s.resources[id]
		remove, known := removers[r.Type]
		if !known {
			continue
		}
		if err := remove(ctx, s, *r); err != nil {
			failed = append(failed, fmt.Errorf("delete the resource %s (%s): %w", id, r.Type, err))
		}
	}
	s.order, s.resources = nil, map[string]*Resource{}
	return errors.Join(failed...)
}
