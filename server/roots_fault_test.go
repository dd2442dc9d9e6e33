package server

import (
	"testing"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/journal"
)

// TestKilledWhileTheRootChanges kills the server between any two changes of the disk in each step of
// another root. The next start has the state of before or of after, tells everybody so, and goes on to the
// end.
func TestKilledWhileTheRootChanges(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts many processes")
	}
	binary := faultyBinary(t)
	steps := []string{api.RotateStart, api.RotateActivate, api.RotateFinish}
	for n, step := range steps {
		for _, fault := range []string{"ca.rotate.recorded", "ca.rotate.changed", "server.rotate.changed"} {
			t.Run(step+" at "+fault, func(t *testing.T) {
				f := newFixture(t, colorapp)
				p := spawn(t, binary, f, "")
				for _, before := range steps[:n] {
					f.at(p.info).takes(api.RotationRequest{Step: before})
				}
				p.end()
				p = spawn(t, binary, f, fault)
				if _, err := f.at(p.info).admin.Rotate(t.Context(), api.RotationRequest{Step: step}); err == nil {
					t.Error("the step was taken to its end")
				}
				if !p.end() {
					t.Error("nobody was killed")
				}
				goOnAfter(t, binary, f, step, fault == "ca.rotate.recorded")
			})
		}
	}
}

// goOnAfter starts the server again and takes the steps that are left: the one that was cut off again when
// it has left everything as it was.
func goOnAfter(t *testing.T, binary string, f *fixture, step string, nothing bool) {
	t.Helper()
	p := spawn(t, binary, f, "")
	if !p.ready {
		p.end()
		t.Fatalf("the server does not start again:\n%s", p.stderr.String())
	}
	r := f.at(p.info)
	rotation, err := r.admin.Rotation(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	after := map[string]string{api.RotateStart: api.RotateActivate, api.RotateActivate: api.RotateFinish, api.RotateFinish: ""}[step]
	before := map[string]string{api.RotateStart: "", api.RotateActivate: api.RotateActivate, api.RotateFinish: api.RotateFinish}[step]
	want := after
	if nothing {
		want = before
	}
	if rotation.Next != want {
		t.Errorf("the next step is %q, want %q", rotation.Next, want)
	}
	if p.info.CAPin != rotation.Roots[0].Pin {
		t.Errorf("the pin is %s, and %s signs", p.info.CAPin, rotation.Roots[0].Pin)
	}
	teller := r.joinAs("colorgateway", "colorgateway-1") // by the pin that the server tells
	told := teller.watch(0).told(len(rotation.Roots))
	if nothing && rotation.Next == "" {
		rotation = r.takes(api.RotationRequest{Step: api.RotateStart})
		told = teller.watch(0).told(len(rotation.Roots))
	}
	if rotation.Next == api.RotateActivate {
		if err := teller.reportAs(api.Report{Bundle: digestOfPEM(t, told.Bundle)}); err != nil {
			t.Fatal(err)
		}
		rotation = r.takes(api.RotationRequest{Step: api.RotateActivate})
		r.info.CAPin = rotation.Roots[0].Pin
		if err := teller.renew(); err != nil {
			t.Fatal(err)
		}
	}
	if rotation.Next == api.RotateFinish {
		if err := teller.reportAs(api.Report{Bundle: digestOfPEM(t, told.Bundle)}); err != nil {
			t.Fatal(err)
		}
		rotation = r.takes(api.RotationRequest{Step: api.RotateFinish})
	}
	if rotation.Next != "" || len(rotation.Roots) != 1 {
		t.Errorf("at the end: %+v", rotation)
	}
	p.end()
	if _, err := journal.Verify(ca.JournalDir(f.cfg.State), p.info.JournalKey); err != nil {
		t.Error(err)
	}
}
