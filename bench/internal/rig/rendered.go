package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// The setups whose configuration the product writes, and those that have the same duties by hand: an access log
// in JSON, the policy on callers, methods and paths, and what the application is told about the caller.
const (
	NGINXRendered   = "nginx-rendered"
	NGINXDuties     = "nginx-duties"
	HAProxyRendered = "haproxy-rendered"
	HAProxyDuties   = "haproxy-duties"
)

// Apart tells whether a setup is measured only in rows that name it.
func Apart(name string) bool {
	switch name {
	case MixedOut, MixedIn, NGINXRendered, NGINXDuties, HAProxyRendered, HAProxyDuties:
		return true
	}
	return false
}

// Rendered are NGINX and HAProxy as `countersign generate` configures them, each with its like by hand. Those
// that are not there are missing, and it is said why.
func (r *Rig) Rendered(ctx context.Context) (setups []*Setup, missing []string) {
	for _, engine := range []string{"nginx", "haproxy"} {
		program, err := find(engine, map[string]string{"nginx": "nginx-light", "haproxy": "haproxy"}[engine])
		if err != nil {
			missing = append(missing, err.Error())
			continue
		}
		title := version(ctx, program, "-v")
		setups = append(setups, r.pair(engine+"-rendered", title+", configured by `countersign generate "+engine+"`", false, r.rendered(ctx, engine, program)))
		if engine == "haproxy" {
			args := func(config string) []string { return []string{"-db", "-f", config} }
			setups = append(setups, r.pair(HAProxyDuties, title+", by hand with the same duties", false, r.configured(program, HAProxyDuties, "haproxy-duties.cfg", false, args)))
			continue
		}
		setups = append(setups, r.pair(NGINXDuties, title+", by hand with the same duties", false, r.dutiful(ctx, program)))
	}
	return setups, missing
}

// dutiful starts one half of NGINX with the templates that have all duties.
func (r *Rig) dutiful(ctx context.Context, program string) startHalf {
	module, stream := streamModule(ctx, program)
	return func(ctx context.Context, e endpoints, connecting bool) ([]*Child, error) {
		half := "receiving"
		if connecting {
			half = "connecting"
		}
		dir, err := r.directory(NGINXDuties + "-" + half)
		if err != nil {
			return nil, err
		}
		config := r.peerConfig(dir, e)
		config.StreamModule, config.Stream, config.Duties = module, stream, true
		child, err := r.nginx(ctx, NGINXDuties+"-"+half, "nginx-"+half+".conf", dir, config)
		if err != nil {
			return nil, err
		}
		return []*Child{child}, nil
	}
}

// renderedSpecification is the mesh of [Specification] on the ports of one chain, with the one group of the
// others.
func renderedSpecification(e endpoints) string {
	return fmt.Sprintf(`mesh: bench
minTLS: "1.3"
tlsGroups: [x25519]
services:
  client:
    calls:
      - {service: server, port: %[4]s, listen: %[1]s}
      - {service: server, port: %[5]s, listen: %[2]s}
      - {service: server, port: %[6]s, listen: %[3]s}
  server:
    ports:
      - {port: %[4]s, protocol: http, app: %[7]s, allow: [{from: client, methods: [GET, POST], paths: [/*]}]}
      - {port: %[5]s, protocol: grpc, app: %[8]s, allow: [{from: client, methods: [POST], paths: [/*]}]}
      - {port: %[6]s, protocol: tcp, app: %[9]s, allow: [{from: client}]}
`, port(e.HTTP), port(e.GRPC), port(e.TCP), port(e.PeerHTTP), port(e.PeerGRPC), port(e.PeerTCP), port(e.AppHTTP), port(e.AppGRPC), port(e.AppTCP))
}

// rendered starts one half as a user of `countersign generate` does: what the command writes is what runs.
func (r *Rig) rendered(ctx context.Context, engine, program string) startHalf {
	module, _ := streamModule(ctx, program)
	if module == "" {
		module = "none"
	}
	return func(ctx context.Context, e endpoints, connecting bool) ([]*Child, error) {
		workload, identity, half := serverName, r.Server, "receiving"
		if connecting {
			workload, identity, half = clientName, r.Client, "connecting"
		}
		dir, err := r.directory(engine + "-rendered-" + half)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(certificates(filepath.Join(dir, "certs"), identity), os.Mkdir(filepath.Join(dir, "run"), 0o700)); err != nil {
			return nil, err
		}
		spec, config := filepath.Join(dir, "mesh.yaml"), filepath.Join(dir, engine+".conf")
		if err := os.WriteFile(spec, []byte(renderedSpecification(e)), 0o600); err != nil {
			return nil, err
		}
		args := []string{
			"generate", engine, spec, "--workload", workload, "--address", "127.0.0.1", "--out", config,
			"--certificates", filepath.Join(dir, "certs"), "--run-dir", filepath.Join(dir, "run"),
			"--accept-revoked", // as those written by hand do
		}
		if connecting {
			for _, peer := range []string{e.PeerHTTP, e.PeerGRPC, e.PeerTCP} {
				args = append(args, "--endpoint", serverName+":"+port(peer)+"="+peer)
			}
		}
		run := []string{"-db", "-f", config}
		if engine == "nginx" {
			args = append(args, "--stream-module", module)
			if os.Geteuid() == 0 { // its workers have to get at the files
				args = append(args, "--user", "root")
			}
			run = []string{"-p", dir, "-c", config, "-e", "stderr"}
		}
		if _, err := r.Countersign(ctx, args...); err != nil {
			return nil, fmt.Errorf("rendering %s: %w", engine, err)
		}
		child, err := r.start(ctx, engine+"-rendered-"+half, program, run...)
		if err != nil {
			return nil, err
		}
		return []*Child{child}, nil
	}
}

// certificates lays an identity out as `countersign init` does.
func certificates(dir string, identity Identity) error {
	current := filepath.Join(dir, "current")
	if err := os.MkdirAll(current, 0o700); err != nil {
		return err
	}
	for name, from := range map[string]string{"cert.pem": identity.Chain, "key.pem": identity.Key, "ca.pem": identity.CA, "cert-and-key.pem": identity.Both} {
		text, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(current, name), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// duties are the access log's fields in NGINX, as somebody writes them by hand.
func duties(direction string) string {
	fields := []string{
		`"time":"$time_iso8601"`, `"direction":"` + direction + `"`, `"protocol":"$server_protocol"`, `"remote":"$remote_addr:$remote_port"`,
		`"caller":"$ssl_client_s_dn"`, `"peerSerial":"$ssl_client_serial"`, `"tls":"$ssl_protocol"`, `"method":"$request_method"`, `"path":"$uri"`,
		`"status":$status`, `"bytesOut":$body_bytes_sent`, `"seconds":$request_time`, `"upstream":"$upstream_addr"`, `"upstreamStatus":"$upstream_status"`,
	}
	if direction == "inbound" {
		fields = append(fields, `"verify":"$ssl_client_verify"`, `"admitted":"$known"`)
	}
	return "'{" + strings.Join(fields, ",") + "}'"
}
