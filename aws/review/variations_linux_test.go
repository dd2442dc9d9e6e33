//go:build linux

package review_test

import (
	"encoding/base64"
	"io"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	ecstypes "github.com/aws/aws-sdk-go-v2/service/ecs/types"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge/types"
)

// allowing is a statement for all resources.
func allowing(what string, actions ...string) map[string]any {
	return map[string]any{"Effect": "Allow", what: actions, "Resource": "*"}
}

// faultsOfPolicies are the same rights in other words: by what a statement is not about, by a condition that holds always, by parts of
// names. Each is given to the administrator, whom the resource policy of checkout does not keep away meanwhile, or to a role of the mesh.
func faultsOfPolicies() []fault {
	open := func(name string, condition map[string]any) fault {
		return fault{
			name: name,
			plant: func(w *world) {
				read := denied(reads, "rotation", "checkout-task")
				read["Condition"] = condition
				w.attach(read, denied(writes, "rotation"))
			},
			mend: func(w *world) { w.original() },
			want: []string{"error can_read"}, saying: []string{"role/administrator can read its value"},
		}
	}
	wide := func(role, name string, statement map[string]any, saying string, more ...string) fault {
		role = "payments-" + role
		return fault{
			name: name, plant: func(w *world) { w.grant(role, statement) }, mend: func(w *world) { w.ungrant(role) },
			want: append([]string{"error wildcard"}, more...), saying: []string{role + ": the policy planted, statement 1, allows " + saying},
		}
	}
	stranger := func(name, action string, principal any) fault {
		return fault{
			name: name,
			plant: func(w *world) {
				w.attach(denied(reads, "rotation", "checkout-task"), denied(writes, "rotation"), map[string]any{"Effect": "Allow", "Principal": principal, "Action": action, "Resource": "*"})
			},
			mend: func(w *world) { w.original() },
			want: []string{"error policy_grants"}, saying: []string{"its resource policy lets others in"},
		}
	}
	return []fault{
		open("a deny for one who is not there", map[string]any{"ArnEquals": map[string]any{"aws:PrincipalArn": accountARN + "role/nobody"}}),
		open("a deny that spares everybody by a pattern", map[string]any{"ArnNotLike": map[string]any{"aws:PrincipalArn": accountARN + "role/*"}}),
		open("a deny that spares who has a name", map[string]any{"Null": map[string]any{"aws:PrincipalArn": "true"}}),
		{
			name: "a deny of all but reading",
			plant: func(w *world) {
				w.attach(map[string]any{
					"Effect": "Deny", "Principal": "*", "NotAction": append([]string{"secretsmanager:DescribeSecret", "secretsmanager:ListSecretVersionIds", "secretsmanager:*ResourcePolicy"}, reads...), "Resource": "*",
					"Condition": map[string]any{"ArnNotEquals": map[string]any{"aws:PrincipalArn": accountARN + "role/payments-rotation"}},
				})
			},
			mend: func(w *world) { w.original() },
			want: []string{"error can_read"}, saying: []string{"role/administrator can read its value"},
		},
		{
			name: "a deny that is about other secrets",
			plant: func(w *world) {
				read := denied(reads, "rotation", "checkout-task")
				delete(read, "Resource")
				read["NotResource"] = w.secretARN("payments/checkout")
				w.attach(read, denied(writes, "rotation"))
			},
			mend: func(w *world) { w.original() },
			want: []string{"error can_read"}, saying: []string{"role/administrator can read its value"},
		},
		together(
			wide("ledger-task", "NotAction", allowing("NotAction", "s3:*"), "secretsmanager:GetSecretValue", "warning can_decrypt", "error excess_right"),
			wide("ledger-execution", "NotResource", map[string]any{"Effect": "Allow", "Action": "secretsmanager:GetSecretValue", "NotResource": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:elsewhere"}, "secretsmanager:GetSecretValue with a wildcard"),
			wide("checkout-task", "a wildcard in the middle of an ARN", map[string]any{"Effect": "Allow", "Action": "secretsmanager:GetSecretValue", "Resource": "arn:aws:secretsmanager:*:123456789012:secret:payments/ledger-AbCdEf"}, "secretsmanager:GetSecretValue with a wildcard"),
			wide("checkout-execution", "question marks", map[string]any{"Effect": "Allow", "Action": "secretsmanager:GetSecretValue", "Resource": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/ledger-??????"}, "secretsmanager:GetSecretValue with a wildcard"),
			wide("paygate-task", "a wildcard in the action, in other letters", map[string]any{"Effect": "Allow", "Action": "secretsmanager:PUT*", "Resource": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/ledger-AbCdEf"}, "secretsmanager:PutSecretValue"),
			wide("paygate-execution", "certificates of any CA", allowing("Action", "acm-pca:IssueCertificate"), "acm-pca:IssueCertificate with a wildcard", "error can_issue"),
			wide("terminal-task", "any role", allowing("Action", "iam:PassRole"), "iam:PassRole with a wildcard"),
			wide("terminal-execution", "any service", allowing("Action", "ecs:*"), "ecs:UpdateService"),
		),
		stranger("another account changes the policy", "secretsmanager:PutResourcePolicy", map[string]any{"AWS": "arn:aws:iam::999999999999:root"}),
		stranger("a service reads", "secretsmanager:Get*", map[string]any{"Service": "rds.amazonaws.com"}),
		stranger("a role of another account", "secretsmanager:BatchGetSecretValue", map[string]any{"AWS": "arn:aws:iam::999999999999:role/payments-rotation"}),
	}
}

// faultsOfContainers are what definitions say less openly, and listeners by their rules. What an old revision says stays a finding.
func faultsOfContainers() []fault {
	return []fault{
		{name: "keys in disguise", plant: func(w *world) {
			w.define(func(_ *ecs.RegisterTaskDefinitionInput, all map[string]*ecstypes.ContainerDefinition) {
				variable(all["app"], "CONFIG", `{"tls":{"key":"`+base64.StdEncoding.EncodeToString([]byte(notAKey))+`"}}`)
				variable(all["app"], "PREFIXED", "key-"+base64.URLEncoding.EncodeToString([]byte(notAKey)))
				variable(all["app"], "ESCAPED", strings.NewReplacer(" ", "%20", "\n", "%0A").Replace(notAKey))
				variable(all["app"], "AWS_SECRET_ACCESS_KEY", strings.Repeat("x", 40))
				all["app"].EntryPoint = []string{"countersign", "example", "AGE-SECRET-KEY-1QQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQ"}
				all["app"].LogConfiguration.Options["awslogs-stream-prefix"] = notAKey
			})
		}, want: []string{
			"error key_in_definition", "error key_in_definition", "error key_in_definition", "error key_in_definition", "error key_in_definition", "error key_in_definition",
		}, saying: []string{"the variable CONFIG", "the variable PREFIXED", "the variable ESCAPED", "the secret access key of an account in the variable AWS_SECRET_ACCESS_KEY", "its command", "the option awslogs-stream-prefix of its log"}},
		{name: "a second mount", plant: func(w *world) {
			w.define(func(_ *ecs.RegisterTaskDefinitionInput, all map[string]*ecstypes.ContainerDefinition) {
				again := all["proxy"].MountPoints[0]
				again.ContainerPath, again.ReadOnly = aws.String("/again"), aws.Bool(false)
				all["proxy"].MountPoints = append(all["proxy"].MountPoints, again)
				all["app"].MountPoints = append(all["app"].MountPoints, ecstypes.MountPoint{SourceVolume: again.SourceVolume, ContainerPath: aws.String("/tls"), ReadOnly: aws.Bool(true)})
				all["app"].DependsOn = []ecstypes.ContainerDependency{{ContainerName: aws.String("init"), Condition: ecstypes.ContainerConditionStart}}
			})
		}, want: []string{"error certificates_mounted", "error mount_writable", "error not_success"}, saying: []string{"the container app has the certificates and the key", "mounts the certificates at /again", "the container app needs what init brings, and starts on START"}},
		{
			name: "another function", plant: func(w *world) {
				rule, _ := w.stack.Resource("RotationSchedule")
				client := eventbridge.NewFromConfig(w.cloud.Admin())
				try[*eventbridge.PutTargetsOutput](w)(client.PutTargets(w.Context(), &eventbridge.PutTargetsInput{
					Rule: &rule.Physical, Targets: []types.Target{{Id: aws.String("rotation"), Arn: aws.String("arn:aws:lambda:eu-central-1:123456789012:function:payments-rotation-old")}},
				}))
			},
			want: []string{"error schedule_missing"}, saying: []string{"function:payments-rotation"},
		},
		{
			name: "a rule of a listener", plant: func(w *world) {
				balancer, _ := w.stack.Resource("CheckoutBalancer")
				group, _ := w.stack.Resource("CheckoutTarget8081")
				other, _ := w.stack.Resource("LedgerTarget9000")
				made := try[*elb.CreateListenerOutput](w)(elb.NewFromConfig(w.cloud.Admin()).CreateListener(w.Context(), &elb.CreateListenerInput{
					LoadBalancerArn: &balancer.Physical, Port: aws.Int32(8443), Protocol: elbtypes.ProtocolEnumHttps, SslPolicy: aws.String("ELBSecurityPolicy-TLS13-1-2-2021-06"),
					Certificates:   []elbtypes.Certificate{{CertificateArn: aws.String("arn:aws:acm:eu-central-1:123456789012:certificate/1")}},
					DefaultActions: []elbtypes.Action{{Type: elbtypes.ActionTypeEnumForward, TargetGroupArn: &other.Physical}},
				}))
				w.cloud.Fault(rules(*made.Listeners[0].ListenerArn, group.Physical)) //nolint:bodyclose // the front closes what it is given
			},
			mend: func(w *world) { w.cloud.Fault(nil) },
			want: []string{"error listener_ends_tls", "error listener_ends_tls"}, saying: []string{"it ends TLS (HTTPS) before checkout", "before ledger"}, // to which it leads by default
		},
	}
}

// rules answers DescribeRules of one listener, which the double of ECS does not have: a rule leads to a target group.
func rules(listener, group string) func(*http.Request, string) *http.Response {
	return func(_ *http.Request, action string) *http.Response {
		if action != "elasticloadbalancing:DescribeRules" {
			return nil
		}

		body := `<DescribeRulesResponse><DescribeRulesResult><Rules><member><RuleArn>` + listener + `/1</RuleArn><Actions><member><Type>forward</Type><TargetGroupArn>` +
			group + `</TargetGroupArn></member></Actions></member></Rules></DescribeRulesResult></DescribeRulesResponse>`
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"text/xml"}}, Body: io.NopCloser(strings.NewReader(body))}
	}
}
