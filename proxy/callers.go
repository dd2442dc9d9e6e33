package proxy

import (
	"sync"
	"time"

	"countersign.dev/api"
)

// maxRemembered bounds every map whose keys come from outside.
const maxRemembered = 1000

// callers remembers who called: the serial that each peer presented last, and how often each address
// connected in plaintext.
type callers struct {
	changed func() // called when somebody is met for the first time, or with another serial

	mu        sync.Mutex
	peers     map[string]api.Caller // guarded by mu, by SPIFFE ID
	plaintext map[string]int64      // guarded by mu, by IP address
}

// otherCallers stands for the addresses beyond [maxRemembered].
const otherCallers = "others"

func newCallers(changed func()) *callers {
	return &callers{changed: changed, peers: make(map[string]api.Caller), plaintext: make(map[string]int64)}
}

func (c *callers) presented(peer, serial string, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before, known := c.peers[peer]
	if before.Serial != serial {
		defer c.changed()
	}
	if !known && len(c.peers) >= maxRemembered {
		oldest, seen := "", now
		for id, caller := range c.peers {
			if !caller.Seen.After(seen) {
				oldest, seen = id, caller.Seen
			}
		}
		delete(c.peers, oldest)
	}
	c.peers[peer] = api.Caller{Serial: serial, Seen: now}
}

func (c *callers) spokePlaintext(address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.plaintext[address]; !known {
		if len(c.plaintext) >= maxRemembered {
			address = otherCallers
		} else {
			defer c.changed()
		}
	}
	c.plaintext[address]++
}

// limiter lets one message through for each key and interval, and counts the others.
type limiter struct {
	mu   sync.Mutex
	keys map[string]*limited // guarded by mu
}

type limited struct {
	next       time.Time
	suppressed int64
}

// logInterval is how often the same thing is logged at most.
const logInterval = 10 * time.Second

func newLimiter() *limiter { return &limiter{keys: make(map[string]*limited)} }

// allow tells whether to log, and how many messages with this key were left out before.
func (l *limiter) allow(key string) (suppressed int64, ok bool) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	entry := l.keys[key]
	if entry == nil {
		if len(l.keys) >= maxRemembered {
			clear(l.keys) // a flood of keys: begin anew rather than keep them all
		}
		entry = new(limited)
		l.keys[key] = entry
	}
	if now.Before(entry.next) {
		entry.suppressed++
		return 0, false
	}
	suppressed, entry.suppressed = entry.suppressed, 0
	entry.next = now.Add(logInterval)
	return suppressed, true
}
