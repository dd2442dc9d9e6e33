package secretsmanager

import (
	"bytes"
	"errors"
	"sync"
	"testing"

	"countersign.dev/aws/internal/awstest"
	"countersign.dev/secret"
)

// asked counts how often a value was asked for.
func asked(cloud *awstest.Cloud) int {
	count := 0
	for _, call := range cloud.Calls() {
		if call.Action == "secretsmanager:GetSecretValue" {
			count++
		}
	}
	return count
}

func TestReaderAsksOnceForEachVersion(t *testing.T) {
	s, cloud, name := start(t)
	stage(t, s, name, id(1), "one")
	replace(t, s, name, id(1), "")
	reader := s.Reader()
	before := asked(cloud)
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() { reads(t, reader, name, "", id(1), "one") })
	}
	group.Wait()
	if got := asked(cloud) - before; got != 1 {
		t.Errorf("the value was asked for %d times, want once", got)
	}
	value, _, err := reader.Read(t.Context(), name, "")
	if err != nil {
		t.Fatal(err)
	}
	clear(value) // it is the caller's
	reads(t, reader, name, "", id(1), "one")
	stage(t, s, name, id(2), "two")
	replace(t, s, name, id(2), id(1))
	before = asked(cloud)
	for range 3 {
		reads(t, reader, name, "", id(2), "two")
	}
	if got := asked(cloud) - before; got != 1 {
		t.Errorf("the next value was asked for %d times, want once", got)
	}
	reads(t, reader, name, "previous", id(1), "one")
	reads(t, reader, name, id(1), id(1), "one")
	if _, _, err := reader.Read(t.Context(), name, "pending"); !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("nothing is pending: %v", err)
	}
	if _, _, err := reader.Read(t.Context(), name+"x", ""); !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("another secret: %v", err)
	}
	if _, _, err := reader.Read(t.Context(), "a b", ""); !errors.Is(err, secret.ErrInvalid) {
		t.Errorf("no name: %v", err)
	}
}

// What a credential's parts are asked for by are ids, each of them another one: values of before do not stay in memory.
func TestReaderForgetsVersionsOfBefore(t *testing.T) {
	s, _, name := start(t)
	reader := s.Reader()
	var first []byte
	for n := 1; n <= 4; n++ {
		stage(t, s, name, id(n), "value "+id(n))
		reads(t, reader, name, id(n), id(n), "value "+id(n))
		if n == 1 {
			for _, kept := range reader.kept {
				first = kept.value
			}
		}
	}
	if len(reader.kept) != 1 {
		t.Errorf("it keeps %d values of one secret", len(reader.kept))
	}
	if len(first) == 0 || len(bytes.Trim(first, "\x00")) > 0 {
		t.Errorf("of the first there is %q in memory", first)
	}
	reads(t, reader, name, id(2), id(2), "value "+id(2))
}

func TestReaderClose(t *testing.T) {
	s, _, name := start(t)
	stage(t, s, name, id(1), "one")
	replace(t, s, name, id(1), "")
	reader := s.Reader()
	reads(t, reader, name, "", id(1), "one")
	kept := reader.kept[name+" "].value
	if string(kept) != "one" {
		t.Fatalf("it keeps %q", kept)
	}
	for range 2 {
		if err := reader.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if string(kept) != "\x00\x00\x00" {
		t.Errorf("after Close there is %q in memory", kept)
	}
	if _, _, err := reader.Read(t.Context(), name, ""); !errors.Is(err, ErrClosed) {
		t.Errorf("reading after Close: %v", err)
	}
}
