package iac_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"

	"countersign.dev/iac"
)

// required are the arguments and blocks without which the provider refuses a resource.
var required = map[string]string{
	"aws_acmpca_certificate":                       "certificate_authority_arn certificate_signing_request signing_algorithm validity",
	"aws_acmpca_certificate_authority":             "certificate_authority_configuration",
	"aws_acmpca_certificate_authority_certificate": "certificate certificate_authority_arn",
	"aws_acmpca_permission":                        "actions certificate_authority_arn principal",
	"aws_cloudwatch_event_rule":                    "name state",
	"aws_cloudwatch_event_target":                  "arn rule",
	"aws_cloudwatch_log_group":                     "kms_key_id name retention_in_days",
	"aws_cloudwatch_metric_alarm":                  "alarm_actions alarm_name comparison_operator evaluation_periods metric_name namespace period statistic threshold treat_missing_data",
	"aws_ecs_cluster":                              "name",
	"aws_ecs_service":                              "cluster deployment_circuit_breaker desired_count launch_type load_balancer name network_configuration task_definition",
	"aws_ecs_task_definition":                      "container_definitions cpu execution_role_arn family memory network_mode requires_compatibilities task_role_arn volume",
	"aws_iam_policy":                               "name policy",
	"aws_iam_role":                                 "assume_role_policy name",
	"aws_iam_role_policy":                          "policy role",
	"aws_iam_role_policy_attachment":               "policy_arn role",
	"aws_kms_alias":                                "name target_key_id",
	"aws_kms_key":                                  "enable_key_rotation policy",
	"aws_lambda_function":                          "function_name handler role runtime s3_bucket s3_key vpc_config",
	"aws_lambda_function_event_invoke_config":      "function_name maximum_event_age_in_seconds maximum_retry_attempts",
	"aws_lambda_permission":                        "action function_name principal source_arn",
	"aws_lb":                                       "internal load_balancer_type security_groups subnets",
	"aws_lb_listener":                              "default_action load_balancer_arn port protocol",
	"aws_lb_target_group":                          "health_check port protocol target_type vpc_id",
	"aws_secretsmanager_secret":                    "kms_key_id name",
	"aws_secretsmanager_secret_policy":             "block_public_policy policy secret_arn",
	"aws_security_group":                           "description vpc_id",
	"aws_vpc_security_group_egress_rule":           "description from_port ip_protocol security_group_id to_port",
	"aws_vpc_security_group_ingress_rule":          "description from_port ip_protocol security_group_id to_port",
}

// attributes are those that resources of a type have when they are made, as far as they are referred to.
var attributes = map[string]string{
	"aws_acmpca_certificate":           "arn certificate certificate_chain",
	"aws_acmpca_certificate_authority": "arn certificate_signing_request",
	"aws_cloudwatch_event_rule":        "arn name",
	"aws_ecs_cluster":                  "arn id",
	"aws_ecs_task_definition":          "arn",
	"aws_iam_policy":                   "arn",
	"aws_iam_role":                     "arn id name",
	"aws_kms_key":                      "arn key_id",
	"aws_lambda_function":              "arn function_name",
	"aws_lb":                           "arn dns_name",
	"aws_lb_target_group":              "arn",
	"aws_secretsmanager_secret":        "arn id",
	"aws_security_group":               "id",
}

// TestTerraform asserts that the configuration is one: that it is written as Terraform formats it, that everything it refers
// to is there, once, and that no resource lacks what the provider asks for.
func TestTerraform(t *testing.T) {
	for name, write := range variants(t) {
		t.Run(name, func(t *testing.T) {
			text := write(iac.Terraform)
			if !bytes.Equal(hclwrite.Format(text), text) {
				t.Error("it is not formatted")
			}
			file, problems := hclsyntax.ParseConfig(text, "main.tf", hcl.InitialPos)
			if problems.HasErrors() {
				t.Fatal(problems)
			}
			body, ok := file.Body.(*hclsyntax.Body)
			if !ok {
				t.Fatalf("the body is %T", file.Body)
			}
			declared := declarations(t, body)
			used := map[string]bool{}
			problems = hclsyntax.VisitAll(body, func(node hclsyntax.Node) hcl.Diagnostics {
				expression, ok := node.(*hclsyntax.ScopeTraversalExpr)
				if !ok {
					return nil
				}
				used[checkTraversal(t, declared, expression.Traversal)] = true
				return nil
			})
			if problems.HasErrors() {
				t.Error(problems)
			}
			for name := range declared {
				if strings.HasPrefix(name, "var.") && !used[name] {
					t.Errorf("%s is declared and not used", name)
				}
			}
		})
	}
}

// declarations are what can be referred to. Each resource is seen to have what it needs.
func declarations(t *testing.T, body *hclsyntax.Body) map[string]bool {
	t.Helper()
	declared := map[string]bool{}
	add := func(name string) {
		if declared[name] {
			t.Errorf("%s is declared twice", name)
		}
		declared[name] = true
	}
	for _, b := range body.Blocks {
		switch b.Type {
		case "variable":
			add("var." + b.Labels[0])
		case "locals":
			for name := range b.Body.Attributes {
				add("local." + name)
			}
		case "data":
			add("data." + b.Labels[0] + "." + b.Labels[1])
		case "resource":
			add(b.Labels[0] + "." + b.Labels[1])
			lacks(t, b)
		case "terraform", "output":
		default:
			t.Errorf("a block %s", b.Type)
		}
	}
	return declared
}

func lacks(t *testing.T, b *hclsyntax.Block) {
	t.Helper()
	wants, known := required[b.Labels[0]]
	if !known {
		t.Errorf("nobody knows what %s needs: say so in the test", b.Labels[0])
	}
	for _, want := range strings.Fields(wants) {
		if b.Body.Attributes[want] == nil && !slices.ContainsFunc(b.Body.Blocks, func(inner *hclsyntax.Block) bool { return inner.Type == want }) {
			t.Errorf("%s %s lacks %s", b.Labels[0], b.Labels[1], want)
		}
	}
}

// checkTraversal looks a reference up, and gives what it refers to.
func checkTraversal(t *testing.T, declared map[string]bool, traversal hcl.Traversal) string {
	t.Helper()
	var parts []string
	for _, step := range traversal {
		switch s := step.(type) {
		case hcl.TraverseRoot:
			parts = append(parts, s.Name)
		case hcl.TraverseAttr:
			parts = append(parts, s.Name)
		default:
			t.Errorf("a step of %T", step)
		}
	}
	if len(parts) == 1 {
		if !slices.Contains([]string{"string", "number", "list", "arn"}, parts[0]) { // types, and the variable of a for
			t.Errorf("%s refers to nothing", parts[0])
		}
		return parts[0]
	}
	length := 2
	if parts[0] == "data" {
		length = 3
	}
	if len(parts) < length || !declared[strings.Join(parts[:length], ".")] {
		t.Errorf("%s is declared nowhere", strings.Join(parts, "."))
		return ""
	}
	if strings.HasPrefix(parts[0], "aws_") && len(parts) > length && !slices.Contains(strings.Fields(attributes[parts[0]]), parts[length]) {
		t.Errorf("%s: no such attribute is known", strings.Join(parts, "."))
	}
	return strings.Join(parts[:length], ".")
}

// TestSamePolicies asserts that the template and the configuration have the same statements for the same roles: as many
// of them, with the same names and actions.
func TestSamePolicies(t *testing.T) {
	for _, path := range specifications {
		spec := load(t, path)
		template, err := iac.CloudFormation(spec, iac.Options{})
		if err != nil {
			t.Fatal(err)
		}
		configuration, err := iac.Terraform(spec, iac.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, sid := range []string{"ReadItsSecrets", "DecryptThem", "PullImages", "RotateSecrets", "LookAtSecrets", "WhoMayDoWhat", "NobodyElse\n", "NobodyElseReads", "NobodyElseWrites", "DecryptForItsRoles", "NotTheCode", "ListTasks"} {
			one := strings.Count(string(template), "Sid: "+sid)
			name := strings.TrimSuffix(sid, "\n")
			two := 0
			for line := range strings.Lines(string(configuration)) {
				if words := strings.Fields(line); len(words) == 3 && words[0] == "Sid" && words[2] == fmt.Sprintf("%q", name) {
					two++
				}
			}
			if one != two || one == 0 {
				t.Errorf("%s: %q is there %d times in the template and %d times in the configuration", path, name, one, two)
			}
		}
	}
}
