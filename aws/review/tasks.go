package review

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"countersign.dev/aws/review/leak"
)

// deployedRole is the ARN of a role that a definition has by name or ARN.
func (r *reviewer) deployedRole(role *string) string {
	if aws.ToString(role) == "" {
		return ""
	}
	return r.roleARN(*role)
}

// maxRevisions are how many revisions of a family are looked at, the newest first: each is a call.
const maxRevisions = 200

// readRevisions looks at all revisions of a workload's family: who may ecs:DescribeTaskDefinition reads what stood in an
// old one as well, after it was deregistered, too.
func (r *reviewer) readRevisions(ctx context.Context, w *workload, current string) {
	for _, status := range []types.TaskDefinitionStatus{types.TaskDefinitionStatusActive, types.TaskDefinitionStatusInactive} {
		var arns []string
		pages := ecs.NewListTaskDefinitionsPaginator(w.place.ecs, &ecs.ListTaskDefinitionsInput{FamilyPrefix: &w.family, Status: status, Sort: types.SortOrderDesc})
		for pages.HasMorePages() && len(arns) <= maxRevisions {
			page, err := pages.NextPage(ctx)
			if err != nil {
				r.unread(err, "ecs:ListTaskDefinitions", "*", "the "+strings.ToLower(string(status))+" revisions of "+w.family)
				return
			}
			arns = append(arns, page.TaskDefinitionArns...)
		}
		if len(arns) > maxRevisions {
			r.add(Unknown, Undecided, w.family, fmt.Sprintf("it has more than %d %s revisions; the older ones were not looked at", maxRevisions, strings.ToLower(string(status))), "deregister and delete old revisions (`aws ecs delete-task-definitions`)")
			arns = arns[:maxRevisions]
		}
		for _, arn := range arns {
			if arn == current {
				continue
			}
			out, err := w.place.ecs.DescribeTaskDefinition(ctx, &ecs.DescribeTaskDefinitionInput{TaskDefinition: &arn})
			if err != nil {
				r.unread(err, "ecs:DescribeTaskDefinition", arn, arn)
				return
			}
			r.judgeDefinition(arn, w, out.TaskDefinition, false)
		}
	}
}

// judgeDefinition looks at a task definition. What runs is looked at in whole, an old revision for what must not stand in it.
func (r *reviewer) judgeDefinition(arn string, w *workload, d *types.TaskDefinition, current bool) {
	r.report.Looked["task definitions"]++
	for i := range d.ContainerDefinitions {
		r.judgeTexts(arn, &d.ContainerDefinitions[i], current)
	}
	if !current {
		return
	}
	r.judgeRights(arn, d)
	start := findInit(d)
	if start == nil {
		r.add(Error, InitMissing, arn, "no container runs `countersign init --to`, so nothing brings the certificate", "take the task definition of `countersign generate task-definition`")
	}
	for i := range d.ContainerDefinitions {
		c := &d.ContainerDefinitions[i]
		r.judgeHidden(arn, c)
		for _, s := range c.Secrets {
			at := slices.IndexFunc(w.secrets, func(own *secret) bool { return names(aws.ToString(s.ValueFrom), own.name) })
			switch {
			case at >= 0 && c == start:
				w.byExecution = true
			case at < 0:
				r.judgeForeign(arn, w, aws.ToString(c.Name), aws.ToString(s.ValueFrom))
			default:
				r.add(Error, SecretInDefinition, arn, fmt.Sprintf("the container %s lives as long as the task, and gets %s in its environment (%s), where every process of it, its crash dumps and its diagnostics show it", aws.ToString(c.Name), w.secrets[at].name, aws.ToString(s.Name)),
					"give it to the init container alone, which starts itself anew without it")
			}
		}
	}
	if start != nil {
		r.judgeOrder(arn, d, start)
	}
}

// names tells whether a valueFrom is a secret: its name or ARN, with the random end or without, and a field behind.
func names(from, secret string) bool {
	_, after, found := strings.Cut(from, ":secret:")
	if !found {
		after = from
	}
	after, _, _ = strings.Cut(after, ":")
	const end = 7 // -AbCdEf
	return after == secret || len(after) == len(secret)+end && strings.HasPrefix(after, secret+"-")
}

// judgeTexts looks for what is secret in what a definition says openly.
func (r *reviewer) judgeTexts(arn string, c *types.ContainerDefinition, current bool) {
	where := "the container " + aws.ToString(c.Name)
	mend := "take it out, and use a secret; then rotate, because it has been seen: `countersign rotate once SERVICE --force`; an old revision is deregistered and deleted (`aws ecs delete-task-definitions`)"
	if !current {
		where = "the old revision's container " + aws.ToString(c.Name)
	}
	say := func(what, text string) {
		switch leak.Find(text) {
		case leak.Key:
			r.add(Error, KeyInDefinition, arn, where+" has a private key in "+what, mend)
		case leak.PEM:
			r.add(Warning, CertInDefinition, arn, where+" has a certificate, or something else in PEM, in "+what, "take it from a secret: a definition outlives what it quotes")
		case leak.Nothing:
		}
	}
	for _, pair := range c.Environment {
		what := "the variable " + aws.ToString(pair.Name)
		say(what, aws.ToString(pair.Value))
		if leak.Passphrase(aws.ToString(pair.Name), aws.ToString(pair.Value)) {
			r.add(Error, PassInDefinition, arn, where+" has a passphrase in "+what, mend)
		}
		if leak.AccessKey(aws.ToString(pair.Name), aws.ToString(pair.Value)) {
			r.add(Error, KeyInDefinition, arn, where+" has the secret access key of an account in "+what, "take it out: a task has a role; and delete the access key (`aws iam delete-access-key`), because it has been seen")
		}
	}
	words := slices.Concat(c.EntryPoint, c.Command)
	say("its command", strings.Join(words, " "))
	if leak.Option(words) {
		r.add(Error, PassInDefinition, arn, where+" has a passphrase in its command", mend)
	}
	for _, file := range c.EnvironmentFiles {
		r.add(Unknown, EnvironmentFile, arn, where+" takes variables from the file "+aws.ToString(file.Value)+", which is not read here: whoever reads it has what stands in it",
			"see that no key and no passphrase stands in it, or do without it: what is secret comes from Secrets Manager")
	}
	if c.HealthCheck != nil {
		say("its health check", strings.Join(c.HealthCheck.Command, " "))
	}
	for _, label := range sorted(c.DockerLabels) {
		say("the label "+label, c.DockerLabels[label])
	}
	if c.LogConfiguration != nil {
		for _, option := range sorted(c.LogConfiguration.Options) {
			say("the option "+option+" of its log", c.LogConfiguration.Options[option])
			if leak.Credential(option, c.LogConfiguration.Options[option]) {
				r.add(Error, PassInDefinition, arn, where+" has a credential in the option "+option+" of its log", "name it in the log's secretOptions, and replace it, because it has been seen")
			}
		}
	}
}

// findInit finds the container that brings the certificate and ends.
func findInit(d *types.TaskDefinition) *types.ContainerDefinition {
	for i := range d.ContainerDefinitions {
		c := &d.ContainerDefinitions[i]
		words := slices.Concat(c.EntryPoint, c.Command)
		if slices.Contains(words, "init") && writesTo(words) != "" && !aws.ToBool(c.Essential) {
			return c
		}
	}
	return nil
}

// writesTo is where init writes.
func writesTo(words []string) string {
	for i, word := range words {
		if value, found := strings.CutPrefix(word, "--to="); found {
			return value
		}
		if word == "--to" && i+1 < len(words) {
			return words[i+1]
		}
	}
	return ""
}

// judgeOrder looks at who gets the certificate, and when.
func (r *reviewer) judgeOrder(arn string, d *types.TaskDefinition, start *types.ContainerDefinition) {
	volume, to := "", writesTo(slices.Concat(start.EntryPoint, start.Command))
	for _, m := range start.MountPoints {
		if path := strings.TrimSuffix(aws.ToString(m.ContainerPath), "/"); path == to || strings.HasPrefix(to, path+"/") {
			volume = aws.ToString(m.SourceVolume)
		}
	}
	if volume == "" {
		r.add(Unknown, Undecided, arn, "the init container writes to "+to+", which is no volume: who gets the certificate cannot be seen", "mount a volume of the task there")
		return
	}
	r.judgeVolume(arn, d, volume)
	for i := range d.ContainerDefinitions {
		c := &d.ContainerDefinitions[i]
		if c == start || !r.judgeMounts(arn, c, volume, aws.ToString(start.Name)) {
			continue
		}
		if condition := waits(d, c, aws.ToString(start.Name), nil); condition != types.ContainerConditionSuccess {
			how := "without waiting for it"
			if condition != "" {
				how = "on " + string(condition)
			}
			r.add(Error, NotSuccess, arn, fmt.Sprintf("the container %s needs what %s brings, and starts %s: also when that failed", aws.ToString(c.Name), aws.ToString(start.Name), how),
				"let it depend on "+aws.ToString(start.Name)+" with the condition SUCCESS")
		}
	}
}

// judgeMounts looks at how a container has the volume with the certificates, and tells whether it has it at all.
func (r *reviewer) judgeMounts(arn string, c *types.ContainerDefinition, volume, start string) (has bool) {
	for _, m := range c.MountPoints {
		if aws.ToString(m.SourceVolume) != volume {
			continue
		}
		has = true
		if !aws.ToBool(m.ReadOnly) {
			r.add(Error, MountWritable, arn, fmt.Sprintf("the container %s mounts the certificates at %s and may write there", aws.ToString(c.Name), aws.ToString(m.ContainerPath)), "mount them read-only (readOnly: true)")
		}
	}
	for _, from := range c.VolumesFrom {
		if aws.ToString(from.SourceContainer) != start {
			continue
		}
		has = true
		if !aws.ToBool(from.ReadOnly) {
			r.add(Error, MountWritable, arn, fmt.Sprintf("the container %s has the volumes of %s and may write there", aws.ToString(c.Name), start), "mount them read-only (readOnly: true)")
		}
	}
	return has
}

// waits tells on which condition a container waits for another, by itself or through others. Those have to have started
// at least, and so has what they wait for.
func waits(d *types.TaskDefinition, c *types.ContainerDefinition, on string, seen []string) types.ContainerCondition {
	best := types.ContainerCondition("")
	for _, dependency := range c.DependsOn {
		to := aws.ToString(dependency.ContainerName)
		condition := dependency.Condition
		if to != on {
			if slices.Contains(seen, to) {
				continue
			}
			condition = ""
			for i := range d.ContainerDefinitions {
				if aws.ToString(d.ContainerDefinitions[i].Name) == to {
					condition = waits(d, &d.ContainerDefinitions[i], on, append(seen, to))
				}
			}
		}
		if condition != "" && best != types.ContainerConditionSuccess {
			best = condition
		}
	}
	return best
}

// shareRoles finds roles that several workloads have: each of them reads the keys of the others.
func (r *reviewer) shareRoles() {
	holders := map[string][]string{}
	for _, w := range r.workloads {
		for _, arn := range slices.Compact([]string{w.taskRole, w.executionRole}) {
			if arn != "" {
				holders[arn] = append(holders[arn], w.name)
			}
		}
	}
	for _, arn := range sorted(holders) {
		if len(holders[arn]) > 1 && slices.ContainsFunc(r.workloads, func(w *workload) bool { return w.reader(r) == arn }) {
			r.add(Error, RoleShared, arn, "the tasks of "+strings.Join(holders[arn], ", ")+" have one role, so that each can read the keys of the others", "give each workload roles of its own (`countersign generate iam`)")
		}
	}
}
