package review

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	smtypes "github.com/aws/aws-sdk-go-v2/service/secretsmanager/types"

	"countersign.dev/aws/review/policy"
)

// The actions that are asked about. A batch reads each secret by the right to read it, too.
var (
	reading = []string{"secretsmanager:GetSecretValue"}
	writing = []string{"secretsmanager:PutSecretValue", "secretsmanager:UpdateSecret", "secretsmanager:UpdateSecretVersionStage"}
	// governing are those by which a stranger gives himself the others, copies a secret or takes it away.
	governing = []string{
		"secretsmanager:BatchGetSecretValue", "secretsmanager:PutResourcePolicy", "secretsmanager:DeleteResourcePolicy", "secretsmanager:ReplicateSecretToRegions",
		"secretsmanager:RotateSecret", "secretsmanager:DeleteSecret",
	}
)

// readSecret reads what a secret is, and what hangs at it. Its value is never asked for.
func (r *reviewer) readSecret(ctx context.Context, s *secret) {
	const describe = "secretsmanager:DescribeSecret"
	resource := r.arn(s.place, "secretsmanager", "secret:"+s.name+"-*")
	out, err := s.place.secrets.DescribeSecret(ctx, &secretsmanager.DescribeSecretInput{SecretId: &s.name})
	if _, missing := errors.AsType[*smtypes.ResourceNotFoundException](err); missing {
		r.add(Error, SecretMissing, s.name, "there is no such secret in "+s.place.config.Region, "deploy the template of `countersign generate cloudformation`, which makes it, or see the store's region")
		return
	}
	if err != nil {
		r.unread(err, describe, resource, s.name)
		return
	}
	s.arn, s.key = aws.ToString(out.ARN), aws.ToString(out.KmsKeyId)
	r.report.Looked["secrets"]++
	if out.DeletedDate != nil {
		r.add(Error, SecretMissing, s.arn, "the secret is to be deleted on "+out.DeletedDate.UTC().Format(time.DateOnly), "restore it (`aws secretsmanager restore-secret`): no task starts without it")
	}
	r.judgeCopies(s, out)
	if accounts(s.key) {
		r.add(Warning, DefaultKey, s.arn, "it is encrypted with the account's own key for Secrets Manager, which everybody in the account may use through it",
			"give it a key of its own (kmsKey of the store), whose policy names who decrypts")
	}
	attached, err := s.place.secrets.GetResourcePolicy(ctx, &secretsmanager.GetResourcePolicyInput{SecretId: &s.arn})
	if err != nil {
		r.unread(err, "secretsmanager:GetResourcePolicy", s.arn, s.arn)
	} else {
		s.policy, s.read = aws.ToString(attached.ResourcePolicy), true
	}
	if s.leaf != nil {
		r.readAge(ctx, s)
	}
}

// judgeCopies looks at who else writes a secret, and where else it lies.
func (r *reviewer) judgeCopies(s *secret, out *secretsmanager.DescribeSecretOutput) {
	own, function := r.arn(s.place, "lambda", "function:"+r.Function), aws.ToString(out.RotationLambdaARN)
	if aws.ToBool(out.RotationEnabled) && function != own && !strings.HasPrefix(function, own+":") { // a version of it, or an alias
		r.add(Error, RotatedElsewhere, s.arn, "Secrets Manager rotates it by "+cmp.Or(function, "itself")+", which is not "+own+": whoever writes that function has the key, and what it writes is no certificate of the mesh",
			"end that (`aws secretsmanager cancel-rotate-secret`), see which versions it has written, and rotate: `countersign rotate once --force --mesh PATH`")
	}
	var regions []string
	for _, replica := range out.ReplicationStatus {
		regions = append(regions, aws.ToString(replica.Region))
	}
	if len(regions) > 0 {
		slices.Sort(regions)
		r.add(Error, Replicated, s.arn, "it is copied to "+few(regions)+", under keys that nobody looked at: whoever decrypts there has it, too",
			"remove the copies (`aws secretsmanager remove-regions-from-replication`): nothing of the mesh reads them; then rotate")
	}
}

// A rotation may come so late before it is a fault: a quarter of the time that is left for it, or two runs of a schedule of hours, but never later
// than the end of the certificate.
const (
	spareShare = 4
	leastSpare = 2 * time.Hour
)

// readAge sees when the current version was written. The value itself says more, and is not for us.
func (r *reviewer) readAge(ctx context.Context, s *secret) {
	pages := secretsmanager.NewListSecretVersionIdsPaginator(s.place.secrets, &secretsmanager.ListSecretVersionIdsInput{SecretId: &s.arn})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			r.unread(err, "secretsmanager:ListSecretVersionIds", s.arn, s.arn)
			return
		}
		for _, version := range page.Versions {
			if !slices.Contains(version.VersionStages, "AWSCURRENT") || version.CreatedDate == nil {
				continue
			}
			c := s.leaf.plan.Certificate
			spare := time.Duration(c.TTL) - time.Duration(c.RenewAfter)
			r.judgeOldest(s.leaf, *version.CreatedDate)
			late := r.report.Checked.Sub(version.CreatedDate.Add(time.Duration(c.RenewAfter) + min(max(spare/spareShare, leastSpare), spare)))
			if late > 0 {
				r.add(Error, RotationOverdue, s.arn, fmt.Sprintf("its current version is of %s, and was to be replaced after %s", version.CreatedDate.UTC().Format(time.RFC3339), time.Duration(c.RenewAfter)),
					"see why the rotation does not run: `countersign rotate status`, the log of the function "+r.Function+", and the schedule")
			}
			return
		}
	}
	r.add(Error, RotationOverdue, s.arn, "it has no current version", "rotate it: `countersign rotate once "+s.leaf.name+" --mesh PATH`")
}

// may is who of the mesh may read a secret, and who may write it, by their ARNs.
func (r *reviewer) may(s *secret) (read, write []string) {
	rotation := r.roleARN(r.RotationRole)
	read = []string{rotation}
	for _, w := range s.readers {
		read = append(read, w.reader(r))
	}
	return read, []string{rotation}
}

// judgeReaders tells who else can read or write secrets.
func (r *reviewer) judgeReaders() {
	for _, s := range r.secrets {
		if s.arn == "" || !s.read {
			continue // that is a finding already
		}
		attached := r.judgeResourcePolicy(s)
		if r.people == nil {
			continue
		}
		read, write := r.may(s)
		r.judgeAccess(s, attached, reading, read, CanRead, "read its value")
		r.judgeAccess(s, attached, writing, write, CanWrite, "write its value")
		var cannot []string
		for _, p := range r.people {
			if slices.Contains(read, p.arn) && r.decide(p, s, attached, reading) == policy.No {
				cannot = append(cannot, p.arn)
			}
		}
		if len(cannot) > 0 {
			r.add(Error, CannotRead, s.arn, "it is to be read by "+few(cannot)+", whom policies do not let", "give the role the policy that `countersign generate iam` writes, and the secret its resource policy: until then no task starts with it, or nothing is rotated")
		}
	}
}

// decide tells whether somebody may do one of the actions with a secret.
func (r *reviewer) decide(p *person, s *secret, attached *policy.Document, actions []string) policy.Verdict {
	verdict := policy.No
	for _, action := range actions {
		q := policy.Question{Action: action, Resource: s.arn, Context: map[string]string{"secretsmanager:secretid": s.arn, "aws:currenttime": r.report.Checked.Format(time.RFC3339)}}
		verdict = max(verdict, p.decide(q, attached, false))
	}
	return verdict
}

// judgeAccess names who may do one of the actions, and is not among those who are meant to.
func (r *reviewer) judgeAccess(s *secret, attached *policy.Document, actions, meant []string, code Code, what string) {
	var can, perhaps []string
	for _, p := range r.people {
		if p.service || slices.Contains(meant, p.arn) {
			continue
		}
		switch r.decide(p, s, attached, actions) {
		case policy.Yes:
			can = append(can, p.arn)
		case policy.Maybe:
			perhaps = append(perhaps, p.arn)
		case policy.No:
		}
	}
	const mend = "take the right from their policies, and let the secret's resource policy deny it to all but the mesh's own (`countersign generate iam` writes it)"
	if len(can) > 0 {
		r.add(Error, code, s.arn, few(can)+" can "+what, mend)
	}
	if len(perhaps) > 0 {
		r.add(Unknown, Undecided, s.arn, "whether "+few(perhaps)+" can "+what+" hangs on conditions, or on policies, that are not understood here", mend+"; then it hangs on nothing else")
	}
}

// few names some, and counts the rest.
func few(all []string) string {
	const most = 5
	if len(all) <= most {
		return strings.Join(all, ", ")
	}
	return fmt.Sprintf("%s and %d others", strings.Join(all[:most], ", "), len(all)-most)
}

// judgeResourcePolicy looks at what hangs at a secret, and gives it.
func (r *reviewer) judgeResourcePolicy(s *secret) *policy.Document {
	const mend = "put the policy that `countersign generate iam` writes: it denies reading and writing to all but the mesh's own roles"
	if s.policy == "" {
		r.add(Error, NoResourcePolicy, s.arn, "it has no resource policy: whoever may read secrets in this account, an administrator for example, reads it", mend)
		return nil
	}
	attached, err := policy.Parse(s.policy)
	if err != nil {
		r.add(Unknown, Undecided, s.arn, "its resource policy cannot be read: "+err.Error(), mend)
		return nil
	}
	if granted := r.strangers(attached, slices.Concat(reading, writing, governing)...); len(granted) > 0 {
		r.add(Error, PolicyGrants, s.arn, "its resource policy lets others in: "+few(granted), mend)
	}
	return attached
}

// strangers are whom a resource policy allows any of some actions and who are not of this account, each once, in order.
func (r *reviewer) strangers(attached *policy.Document, actions ...string) []string {
	var found []string
	for _, statement := range attached.Statements {
		if statement.Deny || !slices.ContainsFunc(actions, statement.Covers) {
			continue
		}
		if statement.NotPrincipals != nil {
			found = append(found, "everybody but some")
		}
		for _, p := range statement.Principals {
			if p.Kind != "AWS" || p.Account() != r.account {
				found = append(found, p.Kind+" "+p.Value)
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}
