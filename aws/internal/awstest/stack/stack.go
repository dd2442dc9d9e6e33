// Package stack is a double of CloudFormation: it creates a template's resources through the SDK's clients, in the
// order of their references, and changes them when the template does. An unknown resource type, function or
// property is an error, never ignored. What no double has (security groups, functions, log groups, topics) is checked
// and recorded, so that tests can look at it.
package stack

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"

	"countersign.dev/aws/internal/awstest/ecsfake/shape"
	"countersign.dev/aws/internal/awstest/stack/template"
)

// Options say where a stack is created, and by whom. All are needed.
type Options struct {
	// Config reaches every service, as somebody who may create everything.
	Config aws.Config
	// Account is whose ARNs the resources have.
	Account string
	// Name is the stack's; names that the template does not give begin with it.
	Name string
}

// Stack is what was created. It is not safe for concurrent use.
type Stack struct {
	// Outputs are the template's, worked out.
	Outputs map[string]string

	options   Options
	clients   clients
	resources map[string]*Resource
	order     []string
	pseudo    map[string]string
}

// Resource is one resource that was created.
type Resource struct {
	ID, Type string
	// Properties are the template's, worked out.
	Properties map[string]any
	// Physical is what Ref gives, and Attributes what Fn::GetAtt does.
	Physical   string
	Attributes map[string]string
}

// result is what a resource is known by once it is there.
type result struct {
	physical   string
	attributes map[string]string
}

// maker makes a resource of some type, or makes an old one what the properties say.
type maker func(ctx context.Context, s *Stack, id string, properties map[string]any, old *Resource) (result, error)

// kind is what the double knows of a type.
type kind struct {
	make maker
	// fixed are resources that cannot be changed once they are there.
	fixed bool
}

// Create creates the resources of a template. What was created before an error stays there: the stack that is given
// beside the error can be deleted.
func Create(ctx context.Context, options Options, text []byte, parameters map[string]string) (*Stack, error) {
	s := &Stack{
		options: options, clients: connect(options.Config), resources: map[string]*Resource{},
		pseudo: map[string]string{
			"AWS::Region": options.Config.Region, "AWS::AccountId": options.Account, "AWS::Partition": "aws", "AWS::StackName": options.Name,
			"AWS::StackId":   "arn:aws:cloudformation:" + options.Config.Region + ":" + options.Account + ":stack/" + options.Name + "/1",
			"AWS::URLSuffix": "amazonaws.com",
		},
	}
	return s, s.Update(ctx, text, parameters)
}

// Update creates what a template has and the stack has not, and changes what differs. A resource that is to
// go, or that cannot be changed, is an error.
func (s *Stack) Update(ctx context.Context, text []byte, parameters map[string]string) error {
	t, err := template.Parse(text)
	if err != nil {
		return err
	}
	for _, r := range t.Resources {
		if _, known := kinds[r.Type]; !known {
			return fmt.Errorf("resource %s: the type %s is not understood", r.ID, r.Type)
		}
	}
	values, err := t.Resolve(parameters, s.pseudo)
	if err != nil {
		return err
	}
	values.Ref, values.Attribute = s.ref, s.attribute
	wanted := map[string]bool{}
	for _, r := range t.Resources {
		if r.Condition != "" && !values.Conditions[r.Condition] {
			continue
		}
		wanted[r.ID] = true
		if err := s.ensure(ctx, values, r); err != nil {
			return fmt.Errorf("resource %s (%s): %w", r.ID, r.Type, err)
		}
	}
	for _, id := range s.order {
		if !wanted[id] {
			return fmt.Errorf("resource %s is no more in the template: the double deletes only whole stacks", id)
		}
	}
	return s.output(values, t.Outputs)
}

// ensure makes one resource what the template says.
func (s *Stack) ensure(ctx context.Context, values *template.Values, r template.Resource) error {
	document, err := values.Evaluate(r.Properties)
	if err != nil {
		return fmt.Errorf("properties%w", err)
	}
	properties, ok := document.(map[string]any)
	if !ok {
		return errors.New("the properties are no map")
	}
	old := s.resources[r.ID]
	k := kinds[r.Type]
	switch {
	case old == nil:
	case old.Type != r.Type:
		return fmt.Errorf("it was a %s", old.Type)
	case reflect.DeepEqual(old.Properties, properties):
		return nil
	case k.fixed:
		return errors.New("it is to be changed, which the double does not do for this type")
	}
	made, err := k.make(ctx, s, r.ID, properties, old)
	if err != nil {
		return err
	}
	if old == nil {
		s.order = append(s.order, r.ID)
	}
	s.resources[r.ID] = &Resource{ID: r.ID, Type: r.Type, Properties: properties, Physical: made.physical, Attributes: made.attributes}
	return nil
}

// output works the outputs out.
func (s *Stack) output(values *template.Values, outputs map[string]any) error {
	s.Outputs = map[string]string{}
	for id, document := range outputs {
		members, ok := document.(map[string]any)
		if !ok {
			return fmt.Errorf("the output %s is no map", id)
		}
		for name := range members {
			if !slices.Contains([]string{"Value", "Description", "Export", "Condition"}, name) {
				return fmt.Errorf("the member %s of the output %s is not understood", name, id)
			}
		}
		if condition, there := members["Condition"]; there && !values.Conditions[fmt.Sprint(condition)] {
			continue
		}
		value, err := values.Evaluate(members["Value"])
		if err != nil {
			return fmt.Errorf("output %s: %w", id, err)
		}
		s.Outputs[id] = fmt.Sprint(value)
	}
	return nil
}

// ref is what Ref of a resource gives.
func (s *Stack) ref(id string) (string, error) {
	if r := s.resources[id]; r != nil {
		return r.Physical, nil
	}
	return "", fmt.Errorf("the resource %s is not there", id)
}

// attribute is what Fn::GetAtt gives.
func (s *Stack) attribute(id, name string) (string, error) {
	r := s.resources[id]
	if r == nil {
		return "", fmt.Errorf("the resource %s is not there", id)
	}
	value, known := r.Attributes[name]
	if !known {
		return "", fmt.Errorf("the attribute %s of %s (%s) is not understood: there are %q", name, id, r.Type, slices.Sorted(maps.Keys(r.Attributes)))
	}
	return value, nil
}

// Resource gives what was created for a logical id.
func (s *Stack) Resource(id string) (Resource, bool) {
	if r := s.resources[id]; r != nil {
		return *r, true
	}
	return Resource{}, false
}

// Resources gives what was created of a type, in the order of creation.
func (s *Stack) Resources(kind string) []Resource {
	var found []Resource
	for _, id := range s.order {
		if r := s.resources[id]; r.Type == kind {
			found = append(found, *r)
		}
	}
	return found
}

// decode reads properties into a structure; what it does not have is an error.
func decode[T any](properties map[string]any) (*T, error) {
	value := new(T)
	if err := shape.Fill(value, properties, "Properties"); err != nil {
		return nil, err
	}
	return value, nil
}

// text is a document such as a policy, as JSON.
func text(document any) (string, error) {
	if s, ok := document.(string); ok {
		return s, nil
	}
	encoded, err := json.Marshal(document)
	if err != nil {
		return "", fmt.Errorf("write it as JSON: %w", err)
	}
	return string(encoded), nil
}

// named is the name that the template gives, or one made of the stack's, the resource's and chance, of at most so many
// characters, as CloudFormation makes them.
func (s *Stack) named(given *string, id string, most int) *string {
	if given != nil {
		return given
	}
	chance := "-" + rand.Text()[:8]
	name := s.options.Name + "-" + id
	if len(name)+len(chance) > most {
		name = name[:most-len(chance)]
	}
	return aws.String(name + chance)
}

// arn spells an ARN of this stack's account and region.
func (s *Stack) arn(service, resource string) string {
	return "arn:aws:" + service + ":" + s.options.Config.Region + ":" + s.options.Account + ":" + resource
}
