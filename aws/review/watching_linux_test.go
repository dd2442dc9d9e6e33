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
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
)

// alarm changes an alarm of the stack.
func (w *world) alarm(id string, change func(in *cloudwatch.PutMetricAlarmInput)) {
	w.Helper()
	found, ok := w.stack.Resource(id)
	if !ok {
		w.Fatal("the stack has no " + id)
	}
	client := cloudwatch.NewFromConfig(w.cloud.Admin())
	a := try[*cloudwatch.DescribeAlarmsOutput](w)(client.DescribeAlarms(w.Context(), &cloudwatch.DescribeAlarmsInput{AlarmNames: []string{found.Physical}, AlarmTypes: []cwtypes.AlarmType{cwtypes.AlarmTypeMetricAlarm}})).MetricAlarms[0]
	in := &cloudwatch.PutMetricAlarmInput{
		AlarmName: a.AlarmName, Namespace: a.Namespace, MetricName: a.MetricName, Dimensions: a.Dimensions, Statistic: a.Statistic, Period: a.Period,
		EvaluationPeriods: a.EvaluationPeriods, ComparisonOperator: a.ComparisonOperator, Threshold: a.Threshold, TreatMissingData: a.TreatMissingData, AlarmActions: a.AlarmActions,
	}
	change(in)
	try[*cloudwatch.PutMetricAlarmOutput](w)(client.PutMetricAlarm(w.Context(), in))
}

// faultsOfWatching are about what starts the rotation, what tells of it, and what stands before the services.
func faultsOfWatching() []fault {
	events := func(w *world) *eventbridge.Client { return eventbridge.NewFromConfig(w.cloud.Admin()) }
	rule := func(w *world) *string {
		found, ok := w.stack.Resource("RotationSchedule")
		if !ok {
			w.Fatal("the stack has no schedule")
		}
		return &found.Physical
	}
	return []fault{
		{
			name: "disabled",
			plant: func(w *world) {
				try[*eventbridge.DisableRuleOutput](w)(events(w).DisableRule(w.Context(), &eventbridge.DisableRuleInput{Name: rule(w)}))
			},
			mend: func(w *world) {
				try[*eventbridge.EnableRuleOutput](w)(events(w).EnableRule(w.Context(), &eventbridge.EnableRuleInput{Name: rule(w)}))
			},
			want: []string{"error schedule_disabled"}, saying: []string{"is disabled"},
		},
		{
			name: "no target",
			plant: func(w *world) {
				try[*eventbridge.RemoveTargetsOutput](w)(events(w).RemoveTargets(w.Context(), &eventbridge.RemoveTargetsInput{Rule: rule(w), Ids: []string{"rotation"}}))
			},
			mend: func(w *world) {
				try[*eventbridge.PutTargetsOutput](w)(events(w).PutTargets(w.Context(), &eventbridge.PutTargetsInput{Rule: rule(w), Targets: []types.Target{{Id: aws.String("rotation"), Arn: aws.String("arn:aws:lambda:eu-central-1:123456789012:function:payments-rotation")}}}))
			},
			want: []string{"error schedule_missing"}, saying: []string{"function:payments-rotation"},
		},
		{
			name: "alarms", plant: func(w *world) {
				w.alarm("CheckoutOverdueAlarm", func(in *cloudwatch.PutMetricAlarmInput) { in.TreatMissingData = aws.String("notBreaching") })
				w.alarm("LedgerOverdueAlarm", func(in *cloudwatch.PutMetricAlarmInput) { in.AlarmActions = nil })
				found, _ := w.stack.Resource("TerminalExpiryAlarm")
				try[*cloudwatch.DeleteAlarmsOutput](w)(cloudwatch.NewFromConfig(w.cloud.Admin()).DeleteAlarms(w.Context(), &cloudwatch.DeleteAlarmsInput{AlarmNames: []string{found.Physical}}))
			},
			want:   []string{"error alarm_missing", "error alarm_not_breaching", "warning alarm_silent"},
			saying: []string{"Countersign DaysToExpiry terminal", "it treats missing data as notBreaching", "it tells nobody"},
		},
		{
			name: "a listener",
			plant: func(w *world) {
				balancer, _ := w.stack.Resource("CheckoutBalancer")
				group, _ := w.stack.Resource("CheckoutTarget8081")
				try[*elb.CreateListenerOutput](w)(elb.NewFromConfig(w.cloud.Admin()).CreateListener(w.Context(), &elb.CreateListenerInput{
					LoadBalancerArn: &balancer.Physical, Port: aws.Int32(443), Protocol: elbtypes.ProtocolEnumTls, SslPolicy: aws.String("ELBSecurityPolicy-TLS-1-2-2017-01"),
					Certificates:   []elbtypes.Certificate{{CertificateArn: aws.String("arn:aws:acm:eu-central-1:123456789012:certificate/1")}},
					DefaultActions: []elbtypes.Action{{Type: elbtypes.ActionTypeEnumForward, TargetGroupArn: &group.Physical}},
				}))
			},
			want: []string{"error listener_ends_tls", "error listener_without_tls13"}, saying: []string{"ELBSecurityPolicy-TLS-1-2-2017-01 cannot do TLS 1.3", "before checkout"},
		},
		{
			name: "a stranger",
			plant: func(w *world) {
				try[*secretsmanager.GetSecretValueOutput](w)(w.secrets().GetSecretValue(w.Context(), &secretsmanager.GetSecretValueInput{SecretId: aws.String("payments/ledger")}))
			},
			want: []string{"error read_by_stranger"}, saying: []string{accountARN + "root read it", "secret:payments/ledger-"},
		},
	}
}
