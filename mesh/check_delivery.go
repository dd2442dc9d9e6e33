package mesh

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"countersign.dev/secret"
)

// secretOwner is whose a secret is, and where that is written.
type secretOwner struct {
	who    string // service NAME or gateway NAME
	at     position
	bundle bool // it is a trust bundle, which several may share
}

// deliveries checks the stores, and how each workload's certificate gets to its proxy.
func (c checker) deliveries() {
	c.stores()
	c.storeDirectories()
	if stale := c.root.get("staleCRL"); stale.isGood() && c.root.get("revocation").str() == revocationNone {
		c.wrong(stale, "is without effect where revocation is none", "remove it")
	}
	owners, deployed := map[string]secretOwner{}, map[ECSDeploy]secretOwner{}
	for _, m := range members(c.root.get("services")) {
		who, service := "service "+m.name, c.spec.Services[m.name]
		c.delivery(m, who, service.Proxy, service.Delivery, owners)
		c.deployment(m.value, who, service.ECS, deployed)
	}
	for _, m := range members(c.root.get("gateways")) {
		who, gateway := "gateway "+m.name, c.spec.Gateways[m.name]
		c.delivery(m, who, gateway.Proxy, gateway.Delivery, owners)
		c.deployment(m.value, who, gateway.ECS, deployed)
	}
}

// stores checks that every store has the keys of its type, and no others.
func (c checker) stores() {
	for _, m := range members(c.root.get("stores")) {
		switch m.value.get("type").str() {
		case StoreFile:
			c.needs(m.value, "dir", "name the directory of the store")
			c.needs(m.value, "identityFile", "name the file of the age identity that the store is encrypted to")
			c.useless(m.value, "with type: file", "remove it, or write type: secretsmanager", "region", "endpoint", "kmsKey")
		case StoreSecretsManager:
			c.useless(m.value, "with type: secretsmanager", "remove it, or write type: file", "dir", "identityFile")
			if key, region := parseARN(m.value.get("kmsKey").str()), m.value.get("region").str(); key.region != "" && region != "" && key.region != region {
				c.wrong(m.value.get("kmsKey"), "is a key of "+key.region+", and the store is in "+region, "name a key of the store's region")
			}
		}
	}
}

// needs reports a key that is not there and that only this mapping has to have.
func (c checker) needs(v *value, name, right string) {
	if v.isGood() && v.get(name) == nil && !slices.Contains(v.misspelled, name) {
		c.missing(v, name, "is missing", right)
	}
}

// useless reports keys that mean nothing beside others.
func (c checker) useless(v *value, because, right string, names ...string) {
	for _, name := range names {
		if written := v.get(name); written.isGood() {
			c.wrong(written, "is without effect "+because, right)
		}
	}
}

// storeDirectories finds two stores in one directory: each would take the other's secrets for its own. And it
// finds what opens a store inside of it, where every copy of the store takes it along.
func (c checker) storeDirectories() {
	first := map[string]member{}
	for _, m := range members(c.root.get("stores")) {
		dir := m.value.get("dir")
		if !dir.isGood() || dir.text == "" {
			continue
		}
		path, identity := filepath.Clean(c.spec.Stores[m.name].Dir), m.value.get("identityFile")
		if identity.isGood() && identity.text != "" && strings.HasPrefix(filepath.Clean(c.spec.Stores[m.name].IdentityFile), path+string(filepath.Separator)) {
			c.wrong(identity, "lies in the store that it opens", "keep it somewhere else, and out of the store's backups")
		}
		if other, again := first[path]; again {
			c.wrong(dir, fmt.Sprintf("is the directory of the store %s, too", other.name), "give each a directory of its own, or remove one of the two")
			continue
		}
		first[path] = m
	}
}

// delivery checks one workload.
func (c checker) delivery(m member, who string, proxy ProxyPlan, d DeliveryPlan, owners map[string]secretOwner) {
	written, engine := m.value.get("delivery"), m.value.get("proxy")
	understood := !engine.isBad() && !engine.get("engine").isBad() // or which engine is meant cannot be known
	if version := engine.get("version"); version.isGood() && understood && !proxy.Real() && engine.get("engine") != nil {
		c.wrong(version, "is without effect on the built-in proxy, which is of this program's version", "remove it, or choose engine: nginx or haproxy")
	}
	kind := written.get("type")
	if written.isBad() || kind.isBad() || (written != nil && kind == nil) {
		return
	}
	if !d.FromStore() {
		for _, other := range members(written) {
			if other.name != "type" {
				c.wrong(other.value, "is without effect where the agent delivers", "remove it, or write type: store")
			}
		}
		if deploy := m.value.get("deploy"); deploy.isGood() {
			c.wrong(deploy, "is without effect where the certificate does not come from a store", "remove it, or write delivery: {type: store, ...}")
		}
		return
	}
	if understood && !proxy.Real() {
		c.wrong(kind, "the built-in proxy makes its own key and takes none from a store", "write proxy: {engine: nginx} or {engine: haproxy}, or type: agent")
	}
	c.storeOf(written)
	if written.get("secret") == nil {
		c.missing(written, "secret", "is missing", `name the secret, such as secret: "{mesh}/{service}"`)
	}
	if d.Layout == string(secret.LayoutExported) && written.get("bundle") == nil {
		c.missing(written, "bundle", "is missing, and the layout exported has no place for the trust bundle", "name the secret of the trust bundle, such as \"{mesh}/bundle\"")
	}
	if c.fields(written, d) {
		c.secrets(written, who, d, owners)
	}
}

// deployment checks that a deployment has the keys of its type, and no others, and that no other workload is the
// same service of ECS: each would wait for the other's tasks to show its certificate.
func (c checker) deployment(workload *value, who string, ecs *ECSDeploy, deployed map[ECSDeploy]secretOwner) {
	deploy := workload.get("deploy")
	if at := deploy.get("service"); ecs != nil && ecs.Cluster != "" && !deploy.isBad() && !deploy.get("cluster").isBad() && !at.isBad() {
		if at == nil {
			at = deploy
		}
		if other, taken := deployed[*ecs]; taken {
			c.wrong(at, fmt.Sprintf("is the service %s in the cluster %s, as %s is, too, at %s", ecs.Service, ecs.Cluster, other.who, c.place(other.at)),
				"give each workload a service of its own: write its name in ECS as service")
		} else {
			deployed[*ecs] = secretOwner{who: who, at: at.at}
		}
	}
	switch kind := deploy.get("type").str(); Deploy(kind) {
	case DeployECS:
		c.needs(deploy, "cluster", "name the cluster of Amazon ECS in which the service runs")
	case DeployReload, DeployRestart:
		c.useless(deploy, "with type: "+kind, "remove it, or write type: ecs", "cluster", "service")
	}
}

// storeOf checks the name of the store.
func (c checker) storeOf(delivery *value) {
	store := delivery.get("store")
	names := slices.Sorted(maps.Keys(c.spec.Stores))
	switch {
	case store == nil:
		c.missing(delivery, "store", "is missing", c.nearest.right("", names, "declare a store below stores and name it"))
	case store.isBad() || c.root.get("stores").isBad():
	default:
		if _, known := c.spec.Stores[store.text]; !known {
			c.wrong(store, quote(store.text)+" is no store", c.nearest.right(store.text, names, "declare it below stores"))
		}
	}
}

// fields checks the names of the fields against the layout. It is false when the layout is unknown.
func (c checker) fields(delivery *value, d DeliveryPlan) bool {
	shape, err := secret.NewShape(secret.Layout(d.Layout), secret.Fields{})
	if err != nil {
		return false // which the table has reported
	}
	fields := delivery.get("fields")
	if fields.isBad() {
		return false
	}
	usual := partsOf(shape.Fields())
	taken, good := map[string]string{}, true
	for _, m := range members(fields) {
		if m.value.bad {
			good = false
			continue
		}
		wrong, right := "", ""
		switch name := m.value.text; {
		case usual[m.name] == "":
			wrong, right = "is no part of the layout "+d.Layout, "remove it; the parts are "+strings.Join(slices.Sorted(maps.Keys(usual)), ", ")
		case taken[name] != "":
			wrong, right = fmt.Sprintf("%s is what %s is called already", quote(name), taken[name]), "give every field a name of its own"
		case d.Layout != string(secret.LayoutJSON) && (strings.Contains(name, "/") || secret.CheckName(name) != nil):
			wrong, right = quote(name)+" cannot be the last segment of a secret's name", "write letters, digits and _+=@.- with no dot in front"
		}
		if wrong != "" {
			c.wrong(m.value, wrong, right)
			good = false
		}
		taken[m.value.text] = m.name
	}
	for _, part := range slices.Sorted(maps.Keys(usual)) {
		name := usual[part]
		if by := taken[name]; by != "" && fields.get(part) == nil && good {
			c.wrong(fields.get(by), fmt.Sprintf("%s is what %s is called usually", quote(name), part), "choose another name, or give "+part+" another one, too")
			good = false
		}
	}
	return good
}

// partsOf are the parts of a layout by name, those that it has.
func partsOf(f secret.Fields) map[string]string {
	parts := map[string]string{"certificate": f.Certificate, "chain": f.Chain, "key": f.Key, "passphrase": f.Passphrase, "bundle": f.Bundle}
	maps.DeleteFunc(parts, func(_, name string) bool { return name == "" })
	return parts
}

// secrets finds names that are too long when they are complete, and secrets that two workloads would write.
func (c checker) secrets(delivery *value, who string, d DeliveryPlan, owners map[string]secretOwner) {
	shape, err := d.Shape()
	name, bundle := delivery.get("secret"), delivery.get("bundle")
	if err != nil || !c.root.get("mesh").isGood() {
		return
	}
	if name.isGood() {
		// The name itself counts in every layout: it is what people and leases call the credential.
		for _, full := range append([]string{d.Secret}, shape.Names(d.Secret)...) {
			if !c.secret(name, full, secretOwner{who: who, at: name.at}, d, owners) {
				break
			}
		}
	}
	if bundle.isGood() {
		c.secret(bundle, d.Bundle, secretOwner{who: who, at: bundle.at, bundle: true}, d, owners)
	}
}

// rotationRecord ends the name of the secret in which the rotation of another one keeps how it went, budgetRecord
// that in which an authority's certificates are counted. A credential of such a name would be overwritten by it.
const (
	rotationRecord = ".rotation"
	budgetRecord   = ".budget"
)

// reservedEnds are the ends of secrets' names that no credential has, and whose they are.
var reservedEnds = [][2]string{
	{rotationRecord, "those of what rotations keep about a secret"},
	{budgetRecord, "those of what authorities count"},
}

// secret notes that a workload has a secret, and is false when somebody else has it.
func (c checker) secret(v *value, full string, mine secretOwner, d DeliveryPlan, owners map[string]secretOwner) bool {
	if err := secret.CheckName(full); err != nil && len(full) <= secret.MaxName {
		return false // the name of the mesh or of the workload is none, which is said there
	} else if err != nil {
		c.wrong(v, fmt.Sprintf("stands for %s, which has %d characters", quote(full), len(full)), fmt.Sprintf("shorten it: a secret's name has at most %d", secret.MaxName))
		return false
	}
	for _, end := range reservedEnds {
		if strings.HasSuffix(full, end[0]) {
			c.wrong(v, fmt.Sprintf("stands for %s, and names that end in %s are %s", quote(full), end[0], end[1]), "choose another name")
			return false
		}
	}
	key := d.Store.place() + "\x00" + full
	other, taken := owners[key]
	switch {
	case !taken:
		owners[key] = mine
		return true
	case other.bundle && mine.bundle:
		return true
	case other.who == mine.who && other.bundle == mine.bundle:
		return true // the layout json: the name of the credential and of its only secret
	}
	right := `give every workload a secret of its own, such as "{mesh}/{service}"`
	what := "the secret"
	if other.bundle {
		what = "the trust bundle"
	}
	if other.bundle != mine.bundle {
		right = `give the trust bundle a secret of its own, such as "{mesh}/bundle"`
	}
	c.wrong(v, fmt.Sprintf("%s is %s of %s, too, at %s", quote(full), what, other.who, c.place(other.at)), right)
	return false
}
