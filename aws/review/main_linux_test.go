//go:build linux

package review_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"countersign.dev/aws/internal/awstest/ecsfake"
)

// TestMain enters namespaces of its own, which the double of ECS wants.
func TestMain(m *testing.M) {
	if err := ecsfake.Enter(); err != nil && !errors.Is(err, ecsfake.ErrUnavailable) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}
