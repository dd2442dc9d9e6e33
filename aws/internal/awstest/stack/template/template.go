// Package template reads CloudFormation templates and works out what their intrinsic functions stand for, for
// the double that creates stacks. What it does not know is an error, never ignored.
package template

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Limits of what is read; CloudFormation's own are 1 MB and 500 resources.
const (
	maxSize  = 1 << 20
	maxDepth = 60
)

// Template is a template that was read, with its intrinsic functions still in it, in their long form.
type Template struct {
	Parameters map[string]map[string]any
	Conditions map[string]any
	// Resources are in the order of the template.
	Resources []Resource
	Outputs   map[string]any
}

// Resource is one resource of a template.
type Resource struct {
	ID, Type   string
	Properties map[string]any
	Condition  string
	// After are the resources that have to be there before, by DependsOn and by reference.
	After []string
}

// Parse reads a template in YAML or JSON.
func Parse(text []byte) (*Template, error) {
	if len(text) > maxSize {
		return nil, fmt.Errorf("the template has %d bytes, more than %d", len(text), maxSize)
	}
	var node yaml.Node
	if err := yaml.Unmarshal(text, &node); err != nil {
		return nil, fmt.Errorf("read the template: %w", err)
	}
	if len(node.Content) != 1 {
		return nil, errors.New("the template is empty")
	}
	document, err := convert(node.Content[0], 0)
	if err != nil {
		return nil, err
	}
	sections, ok := document.(map[string]any)
	if !ok {
		return nil, errors.New("the template is no map")
	}
	t := &Template{Parameters: map[string]map[string]any{}, Conditions: map[string]any{}, Outputs: map[string]any{}}
	for name, section := range sections {
		if err := t.section(name, section); err != nil {
			return nil, err
		}
	}
	if len(t.Resources) == 0 {
		return nil, errors.New("the template has no resources")
	}
	slices.SortFunc(t.Resources, func(a, b Resource) int {
		return position(node.Content[0], a.ID) - position(node.Content[0], b.ID)
	})
	return t, t.check()
}

// position is the line at which a resource stands.
func position(root *yaml.Node, id string) int {
	for i := 0; i+1 < len(root.Content); i += 2 {
		if root.Content[i].Value != "Resources" {
			continue
		}
		for _, key := range root.Content[i+1].Content {
			if key.Value == id && key.Kind == yaml.ScalarNode {
				return key.Line*1000 + key.Column
			}
		}
	}
	return 0
}

// section takes one section of the template.
func (t *Template) section(name string, section any) error {
	switch name {
	case "AWSTemplateFormatVersion", "Description", "Metadata":
		return nil
	}
	members, ok := section.(map[string]any)
	if !ok {
		return fmt.Errorf("the section %s is no map", name)
	}
	switch name {
	case "Parameters":
		for id, parameter := range members {
			description, ok := parameter.(map[string]any)
			if !ok {
				return fmt.Errorf("the parameter %s is no map", id)
			}
			t.Parameters[id] = description
		}
	case "Conditions":
		t.Conditions = members
	case "Outputs":
		t.Outputs = members
	case "Resources":
		for id, resource := range members {
			r, err := readResource(id, resource)
			if err != nil {
				return err
			}
			t.Resources = append(t.Resources, r)
		}
	default:
		return fmt.Errorf("the section %s is not understood", name)
	}
	return nil
}

// readResource takes one resource.
func readResource(id string, document any) (Resource, error) {
	r := Resource{ID: id, Properties: map[string]any{}}
	members, ok := document.(map[string]any)
	if !ok {
		return r, fmt.Errorf("the resource %s is no map", id)
	}
	for name, member := range members {
		ok := true
		switch name {
		case "Type":
			r.Type, ok = member.(string)
		case "Properties":
			r.Properties, ok = member.(map[string]any)
		case "Condition":
			r.Condition, ok = member.(string)
		case "DependsOn":
			r.After, ok = names(member)
		case "DeletionPolicy", "UpdateReplacePolicy":
			ok = slices.Contains([]any{"Delete", "Retain", "RetainExceptOnCreate", "Snapshot"}, member)
		case "Metadata":
		default:
			return r, fmt.Errorf("the member %s of the resource %s is not understood", name, id)
		}
		if !ok {
			return r, fmt.Errorf("the member %s of the resource %s is not what it should be", name, id)
		}
	}
	if r.Type == "" {
		return r, fmt.Errorf("the resource %s has no type", id)
	}
	references(r.Properties, func(name string) { r.After = append(r.After, name) })
	return r, nil
}

// names are one name or a list of them.
func names(document any) ([]string, bool) {
	if name, ok := document.(string); ok {
		return []string{name}, true
	}
	list, ok := document.([]any)
	var all []string
	for _, element := range list {
		name, isName := element.(string)
		ok = ok && isName
		all = append(all, name)
	}
	return all, ok
}

// references tells every name that a document refers to, whether it is a resource's or not.
func references(document any, tell func(name string)) {
	switch value := document.(type) {
	case []any:
		for _, element := range value {
			references(element, tell)
		}
	case map[string]any:
		for name, member := range value {
			switch name {
			case "Ref":
				if id, ok := member.(string); ok {
					tell(id)
				}
			case "Fn::GetAtt":
				if id, _, err := attribute(member); err == nil {
					tell(id)
				}
			case "Fn::Sub":
				text, _ := member.(string)
				if list, ok := member.([]any); ok && len(list) == 2 {
					text, _ = list[0].(string)
				}
				_, _ = substitute(text, func(place string) (string, error) { // errors come when it is evaluated
					id, _, _ := strings.Cut(place, ".")
					tell(id)
					return "", nil
				})
			}
			references(member, tell)
		}
	}
}

// check refuses names that lead nowhere, and puts the resources into an order in which they can be created.
func (t *Template) check() error {
	known := map[string]bool{}
	for _, r := range t.Resources {
		known[r.ID] = true
	}
	for i, r := range t.Resources {
		var after []string
		for _, name := range r.After {
			_, isParameter := t.Parameters[name]
			switch {
			case known[name] && !slices.Contains(after, name):
				after = append(after, name)
			case !known[name] && !isParameter && !strings.HasPrefix(name, "AWS::") && !strings.Contains(name, "::"):
				if !t.local(r.Properties, name) {
					return fmt.Errorf("the resource %s refers to %s, which is not there", r.ID, name)
				}
			}
		}
		t.Resources[i].After = after
		if _, there := t.Conditions[r.Condition]; r.Condition != "" && !there {
			return fmt.Errorf("the condition %s of the resource %s is not there", r.Condition, r.ID)
		}
	}
	return t.sort()
}

// local says whether a name is one that a Fn::Sub defines for itself.
func (t *Template) local(document any, name string) bool {
	found := false
	var look func(document any)
	look = func(document any) {
		switch value := document.(type) {
		case []any:
			for _, element := range value {
				look(element)
			}
		case map[string]any:
			if list, ok := value["Fn::Sub"].([]any); ok && len(list) == 2 {
				variables, _ := list[1].(map[string]any)
				_, there := variables[name]
				found = found || there
			}
			for _, member := range value {
				look(member)
			}
		}
	}
	look(document)
	return found
}

// sort orders the resources so that each comes after those it needs, otherwise as they are written.
func (t *Template) sort() error {
	done := map[string]bool{}
	var sorted []Resource
	left := t.Resources
	for len(left) > 0 {
		i := slices.IndexFunc(left, func(r Resource) bool {
			return !slices.ContainsFunc(r.After, func(name string) bool { return !done[name] })
		})
		if i < 0 {
			return fmt.Errorf("the resources refer to each other in a circle; %s is in it or waits for it", left[0].ID)
		}
		done[left[i].ID] = true
		sorted = append(sorted, left[i])
		left = slices.Delete(slices.Clone(left), i, i+1)
	}
	t.Resources = sorted
	return nil
}

// short are the tags of YAML that stand for intrinsic functions.
var short = map[string]string{
	"!Ref": "Ref", "!Condition": "Condition", "!GetAtt": "Fn::GetAtt", "!Sub": "Fn::Sub", "!Join": "Fn::Join", "!Select": "Fn::Select", "!Split": "Fn::Split",
	"!If": "Fn::If", "!Equals": "Fn::Equals", "!Not": "Fn::Not", "!And": "Fn::And", "!Or": "Fn::Or",
}

// convert makes maps, lists and values of YAML, with the short forms of functions made long. Numbers keep their spelling.
func convert(node *yaml.Node, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("line %d: more than %d levels", node.Line, maxDepth)
	}
	tag := node.Tag
	if strings.HasPrefix(tag, "!") && !strings.HasPrefix(tag, "!!") {
		function, known := short[tag]
		if !known {
			return nil, fmt.Errorf("line %d: the function %s is not understood", node.Line, tag)
		}
		plain := *node
		plain.Tag = ""
		if node.Kind == yaml.ScalarNode {
			plain.Tag = "!!str"
		}
		argument, err := convert(&plain, depth+1)
		return map[string]any{function: argument}, err
	}
	switch node.Kind {
	case yaml.MappingNode:
		return convertMap(node, depth)
	case yaml.SequenceNode:
		list := make([]any, 0, len(node.Content))
		for _, element := range node.Content {
			value, err := convert(element, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, value)
		}
		return list, nil
	case yaml.ScalarNode:
		return convertScalar(node)
	default:
		return nil, fmt.Errorf("line %d: aliases are not understood", node.Line)
	}
}

// convertMap makes a map.
func convertMap(node *yaml.Node, depth int) (any, error) {
	members := map[string]any{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key := node.Content[i]
		if key.Kind != yaml.ScalarNode || key.Tag == "!!merge" {
			return nil, fmt.Errorf("line %d: a key that is no word", key.Line)
		}
		if _, twice := members[key.Value]; twice {
			return nil, fmt.Errorf("line %d: %s is there twice", key.Line, key.Value)
		}
		value, err := convert(node.Content[i+1], depth+1)
		if err != nil {
			return nil, err
		}
		members[key.Value] = value
	}
	return members, nil
}

// convertScalar makes one value. What YAML takes for a date is a text here, as in CloudFormation.
func convertScalar(node *yaml.Node) (any, error) {
	switch node.ShortTag() {
	case "!!null":
		return nil, fmt.Errorf("line %d: null values are not allowed in templates", node.Line)
	case "!!bool":
		var value bool
		if err := node.Decode(&value); err != nil {
			return nil, fmt.Errorf("line %d: %w", node.Line, err)
		}
		return value, nil
	case "!!int", "!!float":
		if json.Valid([]byte(node.Value)) {
			return json.Number(node.Value), nil
		}
		return node.Value, nil
	default:
		return node.Value, nil
	}
}
