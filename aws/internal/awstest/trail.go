package awstest

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// trail answers cloudtrail:LookupEvents from what the front itself has decided: who asked, for what, when, and whether it was
// refused. ministack's knows neither roles nor what moto was asked, and moto has no LookupEvents. Other operations go to
// ministack. As with AWS, management events alone are there; unlike there, without delay.
func (c *Cloud) trail() http.Handler {
	others := double(ministack)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".LookupEvents") {
			others.ServeHTTP(w, r)
			return
		}
		var in lookup
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			(&refusal{kind: malformed, code: "InvalidLookupAttributesException", message: err.Error()}).write(w, jsonProtocol)
			return
		}
		answer, refused := c.lookUp(in)
		if refused != nil {
			refused.write(w, jsonProtocol)
			return
		}
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		_ = json.NewEncoder(w).Encode(answer)
	})
}

// lookup is a request of
// https://docs.aws.amazon.com/awscloudtrail/latest/APIReference/API_LookupEvents.html.
type lookup struct {
	LookupAttributes   []struct{ AttributeKey, AttributeValue string }
	StartTime, EndTime float64 // seconds since 1970
	MaxResults         int
	NextToken          string
}

// maxEvents is how many events an answer holds at most.
const maxEvents = 50

// lookUp finds events, newest first.
func (c *Cloud) lookUp(in lookup) (map[string]any, *refusal) {
	bad := &refusal{kind: malformed, code: "InvalidLookupAttributesException", message: "one attribute at most: EventName, EventSource, ResourceName or Username"}
	if len(in.LookupAttributes) > 1 {
		return nil, bad
	}
	var found []map[string]any
	calls := c.Calls()
	slices.Reverse(calls)
	for _, call := range calls {
		at := float64(call.at.UnixMilli()) / 1000
		if !call.direct || in.StartTime > 0 && at < in.StartTime || in.EndTime > 0 && at > in.EndTime {
			continue
		}
		event := call.event()
		if len(in.LookupAttributes) == 1 {
			attribute := in.LookupAttributes[0]
			has, known := map[string]bool{
				"EventName":    event["EventName"] == attribute.AttributeValue,
				"EventSource":  event["EventSource"] == attribute.AttributeValue,
				"Username":     event["Username"] == attribute.AttributeValue,
				"ResourceName": call.Resource == attribute.AttributeValue,
			}[attribute.AttributeKey]
			if !known {
				return nil, bad
			}
			if !has {
				continue
			}
		}
		found = append(found, event)
	}
	limit := maxEvents
	if in.MaxResults > 0 && in.MaxResults < limit {
		limit = in.MaxResults
	}
	from, _ := strconv.Atoi(in.NextToken)
	from = min(max(from, 0), len(found))
	to := min(from+limit, len(found))
	answer := map[string]any{"Events": found[from:to]}
	if to < len(found) {
		answer["NextToken"] = strconv.Itoa(to)
	}
	return answer, nil
}

// event is the call as CloudTrail shows it; the whole record is in CloudTrailEvent, as text.
func (call Call) event() map[string]any {
	service, operation, _ := strings.Cut(call.Action, ":")
	source := service + ".amazonaws.com"
	user := map[string]any{"type": "Root", "arn": call.Caller, "accountId": Account}
	username := "root"
	if call.Role != "root" {
		username = nameOf(call.Caller)
		user["type"] = "AssumedRole"
		user["sessionContext"] = map[string]any{"sessionIssuer": map[string]any{
			"type": "Role", "arn": call.roleARN, "accountId": Account, "userName": call.Role,
		}}
	}
	record := map[string]any{
		"eventVersion": "1.11", "userIdentity": user, "eventTime": call.at.UTC().Format(time.RFC3339), "eventSource": source, "eventName": operation,
		"awsRegion": Region, "eventID": call.id, "eventType": "AwsApiCall", "managementEvent": true, "recipientAccountId": Account, "eventCategory": "Management",
	}
	if service == "secretsmanager" && call.Resource != "*" {
		record["requestParameters"] = map[string]any{"secretId": call.Resource}
	}
	if !call.Allowed || call.failed != "" {
		record["errorCode"], record["errorMessage"] = "AccessDenied", cmp.Or(call.Why, call.failed)
	}
	text, _ := json.Marshal(record)
	event := map[string]any{
		"EventId": call.id, "EventName": operation, "EventTime": float64(call.at.UnixMilli()) / 1000, "EventSource": source, "Username": username,
		"ReadOnly":        strconv.FormatBool(strings.HasPrefix(operation, "Get") || strings.HasPrefix(operation, "List") || strings.HasPrefix(operation, "Describe")),
		"CloudTrailEvent": string(text),
	}
	if call.Resource != "*" {
		event["Resources"] = []map[string]any{{"ResourceName": call.Resource}}
	}
	return event
}
