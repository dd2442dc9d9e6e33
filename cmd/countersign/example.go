package main

import (
	"fmt"

	"countersign.dev/example"
)

type exampleCmd struct {
	Colorapp colorappCmd    `cmd:"" help:"Write the specifications of the Color App: a gateway in front of a service that answers a colour."`
	Shop     shopCmd        `cmd:"" help:"Write the specification of the shop: HTTP, gRPC and TCP services behind a gateway."`
	Payments paymentsCmd    `cmd:"" help:"Write the specification of the payments: a gateway in front of NGINX, HAProxy and the built-in proxy."`
	ECS      paymentsECSCmd `cmd:"" name:"payments-ecs" help:"Write the specification of the payments as they run on Amazon ECS."`
	Run      exampleRunCmd  `cmd:"" help:"Run one of the examples' applications."`
}

type colorappCmd struct{ exampleDir }

// Run writes the Color App's files.
func (c colorappCmd) Run(p *process) error { return c.write(p, "colorapp") }

type shopCmd struct{ exampleDir }

// Run writes the shop's files.
func (c shopCmd) Run(p *process) error { return c.write(p, "shop") }

type paymentsCmd struct{ exampleDir }

// Run writes the files of the payments.
func (c paymentsCmd) Run(p *process) error { return c.write(p, "payments") }

type paymentsECSCmd struct{ exampleDir }

// Run writes the file of the payments on ECS.
func (c paymentsECSCmd) Run(p *process) error { return c.write(p, "payments-ecs") }

type exampleDir struct {
	Dir string `arg:"" help:"The directory to write into; made when it is not there. No file is overwritten."`
}

// Help is what --help adds.
func (exampleDir) Help() string {
	return `Examples:
  countersign example colorapp colorapp
  countersign up colorapp/mesh.yaml`
}

func (c exampleDir) write(p *process, name string) error {
	paths, err := example.Write(name, c.Dir)
	if err != nil {
		return err
	}
	for _, path := range paths {
		if _, err := fmt.Fprintln(p.stdout, path); err != nil {
			return err
		}
	}
	return nil
}

type exampleRunCmd struct {
	Colorteller colortellerCmd `cmd:"" help:"Answer a colour at /color over HTTP."`
	Storefront  storefrontCmd  `cmd:"" help:"The shop's HTTP service; calls the catalog."`
	Catalog     catalogCmd     `cmd:"" help:"The shop's gRPC service; calls the stock."`
	Stock       stockCmd       `cmd:"" help:"The shop's TCP service: lines in, lines out."`
	Checkout    checkoutCmd    `cmd:"" help:"The payments' HTTP service; calls the ledger."`
	Ledger      ledgerCmd      `cmd:"" help:"The payments' gRPC service: the books."`
	Terminal    terminalCmd    `cmd:"" help:"The payments' TCP service, for card terminals; calls the ledger."`
}

// Help is what --help adds.
func (exampleRunCmd) Help() string {
	return `An application speaks plaintext on the address it is given; the sidecar beside it makes mutual TLS of
it. A specification starts one so:

  run:
    command: [countersign, example, run, colorteller, --listen, "${APP_ADDRESS}"]
    env: {COLOR: yellow}`
}

type exampleListen struct {
	Listen string `required:"" placeholder:"HOST:PORT" help:"Where to accept connections."`
}

type colortellerCmd struct {
	exampleListen
	Color string `help:"The colour to answer." default:"white" env:"COLOR"`
}

// Run serves until the process is told to stop.
func (c colortellerCmd) Run(p *process) error {
	return example.Colorteller(p.ctx, c.Listen, c.Color, p.log)
}

type storefrontCmd struct {
	exampleListen
	Catalog string `required:"" placeholder:"HOST:PORT" help:"Where the catalog is dialled."`
}

// Run serves until the process is told to stop.
func (c storefrontCmd) Run(p *process) error {
	return example.Storefront(p.ctx, c.Listen, c.Catalog, p.log)
}

type catalogCmd struct {
	exampleListen
	Stock string `required:"" placeholder:"HOST:PORT" help:"Where the stock is dialled."`
}

// Run serves until the process is told to stop.
func (c catalogCmd) Run(p *process) error {
	return example.Catalog(p.ctx, c.Listen, c.Stock, p.log)
}

type stockCmd struct{ exampleListen }

// Run serves until the process is told to stop.
func (c stockCmd) Run(p *process) error { return example.Stock(p.ctx, c.Listen, p.log) }

type checkoutCmd struct {
	exampleListen
	Ledger string `required:"" placeholder:"HOST:PORT" help:"Where the ledger is dialled."`
}

// Run serves until the process is told to stop.
func (c checkoutCmd) Run(p *process) error {
	return example.Checkout(p.ctx, c.Listen, c.Ledger, p.log)
}

type ledgerCmd struct{ exampleListen }

// Run serves until the process is told to stop.
func (c ledgerCmd) Run(p *process) error { return example.Ledger(p.ctx, c.Listen, p.log) }

type terminalCmd struct {
	exampleListen
	Ledger string `required:"" placeholder:"HOST:PORT" help:"Where the ledger is dialled."`
}

// Run serves until the process is told to stop.
func (c terminalCmd) Run(p *process) error {
	return example.Terminal(p.ctx, c.Listen, c.Ledger, p.log)
}
