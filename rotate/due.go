package rotate

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"time"

	"countersign.dev/issue"
	"countersign.dev/mesh"
)

// jitterFraction is the part of renewAfter in which rotations are spread: early, never late.
const jitterFraction = 0.1

// DueAt is when a leaf is to be replaced. The age renewAfter counts from its issue; what it does not live to see
// (the time to live was changed since, or its issuer ends soon) is five sevenths of its life. A part of the last tenth
// before, which the workload's name decides, keeps many services from rotating at one moment; asked again, it is the same.
func DueAt(leaf *x509.Certificate, renewAfter time.Duration, workload string) time.Time {
	issued := leaf.NotBefore.Add(issue.ClockAllowance)
	if life := leaf.NotAfter.Sub(issued); renewAfter <= 0 || renewAfter >= life {
		renewAfter = max(0, life/7*5)
	}
	return issued.Add(renewAfter - time.Duration(Early(workload)*float64(renewAfter)))
}

// Early is the part of renewAfter by which the rotation of a workload comes before it: from 0 to a tenth.
func Early(workload string) float64 {
	sum := sha256.Sum256([]byte(workload))
	share := float64(binary.BigEndian.Uint32(sum[:4])) / (1 << 32)
	return jitterFraction * share
}

// keyType is the kind of a public key, as a specification names it.
func keyType(public any) mesh.KeyType {
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		return mesh.KeyType(fmt.Sprintf("ecdsa-p%d", public.Curve.Params().BitSize))
	case *rsa.PublicKey:
		return mesh.KeyType(fmt.Sprintf("rsa-%d", public.N.BitLen()))
	case ed25519.PublicKey:
		return "ed25519"
	default:
		return ""
	}
}
