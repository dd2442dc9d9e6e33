package pcafake

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

const templateARN = "arn:aws:acm-pca:::template/"

// profile is what a template makes of a request.
type profile struct {
	root, ca   bool
	pathLen    int // of a CA
	usages     []x509.ExtKeyUsage
	csr, byAPI bool // what passes through
}

var templateForm = regexp.MustCompile(`^arn:aws[a-z-]*:acm-pca:::template/(RootCACertificate|SubordinateCACertificate_PathLen([0-3])|EndEntity(ServerAuth|ClientAuth|)Certificate)(_CSRPassthrough|_APIPassthrough|_APICSRPassthrough|)/V1$`)

// parseTemplate reads the ARN of a template.
func parseTemplate(arn string) (profile, error) {
	parts := templateForm.FindStringSubmatch(arn)
	if parts == nil || (parts[1] == "RootCACertificate" && strings.Contains(parts[4], "CSR")) {
		return profile{}, refuse("InvalidArnException", "The template %q is not known.", arn)
	}
	p := profile{csr: strings.Contains(parts[4], "CSR"), byAPI: strings.Contains(parts[4], "API")}
	switch {
	case parts[1] == "RootCACertificate":
		p.root, p.ca, p.pathLen = true, true, -1
	case parts[2] != "":
		p.ca = true
		p.pathLen, _ = strconv.Atoi(parts[2])
	case parts[3] == "ServerAuth":
		p.usages = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	case parts[3] == "ClientAuth":
		p.usages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	default:
		p.usages = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	return p, nil
}

// passthrough is ApiPassthrough as far as it is used.
type passthrough struct {
	Subject    *subject
	Extensions *struct {
		SubjectAlternativeNames []struct {
			DNSName                   string `json:"DnsName"`
			UniformResourceIdentifier string
		}
	}
}

// apply puts into a certificate what the template and those who may speak want there; the template's word comes first,
// then that of the call, then the request's.
func (p profile) apply(template *x509.Certificate, csr *x509.CertificateRequest, api *passthrough) {
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	template.ExtKeyUsage = p.usages
	if p.ca {
		template.IsCA, template.MaxPathLen, template.MaxPathLenZero = true, p.pathLen, p.pathLen == 0
		template.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	named := false
	if p.byAPI && api != nil {
		if api.Subject != nil {
			template.RawSubject, template.Subject = nil, api.Subject.name()
		}
		if api.Extensions != nil {
			for _, name := range api.Extensions.SubjectAlternativeNames {
				if name.DNSName != "" {
					template.DNSNames = append(template.DNSNames, name.DNSName)
				}
				if uri, err := url.Parse(name.UniformResourceIdentifier); err == nil && name.UniformResourceIdentifier != "" {
					template.URIs = append(template.URIs, uri)
				}
			}
			named = len(api.Extensions.SubjectAlternativeNames) > 0
		}
	}
	for _, extension := range csr.Extensions {
		names := extension.Id.Equal(oidSAN)
		if names && !named || !names && p.csr && !p.says(extension.Id) {
			template.ExtraExtensions = append(template.ExtraExtensions, pkix.Extension{Id: extension.Id, Critical: extension.Critical, Value: extension.Value})
		}
	}
}

// says tells whether an extension is the template's to decide (RFC 5280 section 4.2.1): key identifiers, key usages,
// basic constraints, CRL distribution points.
func (p profile) says(id asn1.ObjectIdentifier) bool {
	if len(id) != 4 || !id[:3].Equal(asn1.ObjectIdentifier{2, 5, 29}) {
		return false
	}
	switch id[3] {
	case 14, 15, 19, 31, 35:
		return true
	case 37:
		return len(p.usages) > 0
	}
	return false
}
