// Package mesh knows the specification of a mesh: how it is written, what makes it valid, and what
// each workload has to know to carry it out (its [Plan]).
package mesh

import "countersign.dev/id"

// Document is one file of a specification.
type Document struct {
	// Name is the file's path as the user wrote it; errors begin with it.
	Name string `json:"name"`
	// Directory is absolute; relative paths in the document start there.
	Directory string `json:"directory"`
	Content   string `json:"content"`
}

// Spec is a valid specification with every default filled in. It is made by [Load] or
// [ParseDocuments] and not changed afterwards. It keeps the text of its documents, to say where something stands.
type Spec struct {
	Mesh        string
	TrustDomain string
	MinTLS      TLSVersion
	TLSGroups   []TLSGroup // never empty, in the order of preference; the same below
	// Certificates are the defaults of the mesh.
	Certificates Certificates
	Revocation   RevocationPlan
	// Stores and Authorities are by name.
	Stores      map[string]DeclaredStore
	Authorities map[string]Authority
	Services    map[string]*Service
	Gateways    map[string]*Gateway

	source *source // nil when it was not read from documents
}

// Certificates say what leaves are like.
type Certificates struct {
	TTL        Duration
	RenewAfter Duration
	Key        KeyType
	// Authority is a name of [Spec].Authorities; empty for that of the server.
	Authority string
}

// Service is a workload with an application.
type Service struct {
	Name         string
	Identity     id.ID
	Certificates Certificates
	Ports        []Port
	Names        []string
	Calls        []Call
	Instances    int
	Run          *Run // nil when the application is started by somebody else
	Proxy        ProxyPlan
	ProxySaid    bool // Proxy stands in the document, and is not the default
	Delivery     DeliveryPlan
	Deploy       Deploy     // empty unless Delivery is from a store
	ECS          *ECSDeploy // nil unless Deploy is [DeployECS]
}

// Port is where peers connect to a service. What stands on the service as a default is filled in.
type Port struct {
	Port       int
	Protocol   Protocol
	App        int
	TLS        TLSMode
	ClientAuth ClientAuth
	MinTLS     TLSVersion
	TLSGroups  []TLSGroup
	// Allow is nil when the graph is the policy, and not nil, if perhaps empty, when the words are.
	Allow []Allow
}

// Allow admits callers in words.
type Allow struct {
	// From are names of services or gateways, SPIFFE IDs, [FromAny] or [FromAnonymous].
	From    []string
	Methods []string
	Paths   []string
}

// Call is what a service's application calls.
type Call struct {
	Service string
	Port    int
	Listen  int
}

// Run says how `up` starts the application. Texts hold ${...} as written; [Expand] replaces them.
type Run struct {
	Command []string
	Env     map[string]string
	// Dir is the working directory: absolute when the document's directory is.
	Dir string
	// DirText is the directory as it is written. Specifications are compared by it: a copy of a
	// document elsewhere says the same.
	DirText string
}

// Gateway lets traffic from outside into the mesh.
type Gateway struct {
	Name         string
	Identity     id.ID
	Certificates Certificates
	Listen       []GatewayListener
	Routes       []GatewayRoute
	Names        []string
	Instances    int
	Proxy        ProxyPlan
	ProxySaid    bool // as a service's
	Delivery     DeliveryPlan
	Deploy       Deploy     // as a service's
	ECS          *ECSDeploy // as a service's
}

// GatewayListener is a port that the outside connects to.
type GatewayListener struct {
	Port        int
	Protocol    Protocol
	MinTLS      TLSVersion
	TLSGroups   []TLSGroup
	Certificate *CertificateFiles
}

// GatewayRoute is a route of a gateway as it is written.
type GatewayRoute struct {
	Listener       int // 0: every listener that is not tcp
	Match          Match
	To             []RouteDestination
	RequestTimeout Duration
}

// RouteDestination is one destination of a [GatewayRoute].
type RouteDestination struct {
	Service string
	Port    int
	Weight  int
}
