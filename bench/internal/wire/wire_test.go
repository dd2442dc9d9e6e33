package wire

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// segment makes an IPv4 packet with a TCP segment.
func segment(from, to uint16, sequence uint32, syn bool, data string) []byte {
	ip := make([]byte, 40, 40+len(data))
	ip[0], ip[9] = 0x45, 6
	binary.BigEndian.PutUint16(ip[2:], uint16(40+len(data)))
	tcp := ip[20:]
	binary.BigEndian.PutUint16(tcp, from)
	binary.BigEndian.PutUint16(tcp[2:], to)
	binary.BigEndian.PutUint32(tcp[4:], sequence)
	tcp[12] = 5 << 4
	if syn {
		tcp[13] = 2
	}
	return append(ip, data...)
}

func gather(t *testing.T, packets ...[]byte) []Flow {
	t.Helper()
	all := make(flows)
	for _, ip := range packets {
		p, err := parse(ip)
		if err != nil {
			t.Fatal(err)
		}
		all.add(p)
	}
	return all.sorted()
}

func TestFlows(t *testing.T) {
	got := gather(t,
		segment(1, 2, 99, true, ""),
		segment(1, 2, 100, false, "abc"),
		segment(1, 2, 100, false, "abc"), // sent again
		segment(1, 2, 103, false, "de"),
		segment(1, 2, 110, false, "later"), // after a gap
		segment(1, 2, 105, false, "too late"),
		segment(3, 2, 1<<32-2, false, "in the middle"), // and around the end of the numbers
		segment(3, 2, 11, false, "!"),
		segment(4, 2, 7, false, ""),
	)
	var seen []string
	for _, f := range got {
		seen = append(seen, strconv.Itoa(int(f.From))+strconv.FormatBool(f.Began)+string(f.Data))
	}
	if diff := cmp.Diff([]string{"1trueabcde", "3falsein the middle!"}, seen); diff != "" {
		t.Error(diff)
	}
}

func TestParseRefuses(t *testing.T) {
	good := segment(1, 2, 3, false, "x")
	udp := append([]byte(nil), good...)
	udp[9] = 17
	six := append([]byte(nil), good...)
	six[0] = 0x65
	offset := append([]byte(nil), good...)
	offset[32] = 0xf0
	for name, ip := range map[string][]byte{"nothing": nil, "short": good[:30], "UDP": udp, "IPv6": six, "a header beyond the end": offset} {
		if p, err := parse(ip); err == nil {
			t.Errorf("%s is read as %+v", name, p)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(segment(1, 2, 3, true, "data"))
	f.Fuzz(func(_ *testing.T, ip []byte) {
		if p, err := parse(ip); err == nil {
			all := make(flows)
			all.add(p)
			for _, flow := range all.sorted() {
				_ = flow.Encrypted([]byte("secret"))
			}
		}
	})
}

func TestEncrypted(t *testing.T) {
	record := func(kind byte, text string) string {
		return string([]byte{kind, 3, 3, 0, byte(len(text))}) + text
	}
	for name, test := range map[string]struct {
		began bool
		data  string
		want  string // of the error; "" for none
	}{
		"from the beginning":     {true, record(22, "hello") + record(23, "ciphertext"), ""},
		"from the middle":        {false, record(23, "ciphertext"), ""},
		"the end of it not seen": {true, record(22, "hello")[:7], ""},
		"plaintext":              {true, "GET / HTTP/1.1\r\n", "no TLS record"},
		"plaintext afterwards":   {true, record(22, "hello") + "GET / HTTP/1.1\r\n", "no TLS record"},
		"no handshake":           {true, record(23, "ciphertext"), "not a handshake"},
		"readable":               {false, record(23, "a secret in a record"), "readable"},
		"too long":               {false, "\x17\x03\x03\xff\xff", "no TLS record"},
	} {
		err := Flow{Began: test.began, Data: []byte(test.data)}.Encrypted([]byte("secret"))
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

func TestJudge(t *testing.T) {
	data := []byte("\x16\x03\x03\x00\x01x")
	both := []Flow{{From: 9, To: 5, Began: true, Data: data}, {From: 5, To: 9, Began: true, Data: data}}
	if err := Judge(both, 5, []byte("secret")); err != nil {
		t.Error(err)
	}
	if err := Judge(both[:1], 5, []byte("secret")); err == nil {
		t.Error("one direction is enough")
	}
	if err := Judge(both, 6, []byte("secret")); err == nil {
		t.Error("another port is good enough")
	}
	both[1].Data = []byte("HTTP/1.1 200 OK")
	if err := Judge(both, 5, []byte("secret")); err == nil {
		t.Error("plaintext is good enough")
	}
}

// What is captured of a real TLS connection is judged well, and of a plaintext one not.
func TestCapture(t *testing.T) {
	for name, encrypted := range map[string]bool{"TLS": true, "plaintext": false} {
		server := httptest.NewUnstartedServer(nil)
		if encrypted {
			server.StartTLS()
		} else {
			server.Start()
		}
		defer server.Close()
		_, text, err := net.SplitHostPort(server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			t.Fatal(err)
		}
		capture, err := Start(uint16(port))
		if errors.Is(err, ErrForbidden) {
			t.Skipf("NOT TESTED: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		response, err := server.Client().Get(server.URL + "/secret")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if encrypted && response.TLS.Version < tls.VersionTLS12 {
			t.Errorf("TLS version %x", response.TLS.Version)
		}
		if err := Judge(capture.Stop(), uint16(port), []byte("/secret")); (err == nil) != encrypted {
			t.Errorf("%s: %v", name, err)
		}
	}
}
