package observe

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"time"

	"countersign.dev/mesh"
)

// Shown is what one listener showed to one client.
type Shown struct {
	// Chain is what the listener presented, leaf first; nil when no handshake came so far.
	Chain []*x509.Certificate
	// Accepts tells whether the client's certificate was accepted by TLS, whatever the policy says then.
	Accepts bool
	// How says how the connection ended, for people.
	How string
}

// Show connects to a listener with a certificate of the observer's identity, which no policy admits, and
// says whether TLS accepted it. root is the root of that certificate.
//
// A proxy that says which roots it accepts (NGINX and HAProxy name them in their CertificateRequest, RFC
// 8446 section 4.2.4) has to name that one: on a tcp port such a proxy may close upon a wrong certificate
// without a word, as it does upon an identity that the policy does not admit. On other ports acceptance
// is an answer, be it a refusal in the protocol's words. timeout bounds the whole connection.
func Show(ctx context.Context, t *Target, certificate *tls.Certificate, root *x509.Certificate, timeout time.Duration) Shown {
	o := &Observer{timeout: timeout}
	named := false // the listener named the roots that it accepts
	knows := false
	ask := *certificate
	out := o.dialTLS(ctx, t, hello{
		version: tls.VersionTLS13, lowest: tls.VersionTLS12, suites: allSuites(), certificate: &ask, speak: true, wait: o.patience(true),
		request: func(info *tls.CertificateRequestInfo) {
			named = len(info.AcceptableCAs) > 0
			for _, name := range info.AcceptableCAs {
				knows = knows || bytes.Equal(name, root.RawSubject)
			}
		},
	})
	shown := Shown{How: how(&out)}
	if out.agreed != nil {
		shown.Chain = out.agreed.PeerCertificates
	}
	switch {
	case out.agreed == nil, !out.asked, out.alert:
	case named && !knows:
		shown.How = "it names the roots that it accepts, and this one is not among them"
	case out.ending == answered:
		shown.Accepts = true
	case t.Inbound.Protocol == mesh.TCP:
		shown.Accepts = out.done // silent, or closed by the policy
	}
	return shown
}
