package mtls

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"slices"
	"sync"
	"time"
)

// maxChains is how many verified chains a [Bundle] remembers at most: the instances of a large mesh,
// with those that were renewed lately. A remembered chain takes about 150 bytes: the issuers' certificates,
// which it names, are the same for all.
const maxChains = 4096

// chains remembers which chains were found to lead to the roots of one bundle, so that the certificates
// that a mesh meets again and again cost their signatures' verification once: four of the six that a
// full handshake has at both its ends. The signature that proves possession of the key is none of
// these: crypto/tls verifies it at every handshake.
//
// What is remembered is only that the signatures, purposes and constraints of a chain hold, between which
// two moments, and by which issuers. Who the leaf belongs to is read from the leaf at every handshake, and
// whether it or an issuer was revoked, from the lists of that moment. What was refused is not remembered, so
// that strangers cannot fill it.
//
// It belongs to one bundle, so another bundle knows nothing of it. It is safe for concurrent use; a nil
// one remembers nothing.
type chains struct {
	mu sync.Mutex
	// young and old are guarded by mu. What is met moves to young; when young is half of all that there
	// may be, it becomes old and what was old is forgotten.
	young, old map[chainKey]known
	// issuers are guarded by mu: those that remembered chains name, each once, by their DER. They are as many
	// as the CAs of the mesh; when they are more, all is forgotten.
	issuers map[string]*x509.Certificate
}

// known is what is remembered of a chain.
type known struct {
	span
	issuers []*x509.Certificate // of the leaf and upwards, the root last
}

// maxIssuers is how many issuers there are at most.
const maxIssuers = 64

// chainKey names a chain as it was presented, with all that its verification depended on apart from
// the bundle and the time.
type chainKey [sha256.Size]byte

// span is when a chain holds: from the latest NotBefore to the earliest NotAfter of its certificates,
// the root's included, both inclusive as in [x509.Certificate.Verify].
type span struct{ from, to time.Time }

func (s span) contains(now time.Time) bool { return !now.Before(s.from) && !now.After(s.to) }

// keyOf digests what a peer presented, in its order. A change of epoch, which is the caller's, makes
// every chain another one.
func keyOf(presented []*x509.Certificate, usage x509.ExtKeyUsage, epoch string) chainKey {
	var space [4096]byte // on the stack: two certificates with ECDSA keys need about 1,100 bytes
	text := binary.BigEndian.AppendUint64(space[:0], uint64(usage))
	text = binary.BigEndian.AppendUint64(text, uint64(len(epoch)))
	text = append(text, epoch...)
	for _, cert := range presented {
		text = binary.BigEndian.AppendUint64(text, uint64(len(cert.Raw)))
		text = append(text, cert.Raw...)
	}
	return sha256.Sum256(text)
}

// holds tells whether a chain was verified before and would be verified now as well.
func (c *chains) holds(key chainKey, now time.Time) bool {
	_, ok := c.lookup(key, now)
	return ok
}

// lookup is holds with the issuers by which it was verified.
func (c *chains) lookup(key chainKey, now time.Time) (issuers []*x509.Certificate, ok bool) {
	if c == nil {
		return nil, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	found, ok := c.young[key]
	if !ok {
		if found, ok = c.old[key]; ok {
			c.put(key, found)
		}
	}
	return found.issuers, ok && found.contains(now)
}

// remember takes down that a chain was verified. What was presented beside the chain could be anything
// and would make as many keys of one certificate as its holder likes: such a chain is not remembered.
func (c *chains) remember(key chainKey, presented, verified []*x509.Certificate) {
	if c == nil || len(presented) > len(verified) {
		return
	}
	for _, cert := range presented {
		if !slices.ContainsFunc(verified, cert.Equal) {
			return
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	k := known{span: spanOf(verified)}
	for _, issuer := range verified[1:] {
		k.issuers = append(k.issuers, c.issuer(issuer))
	}
	c.put(key, k)
}

// issuer gives the one copy of a certificate. It is called with mu held.
func (c *chains) issuer(cert *x509.Certificate) *x509.Certificate {
	if one := c.issuers[string(cert.Raw)]; one != nil {
		return one
	}
	if len(c.issuers) >= maxIssuers || c.issuers == nil {
		c.issuers = make(map[string]*x509.Certificate)
		c.young, c.old = nil, nil
	}
	c.issuers[string(cert.Raw)] = cert
	return cert
}

// put is called with mu held.
func (c *chains) put(key chainKey, k known) {
	if len(c.young) >= maxChains/2 {
		c.young, c.old = nil, c.young
	}
	if c.young == nil {
		c.young = make(map[chainKey]known)
	}
	c.young[key] = k
}

// spanOf is when all certificates of a chain are valid.
func spanOf(chain []*x509.Certificate) span {
	s := span{chain[0].NotBefore, chain[0].NotAfter}
	for _, cert := range chain[1:] {
		if cert.NotBefore.After(s.from) {
			s.from = cert.NotBefore
		}
		if cert.NotAfter.Before(s.to) {
			s.to = cert.NotAfter
		}
	}
	return s
}

// lastingChain is the one of several that holds longest.
func lastingChain(all [][]*x509.Certificate) []*x509.Certificate {
	return slices.MaxFunc(all, func(a, b []*x509.Certificate) int { return spanOf(a).to.Compare(spanOf(b).to) })
}
