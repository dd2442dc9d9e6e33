package integration

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// doors are where a stranger's bytes come in as HTTP/1.1: at the gateway, from the application beside
// a sidecar, and at a port that takes plaintext.
func doors(t *testing.T, mesh *running) map[string]string {
	t.Helper()
	return map[string]string{
		"gateway": mesh.inbound(t, "edge", 8080), "outbound": mesh.outbound(t, "caller", "recorder", 9080), "permissive": mesh.inbound(t, "recorder", 9081),
	}
}

// raw sends bytes and reads the status and the body of the first answer, and whether the connection ends
// after it. A status of 0 means that it was closed without a word.
func raw(t *testing.T, address, request string) (status int, answer string, closed bool) {
	t.Helper()
	conn := dialTCP(t, address)
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(conn, request)
		sent <- err
	}()
	in := bufio.NewReader(conn)
	response, err := http.ReadResponse(in, nil)
	if err != nil {
		_ = gone(sent) // an error is as good as a close here
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("neither an answer nor a close: %v", err)
		}
		return 0, "", true
	}
	body, err := io.ReadAll(response.Body)
	response.Body.Close()
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("reading the answer's body: %v", err)
	}
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err = in.ReadByte()
	return response.StatusCode, string(body), err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

// What two servers may read as different requests is refused, and nothing of it is passed on.
func TestAmbiguousRequests(t *testing.T) {
	mesh := lab(t)
	const smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	requests := map[string]string{
		"TE and CL":         "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled,
		"CL and TE":         "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n" + smuggled + "\r\n0\r\n\r\n",
		"two lengths":       "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 38\r\n\r\n" + smuggled,
		"a signed length":   "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: +0\r\n\r\n" + smuggled,
		"an odd encoding":   "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + smuggled,
		"chunked not last":  "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + smuggled,
		"two hosts":         "GET /a HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
		"no host":           "GET /a HTTP/1.1\r\n\r\n",
		"a broken chunk":    "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + smuggled,
		"not HTTP":          "HELO there, this is no request\r\n\r\n",
		"a NUL in a header": "GET /a HTTP/1.1\r\nHost: x\r\nX-A: a\x00b\r\n\r\n",
	}
	for door, address := range doors(t, mesh) {
		for name, request := range requests {
			t.Run(door+"/"+name, func(t *testing.T) {
				status, body, closed := raw(t, address, request)
				if status != 0 && status/100 != 4 && status != http.StatusNotImplemented {
					t.Errorf("status %d: %s", status, body)
				}
				if strings.Contains(body, "smuggled") {
					t.Errorf("the second request was answered: %s", body)
				}
				if !closed {
					t.Error("the connection goes on")
				}
			})
		}
	}
}

// A header of 1 MB is refused, and costs nobody else anything.
func TestHugeHeader(t *testing.T) {
	mesh := lab(t)
	for door, address := range doors(t, mesh) {
		for name, request := range map[string]string{
			"one field":   "GET / HTTP/1.1\r\nHost: x\r\nX-Huge: " + strings.Repeat("x", 1<<20) + "\r\n\r\n",
			"many fields": "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X-Many: y\r\n", 100_000) + "\r\n",
			"the path":    "GET /" + strings.Repeat("x", 1<<20) + " HTTP/1.1\r\nHost: x\r\n\r\n",
		} {
			status, _, closed := raw(t, address, request)
			if status != 0 && status/100 != 4 {
				t.Errorf("%s, %s: status %d", door, name, status)
			}
			if !closed {
				t.Errorf("%s, %s: the connection goes on", door, name)
			}
			get(t, "http://"+address+"/")
		}
	}
}

// Clients that send one byte and wait hold a place and nothing else; others are served meanwhile.
func TestSlowClients(t *testing.T) {
	mesh := lab(t)
	const request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	for door, address := range doors(t, mesh) {
		conns := make([]*net.TCPConn, 50)
		for i := range conns {
			conns[i] = dialTCP(t, address)
		}
		ticker := time.NewTicker(20 * time.Millisecond)
		for _, b := range []byte(request[:20]) {
			for _, conn := range conns {
				if _, err := conn.Write([]byte{b}); err != nil {
					t.Fatalf("%s: %v", door, err)
				}
			}
			get(t, "http://"+address+"/")
			<-ticker.C // a byte at a time
		}
		ticker.Stop()
		// Slow is not wrong: who comes to an end is served.
		if _, err := io.WriteString(conns[0], request[20:]); err != nil {
			t.Fatalf("%s: %v", door, err)
		}
		response, err := http.ReadResponse(bufio.NewReader(conns[0]), nil)
		if err != nil || response.StatusCode != http.StatusOK {
			t.Errorf("%s: a slow request gets %v (%v)", door, response, err)
			continue
		}
		response.Body.Close()
	}
}

// A client that sends a byte a second and never ends its header is cut off.
func TestSlowHeaderIsCutOff(t *testing.T) {
	for door, address := range doors(t, lab(t)) {
		t.Run(door, func(t *testing.T) {
			t.Parallel() // it takes as long as the sidecar waits
			conn := dialTCP(t, address)
			conn.SetDeadline(time.Now().Add(5 * time.Minute))
			ended := make(chan struct{})
			go func() {
				_, _ = io.Copy(io.Discard, conn) // an answer, perhaps, and the end
				close(ended)
			}()
			began := time.Now()
			ticker := time.NewTicker(time.Second)
			defer ticker.Stop()
			for {
				select {
				case <-ended:
					t.Logf("cut off after %s", time.Since(began).Round(time.Second))
					return
				case <-ticker.C:
					_, _ = io.WriteString(conn, "x") // when it fails, the end is near
				}
				if time.Since(began) > 4*time.Minute {
					t.Fatal("still open")
				}
			}
		})
	}
}

// Thousands of connections that never speak cost bounded memory, and others are served meanwhile.
func TestSilentConnections(t *testing.T) {
	mesh := start(t, colorapp("mesh.yaml"))
	number := 1000
	if soak {
		number = 10_000
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur < uint64(number)+500 {
		t.Logf("only %d files may be open: fewer connections", limit.Cur)
		number = int(limit.Cur) - 500
	}
	url := "http://" + mesh.inbound(t, "colorgateway", 8080) + "/color"
	get(t, url)
	for _, workload := range []string{"colorteller", "colorgateway"} {
		port := map[string]int{"colorteller": 9080, "colorgateway": 8080}[workload]
		address := mesh.inbound(t, workload, port)
		pid := mesh.find(t, "proxy", workload+"-1")
		before := rss(t, pid)
		conns := make([]net.Conn, 0, number)
		for range number {
			conn, err := (&net.Dialer{Timeout: patience}).DialContext(t.Context(), "tcp", address)
			if err != nil {
				t.Fatalf("after %d connections: %v", len(conns), err)
			}
			conns = append(conns, conn)
		}
		if status, body := fetch(t, url); status != http.StatusOK || body != "yellow" {
			t.Errorf("beside %d silent connections: %d %q", number, status, body)
		}
		after := rss(t, pid)
		each := (after - before) / int64(number)
		t.Logf("%s: %d silent connections take %d KiB each (%d MiB -> %d MiB)", workload, number, each>>10, before>>20, after>>20)
		if each > 128<<10 {
			t.Errorf("%s: a connection that never spoke takes %d bytes", workload, each)
		}
		for _, conn := range conns {
			conn.Close()
		}
	}
	get(t, url)
	if pid := mesh.find(t, "server"); pid != 0 {
		silentAtServer(t, mesh, number, pid)
	}
}

// silentAtServer does the same to the control plane.
func silentAtServer(t *testing.T, mesh *running, number, pid int) {
	t.Helper()
	address := strings.TrimPrefix(mesh.Server.URL, "https://")
	before := rss(t, pid)
	var conns []net.Conn
	for range number {
		conn, err := (&net.Dialer{Timeout: patience}).DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	for _, row := range mesh.status(t) {
		if !row.Connected {
			t.Errorf("%s lost its server", row.Instance)
		}
	}
	mesh.admin(t, "status")
	t.Logf("server: %s for %d silent connections", fmt.Sprintf("%d MiB -> %d MiB", before>>20, rss(t, pid)>>20), number)
	for _, conn := range conns {
		conn.Close()
	}
}
