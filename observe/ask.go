package observe

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Bounds on what a peer may make the observer read.
const (
	maxLine   = 8 << 10
	maxFrames = 64
	maxFrame  = 64 << 10
	maxHeader = 64 << 10
)

// answer is what an application, or the proxy before it, said.
type answer struct {
	status  int // of HTTP; 0 when the answer was something else
	grpc    int // grpc-status; -1 when there was none
	unknown string
}

// denied tells whether the answer is the refusal of an identity that is known but not allowed.
func (a answer) denied() bool {
	return a.status == 403 || a.grpc == 7 // PERMISSION_DENIED
}

// String is the answer for people.
func (a answer) String() string {
	switch {
	case a.status != 0 && a.grpc >= 0:
		return fmt.Sprintf("answered HTTP %d, grpc-status %d", a.status, a.grpc)
	case a.status != 0:
		return fmt.Sprintf("answered HTTP %d", a.status)
	default:
		return "answered " + a.unknown
	}
}

// resetError is a refusal in the words of HTTP/2.
type resetError struct {
	text string
	// leaving: the server takes no streams on this connection, which says nothing of the client.
	leaving bool
}

func (e resetError) Error() string { return e.text }

// errAlertRecord says that a plaintext client was answered with a TLS alert.
var errAlertRecord = errors.New("a TLS alert")

// askHTTP1 sends a request in HTTP/1.1 and reads the first line of the answer.
func askHTTP1(conn io.ReadWriter, host string) (answer, error) {
	request := "HEAD " + ProbePath + " HTTP/1.1\r\nHost: " + host + "\r\nUser-Agent: countersign-verify\r\nConnection: close\r\n\r\n"
	if _, err := io.WriteString(conn, request); err != nil {
		// The refusal may have come before the request: what the peer said last is still to be read.
		if _, readErr := listen(conn); readErr != nil {
			return answer{}, readErr
		}
		return answer{}, err
	}
	line, err := bufio.NewReader(io.LimitReader(conn, maxLine)).ReadSlice('\n')
	if len(line) == 0 {
		return answer{}, err
	}
	if isAlert(line) {
		return answer{}, errAlertRecord
	}
	return readStatusLine(line), nil
}

// readStatusLine reads "HTTP/1.1 403 Forbidden".
func readStatusLine(line []byte) answer {
	fields := strings.Fields(string(line))
	if len(fields) >= 2 && strings.HasPrefix(fields[0], "HTTP/") {
		if status, err := strconv.Atoi(fields[1]); err == nil && status >= 100 && status <= 999 {
			return answer{status: status, grpc: -1}
		}
	}
	return answer{grpc: -1, unknown: fmt.Sprintf("%d bytes that are not HTTP", len(line))}
}

// listen reads the first bytes that come of themselves, without saying a word.
func listen(conn io.Reader) (answer, error) {
	var buf [512]byte
	n, err := conn.Read(buf[:])
	if n == 0 {
		if err == nil {
			err = io.ErrNoProgress
		}
		return answer{}, err
	}
	if isAlert(buf[:n]) {
		return answer{}, errAlertRecord
	}
	return answer{grpc: -1, unknown: fmt.Sprintf("%d bytes", n)}, nil
}

// isAlert tells whether bytes are a record of TLS with an alert in it (RFC 8446 section 5.1).
func isAlert(b []byte) bool {
	return len(b) >= 7 && b[0] == 21 && b[1] == 3 && b[3] == 0 && b[4] == 2
}

// askHTTP2 sends one request over HTTP/2 with prior knowledge (RFC 9113 section 3.3) and reads frames
// until the stream has ended one way or the other.
func askHTTP2(conn io.ReadWriter, host string, grpc bool) (answer, error) {
	var out bytes.Buffer
	out.WriteString(http2.ClientPreface)
	in := bufio.NewReader(conn)
	framer := http2.NewFramer(&out, in)
	framer.SetMaxReadFrameSize(maxFrame)
	framer.MaxHeaderListSize = maxHeader
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := framer.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0}); err != nil {
		return answer{}, err
	}
	if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: requestHeader(host, grpc), EndStream: true, EndHeaders: true}); err != nil {
		return answer{}, err
	}
	if _, err := conn.Write(out.Bytes()); err != nil {
		if _, readErr := listen(conn); readErr != nil {
			return answer{}, readErr
		}
		return answer{}, err
	}
	// A frame has at least nine bytes, an alert seven.
	if first, _ := in.Peek(7); isAlert(first) {
		return answer{}, errAlertRecord
	}
	return readHTTP2(framer, conn, &out)
}

// requestHeader is the header block of the request: of a gRPC call that ends before its message, which
// no method can carry out, or a HEAD.
func requestHeader(host string, grpc bool) []byte {
	fields := []hpack.HeaderField{{Name: ":method", Value: "HEAD"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: host}, {Name: ":path", Value: ProbePath}}
	if grpc {
		fields[0].Value, fields[3].Value = "POST", "/countersign.Verify/Nothing"
		fields = append(fields, hpack.HeaderField{Name: "content-type", Value: "application/grpc"}, hpack.HeaderField{Name: "te", Value: "trailers"})
	}
	fields = append(fields, hpack.HeaderField{Name: "user-agent", Value: "countersign-verify"})
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, f := range fields {
		_ = encoder.WriteField(f) // a bytes.Buffer does not fail
	}
	return block.Bytes()
}

// readHTTP2 reads frames up to the end of stream 1. Frames of the connection (SETTINGS, PING) are no
// answer: a proxy sends them before it knows what is asked.
func readHTTP2(framer *http2.Framer, conn io.Writer, out *bytes.Buffer) (answer, error) {
	got := answer{grpc: -1}
	for range maxFrames {
		frame, err := framer.ReadFrame()
		if err != nil {
			if got.status != 0 {
				return got, nil
			}
			return frameError(err)
		}
		switch f := frame.(type) {
		case *http2.SettingsFrame:
			if f.IsAck() {
				continue
			}
			out.Reset()
			if err := framer.WriteSettingsAck(); err == nil {
				_, _ = conn.Write(out.Bytes()) // when it fails, the next read says why
			}
		case *http2.MetaHeadersFrame:
			got.read(f)
			if f.StreamEnded() {
				return got, nil
			}
		case *http2.DataFrame:
			if got.status == 0 {
				got.unknown = "data without a header"
			}
			if f.StreamEnded() || got.status == 0 {
				return got, nil
			}
		case *http2.RSTStreamFrame:
			if got.status != 0 {
				return got, nil
			}
			return answer{}, resetError{text: "HTTP/2 reset: " + f.ErrCode.String()}
		case *http2.GoAwayFrame:
			if got.status == 0 && (f.LastStreamID == 0 || f.ErrCode != http2.ErrCodeNo) {
				return answer{}, resetError{text: "HTTP/2 GOAWAY: " + f.ErrCode.String(), leaving: f.ErrCode == http2.ErrCodeNo}
			}
		}
	}
	if got.status == 0 {
		got.unknown = "HTTP/2 frames without an end"
	}
	return got, nil
}

// frameError tells a closed connection from bytes that are not HTTP/2, which are an answer.
func frameError(err error) (answer, error) {
	var connection http2.ConnectionError
	var stream http2.StreamError
	switch {
	case errors.As(err, &connection), errors.As(err, &stream), errors.Is(err, http2.ErrFrameTooLarge):
		return answer{grpc: -1, unknown: "bytes that are not HTTP/2"}, nil
	default:
		return answer{}, err
	}
}

// read takes status and grpc-status out of a header or trailer.
func (a *answer) read(f *http2.MetaHeadersFrame) {
	for _, field := range f.Fields {
		switch field.Name {
		case ":status":
			if n, err := strconv.Atoi(field.Value); err == nil && n >= 100 && n <= 999 {
				a.status = n
			}
		case "grpc-status":
			if n, err := strconv.Atoi(field.Value); err == nil && n >= 0 {
				a.grpc = n
			}
		}
	}
	if a.status == 0 {
		a.unknown = "HTTP/2 headers without a status"
	}
}
