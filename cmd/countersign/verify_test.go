package main

import (
	"testing"

	"countersign.dev/observe"
)

// TestLetIn is about the words of the table: what says "let in" has let somebody in.
func TestLetIn(t *testing.T) {
	for name, c := range map[string]struct {
		check observe.Check
		want  string
	}{
		"the handshake failed":    {observe.Check{Expected: "refused", Observed: "refused (alert: unknown certificate authority)", Result: observe.Pass}, "refused"},
		"closed without answer":   {observe.Check{Expected: "refused", Observed: "let in by TLS, then HTTP/2 reset: PROTOCOL_ERROR", Result: observe.Pass}, "refused"},
		"closed by another proxy": {observe.Check{Expected: "refused", Observed: "TLS 1.2: let in by TLS, then closed", Result: observe.Deviates}, "let in"},
		"answered":                {observe.Check{Expected: "refused", Observed: "TLS 1.2: answered HTTP 403", Result: observe.Deviates}, "let in"},
		"anonymous is wanted":     {observe.Check{Expected: "let in", Observed: "answered HTTP 200", Result: observe.Pass}, "let in"},
		"anonymous is kept out":   {observe.Check{Expected: "let in", Observed: "refused (alert: bad certificate)", Result: observe.Deviates}, "refused"},
		"not tried":               {observe.Check{Expected: "refused", Result: observe.Skipped}, "-"},
	} {
		c.check.Name = observe.CheckStranger
		if got := letIn(observe.Observation{Checks: []observe.Check{c.check}}, observe.CheckStranger); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if got := letIn(observe.Observation{}, observe.CheckStranger); got != "-" {
		t.Errorf("no such check: %q", got)
	}
}
