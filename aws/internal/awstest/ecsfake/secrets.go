//go:build linux

package ecsfake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
)

// reference is a secret as a container's valueFrom names it.
type reference struct{ arn, key, stage, version string }

// readReference reads ARN[:JSON-KEY:STAGE:VERSION-ID].
func readReference(valueFrom string) (reference, error) {
	parts := strings.Split(valueFrom, ":")
	if len(parts) > 2 && parts[0] == "arn" && parts[2] == "ssm" || !strings.HasPrefix(valueFrom, "arn:") {
		return reference{}, unsupported("parameters of Systems Manager as secrets (" + valueFrom + ")")
	}
	if len(parts) != 7 && len(parts) != 10 || parts[2] != "secretsmanager" || parts[5] != "secret" {
		return reference{}, invalid("Invalid secret ARN %q: want arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME, and perhaps :JSON-KEY:STAGE:VERSION-ID.", valueFrom)
	}
	r := reference{arn: strings.Join(parts[:7], ":")}
	if len(parts) == 10 {
		r.key, r.stage, r.version = parts[7], parts[8], parts[9]
	}
	return r, nil
}

// fetch reads the values of a container's secrets with the execution role, as NAME=VALUE.
func (f *Fake) fetch(ctx context.Context, t *task, c *types.ContainerDefinition) ([]string, error) {
	if len(c.Secrets) == 0 {
		return nil, nil
	}
	client, err := f.secrets(t)
	if err != nil {
		return nil, err
	}
	var variables []string
	for _, secret := range c.Secrets {
		from, err := readReference(aws.ToString(secret.ValueFrom))
		if err != nil {
			return nil, err
		}
		in := &secretsmanager.GetSecretValueInput{SecretId: aws.String(from.arn)}
		if from.version != "" {
			in.VersionId = aws.String(from.version)
		}
		if from.stage != "" || from.version == "" {
			// Without stage and version AWS gives the current one; a double behind may not, unless it is asked for it.
			in.VersionStage = aws.String(orDefault(from.stage, "AWSCURRENT"))
		}
		out, err := client.GetSecretValue(ctx, in)
		if err != nil {
			return nil, fmt.Errorf("unable to retrieve secret from asm: service call has been retried 1 time(s): failed to fetch secret %s from secrets manager: %w", from.arn, err)
		}
		value, err := pick(aws.ToString(out.SecretString), from.key)
		if err != nil {
			return nil, fmt.Errorf("unable to retrieve secret from asm: secret %s: %w", from.arn, err)
		}
		variables = append(variables, aws.ToString(secret.Name)+"="+value)
	}
	return variables, nil
}

// pick takes one member of a secret that is a JSON object, or all of it when there is no key.
func pick(value, key string) (string, error) {
	if key == "" {
		return value, nil
	}
	var members map[string]any
	if err := json.Unmarshal([]byte(value), &members); err != nil {
		return "", fmt.Errorf("retrieved secret from Secrets Manager is no JSON object: %w", err)
	}
	text, ok := members[key].(string)
	if !ok {
		return "", fmt.Errorf("retrieved secret from Secrets Manager did not contain json key %s", key)
	}
	return text, nil
}

// secrets makes a client of Secrets Manager that signs as the task's execution role.
func (f *Fake) secrets(t *task) (*secretsmanager.Client, error) {
	if f.options.Front == "" || f.options.Assume == nil {
		return nil, errors.New("unable to retrieve secret from asm: the double has no front, or no roles")
	}
	role := aws.ToString(t.definition.ExecutionRoleArn)
	credentials, err := f.options.Assume(role)
	if err != nil {
		return nil, fmt.Errorf("unable to assume the execution role %s: %w", role, err)
	}
	return secretsmanager.New(secretsmanager.Options{
		Region: f.options.Region, BaseEndpoint: aws.String(f.options.Front), RetryMaxAttempts: 2,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: credentials.AccessKeyID, SecretAccessKey: credentials.SecretAccessKey, SessionToken: credentials.Token}, nil
		}),
	}), nil
}

// orDefault is a text, or another one where it is empty.
func orDefault(text, other string) string {
	if text == "" {
		return other
	}
	return text
}
