// Package shape moves AWS's messages between their wire forms and the SDK's types, which name the same members:
// JSON with lower-case names, the query protocol with its numbered lists, CloudFormation's properties. A member
// that a type does not have is an error, never left out.
package shape

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Fill sets the members of the structure that target points to from a document: maps, lists, strings, numbers
// and truth values as a decoder makes them. Names are compared without regard to case; numbers and truth
// values may be written as strings and the other way round, as CloudFormation allows. A member that can be
// anything takes its document as it is. An error names the
// place, which begins with path.
func Fill(target, document any, path string) error {
	return fill(reflect.ValueOf(target).Elem(), document, path)
}

// fill sets one value, of whatever kind it is.
func fill(v reflect.Value, document any, path string) error {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		return fill(v.Elem(), document, path)
	case reflect.Struct:
		return fillStruct(v, document, path)
	case reflect.Interface:
		v.Set(reflect.ValueOf(document))
		return nil
	case reflect.Slice:
		return fillSlice(v, document, path)
	case reflect.Map:
		members, ok := document.(map[string]any)
		if !ok {
			return fmt.Errorf("%s: want a map, have %T", path, document)
		}
		v.Set(reflect.MakeMap(v.Type()))
		for name, member := range members {
			element := reflect.New(v.Type().Elem()).Elem()
			if err := fill(element, member, path+"."+name); err != nil {
				return err
			}
			v.SetMapIndex(reflect.ValueOf(name).Convert(v.Type().Key()), element)
		}
		return nil
	default:
		return fillScalar(v, document, path)
	}
}

// fillStruct sets a structure's fields from a map.
func fillStruct(v reflect.Value, document any, path string) error {
	if v.Type() == reflect.TypeFor[time.Time]() {
		seconds, err := strconv.ParseFloat(fmt.Sprint(document), 64)
		if err != nil {
			return fmt.Errorf("%s: want a time in seconds, have %v", path, document)
		}
		whole, part := math.Modf(seconds)
		v.Set(reflect.ValueOf(time.Unix(int64(whole), int64(part*1e9)).UTC()))
		return nil
	}
	members, ok := document.(map[string]any)
	if !ok {
		return fmt.Errorf("%s: want a map, have %T", path, document)
	}
	for name, member := range members {
		field, found := v.Type().FieldByNameFunc(func(candidate string) bool { return strings.EqualFold(candidate, name) })
		if !found || !field.IsExported() {
			return fmt.Errorf("%s.%s: there is no such member", path, name)
		}
		if member == nil {
			continue
		}
		if err := fill(v.FieldByIndex(field.Index), member, path+"."+name); err != nil {
			return err
		}
	}
	return nil
}

// fillSlice sets a list.
func fillSlice(v reflect.Value, document any, path string) error {
	list, ok := document.([]any)
	if !ok {
		return fmt.Errorf("%s: want a list, have %T", path, document)
	}
	v.Set(reflect.MakeSlice(v.Type(), len(list), len(list)))
	for i, element := range list {
		if err := fill(v.Index(i), element, fmt.Sprintf("%s[%d]", path, i)); err != nil {
			return err
		}
	}
	return nil
}

// fillScalar sets a string, number or truth value.
func fillScalar(v reflect.Value, document any, path string) error {
	switch document.(type) {
	case string, bool, int, int64, uint64, float64, json.Number:
	default:
		return fmt.Errorf("%s: want one value, have %T", path, document)
	}
	text := fmt.Sprint(document)
	var err error
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		var b bool
		b, err = strconv.ParseBool(text)
		v.SetBool(b)
	case reflect.Int, reflect.Int32, reflect.Int64:
		var n int64
		n, err = strconv.ParseInt(text, 10, v.Type().Bits())
		v.SetInt(n)
	case reflect.Float32, reflect.Float64:
		var n float64
		n, err = strconv.ParseFloat(text, 64)
		v.SetFloat(n)
	default:
		return fmt.Errorf("%s: a %s is not understood", path, v.Type())
	}
	if err != nil {
		return fmt.Errorf("%s: want a %s, have %q", path, v.Kind(), text)
	}
	return nil
}

// JSON makes of one of the SDK's structures what AWS sends: members in lower case, times in seconds, and
// nothing that is not set.
func JSON(v any) any { return plain(reflect.ValueOf(v)) }

// plain is JSON of one value.
func plain(v reflect.Value) any {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return nil
		}
		return plain(v.Elem())
	case reflect.Struct:
		if at, ok := v.Interface().(time.Time); ok {
			return float64(at.UnixMilli()) / 1000
		}
		members := map[string]any{}
		for i := range v.NumField() {
			field := v.Type().Field(i)
			if !field.IsExported() || field.Name == "ResultMetadata" || absent(v.Field(i)) {
				continue
			}
			members[strings.ToLower(field.Name[:1])+field.Name[1:]] = plain(v.Field(i))
		}
		return members
	case reflect.Slice:
		list := make([]any, v.Len())
		for i := range v.Len() {
			list[i] = plain(v.Index(i))
		}
		return list
	case reflect.Map:
		members := map[string]any{}
		for _, key := range v.MapKeys() {
			members[key.String()] = plain(v.MapIndex(key))
		}
		return members
	default:
		return v.Interface()
	}
}

// absent says whether a member is left out: nothing but what was never set. Counts of zero are said.
func absent(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map, reflect.Interface:
		return v.IsNil()
	case reflect.String:
		return v.Len() == 0
	default:
		return false
	}
}

// Form makes a document of a query: `Targets.member.1.Id=x` is the list Targets, with a map whose member Id is x.
// The members Action and Version are left out.
func Form(values url.Values) (map[string]any, error) {
	root := map[string]any{}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if name == "Action" || name == "Version" {
			continue
		}
		at := root
		parts := strings.Split(name, ".")
		for _, part := range parts[:len(parts)-1] {
			next, ok := at[part].(map[string]any)
			if !ok {
				if at[part] != nil {
					return nil, fmt.Errorf("%s: a value and a structure at once", name)
				}
				next = map[string]any{}
				at[part] = next
			}
			at = next
		}
		at[parts[len(parts)-1]] = values.Get(name)
	}
	document, ok := lists(root).(map[string]any)
	if !ok {
		return nil, errors.New("the query is a list")
	}
	return document, nil
}

// lists turns every map whose only member is called member into the list that it stands for.
func lists(document any) any {
	members, ok := document.(map[string]any)
	if !ok {
		return document
	}
	for name, member := range members {
		members[name] = lists(member)
	}
	numbered, ok := members["member"].(map[string]any)
	if !ok || len(members) != 1 {
		return members
	}
	var list []any
	for i := 1; numbered[strconv.Itoa(i)] != nil; i++ {
		list = append(list, numbered[strconv.Itoa(i)])
	}
	return list
}

// XML writes one of the SDK's structures as the query protocol answers it, within an element of the name.
func XML(w io.Writer, name string, v any) error {
	encoder := xml.NewEncoder(w)
	if err := element(encoder, name, reflect.ValueOf(v)); err != nil {
		return fmt.Errorf("write %s as XML: %w", name, err)
	}
	if err := encoder.Flush(); err != nil {
		return fmt.Errorf("write %s as XML: %w", name, err)
	}
	return nil
}

// element writes one value.
func element(encoder *xml.Encoder, name string, v reflect.Value) error {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return nil
		}
		v = v.Elem()
	}
	start := xml.StartElement{Name: xml.Name{Local: name}}
	if v.Kind() != reflect.Struct && v.Kind() != reflect.Slice {
		return encoder.EncodeElement(fmt.Sprint(v.Interface()), start)
	}
	if at, ok := v.Interface().(time.Time); ok {
		return encoder.EncodeElement(at.UTC().Format(time.RFC3339), start)
	}
	if err := encoder.EncodeToken(start); err != nil {
		return err
	}
	if v.Kind() == reflect.Slice {
		for i := range v.Len() {
			if err := element(encoder, "member", v.Index(i)); err != nil {
				return err
			}
		}
		return encoder.EncodeToken(start.End())
	}
	for i := range v.NumField() {
		field := v.Type().Field(i)
		if !field.IsExported() || field.Name == "ResultMetadata" || absent(v.Field(i)) {
			continue
		}
		if err := element(encoder, field.Name, v.Field(i)); err != nil {
			return err
		}
	}
	return encoder.EncodeToken(start.End())
}
