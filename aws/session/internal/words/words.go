// Package words knows how AWS words its errors: who was denied what, by which policy, and which KMS key stands behind it. It needs no
// SDK.
package words

import (
	"regexp"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// Message is what a message of AWS says. What it does not say is empty.
type Message struct {
	// Caller is the ARN of who was denied.
	Caller string
	// Action is what was denied, such as kms:Decrypt, and Resource what it was to be done to: an ARN or a name.
	Action, Resource string
	// Deny is the kind of policy that denies explicitly, such as "resource-based policy".
	Deny string
	// Key is the ARN of a KMS key, and OfKMS tells that the message is about one, named or not.
	Key   string
	OfKMS bool
}

const arnRest = `[A-Za-z0-9/_+=.@:*?$-]{1,300}`

// lazily compiles an expression when it is wanted first: a process that meets no error of AWS does without, in time and in memory.
func lazily(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}

var (
	callerIs   = lazily(`(arn:[a-z0-9-]{3,20}:(?:sts|iam)::[0-9]{12}:` + arnRest + `) is not authorized`)
	actionIs   = lazily(`perform:? ([a-z0-9-]{2,60}:[A-Za-z0-9]{2,80})`)
	resourceIs = lazily(`on (?:the )?resource:? (arn:[a-z0-9-]{3,20}:` + arnRest + `|[A-Za-z0-9/_+=.@-]{1,512})`)
	denyIs     = lazily(`with an explicit deny in (?:a |an |the )?([a-z -]{1,60}polic(?:y|ies))`)
	keyIs      = lazily(`arn:[a-z0-9-]{3,20}:kms:[a-z0-9-]{0,40}:[0-9]{12}:(?:key|alias)/[A-Za-z0-9/_-]{1,256}`)
	ofKMS      = lazily(`(?i)perform:? kms:|arn:[a-z0-9-]+:kms:|access to kms|kms (?:customer )?key|key.{0,60} kms`)
)

// Read reads a message.
func Read(text string) Message {
	first := func(expression func() *regexp.Regexp) string {
		if found := expression().FindStringSubmatch(text); found != nil {
			return strings.TrimSpace(found[1])
		}
		return ""
	}
	return Message{
		Caller: first(callerIs), Action: first(actionIs), Resource: strings.TrimRight(first(resourceIs), "."), Deny: first(denyIs),
		Key: keyIs().FindString(text), OfKMS: ofKMS().MatchString(text),
	}
}

// MaxShown bounds what is shown of AWS's own words, in bytes.
const MaxShown = 600

// Show is a text fit for one line of a log; empty when it quotes a key.
func Show(text string) string {
	if strings.Contains(text, "-----BEGIN") || strings.Contains(text, "PRIVATE KEY") {
		return ""
	}
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
	if len(text) > MaxShown {
		end := MaxShown
		for !utf8.RuneStart(text[end]) {
			end--
		}
		text = text[:end] + " ..."
	}
	return text
}
