package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/cmd/countersign/internal/flags"
	"countersign.dev/mesh"
)

// zone is a resolver: what each name stands for, or how it fails.
type zone map[string][]any

// LookupNetIP implements resolver: each call of a name takes its next answer, and the last one stays.
func (n zone) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	if network != "ip" {
		return nil, errors.New("one family alone is asked for")
	}
	answers := n[host]
	if len(answers) > 1 {
		n[host] = answers[1:]
	}
	switch answer := answers[0].(type) {
	case error:
		return nil, answer
	case string:
		var all []netip.Addr
		for _, text := range strings.Fields(answer) {
			all = append(all, netip.MustParseAddr(text))
		}
		return all, nil
	}
	return nil, errors.New("no such answer")
}

// TestPlace proves that a Plan gets all addresses of what --endpoint names, each once and in order, and stays
// as it was read itself.
func TestPlace(t *testing.T) {
	plan := &mesh.Plan{Upstreams: []mesh.Upstream{
		{Name: "catalog_9000", Service: "catalog", Port: 9000, Endpoints: []mesh.Endpoint{}},
		{Name: "stock_7000", Service: "stock", Port: 7000},
	}}
	flags := initEngineFlags{Endpoint: []string{"catalog:9000=Catalog.internal:19000", "catalog:9000=10.0.0.2:19000", "catalog:9000=[2001:db8::1]:443", "stock:7000=127.0.0.1:7000"}}
	endpoints, err := flags.endpoints(plan)
	if err != nil {
		t.Fatal(err)
	}
	busy := &net.DNSError{Err: "try again", IsTemporary: true}
	placed, err := place(t.Context(), zone{"Catalog.internal": {busy, "10.0.0.3 ::ffff:10.0.0.2 10.0.0.3 0.0.0.0"}}, plan, endpoints)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, u := range placed.Upstreams {
		for _, e := range u.Endpoints {
			got = append(got, u.Name+" "+e.Address.String())
		}
	}
	want := []string{"catalog_9000 10.0.0.2:19000", "catalog_9000 10.0.0.3:19000", "catalog_9000 [2001:db8::1]:443", "stock_7000 127.0.0.1:7000"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(plan.Upstreams[0].Endpoints)+len(plan.Upstreams[1].Endpoints) != 0 {
		t.Error("the Plan that was read was changed")
	}
}

// TestPlaceFails proves that a name that leads nowhere is an error that names it, and is not passed over.
func TestPlaceFails(t *testing.T) {
	plan := &mesh.Plan{Upstreams: []mesh.Upstream{{Name: "catalog_9000", Service: "catalog", Port: 9000}}}
	for name, test := range map[string]struct {
		answer any
		want   string
	}{
		"unknown": {&net.DNSError{Err: "no such host", Name: "catalog.internal", IsNotFound: true}, "no such host; is the name right"},
		"empty":   {"", "the name has no address"},
		"nowhere": {"0.0.0.0 ::", "the name has no address"},
		"many":    {strings.TrimSpace(manyAddresses(65)), "the name has 65 addresses, and at most 64 are taken"},
	} {
		t.Run(name, func(t *testing.T) {
			e := endpoint{flags.Endpoint{Service: "catalog", Port: 9000, Host: "catalog.internal", At: 443}}
			_, err := place(t.Context(), zone{"catalog.internal": {test.answer}}, plan, []endpoint{e})
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.HasPrefix(err.Error(), "--endpoint catalog:9000=catalog.internal:443: ") {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func manyAddresses(n int) string {
	text := ""
	at := netip.MustParseAddr("10.0.0.1")
	for range n {
		text += at.String() + " "
		at = at.Next()
	}
	return text
}
