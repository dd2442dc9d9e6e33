package rotate

import (
	"errors"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"countersign.dev/secret"
	"countersign.dev/secret/filestore"
)

func TestReadRecord(t *testing.T) {
	dir := t.TempDir()
	key := filepath.Join(dir, "id.age")
	if err := filestore.GenerateIdentity(key); err != nil {
		t.Fatal(err)
	}
	identity, err := filestore.LoadIdentity(key)
	if err != nil {
		t.Fatal(err)
	}
	store, err := filestore.Create(filepath.Join(dir, "store"), identity)
	if err != nil {
		t.Fatal(err)
	}
	if record, err := ReadRecord(t.Context(), store, "m/bundle"); err != nil || !reflect.DeepEqual(record, (Record{Format: recordFormat})) {
		t.Errorf("of nothing: %+v, %v", record, err)
	}
	want := Record{Format: recordFormat, Failures: 3, LastError: "no", LastErrorStep: StepIssue, LastErrorTime: time.Unix(1, 0).UTC()}
	if _, err := writeRecord(t.Context(), store, "m/bundle", want, ""); err != nil {
		t.Fatal(err)
	}
	if record, err := ReadRecord(t.Context(), store, "m/bundle"); err != nil || !reflect.DeepEqual(record, want) {
		t.Errorf("%+v, %v; want %+v", record, err, want)
	}
	if _, err := ReadRecord(t.Context(), store, "not a name"); !errors.Is(err, secret.ErrInvalid) {
		t.Errorf("%v, want ErrInvalid", err)
	}
	id, err := store.Stage(t.Context(), "m/other"+stateSuffix, "", []byte("not JSON"))
	if err == nil {
		err = store.Promote(t.Context(), "m/other"+stateSuffix, id)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ReadRecord(t.Context(), store, "m/other"); !errors.Is(err, secret.ErrCorrupt) {
		t.Errorf("%v, want ErrCorrupt", err)
	}
}
