package proxy

import (
	"encoding/json"
	"io"
	"sync"
	"time"
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

// The flags of [accessEntry].
const (
	flagMalformed     = "malformed"       // not a request that everybody reads in the same way
	flagDenied        = "denied"          // by the policy
	flagNoRoute       = "no_route"        // of a gateway
	flagNoEndpoint    = "no_endpoint"     // of the upstream is known
	flagConnectFailed = "connect_failed"  // to every endpoint, or to the application
	flagUpstreamReset = "upstream_reset"  // it broke off
	flagTimeout       = "timeout"         // the route's
	flagClientGone    = "client_gone"     // it broke off
	flagPeerClosed    = "closed_by_peer"  // before the first byte, which is how a peer refuses tcp
	flagCut           = "cut"             // by a new policy, the end of a certificate or a drain
	flagNoSwitch      = "upgrade_refused" // by the upstream
)

// statusClientGone is what is logged for a request whose client did not wait for the answer, as NGINX
// does.
const statusClientGone = 499

// accessLog writes entries, one at a time.
type accessLog struct {
	instance string
	mu       sync.Mutex
	w        io.Writer // nil: off
}

func newAccessLog(w io.Writer, instance string) *accessLog {
	return &accessLog{w: w, instance: instance}
}

func (a *accessLog) write(e accessEntry) {
	if a.w == nil {
		return
	}
	e.Time, e.Instance = e.Time.UTC(), a.instance
	line, err := json.Marshal(e)
	if err != nil {
		return // cannot be: it is made of texts and numbers
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	_, _ = a.w.Write(append(line, '\n')) // a full disk must not stop the traffic
}
