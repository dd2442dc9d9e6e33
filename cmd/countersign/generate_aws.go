package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"countersign.dev/cmd/countersign/internal/flags"
	"countersign.dev/durable"
	"countersign.dev/iac"
	"countersign.dev/mesh"
)

// awsFlags are what all outputs for AWS have.
type awsFlags struct {
	Path string `arg:"" help:"The specification: a file or a directory."`
	Init string `default:"task-role" enum:"task-role,environment" placeholder:"WAY" help:"Who reads the secrets when a task starts: task-role, init by the task role, or environment, ECS by the execution role, into the environment of init. Default: ${default}."`
	Out  string `placeholder:"FILE" help:"Write to this file, in one step. What is refused leaves the file as it is. Default: standard output."`
}

// awsARNs are what stands in for a template's own resources.
type awsARNs struct {
	ARN []string `name:"arn" sep:"none" placeholder:"NAME=ARN" help:"What is there already: NAME is that of a secret, key/STORE, authority/NAME or repository/NAME. May be repeated; what is missing is listed."`
}

type generateCloudFormationCmd struct{ awsFlags }

type generateTerraformCmd struct{ awsFlags }

type generateIAMCmd struct {
	awsFlags
	awsARNs
}

type generateTaskDefinitionCmd struct {
	awsFlags
	awsARNs
	Workload     string   `required:"" placeholder:"NAME" help:"The service or gateway whose task it is."`
	Image        []string `sep:"none" placeholder:"NAME=IMAGE" help:"The image of countersign, of nginx or haproxy, and under the service's name that of its application. May be repeated."`
	Endpoint     []string `sep:"none" placeholder:"SERVICE:PORT=HOST:PORT" help:"Where a called service is reached, best its balancer. May be repeated."`
	CPU          string   `name:"cpu" placeholder:"UNITS" help:"CPU units of the task. Default: 512."`
	Memory       string   `placeholder:"MIB" help:"MiB of the task. Default: 1024."`
	Architecture string   `default:"X86_64" enum:"X86_64,ARM64" placeholder:"NAME" help:"X86_64 or ARM64. Default: ${default}."`
	StreamModule string   `placeholder:"FILE" help:"The file of NGINX's stream module. Default: none, because it is compiled in."`
	HealthCheck  []string `placeholder:"WORD,..." help:"The command that finds the application healthy, as ECS takes it: CMD or CMD-SHELL and its words. Default: a connection to its port, by bash."`
}

const generateAWSHelp = `Every resource is named; the few wildcards that AWS leaves no way around stand there with their reason. What
cannot be deployed is refused with all reasons and their places, and nothing is written; see docs/ecs.md.

Example:
  `

// Help is shown by --help.
func (generateCloudFormationCmd) Help() string {
	return `The template of a stack that runs the mesh on ECS: secrets, keys, roles, private CA, balancers, task
definitions, services, the rotation with its schedule, and alarms. ` + generateAWSHelp +
		`countersign generate cloudformation mesh.yaml --out cloudformation.yaml`
}

// Help is shown by --help.
func (generateTerraformCmd) Help() string {
	return `The same as 'countersign generate cloudformation', for Terraform. ` + generateAWSHelp +
		`countersign generate terraform mesh.yaml --out main.tf`
}

// Help is shown by --help.
func (generateIAMCmd) Help() string {
	return `The policies of roles, secrets and keys as JSON, for those whose templates are made by somebody else. ` + generateAWSHelp +
		`countersign generate iam mesh.yaml \
    --arn payments/checkout=arn:aws:secretsmanager:eu-central-1:111122223333:secret:payments/checkout-AbCdEf --arn ...`
}

// Help is shown by --help.
func (generateTaskDefinitionCmd) Help() string {
	return `The task definition of one service or gateway as JSON, as 'aws ecs register-task-definition --cli-input-json'
takes it. ` + generateAWSHelp +
		`countersign generate task-definition mesh.yaml --workload checkout --image countersign=... --image nginx=... --image checkout=... \
    --endpoint ledger:9000=ledger.internal:9000 --arn payments/checkout=arn:aws:secretsmanager:... --arn payments/bundle=...`
}

// Run writes the template.
func (c generateCloudFormationCmd) Run(p *process) error {
	return c.write(p, iac.CloudFormation)
}

// Run writes the configuration.
func (c generateTerraformCmd) Run(p *process) error {
	return c.write(p, iac.Terraform)
}

// Run writes the policies.
func (c generateIAMCmd) Run(p *process) error {
	var given iac.Given
	var err error
	if given.ARNs, err = pairs("--arn", "NAME=ARN", c.ARN); err != nil {
		return err
	}
	return c.write(p, func(spec *mesh.Spec, o iac.Options) ([]byte, error) { return iac.IAM(spec, o, given) })
}

// Run writes the task definition.
func (c generateTaskDefinitionCmd) Run(p *process) error {
	given := iac.Given{CPU: c.CPU, Memory: c.Memory, Architecture: c.Architecture, StreamModule: c.StreamModule, Health: c.HealthCheck}
	for _, flag := range []struct {
		name, form string
		texts      []string
		to         *map[string]string
	}{
		{"--arn", "NAME=ARN", c.ARN, &given.ARNs},
		{"--image", "NAME=IMAGE", c.Image, &given.Images},
		{"--endpoint", "SERVICE:PORT=HOST:PORT", c.Endpoint, &given.Endpoints},
	} {
		var err error
		if *flag.to, err = pairs(flag.name, flag.form, flag.texts); err != nil {
			return err
		}
	}
	for _, text := range c.Endpoint { // as init in the task reads it
		if _, err := flags.ParseEndpoint(text); err != nil {
			return usagef("--endpoint %.200q: %w", text, err)
		}
	}
	return c.write(p, func(spec *mesh.Spec, o iac.Options) ([]byte, error) {
		return iac.TaskDefinition(spec, c.Workload, o, given)
	})
}

// pairs reads a flag that names things.
func pairs(flag, form string, texts []string) (map[string]string, error) {
	m := make(map[string]string)
	for _, text := range texts {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" || value == "" {
			return nil, usagef("%s %q is not %s", flag, text, form)
		}
		if _, twice := m[name]; twice {
			return nil, usagef("%s %s is given twice", flag, name)
		}
		m[name] = value
	}
	return m, nil
}

// checkOut refuses to write over what is read, and where no file can be.
func checkOut(out, path string) error {
	if out == "" {
		return nil
	}
	to, err := os.Stat(out)
	if err != nil {
		return nil //nolint:nilerr // there is nothing that could be lost; writing says what is wrong with the place
	}
	if to.IsDir() {
		return usagef("--out %s is a directory; name a file, such as %s", out, filepath.Join(out, "NAME"))
	}
	from, err := os.Stat(path)
	if err != nil {
		return nil //nolint:nilerr // reading the specification says it
	}
	if os.SameFile(to, from) {
		return usagef("--out %s is the specification itself; name another file", out)
	}
	if from.IsDir() {
		inside, err := mesh.ReadDocuments(path)
		for _, d := range inside {
			if part, statErr := os.Stat(d.Name); err == nil && statErr == nil && os.SameFile(to, part) {
				return usagef("--out %s is a part of the specification; name another file", out)
			}
		}
	}
	return nil
}

// write reads the specification and writes what is made of it.
func (c awsFlags) write(p *process, generate func(*mesh.Spec, iac.Options) ([]byte, error)) error {
	if err := checkOut(c.Out, c.Path); err != nil {
		return err
	}
	spec, err := loadSpec(p, c.Path)
	if err != nil {
		return err
	}
	text, err := generate(spec, iac.Options{Init: iac.Init(c.Init)})
	switch {
	case errors.Is(err, iac.ErrRefused), errors.Is(err, iac.ErrGiven), errors.Is(err, iac.ErrMissing), errors.Is(err, iac.ErrTooLarge), errors.Is(err, mesh.ErrNoWorkload):
		return usageError{err}
	case err != nil:
		return err
	}
	if c.Out != "" { // it holds no secret
		if err := durable.WriteFile(c.Out, text, 0o644); err != nil {
			return fmt.Errorf("--out: %w", err)
		}
		fmt.Fprintf(p.stderr, "wrote %s\n", c.Out)
		return nil
	}
	_, err = p.stdout.Write(text)
	return err
}
