package review

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"

	"countersign.dev/mesh"
)

// watch is a metric that is to be watched.
type watch struct {
	severity Severity // of having no alarm
	watched  bool
	early    bool          // there is an alarm that fires in time, and is heard
	late     [][2]string   // alarms that do not, and why
	ttl      time.Duration // of the certificate that the metric is about
	budget   int           // of the authority that it is about
}

// watches are the metrics that are to be watched: namespace, name, and what it is about.
func (r *reviewer) watches() map[string]*watch {
	all := map[string]*watch{"AWS/Lambda Errors " + r.Function: {severity: Error}}
	for _, w := range r.workloads {
		for metric, severity := range map[string]Severity{"DaysToExpiry": Error, "HoursSinceSuccess": Error, "Failures": Warning} {
			all["Countersign "+metric+" "+w.name] = &watch{severity: severity, ttl: time.Duration(w.plan.Certificate.TTL)}
		}
		if name, a := r.Spec.AuthorityOf(w.name); a.Foreign() {
			all["Countersign BudgetSpent "+name] = &watch{severity: Warning, budget: a.Budget.Certificates}
		}
	}
	return all
}

// readAlarms looks for the alarms without which nobody hears that the rotation stopped.
func (r *reviewer) readAlarms(ctx context.Context) {
	p := r.places[0]
	watches := r.watches()
	pages := cloudwatch.NewDescribeAlarmsPaginator(p.alarms, &cloudwatch.DescribeAlarmsInput{AlarmTypes: []types.AlarmType{types.AlarmTypeMetricAlarm}})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			r.unread(err, "cloudwatch:DescribeAlarms", r.arn(p, "cloudwatch", "alarm:*"), "the alarms")
			return
		}
		for i := range page.MetricAlarms {
			r.judgeAlarm(&page.MetricAlarms[i], watches)
		}
	}
	for _, id := range sorted(watches) {
		for _, late := range watches[id].late {
			if !watches[id].early { // a second one may be for the worst
				r.add(Error, AlarmLate, late[0], late[1], "take threshold, comparison, statistic and periods of the template's alarm")
			}
		}
		if !watches[id].watched {
			r.add(watches[id].severity, AlarmMissing, id, "no alarm watches this metric: a rotation that silently stopped is heard of when the certificate has ended", "deploy the template's alarms again")
		}
	}
}

// judgeAlarm looks at an alarm of the mesh.
func (r *reviewer) judgeAlarm(a *types.MetricAlarm, watches map[string]*watch) {
	dimensions := map[string]string{}
	for _, d := range a.Dimensions {
		dimensions[aws.ToString(d.Name)] = aws.ToString(d.Value)
	}
	namespace, expected := aws.ToString(a.Namespace), 0
	switch {
	case namespace == "Countersign" && dimensions["Mesh"] == r.Spec.Mesh:
		expected = 2
	case namespace == "AWS/Lambda" && dimensions["FunctionName"] == r.Function:
		expected = 1
	default:
		return
	}
	r.report.Looked["alarms"]++
	arn := aws.ToString(a.AlarmArn)
	id := namespace + " " + aws.ToString(a.MetricName) + " " + dimensions["Service"] + dimensions["Authority"] + dimensions["FunctionName"]
	silent := !aws.ToBool(a.ActionsEnabled) || len(a.AlarmActions) == 0
	if w := watches[id]; w != nil && len(dimensions) == expected { // with another dimension it is another metric, which nobody sends
		w.watched = true
		if why := cmp.Or(misses(a), r.late(a, w)); why != "" {
			w.late = append(w.late, [2]string{arn, why})
		} else {
			w.early = w.early || !silent
		}
	}
	if treats := aws.ToString(a.TreatMissingData); treats != "breaching" {
		r.add(Error, AlarmNotBreaching, arn, fmt.Sprintf("it treats missing data as %s: a schedule that silently stopped sends none, and is no alarm", treats), "let it treat missing data as breaching")
	}
	if silent {
		r.add(Warning, AlarmSilent, arn, "it tells nobody: it has no action, or its actions are disabled", "give it an action, such as an SNS topic, and enable it")
	}
}

// misses tells why an alarm does not look at what its metric says: at the wrong side, or at a number that says something else.
func misses(a *types.MetricAlarm) string {
	metric, operator := aws.ToString(a.MetricName), string(a.ComparisonOperator)
	less, greater := strings.HasPrefix(operator, "LessThan"), strings.HasPrefix(operator, "GreaterThan")
	fewer := metric == "DaysToExpiry"
	wrong := []types.Statistic{types.StatisticSum, types.StatisticSampleCount}
	if metric == "Errors" || metric == "Failures" {
		wrong = []types.Statistic{types.StatisticMinimum, types.StatisticSampleCount}
	}
	for _, s := range wrong {
		if a.Statistic == s {
			return fmt.Sprintf("it looks at the %s of %s, which does not tell when that is bad", s, metric)
		}
	}
	switch {
	case a.Threshold == nil || !less && !greater:
		return "" // a band that CloudWatch learns
	case fewer && !less:
		return "it compares with " + operator + ", and the days to the end of a certificate become fewer: it never fires, or always"
	case !fewer && !greater:
		return "it compares with " + operator + ", and " + metric + " becomes more when something is wrong: it never fires, or always"
	}
	return ""
}

// late tells why an alarm does not fire before it is too late.
func (r *reviewer) late(a *types.MetricAlarm, w *watch) string {
	if a.Threshold == nil {
		return ""
	}
	threshold, period := *a.Threshold, time.Duration(aws.ToInt32(a.Period))*time.Second
	periods := cmp.Or(aws.ToInt32(a.DatapointsToAlarm), aws.ToInt32(a.EvaluationPeriods), 1)
	takes := time.Duration(0) // beyond the first period, which templates have too
	if periods > 1 {
		takes = time.Duration(periods) * period
	}
	const hour = float64(time.Hour)
	equal := strings.HasSuffix(string(a.ComparisonOperator), "OrEqualToThreshold")
	needs := math.Floor(threshold) + 1 // of what is counted, so that it fires
	if equal {
		needs = math.Ceil(threshold)
	}
	switch aws.ToString(a.MetricName) {
	case "DaysToExpiry":
		if threshold*24*hour >= float64(w.ttl) {
			return fmt.Sprintf("it fires when a certificate has less than %g days left, and none has more than %s: that is always, so that nobody listens", threshold, mesh.Duration(w.ttl))
		}
		if threshold*24*hour <= float64(takes) {
			return fmt.Sprintf("it fires when a certificate has less than %g days left, after %d periods of %s: that is when it has ended", threshold, periods, mesh.Duration(period))
		}
	case "HoursSinceSuccess":
		if threshold*hour+float64(takes) >= float64(w.ttl) {
			return fmt.Sprintf("it fires %g hours after the last rotation, after %d periods of %s, and a certificate has ended after %s", threshold, periods, mesh.Duration(period), mesh.Duration(w.ttl))
		}
	case "BudgetSpent":
		if needs > float64(w.budget) {
			return fmt.Sprintf("it fires at %g certificates, and the budget is %d", needs, w.budget)
		}
	case "Errors", "Failures":
		most := 1.0
		if a.Statistic == types.StatisticSum {
			most = math.Ceil(float64(period)/float64(max(r.every, time.Minute))) + 1
			if r.every == 0 {
				most = math.Inf(1) // how often it runs is not known
			}
		}
		switch {
		case needs <= 0:
			return "it always fires, so that nobody listens"
		case needs > most:
			return fmt.Sprintf("it fires at %g failures in %s, and the schedule does not run so often", needs, mesh.Duration(period))
		case periods > 1 && takes >= r.spare():
			return fmt.Sprintf("it fires after %d periods of %s: a certificate that was due has ended by then", periods, mesh.Duration(period))
		}
	}
	return ""
}
