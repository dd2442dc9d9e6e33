package expiry

import "time"

// Facts are what was found out, all of it at about one moment. What was not asked is nil or empty; what was
// asked and did not answer stands in Unreached, or as a Problem at its place.
type Facts struct {
	// Now is this machine's clock.
	Now time.Time
	// Backdating is how far the CA sets NotBefore back; it is no part of a certificate's life.
	Backdating time.Duration
	// Unreached are the sources that gave nothing.
	Unreached []Unreached
	// Authority is nil when nobody could be asked for it.
	Authority *Authority
	// Issued is what the CA has issued, by serial; nil when nobody could be asked. Those that ended more than
	// Remembered ago may be missing.
	Issued     map[string]Issued
	Remembered time.Duration
	// Server is the control plane's own certificate; nil when it was not looked at.
	Server *Server
	// Workloads are those that the specification declares.
	Workloads []Workload
}

// Unreached is a source that gave nothing.
type Unreached struct {
	Code Code // CodeServer, CodeStore, ...
	// Place is what was asked: a socket, a directory.
	Place string
	// Problem says why it gave nothing, and Lost what is not known for that reason.
	Problem string
	Lost    string
	// Remedy says what to do about the problem; empty for what helps against most.
	Remedy string
}

// Certificate is what this package has to know of a certificate, or of a chain.
type Certificate struct {
	// Serial is in lower-case hex, as everywhere in Countersign. Fingerprint is the hex SHA-256 of the DER; empty where
	// only the serial is known.
	Serial      string
	Fingerprint string
	// Identity is the leaf's SPIFFE ID; of a leaf that has a DNS name alone to say whose it is, "dns:" and that name; else empty.
	Identity  string
	NotBefore time.Time
	// NotAfter is when the chain ends: the earliest end of all its certificates. Short names the one that it is,
	// when that is not the leaf.
	NotAfter time.Time
	Short    string
	// Untrusted says why the chain does not lead to a root of the mesh; empty when it does, or when no root
	// is known.
	Untrusted string
}

// Issued is a certificate in the CA's books.
type Issued struct {
	Serial    string
	Identity  string
	NotBefore time.Time
	NotAfter  time.Time
	// Instance is whom it was issued to; empty for one that goes through a store.
	Instance string
	// Revoked is when it was revoked; zero for one that was not.
	Revoked time.Time
}

// Authority is the CA.
type Authority struct {
	// Roots and Issuers are all that the CA has, also those that do not sign yet or no more.
	Roots   []CACertificate
	Issuers []CACertificate
	// CRLs are nil when the mesh does not check revocation. CRLProblem says why there are none although there
	// should be.
	CRLs       []CRL
	CRLProblem string
	// Problem is what the server says is wrong with the CA.
	Problem string
}

// CACertificate is a certificate of an authority.
type CACertificate struct {
	Certificate
	Subject string
	// State is active, next or retiring. Since is when it came to that; zero when that is not known.
	State string
	Since time.Time
}

// States of a [CACertificate].
const (
	Active   = "active"   // signs
	Next     = "next"     // is to be trusted, and does not sign yet
	Retiring = "retiring" // is still trusted, and signs no more
)

// CRL is a revocation list (RFC 5280, section 5).
type CRL struct {
	Issuer     string
	ThisUpdate time.Time
	NextUpdate time.Time
}

// Server is the control plane's listener.
type Server struct {
	// Address is host:port; empty when it is not known, and the certificate is then the newest of the books.
	Address string
	Served  *Certificate
	Problem string
}

// Workload is one service or gateway.
type Workload struct {
	Name     string
	Identity string
	// TTL is the declared life of a leaf, RenewAfter the age at which it is to be replaced. Early is the part of that by which
	// its rotation comes before, from 0 to 1: rotations are spread, so that not all are at once.
	TTL        time.Duration
	RenewAfter time.Duration
	Early      float64
	// Stored is nil when the workload's agent gets its certificate itself.
	Stored *Stored
	// Rotation is what the rotation keeps about its tries; nil when it keeps nothing.
	Rotation *Rotation
	// InstancesKnown tells whether anybody could be asked for the instances.
	InstancesKnown bool
	Instances      []Instance
	// NotLookedAt tells that there is nobody who could be asked for them.
	NotLookedAt bool
	// Tasks is nil unless Amazon ECS runs the instances.
	Tasks *Tasks
	// Files are the certificates that a gateway presents to the outside.
	Files []File
}

// Tasks are instances that Amazon ECS runs. Each reads the store once, when it starts.
type Tasks struct {
	// Service is the service of ECS, as CLUSTER/SERVICE, and Replace the command that has ECS start all its tasks anew.
	Service, Replace string
	// Desired is how many are to run, Starting how many are on their way; both matter only when none runs.
	Desired, Starting int
}

// Stored is the workload's secret.
type Stored struct {
	Store  string // the store's name in the specification
	Secret string
	// Problem says why the secret could not be read, and Code which finding that is; both are empty when all is
	// well. Missing says that there is no such secret.
	Code    Code
	Problem string
	Missing bool
	// Remedy says what to do about the problem; empty for what helps where the secret itself is damaged.
	Remedy string
	// Current is what a reader gets; nil when its certificate could not be read. Pending and Previous are nil when there is none, or when they could not be read.
	Current, Pending, Previous *Version
	// Bundle is the trust bundle that goes with it; nil when there is none in a store.
	Bundle *Bundle
}

// Version is a version of a secret.
type Version struct {
	ID      string
	Written time.Time
	Certificate
}

// Bundle is a trust bundle in a store.
type Bundle struct {
	Secret  string
	Version string
	Roots   []CACertificate
	Problem string
	Remedy  string // as in [Stored]
	// Rotation is what the rotation of the bundle keeps about itself; nil when it keeps nothing.
	Rotation *Rotation
}

// Rotation is what the rotation of one secret keeps about itself.
type Rotation struct {
	// LastSuccess and LastFailure are zero when there was none.
	LastSuccess time.Time
	LastFailure time.Time
	// Failures counts those since the last success; LastError is the last one's text, FailedStep where it was.
	Failures   int
	LastError  string
	FailedStep string
	// Step is where a rotation is that has begun and not ended; empty when none has. Requested is when it made the
	// request that waits for its certificate, Began when it made its version current; each is zero otherwise, and when it
	// is not known.
	Step      string
	Requested time.Time
	Began     time.Time
	// Holder is who works on it at this moment; empty when nobody does.
	Holder string
	// Problem says why what is kept could not be read.
	Problem string
}

// lastTry is when a rotation was last tried; zero when none is known.
func (r *Rotation) lastTry() time.Time {
	return later(later(r.LastSuccess, r.LastFailure), later(r.Requested, r.Began))
}

// Instance is a running sidecar, or a proxy with its watcher.
type Instance struct {
	Name      string
	Connected bool
	// Reported is the serial that it says it serves, Ends the end of that certificate, Seen the serial that its
	// peers saw.
	Reported string
	Ends     time.Time
	Seen     string
	// Problem is what it says is wrong; of a task, what ECS says.
	Problem     string
	ClockOffset time.Duration
	// Started is when a task was made, by the clock that Written of a [Version] is of; zero when that is not known.
	Started   time.Time
	Endpoints []Endpoint
}

// Endpoint is a listener that speaks TLS.
type Endpoint struct {
	Listener string // as statistics call it
	Address  string // host:port
	// File is the path of the certificate that it is to present; empty for the workload's own.
	File string
	// Served is what a full handshake showed; nil when there was none, and Problem says why then.
	Served  *Certificate
	Problem string
}

// seen counts the endpoints that have shown a certificate.
func (f *Facts) seen() int {
	seen := 0
	for _, w := range f.Workloads {
		for _, i := range w.Instances {
			for _, e := range i.Endpoints {
				if e.Served != nil {
					seen++
				}
			}
		}
	}
	return seen
}

// File is a certificate in a file.
type File struct {
	Path        string
	Certificate *Certificate
	Problem     string
}
