package observe

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"

	"countersign.dev/mesh"
)

// groups are the key exchanges that a specification can name, in its order.
var groups = []struct {
	id      tls.CurveID
	name    mesh.TLSGroup
	onlyTLS uint16 // the one version that has it; 0 when all have
}{
	{tls.X25519MLKEM768, mesh.X25519MLKEM768, tls.VersionTLS13},
	{tls.SecP256r1MLKEM768, mesh.SecP256r1MLKEM768, tls.VersionTLS13},
	{tls.SecP384r1MLKEM1024, mesh.SecP384r1MLKEM1024, tls.VersionTLS13},
	{tls.X25519, mesh.X25519, 0},
	{tls.CurveP256, mesh.Secp256r1, 0},
	{tls.CurveP384, mesh.Secp384r1, 0},
	{tls.CurveP521, mesh.Secp521r1, 0},
}

// declaredGroups are the key exchanges of a listener; those of the default where its Plan knew none.
func declaredGroups(in *mesh.Inbound) []mesh.TLSGroup {
	if in.TLSGroups == nil {
		return mesh.DefaultTLSGroups()
	}
	return in.TLSGroups
}

// undeclaredGroups are those that a listener must not accept in a version. Older versions than 1.2 are
// refused as such.
func undeclaredGroups(in *mesh.Inbound, version uint16) []tls.CurveID {
	if version < tls.VersionTLS12 {
		return nil
	}
	declared := declaredGroups(in)
	var others []tls.CurveID
	for _, g := range groups {
		if !slices.Contains(declared, g.name) && (g.onlyTLS == 0 || g.onlyTLS == version) {
			others = append(others, g.id)
		}
	}
	return others
}

// groupName is a key exchange as a specification names it, if one can; empty when there was none.
func groupName(id tls.CurveID) string {
	if id == 0 {
		return ""
	}
	for _, g := range groups {
		if g.id == id {
			return string(g.name)
		}
	}
	return fmt.Sprintf("%#04x", uint16(id))
}

// judgeGroups compares the key exchange of the newest version, and what is accepted when only others
// than the declared ones are offered.
func judgeGroups(t *Target, agreed *tls.ConnectionState, others *perVersion) Check {
	var names []string
	for _, g := range declaredGroups(&t.Inbound) {
		names = append(names, string(g))
	}
	used := groupName(agreed.CurveID)
	check := Check{CheckGroups, "none but " + strings.Join(names, ", "), used, verdict(used == "" || slices.Contains(names, used))}
	for i, out := range others {
		switch {
		case check.Result == Deviates:
		case out == nil:
		case out.agreed != nil:
			check.Observed, check.Result = "TLS "+versionName(versions[i])+": accepts "+groupName(out.agreed.CurveID), Deviates
		case out.ending != refused:
			check.Observed, check.Result = "TLS "+versionName(versions[i])+": "+how(out), Deviates
		}
	}
	return check
}
