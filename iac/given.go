package iac

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"countersign.dev/mesh"
)

// Given are the facts of what is there already, for output without a template around it. Nothing is guessed: what is
// missing is an [ErrMissing] that lists it, and what is wrong or not asked for an [ErrGiven].
type Given struct {
	// ARNs are by the name of a secret, "key/STORE" for the KMS key of a store's secrets, "authority/NAME" for a
	// private CA, and "repository/NAME" for each repository of images. None may hold a wildcard.
	ARNs map[string]string
	// Images are by "countersign", "nginx" or "haproxy", and the name of a service for its application.
	Images map[string]string
	// Endpoints are HOST:PORT by SERVICE:PORT: where called services are reached.
	Endpoints map[string]string
	// CPU units and Memory in MiB of a task, its Architecture (X86_64 or ARM64), and the file of NGINX's stream
	// module; 512, 1024, X86_64 and none when empty.
	CPU, Memory, Architecture, StreamModule string
	// Health is the command that finds the application healthy, as ECS takes it; a connection to its port when empty.
	Health []string
}

// repositories are the ARNs of the repositories of images.
func (g *Given) repositories() []string {
	var arns []string
	for _, name := range slices.Sorted(maps.Keys(g.ARNs)) {
		if strings.HasPrefix(name, "repository/") {
			arns = append(arns, g.ARNs[name])
		}
	}
	return arns
}

// IAM writes, as JSON, the policies of all roles, secrets and keys that a specification takes, for those whose
// templates are made by somebody else. The error wraps [ErrRefused], [ErrGiven], [ErrMissing] or [ErrTooLarge].
func IAM(spec *mesh.Spec, o Options, given Given) ([]byte, error) {
	d, err := build(spec, o)
	if err != nil {
		return nil, err
	}
	d.given = &given
	if err := d.checkPolicies(); err != nil {
		return nil, err
	}
	g := newGathering(d)
	if err := g.take(d.secrets); err != nil {
		return nil, err
	}
	if len(given.repositories()) == 0 {
		g.missing = append(g.missing, "--arn repository/NAME=ARN")
	}
	var roles, policies, secrets, keys list
	role := func(r role, service string, p policy) {
		o := object{{key: "role", value: r.name}, {key: "assumedBy", value: trust(service).document()}}
		if len(p) > 0 {
			o = append(o, field{key: "policy", value: p.document()})
		}
		roles = append(roles, o)
	}
	for _, w := range d.workloads {
		role(w.task, tasksService, d.taskPolicy(w))
		role(w.execution, tasksService, d.executionPolicy(w))
	}
	own, attached := d.functionPolicies()
	role(d.function.role, lambdaService, own)
	for _, m := range attached {
		policies = append(policies, object{{key: "policy", value: m.name}, {key: "for", value: m.what}, {key: "attachedTo", value: d.function.role.name}, {key: "document", value: m.policy.document()}})
	}
	for _, m := range d.auditorPolicies() {
		policies = append(policies, object{{key: "policy", value: m.name}, {key: "for", value: m.what}, {key: "document", value: m.policy.document()}})
	}
	for _, s := range d.secrets {
		secrets = append(secrets, object{{key: "secret", value: s.name}, {key: "resourcePolicy", value: d.secretPolicy(s).document()}})
	}
	for _, k := range d.keys {
		if k.own {
			keys = append(keys, object{{key: "key", value: k.alias}, {key: "policy", value: d.keyPolicy(k).document()}})
		}
	}
	out := indentedJSON(object{{key: "roles", value: roles}, {key: "policies", value: policies}, {key: "secrets", value: secrets}, {key: "keys", value: keys}}, g.resolve)
	if err := g.err(); err != nil {
		return nil, err
	}
	return out, nil
}

// TaskDefinition writes the task definition of a workload as JSON, as `aws ecs register-task-definition
// --cli-input-json` takes it. The error wraps [ErrRefused], [ErrGiven], [ErrMissing], [ErrTooLarge] or
// [mesh.ErrNoWorkload].
func TaskDefinition(spec *mesh.Spec, name string, o Options, given Given) ([]byte, error) {
	if _, err := spec.Compile(name); err != nil {
		return nil, err
	}
	d, err := build(spec, o)
	if err != nil {
		return nil, err
	}
	d.given = &given
	w := d.workloads[slices.IndexFunc(d.workloads, func(w *workload) bool { return w.name == name })]
	g := newGathering(d)
	g.checkTask(w)
	if err := g.take(w.secrets); err != nil {
		return nil, err
	}
	definition, err := d.taskDefinition(w, cmp.Or(given.CPU, defaultCPU), cmp.Or(given.Memory, defaultMemory), cmp.Or(given.Architecture, "X86_64"))
	if err != nil {
		return nil, err
	}
	out := indentedJSON(definition, g.resolve)
	g.idle("--image", "image/", given.Images)
	g.idle("--endpoint", "endpoint/", given.Endpoints)
	if err := g.err(); err != nil {
		return nil, err
	}
	return out, nil
}

// idle refuses what was given and is of no use, such as a name that is mistyped.
func (g *gathering) idle(flag, kind string, given map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if !g.used[kind+name] {
			g.refusal.addf("%s %s: nothing of that name is needed", flag, name)
		}
	}
}

// gathering resolves refs by what is given.
type gathering struct {
	d       *deployment
	facts   map[string]string // partition, region, account
	used    map[string]bool   // by ref.given
	missing []string
	refusal refusal
}

func newGathering(d *deployment) *gathering {
	return &gathering{d: d, facts: map[string]string{}, used: map[string]bool{}, refusal: refusal{of: ErrGiven, spec: d.spec}}
}

const uuid = `[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}`

// kinds are the forms of ARNs, by what their names begin with.
var kinds = map[string]*regexp.Regexp{
	"key":        regexp.MustCompile(`^(arn:aws[a-z-]*):kms:([a-z0-9-]+):([0-9]{12}):key/(?:mrk-[0-9a-f]{32}|` + uuid + `)$`),
	"authority":  regexp.MustCompile(`^(arn:aws[a-z-]*):acm-pca:([a-z0-9-]+):([0-9]{12}):certificate-authority/` + uuid + `$`),
	"repository": regexp.MustCompile(`^(arn:aws[a-z-]*):ecr:([a-z0-9-]+):([0-9]{12}):repository/[a-z0-9][a-z0-9._/-]*$`),
	"secret":     regexp.MustCompile(`^(arn:aws[a-z-]*):secretsmanager:([a-z0-9-]+):([0-9]{12}):secret:(.+)-[A-Za-z0-9]{6}$`),
}

// take checks the ARNs that are given; those of the secrets say where everything is.
func (g *gathering) take(secrets []*storedSecret) error {
	for _, s := range secrets {
		arn, ok := g.d.given.ARNs[s.name]
		if !ok {
			g.missing = append(g.missing, "--arn "+s.name+"=ARN")
			continue
		}
		parts := kinds["secret"].FindStringSubmatch(arn)
		if parts == nil || parts[4] != s.name {
			g.refusal.addf("--arn %s=%.200q: that is not the ARN of the secret: it is arn:aws:secretsmanager:REGION:ACCOUNT:secret:%s-SUFFIX, without a wildcard", s.name, arn, s.name)
			continue
		}
		for fact, value := range map[string]string{"partition": strings.TrimPrefix(parts[1], "arn:"), "region": parts[2], "account": parts[3]} {
			if other := g.facts[fact]; other != "" && other != value {
				g.refusal.addf("--arn %s=%q: its %s is %s, and that of others is %s", s.name, arn, fact, value, other)
			}
			g.facts[fact] = value
		}
	}
	for _, name := range slices.Sorted(maps.Keys(g.d.given.ARNs)) {
		kind, _, ok := strings.Cut(name, "/")
		form := kinds[kind]
		if _, known := g.known()[name]; !known && kind != "repository" {
			g.refusal.addf("--arn %s: nothing of that name is needed; there are %s", name, strings.Join(slices.Sorted(maps.Keys(g.known())), ", "))
		} else if ok && form != nil && !g.isSecret(name) && !form.MatchString(g.d.given.ARNs[name]) {
			g.refusal.addf("--arn %s=%.200q: that is not one of the kind %s, or it has a wildcard; write %s", name, g.d.given.ARNs[name], kind, written[kind])
		} else if ok && form != nil && !g.isSecret(name) {
			g.beside(name, kind, form.FindStringSubmatch(g.d.given.ARNs[name]))
		}
	}
	return g.refusal.err()
}

// written are the forms of ARNs as people read them.
var written = map[string]string{
	"key":        "arn:aws:kms:REGION:ACCOUNT:key/ID, the key's own and not that of an alias",
	"authority":  "arn:aws:acm-pca:REGION:ACCOUNT:certificate-authority/ID",
	"repository": "arn:aws:ecr:REGION:ACCOUNT:repository/NAME",
}

// beside checks an ARN against those of the secrets: a key works in the region of its secrets only, and no role is known
// in two partitions. An account may be another one.
func (g *gathering) beside(name, kind string, parts []string) {
	if partition := strings.TrimPrefix(parts[1], "arn:"); g.facts["partition"] != "" && partition != g.facts["partition"] {
		g.refusal.addf("--arn %s=%q: its partition is %s, and that of the secrets is %s", name, parts[0], partition, g.facts["partition"])
	}
	in, who := g.facts["region"], "the secrets"
	if kind == "authority" {
		in, who = g.d.spec.Authorities[strings.TrimPrefix(name, "authority/")].Region, "the authority in the specification"
	}
	if kind != "repository" && in != "" && parts[2] != in {
		g.refusal.addf("--arn %s=%q: its region is %s, and that of %s is %s", name, parts[0], parts[2], who, in)
	}
}

// known are the names of ARNs that may be given. Those of other outputs are taken, so that one list does for all.
func (g *gathering) known() map[string]bool {
	names := map[string]bool{}
	for _, s := range g.d.secrets {
		names[s.name] = true
	}
	for _, k := range g.d.keys {
		if k.own {
			names["key/"+k.store] = true
		}
	}
	for _, a := range g.d.authorities {
		if a.own {
			names["authority/"+a.name] = true
		}
	}
	return names
}

func (g *gathering) isSecret(name string) bool {
	return slices.ContainsFunc(g.d.secrets, func(s *storedSecret) bool { return s.name == name })
}

// resolve says what a ref stands for, and notes what is missing.
func (g *gathering) resolve(r ref) string {
	g.used[r.given] = true
	kind, rest, _ := strings.Cut(r.given, "/")
	value, flag := "", ""
	switch {
	case g.isSecret(r.given):
		value, flag = g.d.given.ARNs[r.given], "--arn "+r.given+"=ARN"
	case kind == "key" || kind == "authority":
		value, flag = g.d.given.ARNs[r.given], "--arn "+r.given+"=ARN"
	case kind == "image":
		value, flag = g.d.given.Images[rest], "--image "+rest+"=IMAGE"
	case kind == "endpoint":
		value, flag = g.d.given.Endpoints[rest], "--endpoint "+rest+"=HOST:PORT"
	case kind == "role":
		return "arn:" + g.facts["partition"] + ":iam::" + g.facts["account"] + ":role/" + rest
	case r == streamModule:
		return cmp.Or(g.d.given.StreamModule, "none")
	default:
		return g.facts[r.given]
	}
	if value == "" && !slices.Contains(g.missing, flag) {
		g.missing = append(g.missing, flag)
	}
	return value
}

// err is everything that is wrong or missing.
func (g *gathering) err() error {
	if err := g.refusal.err(); err != nil {
		return err
	}
	if len(g.missing) == 0 {
		return nil
	}
	return fmt.Errorf("%w:\n  %s", ErrMissing, strings.Join(g.missing, "\n  "))
}
