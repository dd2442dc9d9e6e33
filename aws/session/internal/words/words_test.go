package words_test

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/aws/session/internal/words"
)

const (
	caller = "arn:aws:sts::123456789012:assumed-role/checkout-task/9f3a"
	key    = "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	secret = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/checkout-AbCdEf"
)

func TestRead(t *testing.T) {
	tests := map[string]words.Message{
		"": {},
		"Secrets Manager can't find the specified secret.":                                                                                         {},
		"User: " + caller + " is not authorized to perform: secretsmanager:GetSecretValue on resource: payments/checkout because no":               {Caller: caller, Action: "secretsmanager:GetSecretValue", Resource: "payments/checkout"},
		"User: " + caller + " is not authorized to perform: secretsmanager:GetSecretValue on resource: " + secret + ".":                            {Caller: caller, Action: "secretsmanager:GetSecretValue", Resource: secret},
		"User: " + caller + " is not authorized to perform: kms:Decrypt on resource: " + key + " with an explicit deny in a resource-based policy": {Caller: caller, Action: "kms:Decrypt", Resource: key, Deny: "resource-based policy", Key: key, OfKMS: true},
		"User: arn:aws:iam::123456789012:user/\x1b[31m is not authorized to perform: x":                                                            {},
		key + " is disabled.":          {Key: key, OfKMS: true},
		"Access to KMS is not allowed": {OfKMS: true},
		"can't decrypt the protected secret text using the provided KMS key":           {OfKMS: true},
		"User: " + caller + " is not authorized to perform: ab:Cd on resource: of/kms": {Caller: caller, Action: "ab:Cd", Resource: "of/kms"},
	}
	for text, want := range tests {
		if diff := cmp.Diff(want, words.Read(text)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
}

func TestShow(t *testing.T) {
	if got := words.Show("a\r\nb\x1b[31mé"); got != "a  b [31mé" {
		t.Errorf("%q", got)
	}
	if got := words.Show("Value '-----BEGIN PRIVATE KEY-----' at"); got != "" {
		t.Errorf("%q", got)
	}
	if got := words.Show(strings.Repeat("é", 1000)); len(got) > words.MaxShown+4 || !utf8.ValidString(got) {
		t.Errorf("%d bytes", len(got))
	}
}

// FuzzRead shows that nothing of a message that AWS, or who stands in its place, has written breaks a line.
func FuzzRead(f *testing.F) {
	f.Add("User: " + caller + " is not authorized to perform: kms:Decrypt on resource: " + key + " with an explicit deny in a resource-based policy")
	f.Add("User: arn:aws:iam::123456789012:user/\x1b[31m is not authorized")
	f.Fuzz(func(t *testing.T, text string) {
		m := words.Read(text)
		for _, part := range []string{m.Caller, m.Action, m.Resource, m.Deny, m.Key, words.Show(text)} {
			if strings.ContainsFunc(part, func(r rune) bool { return !unicode.IsPrint(r) }) || len(part) > 700 {
				t.Errorf("%q", part)
			}
		}
		if shown := words.Show(text); strings.Contains(shown, "-----BEGIN") {
			t.Errorf("it shows %q", shown)
		}
	})
}
