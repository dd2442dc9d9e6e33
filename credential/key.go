package credential

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"strings"
)

// Bounds of RSA keys. A key below minRSA can be broken; one above maxRSA makes every handshake slow, and is work
// that whoever stores it could order.
const (
	minRSA      = 2048
	maxRSA      = 8192
	minExponent = 65537
)

// maxKey is the greatest size of a key's DER in bytes: RSA of maxRSA bits needs 4.7 KB.
const maxKey = 16 << 10

// parseKey reads a value that holds one private key, decrypting it when it has to. No error of a parser is
// passed on: it may know what stands in the key.
func parseKey(v, passphrase Value, notes *[]Note) (crypto.Signer, error) {
	text, err := repair(v, notes)
	if err != nil {
		return nil, err
	}
	blocks, err := decode(v, text)
	if err != nil {
		return nil, err
	}
	if err := onlyKey(v, blocks); err != nil {
		return nil, err
	}
	b := blocks[0]
	if len(b.der) > maxKey {
		return nil, v.fault("is it the right secret?", "the key has %d bytes, and at most %d are read", len(b.der), maxKey)
	}
	defer func() { clear(b.der) }()
	if b.label == "ENCRYPTED PRIVATE KEY" {
		plain, err := decrypt(v, passphrase, b.der, notes)
		if err != nil {
			return nil, err
		}
		defer clear(plain)
		b.der = plain
		b.label = "PRIVATE KEY"
	}
	return readKey(v, b)
}

// onlyKey looks at the labels: one key and nothing else.
func onlyKey(v Value, blocks []block) error {
	keys, certs := 0, 0
	for _, b := range blocks {
		switch {
		case strings.HasSuffix(b.label, "PRIVATE KEY"):
			keys++
		case b.label == "CERTIFICATE":
			certs++
		}
	}
	switch {
	case keys == 0 && certs > 0:
		return v.fault("the two values may be swapped", "it holds a certificate where the private key belongs")
	case certs > 0:
		return v.fault("put them into the value for the certificate", "it holds certificates beside the key")
	case keys > 1:
		return v.fault("leave the one that belongs to the certificate", "it holds %d private keys", keys)
	}
	for _, b := range blocks {
		switch b.label {
		case "PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY":
		case "EC PARAMETERS":
			return v.fault("remove that block, or convert the key: openssl pkcs8 -topk8 -nocrypt", "the block at line %d holds %s, which the key repeats", b.line, labels[b.label])
		case "OPENSSH PRIVATE KEY":
			return v.fault("convert it: ssh-keygen -p -m PKCS8", "it is %s", labels[b.label])
		case "PUBLIC KEY", "RSA PUBLIC KEY":
			return v.fault("store the private one", "it holds a public key only")
		case "DSA PRIVATE KEY":
			return v.fault("make an ECDSA key", "it is a DSA key, which TLS does not use any more")
		default:
			if what, known := labels[b.label]; known {
				return v.fault("put the private key there", "the block at line %d is %s, not a private key", b.line, what)
			}
			return v.fault("put the private key there", "the block at line %d is under a label that is not known here", b.line)
		}
	}
	return nil
}

// readKey reads a key that is not encrypted.
func readKey(v Value, b block) (crypto.Signer, error) {
	const again = "copy the key again"
	var parsed any
	var err error
	form := "PKCS #8"
	switch b.label {
	case "RSA PRIVATE KEY":
		form = "PKCS #1"
		parsed, err = x509.ParsePKCS1PrivateKey(b.der)
	case "EC PRIVATE KEY":
		form = "SEC 1"
		parsed, err = x509.ParseECPrivateKey(b.der)
	default:
		parsed, err = x509.ParsePKCS8PrivateKey(b.der)
	}
	if err != nil {
		switch _, notCert := x509.ParseCertificate(b.der); {
		case notCert == nil:
			return nil, v.fault("put the private key there", "it is a certificate under the label of a private key")
		case b.label != "PRIVATE KEY" && isPKCS8(b.der), b.label == "PRIVATE KEY" && isKey(b.der):
			return nil, v.fault("write the key again with openssl pkcs8 -topk8", "the key is not in the form %s that its label promises, but in another", form)
		case b.label == "PRIVATE KEY" && isEncrypted(b.der):
			return nil, v.fault("write ENCRYPTED PRIVATE KEY in its BEGIN and END lines", "the key is encrypted, and its label does not say so")
		}
		return nil, v.fault(again, "the key does not parse as %s: it is damaged, or of a kind or curve that is not known here", form)
	}
	switch key := parsed.(type) {
	case *ecdsa.PrivateKey:
		return key, nil
	case *rsa.PrivateKey:
		return key, nil
	case ed25519.PrivateKey:
		return key, nil
	default:
		return nil, v.fault("make an ECDSA key", "the key is for key agreement (X25519 or ECDH) and cannot sign")
	}
}

func isPKCS8(der []byte) bool {
	_, err := x509.ParsePKCS8PrivateKey(der)
	return err == nil
}

// strength refuses a public key that can be broken or that nobody should pay for. whose says in the message which.
func strength(v Value, public crypto.PublicKey, whose string) error {
	const fix = "make an ECDSA key on P-256 or P-384, an Ed25519 key, or an RSA key of at least 2048 bits"
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		switch public.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
		return v.fault(fix, "weak key: %s is on the curve %s", whose, public.Curve.Params().Name)
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		switch bits := public.N.BitLen(); {
		case bits < minRSA:
			return v.fault(fix, "weak key: %s has RSA of %d bits", whose, bits)
		case bits > maxRSA:
			return v.fault(fix, "%s has RSA of %d bits, which makes every handshake slow; at most %d are accepted", whose, bits, maxRSA)
		case public.E < minExponent || public.E%2 == 0:
			return v.fault(fix, "weak key: %s has RSA with the exponent %d", whose, public.E)
		}
		return nil
	default:
		return v.fault(fix, "%s has a key of a kind that TLS does not use here", whose)
	}
}

// withoutLineEnd is a passphrase without the line end that a file or an editor has put behind it.
func withoutLineEnd(data []byte) []byte { return bytes.TrimRight(data, "\r\n") }
