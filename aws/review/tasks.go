package review

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
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
	r.judgeTexts(arn, d, current)
	if !current {
		return
	}
	r.judgeRights(arn, d)
	start := findInit(d)
	w.start = start
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
		r.judgeInit(arn, w, start)
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
	holding := holders(d, volume)
	r.judgeHolders(arn, d, start, holding)
	for i := range d.ContainerDefinitions {
		c := &d.ContainerDefinitions[i]
		if c == start || !holding[aws.ToString(c.Name)] {
			continue
		}
		r.judgeMounts(arn, c, volume, aws.ToString(start.Name))
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

// judgeMounts looks at how a container has the volume with the certificates.
func (r *reviewer) judgeMounts(arn string, c *types.ContainerDefinition, volume, start string) {
	for _, m := range c.MountPoints {
		if aws.ToString(m.SourceVolume) != volume {
			continue
		}
		if !aws.ToBool(m.ReadOnly) {
			r.add(Error, MountWritable, arn, fmt.Sprintf("the container %s mounts the certificates at %s and may write there", aws.ToString(c.Name), aws.ToString(m.ContainerPath)), "mount them read-only (readOnly: true)")
		}
	}
	for _, from := range c.VolumesFrom {
		if aws.ToString(from.SourceContainer) != start {
			continue
		}
		if !aws.ToBool(from.ReadOnly) {
			r.add(Error, MountWritable, arn, fmt.Sprintf("the container %s has the volumes of %s and may write there", aws.ToString(c.Name), start), "mount them read-only (readOnly: true)")
		}
	}
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
