package awstest_test

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/smithy-go"

	"countersign.dev/aws/internal/awstest"
	"countersign.dev/aws/internal/awstest/pcafake"
)

var update = flag.Bool("update", false, "write docs/doubles.md again")

// expectation is one thing that AWS's documentation says of an operation, and how to see whether a double does it.
type expectation struct {
	operation string
	does      string // what AWS does
	holds     func(*world) error
}

// contract is what is expected of a service.
type contract struct {
	service string // the name that requests are signed for
	title   string
	source  string // where AWS documents it
	uses    string // the double that the front has for it, or that tests mount
	rows    []expectation
}

// contracts are all services that the product, its templates and its tests speak to.
var contracts = []contract{
	{"secretsmanager", "Secrets Manager", "https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_Operations.html", "ours", secretsContract},
	{"kms", "KMS", "https://docs.aws.amazon.com/kms/latest/APIReference/API_Operations.html", "ministack", keysContract},
	{"sts", "STS", "https://docs.aws.amazon.com/STS/latest/APIReference/API_Operations.html", "moto", callersContract},
	{"iam", "IAM", "https://docs.aws.amazon.com/IAM/latest/APIReference/API_Operations.html", "moto", rolesContract},
	{"acm-pca", "Private CA", "https://docs.aws.amazon.com/privateca/latest/APIReference/API_Operations.html", "ours", authoritiesContract},
	{"acm", "Certificate Manager", "https://docs.aws.amazon.com/acm/latest/APIReference/API_Operations.html", "ours", certificatesContract},
	{"ecs", "ECS", "https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_Operations.html", "ours", containersContract},
	{"events", "EventBridge", "https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_Operations.html", "moto", eventsContract},
	{"monitoring", "CloudWatch", "https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_Operations.html", "ministack", metricsContract},
	{"cloudtrail", "CloudTrail", "https://docs.aws.amazon.com/awscloudtrail/latest/APIReference/API_Operations.html", "ours", trailsContract},
}

// ours mounts the fakes of this repository, by the service whose contract they are asked for. What has none is not there.
var ours = map[string]func(*testing.T, *awstest.Cloud){
	"acm-pca": func(_ *testing.T, cloud *awstest.Cloud) {
		cloud.Mount("acm-pca", pcafake.New(pcafake.Options{PendingPolls: 1}))
	},
	"acm": mountCertificates,
	// The front's own, which are there from the beginning.
	"cloudtrail":     func(*testing.T, *awstest.Cloud) {},
	"secretsmanager": func(*testing.T, *awstest.Cloud) {},
}

// lacking are services that a double does not have at all. It would say so if asked, but only after ministack has read
// everything that it does have, which takes it three seconds.
var lacking = map[string]string{"acm-pca": "ministack"}

// doubles are the columns of the table.
var doubles = []string{"moto", "ministack", "ours"}

// world is one double, as a check sees it.
type world struct {
	ctx    context.Context //nolint:containedctx // it lives as long as one check
	config aws.Config
	double string
	shared *shared
	again  bool // whether this is asked for the second time
}

// shared is what the checks of a double may use together: moto takes long for the key of a CA.
type shared struct{ general *authority }

var (
	names      atomic.Int64
	motoDouble http.Handler
)

// name is one that no other check uses.
func (w *world) name(prefix string) string {
	return fmt.Sprintf("contract-%s-%d", prefix, names.Add(1))
}

// token is a ClientRequestToken of its own.
func (w *world) token() string { return fmt.Sprintf("00000000-0000-0000-0000-%012d", names.Add(1)) }

// wrong says how a double differs, in words that are the same at each run.
func wrong(format string, args ...any) error { return fmt.Errorf(format, args...) }

// motoSubnet asks moto for a subnet; the SDK for that would be the largest of all.
func motoSubnet(ctx context.Context) string {
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "http://ec2.eu-central-1.amazonaws.com/", strings.NewReader("Action=DescribeSubnets&Version=2016-11-15"))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=none/20260101/eu-central-1/ec2/aws4_request, SignedHeaders=host, Signature=0")
	w := httptest.NewRecorder()
	motoDouble.ServeHTTP(w, r)
	var answer struct {
		Subnets []string `xml:"subnetSet>item>subnetId"`
	}
	if err := xml.Unmarshal(w.Body.Bytes(), &answer); err != nil || len(answer.Subnets) == 0 {
		return "none"
	}
	return answer.Subnets[0]
}

// refuses is nil when err is one of the error codes that AWS documents.
func refuses(err error, codes ...string) error {
	if err == nil {
		return wrong("accepts it")
	}
	for _, want := range codes {
		if code(err) == want {
			return nil
		}
	}
	return err
}

// in is the table's cell.
func in(err error) string {
	var api smithy.APIError
	var response interface{ HTTPStatusCode() int }
	switch {
	case err == nil:
		return "right"
	case errors.Is(err, context.DeadlineExceeded):
		return "**wrong**: does not answer"
	case errors.As(err, &response) && response.HTTPStatusCode() >= 500, errors.As(err, &api) && missing[api.ErrorCode()]:
		return "**wrong**: missing"
	case errors.As(err, &api):
		return "**wrong**: answers " + api.ErrorCode()
	case errors.As(err, new(*smithy.OperationError)):
		return "**wrong**: answers what the SDK cannot read"
	default:
		return "**wrong**: " + err.Error()
	}
}

// missing are the codes by which doubles say that they do not know a service or an operation.
var missing = map[string]bool{
	"NothingMounted": true, "InternalFailure": true, "UnknownOperationException": true, "NotImplemented": true, "InvalidAction": true, "UnsupportedOperation": true,
	"UnknownError": true, "NotYetImplemented": true, "InvalidRequest": true, "MethodNotAllowed": true, "NoSuchBucket": true, "InternalError": true, "ServiceUnavailable": true,
}

// TestContractGenerated asks every double for everything, and compares what comes of it with docs/doubles.md: a double of
// a new version that does more, or less, is seen there.
func TestContractGenerated(t *testing.T) {
	if testing.Short() {
		t.Skip("asks three doubles for everything")
	}
	if runtime.GOOS != "linux" {
		t.Skip("SKIPPED: the double of ECS runs on Linux only")
	}
	path := filepath.Join("..", "..", "..", "docs", "doubles.md")
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	results := results(t, strings.Split(string(got), "\n"))
	for _, c := range contracts {
		for _, row := range c.rows {
			if got := results[cell{c.service, row.operation, row.does, "ours"}]; strings.HasPrefix(got, "**") {
				t.Errorf("our fake of %s: %s: %s: %s", c.service, row.operation, row.does, got)
			}
		}
		if c.uses == "ours" {
			for _, other := range []string{"moto", "ministack"} {
				if right(results, c, other) == len(c.rows) {
					t.Errorf("%s: tests use a fake of ours, but %s is right in everything", c.service, other)
				}
			}
			continue
		}
		// Another double may be used only when it is right as often.
		for _, other := range doubles {
			if right(results, c, other) > right(results, c, c.uses) && other != "ours" {
				t.Errorf("%s: tests use %s, but %s is right more often", c.service, c.uses, other)
			}
		}
	}
	want := document(results)
	if *update {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(got, want) {
		t.Errorf("docs/doubles.md is not what the doubles do now: run `make generate`, and look at the difference:\n%s", differences(string(got), string(want)))
	}
}

// differences are the lines that only one of two texts has.
func differences(got, want string) string {
	var b strings.Builder
	only := func(mark, text, other string) {
		lines := strings.Split(other, "\n")
		for line := range strings.Lines(text) {
			if !slices.Contains(lines, strings.TrimSuffix(line, "\n")) {
				b.WriteString(mark + line)
			}
		}
	}
	only("- ", got, want)
	only("+ ", want, got)
	return b.String()
}

// cell is a place in the table.
type cell struct{ service, operation, does, double string }

// results runs everything: the doubles beside each other, the rows of one after the other. A row that is not in the document
// is asked once more when all others are done: on a busy machine, or with their own races, the doubles that others wrote may
// be late once, and what a new version of them does is the same each time. Our fakes have one try.
func results(t *testing.T, documented []string) map[cell]string {
	t.Helper()
	clouds := map[string]map[string]*awstest.Cloud{}
	for _, double := range doubles {
		clouds[double] = map[string]*awstest.Cloud{}
		for _, c := range contracts {
			clouds[double][c.service] = column(t, double, c.service)
		}
	}
	var mu sync.Mutex
	found := map[cell]string{}
	ask := func(double string, again bool) {
		for _, c := range contracts {
			common := &shared{}
			for _, row := range c.rows {
				if again && slices.Contains(documented, line(found, c, row)) {
					continue
				}
				result := "–"
				if cloud := clouds[double][c.service]; lacking[c.service] == double {
					result = "**wrong**: missing"
				} else if cloud != nil {
					result = check(t.Context(), cloud, &world{double: double, shared: common, again: again}, row)
				}
				mu.Lock()
				found[cell{c.service, row.operation, row.does, double}] = result
				mu.Unlock()
			}
		}
	}
	var running sync.WaitGroup
	for _, double := range doubles {
		running.Go(func() { ask(double, false) })
	}
	running.Wait()
	for _, double := range []string{"moto", "ministack"} {
		ask(double, true)
	}
	return found
}

// column is a front that has nothing but one double behind it, or nil where there is none.
func column(t *testing.T, double, service string) *awstest.Cloud {
	t.Helper()
	if double == "ours" {
		if ours[service] == nil {
			return nil
		}
		cloud := awstest.Start(t)
		ours[service](t, cloud)
		return cloud
	}
	behind := awstest.Moto(t)
	motoDouble = behind
	if double == "ministack" {
		behind = awstest.Ministack(t)
	}
	cloud := awstest.Start(t)
	for _, c := range contracts {
		cloud.Mount(c.service, behind)
	}
	return cloud
}

func check(ctx context.Context, cloud *awstest.Cloud, w *world, row expectation) string {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	w.ctx, w.config = ctx, cloud.Admin()
	return in(row.holds(w))
}

// right counts the rows of a service that a double has right.
func right(results map[cell]string, c contract, double string) int {
	count := 0
	for _, row := range c.rows {
		if results[cell{c.service, row.operation, row.does, double}] == "right" {
			count++
		}
	}
	return count
}

const preface = `<!-- Written by TestContractGenerated in aws/internal/awstest: make generate. -->
# What stands for AWS in the tests

AWS is not reached by any test. The AWS SDK, unchanged, speaks to doubles: [moto](https://github.com/getmoto/moto) 5.2.5 and
[ministack](https://pypi.org/project/ministack/) 1.5.33, which others wrote, and fakes of ours for what both get wrong. Before all
of them stands a front (` + "`aws/internal/awstest`" + `) that checks signatures and sessions, evaluates the policies of roles, secrets
and keys, and refuses as AWS does; as they are started here, neither double does any of that. The front also asks KMS in Secrets
Manager's name, which moto and ministack do not.

The tables below are what one suite found when it asked every double for the same things through the SDK. The column AWS is from
the documentation that is linked there, not from a run: what was misread there is wrong in all columns.

Where moto or ministack is right, tests use it. A fake of ours is used for a service only when the tables show both to be wrong
about something that the product relies on; it has to be right in every row, and the suite fails when it is not. For Secrets
Manager ours is moto itself, with the rows that it gets wrong put right before and after it; for CloudTrail it is the front's
own book of who asked for what.

`

// document is docs/doubles.md.
func document(results map[cell]string) []byte {
	var b bytes.Buffer
	b.WriteString(preface)
	b.WriteString("| Service | moto | ministack | ours | tests use |\n|---|---|---|---|---|\n")
	for _, c := range contracts {
		fmt.Fprintf(&b, "| [%s](#%s) |", c.title, strings.ReplaceAll(strings.ToLower(c.title), " ", "-"))
		for _, double := range doubles {
			share := "–"
			if results[cell{c.service, c.rows[0].operation, c.rows[0].does, double}] != "–" {
				share = fmt.Sprintf("%d of %d", right(results, c, double), len(c.rows))
			}
			fmt.Fprintf(&b, " %s |", share)
		}
		fmt.Fprintf(&b, " %s |\n", c.uses)
	}
	for _, c := range contracts {
		fmt.Fprintf(&b, "\n## %s\n\n| Operation | [AWS](%s) | moto | ministack | ours |\n|---|---|---|---|---|\n", c.title, c.source)
		for _, row := range c.rows {
			b.WriteString(line(results, c, row) + "\n")
		}
	}
	return b.Bytes()
}

// line is a row of the document.
func line(results map[cell]string, c contract, row expectation) string {
	cells := []string{row.operation, row.does}
	for _, double := range doubles {
		cells = append(cells, results[cell{c.service, row.operation, row.does, double}])
	}
	return "| " + strings.Join(cells, " | ") + " |"
}
