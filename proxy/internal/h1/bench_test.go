package h1

import (
	"bytes"
	"testing"

	"countersign.dev/proxy/internal/message"
)

// Run with: go test -bench . -run '^$' ./proxy/internal/h1

func BenchmarkResponse(b *testing.B) {
	in := []byte(crlfed("HTTP/1.1 200 OK\nServer: bench/1.0\nDate: Sun, 06 Nov 1994 08:49:37 GMT\nContent-Type: text/plain\nContent-Length: 128\nX-Request-Id: 0123456789abcdef\n\n"))
	r := newReader()
	var h message.Head
	var out []byte
	b.ReportAllocs()
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		if n, err := r.Response(in, &h, "GET"); n == 0 || err != nil {
			b.Fatal(n, err)
		}
		out = AppendResponse(out[:0], &h)
	}
}

func BenchmarkChunked(b *testing.B) {
	var in []byte
	for range 16 {
		in = append(append(AppendChunkSize(in, 4096), bytes.Repeat([]byte("a"), 4096)...), "\r\n"...)
	}
	in = AppendLastChunk(in, nil)
	head := &message.Head{Body: true, Chunked: true, ContentLength: message.Unknown}
	b.ReportAllocs()
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		body := NewBody(head, true, nil)
		for p := in; len(p) > 0; {
			_, n, err := body.Next(p)
			if err != nil {
				b.Fatal(err)
			}
			p = p[n:]
		}
		if !body.Done() {
			b.Fatal("the body is not whole")
		}
	}
}
