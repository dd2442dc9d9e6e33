package h2

import "golang.org/x/net/http2"

// budget limits frames that make us work and do no work themselves: PING, SETTINGS, empty DATA,
// RST_STREAM of what was just opened, frames on closed streams (CVE-2019-9511 to 9518, CVE-2023-44487
// and kin). Useful frames and time earn it back.
type budget struct {
	left  int
	reset int
}

const (
	maxBudget = 1000 // frames that do no work
	maxResets = 200  // requests that the peer withdrew
	perTick   = 200
	resetTick = 100
)

func newBudget() budget { return budget{maxBudget, maxResets} }

func (b *budget) tick() {
	b.left = min(maxBudget, b.left+perTick)
	b.reset = min(maxResets, b.reset+resetTick)
}

// worked says that the peer has sent content or finished a request.
func (b *budget) worked() {
	b.left = min(maxBudget, b.left+1)
	b.reset = min(maxResets, b.reset+1)
}

// sent says that the peer is sent content: it will have to answer with WINDOW_UPDATE frames.
func (b *budget) sent(n int) { b.left = min(maxBudget, b.left+1+n>>10) }

// spend takes n from the budget and ends the connection when there is none.
func (c *Conn) spend(n int, what string) error {
	if c.budget.left -= n; c.budget.left < 0 {
		return c.fail(http2.ErrCodeEnhanceYourCalm, "too many "+what)
	}
	return nil
}

// spendReset takes a withdrawn request from the budget.
func (c *Conn) spendReset() error {
	if c.budget.reset--; c.budget.reset < 0 {
		return c.fail(http2.ErrCodeEnhanceYourCalm, "too many requests were withdrawn")
	}
	return nil
}
