package leak_test

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"countersign.dev/aws/review/leak"
)

// key makes a PKCS#8 key.
func key(t testing.TB, edwards bool) []byte {
	t.Helper()
	var made any
	made, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if edwards {
		_, made, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(made)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestFind(t *testing.T) {
	t.Parallel()
	der := key(t, false)
	text := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	encoded := base64.StdEncoding.EncodeToString([]byte(text))
	const web = `{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","d":"870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE"}`
	certificate := "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"
	for name, test := range map[string]struct {
		text string
		want leak.Kind
	}{
		"nothing":                      {"", leak.Nothing},
		"a plan":                       {`{"version":1,"mesh":"payments","identity":"spiffe://payments.internal/service/checkout"}`, leak.Nothing},
		"an ARN":                       {"arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/checkout-AbCdEf:key::", leak.Nothing},
		"PEM":                          {text, leak.Key},
		"in JSON":                      {`{"key":"` + strings.ReplaceAll(text, "\n", `\n`) + `"}`, leak.Key},
		"encrypted":                    {strings.ReplaceAll(text, "PRIVATE KEY", "ENCRYPTED PRIVATE KEY"), leak.Key},
		"of OpenSSH":                   {strings.ReplaceAll(text, "PRIVATE KEY", "OPENSSH PRIVATE KEY"), leak.Key},
		"in base64":                    {encoded, leak.Key},
		"in base64 for URLs":           {base64.RawURLEncoding.EncodeToString([]byte(text)), leak.Key},
		"in base64 in base64":          {base64.StdEncoding.EncodeToString([]byte(encoded)), leak.Key},
		"in base64, wrapped":           {encoded[:76] + "\n" + encoded[76:], leak.Key},
		"DER in base64":                {"x=" + base64.StdEncoding.EncodeToString(der), leak.Key},
		"DER of Ed25519 in base64":     {base64.StdEncoding.EncodeToString(key(t, true)), leak.Key},
		"a certificate":                {certificate, leak.PEM},
		"a certificate, in base64":     {base64.StdEncoding.EncodeToString([]byte(certificate)), leak.PEM},
		"a certificate and a key":      {certificate + "\n" + text, leak.Key},
		"escaped for a URL":            {url.QueryEscape(text), leak.Key},
		"escaped for a path":           {url.PathEscape(text), leak.Key},
		"base64 after other words":     {"tls-key_" + encoded, leak.Key},
		"base64, wrapped by spaces":    {encoded[:64] + " " + encoded[64:], leak.Key},
		"SEC 1 in base64":              {base64.StdEncoding.EncodeToString(sec1(t)), leak.Key},
		"PKCS#1 in base64":             {base64.StdEncoding.EncodeToString(pkcs1(t)), leak.Key},
		"encrypted PKCS#8 in base64":   {base64.StdEncoding.EncodeToString([]byte("\x30\x81\xa4\x30\x57\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0d" + strings.Repeat("x", 40))), leak.Key},
		"of age":                       {"age-secret-key-1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq", leak.Key},
		"of SSH2":                      {"---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\nP2/56wAA\n---- END SSH2 ENCRYPTED PRIVATE KEY ----", leak.Key},
		"a public one of SSH2":         {"---- BEGIN SSH2 PUBLIC KEY ----\nAAAA", leak.PEM},
		"of PGP":                       {"-----BEGIN PGP PRIVATE KEY BLOCK-----", leak.Key},
		"of PuTTY":                     {"PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\nPrivate-Lines: 1", leak.Key},
		"of PuTTY in base64":           {base64.StdEncoding.EncodeToString([]byte("PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none")), leak.Key},
		"as JSON":                      {web, leak.Key},
		"as JSON in JSON":              {`{"jwk":` + strconv.Quote(web) + `}`, leak.Key},
		"as JSON in base64":            {base64.StdEncoding.EncodeToString([]byte(web)), leak.Key},
		"a symmetric one as JSON":      {`{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ"}`, leak.Key},
		"a public one as JSON":         {`{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}`, leak.Nothing},
		"DER in digits":                {"0x" + hex.EncodeToString(der), leak.Key},
		"DER in large digits":          {strings.ToUpper(hex.EncodeToString(der)), leak.Key},
		"DER in digits with colons":    {colons(der), leak.Key},
		"PEM in digits":                {hex.EncodeToString([]byte(text)), leak.Key},
		"PEM in ASCII85":               {"<~" + fives(string(adobe), []byte(text)) + "~>", leak.Key},
		"PEM in ASCII85 after others":  {"key=" + fives(string(adobe), []byte(text)), leak.Key},
		"DER in ASCII85":               {fives(string(adobe), der), leak.Key},
		"PEM in letters of RFC 1924":   {`{"key":"` + fives(rfc1924, []byte(text)) + `"}`, leak.Key},
		"DER in letters of RFC 1924":   {fives(rfc1924, key(t, true)), leak.Key},
		"words in ASCII85":             {fives(string(adobe), []byte(strings.Repeat("nothing of that kind, ", 40))), leak.Nothing},
		"compressed":                   {base64.StdEncoding.EncodeToString(zipped(t, []byte(text))), leak.Key},
		"DER, compressed":              {base64.StdEncoding.EncodeToString(zipped(t, der)), leak.Key},
		"compressed, in digits":        {hex.EncodeToString(zipped(t, []byte(text))), leak.Key},
		"compressed words":             {base64.StdEncoding.EncodeToString(zipped(t, []byte(strings.Repeat("nothing of that kind, ", 40)))), leak.Nothing},
		"a bomb":                       {base64.StdEncoding.EncodeToString(zipped(t, make([]byte, 64<<20))), leak.Nothing},
		"percent signs":                {"100%, or 5% of it", leak.Nothing},
		"other DER in base64":          {base64.StdEncoding.EncodeToString(append([]byte{0x30, 0x30}, make([]byte, 48)...)), leak.Nothing},
		"a digest that looks like one": {"sha256:" + strings.Repeat("ab", 32), leak.Nothing},
	} {
		if got := leak.Find(test.text); got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
	}
}

// adobe and rfc1924 are the letters of ASCII85.
var adobe = func() (letters []byte) {
	for letter := byte('!'); letter <= 'u'; letter++ {
		letters = append(letters, letter)
	}
	return letters
}()

const rfc1924 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"

// fives writes bytes in ASCII85.
func fives(letters string, plain []byte) string {
	var b strings.Builder
	for len(plain) > 0 {
		var four [4]byte
		n := copy(four[:], plain)
		plain = plain[n:]
		value := binary.BigEndian.Uint32(four[:])
		var five [5]byte
		for i := range five {
			five[4-i] = letters[value%85]
			value /= 85
		}
		b.Write(five[:n+1])
	}
	return b.String()
}

// zipped compresses.
func zipped(t *testing.T, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// colons writes bytes as OpenSSL does.
func colons(b []byte) string {
	var parts []string
	for _, one := range b {
		parts = append(parts, fmt.Sprintf("%02x", one))
	}
	return strings.Join(parts, ":")
}

// TestAccount asserts where the secret access key of an account is seen, and where not.
func TestAccount(t *testing.T) {
	t.Parallel()
	value := strings.Repeat("aB/9", 10)
	for text, want := range map[string]bool{
		`{"AccessKeyId":"AKIA","SecretAccessKey":"` + value + `"}`: true, `{\"secretAccessKey\": \"` + value + `\"}`: true, "aws_secret_access_key = " + value: true,
		"sync --aws-secret-access-key=" + value + " --now": true, "sync --aws-secret-access-key " + value: true,
		base64.StdEncoding.EncodeToString([]byte("[default]\naws_secret_access_key=" + value)): true,
		`{"SecretAccessKey":"arn:aws:secretsmanager:eu-central-1:123456789012:secret:a"}`:      false, "aws_secret_access_key=" + value + "more": false, `{"AccessKeyId":"` + value + `"}`: false, "": false,
	} {
		if got := leak.Account(text); got != want {
			t.Errorf("%s: %t", text, got)
		}
	}
}

func sec1(t *testing.T) []byte {
	t.Helper()
	made, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(made)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func pkcs1(t *testing.T) []byte {
	t.Helper()
	made, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return x509.MarshalPKCS1PrivateKey(made)
}

func TestAccessKey(t *testing.T) {
	t.Parallel()
	value := strings.Repeat("a", 40)
	for pair, want := range map[string]bool{
		"AWS_SECRET_ACCESS_KEY=" + value: true, "PROD_AWS_SECRET_ACCESS_KEY=" + value: true, "aws_secret_access_key=" + value: true,
		"AWS_SECRET_ACCESS_KEY=": false, "AWS_SECRET_ACCESS_KEY=from-the-role": false, "AWS_SECRET_ACCESS_KEY=arn:" + value: false, "AWS_ACCESS_KEY_ID=" + value: false,
	} {
		name, value, _ := strings.Cut(pair, "=")
		if got := leak.AccessKey(name, value); got != want {
			t.Errorf("%s: %t", pair, got)
		}
	}
}

func TestPassphrase(t *testing.T) {
	t.Parallel()
	for pair, want := range map[string]bool{
		"KEY_PASSPHRASE=a": true, "TLS_PASSPHRASE=a": true, "keyPassword=a": true, "PRIVATE_KEY_PASSWORD=a": true,
		"KEY_PASSPHRASE=": false, "KEY_PASSPHRASE_FILE=a": false, "KEY_PASSPHRASE=/run/passphrase": false, "KEY_PASSPHRASE=arn:aws:a": false, "PATH=a": false, "BYPASS=a": false,
	} {
		name, value, _ := strings.Cut(pair, "=")
		if got := leak.Passphrase(name, value); got != want {
			t.Errorf("%s: %t", pair, got)
		}
	}
}

// FuzzFind: no text stops the search, and a key in front of it is found.
func FuzzFind(f *testing.F) {
	f.Add("-----BEGIN RSA PRIVATE KEY-----")
	f.Add("H4sIAAAAAAAA/0rOzysuzs8rBgAAAP//AQAA//+" + "AAAAAAAAAA")
	f.Add(`{"kty":"EC","d":"870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE"}`)
	f.Add(strings.Repeat("30:", 50))
	f.Add("MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAw")
	f.Fuzz(func(t *testing.T, text string) {
		leak.Find(text)
		leak.Account(text)
		if leak.Find("-----BEGIN PRIVATE KEY-----\n"+text) != leak.Key {
			t.Error("not found")
		}
	})
}

// TestOption asserts what is taken for a passphrase in a command, and what is not.
func TestOption(t *testing.T) {
	for _, test := range []struct {
		words []string
		want  bool
	}{
		{[]string{"serve", "--key-passphrase", "open sesame"}, true},
		{[]string{"serve", "--tls-password=secret"}, true},
		{[]string{"sh", "-c", "KEY_PASSPHRASE='abc' exec serve"}, true},
		{[]string{"sh", "-c", "serve --key-passphrase=abc"}, true},
		{[]string{"sh", "-c", "serve --key-passphrase abc"}, true},
		{[]string{"sh", "-c", "exec serve -tls-password 'open sesame' --verbose"}, true},
		{[]string{"sh", "-c", `serve --key-passphrase "$PHRASE"`}, false},
		{[]string{"sh", "-c", "serve --key-passphrase --verbose"}, false},
		{[]string{"sh", "-c", "serve --key-passphrase && true"}, false},
		{[]string{"sh", "-c", "serve --key-passphrase; true"}, false},
		{[]string{"sh", "-c", "serve --key-passphrase-file /run/phrase --key-passphrase /run/phrase"}, false},
		{[]string{"serve", "--key-passphrase", "--verbose"}, false},
		{[]string{"serve", "--key-passphrase"}, false},
		{[]string{"serve", "--key-passphrase-file", "/run/phrase"}, false},
		{[]string{"serve", "--key-passphrase", "/run/phrase"}, false},
		{[]string{"serve", "--key-passphrase=$PHRASE"}, false},
		{[]string{"serve", "--key-passphrase", "$PHRASE"}, false},
		{[]string{"init", "--passphrase-from", "secret:payments/checkout"}, false},
		{[]string{"passphrase", "words"}, false},
		{nil, false},
	} {
		if got := leak.Option(test.words); got != test.want {
			t.Errorf("%q: %t", test.words, got)
		}
	}
}

// TestCredential asserts which options of a log hold a credential.
func TestCredential(t *testing.T) {
	for option, want := range map[string]bool{
		"splunk-token": true, "apikey": true, "dd_api_key": true, "HTTP-Password": true, "access-key": true, "awslogs-group": false, "awslogs-stream-prefix": false, "max-buffer-size": false, "tokens": false, "monkey": false,
	} {
		if got := leak.Credential(option, "value"); got != want {
			t.Errorf("%s: %t", option, got)
		}
		if leak.Credential(option, "") || leak.Credential(option, "arn:aws:secretsmanager:x") {
			t.Errorf("%s: what is empty, or elsewhere, is none", option)
		}
	}
}
