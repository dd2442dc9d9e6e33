package policy_test

import (
	"errors"
	"strings"
	"testing"

	"countersign.dev/aws/review/policy"
)

const (
	reader  = "arn:aws:iam::123456789012:role/reader"
	secret  = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/checkout-AbCdEf"
	reading = "secretsmanager:GetSecretValue"
)

func parse(t *testing.T, statements ...string) *policy.Document {
	t.Helper()
	if statements == nil {
		return nil
	}
	d, err := policy.Parse(`{"Version":"2012-10-17","Statement":[` + strings.Join(statements, ",") + `]}`)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestDecide: what is certain is said, and what hangs on something that is not seen is neither yes nor no.
func TestDecide(t *testing.T) {
	const (
		allow = `{"Effect":"Allow","Action":"secretsmanager:Get*","Resource":"*"}`
		deny  = `{"Effect":"Deny","Principal":"*","Action":"*","Resource":"*","Condition":{"ArnNotEquals":{"aws:PrincipalArn":"arn:aws:iam::123456789012:role/other"}}}`
	)
	for name, test := range map[string]struct {
		own, boundary, of []string
		decisive          bool
		want              policy.Verdict
	}{
		"nothing":                    {want: policy.No},
		"its own policy":             {own: []string{allow}, want: policy.Yes},
		"another action":             {own: []string{`{"Effect":"Allow","Action":"secretsmanager:List*","Resource":"*"}`}, want: policy.No},
		"another secret":             {own: []string{`{"Effect":"Allow","Action":"*","Resource":"arn:aws:secretsmanager:*:*:secret:orders/*"}`}, want: policy.No},
		"all but another action":     {own: []string{`{"Effect":"Allow","NotAction":"iam:*","Resource":"*"}`}, want: policy.Yes},
		"all but this secret":        {own: []string{`{"Effect":"Allow","Action":"*","NotResource":"arn:aws:secretsmanager:*:*:secret:payments/*"}`}, want: policy.No},
		"a variable":                 {own: []string{`{"Effect":"Allow","Action":"*","Resource":"arn:aws:secretsmanager:*:*:secret:${aws:PrincipalTag/mesh}/*"}`}, want: policy.Maybe},
		"a condition that is known":  {own: []string{`{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"StringEquals":{"aws:PrincipalAccount":"9"}}}`}, want: policy.No},
		"one that is not":            {own: []string{`{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}}`}, want: policy.Maybe},
		"an unknown one that denies": {own: []string{allow, `{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"Bool":{"aws:MultiFactorAuthPresent":"false"}}}`}, want: policy.Maybe},
		"denied by the secret":       {own: []string{allow}, of: []string{deny}, want: policy.No},
		"the boundary":               {own: []string{allow}, boundary: []string{`{"Effect":"Allow","Action":"s3:*","Resource":"*"}`}, want: policy.No},
		"inside the boundary":        {own: []string{allow}, boundary: []string{allow}, want: policy.Yes},
		"by the secret":              {of: []string{`{"Effect":"Allow","Principal":{"AWS":"` + reader + `"},"Action":"*","Resource":"*"}`}, want: policy.Yes},
		"its session":                {of: []string{`{"Effect":"Allow","Principal":{"AWS":"arn:aws:sts::123456789012:assumed-role/reader/x"},"Action":"*","Resource":"*"}`}, want: policy.Yes},
		"a session of another role":  {of: []string{`{"Effect":"Allow","Principal":{"AWS":"arn:aws:sts::123456789012:assumed-role/other/x"},"Action":"*","Resource":"*"}`}, want: policy.No},
		"all but somebody else":      {of: []string{`{"Effect":"Allow","NotPrincipal":{"AWS":"arn:aws:iam::123456789012:role/other"},"Action":"*","Resource":"*"}`}, want: policy.Yes},
		"denied to all but it":       {own: []string{allow}, of: []string{`{"Effect":"Deny","NotPrincipal":{"AWS":"` + reader + `"},"Action":"*","Resource":"*"}`}, want: policy.Yes},
		"by the account alone":       {of: []string{`{"Effect":"Allow","Principal":{"AWS":"123456789012"},"Action":"*","Resource":"*"}`}, want: policy.No},
		"a key, by the account":      {own: []string{allow}, of: []string{`{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::123456789012:root"},"Action":"*","Resource":"*"}`}, decisive: true, want: policy.Yes},
		"a key, by nobody":           {own: []string{allow}, of: []string{`{"Effect":"Allow","Principal":{"AWS":"999999999999"},"Action":"*","Resource":"*"}`}, decisive: true, want: policy.No},
	} {
		p := policy.Policies{Boundary: parse(t, test.boundary...), Resource: parse(t, test.of...), Decisive: test.decisive}
		if own := parse(t, test.own...); own != nil {
			p.Identity = []*policy.Document{own}
		}
		q := policy.Question{Caller: reader, Action: reading, Resource: secret, Context: map[string]string{"aws:principalarn": reader, "aws:principalaccount": "123456789012"}}
		if got := policy.Decide(q, p); got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
	}
}

// TestOperators: which comparisons are understood.
func TestOperators(t *testing.T) {
	for condition, want := range map[string]policy.Verdict{
		`"StringEquals":{"k":["a","b"]}`:                               policy.Yes,
		`"StringNotEquals":{"k":"b"}`:                                  policy.No,
		`"StringEqualsIgnoreCase":{"K":"B"}`:                           policy.Yes,
		`"StringLike":{"k":"?"}`:                                       policy.Yes,
		`"StringNotLike":{"k":"*"}`:                                    policy.No,
		`"StringEqualsIfExists":{"k":"a"}`:                             policy.No,
		`"Bool":{"yes":true}`:                                          policy.Yes,
		`"Bool":{"yes":"false"}`:                                       policy.No,
		`"Null":{"k":"true"}`:                                          policy.No,
		`"Null":{"k":"false"}`:                                         policy.Yes,
		`"Null":{"unknown":"false"}`:                                   policy.Maybe,
		`"ForAnyValue:StringEquals":{"k":"a"}`:                         policy.No,
		`"ForAllValues:StringLike":{"k":"?"}`:                          policy.Yes,
		`"IpAddress":{"aws:SourceIp":["10.0.0.0/8","0.0.0.0/0"]}`:      policy.Yes,
		`"IpAddressIfExists":{"aws:SourceIp":"::/0"}`:                  policy.Yes,
		`"NotIpAddress":{"aws:SourceIp":"0.0.0.0/0"}`:                  policy.Maybe,
		`"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}`:                    policy.Maybe,
		`"DateGreaterThan":{"aws:CurrentTime":"2020-01-01T00:00:00Z"}`: policy.Yes,
		`"DateGreaterThanEquals":{"aws:CurrentTime":"2020-01-01"}`:     policy.Yes,
		`"DateLessThan":{"aws:CurrentTime":"1577836800"}`:              policy.No,
		`"DateLessThanEquals":{"aws:CurrentTime":"2030-01-01T00:00Z"}`: policy.Yes,
		`"DateEquals":{"aws:CurrentTime":"soon"}`:                      policy.No,
		`"StringEquals":{"k":"${aws:username}"}`:                       policy.Maybe,
		`"StringEquals":{"unknown":"a"}`:                               policy.Maybe,
		`"NumericLessThan":{"k":5}`:                                    policy.Maybe,
	} {
		d := parse(t, `{"Effect":"Allow","Action":"*","Resource":"*","Condition":{`+condition+`}}`)
		q := policy.Question{Caller: reader, Action: reading, Resource: secret, Context: map[string]string{"k": "b", "yes": "true", "aws:currenttime": "2026-11-01T12:00:00Z"}}
		if got := policy.Decide(q, policy.Policies{Identity: []*policy.Document{d}}); got != want {
			t.Errorf("%s: %d, want %d", condition, got, want)
		}
	}
}

// TestDenyFromAnywhere: through a VPC endpoint nobody has an address, so that a statement which denies to all addresses does not deny to all, and one
// which denies to none denies to some.
func TestDenyFromAnywhere(t *testing.T) {
	for condition, want := range map[string]policy.Verdict{
		`"NotIpAddress":{"aws:SourceIp":"0.0.0.0/0"}`:                     policy.Maybe,
		`"NotIpAddress":{"aws:SourceIp":["0.0.0.0/0","::/0"]}`:            policy.Maybe,
		`"NotIpAddressIfExists":{"aws:SourceIp":"0.0.0.0/0"}`:             policy.Maybe,
		`"IpAddress":{"aws:SourceIp":["0.0.0.0/0","::/0"]}`:               policy.Maybe,
		`"IpAddressIfExists":{"aws:SourceIp":"0.0.0.0/0"}`:                policy.Maybe, // there are those of IPv6
		`"IpAddressIfExists":{"aws:SourceIp":["0.0.0.0/0","::/0"]}`:       policy.No,
		`"NotIpAddress":{"aws:SourceIp":"0.0.0.0/0"},"Bool":{"yes":true}`: policy.Maybe,
	} {
		d := parse(t, `{"Effect":"Allow","Action":"*","Resource":"*"}`, `{"Effect":"Deny","Action":"*","Resource":"*","Condition":{`+condition+`}}`)
		q := policy.Question{Caller: reader, Action: reading, Resource: secret, Context: map[string]string{"yes": "true"}}
		if got := policy.Decide(q, policy.Policies{Identity: []*policy.Document{d}}); got != want {
			t.Errorf("%s: %d, want %d", condition, got, want)
		}
	}
}

// TestWild: what is a wildcard on an action, and what is not.
func TestWild(t *testing.T) {
	for statement, want := range map[string]bool{
		`{"Effect":"Allow","Action":"secretsmanager:GetSecretValue","Resource":"` + secret + `"}`:                                            false,
		`{"Effect":"Allow","Action":"secretsmanager:GetSecretValue","Resource":["` + secret + `","arn:aws:secretsmanager:eu:1:secret:a-*"]}`: true,
		`{"Effect":"Allow","Action":"SecretsManager:Get*","Resource":"` + secret + `"}`:                                                      true,
		`{"Effect":"Allow","Action":"*","Resource":"` + secret + `"}`:                                                                        true,
		`{"Effect":"Allow","NotAction":"s3:*","Resource":"` + secret + `"}`:                                                                  true,
		`{"Effect":"Allow","Action":"secretsmanager:GetRandomPassword","Resource":"*"}`:                                                      false,
		`{"Effect":"Deny","Action":"*","Resource":"*"}`:                                                                                      false,
	} {
		if got := parse(t, statement).Statements[0].Wild(reading); got != want {
			t.Errorf("%s: %t", statement, got)
		}
	}
}

func TestRefuses(t *testing.T) {
	for _, text := range []string{
		"", "{}", "null", `{"Statement":"a"}`, `{"Statement":[{"Effect":"Perhaps","Action":"*"}]}`, `{"Statement":[{"Effect":"Allow"}]}`,
		`{"Statement":[{"Effect":"Allow","Action":"*","NotAction":"*"}]}`, `{"Statement":[{"Effect":"Allow","Action":{"a":1}}]}`,
		`{"Statement":[{"Effect":"Allow","Action":"*","Resource":"*","NotResource":"*"}]}`, `{"Statement":[{"Effect":"Allow","Action":"*","Principal":[1]}]}`,
		strings.Repeat(" ", policy.MaxSize+1),
	} {
		if _, err := policy.Parse(text); !errors.Is(err, policy.ErrPolicy) {
			t.Errorf("%.60q: %v", text, err)
		}
	}
	opaque := policy.Policies{Identity: []*policy.Document{policy.Opaque()}}
	if got := policy.Decide(policy.Question{Caller: reader, Action: reading, Resource: secret}, opaque); got != policy.Maybe {
		t.Errorf("what nobody could read allows: %d", got)
	}
}

// TestHolds asserts what a statement says of a question without whom it names.
func TestHolds(t *testing.T) {
	for text, want := range map[string]policy.Verdict{
		`"Action":"kms:*","Resource":"*","Principal":"*"`:                                                                         policy.Yes,
		`"Action":"kms:Encrypt","Resource":"*","Principal":"*"`:                                                                   policy.No,
		`"Action":"kms:Decrypt","Resource":"arn:aws:kms:::key/2","Principal":"*"`:                                                 policy.No,
		`"Action":"kms:Decrypt","Resource":"*","Principal":"*","Condition":{"StringEquals":{"KMS:CallerAccount":"111111111111"}}`: policy.No,
		`"Action":"kms:Decrypt","Resource":"*","Principal":"*","Condition":{"StringEquals":{"kms:CallerAccount":"222222222222"}}`: policy.Yes,
		`"Action":"kms:Decrypt","Resource":"*","Principal":"*","Condition":{"StringEquals":{"aws:PrincipalOrgID":"o-1"}}`:         policy.Maybe,
	} {
		d, err := policy.Parse(`{"Statement":{"Effect":"Allow",` + text + `}}`)
		if err != nil {
			t.Fatal(err)
		}
		q := policy.Question{Action: "kms:Decrypt", Resource: "arn:aws:kms:::key/1", Context: map[string]string{"kms:calleraccount": "222222222222"}}
		if got := d.Statements[0].Holds(q); got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
	}
}

// FuzzParse: no text stops the reading, and what denies everything lets nobody in, whatever stands beside it.
func FuzzParse(f *testing.F) {
	f.Add(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":["a:*"],"Resource":"*","Principal":{"AWS":"*"},"Condition":{"StringLike":{"k":["${a}*",true]}}}}`)
	f.Add(`{"Statement":[{"Effect":"Deny","NotAction":"*","NotResource":["a"],"NotPrincipal":"*"}]}`)
	closed, err := policy.Parse(`{"Statement":{"Effect":"Deny","Action":"*","Resource":"*","Principal":"*"}}`)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := policy.Parse(text)
		if err != nil {
			if !errors.Is(err, policy.ErrPolicy) {
				t.Error(err)
			}
			return
		}
		q := policy.Question{Caller: reader, Action: reading, Resource: secret, Context: map[string]string{"k": "b"}}
		policy.Decide(q, policy.Policies{Resource: d, Decisive: true})
		if got := policy.Decide(q, policy.Policies{Identity: []*policy.Document{d}, Resource: closed}); got != policy.No {
			t.Errorf("%d in spite of a deny", got)
		}
		for _, s := range d.Statements {
			s.Wild(reading)
			s.Holds(q)
		}
	})
}
