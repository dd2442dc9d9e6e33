package secret

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// Layout is how a credential is split over the values of a store.
type Layout string

// The layouts. NAME is the secret's name as the user gives it.
const (
	// LayoutJSON is one value, a JSON object of strings: certificate chain, key and trust bundle.
	LayoutJSON Layout = "json"
	// LayoutSeparate is one secret for each field, NAME/<field>, all of one version id.
	LayoutSeparate Layout = "separate"
	// LayoutExported is what ACM exports, split as LayoutSeparate is: the certificate, its chain, the key
	// as encrypted PKCS #8, and the passphrase of the key.
	LayoutExported Layout = "exported"
	// LayoutBundle is one value: the trust bundle, which many services share.
	LayoutBundle Layout = "bundle"
)

// Layouts are the names of all layouts.
func Layouts() []Layout {
	return []Layout{LayoutJSON, LayoutSeparate, LayoutExported, LayoutBundle}
}

// Fields are what the parts of a credential are called: keys of the JSON object, or last segments of
// names. An empty name stands for the layout's default.
type Fields struct {
	Certificate string `json:"certificate,omitempty"`
	Chain       string `json:"chain,omitempty"` // exported only
	Key         string `json:"key,omitempty"`
	Passphrase  string `json:"passphrase,omitempty"` // exported only
	Bundle      string `json:"bundle,omitempty"`     // json and separate only
}

// Material is a credential as it lies in a store: bytes that nobody has looked at yet. It is key material
// as a whole; [Material.Clear] overwrites it.
type Material struct {
	Version     string // the id that all parts have
	Certificate []byte // the leaf; in json and separate with its intermediates
	Chain       []byte // exported: the intermediates
	Key         []byte // exported: encrypted with the passphrase
	Passphrase  []byte // exported
	Bundle      []byte // nil when the layout holds none
}

// Clear overwrites what is secret. It is safe to call on nil.
func (m *Material) Clear() {
	if m != nil {
		clear(m.Key)
		clear(m.Passphrase)
	}
}

// String keeps the contents out of logs.
func (m *Material) String() string { return "credential material (not shown)" }

// GoString keeps the contents out of logs.
func (m *Material) GoString() string { return m.String() }

// Value is one value of a store.
type Value struct {
	Name  string
	Value []byte
}

// String keeps the contents out of logs.
func (v Value) String() string { return v.Name }

// GoString keeps the contents out of logs.
func (v Value) GoString() string { return v.Name }

// Reader is what reading a layout needs of a store. version is a version's id, a stage, or empty for the
// current one; the answer's id is the version's, whichever way it was asked for. Errors are those of
// this package, [ErrNotFound] above all.
type Reader interface {
	Read(ctx context.Context, name, version string) (value []byte, versionID string, err error)
}

// Shape is a layout with its fields' names. Make one with [NewShape]; it does not change and may be used
// from many goroutines.
type Shape struct {
	layout Layout
	fields Fields
	// elsewhere says that the bundle is no part of the credential: see WithoutBundle.
	elsewhere bool
}

// NewShape checks the fields' names, and fills in those that are empty: cert_pem, key_pem and ca_bundle;
// for exported certificate, chain, private_key and passphrase. A name for a part that the layout does
// not have, or one name for two parts, is [ErrInvalid].
func NewShape(layout Layout, fields Fields) (Shape, error) {
	var defaults Fields
	switch layout {
	case LayoutJSON, LayoutSeparate:
		defaults = Fields{Certificate: "cert_pem", Key: "key_pem", Bundle: "ca_bundle"}
	case LayoutExported:
		defaults = Fields{Certificate: "certificate", Chain: "chain", Key: "private_key", Passphrase: "passphrase"}
	case LayoutBundle:
	default:
		return Shape{}, fmt.Errorf("%w layout %q: it is none of json, separate, exported, bundle", ErrInvalid, layout)
	}
	seen := make(map[string]string)
	for _, part := range []struct {
		part, byDefault string
		name            *string
	}{
		{"certificate", defaults.Certificate, &fields.Certificate},
		{"chain", defaults.Chain, &fields.Chain},
		{"key", defaults.Key, &fields.Key},
		{"passphrase", defaults.Passphrase, &fields.Passphrase},
		{"bundle", defaults.Bundle, &fields.Bundle},
	} {
		if part.byDefault == "" {
			if *part.name != "" {
				return Shape{}, fmt.Errorf("%w fields: the layout %s has no part %q, so that it cannot be called %q", ErrInvalid, layout, part.part, *part.name)
			}
			continue
		}
		if *part.name == "" {
			*part.name = part.byDefault
		}
		if err := checkField(layout, *part.name); err != nil {
			return Shape{}, err
		}
		if other, ok := seen[*part.name]; ok {
			return Shape{}, fmt.Errorf("%w fields: %s and %s are both called %q", ErrInvalid, other, part.part, *part.name)
		}
		seen[*part.name] = part.part
	}
	return Shape{layout: layout, fields: fields}, nil
}

func checkField(layout Layout, name string) error {
	if layout == LayoutJSON {
		if len(name) > MaxName || !utf8.ValidString(name) {
			return fmt.Errorf("%w field: a name has at most %d bytes of UTF-8", ErrInvalid, MaxName)
		}
		return nil
	}
	if strings.Contains(name, "/") || CheckName(name) != nil {
		return fmt.Errorf("%w field %.80q: it is to be the last segment of a secret's name: letters, digits and _+=@.-", ErrInvalid, name)
	}
	return nil
}

// Layout is the layout of the shape.
func (s Shape) Layout() Layout { return s.layout }

// Fields are the names in use, with the defaults filled in.
func (s Shape) Fields() Fields { return s.fields }

// WithoutBundle is the shape of a credential whose roots stand elsewhere, such as in a secret that services share: separate has
// no secret for them then, and none of that name is read or written. The other layouts are as they are: json may
// have its field for them, and nobody has to look at it.
func (s Shape) WithoutBundle() Shape {
	s.elsewhere = s.layout == LayoutSeparate
	return s
}

// part is one field of a layout of several secrets, and where it belongs in a Material.
type part struct {
	field    string
	optional bool
	in       func(*Material) *[]byte
}

// parts are in the order of reading; the first is the one that says which version all others must have.
func (s Shape) parts() []part {
	certificate := part{s.fields.Certificate, false, func(m *Material) *[]byte { return &m.Certificate }}
	key := part{s.fields.Key, false, func(m *Material) *[]byte { return &m.Key }}
	switch s.layout {
	case LayoutExported:
		return []part{
			certificate,
			{s.fields.Chain, false, func(m *Material) *[]byte { return &m.Chain }},
			key,
			{s.fields.Passphrase, false, func(m *Material) *[]byte { return &m.Passphrase }},
		}
	case LayoutBundle:
		return nil
	default:
		if s.elsewhere {
			return []part{certificate, key}
		}
		return []part{certificate, key, {s.fields.Bundle, true, func(m *Material) *[]byte { return &m.Bundle }}}
	}
}

// Names are the secrets that a credential called name consists of.
func (s Shape) Names(name string) []string {
	if s.layout == LayoutJSON || s.layout == LayoutBundle {
		return []string{name}
	}
	var names []string
	for _, part := range s.parts() {
		names = append(names, name+"/"+part.field)
	}
	return names
}

// Read reads a credential of one version: an id, a stage, or empty for the current one. Where it is
// split over several secrets, the first one's version is asked of all others by its id, so that a
// rotation that is moving their stages one after the other never gives a mixture.
//
// The bundle may be missing in json and separate. Errors are [ErrNotFound] when there is no such secret,
// [ErrMismatch] when a part has no version of the common id, [ErrInvalid] when a value does not have
// the layout's form, and the Reader's own. None of them holds a part of a value.
func (s Shape) Read(ctx context.Context, store Reader, name, version string) (*Material, error) {
	if s.layout == "" {
		return nil, fmt.Errorf("reading the secret %s: %w layout: none was given", name, ErrInvalid)
	}
	var material *Material
	var err error
	if s.layout == LayoutJSON || s.layout == LayoutBundle {
		material, err = s.readOne(ctx, store, name, version)
	} else {
		material, err = s.readParts(ctx, store, name, version)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the secret %s in the layout %s: %w", name, s.layout, err)
	}
	return material, nil
}

func (s Shape) readOne(ctx context.Context, store Reader, name, version string) (*Material, error) {
	value, id, err := store.Read(ctx, name, version)
	if err != nil {
		return nil, err
	}
	if s.layout == LayoutBundle {
		return &Material{Version: id, Bundle: value}, nil
	}
	defer clear(value)
	material, err := s.ParseJSON(value)
	if err != nil {
		return nil, fmt.Errorf("version %s: %w", id, err)
	}
	material.Version = id
	return material, nil
}

func (s Shape) readParts(ctx context.Context, store Reader, name, version string) (_ *Material, err error) {
	material := &Material{}
	defer func() {
		if err != nil {
			material.Clear()
		}
	}()
	for i, part := range s.parts() {
		full := name + "/" + part.field
		value, id, err := store.Read(ctx, full, version)
		if errors.Is(err, ErrNotFound) && i > 0 {
			lack := s.lacking(ctx, store, full, version)
			if part.optional && lack == nil {
				continue
			}
			if lack != nil {
				err = lack
			}
		}
		if err != nil {
			return nil, err
		}
		if i > 0 && id != material.Version {
			return nil, fmt.Errorf("%w: %s answered with the version %s when %s was asked for", ErrMismatch, full, id, version)
		}
		*part.in(material), material.Version = value, id
		version = id
	}
	return material, nil
}

// lacking tells a secret that is not there (nil) from one that lacks the version that the other parts have.
func (s Shape) lacking(ctx context.Context, store Reader, full, version string) error {
	value, id, err := store.Read(ctx, full, "")
	clear(value)
	switch {
	case err == nil:
		return fmt.Errorf("%w: %s has no version %s, which the other parts have; its current one is %s. Write all parts with the same version id, and make them current when all are there",
			ErrMismatch, full, version, id)
	case errors.Is(err, ErrNotFound):
		return nil
	}
	return err
}

// Encode splits a credential as the layout says: the values to be written, in this order and all under
// one version id. Their stages are best moved in the reverse order: the first one's says to readers which
// version counts. A part that the layout needs and that is empty, one that it has no place for, or a
// value that is too large, is [ErrInvalid].
func (s Shape) Encode(name string, m *Material) ([]Value, error) {
	values, err := s.encode(name, m)
	if err == nil {
		for _, value := range values {
			err = errors.Join(err, CheckName(value.Name), CheckValue(value.Value))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("writing the secret %s in the layout %s: %w", name, s.layout, err)
	}
	return values, nil
}

func (s Shape) encode(name string, m *Material) ([]Value, error) {
	if s.layout == LayoutBundle {
		if m.Certificate != nil || m.Chain != nil || m.Key != nil || m.Passphrase != nil {
			return nil, fmt.Errorf("%w: the layout holds a trust bundle only", ErrInvalid)
		}
		return []Value{{Name: name, Value: m.Bundle}}, nil
	}
	if (s.layout == LayoutExported || s.elsewhere) && m.Bundle != nil {
		return nil, fmt.Errorf("%w: the layout has no place for a trust bundle; write it as a secret of its own", ErrInvalid)
	}
	if s.layout != LayoutExported && (m.Chain != nil || m.Passphrase != nil) {
		return nil, fmt.Errorf("%w: the layout has no place for a chain of its own or a passphrase", ErrInvalid)
	}
	object := make(map[string]string)
	var values []Value
	for _, part := range s.parts() {
		value := *part.in(m)
		if len(value) == 0 {
			if part.optional {
				continue
			}
			return nil, fmt.Errorf("%w: the field %q is empty", ErrInvalid, part.field)
		}
		if s.layout == LayoutJSON && !utf8.Valid(value) {
			return nil, fmt.Errorf("%w: the field %q is not text", ErrInvalid, part.field)
		}
		object[part.field] = string(value)
		values = append(values, Value{Name: name + "/" + part.field, Value: value})
	}
	if s.layout != LayoutJSON {
		return values, nil
	}
	text, err := json.Marshal(object)
	if err != nil {
		return nil, fmt.Errorf("writing JSON: %w", err)
	}
	return []Value{{Name: name, Value: text}}, nil
}

// ParseJSON reads the value of the layout json: an object whose certificate and key are strings, and
// whose bundle is one when it is there; what else is in it is not looked at. A byte order mark before it,
// and a JSON text inside a JSON string, which is what some consoles and templates make of it, are
// undone. Version is left empty. Errors are [ErrInvalid] and name the field.
func (s Shape) ParseJSON(value []byte) (*Material, error) {
	if s.layout != LayoutJSON {
		return nil, fmt.Errorf("%w: the layout %s is not JSON", ErrInvalid, s.layout)
	}
	object, err := ParseObject(value)
	if err != nil {
		return nil, err
	}
	material := &Material{}
	for _, part := range s.parts() {
		raw, ok := object[part.field]
		if !ok || string(raw) == "null" {
			if part.optional {
				continue
			}
			return nil, fmt.Errorf("%w JSON: the field %q is missing; there are %s. Say what it is called", ErrInvalid, part.field, fieldNames(object))
		}
		var text string
		if err := json.Unmarshal(raw, &text); err != nil {
			return nil, fmt.Errorf("%w JSON: the field %q is not a string", ErrInvalid, part.field)
		}
		if text == "" && !part.optional {
			return nil, fmt.Errorf("%w JSON: the field %q is empty", ErrInvalid, part.field)
		}
		if text != "" {
			*part.in(material) = []byte(text)
		}
	}
	return material, nil
}

// fieldNames lists the names of an object for a message: names are not secret, but somebody may have
// mixed up name and value, so that only what looks like a name is shown.
func fieldNames(object map[string]json.RawMessage) string {
	const most = 10
	var names []string
	others := 0
	for _, name := range slices.Sorted(maps.Keys(object)) {
		if len(names) < most && len(name) <= 40 && CheckName(name) == nil {
			names = append(names, fmt.Sprintf("%q", name))
		} else {
			others++
		}
	}
	if others > 0 {
		names = append(names, fmt.Sprintf("%d more", others))
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// ParseObject reads a JSON object, each member as it is written, undoing what [Shape.ParseJSON] undoes.
// A name that is given twice is refused: two readers may take different ones. Errors are [ErrInvalid] and
// hold no part of a value.
func ParseObject(value []byte) (map[string]json.RawMessage, error) {
	if len(value) > MaxValue {
		return nil, CheckValue(value)
	}
	value = bytes.TrimSpace(bytes.TrimPrefix(value, []byte("\xef\xbb\xbf")))
	const deepest = 3
	for range deepest {
		var inner string
		if !bytes.HasPrefix(value, []byte{'"'}) || json.Unmarshal(value, &inner) != nil {
			break
		}
		value = bytes.TrimSpace([]byte(inner))
	}
	if !utf8.Valid(value) {
		return nil, fmt.Errorf("%w JSON: it is not UTF-8", ErrInvalid)
	}
	if !bytes.HasPrefix(value, []byte{'{'}) {
		return nil, fmt.Errorf("%w JSON: it is not an object ({...})", ErrInvalid)
	}
	decoder := json.NewDecoder(bytes.NewReader(value))
	if _, err := decoder.Token(); err != nil {
		return nil, fmt.Errorf("%w JSON: it does not parse", ErrInvalid)
	}
	object := make(map[string]json.RawMessage)
	for decoder.More() {
		token, err := decoder.Token()
		name, ok := token.(string)
		var raw json.RawMessage
		if err == nil {
			err = decoder.Decode(&raw)
		}
		if err != nil || !ok { // the decoder's error may quote the text
			return nil, fmt.Errorf("%w JSON: it does not parse near byte %d of %d", ErrInvalid, decoder.InputOffset(), len(value))
		}
		if _, twice := object[name]; twice {
			return nil, fmt.Errorf("%w JSON: a field is there twice, the second time before byte %d", ErrInvalid, decoder.InputOffset())
		}
		object[name] = raw
	}
	if _, err := decoder.Token(); err != nil {
		return nil, fmt.Errorf("%w JSON: it ends too early, at byte %d", ErrInvalid, len(value))
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w JSON: something follows the object, after byte %d", ErrInvalid, decoder.InputOffset())
	}
	return object, nil
}
