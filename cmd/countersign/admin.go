package main

import (
	"errors"
	"fmt"
	"os"

	"countersign.dev/api"
	"countersign.dev/up"
)

// adminFlags say which server an administrative command speaks to.
type adminFlags struct {
	Socket string `placeholder:"PATH" help:"The running server's socket (STATE/server.sock). Default: the server of the mesh that COUNTERSIGN_RUN names."`
}

// admin makes the client.
func (f adminFlags) admin() (*api.Admin, error) {
	socket, err := f.find()
	if err != nil {
		return nil, err
	}
	return api.NewAdmin(socket), nil
}

// howServer says how a server is named.
const howServer = "its --socket PATH (it is server.sock in the server's state), or run this inside `countersign up PATH -- COMMAND`"

// asked tells whether anybody has said which server.
func (f adminFlags) asked() bool { return f.Socket != "" || os.Getenv(up.EnvRun) != "" }

// find is --socket, or what the document of `up` says.
func (f adminFlags) find() (string, error) {
	if f.Socket != "" {
		return f.Socket, nil
	}
	path := os.Getenv(up.EnvRun)
	if path == "" {
		return "", usagef("which server? Give %s", howServer)
	}
	document, err := up.ReadDocument(path)
	if err != nil {
		return "", usagef("reading what %s names: %w", up.EnvRun, err)
	}
	if document.Server.Socket == "" {
		return "", usagef("the file %s, which %s names, does not say where the server's socket is", path, up.EnvRun)
	}
	return document.Server.Socket, nil
}

// answered gives an error of the server the exit status that it deserves: 2 when the user asked for
// something that cannot be, 1 otherwise. Its details are written first, one a line.
func answered(p *process, err error) error {
	refusal, ok := errors.AsType[*api.Error](err)
	if !ok {
		return err
	}
	for _, line := range refusal.Details {
		fmt.Fprintln(p.stderr, line)
	}
	switch refusal.Code {
	case api.CodeBadRequest, api.CodeNotDeclared, api.CodeInvalidSpec, api.CodeFixedTopology, api.CodeTooLarge, api.CodeWeakKey, api.CodeNameMismatch:
		return usageError{err}
	default:
		return err
	}
}
