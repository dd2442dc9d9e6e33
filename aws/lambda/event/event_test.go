package event_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/aws/lambda/event"
)

const (
	certificate = "arn:aws:acm:eu-central-1:123456789012:certificate/61f50cd4-45b9-4259-b049-d0a53682fa4b"
	secretARN   = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/checkout-AbCdEf"
	token       = "c8a55f1e-6c1e-4a3b-9a37-4b8a8a7d9f10"
)

func TestParse(t *testing.T) {
	at := func(text string) time.Time {
		parsed, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	acm := event.Event{Account: "123456789012", Region: "eu-central-1", Certificate: certificate}
	with := func(e event.Event, change func(*event.Event)) event.Event {
		change(&e)
		return e
	}
	step := func(s event.Step) event.Event {
		return event.Event{Kind: event.Rotation, Step: s, Secret: secretARN, Token: token}
	}
	tests := map[string]struct {
		want event.Event
		text string
	}{
		"schedule":  {event.Event{Kind: event.Schedule, ID: "53dc4d37-cffa-4f76-80c9-8b7d4a4d2eaa", Time: at("2026-10-08T16:53:06Z"), Account: "123456789012", Region: "eu-central-1"}, "schedule"},
		"scheduler": {event.Event{Kind: event.Schedule, ID: "89d1a02d-5ec7-412e-82f5-13505f849b41", Time: at("2026-10-08T16:53:06Z"), Account: "123456789012", Region: "eu-central-1"}, "schedule"},
		"approaching": {with(acm, func(e *event.Event) {
			e.Kind, e.ID, e.Time, e.CommonName, e.DaysToExpiry = event.Approaching, "9c95e8e4-96a4-ef3f-b739-b6aa5b193afb", at("2026-09-30T06:51:08Z"), "checkout.payments.internal", 31
		}), "approaching expiration: " + certificate + " (checkout.payments.internal)"},
		"renewed": {with(acm, func(e *event.Event) {
			e.Kind, e.ID, e.Time, e.CommonName, e.DaysToExpiry, e.Action = event.Renewed, "9c95e8e4-96a4-ef3f-b739-b6aa5b193afc", at("2026-12-22T18:43:48Z"), "checkout.payments.internal", 395, "RENEWAL"
		}), "renewed: " + certificate + " (checkout.payments.internal)"},
		"issued": {with(acm, func(e *event.Event) {
			e.Kind, e.ID, e.Time, e.CommonName, e.DaysToExpiry, e.Action = event.Available, "9c95e8e4-96a4-ef3f-b739-b6aa5b193afd", at("2026-12-22T18:43:48Z"), "*.payments.internal", 395, "ISSUANCE"
		}), "available: " + certificate + " (*.payments.internal)"},
		"create": {step(event.Create), "createSecret of " + secretARN + " for the version " + token},
		"set":    {step(event.Set), "setSecret of " + secretARN + " for the version " + token},
		"test":   {step(event.Test), "testSecret of " + secretARN + " for the version " + token},
		"finish": {step(event.Finish), "finishSecret of " + secretARN + " for the version " + token},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(filepath.Join("testdata", name+".json"))
			if err != nil {
				t.Fatal(err)
			}
			got, err := event.Parse(data)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("the event (-want +got):\n%s", diff)
			}
			if got.String() != test.text {
				t.Errorf("in words: %s", got)
			}
		})
	}
	// What AWS adds one day is left alone; what somebody sends by hand is enough.
	got, err := event.Parse([]byte(`{"source": "aws.events", "detail-type": "Scheduled Event", "new": [1]}`))
	if err != nil || got.Kind != event.Schedule {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestParseRefuses(t *testing.T) {
	acm := func(detailType, resources, detail string) string {
		return `{"source":"aws.acm","detail-type":"` + detailType + `","resources":` + resources + `,"detail":` + detail + `}`
	}
	rotation := func(step, secret, token string) string {
		return `{"Step":"` + step + `","SecretId":"` + secret + `","ClientRequestToken":"` + token + `"}`
	}
	tests := map[string]struct{ data, want string }{
		"nothing":              {``, "no JSON object"},
		"a list":               {`[]`, "no JSON object"},
		"an empty object":      {`{}`, `"detail-type": "Scheduled Event"`},
		"a bad time":           {`{"time":"yesterday","detail-type":"Scheduled Event","source":"aws.events"}`, "no JSON object"},
		"both":                 {`{"detail-type":"Scheduled Event","source":"aws.events","Step":"createSecret"}`, "at once"},
		"another source":       {`{"detail-type":"Scheduled Event","source":"mine"}`, "narrow the rule"},
		"another event of ACM": {acm("ACM Certificate Expired", `["`+certificate+`"]`, `{}`), "narrow the rule"},
		"an event of ECS":      {`{"detail-type":"ECS Task State Change","source":"aws.ecs"}`, "narrow the rule"},
		"no resource":          {acm("ACM Certificate Available", `[]`, `{}`), "ARN of one certificate"},
		"two resources":        {acm("ACM Certificate Available", `["`+certificate+`","`+certificate+`"]`, `{}`), "ARN of one certificate"},
		"another resource":     {acm("ACM Certificate Available", `["`+secretARN+`"]`, `{}`), "ARN of one certificate"},
		"no detail":            {`{"source":"aws.acm","detail-type":"ACM Certificate Approaching Expiration","resources":["` + certificate + `"]}`, "detail"},
		"another action":       {acm("ACM Certificate Available", `["`+certificate+`"]`, `{"Action":"GUESSWORK"}`), "GUESSWORK"},
		"no action":            {acm("ACM Certificate Available", `["`+certificate+`"]`, `{}`), "not known here"},
		"another step":         {rotation("deleteSecret", secretARN, token), "no step"},
		"a name":               {rotation("createSecret", "payments/checkout", token), "ARN of a secret"},
		"a certificate":        {rotation("createSecret", certificate, token), "ARN of a secret"},
		"a short token":        {rotation("createSecret", secretARN, "short"), "no id of a version"},
		"a wild token":         {rotation("createSecret", secretARN, strings.Repeat("../", 12)), "no id of a version"},
		"too much":             {`{"a":"` + strings.Repeat("x", event.MaxSize) + `"}`, "are taken"},
	}
	for name, test := range tests {
		got, err := event.Parse([]byte(test.data))
		if !errors.Is(err, event.ErrEvent) || !strings.Contains(err.Error(), test.want) || got.Kind != "" {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]bool{
		"payments/checkout": true, "payments/checkout-AbCdEf": false, "payments": false, "checkout": false, "payments/checkou": false, "payments/checkout-": false, "": false,
	} {
		if event.Names(secretARN, name) != want {
			t.Errorf("%q: not %v", name, want)
		}
	}
	if event.Names("payments/checkout-AbCdEf", "payments/checkout") || event.Names(certificate, "x") {
		t.Error("what is no ARN of a secret names one")
	}
}

// FuzzParse shows that what is parsed holds nothing that could not be one of AWS's.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		f.Fatal("no fixtures: ", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := event.Parse(data)
		if err != nil {
			if !errors.Is(err, event.ErrEvent) {
				t.Errorf("the error is %v", err)
			}
			return
		}
		if strings.ContainsAny(e.String(), "\x00\r\n\x1b") {
			t.Errorf("it writes %q into a log", e)
		}
		switch e.Kind {
		case event.Schedule:
		case event.Approaching, event.Renewed, event.Available:
			if !strings.HasPrefix(e.Certificate, "arn:aws") || !strings.Contains(e.Certificate, ":certificate/") {
				t.Errorf("the certificate is %q", e.Certificate)
			}
		case event.Rotation:
			if !strings.HasPrefix(e.Secret, "arn:aws") || len(e.Token) < 32 || len(e.Token) > 64 {
				t.Errorf("the secret is %q, the token %q", e.Secret, e.Token)
			}
		default:
			t.Errorf("the kind is %q", e.Kind)
		}
	})
}
