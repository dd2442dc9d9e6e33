package proxy

import (
	"encoding/json"
	"io"
	"strconv"
	"time"

	"countersign.dev/accesslog"
)

// accessEntry is one line of the access log. It holds no header's value, no body and no query: they may
// hold secrets.
type accessEntry struct {
	Time      time.Time `json:"time"` // of the request's head or of the accept
	Instance  string    `json:"instance,omitempty"`
	Listener  string    `json:"listener"`
	Direction string    `json:"direction"` // inbound or outbound
	Protocol  string    `json:"protocol"`  // HTTP/1.1, HTTP/2.0, tcp, or what was upgraded to
	Remote    string    `json:"remote"`
	Caller    string    `json:"caller,omitempty"` // SPIFFE ID; empty is anonymous
	// The next three are of the connection by TLS: the client's, or where that is in plaintext (from the
	// application, or at a gateway) the one to the upstream.
	PeerSerial string  `json:"peerSerial,omitempty"`
	OwnSerial  string  `json:"ownSerial,omitempty"`
	TLS        string  `json:"tls,omitempty"`
	Method     string  `json:"method,omitempty"`
	Path       string  `json:"path,omitempty"` // as it was sent, without the query
	Status     int     `json:"status,omitempty"`
	BytesIn    int64   `json:"bytesIn"` // of the body, or of the connection
	BytesOut   int64   `json:"bytesOut"`
	Seconds    float64 `json:"seconds"`
	Upstream   string  `json:"upstream,omitempty"` // host:port that it went to
	Flag       string  `json:"flag,omitempty"`     // why it did not end as it should
}

// The flags of [accessEntry], beside those of relay.
const (
	flagDenied  = "denied"   // by the policy
	flagNoRoute = "no_route" // of a gateway
)

// statusClientGone is what is logged for a request whose client did not wait for the answer, as NGINX
// does.
const statusClientGone = 499

// accessLog writes entries.
type accessLog struct {
	instance string
	*accesslog.Lines
}

func newAccessLog(w io.Writer, instance string) *accessLog {
	return &accessLog{instance: instance, Lines: accesslog.New(w)}
}

// write hands an entry to the writer, which no loop waits for.
func (a *accessLog) write(e *accessEntry) {
	a.Add(func(b []byte) []byte { return a.append(b, e) })
}

// append adds an entry as a line of JSON. It writes what encoding/json would; a test compares them.
func (a *accessLog) append(b []byte, e *accessEntry) []byte {
	b = append(b, `{"time":"`...)
	b = e.Time.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, '"')
	b = appendOptional(b, "instance", a.instance)
	b = appendText(append(b, `,"listener":`...), e.Listener)
	b = appendText(append(b, `,"direction":`...), e.Direction)
	b = appendText(append(b, `,"protocol":`...), e.Protocol)
	b = appendText(append(b, `,"remote":`...), e.Remote)
	b = appendOptional(b, "caller", e.Caller)
	b = appendOptional(b, "peerSerial", e.PeerSerial)
	b = appendOptional(b, "ownSerial", e.OwnSerial)
	b = appendOptional(b, "tls", e.TLS)
	b = appendOptional(b, "method", e.Method)
	b = appendOptional(b, "path", e.Path)
	if e.Status != 0 {
		b = strconv.AppendInt(append(b, `,"status":`...), int64(e.Status), 10)
	}
	b = strconv.AppendInt(append(b, `,"bytesIn":`...), e.BytesIn, 10)
	b = strconv.AppendInt(append(b, `,"bytesOut":`...), e.BytesOut, 10)
	b = strconv.AppendFloat(append(b, `,"seconds":`...), e.Seconds, 'f', -1, 64)
	b = appendOptional(b, "upstream", e.Upstream)
	b = appendOptional(b, "flag", e.Flag)
	return append(b, "}\n"...)
}

func appendOptional(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	b = append(append(append(b, `,"`...), name...), `":`...)
	return appendText(b, value)
}

// appendText adds a JSON text.
func appendText(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			quoted, _ := json.Marshal(s) // a text always encodes
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}
