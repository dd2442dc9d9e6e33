package cloudwatch

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"
	"github.com/google/go-cmp/cmp"

	"countersign.dev/aws/internal/awstest"
	"countersign.dev/aws/session"
	"countersign.dev/rotate"
)

var now = time.Date(2026, 3, 10, 12, 0, 0, 0, time.UTC)

func some() []Metric {
	return Metrics("payments", []rotate.Status{
		{Service: "checkout", NotAfter: now.Add(36 * time.Hour), LastSuccess: now.Add(-90 * time.Minute)},
		{Service: "ledger", NotAfter: now.Add(-12 * time.Hour), LastSuccess: now.Add(-100 * time.Hour), Failures: 3},
		{Service: "new"},
		{Service: "odd", Problem: "the store is not to be read"},
	}, []Budget{{Authority: "pca", Used: 7, Limit: 1000}}, now)
}

func TestMetrics(t *testing.T) {
	of := func(service, name string, value float64) Metric {
		return Metric{Name: name, Mesh: "payments", Dimension: "Service", Of: service, Value: value}
	}
	budget := func(name string, value float64) Metric {
		return Metric{Name: name, Mesh: "payments", Dimension: "Authority", Of: "pca", Value: value}
	}
	want := []Metric{
		of("checkout", "DaysToExpiry", 1.5), of("checkout", "HoursSinceSuccess", 1.5), of("checkout", "Failures", 0),
		of("ledger", "DaysToExpiry", -0.5), of("ledger", "HoursSinceSuccess", 100), of("ledger", "Failures", 1),
		of("new", "Failures", 0), // what is missing is an alarm
		of("odd", "Failures", 1),
		budget("BudgetSpent", 7), budget("BudgetLimit", 1000),
	}
	if diff := cmp.Diff(want, some()); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

func TestWriteEmbedded(t *testing.T) {
	var out bytes.Buffer
	if err := WriteEmbedded(&out, some()[3:], now); err != nil {
		t.Fatal(err)
	}
	want := `{"DaysToExpiry":-0.5,"Failures":1,"HoursSinceSuccess":100,"Mesh":"payments","Service":"ledger","_aws":{"CloudWatchMetrics":[{"Dimensions":[["Mesh","Service"]],"Metrics":[{"Name":"DaysToExpiry","Unit":"None"},{"Name":"HoursSinceSuccess","Unit":"None"},{"Name":"Failures","Unit":"Count"}],"Namespace":"Countersign"}],"Timestamp":1773144000000}}
{"Failures":0,"Mesh":"payments","Service":"new","_aws":{"CloudWatchMetrics":[{"Dimensions":[["Mesh","Service"]],"Metrics":[{"Name":"Failures","Unit":"Count"}],"Namespace":"Countersign"}],"Timestamp":1773144000000}}
{"Failures":1,"Mesh":"payments","Service":"odd","_aws":{"CloudWatchMetrics":[{"Dimensions":[["Mesh","Service"]],"Metrics":[{"Name":"Failures","Unit":"Count"}],"Namespace":"Countersign"}],"Timestamp":1773144000000}}
{"Authority":"pca","BudgetLimit":1000,"BudgetSpent":7,"Mesh":"payments","_aws":{"CloudWatchMetrics":[{"Dimensions":[["Mesh","Authority"]],"Metrics":[{"Name":"BudgetSpent","Unit":"Count"},{"Name":"BudgetLimit","Unit":"Count"}],"Namespace":"Countersign"}],"Timestamp":1773144000000}}
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
	if err := WriteEmbedded(broken{}, some(), now); !errors.Is(err, errBroken) {
		t.Errorf("a log that cannot be written to: %v", err)
	}
}

type broken struct{}

var errBroken = errors.New("broken")

func (broken) Write([]byte) (int, error) { return 0, errBroken }

func TestPublish(t *testing.T) {
	cloud := awstest.Start(t)
	for _, variable := range cloud.Env("root") {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
	}
	p, err := Open(t.Context(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(-time.Minute)
	mesh := fmt.Sprint("payments-", at.UnixNano())
	metrics := Metrics(mesh, []rotate.Status{{Service: "checkout", NotAfter: at.Add(36 * time.Hour)}}, nil, at)
	if err := p.Publish(t.Context(), metrics, at); err != nil {
		t.Fatal(err)
	}
	got, err := sdk.NewFromConfig(cloud.Admin()).GetMetricStatistics(t.Context(), &sdk.GetMetricStatisticsInput{
		Namespace: aws.String(Namespace), MetricName: aws.String(DaysToExpiry), Period: aws.Int32(3600),
		Dimensions: []types.Dimension{{Name: aws.String("Mesh"), Value: aws.String(mesh)}, {Name: aws.String("Service"), Value: aws.String("checkout")}},
		StartTime:  aws.Time(at.Add(-2 * time.Hour)), EndTime: aws.Time(at.Add(time.Hour)), Statistics: []types.Statistic{types.StatisticMinimum},
	})
	if err != nil || len(got.Datapoints) != 1 || *got.Datapoints[0].Minimum != 1.5 {
		t.Errorf("CloudWatch has %+v, %v", got, err)
	}
	if _, err := Open(t.Context(), Config{Region: "a b"}); !errors.Is(err, session.ErrConfig) {
		t.Errorf("no region: %v", err)
	}
}

// More than fit into one request are published by several, and a refusal says what the policy lacks.
func TestPublishInParts(t *testing.T) {
	cloud := awstest.Start(t)
	requests := 0
	cloud.Mount("monitoring", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests++
		w.Header().Set("Smithy-Protocol", "rpc-v2-cbor")
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
		_, _ = w.Write([]byte{0xa0}) // an empty map
	}))
	p := &Publisher{client: sdk.NewFromConfig(cloud.Admin())}
	metrics := make([]Metric, 2001)
	for i := range metrics {
		metrics[i] = Metric{Name: Failures, Mesh: "m", Dimension: DimensionService, Of: fmt.Sprint("s", i)}
	}
	if err := p.Publish(t.Context(), metrics, now); err != nil || requests != 3 {
		t.Errorf("%d requests, %v", requests, err)
	}
	for i := range metrics {
		metrics[i].Of = strings.Repeat("x", 1000)
	}
	if count := fits(metrics); count < 300 || count > 500 {
		t.Errorf("%d of those with long names are put into one request", count)
	}
	if count := fits([]Metric{{Of: strings.Repeat("x", maxBytes)}}); count != 1 {
		t.Errorf("one that is too large: %d", count)
	}
	role := fmt.Sprint("nobody", time.Now().UnixNano())
	cloud.PutRole(role)
	p = &Publisher{client: sdk.NewFromConfig(cloud.Config(role))}
	err := p.Publish(t.Context(), metrics[:1], now)
	if !errors.Is(err, session.ErrDenied) || !strings.Contains(err.Error(), `{"Effect":"Allow","Action":"cloudwatch:PutMetricData","Resource":"*"}`) {
		t.Errorf("a role that may not: %v", err)
	}
}
