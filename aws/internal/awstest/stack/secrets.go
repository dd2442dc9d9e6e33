package stack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	iamtypes "github.com/aws/aws-sdk-go-v2/service/iam/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	kmstypes "github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	secrets "github.com/aws/aws-sdk-go-v2/service/secretsmanager/types"
)

type secret struct {
	Name                 *string
	Description          *string
	KmsKeyID             *string
	SecretString         *string
	GenerateSecretString *generate
	Tags                 []tag
}

type generate struct {
	ExcludeCharacters, GenerateStringKey, SecretStringTemplate                                                    *string
	PasswordLength                                                                                                *int64
	ExcludeLowercase, ExcludeNumbers, ExcludePunctuation, ExcludeUppercase, IncludeSpace, RequireEachIncludedType *bool
}

// makeSecret creates a secret with its first value.
func makeSecret(ctx context.Context, s *Stack, id string, properties map[string]any, _ *Resource) (result, error) {
	p, err := decode[secret](properties)
	if err != nil {
		return result{}, err
	}
	in := &secretsmanager.CreateSecretInput{Name: s.named(p.Name, id, 512), Description: p.Description, KmsKeyId: p.KmsKeyID, SecretString: p.SecretString}
	switch {
	case p.GenerateSecretString != nil && p.SecretString != nil:
		return result{}, errors.New("SecretString and GenerateSecretString exclude each other")
	case p.GenerateSecretString != nil:
		value, err := s.generate(ctx, p.GenerateSecretString)
		if err != nil {
			return result{}, err
		}
		in.SecretString = &value
	}
	for _, tag := range p.Tags {
		in.Tags = append(in.Tags, secrets.Tag{Key: aws.String(tag.Key), Value: aws.String(tag.Value)})
	}
	out, err := s.clients.secrets.CreateSecret(ctx, in)
	if err != nil {
		return result{}, fmt.Errorf("create the secret: %w", err)
	}
	return result{aws.ToString(out.ARN), map[string]string{"Id": aws.ToString(out.ARN)}}, nil
}

// generate makes a value of chance, alone or as a member of a JSON object.
func (s *Stack) generate(ctx context.Context, g *generate) (string, error) {
	out, err := s.clients.secrets.GetRandomPassword(ctx, &secretsmanager.GetRandomPasswordInput{
		ExcludeCharacters: g.ExcludeCharacters, PasswordLength: g.PasswordLength, ExcludeLowercase: g.ExcludeLowercase, ExcludeNumbers: g.ExcludeNumbers,
		ExcludePunctuation: g.ExcludePunctuation, ExcludeUppercase: g.ExcludeUppercase, IncludeSpace: g.IncludeSpace, RequireEachIncludedType: g.RequireEachIncludedType,
	})
	if err != nil {
		return "", fmt.Errorf("make a random value: %w", err)
	}
	if g.GenerateStringKey == nil {
		return aws.ToString(out.RandomPassword), nil
	}
	members := map[string]any{}
	if err := json.Unmarshal([]byte(aws.ToString(g.SecretStringTemplate)), &members); err != nil {
		return "", fmt.Errorf("the SecretStringTemplate is no JSON object: %w", err)
	}
	members[*g.GenerateStringKey] = aws.ToString(out.RandomPassword)
	return text(members)
}

type secretPolicy struct {
	SecretID          string
	ResourcePolicy    any
	BlockPublicPolicy *bool
}

// makeSecretPolicy puts the resource policy of a secret.
func makeSecretPolicy(ctx context.Context, s *Stack, _ string, properties map[string]any, _ *Resource) (result, error) {
	p, err := decode[secretPolicy](properties)
	if err != nil {
		return result{}, err
	}
	policy, err := text(p.ResourcePolicy)
	if err != nil {
		return result{}, err
	}
	if _, err := s.clients.secrets.PutResourcePolicy(ctx, &secretsmanager.PutResourcePolicyInput{SecretId: &p.SecretID, ResourcePolicy: &policy, BlockPublicPolicy: p.BlockPublicPolicy}); err != nil {
		return result{}, fmt.Errorf("put the resource policy: %w", err)
	}
	return physical(p.SecretID), nil
}

type key struct {
	Description, KeySpec, KeyUsage, Origin *string
	KeyPolicy                              any
	EnableKeyRotation, Enabled             *bool
	MultiRegion                            *bool
	BypassPolicyLockoutSafetyCheck         bool
	PendingWindowInDays                    *int32
	RotationPeriodInDays                   *int32
	Tags                                   []tag
}

// makeKey creates a key, or gives one that is there another policy.
func makeKey(ctx context.Context, s *Stack, _ string, properties map[string]any, old *Resource) (result, error) {
	p, err := decode[key](properties)
	if err != nil {
		return result{}, err
	}
	policy, err := text(p.KeyPolicy)
	if err != nil {
		return result{}, err
	}
	if old != nil {
		return s.changeKey(ctx, properties, policy, old)
	}
	in := &kms.CreateKeyInput{Description: p.Description, BypassPolicyLockoutSafetyCheck: p.BypassPolicyLockoutSafetyCheck, MultiRegion: p.MultiRegion}
	if p.KeyPolicy != nil {
		in.Policy = &policy
	}
	in.KeySpec, in.KeyUsage, in.Origin = kmstypes.KeySpec(aws.ToString(p.KeySpec)), kmstypes.KeyUsageType(aws.ToString(p.KeyUsage)), kmstypes.OriginType(aws.ToString(p.Origin))
	for _, tag := range p.Tags {
		in.Tags = append(in.Tags, kmstypes.Tag{TagKey: aws.String(tag.Key), TagValue: aws.String(tag.Value)})
	}
	out, err := s.clients.kms.CreateKey(ctx, in)
	if err != nil {
		return result{}, fmt.Errorf("create the key: %w", err)
	}
	id := out.KeyMetadata.KeyId
	if aws.ToBool(p.EnableKeyRotation) {
		if _, err := s.clients.kms.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: id, RotationPeriodInDays: p.RotationPeriodInDays}); err != nil {
			return result{}, fmt.Errorf("enable the key's rotation: %w", err)
		}
	}
	if p.Enabled != nil && !*p.Enabled {
		if _, err := s.clients.kms.DisableKey(ctx, &kms.DisableKeyInput{KeyId: id}); err != nil {
			return result{}, fmt.Errorf("disable the key: %w", err)
		}
	}
	return result{*id, map[string]string{"Arn": aws.ToString(out.KeyMetadata.Arn), "KeyId": *id}}, nil
}

// changeKey puts the policy of a key; nothing else of it changes.
func (s *Stack) changeKey(ctx context.Context, properties map[string]any, policy string, old *Resource) (result, error) {
	if err := onlyChanged(old.Properties, properties, "KeyPolicy"); err != nil {
		return result{}, err
	}
	if _, err := s.clients.kms.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: &old.Physical, PolicyName: aws.String("default"), Policy: &policy}); err != nil {
		return result{}, fmt.Errorf("put the key's policy: %w", err)
	}
	return result{old.Physical, old.Attributes}, nil
}

// onlyChanged refuses changes of other properties than those of the names.
func onlyChanged(old, properties map[string]any, allowed ...string) error {
	names := slices.Collect(maps.Keys(properties))
	for name := range old {
		names = append(names, name)
	}
	for _, name := range names {
		before, errBefore := text(old[name])
		after, errAfter := text(properties[name])
		if err := errors.Join(errBefore, errAfter); err != nil {
			return err
		}
		if before != after && !slices.Contains(allowed, name) {
			return fmt.Errorf("the property %s is to be changed, which the double does not do", name)
		}
	}
	return nil
}

type alias struct{ AliasName, TargetKeyID string }

// makeAlias creates another name for a key.
func makeAlias(ctx context.Context, s *Stack, _ string, properties map[string]any, _ *Resource) (result, error) {
	p, err := decode[alias](properties)
	if err != nil {
		return result{}, err
	}
	if _, err := s.clients.kms.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &p.AliasName, TargetKeyId: &p.TargetKeyID}); err != nil {
		return result{}, fmt.Errorf("create the alias: %w", err)
	}
	return physical(p.AliasName), nil
}

type role struct {
	RoleName, Description, Path, PermissionsBoundary *string
	AssumeRolePolicyDocument                         any
	ManagedPolicyArns                                []string
	MaxSessionDuration                               *int32
	Policies                                         []inlinePolicy
	Tags                                             []tag
}

type inlinePolicy struct {
	PolicyName     string
	PolicyDocument any
}

// makeRole creates a role with its policies, or gives one that is there others.
func makeRole(ctx context.Context, s *Stack, id string, properties map[string]any, old *Resource) (result, error) {
	p, err := decode[role](properties)
	if err != nil {
		return result{}, err
	}
	trust, err := text(p.AssumeRolePolicyDocument)
	if err != nil {
		return result{}, err
	}
	made := result{}
	if old == nil {
		in := &iam.CreateRoleInput{
			RoleName: s.named(p.RoleName, id, 64), Description: p.Description, Path: p.Path, PermissionsBoundary: p.PermissionsBoundary,
			MaxSessionDuration: p.MaxSessionDuration, AssumeRolePolicyDocument: &trust,
		}
		for _, tag := range p.Tags {
			in.Tags = append(in.Tags, iamtypes.Tag{Key: aws.String(tag.Key), Value: aws.String(tag.Value)})
		}
		out, err := s.clients.iam.CreateRole(ctx, in)
		if err != nil {
			return result{}, fmt.Errorf("create the role: %w", err)
		}
		made = result{aws.ToString(out.Role.RoleName), map[string]string{"Arn": aws.ToString(out.Role.Arn), "RoleId": aws.ToString(out.Role.RoleId)}}
	} else {
		if err := onlyChanged(old.Properties, properties, "AssumeRolePolicyDocument", "Policies"); err != nil {
			return result{}, err
		}
		made = result{old.Physical, old.Attributes}
		if _, err := s.clients.iam.UpdateAssumeRolePolicy(ctx, &iam.UpdateAssumeRolePolicyInput{RoleName: &made.physical, PolicyDocument: &trust}); err != nil {
			return result{}, fmt.Errorf("change whom the role trusts: %w", err)
		}
	}
	for _, policy := range p.Policies {
		if err := s.putRolePolicy(ctx, made.physical, policy.PolicyName, policy.PolicyDocument); err != nil {
			return result{}, err
		}
	}
	for _, arn := range p.ManagedPolicyArns {
		if _, err := s.clients.iam.AttachRolePolicy(ctx, &iam.AttachRolePolicyInput{RoleName: &made.physical, PolicyArn: &arn}); err != nil {
			return result{}, fmt.Errorf("attach %s: %w", arn, err)
		}
	}
	return made, nil
}

// putRolePolicy gives a role a policy.
func (s *Stack) putRolePolicy(ctx context.Context, role, name string, document any) error {
	policy, err := text(document)
	if err != nil {
		return err
	}
	if _, err := s.clients.iam.PutRolePolicy(ctx, &iam.PutRolePolicyInput{RoleName: &role, PolicyName: &name, PolicyDocument: &policy}); err != nil {
		return fmt.Errorf("put the policy %s of the role %s: %w", name, role, err)
	}
	return nil
}

type rolePolicy struct {
	PolicyName     string
	PolicyDocument any
	Roles          []string
}

// makePolicy gives roles a policy.
func makePolicy(ctx context.Context, s *Stack, _ string, properties map[string]any, old *Resource) (result, error) {
	p, err := decode[rolePolicy](properties)
	if err != nil {
		return result{}, err
	}
	if old != nil {
		if err := onlyChanged(old.Properties, properties, "PolicyDocument"); err != nil {
			return result{}, err
		}
	}
	if len(p.Roles) == 0 {
		return result{}, errors.New("a policy of no role")
	}
	for _, role := range p.Roles {
		if err := s.putRolePolicy(ctx, role, p.PolicyName, p.PolicyDocument); err != nil {
			return result{}, err
		}
	}
	return physical(p.PolicyName), nil
}

type managedPolicy struct {
	ManagedPolicyName, Description, Path *string
	PolicyDocument                       any
	Roles                                []string
}

// makeManagedPolicy creates a policy and attaches it to roles, or gives one that is there another default version.
func makeManagedPolicy(ctx context.Context, s *Stack, id string, properties map[string]any, old *Resource) (result, error) {
	p, err := decode[managedPolicy](properties)
	if err != nil {
		return result{}, err
	}
	document, err := text(p.PolicyDocument)
	if err != nil {
		return result{}, err
	}
	if old != nil {
		if err := onlyChanged(old.Properties, properties, "PolicyDocument"); err != nil {
			return result{}, err
		}
		if _, err := s.clients.iam.CreatePolicyVersion(ctx, &iam.CreatePolicyVersionInput{PolicyArn: &old.Physical, PolicyDocument: &document, SetAsDefault: true}); err != nil {
			return result{}, fmt.Errorf("put a version of the policy: %w", err)
		}
		return physical(old.Physical), nil
	}
	out, err := s.clients.iam.CreatePolicy(ctx, &iam.CreatePolicyInput{PolicyName: s.named(p.ManagedPolicyName, id, 128), Description: p.Description, Path: p.Path, PolicyDocument: &document})
	if err != nil {
		return result{}, fmt.Errorf("create the policy: %w", err)
	}
	for _, role := range p.Roles {
		if _, err := s.clients.iam.AttachRolePolicy(ctx, &iam.AttachRolePolicyInput{RoleName: &role, PolicyArn: out.Policy.Arn}); err != nil {
			return result{}, fmt.Errorf("attach the policy to %s: %w", role, err)
		}
	}
	return physical(aws.ToString(out.Policy.Arn)), nil
}
