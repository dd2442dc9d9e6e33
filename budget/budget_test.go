package budget

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"countersign.dev/secret"
	"countersign.dev/secret/filestore"
)

const name = "payments/pca.budget"

// november is a clock in the middle of a month.
func november() time.Time { return time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC) }

func newStore(t *testing.T) (*filestore.Store, string) {
	t.Helper()
	dir := t.TempDir()
	if err := filestore.GenerateIdentity(filepath.Join(dir, "id.age")); err != nil {
		t.Fatal(err)
	}
	identity, err := filestore.LoadIdentity(filepath.Join(dir, "id.age"))
	if err != nil {
		t.Fatal(err)
	}
	store, err := filestore.Create(filepath.Join(dir, "store"), identity)
	if err != nil {
		t.Fatal(err)
	}
	return store, dir
}

// used is what a fresh reader of the store sees.
func used(t *testing.T, store Store, now func() time.Time) int {
	t.Helper()
	n, _, _, err := New(store, name, 1, now).State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func mustSpend(t *testing.T, b *Budget, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if err := b.Spend(t.Context(), id); err != nil {
			t.Fatalf("spending for %s: %v", id, err)
		}
	}
}

// TestSpend counts up to the limit, each id once, and says what to do then.
func TestSpend(t *testing.T) {
	store, _ := newStore(t)
	b := New(store, name, 3, november)
	mustSpend(t, b, "a", "b", "a", "b", "c", "a")
	err := b.Spend(t.Context(), "d")
	if !errors.Is(err, ErrSpent) {
		t.Fatalf("the fourth gave %v", err)
	}
	for _, want := range []string{"3 of 3", "2026-11 (UTC)", name, "before 2026-12-01T00:00:00Z", "raise budget.certificates"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	mustSpend(t, b, "a", "c") // what was counted may go on
	n, limit, month, err := New(store, name, 3, november).State(t.Context())
	if n != 3 || limit != 3 || month != "2026-11" || err != nil {
		t.Errorf("State = %d, %d, %q, %v", n, limit, month, err)
	}
	if err := New(store, "payments/other.budget", 0, november).Spend(t.Context(), "a"); !errors.Is(err, ErrSpent) {
		t.Errorf("a budget of nothing gave %v", err)
	}
}

// TestMonths goes over the border of a month, and back.
func TestMonths(t *testing.T) {
	store, _ := newStore(t)
	at := time.Date(2026, 11, 30, 23, 59, 59, 0, time.UTC)
	b := New(store, name, 2, func() time.Time { return at })
	mustSpend(t, b, "a", "b")
	at = at.In(time.FixedZone("east", 3*3600)) // there it is December already
	if err := b.Spend(t.Context(), "c"); !errors.Is(err, ErrSpent) {
		t.Errorf("another time zone gave %v", err)
	}
	at = at.Add(time.Second)
	mustSpend(t, b, "b") // of the month before: counted then
	if n := used(t, store, func() time.Time { return at }); n != 0 {
		t.Errorf("%d are used in the new month", n)
	}
	mustSpend(t, b, "c", "d")
	// Back into November: nothing comes back, and the count stays December's.
	at = at.Add(-24 * time.Hour)
	err := b.Spend(t.Context(), "e")
	if !errors.Is(err, ErrSpent) || !strings.Contains(err.Error(), "before 2027-01-01T00:00:00Z") ||
		!strings.Contains(err.Error(), `if another one was ahead when it counted, find out`) || !strings.Contains(err.Error(), `"month":"2026-11"`) {
		t.Errorf("a clock that went back gave %v", err)
	}
	at = time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	mustSpend(t, b, "e")
}

// TestParallel lets many goroutines, on two budgets of one store, spend: never more than the limit.
func TestParallel(t *testing.T) {
	store, _ := newStore(t)
	two := []*Budget{New(store, name, 20, november), New(store, name, 20, november)}
	var got atomic.Int32
	var group sync.WaitGroup
	for i := range 50 {
		group.Go(func() {
			switch err := two[i%2].Spend(t.Context(), fmt.Sprint("request ", i)); {
			case err == nil:
				got.Add(1)
			case !errors.Is(err, ErrSpent):
				t.Error(err)
			}
		})
	}
	group.Wait()
	if got.Load() != 20 || used(t, store, november) != 20 {
		t.Errorf("%d of 50 were allowed, and %d counted; want 20", got.Load(), used(t, store, november))
	}
}

// childVariable makes a process of TestProcesses that spends.
const childVariable = "BUDGET_TEST_CHILD"

// TestProcesses lets two processes spend on one store at the same time.
func TestProcesses(t *testing.T) {
	if child := os.Getenv(childVariable); child != "" {
		spendAsChild(t, child)
		return
	}
	store, dir := newStore(t)
	var children []*exec.Cmd
	var outputs []*strings.Builder
	for _, who := range []string{"x", "y"} {
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProcesses$")
		child.Env = append(os.Environ(), childVariable+"="+who+":"+dir)
		var output strings.Builder
		child.Stdout, child.Stderr = &output, &output
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		children, outputs = append(children, child), append(outputs, &output)
	}
	total := 0
	for i, child := range children {
		if err := child.Wait(); err != nil {
			t.Fatalf("%v\n%s", err, outputs[i])
		}
		total += strings.Count(outputs[i].String(), "allowed\n")
	}
	if total != 20 || used(t, store, november) != 20 {
		t.Errorf("two processes spent %d, and %d are counted; want 20", total, used(t, store, november))
	}
}

func spendAsChild(t *testing.T, child string) {
	who, dir, _ := strings.Cut(child, ":")
	identity, err := filestore.LoadIdentity(filepath.Join(dir, "id.age"))
	if err != nil {
		t.Fatal(err)
	}
	store, err := filestore.Open(filepath.Join(dir, "store"), identity)
	if err != nil {
		t.Fatal(err)
	}
	b := New(store, name, 20, november)
	for i := range 15 {
		switch err := b.Spend(t.Context(), fmt.Sprint(who, i)); {
		case err == nil:
			fmt.Println("allowed")
		case !errors.Is(err, ErrSpent):
			t.Fatal(err)
		}
	}
}

// faulty is a store whose answers are lost or wrong.
type faulty struct {
	Store
	read, stage, replace error // given instead of an answer
	late                 bool  // what was asked for is done all the same
	replaces             int
}

func (f *faulty) Read(ctx context.Context, name, version string) ([]byte, string, error) {
	if f.read != nil {
		return nil, "", f.read
	}
	return f.Store.Read(ctx, name, version)
}

func (f *faulty) Stage(ctx context.Context, name, id string, value []byte) (string, error) {
	if f.stage != nil {
		return "", f.stage
	}
	return f.Store.Stage(ctx, name, id, value)
}

func (f *faulty) Replace(ctx context.Context, name, version, replaces string) error {
	f.replaces++
	if f.replace == nil {
		return f.Store.Replace(ctx, name, version, replaces)
	}
	if f.late {
		if err := f.Store.Replace(ctx, name, version, replaces); err != nil {
			return err
		}
	}
	return f.replace
}

// TestStoreFails loses the store at each of its operations: nothing is allowed that is not counted, and what was counted
// although nobody heard of it is not counted again.
func TestStoreFails(t *testing.T) {
	gone := errors.New("the store is away")
	for fault, f := range map[string]*faulty{
		"read": {read: gone}, "stage": {stage: gone}, "replace": {replace: gone}, "late": {replace: gone, late: true},
		"never the same": {replace: &secret.ReplacedError{Name: name, Current: "another"}},
		"vanished":       {replace: fmt.Errorf("%w: removed", secret.ErrNotFound)},
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			f.Store, _ = newStore(t)
			b := New(f, name, 2, november)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := b.Spend(ctx, "a"); err == nil || errors.Is(err, ErrSpent) {
				t.Fatalf("Spend = %v", err)
			}
			if f.read != nil {
				if _, _, _, err := b.State(ctx); !errors.Is(err, gone) {
					t.Errorf("State = %v", err)
				}
			}
			want := 0
			if f.late {
				want = 1
			}
			if n := used(t, f.Store, november); n != want {
				t.Errorf("%d are counted, want %d", n, want)
			}
			f.read, f.stage, f.replace = nil, nil, nil
			mustSpend(t, b, "a", "b")
			if n := used(t, f.Store, november); n != 2 {
				t.Errorf("%d are counted after two requests", n)
			}
		})
	}
}

// templated is a store as a template leaves it: a version is current that reads as nothing.
type templated struct {
	Store
	id string
}

func (p *templated) Read(ctx context.Context, name, version string) ([]byte, string, error) {
	if p.id != "" {
		return nil, "", fmt.Errorf("%w: nothing has been written to it yet", secret.ErrNotFound)
	}
	return p.Store.Read(ctx, name, version)
}

func (p *templated) Replace(ctx context.Context, name, version, replaces string) error {
	if p.id != replaces && p.id != "" {
		return &secret.ReplacedError{Name: name, Expected: replaces, Current: p.id}
	}
	if p.id != "" {
		p.id, replaces = "", ""
	}
	return p.Store.Replace(ctx, name, version, replaces)
}

// TestPlaceholder begins where a template has left a value that is none.
func TestPlaceholder(t *testing.T) {
	store, _ := newStore(t)
	mustSpend(t, New(&templated{store, "made-by-a-template"}, name, 2, november), "a", "b")
	if n := used(t, store, november); n != 2 {
		t.Errorf("%d are counted", n)
	}
}

// TestDamaged finds something else in the secret's place: nothing is allowed, and the error says how to mend it.
func TestDamaged(t *testing.T) {
	for value, want := range map[string]error{
		"hello": secret.ErrCorrupt,
		"{}":    secret.ErrCorrupt,
		`{"format":1,"month":"2026-13","used":1}`:  secret.ErrCorrupt,
		`{"format":1,"month":"2026-11","used":-1}`: secret.ErrCorrupt,
		`{"format":1,"month":"2026-1","used":1}`:   secret.ErrCorrupt,
		`{"format":2,"month":"2026-11","used":1}`:  secret.ErrInvalid,
	} {
		store, _ := newStore(t)
		put(t, store, value)
		b := New(store, name, 5, november)
		err := b.Spend(t.Context(), "a")
		if !errors.Is(err, want) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", value, err)
			continue
		}
		if errors.Is(want, secret.ErrCorrupt) && !strings.Contains(err.Error(), `{"format":1,"month":"2026-11","used":NUMBER}`) {
			t.Errorf("%s: the error does not say what to write: %v", value, err)
		}
		// What the error advises helps.
		put(t, store, `{"format":1,"month":"2026-11","used":4}`)
		mustSpend(t, b, "a")
		if err := b.Spend(t.Context(), "b"); !errors.Is(err, ErrSpent) {
			t.Errorf("after it was mended: %v", err)
		}
	}
}

func put(t *testing.T, store *filestore.Store, value string) {
	t.Helper()
	id, err := store.Stage(t.Context(), name, "", []byte(value))
	if err == nil {
		err = store.Promote(t.Context(), name, id)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestManyRequests keeps the record small enough for a secret, however many there are.
func TestManyRequests(t *testing.T) {
	state := record{Format: format, Month: "2026-11"}
	for i := range remembered {
		state.Requests = append(state.Requests, digest(fmt.Sprint(i)))
	}
	store := &memory{value: mustMarshal(t, state)}
	mustSpend(t, New(store, name, remembered*10, november), "one more", "and another")
	got, err := parse(store.value)
	if err != nil || len(got.Requests) != remembered || got.Used != 2 || len(store.value) > secret.MaxValue {
		t.Errorf("%d requests, %d used, %d bytes, %v", len(got.Requests), got.Used, len(store.value), err)
	}
}

// TestManyInADay keeps below the quota of versions that Secrets Manager has, and never exceeds the budget for it.
func TestManyInADay(t *testing.T) {
	store := &memory{}
	at := november()
	clock := func() time.Time { return at }
	b := New(store, name, 850, clock)
	for i := range 200 {
		mustSpend(t, b, fmt.Sprint(i), fmt.Sprint(i)) // each once
	}
	if n := used(t, store, clock); n != 200 || store.writes != 65 {
		t.Errorf("%d are counted in %d writes; want 200 in 65", n, store.writes)
	}
	mustSpend(t, b, "one more")
	if n := used(t, store, clock); n != 210 {
		t.Errorf("%d are counted, want ten more at once", n)
	}
	// Another process knows none of those that were counted at once, until they are written down.
	mustSpend(t, New(store, name, 850, clock), "150")
	if n := used(t, store, clock); n != 210 {
		t.Errorf("%d are counted: what was written down counts again", n)
	}
	for i := range 2000 {
		if err := b.Spend(t.Context(), fmt.Sprint("more ", i)); err != nil {
			if !errors.Is(err, ErrSpent) || i != 649 {
				t.Errorf("number %d: %v", i, err)
			}
			break
		}
	}
	if n := used(t, store, clock); n != 850 || store.writes != 100 {
		t.Errorf("%d are counted in %d writes", n, store.writes)
	}
	// The next month begins with nothing: what was counted ahead was of the other one.
	b = New(store, name, 2000, clock)
	mustSpend(t, b, "ahead")
	at = at.AddDate(0, 1, 0)
	writes := store.writes
	mustSpend(t, b, "of december")
	if n := used(t, store, clock); n != 1 || store.writes != writes+1 {
		t.Errorf("%d are counted in the next month, in %d writes", n, store.writes-writes)
	}
	// Some that were counted at once count again in another process; those that have run out never allow more.
	at = at.AddDate(0, 0, 1)
	small := &memory{}
	b = New(small, name, 55, clock)
	for i := range 55 {
		mustSpend(t, b, fmt.Sprint(i))
	}
	if err := b.Spend(t.Context(), "beyond"); !errors.Is(err, ErrSpent) || used(t, small, clock) != 55 {
		t.Errorf("beyond: %v", err)
	}
}

// FuzzParse reads any bytes: what is accepted is written as it was understood.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"format":1,"month":"2026-11","used":4,"requests":["abc"]}`))
	f.Add([]byte(`{"format":1,"month":"0000-11"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		state, err := parse(text)
		if err != nil {
			return
		}
		again, err := parse(mustMarshal(t, state))
		if err != nil || again.Used != state.Used || again.Month != state.Month || len(again.Requests) != len(state.Requests) {
			t.Errorf("%q was read as %+v, and then as %+v, %v", text, state, again, err)
		}
	})
}
