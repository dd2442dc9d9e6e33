package engine_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/engine"
)

// TestSerial compares with the form that this mesh writes: even, lower case, no more than the number needs.
func TestSerial(t *testing.T) {
	for text, want := range map[string]string{
		"D57D694300C981DB": "d57d694300c981db", "00D57D": "d57d", "0AF1": "0af1", "AF1": "0af1", "00": "00", "0000": "00", "": "", "-": "", "xyz": "", "0": "00",
	} {
		if got := engine.Serial(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestCaller(t *testing.T) {
	for text, want := range map[string]string{
		"CN=front,OU=service,O=shop.internal":         "spiffe://shop.internal/service/front",
		"spiffe://shop.internal/gateway/edge":         "spiffe://shop.internal/gateway/edge",
		"CN=front,OU=service,O=other.internal":        "",
		"CN=front,OU=service,O=shop.internal,C=XX":    "",
		"CN=front,CN=back,OU=service,O=shop.internal": "",
		`CN=a\,OU=service,O=shop.internal`:            "",
		"CN=front":                                    "", "anonymous": "", "refused": "", "": "",
	} {
		if got := engine.Caller("shop.internal", text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

const (
	datagram = "<190>Nov 23 06:16:48 countersign: 4F501A07B8F8B0B42961F32561F2F7227381C14B CN=front,OU=service,O=shop.internal"
	table    = "# table: callers, type: string, size:1000, used:3\n" +
		"0x561a89c902b8: key=00B4501A/CN\\=front,OU\\=service,O\\=shop.internal use=1 exp=598000 gpt0=2000\n" +
		"0x561a89c902b8: key=4F/CN\\=edge,OU\\=gateway,O\\=shop.internal use=0 exp=600000 shard=0 gpt0=3999999000\n" +
		"0x561a89c902b8: key=50/CN\\=front,OU\\=service,O\\=other.internal use=0 exp=1 gpt0=1\n\n"
)

// TestDatagram reads what NGINX sends, and nothing of anybody who is no member.
func TestDatagram(t *testing.T) {
	want := engine.Call{Identity: "spiffe://shop.internal/service/front", Serial: "4f501a07b8f8b0b42961f32561f2f7227381c14b"}
	if got, ok := engine.ParseDatagram("shop.internal", []byte(datagram)); !ok || got != want {
		t.Errorf("%+v, %t; want %+v", got, ok, want)
	}
	for _, bad := range []string{
		"", "<190>Nov 23 06:16:48 countersign: ", "<190>Nov 23 06:16:48 nginx: 4F CN=front,OU=service,O=shop.internal",
		"<190>Nov 23 06:16:48 countersign: CN=front,OU=service,O=shop.internal", "<190>Nov 23 06:16:48 countersign:  CN=front,OU=service,O=shop.internal",
		"<190>Nov 23 06:16:48 countersign: 4G CN=front,OU=service,O=shop.internal", "<190>Nov 23 06:16:48 countersign: 4F CN=front,OU=service,O=other.internal",
		"<190>Nov 23 06:16:48 countersign: 4F spiffe://shop.internal/service/front", "<190>Nov 23 06:16:48 countersign: " + strings.Repeat("4F", 22) + " CN=front,OU=service,O=shop.internal",
	} {
		if got, ok := engine.ParseDatagram("shop.internal", []byte(bad)); ok {
			t.Errorf("%q is read as %+v", bad, got)
		}
	}
}

// TestTable reads HAProxy's table, as far as it is of members.
func TestTable(t *testing.T) {
	now := time.UnixMilli(5_000_000_004_000)
	want := []engine.Call{
		{Identity: "spiffe://shop.internal/service/front", Serial: "b4501a", Seen: now.Add(-2 * time.Second)},
		{Identity: "spiffe://shop.internal/gateway/edge", Serial: "4f", Seen: now.Add(-5 * time.Second)},
	}
	if diff := cmp.Diff(want, engine.ParseTable("shop.internal", table, now)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, bad := range []string{
		"", "Unknown table\n", "0x1: key=4F/CN=front,OU=service,O=shop.internal use=1", "0x1: key=4F/CN=front,OU=service,O=shop.internal exp=1 gpt0=4000000000",
		"0x1: key=4F/CN=front,OU=service,O=shop.internal exp=1 gpt0=-1", "0x1: key=4F exp=1 gpt0=1", "0x1: exp=1 gpt0=1",
	} {
		if got := engine.ParseTable("shop.internal", bad, now); len(got) != 0 {
			t.Errorf("%q is read as %+v", bad, got)
		}
	}
	var long strings.Builder
	for n := range 2 * engine.MostCallers {
		fmt.Fprintf(&long, "0x1: key=%04X/CN\\=front,OU\\=service,O\\=shop.internal use=1 exp=1 gpt0=1\n", n)
	}
	if got := engine.ParseTable("shop.internal", `0x1: key=4F/CN=front,OU=service,O=shop.internal gpt0=4001`, now); len(got) != 1 || !got[0].Seen.Equal(now) {
		t.Errorf("what is a little ahead is %+v", got)
	}
	// A connection that is open for long is not taken for one that has just begun.
	for _, ago := range []time.Duration{8 * 24 * time.Hour, 40 * 24 * time.Hour} {
		row := fmt.Sprintf("0x1: key=4F/CN=front,OU=service,O=shop.internal use=1 gpt0=%d", now.Add(-ago).UnixMilli()%engine.CallersClock)
		if got := engine.ParseTable("shop.internal", row, now); len(got) != 1 || !got[0].Seen.Equal(now.Add(-ago)) {
			t.Errorf("what connected %s ago is %+v", ago, got)
		}
	}
	if got := engine.ParseTable("shop.internal", long.String(), now); len(got) != engine.MostCallers {
		t.Errorf("%d are read of what has too many", len(got))
	}
}

// FuzzCalls reads what comes from a proxy: what is taken for a call is one of a member, with a number.
func FuzzCalls(f *testing.F) {
	f.Add(datagram)
	f.Add(table)
	f.Fuzz(func(t *testing.T, text string) {
		now := time.Now()
		calls := engine.ParseTable("shop.internal", text, now)
		for _, c := range calls {
			if c.Seen.After(now) || now.Sub(c.Seen) > engine.CallersClock*time.Millisecond {
				t.Errorf("%+v", c)
			}
		}
		if c, ok := engine.ParseDatagram("shop.internal", []byte(text)); ok {
			calls = append(calls, c)
		}
		for _, c := range calls {
			if !strings.HasPrefix(c.Identity, "spiffe://shop.internal/") || c.Serial == "" || len(c.Serial) > 42 || engine.Serial(c.Serial) != c.Serial {
				t.Errorf("%+v", c)
			}
		}
	})
}
