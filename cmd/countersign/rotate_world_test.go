package main

import (
	"errors"
	"testing"

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
