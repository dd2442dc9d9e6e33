package awstest_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudtrail"
	"github.com/aws/aws-sdk-go-v2/service/cloudtrail/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"countersign.dev/aws/internal/awstest"
)

// TestTrailOfKey: a read that the key's policy prevents is none, although the secret's own policies allow it.
func TestTrailOfKey(t *testing.T) {
	t.Parallel()
	cloud := awstest.Start(t)
	key, err := kms.NewFromConfig(cloud.Admin()).CreateKey(t.Context(), &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	secret := newSecret(t, cloud, "trail-of-key", key.KeyMetadata.Arn)
	cloud.PutRole("keyless", []byte(policy(allow(secret, "secretsmanager:GetSecretValue"))))
	if err := read(t, cloud, "keyless", secret); code(err) != "AccessDeniedException" {
		t.Fatalf("without the right to decrypt: %v", err)
	}
	out, err := cloudtrail.NewFromConfig(cloud.Admin()).LookupEvents(t.Context(), &cloudtrail.LookupEventsInput{
		LookupAttributes: []types.LookupAttribute{{AttributeKey: types.LookupAttributeKeyResourceName, AttributeValue: &secret}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, event := range out.Events {
		if text := aws.ToString(event.CloudTrailEvent); aws.ToString(event.EventName) == "GetSecretValue" && !strings.Contains(text, `"errorCode":"AccessDenied"`) {
			t.Errorf("it is told as if the secret had been read: %s", text)
		}
	}
	if len(out.Events) == 0 {
		t.Error("nothing is told of it")
	}
}

// TestTrail: who read a secret, who was refused, page by page, and what cannot be asked.
func TestTrail(t *testing.T) {
	t.Parallel()
	cloud := awstest.Start(t)
	secret := newSecret(t, cloud, "trail", nil)
	cloud.PutRole("trail-reader", []byte(policy(allow(secret, "secretsmanager:GetSecretValue"))))
	cloud.PutRole("trail-stranger")
	for range 2 {
		if err := read(t, cloud, "trail-reader", secret); err != nil {
			t.Fatal(err)
		}
	}
	if err := read(t, cloud, "trail-stranger", secret); code(err) != "AccessDeniedException" {
		t.Fatal(err)
	}
	client := cloudtrail.NewFromConfig(cloud.Admin())
	by := func(key types.LookupAttributeKey, value string) *cloudtrail.LookupEventsInput {
		return &cloudtrail.LookupEventsInput{LookupAttributes: []types.LookupAttribute{{AttributeKey: key, AttributeValue: &value}}, MaxResults: aws.Int32(2)}
	}
	var who []string
	for pages := cloudtrail.NewLookupEventsPaginator(client, by(types.LookupAttributeKeyResourceName, secret)); pages.HasMorePages(); {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(page.Events) > 2 {
			t.Errorf("a page of %d events", len(page.Events))
		}
		for _, event := range page.Events {
			var record struct {
				UserIdentity struct {
					Type           string
					SessionContext struct{ SessionIssuer struct{ ARN string } }
				}
				EventName, ErrorCode string
			}
			if err := json.Unmarshal([]byte(aws.ToString(event.CloudTrailEvent)), &record); err != nil || record.EventName != aws.ToString(event.EventName) {
				t.Fatalf("%s: %v", aws.ToString(event.CloudTrailEvent), err)
			}
			if record.EventName == "GetSecretValue" {
				who = append(who, strings.TrimPrefix(record.UserIdentity.SessionContext.SessionIssuer.ARN, "arn:aws:iam::123456789012:role/")+record.ErrorCode)
			}
		}
	}
	if got := strings.Join(who, " "); got != "trail-strangerAccessDenied trail-reader trail-reader" {
		t.Errorf("who read it, newest first: %s", got)
	}
	for name, test := range map[string]struct {
		change func(*cloudtrail.LookupEventsInput)
		want   int
	}{
		"by another event": {func(in *cloudtrail.LookupEventsInput) {
			in.LookupAttributes = by("EventName", "PutSecretValue").LookupAttributes
		}, 0},
		"by session":        {func(in *cloudtrail.LookupEventsInput) { in.LookupAttributes = by("Username", "test").LookupAttributes }, 2},
		"before there were": {func(in *cloudtrail.LookupEventsInput) { in.EndTime = aws.Time(time.Now().Add(-time.Hour)) }, 0},
		"after there were":  {func(in *cloudtrail.LookupEventsInput) { in.StartTime = aws.Time(time.Now().Add(time.Hour)) }, 0},
	} {
		in := by(types.LookupAttributeKeyResourceName, secret)
		test.change(in)
		got, err := client.LookupEvents(t.Context(), in)
		if err != nil || len(got.Events) != test.want {
			t.Errorf("%s: %d events, %v", name, len(got.Events), err)
		}
	}
	if _, err := client.LookupEvents(t.Context(), by(types.LookupAttributeKeyAccessKeyId, "x")); code(err) != "InvalidLookupAttributesException" {
		t.Errorf("by what is not known: %v", err)
	}
}
