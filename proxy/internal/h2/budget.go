package h2

import "golang.org/x/net/http2"

// budget limits frames that make us work and do no work themselves: PING, SETTINGS, empty DATA,
// RST_STREAM of what was just opened, frames on closed streams (CVE-2019-9511 to 9518, CVE-2023-44487
// and kin). Useful frames and time earn it back.
type budget struct {
	left      int
	reset     int
	maxResets int
}

const (
	maxBudget = 1000 // frames that do no work
	perTick   = 200
	// dribble is the size of a piece that is worth its WINDOW_UPDATE: a peer that opens its window by
	// less, while more waits, makes us work for nothing (CVE-2019-9511).
	dribble = 1 << 10
)

// newBudget lets a peer withdraw all that it may have open, twice: a crowd of callers that leaves at
// once must not end the connection of those who stay.
func newBudget(maxStreams int) budget { return budget{maxBudget, 2 * maxStreams, 2 * maxStreams} }

func (b *budget) tick() {
	b.left = min(maxBudget, b.left+perTick)
	b.reset = min(b.maxResets, b.reset+b.maxResets/2)
}

// worked says that the peer has sent content.
func (b *budget) worked() { b.left = min(maxBudget, b.left+1) }

// finished says that a request was answered whole. Content alone earns no right to withdraw: it may be
// one byte.
func (b *budget) finished() {
	b.worked()
	b.reset = min(b.maxResets, b.reset+1)
}

// sent says that the peer is sent content, which it will answer with WINDOW_UPDATE frames, for the stream
// and for the connection. cut tells that its window allowed no more.
func (b *budget) sent(n int, cut bool) {
	if n > 0 && (!cut || n >= dribble) {
		b.left = min(maxBudget, b.left+2+n>>10)
	}
}

// spend takes n from the budget and ends the connection when there is none.
func (c *Conn) spend(n int, what string) error {
	if c.budget.left -= n; c.budget.left < 0 {
		return c.fail(http2.ErrCodeEnhanceYourCalm, "too many "+what)
	}
	return nil
}

// blame resets a stream for a mistake of the peer's. At a server that counts like a request that was
// withdrawn: it is the same work for nothing (CVE-2025-8671).
func (c *Conn) blame(s *Stream, code Code) error {
	c.resetStream(s, code)
	if c.cfg.Client {
		return c.spend(1, "mistakes on streams")
	}
	return c.spendReset()
}

// spendReset takes a withdrawn request from the budget.
func (c *Conn) spendReset() error {
	if c.budget.reset--; c.budget.reset < 0 {
		return c.fail(http2.ErrCodeEnhanceYourCalm, "too many requests were withdrawn")
	}
	return nil
}
