package review

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"

	"countersign.dev/aws/review/policy"
)

// person is a role or a user of the account with everything that says what it may do.
type person struct {
	arn, name string
	role      bool
	service   bool // AWS's own, for one of its services
	trust     *policy.Document
	policies  []named
	boundary  *policy.Document
}

// named is a policy and what it is called.
type named struct {
	name string
	*policy.Document
}

// documents are the policies without their names.
func (p *person) documents() []*policy.Document {
	var all []*policy.Document
	for _, n := range p.policies {
		all = append(all, n.Document)
	}
	return all
}

// decide tells what the person may do.
func (p *person) decide(q policy.Question, resource *policy.Document, decisive bool) policy.Verdict {
	q.Caller = p.arn
	known := map[string]string{"aws:principalarn": p.arn, "aws:principalaccount": account(p.arn), "aws:securetransport": "true", "aws:principalisawsservice": "false"}
	for key, value := range q.Context {
		known[key] = value
	}
	q.Context = known
	return policy.Decide(q, policy.Policies{Identity: p.documents(), Boundary: p.boundary, Resource: resource, Decisive: decisive})
}

// account is that of an ARN.
func account(arn string) string {
	const at, parts = 4, 6
	if split := strings.SplitN(arn, ":", parts); len(split) == parts {
		return split[at]
	}
	return ""
}

// directory is what IAM holds, by names and ARNs.
type directory struct {
	managed map[string]*policy.Document
	groups  map[string][]named
}

// readPeople reads all roles and users with their policies.
func (r *reviewer) readPeople(ctx context.Context) {
	const action = "iam:GetAccountAuthorizationDetails"
	var roles []types.RoleDetail
	var users []types.UserDetail
	var groups []types.GroupDetail
	d := directory{managed: map[string]*policy.Document{}, groups: map[string][]named{}}
	pages := iam.NewGetAccountAuthorizationDetailsPaginator(r.ofAccount(), &iam.GetAccountAuthorizationDetailsInput{
		Filter: []types.EntityType{types.EntityTypeRole, types.EntityTypeUser, types.EntityTypeGroup, types.EntityTypeLocalManagedPolicy, types.EntityTypeAWSManagedPolicy},
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			r.unread(err, action, "*", "the roles and users of the account")
			return
		}
		roles, users, groups = append(roles, page.RoleDetailList...), append(users, page.UserDetailList...), append(groups, page.GroupDetailList...)
		for _, p := range page.Policies {
			for _, version := range p.PolicyVersionList {
				if version.IsDefaultVersion {
					d.managed[aws.ToString(p.Arn)] = document(version.Document)
				}
			}
		}
	}
	for _, g := range groups {
		d.groups[aws.ToString(g.GroupName)] = d.policies(g.GroupPolicyList, g.AttachedManagedPolicies)
	}
	r.people = []*person{}
	for _, role := range roles {
		arn := aws.ToString(role.Arn)
		p := &person{arn: arn, name: aws.ToString(role.RoleName), role: true, service: strings.Contains(arn, ":role/aws-service-role/"), trust: document(role.AssumeRolePolicyDocument)}
		p.policies, p.boundary = d.policies(role.RolePolicyList, role.AttachedManagedPolicies), d.boundary(role.PermissionsBoundary)
		r.people = append(r.people, p)
	}
	for _, user := range users {
		p := &person{arn: aws.ToString(user.Arn), name: aws.ToString(user.UserName)}
		p.policies, p.boundary = d.policies(user.UserPolicyList, user.AttachedManagedPolicies), d.boundary(user.PermissionsBoundary)
		for _, group := range user.GroupList {
			p.policies = append(p.policies, d.groups[group]...)
		}
		r.people = append(r.people, p)
	}
	slices.SortFunc(r.people, func(a, b *person) int { return strings.Compare(a.arn, b.arn) })
	r.report.Looked["roles and users"] = len(r.people)
}

// document reads a policy as IAM gives it: encoded as in a URL. One that cannot be read may allow anything.
func document(text *string) *policy.Document {
	plain, err := url.PathUnescape(aws.ToString(text)) // RFC 3986, where + is itself
	if err == nil {
		var d *policy.Document
		if d, err = policy.Parse(plain); err == nil {
			return d
		}
	}
	return policy.Opaque()
}

func (d directory) policies(inline []types.PolicyDetail, attached []types.AttachedPolicy) []named {
	var all []named
	for _, p := range inline {
		all = append(all, named{aws.ToString(p.PolicyName), document(p.PolicyDocument)})
	}
	for _, p := range attached {
		found := d.managed[aws.ToString(p.PolicyArn)]
		if found == nil {
			found = policy.Opaque()
		}
		all = append(all, named{aws.ToString(p.PolicyArn), found})
	}
	return all
}

func (d directory) boundary(b *types.AttachedPermissionsBoundary) *policy.Document {
	if b == nil {
		return nil
	}
	if found := d.managed[aws.ToString(b.PermissionsBoundaryArn)]; found != nil {
		return found
	}
	return policy.Opaque()
}

// role finds a role by its name or ARN.
func (r *reviewer) role(nameOrARN string) *person {
	for _, p := range r.people {
		if p.role && (p.arn == nameOrARN || p.name == nameOrARN) {
			return p
		}
	}
	return nil
}

// tasksService takes the roles of tasks.
const tasksService = "ecs-tasks.amazonaws.com"

// own are the roles of the mesh, with the services that may take them.
func (r *reviewer) own() map[string]string {
	all := map[string]string{r.roleARN(r.RotationRole): "lambda.amazonaws.com"}
	for _, w := range r.workloads {
		for _, arn := range []string{w.taskRole, w.executionRole} {
			if arn != "" {
				all[arn] = tasksService
			}
		}
	}
	return all
}

// sensitive are the actions that no wildcard may be about: on secrets and keys, those that cost money or start something, and those
// by which a role gives itself more.
var sensitive = []string{
	"secretsmanager:GetSecretValue", "secretsmanager:BatchGetSecretValue", "secretsmanager:PutSecretValue", "secretsmanager:UpdateSecret",
	"secretsmanager:UpdateSecretVersionStage", "secretsmanager:PutResourcePolicy", "kms:Decrypt", "kms:GenerateDataKey", "kms:CreateGrant", "kms:PutKeyPolicy",
	"secretsmanager:DeleteSecret", "secretsmanager:DeleteResourcePolicy", "secretsmanager:ReplicateSecretToRegions", "kms:DisableKey", "kms:ScheduleKeyDeletion",
	"acm-pca:IssueCertificate", "ecs:UpdateService", "ecs:RunTask", "ecs:RegisterTaskDefinition", "ecs:ExecuteCommand", "lambda:UpdateFunctionCode",
	"iam:PassRole", "iam:PutRolePolicy", "iam:AttachRolePolicy", "iam:CreatePolicyVersion", "iam:UpdateAssumeRolePolicy", "sts:AssumeRole",
}

// judgeRoles looks at the mesh's own roles: at wildcards, and at who may take them.
func (r *reviewer) judgeRoles() {
	if r.people == nil {
		return
	}
	meant := r.meant()
	for _, arn := range sorted(r.own()) {
		p := r.role(arn)
		if p == nil {
			r.add(Unknown, Undecided, arn, "this role of the mesh is not among the roles of the account", "see whether it is called otherwise (--rotation-role NAME), or of another account; a role that is not there is deployed again")
			continue
		}
		for _, n := range p.policies {
			for i, s := range n.Statements {
				hit := slices.DeleteFunc(slices.Clone(sensitive), func(action string) bool { return !s.Wild(action) })
				if len(hit) > 0 {
					where := fmt.Sprintf("statement %d", i+1)
					if s.Sid != "" {
						where = "statement " + s.Sid
					}
					r.add(Error, Wildcard, arn, fmt.Sprintf("the policy %s, %s, allows %s with a wildcard", n.name, where, few(hit)),
						"name each action and each ARN; `countersign generate iam` writes the policy without wildcards")
				}
			}
		}
		r.judgeExcess(p, meant)
		r.judgeTrust(p, r.own()[arn])
	}
}

// right is an action, and what it would be done to.
type right struct{ action, resource string }

// beyond are rights that no role of the mesh needs, nor the rotation where it says so: by them, it takes the place of another role, gets into
// other tasks, changes what is run or who may read, or issues certificates to itself.
func (r *reviewer) beyond(rotation bool) []right {
	var all []right
	add := func(resource string, actions ...string) {
		for _, action := range actions {
			all = append(all, right{action, resource})
		}
	}
	for _, arn := range sorted(r.own()) {
		add(arn, "iam:PassRole", "iam:PutRolePolicy", "iam:AttachRolePolicy", "iam:UpdateAssumeRolePolicy", "sts:AssumeRole")
	}
	function := r.arn(r.places[0], "lambda", "function:"+r.Function)
	add(function, "lambda:UpdateFunctionCode", "lambda:UpdateFunctionConfiguration")
	if !rotation {
		add(function, "lambda:InvokeFunction")
	}
	for _, w := range r.workloads {
		cluster, service := name(w.plan.ECS.Cluster), name(w.plan.ECS.Service)
		add(r.arn(w.place, "ecs", "task/"+cluster+"/any"), "ecs:ExecuteCommand")
		if !rotation {
			add(r.arn(w.place, "ecs", "service/"+cluster+"/"+service), "ecs:UpdateService")
		}
	}
	for _, s := range r.secrets {
		if s.arn != "" {
			add(s.arn, "secretsmanager:PutResourcePolicy", "secretsmanager:DeleteResourcePolicy", "secretsmanager:DeleteSecret", "secretsmanager:ReplicateSecretToRegions", "secretsmanager:RotateSecret")
		}
		if s.keyARN != "" {
			add(s.keyARN, "kms:CreateGrant", "kms:PutKeyPolicy", "kms:DisableKey", "kms:ScheduleKeyDeletion")
		}
	}
	return all
}

// judgeTrust looks at who may take a role of the mesh.
func (r *reviewer) judgeTrust(p *person, service string) {
	var others []string
	unbound := false
	for _, s := range p.trust.Statements {
		if s.Deny {
			continue
		}
		for _, who := range s.Principals {
			if who.Kind != "Service" || who.Value != service {
				others = append(others, who.Kind+" "+who.Value)
			} else if service == tasksService && s.Holds(r.forAnother()) != policy.No {
				unbound = true
			}
		}
		switch {
		case s.NotPrincipals != nil:
			others = append(others, "everybody but some")
		case s.Principals == nil:
			others = append(others, "whom, could not be read")
		}
	}
	if unbound {
		r.add(Warning, TrustUnbound, p.arn, "its trust policy does not say for which account "+service+" takes the role",
			"give it the condition StringEquals aws:SourceAccount with this account, as templates do: the service then takes it for nobody else")
	}
	if len(others) > 0 {
		slices.Sort(others)
		r.add(Error, Trusts, p.arn, "its trust policy lets others than "+service+" take the role: "+strings.Join(slices.Compact(others), ", "),
			"let the trust policy name "+service+" alone: whoever takes the role reads what it reads")
	}
}

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// forAnother is how a service asks for a role in the name of another account.
func (r *reviewer) forAnother() policy.Question {
	const another = "000000000000"
	return policy.Question{Action: "sts:AssumeRole", Context: map[string]string{
		"aws:sourceaccount": another, "aws:sourcearn": "arn:" + r.partition + ":ecs:" + r.places[0].config.Region + ":" + another + ":task/any",
	}}
}
