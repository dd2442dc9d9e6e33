// Package examples holds the specifications of the example meshes as files, so that the binary can
// write them where there is no checkout.
package examples

import "embed"

// Files are the examples, each a directory of specifications: colorapp/mesh.yaml and so on. Only these: a run in a
// checkout may leave a store and its identity beside them.
//
//go:embed colorapp/*.yaml shop/*.yaml payments/*.yaml payments-ecs/mesh.yaml
var Files embed.FS
