package template

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Values are what references stand for.
type Values struct {
	// Parameters hold a string, or a []any of strings for a list.
	Parameters map[string]any
	// Conditions are the template's, worked out.
	Conditions map[string]bool
	// Pseudo are the pseudo parameters, such as AWS::Region.
	Pseudo map[string]string
	// Ref and Attribute ask for what a resource that is there stands for.
	Ref       func(id string) (string, error)
	Attribute func(id, name string) (string, error)
}

// Resolve checks the parameters that are given, takes the others' defaults, and works the conditions out.
func (t *Template) Resolve(given, pseudo map[string]string) (*Values, error) {
	v := &Values{Parameters: map[string]any{}, Conditions: map[string]bool{}, Pseudo: pseudo}
	for name := range given {
		if t.Parameters[name] == nil {
			return nil, fmt.Errorf("the template has no parameter %s", name)
		}
	}
	for name, description := range t.Parameters {
		text, isGiven := given[name]
		value, err := parameter(description, text, isGiven)
		if err != nil {
			return nil, fmt.Errorf("parameter %s: %w", name, err)
		}
		v.Parameters[name] = value
	}
	noResource := func(id string) (string, error) {
		return "", fmt.Errorf("%s: a condition cannot refer to a resource", id)
	}
	v.Ref, v.Attribute = noResource, func(id, _ string) (string, error) { return noResource(id) }
	// Conditions can refer to each other: each round works out those whose parts are known.
	for range t.Conditions {
		for name, condition := range t.Conditions {
			if _, done := v.Conditions[name]; done {
				continue
			}
			if holds, err := v.holds(condition); err == nil {
				v.Conditions[name] = holds
			}
		}
	}
	for name, condition := range t.Conditions {
		if _, err := v.holds(condition); err != nil {
			return nil, fmt.Errorf("condition %s: %w", name, err)
		}
	}
	return v, nil
}

// parameter is the value of one parameter.
func parameter(description map[string]any, text string, given bool) (any, error) {
	for name := range description {
		if !slices.Contains([]string{"Type", "Default", "Description", "AllowedValues", "AllowedPattern", "ConstraintDescription", "MinValue", "MaxValue", "MinLength", "MaxLength", "NoEcho"}, name) {
			return nil, fmt.Errorf("the member %s is not understood", name)
		}
	}
	if !given {
		value, there := description["Default"]
		if !there {
			return nil, errors.New("it has no default, and no value was given")
		}
		text = fmt.Sprint(value)
	}
	kind := fmt.Sprint(description["Type"])
	switch {
	case kind == "String" || strings.HasPrefix(kind, "AWS::EC2::") || strings.HasPrefix(kind, "AWS::Route53::"):
		return text, constrain(description, text)
	case kind == "Number":
		if _, err := strconv.ParseFloat(text, 64); err != nil {
			return nil, fmt.Errorf("%q is no number", text)
		}
		return text, constrain(description, text)
	case kind == "CommaDelimitedList" || strings.HasPrefix(kind, "List<") && strings.HasSuffix(kind, ">"):
		var list []any
		for _, element := range strings.Split(text, ",") {
			if err := constrain(description, strings.TrimSpace(element)); err != nil {
				return nil, err
			}
			list = append(list, strings.TrimSpace(element))
		}
		return list, nil
	default:
		return nil, fmt.Errorf("the type %s is not understood", kind)
	}
}

// constrain refuses a value that a parameter's description forbids.
func constrain(description map[string]any, text string) error {
	if allowed, there := description["AllowedValues"]; there {
		list, _ := allowed.([]any)
		if !slices.ContainsFunc(list, func(value any) bool { return fmt.Sprint(value) == text }) {
			return fmt.Errorf("%q is none of %v", text, list)
		}
	}
	if pattern, there := description["AllowedPattern"]; there {
		matcher, err := regexp.Compile("^(?:" + fmt.Sprint(pattern) + ")$")
		if err != nil {
			return fmt.Errorf("the pattern: %w", err)
		}
		if !matcher.MatchString(text) {
			return fmt.Errorf("%q does not match %v", text, pattern)
		}
	}
	number, _ := strconv.ParseFloat(text, 64)
	for name, value := range map[string]float64{"MinValue": number, "MinLength": float64(len(text)), "MaxValue": -number, "MaxLength": -float64(len(text))} {
		bound, there := description[name]
		if !there {
			continue
		}
		limit, err := strconv.ParseFloat(fmt.Sprint(bound), 64)
		if err != nil {
			return fmt.Errorf("%s is no number", name)
		}
		if strings.HasPrefix(name, "Max") {
			limit = -limit
		}
		if value < limit {
			return fmt.Errorf("%q is out of %s %v", text, name, bound)
		}
	}
	return nil
}

// noValue stands for AWS::NoValue: a member or element that is left out.
type noValue struct{}

// Evaluate works out a document: no function is left in it, and members that are AWS::NoValue are left out.
func (v *Values) Evaluate(document any) (any, error) {
	switch value := document.(type) {
	case []any:
		list := make([]any, 0, len(value))
		for i, element := range value {
			result, err := v.Evaluate(element)
			if err != nil {
				return nil, fmt.Errorf("[%d]: %w", i, err)
			}
			if result != (noValue{}) {
				list = append(list, result)
			}
		}
		return list, nil
	case map[string]any:
		for name := range value {
			if name != "Ref" && !strings.HasPrefix(name, "Fn::") {
				continue
			}
			if len(value) != 1 {
				return nil, fmt.Errorf("%s stands beside other members", name)
			}
			return v.call(name, value[name])
		}
		members := map[string]any{}
		for name, member := range value {
			result, err := v.Evaluate(member)
			if err != nil {
				return nil, fmt.Errorf(".%s%w", name, dotted(err))
			}
			if result != (noValue{}) {
				members[name] = result
			}
		}
		return members, nil
	default:
		return document, nil
	}
}

// dotted puts a separator before an error unless it begins with a place.
func dotted(err error) error {
	if strings.HasPrefix(err.Error(), ".") || strings.HasPrefix(err.Error(), "[") {
		return err
	}
	return fmt.Errorf(": %w", err)
}

// call works out one function.
func (v *Values) call(name string, argument any) (any, error) {
	switch name {
	case "Ref":
		id, ok := argument.(string)
		if !ok {
			return nil, errors.New("a Ref that is no name")
		}
		return v.ref(id)
	case "Fn::GetAtt":
		id, attribute, err := attribute(argument)
		if err != nil {
			return nil, err
		}
		return v.Attribute(id, attribute)
	case "Fn::Sub":
		return v.sub(argument)
	case "Fn::Equals", "Fn::Not", "Fn::And", "Fn::Or":
		return v.holds(map[string]any{name: argument})
	}
	list, ok := argument.([]any)
	if !ok {
		return nil, fmt.Errorf("the argument of %s is no list", name)
	}
	switch name {
	case "Fn::Join":
		return v.join(list)
	case "Fn::Select":
		return v.choose(list)
	case "Fn::Split":
		return v.split(list)
	case "Fn::If":
		if len(list) != 3 {
			return nil, errors.New("a Fn::If that has not three arguments")
		}
		holds, known := v.Conditions[fmt.Sprint(list[0])]
		if !known {
			return nil, fmt.Errorf("the condition %v is not there", list[0])
		}
		if holds {
			return v.Evaluate(list[1])
		}
		return v.Evaluate(list[2])
	default:
		return nil, fmt.Errorf("the function %s is not understood", name)
	}
}

// ref is what a name stands for.
func (v *Values) ref(id string) (any, error) {
	if id == "AWS::NoValue" {
		return noValue{}, nil
	}
	if value, ok := v.Parameters[id]; ok {
		return value, nil
	}
	if strings.HasPrefix(id, "AWS::") {
		value, ok := v.Pseudo[id]
		if !ok {
			return nil, fmt.Errorf("the pseudo parameter %s is not understood", id)
		}
		return value, nil
	}
	return v.Ref(id)
}

// attribute reads the argument of Fn::GetAtt.
func attribute(argument any) (id, name string, err error) {
	if text, ok := argument.(string); ok {
		id, name, ok = strings.Cut(text, ".")
		if ok {
			return id, name, nil
		}
	}
	if list, ok := argument.([]any); ok && len(list) == 2 {
		id, isText := list[0].(string)
		name, isText2 := list[1].(string)
		if isText && isText2 {
			return id, name, nil
		}
	}
	return "", "", errors.New("a Fn::GetAtt that has not a resource and an attribute")
}

// placeholder is a place in the text of a Fn::Sub; `${!X}` stands for the text `${X}`.
var placeholder = regexp.MustCompile(`\$\{([^}]*)\}`)

// substitute replaces the places of a text.
func substitute(text string, value func(place string) (string, error)) (string, error) {
	var failed error
	result := placeholder.ReplaceAllStringFunc(text, func(place string) string {
		name := strings.TrimSpace(place[2 : len(place)-1])
		if literal, ok := strings.CutPrefix(name, "!"); ok {
			return "${" + literal + "}"
		}
		replacement, err := value(name)
		if err != nil && failed == nil {
			failed = err
		}
		return replacement
	})
	return result, failed
}

// sub works out Fn::Sub.
func (v *Values) sub(argument any) (any, error) {
	variables := map[string]any{}
	text, ok := argument.(string)
	if list, isList := argument.([]any); isList && len(list) == 2 {
		text, ok = list[0].(string)
		given, isMap := list[1].(map[string]any)
		variables, ok = given, ok && isMap
	}
	if !ok {
		return nil, errors.New("a Fn::Sub that has not a text, or a text and variables")
	}
	return substitute(text, func(place string) (string, error) {
		if variable, there := variables[place]; there {
			return v.text(variable)
		}
		if id, attribute, dotted := strings.Cut(place, "."); dotted {
			return v.Attribute(id, attribute)
		}
		return v.text(map[string]any{"Ref": place})
	})
}

// text works out a document that has to be one value.
func (v *Values) text(document any) (string, error) {
	value, err := v.Evaluate(document)
	if err != nil {
		return "", err
	}
	switch value.(type) {
	case string, bool, json.Number:
		return fmt.Sprint(value), nil
	default:
		return "", fmt.Errorf("a %T where a text has to be", value)
	}
}

// list works out a document that has to be a list.
func (v *Values) list(document any) ([]any, error) {
	value, err := v.Evaluate(document)
	if err != nil {
		return nil, err
	}
	list, ok := value.([]any)
	if !ok {
		return nil, fmt.Errorf("a %T where a list has to be", value)
	}
	return list, nil
}

// join works out Fn::Join.
func (v *Values) join(arguments []any) (any, error) {
	if len(arguments) != 2 {
		return nil, errors.New("a Fn::Join that has not two arguments")
	}
	list, err := v.list(arguments[1])
	if err != nil {
		return nil, err
	}
	var texts []string
	for _, element := range list {
		text, err := v.text(element)
		if err != nil {
			return nil, err
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, fmt.Sprint(arguments[0])), nil
}

// choose works out Fn::Select.
func (v *Values) choose(arguments []any) (any, error) {
	if len(arguments) != 2 {
		return nil, errors.New("a Fn::Select that has not two arguments")
	}
	text, err := v.text(arguments[0])
	if err != nil {
		return nil, err
	}
	list, err := v.list(arguments[1])
	if err != nil {
		return nil, err
	}
	i, err := strconv.Atoi(text)
	if err != nil || i < 0 || i >= len(list) {
		return nil, fmt.Errorf("a Fn::Select of %q in a list of %d", text, len(list))
	}
	return list[i], nil
}

// split works out Fn::Split.
func (v *Values) split(arguments []any) (any, error) {
	if len(arguments) != 2 || arguments[0] == "" {
		return nil, errors.New("a Fn::Split that has not a delimiter and a text")
	}
	text, err := v.text(arguments[1])
	if err != nil {
		return nil, err
	}
	var list []any
	for _, part := range strings.Split(text, fmt.Sprint(arguments[0])) {
		list = append(list, part)
	}
	return list, nil
}

// holds works out a condition.
func (v *Values) holds(condition any) (bool, error) {
	members, ok := condition.(map[string]any)
	if !ok || len(members) != 1 {
		return false, errors.New("a condition that is no function")
	}
	if name, ok := members["Condition"].(string); ok {
		holds, known := v.Conditions[name]
		if !known {
			return false, fmt.Errorf("the condition %s is not there, or refers to itself", name)
		}
		return holds, nil
	}
	for name, argument := range members {
		list, ok := argument.([]any)
		if !ok {
			return false, fmt.Errorf("the argument of %s is no list", name)
		}
		switch name {
		case "Fn::Equals":
			return v.equal(list)
		case "Fn::Not":
			if len(list) != 1 {
				return false, errors.New("a Fn::Not that has not one argument")
			}
			holds, err := v.holds(list[0])
			return !holds, err
		case "Fn::And", "Fn::Or":
			return v.combine(name == "Fn::And", list)
		}
	}
	return false, errors.New("a condition whose function is not understood")
}

// equal works out Fn::Equals.
func (v *Values) equal(list []any) (bool, error) {
	if len(list) != 2 {
		return false, errors.New("a Fn::Equals that has not two arguments")
	}
	a, err := v.text(list[0])
	if err != nil {
		return false, err
	}
	b, err := v.text(list[1])
	return a == b, err
}

// combine works out Fn::And and Fn::Or.
func (v *Values) combine(all bool, list []any) (bool, error) {
	result := all
	for _, condition := range list {
		holds, err := v.holds(condition)
		if err != nil {
			return false, err
		}
		if holds != all {
			result = holds
		}
	}
	return result, nil
}
