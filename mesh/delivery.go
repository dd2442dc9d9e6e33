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

// Shape is the layout with the names of its fields. The error, [secret.ErrInvalid], cannot occur for a
// delivery from a store that [ParseDocuments] accepted.
func (d DeliveryPlan) Shape() (secret.Shape, error) {
	return secret.NewShape(secret.Layout(d.Layout), secret.Fields{
		Certificate: d.Fields["certificate"],
		Chain:       d.Fields["chain"],
		Key:         d.Fields["key"],
		Passphrase:  d.Fields["passphrase"],
		Bundle:      d.Fields["bundle"],
	})
}

// The types of stores.
const (
	StoreFile = "file" // a directory encrypted with age
)

// Store is a secret store. Its paths are absolute when the document's directory is.
type Store struct {
	Type         string `json:"type"`
	Dir          string `json:"dir"`
	IdentityFile string `json:"identityFile"`
}

// DeclaredStore is a store of a specification, with its paths as they are written, too: specifications are
// compared by them.
type DeclaredStore struct {
	Store
	DirText, IdentityFileText string
}

// The types of authorities.
const (
	AuthorityEmbedded = "embedded" // that of the server
)

// Authority is who issues certificates.
type Authority struct {
	Type string
}

// Deploy says how a rotated certificate gets to work.
type Deploy string

// The ways. It is empty where the certificate does not come from a store.
const (
	DeployReload  Deploy = "reload"  // init --watch reloads the proxy
	DeployRestart Deploy = "restart" // the instances are started anew, one after the other
)

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
			Store:   Store{Type: m.value.get("type").str(), Dir: resolve(directory, dir), IdentityFile: resolve(directory, identity)},
			DirText: dir, IdentityFileText: identity,
		}
	}
	return stores
}

// authorities are the declared authorities by name.
func authorities(v *value) map[string]Authority {
	all := map[string]Authority{}
	for _, m := range members(v) {
		all[m.name] = Authority{Type: m.value.get("type").str()}
	}
	return all
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

// text is an authority in one line.
func (a Authority) text() string { return a.Type }

// String is the proxy in one line.
func (p ProxyPlan) String() string { return strings.TrimSpace(string(p.Engine) + " " + p.Version) }

// text is a store in one line.
func (s DeclaredStore) text() string {
	return s.Type + " " + s.DirText + " by " + s.IdentityFileText
}
