package iac

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"countersign.dev/mesh"
)

// memories are the MiB that a task of Fargate may have with so many CPU units: from, to, and the step between.
var memories = map[string][3]int{
	"256": {512, 2048, 512}, "512": {1024, 4096, 1024}, "1024": {2048, 8192, 1024}, "2048": {4096, 16384, 1024},
	"4096": {8192, 30720, 1024}, "8192": {16384, 61440, 4096}, "16384": {32768, 122880, 8192},
}

// How large a task is when nothing is said.
const (
	defaultCPU    = "512"
	defaultMemory = "1024"
)

var (
	imageForm  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:/@#-]{0,254}$`)
	moduleForm = regexp.MustCompile(`^/[A-Za-z0-9_./+@:,=-]*$`)
)

// checkTask refuses what ECS would refuse when the task definition is registered, or a container when it starts.
func (g *gathering) checkTask(w *workload) {
	g.checkSize()
	for _, name := range slices.Sorted(maps.Keys(g.d.given.Images)) {
		image := g.d.given.Images[name]
		if !imageForm.MatchString(image) {
			g.refusal.addf("--image %s=%.200q: that is not the name of an image, such as 123456789012.dkr.ecr.eu-central-1.amazonaws.com/%s@sha256:...", name, image, name)
		}
	}
	if engine := string(w.plan.Proxy.Engine); w.service != nil && (w.name == engine || w.name == "countersign") {
		g.refusal.addAt(at(w.plan.Workload, ""), "--image %s would be the image of the application and of another container: rename the service", w.name)
	}
	if m := g.d.given.StreamModule; m != "" && m != "none" && !moduleForm.MatchString(m) {
		g.refusal.addf("--stream-module %.200q: write the absolute path of a file in NGINX's image, or none", m)
	} else if m != "" && w.plan.Proxy.Engine != mesh.EngineNGINX {
		g.refusal.addf("--stream-module: the proxy of %s is %s, which has none; leave it out", w.name, w.plan.Proxy.Engine)
	}
	g.checkHealth(w)
}

// checkSize refuses what Fargate does not have.
func (g *gathering) checkSize() {
	cpu, memory := cmp.Or(g.d.given.CPU, defaultCPU), cmp.Or(g.d.given.Memory, defaultMemory)
	bounds, known := memories[cpu]
	if !known {
		g.refusal.addf("--cpu %.40q: a task of Fargate has 256, 512, 1024, 2048, 4096, 8192 or 16384 units", cpu)
		return
	}
	from, to, step := bounds[0], bounds[1], bounds[2]
	mib, err := strconv.Atoi(memory)
	good := err == nil && strconv.Itoa(mib) == memory && mib >= from && mib <= to && (mib-from)%step == 0
	if cpu == "256" { // which has no step of its own
		good = slices.Contains([]string{"512", "1024", "2048"}, memory)
	}
	if !good {
		steps := fmt.Sprintf("in steps of %d", step)
		if cpu == "256" {
			steps = "512, 1024 or 2048"
		}
		g.refusal.addf("--memory %.40q: with --cpu %s a task of Fargate has from %d to %d MiB, %s", memory, cpu, from, to, steps)
	}
}

// checkHealth refuses a health check that ECS would not take.
func (g *gathering) checkHealth(w *workload) {
	words := g.d.given.Health
	if len(words) == 0 {
		return
	}
	const write = "write CMD and the program with its arguments, or CMD-SHELL and one command, with commas between the words"
	switch {
	case w.service == nil:
		g.refusal.addf("--health-check: %s is a gateway, and has no application; leave it out", w.name)
	case words[0] != "CMD" && words[0] != "CMD-SHELL":
		g.refusal.addf("--health-check %.200q: it begins with neither; %s", strings.Join(words, ","), write)
	case len(words) == 1 || words[1] == "":
		g.refusal.addf("--health-check %s: there is no command behind it; %s", words[0], write)
	case words[0] == "CMD-SHELL" && len(words) > 2:
		g.refusal.addf("--health-check %.200q: CMD-SHELL has one command; write a comma in it as \\,", strings.Join(words, ","))
	}
}
