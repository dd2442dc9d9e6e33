package iac_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"countersign.dev/iac"
	"countersign.dev/mesh"
)

// parse reads a specification from a text.
func parse(t *testing.T, text string) *mesh.Spec {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return load(t, path)
}

// good is a small specification that can be deployed, with a place for other words.
const good = `
mesh: small
certificates: {authority: pca}
revocation: none
stores: {vault: {type: secretsmanager}, disk: {type: file, dir: d, identityFile: i}}
authorities: {pca: {type: acmpca, budget: {store: vault}}}
services:
  one:
    ports: [{port: 8443, protocol: http, app: 8080}]
    proxy: {engine: nginx}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}"}
    deploy: {type: ecs, cluster: c}
`

// TestRefused asserts that what cannot be deployed is refused, with the reason.
func TestRefused(t *testing.T) {
	long := strings.Repeat("a", 52)
	for name, test := range map[string]struct {
		replace []string // pairs
		want    string
	}{
		"good":            {nil, ""},
		"nothing":         {[]string{good[strings.Index(good, "services:"):], ""}, "it declares no service and no gateway"},
		"built-in":        {[]string{"proxy: {engine: nginx}", "", `delivery: {type: store, store: vault, secret: "{mesh}/{service}"}`, "", "deploy: {type: ecs, cluster: c}", "", "{authority: pca}", "{}"}, "its proxy is the built-in one"},
		"agent":           {[]string{`delivery: {type: store, store: vault, secret: "{mesh}/{service}"}`, "", "deploy: {type: ecs, cluster: c}", "", "{authority: pca}", "{}"}, "its certificate does not come from Secrets Manager"},
		"a file store":    {[]string{"store: vault, secret", "store: disk, secret"}, "its certificate does not come from Secrets Manager"},
		"the server's CA": {[]string{"{authority: pca}", "{}"}, "its certificates come from the server's own authority"},
		"reload":          {[]string{"deploy: {type: ecs, cluster: c}", "deploy: {type: reload}"}, "it is not deployed by ECS"},
		"revocation":      {[]string{"revocation: none", ""}, "a task of ECS gets no revocation lists"},
		"too short":       {[]string{"{authority: pca}", "{authority: pca, ttl: 1h, renewAfter: 59m}"}, "service one: its certificate is due 1m before it ends, and a run of the rotation function may last 15m, so that one that fails could not be repeated"},
		"renewed late":    {[]string{"{authority: pca}", "{authority: pca, ttl: 24h, renewAfter: 1411m}"}, "its certificate is due 29m before it ends, and a run of the rotation function may last 15m, so that one that fails could not be repeated: write a renewAfter that is at least 30m below ttl"},
		"renewed often":   {[]string{"{authority: pca}", "{authority: pca, ttl: 4h, renewAfter: 119m}"}, "service one: its certificate is replaced every 1h59m, and a secret of Secrets Manager has room for about 100 versions in a day"},
		"renewed in time": {[]string{"{authority: pca}", "{authority: pca, ttl: 150m, renewAfter: 2h}"}, ""},
		"low port":        {[]string{"8443", "443"}, "port 443 needs a privilege"},
		"the same port":   {[]string{"app: 8080", "app: 8443"}, "(127.0.0.1:8443); give the application another port (app)"},
		"an alias's ARN":  {[]string{"vault: {type: secretsmanager}", "vault: {type: secretsmanager, kmsKey: \"arn:aws:kms:eu-central-1:123456789012:alias/x\"}"}, "a policy cannot name a key by the ARN of an alias"},
		"two regions":     {[]string{"vault: {type: secretsmanager}", "vault: {type: secretsmanager, region: eu-west-1}", "type: acmpca,", "type: acmpca, region: eu-central-1,"}, "the authority pca is in eu-central-1, the store vault is in eu-west-1"},
		"long name":       {[]string{"mesh: small", "mesh: " + long}, "IAM takes 64"},
		"six ports":       {[]string{"{port: 8443, protocol: http, app: 8080}", ports(6)}, "has 6 ports"},
		"dynamic":         {[]string{"  one:", "  one:\n    run: {command: [app], env: {KEY: \"{{resolve:secretsmanager:small/one}}\"}}"}, "holds {{resolve:"},
		"one identifier":  {[]string{"  one:", "  two-1: &other\n    calls: []\n    proxy: {engine: nginx}\n    delivery: {type: store, store: vault, secret: \"{mesh}/{service}\"}\n    deploy: {type: ecs, cluster: c}\n  two1: *other\n  one:"}, "would both be Two1"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.NewReplacer(test.replace...).Replace(good)
			spec := parse(t, text)
			for what, generate := range map[string]func(*mesh.Spec, iac.Options) ([]byte, error){"cloudformation": iac.CloudFormation, "terraform": iac.Terraform} {
				out, err := generate(spec, iac.Options{})
				if test.want == "" {
					if err != nil {
						t.Errorf("%s: %v", what, err)
					}
					continue
				}
				if !errors.Is(err, iac.ErrRefused) || !strings.Contains(fmt.Sprint(err), test.want) || out != nil {
					t.Errorf("%s: %v, want a refusal with %q", what, err, test.want)
				}
			}
		})
	}
}

func ports(n int) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("{port: %d, protocol: http, app: %d}", 8000+i, 9000+i))
	}
	return strings.Join(all, ", ")
}

// TestGatewayRefused asserts that a gateway's own certificate, a file, and a bound that NGINX does not have, are refused.
func TestGatewayRefused(t *testing.T) {
	spec := parse(t, good+`
gateways:
  gate:
    listen: [{port: 8444, protocol: http, certificate: {cert: /c.pem, key: /k.pem}}]
    routes: [{to: [{service: one}], timeout: {request: 15s}}]
    proxy: {engine: nginx}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}"}
    deploy: {type: ecs, cluster: c}
`)
	_, err := iac.CloudFormation(spec, iac.Options{})
	for _, want := range []string{"the certificate of port 8444 is a file of a machine", "a bound on the whole request (timeout.request)"} {
		if !errors.Is(err, iac.ErrRefused) || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%v, want a refusal with %q", err, want)
		}
	}
}

// TestTwoStores asserts that one secret in two stores is refused: a stack is in one region, and they are one there.
func TestTwoStores(t *testing.T) {
	second := strings.NewReplacer("  one:", "  two:", "store: vault", "store: safe", `{service}"}`, `{service}", bundle: "{mesh}/bundle"}`).Replace(good[strings.Index(good, "  one:"):])
	text := strings.NewReplacer("disk: {type: file, dir: d, identityFile: i}", "safe: {type: secretsmanager, region: eu-central-1}", `{service}"}`, `{service}", bundle: "{mesh}/bundle"}`).Replace(good) + second
	if _, err := iac.CloudFormation(parse(t, text), iac.Options{}); !errors.Is(err, iac.ErrRefused) || !strings.Contains(fmt.Sprint(err), "the secret small/bundle would lie in the stores vault and safe") {
		t.Errorf("%v", err)
	}
}

// TestOneName asserts that names that would meet in a template are refused, and not written over one another.
func TestOneName(t *testing.T) {
	for name, test := range map[string]struct {
		replace []string
		want    string
	}{
		"a service rotation":   {[]string{"  one:", "  rotation:"}, "RotationGroup"},
		"a store logs":         {[]string{"vault", "logs"}, "LogsKey"},
		"a service's balancer": {[]string{"  one:", "  one-balancer: &one\n    ports: [{port: 8443, protocol: http, app: 8080}]\n    proxy: {engine: nginx}\n    delivery: {type: store, store: vault, secret: \"{mesh}/{service}\"}\n    deploy: {type: ecs, cluster: c}\n  one:"}, "OneBalancerGroup"},
	} {
		_, err := iac.CloudFormation(parse(t, strings.NewReplacer(test.replace...).Replace(good)), iac.Options{})
		if !errors.Is(err, iac.ErrRefused) || !strings.Contains(fmt.Sprint(err), "would both be "+test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	spec := parse(t, strings.NewReplacer("  one:", "  small-rotation:").Replace(good))
	if _, err := iac.Terraform(spec, iac.Options{}); !errors.Is(err, iac.ErrRefused) || !strings.Contains(fmt.Sprint(err), "would both be aws_security_group.small_rotation") {
		t.Errorf("%v", err)
	}
}

// TestInitUnknown asserts that another way than the two is refused.
func TestInitUnknown(t *testing.T) {
	if _, err := iac.CloudFormation(parse(t, good), iac.Options{Init: "magic"}); !errors.Is(err, iac.ErrRefused) {
		t.Errorf("%v", err)
	}
}

// TestColon asserts that a field that ECS could not be told of is refused where ECS reads it, and only there.
func TestColon(t *testing.T) {
	spec := parse(t, strings.Replace(good, `secret: "{mesh}/{service}"`, `secret: "{mesh}/{service}", fields: {key: "a:b"}`, 1))
	if _, err := iac.CloudFormation(spec, iac.Options{Init: iac.InitEnvironment}); !errors.Is(err, iac.ErrRefused) || !strings.Contains(fmt.Sprint(err), `"a:b" has a colon`) {
		t.Errorf("%v", err)
	}
	if _, err := iac.CloudFormation(spec, iac.Options{}); err != nil {
		t.Error(err)
	}
}

// TestTooLarge asserts that nothing is written that AWS would not take.
func TestTooLarge(t *testing.T) {
	var rules []string
	for i := range 1200 {
		rules = append(rules, fmt.Sprintf("{from: any, methods: [GET], paths: [/a/path/of/number/%d]}", i))
	}
	spec := parse(t, strings.NewReplacer("app: 8080}", "app: 8080, allow: ["+strings.Join(rules, ", ")+"]}", "nginx", "haproxy").Replace(good))
	_, err := iac.CloudFormation(spec, iac.Options{})
	if !errors.Is(err, iac.ErrTooLarge) || !strings.Contains(fmt.Sprint(err), "the task definition of one") {
		t.Errorf("a Plan of 70 KB: %v", err)
	}
	for n, want := range map[int]string{
		60:  "", // several policies
		140: "the policy of the role small-rotation",
	} {
		_, err := iac.Terraform(parse(t, many(n, "")), iac.Options{})
		if want == "" && err != nil || want != "" && (!errors.Is(err, iac.ErrTooLarge) || !strings.Contains(fmt.Sprint(err), want)) {
			t.Errorf("%d services: %v, want %q", n+1, err, want)
		}
	}
	const want = "the role small-rotation would have 1"
	if _, err = iac.Terraform(parse(t, many(80, ", layout: separate")), iac.Options{}); !errors.Is(err, iac.ErrTooLarge) || !strings.Contains(fmt.Sprint(err), want) || !strings.Contains(fmt.Sprint(err), "AWS takes 10") {
		t.Errorf("81 services whose certificates lie in parts: %v, want %q", err, want)
	}
}

// many is the small specification with so many services more, and something more about each one's delivery.
func many(n int, delivery string) string {
	text := good
	for i := range n {
		text += strings.NewReplacer("  one:", fmt.Sprintf("  service-%d:", i), `{service}"}`, `{service}"`+delivery+"}").Replace(good[strings.Index(good, "  one:"):])
	}
	return text
}

// TestSchedule asserts that the schedule looks twice before a certificate ends, and that an alarm covers a run of it, to its end.
func TestSchedule(t *testing.T) {
	for authority, want := range map[string][]string{
		"{authority: pca}": {"rate(1 hour)", "MaximumEventAgeInSeconds: 3600", "Period: 8100", "# The rotation: every hour what is due"},
		"{authority: pca, ttl: 24h, renewAfter: 22h}":   {"rate(1 hour)", "Period: 8100"},
		"{authority: pca, ttl: 24h, renewAfter: 1325m}": {"rate(57 minutes)", "MaximumEventAgeInSeconds: 3420", "Period: 7740", "# The rotation: every 57 minutes what is due"},
		"{authority: pca, ttl: 3h, renewAfter: 140m}":   {"rate(20 minutes)", "Period: 3300", "Threshold: 0.0139"},
		"{authority: pca, ttl: 150m, renewAfter: 2h}":   {"rate(15 minutes)", "MaximumEventAgeInSeconds: 900", "Period: 2700", "# The rotation: every 15 minutes what is due"},
	} {
		spec := parse(t, strings.Replace(good, "{authority: pca}", authority, 1))
		text, err := iac.CloudFormation(spec, iac.Options{})
		if err != nil {
			t.Errorf("%s: %v", authority, err)
		}
		for _, line := range want {
			if !strings.Contains(string(text), line) {
				t.Errorf("%s: the template has no %q", authority, line)
			}
		}
		hcl, err := iac.Terraform(spec, iac.Options{})
		if err != nil || !strings.Contains(string(hcl), `"`+want[0]+`"`) {
			t.Errorf("%s: Terraform has no %s, %v", authority, want[0], err)
		}
	}
}

// TestOwnSchedule asserts that policies and task definitions are written for certificates of minutes, too: whoever takes these alone has a
// schedule of his own.
func TestOwnSchedule(t *testing.T) {
	spec := parse(t, strings.Replace(good, "{authority: pca}", "{authority: pca, ttl: 1m30s}", 1))
	if _, err := iac.TaskDefinition(spec, "one", iac.Options{}, iac.Given{}); !errors.Is(err, iac.ErrMissing) {
		t.Errorf("%v, want no more than what is not given", err)
	}
}

// TestKeyOfACM asserts that a key which ACM would not make below the CA of the template is refused, and one below a CA that is there is not.
func TestKeyOfACM(t *testing.T) {
	ofACM := strings.NewReplacer(
		"{authority: pca}", "{authority: pca, key: rsa-2048}", "{type: acmpca, ", "{type: acm, names: {one: one.small.example}, ",
		`{service}"}`, `{service}", layout: exported, bundle: "{mesh}/bundle"}`,
	).Replace(good)
	const want = "service one: its key is rsa-2048, and ACM makes only keys of the family of the private CA's own, which is EC_secp384r1"
	for _, generate := range []func(*mesh.Spec, iac.Options) ([]byte, error){iac.CloudFormation, iac.Terraform} {
		if _, err := generate(parse(t, ofACM), iac.Options{}); !errors.Is(err, iac.ErrRefused) || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%v, want a refusal with %q", err, want)
		}
		for _, good := range []string{
			strings.Replace(ofACM, "rsa-2048", "ecdsa-p384", 1),
			strings.Replace(ofACM, "{type: acm, ", "{type: acm, arn: \"arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/01234567-89ab-cdef-0123-456789abcdef\", ", 1),
		} {
			if _, err := generate(parse(t, good), iac.Options{}); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestRefusedOnce asserts that a reason which several workloads have is said once, for all of them.
func TestRefusedOnce(t *testing.T) {
	spec := parse(t, strings.NewReplacer("deploy: {type: ecs, cluster: c}", "deploy: {type: reload}", "  one:", `  two: &other
    proxy: {engine: nginx}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}"}
    deploy: {type: reload}
  one:`).Replace(good))
	_, err := iac.CloudFormation(spec, iac.Options{})
	const want = "  - service one, service two: it is not deployed by ECS"
	if text := fmt.Sprint(err); !errors.Is(err, iac.ErrRefused) || !strings.Contains(text, want) || strings.Count(text, "not deployed by ECS") != 1 {
		t.Errorf("%v, want %q once", err, want)
	}
}
