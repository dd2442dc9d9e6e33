package trail_test

import (
	"errors"
	"testing"

	"countersign.dev/aws/review/trail"
)

const arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/checkout-AbCdEf"

func TestParse(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]trail.Read{
		`{"eventName":"GetSecretValue","userIdentity":{"type":"AssumedRole","arn":"arn:aws:sts::1:assumed-role/r/s","sessionContext":{"sessionIssuer":{"arn":"arn:aws:iam::1:role/r"}}},"requestParameters":{"secretId":"a"}}`: {Reader: "arn:aws:iam::1:role/r", Secret: "a"},
		`{"eventName":"GetSecretValue","userIdentity":{"type":"IAMUser","arn":"arn:aws:iam::1:user/u"},"requestParameters":{"secretId":"a"},"errorCode":"AccessDenied"}`:                                                       {Reader: "arn:aws:iam::1:user/u", Secret: "a", Refused: true},
		`{"eventName":"GetSecretValue","userIdentity":{"type":"AWSService","invokedBy":"x.amazonaws.com"},"requestParameters":{"secretId":"a"}}`:                                                                               {Reader: "x.amazonaws.com", Secret: "a"},
		`{"eventName":"GetSecretValue","userIdentity":{"type":"AWSAccount","principalId":"AROAEXAMPLE:s","accountId":"9"},"requestParameters":{"secretId":"a"}}`:                                                               {Reader: "AROAEXAMPLE:s of the account 9", Secret: "a"},
		`{"eventName":"GetSecretValue","requestParameters":null}`: {Reader: "somebody"},
	} {
		if got, err := trail.Parse(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "{}", "[]", `{"eventName":1}`} {
		if _, err := trail.Parse(text); !errors.Is(err, trail.ErrRecord) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestOf(t *testing.T) {
	t.Parallel()
	for secret, want := range map[string]bool{"payments/checkout": true, arn: true, arn[:len(arn)-7]: true, "payments/checkout-AbCdEf": false, "payments/ledger": false, "": false} {
		if got := (trail.Read{Secret: secret}).Of("payments/checkout", arn); got != want {
			t.Errorf("%q: %t", secret, got)
		}
	}
	if (trail.Read{}).Of("payments/checkout", "") || (trail.Read{Secret: "a"}).Of("b", "") {
		t.Error("a read of nothing is one of a secret that could not be read")
	}
}

// FuzzParse: no text stops the reading, and who read is always said.
func FuzzParse(f *testing.F) {
	f.Add(`{"eventName":"GetSecretValue","userIdentity":{"arn":"a"},"requestParameters":{"secretId":"a"}}`)
	f.Fuzz(func(t *testing.T, text string) {
		switch read, err := trail.Parse(text); {
		case err != nil && !errors.Is(err, trail.ErrRecord):
			t.Error(err)
		case err == nil && read.Reader == "":
			t.Error("nobody read it")
		}
	})
}
