package secret

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
)

func must[T any](t *testing.T) func(value T, err error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// keys are private keys in DER in all their structures, by the type of their PEM blocks.
func keys(t *testing.T) map[string][]byte {
	t.Helper()
	ec := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	rsaKey := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	encrypted := must[[]byte](t)(asn1.Marshal(struct {
		Algorithm pkix.AlgorithmIdentifier
		Data      []byte
	}{pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}}, make([]byte, 64)}))
	pfx := must[[]byte](t)(asn1.Marshal(struct {
		Version int
		Content struct{ Type asn1.ObjectIdentifier }
	}{3, struct{ Type asn1.ObjectIdentifier }{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}}}))
	for len(pfx) < 40 { // a real one is longer; Base64 is looked at from a length on
		pfx = must[[]byte](t)(asn1.Marshal(struct {
			Version int
			Content []byte
		}{3, make([]byte, 100)}))
	}
	return map[string][]byte{
		"PRIVATE KEY":           must[[]byte](t)(x509.MarshalPKCS8PrivateKey(ed)),
		"EC PRIVATE KEY":        must[[]byte](t)(x509.MarshalECPrivateKey(ec)),
		"RSA PRIVATE KEY":       x509.MarshalPKCS1PrivateKey(rsaKey),
		"ENCRYPTED PRIVATE KEY": encrypted,
		"PKCS12":                pfx,
	}
}

func TestHoldsPrivateKey(t *testing.T) {
	for kind, der := range keys(t) {
		text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		if kind == "PKCS12" {
			text = der // it has no form in PEM
		}
		inside := must[[]byte](t)(json.Marshal(map[string]any{"a": []any{1, map[string]any{"b": base64.StdEncoding.EncodeToString(text)}}}))
		for form, value := range map[string][]byte{
			"DER":            der,
			"PEM":            text,
			"without BEGIN":  bytes.TrimLeft(text, "-BEGIN "),
			"Base64 of DER":  []byte(base64.StdEncoding.EncodeToString(der)),
			"Base64, URL":    []byte(base64.RawURLEncoding.EncodeToString(der)),
			"Base64 of PEM":  []byte(base64.StdEncoding.EncodeToString(text)),
			"twice Base64":   []byte(base64.StdEncoding.EncodeToString([]byte(base64.StdEncoding.EncodeToString(text)))),
			"in JSON":        inside,
			"JSON in JSON":   must[[]byte](t)(json.Marshal(map[string]string{"x": string(inside)})),
			"a JSON string":  must[[]byte](t)(json.Marshal(string(inside))),
			"after a mark":   append([]byte("\xef\xbb\xbf"), inside...),
			"a JSON name":    must[[]byte](t)(json.Marshal(map[string]int{base64.StdEncoding.EncodeToString(text): 1})),
			"with line ends": wrap(base64.StdEncoding.EncodeToString(text)),
		} {
			if kind == "PKCS12" && form == "without BEGIN" {
				continue
			}
			if !HoldsPrivateKey(value) {
				t.Errorf("%s, %s: not found", kind, form)
			}
		}
	}
	deep := strings.Repeat("nothing ", 10)
	for range deepest + 1 {
		deep = base64.StdEncoding.EncodeToString([]byte(deep))
	}
	for name, value := range map[string]string{
		"escaped":         `{"a":"-----BEGIN \u0050RIVATE KEY-----"}`,
		"lower case":      "-----begin private key-----",
		"OpenSSH":         "-----BEGIN OPENSSH PRIVATE KEY-----",
		"age":             "AGE-SECRET-KEY-1QQQ",
		"by its name":     `{"key_pem":"whatever"}`,
		"by name, case":   `{"Private_Key":"whatever"}`,
		"passphrase":      `{"x":{"passphrase":"whatever"}}`,
		"configured":      `{"tls.key":"whatever"}`,
		"an object":       `{"key_pem":{"a":1}}`,
		"too deep to see": deep,
		"twice":           `{"key_pem":"whatever","key_pem":""}`,
		"twice, another":  `{"a":"-----BEGIN \u0050RIVATE KEY-----","a":""}`,
		"cut off":         `[{"a":[1,"-----BEGIN \u0050RIVATE KEY-----"`,
		"after an object": `{"a":{"b":[]},"key_pem":1}`,
	} {
		if !HoldsPrivateKey([]byte(value), "tls.key") {
			t.Errorf("%s: not found", name)
		}
	}
}

func wrap(text string) []byte {
	var b bytes.Buffer
	for len(text) > 64 {
		b.WriteString(text[:64] + "\r\n")
		text = text[64:]
	}
	b.WriteString(text + "\r\n")
	return b.Bytes()
}

func TestHoldsNoPrivateKey(t *testing.T) {
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a"}}
	cert := must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	request := must[[]byte](t)(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key))
	public := must[[]byte](t)(x509.MarshalPKIXPublicKey(key.Public()))
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	for name, value := range map[string][]byte{
		"nothing": nil, "text": []byte("hello"), "certificate": text, "DER": cert, "request": request, "public key": public,
		"Base64": []byte(base64.StdEncoding.EncodeToString(cert)), "json": must[[]byte](t)(json.Marshal(map[string]string{"cert_pem": string(text)})),
		"key empty": []byte(`{"key_pem":"","passphrase":null}`), "another name": []byte(`{"tls.key":"whatever"}`), "cut off": []byte(`{"a":`), "a value": []byte(`{"a":"key_pem","b":["key_pem","x"],"c":{}}`),
		"deep": []byte(strings.Repeat("[", 100) + `"x"` + strings.Repeat("]", 100)), "text in brackets": []byte("[hello]]}"),
		"bytes": {0x30, 0x03, 0x02, 0x01, 0x00}, "zeros": make([]byte, 100),
	} {
		if HoldsPrivateKey(value) {
			t.Errorf("%s: a private key was seen", name)
		}
	}
}

func TestPrivateFields(t *testing.T) {
	for name, want := range map[string]bool{
		"key_pem": true, "a/b/key_pem": true, "a/PRIVATE_KEY": true, "passphrase": true, "tls.key": true,
		"": false, "cert_pem": false, "key_pem/a": false, "a/ca_bundle": false,
	} {
		if got := IsPrivateField(name, "tls.key", ""); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

// FuzzHoldsPrivateKey plants a key between any bytes: it is found, and nothing crashes.
func FuzzHoldsPrivateKey(f *testing.F) {
	f.Add([]byte(`{"a":`), []byte("}"))
	f.Add([]byte("MFMCAQEwBQYDK2VwBCIEIA=="), []byte{})
	f.Add([]byte{0x30, 0x80, 0x02, 0x01}, []byte{0xff})
	f.Fuzz(func(t *testing.T, before, after []byte) {
		HoldsPrivateKey(before)
		planted := append(append(bytes.Clone(before), "-----BEGIN PRIVATE KEY-----"...), after...)
		if !HoldsPrivateKey(planted) {
			t.Errorf("not found in %q", planted)
		}
		if text, err := json.Marshal(string(planted)); err == nil && !HoldsPrivateKey(text) {
			t.Errorf("not found in %s", text)
		}
	})
}
