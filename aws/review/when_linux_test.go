//go:build linux

package review_test

import (
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	cwtypes "github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge/types"
)

// faultsOfWhen are schedules that rest for too long, and alarms that fire too late or never.
func faultsOfWhen() []fault {
	rule := func(expression string) func(*world) {
		return func(w *world) {
			try[*eventbridge.PutRuleOutput](w)(eventbridge.NewFromConfig(w.cloud.Admin()).PutRule(w.Context(), &eventbridge.PutRuleInput{Name: aws.String(w.part("RotationSchedule")), ScheduleExpression: &expression, State: types.RuleStateEnabled}))
		}
	}
	target := func(input *string) func(*world) {
		return func(w *world) {
			try[*eventbridge.PutTargetsOutput](w)(eventbridge.NewFromConfig(w.cloud.Admin()).PutTargets(w.Context(), &eventbridge.PutTargetsInput{
				Rule: aws.String(w.part("RotationSchedule")), Targets: []types.Target{{Id: aws.String("rotation"), Arn: aws.String("arn:aws:lambda:eu-central-1:123456789012:function:payments-rotation"), Input: input}},
			}))
		}
	}
	const hourly = "rate(1 hour)"
	return []fault{
		together(
			fault{name: "monthly", plant: rule("rate(30 days)"), mend: rule(hourly), want: []string{"error schedule_slow"}, saying: []string{"its schedule rests for 720h at least, and certificates are due only 48h before they end"}},
			fault{name: "something else", plant: target(aws.String(`{"rotate": false}`)), mend: target(nil), want: []string{"error schedule_input"}, saying: []string{"it does not give the function the event"}},
		),
		together(
			fault{name: "daily", plant: rule("cron(0 3 * * ? *)"), mend: rule(hourly)},
			fault{name: "the same in other words", plant: target(aws.String(`{"source": "aws.events", "detail-type": "Scheduled Event"}`)), mend: target(nil)},
		),
		{name: "once", plant: rule("cron(0 3 * * ? 2030)"), mend: rule(hourly), want: []string{"unknown undecided"}, saying: []string{"how often it starts the rotation is not known"}},
		{
			name: "alarms that are none", plant: func(w *world) {
				w.alarm("CheckoutExpiryAlarm", func(in *cloudwatch.PutMetricAlarmInput) { in.Threshold = aws.Float64(0) })
				w.alarm("LedgerExpiryAlarm", func(in *cloudwatch.PutMetricAlarmInput) {
					in.ComparisonOperator = cwtypes.ComparisonOperatorGreaterThanThreshold
				})
				w.alarm("PaygateExpiryAlarm", func(in *cloudwatch.PutMetricAlarmInput) { in.EvaluationPeriods = aws.Int32(12) })
				w.alarm("TerminalOverdueAlarm", func(in *cloudwatch.PutMetricAlarmInput) { in.Threshold = aws.Float64(1000) })
				w.alarm("CheckoutFailuresAlarm", func(in *cloudwatch.PutMetricAlarmInput) { in.Threshold = aws.Float64(100) })
				w.alarm("LedgerFailuresAlarm", func(in *cloudwatch.PutMetricAlarmInput) { in.Threshold = aws.Float64(-1) })
				w.alarm("PcaAuthorityBudgetAlarm", func(in *cloudwatch.PutMetricAlarmInput) { in.Threshold = aws.Float64(201) })
				w.alarm("RotationErrorsAlarm", func(in *cloudwatch.PutMetricAlarmInput) { in.Statistic = cwtypes.StatisticMinimum })
				w.alarm("PaygateOverdueAlarm", func(in *cloudwatch.PutMetricAlarmInput) {
					in.Dimensions = append(in.Dimensions, cwtypes.Dimension{Name: aws.String("Stage"), Value: aws.String("prod")})
				})
				w.alarm("PaygateFailuresAlarm", func(in *cloudwatch.PutMetricAlarmInput) { // beside the one that is in time
					in.AlarmName, in.Threshold = aws.String("the worst"), aws.Float64(1000)
				})
				w.alarm("LedgerOverdueAlarm", func(in *cloudwatch.PutMetricAlarmInput) { // the one that is in time has no action any more
					in.AlarmName, in.Threshold, in.AlarmActions = aws.String("heard alone"), aws.Float64(2000), []string{"arn:aws:sns:eu-central-1:123456789012:ops"}
				})
				found := w.part("TerminalFailuresAlarm")
				try[*cloudwatch.DeleteAlarmsOutput](w)(cloudwatch.NewFromConfig(w.cloud.Admin()).DeleteAlarms(w.Context(), &cloudwatch.DeleteAlarmsInput{AlarmNames: []string{found}}))
			},
			want: []string{
				"error alarm_missing", "error alarm_too_late", "error alarm_too_late", "error alarm_too_late", "error alarm_too_late", "error alarm_too_late", "error alarm_too_late", "error alarm_too_late", "error alarm_too_late", "error alarm_too_late",
				"warning alarm_missing",
			},
			saying: []string{
				"less than 0 days left", "it compares with GreaterThanThreshold", "after 12 periods of 2h15m", "it fires 1000 hours after the last rotation", "alarm:heard alone: it fires 2000 hours after the last rotation", "it fires at 101 failures in 2h15m", "it always fires",
				"it fires at 201 certificates, and the budget is 200", "it looks at the Minimum of Errors", "Countersign HoursSinceSuccess paygate: no alarm", "Countersign Failures terminal: no alarm",
			},
		},
	}
}

// faultsOfBalancers are listeners that take what is old, or nothing at all.
func faultsOfBalancers() []fault {
	listener := func(port int32, protocol elbtypes.ProtocolEnum, policy *string) func(*world) {
		return func(w *world) {
			in := &elb.CreateListenerInput{
				LoadBalancerArn: aws.String(w.part("LedgerBalancer")), Port: &port, Protocol: protocol, SslPolicy: policy,
				DefaultActions: []elbtypes.Action{{Type: elbtypes.ActionTypeEnumForward, TargetGroupArn: aws.String(w.part("LedgerTarget9000"))}},
			}
			if policy != nil {
				in.Certificates = []elbtypes.Certificate{{CertificateArn: aws.String("arn:aws:acm:eu-central-1:123456789012:certificate/1")}}
			}
			try[*elb.CreateListenerOutput](w)(elb.NewFromConfig(w.cloud.Admin()).CreateListener(w.Context(), in))
		}
	}
	old := func(policy, saying string, port int32) fault {
		return fault{
			name: policy, plant: listener(port, elbtypes.ProtocolEnumTls, &policy), want: []string{"error listener_allows_old_tls", "error listener_ends_tls"}, saying: []string{policy + " still takes " + saying},
		}
	}
	all := together(
		old("ELBSecurityPolicy-TLS13-1-0-2021-06", "TLSv1, TLSv1.1", 443), old("ELBSecurityPolicy-TLS13-1-1-FIPS-2023-04", "TLSv1.1", 444),
		fault{name: "in the clear", plant: listener(80, elbtypes.ProtocolEnumHttp, nil), want: []string{"error listener_plain"}, saying: []string{"it speaks HTTP without TLS before ledger"}},
	)
	all.look, all.mend = nil, nil // listeners stay
	return []fault{all}
}
