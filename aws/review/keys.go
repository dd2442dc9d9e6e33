package review

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	kmstypes "github.com/aws/aws-sdk-go-v2/service/kms/types"

	"countersign.dev/aws/review/policy"
)

// accounts tells whether a key is the account's own for Secrets Manager.
func accounts(key string) bool {
	return key == "" || strings.HasSuffix(key, "alias/aws/secretsmanager")
}

// readKeys looks at the keys of the secrets: their state, who can decrypt by them, and whether they are those that are meant.
func (r *reviewer) readKeys(ctx context.Context) {
	seen := map[string]string{} // the ARNs of keys, as far as they could be read, by the names that secrets have for them
	for _, s := range r.secrets {
		id := s.place.config.Region + " " + s.key
		arn, done := seen[id]
		if !done && !accounts(s.key) {
			arn = r.readKey(ctx, s)
			seen[id] = arn
		}
		s.keyARN = arn
	}
	r.judgeWhich(ctx)
}

// readKey looks at the key of a secret, and gives its ARN; nothing when it could not be read.
func (r *reviewer) readKey(ctx context.Context, s *secret) string {
	out, err := s.place.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &s.key})
	if err != nil {
		if _, missing := errors.AsType[*kmstypes.NotFoundException](err); missing {
			r.add(Error, KeyState, s.key, "the key of "+s.name+" is not there", "nothing that is encrypted with it can be read again: give the secrets another key, and rotate")
			return ""
		}
		r.unread(err, "kms:DescribeKey", s.key, s.key)
		return ""
	}
	r.report.Looked["keys"]++
	key := out.KeyMetadata
	arn := aws.ToString(key.Arn)
	if key.KeyState != kmstypes.KeyStateEnabled {
		r.add(Error, KeyState, arn, fmt.Sprintf("it is %s: no task that reads %s can start", key.KeyState, s.name),
			"enable it (`aws kms enable-key`), or cancel its deletion (`aws kms cancel-key-deletion`) and enable it then")
	} else {
		r.readRotation(ctx, s.place, key)
	}
	r.readGrants(ctx, s, arn)
	attached, err := s.place.kms.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: &arn, PolicyName: aws.String("default")})
	if err != nil {
		r.unread(err, "kms:GetKeyPolicy", arn, arn)
		return arn
	}
	r.judgeKey(arn, s.key, aws.ToString(attached.Policy))
	return arn
}

// readRotation sees whether a key's material is replaced. That of keys with other material than KMS's own cannot be.
func (r *reviewer) readRotation(ctx context.Context, p *place, key *kmstypes.KeyMetadata) {
	if key.KeyManager == kmstypes.KeyManagerTypeAws || key.Origin != kmstypes.OriginTypeAwsKms || key.KeySpec != kmstypes.KeySpecSymmetricDefault {
		return
	}
	arn := aws.ToString(key.Arn)
	out, err := p.kms.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: &arn})
	switch {
	case err != nil:
		r.unread(err, "kms:GetKeyRotationStatus", arn, "the rotation of "+arn)
	case !out.KeyRotationEnabled:
		r.add(Warning, KeyRotationOff, arn, "its material is never replaced", "enable it (`aws kms enable-key-rotation`): templates do")
	}
}

// granted are the rights by which a grant opens what is encrypted, or is passed on.
var granted = []kmstypes.GrantOperation{kmstypes.GrantOperationDecrypt, kmstypes.GrantOperationReEncryptFrom, kmstypes.GrantOperationCreateGrant}

// readGrants looks at what was granted beside all policies. The mesh needs no grant.
func (r *reviewer) readGrants(ctx context.Context, s *secret, arn string) {
	pages := kms.NewListGrantsPaginator(s.place.kms, &kms.ListGrantsInput{KeyId: &arn})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			r.unread(err, "kms:ListGrants", arn, "the grants of "+arn)
			return
		}
		for _, g := range page.Grants {
			var rights []string
			for _, operation := range g.Operations {
				if slices.Contains(granted, operation) {
					rights = append(rights, "kms:"+string(operation))
				}
			}
			if len(rights) == 0 {
				continue
			}
			whom := aws.ToString(g.GranteePrincipal)
			if service := aws.ToString(g.GranteeServicePrincipal); whom == "" {
				whom = service
			}
			severity, who := Error, whom
			if r.reads(s.key, whom) {
				severity, who = Warning, whom+", which is one of the mesh's own,"
			}
			r.add(severity, KeyGranted, arn, fmt.Sprintf("the grant %s lets %s use %s with it: policies of roles and of the key do not show that, and its conditions do not hold there", aws.ToString(g.GrantId), who, strings.Join(rights, ", ")),
				"revoke it (`aws kms revoke-grant`): nothing of the mesh needs one; find out who made it (CreateGrant in CloudTrail), and rotate what it opened")
		}
	}
}

// reads tells whether somebody has to read one of a key's secrets.
func (r *reviewer) reads(key, arn string) bool {
	return slices.ContainsFunc(r.secrets, func(s *secret) bool {
		meant, _ := r.may(s)
		return s.key == key && slices.Contains(meant, arn)
	})
}

// judgeWhich compares the keys that secrets have with those that they are to have: that of the store, or else the one that most of the
// store's secrets have.
func (r *reviewer) judgeWhich(ctx context.Context) {
	const mend = "encrypt it with the store's key (`aws secretsmanager update-secret --kms-key-id`), and rotate: versions that are there keep the key that they have"
	wanted := map[string]string{}
	for _, s := range r.secrets {
		named := r.Spec.Stores[s.store].KMSKey
		if s.arn == "" || accounts(s.key) && accounts(named) || !accounts(s.key) && s.keyARN == "" {
			continue
		}
		want, known := wanted[s.store]
		if !known {
			want = r.wanted(ctx, s, named)
			wanted[s.store] = want
		}
		switch {
		case want == "" || want == s.keyARN:
		case named != "":
			r.add(Error, OtherKey, s.arn, "it is encrypted with "+shown(s.keyARN)+", and the store "+s.store+" names "+named, mend)
		case !accounts(s.key):
			r.add(Error, OtherKey, s.arn, "it is encrypted with "+s.keyARN+", and other secrets of the store "+s.store+" with "+want, mend)
		}
	}
}

// shown is what a key is called.
func shown(arn string) string {
	if arn == "" {
		return "the account's own key for Secrets Manager"
	}
	return arn
}

// wanted is the ARN of the key that secrets of a store are to have; nothing where it is not known.
func (r *reviewer) wanted(ctx context.Context, s *secret, named string) string {
	if named == "" {
		count := map[string]int{}
		for _, other := range r.secrets {
			if other.store == s.store && other.keyARN != "" {
				count[other.keyARN]++
			}
		}
		return most(count)
	}
	if accounts(named) {
		return ""
	}
	out, err := s.place.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &named})
	if _, missing := errors.AsType[*kmstypes.NotFoundException](err); missing {
		r.add(Error, KeyState, named, "there is no such key, and the store "+s.store+" names it", "name the key of its secrets as kmsKey of the store, or make it")
		return ""
	}
	if err != nil {
		r.unread(err, "kms:DescribeKey", named, named)
		return ""
	}
	return aws.ToString(out.KeyMetadata.Arn)
}

// judgeKey tells who else could have a secret of the key decrypted. The secret's own policy stands before that: two locks are meant.
func (r *reviewer) judgeKey(arn, id, text string) {
	const mend = "put the key policy that `countersign generate iam` writes: it names who decrypts, and leaves administration"
	attached, err := policy.Parse(text)
	if err != nil {
		r.add(Unknown, Undecided, arn, "its policy cannot be read: "+err.Error(), mend)
		return
	}
	r.judgeStrangers(arn, attached)
	var can, perhaps []string
	cannot := map[string][]string{}
	for _, p := range r.people {
		verdict := policy.No
		for _, s := range r.secrets {
			meant, _ := r.may(s)
			if s.arn == "" || s.key != id || p.service {
				continue
			}
			may := r.opens(p, s, arn, attached, "kms:Decrypt", "secretsmanager."+s.place.config.Region+".amazonaws.com")
			switch {
			case !slices.Contains(meant, p.arn):
				verdict = max(verdict, may, r.opens(p, s, arn, attached, "kms:Decrypt", direct), r.opens(p, s, arn, attached, "kms:ReEncryptFrom", direct))
			case may == policy.No:
				cannot[s.arn] = append(cannot[s.arn], p.arn)
			}
		}
		switch verdict {
		case policy.Yes:
			can = append(can, p.arn)
		case policy.Maybe:
			perhaps = append(perhaps, p.arn)
		case policy.No:
		}
	}
	for _, secret := range sorted(cannot) {
		r.add(Error, CannotRead, secret, "it is to be read by "+few(cannot[secret])+", for whom it cannot be decrypted with "+arn, "give the role and the key the policies that `countersign generate iam` writes")
	}
	if len(can) > 0 {
		r.add(Warning, CanDecrypt, arn, few(can)+" could have secrets decrypted that are not for them; only the secrets' own policies stand in the way", mend)
	}
	if len(perhaps) > 0 {
		r.add(Unknown, Undecided, arn, "whether "+few(perhaps)+" could have secrets decrypted hangs on conditions that are not understood here", mend)
	}
}

// direct is by which service somebody calls who calls KMS himself.
const direct = ""

// opens tells whether somebody may do with the key of a secret what opens it, through a service or directly. To encrypt it anew with
// another key is to decrypt it.
func (r *reviewer) opens(p *person, s *secret, arn string, attached *policy.Document, action, through string) policy.Verdict {
	return p.decide(policy.Question{Action: action, Resource: arn, Context: map[string]string{
		"kms:viaservice": through, "kms:calleraccount": account(p.arn), "aws:currenttime": r.report.Checked.Format(time.RFC3339),
		"kms:encryptioncontext:secretarn": s.arn, "kms:encryptioncontext:secretversionid": "any",
	}}, attached, true)
}

// opening are the actions on a key that are for nobody outside of the account.
var opening = []string{"kms:Decrypt", "kms:ReEncryptFrom", "kms:CreateGrant", "kms:PutKeyPolicy"}

// judgeStrangers looks at whom the policy of a key names that is not of the account.
func (r *reviewer) judgeStrangers(arn string, attached *policy.Document) {
	const mend = "put the key policy that `countersign generate iam` writes: it names roles of the account, and no other account and no service"
	const nobody, region = "000000000000", 3
	var open, perhaps []string
	for _, s := range attached.Statements {
		if s.Deny {
			continue
		}
		who := s.Principals
		if s.NotPrincipals != nil {
			who = []policy.Principal{{Kind: "everybody", Value: "but some"}}
		}
		for _, p := range who {
			if p.Kind == "AWS" && p.Account() == r.account {
				continue
			}
			verdict, outside := policy.No, p.Account()
			if outside == "" {
				outside = nobody
			}
			for _, action := range opening {
				verdict = max(verdict, s.Holds(policy.Question{Action: action, Resource: arn, Context: map[string]string{
					"aws:principalaccount": outside, "kms:calleraccount": outside, "aws:principalarn": "arn:" + r.partition + ":iam::" + outside + ":role/stranger",
					"kms:viaservice": "secretsmanager." + strings.Split(arn+":::", ":")[region] + ".amazonaws.com",
				}}))
			}
			switch verdict {
			case policy.Yes:
				open = append(open, p.Kind+" "+p.Value)
			case policy.Maybe:
				perhaps = append(perhaps, p.Kind+" "+p.Value)
			case policy.No:
			}
		}
	}
	slices.Sort(open)
	slices.Sort(perhaps)
	if len(open) > 0 {
		r.add(Error, KeyPolicyGrants, arn, "its policy lets others in: "+few(slices.Compact(open)), mend)
	}
	if len(perhaps) > 0 {
		r.add(Unknown, Undecided, arn, "whether its policy lets "+few(slices.Compact(perhaps))+" in hangs on conditions that are not understood here", mend)
	}
}
