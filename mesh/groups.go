package mesh

import (
	"slices"
	"strings"
)

// TLSGroup is a key exchange of TLS, by its name in IANA's registry "TLS Supported Groups".
type TLSGroup string

// The groups. The first three are hybrids of ML-KEM (FIPS 203) and an elliptic curve: what is recorded
// today stays secret when a quantum computer breaks the curve. They exist in TLS 1.3 only.
const (
	X25519MLKEM768     TLSGroup = "X25519MLKEM768"
	SecP256r1MLKEM768  TLSGroup = "SecP256r1MLKEM768"
	SecP384r1MLKEM1024 TLSGroup = "SecP384r1MLKEM1024"
	X25519             TLSGroup = "x25519"
	Secp256r1          TLSGroup = "secp256r1" // NIST P-256
	Secp384r1          TLSGroup = "secp384r1" // NIST P-384
	Secp521r1          TLSGroup = "secp521r1" // NIST P-521
)

// TLSGroups are all groups in the order in which they are preferred, which is the order of every list
// of them: Go's crypto/tls chooses in this order whatever a list's own may be. The slice is a copy.
func TLSGroups() []TLSGroup {
	return []TLSGroup{X25519MLKEM768, SecP256r1MLKEM768, SecP384r1MLKEM1024, X25519, Secp256r1, Secp384r1, Secp521r1}
}

// DefaultTLSGroups are what is spoken when a specification says nothing: the cheapest hybrid, and the
// curves that every peer of these years has. The others cost a server many times as much at the word of
// a stranger. The slice is a copy.
func DefaultTLSGroups() []TLSGroup {
	return []TLSGroup{X25519MLKEM768, X25519, Secp256r1, Secp384r1}
}

// onlyTLS13 tells whether a group cannot be used in TLS 1.2.
func (g TLSGroup) onlyTLS13() bool {
	return g == X25519MLKEM768 || g == SecP256r1MLKEM768 || g == SecP384r1MLKEM1024
}

// tlsGroupSpellings are names that people and other programs give to groups; an error tells the right one.
var tlsGroupSpellings = map[string]string{
	"P-256": "secp256r1", "P256": "secp256r1", "CurveP256": "secp256r1", "prime256v1": "secp256r1",
	"P-384": "secp384r1", "P384": "secp384r1", "CurveP384": "secp384r1",
	"P-521": "secp521r1", "P521": "secp521r1", "CurveP521": "secp521r1",
	"Curve25519": "x25519", "X25519Kyber768Draft00": "X25519MLKEM768",
}

// tlsGroups is the shape of the lists.
var tlsGroups = &shape{
	kind: listKind, name: "key exchange groups", nonEmpty: true, ranked: true,
	elem: &shape{kind: textKind, name: "key exchange group", words: groupNames(TLSGroups()), spellings: tlsGroupSpellings},
}

// checkGroups finds a list of groups that shuts out TLS 1.2 where minTLS lets it in. It speaks at the
// list where that is written at this place, else at minTLS; where neither is, another place has spoken.
func (c checker) checkGroups(v *value, groups []TLSGroup, minTLS TLSVersion) {
	written := v.get("tlsGroups")
	if written == nil {
		written = v.get("minTLS")
	}
	if !written.isGood() || minTLS != TLS12 || len(groups) == 0 || slices.ContainsFunc(groups, func(g TLSGroup) bool { return !g.onlyTLS13() }) {
		return
	}
	c.wrong(written, "TLS 1.2 is let in, and no group is there for it: "+joined(groups),
		`write minTLS: "1.3" beside it, or add x25519 or secp256r1 to tlsGroups`)
}

// groupsOr are the groups of a list; those that are inherited when it was not written, none when it is
// bad.
func groupsOr(v *value, otherwise []TLSGroup) []TLSGroup {
	if v == nil {
		return slices.Clone(otherwise)
	}
	var groups []TLSGroup
	for _, text := range v.texts() {
		groups = append(groups, TLSGroup(text))
	}
	return groups
}

// groupNames are groups as texts.
func groupNames(groups []TLSGroup) []string {
	names := make([]string, len(groups))
	for i, g := range groups {
		names[i] = string(g)
	}
	return names
}

// joined writes a list in one line.
func joined(groups []TLSGroup) string { return strings.Join(groupNames(groups), ", ") }
