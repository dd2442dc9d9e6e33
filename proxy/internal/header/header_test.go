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
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/id"
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
	want := http.Header{
		"X-Client-Cert": {"CN=colorgateway,OU=gateway,O=colorapp.internal"},
		"X-Forwarded-Client-Cert": {"By=spiffe://colorapp.internal/service/colorteller;Hash=" + hex.EncodeToString(hash[:]) +
			";URI=spiffe://colorapp.internal/gateway/colorgateway;DNS=colorgateway;DNS=colorgateway.colorapp.internal" +
			`;Subject="CN=colorgateway,OU=gateway,O=colorapp.internal"`},
		"Accept": {"*/*"},
	}
	got := forged()
	got.Set("Accept", "*/*")
	SetPeer(got, own, NewPeer(cert))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	got = forged()
	SetPeer(got, own, nil)
	if len(got) > 0 {
		t.Errorf("an anonymous caller leaves %v", got)
	}
}

// forged are the spellings that some application reads as ours.
func forged() http.Header {
	return http.Header{
		"X-Client-Cert": {"CN=evil"}, "x-client-cert": {"CN=evil"}, "X_Client_Cert": {"CN=evil"}, "X-Client_Cert": {"CN=evil"},
		"X_client-Cert": {"CN=evil"}, "X.Client.Cert": {"CN=evil"}, "X-CLIENT-CERT": {"CN=evil"},
		"X-Forwarded-Client-Cert": {"Hash=1"}, "X_Forwarded_Client_Cert": {"Hash=1"}, "x-forwarded_client-cert": {"Hash=1"},
	}
}

func TestForgetLeavesOthers(t *testing.T) {
	h := http.Header{"X-Client-Certs": {"a"}, "X-Client": {"b"}, "Xclient-Cert-": {"c"}, "X-Forwarded-Proto": {"d"}, "X-Forwarded-For": {"e"}}
	want := h.Clone()
	Forget(h)
	if diff := cmp.Diff(want, h); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestAddresses(t *testing.T) {
	addr := netip.MustParseAddr("::ffff:10.0.0.9")
	given := func() http.Header {
		return http.Header{"X-Forwarded-For": {"1.1.1.1", "2.2.2.2"}, "X_Forwarded_For": {"6.6.6.6"}, "x-forwarded-for": {"7.7.7.7"}}
	}
	h := given()
	SetAddress(h, addr)
	if diff := cmp.Diff(http.Header{"X-Forwarded-For": {"10.0.0.9"}}, h); diff != "" {
		t.Errorf("replaced (-want +got)\n%s", diff)
	}
	h = given()
	AppendAddress(h, addr)
	if diff := cmp.Diff(http.Header{"X-Forwarded-For": {"1.1.1.1, 2.2.2.2, 10.0.0.9"}}, h); diff != "" {
		t.Errorf("appended (-want +got)\n%s", diff)
	}
	h = http.Header{}
	AppendAddress(h, addr)
	if got := h.Get(ForwardedFor); got != "10.0.0.9" {
		t.Errorf("appended to nothing: %q", got)
	}
}

func TestConfusing(t *testing.T) {
	for name, want := range map[string]bool{"Content-Length": false, "Content_length": true, "Transfer_encoding": true, "Content.length": true, "Content-Lengths": false} {
		if got := Confusing(http.Header{name: {"1"}}); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestStripHopByHop(t *testing.T) {
	h := http.Header{
		"Connection": {"close, X-A", " x-client-cert ,,Accept"}, "Keep-Alive": {"1"}, "Te": {"gzip, trailers;q=1", "Trailers"},
		"Transfer-Encoding": {"chunked"}, "Trailer": {"X"}, "Upgrade": {"x"}, "Proxy-Connection": {"x"}, "Proxy-Authorization": {"x"},
		"Proxy-Authenticate": {"x"}, "Http2-Settings": {"x"}, "X-A": {"gone"}, "Accept": {"gone"}, "X-B": {"stays"},
	}
	StripHopByHop(h)
	if diff := cmp.Diff(http.Header{"X-B": {"stays"}, "Te": {"trailers"}}, h); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestUpgradeTo(t *testing.T) {
	if got := UpgradeTo(http.Header{"Connection": {"keep-alive, Upgrade"}, "Upgrade": {"websocket"}}); got != "websocket" {
		t.Errorf("got %q", got)
	}
	if got := UpgradeTo(http.Header{"Connection": {"keep-alive"}, "Upgrade": {"websocket"}}); got != "" {
		t.Errorf("without Connection: %q", got)
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
	peer := NewPeer(gateway(f))
	f.Fuzz(func(t *testing.T, name, value string, anonymous bool) {
		h := http.Header{name: {"forged " + value}, "Connection": {name, "X-Client-Cert", value}}
		StripHopByHop(h)
		presented := peer
		if anonymous {
			presented = nil
		}
		SetPeer(h, own, presented)
		ours := 0
		for key, values := range h {
			read := strings.Map(func(r rune) rune {
				if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
					return r
				}
				return '_'
			}, key)
			switch strings.ToUpper(read) {
			case "X_CLIENT_CERT", "X_FORWARDED_CLIENT_CERT":
				ours++
				if len(values) != 1 || strings.Contains(values[0], "forged") {
					t.Errorf("%q: %q", key, values)
				}
			}
		}
		if want := map[bool]int{true: 0, false: 2}[anonymous]; ours != want {
			t.Errorf("%d of our fields, want %d: %v", ours, want, h)
		}
		SetAddress(h, netip.MustParseAddr("10.0.0.9"))
		if got := h.Values(ForwardedFor); len(got) != 1 || got[0] != "10.0.0.9" {
			t.Errorf("addresses %q", got)
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
