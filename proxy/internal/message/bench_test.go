package message

import "testing"

// Run with: go test -bench . -run '^$' ./proxy/internal/message

func BenchmarkName(b *testing.B) {
	var in Interner
	name := []byte("X-Request-Id")
	b.ReportAllocs()
	for b.Loop() {
		if in.Name(name) != "x-request-id" {
			b.Fatal("another name")
		}
	}
}

func BenchmarkHead(b *testing.B) {
	var h Head
	b.ReportAllocs()
	for b.Loop() {
		h.Reset()
		for range 8 {
			h.Add("x-request-id", "0123456789abcdef")
		}
		if _, ok := h.Get("x-missing"); ok {
			b.Fatal("a field that nobody added")
		}
		h.Remove(HopByHop)
	}
}
