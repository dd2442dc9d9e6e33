package integration

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"testing"
)

// stoppedReaders is how many readers of a large answer stop at once, and largeAnswer how large it is.
const (
	stoppedReaders = 200
	largeAnswer    = 10 << 20
	mayGrow        = 256 << 20 // however many they are
)

// Readers that stop hold what is on its way to them and no more, over HTTP/1.1 and over streams of few
// HTTP/2 connections; others are served meanwhile, and when they read on they get every byte.
func TestStoppedReaders(t *testing.T) {
	mesh := wire(t)
	for _, test := range []struct {
		name string
		open func(t *testing.T, mesh *wired) []io.ReadCloser
	}{{"HTTP 1.1", stopHTTP1}, {"HTTP 2", stopHTTP2}} {
		t.Run(test.name, func(t *testing.T) {
			pids := map[string]int{}
			before := map[string]int64{}
			for _, instance := range []string{"caller-1", "edge-1", "web-1"} {
				pids[instance] = mesh.find(t, "proxy", instance)
				before[instance] = rss(t, pids[instance])
			}
			readers := test.open(t, mesh)
			// What can be on its way is when nothing moves any more.
			last := ""
			await(t, "the memory of the sidecars comes to rest", func() (bool, string) {
				now := ""
				for instance, pid := range pids {
					now += fmt.Sprintf("%s %d ", instance, rss(t, pid)>>20)
				}
				still := len(now) == len(last) && now == last
				last = now
				for _, address := range []string{mesh.outbound(t, "caller", "web", 9280), mesh.inbound(t, "edge", 8280)} {
					if got := get(t, "http://"+address+"/bytes/200000"); len(got) != 200_000 {
						t.Errorf("beside readers that have stopped come %d bytes", len(got))
					}
				}
				return still, now
			})
			for instance, pid := range pids {
				grown := rss(t, pid) - before[instance]
				t.Logf("%s has grown by %d MiB", instance, grown>>20)
				if grown > mayGrow {
					t.Errorf("%s has grown by %d MiB for %d readers that have stopped", instance, grown>>20, stoppedReaders)
				}
			}
			want := checksum(pattern(largeAnswer))
			for i, reader := range readers {
				if i%20 == 0 { // some go on
					if body, err := io.ReadAll(reader); err != nil || checksum(body) != want {
						t.Errorf("who reads on gets %d bytes (%v)", len(body), err)
					}
				}
				reader.Close()
			}
		})
	}
}

// stopHTTP1 asks on connections of their own, and reads the heads of the answers only.
func stopHTTP1(t *testing.T, mesh *wired) []io.ReadCloser {
	t.Helper()
	var readers []io.ReadCloser
	for range stoppedReaders {
		conn := dialTCP(t, mesh.outbound(t, "caller", "web", 9280))
		_ = conn.SetReadBuffer(64 << 10)
		if _, err := fmt.Fprintf(conn, "GET /bytes/%d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", largeAnswer); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(bufio.NewReaderSize(conn, 512), nil) //nolint:bodyclose // the caller closes it
		if err != nil || response.StatusCode != http.StatusOK {
			t.Fatalf("%v %v", response, err)
		}
		readers = append(readers, struct {
			io.Reader
			io.Closer
		}{response.Body, conn})
	}
	return readers
}

// stopHTTP2 does so on streams of the gateway.
func stopHTTP2(t *testing.T, mesh *wired) []io.ReadCloser {
	t.Helper()
	var readers []io.ReadCloser
	for range 4 {
		transport := &http.Transport{Protocols: new(http.Protocols), HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10, MaxReceiveBufferPerConnection: 8 << 20}}
		transport.Protocols.SetUnencryptedHTTP2(true)
		t.Cleanup(transport.CloseIdleConnections)
		for range stoppedReaders / 4 {
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			t.Cleanup(cancel)
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/bytes/%d", mesh.inbound(t, "edge", 8282), largeAnswer), nil)
			if err != nil {
				t.Fatal(err)
			}
			response, err := transport.RoundTrip(request) //nolint:bodyclose // the caller closes it
			if err != nil || response.StatusCode != http.StatusOK {
				t.Fatalf("%v %v", response, err)
			}
			readers = append(readers, response.Body)
		}
	}
	return readers
}
