package iac_test

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"countersign.dev/iac"
	"countersign.dev/mesh"
)

// parse reads a specification from a text.
func parse(t *testing.T, text string) *mesh.Spec {
	t.Helper()
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Directory: "/spec", Content: text}})
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// placed is the form of a reason with its place.
var placed = regexp.MustCompile(`^[a-z/.]+\.yaml:[1-9][0-9]*:[1-9][0-9]*: [^ ]+: .`)

// refusedAt asserts that an error is of a kind, that each of its lines has a place, and that one of them begins and goes on as
// it should. at is LINE:COLUMN: PATH.
func refusedAt(t *testing.T, err, of error, at, want string) {
	t.Helper()
	if !errors.Is(err, of) {
		t.Errorf("%v, want a refusal with %q", err, want)
		return
	}
	head, lines, _ := strings.Cut(err.Error(), "\n")
	if head != of.Error()+":" {
		t.Errorf("%q begins the refusal", head)
	}
	found := false
	for line := range strings.SplitSeq(lines, "\n") {
		if !placed.MatchString(line) {
			t.Errorf("%q has no place", line)
		}
		found = found || strings.HasPrefix(line, "mesh.yaml:"+at+": ") && strings.Contains(line, want)
	}
	if !found {
		t.Errorf("%v\nwant %q at %s", err, want, at)
	}
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
		replace  []string // pairs
		at, want string
	}{
		"good":            {nil, "", ""},
		"nothing":         {[]string{good[strings.Index(good, "services:"):], ""}, "1:1: services", "it declares no service and no gateway"},
		"built-in":        {[]string{"proxy: {engine: nginx}", "", `delivery: {type: store, store: vault, secret: "{mesh}/{service}"}`, "", "deploy: {type: ecs, cluster: c}", "", "{authority: pca}", "{}"}, "8:3: services.one.proxy", "its proxy is the built-in one"},
		"agent":           {[]string{`delivery: {type: store, store: vault, secret: "{mesh}/{service}"}`, "", "deploy: {type: ecs, cluster: c}", "", "{authority: pca}", "{}"}, "8:3: services.one.delivery", "its certificate does not come from Secrets Manager"},
		"a file store":    {[]string{"store: vault, secret", "store: disk, secret"}, "11:36: services.one.delivery.store", "its certificate does not come from Secrets Manager"},
		"the server's CA": {[]string{"{authority: pca}", "{}"}, "3:1: certificates.authority", "its certificates come from the server's own authority"},
		"reload":          {[]string{"deploy: {type: ecs, cluster: c}", "deploy: {type: reload}"}, "12:20: services.one.deploy.type", "it is not deployed by ECS"},
		"revocation":      {[]string{"revocation: none", ""}, "1:1: revocation", "a task of ECS gets no revocation lists"},
		"too short":       {[]string{"{authority: pca}", "{authority: pca, ttl: 1h, renewAfter: 59m}"}, "3:53: certificates.renewAfter", "service one: its certificate is due 1m before it ends, and a run of the rotation function may last 15m, so that one that fails could not be repeated"},
		"renewed late":    {[]string{"{authority: pca}", "{authority: pca, ttl: 24h, renewAfter: 1411m}"}, "3:54: certificates.renewAfter", "its certificate is due 29m before it ends, and a run of the rotation function may last 15m, so that one that fails could not be repeated: write a renewAfter that is at least 30m below ttl"},
		"renewed often":   {[]string{"{authority: pca}", "{authority: pca, ttl: 4h, renewAfter: 119m}"}, "3:53: certificates.renewAfter", "service one: its certificate is replaced every 1h59m, and a secret of Secrets Manager has room for about 100 versions in a day"},
		"renewed in time": {[]string{"{authority: pca}", "{authority: pca, ttl: 150m, renewAfter: 2h}"}, "", ""},
		"low port":        {[]string{"8443", "443"}, "9:20: services.one.ports[0].port", "port 443 needs a privilege"},
		"the same port":   {[]string{"app: 8080", "app: 8443"}, "9:47: services.one.ports[0].app", "(127.0.0.1:8443); give the application another port (app)"},
		"an alias's ARN":  {[]string{"vault: {type: secretsmanager}", "vault: {type: secretsmanager, kmsKey: \"arn:aws:kms:eu-central-1:123456789012:alias/x\"}"}, "5:48: stores.vault.kmsKey", "a policy cannot name a key by the ARN of an alias"},
		"two regions":     {[]string{"vault: {type: secretsmanager}", "vault: {type: secretsmanager, region: eu-west-1}", "type: acmpca,", "type: acmpca, region: eu-central-1,"}, "6:43: authorities.pca.region", "the authority pca is in eu-central-1, the store vault is in eu-west-1"},
		"long name":       {[]string{"mesh: small", "mesh: " + long}, "8:3: services.one", "IAM takes 64"},
		"six ports":       {[]string{"{port: 8443, protocol: http, app: 8080}", ports(6)}, "9:5: services.one.ports", "has 6 ports"},
		"dynamic":         {[]string{"  one:", "  one:\n    run: {command: [app], env: {KEY: \"{{resolve:secretsmanager:small/one}}\"}}"}, "9:38: services.one.run.env.KEY", "holds {{resolve:"},
		"one identifier":  {[]string{"  one:", "  two-1: &other\n    calls: []\n    proxy: {engine: nginx}\n    delivery: {type: store, store: vault, secret: \"{mesh}/{service}\"}\n    deploy: {type: ecs, cluster: c}\n  two1: *other\n  one:"}, "13:3: services.two1", "would both be Two1"},
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
				if refusedAt(t, err, iac.ErrRefused, test.at, test.want); out != nil {
					t.Errorf("%s is written all the same", what)
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
	refusedAt(t, err, iac.ErrRefused, "16:43: gateways.gate.listen[0].certificate", "the certificate of port 8444 is a file of a machine")
	refusedAt(t, err, iac.ErrRefused, "17:56: gateways.gate.routes[0].timeout.request", "a bound on the whole request (timeout.request)")
}

// TestTwoStores asserts that one secret in two stores is refused: a stack is in one region, and they are one there.
func TestTwoStores(t *testing.T) {
	second := strings.NewReplacer("  one:", "  two:", "store: vault", "store: safe", `{service}"}`, `{service}", bundle: "{mesh}/bundle"}`).Replace(good[strings.Index(good, "  one:"):])
	text := strings.NewReplacer("disk: {type: file, dir: d, identityFile: i}", "safe: {type: secretsmanager, region: eu-central-1}", `{service}"}`, `{service}", bundle: "{mesh}/bundle"}`).Replace(good) + second
	_, err := iac.CloudFormation(parse(t, text), iac.Options{})
	refusedAt(t, err, iac.ErrRefused, "16:78: services.two.delivery.bundle", "the secret small/bundle would lie in the stores vault and safe")
}

// TestOneName asserts that names that would meet in a template are refused, and not written over one another.
func TestOneName(t *testing.T) {
	for name, test := range map[string]struct {
		replace  []string
		at, want string
	}{
		"a service rotation":   {[]string{"  one:", "  rotation:"}, "8:3: services.rotation", "RotationGroup"},
		"a store logs":         {[]string{"vault", "logs"}, "5:10: stores.logs", "LogsKey"},
		"a service's balancer": {[]string{"  one:", "  one-balancer: &one\n    ports: [{port: 8443, protocol: http, app: 8080}]\n    proxy: {engine: nginx}\n    delivery: {type: store, store: vault, secret: \"{mesh}/{service}\"}\n    deploy: {type: ecs, cluster: c}\n  one:"}, "8:3: services.one-balancer", "OneBalancerGroup"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := iac.CloudFormation(parse(t, strings.NewReplacer(test.replace...).Replace(good)), iac.Options{})
			refusedAt(t, err, iac.ErrRefused, test.at, "would both be "+test.want)
		})
	}
	_, err := iac.Terraform(parse(t, strings.NewReplacer("  one:", "  small-rotation:").Replace(good)), iac.Options{})
	refusedAt(t, err, iac.ErrRefused, "8:3: services.small-rotation", "would both be aws_security_group.small_rotation")
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
	_, err := iac.CloudFormation(spec, iac.Options{Init: iac.InitEnvironment})
	refusedAt(t, err, iac.ErrRefused, "11:85: services.one.delivery.fields.key", `"a:b" has a colon`)
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
	refusedAt(t, err, iac.ErrTooLarge, "8:3: services.one", "the task definition of one")
	if _, err = iac.Terraform(parse(t, many(60, "")), iac.Options{}); err != nil {
		t.Errorf("61 services, whose secrets take several policies: %v", err)
	}
	_, err = iac.Terraform(parse(t, many(140, "")), iac.Options{})
	refusedAt(t, err, iac.ErrTooLarge, "1:1: document", "the policy of the role small-rotation")
	_, err = iac.Terraform(parse(t, many(80, ", layout: separate")), iac.Options{})
	refusedAt(t, err, iac.ErrTooLarge, "1:1: document", "the role small-rotation would have 1")
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
		_, err := generate(parse(t, ofACM), iac.Options{})
		refusedAt(t, err, iac.ErrRefused, "3:37: certificates.key", want)
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

// TestRefusedOnce asserts that a reason which several workloads have in one place is said once, for all of them, and at each place
// where they are several.
func TestRefusedOnce(t *testing.T) {
	spec := parse(t, strings.NewReplacer("revocation: none", "", "deploy: {type: ecs, cluster: c}", "deploy: {type: reload}", "  one:", `  two:
    proxy: {engine: nginx}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}"}
    deploy: {type: reload}
  one:`).Replace(good))
	_, err := iac.CloudFormation(spec, iac.Options{})
	const reload = "it is not deployed by ECS: write deploy: {type: ecs, cluster: NAME}"
	want := iac.ErrRefused.Error() + ":\n" +
		"mesh.yaml:1:1: revocation: service one, service two: it wants revoked callers refused, and a task of ECS gets no revocation lists: write revocation: none, and let certificates live for hours or days\n" +
		"mesh.yaml:11:20: services.two.deploy.type: " + reload + "\n" +
		"mesh.yaml:16:20: services.one.deploy.type: " + reload
	if fmt.Sprint(err) != want {
		t.Errorf("%v, want %s", err, want)
	}
	if all, ok := errors.AsType[mesh.Errors](err); !ok || len(all) != 3 || all[2].Line != 16 {
		t.Errorf("it wraps %v", all)
	}
}

// TestRefusedInFiles asserts that a reason names the file of several that it is about.
func TestRefusedInFiles(t *testing.T) {
	common, services, _ := strings.Cut(strings.Replace(good, "8443", "443", 1), "services:")
	spec, err := mesh.ParseDocuments([]mesh.Document{
		{Name: "parts/common.yaml", Directory: "/spec", Content: strings.Replace(common, "revocation: none", "revocation: check", 1)},
		{Name: "parts/services.yaml", Directory: "/spec", Content: "services:" + services},
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = iac.TaskDefinition(spec, "one", iac.Options{}, iac.Given{})
	text := fmt.Sprint(err)
	first, second := strings.Index(text, "\nparts/common.yaml:4:13: revocation: service one: it wants"), strings.Index(text, "\nparts/services.yaml:3:20: services.one.ports[0].port: port 443 needs")
	if !errors.Is(err, iac.ErrRefused) || first < 0 || second < first {
		t.Errorf("%v", err)
	}
}
