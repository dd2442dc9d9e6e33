package secret

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"
	"unicode/utf16"
)

func must[T any](t testing.TB) func(value T, err error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// material is a key, and what is public of it, in DER.
type material struct{ cert, crl, request, pkcs8, sec1 []byte }

func newMaterial(t testing.TB) material {
	t.Helper()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a"}, SubjectKeyId: []byte{1},
		NotBefore: now, NotAfter: now.Add(time.Hour), KeyUsage: x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true,
	}
	return material{
		cert: must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)),
		crl: must[[]byte](t)(x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
			Number: big.NewInt(1), ThisUpdate: now, NextUpdate: now.Add(time.Hour),
		}, template, key)),
		request: must[[]byte](t)(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)),
		pkcs8:   must[[]byte](t)(x509.MarshalPKCS8PrivateKey(key)),
		sec1:    must[[]byte](t)(x509.MarshalECPrivateKey(key)),
	}
}

func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func TestIsPublic(t *testing.T) {
	m := newMaterial(t)
	cert, crl := block("CERTIFICATE", m.cert), block("X509 CRL", m.crl)
	for name, value := range map[string]string{
		"a certificate":       cert,
		"a chain":             cert + cert,
		"a revocation list":   crl,
		"both":                cert + "\n\n" + crl,
		"without an end":      strings.TrimSuffix(cert, "\n"),
		"line ends":           strings.ReplaceAll(cert+crl, "\n", "\r\n"),
		"white space around":  " \n\t" + cert + " \n",
		"DER":                 string(m.cert),
		"revocation list DER": string(m.crl),
	} {
		if !IsPublic([]byte(value)) {
			t.Errorf("%s: it is not public", name)
		}
	}
}

// TestIsNotPublic writes a key in all kinds of ways, with and without certificates around it.
func TestIsNotPublic(t *testing.T) {
	m := newMaterial(t)
	cert, key := block("CERTIFICATE", m.cert), block("PRIVATE KEY", m.pkcs8)
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	must[int](t)(w.Write([]byte(key)))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var wide []byte
	for _, unit := range utf16.Encode([]rune(key)) {
		wide = append(wide, byte(unit), byte(unit>>8))
	}
	body := strings.Join(strings.Split(strings.TrimSpace(key), "\n")[1:], "\n")
	header := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.cert, Headers: map[string]string{"Key": hex.EncodeToString(m.pkcs8)}})
	for name, value := range map[string]string{
		"nothing":                  "",
		"white space":              " \n",
		"a passphrase":             "correct horse battery staple",
		"PKCS #8":                  key,
		"SEC 1":                    block("EC PRIVATE KEY", m.sec1),
		"DER":                      string(m.pkcs8),
		"SEC 1, DER":               string(m.sec1),
		"Base64":                   base64.StdEncoding.EncodeToString(m.pkcs8),
		"hexadecimal":              hex.EncodeToString(m.pkcs8),
		"gzip":                     zipped.String(),
		"UTF-16":                   string(wide),
		"of Kubernetes":            "data:\n  tls.crt: " + base64.StdEncoding.EncodeToString([]byte(cert)) + "\n  tls.key: " + base64.StdEncoding.EncodeToString([]byte(key)) + "\n",
		"of a shell":               "KEY_PEM=" + base64.StdEncoding.EncodeToString(m.pkcs8) + "\n",
		"a field":                  `{"pk_pass":"correct horse battery staple"}`,
		"age":                      "AGE-SECRET-KEY-1QQQ\n",
		"a certificate in JSON":    string(must[[]byte](t)(json.Marshal(map[string]string{"cert_pem": cert}))),
		"behind a certificate":     cert + key,
		"before a certificate":     key + cert,
		"between certificates":     cert + key + cert,
		"its text behind":          cert + base64.StdEncoding.EncodeToString(m.pkcs8),
		"its text before":          base64.StdEncoding.EncodeToString(m.pkcs8) + "\n" + cert,
		"its text between":         cert + base64.StdEncoding.EncodeToString(m.pkcs8) + "\n" + cert,
		"a comment":                "# correct horse\n" + cert,
		"in a header":              string(header),
		"a broken block between":   cert + "-----BEGIN CERTIFICATE-----\n" + body[:40] + "\n" + cert,
		"an end too many":          cert + "-----END CERTIFICATE-----\n",
		"a key called certificate": block("CERTIFICATE", m.pkcs8),
		"a key called CRL":         block("X509 CRL", m.pkcs8),
		"behind it in the block":   block("CERTIFICATE", append(bytes.Clone(m.cert), m.pkcs8...)),
		"behind it in DER":         string(m.cert) + string(m.pkcs8),
		"cut off":                  cert[:len(cert)-30],
		"a certificate request":    block("CERTIFICATE REQUEST", m.request),
		"another type":             block("TRUSTED CERTIFICATE", m.cert),
	} {
		if IsPublic([]byte(value)) {
			t.Errorf("%s: it is public", name)
		}
	}
}

// FuzzIsPublic plants a key between any bytes, also behind and before a certificate: it is never public, and
// nothing crashes.
func FuzzIsPublic(f *testing.F) {
	m := newMaterial(f)
	cert, key := block("CERTIFICATE", m.cert), block("PRIVATE KEY", m.pkcs8)
	f.Add("", "")
	f.Add(cert, "\n"+cert)
	f.Add("-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----\n")
	f.Add("-----BEGIN CERTIFICATE-----\nKey: ", "\n\nMAA=\n-----END CERTIFICATE-----\n")
	f.Add(string(m.cert), string(m.crl))
	f.Fuzz(func(t *testing.T, before, after string) {
		IsPublic([]byte(before))
		for _, planted := range []string{key, base64.StdEncoding.EncodeToString(m.pkcs8)} {
			if value := before + planted + after; IsPublic([]byte(value)) {
				t.Errorf("public: %q", value)
			}
		}
		if strings.TrimSpace(before) != "" && IsPublic([]byte(before)) != IsPublic([]byte(before+"\n"+cert)) && before[0] != 0x30 {
			t.Errorf("a certificate behind it changes what it is: %q", before)
		}
	})
}
