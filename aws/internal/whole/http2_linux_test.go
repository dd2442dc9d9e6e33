package whole_test

import (
	"encoding/json"
	"testing"
	"time"

	"countersign.dev/aws/internal/awstest/deployed"
	"countersign.dev/rotate"
)

// overHTTP2 is a mesh in which HAProxy, which sends many requests on one connection, calls NGINX by gRPC.
const overHTTP2 = `
mesh: multiplexed
minTLS: "1.3"
revocation: none
stores: {vault: {type: secretsmanager}}
authorities: {pca: {type: acmpca, mode: short-lived, create: root, budget: {certificates: 20}}}
certificates: {ttl: 168h, renewAfter: 120h, authority: pca}
services:
  till:
    ports: [{port: 8081, protocol: http, app: 18081, allow: [{from: door}]}]
    calls: [{service: books}]
    proxy: {engine: haproxy, version: 2.6.12}
    delivery: &vault {type: store, store: vault, secret: "{mesh}/{service}", bundle: "{mesh}/bundle"}
    deploy: &ecs {type: ecs, cluster: multiplexed}
    run: {command: [countersign, example, run, checkout, --listen, "${APP_ADDRESS}", --ledger, "${CALL_BOOKS}"]}
  books:
    ports: [{port: 9000, protocol: grpc, app: 19000, allow: [{from: till}]}]
    proxy: {engine: nginx, version: 1.22.1}
    delivery: *vault
    deploy: *ecs
    run: {command: [countersign, example, run, ledger, --listen, "${APP_ADDRESS}"]}
gateways:
  door:
    listen: [{port: 8080, protocol: http}]
    routes: [{match: {listener: 8080, prefix: /payments}, to: [{service: till}]}]
    proxy: {engine: nginx, version: 1.22.1}
    delivery: *vault
    deploy: *ecs
`

// TestHTTP2 asserts that no request is lost when connections between proxies become old, whoever calls whom: they are left between two
// requests, and not closed under them. Here they become old more than once a second.
func TestHTTP2(t *testing.T) {
	m := deploy(t, deployed.Options{Specification: []byte(overHTTP2), Second: 20 * time.Millisecond})
	if err := m.Deploy(t.Context(), 0, nil); err != nil {
		t.Fatal(err)
	}
	r := m.Run(t.Context(), m.Role("rotation"), nil, "rotate", "once", "--output", "json")
	var results []rotate.Result
	if err := json.Unmarshal([]byte(r.Stdout), &results); err != nil || r.Status != 0 {
		t.Fatalf("countersign rotate once: status %d, %v\n%s\n%s", r.Status, err, r.Stdout, r.Stderr)
	}
	if err := m.Deploy(t.Context(), 1, nil); err != nil {
		t.Fatal(err)
	}
	door, err := m.Balancer("door", 8080)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if _, err = get(t.Context(), "http://"+door+"/payments/balance"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	stop := load(t, 16, "http://"+door, payments)
	time.Sleep(8 * time.Second) // of load
	if l := stop(); l.failed > 0 || l.requests < 200 {
		t.Errorf("%d of %d requests were lost\n%s", l.failed, l.requests, l.output)
	}
}
