package iam_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"countersign.dev/aws/internal/awstest/iam"
)

const (
	account = "123456789012"
	reader  = "arn:aws:iam::123456789012:role/reader"
	session = "arn:aws:sts::123456789012:assumed-role/reader/task"
	secret  = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/checkout-a1b2c3"
	other   = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/ledger-d4e5f6"
	key     = "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
)

var caller = iam.Caller{Account: account, Role: reader, Session: session}

// policy wraps statements.
func policy(statements ...string) string {
	return `{"Version":"2012-10-17","Statement":[` + strings.Join(statements, ",") + `]}`
}

func parse(t *testing.T, kind iam.Kind, text string) *iam.Document {
	t.Helper()
	if text == "" {
		return nil
	}
	document, err := iam.Parse(kind, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return document
}

const (
	get         = "secretsmanager:GetSecretValue"
	allowSecret = `{"Effect":"Allow","Action":"secretsmanager:GetSecretValue","Resource":"` + secret + `"}`
	allowAll    = `{"Effect":"Allow","Action":"*","Resource":"*"}`
	denyAll     = `{"Effect":"Deny","Action":"*","Resource":"*"}`
	// What generated templates attach to a secret.
	onlyReader = `{"Sid":"Only","Effect":"Deny","Principal":"*","Action":["secretsmanager:GetSecretValue","secretsmanager:BatchGetSecretValue"],` +
		`"Resource":"*","Condition":{"ArnNotEquals":{"aws:PrincipalArn":["` + reader + `"]}}}`
	// What every key has first.
	// https://docs.aws.amazon.com/kms/latest/developerguide/key-policy-default.html
	keyDefault = `{"Sid":"Enable IAM User Permissions","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::123456789012:root"},"Action":"kms:*","Resource":"*"}`
)

// TestDecide walks through the evaluation logic.
func TestDecide(t *testing.T) {
	t.Parallel()
	stranger := iam.Caller{Account: account, Role: "arn:aws:iam::123456789012:role/stranger", Session: "arn:aws:sts::123456789012:assumed-role/stranger/x"}
	tests := []struct {
		name     string
		identity string
		resource string
		decisive bool
		caller   iam.Caller
		action   string
		on       string
		want     string // "" is allowed
	}{
		{name: "nothing says anything", want: "because no identity-based policy allows the secretsmanager:GetSecretValue action"},
		{name: "the identity policy allows", identity: policy(allowSecret)},
		{name: "another resource", identity: policy(allowSecret), on: other, want: "because no identity-based"},
		{name: "another action", identity: policy(allowSecret), action: "secretsmanager:PutSecretValue", want: "because no identity-based"},
		{name: "actions have no case", identity: policy(`{"Effect":"Allow","Action":"SecretsManager:getsecret*","Resource":"*"}`), want: "error"},
		{name: "operations have no case", identity: policy(`{"Effect":"Allow","Action":"secretsmanager:getSECRETvalue","Resource":"*"}`)},
		{name: "resources have one", identity: policy(`{"Effect":"Allow","Action":"*","Resource":"` + strings.ToUpper(secret[8:9]) + `"}`), want: "error"},
		{name: "deny beats allow", identity: policy(allowAll, denyAll), want: "with an explicit deny in an identity-based policy"},
		{name: "deny beats allow in any order", identity: policy(denyAll, allowAll), want: "with an explicit deny in an identity-based policy"},
		{name: "the suffix by question marks", identity: policy(`{"Effect":"Allow","Action":"*","Resource":"arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/checkout-??????"}`)},
		{name: "question marks count", identity: policy(`{"Effect":"Allow","Action":"*","Resource":"arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/checkout-?????"}`), want: "because"},
		{name: "a wildcard stays in its part", identity: policy(`{"Effect":"Allow","Action":"*","Resource":"arn:aws:secretsmanager:*:secret:payments/*"}`), want: "because"},
		{name: "another region", identity: policy(`{"Effect":"Allow","Action":"*","Resource":"arn:aws:secretsmanager:us-east-1:123456789012:secret:*"}`), want: "because"},
		{name: "an operation without a resource wants *", identity: policy(`{"Effect":"Allow","Action":"secretsmanager:ListSecrets","Resource":"arn:aws:secretsmanager:*:*:*"}`), action: "secretsmanager:ListSecrets", on: "*", want: "because"},
		{name: "an operation without a resource has *", identity: policy(`{"Effect":"Allow","Action":"secretsmanager:ListSecrets","Resource":"*"}`), action: "secretsmanager:ListSecrets", on: "*"},
		{name: "NotAction allows the others", identity: policy(`{"Effect":"Allow","NotAction":"iam:*","Resource":"*"}`)},
		{name: "NotAction leaves out", identity: policy(`{"Effect":"Allow","NotAction":"secretsmanager:*","Resource":"*"}`), want: "because"},
		{name: "NotResource allows the others", identity: policy(`{"Effect":"Allow","Action":"*","NotResource":"` + other + `"}`)},
		{name: "NotResource leaves out", identity: policy(`{"Effect":"Allow","Action":"*","NotResource":"` + secret + `"}`), want: "because"},
		{name: "Deny with NotResource", identity: policy(allowAll, `{"Effect":"Deny","Action":"*","NotResource":"`+other+`"}`), want: "with an explicit deny"},

		{name: "the resource's policy is enough", resource: policy(`{"Effect":"Allow","Principal":{"AWS":"` + reader + `"},"Action":"secretsmanager:GetSecretValue","Resource":"*"}`)},
		{name: "for the session too", resource: policy(`{"Effect":"Allow","Principal":{"AWS":"` + session + `"},"Action":"secretsmanager:GetSecretValue","Resource":"*"}`)},
		{name: "for everybody", resource: policy(`{"Effect":"Allow","Principal":"*","Action":"secretsmanager:GetSecretValue","Resource":"*"}`), caller: stranger},
		{name: "not for others", resource: policy(`{"Effect":"Allow","Principal":{"AWS":"` + reader + `"},"Action":"secretsmanager:GetSecretValue","Resource":"*"}`), caller: stranger, want: "because"},
		{name: "the account alone gives nothing", resource: policy(`{"Effect":"Allow","Principal":{"AWS":"` + account + `"},"Action":"*","Resource":"*"}`), want: "because"},
		{name: "the resource's policy denies the account", identity: policy(allowAll), resource: policy(`{"Effect":"Deny","Principal":{"AWS":"` + account + `"},"Action":"*","Resource":"*"}`), want: "with an explicit deny in a resource-based policy"},
		{name: "only the reader", identity: policy(allowAll), resource: policy(onlyReader)},
		{name: "only the reader, a stranger", identity: policy(allowAll), resource: policy(onlyReader), caller: stranger, want: "with an explicit deny in a resource-based policy"},
		{name: "only the reader, administration", identity: policy(allowAll), resource: policy(onlyReader), caller: stranger, action: "secretsmanager:DeleteSecret"},

		// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_notprincipal.html
		{name: "NotPrincipal spares who is named whole", identity: policy(allowAll), resource: policy(`{"Effect":"Deny","NotPrincipal":{"AWS":["` + reader + `","` + session + `","arn:aws:iam::123456789012:root"]},"Action":"*","Resource":"*"}`)},
		{name: "NotPrincipal needs the session", identity: policy(allowAll), resource: policy(`{"Effect":"Deny","NotPrincipal":{"AWS":["` + reader + `","arn:aws:iam::123456789012:root"]},"Action":"*","Resource":"*"}`), want: "with an explicit deny"},
		{name: "NotPrincipal needs the account", identity: policy(allowAll), resource: policy(`{"Effect":"Deny","NotPrincipal":{"AWS":["` + reader + `","` + session + `"]},"Action":"*","Resource":"*"}`), want: "with an explicit deny"},
		{name: "NotPrincipal that allows the others", resource: policy(`{"Effect":"Allow","NotPrincipal":{"AWS":"` + reader + `"},"Action":"*","Resource":"*"}`), caller: stranger},
		{name: "NotPrincipal that allows the others leaves out", resource: policy(`{"Effect":"Allow","NotPrincipal":{"AWS":"` + reader + `"},"Action":"*","Resource":"*"}`), want: "because"},

		{name: "a key hands over to the account", identity: policy(allowAll), resource: policy(keyDefault), decisive: true, action: "kms:Decrypt", on: key},
		{name: "the account still has to allow", resource: policy(keyDefault), decisive: true, action: "kms:Decrypt", on: key, want: "because no identity-based"},
		{name: "a key that does not hand over", identity: policy(allowAll), resource: policy(`{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::123456789012:role/admin"},"Action":"kms:*","Resource":"*"}`), decisive: true, action: "kms:Decrypt", on: key, want: "because no resource-based"},
		{name: "a key that names the role", resource: policy(`{"Effect":"Allow","Principal":{"AWS":"` + reader + `"},"Action":"kms:Decrypt","Resource":"*"}`), decisive: true, action: "kms:Decrypt", on: key},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			policies := iam.Policies{Decisive: test.decisive}
			if test.want == "error" {
				if _, err := iam.Parse(iam.Identity, []byte(test.identity)); !errors.Is(err, iam.ErrPolicy) {
					t.Errorf("Parse: %v, want ErrPolicy", err)
				}
				return
			}
			if test.identity != "" {
				policies.Identity = []*iam.Document{parse(t, iam.Identity, test.identity)}
			}
			policies.Resource = parse(t, iam.Resource, test.resource)
			request := iam.Request{Caller: test.caller, Action: test.action, Resource: test.on}
			if request.Caller == (iam.Caller{}) {
				request.Caller = caller
			}
			if request.Action == "" {
				request.Action = get
			}
			if request.Resource == "" {
				request.Resource = secret
			}
			request.Context = map[string][]string{"aws:PrincipalArn": {request.Caller.Role}}
			got := iam.Decide(request, policies)
			if got.Allowed != (test.want == "") || !strings.HasPrefix(got.Why, test.want) || got.Explicit != strings.HasPrefix(test.want, "with") {
				t.Errorf("got %+v, want %q", got, test.want)
			}
		})
	}
}

// TestConditions checks each operator with a key that is there, and one that is not.
func TestConditions(t *testing.T) {
	t.Parallel()
	context := map[string][]string{
		"aws:PrincipalArn":                {reader},
		"aws:SourceAccount":               {account},
		"kms:ViaService":                  {"secretsmanager.eu-central-1.amazonaws.com"},
		"kms:EncryptionContext:SecretARN": {secret},
		"kms:EncryptionContextKeys":       {"SecretARN", "SecretVersionId"},
		"secretsmanager:SecretId":         {secret},
		"aws:SecureTransport":             {"true"},
		"cloudwatch:namespace":            {"Countersign"},
		"aws:PrincipalAccount":            {account},
	}
	for _, test := range []struct {
		condition string
		want      bool
	}{
		{`"StringEquals":{"kms:ViaService":"secretsmanager.eu-central-1.amazonaws.com"}`, true},
		{`"StringEquals":{"KMS:viaservice":"secretsmanager.eu-central-1.amazonaws.com"}`, true},
		{`"StringEquals":{"kms:ViaService":["x","secretsmanager.eu-central-1.amazonaws.com"]}`, true},
		{`"StringEquals":{"kms:ViaService":"secretsmanager.*"}`, false},
		{`"StringLike":{"kms:ViaService":"secretsmanager.*.amazonaws.com"}`, true},
		{`"StringNotLike":{"kms:ViaService":"secretsmanager.*.amazonaws.com"}`, false},
		{`"StringNotEquals":{"kms:ViaService":["x","y"]}`, true},
		{`"StringNotEquals":{"kms:ViaService":["x","secretsmanager.eu-central-1.amazonaws.com"]}`, false},
		{`"StringEqualsIgnoreCase":{"cloudwatch:namespace":"COUNTERSIGN"}`, true},
		{`"StringNotEqualsIgnoreCase":{"cloudwatch:namespace":"COUNTERSIGN"}`, false},
		{`"ArnEquals":{"kms:EncryptionContext:SecretARN":"arn:aws:secretsmanager:*:*:secret:payments/*"}`, true},
		{`"ArnLike":{"kms:EncryptionContext:SecretARN":"arn:aws:secretsmanager:*:secret:payments/*:x"}`, false},
		{`"ArnNotLike":{"aws:PrincipalArn":"arn:aws:iam::*:role/writer"}`, true},
		{`"ArnNotEquals":{"aws:PrincipalArn":"` + reader + `"}`, false},
		{`"StringLike":{"kms:EncryptionContext:SecretARN":"arn:*:secret:payments/*"}`, true},
		{`"Bool":{"aws:SecureTransport":true}`, true},
		{`"Bool":{"aws:SecureTransport":"false"}`, false},
		{`"StringEquals":{"aws:SourceAccount":"${aws:PrincipalAccount}"}`, true},
		{`"StringEquals":{"cloudwatch:namespace":"${secretsmanager:VersionStage}"}`, false},
		{`"StringLike":{"cloudwatch:namespace":"Counter${*}"}`, false},
		// Of a key that is absent.
		{`"StringEquals":{"secretsmanager:VersionStage":"AWSCURRENT"}`, false},
		{`"StringEqualsIfExists":{"secretsmanager:VersionStage":"AWSCURRENT"}`, true},
		{`"StringEqualsIfExists":{"cloudwatch:namespace":"x"}`, false},
		{`"StringNotEquals":{"secretsmanager:VersionStage":"AWSCURRENT"}`, true},
		{`"ArnNotEquals":{"ecs:cluster":"arn:aws:ecs:a:b:cluster/c"}`, true},
		{`"Null":{"secretsmanager:VersionStage":"true"}`, true},
		{`"Null":{"secretsmanager:VersionStage":"false"}`, false},
		{`"Null":{"secretsmanager:SecretId":"false"}`, true},
		{`"Null":{"secretsmanager:SecretId":true}`, false},
		{`"Bool":{"aws:ViaAWSService":"false"}`, false},
		{`"BoolIfExists":{"aws:ViaAWSService":"false"}`, true},
		// Several values.
		{`"ForAllValues:StringEquals":{"kms:EncryptionContextKeys":["SecretARN","SecretVersionId","x"]}`, true},
		{`"ForAllValues:StringEquals":{"kms:EncryptionContextKeys":["SecretARN"]}`, false},
		{`"ForAllValues:StringEquals":{"aws:CalledVia":["x"]}`, true},
		{`"ForAnyValue:StringEquals":{"kms:EncryptionContextKeys":["SecretARN"]}`, true},
		{`"ForAnyValue:StringEquals":{"kms:EncryptionContextKeys":["x"]}`, false},
		{`"ForAnyValue:StringEquals":{"aws:CalledVia":["x"]}`, false},
		{`"ForAnyValue:StringNotEquals":{"kms:EncryptionContextKeys":["SecretARN"]}`, true},
		// All keys and operators have to hold.
		{`"StringEquals":{"cloudwatch:namespace":"Countersign","aws:SourceAccount":"1"}`, false},
		{`"StringEquals":{"cloudwatch:namespace":"Countersign"},"Bool":{"aws:SecureTransport":"false"}`, false},
		{`"StringEquals":{"cloudwatch:namespace":"Countersign"},"Bool":{"aws:SecureTransport":"true"}`, true},
	} {
		text := policy(`{"Effect":"Allow","Action":"*","Resource":"*","Condition":{` + test.condition + `}}`)
		document, err := iam.Parse(iam.Identity, []byte(text))
		if err != nil {
			t.Errorf("%s: %v", test.condition, err)
			continue
		}
		got := iam.Decide(iam.Request{Caller: caller, Action: get, Resource: secret, Context: context}, iam.Policies{Identity: []*iam.Document{document}})
		if got.Allowed != test.want {
			t.Errorf("%s: %v, want %v", test.condition, got.Allowed, test.want)
		}
	}
}

// TestTrust checks who may take a role.
func TestTrust(t *testing.T) {
	t.Parallel()
	trust := parse(t, iam.Trust, policy(`{"Effect":"Allow","Action":"sts:AssumeRole","Principal":{"Service":"ecs-tasks.amazonaws.com"},`+
		`"Condition":{"StringEquals":{"aws:SourceAccount":"123456789012"}}}`))
	tasks := iam.Caller{Service: "ecs-tasks.amazonaws.com"}
	here := map[string][]string{"aws:SourceAccount": {account}}
	for name, test := range map[string]struct {
		caller  iam.Caller
		context map[string][]string
		want    bool
	}{
		"the service":           {tasks, here, true},
		"from another account":  {tasks, map[string][]string{"aws:SourceAccount": {"999999999999"}}, false},
		"from nowhere":          {tasks, nil, false},
		"another service":       {iam.Caller{Service: "lambda.amazonaws.com"}, here, false},
		"a role of the account": {caller, here, false},
	} {
		if got := iam.Trusts(trust, test.caller, test.context); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

// TestParse refuses what could not be evaluated as AWS would.
func TestParse(t *testing.T) {
	t.Parallel()
	statement := func(elements string) string { return policy(`{"Effect":"Allow",` + elements + `}`) }
	for _, test := range []struct {
		kind iam.Kind
		text string
		want string
	}{
		{iam.Identity, ``, "EOF"},
		{iam.Identity, `[]`, "cannot unmarshal"},
		{iam.Identity, `{"Version":"2012-10-17"}`, "at least one statement"},
		{iam.Identity, `{"Version":"2012-10-17","Statement":[]}`, "at least one statement"},
		{iam.Identity, `{"Statement":[` + allowAll + `]}`, "Version"},
		{iam.Identity, `{"Version":"2008-10-17","Statement":[` + allowAll + `]}`, "Version"},
		{iam.Identity, policy(allowAll) + "x", "follows"},
		{iam.Identity, policy(allowAll)[:20] + strings.Repeat(" ", iam.MaxSize) + policy(allowAll)[20:], "longer than"},
		{iam.Identity, policy(`{"Sid":"a",`+allowAll[1:], `{"Sid":"a",`+allowAll[1:]), "another statement has this Sid"},
		{iam.Identity, policy(`{"Effect":"allow","Action":"*","Resource":"*"}`), "Effect"},
		{iam.Identity, statement(`"Action":"*"`), "Resource is missing"},
		{iam.Identity, statement(`"Resource":"*"`), "Action is missing"},
		{iam.Identity, statement(`"Action":"*","NotAction":"*","Resource":"*"`), "exclude"},
		{iam.Identity, statement(`"Action":"*","Resource":"*","NotResource":"*"`), "exclude"},
		{iam.Identity, statement(`"Action":[],"Resource":"*"`), "Action is empty"},
		{iam.Identity, statement(`"Action":"GetSecretValue","Resource":"*"`), "SERVICE:OPERATION"},
		{iam.Identity, statement(`"Action":"*:*","Resource":"*"`), "SERVICE:OPERATION"},
		{iam.Identity, statement(`"Action":{"a":"b"},"Resource":"*"`), "list of strings"},
		{iam.Identity, statement(`"Action":"*","Resource":"secret"`), "six parts"},
		{iam.Identity, statement(`"Action":"*","Resource":"x:a:b:c:d:e"`), "six parts"},
		{iam.Identity, statement(`"Action":"*","Resource":"arn:aws:s3:::${aws:username}"`), "the variable"},
		{iam.Identity, statement(`"Action":"*","Resource":"*","Resourcee":"*"`), "unknown field"},
		{iam.Identity, statement(`"Action":"*","Resource":"*","Principal":"*"`), "no Principal"},
		{iam.Identity, statement(`"Action":"*","Resource":"*","Condition":{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}`), `operator "IpAddress" is not known`},
		{iam.Identity, statement(`"Action":"*","Resource":"*","Condition":{"StringEquals":{"aws:SourceVpce":"x"}}`), `key "aws:sourcevpce" is not known`},
		{iam.Identity, statement(`"Action":"*","Resource":"*","Condition":{"ForSome:StringEquals":{"aws:SourceArn":"x"}}`), "not known"},
		{iam.Identity, statement(`"Action":"*","Resource":"*","Condition":{"NullIfExists":{"aws:SourceArn":"true"}}`), "not known"},
		{iam.Identity, statement(`"Action":"*","Resource":"*","Condition":{"Bool":{"aws:SecureTransport":"yes"}}`), "neither true nor false"},
		{iam.Identity, statement(`"Action":"*","Resource":"*","Condition":{"ArnLike":{"aws:SourceArn":"secret"}}`), "six parts"},
		{iam.Identity, statement(`"Action":"*","Resource":"*","Condition":{"StringEquals":{"aws:SourceArn":[]}}`), "no value"},
		{iam.Identity, statement(`"Action":"*","Resource":"*","Condition":{"StringEquals":{"aws:SourceArn":"${x}"}}`), "the variable"},
		{iam.Resource, statement(`"Action":"*","Resource":"*"`), "Principal is missing"},
		{iam.Resource, statement(`"Action":"*","Resource":"*","Principal":"*","NotPrincipal":"*"`), "exclude"},
		{iam.Resource, statement(`"Action":"*","Resource":"*","Principal":{}`), "Principal is empty"},
		{iam.Resource, statement(`"Action":"*","Resource":"*","Principal":["*"]`), "an object of"},
		{iam.Resource, statement(`"Action":"*","Resource":"*","Principal":{"Federated":"x"}`), "only AWS and Service"},
		{iam.Resource, statement(`"Action":"*","Resource":"*","Principal":{"AWS":"arn:aws:iam::123456789012:role/*"}`), "stands only alone"},
		{iam.Resource, statement(`"Action":"*","Resource":"*","Principal":{"Service":"*"}`), "stands only alone"},
		{iam.Trust, statement(`"Action":"sts:AssumeRole","Resource":"*","Principal":"*"`), "no Resource"},
	} {
		if _, err := iam.Parse(test.kind, []byte(test.text)); !errors.Is(err, iam.ErrPolicy) || !strings.Contains(fmt.Sprint(err), test.want) {
			t.Errorf("%.120s: %v, want %q", test.text, err, test.want)
		}
	}
}
