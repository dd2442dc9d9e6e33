package main

import (
	"errors"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/rotate"
)

// TestNeverAnswered tells requests that will never be answered from those to be asked again.
func TestNeverAnswered(t *testing.T) {
	for code, never := range map[string]bool{api.CodeConflict: true, api.CodeRevoked: true, api.CodeUnavailable: false} {
		socket := fakeServer(t, map[string]any{api.PathIssue: &api.Error{Code: code, Message: "no"}})
		_, err := serverAuthority{api.NewAdmin(socket)}.Issue(t.Context(), rotate.Request{ID: "r"})
		if err == nil || errors.Is(err, rotate.ErrRequest) != never {
			t.Errorf("%s: %v", code, err)
		}
	}
}

// TestOwnWord tells what peers saw from what an instance says of itself.
func TestOwnWord(t *testing.T) {
	at := time.Now()
	for name, c := range map[string]struct {
		row  api.Status
		want rotate.Sighting
	}{
		"seen":      {api.Status{Serial: "0b", ObservedSerial: "0b", ObservedTime: at}, rotate.Sighting{Serial: "0b", By: rotate.ByPeers}},
		"unseen":    {api.Status{Serial: "0b"}, rotate.Sighting{Serial: "0b", By: rotate.ByReport}},
		"otherwise": {api.Status{Serial: "0b", ObservedSerial: "0a", ObservedTime: at}, rotate.Sighting{Serial: "0b", By: rotate.ByReport, Peers: "0a", PeersAt: at}},
	} {
		got := lookAt(t.Context(), rotate.Target{}, api.Instance{}, c.row, nil)
		if len(got) != 1 || got[0] != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
	seen := []rotate.Sighting{{By: rotate.ByHandshake}, {By: rotate.ByPeers}, {By: rotate.ByReport}, {By: rotate.ByReport, Away: true}}
	if got := seenAt(seen); got != "seen at 2 places (of 1 instance there is only its own word)" {
		t.Error(got)
	}
}
