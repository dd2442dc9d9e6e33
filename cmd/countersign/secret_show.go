package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"countersign.dev/secret"
)

type secretGetCmd struct {
	Name       string `arg:"" help:"The secret's name."`
	Version    string `default:"current" help:"Which version: its id, or current, pending or previous."`
	Field      string `placeholder:"NAME" help:"Print only this field of a value that is a JSON object of strings."`
	PrivateKey bool   `help:"Print the value although it is not certificates alone: it may be a private key or a passphrase."`
	storeFlags
	outputFlag
}

// Help is what --help adds.
func (secretGetCmd) Help() string {
	return `Prints the value as it is, without a line end of its own. Certificates and revocation lists with nothing
beside them (PEM or DER) are public, and are printed. Anything else may be a private key or a passphrase,
and is printed only with --private-key. The same holds for what --field takes out of a JSON object.

Examples:
  export COUNTERSIGN_STORE=file:./secrets COUNTERSIGN_IDENTITY_FILE=id.age
  countersign secret get payments/api --field cert_pem
  countersign secret get mesh/bundle --version pending`
}

// shownSecret is the answer of `secret get` in JSON: the value as text, or as Base64 when it is none.
type shownSecret struct {
	Name string `json:"name"`
	secret.Version
	Value       *string `json:"value,omitempty"`
	ValueBase64 []byte  `json:"valueBase64,omitempty"`
}

// Run prints the value.
func (c secretGetCmd) Run(p *process) error {
	store, err := c.open(p)
	if err != nil {
		return err
	}
	value, id, err := store.Read(p.ctx, c.Name, c.Version)
	if err != nil {
		return secretError(err)
	}
	defer clear(value)
	shown, err := c.choose(value)
	if err != nil {
		return err
	}
	if !c.json() {
		_, err = p.stdout.Write(shown)
		return err
	}
	version, err := describeVersion(p, store, c.Name, id)
	if err != nil {
		return err
	}
	answer := shownSecret{Name: c.Name, Version: version}
	if text := string(shown); utf8.Valid(shown) {
		answer.Value = &text
	} else {
		answer.ValueBase64 = shown
	}
	return writeJSON(p, answer)
}

// choose gives what is to be printed, unless it is not to be printed.
func (c secretGetCmd) choose(value []byte) ([]byte, error) {
	what, instead := "the value", ""
	if c.Field == "" {
		if field := publicField(value); field != "" {
			instead = fmt.Sprintf("`--field %s` prints the certificates in it, ", field)
		}
	} else {
		what = fmt.Sprintf("the field %q", c.Field)
		object, err := secret.ParseObject(value)
		if err != nil {
			return nil, fmt.Errorf("the value of %s has no fields: %w", c.Name, err)
		}
		raw, ok := object[c.Field]
		if !ok {
			return nil, fmt.Errorf("the value of %s has no field %q", c.Name, c.Field)
		}
		var text string
		if err := json.Unmarshal(raw, &text); err != nil {
			return nil, fmt.Errorf("the field %q of %s is not a string", c.Field, c.Name)
		}
		value = []byte(text)
	}
	if !c.PrivateKey && !secret.IsPublic(value) {
		return nil, usagef("%s of %s is not certificates alone, and may be or hold a private key or a passphrase: %s`--private-key` prints it all the same", what, c.Name, instead)
	}
	return value, nil
}

// publicField finds a field of a JSON object that may be printed, the one of the certificate if possible.
func publicField(value []byte) string {
	object, err := secret.ParseObject(value)
	if err != nil {
		return ""
	}
	for _, name := range append([]string{"cert_pem"}, slices.Sorted(maps.Keys(object))...) {
		var text string
		// Somebody may have mixed up name and value: only what looks like a name is shown.
		if secret.CheckName(name) == nil && json.Unmarshal(object[name], &text) == nil && secret.IsPublic([]byte(text)) {
			return name
		}
	}
	return ""
}

type secretListCmd struct {
	storeFlags
	outputFlag
}

// Help is what --help adds.
func (secretListCmd) Help() string {
	return `Lists every secret with its current version, when that was written, and the one that waits. No value is
shown. When files are damaged, the other secrets are listed, each damaged file is named, and the exit
status is 1.

Examples:
  export COUNTERSIGN_STORE=file:./secrets COUNTERSIGN_IDENTITY_FILE=id.age
  countersign secret list
  countersign secret list --output json | jq -r '.[].name'`
}

// Run lists the secrets.
func (c secretListCmd) Run(p *process) error {
	store, err := c.open(p)
	if err != nil {
		return err
	}
	var entries []secret.Entry
	damaged := patiently(p.stderr, "listing the secrets of "+c.Store, func() (err error) {
		entries, err = store.List(p.ctx)
		return err
	})
	if entries == nil && damaged != nil { // nothing could be listed
		return secretError(damaged)
	}
	if c.json() {
		return errors.Join(writeJSON(p, entries), damaged)
	}
	table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tCURRENT\tWRITTEN\tPENDING\tVERSIONS")
	for _, entry := range entries {
		current, written, pending := "-", "-", "-"
		if version, ok := entry.Stage(secret.Current); ok {
			current, written = version.ID, writtenAt(version)
		}
		if version, ok := entry.Stage(secret.Pending); ok {
			pending = version.ID
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\n", entry.Name, current, written, pending, len(entry.Versions))
	}
	return errors.Join(table.Flush(), damaged)
}

type secretVersionsCmd struct {
	Name string `arg:"" help:"The secret's name."`
	storeFlags
	outputFlag
}

// Help is what --help adds.
func (secretVersionsCmd) Help() string {
	return `Lists the versions that are kept, the newest first: the pending, the current and the previous one, and up
to 16 in all. No value is shown.

Examples:
  countersign secret versions payments/api --store file:./secrets --identity-file id.age`
}

// Run lists the versions.
func (c secretVersionsCmd) Run(p *process) error {
	store, err := c.open(p)
	if err != nil {
		return err
	}
	var versions []secret.Version
	err = patiently(p.stderr, "asking the store "+c.Store, func() (err error) {
		versions, err = store.Versions(p.ctx, c.Name)
		return err
	})
	if err != nil {
		return secretError(err)
	}
	if c.json() {
		return writeJSON(p, versions)
	}
	table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "VERSION\tSTAGES\tWRITTEN\tBYTES")
	for _, version := range versions {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", version.ID, stages(version, "-"), writtenAt(version), size(version))
	}
	return table.Flush()
}

// writtenAt is when a version was written, where the store knows it.
func writtenAt(version secret.Version) string {
	if version.Created.IsZero() {
		return "-"
	}
	return version.Created.Format(time.RFC3339)
}

// size is how many bytes a version has, where the store knows it: no value is empty.
func size(version secret.Version) string {
	if version.Size == 0 {
		return "-"
	}
	return strconv.Itoa(version.Size)
}
