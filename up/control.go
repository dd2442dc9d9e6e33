package up

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"countersign.dev/api"
	"countersign.dev/mesh"
)

// control asks the processes how they are: the server on its socket, the sidecars on their admin
// listeners, the applications by connecting. It never connects to a sidecar's inbound listener: there
// would be a handshake that no traffic asked for.
type control struct {
	*api.Admin
	client *http.Client
}

const (
	askTimeout = time.Second // for one question, to a process on this machine
	maxPlan    = 64 << 20
)

func newControl(socket string) *control {
	return &control{
		Admin:  api.NewAdmin(socket),
		client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: askTimeout},
	}
}

// ask gets a page of an admin listener.
func (c *control) ask(ctx context.Context, admin netip.AddrPort, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+admin.String()+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := c.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxPlan))
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it answers %s to %s", response.Status, path)
	}
	return body, nil
}

// healthy tells whether a sidecar holds its certificate and Plan and has its outbound side open.
func (c *control) healthy(ctx context.Context, admin netip.AddrPort) bool {
	_, err := c.ask(ctx, admin, "/healthz")
	return err == nil
}

// plan gives the Plan that a sidecar has in force.
func (c *control) plan(ctx context.Context, admin netip.AddrPort) (*mesh.Plan, error) {
	body, err := c.ask(ctx, admin, "/plan")
	if err != nil {
		return nil, err
	}
	var plan mesh.Plan
	if err := json.Unmarshal(body, &plan); err != nil {
		return nil, fmt.Errorf("reading its Plan: %w", err)
	}
	return &plan, nil
}

// accepts tells whether an application takes connections.
func (c *control) accepts(ctx context.Context, address netip.AddrPort) bool {
	dialer := net.Dialer{Timeout: askTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", address.String())
	if err != nil {
		return false
	}
	return conn.Close() == nil
}
