package engine

import (
	"encoding/hex"
	"strconv"
	"strings"
	"time"

	"countersign.dev/id"
)

// Who called is told to whoever watches over the proxy, where [Options.Callers] asks for it: the proxy's own log goes
// elsewhere. NGINX sends a datagram after a connection's first request, and never waits for its reader; HAProxy
// keeps a table, in which it notes the time of a connection's handshake.

const (
	// CallersSocket is the UNIX datagram socket in the run directory to which NGINX sends.
	CallersSocket = "callers.sock"
	// CallersTag is what stands before NGINX's words in a datagram.
	CallersTag = "countersign"
	// CallersTable is the name of HAProxy's table, which is read on [StatsSocket].
	CallersTable = "callers"
	// StatsSocket is where HAProxy answers its administrator, in the run directory.
	StatsSocket = "haproxy.sock"
	// CallersKept is after how long HAProxy forgets who does not come any more.
	CallersKept = 10 * time.Minute
	// CallersClock is the number of milliseconds after which the clock in HAProxy's table, whose numbers have 32 bits, begins
	// again: 46 days. A row stays for as long as its connection is open, which may be days.
	CallersClock = 4_000_000_000
	// callersAhead is by how many milliseconds HAProxy's clock may be ahead of its reader's.
	callersAhead = 60_000
	// MostCallers is how many certificates of callers are remembered.
	MostCallers = 1000
)

// Call is what is told of a caller whose certificate was proved.
type Call struct {
	// Identity is its SPIFFE ID, and Serial its certificate's number as this mesh writes it.
	Identity, Serial string
	// Seen is when it connected last, of what stands in HAProxy's table.
	Seen time.Time
}

// Caller is the SPIFFE ID of who has proved himself in a trust domain, empty for everybody else. The text is the ID, or
// the subject of a certificate.
func Caller(domain, text string) string {
	if strings.HasPrefix(text, "spiffe://") {
		return text
	}
	var name, kind string
	for part := range strings.SplitSeq(text, ",") {
		key, value, _ := strings.Cut(part, "=")
		switch {
		case key == "CN" && name == "":
			name = value
		case key == "OU" && kind == "":
			kind = value
		case key == "O" && value == domain:
		default:
			return ""
		}
	}
	if peer, err := id.New(domain, id.Kind(kind), name); err == nil {
		return peer.String()
	}
	return ""
}

// Serial is a certificate's number as this mesh writes it: lower case, two digits a byte, without the zero that
// keeps DER's numbers positive. It is empty for what is no number.
func Serial(text string) string {
	s := strings.ToLower(text)
	if len(s)%2 == 1 {
		s = "0" + s
	}
	if _, err := hex.DecodeString(s); err != nil {
		return ""
	}
	for len(s) > 2 && strings.HasPrefix(s, "00") {
		s = s[2:]
	}
	return s
}

// mostSerial is the greatest length of a serial number in hexadecimal digits: 20 bytes (RFC 5280, section 4.1.2.2), and
// a zero before them.
const mostSerial = 42

// call reads a serial number and a subject; false when they are not of a member of the trust domain.
func call(domain, serial, subject string) (Call, bool) {
	if len(serial) > mostSerial || !strings.HasPrefix(subject, "CN=") {
		return Call{}, false
	}
	c := Call{Identity: Caller(domain, subject), Serial: Serial(serial)}
	return c, c.Identity != "" && c.Serial != ""
}

// ParseDatagram reads what NGINX has sent: its syslog's head (RFC 3164), and a serial number and a subject.
func ParseDatagram(domain string, datagram []byte) (Call, bool) {
	_, words, found := strings.Cut(string(datagram), " "+CallersTag+": ")
	serial, subject, both := strings.Cut(words, " ")
	if !found || !both {
		return Call{}, false
	}
	return call(domain, serial, subject)
}

// ParseTable reads HAProxy's answer to "show table" of this moment. Lines that are not of members of the trust domain are left out.
func ParseTable(domain, answer string, now time.Time) []Call {
	var all []Call
	for line := range strings.Lines(answer) {
		var key, clock string
		for word := range strings.FieldsSeq(line) {
			switch name, value, _ := strings.Cut(word, "="); name {
			case "key":
				key = strings.ReplaceAll(value, `\`, "") // what is escaped is = and what no member's subject has
			case "gpt0":
				clock = value
			}
		}
		serial, subject, _ := strings.Cut(key, "/")
		c, ok := call(domain, serial, subject)
		at, err := strconv.ParseUint(clock, 10, 32)
		if !ok || err != nil || at >= CallersClock {
			continue
		}
		ago := (now.UnixMilli()%CallersClock - int64(at) + CallersClock) % CallersClock
		if ago > CallersClock-callersAhead {
			ago = 0
		}
		c.Seen = now.Add(-time.Duration(ago) * time.Millisecond)
		all = append(all, c)
		if len(all) == MostCallers {
			break
		}
	}
	return all
}
