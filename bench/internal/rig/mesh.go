package rig

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The ports of the specification; what is really bound is free ports of the kernel.
const (
	MeshHTTP = 9080
	MeshGRPC = 9090
	MeshTCP  = 7000
)

// Specification is a mesh of two services with the policy written out, so that the receiving sidecar
// decides about callers, methods and paths. Groups are the TLS groups; "" are the product's own.
func Specification(groups string) string {
	extra := ""
	if groups != "" {
		extra = "tlsGroups: [" + groups + "]\n"
	}
	return fmt.Sprintf(`mesh: bench
minTLS: "1.3"
%sservices:
  client:
    calls:
      - {service: server, port: %[2]d}
      - {service: server, port: %[3]d}
      - {service: server, port: %[4]d}
  server:
    ports:
      - {port: %[2]d, protocol: http, allow: [{from: client, methods: [GET, POST], paths: [/*]}]}
      - {port: %[3]d, protocol: grpc, allow: [{from: client, methods: [POST], paths: [/*]}]}
      - {port: %[4]d, protocol: tcp, allow: [{from: client}]}
`, extra, MeshHTTP, MeshGRPC, MeshTCP)
}

// Mesh is a running mesh of the product, as its users run one: a server and a sidecar for each of two
// services.
type Mesh struct {
	Chain
	control *Child
}

// StartMesh starts a mesh. Groups are the TLS groups of the specification; "" are the product's own.
func (r *Rig) StartMesh(ctx context.Context, name, groups string) (*Mesh, error) {
	dir, err := r.directory(name)
	if err != nil {
		return nil, err
	}
	m := &Mesh{Chain: Chain{Setup: name}}
	socket, url, pin, err := r.startControl(ctx, m, dir, groups)
	if err != nil {
		return m, err
	}
	addresses, err := Ports(8)
	if err != nil {
		return m, err
	}
	m.HTTP, m.GRPC, m.TCP = addresses[0], addresses[1], addresses[2]
	m.PeerHTTP, m.PeerGRPC, m.PeerTCP = addresses[3], addresses[4], addresses[5]
	o := r.Origin
	receiving, err := r.startSidecar(ctx, dir, serverName, socket, url, pin, addresses[6], map[string]string{
		fmt.Sprintf("inbound/%d", MeshHTTP): m.PeerHTTP, fmt.Sprintf("app/%d", MeshHTTP): o.HTTP,
		fmt.Sprintf("inbound/%d", MeshGRPC): m.PeerGRPC, fmt.Sprintf("app/%d", MeshGRPC): o.GRPC,
		fmt.Sprintf("inbound/%d", MeshTCP): m.PeerTCP, fmt.Sprintf("app/%d", MeshTCP): o.TCP,
	})
	if receiving != nil {
		m.Receiving = []*Child{receiving}
	}
	if err != nil {
		return m, err
	}
	connecting, err := r.startSidecar(ctx, dir, clientName, socket, url, pin, addresses[7], map[string]string{
		fmt.Sprintf("outbound/%d", MeshHTTP): m.HTTP,
		fmt.Sprintf("outbound/%d", MeshGRPC): m.GRPC,
		fmt.Sprintf("outbound/%d", MeshTCP):  m.TCP,
	})
	if connecting != nil {
		m.Connecting = []*Child{connecting}
	}
	if err != nil {
		return m, err
	}
	// The Plan with the endpoints comes a moment after readiness.
	return m, await(ctx, "a request through "+name, func() error { return get(ctx, "http://"+m.HTTP+pathSmall) })
}

// startControl starts the control plane of a mesh.
func (r *Rig) startControl(ctx context.Context, m *Mesh, dir, groups string) (socket, url, pin string, err error) {
	spec, state := filepath.Join(dir, "mesh.yaml"), filepath.Join(dir, "server")
	if err := os.WriteFile(spec, []byte(Specification(groups)), 0o600); err != nil {
		return "", "", "", err
	}
	if err := copyTree(r.caState(), state); err != nil {
		return "", "", "", fmt.Errorf("copying the authority: %w", err)
	}
	m.control, err = r.start(ctx, m.Setup+"-server", r.Binary, "server", "--log-level", "warn", "--state", state, "--mesh", spec,
		"--listen", "127.0.0.1:0", "--unsealed", "--output", "json")
	if err != nil {
		return "", "", "", err
	}
	m.others = []*Child{m.control}
	var ready struct {
		URL    string `json:"url"`
		CAPin  string `json:"caPin"`
		Socket string `json:"socket"`
	}
	err = await(ctx, "the server's start", func() error {
		if ended := m.control.Ended(); ended != nil {
			return ended
		}
		log, err := os.Open(m.control.log)
		if err != nil {
			return err
		}
		defer log.Close()
		for lines := bufio.NewScanner(log); lines.Scan(); {
			if err := json.Unmarshal(lines.Bytes(), &ready); err == nil && ready.URL != "" {
				return nil
			}
		}
		return errors.New("it has not said that it is ready")
	})
	if err != nil {
		return "", "", "", fmt.Errorf("%w\n%s", err, m.control.Tail())
	}
	return ready.Socket, ready.URL, ready.CAPin, nil
}

// startSidecar lets a workload's sidecar in and waits until it is ready. It writes no access log: none
// is the default.
func (r *Rig) startSidecar(ctx context.Context, dir, workload, socket, url, pin, admin string, binds map[string]string) (*Child, error) {
	token, err := r.Countersign(ctx, "token", "create", workload, "--socket", socket)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, workload+".token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		return nil, err
	}
	args := []string{
		"proxy", "--log-level", "warn", "--server", url, "--ca-pin", pin, "--token-file", file,
		"--state", filepath.Join(dir, workload), "--instance", workload + "-1", "--address", "127.0.0.1", "--admin", admin,
	}
	for name, address := range binds {
		args = append(args, "--bind", name+"="+address)
	}
	child, err := r.start(ctx, filepath.Base(dir)+"-"+workload, r.Binary, args...)
	if err != nil {
		return nil, err
	}
	err = await(ctx, "the readiness of "+child.Name, func() error {
		if ended := child.Ended(); ended != nil {
			return ended
		}
		return get(ctx, "http://"+admin+"/ready")
	})
	if err != nil {
		return child, fmt.Errorf("%w\n%s", err, child.Tail())
	}
	return child, nil
}

// Behead ends the control plane and the receiving sidecar at once, so that the connecting one goes on
// with the endpoints that it knows; somebody else can listen there then.
func (m *Mesh) Behead() error {
	errs := []error{m.control.Kill()}
	for _, child := range m.Receiving {
		errs = append(errs, child.Kill())
	}
	m.Receiving, m.others = nil, nil
	return errors.Join(errs...)
}

// get asks for a page that has to be there.
func get(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, response.Status)
	}
	return nil
}

// TakesGroups tells whether the product's specification knows tlsGroups.
func (r *Rig) TakesGroups(ctx context.Context) (bool, error) {
	spec := filepath.Join(r.Dir, r.name("groups.yaml"))
	if err := os.WriteFile(spec, []byte(Specification("x25519")), 0o600); err != nil {
		return false, err
	}
	_, err := r.Countersign(ctx, "mesh", "validate", spec)
	if err != nil && !strings.Contains(err.Error(), "tlsGroups") {
		return false, err
	}
	return err == nil, nil
}
