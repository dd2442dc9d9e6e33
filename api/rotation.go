package api

import (
	"time"

	"countersign.dev/mesh"
)

// Hierarchy is a root with an issuing CA below it. Two may have the same root.
type Hierarchy struct {
	ID string `json:"id"` // the issuing CA's serial
	// State is "active" (it signs), "next" (everybody is told of it, it does not sign yet) or
	// "retiring" (it is still trusted and signs no more).
	State  string    `json:"state"`
	Since  time.Time `json:"since,omitzero"`
	Pin    string    `json:"pin"`
	Root   string    `json:"root"`   // PEM
	Issuer string    `json:"issuer"` // PEM
}

// The steps of a [RotationRequest].
const (
	RotateStart    = "start"    // make the next root; everybody is told to trust it
	RotateCancel   = "cancel"   // give the next root up
	RotateActivate = "activate" // the next root signs; certificates are renewed under it
	RotateFinish   = "finish"   // the root of before is trusted no more, and its keys are removed
	RotateIssuer   = "issuer"   // another issuing CA below the same root
)

// CutOff is the word by which an administrator says that those who are named may be cut off.
const CutOff = "cut-off"

// RotationRequest takes one step in the change of a root. A step that somebody stands in the way of is
// refused with [CodeConflict], and Error.Details name them.
type RotationRequest struct {
	Step string `json:"step"`
	// Force is empty or [CutOff]: who stands in the way of the step is written down and passed over.
	Force string `json:"force,omitempty"`
	// Key, RootLife and IssuerLife are of what start and issuer make; what is not set is as before.
	Key        mesh.KeyType  `json:"key,omitempty"`
	RootLife   mesh.Duration `json:"rootLife,omitzero"`
	IssuerLife mesh.Duration `json:"issuerLife,omitzero"`
	// RootKeyFile is where issuer finds the root's key, stored in the CA's way, when it is not in the
	// state. The server reads it.
	RootKeyFile string `json:"rootKeyFile,omitempty"`
}

// Rotation is how far the change of a root has come.
type Rotation struct {
	Roots []Hierarchy `json:"roots"`
	// Next is the step that comes next, empty when the root is not being changed.
	Next string `json:"next,omitempty"`
	// Checked tells whether it was found out who stands in the way of that step; Blockers are those.
	Checked  bool      `json:"checked"`
	Blockers []Blocker `json:"blockers"`
	// Lagging are connected instances that say that they still use another bundle than that of this
	// moment: they have not taken in the last step yet.
	Lagging []Blocker `json:"lagging,omitempty"`
	// Problem is what an administrator has to do about the CA; empty when there is nothing.
	Problem string `json:"problem,omitempty"`
}

// Blocker is somebody who would be cut off by a step.
type Blocker struct {
	Workload string `json:"workload"`
	Instance string `json:"instance,omitempty"`
	Endpoint string `json:"endpoint,omitempty"` // the address of a listener
	Reason   string `json:"reason"`
}

// String is a blocker for people.
func (b Blocker) String() string {
	who := b.Workload
	for _, part := range []string{b.Instance, b.Endpoint} {
		if part != "" {
			who += " " + part
		}
	}
	return who + ": " + b.Reason
}
