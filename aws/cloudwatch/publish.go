package cloudwatch

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"

	"countersign.dev/aws/session"
)

// Limits of one PutMetricData, with room to spare.
const (
	maxMetrics = 1000
	maxBytes   = 512 << 10 // of names and values; AWS takes 1 MB in all
	overhead   = 200       // bytes of one metric beside its names
)

// Config says where metrics go. The zero value is that of the environment.
type Config struct {
	// Region and Endpoint are as in [session.Config].
	Region, Endpoint string
}

// Publisher writes metrics by PutMetricData. It is safe for concurrent use. Its role needs cloudwatch:PutMetricData, which has no
// resource: a policy narrows it by the condition cloudwatch:namespace.
type Publisher struct{ client *sdk.Client }

// Open makes a publisher. Nothing is asked yet.
func Open(ctx context.Context, c Config) (*Publisher, error) {
	loaded, err := session.Load(ctx, session.Config{Region: c.Region, Endpoint: c.Endpoint})
	if err != nil {
		return nil, fmt.Errorf("publishing metrics: %w", err)
	}
	return &Publisher{client: sdk.NewFromConfig(loaded)}, nil
}

// Publish writes metrics, all with one time. Errors are those of package session; some of many may be written then.
func (p *Publisher) Publish(ctx context.Context, metrics []Metric, now time.Time) error {
	for len(metrics) > 0 {
		count := fits(metrics)
		data := make([]types.MetricDatum, 0, count)
		for _, m := range metrics[:count] {
			data = append(data, types.MetricDatum{
				MetricName: aws.String(m.Name), Timestamp: aws.Time(now), Value: aws.Float64(m.Value), Unit: m.unit(),
				Dimensions: []types.Dimension{{Name: aws.String(DimensionMesh), Value: aws.String(m.Mesh)}, {Name: aws.String(m.Dimension), Value: aws.String(m.Of)}},
			})
		}
		_, err := p.client.PutMetricData(ctx, &sdk.PutMetricDataInput{Namespace: aws.String(Namespace), MetricData: data})
		if err != nil {
			return fmt.Errorf("publishing metrics: %w", session.Explain(err, "cloudwatch:PutMetricData", "*"))
		}
		metrics = metrics[count:]
	}
	return nil
}

// fits is how many of some metrics go into one request; at least one.
func fits(metrics []Metric) int {
	size := 0
	for i, m := range metrics {
		size += overhead + len(m.Name) + len(m.Mesh) + len(m.Dimension) + len(m.Of)
		if i == maxMetrics || (size > maxBytes && i > 0) {
			return i
		}
	}
	return len(metrics)
}

func (m Metric) unit() types.StandardUnit {
	switch m.Name {
	case Failures, BudgetSpent, BudgetLimit:
		return types.StandardUnitCount
	}
	return types.StandardUnitNone
}

// maxEmbedded is how many metrics one line of the embedded metric format has at most.
const maxEmbedded = 100

// WriteEmbedded writes metrics in the embedded metric format of CloudWatch Logs, one JSON object on a line for each service and
// authority. In Lambda, where standard output is a log, CloudWatch makes metrics of them, and nobody has to be asked.
func WriteEmbedded(w io.Writer, metrics []Metric, now time.Time) error {
	var out bytes.Buffer
	for len(metrics) > 0 {
		count := 1
		for count < len(metrics) && count < maxEmbedded && metrics[count].sameAs(metrics[0]) {
			count++
		}
		line, err := json.Marshal(embedded(metrics[:count], now))
		if err != nil {
			return fmt.Errorf("writing metrics: %w", err)
		}
		out.Write(line)
		out.WriteByte('\n')
		metrics = metrics[count:]
	}
	if _, err := w.Write(out.Bytes()); err != nil {
		return fmt.Errorf("writing metrics: %w", err)
	}
	return nil
}

// sameAs tells whether two metrics have the same dimensions.
func (m Metric) sameAs(other Metric) bool {
	return m.Mesh == other.Mesh && m.Dimension == other.Dimension && m.Of == other.Of
}

// embedded is one line: what is a metric, and then all values at the top.
func embedded(metrics []Metric, now time.Time) map[string]any {
	type definition struct{ Name, Unit string }
	first := metrics[0]
	line := map[string]any{DimensionMesh: first.Mesh, first.Dimension: first.Of}
	var definitions []definition
	for _, m := range metrics {
		definitions = append(definitions, definition{m.Name, string(m.unit())})
		line[m.Name] = m.Value
	}
	line["_aws"] = map[string]any{
		"Timestamp": now.UnixMilli(),
		"CloudWatchMetrics": []map[string]any{{
			"Namespace": Namespace, "Dimensions": [][]string{{DimensionMesh, first.Dimension}}, "Metrics": definitions,
		}},
	}
	return line
}
