package integration

import (
	"strings"
	"sync"
	"testing"
)

// storedGates are gateways that are NGINX and HAProxy themselves, with certificates from the store.
const storedGates = `  nginxgate:
    listen: [{port: 8080, protocol: http}]
    routes: [{to: [{service: back}]}]
    proxy: {engine: nginx}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}"}
  haproxygate:
    listen: [{port: 8080, protocol: http}]
    routes: [{to: [{service: front}]}]
    proxy: {engine: haproxy}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}"}
`

// A gateway has no listener that shows its certificate. Where all certificates come from a store it is observed all the same: the
// proxies that it calls tell which one it presents.
func TestStoredGatewaysAreSeen(t *testing.T) {
	t.Parallel() // it waits for a mesh of its own
	r := start(t, mixed(t, "front back", "reload", storedGates), flags("--no-rotation"), env("TMPDIR="+shortDir(t)))
	for gate, want := range map[string]string{"nginxgate": "blue", "haproxygate": "yellow"} {
		url := "http://" + r.inbound(t, gate, 8080) + "/color"
		if err := ask(client, url, want); err != nil {
			t.Fatal(err)
		}
		stop := keepAsking(t, url, want)
		instance := r.instance(t, gate).Instance
		await(t, gate+" is seen", func() (bool, string) {
			row := r.status(t)[instance]
			return row.Serial != "" && row.ObservedSerial == row.Serial, row.Serial + ", seen " + row.ObservedSerial
		})
		before := r.status(t)[instance].Serial
		got := r.inside(t, "rotate", "once", gate, "--force")
		if got.status != 0 || !strings.Contains(got.stdout, "seen at 1 place:") || strings.Contains(got.stdout, "its own word") {
			t.Errorf("%s: status %d\n%s%s", gate, got.status, got.stdout, got.stderr)
		}
		if row := r.status(t)[instance]; row.Serial == before || row.ObservedSerial != row.Serial {
			t.Errorf("%s has %s, and is seen with %s; before it was %s", gate, row.Serial, row.ObservedSerial, before)
		}
		stop()
	}
}

// keepAsking asks all the time, until it is stopped. While NGINX reloads it drops connections, so that requests may be lost.
func keepAsking(t *testing.T, url, want string) (stop func()) {
	t.Helper()
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-quit:
				return
			default:
				_ = ask(client, url, want)
			}
		}
	}()
	stop = sync.OnceFunc(func() { close(quit); <-ended })
	t.Cleanup(stop)
	return stop
}
