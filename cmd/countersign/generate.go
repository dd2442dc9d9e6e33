package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"countersign.dev/durable"
	"countersign.dev/engine"
	"countersign.dev/haproxy"
	"countersign.dev/mesh"
	"countersign.dev/nginx"
)

// generateCmd holds the commands that write what other programs read.
type generateCmd struct {
	Nginx   generateNginxCmd   `cmd:"" name:"nginx" help:"Write the NGINX configuration of one workload."`
	Haproxy generateHaproxyCmd `cmd:"" name:"haproxy" help:"Write the HAProxy configuration of one workload."`

	CloudFormation generateCloudFormationCmd `cmd:"" name:"cloudformation" help:"Write the CloudFormation template that runs a mesh on ECS."`
	Terraform      generateTerraformCmd      `cmd:"" name:"terraform" help:"Write the Terraform configuration that runs a mesh on ECS."`
	IAM            generateIAMCmd            `cmd:"" name:"iam" help:"Write the policies of the roles, secrets and keys of a mesh on ECS."`
	TaskDefinition generateTaskDefinitionCmd `cmd:"" name:"task-definition" help:"Write the ECS task definition of one workload."`
}

// generateFlags are what both have.
type generateFlags struct {
	Path         string        `arg:"" help:"The specification: a file or a directory."`
	Workload     string        `required:"" placeholder:"NAME" help:"The service or gateway whose sidecar it is."`
	Certificates string        `default:"/run/countersign/certs" placeholder:"DIR" help:"The directory of certificates where the proxy runs, absolute: current/cert.pem, key.pem, ca.pem and cert-and-key.pem, and crl.pem where revoked callers are refused. Default: ${default}."`
	RunDir       string        `default:"/run/countersign/proxy" placeholder:"DIR" help:"A directory of this instance and its user alone (0700) where the proxy runs, absolute, for sockets, the pid and scratch files. Default: ${default}."`
	Address      string        `default:"0.0.0.0" placeholder:"IP" help:"The address that peers connect to. Default: all, which goes only where the application has another port (app). Default: ${default}."`
	AppAddress   string        `default:"127.0.0.1" placeholder:"IP" help:"The loopback address where the application is and dials. Default: ${default}."`
	Endpoint     []string      `sep:"none" placeholder:"SERVICE:PORT=IP:PORT" help:"Where an instance of a called service is. May be repeated; calls to a service without one fail."`
	Openssl      string        `name:"openssl-version" default:"3.0" placeholder:"VERSION" help:"The OpenSSL that the proxy is linked with; key exchanges with MLKEM need 3.5. Default: ${default}."`
	DrainTimeout time.Duration `default:"30s" help:"How long connections live on after a reload, at least 1s. Default: ${default}."`
	// AcceptRevoked is a word of its own: without it a policy would be weakened by what is left out.
	AcceptRevoked bool `help:"Look nobody up although the specification wants revoked callers refused, as it does by default. Without this, current/crl.pem has to be there and to hold the lists of every authority ('countersign ca crl')."`

	Out string `placeholder:"FILE" help:"Write the configuration to this file, in one step. What is refused leaves the file as it is. Default: standard output."`
}

type generateNginxCmd struct {
	generateFlags
	ProxyVersion string `placeholder:"VERSION" help:"The NGINX that will read it; newer directives are used only when it knows them. Default: what the specification says, else 1.22.1."`
	StreamModule string `default:"/usr/lib/nginx/modules/ngx_stream_module.so" placeholder:"FILE" help:"NGINX's stream module, loaded when a port needs it; \"none\" when it is compiled in. Default: ${default}."`
	User         string `placeholder:"NAME" help:"Whom the workers of an NGINX that starts as root become. Default: NGINX's own default."`
}

type generateHaproxyCmd struct {
	generateFlags
	ProxyVersion string `placeholder:"VERSION" help:"The HAProxy that will read it; newer words are used only when it knows them. Default: what the specification says, else 2.6.12."`
}

const generateHelp = `What it cannot carry out is refused with all reasons and their places, and nothing is written; see
docs/nginx-haproxy.md. Remarks go to standard error. The example is a service of "countersign example shop".

Example:
  `

// Help is shown by --help.
func (generateNginxCmd) Help() string {
	return `The configuration makes a stock NGINX the sidecar of a service or gateway. ` + generateHelp +
		`countersign generate nginx mesh.yaml --workload catalog --address 10.0.1.17 --endpoint stock:7000=10.0.2.4:7000 --out nginx.conf
  nginx -t -c $PWD/nginx.conf`
}

// Help is shown by --help.
func (generateHaproxyCmd) Help() string {
	return `The configuration makes a stock HAProxy the sidecar of a service or gateway. ` + generateHelp +
		`countersign generate haproxy mesh.yaml --workload catalog --address 10.0.1.17 --endpoint stock:7000=10.0.2.4:7000 --out haproxy.cfg
  haproxy -c -f haproxy.cfg`
}

// Run writes the configuration.
func (c generateNginxCmd) Run(p *process) error {
	return c.write(p, mesh.EngineNGINX, nginx.Render, func(o *engine.Options) {
		o.Version, o.User, o.StreamModule = c.ProxyVersion, c.User, c.StreamModule
		if o.StreamModule == "none" {
			o.StreamModule = ""
		}
	})
}

// Run writes the configuration.
func (c generateHaproxyCmd) Run(p *process) error {
	return c.write(p, mesh.EngineHAProxy, haproxy.Render, func(o *engine.Options) { o.Version = c.ProxyVersion })
}

// write compiles the Plan, fills in where instances are, and writes what render makes of it.
func (c generateFlags) write(p *process, proxy mesh.Engine, render func(*mesh.Plan, engine.Options) (*engine.Config, error), further func(*engine.Options)) error {
	o, err := c.options()
	if err != nil {
		return err
	}
	further(&o)
	spec, err := loadSpec(p, c.Path)
	if err != nil {
		return err
	}
	plan, err := spec.Compile(c.Workload)
	if err != nil {
		return usageError{err}
	}
	if said, ok := spec.ProxyOf(c.Workload); ok && said.Engine != proxy {
		return invalidSpecification(p, spec.Refuse(fmt.Sprintf("the specification says that the proxy of %s is %s: write what is for %s, or change its 'proxy'", c.Workload, said, said.Engine),
			plan.Workload.Path()+".proxy.engine"))
	}
	o.CRL = plan.Revocation.Check && !c.AcceptRevoked
	if o.Version == "" && plan.Proxy.Engine == proxy {
		o.Version = plan.Proxy.Version
	}
	for _, text := range c.Endpoint {
		if err := addEndpoint(plan, text); err != nil {
			return err
		}
	}
	config, err := render(plan, o)
	switch {
	case errors.Is(err, engine.ErrRefused):
		return usageError{engine.Placed(spec, plan.Workload, err)}
	case err != nil:
		return err
	}
	for _, note := range append(config.Notes, c.openRunDir()...) {
		fmt.Fprintf(p.stderr, "note: %s\n", note)
	}
	if c.Out != "" { // it holds no secret
		if err := durable.WriteFile(c.Out, []byte(config.Text), 0o644); err != nil {
			return fmt.Errorf("--out: %w", err)
		}
		fmt.Fprintf(p.stderr, "wrote %s\n", c.Out)
		return nil
	}
	_, err = io.WriteString(p.stdout, config.Text)
	return err
}

// openRunDir remarks that others than its owner get at a run directory, if it is on this machine. NGINX lets
// everybody write to its inner sockets, and only the directory is in front of them.
func (c generateFlags) openRunDir() []string {
	info, err := os.Stat(c.RunDir)
	if err != nil || info.Mode().Perm()&0o077 == 0 {
		return nil
	}
	return []string{fmt.Sprintf("--run-dir %s has the mode %#o: others reach the proxy's sockets in it, past its listeners; run: chmod 700 %s", c.RunDir, info.Mode().Perm(), c.RunDir)}
}

// options reads what kong cannot check.
func (c generateFlags) options() (engine.Options, error) {
	o := engine.Options{OpenSSL: c.Openssl, Drain: c.DrainTimeout}
	var err error
	if o.Address, err = netip.ParseAddr(c.Address); err != nil {
		return o, usagef("--address %q is not an IP address", c.Address)
	}
	if o.Loopback, err = netip.ParseAddr(c.AppAddress); err != nil || !o.Loopback.IsLoopback() {
		return o, usagef("--app-address %q is not a loopback address; whoever reaches an outbound listener speaks as this instance", c.AppAddress)
	}
	for _, dir := range [][2]string{{"--certificates", c.Certificates}, {"--run-dir", c.RunDir}} {
		if !filepath.IsAbs(dir[1]) {
			return o, usagef("%s %q is not an absolute path; it is one of the machine where the proxy runs", dir[0], dir[1])
		}
	}
	o.Certificates, o.Run = filepath.Clean(c.Certificates), filepath.Clean(c.RunDir)
	if c.DrainTimeout < time.Second {
		return o, usagef("--drain-timeout %s is less than 1s, and the proxies count whole seconds", c.DrainTimeout)
	}
	return o, nil
}

// addEndpoint reads one --endpoint.
func addEndpoint(plan *mesh.Plan, text string) error {
	service, where, ok := strings.Cut(text, "=")
	address, err := netip.ParseAddrPort(where)
	if !ok || err != nil || address.Port() == 0 {
		return usagef("--endpoint %q is not SERVICE:PORT=IP:PORT", text)
	}
	var called []string
	for i := range plan.Upstreams {
		u := &plan.Upstreams[i]
		name := fmt.Sprintf("%s:%d", u.Service, u.Port)
		if name == service {
			u.Endpoints = append(u.Endpoints, mesh.Endpoint{Instance: fmt.Sprintf("%s-%d", u.Service, len(u.Endpoints)+1), Address: address})
			return nil
		}
		called = append(called, name)
	}
	if len(called) == 0 {
		return usagef("--endpoint %s: %s calls nobody", text, plan.Workload.Name)
	}
	return usagef("--endpoint %s: %s calls no %q; it calls: %s", text, plan.Workload.Name, service, strings.Join(called, ", "))
}
