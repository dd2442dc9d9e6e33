package review

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	"github.com/aws/aws-sdk-go-v2/service/acmpca/types"

	"countersign.dev/aws/review/policy"
	"countersign.dev/aws/session"
	"countersign.dev/mesh"
)

// issuing is the action by which a private CA is asked for a certificate.
const issuing = "acm-pca:IssueCertificate"

// readAuthorities looks at the private CAs that issue for the workloads: their state, and who else has certificates made.
func (r *reviewer) readAuthorities(ctx context.Context) {
	used := map[string]time.Duration{} // the longest that certificates of an authority last
	for _, w := range r.workloads {
		if name, a := r.Spec.AuthorityOf(w.name); a.Foreign() {
			used[name] = max(used[name], time.Duration(w.plan.Certificate.TTL))
		}
	}
	found, given := map[string]*types.CertificateAuthority{}, []string{}
	var open []string // those whose private CA has to be found
	for _, name := range sorted(used) {
		a := r.Spec.Authorities[name]
		arn := cmp.Or(a.ARN, r.Authorities[name])
		if arn == "" {
			open = append(open, name)
			continue
		}
		given = append(given, arn)
		if shown, ok := r.describe(ctx, a, arn); ok {
			found[name] = shown
		}
	}
	if len(open) > 0 && r.people != nil {
		maps.Copy(found, r.findAuthorities(ctx, open, given))
	}
	for _, name := range sorted(found) {
		r.report.Looked["private CAs"]++
		r.judgeAuthority(ctx, name, found[name], used[name])
	}
}

// findAuthorities finds the private CAs that templates made: those that the rotation may have issue, by the names that they have there.
func (r *reviewer) findAuthorities(ctx context.Context, open, given []string) map[string]*types.CertificateAuthority {
	found, rest := map[string]*types.CertificateAuthority{}, []*types.CertificateAuthority{}
	failed := false
	for _, arn := range r.issuesFrom() {
		if slices.Contains(given, arn) {
			continue
		}
		shown, ok := r.describe(ctx, r.Spec.Authorities[open[0]], arn)
		if !ok {
			failed = true // that is a finding
			continue
		}
		name := ""
		if c := shown.CertificateAuthorityConfiguration; c != nil && c.Subject != nil {
			name = r.called(aws.ToString(c.Subject.CommonName), open)
		}
		if name != "" && found[name] == nil {
			found[name] = shown
		} else {
			rest = append(rest, shown)
		}
	}
	missing := slices.DeleteFunc(slices.Clone(open), func(name string) bool { return found[name] != nil })
	if len(missing) == 1 && len(rest) == 1 {
		found[missing[0]] = rest[0]
		return found
	}
	for _, name := range missing {
		if !failed {
			r.add(Unknown, Undecided, name, "which private CA it is, neither the specification says nor a policy of the rotation: nobody looked at it", "set "+mesh.AuthorityVariable(name)+" to its ARN, or write that as authorities."+name+".arn")
		}
	}
	return found
}

// called is which of some authorities has a CA of a common name by the template, which has room for 64 characters of it; nothing when it is none.
func (r *reviewer) called(common string, names []string) string {
	for _, name := range names {
		const most = 64
		if full := r.Spec.Mesh + " " + name; common == full[:min(len(full), most)] {
			return name
		}
	}
	return ""
}

// issuesFrom are the ARNs of private CAs that the rotation's policies name.
func (r *reviewer) issuesFrom() []string {
	var all []string
	p := r.role(r.roleARN(r.RotationRole))
	if p == nil {
		return nil
	}
	for _, d := range p.documents() {
		for _, s := range d.Statements {
			if s.Deny || !s.Covers(issuing) {
				continue
			}
			for _, resource := range s.Resources {
				if strings.Contains(resource, ":certificate-authority/") && !strings.ContainsAny(resource, "*?$") && !slices.Contains(all, resource) {
					all = append(all, resource)
				}
			}
		}
	}
	return all
}

// ofAuthority is the client of a private CA.
func (r *reviewer) ofAuthority(ctx context.Context, a mesh.Authority, arn string) (*acmpca.Client, error) {
	const region = 3
	config, err := session.Load(ctx, session.Config{Region: strings.Split(arn+":::", ":")[region], Endpoint: cmp.Or(r.Endpoint, a.Endpoint)})
	if err != nil {
		return nil, err
	}
	return acmpca.NewFromConfig(config), nil
}

// describe reads what a private CA is.
func (r *reviewer) describe(ctx context.Context, a mesh.Authority, arn string) (*types.CertificateAuthority, bool) {
	const action = "acm-pca:DescribeCertificateAuthority"
	client, err := r.ofAuthority(ctx, a, arn)
	if err != nil {
		r.unread(err, action, arn, arn)
		return nil, false
	}
	out, err := client.DescribeCertificateAuthority(ctx, &acmpca.DescribeCertificateAuthorityInput{CertificateAuthorityArn: &arn})
	if _, missing := errors.AsType[*types.ResourceNotFoundException](err); missing {
		r.add(Error, AuthorityState, arn, "there is no such private CA", "deploy the template of `countersign generate cloudformation`, which makes it, or correct the ARN")
		return nil, false
	}
	if err != nil {
		r.unread(err, action, arn, arn)
		return nil, false
	}
	return out.CertificateAuthority, true
}

// templateKey is what keys of private CAs templates make.
const templateKey = types.KeyAlgorithmEcSecp384r1

// soon is how long before the end of a private CA's own certificate that is told.
const soon = 90 * 24 * time.Hour

// judgeAuthority compares a private CA with what the specification says of it, and looks at who gets certificates from it.
func (r *reviewer) judgeAuthority(ctx context.Context, name string, ca *types.CertificateAuthority, ttl time.Duration) {
	a, arn := r.Spec.Authorities[name], aws.ToString(ca.Arn)
	switch end := aws.ToTime(ca.NotAfter); {
	case ca.Status != types.CertificateAuthorityStatusActive:
		r.add(Error, AuthorityState, arn, fmt.Sprintf("it is %s: nothing can be issued, and certificates end one after the other", ca.Status),
			"enable it (`aws acm-pca update-certificate-authority --status ACTIVE`), restore it when it is DELETED, or activate it (`countersign ca aws activate`)")
	case ca.NotAfter == nil:
	case end.Before(r.report.Checked.Add(ttl)):
		r.add(Error, AuthorityState, arn, fmt.Sprintf("its own certificate ends at %s, before one that it issues now (%s) would", end.UTC().Format(time.RFC3339), mesh.Duration(ttl)), "give it another certificate, or make another private CA (docs/private-ca.md)")
	case end.Before(r.report.Checked.Add(soon)):
		r.add(Warning, AuthorityState, arn, "its own certificate ends at "+end.UTC().Format(time.RFC3339), "give it another certificate, or make another private CA (docs/private-ca.md)")
	}
	short := ca.UsageMode == types.CertificateAuthorityUsageModeShortLivedCertificate
	switch want := a.Mode == mesh.ModeShortLived; {
	case short && !want:
		r.add(Error, AuthorityMode, arn, "it is in short-lived mode, and "+name+" is declared as general-purpose: it issues for at most seven days, and ACM cannot issue from it", "a mode does not change: make another private CA, or write mode: short-lived")
	case want && !short:
		r.add(Error, AuthorityMode, arn, "it is in general-purpose mode, and "+name+" is declared as short-lived: it issues for years, too, and each certificate costs more", "a mode does not change: make another private CA, or write mode: general-purpose")
	}
	if c := ca.CertificateAuthorityConfiguration; a.Create != "" && c != nil {
		if c.KeyAlgorithm != templateKey {
			r.add(Warning, AuthorityKey, arn, fmt.Sprintf("its key is %s, and templates make %s", c.KeyAlgorithm, templateKey), "a key does not change: make another private CA with the template")
		}
		if root := ca.Type == types.CertificateAuthorityTypeRoot; root != (a.Create == mesh.CreateRoot) {
			r.add(Error, AuthorityMode, arn, fmt.Sprintf("it is a %s CA, and %s is declared with create: %s", ca.Type, name, a.Create), "make another private CA, or correct the specification")
		}
	}
	if account(arn) == r.account {
		r.readShares(ctx, a, arn)
	}
	r.judgeIssuers(a, arn)
}

// readShares looks at which other accounts a private CA is shared with: each can have certificates made in the name of every workload.
func (r *reviewer) readShares(ctx context.Context, a mesh.Authority, arn string) {
	const action = "acm-pca:GetPolicy"
	const mend = "end the share in AWS RAM, or remove the policy (`aws acm-pca delete-policy`): whoever has certificates made there can name any workload in them"
	client, err := r.ofAuthority(ctx, a, arn)
	if err != nil {
		r.unread(err, action, arn, arn)
		return
	}
	out, err := client.GetPolicy(ctx, &acmpca.GetPolicyInput{ResourceArn: &arn})
	if _, none := errors.AsType[*types.ResourceNotFoundException](err); none {
		return
	}
	if err != nil {
		r.unread(err, action, arn, "with whom "+arn+" is shared")
		return
	}
	attached, err := policy.Parse(aws.ToString(out.Policy))
	if err != nil {
		r.add(Unknown, Undecided, arn, "its policy cannot be read: "+err.Error(), mend)
		return
	}
	if others := r.strangers(attached, issuing); len(others) > 0 {
		severity := Error
		if a.Create == "" {
			severity = Warning // somebody has one CA for several accounts
		}
		r.add(severity, AuthorityShared, arn, "it issues for others, too: "+few(others), mend)
	}
}

// leaf is the template of workloads, where the specification names no other.
const leaf = "EndEntityCertificate/V1"

// templates are all that somebody may have certificates made by, of workloads and of other CAs:
// https://docs.aws.amazon.com/privateca/latest/userguide/template-definitions.html. A policy may name any of them alone.
var templates = func() []string {
	all := []string{"RootCACertificate/V1", "RootCACertificate_APIPassthrough/V1", "BlankRootCACertificate_APIPassthrough/V1"}
	add := func(name string, blank bool) {
		if !blank {
			all = append(all, name+"/V1")
		}
		for _, passes := range []string{"API", "CSR", "APICSR"} {
			all = append(all, name+"_"+passes+"Passthrough/V1")
		}
	}
	for _, kind := range []string{"EndEntity", "EndEntityClientAuth", "EndEntityServerAuth", "CodeSigning", "OCSPSigning"} {
		add(kind+"Certificate", false)
	}
	add("BlankEndEntityCertificate", true)
	add("BlankEndEntityCertificate_CriticalBasicConstraints", true)
	for length := range 4 {
		add(fmt.Sprintf("SubordinateCACertificate_PathLen%d", length), false)
		add(fmt.Sprintf("BlankSubordinateCACertificate_PathLen%d", length), true)
		all = append(all, fmt.Sprintf("BlankRootCACertificate_PathLen%d_APIPassthrough/V1", length))
	}
	return all
}()

// judgeIssuers tells who else can have certificates made, in the name of any workload. Who may give himself any right is left out: that is
// administration, and cannot be taken from it.
func (r *reviewer) judgeIssuers(a mesh.Authority, arn string) {
	const mend = "take the right from their policies: `countersign generate iam` writes it for the rotation alone, for certificates of workloads"
	var can, perhaps []string
	_, own, _ := strings.Cut(cmp.Or(a.Template, "template/"+leaf), "template/")
	for _, p := range r.people {
		rotation := p.arn == r.roleARN(r.RotationRole)
		if p.service || r.administers(p) {
			continue
		}
		verdict := policy.No
		for _, template := range templates {
			if rotation && template == own || verdict == policy.Yes {
				continue
			}
			verdict = max(verdict, p.decide(policy.Question{Action: issuing, Resource: arn, Context: map[string]string{
				"acm-pca:templatearn": "arn:" + r.partition + ":acm-pca:::template/" + template, "aws:currenttime": r.report.Checked.Format(time.RFC3339),
			}}, nil, false))
		}
		switch {
		case verdict == policy.No:
		case verdict == policy.Yes && rotation:
			r.add(Error, CanIssue, arn, p.arn+" can have it make certificates by other templates than that of workloads, such as those of CAs", mend)
		case verdict == policy.Yes:
			can = append(can, p.arn)
		default:
			perhaps = append(perhaps, p.arn)
		}
	}
	if len(can) > 0 {
		r.add(Error, CanIssue, arn, few(can)+" can have it make certificates, in the name of any workload", mend)
	}
	if len(perhaps) > 0 {
		r.add(Unknown, Undecided, arn, "whether "+few(perhaps)+" can have it make certificates hangs on conditions that are not understood here", mend)
	}
}

// administers tells whether somebody can give himself, or the rotation, any right.
func (r *reviewer) administers(p *person) bool {
	for _, action := range []string{"iam:PutRolePolicy", "iam:AttachRolePolicy", "iam:PutUserPolicy", "iam:AttachUserPolicy"} {
		for _, on := range []string{r.roleARN(r.RotationRole), p.arn} {
			if p.decide(policy.Question{Action: action, Resource: on}, nil, false) == policy.Yes {
				return true
			}
		}
	}
	return false
}
