package review

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudtrail"
	trailtypes "github.com/aws/aws-sdk-go-v2/service/cloudtrail/types"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	cwtypes "github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"
	ecstypes "github.com/aws/aws-sdk-go-v2/service/ecs/types"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	eventtypes "github.com/aws/aws-sdk-go-v2/service/eventbridge/types"

	"countersign.dev/aws/review/trail"
)

// readListeners looks at what stands before a service: nothing may end its TLS, and what speaks TLS speaks 1.3.
func (r *reviewer) readListeners(ctx context.Context, w *workload, s *ecstypes.Service) {
	for _, b := range s.LoadBalancers {
		arn := aws.ToString(b.TargetGroupArn)
		if classic := aws.ToString(b.LoadBalancerName); classic != "" && arn == "" {
			r.add(Unknown, Undecided, classic, "a Classic Load Balancer stands before "+w.name+", and those are not looked at; none of them can do TLS 1.3", "take a network load balancer with a TCP listener")
		}
		if arn == "" {
			continue
		}
		groups, err := w.place.balancers.DescribeTargetGroups(ctx, &elb.DescribeTargetGroupsInput{TargetGroupArns: []string{arn}})
		if err != nil {
			r.unread(err, "elasticloadbalancing:DescribeTargetGroups", "*", arn)
			continue
		}
		r.report.Looked["target groups"] += len(groups.TargetGroups)
		for _, group := range groups.TargetGroups {
			for _, balancer := range group.LoadBalancerArns {
				pages := elb.NewDescribeListenersPaginator(w.place.balancers, &elb.DescribeListenersInput{LoadBalancerArn: &balancer})
				for pages.HasMorePages() {
					page, err := pages.NextPage(ctx)
					if err != nil {
						r.unread(err, "elasticloadbalancing:DescribeListeners", "*", balancer)
						break
					}
					for i := range page.Listeners {
						r.judgeListener(ctx, w, arn, &page.Listeners[i])
					}
				}
			}
		}
	}
}

// judgeListener looks at a listener that may lead to a target group of a workload.
func (r *reviewer) judgeListener(ctx context.Context, w *workload, group string, l *elbtypes.Listener) {
	ends := l.Protocol == elbtypes.ProtocolEnumTls || l.Protocol == elbtypes.ProtocolEnumHttps
	arn := aws.ToString(l.ListenerArn)
	if ends && (leads(l.DefaultActions, group) || l.Protocol == elbtypes.ProtocolEnumHttps && r.leadsByRule(ctx, w, group, arn)) {
		r.add(Error, EndsTLS, arn, fmt.Sprintf("it ends TLS (%s) before %s: the proxy sees the balancer, and not its caller's certificate", l.Protocol, w.name), "make it a TCP listener of a network load balancer: TLS ends in the task")
	}
	if !ends || l.SslPolicy == nil {
		return
	}
	out, err := w.place.balancers.DescribeSSLPolicies(ctx, &elb.DescribeSSLPoliciesInput{Names: []string{*l.SslPolicy}})
	if err != nil {
		r.unread(err, "elasticloadbalancing:DescribeSSLPolicies", "*", arn)
		return
	}
	for _, p := range out.SslPolicies {
		if !slices.Contains(p.SslProtocols, "TLSv1.3") {
			r.add(Error, OldTLS, arn, "its policy "+*l.SslPolicy+" cannot do TLS 1.3, only "+strings.Join(p.SslProtocols, ", "), "take a policy whose name begins with ELBSecurityPolicy-TLS13-")
		}
	}
}

// leads tells whether one of a listener's actions leads to a target group.
func leads(actions []elbtypes.Action, group string) bool {
	return slices.ContainsFunc(actions, func(a elbtypes.Action) bool {
		if aws.ToString(a.TargetGroupArn) == group {
			return true
		}
		return a.ForwardConfig != nil && slices.ContainsFunc(a.ForwardConfig.TargetGroups, func(t elbtypes.TargetGroupTuple) bool { return aws.ToString(t.TargetGroupArn) == group })
	})
}

// leadsByRule tells whether one of the rules of an application load balancer's listener leads to a target group.
func (r *reviewer) leadsByRule(ctx context.Context, w *workload, group, listener string) bool {
	pages := elb.NewDescribeRulesPaginator(w.place.balancers, &elb.DescribeRulesInput{ListenerArn: &listener})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			r.unread(err, "elasticloadbalancing:DescribeRules", "*", listener)
			return false
		}
		if slices.ContainsFunc(page.Rules, func(rule elbtypes.Rule) bool { return leads(rule.Actions, group) }) {
			return true
		}
	}
	return false
}

// maxEvents are how many pages of 50 events are asked for: CloudTrail gives two a second.
const maxEvents = 40

// readTrail looks at who has read secrets.
func (r *reviewer) readTrail(ctx context.Context, p *place) {
	since := r.report.Checked.Add(-r.Since)
	const action = "cloudtrail:LookupEvents"
	what := "who has read secrets in " + p.config.Region + " (CloudTrail)"
	pages := cloudtrail.NewLookupEventsPaginator(p.trail, &cloudtrail.LookupEventsInput{
		StartTime: &since, LookupAttributes: []trailtypes.LookupAttribute{{AttributeKey: trailtypes.LookupAttributeKeyEventName, AttributeValue: aws.String("GetSecretValue")}},
	})
	seen := map[string]bool{}
	for n := 0; pages.HasMorePages(); n++ {
		if n == maxEvents {
			r.add(Unknown, Undecided, what, fmt.Sprintf("there are more reads than %d since %s; the older ones were not looked at", maxEvents*50, since.Format(time.RFC3339)), "look less far back (--since), and more often")
			return
		}
		page, err := pages.NextPage(ctx)
		if err != nil {
			r.unread(err, action, "*", what)
			return
		}
		for _, event := range page.Events {
			r.report.Looked["reads"]++
			read, err := trail.Parse(aws.ToString(event.CloudTrailEvent))
			if err != nil {
				r.add(Unknown, Undecided, what, "an event ("+aws.ToString(event.EventId)+") cannot be read: "+err.Error(), "look at it by hand (`aws cloudtrail lookup-events`)")
				continue
			}
			r.judgeRead(p, read, aws.ToTime(event.EventTime), seen)
		}
	}
}

// judgeRead tells of a reader for whom a secret is not. Events come the newest first: the last read of each is told.
func (r *reviewer) judgeRead(p *place, read trail.Read, at time.Time, seen map[string]bool) {
	for _, s := range r.secrets {
		meant, _ := r.may(s)
		id := s.name + " " + read.Reader
		if s.place != p || read.Refused || !read.Of(s.name, s.arn) || slices.Contains(meant, read.Reader) || seen[id] {
			continue
		}
		seen[id] = true
		r.add(Error, ReadByStranger, s.subject(), fmt.Sprintf("%s read it, last at %s", read.Reader, at.UTC().Format(time.RFC3339)),
			"find out why; then rotate it (`countersign rotate once --force --mesh PATH`), because whoever read a key has it, and see how that could be allowed")
	}
}

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
	for _, rule := range rules {
		out, err := p.events.DescribeRule(ctx, &eventbridge.DescribeRuleInput{Name: &rule})
		if err != nil {
			r.unread(err, "events:DescribeRule", r.arn(p, "events", "rule/"+rule), "the rule "+rule)
			schedules++ // perhaps
			continue
		}
		r.report.Looked["rules"]++
		if aws.ToString(out.ScheduleExpression) != "" {
			schedules++
		}
		if out.State == eventtypes.RuleStateDisabled {
			r.add(Error, ScheduleDisabled, aws.ToString(out.Arn), "the rule that starts the rotation is disabled", mend)
		}
	}
	if schedules == 0 {
		r.add(Error, ScheduleMissing, function, "no rule of EventBridge starts it by a schedule", mend)
	}
}

// readAlarms looks for the alarms without which nobody hears that the rotation stopped.
func (r *reviewer) readAlarms(ctx context.Context) {
	p := r.places[0]
	wanted := map[string]bool{"AWS/Lambda Errors " + r.Function: false}
	for _, w := range r.workloads {
		wanted["Countersign DaysToExpiry "+w.name], wanted["Countersign HoursSinceSuccess "+w.name] = false, false
	}
	pages := cloudwatch.NewDescribeAlarmsPaginator(p.alarms, &cloudwatch.DescribeAlarmsInput{AlarmTypes: []cwtypes.AlarmType{cwtypes.AlarmTypeMetricAlarm}})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			r.unread(err, "cloudwatch:DescribeAlarms", r.arn(p, "cloudwatch", "alarm:*"), "the alarms")
			return
		}
		for i := range page.MetricAlarms {
			r.judgeAlarm(&page.MetricAlarms[i], wanted)
		}
	}
	for _, id := range sorted(wanted) {
		if !wanted[id] {
			r.add(Error, AlarmMissing, id, "no alarm watches this metric: a rotation that silently stopped is heard of when the certificate has ended", "deploy the template's alarms again")
		}
	}
}

// judgeAlarm looks at an alarm of the mesh.
func (r *reviewer) judgeAlarm(a *cwtypes.MetricAlarm, wanted map[string]bool) {
	dimensions := map[string]string{}
	for _, d := range a.Dimensions {
		dimensions[aws.ToString(d.Name)] = aws.ToString(d.Value)
	}
	ours := aws.ToString(a.Namespace) == "Countersign" && dimensions["Mesh"] == r.Spec.Mesh || aws.ToString(a.Namespace) == "AWS/Lambda" && dimensions["FunctionName"] == r.Function
	if !ours {
		return
	}
	r.report.Looked["alarms"]++
	id := aws.ToString(a.Namespace) + " " + aws.ToString(a.MetricName) + " " + dimensions["Service"] + dimensions["FunctionName"]
	if _, known := wanted[id]; known {
		wanted[id] = true
	}
	arn := aws.ToString(a.AlarmArn)
	if treats := aws.ToString(a.TreatMissingData); treats != "breaching" {
		r.add(Error, AlarmNotBreaching, arn, fmt.Sprintf("it treats missing data as %s: a schedule that silently stopped sends none, and is no alarm", treats), "let it treat missing data as breaching")
	}
	if !aws.ToBool(a.ActionsEnabled) || len(a.AlarmActions) == 0 {
		r.add(Warning, AlarmSilent, arn, "it tells nobody: it has no action, or its actions are disabled", "give it an action, such as an SNS topic, and enable it")
	}
}
