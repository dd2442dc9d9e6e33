package iac

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"countersign.dev/engine"
	"countersign.dev/haproxy"
	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/nginx"
)

// mostPorts is how many target groups a service of ECS has at most.
const mostPorts = 5

// firstPort is the first one that needs no privilege.
const firstPort = 1024

// check finds what these templates cannot deploy.
func check(spec *mesh.Spec, r *refusal) {
	if len(spec.Services)+len(spec.Gateways) == 0 {
		r.addAt([]string{"services"}, "it declares no service and no gateway")
	}
	regions, places := map[string]string{}, map[string]string{}
	for _, member := range spec.Workloads() {
		plan, err := spec.Compile(member.Name)
		if err != nil {
			r.addAt(at(member, ""), "%v", err)
			continue
		}
		checkDelivery(spec, plan, r)
		if plan.Delivery.Store.Region != "" {
			regions[plan.Delivery.Store.Region] = "the store " + plan.Delivery.StoreName
			places[plan.Delivery.Store.Region] = "stores." + plan.Delivery.StoreName + ".region"
		}
		if name, a := spec.AuthorityOf(member.Name); a.Foreign() && a.Region != "" && (a.ARN == "" || a.Type == mesh.AuthorityACM) { // ACM issues from CAs of its own region only
			regions[a.Region] = "the authority " + name
			places[a.Region] = "authorities." + name + ".region"
		}
		checkPorts(plan, r)
		checkRendering(spec, plan, r)
	}
	if len(regions) > 1 {
		var said []string
		for region, who := range regions {
			said = append(said, who+" is in "+region)
		}
		first := slices.Min(slices.Collect(maps.Values(places)))
		r.addAt([]string{first}, "one stack is in one region, and %s: write a specification for each region, or leave the region out where it is the stack's", strings.Join(sorted(said), ", "))
	}
}

// checkDelivery finds workloads that get their certificates in another way.
func checkDelivery(spec *mesh.Spec, plan *mesh.Plan, r *refusal) {
	w := plan.Workload
	if !plan.Proxy.Real() {
		r.addFor(w, at(w, ".proxy.engine", ".proxy"), "its proxy is the built-in one, which needs a server: write proxy: {engine: nginx} or {engine: haproxy}")
	}
	if plan.Delivery.Store.Type != mesh.StoreSecretsManager {
		r.addFor(w, at(w, ".delivery.store", ".delivery.type", ".delivery"), "its certificate does not come from Secrets Manager: write delivery: {type: store, store: NAME, ...} with a store of the type %s", mesh.StoreSecretsManager)
	}
	if key := plan.Delivery.Store.KMSKey; strings.Contains(key, ":alias/") {
		r.addAt([]string{"stores." + plan.Delivery.StoreName + ".kmsKey"}, "the store %s: a policy cannot name a key by the ARN of an alias: write the key's own ARN as kmsKey, or alias/NAME for a key that the template makes", plan.Delivery.StoreName)
	}
	if plan.Deploy != mesh.DeployECS || plan.ECS == nil {
		r.addFor(w, at(w, ".deploy.type", ".deploy"), "it is not deployed by ECS: write deploy: {type: ecs, cluster: NAME}")
	}
	if _, a := spec.AuthorityOf(plan.Workload.Name); !a.Foreign() {
		r.addFor(w, inherited(w, "authority"), "its certificates come from the server's own authority, which these templates do not have: write certificates: {authority: NAME} of an authority of the type acmpca or acm")
	}
	if plan.Revocation.Check {
		r.addFor(w, []string{"revocation"}, "it wants revoked callers refused, and a task of ECS gets no revocation lists: write revocation: none, and let certificates live for hours or days")
	}
}

// The schedule of the templates looks what is due every hour, or more often where a certificate ends so soon after it is due that a run
// which fails could not be repeated. A run may last as long as the function may, and only so many run at once: more often than every
// leastBetween nothing would be tried.
const (
	mostBetween  = time.Hour
	leastBetween = functionSeconds * time.Second
)

// leastAge is the age at which a certificate is replaced at the earliest: five versions for each rotation, which comes up to a tenth before
// its time, are two thirds of what Secrets Manager keeps of a secret in a day. The rest is for failures.
const leastAge = 2 * time.Hour

// every is how often the schedule looks: at least twice between the time at which any certificate is due and its end.
func (d *deployment) every() time.Duration {
	every := mostBetween
	for _, w := range d.workloads {
		spare := time.Duration(w.plan.Certificate.TTL) - time.Duration(w.plan.Certificate.RenewAfter)
		every = min(every, (spare / 2).Truncate(time.Minute))
	}
	return max(every, leastBetween) // of less, checkStack says so
}

// schedule is every as EventBridge writes it, and as people do.
func (d *deployment) schedule() (expression, words string) {
	if n := int(d.every() / time.Minute); n != 60 {
		return fmt.Sprintf("rate(%d minutes)", n), fmt.Sprintf("every %d minutes", n)
	}
	return "rate(1 hour)", "every hour"
}

// checkStack finds what does not fit the schedule and the private CA that the templates make. Who takes policies and task definitions alone
// has his own.
func checkStack(spec *mesh.Spec, r *refusal) {
	for _, member := range spec.Workloads() {
		plan, err := spec.Compile(member.Name)
		if err != nil {
			continue // check says so
		}
		w := plan.Workload
		if spare := time.Duration(plan.Certificate.TTL) - time.Duration(plan.Certificate.RenewAfter); spare < 2*leastBetween {
			r.addFor(w, inherited(w, "renewAfter", "ttl"), "its certificate is due %s before it ends, and a run of the rotation function may last %s, so that one that fails could not be repeated: "+
				"write a renewAfter that is at least %s below ttl", mesh.Duration(spare), mesh.Duration(functionSeconds*time.Second), mesh.Duration(2*leastBetween))
		}
		if renew := time.Duration(plan.Certificate.RenewAfter); renew < leastAge {
			r.addFor(w, inherited(w, "renewAfter", "ttl"), "its certificate is replaced every %s, and a secret of Secrets Manager has room for about 100 versions in a day, of which a rotation takes five of NAME.rotation: "+
				"write a renewAfter of at least %s", mesh.Duration(renew), mesh.Duration(leastAge))
		}
		name, a := spec.AuthorityOf(member.Name)
		if a.Type == mesh.AuthorityACM && a.ARN == "" && plan.Certificate.Key != mesh.ECDSAP256 && plan.Certificate.Key != mesh.ECDSAP384 {
			r.addFor(w, inherited(w, "key"), "its key is %s, and ACM makes only keys of the family of the private CA's own, which is %s where the template makes it: write key: ecdsa-p256 or ecdsa-p384, or name a CA with an RSA key as authorities.%s.arn",
				plan.Certificate.Key, caKey, name)
		}
	}
}

// checkPorts finds what cannot be listened on.
func checkPorts(plan *mesh.Plan, r *refusal) {
	w, listeners := plan.Workload, ".ports"
	if w.Kind == id.Gateway {
		listeners = ".listen"
	}
	if len(plan.Inbound) > mostPorts {
		r.addAt(at(w, listeners), "%s %s has %d ports, and a service of ECS has at most %d target groups", w.Kind, w.Name, len(plan.Inbound), mostPorts)
	}
	for i, in := range plan.Inbound {
		listener := fmt.Sprintf("%s[%d]", listeners, i)
		if in.Port < firstPort {
			r.addFor(w, at(w, listener+".port"), "port %d needs a privilege, and no container has one: write one from %d on", in.Port, firstPort)
		}
		if in.Certificate != nil {
			r.addFor(w, at(w, listener+".certificate"), "the certificate of port %d is a file of a machine, and a task has none: leave it out, and let a load balancer in front show it", in.Port)
		}
	}
}

// checkRendering finds what the proxy cannot carry out: init would say so in every task.
func checkRendering(spec *mesh.Spec, plan *mesh.Plan, r *refusal) {
	o := engine.Options{NoFlags: true, Certificates: certificatesDir, Run: runDir, Drain: drain, Age: connectionAge, Version: plan.Proxy.Version}
	var err error
	switch plan.Proxy.Engine {
	case mesh.EngineNGINX:
		_, err = nginx.Render(plan, o)
	case mesh.EngineHAProxy:
		_, err = haproxy.Render(plan, o)
	case mesh.EngineBuiltin:
	}
	if err == nil {
		return
	}
	w := plan.Workload
	reasons := engine.Reasons(err)
	if len(reasons) == 0 {
		reasons = []string{err.Error()}
	}
	for _, reason := range reasons {
		r.addFor(w, append(engine.Paths(spec, w, reason), at(w, ".proxy.engine")...), "%s: %s", plan.Proxy.Engine, reason)
	}
}

// How long what ends is given. The load balancer sends no new connections first, and waits; until then peers have left, because
// their connections have become too old. Then application and proxy end.
const (
	deregistration = 60 * time.Second
	connectionAge  = 30 * time.Second
	appStop        = 30 * time.Second
	proxyStop      = 60 * time.Second
	drain          = 30 * time.Second
)
