package mesh

// The part of the table that says who issues certificates.

var authorityShape = &shape{
	kind: mappingKind, name: "authority",
	doc: "Who issues certificates. With a type other than `embedded` no server has a part in it: `countersign rotate once --mesh " +
		"PATH` gets the certificates and writes them to the stores of their workloads, which therefore have `delivery: {type: store}`. " +
		"Every key but `type` is for `acmpca` and `acm`.",
	fields: []field{
		{
			name: "type", shape: enum("type of authority", AuthorityEmbedded, AuthorityACMPCA, AuthorityACM), required: true, missing: "write embedded, acmpca or acm",
			doc: "`embedded` is the certificate authority of the server, `acmpca` AWS Private CA. With `acm` AWS Certificate Manager makes " +
				"the key, too, and the workload has `layout: exported`; such certificates have no SPIFFE ID, see `names`.",
		},
		{
			name: "arn", shape: authorityARN, otherwise: "the generated templates create the CA",
			doc: "The ARN of the private CA that issues, perhaps of another account that shares it. Where it is left out, the program " +
				"takes it from the variable `COUNTERSIGN_AUTHORITY_NAME_ARN`: NAME in upper case, with `_` for every `-`.",
		},
		{name: "region", shape: awsRegion, otherwise: "that of `arn`, else that of the environment", doc: "The AWS region."},
		{name: "endpoint", shape: awsEndpoint, otherwise: "that of AWS", doc: "The URL of the service, where it is not the usual one."},
		{
			name: "mode", shape: enum("mode of a private CA", ModeShortLived, ModeGeneralPurpose), otherwise: "`general-purpose`",
			doc: "The private CA's mode. `short-lived` costs less and issues for at most 168h; ACM cannot issue from it.",
		},
		{
			name: "template", shape: certificateTemplate, otherwise: "`arn:aws:acm-pca:::template/EndEntityCertificate/V1`",
			doc: "The template of AWS Private CA by which `acmpca` issues.",
		},
		{
			name: "create", shape: enum("kind of a private CA", CreateRoot, CreateSubordinate), otherwise: "`root`",
			doc: "What the generated templates create; not beside `arn`.",
		},
		{
			name: "parent", shape: authorityARN, otherwise: "a CA outside of AWS, whose certificate `countersign ca aws activate` installs",
			doc: "With `create: subordinate`: the ARN of the private CA that signs it.",
		},
		{
			name: "names", shape: &shape{kind: dictionaryKind, name: "DNS names by workload", keys: workloadName, elem: dnsName},
			otherwise: "**required** with `type: acm`",
			doc: "With `type: acm`: the DNS name, of at most 64 characters, that is Subject and first name of a workload's certificate, and so " +
				"its identity towards peers. Each workload that ACM issues for has one.",
		},
		{name: "budget", shape: budgetShape, otherwise: "1000 certificates a month", doc: "What may be spent: private certificates are billed one by one."},
	},
}

var budgetShape = &shape{
	kind: mappingKind, name: "budget",
	doc: "The count is kept in the secret `MESH/AUTHORITY.budget`, so that it holds across restarts and between programs. Nothing is " +
		"issued beyond it until the next month, in UTC, begins.",
	fields: []field{
		{
			name: "certificates", shape: &shape{kind: integerKind, name: "number", min: 1, max: 1_000_000}, preset: defaultBudget,
			doc: "How many certificates may be issued in a calendar month.",
		},
		{
			name: "store", shape: storeReference, otherwise: "the only store; **required** where there are several",
			doc: "The store, by its name below `stores`, in which the count is kept.",
		},
	},
}
