package mesh

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// maxCommonName is how long the common name of a Subject may be (RFC 5280, appendix A.1).
const maxCommonName = 64

// authority checks who is to issue.
func (c checker) authority(v *value) {
	authority := v.get("authority")
	if !authority.isGood() || c.root.get("authorities").isBad() {
		return
	}
	if _, known := c.spec.Authorities[authority.text]; !known {
		c.wrong(authority, quote(authority.text)+" is no authority",
			c.nearest.right(authority.text, slices.Sorted(maps.Keys(c.spec.Authorities)), "declare it below authorities, or leave it out for that of the server"))
	}
}

// authorities checks that every authority has the keys of its type, and that they agree.
func (c checker) authorities() {
	for _, m := range members(c.root.get("authorities")) {
		v := m.value
		switch v.get("type").str() {
		case AuthorityEmbedded:
			c.useless(v, "with type: embedded", "remove it", "arn", "region", "endpoint", "mode", "template", "create", "parent", "names", "budget")
			continue
		case AuthorityACMPCA:
			c.useless(v, "with type: acmpca, whose certificates have SPIFFE IDs", "remove it, or write type: acm", "names")
		case AuthorityACM:
			c.useless(v, "with type: acm, which chooses it itself", "remove it, or write type: acmpca", "template")
			if mode := v.get("mode"); mode.str() == ModeShortLived {
				c.wrong(mode, "ACM cannot issue from a private CA in short-lived mode", "write mode: general-purpose, or type: acmpca")
			}
		default:
			continue
		}
		c.privateCA(v)
		c.budget(v, m.name)
		for _, name := range members(v.get("names")) {
			if c.spec.Services[name.name] == nil && c.spec.Gateways[name.name] == nil && !c.root.get("services").isBad() && !c.root.get("gateways").isBad() {
				c.add(name.at, name.value.path, quote(name.name)+" is no service or gateway", c.nearest.right(name.name, slices.Concat(c.services, c.gateways), "remove it"))
			}
		}
	}
}

// privateCA checks what is said about the private CA that is used or created.
func (c checker) privateCA(v *value) {
	arn, region := v.get("arn"), v.get("region")
	if in := parseARN(arn.str()).region; in != "" && region.isGood() && region.text != in {
		c.wrong(region, fmt.Sprintf("%s is not the region of the arn, %s", region.text, in), "remove it: the arn says it")
	}
	if in := parseARN(v.get("parent").str()).region; in != "" && region.isGood() && region.text != in {
		c.wrong(v.get("parent"), "is a private CA of "+in+", and the one that it is to sign is in "+region.text, "name one of the same region, or leave it out, and have it sign by `countersign ca aws activate --parent`")
	}
	if arn != nil {
		c.useless(v, "beside arn: that CA is there already", "remove it, or remove the arn for a CA that templates create", "create", "parent")
	} else if v.get("create").str() != CreateSubordinate && !v.get("create").isBad() {
		c.useless(v, "where a root is created", "remove it, or write create: subordinate", "parent")
	}
	template := v.get("template")
	if want := partitionOf(c.regionOf(v)); template.isGood() && c.regionOf(v) != "" && parseARN(template.text).partition != want {
		c.wrong(template, "is of another partition than the CA", "write arn:"+want+":...")
	}
}

// partition finds an authority and the store of its certificates, or of their count, in two partitions of AWS: no role
// is known in both.
func (c checker) partition(at *value, authority string, store string) {
	region, other := c.spec.Authorities[authority].Region, c.spec.Stores[store].Region
	if region != "" && other != "" && partitionOf(region) != partitionOf(other) {
		c.wrong(at, fmt.Sprintf("is in %s, and the authority %s is in %s: no role of AWS is known in both partitions", other, authority, region), "name a store and an authority of one partition")
	}
}

// regionOf is the region that is written for an authority, empty when none is.
func (c checker) regionOf(v *value) string {
	if region := v.get("region").str(); region != "" {
		return region
	}
	return parseARN(v.get("arn").str()).region
}

// budget checks where an authority's certificates are counted.
func (c checker) budget(v *value, name string) {
	a := c.spec.Authorities[name]
	store := v.get("budget").get("store")
	names := slices.Sorted(maps.Keys(c.spec.Stores))
	switch {
	case c.root.get("stores").isBad() || store.isBad() || v.get("budget").isBad():
	case store != nil:
		if _, known := c.spec.Stores[store.text]; !known {
			c.wrong(store, quote(store.text)+" is no store", c.nearest.right(store.text, names, "declare it below stores"))
		}
		c.partition(store, name, store.text)
	case a.Budget.Store == "" && v.get("budget") == nil:
		c.missing(v, "budget", "is missing, and there is more than one store, or none, in which certificates could be counted", `write budget: {store: NAME}`)
	case a.Budget.Store == "":
		c.missing(v.get("budget"), "store", "is missing", c.nearest.right("", names, "declare a store below stores and name it"))
	}
}

// mappedNames finds names that ACM's certificates cannot have, or that are another workload's.
func (c checker) mappedNames(owner map[string]string) {
	for _, authority := range members(c.root.get("authorities")) {
		if authority.value.get("type").str() != AuthorityACM {
			continue
		}
		for _, m := range members(authority.value.get("names")) {
			who, name := "service "+m.name, m.value
			if c.spec.Gateways[m.name] != nil {
				who = "gateway " + m.name
			}
			switch has := owner[name.str()]; {
			case name.bad:
			case !strings.Contains(name.text, "."):
				c.wrong(name, quote(name.text)+" has no dot, and ACM issues for complete names only", "write one such as "+m.name+".payments.internal")
			case len(name.text) > maxCommonName:
				c.wrong(name, fmt.Sprintf("has %d characters, and the common name of a Subject has at most %d", len(name.text), maxCommonName), "shorten it")
			case has != "" && has != who:
				c.wrong(name, fmt.Sprintf("%q is a name of %s", name.text, has), "give it to one of the two: a DNS name belongs to one workload")
			default:
				owner[name.text] = who
			}
		}
	}
}

// issued checks that a workload can have what its authority issues.
func (c checker) issued(m member, certificates Certificates, d DeliveryPlan) {
	authority, known := c.spec.Authorities[certificates.Authority]
	if !known || !authority.Foreign() || m.value.isBad() {
		return
	}
	c.fromStore(m.value, certificates.Authority, authority.Type, d)
	if authority.Type == AuthorityACM {
		c.exported(m, certificates, authority, d)
	}
	if store := m.value.get("delivery").get("store"); store.isGood() {
		c.partition(store, certificates.Authority, store.text)
	}
	own, mesh := m.value.get("certificates"), c.root.get("certificates")
	if authority.Type == AuthorityACMPCA && authority.Mode == ModeShortLived && time.Duration(certificates.TTL) > MaxShortLived {
		c.wrong(firstOf("ttl", own, mesh), fmt.Sprintf("%s is longer than what a private CA in short-lived mode issues for, and %s is one", certificates.TTL, certificates.Authority),
			fmt.Sprintf("write at most %s, or mode: general-purpose", brief(MaxShortLived)))
	}
	if key := firstOf("key", own, mesh); key.isGood() && !signs(authority.Type, certificates.Key) {
		c.wrong(key, fmt.Sprintf("%s is no key that %s (%s) issues for", certificates.Key, certificates.Authority, authority.Type), "write ecdsa-p256, ecdsa-p384 or rsa-2048")
	}
}

// signs tells whether an authority of AWS issues for a type of key.
func signs(authority string, key KeyType) bool {
	switch key {
	case ECDSAP256, ECDSAP384, RSA2048, "":
		return true
	case RSA3072, RSA4096:
		return authority == AuthorityACMPCA
	case Ed25519:
	}
	return false
}

// fromStore checks that the certificate of a workload comes from a store.
func (c checker) fromStore(workload *value, name, kind string, d DeliveryPlan) {
	delivery := workload.get("delivery")
	written := delivery.get("type")
	if d.FromStore() || delivery.isBad() || written.isBad() {
		return
	}
	wrong := fmt.Sprintf("the agent has certificates of the server only, and %s (%s) is to issue", name, kind)
	const right = "write delivery: {type: store, ...}, or another authority"
	if written != nil {
		c.wrong(written, wrong, right)
	} else if delivery == nil {
		c.missing(workload, "delivery", "is missing: "+wrong, right)
	}
}

// exported checks a workload whose key and certificate ACM makes.
func (c checker) exported(m member, certificates Certificates, authority Authority, d DeliveryPlan) {
	declared := c.root.get("authorities").get(certificates.Authority)
	if names := declared.get("names"); !names.isBad() && names.get(m.name) == nil {
		parent := declared
		if names != nil {
			parent = names
		}
		path := join(join(declared.path, "names"), m.name)
		c.add(parent.key, path, fmt.Sprintf("is missing, and ACM issues for %s", m.name), "write the DNS name of its certificate, such as "+m.name+"."+c.spec.TrustDomain)
	}
	if ttl := m.value.get("certificates").get("ttl"); ttl.isGood() {
		c.wrong(ttl, "is without effect on certificates of ACM, which are valid for 395 days", "remove it")
	}
	delivery := m.value.get("delivery")
	if layout := delivery.get("layout"); d.FromStore() && d.Layout != "exported" && !layout.isBad() {
		const wrong, right = "ACM gives certificate, chain, encrypted key and passphrase, for which only exported has the places", "write layout: exported"
		if layout == nil {
			c.missing(delivery, "layout", "is missing: "+wrong, right)
		} else {
			c.wrong(layout, wrong, right)
		}
	}
}

// meets checks that two ends of a connection know each other: the built-in proxy by SPIFFE IDs, which ACM's
// certificates do not have.
func (c checker) meets(at *value, caller string, callerProxy ProxyPlan, target *Service, p Port) {
	if p.TLS == Off || target.Proxy.Engine == "" || callerProxy.Engine == "" { // or which engine is meant cannot be known
		return
	}
	const engines = "proxy: {engine: nginx} or {engine: haproxy}"
	switch {
	case c.spec.dnsIdentity(caller) != "" && !target.Proxy.Real() && p.identifies():
		c.wrong(at, fmt.Sprintf("port %d of %s needs a SPIFFE ID, which the certificate of %s, from ACM, does not have", p.Port, target.Name, caller),
			fmt.Sprintf("write %s for %s, or choose an authority of type acmpca for %s", engines, target.Name, caller))
	case c.spec.dnsIdentity(target.Name) != "" && !callerProxy.Real():
		c.wrong(at, fmt.Sprintf("the built-in proxy of %s needs a SPIFFE ID, which the certificate of %s, from ACM, does not have", caller, target.Name),
			fmt.Sprintf("write %s for %s, or choose an authority of type acmpca for %s", engines, caller, target.Name))
	}
}

// listed checks that the callers that a rule names can show who they are.
func (c checker) listed(caller *value, service *Service, ports []Port) {
	w, known := c.spec.workloadOf(caller.text)
	if !known || c.spec.dnsIdentity(w.Name) == "" {
		return
	}
	for _, p := range ports {
		if p.identifies() {
			c.meets(caller, w.Name, ProxyPlan{Engine: EngineNGINX}, service, p)
			return
		}
	}
}
