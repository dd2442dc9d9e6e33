package integration

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// attack is a case of the corpus; testdata/smuggling/README.md describes its form.
type attack struct {
	name     string // with its file
	bytes    string // with the placeholders
	forwards []told // with the placeholders; empty: it is refused
	refused  bool   // it is good to refuse it
	partly   bool   // a part of it may be forwarded before it is refused
	ended    bool   // the sender ends its half
}

// corpus reads all files.
func corpus(t *testing.T) []attack {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "smuggling", "*.txt"))
	if err != nil {
		t.Fatal(err)
	}
	var all []attack
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range strings.Split("\n"+string(data), "\n== ")[1:] {
			a, err := parseAttack(text)
			if err != nil {
				t.Fatalf("%s: %q: %v", file, a.name, err)
			}
			a.name = strings.TrimSuffix(filepath.Base(file), ".txt") + "/" + a.name
			all = append(all, a)
		}
	}
	if len(all) < 250 {
		t.Fatalf("the corpus has %d cases only", len(all))
	}
	return all
}

// parseAttack reads one case.
func parseAttack(text string) (attack, error) {
	lines := strings.Split(text, "\n")
	a := attack{name: lines[0]}
	verdicts := 0
	for i, line := range lines[1:] {
		word, rest, _ := strings.Cut(line, " ")
		switch {
		case line == "refuse", line == "or refuse":
			a.refused = true
		case line == "cut", line == "or cut":
			a.refused, a.partly = true, true
		case line == "ended":
			a.ended = true
		case word == "forward":
			method, rest, _ := strings.Cut(rest, " ")
			target, quoted, _ := strings.Cut(rest, " ")
			body, err := unescape(strings.Trim(quoted, `"`))
			path, err2 := unescape(target)
			if err := errors.Join(err, err2); err != nil {
				return a, err
			}
			a.forwards = append(a.forwards, told{method, path, body})
		default:
			if verdicts == 0 || !a.refused && len(a.forwards) == 0 {
				return a, errors.New("it has no verdict")
			}
			var err error
			bytes := slices.DeleteFunc(lines[1+i:], func(line string) bool { return strings.HasPrefix(line, "# ") })
			a.bytes, err = unescape(strings.Join(bytes, ""))
			return a, err
		}
		verdicts++
	}
	return a, errors.New("it has no bytes")
}

// unescape gives the bytes that a text of the corpus stands for.
func unescape(text string) (string, error) {
	var out strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			out.WriteByte(text[i])
			continue
		}
		if i++; i == len(text) {
			return "", errors.New("a backslash at the end")
		}
		switch text[i] {
		case 'r', 'n', 't', '0', '\\':
			out.WriteString(map[byte]string{'r': "\r", 'n': "\n", 't': "\t", '0': "\x00", '\\': "\\"}[text[i]])
		case 'x':
			if i+2 >= len(text) {
				return "", errors.New(`\x without two digits`)
			}
			b, err := strconv.ParseUint(text[i+1:i+3], 16, 8)
			if err != nil {
				return "", err
			}
			out.WriteByte(byte(b))
			i += 2
		case '(':
			n, err := repeated(&out, text[i:])
			if err != nil {
				return "", err
			}
			i += n - 1
		default:
			return "", fmt.Errorf("nothing is written \\%c", text[i])
		}
	}
	return out.String(), nil
}

// repeated writes what "(N*text)" at the start of a text stands for, and gives the length of that.
func repeated(out *strings.Builder, text string) (int, error) {
	depth, end := 0, -1
	for i := 0; i < len(text) && end < 0; i++ {
		switch {
		case text[i] == '(' && (i == 0 || text[i-1] == '\\'):
			depth++
		case text[i] == ')':
			if depth--; depth == 0 {
				end = i
			}
		}
	}
	if end < 0 {
		return 0, errors.New("a repetition without an end")
	}
	count, what, ok := strings.Cut(text[1:end], "*")
	n, err := strconv.Atoi(count)
	if err != nil || !ok {
		return 0, fmt.Errorf("a repetition is %.40q", text)
	}
	one, err := unescape(what)
	if err != nil {
		return 0, err
	}
	out.WriteString(strings.Repeat(one, n))
	return end + 1, nil
}

// of gives the case for an id: what is sent and what is to be seen.
func (a attack) of(id string) (raw string, forwards []told) {
	raw = strings.ReplaceAll(a.bytes, "{id}", id)
	_, rest, _ := strings.Cut(raw, "\r\n\r\n")
	raw = strings.ReplaceAll(raw, "{len}", strconv.Itoa(len(rest)))
	for _, f := range a.forwards {
		f.target, f.body = strings.ReplaceAll(f.target, "{id}", id), strings.ReplaceAll(f.body, "{id}", id)
		forwards = append(forwards, f)
	}
	return raw, forwards
}

// trial is a case at a door, and what the sender saw.
type trial struct {
	attack
	door     door
	id       string
	raw      string
	forwards []told

	statuses []int
	closing  bool   // the last answer said that the connection ends
	hung     error  // neither an answer nor an end
	bodies   string // of all answers
}

// run sends the bytes and reads answers until the connection ends.
func (c *trial) run() {
	conn, err := c.door.dial()
	if err != nil {
		c.hung = err
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	half := conn.(interface{ CloseWrite() error })
	sent := make(chan struct{})
	go func() {
		_, _ = io.WriteString(conn, c.raw) // it may be refused before its end
		if c.ended {
			_ = half.CloseWrite()
		}
		close(sent)
	}()
	in := bufio.NewReader(conn)
	for final := 0; ; {
		request := &http.Request{Method: http.MethodGet}
		if final < len(c.forwards) {
			request.Method = c.forwards[final].method
		}
		response, err := http.ReadResponse(in, request)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.hung = err
		}
		if err != nil {
			break
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.hung = err
			break
		}
		if response.StatusCode < 200 && response.StatusCode != http.StatusSwitchingProtocols {
			continue
		}
		final++
		c.statuses, c.closing = append(c.statuses, response.StatusCode), response.Close
		c.bodies += string(body)
		if final >= max(1, len(c.forwards)) || response.StatusCode >= 400 {
			<-sent
			_ = half.CloseWrite()
		}
	}
	conn.Close()
	<-sent
}

// judge compares with the verdict what the sender and the application saw.
func (c *trial) judge(saw []told, touched bool) error {
	if c.hung != nil {
		return fmt.Errorf("neither an answer nor an end: %w", c.hung)
	}
	good := 0
	for good < len(c.statuses) && c.statuses[good] == http.StatusOK {
		good++
	}
	rest := c.statuses[good:]
	if len(rest) > 1 || len(rest) == 1 && !refusal(rest[0]) {
		return fmt.Errorf("the answers are %v", c.statuses)
	}
	if len(rest) == 1 && !c.closing {
		return fmt.Errorf("the answers are %v, and after the last the connection goes on", c.statuses)
	}
	// Whatever was seen is the beginning of what may be seen, and was answered, unless it was cut.
	if len(saw) > len(c.forwards) || !slices.Equal(saw, c.forwards[:len(saw)]) || good > len(saw) || good < len(saw) && !c.partly {
		return fmt.Errorf("the application saw %.1000q and the sender %d good answers, want %.1000q", saw, good, c.forwards)
	}
	if len(saw) < len(c.forwards) && !c.refused {
		return fmt.Errorf("the application saw %.1000q, want %.1000q; the answers are %v", saw, c.forwards, c.statuses)
	}
	if len(saw) == 0 && touched && !c.partly {
		return errors.New("a part of it reached the application")
	}
	if strings.Contains(c.bodies, "canary ") {
		return fmt.Errorf("the second request was answered: %q", c.bodies)
	}
	return nil
}

// refusal tells whether a status says that the request was wrong.
func refusal(status int) bool {
	return status/100 == 4 || status == http.StatusNotImplemented || status == http.StatusHTTPVersionNotSupported
}

// explain is everything about a case that failed.
func (c *trial) explain(err error) string {
	return fmt.Sprintf("%v\nsent: %.1500q\nanswers: %v %q", err, c.raw, c.statuses, c.bodies)
}

// trials are all cases at some doors, each with an id of its own.
func trials(cases []attack, doors ...door) []*trial {
	var all []*trial
	for _, d := range doors {
		for _, a := range cases {
			c := &trial{attack: a, door: d, id: fmt.Sprintf("c%05d", len(all))}
			c.raw, c.forwards = a.of(c.id)
			all = append(all, c)
		}
	}
	return all
}

// runAll runs cases, several at a time.
func runAll(all []*trial) {
	next := make(chan *trial)
	var running sync.WaitGroup
	for range 16 {
		running.Go(func() {
			for c := range next {
				c.run()
			}
		})
	}
	for _, c := range all {
		next <- c
	}
	close(next)
	running.Wait()
}

// wireDoors are where HTTP/1.1 comes in.
func wireDoors(t *testing.T, mesh *wired) []door {
	t.Helper()
	return []door{
		{"outbound", mesh.outbound(t, "caller", "bytes", 9080), ""},
		{"gateway", mesh.inbound(t, "edge", 8080), ""},
		{"gateway with a certificate", mesh.inbound(t, "edge", 8081), "http/1.1"},
		{"permissive", mesh.inbound(t, "bytes", 9081), ""},
		{"without TLS", mesh.inbound(t, "bytes", 9082), ""},
		{"without client certificates", mesh.inbound(t, "bytes", 9083), "http/1.1"},
	}
}

// Every request of the corpus is refused, or the application sees what the corpus says and nothing
// else, at each door. A strict reader and net/http agree on every byte that arrives.
func TestSmuggling(t *testing.T) {
	mesh := wire(t)
	all := trials(corpus(t), wireDoors(t, mesh)...)
	runAll(all)
	for _, d := range wireDoors(t, mesh) { // behind everything that a connection may still hold
		client, url := d.client()
		response, err := client.Get(url + "/marker")
		if err != nil {
			t.Fatalf("%s, after all of it: %v", d.name, err)
		}
		response.Body.Close()
		client.CloseIdleConnections()
	}
	saw, touched := mesh.recorder.byID(t)
	for _, c := range all {
		t.Run(c.door.name+"/"+c.name, func(t *testing.T) {
			if err := c.judge(saw[c.id], touched[c.id]); err != nil {
				t.Error(c.explain(err))
			}
		})
	}
	for _, difference := range mesh.recorder.differences() {
		t.Error(difference)
	}
	if !t.Failed() {
		t.Logf("%d cases", len(all))
	}
}

// byID sorts what the application saw by the id in it; touched are the ids in any byte that came.
func (r *recorder) byID(t *testing.T) (saw map[string][]told, touched map[string]bool) {
	t.Helper()
	saw, touched = map[string][]told{}, map[string]bool{}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, request := range r.all {
		id := idIn(request.target)
		if id == "" && request.target != "/marker" {
			t.Errorf("nobody sent %.500q, and the application saw it", request)
		}
		saw[id] = append(saw[id], request)
	}
	for _, one := range r.taps {
		one.mu.Lock()
		for rest := one.raw; ; {
			i := bytes.Index(rest, []byte("/c"))
			if i < 0 {
				break
			}
			rest = rest[i:]
			touched[idIn(string(rest[:min(7, len(rest))]))] = true
			rest = rest[2:]
		}
		one.mu.Unlock()
	}
	return saw, touched
}

// idIn finds "c" and five digits behind a slash.
func idIn(text string) string {
	for i := range len(text) {
		if rest := text[i:]; len(rest) >= 7 && rest[:2] == "/c" && strings.Trim(rest[2:7], "0123456789") == "" {
			return rest[1:7]
		}
	}
	return ""
}

// nginxConf is NGINX as the second reader: its first server reads what the sidecar sends, and passes it
// to its second with the length that it has found, which is written down.
const nginxConf = `daemon off;
master_process off;
pid %[1]s/pid;
error_log %[1]s/error.log;
events { worker_connections 200; }
http {
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	large_client_header_buffers 8 128k;
	client_max_body_size 0;
	underscores_in_headers on;
	access_log off;
	log_format reading escape=json '{"status":$status,"method":"$request_method","target":"$request_uri","line":"$request"}';
	log_format length escape=json '{"method":"$request_method","target":"$request_uri","length":"$content_length"}';
	server {
		listen %[2]s;
		access_log %[1]s/reading.log reading;
		location / {
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_pass http://unix:%[1]s/second:;
		}
	}
	server {
		listen unix:%[1]s/second;
		access_log %[1]s/length.log length;
		location / { return 200 "$request_method $request_uri\n"; }
	}
}
`

// nginxLine is a line of NGINX's logs.
type nginxLine struct {
	Status               int
	Method, Target, Line string
	Length               string
}

// secondReader runs NGINX where the sidecar expects an application, until the test ends, and gives the
// directory of its logs.
func secondReader(t *testing.T, mesh *wired) string {
	t.Helper()
	program := peer(t, "nginx")
	dir := shortDir(t)
	conf := filepath.Join(dir, "nginx.conf")
	address := mesh.application("second", 0)
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, dir, address), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	command := exec.CommandContext(ctx, program, "-p", dir, "-c", conf, "-e", filepath.Join(dir, "error.log"))
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	var out bytes.Buffer
	command.Stderr = &out
	if err := command.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = command.Wait() // it was told to end
		if log, _ := os.ReadFile(filepath.Join(dir, "error.log")); t.Failed() {
			t.Logf("nginx says: %s%s", out.String(), lastLines(log, 30))
		}
	})
	await(t, "nginx accepts", func() (bool, string) {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			conn.Close()
		}
		return err == nil, fmt.Sprint(err)
	})
	return dir
}

// NGINX behind two sidecars reads the same requests, in number, target and length of the body, as the
// strict reader does there.
func TestSmugglingSecondReader(t *testing.T) {
	mesh := wire(t)
	dir := secondReader(t, mesh)
	cases := corpus(t)
	first := trials(cases, door{"outbound", mesh.outbound(t, "caller", "bytes", 9080), ""})
	for i, c := range first {
		c.id = fmt.Sprintf("c%d", 80_000+i)
		c.raw, c.forwards = c.of(c.id)
	}
	second := trials(cases, door{"outbound", mesh.outbound(t, "caller", "second", 9180), ""})
	runAll(first)
	runAll(second)
	get(t, "http://"+mesh.outbound(t, "caller", "second", 9180)+"/marker")
	saw, _ := mesh.recorder.byID(t)
	lines := map[string][]nginxLine{}
	await(t, "nginx has written the last request", func() (bool, string) {
		lines = nginxLog(t, filepath.Join(dir, "length.log"))
		return len(lines[""]) > 0, "no marker"
	})
	refusals := nginxLog(t, filepath.Join(dir, "reading.log"))
	compared := 0
	for i, c := range second {
		// NGINX refuses some of what is good, such as TRACE, and what is cut.
		refused := map[string]bool{}
		for _, line := range refusals[c.id] {
			if line.Status >= 400 {
				refused[line.Line] = true
			}
		}
		var want, got []string
		for _, request := range saw[first[i].id] {
			target := strings.ReplaceAll(request.target, first[i].id, c.id)
			if line := request.method + " " + target + " HTTP/1.1"; refused[line] {
				delete(refused, line)
				continue
			}
			want = append(want, fmt.Sprintf("%s %s %d", request.method, target, len(request.body)))
		}
		for _, line := range lines[c.id] {
			got = append(got, fmt.Sprintf("%s %s %s", line.Method, line.Target, cmp.Or(line.Length, "0")))
		}
		if len(refused) > 0 && !c.partly {
			t.Errorf("%s: nginx refuses what the strict reader has not read: %v\nsent: %.1000q", c.name, refused, c.raw)
		}
		compared += len(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: nginx read %.300q, the strict reader %.300q\nsent: %.1000q", c.name, got, want, c.raw)
		}
	}
	for _, line := range lines[""] {
		if line.Target != "/marker" {
			t.Errorf("nobody sent what nginx read: %+v", line)
		}
	}
	if compared < 40 {
		t.Errorf("only %d requests reached nginx", compared)
	}
}

// nginxLog reads a log, by the id in the target or else in the line.
func nginxLog(t *testing.T, path string) map[string][]nginxLine {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	byID := map[string][]nginxLine{}
	for text := range strings.Lines(string(data)) {
		var line nginxLine
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatalf("%s: %.300q: %v", filepath.Base(path), text, err)
		}
		id := cmp.Or(idIn(line.Target), idIn(line.Line))
		byID[id] = append(byID[id], line)
	}
	return byID
}
