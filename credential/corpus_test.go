package credential

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"
)

// bad is one input that has to be refused, with the words that name its fault.
type bad struct {
	change func(t *testing.T, w *world, in *Input, want *Expect)
	says   string
}

// cert, key and bundle are cases that replace one value.
func cert(f func(t *testing.T, w *world) []byte, says string) bad {
	return bad{func(t *testing.T, w *world, in *Input, _ *Expect) { in.Certificate.Data = f(t, w) }, says}
}

func key(f func(t *testing.T, w *world) []byte, says string) bad {
	return bad{func(t *testing.T, w *world, in *Input, _ *Expect) { in.Key.Data = f(t, w) }, says}
}

func bundle(f func(t *testing.T, w *world) []byte, says string) bad {
	return bad{func(t *testing.T, w *world, in *Input, _ *Expect) { in.Bundle.Data = f(t, w) }, says}
}

func text(s string) func(*testing.T, *world) []byte {
	return func(*testing.T, *world) []byte { return []byte(s) }
}

// edited replaces a text in the good certificates.
func edited(old, replacement string) func(*testing.T, *world) []byte {
	return func(t *testing.T, w *world) []byte {
		before := pemOf(w.leaf, w.between)
		after := bytes.Replace(before, []byte(old), []byte(replacement), 1)
		if bytes.Equal(before, after) {
			t.Fatalf("nothing was replaced: %q", old)
		}
		return after
	}
}

// line3 replaces the third line of the certificates, which is base64.
func line3(f func(line string) string) func(*testing.T, *world) []byte {
	return func(_ *testing.T, w *world) []byte {
		lines := strings.Split(string(pemOf(w.leaf, w.between)), "\n")
		lines[2] = f(lines[2])
		return []byte(strings.Join(lines, "\n"))
	}
}

// leaf is a case with another leaf.
func leaf(change func(*x509.Certificate), says string) bad {
	return cert(func(t *testing.T, w *world) []byte { return pemOf(w.issue(t, change), w.between) }, says)
}

// expects is a case with a good input of which something is expected.
func expects(f func(*Expect), says string) bad {
	return bad{func(_ *testing.T, _ *world, _ *Input, want *Expect) { f(want) }, says}
}

// locked is a case with an encrypted key and the passphrase that the recipe is for.
func locked(r recipe, says string) bad {
	return bad{func(t *testing.T, w *world, in *Input, _ *Expect) {
		in.Key.Data = encrypted(t, keyDER(t, w.leafKey), "correct horse", r)
		in.Passphrase.Data = []byte("correct horse")
	}, says}
}

// forms are values that are no PEM at all.
var forms = map[string]bad{
	"empty":                 cert(text(""), "CERT_PEM: it is empty"),
	"white space":           cert(text(" \n\t\r\n"), "CERT_PEM: it holds nothing that could be read"),
	"placeholder":           cert(text("PLACEHOLDER"), "CERT_PEM: it is a PLACEHOLDER"),
	"placeholder key":       key(text("<changeme>\n"), "KEY_PEM: it is a PLACEHOLDER"),
	"placeholder bundle":    bundle(text("TODO: ask the PKI team"), "CA_BUNDLE: it is a PLACEHOLDER"),
	"placeholder inside":    cert(text("-----BEGIN CERTIFICATE-----\nPLACEHOLDER\n-----END CERTIFICATE-----\n"), "line 2 is a PLACEHOLDER"),
	"template":              key(text("${KEY_PEM}"), "a variable that nothing has replaced"),
	"template in braces":    cert(text("{{ .Values.cert }}"), "CERT_PEM: it is a variable that nothing has replaced"),
	"ARN":                   key(text("arn:aws:secretsmanager:eu-central-1:123456789012:secret:x"), "the ARN of a secret, not its value"),
	"file name":             cert(text("/run/secrets/cert.pem"), "the name of a file, not its contents"),
	"HTML":                  cert(text("<html><body>403 Forbidden</body></html>"), "it is HTML or XML"),
	"plain text":            cert(text("our certificate"), "it holds no PEM"),
	"SSH key":               cert(text("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI me@here"), "a public key of SSH"),
	"age":                   key(text("age-encryption.org/v1\n-> X25519 abc"), "it is something of age"),
	"UTF-16":                cert(text("\xff\xfe-\x00-\x00"), "it is in UTF-16"),
	"NUL":                   cert(edited("\n", "\n\x00"), "it holds a NUL byte at position 28"),
	"not UTF-8":             cert(text("-----BEGIN\xc3\x28"), "bytes that are not UTF-8"),
	"JKS":                   key(text("\xfe\xed\xfe\xed\x00\x00"), "a Java key store"),
	"DER":                   cert(func(_ *testing.T, w *world) []byte { return w.leaf.Raw }, "it is binary: DER or PKCS #12"),
	"too large":             bundle(func(*testing.T, *world) []byte { return bytes.Repeat([]byte("A"), maxValue+1) }, "it has 1048577 bytes, and at most"),
	"base64 of PEM":         cert(func(_ *testing.T, w *world) []byte { return []byte(base64.StdEncoding.EncodeToString(pemOf(w.leaf))) }, "coded in base64 once more"),
	"base64 without lines":  cert(func(_ *testing.T, w *world) []byte { return []byte(base64.StdEncoding.EncodeToString(w.leaf.Raw)) }, "base64 without its BEGIN and END lines"),
	"JSON array":            cert(text(`["-----BEGIN CERTIFICATE-----"]`), "it is a JSON array"),
	"JSON without field":    cert(text(`{"certificate": "x"}`), "a JSON object without a field cert_pem"),
	"JSON field twice":      cert(text(`{"cert_pem": "x", "cert_pem": "y"}`), "not taken as a JSON object: invalid JSON: a field is there twice"),
	"JSON other twice":      cert(text(`{"MARKER-1234567890": "x", "MARKER-1234567890": "y", "cert_pem": "z"}`), "invalid JSON: a field is there twice"),
	"JSON field null":       cert(text(`{"cert_pem": null}`), "CERT_PEM: it is a JSON object whose field cert_pem is not a string"),
	"JSON large":            bundle(func(*testing.T, *world) []byte { return []byte(`{"ca_bundle": "` + strings.Repeat("x", 1<<16) + `"}`) }, "a value has at most 65536"),
	"JSON field no string":  key(text(`{"key_pem": {"pem": "x"}}`), "whose field key_pem is not a string"),
	"JSON broken":           cert(text(`{"cert_pem": "x"`), "it begins with a brace and is not taken as a JSON object: invalid JSON: it ends too early"),
	"JSON and more":         cert(text(`{"cert_pem": "x"} {}`), "not taken as a JSON object: invalid JSON: something follows the object"),
	"JSON string broken":    cert(text(`"-----BEGIN CERTIFICATE`), "it begins with a quotation mark and is not a JSON string"),
	"JSON wrapped too deep": cert(func(t *testing.T, w *world) []byte { return wrapped(t, pemOf(w.leaf), maxWraps) }, "wrapped in JSON more than 3 times"),
	"gzip": cert(func(t *testing.T, w *world) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		if _, err := z.Write(pemOf(w.leaf)); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}, "compressed with gzip"),
}

// pems are values whose PEM is wrong.
var pems = map[string]bad{
	"only comments":      cert(text("# -----\n"), "it has no PEM block, only comments"),
	"cut off":            cert(func(_ *testing.T, w *world) []byte { return pemOf(w.leaf)[:300] }, "has no END line: it was cut off"),
	"no beginning":       cert(edited("-----BEGIN CERTIFICATE-----\n", ""), "line 1 is outside of any PEM block"),
	"end first":          cert(text("-----END CERTIFICATE-----\n"), "line 1 ends a block that has not begun"),
	"four dashes":        cert(edited("-----BEGIN", "----BEGIN"), "the BEGIN line 1 is malformed"),
	"dashes missing":     cert(edited("CERTIFICATE-----\n", "CERTIFICATE---\n"), "the BEGIN line 1 is malformed"),
	"indented":           key(text("  -----BEGIN PRIVATE KEY-----\n"), "the BEGIN line 1 is indented"),
	"indented inside":    cert(line3(func(l string) string { return "  " + l }), "line 3 is indented"),
	"one line":           cert(func(_ *testing.T, w *world) []byte { return bytes.ReplaceAll(pemOf(w.leaf), []byte("\n"), nil) }, "the whole block at line 1 stands in one line"),
	"spaces":             key(text("-----BEGIN PRIVATE KEY-----\nMIGH AgEA\n-----END PRIVATE KEY-----\n"), "line 2 has white space in it"),
	"other label at end": cert(edited("-----END CERTIFICATE", "-----END PRIVATE KEY"), "is not the one of the block that begins at line 1"),
	"empty block":        cert(text("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), "the block at line 1 is empty"),
	"no end":             cert(edited("-----END CERTIFICATE-----\n", ""), "does not end before the next one begins"),
	"run together":       cert(edited("\n-----END CERTIFICATE-----\n", "-----END CERTIFICATE-----\n"), "does not begin its line"),
	"empty line inside":  cert(line3(func(l string) string { return "\n" + l }), "line 3 is empty, in the middle of a block"),
	"asterisks":          key(text("-----BEGIN PRIVATE KEY-----\n****************\n-----END PRIVATE KEY-----\n"), "line 2 was masked with asterisks"),
	"dots":               cert(line3(func(l string) string { return l[:20] + "..." }), "line 3 was shortened to dots"),
	"backslash":          cert(line3(func(l string) string { return l + `\` }), `line 3 has a backslash that is not \n`),
	"URL base64":         cert(line3(func(l string) string { return "_" + l[1:] }), "line 3 is in the base64 of URLs"),
	"padding inside":     cert(line3(func(l string) string { return l[:10] + "=" + l[11:] }), "line 3 has an equals sign before its end"),
	"not ASCII":          cert(line3(func(l string) string { return "é" + l[1:] }), "line 3 has a character that is not ASCII"),
	"not base64":         cert(line3(func(l string) string { return "!" + l[1:] }), "line 3 has a character that base64 does not have"),
	"lost character":     cert(line3(func(l string) string { return l[1:] }), "is not base64: its length or its end is wrong"),
	"headers":            cert(edited("CERTIFICATE-----\n", "CERTIFICATE-----\nComment: x\n\n"), "the block at line 1 has PEM headers"),
	"text":               cert(edited("-----BEGIN", "subject=CN = x\n-----BEGIN"), "line 1 is outside of any PEM block"),
	"bag attributes":     cert(edited("-----BEGIN", "Bag Attributes\n-----BEGIN"), "attributes of a PKCS #12 file"),
	"too many":           bundle(func(*testing.T, *world) []byte { return bytes.Repeat(labeled("CERTIFICATE", []byte{1}), maxBlocks+1) }, "more than 1024 PEM blocks"),
}

// kinds are values that hold something else.
var kinds = map[string]bad{
	"swapped": {func(_ *testing.T, _ *world, in *Input, _ *Expect) {
		in.Certificate.Data, in.Key.Data = in.Key.Data, in.Certificate.Data
	}, "CERT_PEM: it holds a private key where certificates belong"},
	"certificate for key": key(func(_ *testing.T, w *world) []byte { return pemOf(w.leaf) }, "KEY_PEM: it holds a certificate where the private key belongs"),
	"key beside certificate": cert(func(t *testing.T, w *world) []byte {
		return append(pemOf(w.leaf), keyPEM(t, w.leafKey)...)
	}, "a private key, beside certificates"),
	"certificate beside key": key(func(t *testing.T, w *world) []byte {
		return append(keyPEM(t, w.leafKey), pemOf(w.leaf)...)
	}, "it holds certificates beside the key"),
	"two keys":            key(func(t *testing.T, w *world) []byte { return append(keyPEM(t, w.leafKey), keyPEM(t, w.rootKey)...) }, "it holds 2 private keys"),
	"key in bundle":       bundle(func(t *testing.T, w *world) []byte { return keyPEM(t, w.leafKey) }, "CA_BUNDLE: it holds a private key"),
	"hidden key":          cert(func(t *testing.T, w *world) []byte { return labeled("CERTIFICATE", keyDER(t, w.leafKey)) }, "a private key under the label of a certificate"),
	"huge hidden key":     cert(func(t *testing.T, w *world) []byte { return labeled("CERTIFICATE", longKey(t, w.leafKey)) }, "is not a certificate (x509: malformed tbs certificate)"),
	"hidden certificate":  key(func(_ *testing.T, w *world) []byte { return labeled("PRIVATE KEY", w.leaf.Raw) }, "a certificate under the label of a private key"),
	"request":             cert(func(*testing.T, *world) []byte { return labeled("CERTIFICATE REQUEST", []byte{1}) }, "is a certificate request, not a certificate"),
	"hidden request":      cert(request, "a certificate request under the label of a certificate"),
	"trusted certificate": cert(func(_ *testing.T, w *world) []byte { return labeled("TRUSTED CERTIFICATE", w.leaf.Raw) }, "a certificate in OpenSSL's own form"),
	"old label":           cert(func(_ *testing.T, w *world) []byte { return labeled("X509 CERTIFICATE", w.leaf.Raw) }, "a certificate under an old label"),
	"PKCS #7":             cert(func(*testing.T, *world) []byte { return labeled("PKCS7", []byte{1}) }, "a PKCS #7 container"),
	"CRL":                 bundle(func(*testing.T, *world) []byte { return labeled("X509 CRL", []byte{1}) }, "a revocation list, not a certificate"),
	"foreign label":       cert(func(*testing.T, *world) []byte { return labeled("MARKER-1234567890", []byte{1}) }, "CERT_PEM: the block at line 1 has a label that is not known here"),
	"foreign label key":   key(func(*testing.T, *world) []byte { return labeled("MARKER-1234567890", []byte{1}) }, "KEY_PEM: the block at line 1 is under a label"),
	"not a certificate":   cert(func(*testing.T, *world) []byte { return labeled("CERTIFICATE", []byte("MARKER-1234567890")) }, "the block at line 1 is not a certificate"),
	"trailing bytes":      cert(func(_ *testing.T, w *world) []byte { return labeled("CERTIFICATE", append(bytes.Clone(w.leaf.Raw), 0)) }, "trailing data"),
	"OpenSSH":             key(func(*testing.T, *world) []byte { return labeled("OPENSSH PRIVATE KEY", []byte{1}) }, "a key in the form of OpenSSH"),
	"public key":          key(func(*testing.T, *world) []byte { return labeled("PUBLIC KEY", []byte{1}) }, "a public key only"),
	"DSA":                 key(func(*testing.T, *world) []byte { return labeled("DSA PRIVATE KEY", []byte{1}) }, "it is a DSA key"),
	"curve before key": key(func(t *testing.T, w *world) []byte {
		return append(labeled("EC PARAMETERS", []byte{6, 1, 1}), keyPEM(t, w.leafKey)...)
	}, "parameters of an elliptic curve, which the key repeats"),
	"damaged key": key(func(t *testing.T, w *world) []byte { return labeled("PRIVATE KEY", keyDER(t, w.leafKey)[1:]) }, "the key does not parse as PKCS #8"),
	"wrong form":  key(func(t *testing.T, w *world) []byte { return labeled("EC PRIVATE KEY", keyDER(t, w.leafKey)) }, "not in the form SEC 1 that its label promises"),
	"key agreement": key(func(t *testing.T, _ *world) []byte {
		x, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(x)
		if err != nil {
			t.Fatal(err)
		}
		return labeled("PRIVATE KEY", der)
	}, "is for key agreement"),
	"huge key": key(func(*testing.T, *world) []byte { return labeled("PRIVATE KEY", make([]byte, maxKey+1)) }, "the key has 16385 bytes"),
}

// encryptions are encrypted keys that are not opened.
var encryptions = map[string]bad{
	"legacy": key(func(*testing.T, *world) []byte {
		return pem.EncodeToMemory(&pem.Block{
			Type: "RSA PRIVATE KEY", Bytes: make([]byte, 32),
			Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "DES-CBC,0011223344556677"},
		})
	}, "the old scheme of OpenSSL"),
	"PBES1 DES":     locked(recipe{scheme: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 3}}, "PBES1 with MD5 and DES"),
	"PBES1 RC2":     locked(recipe{scheme: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 11}}, "PBES1 with SHA-1 and RC2"),
	"PKCS #12 3DES": locked(recipe{scheme: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 1, 3}}, "PKCS #12 with triple DES,"),
	"RC4":           locked(recipe{scheme: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 1, 2}}, "PKCS #12 with RC4 of 40 bits"),
	"unknown":       locked(recipe{scheme: asn1.ObjectIdentifier{1, 2, 3, 4}}, "the algorithm 1.2.3.4, which is not known here"),
	"3DES":          locked(recipe{cipher: asn1.ObjectIdentifier{1, 2, 840, 113549, 3, 7}}, "PBES2 with triple DES"),
	"RC2":           locked(recipe{cipher: asn1.ObjectIdentifier{1, 2, 840, 113549, 3, 2}}, "PBES2 with RC2"),
	"DES":           locked(recipe{cipher: asn1.ObjectIdentifier{1, 3, 14, 3, 2, 7}}, "PBES2 with DES"),
	"HMAC-MD5":      locked(recipe{prf: asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 6}}, "PBKDF2 with HMAC-MD5"),
	"CAST5":         locked(recipe{cipher: asn1.ObjectIdentifier{1, 2, 840, 113533, 7, 66, 10}}, "PBES2 with CAST5"),
	"Blowfish":      locked(recipe{cipher: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3029, 1, 2}}, "PBES2 with Blowfish"),
	"scrypt":        locked(recipe{function: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11591, 4, 11}}, "with scrypt"),
	"iterations":    locked(recipe{iterations: maxIterations + 1}, "asks for 2000001 iterations"),
	"short salt":    locked(recipe{salt: []byte{1}}, "a salt of 1 bytes"),
	"damaged":       key(func(*testing.T, *world) []byte { return labeled("ENCRYPTED PRIVATE KEY", []byte{0x30, 3, 1, 2, 3}) }, "the encrypted key does not parse"),
	"no passphrase": {func(t *testing.T, w *world, in *Input, _ *Expect) {
		in.Key.Data = encrypted(t, keyDER(t, w.leafKey), "correct horse", recipe{})
	}, "KEY_PASSPHRASE: the key KEY_PEM is encrypted, and there is no passphrase"},
	"wrong passphrase": {func(t *testing.T, w *world, in *Input, _ *Expect) {
		in.Key.Data = encrypted(t, keyDER(t, w.leafKey), "correct horse", recipe{})
		in.Passphrase.Data = []byte("battery staple")
	}, "the passphrase does not open the key KEY_PEM"},
	"placeholder passphrase": {func(t *testing.T, w *world, in *Input, _ *Expect) {
		in.Key.Data = encrypted(t, keyDER(t, w.leafKey), "correct horse", recipe{})
		in.Passphrase.Data = []byte("PLACEHOLDER\n")
	}, "KEY_PASSPHRASE: it is a word that stands for a passphrase"},
	"ARN for a passphrase": {func(t *testing.T, w *world, in *Input, _ *Expect) {
		in.Key.Data = encrypted(t, keyDER(t, w.leafKey), "correct horse", recipe{})
		in.Passphrase.Data = []byte("arn:aws:secretsmanager:eu-central-1:123456789012:secret:x")
	}, "KEY_PASSPHRASE: it is the ARN of a secret"},
	"passphrase in another field": {func(t *testing.T, w *world, in *Input, _ *Expect) {
		in.Key.Data = encrypted(t, keyDER(t, w.leafKey), "correct horse", recipe{})
		in.Passphrase.Data = []byte(`{"password": "correct horse"}`)
	}, "KEY_PASSPHRASE: it is a JSON object without a field key_passphrase"},
	"empty passphrase in JSON": {func(t *testing.T, w *world, in *Input, _ *Expect) {
		in.Key.Data = encrypted(t, keyDER(t, w.leafKey), "correct horse", recipe{})
		in.Passphrase.Data = []byte(`{"key_passphrase": ""}`)
	}, "KEY_PASSPHRASE: it holds nothing that could be read"},
	"label hides it": {func(t *testing.T, w *world, in *Input, _ *Expect) {
		in.Key.Data = bytes.ReplaceAll(encrypted(t, keyDER(t, w.leafKey), "correct horse", recipe{}), []byte("ENCRYPTED "), nil)
	}, "the key is encrypted, and its label does not say so"},
}

// leaves are certificates that are not what a workload needs.
var leaves = map[string]bad{
	"other key":      key(func(t *testing.T, _ *world) []byte { return keyPEM(t, newKey(t)) }, "the key does not belong to"),
	"CA flag":        leaf(func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, 0 }, "the leaf has the CA flag"),
	"signs":          leaf(func(c *x509.Certificate) { c.BasicConstraintsValid, c.KeyUsage = false, x509.KeyUsageCertSign }, "the leaf's key usage allows it to sign certificates"),
	"no signatures":  leaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }, "does not allow signatures"),
	"for mail":       leaf(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection} }, "the leaf is not for TLS"),
	"for clients":    leaf(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, "the leaf is for clients only"),
	"expired":        leaf(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, "the leaf has expired at"),
	"not valid yet":  leaf(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }, "the leaf is not valid yet"),
	"too short":      expects(func(e *Expect) { e.MinRemaining = 72 * time.Hour }, "and at least 72h0m0s are asked for"),
	"other ID":       expects(func(e *Expect) { e.ID = "spiffe://shop.internal/service/billing" }, `the leaf has the SPIFFE ID "spiffe://shop.internal/service/orders"`),
	"other DNS name": expects(func(e *Expect) { e.DNSNames = []string{"billing.shop.internal"} }, `the leaf is not for billing.shop.internal: it has the DNS names "orders`),
	"no ID": {func(t *testing.T, w *world, in *Input, want *Expect) {
		in.Certificate.Data = pemOf(w.issue(t, func(c *x509.Certificate) { c.URIs = nil }), w.between)
		want.ID = testID
	}, "the leaf has no SPIFFE ID"},
	"two IDs": {func(t *testing.T, w *world, in *Input, want *Expect) {
		in.Certificate.Data = pemOf(w.issue(t, func(c *x509.Certificate) {
			c.URIs = append(c.URIs, &url.URL{Scheme: "spiffe", Host: "shop.internal", Path: "/service/b"})
		}), w.between)
		want.ID = testID
	}, "the leaf has 2 URIs"},
	"only a subject": {func(t *testing.T, w *world, in *Input, want *Expect) {
		in.Certificate.Data = pemOf(w.issue(t, func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, nil }), w.between)
		want.DNSNames = []string{"orders"}
	}, "the leaf has no subject alternative name"},
	"self-signed": {func(t *testing.T, w *world, in *Input, _ *Expect) {
		in.Certificate.Data = pemOf(certify(t, "orders", w.leafKey.Public(), nil, w.leafKey, asLeaf))
	}, "the leaf is self-signed"},
	"weak RSA": {func(t *testing.T, w *world, in *Input, _ *Expect) {
		weak := rsaKey(t, 1024)
		in.Key.Data = keyPEM(t, weak)
		in.Certificate.Data = pemOf(certify(t, "orders", weak.Public(), w.between, w.betweenKey, asLeaf), w.between)
	}, "the private key has RSA of 1024 bits"},
	"weak curve": {func(t *testing.T, w *world, in *Input, _ *Expect) {
		weak, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		in.Key.Data = keyPEM(t, weak)
		in.Certificate.Data = pemOf(certify(t, "orders", weak.Public(), w.between, w.betweenKey, asLeaf), w.between)
	}, "the private key is on the curve P-224"},
}

// chains are leaves whose way to a root is wrong.
var chains = map[string]bad{
	"leaf not first":       cert(func(_ *testing.T, w *world) []byte { return pemOf(w.between, w.leaf) }, "the leaf is not first: the key belongs to certificate 2"),
	"twice":                cert(func(_ *testing.T, w *world) []byte { return pemOf(w.leaf, w.leaf, w.between) }, "certificate 2 is there twice"),
	"missing intermediate": cert(func(_ *testing.T, w *world) []byte { return pemOf(w.leaf) }, `it has no root "CN=Intermediate"`),
	"too long": cert(func(_ *testing.T, w *world) []byte {
		return bytes.Repeat(pemOf(w.leaf), maxChain+1)
	}, "the chain has 11 certificates"),
	"other root": bundle(func(t *testing.T, _ *world) []byte {
		k := newKey(t)
		return pemOf(certify(t, "Other", k.Public(), nil, k, asCA))
	}, `it has no root "CN=Root"`),
	"root renewed with another key": bundle(func(t *testing.T, _ *world) []byte {
		k := newKey(t)
		return pemOf(certify(t, "Root", k.Public(), nil, k, asCA))
	}, "with another key than the one that signed the chain"),
	"not in the chain": cert(func(t *testing.T, w *world) []byte {
		k := newKey(t)
		return pemOf(w.leaf, w.between, certify(t, "Stray", k.Public(), nil, k, asCA))
	}, "certificate 3 does not belong to the chain"),
	"between without CA flag": cert(func(t *testing.T, w *world) []byte { return pemOf(w.leaf, w.issue(t, nil), w.between) }, "stands among the issuers and has no CA flag"),
	"between may not sign": cert(func(t *testing.T, w *world) []byte {
		return pemOf(w.leaf, certify(t, "Intermediate", w.betweenKey.Public(), w.root, w.rootKey, func(c *x509.Certificate) {
			c.IsCA, c.KeyUsage = true, x509.KeyUsageCRLSign
		}))
	}, "and may not sign certificates"),
	"between renewed": cert(func(t *testing.T, w *world) []byte {
		return pemOf(w.leaf, certify(t, "Intermediate", newKey(t).Public(), w.root, w.rootKey, asCA))
	}, "has the name of the issuer of certificate 1, and has not signed it"),
	"between expired": cert(func(t *testing.T, w *world) []byte {
		return pemOf(w.leaf, certify(t, "Intermediate", w.betweenKey.Public(), w.root, w.rootKey, func(c *x509.Certificate) {
			asCA(c)
			c.NotAfter = time.Now().Add(-time.Minute)
		}))
	}, "the issuer, the certificate"),
	"wrong order": cert(func(t *testing.T, w *world) []byte {
		k := newKey(t)
		low := certify(t, "Low", k.Public(), w.between, w.betweenKey, asCA)
		return pemOf(certify(t, "orders", w.leafKey.Public(), low, k, asLeaf), w.between, low)
	}, "the chain is in the wrong order: certificate 1 was issued by certificate 3"),
	"missing in the middle": cert(func(t *testing.T, w *world) []byte {
		k := newKey(t)
		low := certify(t, "Low", k.Public(), w.between, w.betweenKey, asCA)
		return pemOf(certify(t, "orders", w.leafKey.Public(), low, k, asLeaf), w.between)
	}, "an intermediate is missing"),
	"for clients only": cert(func(t *testing.T, w *world) []byte {
		return pemOf(w.leaf, certify(t, "Intermediate", w.betweenKey.Public(), w.root, w.rootKey, func(c *x509.Certificate) {
			asCA(c)
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}))
	}, "peers would refuse the chain: x509: certificate specifies an incompatible key usage"),
	"path too long": cert(func(t *testing.T, w *world) []byte {
		k := newKey(t)
		short := certify(t, "Short", w.betweenKey.Public(), w.root, w.rootKey, func(c *x509.Certificate) {
			asCA(c)
			c.MaxPathLenZero = true
		})
		low := certify(t, "Low", k.Public(), short, w.betweenKey, asCA)
		return pemOf(certify(t, "orders", w.leafKey.Public(), low, k, asLeaf), low, short)
	}, "peers would refuse the chain"),
	"other root at the end": cert(func(t *testing.T, _ *world) []byte {
		other := newWorld(t)
		return pemOf(other.leaf, other.between, other.root)
	}, "the key does not belong to the certificate"),
	"root not in bundle": {func(t *testing.T, w *world, in *Input, _ *Expect) {
		k := newKey(t)
		in.Certificate.Data = pemOf(w.leaf, w.between, w.root)
		in.Bundle.Data = pemOf(certify(t, "Other", k.Public(), nil, k, asCA))
	}, "the root at the end of the chain is not in it"},
}

// bundles are trust bundles that are wrong.
var bundles = map[string]bad{
	"leaf":         bundle(func(_ *testing.T, w *world) []byte { return pemOf(w.leaf) }, "it holds the leaf itself"),
	"not a CA":     bundle(func(t *testing.T, w *world) []byte { return pemOf(w.root, w.issue(t, nil)) }, "its certificate 2 is not one of an authority"),
	"intermediate": bundle(func(_ *testing.T, w *world) []byte { return pemOf(w.between) }, "its certificate 1 is not a root but issued by another"),
	"forged root": bundle(func(t *testing.T, w *world) []byte {
		der := bytes.Clone(w.root.Raw)
		der[len(der)-1] ^= 1 // of the signature
		return labeled("CERTIFICATE", der)
	}, "has not signed itself"),
	"expired root": bundle(func(t *testing.T, w *world) []byte {
		return pemOf(certify(t, "Root", w.rootKey.Public(), nil, w.rootKey, func(c *x509.Certificate) {
			asCA(c)
			c.NotAfter = time.Now().Add(-time.Minute)
		}))
	}, "the root, the certificate"),
	"root ends too soon": {func(t *testing.T, w *world, in *Input, want *Expect) {
		in.Bundle.Data = pemOf(w.rootUntil(t, time.Hour), w.rootUntil(t, 150*time.Minute), w.rootUntil(t, -time.Minute))
		want.MinRemaining = 24 * time.Hour
	}, " is valid for 2h"},
	"huge root": bundle(func(t *testing.T, w *world) []byte {
		huge := &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 1<<16-1, 1), E: 65537}
		return pemOf(certify(t, "Huge", huge, nil, w.rootKey, asCA))
	}, `of "CN=Huge" has RSA of 65536 bits`),
	"weak root": bundle(func(t *testing.T, _ *world) []byte {
		weak := rsaKey(t, 1024)
		return pemOf(certify(t, "Weak", weak.Public(), nil, weak, asCA))
	}, `of "CN=Weak" has RSA of 1024 bits`),
}

// TestCorpus gives every malformed or hostile input to the checks: each is refused by a message of its own that
// names the value and the fault and holds nothing of a secret.
func TestCorpus(t *testing.T) {
	w := newWorld(t)
	count, said := 0, map[string]string{}
	for group, cases := range map[string]map[string]bad{
		"forms": forms, "PEM": pems, "kinds": kinds, "encryption": encryptions, "leaf": leaves, "chain": chains, "bundle": bundles,
	} {
		for name, c := range cases {
			count++
			t.Run(group+"/"+name, func(t *testing.T) {
				in, want := w.input(t), Expect{Now: time.Now()}
				c.change(t, w, &in, &want)
				secrets := secretsOf(in)
				err := judge(in, want)
				if err == nil {
					t.Fatal("it is accepted")
				}
				if !strings.Contains(err.Error(), c.says) {
					t.Errorf("it says\n%v\nand not %q", err, c.says)
				}
				var fault *Fault
				if !errors.As(err, &fault) || fault.Name == "" || fault.Fix == "" {
					t.Errorf("%v does not name a value, or what to do", err)
				}
				for _, secret := range secrets {
					if strings.Contains(err.Error(), secret) {
						t.Errorf("%q quotes %q", err, secret)
					}
				}
				if other, twice := said[err.Error()]; twice && !sameFault[name] {
					t.Errorf("%q says the same: %v", other, err)
				}
				said[err.Error()] = name
			})
		}
	}
	if count < 60 {
		t.Errorf("the corpus has %d inputs", count)
	}
}

// sameFault are cases that are another way to a fault that has its message already.
var sameFault = map[string]bool{
	"dashes missing": true, "four dashes": true, // a malformed BEGIN line
	"no beginning": true, "text": true, // a line outside of a block
}

// judge does what the command does before it writes.
func judge(in Input, want Expect) error {
	c, err := Parse(in)
	if err != nil {
		return err
	}
	return c.Check(want)
}

// secretsOf are the pieces of a key and a passphrase that no message may have.
func secretsOf(in Input) []string {
	secrets := []string{"MARKER-1234567890"}
	for _, data := range [][]byte{in.Key.Data, in.Passphrase.Data} {
		for line := range strings.Lines(string(data)) {
			if line = strings.TrimSpace(line); len(line) > 8 && !strings.Contains(line, "--") && !strings.Contains(line, ": ") {
				secrets = append(secrets, line)
			}
		}
	}
	return secrets
}

func request(t *testing.T, w *world) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, w.leafKey)
	if err != nil {
		t.Fatal(err)
	}
	return labeled("CERTIFICATE", der)
}

// wrapped makes a text a JSON string in a JSON string.
func wrapped(t testing.TB, text []byte, times int) []byte {
	t.Helper()
	for range times {
		var err error
		if text, err = json.Marshal(string(text)); err != nil {
			t.Fatal(err)
		}
	}
	return text
}

// TestStrength looks at RSA keys that take too long to make.
func TestStrength(t *testing.T) {
	v := Value{Name: "KEY_PEM"}
	modulus := func(bits uint) *big.Int { return new(big.Int).SetBit(big.NewInt(1), int(bits-1), 1) }
	for says, public := range map[string]*rsa.PublicKey{
		"RSA of 2040 bits":            {N: modulus(2040), E: 65537},
		"RSA of 16384 bits":           {N: modulus(16384), E: 65537},
		"RSA with the exponent 3":     {N: modulus(2048), E: 3},
		"RSA with the exponent 65538": {N: modulus(2048), E: 65538},
	} {
		if err := strength(v, public, "the private key"); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	if err := strength(v, &rsa.PublicKey{N: modulus(2048), E: 65537}, "the private key"); err != nil {
		t.Error(err)
	}
}
