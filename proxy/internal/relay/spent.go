package relay

// Nearly every exchange ends as it should: one connection, one answer, both ends complete. What it was made
// of is used again, so that such a request costs no allocation; what any other was made of is left to the
// garbage collector. Nobody may know what is used again, or one request would meet another's answer. So it
// is looked at twice, at the ends of rounds, when no call that knows it is under way: first it rests, and at a
// later look it is taken apart, if neither of its ends can still speak of it.

// maxSpare bounds what a worker keeps of each kind.
const maxSpare = 128

// spares are what ended exchanges were made of.
type spares struct {
	spent   []*Exchange // that have ended since the last look
	resting []*Exchange // that had ended before it

	exchanges []*Exchange
	fronts    []*h2Front
	backs     []*h2Back
}

// spend takes an exchange that has ended. Whoever called may still use it in this round.
func (w *Worker) spend(x *Exchange) {
	if !x.ordinary() {
		return
	}
	w.spares.spent = append(w.spares.spent, x)
	w.tendLater()
}

// look takes apart what has rested, and lets rest what has ended since.
func (s *spares) look() {
	for _, x := range s.resting {
		if !x.known() {
			s.keep(x)
		}
	}
	clear(s.resting)
	for _, x := range s.spent {
		clear(x.head.Fields) // what a caller said is not kept
		x.head.Fields = x.head.Fields[:0]
	}
	s.resting, s.spent = s.spent, s.resting[:0]
}

// ordinary tells whether an exchange has ended as it should, and was never in a list of those who wait.
func (x *Exchange) ordinary() bool {
	return x.over && x.responded && x.reqDone && !x.waited && !x.tunnel && x.tries == 1 && x.tried == nil && x.outcome.Flag == "" &&
		x.timer == nil && x.owedFront == 0 && x.owedBack == 0
}

// known tells whether one of its ends may still speak of the exchange.
func (x *Exchange) known() bool {
	switch b := x.back.(type) {
	case released:
	case *h2Back:
		if b.x != x || !b.st.Spent() {
			return true
		}
	default:
		return true
	}
	switch f := x.front.(type) {
	case *h1Server:
		return f.x == x
	case *h2Front:
		return &f.x != x || !f.st.Spent()
	default:
		return true
	}
}

// keep takes apart an exchange that nobody knows any more.
func (s *spares) keep(x *Exchange) {
	if b, ok := x.back.(*h2Back); ok {
		b.st.Release()
		*b = h2Back{}
		put(&s.backs, b)
	}
	fields := x.head.Fields
	if f, ok := x.front.(*h2Front); ok {
		f.st.Release()
		*f = h2Front{}
		f.x.head.Fields = fields
		put(&s.fronts, f)
		return
	}
	*x = Exchange{}
	x.head.Fields = fields
	put(&s.exchanges, x)
}

// exchange is one for a request by HTTP/1.1.
func (s *spares) exchange() *Exchange { return take(&s.exchanges) }

// front is the caller's end of an exchange by HTTP/2, with the exchange.
func (s *spares) front() *h2Front { return take(&s.fronts) }

// back is the other end of an exchange by HTTP/2.
func (s *spares) back() *h2Back { return take(&s.backs) }

// put keeps v unless there are many.
func put[T any](list *[]*T, v *T) {
	if len(*list) < maxSpare {
		*list = append(*list, v)
	}
}

// take takes the last of a list, or makes one.
func take[T any](list *[]*T) *T {
	n := len(*list)
	if n == 0 {
		return new(T)
	}
	v := (*list)[n-1]
	(*list)[n-1] = nil
	*list = (*list)[:n-1]
	return v
}
