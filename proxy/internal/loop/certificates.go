package loop

import (
	"crypto/sha256"
	"crypto/x509"
)

// maxCertificates is how many certificates a generation of [certificates] holds.
const maxCertificates = 128

// certificates remembers certificates that peers have presented: a peer has many connections, and each
// would keep its own parsed copy of 6 KiB. It forgets in two generations.
type certificates struct {
	young, old map[[sha256.Size]byte]*x509.Certificate
}

// share replaces the certificates of a chain by equal ones that were met before.
func (cs *certificates) share(chain []*x509.Certificate) {
	for i, cert := range chain {
		key := sha256.Sum256(cert.Raw)
		known := cs.young[key]
		if known == nil {
			if known = cs.old[key]; known == nil {
				known = cert
			}
			if cs.young == nil || len(cs.young) >= maxCertificates {
				cs.old, cs.young = cs.young, make(map[[sha256.Size]byte]*x509.Certificate)
			}
			cs.young[key] = known
		}
		chain[i] = known
	}
}
