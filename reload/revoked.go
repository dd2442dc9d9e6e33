package reload

import (
	"crypto/x509"
	"encoding/pem"
	"time"
)

// RevokedGrace is how long older workers may serve on when somebody was revoked, for [OldWorkers.End]: what they accepted
// they judge by the lists of before. It leaves room in the five seconds in which a revocation has to be obeyed.
const RevokedGrace = 2 * time.Second

// Revokes tells whether somebody is revoked in the second revocation lists, each of them PEM, who was not in the first.
func Revokes(before, after []byte) bool {
	known := revoked(before)
	for serial := range revoked(after) {
		if !known[serial] {
			return true
		}
	}
	return false
}

// revoked are the serials in revocation lists, as the lists have them.
func revoked(lists []byte) map[string]bool {
	serials := make(map[string]bool)
	for {
		var block *pem.Block
		if block, lists = pem.Decode(lists); block == nil {
			return serials
		}
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			continue // the proxy refuses everybody by such a list
		}
		for _, entry := range list.RevokedCertificateEntries {
			serials[entry.SerialNumber.String()] = true
		}
	}
}
