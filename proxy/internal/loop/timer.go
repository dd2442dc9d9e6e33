package loop

import (
	"container/heap"
	"time"
)

// slack is how much later than asked a timer may run: timers that are close to each other share one
// wake-up.
const slack = 10 * time.Millisecond

// Timer runs a callback on its loop at a time. To move the time to later costs nothing, and to stop
// the timer next to nothing, which is what happens at every request: the entry in the heap is looked at
// when its old time comes.
type Timer struct {
	l     *Loop
	f     func()
	when  time.Time // zero: not set
	at    time.Time // when the heap thinks it is
	index int       // in the heap, -1 when it is not there
}

// NewTimer makes a timer that is not set.
func (l *Loop) NewTimer(f func()) *Timer { return &Timer{l: l, f: f, index: -1} }

// After makes a timer that runs f after d.
func (l *Loop) After(d time.Duration, f func()) *Timer {
	t := l.NewTimer(f)
	t.Reset(d)
	return t
}

// Reset sets the timer to d from now.
func (t *Timer) Reset(d time.Duration) {
	ts := &t.l.timers
	if t.index >= 0 && t.when.IsZero() {
		ts.idle--
	}
	t.when = t.l.now.Add(d)
	if t.index >= 0 && !t.when.Before(t.at) {
		return
	}
	t.at = t.when
	if t.index >= 0 {
		heap.Fix(ts, t.index)
	} else {
		heap.Push(ts, t)
	}
	ts.arm()
}

// Stop unsets the timer. A stopped timer may be set again.
func (t *Timer) Stop() {
	if t.when.IsZero() {
		return
	}
	t.when = time.Time{}
	if t.index >= 0 {
		ts := &t.l.timers
		if ts.idle++; ts.idle > minSweep && ts.idle > len(ts.heap)/2 {
			ts.sweep()
		}
	}
}

// set tells whether the timer is to run.
func (t *Timer) set() bool { return !t.when.IsZero() }

// minSweep is the number of stopped timers that the heap may hold however few others there are.
const minSweep = 64

// timers is a heap by time, and the one timer of the runtime that wakes the loop for its first.
type timers struct {
	loop  *Loop
	heap  []*Timer
	due   []*Timer // storage of run
	idle  int      // timers in heap that were stopped
	alarm *time.Timer
	armed time.Time // when alarm goes off; zero when it does not
}

// arm makes sure that the loop wakes for the first timer.
func (ts *timers) arm() {
	if len(ts.heap) == 0 {
		return // an alarm that is still armed goes off once for nothing
	}
	first := ts.heap[0].at
	if !ts.armed.IsZero() && !first.Before(ts.armed) {
		return
	}
	ts.armed = first
	d := max(first.Sub(ts.loop.now), 0) + slack/2
	if ts.alarm == nil {
		ts.alarm = time.AfterFunc(d, func() { ts.loop.Post(ts.run) })
		return
	}
	ts.alarm.Reset(d)
}

// sweep takes the stopped timers out, which are the better part.
func (ts *timers) sweep() {
	kept := ts.heap[:0]
	for _, t := range ts.heap {
		if t.when.IsZero() {
			t.index = -1
			continue
		}
		t.index = len(kept)
		kept = append(kept, t)
	}
	clear(ts.heap[len(kept):])
	ts.heap, ts.idle = kept, 0
	heap.Init(ts)
}

// run calls what is due. A callback that sets its timer again, however soon, waits for the next run: the
// loop's time stands still meanwhile.
func (ts *timers) run() {
	ts.armed = time.Time{}
	until, due := ts.loop.now.Add(slack), ts.due[:0]
	for len(ts.heap) > 0 && !ts.heap[0].at.After(until) {
		t := ts.heap[0]
		if t.when.IsZero() { // was stopped
			heap.Pop(ts)
			ts.idle--
			continue
		}
		if t.when.After(until) { // was moved to later
			t.at = t.when
			heap.Fix(ts, 0)
			continue
		}
		heap.Pop(ts)
		due = append(due, t)
	}
	for _, t := range due {
		if t.when.IsZero() || t.index >= 0 { // stopped or set again by one before it
			continue
		}
		t.when = time.Time{}
		t.f()
	}
	clear(due)
	ts.due = due
	ts.arm()
}

// Len, Less, Swap, Push and Pop implement heap.Interface.
func (ts *timers) Len() int           { return len(ts.heap) }
func (ts *timers) Less(i, j int) bool { return ts.heap[i].at.Before(ts.heap[j].at) }

func (ts *timers) Swap(i, j int) {
	ts.heap[i], ts.heap[j] = ts.heap[j], ts.heap[i]
	ts.heap[i].index, ts.heap[j].index = i, j
}

func (ts *timers) Push(x any) {
	t := x.(*Timer)
	t.index = len(ts.heap)
	ts.heap = append(ts.heap, t)
}

func (ts *timers) Pop() any {
	n := len(ts.heap) - 1
	t := ts.heap[n]
	ts.heap[n] = nil
	ts.heap = ts.heap[:n]
	t.index = -1
	return t
}
