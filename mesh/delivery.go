package mesh

import (
	"maps"
	"slices"
	"strings"

	"countersign.dev/secret"
)

// Engine is the proxy that is a workload's sidecar.
type Engine string

// The engines. In a Plan of a program that knew none it is empty and means [EngineBuiltin].
const (
	EngineBuiltin Engine = "builtin"
	EngineNGINX   Engine = "nginx"
	EngineHAProxy Engine = "haproxy"
)

// ProxyPlan says which proxy is the sidecar.
type ProxyPlan struct {
	Engine Engine `json:"engine"`
	// Version is the proxy's, such as 1.22.1; empty when the specification says nothing.
	Version string `json:"version,omitzero"`
}

// Real tells whether the sidecar is a program of somebody else: NGINX or HAProxy.
func (p ProxyPlan) Real() bool { return p.Engine == EngineNGINX || p.Engine == EngineHAProxy }

// ProxyOf is the proxy that the document says for a service or gateway. It is false for a name whose proxy is the
// default, or that is not declared.
func (s *Spec) ProxyOf(name string) (said ProxyPlan, ok bool) {
	if v, declared := s.Services[name]; declared && v.ProxySaid {
		return v.Proxy, true
	}
	if g, declared := s.Gateways[name]; declared && g.ProxySaid {
		return g.Proxy, true
	}
	return ProxyPlan{}, false
}

// DeliveryType says how certificate, key and trust bundle get to the proxy.
type DeliveryType string

// The types of delivery. In a Plan of a program that knew none it is empty and means [DeliverAgent].
const (
	DeliverAgent DeliveryType = "agent" // the sidecar makes the key and asks the server
	DeliverStore DeliveryType = "store" // a rotation writes to a secret store, and init reads there
)

// DeliveryPlan says how certificate, key and trust bundle get to the proxy. Except for Type all is set
// with [DeliverStore] only.
type DeliveryPlan struct {
	Type DeliveryType `json:"type"`
	// StoreName is the store's name in the specification, Store what is said about it.
	StoreName string `json:"storeName,omitzero"`
	Store     Store  `json:"store,omitzero"`
	// Secret is the name of the secret in the store, {mesh} and {service} replaced.
	Secret string `json:"secret,omitzero"`
	// Layout is json, separate or exported.
	Layout string `json:"layout,omitzero"`
	// Bundle is the secret of the trust bundle; empty when it stands beside the certificate.
	Bundle string `json:"bundle,omitzero"`
	// Fields are names of the fields certificate, chain, key, passphrase and bundle: those that are
	// written. [DeliveryPlan.Shape] has the others.
	Fields map[string]string `json:"fields,omitempty"`
}

// FromStore tells whether the certificate comes from a secret store.
func (d DeliveryPlan) FromStore() bool { return d.Type == DeliverStore }

// Shape is the layout with the names of its fields, and without a place for the roots where they stand in a secret of their own. The error, [secret.ErrInvalid], cannot occur for a
// delivery from a store that [ParseDocuments] accepted.
func (d DeliveryPlan) Shape() (secret.Shape, error) {
	shape, err := secret.NewShape(secret.Layout(d.Layout), secret.Fields{
		Certificate: d.Fields["certificate"],
		Chain:       d.Fields["chain"],
		Key:         d.Fields["key"],
		Passphrase:  d.Fields["passphrase"],
		Bundle:      d.Fields["bundle"],
	})
	if d.Bundle != "" {
		shape = shape.WithoutBundle()
	}
	return shape, err
}

// The types of stores.
const (
	StoreFile           = "file"           // a directory encrypted with age
	StoreSecretsManager = "secretsmanager" // AWS Secrets Manager
)

// Store is a secret store. It is comparable.
type Store struct {
	Type string `json:"type"`
	// Dir and IdentityFile are of a [StoreFile]; absolute when the document's directory is.
	Dir          string `json:"dir,omitzero"`
	IdentityFile string `json:"identityFile,omitzero"`
	// Region, Endpoint and KMSKey are of a [StoreSecretsManager], each empty where nothing is said.
	Region   string `json:"region,omitzero"`
	Endpoint string `json:"endpoint,omitzero"`
	KMSKey   string `json:"kmsKey,omitzero"`
}

// place is where a store's secrets lie: two of one place have the same secrets.
func (s Store) place() string {
	if s.Type == StoreFile {
		return s.Dir
	}
	return s.Type + "\x00" + s.Region + "\x00" + s.Endpoint
}

// DeclaredStore is a store of a specification, with its paths as they are written, too: specifications are
// compared by them.
type DeclaredStore struct {
	Store
	DirText, IdentityFileText string
}

// Deploy says how a rotated certificate gets to work.
type Deploy string

// The ways. It is empty where the certificate does not come from a store.
const (
	DeployReload  Deploy = "reload"  // init --watch reloads the proxy
	DeployRestart Deploy = "restart" // the instances are started anew, one after the other
	DeployECS     Deploy = "ecs"     // a service of Amazon ECS replaces its tasks
)

// ECSDeploy says which service of Amazon ECS runs a workload.
type ECSDeploy struct {
	Cluster string `json:"cluster"`
	Service string `json:"service"`
}

// text is the service of ECS in one line, empty for none.
func (e *ECSDeploy) text() string {
	if e == nil {
		return ""
	}
	return e.Cluster + "/" + e.Service
}

// StaleCRL says what a proxy does with a revocation list that is older than it may be.
type StaleCRL string

// The ways.
const (
	StaleRefuse StaleCRL = "refuse" // refuse whom the list speaks for
	StaleServe  StaleCRL = "serve"  // use the old list and raise an alarm
)

// The words of the key revocation.
const (
	revocationCheck = "check"
	revocationNone  = "none"
)

// RevocationPlan says whether revocation lists are looked at. In a Plan of a program that knew none it is
// zero: they are not.
type RevocationPlan struct {
	Check bool `json:"check"`
	// Stale is set where Check is.
	Stale StaleCRL `json:"stale,omitzero"`
}

// stores are the declared stores by name.
func (b builder) stores(v *value) map[string]DeclaredStore {
	stores := map[string]DeclaredStore{}
	for _, m := range members(v) {
		directory := b.documents[m.at.file].Directory
		dir, identity := m.value.get("dir").str(), m.value.get("identityFile").str()
		stores[m.name] = DeclaredStore{
			Store: Store{
				Type: m.value.get("type").str(), Dir: resolve(directory, dir), IdentityFile: resolve(directory, identity),
				Region: m.value.get("region").str(), Endpoint: m.value.get("endpoint").str(), KMSKey: m.value.get("kmsKey").str(),
			},
			DirText: dir, IdentityFileText: identity,
		}
	}
	return stores
}

// revocation reads the two keys of the mesh about it.
func revocation(root *value) RevocationPlan {
	if textOr(root.get("revocation"), revocationCheck) != revocationCheck {
		return RevocationPlan{}
	}
	return RevocationPlan{Check: true, Stale: StaleCRL(textOr(root.get("staleCRL"), string(StaleRefuse)))}
}

// proxy reads which proxy stands beside a workload.
func proxy(v *value) ProxyPlan {
	return ProxyPlan{
		Engine:  Engine(textOr(v.get("engine"), string(EngineBuiltin))),
		Version: v.get("version").str(),
	}
}

// delivery reads how the certificate of the workload of a name gets to its proxy.
func delivery(s *Spec, name string, v *value) DeliveryPlan {
	d := DeliveryPlan{Type: DeliveryType(textOr(v.get("type"), string(DeliverAgent)))}
	if !d.FromStore() {
		return d
	}
	d.StoreName = v.get("store").str()
	d.Store = s.Stores[d.StoreName].Store
	replace := strings.NewReplacer("{mesh}", s.Mesh, "{service}", name)
	d.Secret = replace.Replace(v.get("secret").str())
	d.Bundle = replace.Replace(v.get("bundle").str())
	d.Layout = textOr(v.get("layout"), string(secret.LayoutJSON))
	for _, m := range members(v.get("fields")) {
		if d.Fields == nil {
			d.Fields = map[string]string{}
		}
		d.Fields[m.name] = m.value.str()
	}
	return d
}

// deploy reads how a rotated certificate of a workload gets to work.
func deploy(d DeliveryPlan, v *value) Deploy {
	if !d.FromStore() {
		return ""
	}
	return Deploy(textOr(v.get("type"), string(DeployReload)))
}

// ecsDeploy reads which service of ECS runs the workload of a name; nil where none does.
func ecsDeploy(d Deploy, name string, v *value) *ECSDeploy {
	if d != DeployECS {
		return nil
	}
	return &ECSDeploy{Cluster: v.get("cluster").str(), Service: textOr(v.get("service"), name)}
}

// String is where the certificate comes from, in one line.
func (d DeliveryPlan) String() string {
	if !d.FromStore() {
		return "the agent"
	}
	text := "the store " + d.StoreName + ": " + d.Secret + " as " + d.Layout
	if d.Bundle != "" {
		text += " with the bundle " + d.Bundle
	}
	for _, part := range slices.Sorted(maps.Keys(d.Fields)) {
		text += " " + part + "=" + d.Fields[part]
	}
	return text
}

// text is the choice about revocation in words.
func (r RevocationPlan) text() string {
	if !r.Check {
		return revocationNone
	}
	return revocationCheck + ", stale lists: " + string(r.Stale)
}

// String is the proxy in one line.
func (p ProxyPlan) String() string { return strings.TrimSpace(string(p.Engine) + " " + p.Version) }

// text is a store in one line.
func (s DeclaredStore) text() string {
	if s.Type == StoreFile {
		return s.Type + " " + s.DirText + " by " + s.IdentityFileText
	}
	text := s.Type
	for _, part := range [][2]string{{"region", s.Region}, {"endpoint", s.Endpoint}, {"kmsKey", s.KMSKey}} {
		if part[1] != "" {
			text += " " + part[0] + "=" + part[1]
		}
	}
	return text
}
