package iam_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"countersign.dev/aws/internal/awstest/iam"
	"countersign.dev/iac"
	"countersign.dev/mesh"
)

// The policies that countersign generates for an example, evaluated: every role, every action that matters, on every
// resource of the example.

const (
	prefix = ":eu-central-1:" + account + ":"
	leaf   = "arn:aws:acm-pca:::template/EndEntityCertificate/V1"
	keyARN = "arn:aws:kms" + prefix + "key/11111111-2222-3333-4444-555555555555"
	caARN  = "arn:aws:acm-pca" + prefix + "certificate-authority/11111111-2222-3333-4444-555555555555"

	// auditor is a role that has nothing but the policy for those who look after the mesh.
	auditor = "auditor"
	// viaSecretsManager is how KMS sees what Secrets Manager asks for.
	viaSecretsManager = "secretsmanager.eu-central-1.amazonaws.com"
)

// world is everything that policies hang at.
type world struct {
	*testing.T
	spec    *mesh.Spec
	init    iac.Init
	roles   map[string][]*iam.Document // by name; empty: no policy
	trusts  map[string]*iam.Document
	secrets map[string]*iam.Document // by name
	key     *iam.Document
}

func secretARN(name string) string {
	return "arn:aws:secretsmanager" + prefix + "secret:" + name + "-AbCdEf"
}

func roleARN(name string) string { return "arn:aws:iam::" + account + ":role/" + name }

// newWorld generates, and reads what was generated.
func newWorld(t *testing.T, path string, way iac.Init) *world {
	t.Helper()
	spec, err := mesh.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	given := iac.Given{ARNs: map[string]string{"repository/all": "arn:aws:ecr" + prefix + "repository/all"}}
	for name := range spec.Stores {
		given.ARNs["key/"+name] = keyARN
	}
	for name := range spec.Authorities {
		given.ARNs["authority/"+name] = caARN
		given.ARNs[spec.BudgetSecret(name)] = secretARN(spec.BudgetSecret(name))
	}
	for _, w := range spec.Workloads() {
		for _, name := range secretsOf(t, spec, w.Name) {
			given.ARNs[name] = secretARN(name)
		}
		plan, err := spec.Compile(w.Name)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{plan.Delivery.Secret + ".rotation", plan.Delivery.Bundle + ".rotation"} {
			given.ARNs[name] = secretARN(name)
		}
	}
	text, err := iac.IAM(spec, iac.Options{Init: way}, given)
	if err != nil {
		t.Fatal(err)
	}
	var generated struct {
		Roles []struct {
			Role              string
			AssumedBy, Policy json.RawMessage
		}
		Policies []struct {
			Policy, AttachedTo string
			Document           json.RawMessage
		}
		Secrets []struct {
			Secret         string
			ResourcePolicy json.RawMessage
		}
		Keys []struct{ Policy json.RawMessage }
	}
	if err := json.Unmarshal(text, &generated); err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, spec: spec, init: way, roles: map[string][]*iam.Document{}, trusts: map[string]*iam.Document{}, secrets: map[string]*iam.Document{}}
	for _, r := range generated.Roles {
		w.trusts[r.Role] = w.document(iam.Trust, r.AssumedBy)
		if w.roles[r.Role] = nil; r.Policy != nil {
			w.roles[r.Role] = []*iam.Document{w.document(iam.Identity, r.Policy)}
		}
	}
	for _, p := range generated.Policies {
		role := cmp.Or(p.AttachedTo, auditor) // it is to be attached to a role of the team's own
		w.roles[role] = append(w.roles[role], w.document(iam.Identity, p.Document))
	}
	for _, s := range generated.Secrets {
		w.secrets[s.Secret] = w.document(iam.Resource, s.ResourcePolicy)
	}
	if len(generated.Keys) != 1 || len(w.secrets) == 0 || len(w.roles) == 0 {
		t.Fatalf("generated are %d keys, %d secrets and %d roles", len(generated.Keys), len(w.secrets), len(w.roles))
	}
	w.key = w.document(iam.Resource, generated.Keys[0].Policy)
	// Who may do everything as far as his own policy goes, and who may do nothing.
	w.roles["administrator"] = []*iam.Document{w.document(iam.Identity, []byte(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`))}
	w.roles["stranger"] = nil
	return w
}

func (w *world) document(kind iam.Kind, text []byte) *iam.Document {
	w.Helper()
	document, err := iam.Parse(kind, text)
	if err != nil {
		w.Fatalf("%v\n%s", err, text)
	}
	return document
}

// secretsOf are the secrets that the task of a workload has to read.
func secretsOf(t *testing.T, spec *mesh.Spec, workload string) []string {
	t.Helper()
	plan, err := spec.Compile(workload)
	if err != nil {
		t.Fatal(err)
	}
	shape, err := plan.Delivery.Shape()
	if err != nil {
		t.Fatal(err)
	}
	names := shape.Names(plan.Delivery.Secret)
	if plan.Delivery.Bundle != "" {
		names = append(names, plan.Delivery.Bundle)
	}
	return names
}

// may says what a role of the mesh has to be able to do. Everything else it must not.
func (w *world) may(role string, q question) bool {
	verb := q.action[strings.Index(q.action, ":")+1:]
	rotation := w.spec.Mesh + "-rotation"
	reader, execution := "", false
	for _, workload := range w.spec.Workloads() {
		for _, kind := range []string{"-task", "-execution"} {
			if role != w.spec.Mesh+"-"+workload.Name+kind {
				continue
			}
			execution = kind == "-execution"
			if execution == (w.init == iac.InitEnvironment) {
				reader = workload.Name
			}
			if execution && strings.HasPrefix(q.action, "logs:") {
				return verb != "GetLogEvents" && strings.HasSuffix(q.resource, "/"+workload.Name+":log-stream:x")
			}
		}
	}
	switch {
	case role == rotation:
		return w.rotationMay(verb, q)
	case role == auditor:
		return w.auditorMay(verb, q)
	case execution && (q.action == "ecr:GetAuthorizationToken" || q.action == "ecr:BatchGetImage" && strings.HasSuffix(q.resource, "/all")):
		return true
	case reader == "":
		return false
	}
	own := func(arn string) bool {
		return slices.ContainsFunc(secretsOf(w.T, w.spec, reader), func(name string) bool { return secretARN(name) == arn })
	}
	switch q.action {
	case "secretsmanager:GetSecretValue":
		return own(q.resource)
	case "kms:Decrypt":
		arns := q.context["kms:EncryptionContext:SecretARN"]
		return len(arns) == 1 && own(arns[0])
	}
	return false
}

func (w *world) rotationMay(verb string, q question) bool {
	acm := slices.ContainsFunc(slices.Collect(maps.Values(w.spec.Authorities)), func(a mesh.Authority) bool { return a.Type == mesh.AuthorityACM })
	switch service, _, _ := strings.Cut(q.action, ":"); service {
	case "secretsmanager":
		return slices.Contains([]string{"GetSecretValue", "PutSecretValue", "UpdateSecretVersionStage", "DescribeSecret", "ListSecretVersionIds"}, verb)
	case "kms":
		arns := q.context["kms:EncryptionContext:SecretARN"]
		return (verb == "Decrypt" || verb == "GenerateDataKey") && len(arns) == 1 && slices.Contains(w.secretARNs(), arns[0])
	case "acm-pca":
		return q.resource == caARN && (strings.HasPrefix(verb, "GetCertificate") || strings.HasPrefix(verb, "Describe") || verb == "IssueCertificate" && q.context["acm-pca:TemplateArn"][0] == leaf)
	case "ecs":
		here := verb == "UpdateService" || verb == "DescribeServices"
		return here && !strings.HasSuffix(q.resource, "/elsewhere") || w.listsTasks(verb, q)
	case "ec2":
		return q.context["lambda:SourceFunctionArn"] == nil
	case "acm":
		return acm
	}
	return false
}

// listsTasks tells whether it is to see which tasks of the mesh run.
func (w *world) listsTasks(verb string, q question) bool {
	return verb == "DescribeTasks" && strings.Contains(q.resource, "task/"+w.cluster()+"/") || verb == "ListTasks" && strings.HasSuffix(q.context["ecs:cluster"][0], "/"+w.cluster())
}

// auditorMay says what somebody has to be able to do who looks at everything but what secrets hold.
func (w *world) auditorMay(verb string, q question) bool {
	switch service, _, _ := strings.Cut(q.action, ":"); service {
	case "secretsmanager":
		return slices.Contains([]string{"DescribeSecret", "ListSecretVersionIds", "GetResourcePolicy"}, verb) && slices.Contains(w.secretARNs(), q.resource)
	case "kms":
		return slices.Contains([]string{"DescribeKey", "GetKeyPolicy", "GetKeyRotationStatus", "ListGrants"}, verb)
	case "acm-pca":
		return q.resource == caARN && (verb == "DescribeCertificateAuthority" || verb == "GetPolicy")
	case "ecs":
		inside := verb == "ListServices" && strings.HasSuffix(q.context["ecs:cluster"][0], "/"+w.cluster()) || verb == "DescribeServices" && strings.Contains(q.resource, "service/"+w.cluster()+"/")
		return inside || w.listsTasks(verb, q) || slices.Contains(looks, q.action)
	case "events", "cloudwatch":
		return strings.HasPrefix(verb, "Describe") || verb == "ListRuleNamesByTarget" || verb == "ListTargetsByRule"
	}
	return slices.Contains(looks, q.action)
}

// TestGeneratedPolicies asserts the whole matrix: each role does what it must, and nothing else on anything. An administrator,
// whose own policy allows everything, reads and writes no secret and uses no key.
func TestGeneratedPolicies(t *testing.T) {
	for _, path := range []string{"../../../../examples/payments-ecs/mesh.yaml", "../../../../iac/testdata/acm.yaml"} {
		for _, way := range []iac.Init{iac.InitTaskRole, iac.InitEnvironment} {
			t.Run(path[strings.LastIndex(path, "/")+1:]+" "+string(way), func(t *testing.T) {
				w := newWorld(t, path, way)
				cells, allowed := 0, 0
				for _, role := range slices.Sorted(maps.Keys(w.roles)) {
					for _, q := range w.everything() {
						want := w.may(role, q)
						if role == "administrator" {
							want = administered(q)
						}
						if got := w.asks(role, q); got != want {
							t.Errorf("%s may %s on %s with %v: %t, want %t", role, q.action, q.resource, q.context, got, want)
						}
						cells++
						if want && role != "administrator" && role != auditor {
							allowed++
						}
					}
				}
				if t.Logf("%d questions, of which %d are allowed to roles of the mesh", cells, allowed); allowed == 0 {
					t.Error("nothing is allowed to anybody")
				}
			})
		}
	}
}

// administered says what is left to administrators: everything but reading and writing secrets, and using their key.
func administered(q question) bool {
	if q.policy == nil {
		return true
	}
	if strings.HasPrefix(q.action, "kms:") {
		through := slices.Equal(q.context["kms:ViaService"], []string{viaSecretsManager})
		return slices.Contains([]string{"kms:PutKeyPolicy", "kms:GetKeyPolicy", "kms:GetKeyRotationStatus", "kms:ListGrants", "kms:ScheduleKeyDeletion", "kms:DescribeKey"}, q.action) || q.action == "kms:GenerateDataKey" && through
	}
	return !slices.Contains([]string{"GetSecretValue", "BatchGetSecretValue", "PutSecretValue", "UpdateSecret", "UpdateSecretVersionStage"}, strings.TrimPrefix(q.action, "secretsmanager:"))
}

// TestGeneratedMany asserts that the rotation of a mesh with so many workloads that its rights are more than one policy may do the same as
// always: all that it must, for all secrets, and nothing more; and so may the auditor.
func TestGeneratedMany(t *testing.T) {
	text := `
mesh: many
certificates: {authority: pca}
revocation: none
stores: {vault: {type: secretsmanager}}
authorities: {pca: {type: acmpca}}
services:
`
	for i := range 50 {
		text += fmt.Sprintf(`
  service-%d:
    ports: [{port: 8443, protocol: http, app: 8080}]
    proxy: {engine: nginx}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}", bundle: "{mesh}/bundle"}
    deploy: {type: ecs, cluster: payments}
`, i)
	}
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, path, iac.InitTaskRole)
	for role, least := range map[string]int{"many-rotation": 3, auditor: 2} {
		if len(w.roles[role]) < least {
			t.Errorf("%s has %d policies: nothing was divided", role, len(w.roles[role]))
		}
		for _, q := range w.everything() {
			if got, want := w.asks(role, q), w.may(role, q); got != want {
				t.Errorf("%s may %s on %s with %v: %t, want %t", role, q.action, q.resource, q.context, got, want)
			}
		}
	}
}

// TestGeneratedSample asserts that who deploys can have Secrets Manager try the key, and read no secret by that.
func TestGeneratedSample(t *testing.T) {
	w := newWorld(t, "../../../../examples/payments-ecs/mesh.yaml", iac.InitTaskRole)
	for version, want := range map[string]bool{"RequestToValidateKeyAccess": true, "AWSCURRENT": false} {
		q := question{action: "kms:Decrypt", resource: keyARN, policy: w.key, decisive: true, context: map[string][]string{
			"kms:ViaService": {viaSecretsManager}, "kms:EncryptionContext:SecretVersionId": {version},
		}}
		if got := w.asks("administrator", q); got != want {
			t.Errorf("decrypting %s: %t, want %t", version, got, want)
		}
	}
}

// TestGeneratedACM asserts what the rotation may ask of ACM: certificates of the declared names, from the one CA.
func TestGeneratedACM(t *testing.T) {
	w := newWorld(t, "../../../../iac/testdata/acm.yaml", iac.InitTaskRole)
	for name, test := range map[string]struct {
		ca    string
		names []string
		want  bool
	}{
		"declared":   {caARN, []string{"ledger.cards.example"}, true},
		"undeclared": {caARN, []string{"bank.example"}, false},
		"one of two": {caARN, []string{"ledger.cards.example", "bank.example"}, false},
		"another CA": {strings.Replace(caARN, "1111-", "9999-", 1), []string{"ledger.cards.example"}, false},
	} {
		q := question{action: "acm:RequestCertificate", resource: "arn:aws:acm" + prefix + "certificate/*", context: map[string][]string{"acm:CertificateAuthority": {test.ca}, "acm:DomainNames": test.names}}
		if got := w.asks("cards-rotation", q); got != test.want {
			t.Errorf("%s: %t, want %t", name, got, test.want)
		}
	}
	const uuid = "11111111-2222-3333-4444-555555555555"
	ours, others := []string{"spiffe://cards.internal/service/ledger"}, []string{"spiffe://bank.internal/service/ledger"}
	for role := range w.trusts {
		for _, action := range []string{"acm:ExportCertificate", "acm:RenewCertificate", "acm:DescribeCertificate"} {
			for whose, context := range map[string]map[string][]string{"ours": {"aws:ResourceTag/countersign:workload": ours}, "another's": {"aws:ResourceTag/countersign:workload": others}, "nobody's": nil} {
				want := role == "cards-rotation" && whose == "ours"
				if got := w.asks(role, question{action: action, resource: "arn:aws:acm" + prefix + "certificate/" + uuid, context: context}); got != want {
					t.Errorf("%s may %s for a certificate of %s: %t", role, action, whose, got)
				}
			}
		}
		// The tag is written with the request, and to nothing that is there already.
		for resource, own := range map[string]bool{"*": true, uuid: false} {
			q := question{action: "acm:AddTagsToCertificate", resource: "arn:aws:acm" + prefix + "certificate/" + resource, context: map[string][]string{"aws:RequestTag/countersign:workload": ours}}
			if got := w.asks(role, q); got != (own && role == "cards-rotation") {
				t.Errorf("%s may tag %s: %t", role, resource, got)
			}
			q.context = map[string][]string{"aws:RequestTag/countersign:workload": others}
			if w.asks(role, q) {
				t.Errorf("%s may tag %s as another mesh's", role, resource)
			}
		}
	}
}

// TestGeneratedTrust asserts who takes the roles: ECS for tasks of this account, and Lambda.
func TestGeneratedTrust(t *testing.T) {
	w := newWorld(t, "../../../../examples/payments-ecs/mesh.yaml", iac.InitTaskRole)
	for role, trust := range w.trusts {
		for _, service := range []string{"ecs-tasks.amazonaws.com", "lambda.amazonaws.com", "ec2.amazonaws.com"} {
			for _, from := range []string{account, "999999999999"} {
				want := service == "lambda.amazonaws.com" && role == "payments-rotation" || service == "ecs-tasks.amazonaws.com" && role != "payments-rotation" && from == account
				if got := iam.Trusts(trust, iam.Caller{Service: service}, map[string][]string{"aws:SourceAccount": {from}}); got != want {
					t.Errorf("%s of %s takes %s: %t, want %t", service, from, role, got, want)
				}
			}
		}
		if iam.Trusts(trust, iam.Caller{Account: account, Role: roleARN("administrator")}, nil) {
			t.Errorf("an administrator takes %s", role)
		}
	}
	if len(w.trusts) == 0 {
		t.Error("no role is there")
	}
}
