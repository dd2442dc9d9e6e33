package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/id"
	"countersign.dev/mesh"
)

// endpointsOf are the addresses of the first upstream.
func endpointsOf(p *mesh.Plan) string {
	var list []string
	for _, endpoint := range p.Upstreams[0].Endpoints {
		list = append(list, endpoint.Instance+"="+endpoint.Address.String())
	}
	return strings.Join(list, " ")
}

func at(port int, address string) api.Listening { return api.Listening{Port: port, Address: address} }

func TestWatchResumes(t *testing.T) {
	r := newFixture(t, colorapp).start()
	gateway := r.joinAs("colorgateway", "colorgateway-1")
	w := gateway.watch(0)
	plan := w.plan("at once", anyPlan)
	if plan.Workload.Name != "colorgateway" || plan.Revision == 0 || plan.Version != mesh.PlanVersion {
		t.Errorf("Plan %+v", plan)
	}
	if event := w.next(); event.Plan != nil || event.ServerTime.IsZero() {
		t.Errorf("heartbeat %+v", event)
	}
	w.close()
	w = gateway.watch(plan.Revision)
	for range 3 {
		if event := w.next(); event.Plan != nil {
			t.Error("the same Plan came again")
		}
	}
	w.close()
	// Somebody who holds a Plan that the server does not know is told what holds.
	if got := gateway.watch(plan.Revision+1000).plan("at once", anyPlan); got.Revision != plan.Revision {
		t.Errorf("revision %d, want %d", got.Revision, plan.Revision)
	}
}

func TestWatchRefusals(t *testing.T) {
	r := newFixture(t, colorapp).start()
	stranger := r.newPeer("colorteller-1")
	_, err := stranger.tryWatch(0)
	wantCode(t, err, api.CodeUnauthorized)
	wantCode(t, stranger.post(api.PathReport, api.Report{}, &api.ReportResponse{}), api.CodeUnauthorized)
	p := r.joinAs("colorteller", "colorteller-1")
	p.instance = "not a name"
	_, err = p.tryWatch(0)
	wantCode(t, err, api.CodeBadRequest)
	wantCode(t, p.report(1), api.CodeBadRequest)
}

// TestEndpointsComeAndGo follows one service's instances through what can happen to them.
func TestEndpointsComeAndGo(t *testing.T) {
	f := newFixture(t, colorapp)
	f.cfg.timing.grace = 200 * time.Millisecond
	r := f.start()
	w := r.joinAs("colorgateway", "colorgateway-1").watch(0)
	w.plan("at once", anyPlan)
	one, two := r.joinAs("colorteller", "colorteller-1"), r.joinAs("colorteller", "colorteller-2")
	watchOne, watchTwo := one.watch(0), two.watch(0)
	want := func(what, endpoints string) {
		t.Helper()
		w.plan(what+" with "+endpoints, func(p *mesh.Plan) bool { return endpointsOf(p) == endpoints })
	}
	report := func(p *peer, listening ...api.Listening) {
		t.Helper()
		if err := p.report(1, listening...); err != nil {
			t.Fatal(err)
		}
	}
	report(one, at(9080, "127.0.0.2:9080"))
	want("after a report", "colorteller-1=127.0.0.2:9080")
	report(two, at(9080, "127.0.0.3:9080"))
	want("after another", "colorteller-1=127.0.0.2:9080 colorteller-2=127.0.0.3:9080")
	report(two)
	want("when one stops listening", "colorteller-1=127.0.0.2:9080")
	report(two, at(9080, "127.0.0.4:9080"))
	want("when it listens elsewhere", "colorteller-1=127.0.0.2:9080 colorteller-2=127.0.0.4:9080")
	if err := two.reportAs(api.Report{Revision: 1, Listening: []api.Listening{at(9080, "127.0.0.4:9080")}, Draining: true}); err != nil {
		t.Fatal(err)
	}
	want("when it drains", "colorteller-1=127.0.0.2:9080")
	watchTwo.close()
	watchOne.close()
	want("when the grace is over", "")
	eventually(t, "that a drained instance is forgotten", func() bool {
		rows, err := r.admin.Status(t.Context())
		return err == nil && !slices.ContainsFunc(rows, func(s api.Status) bool { return s.Instance == "colorteller-2" })
	})
	one.watch(0)
	want("when it is back", "colorteller-1=127.0.0.2:9080")
}

// TestUnusableListeners reports addresses that no peer may be told.
func TestUnusableListeners(t *testing.T) {
	r := newFixture(t, colorapp).start()
	w := r.joinAs("colorgateway", "colorgateway-1").watch(0)
	p := r.joinAs("colorteller", "colorteller-1")
	p.watch(0)
	err := p.report(1, at(9080, "0.0.0.0:9080"), at(9080, "[::]:9080"), at(9080, "host:9080"), at(9080, "127.0.0.2:0"), at(9080, "224.0.0.1:9080"),
		at(9080, "nonsense"), at(1, "127.0.0.2:1"), at(9080, "127.0.0.2:9080"), at(9080, "127.0.0.3:9080"))
	if err != nil {
		t.Fatal(err)
	}
	w.plan("with the one usable endpoint", func(p *mesh.Plan) bool { return endpointsOf(p) == "colorteller-1=127.0.0.2:9080" })
}

// TestWatchTakenOver opens a second stream for an instance: the first one ends.
func TestWatchTakenOver(t *testing.T) {
	r := newFixture(t, colorapp).start()
	p := r.joinAs("colorgateway", "colorgateway-1")
	first := p.watch(0)
	first.plan("at once", anyPlan)
	second := p.watch(0)
	first.ended()
	second.plan("at once", anyPlan)
	second.next() // it lives on
}

// TestWatchEndsWithTheCertificate keeps a stream open longer than its certificate lives. The server's
// clock is behind, so that the certificate is never too old to open the stream with.
func TestWatchEndsWithTheCertificate(t *testing.T) {
	f := newFixture(t, strings.Replace(colorapp, "ttl: 1h", "ttl: 4m", 1))
	f.offset.Store(int64(time.Second - 4*time.Minute))
	f.start().joinAs("colorgateway", "colorgateway-1").watch(0).ended()
}

// TestWatchEndsWithTheWorkload takes the workload out of the mesh.
func TestWatchEndsWithTheWorkload(t *testing.T) {
	r := newFixture(t, colorapp).start()
	w := r.joinAs("colorgateway", "colorgateway-1").watch(0)
	w.plan("at once", anyPlan)
	r.apply(t, "mesh: colorapp\nservices:\n  colorteller: {ports: [{port: 9080, protocol: http}]}\n")
	w.ended()
}

// TestWatchEndsAtShutdown stops the server while a stream is open.
func TestWatchEndsAtShutdown(t *testing.T) {
	r := newFixture(t, colorapp).start()
	w := r.joinAs("colorgateway", "colorgateway-1").watch(0)
	w.plan("at once", anyPlan)
	stopped := make(chan struct{})
	go func() { r.stop(); close(stopped) }()
	w.ended()
	<-stopped
}

// TestSlowReaderIsDropped opens a stream over HTTP/1.1 and never reads: it is the server's write
// deadline that ends it.
func TestSlowReaderIsDropped(t *testing.T) {
	var routes strings.Builder // a large Plan fills the buffers of the two sockets sooner
	for i := range 1000 {
		fmt.Fprintf(&routes, "      - {match: {path: /%d/%s}, to: [{service: colorteller}]}\n", i, strings.Repeat("x", 300))
	}
	spec := strings.Replace(colorapp, "    routes: ", "    routes:\n"+routes.String()+"      - ", 1)
	spec = strings.Replace(spec, "      - [{match: {prefix: /}, to: [{service: colorteller}]}]", "      - {match: {prefix: /}, to: [{service: colorteller}]}", 1)
	f := newFixture(t, spec)
	f.cfg.timing.write = 100 * time.Millisecond
	r := f.start()
	p := r.joinAs("colorgateway", "colorgateway-1")
	response := p.watchSlowly(t)
	defer response.Body.Close()
	connected := func() bool {
		rows, err := r.admin.Status(t.Context())
		return err == nil && slices.ContainsFunc(rows, func(s api.Status) bool { return s.Instance == p.instance && s.Connected })
	}
	if !connected() {
		t.Fatal("it was never connected")
	}
	running, documents, _ := r.registry.running()
	eventually(t, "the end of the stream", func() bool {
		if _, err := r.registry.apply(t.Context(), running, documents, "", func(uint64) error { return nil }); err != nil {
			t.Fatal(err) // otherwise everybody gets a new revision
		}
		return !connected()
	})
}

// watchSlowly opens a stream that nobody reads, over a socket with a small buffer.
func (p *peer) watchSlowly(t *testing.T) *http.Response {
	t.Helper()
	transport, ok := p.client.Transport.(*http.Transport)
	if !ok {
		t.Fatal("no transport")
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	slow := &http.Client{Transport: &http.Transport{
		TLSClientConfig: transport.TLSClientConfig.Clone(), Protocols: protocols,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			var dialer net.Dialer
			conn, err := dialer.DialContext(ctx, network, address)
			if tcp, ok := conn.(*net.TCPConn); ok {
				err = errors.Join(err, tcp.SetReadBuffer(4096))
			}
			return conn, err
		},
	}}
	t.Cleanup(slow.CloseIdleConnections)
	body, err := json.Marshal(api.WatchRequest{Instance: p.instance})
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.r.info.URL+api.PathWatch, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := slow.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	if response.ProtoMajor != 1 {
		t.Fatalf("HTTP/%d", response.ProtoMajor)
	}
	return response
}

// TestInstancesAreBounded registers more instances than a workload may have.
func TestInstancesAreBounded(t *testing.T) {
	r := newFixture(t, colorapp).start()
	p := r.joinAs("colorteller", "colorteller-1")
	workload, err := id.FromCertificate(p.chain[0])
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxInstances {
		if err := r.registry.report(t.Context(), workload, api.Report{Instance: fmt.Sprintf("i-%d", i)}); err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, p.report(1), api.CodeBadRequest)
}
