package secret

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// memory is a store for these tests: values by name and id, and the id of each stage by name and stage.
type memory struct {
	values map[string]string // NAME@ID
	stages map[string]string // NAME@STAGE
	fail   error
}

func (m memory) Read(_ context.Context, name, version string) ([]byte, string, error) {
	if m.fail != nil {
		return nil, "", m.fail
	}
	if version == "" {
		version = string(Current)
	}
	if id, ok := m.stages[name+"@"+version]; ok {
		version = id
	}
	value, ok := m.values[name+"@"+version]
	if !ok {
		return nil, "", fmt.Errorf("reading %s: %w", name, ErrNotFound)
	}
	return []byte(value), version, nil
}

func shape(t *testing.T, layout Layout, fields Fields) Shape {
	t.Helper()
	s, err := NewShape(layout, fields)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestLayouts writes a credential in each layout, with fields of both kinds, and reads it again.
func TestLayouts(t *testing.T) {
	full := &Material{Certificate: []byte("cert\n"), Key: []byte("key\n"), Bundle: []byte("bundle\n")}
	exported := &Material{Certificate: []byte("cert\n"), Chain: []byte("chain\n"), Key: []byte("key\n"), Passphrase: []byte("pass\xff")}
	cases := map[string]struct {
		layout   Layout
		fields   Fields
		material *Material
		names    []string
	}{
		"json":               {LayoutJSON, Fields{}, full, []string{"p/api"}},
		"json, other names":  {LayoutJSON, Fields{Certificate: "tls.crt", Key: "the key", Bundle: "ca"}, full, []string{"p/api"}},
		"json, no bundle":    {LayoutJSON, Fields{}, &Material{Certificate: []byte("cert"), Key: []byte("key")}, []string{"p/api"}},
		"separate":           {LayoutSeparate, Fields{}, full, []string{"p/api/cert_pem", "p/api/key_pem", "p/api/ca_bundle"}},
		"separate, names":    {LayoutSeparate, Fields{Key: "tls.key"}, full, []string{"p/api/cert_pem", "p/api/tls.key", "p/api/ca_bundle"}},
		"separate, no CA":    {LayoutSeparate, Fields{}, &Material{Certificate: []byte("cert"), Key: []byte("key")}, nil},
		"exported":           {LayoutExported, Fields{}, exported, []string{"p/api/certificate", "p/api/chain", "p/api/private_key", "p/api/passphrase"}},
		"exported, names":    {LayoutExported, Fields{Chain: "c"}, exported, []string{"p/api/certificate", "p/api/c", "p/api/private_key", "p/api/passphrase"}},
		"bundle":             {LayoutBundle, Fields{}, &Material{Bundle: []byte("bundle\n")}, []string{"p/api"}},
		"escapes in strings": {LayoutJSON, Fields{}, &Material{Certificate: []byte("a\"\\\n\u2028<>&"), Key: []byte("key")}, nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := shape(t, c.layout, c.fields)
			if names := s.Names("p/api"); c.names != nil && !slices.Equal(names, c.names) {
				t.Errorf("names %q, want %q", names, c.names)
			}
			values, err := s.Encode("p/api", c.material)
			if err != nil {
				t.Fatal(err)
			}
			store := memory{values: map[string]string{}, stages: map[string]string{}}
			for _, value := range values {
				store.values[value.Name+"@7"] = string(value.Value)
				store.stages[value.Name+"@current"] = "7"
			}
			want := *c.material
			want.Version = "7"
			for _, version := range []string{"", "current", "7"} {
				got, err := s.Read(t.Context(), store, "p/api", version)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, *got); diff != "" {
					t.Errorf("version %q (-want +got):\n%s", version, diff)
				}
			}
			if _, err := s.Read(t.Context(), store, "p/other", ""); !errors.Is(err, ErrNotFound) {
				t.Errorf("another name: %v", err)
			}
			if _, err := s.Read(t.Context(), store, "p/api", "pending"); !errors.Is(err, ErrNotFound) {
				t.Errorf("another stage: %v", err)
			}
			broken := errors.New("broken")
			if _, err := s.Read(t.Context(), memory{fail: broken}, "p/api", ""); !errors.Is(err, broken) {
				t.Errorf("a store that fails: %v", err)
			}
		})
	}
}

// TestWithoutBundle has no secret for roots that stand elsewhere, and does not care what one of that name holds.
func TestWithoutBundle(t *testing.T) {
	material := &Material{Certificate: []byte("cert"), Key: []byte("key")}
	with := &Material{Certificate: []byte("cert"), Key: []byte("key"), Bundle: []byte("roots")}
	s := shape(t, LayoutSeparate, Fields{}).WithoutBundle()
	if names := s.Names("p/api"); !slices.Equal(names, []string{"p/api/cert_pem", "p/api/key_pem"}) {
		t.Errorf("names %q", names)
	}
	if _, err := s.Encode("p/api", with); !errors.Is(err, ErrInvalid) {
		t.Errorf("a bundle is written to %v", err)
	}
	if values, err := s.Encode("p/api", material); err != nil || len(values) != 2 {
		t.Errorf("%v, %v", values, err)
	}
	store := memory{
		values: map[string]string{"p/api/cert_pem@7": "cert", "p/api/key_pem@7": "key", "p/api/ca_bundle@6": "PLACEHOLDER"},
		stages: map[string]string{"p/api/cert_pem@current": "7", "p/api/key_pem@current": "7", "p/api/ca_bundle@current": "6"},
	}
	if got, err := s.Read(t.Context(), store, "p/api", ""); err != nil || got.Bundle != nil || string(got.Key) != "key" {
		t.Errorf("%v", err)
	}
	// The field of a JSON object may be there.
	one := shape(t, LayoutJSON, Fields{}).WithoutBundle()
	if _, err := one.Encode("p/api", with); err != nil {
		t.Error(err)
	}
}

func TestShapesRefused(t *testing.T) {
	for name, c := range map[string]struct {
		layout Layout
		fields Fields
		want   string
	}{
		"unknown":           {"yaml", Fields{}, `layout "yaml"`},
		"none":              {"", Fields{}, `layout ""`},
		"chain in json":     {LayoutJSON, Fields{Chain: "c"}, `no part "chain"`},
		"passphrase":        {LayoutSeparate, Fields{Passphrase: "p"}, `no part "passphrase"`},
		"bundle, exported":  {LayoutExported, Fields{Bundle: "b"}, `no part "bundle"`},
		"key in bundle":     {LayoutBundle, Fields{Key: "k"}, `no part "key"`},
		"twice":             {LayoutJSON, Fields{Key: "x", Bundle: "x"}, "key and bundle are both called"},
		"twice, by default": {LayoutSeparate, Fields{Key: "cert_pem"}, "certificate and key are both called"},
		"a path":            {LayoutSeparate, Fields{Key: "a/b"}, "last segment"},
		"above":             {LayoutExported, Fields{Key: ".."}, "last segment"},
		"not UTF-8":         {LayoutJSON, Fields{Key: "\xff"}, "UTF-8"},
		"long":              {LayoutJSON, Fields{Key: strings.Repeat("k", MaxName+1)}, "at most"},
	} {
		if _, err := NewShape(c.layout, c.fields); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want ErrInvalid with %q", name, err, c.want)
		}
	}
	if _, err := (Shape{}).Read(t.Context(), memory{}, "a", ""); !errors.Is(err, ErrInvalid) {
		t.Errorf("a zero Shape: %v", err)
	}
}

func TestEncodeRefuses(t *testing.T) {
	pair := Material{Certificate: []byte("c"), Key: []byte("k")}
	with := func(change func(*Material)) *Material {
		m := pair
		change(&m)
		return &m
	}
	for name, c := range map[string]struct {
		layout   Layout
		material *Material
	}{
		"no key":              {LayoutJSON, with(func(m *Material) { m.Key = nil })},
		"no certificate":      {LayoutSeparate, with(func(m *Material) { m.Certificate = nil })},
		"not text":            {LayoutJSON, with(func(m *Material) { m.Key = []byte("\xff") })},
		"chain":               {LayoutJSON, with(func(m *Material) { m.Chain = []byte("c") })},
		"passphrase":          {LayoutSeparate, with(func(m *Material) { m.Passphrase = []byte("p") })},
		"exported, no chain":  {LayoutExported, with(func(m *Material) { m.Passphrase = []byte("p") })},
		"exported, bundle":    {LayoutExported, with(func(m *Material) { m.Bundle = []byte("b") })},
		"bundle with a key":   {LayoutBundle, with(func(m *Material) { m.Bundle = []byte("b") })},
		"bundle, empty":       {LayoutBundle, &Material{}},
		"too large":           {LayoutSeparate, with(func(m *Material) { m.Bundle = make([]byte, MaxValue+1) })},
		"too large once JSON": {LayoutJSON, with(func(m *Material) { m.Bundle = make([]byte, MaxValue/2) })},
	} {
		if _, err := shape(t, c.layout, Fields{}).Encode("a", c.material); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	if _, err := shape(t, LayoutJSON, Fields{}).Encode("a//b", &pair); !errors.Is(err, ErrInvalid) {
		t.Errorf("a bad name: %v", err)
	}
}

// TestPartsOfOneVersion moves the stages of three secrets one after the other, as a rotation does, and
// reads at every point: it is the old credential or the new one, never a mixture.
func TestPartsOfOneVersion(t *testing.T) {
	s := shape(t, LayoutSeparate, Fields{})
	names := s.Names("a")
	store := memory{values: map[string]string{}, stages: map[string]string{}}
	for _, name := range names {
		store.values[name+"@1"], store.values[name+"@2"] = "1", "2"
		store.stages[name+"@current"] = "1"
	}
	for _, order := range [][]string{names, {names[2], names[1], names[0]}, {names[1], names[0], names[2]}} {
		moving := memory{values: store.values, stages: maps.Clone(store.stages)}
		for _, name := range append([]string{""}, order...) {
			if name != "" {
				moving.stages[name+"@current"] = "2"
			}
			m, err := s.Read(t.Context(), moving, "a", "")
			if err != nil {
				t.Fatal(err)
			}
			if got := string(m.Certificate) + string(m.Key) + string(m.Bundle); got != strings.Repeat(m.Version, 3) {
				t.Errorf("version %s after %s: %q", m.Version, name, got)
			}
		}
	}

	delete(store.values, names[1]+"@1")
	store.stages[names[1]+"@current"] = "2"
	_, err := s.Read(t.Context(), store, "a", "")
	if !errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), "a/key_pem has no version 1") || !strings.Contains(err.Error(), "its current one is 2") {
		t.Errorf("a key of another version: %v", err)
	}
	store.values[names[1]+"@1"] = "1"
	delete(store.values, names[2]+"@1")
	store.stages[names[2]+"@current"] = "2"
	if _, err := s.Read(t.Context(), store, "a", ""); !errors.Is(err, ErrMismatch) {
		t.Errorf("a bundle of another version: %v", err)
	}
	delete(store.values, names[1]+"@1")
	delete(store.values, names[1]+"@2")
	if _, err := s.Read(t.Context(), store, "a", ""); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "a/key_pem") {
		t.Errorf("no key at all: %v", err)
	}
}

// liar answers with another version than it was asked for.
type liar struct{ calls int }

func (l *liar) Read(context.Context, string, string) ([]byte, string, error) {
	l.calls++
	return []byte("x"), fmt.Sprint(l.calls), nil
}

func TestStoreThatAnswersOtherwise(t *testing.T) {
	if _, err := shape(t, LayoutExported, Fields{}).Read(t.Context(), &liar{}, "a", ""); !errors.Is(err, ErrMismatch) {
		t.Errorf("%v, want ErrMismatch", err)
	}
}

func TestParseJSON(t *testing.T) {
	s := shape(t, LayoutJSON, Fields{})
	const good = `{"cert_pem":"c","key_pem":"k","other":{"a":[1,null]}}`
	quoted, err := json.Marshal(good)
	if err != nil {
		t.Fatal(err)
	}
	twice, err := json.Marshal(string(quoted))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"plain": good, "space": " \r\n" + good + "\n", "byte order mark": "\xef\xbb\xbf" + good, "in a string": string(quoted), "twice in a string": string(twice),
		"bundle null": `{"cert_pem":"c","key_pem":"k","ca_bundle":null}`, "bundle empty": `{"cert_pem":"c","key_pem":"k","ca_bundle":""}`,
	} {
		m, err := s.ParseJSON([]byte(text))
		if err != nil || string(m.Certificate) != "c" || string(m.Key) != "k" || m.Bundle != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, c := range map[string]struct{ text, want string }{
		"empty":            {"", "not an object"},
		"PEM":              {"-----BEGIN CERTIFICATE-----", "not an object"},
		"array":            {"[]", "not an object"},
		"number":           {"1", "not an object"},
		"a string":         {`"MARKER"`, "not an object"},
		"cut off":          {`{"cert_pem":"c","key_pem":"MARKER`, "does not parse near byte"},
		"cut off, object":  {`{"cert_pem":"c","key_pem":"k"`, "ends too early"},
		"twice":            {`{"cert_pem":"c","key_pem":"MARKER","key_pem":"k"}`, "twice"},
		"trailing":         {good + "x", "something follows"},
		"two":              {good + good, "something follows"},
		"no key":           {`{"cert_pem":"c","x":"MARKER"}`, `the field "key_pem" is missing; there are "cert_pem", "x"`},
		"nothing":          {`{}`, `the field "cert_pem" is missing; there are none`},
		"strange names":    {`{"MARKER MARKER":"c"}`, "there are 1 more"},
		"no string":        {`{"cert_pem":"c","key_pem":["MARKER"]}`, `the field "key_pem" is not a string`},
		"null":             {`{"cert_pem":null,"key_pem":"k"}`, `the field "cert_pem" is missing`},
		"empty key":        {`{"cert_pem":"c","key_pem":""}`, `the field "key_pem" is empty`},
		"bundle, a number": {`{"cert_pem":"c","key_pem":"k","ca_bundle":1}`, `the field "ca_bundle" is not a string`},
		"single quotes":    {`{'cert_pem':'MARKER'}`, "does not parse"},
		"not UTF-8":        {"{\"cert_pem\":\"\xff\"}", "not UTF-8"},
		"too large":        {strings.Repeat(" ", MaxValue+1), "at most"},
	} {
		_, err := s.ParseJSON([]byte(c.text))
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want ErrInvalid with %q", name, err, c.want)
		} else if strings.Contains(err.Error(), "MARKER") {
			t.Errorf("%s: the message shows a value: %v", name, err)
		}
	}
	if _, err := shape(t, LayoutSeparate, Fields{}).ParseJSON([]byte(good)); !errors.Is(err, ErrInvalid) {
		t.Errorf("another layout: %v", err)
	}
}

// FuzzParseJSON expects that what is understood is understood by encoding/json in the same way, that it
// survives being written again, and that no message shows a part of the text.
func FuzzParseJSON(f *testing.F) {
	for _, seed := range []string{
		`{"cert_pem":"c","key_pem":"k","ca_bundle":"b"}`, `"{\"cert_pem\":\"c\",\"key_pem\":\"k\"}"`, "\xef\xbb\xbf{}", `{"a":{"b":[]}}`, `{"key_pem":"k","key_pem":"l"}`,
		`{"cert_pem":"\ud800","key_pem":"k"}`,
	} {
		f.Add([]byte(seed))
	}
	s, err := NewShape(LayoutJSON, Fields{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := s.ParseJSON(text)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
			return
		}
		var plain struct {
			Certificate string `json:"cert_pem"`
			Key         string `json:"key_pem"`
		}
		if json.Unmarshal(text, &plain) == nil && !strings.Contains(strings.ToLower(string(text)), `\u`) && strings.Count(strings.ToLower(string(text)), "_pem") == 2 &&
			(plain.Certificate != string(m.Certificate) || plain.Key != string(m.Key)) {
			t.Errorf("read otherwise than encoding/json does: %q", text)
		}
		values, err := s.Encode("a", m)
		if err != nil {
			return // it grew too large
		}
		again, err := s.ParseJSON(values[0].Value)
		if err != nil {
			t.Fatalf("what was written does not parse: %v", err)
		}
		if diff := cmp.Diff(*m, *again); diff != "" {
			t.Errorf("written and read again (-want +got):\n%s", diff)
		}
	})
}
