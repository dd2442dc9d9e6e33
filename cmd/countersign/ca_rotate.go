package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

type caRotateCmd struct {
	Run      caRotateRunCmd      `cmd:"" help:"Replace the root: every step in order, each as soon as it cuts nobody off."`
	Status   caRotateStatusCmd   `cmd:"" help:"Show the roots, and who stands in the way of the next step."`
	Start    caRotateStartCmd    `cmd:"" help:"Make the next root, and let everybody trust it."`
	Activate caRotateActivateCmd `cmd:"" help:"Let the next root sign, once everybody is seen to accept it."`
	Finish   caRotateFinishCmd   `cmd:"" help:"Remove the root of before, once nobody needs it."`
	Cancel   caRotateCancelCmd   `cmd:"" help:"Give up the next root, before it signs."`
	Issuer   caRotateIssuerCmd   `cmd:"" help:"Make another issuing CA below the same root."`
}

// rotateFlags are what all steps have in common.
type rotateFlags struct {
	caState
	outputFlag
}

// admin is the server that runs on the state: only it can see who would be cut off.
func (f rotateFlags) admin(p *process) (*api.Admin, error) {
	socket, err := f.running(p.ctx)
	if err != nil {
		return nil, err
	}
	if socket == "" {
		return nil, fmt.Errorf("no server runs on %s, and only a server sees who would be cut off; start it first", f.State)
	}
	return api.NewAdmin(socket), nil
}

// take asks for one step and shows what came of it.
func (f rotateFlags) take(p *process, request api.RotationRequest) error {
	admin, err := f.admin(p)
	if err != nil {
		return err
	}
	rotation, err := admin.Rotate(p.ctx, request)
	if conflict(err) {
		done, lookErr := doneBefore(p.ctx, admin, request.Step)
		if lookErr != nil {
			p.log.DebugContext(p.ctx, "cannot find out whether the step was taken before", "error", lookErr)
		}
		if done != nil {
			fmt.Fprintf(p.stderr, "countersign: %s is already done\n", request.Step)
			rotation, err = done, nil
		}
	}
	if err != nil {
		return answered(p, err)
	}
	return f.show(p, rotation)
}

// doneBefore gives how things stand when a step was refused because it was the last one that was taken: whoever repeats
// it, after a connection that broke perhaps, has what he wants. It is nil when that is not why.
func doneBefore(ctx context.Context, admin *api.Admin, step string) (*api.Rotation, error) {
	after := map[string]string{api.RotateActivate: api.RotateFinish, api.RotateFinish: ""}
	want, repeatable := after[step]
	if !repeatable {
		return nil, nil
	}
	rotation, err := admin.Rotation(ctx, false)
	if err != nil || rotation.Next != want {
		return nil, err
	}
	changes, err := rotationChanges(ctx, admin)
	if err != nil {
		return nil, err
	}
	for _, change := range slices.Backward(changes) {
		if change.Step == ca.StepIssuer || change.Step == ca.StepDrop {
			continue // of the same root, and at any time
		}
		if string(change.Step) == step {
			return rotation, nil
		}
		break
	}
	return nil, nil
}

// show writes the state of a rotation.
func (f rotateFlags) show(p *process, rotation *api.Rotation) error {
	if f.json() {
		return writeJSON(p, rotation)
	}
	return writeRotation(p.stdout, rotation)
}

// newRootFlags say what root to make.
type newRootFlags struct {
	Key        string        `enum:"ecdsa-p256,ecdsa-p384,rsa-3072,rsa-4096,ed25519," default:"" placeholder:"TYPE" help:"The type of the next CA's two keys: ecdsa-p256, ecdsa-p384, rsa-3072, rsa-4096 or ed25519. Default: as now."`
	RootLife   time.Duration `help:"How long the next root's certificate is valid, which is as long as its issuing CA's at least. Default: as now."`
	IssuerLife time.Duration `help:"How long its issuing CA's certificate is valid. Default: as now."`
}

func (f newRootFlags) request() api.RotationRequest {
	return api.RotationRequest{
		Step: api.RotateStart, Key: mesh.KeyType(f.Key), RootLife: mesh.Duration(f.RootLife), IssuerLife: mesh.Duration(f.IssuerLife),
	}
}

// forceFlag is the word by which a step cuts off who stands in its way.
type forceFlag struct {
	Force string `placeholder:"WORD" help:"With the word cut-off: take the step although some would be cut off. The journal keeps who they were."`
}

func (f forceFlag) check() error {
	if f.Force != "" && f.Force != api.CutOff {
		return usagef("--force takes the word %s, by which you say that those who are named may be cut off", api.CutOff)
	}
	return nil
}

type caRotateStartCmd struct {
	newRootFlags
	rotateFlags
}

// Help is what --help adds.
func (caRotateStartCmd) Help() string {
	return `Makes a root with an issuing CA below it. From now on both roots stand in everybody's trust bundle; nothing
is signed by the next one yet. Its keys are stored as those of the CA are.

Examples:
  countersign ca rotate start --state ./state
  countersign ca rotate start --socket ./state/server.sock --key ecdsa-p384`
}

// Run takes the step.
func (c caRotateStartCmd) Run(p *process) error { return c.take(p, c.newRootFlags.request()) }

type caRotateActivateCmd struct {
	forceFlag
	rotateFlags
}

// Help is what --help adds.
func (caRotateActivateCmd) Help() string {
	return `Refused, with the names of those who stand in the way, until every instance reports that it trusts the next
root, and every TLS listener that asks for certificates was seen to accept one of it. Afterwards everybody
renews, within half a minute.

Example:
  countersign ca rotate activate --state ./state`
}

// Run takes the step.
func (c caRotateActivateCmd) Run(p *process) error {
	if err := c.check(); err != nil {
		return err
	}
	return c.take(p, api.RotationRequest{Step: api.RotateActivate, Force: c.Force})
}

type caRotateFinishCmd struct {
	forceFlag
	rotateFlags
}

// Help is what --help adds.
func (caRotateFinishCmd) Help() string {
	return `Takes the root of before out of everybody's trust bundle and removes its keys. Refused, with the names of
those who stand in the way, while a listener serves a certificate of it, an instance holds one, or one that
has not ended has no successor.

Example:
  countersign ca rotate finish --state ./state`
}

// Run takes the step.
func (c caRotateFinishCmd) Run(p *process) error {
	if err := c.check(); err != nil {
		return err
	}
	return c.take(p, api.RotationRequest{Step: api.RotateFinish, Force: c.Force})
}

type caRotateCancelCmd struct{ rotateFlags }

// Help is what --help adds.
func (caRotateCancelCmd) Help() string {
	return `Takes the next root out of everybody's trust bundle again and removes its keys. Once it signs there is no
way back but another rotation.

Example:
  countersign ca rotate cancel --state ./state`
}

// Run takes the step.
func (c caRotateCancelCmd) Run(p *process) error {
	return c.take(p, api.RotationRequest{Step: api.RotateCancel})
}

type caRotateStatusCmd struct{ rotateFlags }

// Help is what --help adds.
func (caRotateStatusCmd) Help() string {
	return `While a root is being replaced, every endpoint is looked at, so that it takes some seconds and an entry of
the journal.

Examples:
  countersign ca rotate status --state ./state
  countersign ca rotate status --output json | jq -r '.blockers[] | .workload + " " + .reason'`
}

// Run shows the state.
func (c caRotateStatusCmd) Run(p *process) error {
	admin, err := c.admin(p)
	if err != nil {
		return err
	}
	rotation, err := admin.Rotation(p.ctx, true)
	if err != nil {
		return answered(p, err)
	}
	return c.show(p, rotation)
}

// writeRotation writes the roots, and below them what comes next.
func writeRotation(w io.Writer, rotation *api.Rotation) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "STATE\tSINCE\tPIN\tROOT UNTIL\tISSUER\tISSUER UNTIL")
	for _, h := range rotation.Roots {
		root, err := mtls.ParseCertificates([]byte(h.Root))
		if err != nil {
			return fmt.Errorf("the server's answer: %w", err)
		}
		issuer, err := mtls.ParseCertificates([]byte(h.Issuer))
		if err != nil {
			return fmt.Errorf("the server's answer: %w", err)
		}
		since := "-"
		if !h.Since.IsZero() {
			since = h.Since.UTC().Format(time.RFC3339)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", h.State, since, h.Pin,
			root[0].NotAfter.UTC().Format(time.RFC3339), h.ID, issuer[0].NotAfter.UTC().Format(time.RFC3339))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if len(rotation.Blockers) > 0 {
		fmt.Fprintln(w)
	}
	for _, b := range rotation.Blockers {
		fmt.Fprintln(w, b.String())
	}
	if rotation.Next == "" { // else they are among those who stand in the way
		for _, line := range names(rotation.Lagging) {
			fmt.Fprintf(w, "\n%s\n", line)
		}
	}
	return writeNext(w, rotation)
}

// writeNext says what to do.
func writeNext(w io.Writer, rotation *api.Rotation) error {
	var err error
	if rotation.Next != "" {
		ready := ""
		if rotation.Checked && len(rotation.Blockers) == 0 {
			ready = "  (nobody stands in its way)"
		}
		_, err = fmt.Fprintf(w, "\nNext: countersign ca rotate %s%s\n", rotation.Next, ready)
	}
	if err == nil && rotation.Problem != "" {
		_, err = fmt.Fprintf(w, "\n%s\n", rotation.Problem)
	}
	return err
}

// names are blockers for people, one a line, so that a change can be told.
func names(blockers []api.Blocker) []string {
	lines := []string{}
	for _, b := range blockers {
		lines = append(lines, b.String())
	}
	slices.Sort(lines)
	return lines
}
