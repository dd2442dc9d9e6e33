// Package review knows what is wrong with a mesh that runs on AWS. It reads the deployed set-up and compares it with the
// specification: who can read and write which secret by all policies of the account, what task definitions and their old
// revisions hold, in which order containers start, what balancers can do, whether the schedule and the alarms are there,
// who has read a secret.
//
// It changes nothing, and reads no secret: it needs no secretsmanager:GetSecretValue, and never asks for it. What could
// not be read, or not be decided, is a finding of its own; a report never looks better because less was seen.
package review

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	ecstypes "github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"countersign.dev/aws/session"
	"countersign.dev/mesh"
)

// ErrNothing says that nothing of a specification runs on AWS.
var ErrNothing = errors.New("no workload of this specification has 'deploy: {type: ecs}' and a store of type secretsmanager: there is nothing on AWS to look at")

// Severity says how bad a finding is.
type Severity string

// The severities, the worst first.
const (
	// Error is a fault.
	Error Severity = "error"
	// Unknown is what could not be read or decided: whether it is a fault, nobody has seen.
	Unknown Severity = "unknown"
	// Warning is what makes a fault easier, or harder to see.
	Warning Severity = "warning"
)

// Code names a kind of finding. Codes stay as they are.
type Code string

// The codes. docs/check-aws.md explains them.
const (
	Unreadable         Code = "unreadable"
	Undecided          Code = "undecided"
	SecretMissing      Code = "secret_missing"
	NoResourcePolicy   Code = "no_resource_policy"
	PolicyGrants       Code = "policy_grants"
	CanRead            Code = "can_read"
	CanWrite           Code = "can_write"
	CannotRead         Code = "cannot_read"
	CanDecrypt         Code = "can_decrypt"
	Wildcard           Code = "wildcard"
	Trusts             Code = "role_trusts"
	TrustUnbound       Code = "trust_unbound"
	Excess             Code = "excess_right"
	RoleShared         Code = "role_shared"
	DefaultKey         Code = "default_key"
	KeyState           Code = "key_state"
	KeyGranted         Code = "key_granted"
	KeyPolicyGrants    Code = "key_policy_grants"
	KeyRotationOff     Code = "key_rotation_off"
	OtherKey           Code = "other_key"
	Replicated         Code = "secret_replicated"
	RotatedElsewhere   Code = "rotated_by_another"
	ReadByStranger     Code = "read_by_stranger"
	RotationOverdue    Code = "rotation_overdue"
	ServiceMissing     Code = "service_missing"
	ServiceBeside      Code = "service_undeclared"
	Unguarded          Code = "rollout_unguarded"
	RolloutFailed      Code = "rollout_failed"
	PublicAddress      Code = "public_address"
	TaskOutdated       Code = "task_outdated"
	TaskOutside        Code = "task_outside_service"
	Shell              Code = "shell"
	KeyInDefinition    Code = "key_in_definition"
	CertInDefinition   Code = "certificate_in_definition"
	PassInDefinition   Code = "passphrase_in_definition"
	SecretInDefinition Code = "secret_in_environment" //nolint:gosec // the name of a finding
	SecretOfAnother    Code = "secret_of_another"     //nolint:gosec // the name of a finding
	EnvironmentFile    Code = "environment_file"
	ContainerRights    Code = "container_rights"
	VolumeKept         Code = "volume_outlives_task"
	InitMissing        Code = "init_missing"
	NotSuccess         Code = "not_success"
	MountWritable      Code = "mount_writable"
	MountForeign       Code = "certificates_mounted"
	InitDiffers        Code = "init_differs"
	OldTLS             Code = "listener_without_tls13"
	AllowsOldTLS       Code = "listener_allows_old_tls"
	EndsTLS            Code = "listener_ends_tls"
	Plain              Code = "listener_plain"
	AuthorityState     Code = "authority_state"
	AuthorityMode      Code = "authority_mode"
	AuthorityKey       Code = "authority_key"
	AuthorityShared    Code = "authority_shared"
	CanIssue           Code = "can_issue"
	ScheduleMissing    Code = "schedule_missing"
	ScheduleDisabled   Code = "schedule_disabled"
	ScheduleSlow       Code = "schedule_slow"
	ScheduleInput      Code = "schedule_input"
	AlarmMissing       Code = "alarm_missing"
	AlarmNotBreaching  Code = "alarm_not_breaching"
	AlarmLate          Code = "alarm_too_late"
	AlarmSilent        Code = "alarm_silent"
)

// Finding is one thing that is wrong.
type Finding struct {
	Severity Severity `json:"severity"`
	Code     Code     `json:"code"`
	// Subject is what it is about: an ARN, or a name. Message says what is wrong, Action what to do.
	Subject string `json:"subject"`
	Message string `json:"message"`
	Action  string `json:"action"`
}

// Report is what was found, the worst first.
type Report struct {
	Mesh    string    `json:"mesh"`
	Account string    `json:"account,omitempty"`
	Regions []string  `json:"regions"`
	Checked time.Time `json:"checked"`
	// Looked is how many of what kind were looked at, for who wants to know that something was.
	Looked   map[string]int `json:"looked"`
	Findings []Finding      `json:"findings"`
}

// Bad tells whether there is a finding that is more than a warning.
func (r *Report) Bad() bool {
	return slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Severity != Warning })
}

// Config says what is looked at. Spec is needed.
type Config struct {
	Spec *mesh.Spec
	// Region is where a store says none; Endpoint takes the place of AWS's own. See [session.Config].
	Region, Endpoint string
	// Function is the name of the rotation function, and RotationRole that of its role; MESH-rotation when empty.
	Function, RotationRole string
	// Authorities are the ARNs of private CAs that the specification does not name, by the names of authorities. What stands here for
	// none is looked for in the policies of the rotation's role.
	Authorities map[string]string
	// Scheduled tells whether the function takes an input for the event of a schedule; it takes none for that when nil.
	Scheduled func(input string) bool
	// Rights gives the policies that templates give the roles of the mesh, as JSON, by the names that templates give the roles, for what is
	// known of the deployed; environment says that ECS reads the secrets. Policies are not compared with them when nil. See iac.Rights.
	Rights func(environment bool, known map[string]string) (map[string]string, error)
	// Since is how far back reads of secrets are looked for; a week when 0.
	Since time.Duration
	// Now is the clock; time.Now when nil.
	Now func() time.Time
	// Say is told what is looked at next, in a few words; nobody is when nil.
	Say func(what string)
}

// defaultSince is how far back reads are looked for.
const defaultSince = 7 * 24 * time.Hour

// Run looks at everything. Its errors are [ErrNothing] and those of [session.Load]; whatever else fails is a finding.
// When AWS cannot be asked who this is, in seconds, nothing else is asked. A context that ends makes what was left one finding.
func Run(ctx context.Context, c Config) (*Report, error) {
	c.Function = cmp.Or(c.Function, c.Spec.Mesh+"-rotation")
	c.RotationRole = cmp.Or(c.RotationRole, c.Spec.Mesh+"-rotation")
	c.Since = cmp.Or(c.Since, defaultSince)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Say == nil {
		c.Say = func(string) {}
	}
	r := &reviewer{Config: c, ended: ctx.Err, report: &Report{Mesh: c.Spec.Mesh, Checked: c.Now().UTC(), Looked: map[string]int{}, Findings: []Finding{}, Regions: []string{}}}
	if err := r.plan(ctx); err != nil {
		return nil, err
	}
	if c.Say("who asks (sts:GetCallerIdentity)"); r.whoAmI(ctx) {
		r.look(ctx)
	}
	if len(r.left) > 0 {
		r.add(Unknown, Unreadable, "what was left", fmt.Sprintf("it was not read, because the check came to its end (%v): %s", context.Cause(ctx), strings.Join(r.left, ", ")),
			"check again; until then nobody has seen whether this is right")
	}
	order := []Severity{Error, Unknown, Warning}
	slices.SortStableFunc(r.report.Findings, func(a, b Finding) int {
		return cmp.Or(slices.Index(order, a.Severity)-slices.Index(order, b.Severity), strings.Compare(a.Subject, b.Subject), strings.Compare(string(a.Code), string(b.Code)))
	})
	return r.report, nil
}

// look reads and judges everything.
func (r *reviewer) look(ctx context.Context) {
	r.Say("the roles and users of the account")
	r.readPeople(ctx)
	for _, w := range r.workloads {
		r.Say("the service " + w.name)
		r.readService(ctx, w)
	}
	r.Say("the other services of the clusters")
	r.readNeighbours(ctx)
	r.shareRoles()
	for _, s := range r.secrets {
		r.Say("the secret " + s.name)
		r.readSecret(ctx, s)
	}
	r.judgeReaders()
	r.Say("the keys")
	r.readKeys(ctx)
	r.judgeRoles()
	r.Say("the private CAs")
	r.readAuthorities(ctx)
	for _, p := range r.places {
		r.Say("who has read secrets in " + p.config.Region)
		r.readTrail(ctx, p)
	}
	r.Say("the schedule and the alarms")
	r.readSchedule(ctx)
	r.readAlarms(ctx)
}

// reviewer is one look.
type reviewer struct {
	Config
	ended     func() error // the context's
	left      []string     // what was not read any more when it had ended
	report    *Report
	places    []*place
	partition string
	account   string
	workloads []*workload
	secrets   []*secret
	people    []*person     // nil when they could not be read
	listed    []string      // the tasks of workloads' families
	every     time.Duration // how often the schedule runs; 0 when that is not known
}

// workload is a service or gateway that runs on ECS.
type workload struct {
	name    string
	plan    *mesh.Plan
	place   *place
	secrets []*secret // what its init reads
	// of the service as it is deployed; empty where it could not be read
	family, taskRole, executionRole string
	byExecution                     bool            // ECS reads the secrets for the init container
	tasks                           []ecstypes.Task // those of the service that have started
	start                           *ecstypes.ContainerDefinition
}

// reader is the role that has to read the workload's secrets: as deployed, or else by the name that templates give it.
func (w *workload) reader(r *reviewer) string {
	switch {
	case w.byExecution:
		return w.executionRole
	case w.taskRole != "":
		return w.taskRole
	default:
		return r.roleARN(r.Spec.Mesh + "-" + w.name + "-task")
	}
}

// secret is one that the mesh uses.
type secret struct {
	name    string
	place   *place
	store   string // its name in the specification
	readers []*workload
	// leaf is the workload whose current certificate this secret shows the age of; nil for others
	leaf *workload
	// as it is there; empty where it could not be read
	arn, key string
	keyARN   string
	policy   string
	read     bool
}

// subject is what a finding about the secret names.
func (s *secret) subject() string { return cmp.Or(s.arn, s.name) }

// plan finds out from the specification what has to be there.
func (r *reviewer) plan(ctx context.Context) error {
	for _, member := range r.Spec.Workloads() {
		p, err := r.Spec.Compile(member.Name)
		if err != nil {
			return err
		}
		if p.ECS == nil || p.Delivery.Store.Type != mesh.StoreSecretsManager {
			continue
		}
		place, err := r.at(ctx, p.Delivery.Store)
		if err != nil {
			return err
		}
		w := &workload{name: member.Name, plan: p, place: place}
		r.workloads = append(r.workloads, w)
		shape, err := p.Delivery.Shape()
		if err != nil {
			return fmt.Errorf("the delivery of %s: %w", w.name, err)
		}
		for i, name := range shape.Names(p.Delivery.Secret) {
			s := r.secret(name, p.Delivery.StoreName, place, w)
			if i == 0 {
				s.leaf = w
			}
		}
		r.secret(p.Delivery.Secret+".rotation", p.Delivery.StoreName, place, nil)
		if bundle := p.Delivery.Bundle; bundle != "" {
			r.secret(bundle, p.Delivery.StoreName, place, w)
			r.secret(bundle+".rotation", p.Delivery.StoreName, place, nil)
		}
		name, authority := r.Spec.AuthorityOf(member.Name)
		if store, ok := r.Spec.Stores[authority.Budget.Store]; ok && store.Type == mesh.StoreSecretsManager {
			if place, err = r.at(ctx, store.Store); err != nil {
				return err
			}
			r.secret(r.Spec.BudgetSecret(name), authority.Budget.Store, place, nil)
		}
	}
	if len(r.workloads) == 0 {
		return ErrNothing
	}
	return nil
}

// secret adds one, or a reader to one.
func (r *reviewer) secret(name, store string, p *place, reader *workload) *secret {
	i := slices.IndexFunc(r.secrets, func(s *secret) bool { return s.name == name && s.place == p })
	if i < 0 {
		i = len(r.secrets)
		r.secrets = append(r.secrets, &secret{name: name, store: store, place: p})
	}
	s := r.secrets[i]
	if reader != nil {
		s.readers = append(s.readers, reader)
		reader.secrets = append(reader.secrets, s)
	}
	return s
}

// add notes a finding.
func (r *reviewer) add(severity Severity, code Code, subject, message, action string) {
	f := Finding{severity, code, subject, message, action}
	if !slices.Contains(r.report.Findings, f) {
		r.report.Findings = append(r.report.Findings, f)
	}
}

// unread notes that something could not be read. The message has the details, such as the line that a policy lacks; what to do
// follows from why it is.
func (r *reviewer) unread(err error, action, resource, what string) {
	if r.ended() != nil {
		if !slices.Contains(r.left, what) {
			r.left = append(r.left, what)
		}
		return
	}
	err = session.Explain(err, action, resource)
	remedy := session.Remedy(err)
	switch {
	case errors.Is(err, session.ErrDenied):
		remedy += " (docs/check-aws.md has the whole policy), and check again"
	case remedy != "":
		remedy += " (the message says how), and check again"
	default:
		remedy = "see what AWS says to it, and check again"
	}
	r.add(Unknown, Unreadable, what, "it could not be read: "+err.Error(), remedy+"; until then nobody has seen whether this is right")
}

// roleARN is the ARN of a role of the account by its name or ARN.
func (r *reviewer) roleARN(name string) string {
	if strings.HasPrefix(name, "arn:") {
		return name
	}
	for _, p := range r.people {
		if p.role && p.name == name {
			return p.arn
		}
	}
	return "arn:" + r.partition + ":iam::" + r.account + ":role/" + name
}
