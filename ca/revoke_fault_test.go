//go:build unix

package ca

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"strconv"
	"testing"

	"countersign.dev/mtls"
)

// revokeFirst revokes the certificate that the journal knows first.
func revokeFirst(t *testing.T, state string) {
	t.Helper()
	d := openDesk(t, state)
	issued, err := Certificates(d.log.Records())
	if err != nil || len(issued) == 0 {
		t.Fatal(issued, err)
	}
	der, err := base64.StdEncoding.DecodeString(issued[0].DER)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	d.revoke(t, leaf)
	if err := d.log.Close(); err != nil {
		t.Fatal(err)
	}
}

// crashRevoke expects that no list is there that the journal does not know, that numbers never go back, and that the
// next attempt succeeds.
func crashRevoke(t *testing.T, binary string) {
	recorded, unrecorded, stride := 0, 0, strideOf(2)
	steps(stride, func(step int) bool {
		state := newState(t, Unsealed())
		serial := mtls.Serial(issueInto(t, state, Unsealed()).Certificate)
		died := runChild(t, binary, "revoke:"+state, strconv.Itoa(step))
		d := openDesk(t, state)
		_, revoked := d.ledger.Revoked(serial)
		if revoked {
			recorded++
		} else {
			unrecorded++
		}
		kept, err := d.IssuerCRL(d.Hierarchies()[0])
		if err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		if listed := len(kept.RevokedCertificateEntries) == 1; listed && !revoked {
			t.Errorf("step %d: the list revokes what the journal does not", step)
		}
		if last := d.ledger.numbers[hex.EncodeToString(d.Issuer().SubjectKeyId)]; kept.Number.Int64() > last {
			t.Errorf("step %d: list %v is kept, and the journal knows %d", step, kept.Number, last)
		}
		if err := d.log.Close(); err != nil {
			t.Fatal(err)
		}
		revokeFirst(t, state)
		authority, err := Read(state)
		if err != nil {
			t.Fatal(err)
		}
		after, err := authority.IssuerCRL(authority.Hierarchies()[0])
		if err != nil || after.Number.Cmp(kept.Number) <= 0 || len(after.RevokedCertificateEntries) != 1 {
			t.Errorf("step %d: the next list is %+v, %v", step, after, err)
		}
		return died
	})
	if recorded*stride < 5 || unrecorded*stride < 3 {
		t.Errorf("%d crashes after it was recorded, %d before: the faults are not where they should be", recorded, unrecorded)
	}
}
