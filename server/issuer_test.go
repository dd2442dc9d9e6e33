package server

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/ca"
)

// TestIssuerRenewsItself lets time pass until the issuing CA nears its end.
func TestIssuerRenewsItself(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	gateway := r.joinAs("colorgateway", "colorgateway-1")
	first := gateway.watch(0).told(1)
	before := r.ca.Issuer()
	f.offset.Store(int64(ca.DefaultIssuerLife * 9 / 10))
	eventually(t, "another issuing CA", func() bool { return r.ca.Issuer().NotAfter.After(before.NotAfter) })
	eventually(t, "the one before is removed, for its certificates have ended", func() bool { return len(r.ca.Hierarchies()) == 1 })
	next := r.joinAs("colorgateway", "colorgateway-2")
	if told := next.watch(0).told(1); told.Issuer == first.Issuer || told.Bundle != first.Bundle {
		t.Error("the old issuer is told, or another root")
	}
	eventually(t, "the server's own certificate", func() bool {
		return r.ca.Hierarchies()[0].Signed(r.leaf.held.Load().Certificate.Leaf)
	})
}

// TestIssuerWithoutRootKey alarms, and renews with a key that is brought.
func TestIssuerWithoutRootKey(t *testing.T) {
	f := newFixture(t, colorapp)
	moved := filepath.Join(f.dir, "root.key")
	if err := os.Rename(filepath.Join(f.cfg.State, "ca", "root.key"), moved); err != nil {
		t.Fatal(err)
	}
	r := f.start()
	if rows, err := r.admin.Status(t.Context()); err != nil || slices.ContainsFunc(rows, func(s api.Status) bool { return s.Workload == "(CA)" }) {
		t.Errorf("an alarm without a reason: %v, %v", rows, err)
	}
	_, err := r.admin.Rotate(t.Context(), api.RotationRequest{Step: api.RotateIssuer})
	if text := wantCode(t, err, api.CodeBadRequest); !strings.Contains(text, "--root-key") {
		t.Error(text)
	}
	f.offset.Store(int64(ca.DefaultIssuerLife * 9 / 10))
	rows, err := r.admin.Status(t.Context())
	if err != nil || !slices.ContainsFunc(rows, func(s api.Status) bool {
		return s.Workload == "(CA)" && strings.Contains(s.Error, "countersign ca rotate issuer --root-key FILE")
	}) {
		t.Errorf("no alarm: %+v, %v", rows, err)
	}
	_, err = r.admin.Rotate(t.Context(), api.RotationRequest{Step: api.RotateIssuer, RootKeyFile: filepath.Join(f.cfg.State, "ca", "issuer.key")})
	wantCode(t, err, api.CodeBadRequest)
	rotation := r.takes(api.RotationRequest{Step: api.RotateIssuer, RootKeyFile: moved})
	if rotation.Problem != "" || len(rotation.Roots) != 2 {
		t.Errorf("%+v", rotation)
	}
}

// TestRootNearsItsEnd alarms with the command that helps.
func TestRootNearsItsEnd(t *testing.T) {
	f := newFixture(t, colorapp)
	f.offset.Store(int64(ca.DefaultIssuerLife * 95 / 100))
	r := f.start()
	eventually(t, "an issuing CA for the rest of the root's life", func() bool {
		f.offset.Add(int64(240 * 24 * time.Hour))
		rotation, err := r.admin.Rotation(t.Context(), false)
		return err == nil && strings.Contains(rotation.Problem, "countersign ca rotate run")
	})
}
