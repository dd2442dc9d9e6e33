// Package iac knows how a specification is deployed on AWS: which secrets, keys, roles, task definitions, services,
// schedules and alarms it takes, and what each of them may do. It writes them as a CloudFormation template, as
// Terraform, or, where somebody else makes the templates, as the policies and the task definitions alone. It calls
// nobody: text in, text out.
//
// Everything is first said once, in a model whose ARNs are references ([Given] or the template's own resources), so
// that no output can be wider than another. Resources are named one by one; the few wildcards that AWS leaves no way
// around are made by one function, with their reason, which is written beside them.
package iac

import "errors"

// Errors.
var (
	// ErrRefused says that a specification cannot be deployed by these templates. The error holds every reason, with its
	// place, and wraps them as [mesh.Errors] where it is about nothing else.
	ErrRefused = errors.New("the specification cannot be deployed on ECS by these templates")
	// ErrGiven says what was given and does not fit; see [Given]. The error holds every reason.
	ErrGiven = errors.New("what is given does not fit")
	// ErrMissing says what was not given; see [Given].
	ErrMissing = errors.New("nothing is guessed, and this is not given")
	// ErrTooLarge says that something is larger than AWS takes.
	ErrTooLarge = errors.New("larger than AWS takes")
)

// Init says who reads the secrets when a task starts.
type Init string

// The ways.
const (
	// InitTaskRole is init reading the store by the task role. The execution role can read no secret.
	InitTaskRole Init = "task-role"
	// InitEnvironment is ECS reading the secrets by the execution role and putting them into the environment of the
	// init container, which starts itself anew without it. The task role can read no secret.
	InitEnvironment Init = "environment"
)

// Options say how a specification is deployed. The zero value is good.
type Options struct {
	// Init is [InitTaskRole] when it is empty.
	Init Init
}

// Where a container finds its files. The image of countersign declares both volumes, so that they belong to its user.
const (
	certificatesDir = "/tls"
	runDir          = "/proxy"
	// proxyUser runs init and the proxy: the files with the key belong to it alone. It is the user of NGINX's image.
	proxyUser = "101:101"
	// appUser runs the application, which shares no volume with the two.
	appUser = "10001:10001"
)

// planVariable is the environment variable of the init container with the Plan.
const planVariable = "COUNTERSIGN_PLAN"

// placeholder is what a secret holds until the first rotation; readers take it for nothing.
const placeholder = "PLACEHOLDER"
