package main

import (
	"encoding/json"
	"testing"
	"time"

	"countersign.dev/expiry"
	"countersign.dev/rotate"
)

// TestCheckRotationHangs: a rotation holds its lease, has asked for a certificate and comes no further. Nothing was made
// current, nothing fails, and what is served is as it should be.
func TestCheckRotationHangs(t *testing.T) {
	l := newSilentLab(t, "18h", "reload")
	l.join(t)
	l.healthy(t)
	asked := time.Now().UTC().Add(-time.Hour).Truncate(time.Second)
	id := asked.Format("20060102T150405Z") + "-0123456789abcdef"
	if _, err := l.store.Stage(t.Context(), "m/api", id+"-req", []byte("a key that waits")); err != nil {
		t.Fatal(err)
	}
	lease, err := l.store.Lease(t.Context(), "m/api", "a rotation", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	var statuses []rotate.Status
	if err := json.Unmarshal([]byte(l.must(t, "rotate", "status", "--socket", l.socket, "--output", "json")), &statuses); err != nil {
		t.Fatal(err)
	}
	if len(statuses) != 1 || statuses[0].Step != rotate.StepIssue || !statuses[0].Requested.Equal(asked) || statuses[0].Bringing != id || statuses[0].Holder != "a rotation" {
		t.Errorf("rotate status: %+v, want the request of %s", statuses, asked)
	}
	checked := l.check(t)
	has(t, checked, expiry.CodeRotationStuck, "is still at the step issue, for 1h", "a rotation works on it", "countersign rotate once api")
	if len(checked.Findings) != 1 || checked.Worst != expiry.Critical {
		t.Errorf("one thing is wrong, and there are %+v", checked.Findings)
	}
	if checked := l.check(t, "--stuck", "2h"); len(checked.Findings) != 0 {
		t.Errorf("within the time that it may take there are %+v", checked.Findings)
	}
	if err := lease.Release(t.Context()); err != nil { // it was killed
		t.Fatal(err)
	}
	has(t, l.check(t), expiry.CodeRotationStuck, "stands at the step issue, and nobody works on it")
	l.must(t, "rotate", "once", "--force", "--no-deploy", "--socket", l.socket)
	l.take(t)
	l.report(t, "")
	l.healthy(t)
}
