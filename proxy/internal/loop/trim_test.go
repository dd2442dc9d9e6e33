package loop

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"net"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

// TestTrim fills the heap, lets go of it, and looks that the memory goes back when the loops are quiet,
// once.
func TestTrim(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // nothing else collects
	g, err := NewGroup(1, Config{Quiet: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Stop)
	l := g.Loops()[0]
	runtime.GC() // what other tests have left is not counted
	full := heapBytes() + fill()
	for deadline := time.Now().Add(20 * time.Second); heapBytes() > full-32<<20; {
		l.Post(func() {}) // a round from time to time
		if time.Now().After(deadline) {
			t.Fatalf("the heap has %d bytes, after %d", heapBytes(), full)
		}
		<-time.After(time.Millisecond * 60)
	}
	before := collections()
	for range 5 {
		done := make(chan struct{})
		l.Post(func() { l.After(30*time.Millisecond, func() { close(done) }) })
		<-done
	}
	if n := collections() - before; n != 0 {
		t.Errorf("%d collections though nothing was allocated", n)
	}
}

// fill makes garbage of a size that it returns.
func fill() uint64 {
	const pieces, size = 64, 1 << 20
	for range pieces {
		filled = make([]byte, size)
	}
	filled = nil
	return pieces * size
}

var filled []byte

func collections() uint32 {
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.NumGC
}

// TestShareCertificates connects twice with one certificate: the two connections have one copy of it.
func TestShareCertificates(t *testing.T) {
	raw := func(serial int64) []byte {
		key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	parse := func(der []byte) []*x509.Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return []*x509.Certificate{cert}
	}
	var cs certificates
	der := raw(1)
	first, second := parse(der), parse(der)
	cs.share(first)
	cs.share(second)
	if first[0] != second[0] {
		t.Error("two copies are kept")
	}
	other := parse(raw(2))
	kept := other[0]
	cs.share(other)
	if other[0] != kept {
		t.Error("a certificate became another one")
	}
	for i := range 3 * maxCertificates {
		chain := []*x509.Certificate{{Raw: []byte{byte(i), byte(i >> 8)}}}
		cs.share(chain)
	}
	if n := len(cs.young) + len(cs.old); n > 2*maxCertificates {
		t.Errorf("%d certificates are kept", n)
	}
}
