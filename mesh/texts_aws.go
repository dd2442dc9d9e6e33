package mesh

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// The patterns of what AWS names, as the schema repeats them.
const (
	partitionPattern  = `arn:aws(-cn|-us-gov)?`
	regionPart        = `[a-z]{2}(-[a-z]+)+-[0-9]{1,2}`
	uuidPart          = `[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`
	regionPattern     = `^` + regionPart + `$`
	authorityPattern  = `^` + partitionPattern + `:acm-pca:` + regionPart + `:[0-9]{12}:certificate-authority/` + uuidPart + `$`
	caTemplatePattern = `^` + partitionPattern + `:acm-pca:::template/[A-Za-z]+Certificate(_[A-Za-z0-9]+)*/V1$`
	endpointPattern   = `^https?://[^/?#@\s]+/?$`
	kmsAliasPart      = `alias/[A-Za-z0-9/_-]{1,250}`
	kmsKeyPart        = `(mrk-[0-9a-f]{32}|` + uuidPart + `)`
	kmsPattern        = `^(` + kmsAliasPart + `|` + kmsKeyPart + `|` + partitionPattern + `:kms:` + regionPart + `:[0-9]{12}:(` + kmsAliasPart + `|key/` + kmsKeyPart + `))$`
	ecsNamePattern    = `^[A-Za-z0-9_-]+$`
)

// The shapes of what AWS names.
var (
	awsRegion = &shape{
		kind: textKind, name: "region of AWS", pattern: regionPattern, maxLen: 40,
		check: func(s string) (string, string) {
			return checkPattern(s, regionPattern, "region of AWS", "write one such as eu-central-1")
		},
	}
	authorityARN = &shape{
		kind: textKind, name: "private CA's ARN", pattern: authorityPattern, maxLen: 200,
		check: checkAuthorityARN,
	}
	certificateTemplate = &shape{kind: textKind, name: "template's ARN", pattern: caTemplatePattern, maxLen: 200, check: checkTemplate}
	awsEndpoint         = &shape{kind: textKind, name: "URL", pattern: endpointPattern, maxLen: 300, check: checkEndpoint}
	kmsKey              = &shape{kind: textKind, name: "key of KMS", pattern: kmsPattern, maxLen: 400, check: checkKey}
	ecsName             = &shape{
		kind: textKind, name: "name in ECS", pattern: ecsNamePattern, maxLen: 255,
		check: func(s string) (string, string) {
			return checkPattern(s, ecsNamePattern, "name in ECS", "write letters, digits, - and _; it is the name, not the ARN")
		},
	}
)

// inPartition finds an ARN of one partition with a region of another.
func inPartition(s string) (string, string) {
	arn := parseARN(s)
	if want := partitionOf(arn.region); arn.partition != want {
		return quote(s) + " names a region that is not in the partition " + arn.partition, "write arn:" + want
	}
	return "", ""
}

func checkKey(s string) (string, string) {
	if strings.HasPrefix(s, "alias/aws/") || strings.Contains(s, ":alias/aws/") {
		return quote(s) + " is a key of AWS, whose policy nobody can write", "name a key of your own, or leave it out for that of Secrets Manager"
	}
	if wrong, right := checkPattern(s, kmsPattern, "key of KMS", "write an alias such as alias/payments, a key's id, or the ARN of either"); wrong != "" {
		return wrong, right
	}
	if parseARN(s).region == "" { // it is no ARN
		return "", ""
	}
	return inPartition(s)
}

func checkAuthorityARN(s string) (string, string) {
	if wrong, right := checkPattern(s, authorityPattern, "private CA's ARN", "write arn:aws:acm-pca:REGION:ACCOUNT:certificate-authority/ID"); wrong != "" {
		return wrong, right
	}
	return inPartition(s)
}

// checkTemplate lets those templates pass whose certificates serve both ends of mTLS and sign no others.
func checkTemplate(s string) (string, string) {
	const write = "write arn:aws:acm-pca:::template/EndEntityCertificate/V1, or leave it out"
	if wrong, right := checkPattern(s, caTemplatePattern, "template's ARN", write); wrong != "" {
		return wrong, right
	}
	switch strings.TrimSuffix(strings.TrimPrefix(parseARN(s).resource, "template/EndEntityCertificate"), "/V1") {
	case "", "_CSRPassthrough", "_APIPassthrough", "_APICSRPassthrough":
		return "", ""
	default:
		return quote(s) + " makes certificates that are not for both sides of a connection", write
	}
}

// writeEndpoint is what to write in place of a URL that is none of a service.
const writeEndpoint = "write a URL such as https://vpce-1234.secretsmanager.eu-central-1.vpce.amazonaws.com, with nothing behind the host and port"

// CheckEndpoint says why a text is no URL of a service of AWS; nil when it is one. Whether it may be asked without TLS is not judged. The
// error does not show the text: it may hold a password.
func CheckEndpoint(s string) error {
	if fault := endpointFault(s); fault != "" {
		return fmt.Errorf("%s; %s", fault, writeEndpoint)
	}
	return nil
}

func endpointFault(s string) string {
	u, err := url.Parse(s)
	switch {
	case !strings.Contains(s, "://"):
		return "it begins with neither https:// nor http://"
	case err != nil && portFault(s):
		return "its port is no number from 1 to 65535"
	case err != nil:
		return "it cannot be read"
	case u.Scheme != "https" && u.Scheme != "http":
		return "it begins with neither https:// nor http://"
	case u.User != nil:
		return "it has a user name or a password, and credentials of AWS do not come that way"
	case u.Hostname() == "":
		return "it names no host"
	case portFault(s):
		return "its port is no number from 1 to 65535"
	case u.Path != "" && u.Path != "/":
		return "it has a path"
	case u.RawQuery != "" || u.ForceQuery:
		return "it has a query"
	case !compiled(endpointPattern).MatchString(s):
		return "something stands behind the host and port"
	}
	return ""
}

// portFault tells whether the host of a URL has a port that cannot be.
func portFault(s string) bool {
	_, host, _ := strings.Cut(s, "://")
	if end := strings.IndexAny(host, "/?#"); end >= 0 {
		host = host[:end]
	}
	host = host[strings.LastIndex(host, "@")+1:]
	end := strings.LastIndex(host, "]") + 1
	if strings.HasPrefix(host, "[") && end == 0 {
		return false
	}
	_, port, found := strings.Cut(host[end:], ":")
	number, err := strconv.ParseUint(port, 10, 16)
	return found && (err != nil || number == 0)
}

// checkEndpoint lets credentials and secrets leave the machine over TLS only.
func checkEndpoint(s string) (string, string) {
	if fault := endpointFault(s); fault != "" {
		if strings.Contains(s, "@") {
			return "it is not a URL of a service: " + fault, writeEndpoint
		}
		return quote(s) + " is not a URL of a service: " + fault, writeEndpoint
	}
	if u, err := url.Parse(s); err == nil && u.Scheme == "http" && !isLoopback(u.Hostname()) {
		return quote(s) + " is plain HTTP to another machine, which would see the secrets", "write https, or the address of this machine"
	}
	return "", ""
}

func isLoopback(host string) bool {
	address, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && address.IsLoopback()
}
