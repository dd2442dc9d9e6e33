package rig

import (
	"context"
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"
)

// The configurations of the peers.
//
//go:embed peers
var configurations embed.FS

// endpoints are the addresses of both halves of a peer's chain.
type endpoints struct {
	HTTP, GRPC, TCP             string // of the connecting side, for applications
	PeerHTTP, PeerGRPC, PeerTCP string // of the receiving side
	AppHTTP, AppGRPC, AppTCP    string
}

// peerConfig is what the templates of peers are filled with.
type peerConfig struct {
	nginxBase
	endpoints
	Client, Server Identity
	ServerDNS      string
	Stream         bool   // NGINX: whether it can do TCP
	Module         string // NGINX: proxy or grpc, whose directives have the same ends
	// NGINX: whether it has the duties of a sidecar besides: access log, policy, fields about the caller.
	Duties bool
}

// originConfig is what the origin's template is filled with.
type originConfig struct {
	nginxBase
	HTTP, Small string
}

// nginxBase is what every configuration of NGINX has.
type nginxBase struct {
	Dir          string
	Files        int    // that a process may open
	Root         bool   // this process is root's, and its workers have to read its files
	StreamModule string // to be loaded; "" when there is none or it is built in
}

func (r *Rig) nginxBase(dir string) nginxBase {
	return nginxBase{Dir: dir, Files: r.files, Root: os.Geteuid() == 0}
}

// endpoints finds free addresses for a chain in front of the origin.
func (r *Rig) endpoints() (endpoints, error) {
	a, err := Ports(6)
	if err != nil {
		return endpoints{}, err
	}
	return endpoints{
		HTTP: a[0], GRPC: a[1], TCP: a[2], PeerHTTP: a[3], PeerGRPC: a[4], PeerTCP: a[5],
		AppHTTP: r.Origin.HTTP, AppGRPC: r.Origin.GRPC, AppTCP: r.Origin.TCP,
	}, nil
}

func (r *Rig) peerConfig(dir string, e endpoints) peerConfig {
	return peerConfig{nginxBase: r.nginxBase(dir), endpoints: e, Client: r.Client, Server: r.Server, ServerDNS: ServerDNS}
}

// configure fills a template and writes it into a directory.
func configure(dir, name string, data any) (string, error) {
	functions := template.FuncMap{
		// tls gives the module's name to directives that several modules have.
		"tls": func(c peerConfig, module string) peerConfig { c.Module = module; return c },
		// dutiful gives HAProxy the duties of a sidecar.
		"dutiful": func(c halfConfig) halfConfig { c.Duties = true; return c },
		// log is a format of NGINX's access log.
		"log": duties,
		// envoy names the port of one of Envoy's listeners or clusters, and its address.
		"envoy": func(c halfConfig, port, address string) halfConfig { c.Port, c.Address = port, address; return c },
		// port and host are the halves of an address.
		"port": port,
		"host": func(address string) string { return strings.TrimSuffix(address, ":"+port(address)) },
	}
	set, err := template.New(name).Funcs(functions).ParseFS(configurations, "peers/*")
	if err != nil {
		return "", fmt.Errorf("reading the peers' configurations: %w", err)
	}
	path := filepath.Join(dir, name)
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	if err := set.ExecuteTemplate(file, name, data); err != nil {
		file.Close()
		return "", fmt.Errorf("writing %s: %w", name, err)
	}
	return path, file.Close()
}

// version is the first line that a program says of itself.
func version(ctx context.Context, program string, args ...string) string {
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput() //nolint:gosec // ENVOY and GHOSTUNNEL name programs, as PATH does
	if err != nil && len(out) == 0 {
		return program + ": " + err.Error()
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return strings.Join(strings.Fields(strings.ReplaceAll(line, program, filepath.Base(program))), " ")
}
