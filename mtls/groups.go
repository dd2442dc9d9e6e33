package mtls

import (
	"crypto/fips140"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"

	"countersign.dev/mesh"
)

// groupIDs are the groups that a specification can name.
var groupIDs = map[mesh.TLSGroup]tls.CurveID{
	mesh.X25519MLKEM768:     tls.X25519MLKEM768,
	mesh.SecP256r1MLKEM768:  tls.SecP256r1MLKEM768,
	mesh.SecP384r1MLKEM1024: tls.SecP384r1MLKEM1024,
	mesh.X25519:             tls.X25519,
	mesh.Secp256r1:          tls.CurveP256,
	mesh.Secp384r1:          tls.CurveP384,
	mesh.Secp521r1:          tls.CurveP521,
}

// Groups gives crypto/tls's numbers for the key exchanges that a Plan names: those of
// [mesh.DefaultTLSGroups] for nil, and in FIPS 140-3 mode only what is approved there. It is for
// [ServerOptions], [ClientOptions] and tls.Config.CurvePreferences alike. An unknown name, an empty list
// and one of which nothing is left are errors.
func Groups(names []mesh.TLSGroup) ([]tls.CurveID, error) {
	if names == nil {
		return effectiveGroups(nil, fips140.Enabled())
	}
	groups := make([]tls.CurveID, len(names))
	for i, name := range names {
		group, ok := groupIDs[name]
		if !ok {
			return nil, fmt.Errorf("the key exchange group %q is none of %q; update this program if a newer one knows it", name, mesh.TLSGroups())
		}
		groups[i] = group
	}
	return effectiveGroups(groups, fips140.Enabled())
}

// effectiveGroups are the groups that a configuration is given: the default for nil, and in FIPS 140-3
// mode only what is approved there. That at least one is left is checked here, because crypto/tls
// would take an empty list for its own default.
func effectiveGroups(groups []tls.CurveID, fips bool) ([]tls.CurveID, error) {
	if groups == nil {
		for _, name := range mesh.DefaultTLSGroups() {
			groups = append(groups, groupIDs[name])
		}
	}
	if len(groups) == 0 {
		return nil, errors.New("the list of key exchange groups is empty, and without one nobody can connect; leave it out for the default")
	}
	left := slices.Clone(groups)
	if fips {
		left = slices.DeleteFunc(left, func(g tls.CurveID) bool { return g == tls.X25519 })
	}
	for _, g := range left {
		if _, known := groupName(g); !known {
			return nil, fmt.Errorf("the key exchange group %d (%v) is none of %q", uint16(g), g, mesh.TLSGroups())
		}
	}
	if len(left) == 0 {
		return nil, fmt.Errorf("no key exchange group of %v may be used in FIPS 140-3 mode; add %s or %s to tlsGroups", groups, mesh.X25519MLKEM768, mesh.Secp256r1)
	}
	return left, nil
}

// groupName is the name of a group in a specification; false for what none can name.
func groupName(group tls.CurveID) (mesh.TLSGroup, bool) {
	for name, id := range groupIDs {
		if id == group {
			return name, true
		}
	}
	return "", false
}
