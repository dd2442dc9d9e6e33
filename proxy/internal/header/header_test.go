package header

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/id"
	"countersign.dev/proxy/internal/message"
)

// certificate makes one that nobody has to trust.
func certificate(t testing.TB, template *x509.Certificate) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(1)
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func gateway(t testing.TB) *x509.Certificate {
	t.Helper()
	uri, err := url.Parse("spiffe://colorapp.internal/gateway/colorgateway")
	if err != nil {
		t.Fatal(err)
	}
	return certificate(t, &x509.Certificate{
		Subject:  pkix.Name{CommonName: "colorgateway", OrganizationalUnit: []string{"gateway"}, Organization: []string{"colorapp.internal"}},
		DNSNames: []string{"colorgateway", "colorgateway.colorapp.internal"},
		URIs:     []*url.URL{uri},
	})
}

func TestSetPeer(t *testing.T) {
	cert := gateway(t)
	own, err := id.Parse("spiffe://colorapp.internal/service/colorteller")
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256(cert.Raw)
	want := []message.Field{
		{Name: "accept", Value: "*/*"},
		{Name: "x-client-cert", Value: "CN=colorgateway,OU=gateway,O=colorapp.internal"},
		{Name: "x-forwarded-client-cert", Value: "By=spiffe://colorapp.internal/service/colorteller;Hash=" + hex.EncodeToString(hash[:]) +
			";URI=spiffe://colorapp.internal/gateway/colorgateway;DNS=colorgateway;DNS=colorgateway.colorapp.internal" +
			`;Subject="CN=colorgateway,OU=gateway,O=colorapp.internal"`},
	}
	got := forged()
	got.Add("accept", "*/*")
	if _, ok := TakeClaims(got, false); !ok {
		t.Fatal("refused")
	}
	SetPeer(got, NewPeer(cert, own))
	if diff := cmp.Diff(want, got.Fields); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	got = forged()
	TakeClaims(got, false)
	SetPeer(got, nil)
	if len(got.Fields) > 0 {
		t.Errorf("an anonymous caller leaves %v", got.Fields)
	}
}

func headOf(fields ...string) *message.Head {
	h := new(message.Head)
	h.Reset()
	for i := 0; i < len(fields); i += 2 {
		h.Add(fields[i], fields[i+1])
	}
	return h
}

// forged are the spellings that some application reads as ours; the codecs have put them in lower case.
func forged() *message.Head {
	return headOf("x-client-cert", "CN=evil", "x_client_cert", "CN=evil", "x-client_cert", "CN=evil", "x.client.cert", "CN=evil",
		"x-forwarded-client-cert", "Hash=1", "x_forwarded_client_cert", "Hash=1", "x-forwarded_client-cert", "Hash=1")
}

func TestClaimsOfOthersStay(t *testing.T) {
	h := headOf("x-client-certs", "a", "x-client", "b", "xclient-cert-", "c", "x-forwarded-proto", "d", "x-forwarded-for", "e")
	want := slices.Clone(h.Fields)
	if _, ok := TakeClaims(h, false); !ok {
		t.Error("refused")
	}
	if diff := cmp.Diff(want, h.Fields); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestAddresses(t *testing.T) {
	h := headOf("x-forwarded-for", "1.1.1.1", "x_forwarded_for", "6.6.6.6", "accept", "a", "x-forwarded-for", "2.2.2.2")
	got, ok := TakeClaims(h, true)
	if got != "1.1.1.1, 2.2.2.2" || !ok {
		t.Errorf("%q, %v", got, ok)
	}
	if diff := cmp.Diff([]message.Field{{Name: "accept", Value: "a"}}, h.Fields); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestConfusing(t *testing.T) {
	for name, refused := range map[string]bool{"content_length": true, "transfer_encoding": true, "content.length": true, "content-lengths": false, "accept": false} {
		if _, ok := TakeClaims(headOf(name, "1"), false); ok == refused {
			t.Errorf("%s: %v", name, ok)
		}
	}
}

func TestTrailers(t *testing.T) {
	h := forged()
	h.Add("x_forwarded_for", "6.6.6.6")
	h.Add("transfer_encoding", "chunked")
	h.Add("x-sum", "1")
	if got := Trailers(h.Fields); len(got) != 1 || got[0].Name != "x-sum" {
		t.Errorf("%v", got)
	}
}

func BenchmarkTakeClaims(b *testing.B) {
	given := headOf("accept", "*/*", "user-agent", "x", "x-request-id", "1", "x-forwarded-for", "1.1.1.1", "content-type", "a")
	h := headOf()
	b.ReportAllocs()
	for b.Loop() {
		h.Fields = append(h.Fields[:0], given.Fields...)
		TakeClaims(h, true)
	}
}

// name is a subject of one relative name a row; a row has type and value by turns.
func name(t testing.TB, rows ...[]any) []byte {
	t.Helper()
	var sequence []relativeNameSET
	for _, row := range rows {
		var set relativeNameSET
		for i := 0; i < len(row); i += 2 {
			value := row[i+1]
			if text, ok := value.(string); ok {
				value = asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(text)}
			}
			set = append(set, attribute{row[i].(asn1.ObjectIdentifier), value.(asn1.RawValue)})
		}
		sequence = append(sequence, set)
	}
	der, err := asn1.Marshal(sequence)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

var (
	oidCN = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidO  = asn1.ObjectIdentifier{2, 5, 4, 10}
	oidOU = asn1.ObjectIdentifier{2, 5, 4, 11}
)

func dnCases(t testing.TB) map[string]struct {
	der  []byte
	want string
} {
	t.Helper()
	return map[string]struct {
		der  []byte
		want string
	}{
		"plain":           {name(t, []any{oidO, "colorapp.internal"}, []any{oidOU, "gateway"}, []any{oidCN, "colorgateway"}), "CN=colorgateway,OU=gateway,O=colorapp.internal"},
		"special":         {name(t, []any{oidCN, ` x,+"\<>;=# `}), `CN=\ x\,\+\"\\\<\>\;=#\ `},
		"number sign":     {name(t, []any{oidCN, "#1"}), `CN=\#1`},
		"one space":       {name(t, []any{oidCN, " "}), `CN=\ `},
		"control":         {name(t, []any{oidCN, "a\nb\x00c\x7f"}), `CN=a\0Ab\00c\7F`},
		"beyond ASCII":    {name(t, []any{oidCN, "Zoë"}), `CN=Zo\C3\AB`},
		"Latin-1":         {name(t, []any{oidCN, asn1.RawValue{Tag: asn1.TagT61String, Bytes: []byte("Zo\xeb")}}), `CN=Zo\C3\AB`},
		"two-byte text":   {name(t, []any{oidCN, asn1.RawValue{Tag: asn1.TagBMPString, Bytes: []byte{0, 'Z', 0, 0xeb}}}), `CN=Z\C3\AB`},
		"several in one":  {name(t, []any{oidOU, "a", oidOU, "b"}), "OU=b+OU=a"},
		"an unknown type": {name(t, []any{asn1.ObjectIdentifier{1, 2, 3, 4}, "a"}), "1.2.3.4=#0C0161"},
		"no text":         {name(t, []any{oidCN, asn1.RawValue{Tag: asn1.TagInteger, Bytes: []byte{5}}}), "CN=#020105"},
		"empty":           {name(t), ""},
		"no name at all":  {[]byte{1, 2}, "#0102"},
	}
}

func TestDN(t *testing.T) {
	for name, tt := range dnCases(t) {
		t.Run(name, func(t *testing.T) {
			if got := DN(tt.der); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// TestDNAgainstOpenSSL checks the cases above against the library that NGINX prints with.
func TestDNAgainstOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal("openssl is not installed")
	}
	if err != nil {
		t.Skip("SKIPPED: openssl is not installed; install it to compare distinguished names with what NGINX prints")
	}
	for name, tt := range dnCases(t) {
		if name == "no name at all" || name == "no text" {
			continue // crypto/x509 makes no such certificate
		}
		t.Run(name, func(t *testing.T) {
			cert := certificate(t, &x509.Certificate{RawSubject: tt.der})
			file := filepath.Join(t.TempDir(), "cert.pem")
			if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), openssl, "x509", "-in", file, "-noout", "-subject", "-nameopt", "RFC2253").Output()
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.TrimPrefix(strings.TrimSuffix(string(out), "\n"), "subject="); got != DN(tt.der) {
				t.Errorf("here  %s\nthere %s", DN(tt.der), got)
			}
		})
	}
}

// FuzzForged sets a field under any name and looks whether an application that maps what is neither
// letter nor digit to one character finds it under our names.
func FuzzForged(f *testing.F) {
	for _, seed := range []string{"X-Client-Cert", "x_client_cert", "X-Forwarded-Client-Cert", "X.FORWARDED_client-cert", "X-Forwarded-For", "Accept"} {
		f.Add(seed, "v", true)
	}
	own, err := id.Parse("spiffe://a.internal/service/b")
	if err != nil {
		f.Fatal(err)
	}
	peer := NewPeer(gateway(f), own)
	f.Fuzz(func(t *testing.T, name, value string, anonymous bool) {
		if !message.IsToken(name) {
			return // the codecs refuse it
		}
		h := headOf(strings.ToLower(name), "forged "+value)
		if _, ok := TakeClaims(h, true); !ok {
			return
		}
		presented := peer
		if anonymous {
			presented = nil
		}
		SetPeer(h, presented)
		ours := 0
		for _, field := range h.Fields {
			read := strings.Map(func(r rune) rune {
				if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
					return r
				}
				return '_'
			}, field.Name)
			switch strings.ToUpper(read) {
			case "X_CLIENT_CERT", "X_FORWARDED_CLIENT_CERT":
				ours++
				if strings.Contains(field.Value, "forged") {
					t.Errorf("%q: %q", field.Name, field.Value)
				}
			case "X_FORWARDED_FOR", "CONTENT_LENGTH", "TRANSFER_ENCODING":
				t.Errorf("%q stays", field.Name)
			}
		}
		if want := map[bool]int{true: 0, false: 2}[anonymous]; ours != want {
			t.Errorf("%d of our fields, want %d: %v", ours, want, h.Fields)
		}
	})
}

// FuzzDN looks for names that would break out of a header's value.
func FuzzDN(f *testing.F) {
	for _, tt := range dnCases(f) {
		f.Add(tt.der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		for _, b := range []byte(DN(der)) {
			if b < 0x20 || b >= 0x7f {
				t.Fatalf("%x is printed as %q", der, DN(der))
			}
		}
		text := strings.ReplaceAll(DN(der), `\\`, "")
		if strings.Contains(strings.ReplaceAll(text, `\"`, ""), `"`) {
			t.Fatalf("%x is printed with a bare quotation mark: %s", der, DN(der))
		}
	})
}
