package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"countersign.dev/aws/secretsmanager"
	"countersign.dev/credential"
	"countersign.dev/mesh"
	"countersign.dev/secret"
)

const (
	// fromSecretsManager begins --from for a secret in AWS Secrets Manager.
	fromSecretsManager = mesh.StoreSecretsManager + ":"
	// secretVariable names the secret of a task, where --from does not.
	secretVariable = "COUNTERSIGN_SECRET"
	// metadataVariable is set by ECS in every container.
	metadataVariable = "ECS_CONTAINER_METADATA_URI_V4"
)

// onECS tells whether this process is in a task of Amazon ECS.
func onECS() bool { return os.Getenv(metadataVariable) != "" }

// fromAWS tells whether the certificate comes from AWS Secrets Manager.
func (c initCmd) fromAWS() bool { return strings.HasPrefix(c.From, fromSecretsManager) }

// settled fills in where the certificate comes from when the command line leaves it to the environment.
func (c initCmd) settled() (initCmd, error) {
	if c.From == "" {
		if !onECS() {
			return c, usagef("where do certificate and key come from? Give --from env, file:DIR or secretsmanager:NAME")
		}
		c.From = fromSecretsManager
	}
	if !c.fromAWS() {
		return c, nil
	}
	if c.Secret != "" {
		return c, usagef("--secret belongs to --from file:DIR; in Secrets Manager the name stands in --from: write secretsmanager:%s", c.Secret)
	}
	if c.Secret = strings.TrimPrefix(c.From, fromSecretsManager); c.Secret == "" {
		c.Secret = os.Getenv(secretVariable)
	}
	if c.Secret == "" {
		return c, usagef("which secret? Set %s to its name or ARN, or write --from secretsmanager:NAME-OR-ARN; without Secrets Manager write --from env", secretVariable)
	}
	if c.Layout == "" {
		c.Layout = string(secret.LayoutJSON)
	}
	return c, nil
}

// checkSecret looks at the name of a secret, which in Secrets Manager may be an ARN.
func (c initCmd) checkSecret(flag, name string) error {
	if !c.fromAWS() {
		if err := secret.CheckName(name); err != nil {
			return usagef("%s: %w", flag, err)
		}
		return nil
	}
	if err := secretsmanager.CheckName(name); err != nil {
		return usagef("%s: %w", flag, err)
	}
	switch region := secretsmanager.Region(name); {
	case region == "": // it is no ARN
		return nil
	case c.Region != "" && c.Region != region:
		return usagef("%s: that secret is in the region %s, and --region says %s", flag, region, c.Region)
	case flag == "--from" && c.Layout != string(secret.LayoutJSON):
		return usagef("--from: in the layout %s each part is a secret with an ARN of its own; write the name in place of the ARN", c.Layout)
	}
	return nil
}

// declared is the store that --from names, as a specification would declare it.
func (c initCmd) declared() mesh.Store {
	if !c.fromAWS() {
		return mesh.Store{Type: mesh.StoreFile, Dir: strings.TrimPrefix(c.From, "file:"), IdentityFile: c.IdentityFile}
	}
	region := cmp.Or(c.Region, secretsmanager.Region(c.Secret), secretsmanager.Region(c.bundleSecret()))
	return mesh.Store{Type: mesh.StoreSecretsManager, Region: region, Endpoint: c.EndpointURL}
}

// onlyAWS refuses flags of Secrets Manager for other sources, and an endpoint that is none.
func (c initCmd) onlyAWS() error {
	if c.fromAWS() {
		return checkEndpointURL(c.EndpointURL)
	}
	if c.Region == "" && c.EndpointURL == "" {
		return nil
	}
	return usagef("--region and --endpoint-url belong to --from secretsmanager:NAME; the source is %.100s", c.From)
}

// hinted adds to an error what is to be done where the certificate does not come from a person.
func (c initCmd) hinted(err error) error {
	var faults []*credential.Fault
	collect(err, &faults)
	unfilled := slices.ContainsFunc(faults, func(f *credential.Fault) bool { return strings.Contains(f.What, "PLACEHOLDER") })
	const run = "run `countersign rotate once --mesh PATH`, or start the rotation function, and then this task again"
	switch {
	case err == nil:
		return nil
	case c.fromAWS() && (errors.Is(err, secret.ErrNotFound) || unfilled):
		return fmt.Errorf("%w\nNo rotation has written this secret yet, or its name is another one: %s", err, run)
	case !c.fromStore() && onECS() && unfilled:
		return fmt.Errorf("%w\nNo rotation has written the secret yet: %s. Such variables (secrets in the task definition) are read by the execution role, when a task starts", err, run)
	case !c.fromStore() && onECS() && errors.As(err, new(unset)):
		return fmt.Errorf("%w\nOn ECS: variables are filled from secrets in the container's definition, by the execution role; to read Secrets Manager by the task role, write --from secretsmanager:NAME", err)
	}
	return err
}

// collect finds all faults in an error, which may be many joined.
func collect(err error, faults *[]*credential.Fault) {
	switch e := err.(type) { //nolint:errorlint // it walks the whole tree itself, where errors.As would stop at the first
	case nil:
	case *credential.Fault:
		*faults = append(*faults, e)
	case interface{ Unwrap() []error }:
		for _, one := range e.Unwrap() {
			collect(one, faults)
		}
	case interface{ Unwrap() error }:
		collect(e.Unwrap(), faults)
	}
}
