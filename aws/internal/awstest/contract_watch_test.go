package awstest_test

import (
	"encoding/json"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudtrail"
	trailtypes "github.com/aws/aws-sdk-go-v2/service/cloudtrail/types"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	cwtypes "github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	evtypes "github.com/aws/aws-sdk-go-v2/service/eventbridge/types"
)

var eventsContract = []expectation{
	{"PutRule", "keeps schedule and state for DescribeRule", keepsRule},
	{"DisableRule", "is seen in DescribeRule", disablesRule},
	{"PutTargets", "is listed by ListTargetsByRule, with its input", keepsTargets},
	{"DescribeRule", "of a rule that is not there: ResourceNotFoundException", missesRule},
}

func (w *world) rule() (*eventbridge.Client, string, error) {
	client, name := eventbridge.NewFromConfig(w.config), w.name("rule")
	_, err := client.PutRule(w.ctx, &eventbridge.PutRuleInput{Name: &name, ScheduleExpression: aws.String("rate(6 hours)"), State: evtypes.RuleStateEnabled})
	return client, name, err
}

func keepsRule(w *world) error {
	client, name, err := w.rule()
	if err != nil {
		return err
	}
	got, err := client.DescribeRule(w.ctx, &eventbridge.DescribeRuleInput{Name: &name})
	if err == nil && (aws.ToString(got.ScheduleExpression) != "rate(6 hours)" || got.State != evtypes.RuleStateEnabled ||
		aws.ToString(got.Arn) != "arn:aws:events:eu-central-1:123456789012:rule/"+name) {
		return wrong("another rule")
	}
	return err
}

func disablesRule(w *world) error {
	client, name, err := w.rule()
	if err != nil {
		return err
	}
	if _, err := client.DisableRule(w.ctx, &eventbridge.DisableRuleInput{Name: &name}); err != nil {
		return err
	}
	got, err := client.DescribeRule(w.ctx, &eventbridge.DescribeRuleInput{Name: &name})
	if err == nil && got.State != evtypes.RuleStateDisabled {
		return wrong("stays enabled")
	}
	return err
}

func keepsTargets(w *world) error {
	client, name, err := w.rule()
	if err != nil {
		return err
	}
	target := evtypes.Target{Id: aws.String("t"), Arn: aws.String("arn:aws:lambda:eu-central-1:123456789012:function:rotate"), Input: aws.String(`{"a":1}`)}
	if _, err := client.PutTargets(w.ctx, &eventbridge.PutTargetsInput{Rule: &name, Targets: []evtypes.Target{target}}); err != nil {
		return err
	}
	got, err := client.ListTargetsByRule(w.ctx, &eventbridge.ListTargetsByRuleInput{Rule: &name})
	if err == nil && (len(got.Targets) != 1 || aws.ToString(got.Targets[0].Arn) != *target.Arn || aws.ToString(got.Targets[0].Input) != *target.Input) {
		return wrong("another target")
	}
	return err
}

func missesRule(w *world) error {
	_, err := eventbridge.NewFromConfig(w.config).DescribeRule(w.ctx, &eventbridge.DescribeRuleInput{Name: aws.String(w.name("rule"))})
	return refuses(err, "ResourceNotFoundException")
}

var metricsContract = []expectation{
	{"PutMetricData", "takes RPC v2 CBOR, and ListMetrics shows the metric with its dimensions", putsMetric},
	{"PutMetricData", "is given back by GetMetricStatistics", readsMetric},
	{"PutMetricAlarm", "keeps threshold and TreatMissingData for DescribeAlarms", keepsAlarm},
}

func (w *world) metric() (*cloudwatch.Client, string, error) {
	client, namespace := cloudwatch.NewFromConfig(w.config), w.name("namespace")
	_, err := client.PutMetricData(w.ctx, &cloudwatch.PutMetricDataInput{Namespace: &namespace, MetricData: []cwtypes.MetricDatum{{
		MetricName: aws.String("DaysToExpiry"), Value: aws.Float64(12), Timestamp: aws.Time(time.Now()),
		Dimensions: []cwtypes.Dimension{{Name: aws.String("Service"), Value: aws.String("checkout")}},
	}}})
	return client, namespace, err
}

func putsMetric(w *world) error {
	client, namespace, err := w.metric()
	if err != nil {
		return err
	}
	got, err := client.ListMetrics(w.ctx, &cloudwatch.ListMetricsInput{Namespace: &namespace})
	if err == nil && (len(got.Metrics) != 1 || len(got.Metrics[0].Dimensions) != 1 || aws.ToString(got.Metrics[0].Dimensions[0].Value) != "checkout") {
		return wrong("shows another one")
	}
	return err
}

func readsMetric(w *world) error {
	client, namespace, err := w.metric()
	if err != nil {
		return err
	}
	got, err := client.GetMetricStatistics(w.ctx, &cloudwatch.GetMetricStatisticsInput{
		Namespace: &namespace, MetricName: aws.String("DaysToExpiry"), Period: aws.Int32(60), Statistics: []cwtypes.Statistic{cwtypes.StatisticMaximum},
		StartTime: aws.Time(time.Now().Add(-10 * time.Minute)), EndTime: aws.Time(time.Now().Add(10 * time.Minute)),
		Dimensions: []cwtypes.Dimension{{Name: aws.String("Service"), Value: aws.String("checkout")}},
	})
	if err == nil && (len(got.Datapoints) != 1 || aws.ToFloat64(got.Datapoints[0].Maximum) != 12) {
		return wrong("gives another value")
	}
	return err
}

func keepsAlarm(w *world) error {
	client, name := cloudwatch.NewFromConfig(w.config), w.name("alarm")
	_, err := client.PutMetricAlarm(w.ctx, &cloudwatch.PutMetricAlarmInput{
		AlarmName: &name, Namespace: aws.String("Countersign"), MetricName: aws.String("DaysToExpiry"), Statistic: cwtypes.StatisticMinimum, Period: aws.Int32(3600),
		EvaluationPeriods: aws.Int32(1), Threshold: aws.Float64(10), ComparisonOperator: cwtypes.ComparisonOperatorLessThanThreshold, TreatMissingData: aws.String("breaching"),
	})
	if err != nil {
		return err
	}
	got, err := client.DescribeAlarms(w.ctx, &cloudwatch.DescribeAlarmsInput{AlarmNames: []string{name}})
	if err == nil && (len(got.MetricAlarms) != 1 || aws.ToString(got.MetricAlarms[0].TreatMissingData) != "breaching" || aws.ToFloat64(got.MetricAlarms[0].Threshold) != 10) {
		return wrong("another alarm")
	}
	return err
}

var trailsContract = []expectation{
	{"LookupEvents", "finds who read a secret, by the event's name", looksUpReader},
	{"LookupEvents", "finds nothing of another secret, by the resource's name", looksUpNothing},
}

func looksUpReader(w *world) error {
	return withVault(w, gives(map[string]string{current: "0"}), func(v *vault) error {
		client := cloudtrail.NewFromConfig(v.config)
		return v.until("does not find it", func() (bool, error) {
			got, err := client.LookupEvents(v.ctx, &cloudtrail.LookupEventsInput{LookupAttributes: []trailtypes.LookupAttribute{
				{AttributeKey: trailtypes.LookupAttributeKeyEventName, AttributeValue: aws.String("GetSecretValue")},
			}})
			if err != nil {
				return false, err
			}
			for _, event := range got.Events {
				var record struct {
					UserIdentity      struct{ ARN string }
					RequestParameters struct{ SecretID string }
				}
				err := json.Unmarshal([]byte(aws.ToString(event.CloudTrailEvent)), &record)
				if err == nil && (record.RequestParameters.SecretID == v.id || record.RequestParameters.SecretID == v.arn) && record.UserIdentity.ARN == "arn:aws:iam::123456789012:root" {
					return true, nil
				}
			}
			return false, nil
		})
	})
}

func looksUpNothing(w *world) error {
	return withVault(w, gives(map[string]string{current: "0"}), func(v *vault) error {
		got, err := cloudtrail.NewFromConfig(v.config).LookupEvents(v.ctx, &cloudtrail.LookupEventsInput{LookupAttributes: []trailtypes.LookupAttribute{
			{AttributeKey: trailtypes.LookupAttributeKeyResourceName, AttributeValue: aws.String(v.arn + "x")},
		}})
		if err == nil && len(got.Events) != 0 {
			return wrong("finds something")
		}
		return err
	})
}
