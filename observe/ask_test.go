package observe

import (
	"bytes"
	"io"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// scripted answers with fixed bytes and takes everything.
type scripted struct{ io.Reader }

func (scripted) Write(b []byte) (int, error) { return len(b), nil }

func frames(t testing.TB, write func(f *http2.Framer)) []byte {
	t.Helper()
	var out bytes.Buffer
	write(http2.NewFramer(&out, nil))
	return out.Bytes()
}

func block(fields ...string) []byte {
	var out bytes.Buffer
	encoder := hpack.NewEncoder(&out)
	for i := 0; i < len(fields); i += 2 {
		_ = encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return out.Bytes()
}

func TestReadHTTP2(t *testing.T) {
	headers := func(end bool, fields ...string) http2.HeadersFrameParam {
		return http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(fields...), EndHeaders: true, EndStream: end}
	}
	tests := []struct {
		name   string
		bytes  []byte
		want   string
		denied bool
		err    string
	}{
		{"403", frames(t, func(f *http2.Framer) { _ = f.WriteSettings(); _ = f.WriteHeaders(headers(true, ":status", "403")) }), "answered HTTP 403", true, ""},
		{"status 7", frames(t, func(f *http2.Framer) { _ = f.WriteHeaders(headers(true, ":status", "200", "grpc-status", "7")) }), "answered HTTP 200, grpc-status 7", true, ""},
		{"status in the trailer", frames(t, func(f *http2.Framer) {
			_ = f.WriteHeaders(headers(false, ":status", "200"))
			_ = f.WriteData(1, false, []byte("x"))
			_ = f.WriteHeaders(headers(true, "grpc-status", "12"))
		}), "answered HTTP 200, grpc-status 12", false, ""},
		{"data ends it", frames(t, func(f *http2.Framer) {
			_ = f.WriteHeaders(headers(false, ":status", "404"))
			_ = f.WriteData(1, true, nil)
		}), "answered HTTP 404", false, ""},
		{"closed within the answer", frames(t, func(f *http2.Framer) { _ = f.WriteHeaders(headers(false, ":status", "404")) }), "answered HTTP 404", false, ""},
		{"reset", frames(t, func(f *http2.Framer) { _ = f.WriteRSTStream(1, http2.ErrCodeRefusedStream) }), "", false, "HTTP/2 reset: REFUSED_STREAM"},
		{"GOAWAY", frames(t, func(f *http2.Framer) { _ = f.WriteGoAway(0, http2.ErrCodeNo, nil) }), "", false, "HTTP/2 GOAWAY: NO_ERROR"},
		{"a graceful GOAWAY, then the answer", frames(t, func(f *http2.Framer) {
			_ = f.WriteGoAway(1, http2.ErrCodeNo, nil)
			_ = f.WriteHeaders(headers(true, ":status", "200"))
		}), "answered HTTP 200", false, ""},
		{"closed after settings", frames(t, func(f *http2.Framer) { _ = f.WriteSettings() }), "", false, "EOF"},
		{"a TLS alert", []byte{21, 3, 1, 0, 2, 2, 10}, "", false, "a TLS alert"},
		{"HTTP/1.1", []byte("HTTP/1.1 400 Bad Request\r\n\r\n"), "answered bytes that are not HTTP/2", false, ""},
		{"settings for ever", frames(t, func(f *http2.Framer) {
			for range 2 * maxFrames {
				_ = f.WriteSettings()
			}
		}), "answered HTTP/2 frames without an end", false, ""},
	}
	for _, test := range tests {
		got, err := askHTTP2(scripted{bytes.NewReader(test.bytes)}, "a.test.internal", true)
		if err != nil {
			if err.Error() != test.err {
				t.Errorf("%s: error %v, want %q", test.name, err, test.err)
			}
			continue
		}
		if test.err != "" || got.String() != test.want || got.denied() != test.denied {
			t.Errorf("%s: %q denied %v, want %q %v (error %q)", test.name, got, got.denied(), test.want, test.denied, test.err)
		}
	}
}

// FuzzAnswers reads answers of every protocol from foreign bytes: it ends, and an answer of nothing is
// an error.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte("HTTP/1.1 403 Forbidden\r\n\r\n"))
	f.Add([]byte{21, 3, 1, 0, 2, 2, 10})
	f.Add(frames(f, func(f *http2.Framer) {
		_ = f.WriteSettings()
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(":status", "200", "grpc-status", "7"), EndHeaders: true, EndStream: true})
	}))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, ask := range []func() (answer, error){
			func() (answer, error) { return askHTTP1(scripted{bytes.NewReader(data)}, "a") },
			func() (answer, error) { return askHTTP2(scripted{bytes.NewReader(data)}, "a", false) },
			func() (answer, error) { return listen(bytes.NewReader(data)) },
		} {
			got, err := ask()
			if err == nil && (len(data) == 0 || got.status == 0 && got.unknown == "") {
				t.Fatalf("%q is read as the answer %+v", data, got)
			}
		}
	})
}
