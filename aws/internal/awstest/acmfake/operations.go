package acmfake

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// certificate is one certificate of the account.
type certificate struct {
	arn, ca, domain string
	names           []string
	algorithm       string // as the API spells it
	tags            map[string]string
	created         time.Time
	status, failure string
	revoked         time.Time
	version         *version // what is in force; nil while it is issued first
	exported        bool     // since the version came

	// pending is how many looks are to be made before what was asked for is there.
	pending int
	// renewal is the state of the last renewal; empty for none.
	renewal, renewalFailure string
	renewed                 time.Time
}

var (
	domainForm = regexp.MustCompile(`^(\*\.)?(((?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]{0,61}[A-Za-z0-9]))\.)+([A-Za-z0-9][A-Za-z0-9-]{0,61}[A-Za-z0-9])$`)
	tokenForm  = regexp.MustCompile(`^\w{1,32}$`)
	caForm     = regexp.MustCompile(`^arn:aws(-cn|-us-gov)?:acm-pca:[a-z0-9-]+:[0-9]{12}:certificate-authority/[0-9a-f-]{36}$`)
	certForm   = regexp.MustCompile(`^arn:aws(-cn|-us-gov)?:acm:[a-z0-9-]+:[0-9]{12}:certificate/[0-9a-f-]{36}$`)
)

// tokenLife is how long ACM remembers an idempotency token.
const tokenLife = time.Hour

// requestAlgorithms are those that ACM makes keys of.
var requestAlgorithms = []string{"RSA_2048", "EC_prime256v1", "EC_secp384r1"}

func (f *Fake) request(body []byte) (any, error) {
	var in struct {
		DomainName, CertificateAuthorityArn, IdempotencyToken, KeyAlgorithm string
		SubjectAlternativeNames                                             []string
		Tags                                                                []tag
	}
	if err := read(body, &in); err != nil {
		return nil, err
	}
	for _, name := range append([]string{in.DomainName}, in.SubjectAlternativeNames...) {
		if len(name) > 253 || !domainForm.MatchString(name) {
			return nil, refuse("ValidationException", "1 validation error detected: Value %q at 'domainName' failed to satisfy constraint", name)
		}
	}
	const maxCommonName = 64
	switch {
	case len(in.DomainName) > maxCommonName:
		return nil, refuse("InvalidDomainValidationOptionsException", "The first domain name can be no longer than 64 characters.")
	case in.CertificateAuthorityArn == "":
		return nil, refuse("InvalidParameterException", "this ACM issues no public certificates")
	case !caForm.MatchString(in.CertificateAuthorityArn):
		return nil, refuse("InvalidArnException", "The specified ARN is not the one of a private CA.")
	case in.IdempotencyToken != "" && !tokenForm.MatchString(in.IdempotencyToken):
		return nil, refuse("ValidationException", "1 validation error detected: Value at 'idempotencyToken' failed to satisfy constraint: Member must satisfy regular expression pattern: \\w+")
	case in.KeyAlgorithm == "":
		in.KeyAlgorithm = requestAlgorithms[0]
	case !slices.Contains(requestAlgorithms, in.KeyAlgorithm):
		return nil, refuse("ValidationException", "the key algorithm %s is for imported certificates only", in.KeyAlgorithm)
	}
	now := f.o.Now()
	// A token is one of what was asked for with it.
	key := strings.Join([]string{in.IdempotencyToken, in.DomainName, in.CertificateAuthorityArn, in.KeyAlgorithm}, "\x00")
	if known, ok := f.tokens[key]; ok && in.IdempotencyToken != "" && now.Before(known.until) && f.certs[known.arn] != nil {
		return map[string]string{"CertificateArn": known.arn}, nil
	}
	c := &certificate{
		arn: "arn:aws:acm:" + f.o.Region + ":" + f.o.Account + ":certificate/" + newUUID(), ca: in.CertificateAuthorityArn, domain: in.DomainName,
		algorithm: in.KeyAlgorithm, tags: make(map[string]string), created: now, status: "PENDING_VALIDATION", pending: f.o.PendingPolls,
		names: slices.Compact(append([]string{in.DomainName}, in.SubjectAlternativeNames...)),
	}
	for _, t := range in.Tags {
		c.tags[t.Key] = t.Value
	}
	f.certs[c.arn], f.tokens[key] = c, token{c.arn, now.Add(tokenLife)}
	f.order = append(f.order, c.arn)
	return map[string]string{"CertificateArn": c.arn}, nil
}

// find gives the certificate that a request names.
func (f *Fake) find(body []byte) (*certificate, error) {
	var in struct{ CertificateArn string }
	if err := read(body, &in); err != nil {
		return nil, err
	}
	if !certForm.MatchString(in.CertificateArn) {
		return nil, refuse("InvalidArnException", "%q is not the ARN of a certificate", in.CertificateArn)
	}
	c := f.certs[in.CertificateArn]
	if c == nil {
		return nil, refuse("ResourceNotFoundException", "Could not find certificate %s.", in.CertificateArn)
	}
	return c, nil
}

func (f *Fake) describe(body []byte) (any, error) {
	c, err := f.find(body)
	if err != nil {
		return nil, err
	}
	f.settle(c)
	// The key's algorithm is spelled otherwise here than where it is asked for, as in the examples of ACM's own documentation.
	detail := map[string]any{
		"CertificateArn": c.arn, "CertificateAuthorityArn": c.ca, "DomainName": c.domain, "SubjectAlternativeNames": c.names,
		"Type": "PRIVATE", "Status": c.status, "KeyAlgorithm": strings.Replace(c.algorithm, "_", "-", 1), "CreatedAt": seconds(c.created),
		"RenewalEligibility": c.eligibility(), "InUseBy": []string{},
		"Options": map[string]string{"CertificateTransparencyLoggingPreference": "DISABLED"},
	}
	if c.failure != "" {
		detail["FailureReason"] = c.failure
	}
	if v := c.version; v != nil {
		detail["Serial"], detail["Subject"], detail["Issuer"] = v.serial(), "CN="+c.domain, v.leaf.Issuer.String()
		detail["NotBefore"], detail["NotAfter"], detail["IssuedAt"] = seconds(v.leaf.NotBefore), seconds(v.leaf.NotAfter), seconds(v.issued)
		detail["SignatureAlgorithm"] = strings.ReplaceAll(v.leaf.SignatureAlgorithm.String(), "-", "WITH")
	}
	if c.renewal != "" {
		summary := map[string]any{"RenewalStatus": c.renewal, "DomainValidationOptions": []any{}, "UpdatedAt": seconds(c.renewed)}
		if c.renewalFailure != "" {
			summary["RenewalStatusReason"] = c.renewalFailure
		}
		detail["RenewalSummary"] = summary
	}
	if !c.revoked.IsZero() {
		detail["RevokedAt"], detail["RevocationReason"] = seconds(c.revoked), "UNSPECIFIED"
	}
	return map[string]any{"Certificate": detail}, nil
}

// eligibility says whether ACM renews it: a private certificate that nobody has exported is of use to nobody.
func (c *certificate) eligibility() string {
	if c.status == "ISSUED" && c.exported {
		return "ELIGIBLE"
	}
	return "INELIGIBLE"
}

func (f *Fake) get(body []byte) (any, error) {
	c, err := f.find(body)
	if err != nil {
		return nil, err
	}
	if c.version == nil {
		return nil, refuse("RequestInProgressException", "The certificate request is in process and the certificate in your account has not yet been issued.")
	}
	return map[string]string{"Certificate": c.version.leafPEM, "CertificateChain": c.version.chainPEM}, nil
}

// listed are the key algorithms that ListCertificates shows to those who do not say which they want.
var listed = []string{"RSA_1024", "RSA_2048"}

func (f *Fake) list(body []byte) (any, error) {
	in := struct {
		CertificateStatuses []string
		Includes            struct {
			KeyTypes []string `json:"keyTypes"`
		}
		MaxItems  int
		NextToken string
	}{}
	if err := read(body, &in); err != nil {
		return nil, err
	}
	wanted := in.Includes.KeyTypes
	if len(wanted) == 0 {
		wanted = listed
	}
	from := 0
	if in.NextToken != "" {
		var err error
		if from, err = strconv.Atoi(in.NextToken); err != nil || from < 0 || from > len(f.order) {
			return nil, refuse("ValidationException", "the token is none of ours")
		}
	}
	size := f.o.PageSize
	if in.MaxItems > 0 {
		size = min(size, in.MaxItems)
	}
	answer := map[string]any{}
	summaries := []any{}
	for i := from; i < len(f.order); i++ {
		if len(summaries) == size {
			answer["NextToken"] = strconv.Itoa(i)
			break
		}
		c := f.certs[f.order[i]]
		if c == nil || !slices.Contains(wanted, c.algorithm) || len(in.CertificateStatuses) > 0 && !slices.Contains(in.CertificateStatuses, c.status) {
			continue
		}
		summary := map[string]any{
			"CertificateArn": c.arn, "DomainName": c.domain, "SubjectAlternativeNameSummaries": c.names, "Status": c.status, "Type": "PRIVATE",
			"KeyAlgorithm": c.algorithm, "Exported": c.exported, "InUse": false, "RenewalEligibility": c.eligibility(), "CreatedAt": seconds(c.created),
		}
		if c.version != nil {
			summary["NotAfter"], summary["NotBefore"] = seconds(c.version.leaf.NotAfter), seconds(c.version.leaf.NotBefore)
		}
		summaries = append(summaries, summary)
	}
	answer["CertificateSummaryList"] = summaries
	return answer, nil
}

func (f *Fake) export(body []byte) (any, error) {
	var in struct{ Passphrase []byte }
	c, err := f.find(body)
	if err != nil {
		return nil, err
	}
	if err := read(body, &in); err != nil {
		return nil, err
	}
	const shortest, longest = 4, 128
	if len(in.Passphrase) < shortest || len(in.Passphrase) > longest {
		return nil, refuse("ValidationException", "1 validation error detected: Value at 'passphrase' failed to satisfy constraint: Member must have length between 4 and 128")
	}
	for _, b := range in.Passphrase {
		if b >= 0x80 || strings.IndexByte("#$%", b) >= 0 {
			return nil, refuse("ValidationException", "The passphrase contains characters that are not allowed: use any ASCII character except #, $ and %%.")
		}
	}
	switch {
	case c.version == nil:
		return nil, refuse("RequestInProgressException", "The certificate request is in process and the certificate in your account has not yet been issued.")
	case c.status != "ISSUED":
		return nil, refuse("ValidationException", "Certificate %s is in status %s and cannot be exported.", c.arn, c.status)
	}
	key, err := encrypt(c.version.key, in.Passphrase)
	if err != nil {
		return nil, err
	}
	c.exported = true
	return map[string]string{"Certificate": c.version.leafPEM, "CertificateChain": c.version.chainPEM, "PrivateKey": key}, nil
}

func (f *Fake) renew(body []byte) (any, error) {
	c, err := f.find(body)
	if err != nil {
		return nil, err
	}
	switch {
	case c.version == nil, c.renewal == pendingRenewal:
		return nil, refuse("RequestInProgressException", "The certificate request is in process and the certificate in your account has not yet been issued.")
	case c.eligibility() != "ELIGIBLE":
		return nil, refuse("ValidationException", "Certificate %s is not eligible for renewal: only private certificates that were exported are.", c.arn)
	}
	f.beginRenewal(c)
	return nil, nil
}

func (f *Fake) remove(body []byte) (any, error) {
	c, err := f.find(body)
	if err != nil {
		return nil, err
	}
	delete(f.certs, c.arn)
	return nil, nil
}

type tag struct{ Key, Value string }

func (f *Fake) addTags(body []byte) (any, error)    { return f.changeTags(body, false) }
func (f *Fake) removeTags(body []byte) (any, error) { return f.changeTags(body, true) }

func (f *Fake) changeTags(body []byte, remove bool) (any, error) {
	var in struct{ Tags []tag }
	c, err := f.find(body)
	if err != nil {
		return nil, err
	}
	if err := read(body, &in); err != nil {
		return nil, err
	}
	for _, t := range in.Tags {
		if remove {
			delete(c.tags, t.Key)
		} else {
			c.tags[t.Key] = t.Value
		}
	}
	return nil, nil
}

func (f *Fake) listTags(body []byte) (any, error) {
	c, err := f.find(body)
	if err != nil {
		return nil, err
	}
	tags := []tag{}
	for key, value := range c.tags {
		tags = append(tags, tag{key, value})
	}
	slices.SortFunc(tags, func(a, b tag) int { return strings.Compare(a.Key, b.Key) })
	return map[string]any{"Tags": tags}, nil
}
