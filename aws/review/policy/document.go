// Package policy reads policies of IAM that others wrote, and tells what they let somebody do as far as that can be told from
// the outside: yes, no, or not to be decided. It takes what it does not know for neither, so that a condition that it cannot
// see through never makes anything look better than it is.
//
// The rules are those of
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html, for callers of the resource's
// own account. Organizations and sessions may narrow what is allowed here; they are not seen.
package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// ErrPolicy is what every error about a policy's text is.
var ErrPolicy = errors.New("not a policy that can be read")

// MaxSize is the length of the longest policy that is read, in bytes; AWS takes up to 32 KiB (for a key).
const MaxSize = 64 << 10

// Document is a policy. It does not change.
type Document struct{ Statements []Statement }

// Statement is one statement as it is written. Of each pair with Not, one is set.
type Statement struct {
	Sid                        string
	Deny                       bool
	Actions, NotActions        []string
	Resources, NotResources    []string
	Principals, NotPrincipals  []Principal
	conditions                 []condition
	hasPrincipal, hasResources bool
}

// Principal is one entry of a Principal: AWS, Service, Federated or CanonicalUser, and its value. Everybody is AWS "*".
type Principal struct{ Kind, Value string }

// condition is one key of one operator.
type condition struct {
	operator, key string
	values        []string
}

// words is a string or a list of them, as policies write both; numbers and truth values are taken as they are spelled.
type words []string

// UnmarshalJSON implements [json.Unmarshaler].
func (w *words) UnmarshalJSON(data []byte) error {
	list := []json.RawMessage{data}
	if bytes.HasPrefix(data, []byte("[")) {
		if err := json.Unmarshal(data, &list); err != nil {
			return err
		}
	}
	*w = words{}
	for _, raw := range list {
		var s string
		switch {
		case bytes.HasPrefix(raw, []byte(`"`)):
			if err := json.Unmarshal(raw, &s); err != nil {
				return err
			}
		case len(raw) == 0 || bytes.ContainsAny(raw[:1], "{[n"):
			return errors.New("want a string or a list of strings")
		default:
			s = string(raw)
		}
		*w = append(*w, s)
	}
	return nil
}

type statementJSON struct {
	Sid                     string
	Effect                  string
	Action, NotAction       words
	Resource, NotResource   words
	Principal, NotPrincipal json.RawMessage
	Condition               map[string]map[string]words
}

// Parse reads a policy. Its errors are ErrPolicy.
func Parse(text string) (*Document, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrPolicy, MaxSize)
	}
	var whole struct{ Statement json.RawMessage }
	if err := json.Unmarshal([]byte(text), &whole); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	raw := bytes.TrimSpace(whole.Statement)
	var statements []statementJSON
	if bytes.HasPrefix(raw, []byte("{")) {
		raw = append(append([]byte("["), raw...), ']')
	}
	if err := json.Unmarshal(raw, &statements); err != nil {
		return nil, fmt.Errorf("%w: Statement: %w", ErrPolicy, err)
	}
	document := &Document{}
	for i, in := range statements {
		s, err := in.statement()
		if err != nil {
			return nil, fmt.Errorf("%w: statement %d (Sid %.60q): %w", ErrPolicy, i+1, in.Sid, err)
		}
		document.Statements = append(document.Statements, s)
	}
	return document, nil
}

func (in statementJSON) statement() (Statement, error) {
	s := Statement{
		Sid: in.Sid, Deny: in.Effect == "Deny", Actions: in.Action, NotActions: in.NotAction, Resources: in.Resource, NotResources: in.NotResource,
		hasResources: in.Resource != nil || in.NotResource != nil, hasPrincipal: in.Principal != nil || in.NotPrincipal != nil,
	}
	switch {
	case in.Effect != "Allow" && in.Effect != "Deny":
		return s, fmt.Errorf("the Effect is %.20q, want Allow or Deny", in.Effect)
	case (in.Action == nil) == (in.NotAction == nil):
		return s, errors.New("want Action or NotAction")
	case in.Resource != nil && in.NotResource != nil, in.Principal != nil && in.NotPrincipal != nil:
		return s, errors.New("an element and its Not exclude each other")
	}
	var err error
	if s.Principals, err = principals(in.Principal); err != nil {
		return s, err
	}
	if s.NotPrincipals, err = principals(in.NotPrincipal); err != nil {
		return s, err
	}
	for operator, keys := range in.Condition {
		for key, values := range keys {
			s.conditions = append(s.conditions, condition{operator, strings.ToLower(key), values})
		}
	}
	return s, nil
}

func principals(raw json.RawMessage) ([]Principal, error) {
	if raw == nil {
		return nil, nil
	}
	if string(bytes.TrimSpace(raw)) == `"*"` {
		return []Principal{{"AWS", "*"}}, nil
	}
	var kinds map[string]words
	if err := json.Unmarshal(raw, &kinds); err != nil {
		return nil, fmt.Errorf("the Principal: %w", err)
	}
	found := []Principal{}
	for kind, values := range kinds {
		for _, value := range values {
			found = append(found, Principal{kind, value})
		}
	}
	return found, nil
}

// Opaque is a policy that nobody could read: it may allow anything, and denies nothing for certain.
func Opaque() *Document {
	return &Document{Statements: []Statement{{Actions: words{"*"}, conditions: []condition{{operator: "unknown"}}}}}
}
