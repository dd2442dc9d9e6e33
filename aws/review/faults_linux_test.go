//go:build linux

package review_test

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	ecstypes "github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"countersign.dev/aws/review"
	"countersign.dev/mesh"
)

// fault is what is planted, and what has to be found of it: "severity code", and a part of where or what it is.
type fault struct {
	name   string
	plant  func(*world)
	look   func(*review.Config)
	mend   func(*world)
	want   []string
	saying []string
	old    bool // what old revisions of task definitions have is what is looked for
}

// together are faults that are planted at once: each look costs. At most one of them changes what is answered.
func together(all ...fault) fault {
	one := fault{
		plant: func(w *world) {
			for _, f := range all {
				if f.plant != nil {
					f.plant(w)
				}
			}
		},
		mend: func(w *world) {
			for _, f := range all {
				if f.mend != nil {
					f.mend(w)
				}
			}
		},
		look: func(c *review.Config) {
			for _, f := range all {
				if f.look != nil {
					f.look(c)
				}
			}
		},
	}
	for _, f := range all {
		one.name += f.name + "; "
		one.want, one.saying = append(one.want, f.want...), append(one.saying, f.saying...)
	}
	return one
}

const accountARN = "arn:aws:iam::123456789012:"

// try fails the test when something could not be planted.
func try[T any](w *world) func(T, error) T {
	return func(value T, err error) T {
		w.Helper()
		if err != nil {
			w.Fatal(err)
		}
		return value
	}
}

func (w *world) secrets() *secretsmanager.Client {
	return secretsmanager.NewFromConfig(w.cloud.Admin())
}

// attach puts a resource policy at the secret of checkout: a deny of actions to all but some roles, and further statements.
func (w *world) attach(statements ...map[string]any) {
	w.Helper()
	try[*secretsmanager.PutResourcePolicyOutput](w)(w.secrets().PutResourcePolicy(w.Context(), &secretsmanager.PutResourcePolicyInput{
		SecretId: aws.String("payments/checkout"), ResourcePolicy: aws.String(string(document(statements...))), BlockPublicPolicy: aws.Bool(false),
	}))
}

// denied denies actions to all but some roles of the mesh.
func denied(actions []string, roles ...string) map[string]any {
	var arns []string
	for _, role := range roles {
		arns = append(arns, accountARN+"role/payments-"+role)
	}
	return map[string]any{"Effect": "Deny", "Principal": "*", "Action": actions, "Resource": "*", "Condition": map[string]any{"ArnNotEquals": map[string]any{"aws:PrincipalArn": arns}}}
}

var (
	reads  = []string{"secretsmanager:GetSecretValue", "secretsmanager:BatchGetSecretValue"}
	writes = []string{"secretsmanager:PutSecretValue", "secretsmanager:UpdateSecret", "secretsmanager:UpdateSecretVersionStage"}
)

// original puts the policy back that the template has.
func (w *world) original() {
	w.attach(denied(reads, "rotation", "checkout-task"), denied(writes, "rotation"))
}

// grant gives a role one more policy, and ungrant takes it.
func (w *world) grant(role string, statement map[string]any) {
	w.Helper()
	try[*iam.PutRolePolicyOutput](w)(iam.NewFromConfig(w.cloud.Admin()).PutRolePolicy(w.Context(), &iam.PutRolePolicyInput{
		RoleName: &role, PolicyName: aws.String("planted"), PolicyDocument: aws.String(string(document(statement))),
	}))
}

func (w *world) ungrant(role string) {
	w.Helper()
	try[*iam.DeleteRolePolicyOutput](w)(iam.NewFromConfig(w.cloud.Admin()).DeleteRolePolicy(w.Context(), &iam.DeleteRolePolicyInput{RoleName: &role, PolicyName: aws.String("planted")}))
}

// trust lets somebody take a role, for the accounts that fit a pattern, if one is given.
func (w *world) trust(role string, principal map[string]any, accounts string) {
	w.Helper()
	statement := map[string]any{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": principal}
	if accounts != "" {
		statement["Condition"] = map[string]any{"StringLike": map[string]any{"aws:SourceAccount": accounts}}
	}
	text, err := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": []any{statement}})
	if err != nil {
		w.Fatal(err)
	}
	try[*iam.UpdateAssumeRolePolicyOutput](w)(iam.NewFromConfig(w.cloud.Admin()).UpdateAssumeRolePolicy(w.Context(), &iam.UpdateAssumeRolePolicyInput{RoleName: &role, PolicyDocument: aws.String(string(text))}))
}

func (w *world) secretARN(name string) string {
	w.Helper()
	return aws.ToString(try[*secretsmanager.DescribeSecretOutput](w)(w.secrets().DescribeSecret(w.Context(), &secretsmanager.DescribeSecretInput{SecretId: &name})).ARN)
}

// faultsOfSecrets are about secrets and who can read them.
func faultsOfSecrets() []fault {
	restore := func(w *world) { w.original() }
	return []fault{
		{
			name: "another service's role",
			plant: func(w *world) {
				w.attach(denied(reads, "rotation", "checkout-task", "ledger-task"), denied(writes, "rotation"))
				w.grant("payments-ledger-task", map[string]any{"Effect": "Allow", "Action": "secretsmanager:GetSecretValue", "Resource": w.secretARN("payments/checkout")})
			},
			mend: func(w *world) { w.ungrant("payments-ledger-task"); w.original() },
			want: []string{"error can_read", "error excess_right"}, saying: []string{"role/payments-ledger-task can read its value", "role/payments-ledger-task: the policy planted allows secretsmanager:GetSecretValue"},
		},
		{
			name: "no resource policy",
			plant: func(w *world) {
				try[*secretsmanager.DeleteResourcePolicyOutput](w)(w.secrets().DeleteResourcePolicy(w.Context(), &secretsmanager.DeleteResourcePolicyInput{SecretId: aws.String("payments/checkout")}))
			},
			mend: restore, want: []string{"error can_read", "error can_write", "error no_resource_policy"}, saying: []string{"role/administrator can read its value"},
		},
		{
			name:  "who may write",
			plant: func(w *world) { w.attach(denied(reads, "rotation", "checkout-task")) },
			mend:  restore, want: []string{"error can_write"}, saying: []string{"role/administrator can write its value"},
		},
		{
			name: "another account",
			plant: func(w *world) {
				w.attach(denied(reads, "rotation", "checkout-task"), denied(writes, "rotation"), map[string]any{"Effect": "Allow", "Principal": map[string]any{"AWS": "999999999999"}, "Action": reads, "Resource": "*"})
			},
			mend: restore, want: []string{"error policy_grants"}, saying: []string{"AWS 999999999999"},
		},
		{
			name: "a condition that is not understood",
			plant: func(w *world) {
				vague := denied(reads, "rotation", "checkout-task")
				vague["Condition"].(map[string]any)["Bool"] = map[string]any{"aws:ViaAWSService": "false"}
				w.attach(vague, denied(writes, "rotation"))
			},
			mend: restore, want: []string{"unknown undecided"}, saying: []string{"role/administrator can read its value hangs on"},
		},
		{
			name: "a wildcard",
			plant: func(w *world) {
				w.grant("payments-checkout-task", map[string]any{"Sid": "All", "Effect": "Allow", "Action": "secretsmanager:GetSecretValue", "Resource": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/*"})
			},
			mend: func(w *world) { w.ungrant("payments-checkout-task") },
			want: []string{"error wildcard"}, saying: []string{"the policy planted, statement All, allows secretsmanager:GetSecretValue"},
		},
		{
			name:  "whom a role trusts",
			plant: func(w *world) { w.trust("payments-ledger-task", map[string]any{"AWS": accountARN + "root"}, "") },
			mend: func(w *world) {
				w.trust("payments-ledger-task", map[string]any{"Service": "ecs-tasks.amazonaws.com"}, "123456789012")
			},
			want: []string{"error role_trusts"}, saying: []string{"AWS " + accountARN + "root"},
		},
		{
			name: "a role that is not there",
			look: func(c *review.Config) { c.RotationRole = "elsewhere" },
			want: append(slices.Repeat([]string{"error can_read", "error can_write"}, 11), "unknown undecided", "unknown undecided", "warning can_decrypt"), saying: []string{"role/payments-rotation can read its value", "role/elsewhere: this role of the mesh is not among"},
		},
		{
			name: "to be deleted",
			plant: func(w *world) {
				try[*secretsmanager.DeleteSecretOutput](w)(w.secrets().DeleteSecret(w.Context(), &secretsmanager.DeleteSecretInput{SecretId: aws.String("payments/ledger"), RecoveryWindowInDays: aws.Int64(7)}))
			},
			mend: func(w *world) {
				try[*secretsmanager.RestoreSecretOutput](w)(w.secrets().RestoreSecret(w.Context(), &secretsmanager.RestoreSecretInput{SecretId: aws.String("payments/ledger")}))
			},
			want: []string{"error secret_missing"}, saying: []string{"is to be deleted on"},
		},
		{
			name: "overdue", look: func(c *review.Config) { c.Now = func() time.Time { return time.Now().Add(140 * time.Hour) } },
			want: slices.Repeat([]string{"error rotation_overdue"}, 4), saying: []string{"was to be replaced after 120h0m0s"},
		},
	}
}

// faultsOfKeys are about the key.
func faultsOfKeys() []fault {
	key := func(w *world) string {
		found, ok := w.stack.Resource("VaultKey")
		if !ok {
			w.Fatal("the stack has no VaultKey")
		}
		return found.Attributes["Arn"]
	}
	client := func(w *world) *kms.Client { return kms.NewFromConfig(w.cloud.Admin()) }
	policy := ""
	return []fault{
		{
			name: "disabled",
			plant: func(w *world) {
				try[*kms.DisableKeyOutput](w)(client(w).DisableKey(w.Context(), &kms.DisableKeyInput{KeyId: aws.String(key(w))}))
			},
			mend: func(w *world) {
				try[*kms.EnableKeyOutput](w)(client(w).EnableKey(w.Context(), &kms.EnableKeyInput{KeyId: aws.String(key(w))}))
			},
			want: []string{"error key_state"}, saying: []string{"it is Disabled"},
		},
		{
			name: "pending deletion",
			plant: func(w *world) {
				try[*kms.ScheduleKeyDeletionOutput](w)(client(w).ScheduleKeyDeletion(w.Context(), &kms.ScheduleKeyDeletionInput{KeyId: aws.String(key(w)), PendingWindowInDays: aws.Int32(7)}))
			},
			mend: func(w *world) {
				try[*kms.CancelKeyDeletionOutput](w)(client(w).CancelKeyDeletion(w.Context(), &kms.CancelKeyDeletionInput{KeyId: aws.String(key(w))}))
				try[*kms.EnableKeyOutput](w)(client(w).EnableKey(w.Context(), &kms.EnableKeyInput{KeyId: aws.String(key(w))}))
			},
			want: []string{"error key_state"}, saying: []string{"it is PendingDeletion"},
		},
		{
			name: "open to the account",
			plant: func(w *world) {
				policy = aws.ToString(try[*kms.GetKeyPolicyOutput](w)(client(w).GetKeyPolicy(w.Context(), &kms.GetKeyPolicyInput{KeyId: aws.String(key(w)), PolicyName: aws.String("default")})).Policy)
				w.putKeyPolicy(key(w), string(document(map[string]any{"Effect": "Allow", "Principal": map[string]any{"AWS": accountARN + "root"}, "Action": "kms:*", "Resource": "*"})))
			},
			mend: func(w *world) { w.putKeyPolicy(key(w), policy) },
			want: []string{"warning can_decrypt"}, saying: []string{"role/administrator could have secrets decrypted"},
		},
		{
			name: "the account's own",
			plant: func(w *world) {
				try[*secretsmanager.UpdateSecretOutput](w)(w.secrets().UpdateSecret(w.Context(), &secretsmanager.UpdateSecretInput{SecretId: aws.String("payments/bundle"), KmsKeyId: aws.String("alias/aws/secretsmanager")}))
			},
			mend: func(w *world) {
				try[*secretsmanager.UpdateSecretOutput](w)(w.secrets().UpdateSecret(w.Context(), &secretsmanager.UpdateSecretInput{SecretId: aws.String("payments/bundle"), KmsKeyId: aws.String(key(w))}))
			},
			want: []string{"warning default_key"}, saying: []string{"secret:payments/bundle-"},
		},
	}
}

func (w *world) putKeyPolicy(key, policy string) {
	w.Helper()
	try[*kms.PutKeyPolicyOutput](w)(kms.NewFromConfig(w.cloud.Admin()).PutKeyPolicy(w.Context(), &kms.PutKeyPolicyInput{KeyId: &key, PolicyName: aws.String("default"), Policy: &policy}))
}

// define registers a changed task definition of checkout, and has the service take it.
func (w *world) define(change func(d *ecs.RegisterTaskDefinitionInput, container map[string]*ecstypes.ContainerDefinition)) {
	w.Helper()
	client := ecs.NewFromConfig(w.cloud.Admin())
	d := try[*ecs.DescribeTaskDefinitionOutput](w)(client.DescribeTaskDefinition(w.Context(), &ecs.DescribeTaskDefinitionInput{TaskDefinition: aws.String("payments-checkout:1")})).TaskDefinition
	in := &ecs.RegisterTaskDefinitionInput{
		Family: d.Family, ContainerDefinitions: d.ContainerDefinitions, Volumes: d.Volumes, Cpu: d.Cpu, Memory: d.Memory, NetworkMode: d.NetworkMode,
		ExecutionRoleArn: d.ExecutionRoleArn, TaskRoleArn: d.TaskRoleArn, RequiresCompatibilities: d.RequiresCompatibilities, RuntimePlatform: d.RuntimePlatform, PidMode: d.PidMode,
	}
	containers := map[string]*ecstypes.ContainerDefinition{}
	for i := range in.ContainerDefinitions {
		containers[*in.ContainerDefinitions[i].Name] = &in.ContainerDefinitions[i]
	}
	change(in, containers)
	made := try[*ecs.RegisterTaskDefinitionOutput](w)(client.RegisterTaskDefinition(w.Context(), in)).TaskDefinition.TaskDefinitionArn
	w.update(func(in *ecs.UpdateServiceInput) { in.TaskDefinition = made })
}

func (w *world) update(change func(in *ecs.UpdateServiceInput)) {
	w.Helper()
	in := &ecs.UpdateServiceInput{Cluster: aws.String("payments"), Service: aws.String("checkout")}
	change(in)
	try[*ecs.UpdateServiceOutput](w)(ecs.NewFromConfig(w.cloud.Admin()).UpdateService(w.Context(), in))
}

// variable gives a container one more variable.
func variable(c *ecstypes.ContainerDefinition, name, value string) {
	c.Environment = append(c.Environment, ecstypes.KeyValuePair{Name: &name, Value: &value})
}

// notAKey is in the form of one; there is nothing in it.
const notAKey = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"

// faultsOfTasks are about task definitions and services. What an old revision says stays a finding.
func faultsOfTasks() []fault {
	return []fault{
		{name: "another role of the mesh", plant: func(w *world) {
			w.define(func(d *ecs.RegisterTaskDefinitionInput, _ map[string]*ecstypes.ContainerDefinition) {
				d.TaskRoleArn = aws.String(accountARN + "role/payments-ledger-task")
			})
		}, want: []string{"error can_read", "error can_read", "error cannot_read", "error cannot_read", "error role_shared", "warning can_decrypt"}, saying: []string{"checkout, ledger", "role/payments-checkout-task can read", "it is to be read by " + accountARN + "role/payments-ledger-task, whom policies do not let"}},
		{name: "an order that is none, and what containers say openly", plant: func(w *world) {
			w.define(func(_ *ecs.RegisterTaskDefinitionInput, all map[string]*ecstypes.ContainerDefinition) {
				all["proxy"].DependsOn[0].Condition = ecstypes.ContainerConditionComplete
				all["proxy"].MountPoints[0].ReadOnly = aws.Bool(false)
				all["proxy"].Secrets = []ecstypes.Secret{{Name: aws.String("TLS"), ValueFrom: aws.String("arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/checkout-AbCdEf:key::")}}
				all["app"].Command = append(all["app"].Command, "--key", notAKey)
				all["app"].DockerLabels = map[string]string{"k": notAKey}
				variable(all["app"], "CA", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----")
				variable(all["app"], "KEY_PASSPHRASE", "open sesame")
				variable(all["app"], "KEY", notAKey)
			})
		}, want: []string{
			"error key_in_definition", "error key_in_definition", "error key_in_definition", "error mount_writable", "error not_success", "error passphrase_in_definition",
			"error secret_in_environment", "warning certificate_in_definition",
		}, saying: []string{
			"the container proxy needs what init brings, and starts on COMPLETE", "the container proxy mounts the certificates at /tls", "the container proxy lives as long as the task",
			"private key in its command", "private key in the label k", "task-definition/payments-checkout:3: the container app has a private key in the variable KEY", "the variable CA", "the container app has a passphrase in the variable KEY_PASSPHRASE",
		}},
		{name: "no order", plant: func(w *world) {
			w.define(func(_ *ecs.RegisterTaskDefinitionInput, all map[string]*ecstypes.ContainerDefinition) {
				all["proxy"].DependsOn = nil
			})
		}, want: []string{"error not_success"}, saying: []string{"without waiting for it"}},
		{name: "no init", plant: func(w *world) {
			w.define(func(_ *ecs.RegisterTaskDefinitionInput, all map[string]*ecstypes.ContainerDefinition) {
				all["init"].Command = []string{"version"}
			})
		}, want: []string{"error init_missing"}, saying: []string{"no container runs"}},
		{name: "a key in an old revision", plant: func(w *world) {
			w.update(func(in *ecs.UpdateServiceInput) { in.TaskDefinition = aws.String("payments-checkout:1") })
		}, want: []string{"error key_in_definition", "error key_in_definition", "error key_in_definition", "error passphrase_in_definition", "warning certificate_in_definition"}, saying: []string{"task-definition/payments-checkout:3: the old revision's container app has a private key in the variable KEY"}, old: true},
		{name: "a key in an inactive revision", plant: func(w *world) {
			w.define(func(_ *ecs.RegisterTaskDefinitionInput, all map[string]*ecstypes.ContainerDefinition) {
				variable(all["app"], "OTHER", notAKey)
			})
			w.update(func(in *ecs.UpdateServiceInput) { in.TaskDefinition = aws.String("payments-checkout:1") })
			try[*ecs.DeregisterTaskDefinitionOutput](w)(ecs.NewFromConfig(w.cloud.Admin()).DeregisterTaskDefinition(w.Context(), &ecs.DeregisterTaskDefinitionInput{TaskDefinition: aws.String("payments-checkout:6")}))
		}, want: []string{"error key_in_definition"}, saying: []string{"payments-checkout:6", "the variable OTHER"}, old: true},
		{
			name: "a shell", plant: func(w *world) {
				w.update(func(in *ecs.UpdateServiceInput) { in.EnableExecuteCommand = aws.Bool(true) })
			},
			mend: func(w *world) {
				w.update(func(in *ecs.UpdateServiceInput) { in.EnableExecuteCommand = aws.Bool(false) })
			},
			want: []string{"warning shell"}, saying: []string{"ECS Exec is enabled"},
		},
		{name: "no service", look: func(c *review.Config) {
			c.Spec = changed("deploy: *ecs\n    run:\n      command: [countersign, example, run, ledger,", "deploy: {type: ecs, cluster: payments, service: elsewhere}\n    run:\n      command: [countersign, example, run, ledger,")
		}, want: []string{"error excess_right", "error service_missing", "error service_undeclared"}, saying: []string{"service/payments/elsewhere", "service/payments/ledger: it is a service that the specification does not name", "allows ecs:DescribeServices (on more than templates say), ecs:UpdateService"}},
		{name: "no secret", look: func(c *review.Config) { c.Spec = changed(`"{mesh}/bundle"`, `"{mesh}/elsewhere"`) }, want: append(slices.Repeat([]string{"error init_differs", "error excess_right"}, 4), "error excess_right", "error secret_missing", "error secret_missing"), saying: []string{"payments/elsewhere"}},
	}
}

// changed is the example's specification with something else in it.
func changed(old, with string) *mesh.Spec {
	text, err := os.ReadFile("../../examples/payments-ecs/mesh.yaml")
	if err != nil {
		panic(err)
	}
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Content: strings.ReplaceAll(string(text), old, with)}})
	if err != nil {
		panic(err)
	}
	return spec
}

// TestFaults plants each fault and looks: what is found beside what was found before is the fault, and nothing else. The example as it is
// deployed has none; what the policy on the page allows is enough to see that, and no value of a secret is asked for.
func TestFaults(t *testing.T) {
	w := newWorld(t)
	w.as("auditor")
	before := w.look(nil)
	if len(before.Findings) > 0 {
		t.Fatalf("the example as it is:\n%s", findings(before))
	}
	for what, n := range map[string]int{"services": 4, "task definitions": 4, "secrets": 11, "keys": 1, "roles and users": 11, "alarms": 14, "rules": 1, "target groups": 6, "private CAs": 1} {
		if before.Looked[what] != n {
			t.Errorf("looked at %d %s, want %d", before.Looked[what], what, n)
		}
	}
	w.unreadable()
	w.as("auditor")
	seen := map[review.Code]bool{review.Unreadable: true}
	for _, f := range slices.Concat(faultsOfSecrets(), faultsOfPolicies(), faultsOfKeys(), faultsOfTasks(), faultsOfRoles(), faultsOfMore(), faultsOfOtherKeys(), faultsOfAuthorities(),
		faultsOfServices(), faultsOfDefinitions(), faultsOfWatching(), faultsOfWhen(), faultsOfBalancers(), faultsOfNeighbours(), faultsOfStarts(), faultsOfContainers()) {
		w.plant(f, seen)
	}
	for _, code := range codes(t) {
		if !seen[code] {
			t.Errorf("%s: no fault is planted for it", code)
		}
	}
	asked := 0
	for _, call := range w.cloud.Calls() {
		if call.Role != "auditor" {
			continue
		}
		asked++
		if !call.Allowed || strings.HasSuffix(call.Action, "GetSecretValue") {
			t.Errorf("the check asked for %s on %s (allowed: %t)", call.Action, call.Resource, call.Allowed)
		}
	}
	if asked == 0 {
		t.Error("the check asked for nothing")
	}
}

// plant plants one fault and looks for it.
func (w *world) plant(f fault, seen map[review.Code]bool) {
	w.Helper()
	if f.plant != nil {
		f.plant(w)
	}
	report := w.look(f.look)
	if f.mend != nil {
		f.mend(w)
	}
	report.Findings = slices.DeleteFunc(report.Findings, func(found review.Finding) bool {
		return slices.Contains(w.known, found) || !f.old && strings.HasPrefix(found.Message, "the old revision's")
	})
	if f.mend == nil && f.look == nil {
		w.known = append(w.known, report.Findings...)
	}
	var got []string
	for _, found := range report.Findings {
		seen[found.Code] = true
		got = append(got, fmt.Sprintf("%s %s", found.Severity, found.Code))
		if found.Action == "" {
			w.Errorf("%s: it does not say what to do", found.Code)
		}
	}
	want := slices.Clone(f.want)
	slices.Sort(got)
	slices.Sort(want)
	text := findings(report)
	if !slices.Equal(got, want) {
		w.Errorf("%s: %q, want %q:\n%s", f.name, got, want, text)
	}
	for _, saying := range f.saying {
		if !strings.Contains(text, saying) {
			w.Errorf("%s: it does not say %q:\n%s", f.name, saying, text)
		}
	}
}
