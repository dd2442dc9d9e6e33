package review

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge/types"

	"countersign.dev/aws/review/pause"
	"countersign.dev/mesh"
)

// readSchedule looks for a rule that starts the rotation.
func (r *reviewer) readSchedule(ctx context.Context) {
	p := r.places[0]
	function := r.arn(p, "lambda", "function:"+r.Function)
	const mend = "deploy the template's rule again, or enable it (`aws events enable-rule`): without it, nothing is rotated"
	var rules []string
	for input := (&eventbridge.ListRuleNamesByTargetInput{TargetArn: &function}); ; {
		out, err := p.events.ListRuleNamesByTarget(ctx, input)
		if err != nil {
			r.unread(err, "events:ListRuleNamesByTarget", "*", "the schedule of "+r.Function)
			return
		}
		rules = append(rules, out.RuleNames...)
		if input.NextToken = out.NextToken; input.NextToken == nil {
			break
		}
	}
	schedules := 0
	unknown := false
	for _, rule := range rules {
		out, err := p.events.DescribeRule(ctx, &eventbridge.DescribeRuleInput{Name: &rule})
		if err != nil {
			r.unread(err, "events:DescribeRule", r.arn(p, "events", "rule/"+rule), "the rule "+rule)
			schedules++ // perhaps
			unknown = true
			continue
		}
		r.report.Looked["rules"]++
		scheduled := aws.ToString(out.ScheduleExpression) != ""
		if scheduled {
			schedules++
			r.readTargets(ctx, p, out, function)
		}
		if out.State == types.RuleStateDisabled {
			r.add(Error, ScheduleDisabled, aws.ToString(out.Arn), "the rule that starts the rotation is disabled", mend)
		} else if scheduled {
			unknown = r.judgePause(out) || unknown
		}
	}
	if spare := r.spare(); r.every > spare && !unknown {
		r.add(Error, ScheduleSlow, function, fmt.Sprintf("its schedule rests for %s at least, and certificates are due only %s before they end: some end before they are looked at", mesh.Duration(r.every), mesh.Duration(spare)),
			"take the schedule of `countersign generate cloudformation`, which looks at least twice in that time")
	}
	if schedules == 0 {
		r.add(Error, ScheduleMissing, function, "no rule of EventBridge starts it by a schedule", mend)
	}
}

// spare is the shortest time in which a certificate is due and has not ended.
func (r *reviewer) spare() time.Duration {
	spare := time.Duration(math.MaxInt64)
	for _, w := range r.workloads {
		c := w.plan.Certificate
		spare = min(spare, time.Duration(c.TTL)-time.Duration(c.RenewAfter))
	}
	return spare
}

// judgePause notes how often a rule runs. Of one whose schedule is not understood it says so, and tells that nothing is known of it.
func (r *reviewer) judgePause(rule *eventbridge.DescribeRuleOutput) (unknown bool) {
	rests, err := pause.AtLeast(aws.ToString(rule.ScheduleExpression))
	if err != nil {
		r.add(Unknown, Undecided, aws.ToString(rule.Arn), "how often it starts the rotation is not known: "+err.Error(), "write it as rate(1 hour), as templates do")
		return true
	}
	if r.every == 0 || rests < r.every {
		r.every = rests
	}
	return false
}

// readTargets looks at what the function is told by a rule with a schedule: what it does not know, it refuses, and rotates nothing.
func (r *reviewer) readTargets(ctx context.Context, p *place, rule *eventbridge.DescribeRuleOutput, function string) {
	for input := (&eventbridge.ListTargetsByRuleInput{Rule: rule.Name, EventBusName: rule.EventBusName}); ; {
		out, err := p.events.ListTargetsByRule(ctx, input)
		if err != nil {
			r.unread(err, "events:ListTargetsByRule", aws.ToString(rule.Arn), "the targets of "+aws.ToString(rule.Name))
			return
		}
		for _, t := range out.Targets {
			if aws.ToString(t.Arn) != function || t.Input == nil && t.InputTransformer == nil && (t.InputPath == nil || *t.InputPath == "$") {
				continue
			}
			if t.Input == nil || r.Scheduled == nil || !r.Scheduled(*t.Input) {
				r.add(Error, ScheduleInput, aws.ToString(rule.Arn), "it does not give the function the event, but something else that the function does not take for a schedule: nothing is rotated by it",
					"take Input, InputPath and InputTransformer from the target "+aws.ToString(t.Id))
			}
		}
		if input.NextToken = out.NextToken; input.NextToken == nil {
			return
		}
	}
}
