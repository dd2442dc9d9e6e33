package pcafake

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"math/big"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
)

func (f *Fake) list(in input) (any, error) {
	limit := in.MaxResults
	if limit <= 0 || limit > 1000 {
		limit = 1000
	}
	from := 0
	if in.NextToken != "" {
		var err error
		if from, err = strconv.Atoi(in.NextToken); err != nil || from < 0 {
			return nil, refuse("InvalidNextTokenException", "The token %q is not one.", in.NextToken)
		}
	}
	all := []output{}
	for _, a := range f.sorted() {
		if in.ResourceOwner != "OTHER_ACCOUNTS" {
			all = append(all, f.shown(a))
		}
	}
	end := min(from+limit, len(all))
	out := output{"CertificateAuthorities": all[min(from, end):end]}
	if end < len(all) {
		out["NextToken"] = strconv.Itoa(end)
	}
	return out, nil
}

// reasons are those of RevokeCertificate, as RFC 5280 section 5.3.1 numbers them.
var reasons = map[string]int{
	"UNSPECIFIED": 0, "KEY_COMPROMISE": 1, "CERTIFICATE_AUTHORITY_COMPROMISE": 2, "AFFILIATION_CHANGED": 3, "SUPERSEDED": 4,
	"CESSATION_OF_OPERATION": 5, "PRIVILEGE_WITHDRAWN": 9, "A_A_COMPROMISE": 10,
}

func (f *Fake) revoke(in input) (any, error) {
	a, err := f.find(in.CertificateAuthorityArn)
	if err != nil {
		return nil, err
	}
	reason, ok := reasons[in.RevocationReason]
	if !ok {
		return nil, invalid("The reason %q is none.", in.RevocationReason)
	}
	number, err := parseSerial(in.CertificateSerial)
	if err != nil {
		return nil, err
	}
	for _, entry := range a.revoked {
		if entry.SerialNumber.Cmp(number) == 0 {
			return nil, refuse("RequestAlreadyProcessedException", "The certificate %s was revoked already.", in.CertificateSerial)
		}
	}
	for _, made := range a.certificates {
		if made.cert != nil && made.cert.SerialNumber.Cmp(number) == 0 {
			a.revoked = append(a.revoked, x509.RevocationListEntry{SerialNumber: number, RevocationTime: f.now(), ReasonCode: reason})
			return nil, nil
		}
	}
	return nil, refuse("ResourceNotFoundException", "Could not find a certificate with the serial number %s.", in.CertificateSerial)
}

// crlURL is where a CA's list is, as it stands in certificates; empty when it has none.
func (a *authority) crlURL(region string) string {
	if a.revocation == nil || a.revocation.CrlConfiguration == nil || !a.revocation.CrlConfiguration.Enabled {
		return ""
	}
	crl := a.revocation.CrlConfiguration
	host := crl.CustomCname
	if host == "" {
		host = crl.S3BucketName + ".s3." + region + ".amazonaws.com"
	}
	return "http://" + path.Join(host, crl.CustomPath, "crl", a.id()+".crl")
}

// id is the last part of a CA's ARN.
func (a *authority) id() string { return a.arn[strings.LastIndex(a.arn, "/")+1:] }

func (f *Fake) serveCRL(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.authorities {
		if a.cert != nil && a.crlURL(f.o.Region) != "" && path.Base(r.URL.Path) == a.id()+".crl" {
			now := f.now()
			a.crls++
			der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
				Number: big.NewInt(a.crls), ThisUpdate: now, RevokedCertificateEntries: a.revoked,
				NextUpdate: now.AddDate(0, 0, a.revocation.CrlConfiguration.ExpirationInDays),
			}, a.cert, a.key)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			_, _ = w.Write(der)
			return
		}
	}
	http.NotFound(w, r)
}

func (f *Fake) putPolicy(in input) (any, error) {
	a, err := f.find(in.ResourceArn)
	if err != nil {
		return nil, err
	}
	if !json.Valid([]byte(in.Policy)) {
		return nil, refuse("InvalidPolicyException", "The policy is not JSON.")
	}
	a.policy = in.Policy
	return nil, nil
}

func (f *Fake) getPolicy(in input) (any, error) {
	a, err := f.find(in.ResourceArn)
	if err != nil {
		return nil, err
	}
	if a.policy == "" {
		return nil, refuse("ResourceNotFoundException", "Could not find a policy of %s.", a.arn)
	}
	return output{"Policy": a.policy}, nil
}

func (f *Fake) deletePolicy(in input) (any, error) {
	a, err := f.find(in.ResourceArn)
	if err != nil {
		return nil, err
	}
	a.policy = ""
	return nil, nil
}

func (f *Fake) tag(in input) (any, error) {
	a, err := f.find(in.CertificateAuthorityArn)
	if err != nil {
		return nil, err
	}
	for _, t := range in.Tags {
		if t.Key == "" || strings.HasPrefix(t.Key, "aws:") {
			return nil, refuse("InvalidTagException", "The tag %q is not valid.", t.Key)
		}
		a.tags[t.Key] = t.Value
	}
	if len(a.tags) > 50 {
		return nil, refuse("TooManyTagsException", "A certificate authority has at most 50 tags.")
	}
	return nil, nil
}

func (f *Fake) untag(in input) (any, error) {
	a, err := f.find(in.CertificateAuthorityArn)
	if err != nil {
		return nil, err
	}
	for _, t := range in.Tags {
		if value, ok := a.tags[t.Key]; ok && (t.Value == "" || t.Value == value) {
			delete(a.tags, t.Key)
		}
	}
	return nil, nil
}

func (f *Fake) listTags(in input) (any, error) {
	a, err := f.find(in.CertificateAuthorityArn)
	if err != nil {
		return nil, err
	}
	tags := []tag{}
	for key, value := range a.tags {
		tags = append(tags, tag{key, value})
	}
	slices.SortFunc(tags, func(x, y tag) int { return strings.Compare(x.Key, y.Key) })
	return output{"Tags": tags}, nil
}
