package mtls

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

func TestBundle(t *testing.T) {
	a, b := newAuthority(t, "a"), newAuthority(t, "b")
	ab, ba := bundle(t, a, b), bundle(t, b, a, b)
	if ab.Digest() != ba.Digest() || len(ba.Roots()) != 2 {
		t.Errorf("order or repetition matters: %s, %s, %d roots", ab.Digest(), ba.Digest(), len(ba.Roots()))
	}
	other, err := NewBundle("other.internal", ab.Roots())
	if err != nil {
		t.Fatal(err)
	}
	for name, digest := range map[string]string{"one root less": bundle(t, a).Digest(), "another trust domain": other.Digest()} {
		if digest == ab.Digest() {
			t.Errorf("%s: the same digest", name)
		}
	}
	again, err := ParseBundle(trustDomain, ab.PEM())
	if err != nil || again.Digest() != ab.Digest() || again.TrustDomain() != trustDomain {
		t.Errorf("PEM and back: %v", err)
	}
	roots := ab.Roots()
	roots[0] = nil
	if ab.Roots()[0] == nil {
		t.Error("a caller can change a bundle")
	}
}

func TestBundleRefuses(t *testing.T) {
	a := newAuthority(t, "a")
	leaf := a.certify(t, member(t, id.Service, "x"), testKey(t, mesh.ECDSAP256, "leaf"), time.Hour)
	good := bundle(t, a).PEM()
	block := func(kind string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	for name, text := range map[string][]byte{
		"nothing":         nil,
		"no PEM":          []byte("hello"),
		"a leaf":          block("CERTIFICATE", leaf.Raw),
		"a key":           append(bytes.Clone(good), block("PRIVATE KEY", []byte{1})...),
		"damaged":         block("CERTIFICATE", a.root.Raw[:50]),
		"damaged first":   append(bytes.Replace(good, []byte("\n"), []byte("\n!"), 1), good...),
		"damaged at last": append(bytes.Clone(good), good[:len(good)/2]...),
		"too long":        append(bytes.Clone(good), make([]byte, MaxBundle)...),
	} {
		if b, err := ParseBundle(trustDomain, text); !errors.Is(err, ErrBundle) || b != nil {
			t.Errorf("%s: %v, want ErrBundle", name, err)
		}
	}
	if _, err := NewBundle("", []*x509.Certificate{a.root}); !errors.Is(err, ErrBundle) {
		t.Errorf("no trust domain: %v", err)
	}
}

func TestVerifyNothing(t *testing.T) {
	if _, err := bundle(t, newAuthority(t, "a")).Verify(nil, x509.ExtKeyUsageClientAuth, start); !errors.Is(err, ErrNoCertificate) {
		t.Error(err)
	}
}

// TestErrorsAreBounded presents what a stranger may choose, in a size that would fill a log.
func TestErrorsAreBounded(t *testing.T) {
	a := newAuthority(t, "a")
	who, key := member(t, id.Service, "colorteller"), testKey(t, mesh.ECDSAP256, "leaf")
	for name, size := range map[string]int{"looked at": 10_000, "too large": 100_000} {
		long := strings.Repeat("x", size)
		leaf := a.forge(t, who, key, func(c *x509.Certificate) {
			c.Subject.CommonName = long
			c.URIs = []*url.URL{{Scheme: "spiffe", Host: trustDomain, Path: "/service/" + long}}
		})
		_, err := bundle(t, a).Verify([]*x509.Certificate{leaf, a.issuing}, x509.ExtKeyUsageClientAuth, start)
		if !errors.Is(err, ErrUntrusted) || len(err.Error()) > 500 {
			t.Errorf("%s: an error of %d bytes, want a short ErrUntrusted", name, len(err.Error()))
		}
	}
}

// TestVerifyPinned is somebody on his first day: he knows a pin, and the server sends its root along.
func TestVerifyPinned(t *testing.T) {
	a, stranger := newAuthority(t, "a"), newAuthority(t, "stranger")
	server, key := member(t, id.Server, "countersign"), testKey(t, mesh.ECDSAP256, "leaf")
	leaf := a.certify(t, server, key, time.Hour)
	cases := map[string]struct {
		chain []*x509.Certificate
		pin   string
		want  error
	}{
		"the control plane":     {[]*x509.Certificate{leaf, a.issuing, a.root}, Pin(a.root), nil},
		"nothing":               {nil, Pin(a.root), ErrNoCertificate},
		"without the root":      {[]*x509.Certificate{leaf, a.issuing}, Pin(a.root), ErrUntrusted},
		"another pin":           {[]*x509.Certificate{leaf, a.issuing, a.root}, Pin(stranger.root), ErrUntrusted},
		"the pin of the issuer": {[]*x509.Certificate{leaf, a.root}, Pin(a.issuing), ErrUntrusted},
		"the pin of the leaf":   {[]*x509.Certificate{leaf, a.issuing, a.root}, Pin(leaf), ErrUntrusted},
		"the right root beside": {[]*x509.Certificate{stranger.certify(t, server, key, time.Hour), stranger.issuing, a.root}, Pin(a.root), ErrUntrusted},
		"no identity":           {[]*x509.Certificate{a.forge(t, server, key, func(c *x509.Certificate) { c.URIs = nil }), a.issuing, a.root}, Pin(a.root), ErrUntrusted},
	}
	for name, c := range cases {
		peer, b, err := VerifyPinned(c.pin, c.chain, x509.ExtKeyUsageServerAuth, start)
		switch {
		case c.want == nil && (err != nil || peer != server || b.Digest() != bundle(t, a).Digest()):
			t.Errorf("%s: %v, %v, %v", name, peer, b, err)
		case c.want != nil && (!errors.Is(err, c.want) || !peer.IsZero() || b != nil):
			t.Errorf("%s: %v, %v, %v; want %v", name, peer, b, err, c.want)
		}
	}
	for _, pin := range []string{"", "sha256:", strings.ToUpper(Pin(a.root)), Pin(a.root)[7:], Pin(a.root) + "00", "sha1:" + Pin(a.root)[7:]} {
		if _, _, err := VerifyPinned(pin, cases["the control plane"].chain, x509.ExtKeyUsageServerAuth, start); err == nil {
			t.Errorf("the pin %q was accepted", pin)
		}
	}
}

func TestSerial(t *testing.T) {
	for want, n := range map[string]int64{"00": 0, "01": 1, "0f": 15, "10": 16, "0100": 256, "abcdef": 0xabcdef} {
		if got := Serial(&x509.Certificate{SerialNumber: big.NewInt(n)}); got != want {
			t.Errorf("%d is written %q, want %q", n, got, want)
		}
	}
}

func TestKeys(t *testing.T) {
	for _, kind := range everyKey {
		key := testKey(t, kind, "leaf")
		text, err := MarshalKey(key)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseKey(text)
		if err != nil {
			t.Fatal(err)
		}
		if public, ok := key.Public().(interface{ Equal(x any) bool }); ok && !public.Equal(back.Public()) {
			t.Errorf("%s: another key came back", kind)
		}
		again, err := MarshalKey(back)
		if err != nil || !bytes.Equal(again, text) {
			t.Errorf("%s: another text came back: %v", kind, err)
		}
	}
	if _, err := GenerateKey("rsa-1024"); err == nil {
		t.Error("a weak key was made")
	}
}

func TestParseKeyRefuses(t *testing.T) {
	good, err := MarshalKey(testKey(t, mesh.ECDSAP256, "leaf"))
	if err != nil {
		t.Fatal(err)
	}
	secret := string(good[40:80]) // a part of the text that no error may show
	for name, text := range map[string][]byte{
		"nothing":       nil,
		"another label": bytes.ReplaceAll(good, []byte("PRIVATE KEY"), []byte("EC PRIVATE KEY")),
		"damaged":       pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: good[:60]}),
		"too long":      append(bytes.Clone(good), make([]byte, maxKey)...),
		"truncated":     good[:len(good)/2],
	} {
		key, err := ParseKey(text)
		if !errors.Is(err, ErrKey) || key != nil {
			t.Errorf("%s: %v, want ErrKey", name, err)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error shows the key", name)
		}
	}
}

func TestLoadIdentity(t *testing.T) {
	a := newAuthority(t, "a")
	who, key := member(t, id.Service, "colorteller"), testKey(t, mesh.ECDSAP256, "leaf")
	encode := func(certs ...*x509.Certificate) []byte {
		var text []byte
		for _, cert := range certs {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
		}
		return text
	}
	leaf := a.certify(t, who, key, time.Second) // by the real clock it expired, or is not valid yet: no matter
	keyText, err := MarshalKey(key)
	if err != nil {
		t.Fatal(err)
	}
	otherKey, err := MarshalKey(testKey(t, mesh.Ed25519, "leaf"))
	if err != nil {
		t.Fatal(err)
	}
	trusted := bundle(t, a).PEM()
	identity, err := LoadIdentity(encode(leaf, a.issuing), keyText, trusted)
	if err != nil {
		t.Fatal(err)
	}
	if identity.ID != who || identity.Certificate.Leaf == nil || len(identity.Certificate.Certificate) != 2 || identity.Bundle.TrustDomain() != trustDomain {
		t.Errorf("%+v", identity)
	}
	cases := map[string]struct {
		cert, key, bundle []byte
		want              error
	}{
		"no certificate":     {nil, keyText, trusted, nil},
		"no key":             {encode(leaf, a.issuing), nil, trusted, ErrKey},
		"no bundle":          {encode(leaf, a.issuing), keyText, nil, ErrBundle},
		"another's key":      {encode(leaf, a.issuing), otherKey, trusted, ErrKey},
		"another's roots":    {encode(leaf, a.issuing), keyText, bundle(t, newAuthority(t, "b")).PEM(), ErrUntrusted},
		"without its issuer": {encode(leaf), keyText, trusted, ErrUntrusted},
		"a CA":               {encode(a.issuing), keyText, trusted, ErrKey},
		"no identity":        {encode(a.forge(t, who, key, func(c *x509.Certificate) { c.URIs = nil }), a.issuing), keyText, trusted, id.ErrID},
	}
	for name, c := range cases {
		if identity, err := LoadIdentity(c.cert, c.key, c.bundle); err == nil || identity != nil || (c.want != nil && !errors.Is(err, c.want)) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// FuzzParseBundle gives bytes from a server or a disk to what reads bundles and keys.
func FuzzParseBundle(f *testing.F) {
	a := newAuthority(f, "a")
	good := bundle(f, a, newAuthority(f, "b")).PEM()
	key, err := MarshalKey(testKey(f, mesh.Ed25519, "leaf"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-10])
	f.Add(key)
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if b, err := ParseBundle(trustDomain, text); err == nil {
			again, err := ParseBundle(trustDomain, b.PEM())
			if err != nil || again.Digest() != b.Digest() {
				t.Errorf("a bundle does not survive its own PEM: %v", err)
			}
		} else if !errors.Is(err, ErrBundle) {
			t.Errorf("an error without a sentinel: %v", err)
		}
		if _, err := ParseKey(text); err != nil && !errors.Is(err, ErrKey) {
			t.Errorf("an error without a sentinel: %v", err)
		}
	})
}
