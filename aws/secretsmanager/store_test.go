package secretsmanager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/google/go-cmp/cmp"

	"countersign.dev/aws/internal/awstest"
	"countersign.dev/rotate"
	"countersign.dev/secret"
)

var (
	_ rotate.Store   = (*Store)(nil)
	_ rotate.Lease   = (*Lease)(nil)
	_ rotate.Thrifty = (*Store)(nil)
)

// start gives a store of the account's root, on doubles of its own front, and a name that nobody else has.
func start(t *testing.T) (*Store, *awstest.Cloud, string) {
	t.Helper()
	cloud := awstest.Start(t)
	return newStore(cloud.Admin(), ""), cloud, fmt.Sprintf("%s/%d", t.Name(), time.Now().UnixNano())
}

// id makes an id as rotations make them.
func id(n int) string { return fmt.Sprintf("20260101T000000Z-%016x", n) }

// stage and promote are for what is to succeed.
func stage(t *testing.T, s *Store, name, id, value string) string {
	t.Helper()
	got, err := s.Stage(t.Context(), name, id, []byte(value))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func replace(t *testing.T, s *Store, name, id, replaces string) {
	t.Helper()
	if err := s.Replace(t.Context(), name, id, replaces); err != nil {
		t.Fatal(err)
	}
}

// reads asserts what a version holds.
func reads(t *testing.T, s secret.Reader, name, version, wantID, want string) {
	t.Helper()
	value, got, err := s.Read(t.Context(), name, version)
	if err != nil || got != wantID || string(value) != want {
		t.Errorf("%q is %q, %.40q, %v; want %q, %.40q", version, got, value, err, wantID, want)
	}
}

// staged gives the stages by id.
func staged(t *testing.T, s *Store, name string) map[string]string {
	t.Helper()
	versions, err := s.Versions(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for _, version := range versions {
		var words []string
		for _, stage := range version.Stages {
			words = append(words, string(stage))
		}
		all[version.ID] = strings.Join(words, " ")
		if version.Created.IsZero() {
			t.Errorf("%s has no time", version.ID)
		}
	}
	return all
}

func TestLifeOfASecret(t *testing.T) {
	s, _, name := start(t)
	if _, _, err := s.Read(t.Context(), name, ""); !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("a secret that is not there: %v", err)
	}
	if _, err := s.Versions(t.Context(), name); !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("its versions: %v", err)
	}
	if err := s.Remove(t.Context(), name, id(1)); err != nil {
		t.Errorf("removing from it: %v", err)
	}
	stage(t, s, name, id(1), "one")
	reads(t, s, name, "pending", id(1), "one")
	if _, _, err := s.Read(t.Context(), name, ""); !errors.Is(err, secret.ErrNotFound) || !strings.Contains(err.Error(), "nothing has been written") {
		t.Errorf("nothing is current yet: %v", err)
	}
	replace(t, s, name, id(1), "")
	reads(t, s, name, "", id(1), "one")
	reads(t, s, name, "current", id(1), "one")
	reads(t, s, name, id(1), id(1), "one")
	if err := s.Promote(t.Context(), name, "previous"); !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("going back to nothing: %v", err)
	}
	stage(t, s, name, id(2), "two")
	reads(t, s, name, "", id(1), "one")
	replace(t, s, name, id(2), id(1))
	reads(t, s, name, "previous", id(1), "one")
	want := map[string]string{placeholderID: "", id(1): "previous", id(2): "current"}
	got := staged(t, s, name)
	delete(got, placeholderID) // AWS and moto differ in when it goes
	delete(want, placeholderID)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("stages (-want +got):\n%s", diff)
	}
	if err := s.Promote(t.Context(), name, "previous"); err != nil {
		t.Fatal(err)
	}
	reads(t, s, name, "", id(1), "one")
	reads(t, s, name, "previous", id(2), "two")
	if _, _, err := s.Read(t.Context(), name, "pending"); !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("something is pending: %v", err)
	}
}

// A template makes a secret with the placeholder, under an id that nobody knows.
func TestPlaceholderOfATemplate(t *testing.T) {
	s, _, name := start(t)
	made, err := s.client.CreateSecret(t.Context(), &sdk.CreateSecretInput{Name: aws.String(name), SecretString: aws.String(Placeholder)})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = s.Read(t.Context(), name, "")
	if !errors.Is(err, secret.ErrNotFound) || !strings.Contains(err.Error(), "countersign rotate once") {
		t.Errorf("reading it: %v", err)
	}
	stage(t, s, name, id(1), "one")
	replace(t, s, name, id(1), "") // nothing that counts is replaced
	reads(t, s, aws.ToString(made.ARN), "", id(1), "one")
	if err := s.Replace(t.Context(), name, aws.ToString(made.VersionId), id(1)); !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("making the placeholder current again: %v", err)
	}
}

// AWS makes the first version of a secret current, whatever it is staged as.
func TestSecretWithoutAValue(t *testing.T) {
	s, _, name := start(t)
	if _, err := s.client.CreateSecret(t.Context(), &sdk.CreateSecretInput{Name: aws.String(name)}); err != nil {
		t.Fatal(err)
	}
	stage(t, s, name, id(1), "one")
	if _, _, err := s.Read(t.Context(), name, ""); !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("what was only staged is current: %v", err)
	}
	reads(t, s, name, "pending", id(1), "one")
}

func TestStageIsIdempotent(t *testing.T) {
	s, _, name := start(t)
	stage(t, s, name, id(1), "one")
	stage(t, s, name, id(1), "one")
	if _, err := s.Stage(t.Context(), name, id(1), []byte("two")); !errors.Is(err, secret.ErrConflict) {
		t.Errorf("another value: %v", err)
	}
	reads(t, s, name, id(1), id(1), "one")
	replace(t, s, name, id(1), "")
	stage(t, s, name, id(1), "one")
	if _, _, err := s.Read(t.Context(), name, "pending"); !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("the current version became pending: %v", err)
	}
	digest := stage(t, s, name, "", "three")
	if again := stage(t, s, name, "", "three"); again != digest || len(digest) != 64 {
		t.Errorf("ids %q and %q", digest, again)
	}
	if other := stage(t, s, name+"x", "", "three"); other == digest {
		t.Error("two secrets have one id for one value")
	}
	replace(t, s, name, digest, id(1))
	stage(t, s, name, "", "four")
	// What was there before and has a label still becomes pending again.
	stage(t, s, name, id(1), "one")
	reads(t, s, name, "pending", id(1), "one")
	reads(t, s, name, "previous", id(1), "one")
}

// A request has to outlive the version that is staged after it.
func TestStagedUnderAnIdStaysUntilItIsRemoved(t *testing.T) {
	s, _, name := start(t)
	pending := stage(t, s, name, "", "pending")
	stage(t, s, name, id(1)+"-req", "request")
	reads(t, s, name, "pending", pending, "pending")
	reads(t, s, name, id(1)+"-req", id(1)+"-req", "request")
	stage(t, s, name, id(1), "answer")
	noted := stage(t, s, name, "", "noted")
	stage(t, s, name, "", "noted later")
	got := staged(t, s, name)
	if _, ok := got[id(1)+"-req"]; !ok || got[id(1)] != "" {
		t.Errorf("the versions are %v", got)
	}
	if _, ok := got[noted]; ok {
		t.Errorf("what nobody needs is still listed: %v", got)
	}
	for range 2 {
		if err := s.Remove(t.Context(), name, id(1)+"-req"); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := staged(t, s, name)[id(1)+"-req"]; ok {
		t.Error("it was removed, and is listed")
	}
	if err := s.Replace(t.Context(), name, id(1)+"-req", ""); !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("making a removed version current: %v", err)
	}
	// Staged again with the same value, it is there again.
	stage(t, s, name, id(1)+"-req", "request")
	reads(t, s, name, id(1)+"-req", id(1)+"-req", "request")
	if _, ok := staged(t, s, name)[id(1)+"-req"]; !ok {
		t.Error("it was staged again, and is not listed")
	}
}

func TestRemove(t *testing.T) {
	s, _, name := start(t)
	stage(t, s, name, id(1), "one")
	replace(t, s, name, id(1), "")
	if err := s.Remove(t.Context(), name, ""); !errors.Is(err, secret.ErrInvalid) {
		t.Errorf("no version: %v", err)
	}
	for _, version := range []string{"current", id(1)} {
		if err := s.Remove(t.Context(), name, version); !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("removing the current one: %v", err)
		}
	}
	stage(t, s, name, id(2), "two")
	replace(t, s, name, id(2), id(1))
	if err := s.Remove(t.Context(), name, "previous"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Read(t.Context(), name, "previous"); !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("the way back leads to what was removed: %v", err)
	}
	for _, version := range []string{"pending", id(7)} {
		if err := s.Remove(t.Context(), name, version); err != nil {
			t.Errorf("removing what is not there: %v", err)
		}
	}
}

func TestRefusals(t *testing.T) {
	s, cloud, name := start(t)
	stage(t, s, name, id(1), "one")
	replace(t, s, name, id(1), "")
	asked := len(cloud.Calls())
	write := func(name, id, value string) error {
		_, err := s.Stage(t.Context(), name, id, []byte(value))
		return err
	}
	tests := map[string]struct {
		err  error
		want string
	}{
		"a short id":             {write(name, "2027-01", "x"), "takes 32 to 64"},
		"a long id":              {write(name, strings.Repeat("a", 65), "x"), "version id"},
		"the board":              {write(name, boardID, "x"), "the store's own"},
		"the placeholder's id":   {write(name, placeholderID, "x"), "the store's own"},
		"the placeholder":        {write(name, id(2), Placeholder+"\n"), "stands for none"},
		"nothing":                {write(name, id(2), ""), "empty"},
		"more than 64 KiB":       {write(name, id(2), strings.Repeat("x", secret.MaxValue+1)), "at most 65536"},
		"no name":                {write("a b", id(2), "x"), "name of a secret"},
		"half an ARN":            {write("arn:aws:secretsmanager:eu-central-1:1:secret:x", id(2), "x"), "ARN of a secret"},
		"promoting nothing":      {s.Replace(t.Context(), name, "", ""), "say which"},
		"replacing a stage":      {s.Replace(t.Context(), name, id(1), "current"), "stage's name"},
		"a lease on an ARN":      {leaseError(s, t.Context(), "arn:aws:secretsmanager:eu-central-1:123456789012:secret:x-AbCdEf", "me", time.Minute), "write the secret's name"},
		"a lease for ever":       {leaseError(s, t.Context(), name, "me", 48*time.Hour), "time of a lease"},
		"a lease for nobody":     {leaseError(s, t.Context(), name, "", time.Minute), "holder"},
		"a holder out of labels": {leaseError(s, t.Context(), name, strings.Repeat("ä", 99), time.Minute), "holder"},
	}
	for name, test := range tests {
		if !errors.Is(test.err, secret.ErrInvalid) || !strings.Contains(test.err.Error(), test.want) {
			t.Errorf("%s: %v", name, test.err)
		}
	}
	if calls := cloud.Calls()[asked:]; len(calls) > 0 {
		t.Errorf("AWS was asked: %+v", calls)
	}
	for _, version := range []string{"no-id-of-aws", boardID} {
		if _, _, err := s.Read(t.Context(), name, version); !errors.Is(err, secret.ErrNotFound) {
			t.Errorf("reading %s: %v", version, err)
		}
	}
	if _, _, err := s.Read(t.Context(), name, id(9)); !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("reading a version that is not there: %v", err)
	}
	// An ARN is never made.
	arn := "arn:aws:secretsmanager:eu-central-1:123456789012:secret:none/such-AbCdEf"
	if err := write(arn, id(2), "x"); !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("writing to an ARN that is not there: %v", err)
	}
}

func leaseError(s *Store, ctx context.Context, name, holder string, ttl time.Duration) error {
	_, err := s.Lease(ctx, name, holder, ttl)
	return err
}

func TestValues(t *testing.T) {
	s, _, name := start(t)
	for i, value := range [][]byte{{0xff, 0, 1}, bytes.Repeat([]byte("x"), secret.MaxValue), []byte(" é\r\n")} {
		if _, err := s.Stage(t.Context(), name, id(i), value); err != nil {
			t.Fatal(err)
		}
		got, _, err := s.Read(t.Context(), name, "pending")
		if err != nil || !bytes.Equal(got, value) {
			t.Errorf("%d bytes became %d, %v", len(value), len(got), err)
		}
	}
}

// Of many who replace one version, one does.
func TestReplaceIsASwap(t *testing.T) {
	s, _, name := start(t)
	const racers = 12 // each version has a label of its own, and a secret room for twenty
	stage(t, s, name, id(racers), "before")
	replace(t, s, name, id(racers), "")
	for i := range racers {
		stage(t, s, name, id(i), fmt.Sprint("value ", i))
	}
	var mu sync.Mutex
	var winners []string
	var group sync.WaitGroup
	for i := range racers {
		group.Go(func() {
			err := s.Replace(t.Context(), name, id(i), id(racers))
			mu.Lock()
			defer mu.Unlock()
			replaced, ok := errors.AsType[*secret.ReplacedError](err)
			switch {
			case err == nil:
				winners = append(winners, id(i))
			case !ok || replaced.Expected != id(racers) || replaced.Current == "":
				t.Errorf("racer %d: %v", i, err)
			}
		})
	}
	group.Wait()
	if len(winners) != 1 {
		t.Fatalf("%d have won: %v", len(winners), winners)
	}
	_, current, err := s.Read(t.Context(), name, "")
	if err != nil || current != winners[0] {
		t.Errorf("current is %s, %v; %s has won", current, err, winners[0])
	}
	replace(t, s, name, winners[0], id(racers)) // may be repeated
	if err := s.Replace(t.Context(), name, id(racers), ""); !errors.Is(err, secret.ErrReplaced) {
		t.Errorf("replacing nothing where something is: %v", err)
	}
}

func TestList(t *testing.T) {
	s, _, name := start(t)
	stage(t, s, name, id(1), "one")
	entries, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if version, ok := entry.Stage(secret.Pending); entry.Name == name && ok && version.ID == id(1) {
			return
		}
	}
	t.Errorf("%s is not in %+v", name, entries)
}

func TestRegion(t *testing.T) {
	if got := Region("arn:aws:secretsmanager:eu-west-1:123456789012:secret:a/b-AbCdEf"); got != "eu-west-1" {
		t.Error(got)
	}
	for region, want := range map[string]string{
		"eu-central-1": "arn:aws:secretsmanager:eu-central-1:*:secret:a-??????",
		"cn-north-1":   "arn:aws-cn:secretsmanager:cn-north-1:*:secret:a-??????", "us-gov-west-1": "arn:aws-us-gov:secretsmanager:us-gov-west-1:*:secret:a-??????",
	} {
		if got := (&Store{region: region}).resource("a"); got != want {
			t.Errorf("%s: %s", region, got)
		}
	}
}
