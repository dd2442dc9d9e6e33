package awstest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"

	"countersign.dev/aws/internal/awstest/iam"
)

// facts are what a secret or a key is, for decisions about it. Zero: it does not exist.
type facts struct {
	arn    string
	key    string // of a secret: its key as it was given; "" for the account's own, which everybody may use through the service
	off    string // of a key: its state when that is not Enabled
	policy *iam.Document
}

// remembered are facts of the doubles, which all tests of the process share. They are forgotten as soon as any of them may change.
var remembered = struct {
	mu         sync.Mutex
	generation int
	facts      map[string]facts
}{facts: map[string]facts{}}

// changes are the operations after which facts are asked for again.
var changes = []string{
	"CreateSecret", "DeleteSecret", "RestoreSecret", "UpdateSecret", "PutResourcePolicy", "DeleteResourcePolicy",
	"CreateKey", "PutKeyPolicy", "DisableKey", "EnableKey", "ScheduleKeyDeletion", "CancelKeyDeletion", "CreateAlias", "UpdateAlias", "DeleteAlias",
}

// forget drops what is remembered when the operation changes facts.
func forget(operation string) {
	if slices.Contains(changes, operation) {
		remembered.mu.Lock()
		defer remembered.mu.Unlock()
		remembered.generation++
		clear(remembered.facts)
	}
}

// recall is what is remembered under the name, or what look finds, which is kept when nothing changed meanwhile. Of a service
// that a test has mounted nothing is remembered: another test may have mounted another one.
func (c *Cloud) recall(service, name string, look func() (facts, error)) (facts, error) {
	c.mu.Lock()
	mounted := c.mounted[service]
	c.mu.Unlock()
	if mounted {
		return look()
	}
	remembered.mu.Lock()
	f, found := remembered.facts[name]
	generation := remembered.generation
	remembered.mu.Unlock()
	if found {
		return f, nil
	}
	f, err := look()
	if err != nil {
		return facts{}, err
	}
	remembered.mu.Lock()
	defer remembered.mu.Unlock()
	if remembered.generation == generation {
		remembered.facts[name] = f
	}
	return f, nil
}

// inside asks what stands behind the front for facts, past all policies. An answer that is not 200 is nil.
func (c *Cloud) inside(ctx context.Context, service, target string, params map[string]any) (map[string]any, error) {
	body, err := json.Marshal(params)
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", target, err)
	}
	c.mu.Lock()
	handler := c.handlers[service]
	c.mu.Unlock()
	if handler == nil {
		return nil, fmt.Errorf("asking %s: nothing is mounted for %s", target, service)
	}
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "http://"+service+"/", bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	r.Header.Set("X-Amz-Target", target)
	r.Header.Set("Authorization", fakeAuthorization(service))
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	if w.Code >= http.StatusInternalServerError {
		return nil, fmt.Errorf("asking %s: %d %s", target, w.Code, w.Body)
	}
	if w.Code != http.StatusOK {
		return nil, nil
	}
	var answer map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		return nil, fmt.Errorf("asking %s: %w", target, err)
	}
	return answer, nil
}

func text(of map[string]any, name string) string {
	s, _ := of[name].(string)
	return s
}

// policyOf reads the policy of a resource. One that the front does not understand denies everything, and the test is told.
func (c *Cloud) policyOf(of, policy string) *iam.Document {
	if policy == "" {
		return nil
	}
	document, err := iam.Parse(iam.Resource, []byte(policy))
	if err != nil {
		c.t.Errorf("the policy of %s: %v", of, err)
		document, _ = iam.Parse(iam.Resource, []byte(`{"Version":"2012-10-17","Statement":{"Effect":"Deny","Principal":"*","Action":"*","Resource":"*"}}`))
	}
	return document
}

// secret looks a secret up by name or ARN, whole or without its random end.
func (c *Cloud) secret(ctx context.Context, id string) (facts, error) {
	return c.recall("secretsmanager", "secret "+id, func() (facts, error) {
		described, err := c.inside(ctx, "secretsmanager", "secretsmanager.DescribeSecret", map[string]any{"SecretId": id})
		if err != nil || described == nil {
			return facts{}, err
		}
		attached, err := c.inside(ctx, "secretsmanager", "secretsmanager.GetResourcePolicy", map[string]any{"SecretId": id})
		if err != nil {
			return facts{}, err
		}
		arn := text(described, "ARN")
		return facts{arn: arn, key: text(described, "KmsKeyId"), policy: c.policyOf(arn, text(attached, "ResourcePolicy"))}, nil
	})
}

// key looks a key up by id, ARN or alias.
func (c *Cloud) key(ctx context.Context, id string) (facts, error) {
	return c.recall("kms", "key "+id, func() (facts, error) {
		described, err := c.inside(ctx, "kms", "TrentService.DescribeKey", map[string]any{"KeyId": id})
		if err != nil || described == nil {
			return facts{}, err
		}
		metadata, _ := described["KeyMetadata"].(map[string]any)
		f := facts{arn: text(metadata, "Arn")}
		if state := text(metadata, "KeyState"); state != "Enabled" {
			f.off = state
		}
		attached, err := c.inside(ctx, "kms", "TrentService.GetKeyPolicy", map[string]any{"KeyId": text(metadata, "KeyId"), "PolicyName": "default"})
		if err != nil {
			return facts{}, err
		}
		f.policy = c.policyOf(f.arn, text(attached, "Policy"))
		return f, nil
	})
}

// secretNeeds follows https://docs.aws.amazon.com/secretsmanager/latest/userguide/auth-and-access.html.
func (c *Cloud) secretNeeds(ctx context.Context, q *request) ([]need, *refusal) {
	ids := q.list("SecretIdList")
	switch q.operation {
	case "ListSecrets", "GetRandomPassword":
		return []need{{action: q.action(), resource: "*"}}, nil
	case "BatchGetSecretValue":
		if len(ids) == 0 {
			return nil, &refusal{kind: malformed, message: "the front knows BatchGetSecretValue only with SecretIdList"}
		}
	case "CreateSecret":
		return c.newSecretNeeds(ctx, q)
	default:
		ids = []string{q.str("SecretId")}
	}
	var needs []need
	for _, id := range ids {
		f, err := c.secret(ctx, id)
		if err != nil {
			return nil, &refusal{kind: unavailable, message: err.Error()}
		}
		if f.arn == "" {
			f.arn = id
			if !strings.HasPrefix(id, "arn:") {
				f.arn = arnOf("secretsmanager", "secret:"+id+"-AbCdEf") // as names are matched while there is no end yet
			}
		}
		extra := map[string][]string{"secretsmanager:SecretId": {f.arn}}
		// AWS leaves out of a batch what may not be read; here the whole is refused, because nobody should ask for it.
		actions := []string{q.action()}
		if q.operation == "BatchGetSecretValue" {
			actions = append(actions, "secretsmanager:GetSecretValue")
		}
		for _, action := range actions {
			needs = append(needs, need{action: action, resource: f.arn, context: extra, policy: f.policy})
		}
		more, refused := c.secretKeyNeeds(ctx, q, f)
		if refused != nil {
			return nil, refused
		}
		needs = append(needs, more...)
	}
	if function := q.str("RotationLambdaARN"); function != "" && q.operation == "RotateSecret" {
		needs = append(needs, need{action: "lambda:InvokeFunction", resource: function})
	}
	return needs, nil
}

func (c *Cloud) newSecretNeeds(ctx context.Context, q *request) ([]need, *refusal) {
	f := facts{arn: arnOf("secretsmanager", "secret:"+q.str("Name")+"-AbCdEf"), key: q.str("KmsKeyId")}
	more, refused := c.secretKeyNeeds(ctx, q, f)
	return append([]need{{action: q.action(), resource: f.arn, context: map[string][]string{"secretsmanager:Name": {q.str("Name")}}}}, more...), refused
}

// validates is the context in which Secrets Manager tries a key that a secret is to get: on a sample, and no secret.
const validates = "RequestToValidateKeyAccess"

// secretKeyNeeds is what Secrets Manager asks of the secret's own key for the caller, which neither double does:
// https://docs.aws.amazon.com/secretsmanager/latest/userguide/security-encryption.html.
func (c *Cloud) secretKeyNeeds(ctx context.Context, q *request, secret facts) ([]need, *refusal) {
	var actions []string
	code := "EncryptionFailure"
	keyID := secret.key
	writes := q.str("SecretString") != "" || q.str("SecretBinary") != ""
	switch {
	case q.operation == "GetSecretValue" || q.operation == "BatchGetSecretValue":
		actions, code = []string{"kms:Decrypt"}, "DecryptionFailure"
	case q.operation == "UpdateSecret" && q.str("KmsKeyId") != "":
		keyID = q.str("KmsKeyId")
		actions = []string{"kms:GenerateDataKey", "kms:Decrypt", "kms:Encrypt"}
	case writes:
		actions = []string{"kms:GenerateDataKey", "kms:Decrypt"}
	}
	if keyID == "" || keyID == "alias/aws/secretsmanager" || len(actions) == 0 {
		return nil, nil
	}
	key, err := c.key(ctx, keyID)
	switch {
	case err != nil:
		return nil, &refusal{kind: unavailable, message: err.Error()}
	case key.arn == "" || key.off != "":
		state := key.off
		if key.arn == "" {
			state = "not there"
		}
		if q.caller.root || c.mayCall(q, secret) {
			return nil, &refusal{kind: malformed, code: code, message: fmt.Sprintf(
				"Secrets Manager can't use the KMS key %s of the secret: it is %s", keyID, state)}
		}
	}
	var needs []need
	for _, action := range actions {
		arn, version := secret.arn, q.str("ClientRequestToken")
		if action == "kms:Decrypt" && (q.operation == "CreateSecret" || q.str("KmsKeyId") != "") {
			arn, version = validates, validates
		}
		needs = append(needs, need{
			action: action, resource: key.arn, policy: key.policy, decisive: true,
			context: map[string][]string{
				"kms:ViaService":                        {"secretsmanager." + Region + ".amazonaws.com"},
				"kms:EncryptionContext:SecretARN":       {arn},
				"kms:EncryptionContext:SecretVersionId": optional(version),
				"kms:EncryptionContextKeys":             {"SecretARN", "SecretVersionId"},
				"aws:ViaAWSService":                     {"true"},
				"aws:CalledVia":                         {"secretsmanager.amazonaws.com"},
			},
			refused: &refusal{kind: denied, message: "Access to KMS is not allowed"},
		})
	}
	return needs, nil
}

// mayCall tells whether the caller's own policies allow the request, so that nobody learns a key's state who may not ask.
func (c *Cloud) mayCall(q *request, secret facts) bool {
	return iam.Decide(iam.Request{
		Caller: iam.Caller{Account: Account, Role: q.caller.role.arn, Session: q.caller.arn()},
		Action: q.action(), Resource: secret.arn,
		Context: mergedContext(q, map[string][]string{"secretsmanager:SecretId": {secret.arn}, "secretsmanager:Name": optional(q.str("Name"))}),
	}, iam.Policies{Identity: c.identityPolicies(q.caller.role), Resource: secret.policy}).Allowed
}

// keyNeeds follows https://docs.aws.amazon.com/service-authorization/latest/reference/list_awskeymanagementservice.html.
func (c *Cloud) keyNeeds(ctx context.Context, q *request) ([]need, *refusal) {
	id := q.str("KeyId")
	switch q.operation {
	case "CreateAlias", "UpdateAlias":
		id = q.str("TargetKeyId")
	case "Decrypt":
		if id == "" {
			id = keyOf(q.str("CiphertextBlob"))
		}
	case "DeleteAlias":
		id = q.str("AliasName")
	}
	if id == "" {
		return []need{{action: q.action(), resource: "*"}}, nil
	}
	key, err := c.key(ctx, id)
	if err != nil {
		return nil, &refusal{kind: unavailable, message: err.Error()}
	}
	if key.arn == "" {
		key.arn = id
		if !strings.HasPrefix(id, "arn:") {
			key.arn = arnOf("kms", "key/"+strings.TrimPrefix(id, "alias/"))
		}
	}
	extra := map[string][]string{}
	fields, _ := q.params["EncryptionContext"].(map[string]any)
	for name := range fields {
		extra["kms:EncryptionContext:"+name] = optional(text(fields, name))
		extra["kms:EncryptionContextKeys"] = append(extra["kms:EncryptionContextKeys"], name)
	}
	needs := []need{{action: q.action(), resource: key.arn, policy: key.policy, decisive: true, context: extra}}
	if alias := q.str("AliasName"); alias != "" {
		needs = append(needs, need{action: q.action(), resource: arnOf("kms", alias)})
	}
	return needs, nil
}

// keyOf is the key that both doubles write at the beginning of a ciphertext, or "".
func keyOf(ciphertext string) string {
	const uuid = 36
	blob, err := base64.StdEncoding.DecodeString(ciphertext)
	if err != nil || len(blob) < uuid {
		return ""
	}
	return string(blob[:uuid])
}
