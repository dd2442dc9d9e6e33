package relay

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// rawApplication speaks HTTP/2 frame by frame: answer sends what is asked for by the path.
func rawApplication(t *testing.T, answer func(fr *http2.Framer, id uint32, path string, head func(end bool, fields ...string))) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go serveRaw(c, answer)
		}
	}()
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

func serveRaw(c net.Conn, answer func(fr *http2.Framer, id uint32, path string, head func(end bool, fields ...string))) {
	defer c.Close()
	if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	fr := http2.NewFramer(c, bufio.NewReader(c))
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = fr.WriteSettings()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = fr.WriteSettingsAck()
			}
		case *http2.MetaHeadersFrame:
			answer(fr, f.StreamID, f.PseudoValue("path"), func(end bool, fields ...string) {
				block.Reset()
				for i := 0; i < len(fields); i += 2 {
					_ = enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
				}
				_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: f.StreamID, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: end})
			})
		}
	}
}

// TestOddAnswers asks an HTTP/2 application that answers oddly, over one HTTP/1.1 connection: each answer is
// right or an error, and the next one begins where it should.
func TestOddAnswers(t *testing.T) {
	app := rawApplication(t, func(fr *http2.Framer, id uint32, path string, head func(bool, ...string)) {
		const fake = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfake"
		switch path {
		case "/late-end":
			head(false, ":status", "200")
			_ = fr.WriteData(id, true, nil)
		case "/late-trailers":
			head(false, ":status", "200", "trailer", "x-t")
			head(true, "x-t", "v")
		case "/204-length":
			head(true, ":status", "204", "content-length", "0")
		case "/204-late-end":
			head(false, ":status", "204")
			_ = fr.WriteData(id, true, nil)
		case "/304-length":
			head(true, ":status", "304", "content-length", strconv.Itoa(len(fake)))
		case "/204-content", "/304-content":
			head(false, ":status", path[1:4])
			_ = fr.WriteData(id, true, []byte(fake))
		case "/103-length":
			head(false, ":status", "103", "content-length", "44")
			head(false, ":status", "200", "content-length", "2")
			_ = fr.WriteData(id, true, []byte("ok"))
		case "/early":
			_ = fr.WriteData(id, false, []byte(fake))
			head(true, ":status", "200")
		case "/one-more":
			head(false, ":status", "200", "content-length", "1")
			_ = fr.WriteData(id, true, []byte("ab"))
		default:
			head(false, ":status", "200", "content-length", "2")
			_ = fr.WriteData(id, true, []byte("ok"))
		}
	})
	for _, protos := range [][]string{{"h2"}, {"http/1.1"}} {
		c := newChain(t, app, chainOptions{protos: protos, appHTTP2: true})
		for _, q := range []struct {
			method, path string
			statuses     []int // 0: the connection may end in the middle
		}{
			{"HEAD", "/late-end", []int{200}},
			{"HEAD", "/late-trailers", []int{200}},
			{"GET", "/late-end", []int{200}},
			{"GET", "/late-trailers", []int{200}},
			{"GET", "/204-length", []int{204}},
			{"GET", "/204-late-end", []int{204}},
			{"GET", "/304-length", []int{304}},
			{"GET", "/204-content", []int{204, 502, 0}},
			{"HEAD", "/204-content", []int{204, 502, 0}},
			{"GET", "/304-content", []int{304, 502, 0}},
			{"HEAD", "/304-content", []int{304, 502, 0}},
			{"GET", "/103-length", []int{200}},
			{"GET", "/early", []int{502}},
			{"GET", "/one-more", []int{200, 502}},
		} {
			t.Run(protos[0]+" "+q.method+q.path, func(t *testing.T) { askTwice(t, c.addr, q.method, q.path, q.statuses) })
		}
	}
}

// askTwice sends a request, and one more when its answer is whole: whoever reads what comes back meets these
// two answers and nothing else.
func askTwice(t *testing.T, addr netip.AddrPort, method, path string, statuses []int) {
	t.Helper()
	conn, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	in := bufio.NewReader(conn)
	for i, m := range []string{method, "GET"} {
		if i == 1 {
			path, statuses = "/plain", []int{200}
		}
		if _, err := io.WriteString(conn, m+" "+path+" HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\n\r\n"); err != nil {
			return // it was closed after an error
		}
		resp := final(t, in, m)
		if resp == nil {
			if i == 0 && !slices.Contains(statuses, 0) {
				t.Errorf("no answer")
			}
			return
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if bytes.Contains(body, []byte("fake")) {
			t.Errorf("%s: %d with content that nobody may see: %q", path, resp.StatusCode, body)
		}
		if !slices.Contains(statuses, resp.StatusCode) {
			t.Errorf("%s: status %d, want one of %v", path, resp.StatusCode, statuses)
		}
		if err != nil || resp.Close {
			return
		}
		if i == 1 && string(body) != "ok" {
			t.Errorf("the next answer is %q", body)
		}
	}
}

// final reads a response, after any 1xx.
func final(t *testing.T, in *bufio.Reader, method string) *http.Response {
	t.Helper()
	for {
		resp, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			if _, atEnd := in.Peek(1); atEnd == nil {
				t.Errorf("what came is no response: %v", err)
			}
			return nil
		}
		if resp.StatusCode >= 200 {
			return resp
		}
	}
}
