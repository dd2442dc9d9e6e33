// Package stat knows what a proxy counts and under which names Envoy's administrators look for it.
//
// A [Set] belongs to one proxy; there are no globals. Values may be changed and read concurrently.
package stat

import (
	"cmp"
	"crypto/tls"
	"slices"
	"sync"
	"sync/atomic"
)

// Key names a value: SCOPE.OWNER.METRIC, or SCOPE.OWNER.METRIC.DETAIL. Owners have dots in them, so
// that the parts cannot be told from the whole.
type Key struct {
	Scope  string // "listener", "http" or "cluster"
	Owner  string // the listener's or the cluster's name
	Metric string
	Detail string // a TLS version or cipher, or empty
}

// String is the name that /stats prints.
func (k Key) String() string {
	name := k.Scope + "." + k.Owner + "." + k.Metric
	if k.Detail != "" {
		name += "." + k.Detail
	}
	return name
}

// gauge tells whether the value goes down as well.
func (k Key) gauge() bool {
	return k.Metric == "downstream_cx_active" || k.Metric == "upstream_cx_active"
}

// Set holds values by name.
type Set struct {
	mu     sync.RWMutex
	values map[Key]*atomic.Int64 // guarded by mu; only added to
}

// NewSet makes an empty set.
func NewSet() *Set { return &Set{values: make(map[Key]*atomic.Int64)} }

// Value gives the value of a name, which exists at 0 from then on.
func (s *Set) Value(k Key) *atomic.Int64 {
	s.mu.RLock()
	v := s.values[k]
	s.mu.RUnlock()
	if v != nil {
		return v
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if v = s.values[k]; v == nil {
		v = new(atomic.Int64)
		s.values[k] = v
	}
	return v
}

// Stat is one value as it is printed.
type Stat struct {
	Name  string `json:"name"`
	Value int64  `json:"value"`
}

// Stats are the values of this moment, by name.
func (s *Set) Stats() []Stat {
	s.mu.RLock()
	stats := make([]Stat, 0, len(s.values))
	for k, v := range s.values {
		stats = append(stats, Stat{k.String(), v.Load()})
	}
	s.mu.RUnlock()
	slices.SortFunc(stats, func(a, b Stat) int { return cmp.Compare(a.Name, b.Name) })
	return stats
}

// Listener counts what arrives at a listener.
type Listener struct {
	Handshake        *atomic.Int64 // handshakes that succeeded, resumed ones included
	NoCertificate    *atomic.Int64 // of those, without a certificate of the client
	FailVerifyNoCert *atomic.Int64 // handshakes that failed for want of a certificate
	FailVerifyError  *atomic.Int64 // ... for a certificate that is not trusted
	FailVerifySAN    *atomic.Int64 // ... for a certificate of somebody else
	ConnectionError  *atomic.Int64 // ... for another reason of TLS
	SessionReused    *atomic.Int64
	CxTotal          *atomic.Int64
	CxActive         *atomic.Int64
	Denied           *atomic.Int64 // requests and connections that the policy refused
	PlaintextCxTotal *atomic.Int64

	set  *Set
	name string
}

// Listener gives the values of a listener that peers connect to.
func (s *Set) Listener(name string) *Listener {
	value := func(metric string) *atomic.Int64 { return s.Value(Key{Scope: "listener", Owner: name, Metric: metric}) }
	return &Listener{
		Handshake:        value("ssl.handshake"),
		NoCertificate:    value("ssl.no_certificate"),
		FailVerifyNoCert: value("ssl.fail_verify_no_cert"),
		FailVerifyError:  value("ssl.fail_verify_error"),
		FailVerifySAN:    value("ssl.fail_verify_san"),
		ConnectionError:  value("ssl.connection_error"),
		SessionReused:    value("ssl.session_reused"),
		CxTotal:          value("downstream_cx_total"),
		CxActive:         value("downstream_cx_active"),
		Denied:           value("rbac.denied"),
		PlaintextCxTotal: value("plaintext_cx_total"),
		set:              s,
		name:             name,
	}
}

// Shook counts a handshake that succeeded.
func (l *Listener) Shook(cs tls.ConnectionState) {
	l.Handshake.Add(1)
	if cs.DidResume {
		l.SessionReused.Add(1)
	}
	if len(cs.PeerCertificates) == 0 {
		l.NoCertificate.Add(1)
	}
	l.set.Value(Key{"listener", l.name, "ssl.versions", TLSVersion(cs.Version)}).Add(1)
	l.set.Value(Key{"listener", l.name, "ssl.ciphers", Cipher(cs.CipherSuite)}).Add(1)
}

// HTTP counts the requests that arrive at a listener.
type HTTP struct {
	RqTotal *atomic.Int64
	classes [6]*atomic.Int64 // 2 to 5 are used
}

// HTTP gives the values of a listener's requests.
func (s *Set) HTTP(name string) *HTTP {
	value := func(metric string) *atomic.Int64 { return s.Value(Key{Scope: "http", Owner: name, Metric: metric}) }
	return &HTTP{
		RqTotal: value("downstream_rq_total"),
		classes: [6]*atomic.Int64{
			2: value("downstream_rq_2xx"), 3: value("downstream_rq_3xx"),
			4: value("downstream_rq_4xx"), 5: value("downstream_rq_5xx"),
		},
	}
}

// Answered counts the status that a request was answered with.
func (h *HTTP) Answered(status int) {
	if class := status / 100; class >= 2 && class <= 5 {
		h.classes[class].Add(1)
	}
}

// Class counts the answers of one class, 2 to 5; nil for others.
func (h *HTTP) Class(class int) *atomic.Int64 {
	if class < 2 || class > 5 {
		return nil
	}
	return h.classes[class]
}

// Cluster counts what goes to an upstream.
type Cluster struct {
	CxTotal       *atomic.Int64
	CxActive      *atomic.Int64
	CxConnectFail *atomic.Int64 // connections that failed before they could be used, TLS included
	RqTotal       *atomic.Int64
	Rq5xx         *atomic.Int64
	Handshake     *atomic.Int64
}

// Cluster gives the values of an upstream.
func (s *Set) Cluster(name string) *Cluster {
	value := func(metric string) *atomic.Int64 { return s.Value(Key{Scope: "cluster", Owner: name, Metric: metric}) }
	return &Cluster{
		CxTotal:       value("upstream_cx_total"),
		CxActive:      value("upstream_cx_active"),
		CxConnectFail: value("upstream_cx_connect_fail"),
		RqTotal:       value("upstream_rq_total"),
		Rq5xx:         value("upstream_rq_5xx"),
		Handshake:     value("ssl.handshake"),
	}
}

// TLSVersion is OpenSSL's name of a version.
func TLSVersion(version uint16) string {
	switch version {
	case tls.VersionTLS13:
		return "TLSv1.3"
	case tls.VersionTLS12:
		return "TLSv1.2"
	}
	return tls.VersionName(version)
}

// opensslCiphers are the suites of TLS 1.2 that are used; those of TLS 1.3 have one name everywhere.
var opensslCiphers = map[uint16]string{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256:       "ECDHE-ECDSA-AES128-GCM-SHA256",
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256:         "ECDHE-RSA-AES128-GCM-SHA256",
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384:       "ECDHE-ECDSA-AES256-GCM-SHA384",
	tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384:         "ECDHE-RSA-AES256-GCM-SHA384",
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256: "ECDHE-ECDSA-CHACHA20-POLY1305",
	tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256:   "ECDHE-RSA-CHACHA20-POLY1305",
}

// Cipher is OpenSSL's name of a cipher suite.
func Cipher(suite uint16) string {
	if name, ok := opensslCiphers[suite]; ok {
		return name
	}
	return tls.CipherSuiteName(suite)
}
