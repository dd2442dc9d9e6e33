package review

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"countersign.dev/aws/review/leak"
)

// What to do about what was seen.
const (
	mendSeen    = "take it out, and use a secret; then rotate, because it has been seen: `countersign rotate once SERVICE --force`; an old revision is deregistered and deleted (`aws ecs delete-task-definitions`)"
	mendAccount = "take it out: a task has a role; and delete the access key (`aws iam delete-access-key`), because it has been seen"
)

// judgeTexts looks for what is secret in what a definition says openly: in every text of it, whatever it is for.
func (r *reviewer) judgeTexts(arn string, d *types.TaskDefinition, current bool) {
	whose := "the "
	if !current {
		whose = "the old revision's "
	}
	whole := *d
	whole.ContainerDefinitions = nil
	r.judgeRest(arn, whose+"definition", whole)
	for i := range d.ContainerDefinitions {
		c := d.ContainerDefinitions[i]
		where := whose + "container " + shortly(aws.ToString(c.Name))
		r.judgeContainer(arn, where, &c)
		// What was looked at is not looked at again under another name.
		c.Environment, c.EntryPoint, c.Command, c.HealthCheck, c.DockerLabels, c.LogConfiguration = nil, nil, nil, nil, nil, nil
		r.judgeRest(arn, where, c)
	}
}

// judgeText looks for a key or a certificate in a text, and what it is in.
func (r *reviewer) judgeText(arn, where, what, text string) {
	switch leak.Find(text) {
	case leak.Key:
		r.add(Error, KeyInDefinition, arn, where+" has a private key in "+what, mendSeen)
	case leak.PEM:
		r.add(Warning, CertInDefinition, arn, where+" has a certificate, or something else in PEM, in "+what, "take it from a secret: a definition outlives what it quotes")
	case leak.Nothing:
	}
	if leak.Account(text) {
		r.add(Error, KeyInDefinition, arn, where+" has the secret access key of an account in "+what, mendAccount)
	}
}

// judgeContainer looks at the texts of a container that have a meaning of their own.
func (r *reviewer) judgeContainer(arn, where string, c *types.ContainerDefinition) {
	for _, pair := range c.Environment {
		name, value := aws.ToString(pair.Name), aws.ToString(pair.Value)
		what := "the variable " + shortly(name)
		r.judgeText(arn, where, "the name of a variable", name)
		r.judgeText(arn, where, what, value)
		if leak.Passphrase(name, value) {
			r.add(Error, PassInDefinition, arn, where+" has a passphrase in "+what, mendSeen)
		}
		if leak.AccessKey(name, value) {
			r.add(Error, KeyInDefinition, arn, where+" has the secret access key of an account in "+what, mendAccount)
		}
	}
	words := slices.Concat(c.EntryPoint, c.Command)
	r.judgeText(arn, where, "its command", strings.Join(words, " "))
	if leak.Option(words) {
		r.add(Error, PassInDefinition, arn, where+" has a passphrase in its command", mendSeen)
	}
	for _, file := range c.EnvironmentFiles {
		r.add(Unknown, EnvironmentFile, arn, where+" takes variables from the file "+shortly(aws.ToString(file.Value))+", which is not read here: whoever reads it has what stands in it",
			"see that no key and no passphrase stands in it, or do without it: what is secret comes from Secrets Manager")
	}
	if c.HealthCheck != nil {
		r.judgeText(arn, where, "its health check", strings.Join(c.HealthCheck.Command, " "))
	}
	for _, label := range sorted(c.DockerLabels) {
		r.judgeText(arn, where, "the name of a label", label)
		r.judgeText(arn, where, "the label "+shortly(label), c.DockerLabels[label])
	}
	if c.LogConfiguration == nil {
		return
	}
	for _, option := range sorted(c.LogConfiguration.Options) {
		r.judgeText(arn, where, "the option "+shortly(option)+" of its log", c.LogConfiguration.Options[option])
		if leak.Credential(option, c.LogConfiguration.Options[option]) {
			r.add(Error, PassInDefinition, arn, where+" has a credential in the option "+shortly(option)+" of its log", "name it in the log's secretOptions, and replace it, because it has been seen")
		}
	}
}

// judgeRest looks at all other texts of a part of a definition, whatever AWS calls them.
func (r *reviewer) judgeRest(arn, where string, part any) {
	text, err := json.Marshal(part)
	var tree any
	if err == nil {
		err = json.Unmarshal(text, &tree)
	}
	if err != nil {
		r.add(Unknown, Undecided, arn, fmt.Sprintf("%s has texts that cannot be looked at: %v", where, err), "see that no key and no passphrase stands in it")
		return
	}
	r.walk(arn, where, "", tree)
}

// walk looks at all texts of a tree. Lists of words are looked at together, too: one may have been cut into several.
func (r *reviewer) walk(arn, where, field string, tree any) {
	switch node := tree.(type) {
	case string:
		r.judgeText(arn, where, "its "+field, node)
	case []any:
		var words []string
		for _, item := range node {
			if word, ok := item.(string); ok {
				words = append(words, word)
			} else {
				r.walk(arn, where, field, item)
			}
		}
		r.judgeText(arn, where, "its "+field, strings.Join(words, " "))
	case map[string]any:
		for _, key := range sorted(node) {
			name := shortly(lower(key))
			if field != "" {
				name = field + "." + name
			}
			r.judgeText(arn, where, "a name in its "+field, key)
			r.walk(arn, where, name, node[key])
		}
	}
}

// lower is what AWS calls a field of the SDK.
func lower(field string) string {
	letters := []rune(field)
	if len(letters) > 0 {
		letters[0] = unicode.ToLower(letters[0])
	}
	return string(letters)
}

// shortly is a name that somebody chose, without what may be secret in it.
func shortly(name string) string {
	const most = 80
	if leak.Find(name) != leak.Nothing || leak.Account(name) {
		return "with that in its name"
	}
	if letters := []rune(name); len(letters) > most {
		return string(letters[:most]) + "..."
	}
	return name
}
