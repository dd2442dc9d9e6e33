package review

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"countersign.dev/mesh"
)

// options are the values that a command gives an option, as --NAME VALUE or --NAME=VALUE.
func options(words []string, option string) []string {
	var values []string
	for i, word := range words {
		if value, found := strings.CutPrefix(word, option+"="); found {
			values = append(values, value)
		} else if word == option && i+1 < len(words) {
			values = append(values, words[i+1])
		}
	}
	return values
}

// variable is the value of a variable of a container; the last one counts.
func variable(c *types.ContainerDefinition, name string) (value string, found bool) {
	for _, pair := range c.Environment {
		if aws.ToString(pair.Name) == name {
			value, found = aws.ToString(pair.Value), true
		}
	}
	return value, found
}

// judgeInit compares what the init container is told with the specification: which secrets it reads, and by which Plan the proxy is set
// up. A certificate of another workload, or another's rules, would be taken for this one's.
func (r *reviewer) judgeInit(arn string, w *workload, c *types.ContainerDefinition) {
	words := slices.Concat(c.EntryPoint, c.Command)
	from := options(words, "--from")
	if secret, found := variable(c, "COUNTERSIGN_SECRET"); found && len(from) == 0 {
		from = []string{"secretsmanager:" + secret}
	}
	delivery := w.plan.Delivery
	for _, place := range from {
		if secret, found := strings.CutPrefix(place, "secretsmanager:"); found {
			r.judgeSource(arn, w, secret, delivery.Secret)
		}
	}
	for _, place := range options(words, "--bundle-from") {
		if secret, found := strings.CutPrefix(place, "secret:"); found {
			r.judgeSource(arn, w, secret, delivery.Bundle)
		}
	}
	for _, place := range options(words, "--plan") {
		r.judgePlan(arn, w, c, place)
	}
}

// judgeSource compares a secret that init reads with the one that it is to read.
func (r *reviewer) judgeSource(arn string, w *workload, secret, want string) {
	called := secret
	if after, found := strings.CutPrefix(secret, r.arn(w.place, "secretsmanager", "secret:")); found {
		called = after
	}
	if want != "" && (secret == want || called != secret && names(called, want)) {
		return
	}
	for _, s := range r.secrets {
		if names(called, s.name) && !slices.Contains(w.secrets, s) {
			r.add(Error, SecretOfAnother, arn, fmt.Sprintf("its init container reads %s, which is not for %s", s.name, w.name), "have it read "+want+", as `countersign generate task-definition` writes it, and see who may read the other secret")
			return
		}
	}
	r.add(Error, InitDiffers, arn, fmt.Sprintf("its init container reads the secret %s, and the specification says %s", shortly(secret), want), "take the task definition of `countersign generate task-definition`")
}

// judgePlan compares the Plan that init gets with that of the specification.
func (r *reviewer) judgePlan(arn string, w *workload, c *types.ContainerDefinition, place string) {
	const mend = "deploy what `countersign generate` writes for this specification, or check with the one that was deployed"
	name, byVariable := strings.CutPrefix(place, "env:")
	if !byVariable {
		r.add(Unknown, Undecided, arn, "its init container takes the Plan from "+shortly(place)+", which is not read here: who may call "+w.name+" cannot be seen", "give it the Plan by a variable (--plan env:COUNTERSIGN_PLAN), as templates do")
		return
	}
	text, found := variable(c, name)
	if !found {
		for _, s := range c.Secrets {
			found = found || aws.ToString(s.Name) == name
		}
		if found || len(c.EnvironmentFiles) > 0 {
			r.add(Unknown, Undecided, arn, "its init container takes the Plan from elsewhere than its definition: who may call "+w.name+" cannot be seen", "give it the Plan by a variable, as templates do")
			return
		}
	}
	var plan mesh.Plan
	if err := json.Unmarshal([]byte(text), &plan); err != nil {
		r.add(Error, InitDiffers, arn, "its init container has a Plan that cannot be read: no task of it starts", mend)
		return
	}
	// Both are written anew: another version of this program may have written fewer fields.
	got, err := json.Marshal(forProxy(plan))
	want, wrong := json.Marshal(forProxy(*w.plan))
	if err != nil || wrong != nil || !bytes.Equal(got, want) {
		r.add(Error, InitDiffers, arn, "its init container has another Plan than that of the specification: other rules of who may call "+w.name+", or another set-up of its proxy"+differing(got, want), mend)
	}
}

// forProxy is a Plan without what init and the proxy do not go by: where secrets lie and how they are replaced.
func forProxy(p mesh.Plan) mesh.Plan {
	p.Delivery, p.Deploy, p.ECS, p.Certificate.TTL, p.Certificate.RenewAfter = mesh.DeliveryPlan{}, "", nil, 0, 0
	return p
}

// differing names the parts of two Plans that differ.
func differing(a, b []byte) string {
	var one, other map[string]json.RawMessage
	if json.Unmarshal(a, &one) != nil || json.Unmarshal(b, &other) != nil {
		return ""
	}
	var parts []string
	for _, part := range sorted(one) {
		if !bytes.Equal(one[part], other[part]) {
			parts = append(parts, part)
		}
	}
	for _, part := range sorted(other) {
		if _, there := one[part]; !there {
			parts = append(parts, part)
		}
	}
	return " (" + few(parts) + ")"
}

// holders are the containers that have a volume, by themselves or from one another.
func holders(d *types.TaskDefinition, volume string) map[string]bool {
	found := map[string]bool{}
	for grown := true; grown; {
		grown = false
		for i := range d.ContainerDefinitions {
			c := &d.ContainerDefinitions[i]
			has := slices.ContainsFunc(c.MountPoints, func(m types.MountPoint) bool { return aws.ToString(m.SourceVolume) == volume }) ||
				slices.ContainsFunc(c.VolumesFrom, func(from types.VolumeFrom) bool { return found[aws.ToString(from.SourceContainer)] })
			if has && !found[aws.ToString(c.Name)] {
				found[aws.ToString(c.Name)], grown = true, true
			}
		}
	}
	return found
}

// proxies are how proxies are called: by templates, and as programs.
var proxies = []string{"proxy", "nginx", "haproxy", "envoy", "countersign"}

// judgeHolders names the containers that have the certificates and are neither init nor the proxy: one is called so, or runs one. Where none
// is, whoever alone has them is the proxy.
func (r *reviewer) judgeHolders(arn string, d *types.TaskDefinition, start *types.ContainerDefinition, holding map[string]bool) {
	var others []string
	proxy := ""
	for _, known := range proxies {
		for i := range d.ContainerDefinitions {
			c := &d.ContainerDefinitions[i]
			words := append(slices.Concat(c.EntryPoint, c.Command), "")
			if proxy == "" && c != start && holding[aws.ToString(c.Name)] && (aws.ToString(c.Name) == known || name(words[0]) == known) {
				proxy = aws.ToString(c.Name)
			}
		}
	}
	for i := range d.ContainerDefinitions {
		c := &d.ContainerDefinitions[i]
		if c == start || !holding[aws.ToString(c.Name)] || aws.ToString(c.Name) == proxy || agent(c) {
			continue
		}
		others = append(others, aws.ToString(c.Name))
	}
	if proxy == "" && len(others) == 1 {
		return
	}
	for _, other := range others {
		r.add(Error, MountForeign, arn, "the container "+shortly(other)+" has the certificates and the key, and is neither init nor the proxy", "take the mount from it: it reaches others through the proxy; then rotate, because it may have kept the key")
	}
}

// agent tells whether a container is the agent, which brings new certificates to a proxy that runs.
func agent(c *types.ContainerDefinition) bool {
	words := slices.Concat(c.EntryPoint, c.Command)
	if len(words) > 0 && name(words[0]) == "countersign" {
		words = words[1:]
	}
	return len(words) > 0 && words[0] == "agent"
}
