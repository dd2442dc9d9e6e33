package up

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"countersign.dev/durable"
	"countersign.dev/id"
	"countersign.dev/mesh"
)

// DocumentVersion is the version of the run document's form.
const DocumentVersion = 1

// EnvRun is the environment variable that holds the path of the run document, for the command that
// `up` runs and for whatever that starts.
const EnvRun = "COUNTERSIGN_RUN"

// ErrNoDocument says that a file holds no run document that this version can read.
var ErrNoDocument = errors.New("no run document")

// Document describes a running mesh to programs: where each part is and which process it runs as.
// Addresses never change while the mesh runs; pids do when a process is restarted, and the file is
// then replaced as a whole.
type Document struct {
	Version     int    `json:"version"`
	Mesh        string `json:"mesh"`
	TrustDomain string `json:"trustDomain"`
	// PID is of `up` itself.
	PID int `json:"pid"`
	// State is the directory that holds everything of this run, absolute.
	State string `json:"state"`
	// Logs is the directory with one file a process, absolute; empty when the logs go to standard error.
	Logs string `json:"logs"`
	// Control is the UNIX socket on which `up` is told to restart an instance.
	Control   string     `json:"control"`
	Server    Server     `json:"server"`
	Workloads []Workload `json:"workloads"`
}

// Server is the control plane.
type Server struct {
	URL    string `json:"url"`
	Socket string `json:"socket"` // the administrator's UNIX socket
	PID    int    `json:"pid"`
	CAFile string `json:"caFile"` // the root certificate, PEM
	CAPin  string `json:"caPin"`  // "sha256:" and the hex SHA-256 of the root's DER
}

// Workload is one instance of a service or a gateway.
type Workload struct {
	Name     string  `json:"name"`
	Kind     id.Kind `json:"kind"`
	Instance string  `json:"instance"`
	// PID is of the sidecar, and Admin the URL of its admin listener: of `countersign proxy`, or where the
	// certificate comes from a store of `countersign init --watch`.
	PID   int    `json:"pid"`
	Admin string `json:"admin"`
	// Engine is the proxy that carries the traffic, and EnginePID the master process of an NGINX or HAProxy.
	Engine    mesh.Engine       `json:"engine"`
	EnginePID int               `json:"enginePid,omitempty"`
	Delivery  mesh.DeliveryType `json:"delivery"`
	Identity  id.ID             `json:"identity"`
	State     string            `json:"state"` // the sidecar's state directory
	Inbound   []Inbound         `json:"inbound"`
	Outbound  []Outbound        `json:"outbound"`
	// App is nil at a gateway.
	App *App `json:"app,omitempty"`
}

// Inbound is where peers, or the outside, connect to an instance.
type Inbound struct {
	// Name is what the listener is called in production ("0.0.0.0_9080"), as statistics spell it.
	Name       string          `json:"name"`
	Address    string          `json:"address"`
	Protocol   mesh.Protocol   `json:"protocol"`
	TLS        mesh.TLSMode    `json:"tls"`
	ClientAuth mesh.ClientAuth `json:"clientAuth"`
}

// Outbound is what the application dials to reach a service.
type Outbound struct {
	Service  string        `json:"service"`
	Port     int           `json:"port"` // the called service's
	Address  string        `json:"address"`
	Protocol mesh.Protocol `json:"protocol"`
}

// App is the application beside a sidecar.
type App struct {
	// PID is 0, and not written, when somebody else starts the application.
	PID int `json:"pid,omitempty"`
	// Addresses are where it listens or is expected to, in the order of the service's ports.
	Addresses []string `json:"addresses"`
}

// ReadDocument reads the run document at path. An error that wraps [ErrNoDocument] says that there is
// none, which is what a command meets after the mesh has ended.
func ReadDocument(path string) (*Document, error) {
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w at %s: the mesh that wrote it has ended; start it again with 'countersign up'", ErrNoDocument, path)
	case err != nil:
		return nil, fmt.Errorf("reading the run document: %w", err)
	}
	doc, err := parseDocument(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return doc, nil
}

func parseDocument(data []byte) (*Document, error) {
	var doc Document
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("%w: it is not JSON of the form that 'countersign up' writes: %w", ErrNoDocument, err)
	}
	if doc.Version != DocumentVersion {
		return nil, fmt.Errorf("%w: it is of version %d, and this countersign reads version %d; use the countersign that started the mesh", ErrNoDocument, doc.Version, DocumentVersion)
	}
	return &doc, nil
}

// line is the document in one line of JSON, with its end.
func (d *Document) line() ([]byte, error) {
	data, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("writing the run document: %w", err)
	}
	return append(data, '\n'), nil
}

// write replaces the document at path as a whole.
func (d *Document) write(path string) error {
	data, err := d.line()
	if err != nil {
		return err
	}
	if err := durable.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("writing the run document: %w", err)
	}
	return nil
}
