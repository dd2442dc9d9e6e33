package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"countersign.dev/aws/secretsmanager"
	"countersign.dev/credential"
	"countersign.dev/deliver"
	"countersign.dev/mesh"
	"countersign.dev/secret"
)

// initStoreFlags say which secret of which store.
type initStoreFlags struct {
	IdentityFile string   `placeholder:"FILE" env:"COUNTERSIGN_IDENTITY_FILE" help:"With --from file: the age identity of the store. Nobody but its owner may read the file."`
	Secret       string   `placeholder:"NAME" help:"With --from file: the secret with certificate and key."`
	Layout       string   `placeholder:"LAYOUT" help:"With --from file or secretsmanager: how the secret is split: json, separate or exported; see docs/secrets.md. Default: with secretsmanager json."`
	Field        []string `sep:"none" placeholder:"ROLE=NAME" help:"With --from file or secretsmanager: what a part is called, where it is not the layout's default; ROLE is certificate, chain, key, passphrase or bundle. May be repeated."`
	Version      string   `placeholder:"VERSION" help:"With --from file or secretsmanager: which version: its id, or current, pending or previous. Default: current."`
	Region       string   `placeholder:"REGION" help:"With --from secretsmanager: the AWS region. Default: that of the ARN, or of the environment."`
	EndpointURL  string   `name:"endpoint-url" placeholder:"URL" help:"With --from secretsmanager: the URL of the service, where it is not the usual one."`
}

// fromStore tells whether the certificate comes from a store.
func (c initCmd) fromStore() bool {
	kind, _, ok := strings.Cut(c.From, ":")
	return ok && (kind == mesh.StoreFile || kind == mesh.StoreSecretsManager)
}

// checkSource refuses flags that do not belong to the source, and those that it lacks.
func (c initCmd) checkSource() error {
	if err := c.onlyAWS(); err != nil {
		return err
	}
	kind, _, _ := strings.Cut(c.BundleFrom, ":")
	if c.fromStore() {
		return c.checkStore()
	}
	if c.From != "env" {
		return usagef("--from %q is not known; write --from env, file:DIR or secretsmanager:NAME", c.From)
	}
	for _, flag := range []struct{ name, value string }{
		{"--secret", c.Secret}, {"--layout", c.Layout}, {"--field", strings.Join(c.Field, " ")}, {"--version", c.Version},
	} {
		if flag.value != "" {
			return usagef("%s belongs to --from file:DIR; the environment has no such thing", flag.name)
		}
	}
	if kind == "secret" {
		return usagef("--bundle-from %s names a secret of the store in --from; the environment is none", c.BundleFrom)
	}
	return nil
}

// checkStore reads the flags about the store.
func (c initCmd) checkStore() error {
	switch {
	case c.From == "file:":
		return usagef("--from file: which directory? Write file:DIR")
	case !c.fromAWS() && c.IdentityFile == "":
		return usagef("which identity? Give --identity-file FILE, or set COUNTERSIGN_IDENTITY_FILE to it")
	case c.Secret == "":
		return usagef("which secret? Give --secret NAME; `countersign secret list` shows what is there")
	case c.Layout == "":
		return usagef("how is the secret split? Give --layout json, separate or exported")
	case !slices.Contains([]string{string(secret.LayoutJSON), string(secret.LayoutSeparate), string(secret.LayoutExported), string(secret.LayoutBundle)}, c.Layout):
		return usagef("--layout %q is none of json, separate and exported", c.Layout)
	case c.Layout == string(secret.LayoutBundle):
		return usagef("--layout bundle holds no certificate; write --bundle-from secret:NAME for it")
	}
	flag := "--secret"
	if c.fromAWS() {
		flag = "--from"
	}
	if err := c.checkSecret(flag, c.Secret); err != nil {
		return err
	}
	if bundle := c.bundleSecret(); bundle != "" {
		if err := c.checkSecret("--bundle-from", bundle); err != nil {
			return err
		}
	}
	return c.checkShape()
}

// checkShape reads the flags about what the secret holds.
func (c initCmd) checkShape() error {
	if c.Version != "" && !secret.IsStage(c.Version) {
		if err := secret.CheckVersion(c.Version); err != nil {
			return usagef("--version: %w", err)
		}
	}
	shape, err := c.shape()
	if err != nil {
		return err
	}
	if shape.Layout() == secret.LayoutExported && c.BundleFrom == "" {
		return usagef("the layout exported has no roots; say where they are: --bundle-from secret:NAME, pem:FILE or env:NAME")
	}
	return nil
}

// shape is the layout with its names.
func (c initCmd) shape() (secret.Shape, error) {
	var fields secret.Fields
	roles := map[string]*string{
		"certificate": &fields.Certificate, "chain": &fields.Chain, "key": &fields.Key, "passphrase": &fields.Passphrase, "bundle": &fields.Bundle,
	}
	for _, text := range c.Field {
		role, name, ok := strings.Cut(text, "=")
		to, known := roles[role]
		switch {
		case !ok || name == "" || !known:
			return secret.Shape{}, usagef("--field %q is not ROLE=NAME; roles are %s", text, strings.Join(slices.Sorted(maps.Keys(roles)), ", "))
		case *to != "":
			return secret.Shape{}, usagef("--field %s is given twice", role)
		}
		*to = name
	}
	shape, err := secret.NewShape(secret.Layout(c.Layout), fields)
	if err != nil {
		return secret.Shape{}, usagef("--layout, --field: %w", err)
	}
	if c.BundleFrom != "" {
		shape = shape.WithoutBundle()
	}
	return shape, nil
}

// bundleSecret is the secret with the roots, empty when they are none.
func (c initCmd) bundleSecret() string {
	name, _ := strings.CutPrefix(c.BundleFrom, "secret:")
	if name == c.BundleFrom {
		return ""
	}
	return name
}

// storeSource is a credential in a store. It is a [deliver.Source].
type storeSource struct {
	store         secret.Reader
	shape, bundle secret.Shape
	cmd           initCmd
	close         func() error // of store; nil when there is nothing to close
}

// openStore opens the store that --from names.
func (c initCmd) openStore(ctx context.Context) (*storeSource, error) {
	shape, err := c.shape()
	if err != nil {
		return nil, err
	}
	bundle, err := secret.NewShape(secret.LayoutBundle, secret.Fields{})
	if err != nil {
		return nil, err
	}
	store, err := openStore(ctx, c.declared())
	if err != nil {
		return nil, badAWS(err, regionByFlag)
	}
	source := &storeSource{store: store, shape: shape, bundle: bundle, cmd: c}
	if cloud, ok := store.Store.(*secretsmanager.Store); ok && c.Watch {
		// A value is asked for, and paid, when there is another one.
		reader := cloud.Reader()
		source.store, source.close = reader, reader.Close
	}
	return source, nil
}

// Close forgets the values that are kept.
func (s *storeSource) Close() error {
	if s.close == nil {
		return nil
	}
	return s.close()
}

// Offer reads the secret, and the roots from where they are.
func (s *storeSource) Offer(ctx context.Context) (*deliver.Offer, error) {
	m, err := s.shape.Read(ctx, s.store, s.cmd.Secret, s.cmd.Version)
	if err != nil {
		return nil, err
	}
	fields := s.shape.Fields()
	value := func(field string, data []byte) credential.Value {
		name := s.cmd.Secret + "/" + field
		if s.shape.Layout() == secret.LayoutJSON {
			name = fmt.Sprintf("%s (%s)", s.cmd.Secret, field)
		}
		return credential.Value{Name: name, Field: field, Data: data}
	}
	offer := &deliver.Offer{Version: m.Version, Input: credential.Input{
		Certificate: value(fields.Certificate, m.Certificate), Chain: value(fields.Chain, m.Chain),
		Key: value(fields.Key, m.Key), Passphrase: value(fields.Passphrase, m.Passphrase),
	}}
	if err := s.roots(ctx, m, offer, value(fields.Bundle, m.Bundle)); err != nil {
		m.Clear()
		return nil, err
	}
	return offer, nil
}

// roots adds the roots to an offer.
func (s *storeSource) roots(ctx context.Context, m *secret.Material, offer *deliver.Offer, own credential.Value) error {
	name := s.cmd.bundleSecret()
	switch {
	case name != "":
		b, err := s.bundle.Read(ctx, s.store, name, "")
		if err != nil {
			return err
		}
		offer.Input.Bundle, offer.Bundle = credential.Value{Name: name, Field: "ca_bundle", Data: b.Bundle}, b.Version
	case s.cmd.BundleFrom != "":
		roots, err := s.cmd.readBundle(ctx, environment{}, "")
		if err != nil {
			return err
		}
		offer.Input.Bundle, offer.Bundle = roots, deliver.Digest(roots.Data)
	case m.Bundle == nil:
		return fmt.Errorf("the secret %s has no part %q, so that it is not known which roots are believed; store them there, or say where they are: --bundle-from secret:NAME, pem:FILE or env:NAME",
			s.cmd.Secret, s.shape.Fields().Bundle)
	default:
		offer.Input.Bundle = own
	}
	return nil
}

// envSource is a credential in the environment, read once.
type envSource struct {
	source secretSource
	names  initInputs
	cmd    initCmd
}

// Offer reads the variables.
func (s envSource) Offer(ctx context.Context) (*deliver.Offer, error) {
	input, err := s.cmd.read(ctx, s.source, s.names)
	if err != nil {
		clear(input.Key.Data)
		clear(input.Passphrase.Data)
		return nil, err
	}
	return &deliver.Offer{Input: input}, nil
}

// openSource opens what --from names. Where that is the environment, this process is replaced by one without it.
func (c initCmd) openSource(ctx context.Context) (deliver.Source, error) {
	if c.fromStore() {
		return c.openStore(ctx)
	}
	source, inputs := c.open()
	if c.HandedOver == 0 {
		values := []string{inputs.cert, inputs.chain, inputs.key, inputs.passphrase, c.bundleVariable()}
		if plan := c.planVariable(); plan != "" {
			values = append(values, plan)
		}
		return nil, handOver(ctx, source, values)
	}
	return envSource{source: source, names: inputs, cmd: c}, nil
}
