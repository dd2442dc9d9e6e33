//go:build linux

package review_test

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	ecstypes "github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// beside is one more container of a task, like one that is there.
func beside(d *ecs.RegisterTaskDefinitionInput, like *ecstypes.ContainerDefinition, name string) *ecstypes.ContainerDefinition {
	more := *like
	more.Name, more.Essential, more.PortMappings, more.MountPoints, more.HealthCheck = &name, aws.Bool(false), nil, nil, nil
	more.DependsOn = []ecstypes.ContainerDependency{{ContainerName: aws.String("init"), Condition: ecstypes.ContainerConditionSuccess}}
	d.ContainerDefinitions = append(d.ContainerDefinitions, more)
	return &d.ContainerDefinitions[len(d.ContainerDefinitions)-1]
}

// in puts a text in the place of another in some texts.
func in(texts []string, old, with string) []string {
	return strings.Split(strings.ReplaceAll(strings.Join(texts, "\x00"), old, with), "\x00")
}

// faultsOfStarts are what init is told, who else has what it brings, and where else in a definition a key stands.
func faultsOfStarts() []fault {
	const about = "payments-checkout:"
	type containers = map[string]*ecstypes.ContainerDefinition
	plan := func(change func(string) string) func(*world) {
		return func(w *world) {
			w.define(func(_ *ecs.RegisterTaskDefinitionInput, all containers) {
				all["init"].Environment[0].Value = aws.String(change(aws.ToString(all["init"].Environment[0].Value)))
			})
		}
	}
	return []fault{
		{
			name: "one sees the processes of all", plant: func(w *world) {
				w.alter("ecs:DescribeTaskDefinition", about, replaced(`"networkMode":"awsvpc"`, `"networkMode":"awsvpc","pidMode":"task"`))
			},
			mend: (*world).straight, want: []string{"error container_rights"}, saying: []string{"its containers see one another's processes"},
		},
		{
			name: "one has the memory of all", plant: func(w *world) {
				w.alter("ecs:DescribeTaskDefinition", about, replaced(`"networkMode":"awsvpc"`, `"networkMode":"awsvpc","ipcMode":"task"`))
			},
			mend: (*world).straight, want: []string{"error container_rights"}, saying: []string{"or shared memory"},
		},
		{name: "others with the certificates", plant: func(w *world) {
			w.define(func(d *ecs.RegisterTaskDefinitionInput, all containers) {
				mount := all["proxy"].MountPoints[0]
				beside(d, all["ready"], "telemetry").MountPoints = []ecstypes.MountPoint{mount}
			})
		}, want: []string{"error certificates_mounted"}, saying: []string{"the container telemetry has the certificates and the key"}},
		{
			name: "others with the volumes of the proxy", plant: func(w *world) {
				w.alter("ecs:DescribeTaskDefinition", "payments-ledger:", replaced(`"name":"app"`, `"name":"app","volumesFrom":[{"sourceContainer":"proxy","readOnly":true}]`,
					`"dependsOn":[{"condition":"HEALTHY","containerName":"app"}`, `"dependsOn":[{"condition":"SUCCESS","containerName":"init"}`))
			},
			mend: (*world).straight, want: []string{"error certificates_mounted", "error not_success"}, saying: []string{"the container app has the certificates and the key"},
		},
		{name: "an agent with the certificates, and a secret by its ARN", plant: func(w *world) {
			w.define(func(d *ecs.RegisterTaskDefinitionInput, all containers) {
				all["init"].Command = in(all["init"].Command, "secretsmanager:payments/checkout", "secretsmanager:"+w.secretARN("payments/checkout"))
				agent := beside(d, all["ready"], "agent")
				agent.Command, agent.MountPoints = []string{"agent", "run"}, []ecstypes.MountPoint{all["proxy"].MountPoints[0]}
			})
		}},
		{name: "the secrets of others", plant: func(w *world) {
			w.define(func(_ *ecs.RegisterTaskDefinitionInput, all containers) {
				all["init"].Command = in(all["init"].Command, "secretsmanager:payments/checkout", "secretsmanager:payments/ledger")
				all["init"].Command = in(all["init"].Command, "secret:payments/bundle", "secret:elsewhere/bundle")
			})
		}, want: []string{"error init_differs", "error secret_of_another"}, saying: []string{"its init container reads payments/ledger, which is not for checkout", "reads the secret elsewhere/bundle, and the specification says payments/bundle"}},
		{name: "another Plan", plant: plan(func(text string) string { return strings.ReplaceAll(text, `["POST"]`, `["POST","DELETE"]`) }), want: []string{"error init_differs"}, saying: []string{"another Plan than that of the specification", "(inbound)"}},
		{name: "no Plan", plant: plan(func(string) string { return "{" }), want: []string{"error init_differs"}, saying: []string{"a Plan that cannot be read"}},
		{name: "a secret by a variable, of another account, and a Plan of a file", plant: func(w *world) {
			w.define(func(_ *ecs.RegisterTaskDefinitionInput, all containers) {
				all["init"].Command = in(all["init"].Command, "--from\x00secretsmanager:payments/checkout\x00", "")
				all["init"].Command = in(all["init"].Command, "env:COUNTERSIGN_PLAN", "/plan.json")
				variable(all["init"], "COUNTERSIGN_SECRET", "arn:aws:secretsmanager:eu-central-1:999999999999:secret:payments/checkout-AbCdEf")
			})
		}, want: []string{"error init_differs", "unknown undecided"}, saying: []string{
			"reads the secret arn:aws:secretsmanager:eu-central-1:999999999999:secret:payments/checkout-AbCdEf", "takes the Plan from /plan.json",
		}},
		{
			name: "a Plan of elsewhere", plant: func(w *world) {
				w.alter("ecs:DescribeTaskDefinition", about, replaced("env:COUNTERSIGN_PLAN", "env:PLAN", `"name":"init"`, `"name":"init","secrets":[{"name":"PLAN","valueFrom":"arn:aws:ssm:eu-central-1:123456789012:parameter/plan"}]`, "/plan.json", "env:PLAN"))
			},
			mend: (*world).straight, want: []string{"unknown undecided"}, saying: []string{"takes the Plan from elsewhere"},
		},
		keysElsewhere(about),
	}
}

// keysElsewhere are keys in other forms, and in fields that nobody thinks of.
func keysElsewhere(about string) fault {
	var zipped bytes.Buffer
	into := gzip.NewWriter(&zipped)
	if _, err := into.Write([]byte(notAKey)); err != nil {
		panic(err)
	}
	if err := into.Close(); err != nil {
		panic(err)
	}
	const account = "aB3/aB3/aB3/aB3/aB3/aB3/aB3/aB3/aB3/aB3/"
	escaped := strings.ReplaceAll(notAKey, "\n", `\n`)
	planted := fault{
		name: "keys where nobody looks", plant: func(w *world) {
			w.define(func(_ *ecs.RegisterTaskDefinitionInput, all map[string]*ecstypes.ContainerDefinition) {
				app := all["app"]
				variable(app, notAKey, "x")
				variable(app, "JWK", `{"kty":"EC","crv":"P-256","d":"870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE"}`)
				variable(app, "ZIPPED", base64.StdEncoding.EncodeToString(zipped.Bytes()))
				variable(app, "DIGITS", hex.EncodeToString([]byte(notAKey)))
				variable(app, "PUTTY", "PuTTY-User-Key-File-3: ssh-ed25519")
				variable(app, "SSH", "---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----")
				variable(app, "ACCOUNT", `{"AccessKeyId":"AKIA","SecretAccessKey":"`+account+`"}`)
				app.Command = append(app.Command, "--aws-secret-access-key="+account)
			})
			w.alter("ecs:DescribeTaskDefinition", about, replaced(`"name":"app"`, `"name":"app","workingDirectory":"`+escaped+`","hostname":"`+escaped+`","dockerSecurityOptions":["credentialspec:`+escaped+`"]`,
				`"volumes":[`, `"volumes":[{"name":"v","dockerVolumeConfiguration":{"driverOpts":{"o":"`+escaped+`"}}},`))
		},
		mend: (*world).straight,
		saying: []string{
			"the container app has a private key in the name of a variable", "the variable JWK", "the variable ZIPPED", "the variable DIGITS", "the variable PUTTY", "the variable SSH",
			"has the secret access key of an account in the variable ACCOUNT", "has the secret access key of an account in its command",
			"a private key in its workingDirectory", "a private key in its hostname", "a private key in its dockerSecurityOptions", "the definition has a private key in its volumes.dockerVolumeConfiguration.driverOpts.o",
		},
	}
	for range planted.saying {
		planted.want = append(planted.want, "error key_in_definition")
	}
	return planted
}
