package proxy

import (
	"net"
	"testing"
	"testing/synctest"
	"time"
)

func TestRegistries(t *testing.T) {
	news := 0
	c := newCallers(func() { news++ })
	for i := range maxRemembered + 50 {
		c.spokePlaintext(net.IPv4(10, 0, byte(i>>8), byte(i)).String())
		c.presented("spiffe://a.internal/service/s"+net.IPv4(10, 0, byte(i>>8), byte(i)).String(), "01", time.Unix(int64(i), 0))
	}
	if len(c.plaintext) != maxRemembered+1 || c.plaintext[otherCallers] != 50 || len(c.peers) != maxRemembered {
		t.Errorf("%d addresses, %d others, %d peers", len(c.plaintext), c.plaintext[otherCallers], len(c.peers))
	}
	c.presented("spiffe://a.internal/service/new", "01", time.Unix(1<<20, 0))
	before := news
	c.presented("spiffe://a.internal/service/new", "01", time.Unix(1<<20, 1))
	c.spokePlaintext("10.0.0.1")
	if c.presented("spiffe://a.internal/service/new", "02", time.Unix(1<<20, 2)); news != before+1 {
		t.Errorf("news %d times, want once: for the other serial", news-before)
	}
	if _, ok := c.peers["spiffe://a.internal/service/s10.0.0.0"]; ok {
		t.Error("the oldest is kept")
	}
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter()
		allowed := 0
		for range 100 {
			if _, ok := l.allow("a"); ok {
				allowed++
			}
		}
		time.Sleep(logInterval)
		if n, ok := l.allow("a"); allowed != 1 || !ok || n != 99 {
			t.Errorf("%d allowed, then %v with %d suppressed", allowed, ok, n)
		}
		for i := range 5 * maxRemembered {
			l.allow(string(rune(i)))
		}
		if len(l.keys) > maxRemembered {
			t.Errorf("%d keys", len(l.keys))
		}
	})
}
