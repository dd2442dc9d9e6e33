package awstest

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

//go:embed doubles.py
var launcher string

// process is one of the doubles: started at its first request, and until the end of this process.
type process struct {
	name string

	once   sync.Once
	target *url.URL
	err    error
	output tail
	stdin  io.WriteCloser // held open: the process ends when it closes, which the kernel does when this one dies
}

var (
	moto      = &process{name: "moto"}
	ministack = &process{name: "ministack"}
)

// start runs the double on a listening socket made here, so that no port can be taken in between and no request has to be
// repeated until the double is ready: the kernel keeps it in the queue.
func (p *process) start() {
	listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it lives as long as the process
	if err != nil {
		p.err = fmt.Errorf("listening for %s: %w", p.name, err)
		return
	}
	defer listener.Close()
	tcp, _ := listener.(*net.TCPListener)
	socket, err := tcp.File()
	if err != nil {
		p.err = fmt.Errorf("handing a socket to %s: %w", p.name, err)
		return
	}
	defer socket.Close()
	interpreter, err := interpreter()
	if err != nil {
		p.err = err
		return
	}
	command := exec.Command(interpreter, "-c", launcher, p.name) //nolint:noctx // until the end of this process
	command.ExtraFiles = []*os.File{socket}
	command.Stdout, command.Stderr = &p.output, &p.output
	// Nothing of the machine's own AWS settings, and none of ministack's side ports (MQTT on 8883, SFTP).
	command.Env = []string{
		"PATH=/usr/bin:/bin", "HOME=/nonexistent", "TMPDIR=" + os.TempDir(), "PYTHONUNBUFFERED=1",
		"AWS_ACCESS_KEY_ID=none", "AWS_SECRET_ACCESS_KEY=none", "AWS_DEFAULT_REGION=" + Region,
		"MOTO_ACCOUNT_ID=" + Account, "MINISTACK_ACCOUNT_ID=" + Account, "MINISTACK_REGION=" + Region,
		"IOT_MTLS_ENABLED=0", "SFTP_ENABLED=0", "CLOUDTRAIL_RECORDING=1", "DOCKER_HOST=unix:///nonexistent", "LOG_LEVEL=WARNING",
	}
	if p.stdin, p.err = command.StdinPipe(); p.err != nil {
		return
	}
	if err := command.Start(); err != nil {
		p.err = fmt.Errorf("starting %s: %w", p.name, err)
		return
	}
	p.target = &url.URL{Scheme: "http", Host: listener.Addr().String()}
	go func() { _ = command.Wait() }()
}

// double answers with what the double answers.
func double(p *process) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.once.Do(p.start); p.err != nil {
			http.Error(w, p.err.Error(), http.StatusBadGateway)
			return
		}
		proxy := &httputil.ReverseProxy{
			Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(p.target)
				r.Out.Header.Del("Accept-Encoding")
			},
			ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
				http.Error(w, fmt.Sprintf("%s has not answered: %v", p.name, err), http.StatusBadGateway)
			},
		}
		proxy.ServeHTTP(w, r)
	})
}

// logDoubles shows what the doubles said last, for a test that failed: little, because it comes after the test's own errors.
func logDoubles(t testing.TB) {
	for _, p := range []*process{moto, ministack} {
		if said := p.output.String(); said != "" {
			t.Logf("the last that %s said:\n%s", p.name, said)
		}
	}
}

// tail keeps the last of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailSize = 1 << 10

func (o *tail) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b = append(o.b, p...)
	if over := len(o.b) - tailSize; over > 0 {
		o.b = append(o.b[:0], o.b[over:]...)
	}
	return len(p), nil
}

func (o *tail) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.b)
}

// python skips the test, or fails it when CI=true, where the doubles are not installed as tools/aws/requirements.txt pins them.
func python(t testing.TB) {
	t.Helper()
	if _, err := interpreter(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED, AND WITH IT ALL THAT IT WOULD HAVE SHOWN: %v", err)
	}
}

// interpreter finds the Python of the environment that holds the doubles.
var interpreter = sync.OnceValues(func() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	pinned, err := os.ReadFile(filepath.Join(root, "tools", "aws", "requirements.txt"))
	if err != nil {
		return "", fmt.Errorf("reading what the doubles of AWS are: %w", err)
	}
	sum := sha256.Sum256(pinned)
	venv := filepath.Join(root, "tools", "bin", "aws-venv")
	installed, err := os.ReadFile(filepath.Join(venv, "requirements"))
	if err != nil || string(bytes.TrimSpace(installed)) != hex.EncodeToString(sum[:]) {
		return "", fmt.Errorf("%s does not hold moto and ministack as tools/aws/requirements.txt pins them: run `make peers`", venv)
	}
	return filepath.Join(venv, "bin", "python"), nil
})

// moduleRoot is the directory of go.mod, above the package whose tests run.
func moduleRoot() (string, error) {
	directory, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("looking for go.mod: %w", err)
	}
	for {
		content, err := os.ReadFile(filepath.Join(directory, "go.mod"))
		if err == nil && strings.HasPrefix(string(content), "module countersign.dev\n") {
			return directory, nil
		}
		parent := filepath.Dir(directory)
		if parent == directory {
			return "", fmt.Errorf("no go.mod of this module above the working directory")
		}
		directory = parent
	}
}
