package integration

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// trickle sends bytes one by one, and tells when the other end has closed; false when it had not after
// all bytes were sent and a long wait.
func trickle(conn net.Conn, text string, every time.Duration) bool {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * patience))
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, conn) // an answer, perhaps, and the end
		ended <- err
	}()
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case err := <-ended:
			return !errors.Is(err, os.ErrDeadlineExceeded)
		case <-ticker.C:
			if len(text) > 0 {
				_, _ = io.WriteString(conn, text[:1]) // when it fails, the end is near
				text = text[1:]
			}
		}
	}
}

// clientHello is the first message of a TLS client.
func clientHello(t *testing.T) string {
	t.Helper()
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	go func() { _ = tls.Client(ours, &tls.Config{InsecureSkipVerify: true}).Handshake() }()
	first := make([]byte, 16<<10)
	n, err := theirs.Read(first)
	if err != nil {
		t.Fatal(err)
	}
	return string(first[:n])
}

// Whoever trickles a handshake or a head is cut off, at every kind of listener and in both versions of
// HTTP, and others are served meanwhile.
func TestSlowloris(t *testing.T) {
	t.Parallel() // it takes as long as the sidecars wait
	mesh := wire(t)
	hello := clientHello(t)
	head := "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X-More: y\r\n", 10_000)
	preface := http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\x00\x40\x00\x01\x04\x00\x00\x00\x01" // HEADERS of 16 KiB that never come
	var slow sync.WaitGroup
	begin := func(d door, what, at, text string) {
		for range 20 {
			slow.Go(func() {
				conn, err := d.dial()
				if err != nil {
					t.Errorf("%s: %v", d.name, err)
					return
				}
				if _, err := io.WriteString(conn, at); err != nil {
					t.Errorf("%s: %v", d.name, err)
				}
				if !trickle(conn, text, 200*time.Millisecond) {
					t.Errorf("%s: %s is still open", d.name, what)
				}
			})
		}
	}
	for _, d := range []door{
		{"members", mesh.inbound(t, "bytes", 9080), ""},
		{"without client certificates", mesh.inbound(t, "bytes", 9083), ""},
		{"gateway with a certificate", mesh.inbound(t, "edge", 8081), ""},
	} {
		begin(d, "a handshake", "", hello)
	}
	for _, d := range wireDoors(t, mesh) {
		begin(d, "a head", "GET / HT", head)
	}
	begin(door{"gateway", mesh.inbound(t, "edge", 8082), ""}, "an HTTP/2 head", preface, strings.Repeat("\x00", 10_000))
	begin(door{"gateway with a certificate", mesh.inbound(t, "edge", 8083), "h2"}, "an HTTP/2 head", preface, strings.Repeat("\x00", 10_000))
	done := make(chan struct{})
	go func() {
		slow.Wait()
		close(done)
	}()
	served := 0
	for open := true; open; {
		for _, d := range wireDoors(t, mesh) {
			c, url := d.client()
			if got := get2(t, c, url+"/marker"); got != "GET /marker 0\n" {
				t.Errorf("%s, beside slow clients: %q", d.name, got)
			}
			c.CloseIdleConnections()
			served++
		}
		select {
		case <-done:
			open = false
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Logf("%d requests were served meanwhile", served)
}

// get2 fetches a page with a client.
func get2(t *testing.T, c *http.Client, url string) string {
	t.Helper()
	response, err := c.Get(url)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("%s: %s (%v)", url, response.Status, err)
	}
	return string(body)
}

// Bodies that trickle in cost no memory to speak of and nobody else anything, and who comes to an end
// is served: slow is not wrong. One that stops is cut off in the long form.
func TestSlowBodies(t *testing.T) {
	mesh := wire(t)
	address := mesh.outbound(t, "caller", "web", 9280)
	const text = "twenty-five bytes of body"
	conns := make([]*net.TCPConn, 100)
	for i := range conns {
		conns[i] = dialTCP(t, address)
		// Half of them say how much it will be.
		head := fmt.Sprintf("Content-Length: %d\r\n\r\n", len(text))
		if i%2 == 1 {
			head = fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n", len(text))
		}
		if _, err := io.WriteString(conns[i], "POST /sum HTTP/1.1\r\nHost: x\r\n"+head); err != nil {
			t.Fatal(err)
		}
	}
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for _, b := range []byte(text) {
		for _, conn := range conns {
			if _, err := conn.Write([]byte{b}); err != nil {
				t.Fatal(err)
			}
		}
		get(t, "http://"+address+"/bytes/1000")
		<-ticker.C // a byte at a time
	}
	for i, conn := range conns {
		if i%2 == 1 {
			if _, err := io.WriteString(conn, "\r\n0\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
		}
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if want := fmt.Sprintf("%s %d\n", checksum([]byte(text)), len(text)); string(body) != want || err != nil {
			t.Errorf("a slow body is answered with %q (%v), want %q", body, err, want)
		}
	}
	if !soak {
		return
	}
	conn := dialTCP(t, address)
	conn.SetDeadline(time.Now().Add(10 * time.Minute))
	if _, err := io.WriteString(conn, "POST /sum HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a body that has stopped is still waited for")
	}
	t.Logf("a body that stopped was given up after %s", time.Since(began).Round(time.Second))
}
