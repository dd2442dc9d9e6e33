package whole_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"countersign.dev/aws/internal/awstest"
)

// site is a call of a process: the nth of its action on something. The tries of a call are one.
type site struct {
	action, on string
	n          int
}

func (s site) String() string { return fmt.Sprintf("%s on %s, call %d", s.action, s.on, s.n) }

// injector lets calls of a process go wrong.
type injector struct {
	cloud *awstest.Cloud

	mu          sync.Mutex
	invocations map[string]site // of the calls so far, by what is the same in all their tries
	calls       []site          // in their order
	counts      map[site]int
	at          *site // nil: nowhere
	fault       fault
	hit         bool // it was reached
	lost        bool // the answer to the call that is carried out now is
}

// fault is what goes wrong at a site.
type fault struct {
	// once: the first try of the call. For good: all calls from then on. Neither: all tries of the call.
	once, forGood bool
	// answer takes the place of the service's; nil lets the service answer.
	answer func(s site) *http.Response
	// lose has the call carried out, and the connection broken.
	lose bool
	// slow is how long the service takes; silent never ends.
	slow   time.Duration
	silent bool
	// before is done when the site is reached for the first time.
	before func()
}

func newInjector(cloud *awstest.Cloud) *injector {
	i := &injector{cloud: cloud}
	i.begin()
	cloud.Fault(i.see)
	cloud.Lose(i.loses)
	return i
}

// begin forgets the calls of the process before.
func (i *injector) begin() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.invocations, i.counts, i.calls, i.hit = map[string]site{}, map[site]int{}, nil, false
}

// set has a fault happen at a site of the next process.
func (i *injector) set(at site, f fault) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.at, i.fault = &at, f
}

// end lets everything go well again, and tells whether the fault has happened.
func (i *injector) end() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.at = nil
	return i.hit
}

// trace are the calls of the last process.
func (i *injector) trace() []site {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.calls)
}

// siteOf finds out which call a request is, and whether it is its first try.
func (i *injector) siteOf(r *http.Request, action string) (site, bool) {
	id := r.Header.Get("Amz-Sdk-Invocation-Id")
	i.mu.Lock()
	defer i.mu.Unlock()
	if known, again := i.invocations[id]; again {
		return known, false
	}
	var in struct {
		SecretID string `json:"SecretId"`
		Service  string
	}
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	_ = json.Unmarshal(body, &in) // other protocols have other sites
	kind := site{action: action, on: "it"}
	switch name := in.SecretID; {
	case strings.HasSuffix(name, ".rotation"):
		kind.on = "the record"
	case strings.HasSuffix(name, ".budget"):
		kind.on = "the budget"
	case name != "":
		kind.on = "the secret"
	}
	i.counts[kind]++
	kind.n = i.counts[kind]
	i.invocations[id] = kind
	i.calls = append(i.calls, kind)
	return kind, true
}

// see is the front's fault.
func (i *injector) see(r *http.Request, action string) *http.Response {
	if r.Header.Get("Amz-Sdk-Invocation-Id") == "" || !strings.Contains(r.Header.Get("User-Agent"), "countersign") {
		return nil // the test's own
	}
	here, first := i.siteOf(r, action)
	i.mu.Lock()
	f, at := i.fault, i.at
	same := at != nil && here == *at
	reached := same && first && !i.hit
	happens := same && (first || !f.once) || at != nil && i.hit && f.forGood
	i.hit = i.hit || reached
	i.mu.Unlock()
	if reached && f.before != nil {
		f.before()
	}
	switch {
	case !happens:
		return nil
	case f.silent:
		<-r.Context().Done()
		return nil
	case f.slow > 0:
		timer := time.NewTimer(f.slow)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
		}
	case f.lose:
		i.mu.Lock()
		i.lost = true
		i.mu.Unlock()
	}
	if f.answer == nil {
		return nil
	}
	return f.answer(here)
}

// loses tells the front whether the answer to what was just carried out is lost.
func (i *injector) loses(action string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	lost := i.lost && i.at != nil && action == i.at.action
	if lost {
		i.lost = false
	}
	return lost
}

// refusing answers as the JSON protocols of AWS do.
func refusing(status int, code, message string) func(site) *http.Response {
	return func(s site) *http.Response {
		body, _ := json.Marshal(map[string]string{"__type": code, "message": strings.ReplaceAll(message, "ACTION", s.action)})
		return &http.Response{
			StatusCode: status, Body: io.NopCloser(bytes.NewReader(body)),
			Header: http.Header{"Content-Type": {"application/x-amz-json-1.1"}, "X-Amzn-Errortype": {code}},
		}
	}
}
