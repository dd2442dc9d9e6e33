package mesh

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
)

// schemaID names the schema; editors match it, nobody fetches it.
const schemaID = "https://countersign.dev/mesh.schema.json"

// Schema is the JSON Schema (draft 2020-12) of a specification, for editors and other programs. It
// accepts every valid document, and refuses what can be seen to be wrong in one value by itself; what
// stands between values (unknown services, ports in use twice) only the validator finds.
func Schema() []byte {
	g := schemaGenerator{defined: map[*shape]bool{}}
	root := object{
		{"$schema", "https://json-schema.org/draft/2020-12/schema"},
		{"$id", schemaID},
		{"title", "Countersign: the specification of a mesh"},
	}
	root = append(root, g.mapping(specShape)...)
	root = append(root, pair{"$defs", g.definitions})
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(root); err != nil {
		panic(err) // the table holds nothing that JSON cannot say
	}
	return out.Bytes()
}

// object is a JSON object whose members keep their order.
type object []pair

type pair struct {
	key   string
	value any
}

// MarshalJSON implements json.Marshaler.
func (o object) MarshalJSON() ([]byte, error) {
	var out bytes.Buffer
	out.WriteByte('{')
	for i, p := range o {
		if i > 0 {
			out.WriteByte(',')
		}
		for j, part := range []any{p.key, p.value} {
			if j > 0 {
				out.WriteByte(':')
			}
			encoder := json.NewEncoder(&out)
			encoder.SetEscapeHTML(false)
			if err := encoder.Encode(part); err != nil {
				return nil, err
			}
		}
	}
	out.WriteByte('}')
	return out.Bytes(), nil
}

// schemaGenerator turns shapes into schemas; mappings become definitions.
type schemaGenerator struct {
	defined     map[*shape]bool
	definitions object
}

// of is the schema of a shape.
func (g *schemaGenerator) of(s *shape) object {
	switch s.kind {
	case mappingKind:
		if !g.defined[s] {
			g.defined[s] = true
			at := len(g.definitions)
			g.definitions = append(g.definitions, pair{s.name, nil}) // keeps the table's order
			g.definitions[at].value = g.mapping(s)
		}
		return object{{"$ref", "#/$defs/" + s.name}}
	case dictionaryKind:
		return object{{"type", "object"}, {"propertyNames", g.text(s.keys)}, {"additionalProperties", g.of(s.elem)}}
	case listKind:
		return g.list(s)
	case oneOrListKind:
		return object{{"oneOf", []object{g.of(s.elem), g.list(s)}}}
	case integerKind:
		return object{{"type", "integer"}, {"minimum", s.min}, {"maximum", s.max}}
	case durationKind:
		return object{{"type", "string"}, {"pattern", durationPattern}}
	case writtenKind:
		return append(object{{"type", []string{"string", "number", "boolean"}}}, g.text(s)...)
	case textKind:
	}
	return append(object{{"type", "string"}}, g.text(s)...)
}

func (g *schemaGenerator) list(s *shape) object {
	list := object{{"type", "array"}, {"items", g.of(s.elem)}}
	if s.nonEmpty {
		list = append(list, pair{"minItems", 1})
	}
	if s.ranked {
		list = append(list, pair{"uniqueItems", true})
	}
	return list
}

// text is what a schema says about a text beside its type.
func (g *schemaGenerator) text(s *shape) object {
	var o object
	if s.words != nil {
		o = append(o, pair{"enum", s.words})
	}
	if s.pattern != "" {
		o = append(o, pair{"pattern", s.pattern})
	}
	if s.maxLen > 0 {
		o = append(o, pair{"maxLength", s.maxLen})
	}
	if s.reserved != nil {
		o = append(o, pair{"not", object{{"enum", s.reserved}}})
	}
	return o
}

func (g *schemaGenerator) mapping(s *shape) object {
	o := object{{"type", "object"}}
	if s.doc != "" {
		o = append(o, pair{"description", s.doc})
	}
	var properties object
	var required []string
	for _, f := range s.fields {
		property := append(object{{"description", f.description()}}, g.of(f.shape)...)
		if f.preset != nil {
			property = append(property, pair{"default", f.preset})
		}
		properties = append(properties, pair{f.name, property})
		if f.required {
			required = append(required, f.name)
		}
	}
	o = append(o, pair{"properties", properties})
	if required != nil {
		o = append(o, pair{"required", required})
	}
	if s.exclusive[0] != "" {
		o = append(o, pair{"not", object{{"required", slices.Clone(s.exclusive[:])}}})
	}
	return append(o, pair{"additionalProperties", false})
}

// description is what an editor shows for a field.
func (f field) description() string {
	if f.otherwise == "" {
		return f.doc
	}
	return strings.TrimSuffix(f.doc, ".") + ". Default: " + f.otherwise + "."
}
