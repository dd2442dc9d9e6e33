package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"countersign.dev/reload"
)

// NGINX is the engine of that name.
var NGINX = &Engine{
	name: "nginx", file: "nginx.conf",
	build: "-V", read: readNGINX,
	test:  func(conf, _ string) []string { return []string{"-t", "-q", "-c", conf} },
	serve: func(conf, _ string) []string { return []string{"-c", conf} },
	tell:  func(p *process) reload.Method { return nginxMaster(p) },
	quit:  syscall.SIGQUIT, stop: syscall.SIGTERM,
	inForce: nginxInForce,
	leaving: func(_ context.Context, p *process) (int, error) { return nginxLeaving(p.pid) },
	older:   func(ctx context.Context, p *process) (*reload.OldWorkers, error) { return nginxMaster(p).Older(ctx) },
}

var (
	nginxVersion = regexp.MustCompile(`(?m)^nginx version: nginx/([0-9.]+)`)
	nginxOpenSSL = regexp.MustCompile(`(?m)^built with OpenSSL ([0-9.]+)[^\n]*$`)
	nginxRunning = regexp.MustCompile(`running with OpenSSL ([0-9.]+)`)
	nginxModules = regexp.MustCompile(`--modules-path=(\S+)`)
	nginxStream  = regexp.MustCompile(`--with-stream(=dynamic)?(\s|$)`)
)

// readNGINX takes in what `nginx -V` writes.
func readNGINX(output string, b *Binary) error {
	version := nginxVersion.FindStringSubmatch(output)
	if version == nil {
		return fmt.Errorf("it does not say that it is NGINX: %s", firstLines([]byte(output)))
	}
	b.Version = version[1]
	library := nginxOpenSSL.FindStringSubmatch(output)
	if library == nil {
		return errors.New("it is not linked with OpenSSL, for which the configuration is written")
	}
	if running := nginxRunning.FindStringSubmatch(library[0]); running != nil {
		library = running
	}
	b.OpenSSL = strings.Trim(library[1], ".")
	if stream := nginxStream.FindStringSubmatch(output); stream != nil && stream[1] != "" {
		modules := "/usr/lib/nginx/modules"
		if path := nginxModules.FindStringSubmatch(output); path != nil {
			modules = strings.Trim(path[1], `'"`)
		}
		b.StreamModule = filepath.Join(modules, "ngx_stream_module.so")
	}
	return nil
}

// nginxMaster signals the master. Whatever its file is called, it is the one that was started here.
func nginxMaster(p *process) reload.Signal {
	proxy := reload.NGINX
	if file, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.pid)); err == nil {
		proxy.Name = filepath.Base(strings.TrimSuffix(file, " (deleted)"))
	}
	return reload.Signal{Proxy: proxy, PID: p.pid}
}

// nginxInForce asks the status page.
func nginxInForce(ctx context.Context, run string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	transport := &http.Transport{
		DisableKeepAlives: true, // a connection stays with one worker
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(run, "status.sock"))
		},
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://status/generation", nil)
	if err != nil {
		return "", err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 256))
	return strings.TrimSpace(string(text)), err
}

// nginxLeaving counts the workers that say in their title that they shut down.
func nginxLeaving(master int) (int, error) {
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", master, master))
	if err != nil {
		return 0, err
	}
	leaving := 0
	for child := range strings.FieldsSeq(string(children)) {
		title, err := os.ReadFile("/proc/" + child + "/cmdline")
		if err == nil && strings.Contains(string(title), "is shutting down") {
			leaving++
		}
	}
	return leaving, nil
}
