package mesh

import (
	"fmt"
	"strings"
)

// Reference is the reference of the specification in Markdown: what stands in docs/specification.md.
// Its tables come from the same table as the decoder and the schema.
func Reference() []byte {
	var out strings.Builder
	out.WriteString(referenceHead)
	for _, s := range shapes(specShape) {
		if s.kind == mappingKind {
			referenceSection(&out, s)
		}
	}
	fmt.Fprintf(&out, referenceTail, MaxBytes>>20, MaxDocuments, maxValues, maxDepth)
	return []byte(out.String())
}

// referenceTitles are the headings of the sections.
var referenceTitles = map[string]string{
	"specification": "The document",
	"certificates":  "`certificates`",
	"store":         "`stores.NAME`",
	"authority":     "`authorities.NAME`",
	"budget":        "`authorities.NAME.budget`",
	"proxy":         "`proxy`",
	"delivery":      "`delivery`",
	"fields":        "`delivery.fields`",
	"deploy":        "`deploy`",
	"service":       "`services.NAME`",
	"port":          "`services.NAME.ports[]`",
	"rule":          "`allow[]`",
	"call":          "`services.NAME.calls[]`",
	"run":           "`services.NAME.run`",
	"gateway":       "`gateways.NAME`",
	"listener":      "`gateways.NAME.listen[]`",
	"certificate":   "`gateways.NAME.listen[].certificate`",
	"route":         "`gateways.NAME.routes[]`",
	"match":         "`gateways.NAME.routes[].match`",
	"destination":   "`gateways.NAME.routes[].to[]`",
	"timeout":       "`gateways.NAME.routes[].timeout`",
}

func referenceSection(out *strings.Builder, s *shape) {
	fmt.Fprintf(out, "\n## %s\n\n", referenceTitles[s.name])
	if s.doc != "" {
		fmt.Fprintf(out, "%s\n\n", s.doc)
	}
	out.WriteString("| key | value | default | meaning |\n|---|---|---|---|\n")
	for _, f := range s.fields {
		fmt.Fprintf(out, "| `%s` | %s | %s | %s |\n", f.name, cell(f.shape.describe()), cell(f.describeDefault()), cell(f.doc))
	}
	if example := referenceExamples[s.name]; example != "" {
		fmt.Fprintf(out, "\n```yaml\n%s\n```\n", strings.TrimSpace(example))
	}
}

func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

// describe says in the reference what a value of a shape is.
func (s *shape) describe() string {
	switch s.kind {
	case mappingKind:
		return "a mapping, [below](#" + anchor(referenceTitles[s.name]) + ")"
	case dictionaryKind:
		if s.elem.kind == mappingKind {
			return fmt.Sprintf("mappings by name (a %s), [below](#%s)", s.keys.name, anchor(referenceTitles[s.elem.name]))
		}
		return "texts by name"
	case listKind:
		text := "a list of " + s.name
		if s.elem.words != nil {
			text += ": " + s.elem.describe()
		}
		if s.elem.kind == mappingKind {
			text += ", [below](#" + anchor(referenceTitles[s.elem.name]) + ")"
		}
		return text
	case oneOrListKind:
		return "one, or a list"
	case integerKind:
		return fmt.Sprintf("%d to %d", s.min, s.max)
	case durationKind:
		return fmt.Sprintf("a duration, %s to %s", brief(s.shortest), brief(s.longest))
	case textKind, writtenKind:
	}
	if s.words != nil {
		words := make([]string, len(s.words))
		for i, w := range s.words {
			words[i] = "`" + asWritten(w) + "`"
		}
		return strings.Join(words, ", ")
	}
	return "a " + s.name
}

// anchor is the fragment that forges make of a heading.
func anchor(title string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		case r == ' ':
			return '-'
		}
		return -1
	}, title)
}

// describeDefault says in the reference what holds when a field is left out.
func (f field) describeDefault() string {
	switch {
	case f.required:
		return "**required**"
	case f.otherwise != "":
		return f.otherwise
	case f.shape.kind == listKind && f.preset != nil:
		return fmt.Sprintf("`[%s]`", strings.Join(f.preset.([]string), ", "))
	case f.preset != nil:
		return "`" + asWritten(fmt.Sprint(f.preset)) + "`"
	}
	return "none"
}

// asWritten is a word as YAML has to hold it.
func asWritten(word string) string {
	if strings.Contains(word, ".") {
		return `"` + word + `"` // a version, not a number
	}
	return word
}

const referenceHead = `# The specification

<!-- Generated from the table in mesh/fields.go: make generate. -->

A mesh is declared in YAML: one file, or a directory of which every ` + "`*.yaml`, `*.yml` and `*.json`" + ` file is
read and the files are joined (` + "`services`, `gateways`, `stores` and `authorities`" + ` may stand in several files, every
other key in one). What ` + "`countersign generate`" + ` wrote for AWS may lie there, too: templates of CloudFormation, and, as
` + "`*.json`" + `, policies, task definitions and the parameters of a stack are passed over, which ` + "`mesh validate`" + ` says.
` + "`countersign mesh validate PATH`" + ` checks it, ` + "`countersign mesh schema`" + ` prints a JSON Schema for editors.

` + "```yaml" + `
mesh: colorapp

services:
  colorteller:
    ports:
      - {port: 9080, protocol: http}
    run:
      command: [countersign, example, run, colorteller, --listen, "${APP_ADDRESS}"]
      env: {COLOR: yellow}

gateways:
  colorgateway:
    listen:
      - {port: 8080, protocol: http}
    routes:
      - match: {prefix: /color}
        to: [{service: colorteller}]
` + "```" + `

Here colorgateway alone may speak to colorteller, under mutual TLS, because it alone routes to it. Nothing else
has to be said.

The reading is strict: what is not known is refused, not ignored. Every error is reported, one a line:

    PATH:LINE:COLUMN: services.a.ports[0].port: what is wrong; what would be right

Lines and columns count from 1, columns in Unicode code points. An error is placed at the key when the key is
unknown or given twice, at the value when the value is wrong, and at the nearest key above when something is missing
(at 1:1 when the document itself lacks it).

- Texts that look like numbers need quotes (` + "`minTLS: \"1.2\"`" + `). Only in ` + "`run.command`, `run.env`" + ` and ` + "`match.headers`" + `
  numbers and booleans are taken as they are written.
- A duration is written as Go does: ` + "`90s`, `15m`, `168h`, `1h30m`" + `. There is no unit above the hour.
- Numbers are plain decimal digits.
- Anchors, aliases and merge keys (` + "`<<`" + `) work inside a file. Tags are refused.
`

const referenceTail = `
## What has to fit together

- Every DNS name, ` + "`NAME`, `NAME.TRUST-DOMAIN`" + ` or one of ` + "`names`" + `, belongs to one workload; no service has the name of a
  gateway; ` + "`any` and `anonymous`" + ` name no workload.
- ` + "`renewAfter`" + ` is below the ` + "`ttl`" + ` that holds for it.
- The ports of a service differ from one another, and so do those of a gateway's listeners.
- On loopback, where the application is, the calls' ` + "`listen`" + ` ports differ from one another and from the
  application's own ports (` + "`app`" + `). Two ports may lead to one ` + "`app`" + `.
- A call or a destination names a declared service and one of its ports. Each port is called once.
- A call to oneself goes to one of the service's instances; it needs a ` + "`listen`" + ` other than the application's port.
- Rules with ` + "`methods` or `paths`" + ` do not stand on tcp ports. Where nobody has an identity (` + "`clientAuth: none`" + `,
  ` + "`tls: off`" + `) only ` + "`anonymous`" + ` is listed. A SPIFFE ID is one of this mesh.
- ` + "`clientAuth: require` and `optional`, `minTLS` and `tlsGroups`" + ` are not written where ` + "`tls`" + ` is off; a listener's
  ` + "`minTLS` and `tlsGroups`" + ` not without its certificate.
- Where ` + "`minTLS`" + ` lets TLS 1.2 in, ` + "`tlsGroups`" + ` has a group without MLKEM: the others exist in TLS 1.3 only.
- A tcp listener has exactly one route, which matches by ` + "`listener`" + ` alone and leads to tcp ports; it may have several
  destinations. Other listeners lead to ports that are not tcp, and may have no route: then every answer is 404.
- The weights of a route do not sum to 0.
- ` + "`delivery: {type: store}`" + ` is for the engines nginx and haproxy; ` + "`deploy`" + ` is for ` + "`delivery: {type: store}`" + `, and ` + "`staleCRL`" + ` for
  ` + "`revocation: check`" + `. A store and an authority are named only where they are declared.
- Each store has a directory of its own, and each workload a secret of its own; only trust bundles are shared. No name of a
  secret ends in ` + "`.rotation` or `.budget`" + `: Countersign keeps what it did under such names.
- Authorities of the types ` + "`acmpca` and `acm`" + ` are for ` + "`delivery: {type: store}`" + `, and ` + "`acm` for `layout: exported`" + `. Where the CA is in
  short-lived mode, ` + "`ttl`" + ` is at most 168h. ACM's certificates are valid for 395 days, whatever ` + "`ttl`" + ` says, and ` + "`renewAfter`" + ` is 373 days.
- A workload that ACM issues for has a DNS name instead of a SPIFFE ID. Who calls it, or is called by it with ` + "`clientAuth: require`" + ` or
  ` + "`optional`" + `, has NGINX or HAProxy beside it: the built-in proxy takes SPIFFE IDs only.

## Callers without identity

A caller that shows no certificate is ` + "`anonymous`" + `. It exists only where the mode lets it connect: ` + "`tls: permissive`" + ` or
` + "`off`, `clientAuth: optional` or `none`" + `. There it is admitted, and counted, unless an ` + "`allow`" + ` list leaves it out;
` + "`allow: []`" + ` admits nobody at all. A refused request is answered with 403 (gRPC: status 7, PERMISSION_DENIED), a
refused TCP connection is closed before its first byte is passed on.

## Limits

A specification has at most %d MiB in at most %d files, %d values after aliases are followed, and %d levels of
nesting. What exceeds them is refused before it is understood.
`

// referenceExamples stand below the tables; a test reads each as part of a specification.
var referenceExamples = map[string]string{
	"certificates": `
mesh: shop
certificates: {ttl: 24h, key: ecdsa-p384}    # renewed after 17h8m34.285s
services:
  vault:
    certificates: {ttl: 1h, renewAfter: 20m} # the key is the mesh's
`,
	"authority": `
mesh: shop
stores:
  vault: {type: secretsmanager, region: eu-central-1, kmsKey: alias/shop}
authorities:
  pca: {type: acmpca, mode: short-lived}       # the templates create it
  acm:
    type: acm
    arn: arn:aws:acm-pca:eu-central-1:111122223333:certificate-authority/11111111-2222-3333-4444-555555555555
    names: {front: front.shop.internal}
    budget: {certificates: 20}
services:
  front:
    calls: [{service: catalog}]
    certificates: {authority: acm}
    proxy: {engine: nginx}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}", layout: exported, bundle: "{mesh}/bundle"}
    deploy: {type: ecs, cluster: shop}
  catalog:
    ports: [{port: 9000, protocol: http}]
    certificates: {authority: pca}
    proxy: {engine: haproxy}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}", bundle: "{mesh}/bundle"}
    deploy: {type: ecs, cluster: shop, service: shop-catalog}
`,
	"delivery": `
mesh: shop
stores:
  vault: {type: file, dir: store, identityFile: store-identity.txt}
services:
  catalog:
    ports: [{port: 9000, protocol: grpc}]
    proxy: {engine: nginx, version: 1.22.1}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}", bundle: "{mesh}/bundle"}
    deploy: {type: restart}
  stock:
    ports: [{port: 7000, protocol: tcp}]
    proxy: {engine: haproxy}             # with a certificate from the agent
`,
	"service": `
mesh: shop
services:
  catalog:
    ports:
      - {port: 9000, protocol: grpc}
      - {port: 9001, protocol: http, tls: permissive}  # on its way into the mesh
    names: [catalog.example.com]
    calls:
      - {service: stock}                               # the application dials 127.0.0.1:7000
    instances: 2
  stock:
    ports: [{port: 7000, protocol: tcp}]
`,
	"rule": `
mesh: shop
services:
  catalog:
    ports: [{port: 9000, protocol: http}]
    clientAuth: optional
    allow:
      - {from: [front, spiffe://shop.internal/service/stock]}
      - {from: any, methods: [GET]}
      - {from: anonymous, methods: [GET, HEAD], paths: [/public/*, /health]}
  front: {}
  stock: {}
`,
	"call": `
mesh: shop
services:
  front:
    calls:
      - {service: catalog, port: 9000}                # dials 127.0.0.1:9000, ${CALL_CATALOG_9000}
      - {service: catalog, port: 9001, listen: 19001} # dials 127.0.0.1:19001, ${CALL_CATALOG_9001}
  catalog:
    ports: [{port: 9000, protocol: grpc}, {port: 9001, protocol: http}]
`,
	"run": `
mesh: shop
services:
  front:
    ports: [{port: 8081, protocol: http}]
    calls: [{service: catalog}]
    run:
      command: [./front, --listen, "${APP_ADDRESS}", --catalog, "${CALL_CATALOG}"]
      env: {WORKERS: 4, PRICE: "5$$"}
      dir: ../front
  catalog:
    ports: [{port: 9000, protocol: grpc}]
`,
	"listener": `
mesh: shop
services:
  stock: {ports: [{port: 7000, protocol: tcp}]}
gateways:
  gate:
    listen:
      - {port: 80, protocol: http}
      - {port: 443, protocol: http2, minTLS: "1.3", certificate: {cert: gate.pem, key: gate.key}}
      - {port: 7000, protocol: tcp}
    routes:
      - {match: {listener: 7000}, to: [{service: stock}]}
`,
	"route": `
mesh: shop
services:
  front: {ports: [{port: 8081, protocol: http}]}
  next: {ports: [{port: 8081, protocol: http}]}
gateways:
  gate:
    listen: [{port: 80, protocol: http}]
    routes:
      - match: {path: /health, methods: [GET]}
        to: [{service: front}]
      - match: {prefix: /products, host: shop.example.com, headers: {x-try: next}}
        to: [{service: next}]
        timeout: {request: 15s}
      - to: [{service: front, weight: 9}, {service: next, weight: 1}]
`,
}
