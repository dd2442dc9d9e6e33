package h1

import (
	"math/rand/v2"
	"strings"
)

// generator makes streams of messages that are right, nearly right, or wrong in the ways in which
// readers are known to differ.
type generator struct{ *rand.Rand }

func (g generator) pick(of ...string) string { return of[g.IntN(len(of))] }

// rarely gives odd one time in twelve.
func (g generator) rarely(usual string, odd ...string) string {
	if g.IntN(12) == 0 {
		return g.pick(odd...)
	}
	return usual
}

func (g generator) eol() string {
	if g.IntN(150) == 0 {
		return g.pick("\n", "\r", "\r\r\n", "\n\r", " \r\n", "\r\n ", "\x00\r\n", "\x0b\r\n", "\u0085")
	}
	return "\r\n"
}

func (g generator) target() string {
	return g.pick("/", "/a", "/a/b?c=d", "/a%2fb", "/a/../b", "//a", "/?", "/a?b?c", "/;x=y", "/%", "/%2", "/%zz", "/a b", "/#", "/\\",
		"*", "http://a.test/x", "http://a.test", "http://a.test?x", "HTTP://A.test/", "https://a.test:80/", "http:///x", "http://u@a.test/",
		"http://b.test/", "http:/a", "a.test:80", "", ".", "/\x00", "/\x7f", "/ä", "http://[::1]/", "http://a.test//x", "/{}|^`", "/a\"b", "http://a.test:/")
}

func (g generator) host() string {
	return g.rarely("a.test", "a.test:80", "b.test", "", "A.TEST", "a.test.", "a.test:", "a.test:x", "a,b", "a b", "[::1]", "[::1]:80", "[a", "u@a.test", "a/b", "a%41", "a\x00", ":80", "a:1:2", "*")
}

func (g generator) length(n int) string {
	real := itoa(n)
	return g.rarely(real, "+"+real, "-"+real, " "+real, real+" ", real+"\t", "0"+real, "00000000000000000"+real, "0x"+real, real+","+real, real+", "+real, "", "1e1", real+";", real+"\x0b",
		"18446744073709551616", "9223372036854775808", "١", itoa(n+1), "0", real+"_0", real+".0")
}

func itoa(n int) string {
	var b []byte
	for ; n > 9; n /= 10 {
		b = append([]byte{byte('0' + n%10)}, b...)
	}
	return string(append([]byte{byte('0' + n)}, b...))
}

func (g generator) coding() string {
	return g.rarely("chunked", "Chunked", "chunked ", " chunked", "\tchunked", "chunked,", ",chunked", "chunked, chunked", "gzip, chunked", "chunked, gzip", "identity", "xchunked", "chunked;q=1", "\x0bchunked", "chunked\x00", "\"chunked\"", "", "chunke", "CHUNKED")
}

// name spells a field's name.
func (g generator) name(s string) string {
	switch g.IntN(80) {
	case 0:
		return strings.ToUpper(s)
	case 1:
		return s + " "
	case 2:
		return " " + s
	case 3:
		return s + "\t"
	case 4:
		return s + "\x00"
	case 5:
		return strings.ReplaceAll(s, "-", "_")
	case 6:
		return "\u212a" + s
	case 7:
		return ""
	}
	return s
}

func (g generator) field() (string, string) {
	switch g.IntN(16) {
	case 0:
		return "Connection", g.pick("close", "keep-alive", "Close, X-A", "x-a", "upgrade", "te", "Content-Length", "transfer-encoding", "close,close", "", ",", "x-a x-b", "\"close\"", "HOST", "Upgrade, HTTP2-Settings", "trailer", "expect")
	case 1:
		return "Upgrade", g.pick("websocket", "h2c", "WebSocket, h2c", "TLS/1.0", "", "h2c, x")
	case 2:
		return "TE", g.pick("trailers", "gzip", "trailers, deflate;q=0.5", "Trailers", "")
	case 3:
		return "Trailer", g.pick("X-T", "X-T, X-U", "Content-Length", "Transfer-Encoding", "", "x t", "Trailer", "Host, X-T")
	case 4:
		return "Expect", g.pick("100-continue", "100-Continue", "100-continue ", "200-ok", "", "100-continue, x")
	case 5:
		return g.pick("Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "HTTP2-Settings", "Proxy-Authenticate"), "x"
	case 6:
		return "Pragma", "no-cache"
	case 7:
		return "Cookie", g.pick("a=b", "a=b; c=d", "")
	case 8:
		return "X-Long", strings.Repeat("a", g.IntN(5000))
	}
	return g.pick("X-A", "x-a", "X-B", "X_A", "Accept", "Cache-Control", "!#$%&'*+-.^_`|~"),
		g.rarely(g.pick("", "1", "a b", "a\tb", "ä", "a, b", "\xff", "a:b", "\""), "a\x00b", "a\rb", "\x7f", "\x01", "a\r\n b", "a\r\n\tb", " ", "\t", "a\nX-C: d", "\x0c", "\u2028")
}

// request appends one request.
func (g generator) request(b []byte) []byte {
	eol := g.eol
	content := make([]byte, g.IntN(40))
	for i := range content {
		content[i] = g.pick("a", "\r", "\n", "0", ":", "\x00", "G")[0]
	}
	b = append(b, g.rarely("", "\r\n", "\r\n\r\n", "\n", " ")...)
	b = append(b, g.rarely(g.pick("GET", "POST", "HEAD", "PUT", "OPTIONS"), "CONNECT", "get", "G:T", "", "PRI", "G\x00T", "!#$%&'*+-.^_`|~")...)
	b = append(b, g.rarely(" ", "  ", "\t", "", "\x0b")...)
	b = append(b, g.rarely("/"+itoa(g.IntN(100)), g.target(), g.target(), g.target())...)
	b = append(b, g.rarely(" ", "  ", "\t", "", "\xa0")...)
	b = append(b, g.rarely("HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "http/1.1", "HTTP/1.1 ", "HTTP/11", "HTTP/0.9", "", "HTTP/1.1\t", "HTTP/01.1")...)
	b = append(b, eol()...)
	var lines []string
	line := func(name, value string) {
		lines = append(lines, g.name(name)+g.rarely(":", ": ", ":", " :", "", ":\t", "::")+g.rarely(" ", "", "\t", "\x0b", "  ")+value+g.rarely("", " ", "\t", "\x0b"))
	}
	line("Host", g.host())
	for range g.IntN(4) {
		line(g.field())
	}
	if g.IntN(40) == 0 {
		line("Host", g.host())
	}
	kind := g.IntN(3)
	if kind == 1 || g.IntN(40) == 0 {
		line("Content-Length", g.length(len(content)))
	}
	if kind == 2 || g.IntN(40) == 0 {
		line("Transfer-Encoding", g.coding())
	}
	if g.IntN(60) == 0 {
		line("Content-Length", g.length(len(content)))
	}
	if g.IntN(60) == 0 {
		line("Transfer-Encoding", g.coding())
	}
	g.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
	for _, l := range lines {
		b = append(append(b, l...), eol()...)
	}
	b = append(b, eol()...)
	switch kind {
	case 1:
		return append(b, content...)
	case 2:
		return g.chunks(b, content)
	}
	return b
}

// chunks appends a chunked body.
func (g generator) chunks(b, content []byte) []byte {
	const digits = "0123456789abcdef"
	for len(content) > 0 {
		n := 1 + g.IntN(min(len(content), 15))
		size := g.rarely("", "0", "000", "0x", "+", " ", "-", "00000000000000000", "_") + g.rarely(digits[n:n+1], strings.ToUpper(digits[n:n+1])) +
			g.rarely("", ";", ";a=b", " ", "\t;a", ";a=\"\r\n\"", ";\x00", ";"+strings.Repeat("a", g.IntN(400)), " ;a", ";\n")
		b = append(append(b, size...), g.eol()...)
		b = append(append(b, content[:n]...), g.eol()...)
		content = content[n:]
	}
	b = append(b, g.rarely("0", "00", "0;a", "-0", "", "0 ")...)
	b = append(b, g.eol()...)
	for range g.IntN(3) * g.IntN(2) {
		name, value := g.pick("X-T", "X-U", "Content-Length", "Host", "Connection", "Transfer-Encoding", "Trailer"), g.pick("1", "", "chunked", "ä", "a b")
		if g.IntN(8) == 0 {
			name, value = g.field()
		}
		b = append(b, g.name(name)+g.rarely(": ", ":", " : ", "")+value+g.eol()...)
	}
	return append(b, g.eol()...)
}

// response appends one response.
func (g generator) response(b []byte) []byte {
	content := []byte(g.pick("", "a", "hello", "a\r\n\r\nHTTP/1.1 200 OK\r\n"))
	b = append(b, g.rarely("HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "HTTP/11", "ICY", " HTTP/1.1")...)
	b = append(b, g.rarely(" ", "", "  ", "\t")...)
	b = append(b, g.rarely("200", "100", "103", "101", "204", "205", "206", "304", "404", "500", "099", "600", "20", "2000", "+20", " 20")...)
	b = append(b, g.rarely(" OK", "", " ", " a\x00", " \xe4", "OK", " a\tb", "\t")...)
	b = append(b, g.eol()...)
	kind := g.IntN(3)
	for range g.IntN(4) {
		name, value := g.field()
		b = append(b, g.name(name)+": "+value+g.eol()...)
	}
	if kind == 1 || g.IntN(40) == 0 {
		b = append(b, g.name("Content-Length")+": "+g.length(len(content))+g.eol()...)
	}
	if kind == 2 || g.IntN(40) == 0 {
		b = append(b, g.name("Transfer-Encoding")+": "+g.coding()+g.eol()...)
	}
	b = append(b, g.eol()...)
	if kind == 2 {
		return g.chunks(b, content)
	}
	return append(b, content...)
}

// spoil changes some bytes of what was made.
func (g generator) spoil(b []byte) []byte {
	for range g.IntN(3) * g.IntN(2) {
		if len(b) == 0 {
			return b
		}
		at := g.IntN(len(b))
		switch g.IntN(4) {
		case 0:
			b[at] = byte(g.Uint32())
		case 1:
			b = append(b[:at], b[at+1:]...)
		case 2:
			b = append(b[:at], append([]byte(g.pick("\r", "\n", " ", "\t", ":", ",", "\x00", "0", "\r\n", "Content-Length: 3\r\n", "Transfer-Encoding: chunked\r\n")), b[at:]...)...)
		default: // a piece twice
			end := at + g.IntN(min(20, len(b)-at)+1)
			b = append(b[:end], append([]byte(string(b[at:end])), b[end:]...)...)
		}
	}
	return b
}
