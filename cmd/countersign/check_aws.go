package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"countersign.dev/aws/lambda/event"
	"countersign.dev/aws/review"
	"countersign.dev/expiry"
	"countersign.dev/iac"
	"countersign.dev/mesh"
)

type checkAWSCmd struct {
	Path         string        `arg:"" help:"The specification: a file, or a directory whose files are merged."`
	Region       string        `placeholder:"REGION" help:"The region of stores that name none. Default: that of the environment (AWS_REGION)."`
	EndpointURL  string        `name:"endpoint-url" placeholder:"URL" help:"Where AWS is asked in place of its own addresses."`
	Function     string        `placeholder:"NAME" help:"The rotation function. Default: MESH-rotation, as templates call it."`
	RotationRole string        `placeholder:"NAME" help:"The rotation function's role, by name or ARN. Default: MESH-rotation."`
	Since        time.Duration `default:"168h" help:"How far back CloudTrail is asked who has read secrets; at most 2160h, because it knows no more."`
	Timeout      time.Duration `default:"5m" help:"How long all of it may take; at most 30m."`
	outputFlag
}

// Help is what --help adds.
func (checkAWSCmd) Help() string {
	return `Reads what is deployed on AWS, compares it with the specification, and says what is wrong: who can read or write a
secret and should not, by all policies of the account; wildcards; keys and passphrases in task definitions and in
their old revisions; containers that start although init has failed, or get out of their own; tasks beside the
service, or with an old certificate; keys that are granted, private CAs that issue for others; balancers that end TLS
or cannot do 1.3; a schedule that is disabled or too slow, alarms that keep silent or come too late; secrets that
strangers have read, as far as CloudTrail knows.

It changes nothing, and reads no secret: it needs no secretsmanager:GetSecretValue. What could not be read or decided
is a finding, too, with the line that a policy lacks. docs/check-aws.md has all findings, and the policy for it.

Examples:
  countersign check aws mesh.yaml
  countersign check aws mesh.yaml --region eu-central-1 --output json

Exit status: 0 when nothing is wrong, or only warnings are there; 1 with an error, or with something that could not be
read; 2 for mistakes in what was asked, or in what is configured for AWS.`
}

// The bounds of the flags.
const (
	maxSince    = 90 * 24 * time.Hour
	maxAWSCheck = 30 * time.Minute
)

// What regions, functions and roles are called: a name that AWS cannot have is a mistake of the command line, and no finding.
var (
	regionName   = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+){1,5}$`)
	functionName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	roleName     = regexp.MustCompile(`^(arn:aws[a-z-]*:iam::[0-9]{12}:role/([!-~]{1,510}/)?)?[A-Za-z0-9_+=,.@-]{1,64}$`)
)

// Run looks.
func (c *checkAWSCmd) Run(p *process) error {
	switch {
	case c.Region != "" && !regionName.MatchString(c.Region):
		return usagef("--region %.80q is no region of AWS; write one such as eu-central-1", c.Region)
	case c.Function != "" && !functionName.MatchString(c.Function):
		return usagef("--function %.80q is no name of a function: letters, digits, - and _, at most 64; write the name alone, such as payments-rotation", c.Function)
	case c.RotationRole != "" && !roleName.MatchString(c.RotationRole):
		return usagef("--rotation-role %.80q is neither the name of a role nor its ARN; write it as `aws iam get-role` shows it", c.RotationRole)
	case c.Since <= 0 || c.Since > maxSince:
		return usagef("--since %s is out of range; give one above 0 and at most %s", c.Since, maxSince)
	case c.Timeout <= 0 || c.Timeout > maxAWSCheck:
		return usagef("--timeout %s is out of range; give one above 0 and at most %s", c.Timeout, maxAWSCheck)
	}
	if err := checkEndpointURL(c.EndpointURL); err != nil {
		return err
	}
	spec, err := mesh.Load(c.Path)
	if err != nil {
		return invalidSpecification(p, err)
	}
	ctx, cancel := context.WithTimeoutCause(p.ctx, c.Timeout, fmt.Errorf("the check was not done after %s; give it more time with --timeout", c.Timeout))
	defer cancel()
	waiting := newWaiting(p.stderr)
	report, err := review.Run(ctx, review.Config{
		Spec: spec, Region: c.Region, Endpoint: c.EndpointURL, Function: c.Function, RotationRole: c.RotationRole, Since: c.Since, Authorities: knownAuthorities(spec), Scheduled: scheduled,
		Rights: func(environment bool, known map[string]string) (map[string]string, error) {
			return iac.Rights(spec, iac.Options{Init: initBy(environment)}, known)
		},
		Say: func(what string) { waiting.say("looking at " + what) },
	})
	waiting.stop()
	if err != nil {
		return usageError{badAWS(err, regionByBoth)}
	}
	if err := c.print(p, report); err != nil {
		return err
	}
	if report.Bad() {
		return exitError{status: exitFailure, message: count(len(report.Findings), "finding")}
	}
	return nil
}

// initBy is who reads the secrets when a task starts.
func initBy(environment bool) iac.Init {
	if environment {
		return iac.InitEnvironment
	}
	return iac.InitTaskRole
}

// knownAuthorities are the private CAs that the environment names and the specification does not.
func knownAuthorities(spec *mesh.Spec) map[string]string {
	all := map[string]string{}
	for name := range spec.Authorities {
		if arn := os.Getenv(mesh.AuthorityVariable(name)); arn != "" {
			all[name] = arn
		}
	}
	return all
}

// scheduled tells whether the rotation function takes an input for the event of a schedule.
func scheduled(input string) bool {
	e, err := event.Parse([]byte(input))
	return err == nil && e.Kind == event.Schedule
}

// print writes the report: a line for each finding, and below it what is wrong and what to do.
func (c *checkAWSCmd) print(p *process, report *review.Report) error {
	if c.json() {
		return writeJSON(p, struct {
			Version int `json:"version"`
			*review.Report
		}{1, report})
	}
	paint := painter(isTerminal(p.stdout) && os.Getenv("NO_COLOR") == "")
	severities := map[review.Severity]expiry.Severity{review.Error: expiry.Critical, review.Unknown: expiry.Warning, review.Warning: expiry.Warning}
	widest := 0
	for _, f := range report.Findings {
		widest = max(widest, len(f.Code))
	}
	var out strings.Builder
	for _, f := range report.Findings {
		fmt.Fprintf(&out, "%s  %-*s  %s\n", paint(severities[f.Severity], fmt.Sprintf("%-7s", strings.ToUpper(string(f.Severity)))), widest, f.Code, printable(f.Subject))
		fmt.Fprintf(&out, "    %s\n    -> %s\n", printable(f.Message), printable(f.Action))
	}
	if len(report.Findings) > 0 {
		out.WriteByte('\n')
	}
	looked := report.Looked
	fmt.Fprintf(&out, "The mesh %s in %s: looked at %s, %s, %s, %s, %s, %s and %s; %s.\n", report.Mesh, strings.Join(report.Regions, ", "),
		count(looked["services"], "service"), count(looked["task definitions"], "task definition"), count(looked["secrets"], "secret"), count(looked["keys"], "key"),
		countOf(looked["roles and users"], "role or user", "roles and users"), count(looked["alarms"], "alarm"), countOf(looked["reads"], "read of a secret", "reads of secrets"), countOf(len(report.Findings), "finding", "findings"))
	_, err := io.WriteString(p.stdout, out.String())
	return err
}

// countOf is a count with its noun, whose plural is not by an s.
func countOf(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
