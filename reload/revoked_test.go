package reload

import (
	"crypto/x509"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/issue/issuetest"
)

func TestRevokes(t *testing.T) {
	ca := issuetest.New(t)
	who, err := id.New("shop.internal", id.Service, "front")
	if err != nil {
		t.Fatal(err)
	}
	a, b := ca.Leaf(t, who, issuetest.Key(t)), ca.Leaf(t, who, issuetest.Key(t))
	with := func(revoked ...*x509.Certificate) []byte {
		return ca.CRLs(t, int64(len(revoked)+1), time.Hour, revoked...)
	}
	for name, c := range map[string]struct {
		before, after []byte
		want          bool
	}{
		"nobody": {nil, with(), false}, "the first": {nil, with(a), true}, "one more": {with(a), with(a, b), true},
		"the same again": {with(a), with(a), false}, "one less": {with(a, b), with(b), false}, "no lists any more": {with(a), nil, false},
		"behind one that cannot be read": {with(a), append([]byte("-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"), with(b)...), true},
	} {
		if got := Revokes(c.before, c.after); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// FuzzRevoked reads any text as lists.
func FuzzRevoked(f *testing.F) {
	f.Add([]byte("-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"))
	f.Fuzz(func(t *testing.T, lists []byte) {
		if Revokes(lists, lists) {
			t.Error("lists revoke somebody whom they revoke")
		}
	})
}
