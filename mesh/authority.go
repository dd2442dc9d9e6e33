package mesh

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"countersign.dev/id"
)

// The types of authorities.
const (
	AuthorityEmbedded = "embedded" // that of the server
	AuthorityACMPCA   = "acmpca"   // AWS Private CA signs requests for keys that a rotation makes
	AuthorityACM      = "acm"      // AWS Certificate Manager makes keys and certificates, and exports both
)

// The modes of a private CA.
const (
	ModeShortLived     = "short-lived"
	ModeGeneralPurpose = "general-purpose"
)

// MaxShortLived is how long a certificate of a private CA in short-lived mode is valid at most.
const MaxShortLived = defaultTTL

// What generated templates create.
const (
	CreateRoot        = "root"
	CreateSubordinate = "subordinate"
)

// defaultBudget is how many certificates an authority may issue in a month where nothing is said.
const defaultBudget = 1000

// Certificates of ACM are valid for 395 days, whatever is asked. ACM renews what was exported 60 days before the
// end, which is on the 335th; the rotation asks for it itself only when that did not happen. It is up to a tenth
// earlier than said here (rotate.DueAt), and so from the 336th to the 373rd day.
const (
	acmTTL        = Duration(395 * 24 * time.Hour)
	acmRenewAfter = Duration(373 * 24 * time.Hour)
)

// FromDNS begins an entry of [Rule.From] for a caller whose certificate has no SPIFFE ID: behind it stands the DNS
// name that is the common name of the certificate's Subject and one of its names.
const FromDNS = "dns:"

// Authority is who issues certificates. Except for Type all is zero for [AuthorityEmbedded].
type Authority struct {
	Type string
	// ARN is that of the private CA that issues; empty where templates create it.
	ARN string
	// Region is empty when neither it nor ARN is written; Endpoint when it is that of AWS.
	Region, Endpoint string
	// Mode is the private CA's, [ModeShortLived] or [ModeGeneralPurpose].
	Mode string
	// Template is the ARN of the template that [AuthorityACMPCA] issues by.
	Template string
	// Create is empty beside an ARN, else [CreateRoot] or [CreateSubordinate]; Parent is the ARN of the private CA
	// that signs a subordinate one, empty when that is somewhere else.
	Create, Parent string
	// Names are the DNS names of the workloads that [AuthorityACM] issues for. Not to be changed.
	Names  map[string]string
	Budget Budget
}

// Budget is what an authority may spend.
type Budget struct {
	// Certificates is how many may be issued in a calendar month in UTC.
	Certificates int
	// Store is the name of the store in which the count is kept.
	Store string
}

// Foreign tells whether the authority is another than the server's own.
func (a Authority) Foreign() bool { return a.Type == AuthorityACMPCA || a.Type == AuthorityACM }

// BudgetSecret is the name of the secret in which the count of an authority's certificates is kept.
func (s *Spec) BudgetSecret(authority string) string {
	return s.Mesh + "/" + authority + budgetRecord
}

// AuthorityVariable is the environment variable with the ARN of an authority whose specification has none.
func AuthorityVariable(authority string) string {
	return "COUNTERSIGN_AUTHORITY_" + strings.ToUpper(strings.ReplaceAll(authority, "-", "_")) + "_ARN"
}

// AuthorityOf is who issues for a workload, and by which name; the name is empty, and the type
// [AuthorityEmbedded], where that is the server's own by default.
func (s *Spec) AuthorityOf(workload string) (name string, authority Authority) {
	name = s.Certificates.Authority
	if v, ok := s.Services[workload]; ok {
		name = v.Certificates.Authority
	} else if g, ok := s.Gateways[workload]; ok {
		name = g.Certificates.Authority
	}
	if authority, ok := s.Authorities[name]; ok {
		return name, authority
	}
	return name, Authority{Type: AuthorityEmbedded}
}

// ErrForeignAuthority says that a workload's certificates do not come from the server.
var ErrForeignAuthority = errors.New("the server issues from its own authority only")

// ServerCan tells whether a server can have the mesh in its care: it is an [ErrForeignAuthority], and an [Error] with the
// place, when one of the workloads has another authority than the server's.
func (s *Spec) ServerCan() error {
	var foreign, paths []string
	for _, w := range s.Workloads() {
		if name, authority := s.AuthorityOf(w.Name); authority.Foreign() {
			foreign = append(foreign, fmt.Sprintf("%s %s from %s (%s)", w.Kind, w.Name, name, authority.Type))
			paths = append(paths, w.Path()+".certificates.authority")
		}
	}
	if len(foreign) == 0 {
		return nil
	}
	return foreignAuthority{s.Refuse(fmt.Sprintf("%v, and this mesh has certificates of %s; rotate them with `countersign rotate once --mesh PATH`, which needs no server",
		ErrForeignAuthority, strings.Join(foreign, ", ")), append(paths, "certificates.authority")...)}
}

// foreignAuthority is the error of [Spec.ServerCan].
type foreignAuthority struct{ at *Error }

// Error is that of a specification.
func (f foreignAuthority) Error() string { return f.at.Error() }

// Unwrap gives the error with its place, and what it is.
func (f foreignAuthority) Unwrap() []error { return []error{f.at, ErrForeignAuthority} }

// dnsIdentity is the DNS name by which peers know a workload, empty for one with a SPIFFE ID.
func (s *Spec) dnsIdentity(workload string) string {
	_, authority := s.AuthorityOf(workload)
	return authority.Names[workload]
}

// certificateNames are the DNS names of a workload's certificate.
func (s *Spec) certificateNames(w Workload, further []string) []string {
	first := []string{w.Name, w.Identity.ServerName()}
	if dns := s.dnsIdentity(w.Name); dns != "" {
		first = []string{dns}
		further = slices.DeleteFunc(slices.Clone(further), func(name string) bool { return name == dns })
	}
	return append(first, further...)
}

// peerName spells a workload as [Rule.From] does.
func (s *Spec) peerName(w Workload) string {
	if dns := s.dnsIdentity(w.Name); dns != "" {
		return FromDNS + dns
	}
	return w.Identity.String()
}

// dnsPeers are all workloads with no SPIFFE ID as [Rule.From] spells them.
func (s *Spec) dnsPeers() []string {
	var peers []string
	for _, w := range s.Workloads() {
		if s.dnsIdentity(w.Name) != "" {
			peers = append(peers, s.peerName(w))
		}
	}
	return peers
}

// workloadOf finds the workload that an entry of allow.from names: by its name, or by its SPIFFE ID.
func (s *Spec) workloadOf(from string) (Workload, bool) {
	if spiffe, err := id.Parse(from); err == nil {
		from = spiffe.Name()
	}
	if v, ok := s.Services[from]; ok {
		return Workload{v.Name, id.Service, v.Identity}, true
	}
	if g, ok := s.Gateways[from]; ok {
		return Workload{g.Name, id.Gateway, g.Identity}, true
	}
	return Workload{}, false
}

// authorities are the declared authorities by name.
func authorities(s *Spec, v *value) map[string]Authority {
	all := map[string]Authority{}
	for _, m := range members(v) {
		all[m.name] = authority(s, m.value)
	}
	return all
}

func authority(s *Spec, v *value) Authority {
	a := Authority{Type: v.get("type").str()}
	if !a.Foreign() {
		return a
	}
	a.ARN, a.Endpoint, a.Parent = v.get("arn").str(), v.get("endpoint").str(), v.get("parent").str()
	arn := parseARN(a.ARN)
	a.Region = textOr(v.get("region"), arn.region)
	a.Mode = textOr(v.get("mode"), ModeGeneralPurpose)
	if a.Type == AuthorityACMPCA {
		a.Template = textOr(v.get("template"), "arn:"+cmp.Or(arn.partition, partitionOf(a.Region))+":acm-pca:::template/EndEntityCertificate/V1")
	}
	if a.ARN == "" {
		a.Create = textOr(v.get("create"), CreateRoot)
	}
	for _, m := range members(v.get("names")) {
		if a.Names == nil {
			a.Names = map[string]string{}
		}
		a.Names[m.name] = m.value.str()
	}
	budget := v.get("budget")
	a.Budget = Budget{Certificates: int(numberOr(budget.get("certificates"), defaultBudget)), Store: budget.get("store").str()}
	if budget.get("store") == nil && len(s.Stores) == 1 {
		for name := range s.Stores {
			a.Budget.Store = name
		}
	}
	return a
}

// ofACM replaces what of a workload's certificates ACM alone decides, with the age at which they are renewed
// as it is written for the workload itself.
func ofACM(s *Spec, v *value, c Certificates) Certificates {
	if s.Authorities[c.Authority].Type != AuthorityACM {
		return c
	}
	c.TTL, c.RenewAfter = acmTTL, acmRenewAfter
	if renew := v.get("renewAfter"); renew != nil {
		c.RenewAfter = Duration(renew.int())
	}
	return c
}

// text is an authority in one line.
func (a Authority) text() string {
	text := a.Type
	for _, part := range [][2]string{
		{"arn", a.ARN},
		{"region", a.Region},
		{"endpoint", a.Endpoint},
		{"mode", a.Mode},
		{"template", a.Template},
		{"create", a.Create},
		{"parent", a.Parent},
	} {
		if part[1] != "" {
			text += " " + part[0] + "=" + part[1]
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a.Names)) {
		text += " " + name + "=" + a.Names[name]
	}
	if a.Foreign() {
		text += fmt.Sprintf(" within %d a month, counted in %s", a.Budget.Certificates, a.Budget.Store)
	}
	return text
}

// parsedARN are the parts of an ARN that are asked for; zero for what is none.
type parsedARN struct{ partition, service, region, account, resource string }

func parseARN(text string) parsedARN {
	parts := strings.SplitN(text, ":", 6)
	if len(parts) != 6 || parts[0] != "arn" {
		return parsedARN{}
	}
	return parsedARN{parts[1], parts[2], parts[3], parts[4], parts[5]}
}

// partitionOf is the partition of AWS that a region is in.
func partitionOf(region string) string {
	switch {
	case strings.HasPrefix(region, "cn-"):
		return "aws-cn"
	case strings.HasPrefix(region, "us-gov-"):
		return "aws-us-gov"
	}
	return "aws"
}

// At is an authority whose private CA is known by now: its ARN is checked as a specification's is.
func (a Authority) At(arn string) (Authority, error) {
	if wrong, right := checkAuthorityARN(arn); wrong != "" {
		return a, fmt.Errorf("%s; %s", wrong, right)
	}
	if in := parseARN(arn).region; a.Region != "" && a.Region != in {
		return a, fmt.Errorf("%s is a private CA of the region %s, and the specification says %s", quote(arn), in, a.Region)
	}
	a.ARN, a.Region = arn, parseARN(arn).region
	if template := parseARN(a.Template); template.resource != "" {
		a.Template = "arn:" + parseARN(arn).partition + ":acm-pca:::" + template.resource
	}
	return a, nil
}
