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
	ecstypes "github.com/aws/aws-sdk-go-v2/service/ecs/types"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"

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
	if l.Protocol == elbtypes.ProtocolEnumHttp && (leads(l.DefaultActions, group) || r.leadsByRule(ctx, w, group, arn)) {
		r.add(Error, Plain, arn, "it speaks HTTP without TLS before "+w.name+": callers send what they send in the clear, and are known by nothing", "make it a TCP listener of a network load balancer: TLS ends in the task")
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
		if old := slices.DeleteFunc(slices.Clone(p.SslProtocols), func(version string) bool { return version == "TLSv1.2" || version == "TLSv1.3" }); len(old) > 0 {
			r.add(Error, AllowsOldTLS, arn, "its policy "+*l.SslPolicy+" still takes "+strings.Join(old, ", ")+", which RFC 8996 forbids", "take a policy that begins with TLS 1.2 at the earliest, such as ELBSecurityPolicy-TLS13-1-2-2021-06, or ELBSecurityPolicy-TLS13-1-3-2021-06")
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
