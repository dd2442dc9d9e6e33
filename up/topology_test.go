package up

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/examples"
	"countersign.dev/mesh"
)

// specification parses a text that is valid.
func specification(t *testing.T, text string) *mesh.Spec {
	t.Helper()
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Directory: "/", Content: text}})
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func exampleSpec(t *testing.T, path string) *mesh.Spec {
	t.Helper()
	text, err := examples.Files.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return specification(t, string(text))
}

// placed gives the instances of a specification on addresses that are the same every time.
func placed(t *testing.T, spec *mesh.Spec) []*instance {
	t.Helper()
	all, err := instances(spec)
	if err != nil {
		t.Fatal(err)
	}
	next := netip.MustParseAddr("127.1.1.1")
	take := func() netip.Addr { next = next.Next(); return next }
	for _, i := range all {
		i.peers, i.loopback = take(), take()
		admin := take()
		err := i.place(func(r role, port int) (netip.AddrPort, error) {
			address := map[role]netip.Addr{inboundRole: i.peers, appRole: i.loopback, outboundRole: i.loopback, adminRole: admin}[r]
			return netip.AddrPortFrom(address, uint16(port)), nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func names(group []*instance) string {
	var list []string
	for _, i := range group {
		list = append(list, i.name)
	}
	return strings.Join(list, " ")
}

func TestInstances(t *testing.T) {
	all, err := instances(exampleSpec(t, "shop/mesh.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := names(all), "catalog-1 catalog-2 stock-1 storefront-1 storegate-1"; got != want {
		t.Errorf("instances are %s, want %s", got, want)
	}
}

func TestStopOrder(t *testing.T) {
	circle := `
mesh: circle
services:
  a: {ports: [{port: 1001, protocol: http}], calls: [{service: b}]}
  b: {ports: [{port: 1002, protocol: http}], calls: [{service: c}]}
  c: {ports: [{port: 1003, protocol: http}], calls: [{service: b, listen: 2000}]}
  d: {ports: [{port: 1004, protocol: http}]}
`
	for name, test := range map[string]struct {
		spec *mesh.Spec
		want []string
	}{
		"shop":   {exampleSpec(t, "shop/mesh.yaml"), []string{"storegate-1", "storefront-1", "catalog-1 catalog-2", "stock-1"}},
		"circle": {specification(t, circle), []string{"a-1 d-1", "b-1 c-1"}},
	} {
		t.Run(name, func(t *testing.T) {
			all, err := instances(test.spec)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, group := range stopOrder(all) {
				got = append(got, names(group))
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("order (-want +got):\n%s", diff)
			}
		})
	}
}

const twoPorts = `
mesh: two
services:
  front-end:
    ports: [{port: 9080, protocol: http, app: 8080}, {port: 9081, protocol: grpc, app: 8081}]
    calls: [{service: back, port: 7000}, {service: back, port: 7001, listen: 7100}, {service: other-one}]
    run: {command: [app, "${APP_ADDRESS}"]}
  back:
    ports: [{port: 7000, protocol: tcp}, {port: 7001, protocol: http}]
  other-one:
    ports: [{port: 6000, protocol: http2}]
`

func TestExpand(t *testing.T) {
	all := placed(t, specification(t, twoPorts))
	front := all[1]
	if front.name != "front-end-1" {
		t.Fatalf("the instances are %s", names(all))
	}
	text := "${APP_ADDRESS} ${APP_ADDRESS_9080} ${APP_ADDRESS_9081} ${CALL_BACK_7000} ${CALL_BACK_7001} ${CALL_OTHER_ONE} $$"
	own := front.loopback.String()
	want := own + ":8080 " + own + ":8080 " + own + ":8081 " + own + ":7000 " + own + ":7100 " + own + ":6000 $"
	if got, err := front.expand(text); err != nil || got != want {
		t.Errorf("expanded to %q (%v), want %q", got, err, want)
	}
	if got, err := front.expand("${CALL_BACK}"); err == nil {
		t.Errorf("a name for two ports expands to %q", got)
	}
}

func TestDescribe(t *testing.T) {
	all := placed(t, specification(t, twoPorts))
	got, err := json.Marshal(all[1].describe("/state/front-end-1", pids{sidecar: 17, engine: 18}))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"name":"front-end","kind":"service","instance":"front-end-1","pid":17,"admin":"http://127.1.1.7:9901",` +
		`"engine":"builtin","enginePid":18,"delivery":"agent",` +
		`"identity":"spiffe://two.internal/service/front-end","state":"/state/front-end-1","inbound":[` +
		`{"name":"0.0.0.0_9080","address":"127.1.1.5:9080","protocol":"http","tls":"strict","clientAuth":"require"},` +
		`{"name":"0.0.0.0_9081","address":"127.1.1.5:9081","protocol":"grpc","tls":"strict","clientAuth":"require"}],"outbound":[` +
		`{"service":"back","port":7000,"address":"127.1.1.6:7000","protocol":"tcp"},` +
		`{"service":"back","port":7001,"address":"127.1.1.6:7100","protocol":"http"},` +
		`{"service":"other-one","port":6000,"address":"127.1.1.6:6000","protocol":"http2"}],` +
		`"app":{"addresses":["127.1.1.6:8080","127.1.1.6:8081"]}}`
	if diff := cmp.Diff(strings.Split(want, ","), strings.Split(string(got), ",")); diff != "" {
		t.Errorf("the service without run (-want +got):\n%s", diff)
	}
	gateway := placed(t, exampleSpec(t, "colorapp/mesh.yaml"))[0].describe("/s", pids{sidecar: 1})
	if gateway.App != nil || gateway.Inbound[0].TLS != mesh.Off || len(gateway.Outbound) != 0 || gateway.Outbound == nil {
		t.Errorf("the gateway is %+v, want no app, tls off and an empty list of outbound", gateway)
	}
}

// TestBinds: where ports are not the specification's, the sidecar is told each of them.
func TestBinds(t *testing.T) {
	all := placed(t, specification(t, twoPorts))
	if binds := all[1].binds(); binds != nil {
		t.Errorf("on its own addresses a sidecar is told %v", binds)
	}
	all[1].shared = true
	want := []string{
		"app/8080=127.1.1.6:8080", "app/8081=127.1.1.6:8081", "inbound/9080=127.1.1.5:9080", "inbound/9081=127.1.1.5:9081",
		"outbound/6000=127.1.1.6:6000", "outbound/7000=127.1.1.6:7000", "outbound/7100=127.1.1.6:7100",
	}
	if diff := cmp.Diff(want, all[1].binds()); diff != "" {
		t.Errorf("binds (-want +got):\n%s", diff)
	}
}
