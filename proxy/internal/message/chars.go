package message

// Classes of characters, as tables: each byte of each head is looked up in one of them.
var (
	tokenChar  [256]bool // RFC 9110 section 5.6.2, tchar
	valueChar  [256]bool // field-vchar, SP, HTAB: section 5.5
	targetChar [256]bool // visible ASCII but "#", '"', "<", ">", "\": see init
	hostChar   [256]bool // reg-name without percent-encoding: RFC 3986 section 3.2.2
	toLower    [256]byte
)

func init() {
	for i := range 256 {
		c := byte(i)
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		digit := c >= '0' && c <= '9'
		toLower[i] = c
		if c >= 'A' && c <= 'Z' {
			toLower[i] = c + 'a' - 'A'
		}
		tokenChar[i] = letter || digit
		valueChar[i] = c >= 0x20 && c != 0x7f || c == '\t'
		targetChar[i] = c > 0x20 && c < 0x7f
		hostChar[i] = letter || digit
	}
	for _, c := range []byte("!#$%&'*+-.^_`|~") {
		tokenChar[c] = true
	}
	// Browsers send some characters raw that RFC 3986 wants encoded: | ^ ` { } stay, as every
	// reader takes them literally. These are refused because readers differ:
	for _, c := range []byte("#\"<>\\") {
		targetChar[c] = false
	}
	for _, c := range []byte("-._~!$&'()*+,;=") {
		hostChar[c] = true
	}
}

// IsToken tells whether s is a token: a method or a field's name.
func IsToken[T string | []byte](s T) bool {
	for i := range len(s) {
		if !tokenChar[s[i]] {
			return false
		}
	}
	return len(s) > 0
}

// IsValue tells whether s may be a field's value: no control characters, no white space around it.
func IsValue[T string | []byte](s T) bool {
	for i := range len(s) {
		if !valueChar[s[i]] {
			return false
		}
	}
	return len(s) == 0 || s[0] > ' ' && s[len(s)-1] > ' '
}

// IsTarget tells whether s is a request target in origin form. In the path percent-encodings are whole;
// a query is the application's own affair.
func IsTarget[T string | []byte](s T) bool {
	if len(s) == 0 || s[0] != '/' {
		return false
	}
	path := true
	for i := 0; i < len(s); i++ {
		if !targetChar[s[i]] {
			return false
		}
		path = path && s[i] != '?'
		if path && s[i] == '%' && (i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2])) {
			return false
		}
	}
	return true
}

// IsAuthority tells whether s is HOST or HOST:PORT, as the Host field has it (RFC 9110 section 7.2). The
// host is a name, an IPv4 address or an IPv6 address in brackets; user information, percent-encoding and
// an empty port are refused, for readers differ about them.
func IsAuthority[T string | []byte](s T) bool {
	host := hostEnd(s)
	return host > 0 && (host == len(s) || isPort(s[host:]))
}

// IsHostPort tells whether s is HOST:PORT: the target of a CONNECT.
func IsHostPort[T string | []byte](s T) bool {
	host := hostEnd(s)
	return host > 0 && host < len(s) && isPort(s[host:])
}

// hostEnd is where the host at the start of s ends, 0 when there is none.
func hostEnd[T string | []byte](s T) int {
	if len(s) == 0 || s[0] != '[' {
		i := 0
		for i < len(s) && hostChar[s[i]] {
			i++
		}
		return i
	}
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == ']' && i > 2:
			return i + 1
		case !isHex(c) && c != ':' && c != '.':
			return 0
		}
	}
	return 0
}

// isPort tells whether s is a colon and a port.
func isPort[T string | []byte](s T) bool {
	if len(s) < 2 || len(s) > 6 || s[0] != ':' {
		return false
	}
	for i := 1; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// EqualFold compares without regard to the case of ASCII letters.
func EqualFold[A, B string | []byte](a A, b B) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if toLower[a[i]] != toLower[b[i]] {
			return false
		}
	}
	return true
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}
