package main

import (
	"fmt"
	"time"

	"countersign.dev/api"
	"countersign.dev/mesh"
)

type tokenCmd struct {
	Create tokenCreateCmd `cmd:"" help:"Make a join token, by which instances of one workload obtain their first certificate."`
}

type tokenCreateCmd struct {
	Workload string        `arg:"" help:"The service or gateway that the token is for."`
	TTL      time.Duration `name:"ttl" default:"10m" help:"How long the token can be used."`
	Uses     int           `default:"1" help:"How many instances can use it."`
	adminFlags
	outputFlag
}

// Help is what --help adds.
func (tokenCreateCmd) Help() string {
	return `Prints the token, which is shown this once: the server keeps only its hash. Write it into a file that only
the workload's sidecar can read, and give the file to 'countersign proxy --token-file'. The token is of no
use to another workload, after its time, or once it has been used up.

Examples:
  countersign token create colorteller --socket ./state/server.sock > colorteller.token
  countersign token create colorgateway --ttl 1h --uses 3 --output json`
}

// Run makes the token.
func (c tokenCreateCmd) Run(p *process) error {
	if c.TTL <= 0 {
		return usagef("--ttl has to be above 0")
	}
	if c.Uses < 1 {
		return usagef("--uses has to be at least 1")
	}
	admin, err := c.admin()
	if err != nil {
		return err
	}
	created, err := admin.CreateToken(p.ctx, api.TokenRequest{Workload: c.Workload, TTL: mesh.Duration(c.TTL), Uses: c.Uses})
	if err != nil {
		return answered(p, err)
	}
	if c.json() {
		return writeJSON(p, created)
	}
	_, err = fmt.Fprintln(p.stdout, created.Token)
	return err
}
