package sniff

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

func TestClassify(t *testing.T) {
	tests := []struct {
		prefix string
		want   Verdict
	}{
		{"", More},
		{"\x16", More},
		{"\x16\x03", More},
		{"\x16\x03\x01", TLS},
		{"\x16\x03\x03", TLS},
		{"\x16\x03\x01\x00\xff\x01", TLS},
		{"G", Plaintext},
		{"GET / HTTP/1.1\r\n", Plaintext},
		{"PRI * HTTP/2.0\r\n", Plaintext},
		{"\x16\x02", Plaintext},
		{"\x16G", Plaintext},
		{"\x16\x03\x7f", Plaintext},
		{"\x15\x03\x01", Plaintext},
		{"\x00", Plaintext},
		{"\x80\x2e\x01", Plaintext}, // SSL 2
	}
	for _, tt := range tests {
		if got := Classify([]byte(tt.prefix)); got != tt.want {
			t.Errorf("%q: verdict %d, want %d", tt.prefix, got, tt.want)
		}
	}
}

// TestRealClientHello checks the records that crypto/tls sends.
func TestRealClientHello(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS12, tls.VersionTLS13} {
		client, server := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = tls.Client(client, &tls.Config{ServerName: "a", MinVersion: version, MaxVersion: version}).Handshake()
		}()
		verdict, c, err := Conn(server)
		if verdict != TLS || err != nil {
			t.Errorf("%x: verdict %d, %v", version, verdict, err)
		}
		record := make([]byte, 6)
		if _, err := io.ReadFull(c, record); err != nil || record[0] != 0x16 || record[5] != 1 {
			t.Errorf("%x: the connection reads %x, %v", version, record, err)
		}
		server.Close()
		<-done
		client.Close()
	}
}

func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer client.Close()
		defer server.Close()
		server.SetReadDeadline(time.Now().Add(3 * time.Second))
		verdict, c, err := Conn(server)
		if verdict != More || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("verdict %d, %v", verdict, err)
		}
		server.SetReadDeadline(time.Time{})
		go func() { _, _ = client.Write([]byte("x")) }()
		if n, err := c.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Errorf("the connection is not usable: %d, %v", n, err)
		}
	})
}

func TestEnd(t *testing.T) {
	client, server := net.Pipe()
	client.Close()
	if verdict, _, err := Conn(server); verdict != More || !errors.Is(err, io.EOF) {
		t.Errorf("verdict %d, %v", verdict, err)
	}
	client, server = net.Pipe()
	go func() {
		_, _ = client.Write([]byte{0x16})
		client.Close()
	}()
	verdict, c, err := Conn(server)
	if verdict != Plaintext || err != nil {
		t.Fatalf("verdict %d, %v", verdict, err)
	}
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, []byte{0x16}) {
		t.Errorf("the connection reads %x, %v", got, err)
	}
}

// pieces is a connection that gives its bytes in pieces.
type pieces struct {
	net.Conn // nil: nothing else is called
	rest     []byte
	size     int
	taken    int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.rest[:min(p.size, len(p.rest))])
	p.rest = p.rest[n:]
	p.taken += n
	return n, nil
}

// FuzzConn checks that no byte is lost or made up, however they arrive, and that the verdict depends
// on nothing else than the bytes.
func FuzzConn(f *testing.F) {
	f.Add([]byte("\x16\x03\x01\x00\x05"), 1)
	f.Add([]byte("GET /"), 2)
	f.Add([]byte("\x16"), 1)
	f.Add([]byte{}, 1)
	f.Fuzz(func(t *testing.T, stream []byte, size int) {
		source := &pieces{rest: bytes.Clone(stream), size: max(1, size&7)}
		verdict, c, err := Conn(source)
		if source.taken > Bytes {
			t.Errorf("%d bytes were taken", source.taken)
		}
		if len(stream) == 0 {
			if !errors.Is(err, io.EOF) {
				t.Errorf("error %v", err)
			}
			return
		}
		want := Classify(stream)
		if want == More {
			want = Plaintext
		}
		if err != nil || verdict != want {
			t.Fatalf("%x: verdict %d, %v; want %d", stream, verdict, err, want)
		}
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, stream) {
			t.Errorf("%x becomes %x, %v", stream, got, err)
		}
		isTLS := len(stream) >= 3 && stream[0] == 0x16 && stream[1] == 3 && stream[2] <= 0x0f
		if isTLS != (verdict == TLS) {
			t.Errorf("%x: verdict %d", stream, verdict)
		}
	})
}
