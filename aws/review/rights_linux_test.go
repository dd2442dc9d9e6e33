//go:build linux

package review_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	pcatypes "github.com/aws/aws-sdk-go-v2/service/acmpca/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	kmstypes "github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"countersign.dev/aws/review"
	"countersign.dev/iac"
)

// part is what a resource of the stack is called.
func (w *world) part(id string) string {
	w.Helper()
	found, ok := w.stack.Resource(id)
	if !ok {
		w.Fatal("the stack has no " + id)
	}
	return found.Physical
}

func (w *world) key() string {
	found, _ := w.stack.Resource("VaultKey")
	return found.Attributes["Arn"]
}

func (w *world) keys() *kms.Client { return kms.NewFromConfig(w.cloud.Admin()) }

func (w *world) authorities() *acmpca.Client { return acmpca.NewFromConfig(w.cloud.Admin()) }

// faultsOfRoles are rights of the mesh's own roles that none of them needs, and certificates for others.
func faultsOfRoles() []fault {
	given := func(name, role string, statement func(w *world) map[string]any, code, saying string) fault {
		return fault{
			name: name, plant: func(w *world) { w.grant(role, statement(w)) }, mend: func(w *world) { w.ungrant(role) }, want: []string{"error " + code}, saying: []string{saying},
		}
	}
	may := func(resource string, actions ...string) func(*world) map[string]any {
		return func(*world) map[string]any {
			return map[string]any{"Effect": "Allow", "Action": actions, "Resource": resource}
		}
	}
	issue := func(w *world) map[string]any { return may(w.part("PcaAuthority"), "acm-pca:IssueCertificate")(w) }
	return []fault{
		together(
			fault{
				name: "a service for any account", plant: func(w *world) {
					w.trust("payments-ledger-task", map[string]any{"Service": "ecs-tasks.amazonaws.com"}, "")
					w.trust("payments-terminal-task", map[string]any{"Service": "ecs-tasks.amazonaws.com"}, "*")
				},
				mend: func(w *world) {
					w.trust("payments-ledger-task", map[string]any{"Service": "ecs-tasks.amazonaws.com"}, "123456789012")
					w.trust("payments-terminal-task", map[string]any{"Service": "ecs-tasks.amazonaws.com"}, "123456789012")
				},
				want: []string{"warning trust_unbound", "warning trust_unbound"}, saying: []string{"role/payments-terminal-task: its trust policy does not say", "role/payments-ledger-task: its trust policy does not say for which account ecs-tasks.amazonaws.com takes the role"},
			},
			given("a role that passes another", "payments-checkout-task", may(accountARN+"role/payments-ledger-task", "iam:PassRole"), "excess_right", "role/payments-checkout-task: the policy planted allows iam:PassRole"),
			given("a role that gets into tasks", "payments-ledger-execution", may("arn:aws:ecs:eu-central-1:123456789012:task/payments/any", "ecs:ExecuteCommand"), "excess_right", "allows ecs:ExecuteCommand"),
			given("a role that starts the rotation", "payments-terminal-task", may("arn:aws:lambda:eu-central-1:123456789012:function:payments-rotation", "lambda:InvokeFunction"), "excess_right", "allows lambda:InvokeFunction"),
			given("a role that starts any function", "payments-checkout-execution", may("arn:aws:lambda:eu-central-1:123456789012:function:*", "lambda:InvokeFunction"), "excess_right", "role/payments-checkout-execution: the policy planted allows lambda:InvokeFunction"),
			given("a rotation that gives rights away", "payments-rotation", func(w *world) map[string]any { return may(w.key(), "kms:CreateGrant")(w) }, "excess_right", "role/payments-rotation: the policy planted allows kms:CreateGrant"),
			given("certificates for a stranger, by one template of CAs alone", "nobody", func(w *world) map[string]any {
				statement := issue(w)
				statement["Condition"] = map[string]any{"StringEquals": map[string]any{"acm-pca:TemplateArn": "arn:aws:acm-pca:::template/SubordinateCACertificate_PathLen3/V1"}}
				return statement
			}, "can_issue", "role/nobody"),
			fault{
				name: "and for a task", plant: func(w *world) { w.grant("payments-paygate-task", issue(w)) }, mend: func(w *world) { w.ungrant("payments-paygate-task") },
				want: []string{"error excess_right"}, saying: []string{"role/payments-paygate-task can have it make certificates, in the name of any workload"},
			},
		),
		together(
			given("certificates of CAs", "payments-rotation", issue, "can_issue", "role/payments-rotation can have it make certificates by other templates"),
			fault{want: []string{"error excess_right"}, saying: []string{"role/payments-rotation: the policy planted allows acm-pca:IssueCertificate (on more than templates say)"}},
			fault{
				name: "tasks that are kept from their secrets", plant: func(w *world) {
					w.grant("payments-paygate-task", map[string]any{"Effect": "Deny", "Action": "secretsmanager:GetSecretValue", "Resource": w.secretARN("payments/paygate")})
					w.grant("payments-terminal-task", map[string]any{"Effect": "Deny", "Action": "kms:Decrypt", "Resource": w.key()})
				},
				mend: func(w *world) { w.ungrant("payments-paygate-task"); w.ungrant("payments-terminal-task") },
				want: []string{"error cannot_read", "error cannot_read", "error cannot_read"}, saying: []string{"it is to be read by " + accountARN + "role/payments-paygate-task, whom policies do not let", "it is to be read by " + accountARN + "role/payments-terminal-task, for whom it cannot be decrypted"},
			},
			fault{
				name: "certificates under a condition", plant: func(w *world) {
					statement := issue(w)
					statement["Condition"] = map[string]any{"Bool": map[string]any{"aws:ViaAWSService": "true"}}
					w.grant("nobody", statement)
				},
				mend: func(w *world) { w.ungrant("nobody") }, want: []string{"unknown undecided"}, saying: []string{"whether " + accountARN + "role/nobody can have it make certificates"},
			},
		),
	}
}

// faultsOfMore are rights of the mesh's roles that templates do not give them, in words without a wildcard on what is known to be grave.
func faultsOfMore() []fault {
	more := func(role string, statement map[string]any, severity, saying string) fault {
		role = "payments-" + role
		return fault{
			name: saying, plant: func(w *world) { w.grant(role, statement) }, mend: func(w *world) { w.ungrant(role) },
			want: []string{severity + " excess_right"}, saying: []string{role + ": the policy planted allows " + saying},
		}
	}
	original := ""
	return []fault{
		together(
			more("checkout-task", allowing("Action", "s3:GetObject"), "warning", "s3:GetObject"),
			more("checkout-execution", allowing("Action", "ssm:*"), "error", "ssm:*"),
			more("ledger-task", allowing("Action", "ssmmessages:*"), "error", "ssmmessages:*"),
			more("ledger-execution", allowing("Action", "ec2:TerminateInstances"), "warning", "ec2:TerminateInstances"),
			more("terminal-task", allowing("Action", "events:DisableRule"), "warning", "events:DisableRule"),
			more("terminal-execution", map[string]any{"Effect": "Allow", "Action": "lambda:UpdateFunctionCode", "Resource": "arn:aws:lambda:eu-central-1:123456789012:function:elsewhere"}, "error", "lambda:UpdateFunctionCode"),
			more("paygate-task", map[string]any{"Effect": "Allow", "Action": "iam:PassRole", "Resource": accountARN + "role/elsewhere"}, "error", "iam:PassRole"),
			more("paygate-execution", allowing("NotAction", "acm-pca:*", "ecs:*", "iam:*", "kms:*", "lambda:*", "secretsmanager:*", "sts:*"), "error", "all actions but acm-pca:*"),
			more("rotation", map[string]any{"Effect": "Allow", "Action": "secretsmanager:GetSecretValue", "Resource": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:elsewhere-AbCdEf"}, "error",
				"secretsmanager:GetSecretValue (on more than templates say)"),
		),
		{
			name: "a refusal that is not there", plant: func(w *world) {
				w.alter("iam:GetAccountAuthorizationDetails", "", func(answer string) string {
					return strings.ReplaceAll(answer, "lambda%3ASourceFunctionArn", "lambda%3AOther")
				})
			},
			mend: (*world).straight, want: []string{"error excess_right"}, saying: []string{"role/payments-rotation: its policies do not refuse ec2:AssignPrivateIpAddresses"},
		},
		{
			name: "to encrypt anew is to decrypt", plant: func(w *world) {
				original = aws.ToString(try[*kms.GetKeyPolicyOutput](w)(w.keys().GetKeyPolicy(w.Context(), &kms.GetKeyPolicyInput{KeyId: aws.String(w.key()), PolicyName: aws.String("default")})).Policy)
				w.putKeyPolicy(w.key(), strings.Replace(original, `"kms:GetKeyPolicy"`, `"kms:GetKeyPolicy","kms:ReEncrypt*"`, 1))
			},
			mend: func(w *world) { w.putKeyPolicy(w.key(), original) }, want: []string{"warning can_decrypt"}, saying: []string{"role/administrator could have secrets decrypted"},
		},
		{
			name: "what templates do not do", look: func(c *review.Config) {
				c.Rights = func(bool, map[string]string) (map[string]string, error) { return nil, iac.ErrRefused }
			},
			want: []string{"warning undecided"}, saying: []string{"whether its roles may more than templates give them was not looked at"},
		},
	}
}

// faultsOfOtherKeys are grants, strangers in policies, and keys that are not those of the store.
func faultsOfOtherKeys() []fault {
	grant := func(name, whom string, severity string) fault {
		var id *string
		return fault{
			name: name, plant: func(w *world) {
				id = try[*kms.CreateGrantOutput](w)(w.keys().CreateGrant(w.Context(), &kms.CreateGrantInput{
					KeyId: aws.String(w.key()), GranteePrincipal: &whom, Operations: []kmstypes.GrantOperation{kmstypes.GrantOperationDecrypt, kmstypes.GrantOperationDescribeKey},
				})).GrantId
			},
			mend: func(w *world) {
				try[*kms.RevokeGrantOutput](w)(w.keys().RevokeGrant(w.Context(), &kms.RevokeGrantInput{KeyId: aws.String(w.key()), GrantId: id}))
			},
			want: []string{severity + " key_granted"}, saying: []string{"lets " + whom},
		}
	}
	original := ""
	other := ""
	secret := func(w *world, key string) {
		try[*secretsmanager.UpdateSecretOutput](w)(w.secrets().UpdateSecret(w.Context(), &secretsmanager.UpdateSecretInput{SecretId: aws.String("payments/bundle"), KmsKeyId: &key}))
	}
	return []fault{
		together(grant("a grant", accountARN+"role/nobody", "error"), grant("a grant to one's own", accountARN+"role/payments-checkout-task", "warning"), fault{
			name: "a key that is never replaced", plant: func(w *world) {
				try[*kms.DisableKeyRotationOutput](w)(w.keys().DisableKeyRotation(w.Context(), &kms.DisableKeyRotationInput{KeyId: aws.String(w.key())}))
			},
			mend: func(w *world) {
				try[*kms.EnableKeyRotationOutput](w)(w.keys().EnableKeyRotation(w.Context(), &kms.EnableKeyRotationInput{KeyId: aws.String(w.key())}))
			},
			want: []string{"warning key_rotation_off"}, saying: []string{"its material is never replaced"},
		}, fault{
			name: "another account in the policy of a key", plant: func(w *world) {
				original = aws.ToString(try[*kms.GetKeyPolicyOutput](w)(w.keys().GetKeyPolicy(w.Context(), &kms.GetKeyPolicyInput{KeyId: aws.String(w.key()), PolicyName: aws.String("default")})).Policy)
				var policy struct {
					Version   string
					Statement []map[string]any
				}
				if err := json.Unmarshal([]byte(original), &policy); err != nil {
					w.Fatal(err)
				}
				policy.Statement = append(policy.Statement,
					map[string]any{"Effect": "Allow", "Principal": map[string]any{"AWS": "arn:aws:iam::999999999999:root"}, "Action": "kms:Decrypt", "Resource": "*"},
					map[string]any{"Effect": "Allow", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*", "Condition": map[string]any{"StringEquals": map[string]any{"aws:PrincipalAccount": "888888888888"}}})
				w.putKeyPolicy(w.key(), string(document(policy.Statement...)))
			},
			mend: func(w *world) { w.putKeyPolicy(w.key(), original) },
			want: []string{"error key_policy_grants"}, saying: []string{"its policy lets others in: AWS arn:aws:iam::999999999999:root"},
		}),
		together(fault{
			name: "another key", plant: func(w *world) {
				other = aws.ToString(try[*kms.CreateKeyOutput](w)(w.keys().CreateKey(w.Context(), &kms.CreateKeyInput{})).KeyMetadata.Arn)
				secret(w, other)
			},
			mend: func(w *world) { secret(w, w.key()) },
			want: []string{"error cannot_read", "error other_key", "warning can_decrypt", "warning key_rotation_off"}, saying: []string{"secret:payments/bundle-", "and other secrets of the store vault with"},
		}, fault{
			name: "copies, and another function", plant: func(w *world) {
				w.alter("secretsmanager:DescribeSecret", `"payments/ledger"`, func(answer string) string {
					return strings.TrimSuffix(strings.TrimSpace(answer), "}") + `,"RotationEnabled":true,"RotationLambdaARN":"arn:aws:lambda:eu-central-1:999988887777:function:payments-rotation","ReplicationStatus":[{"Region":"us-east-1","Status":"InSync"}]}`
				})
			},
			mend: (*world).straight, want: []string{"error rotated_by_another", "error secret_replicated"}, saying: []string{":999988887777:function:payments-rotation, which is not arn:aws:lambda:eu-central-1:123456789012:function:payments-rotation:", "it is copied to us-east-1"},
		}),
		{
			name: "not the key that is named", plant: func(w *world) {
				try[*kms.CreateAliasOutput](w)(w.keys().CreateAlias(w.Context(), &kms.CreateAliasInput{AliasName: aws.String("alias/elsewhere"), TargetKeyId: &other}))
			},
			look: func(c *review.Config) {
				c.Spec = changed("vault: {type: secretsmanager}", "vault: {type: secretsmanager, kmsKey: alias/elsewhere}")
			},
			mend: func(w *world) {
				try[*kms.DeleteAliasOutput](w)(w.keys().DeleteAlias(w.Context(), &kms.DeleteAliasInput{AliasName: aws.String("alias/elsewhere")}))
			},
			want: slices.Repeat([]string{"error other_key"}, 11), saying: []string{"and the store vault names alias/elsewhere"},
		},
		{name: "the key that is named", look: func(c *review.Config) {
			c.Spec = changed("vault: {type: secretsmanager}", "vault: {type: secretsmanager, kmsKey: alias/payments-vault}")
		}},
		{name: "a key that is named, and is not there", plant: func(w *world) {
			w.answer(map[string]string{"kms:DescribeKey": `{"__type":"NotFoundException","message":"Alias alias/nowhere is not found."}`}, http.StatusBadRequest, "alias/nowhere")
		}, mend: (*world).straight, look: func(c *review.Config) {
			c.Spec = changed("vault: {type: secretsmanager}", "vault: {type: secretsmanager, kmsKey: alias/nowhere}")
		}, want: []string{"error key_state"}, saying: []string{"alias/nowhere: there is no such key"}},
	}
}

// faultsOfAuthorities are about the private CA.
func faultsOfAuthorities() []fault {
	state := func(status pcatypes.CertificateAuthorityStatus) func(*world) {
		return func(w *world) {
			try[*acmpca.UpdateCertificateAuthorityOutput](w)(w.authorities().UpdateCertificateAuthority(w.Context(), &acmpca.UpdateCertificateAuthorityInput{CertificateAuthorityArn: aws.String(w.part("PcaAuthority")), Status: status}))
		}
	}
	ends := func(in time.Duration, pairs ...string) func(*world) {
		return func(w *world) {
			w.alter("acm-pca:DescribeCertificateAuthority", "", func(answer string) string {
				return regexp.MustCompile(`"NotAfter":[0-9.e+]+`).ReplaceAllString(replaced(pairs...)(answer), fmt.Sprintf(`"NotAfter":%d`, time.Now().Add(in).Unix()))
			})
		}
	}
	const day = 24 * time.Hour
	return []fault{
		together(fault{
			name: "disabled", plant: state(pcatypes.CertificateAuthorityStatusDisabled), mend: state(pcatypes.CertificateAuthorityStatusActive),
			want: []string{"error authority_state"}, saying: []string{"it is DISABLED: nothing can be issued"},
		}, fault{
			name: "shared", plant: func(w *world) {
				try[*acmpca.PutPolicyOutput](w)(w.authorities().PutPolicy(w.Context(), &acmpca.PutPolicyInput{ResourceArn: aws.String(w.part("PcaAuthority")), Policy: aws.String(string(document(
					map[string]any{"Effect": "Allow", "Principal": map[string]any{"AWS": "999999999999"}, "Action": "acm-pca:IssueCertificate", "Resource": w.part("PcaAuthority")})))}))
			},
			mend: func(w *world) {
				try[*acmpca.DeletePolicyOutput](w)(w.authorities().DeletePolicy(w.Context(), &acmpca.DeletePolicyInput{ResourceArn: aws.String(w.part("PcaAuthority"))}))
			},
			want: []string{"error authority_shared"}, saying: []string{"it issues for others, too: AWS 999999999999"},
		}),
		{name: "it ends before what it issues", plant: ends(6 * day), mend: (*world).straight, want: []string{"error authority_state"}, saying: []string{"its own certificate ends at"}},
		{
			name: "it ends soon, issues for long, and has another key", plant: ends(60*day, "SHORT_LIVED_CERTIFICATE", "GENERAL_PURPOSE", "EC_secp384r1", "RSA_2048"), mend: (*world).straight,
			want: []string{"error authority_mode", "warning authority_key", "warning authority_state"}, saying: []string{"its own certificate ends at", "it is in general-purpose mode, and pca is declared as short-lived", "its key is RSA_2048"},
		},
		{
			name: "not there", look: func(c *review.Config) {
				c.Authorities = map[string]string{"pca": "arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/11111111-2222-3333-4444-555555555555"}
			},
			want: []string{"error authority_state", "error excess_right"}, saying: []string{"there is no such private CA"},
		},
		{
			name: "another mode, in another place", look: func(c *review.Config) {
				c.Spec = changed("mode: short-lived\n    create: root", "mode: general-purpose\n    create: subordinate")
			},
			want: []string{"error authority_mode", "error authority_mode"}, saying: []string{"it is in short-lived mode, and pca is declared as general-purpose", "it is a ROOT CA, and pca is declared with create: subordinate"},
		},
	}
}
