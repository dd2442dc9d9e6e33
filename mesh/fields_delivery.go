package mesh

// The part of the table that says which proxy stands beside a workload and how its certificate gets there.

var storeShape = &shape{
	kind: mappingKind, name: "store",
	doc: "A secret store. With `type: file` its directory is made when it is first written to; its identity file is made by " +
		"`countersign secret` or `countersign up`, and whoever has it can read every secret of the store. With `type: secretsmanager` " +
		"credentials come from where AWS's own tools have them: the environment, a task's or a function's role.",
	fields: []field{
		{
			name: "type", shape: enum("type of store", StoreFile, StoreSecretsManager), required: true, missing: "write file or secretsmanager",
			doc: "`file` is a directory whose files are encrypted with age, `secretsmanager` is AWS Secrets Manager.",
		},
		{
			name: "dir", shape: fileName, otherwise: "**required** with `type: file`",
			doc: "The directory; relative to the directory of this file. Each store has one of its own.",
		},
		{
			name: "identityFile", shape: fileName, otherwise: "**required** with `type: file`",
			doc: "The file with the age identity that the store is encrypted to; relative to the directory of this file. Keep it " +
				"where the store's backups are not.",
		},
		{name: "region", shape: awsRegion, otherwise: "that of the environment", doc: "With `type: secretsmanager`: the AWS region."},
		{name: "endpoint", shape: awsEndpoint, otherwise: "that of AWS", doc: "With `type: secretsmanager`: the URL of the service, where it is not the usual one."},
		{
			name: "kmsKey", shape: kmsKey, otherwise: "`aws/secretsmanager`, that of Secrets Manager",
			doc: "With `type: secretsmanager`: the key of AWS KMS by which secrets are encrypted that a rotation makes.",
		},
	},
}

var proxyShape = &shape{
	kind: mappingKind, name: "proxy",
	doc: "What NGINX or HAProxy cannot express is refused by `countersign generate` and `countersign proxy`, and never " +
		"weakened: [NGINX and HAProxy](nginx-haproxy.md) has the list.",
	fields: []field{
		{
			name: "engine", shape: enum("proxy engine", string(EngineBuiltin), string(EngineNGINX), string(EngineHAProxy)), required: true,
			missing: "write builtin, nginx or haproxy",
			doc:     "`builtin` is Countersign's own proxy; `nginx` and `haproxy` are the real ones, configured by Countersign.",
		},
		{
			name: "version", shape: proxyVersion, otherwise: "that of Debian 12, 1.22.1 and 2.6.12",
			doc: "The version of NGINX or HAProxy. What only newer ones have is used only when this says so.",
		},
	},
}

var deliveryShape = &shape{
	kind: mappingKind, name: "delivery",
	doc: "How certificate, key and trust bundle get to the proxy. The rest of the keys is for `type: store`, which is for the " +
		"engines nginx and haproxy only: the built-in proxy makes its own key.",
	fields: []field{
		{
			name: "type", shape: enum("type of delivery", string(DeliverAgent), string(DeliverStore)), required: true,
			missing: "write agent or store",
			doc: "`agent`: the sidecar makes the key and asks the server for the certificate. `store`: a rotation writes both to " +
				"a secret store, and `countersign init` reads them there.",
		},
		{name: "store", shape: storeReference, otherwise: "**required** with `type: store`", doc: "The store, by its name below `stores`."},
		{
			name: "secret", shape: secretName, otherwise: "**required** with `type: store`",
			doc: "The secret's name in the store. `{mesh}` stands for the mesh's name and `{service}` for that of the service or " +
				"gateway. No two workloads have the same.",
		},
		{
			name: "layout", shape: enum("layout", "json", "separate", "exported"), otherwise: "`json`",
			doc: "`json` is one secret, an object of three texts; `separate` is one secret for each, `SECRET/FIELD`; `exported` is " +
				"as ACM exports: certificate, chain, encrypted key and its passphrase, as `SECRET/FIELD`, with no place for a trust bundle.",
		},
		{
			name: "bundle", shape: secretName, otherwise: "the bundle beside the certificate",
			doc: "The secret with the trust bundle, which many workloads may share, so that a new root is one update. Required with " +
				"`layout: exported`. `{mesh}` and `{service}` as in `secret`.",
		},
		{name: "fields", shape: deliveryFieldsShape, doc: "What the fields are called, where not as usual."},
	},
}

var deliveryFieldsShape = &shape{
	kind: mappingKind, name: "fields",
	doc: "Keys of the JSON object, or last segments of the secrets' names. No two are the same.",
	fields: []field{
		{name: "certificate", shape: secretField, otherwise: "`cert_pem`; in `exported` `certificate`", doc: "The certificate; in `json` and `separate` with its intermediates."},
		{name: "chain", shape: secretField, otherwise: "`chain`", doc: "The intermediates; only in `exported`."},
		{name: "key", shape: secretField, otherwise: "`key_pem`; in `exported` `private_key`", doc: "The private key."},
		{name: "passphrase", shape: secretField, otherwise: "`passphrase`", doc: "The passphrase of the key; only in `exported`."},
		{name: "bundle", shape: secretField, otherwise: "`ca_bundle`", doc: "The trust bundle; only in `json` and `separate`, and not used where `delivery.bundle` names a secret for it."},
	},
}

var deployShape = &shape{
	kind: mappingKind, name: "deploy",
	doc: "How what a rotation wrote gets to work; only with `delivery: {type: store}`.",
	fields: []field{
		{
			name: "type", shape: enum("type of deployment", string(DeployReload), string(DeployRestart), string(DeployECS)), required: true,
			missing: "write reload, restart or ecs",
			doc: "`reload`: `countersign init --watch` beside the proxy takes the new version and reloads the proxy. `restart`: " +
				"the instances are drained and started anew, one after the other. `ecs`: a service of Amazon ECS replaces its tasks.",
		},
		{name: "cluster", shape: ecsName, otherwise: "**required** with `type: ecs`", doc: "With `type: ecs`: the cluster's name."},
		{name: "service", shape: ecsName, otherwise: "the workload's name", doc: "With `type: ecs`: the name of the service in the cluster."},
	},
}

// deliveryFields are the keys that services and gateways have alike.
func deliveryFields() []field {
	return []field{
		{
			name: "proxy", shape: proxyShape, otherwise: "`{engine: builtin}`",
			doc: "Which proxy is the sidecar.",
		},
		{
			name: "delivery", shape: deliveryShape, otherwise: "`{type: agent}`",
			doc: "How the certificate gets to the sidecar.",
		},
		{
			name: "deploy", shape: deployShape, otherwise: "`{type: reload}`",
			doc: "How a rotated certificate gets to work.",
		},
	}
}
