package budget

import (
	"context"
	"encoding/json"
	"testing"

	"countersign.dev/secret"
)

// memory is a store of one secret for one caller.
type memory struct {
	value, staged []byte
	writes        int
}

func (m *memory) Read(context.Context, string, string) ([]byte, string, error) {
	if m.value == nil {
		return nil, "", secret.ErrNotFound
	}
	return m.value, "current", nil
}

func (m *memory) Stage(_ context.Context, _, _ string, value []byte) (string, error) {
	m.staged = value
	return "staged", nil
}

func (m *memory) Replace(context.Context, string, string, string) error {
	m.value = m.staged
	m.writes++
	return nil
}

func mustMarshal(t *testing.T, state record) []byte {
	t.Helper()
	text, err := json.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
