package h1

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"countersign.dev/proxy/internal/message"
)

// soakTime is the time of processors that the long form takes.
const soakTime = 10 * time.Minute

// TestDifferential compares generated streams with net/http: some thousands of them, and with
// COUNTERSIGN_SOAK for soakTime. COUNTERSIGN_SOAK may be a duration instead.
func TestDifferential(t *testing.T) {
	soak := os.Getenv("COUNTERSIGN_SOAK")
	duration, err := time.ParseDuration(soak)
	if err != nil {
		duration = soakTime / time.Duration(runtime.GOMAXPROCS(0))
	}
	deadline := time.Now().Add(duration)
	var streams, accepted, responses atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		seed := rand.Uint64()
		g := generator{rand.New(rand.NewPCG(seed, 1))}
		wg.Go(func() {
			for i := 0; !t.Failed(); i++ {
				if soak == "" && i == 20_000 || soak != "" && i%1000 == 0 && time.Now().After(deadline) {
					return
				}
				var in []byte
				for range 1 + g.IntN(3) {
					in = g.request(in)
				}
				in = g.spoil(in)
				n, err := checkRequests(in)
				if err != nil {
					t.Errorf("%v\n%q", err, in)
				}
				streams.Add(1)
				accepted.Add(int64(n))
				in, method := g.spoil(g.response(nil)), g.pick("GET", "GET", "GET", "HEAD", "CONNECT")
				ok, err := checkResponse(in, method)
				if err != nil {
					t.Errorf("response to %s: %v\n%q", method, err, in)
				}
				if ok {
					responses.Add(1)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d streams; accepted and compared: %d requests, %d responses", streams.Load(), accepted.Load(), responses.Load())
	if accepted.Load() < streams.Load()/10 || responses.Load() < streams.Load()/10 {
		t.Error("too little of what is generated is accepted: the comparison says nothing")
	}
}

// FuzzRequest compares streams of requests with net/http, see [checkRequests].
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{
		"GET /a?b HTTP/1.1\nHost: a\nX-A: b\n\n",
		"POST / HTTP/1.1\nHost: a\nContent-Length: 3\n\nabcGET / HTTP/1.1\nHost: b\n\n",
		"POST http://a/ HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n3;x\nabc\n0\nX-T: v\n\n\nGET / HTTP/1.1\nHost:\n\n",
		"GET / HTTP/1.0\nConnection: keep-alive\n\n",
		"CONNECT a:1 HTTP/1.1\nHost: a:1\n\n",
		"OPTIONS * HTTP/1.1\nHost: a\nConnection: x, upgrade\nX: y\nUpgrade: z\n\n",
		"PUT / HTTP/1.1\nHost: a\nExpect: 100-continue\nTE: trailers\nTransfer-Encoding: chunked\nTrailer: x, y\n\n0\nx: 1\ny: 2\n\n",
	} {
		f.Add([]byte(crlfed(seed)))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if _, err := checkRequests(in); err != nil {
			t.Fatalf("%v\n%q", err, in)
		}
	})
}

// FuzzResponse compares a response with net/http.
func FuzzResponse(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\nContent-Length: 3\n\nabc", "HTTP/1.0 200\n\nabc", "HTTP/1.1 204 No Content\n\n", "HTTP/1.1 103 Early Hints\nLink: a\n\n",
		"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nTrailer: x\n\n3\nabc\n0\nx: y\n\n", "HTTP/1.1 101 X\nConnection: upgrade\nUpgrade: websocket\n\n",
	} {
		f.Add([]byte(crlfed(seed)), byte(0))
	}
	f.Fuzz(func(t *testing.T, in []byte, method byte) {
		if _, err := checkResponse(in, []string{"GET", "HEAD", "CONNECT"}[method%3]); err != nil {
			t.Fatalf("%v\n%q", err, in)
		}
	})
}

// FuzzChunked reads a chunked body at once and byte by byte: the same content, end and trailers, or a
// refusal of both; and what is written of it is read as the same.
func FuzzChunked(f *testing.F) {
	for _, seed := range []string{"3\nabc\n0\n\n", "0\nX-A: b\n\n", "00a;x=y\n0123456789\n0;z\nA: b\nC: d\n\nrest", "1\na\n"} {
		f.Add([]byte(crlfed(seed)))
	}
	head := &message.Head{Body: true, Chunked: true, ContentLength: message.Unknown}
	f.Fuzz(func(t *testing.T, in []byte) {
		var results []string
		for _, piece := range []int{1 << 20, 1, 3} {
			b := NewBody(head, true, &message.Interner{})
			content, used, err := readAll(&b, in, piece)
			if err != nil {
				used = 0 // where it was noticed may differ
			}
			results = append(results, fmt.Sprintf("%q %d %t %t %q", content, used, b.Done(), err != nil, b.Trailers()))
			if piece != 1<<20 || !b.Done() {
				continue
			}
			r := reading{head: *head, content: content, trailer: b.Trailers()}
			wire := r.write(nil)
			wire = wire[bytes.Index(wire, []byte("\r\n\r\n"))+4:]
			again := NewBody(head, true, &message.Interner{})
			got, used, err := readAll(&again, wire, 7)
			if err != nil || used != len(wire) || !bytes.Equal(got, content) || !slices.Equal(again.Trailers(), b.Trailers()) {
				t.Fatalf("written as %q, read as %q %q, %v", wire, got, again.Trailers(), err)
			}
		}
		if results[0] != results[1] || results[0] != results[2] {
			t.Fatalf("pieces differ: %q", results)
		}
	})
}
