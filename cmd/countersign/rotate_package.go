package main

import (
	"archive/zip"
	"bytes"
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"time"

	"countersign.dev/durable"
	"countersign.dev/iac"
	"countersign.dev/mesh"
)

type rotatePackageCmd struct {
	Mesh    string `arg:"" help:"The specification: a file or a directory."`
	Out     string `required:"" placeholder:"FILE" help:"The ZIP file that is written."`
	Program string `placeholder:"FILE" help:"The program for the function: countersign, built for Linux on the function's architecture. Default: this one."`
	outputFlag
}

// Help is what --help adds.
func (rotatePackageCmd) Help() string {
	return `Writes what AWS Lambda runs as the rotation function: the program under the name bootstrap, and the
specification. Of the same program and specification it makes the same file, byte by byte. The function
needs the runtime provided.al2023 and the architecture that is printed; events of EventBridge, on a
schedule and from ACM, start it. A private CA that the specification does not name is in its environment:
COUNTERSIGN_AUTHORITY_NAME_ARN.

Examples:
  countersign rotate package mesh.yaml --out function.zip
  countersign rotate package mesh.yaml --program countersign-linux-arm64 --out function.zip`
}

// packaged is the answer of `rotate package`.
type packaged struct {
	File         string `json:"file"`
	Bytes        int    `json:"bytes"`
	Architecture string `json:"architecture"`
	// CodeSHA256 is as Lambda shows it: SHA-256 in Base64.
	CodeSHA256 string `json:"codeSha256"`
}

// Run writes the file.
func (c *rotatePackageCmd) Run(p *process) error {
	if c.Out == "" {
		return usagef("--out is empty; name the ZIP file to write")
	}
	if err := checkOut(c.Out, c.Mesh); err != nil {
		return err
	}
	spec, err := loadSpec(p, c.Mesh)
	if err != nil {
		return err
	}
	if err := forFunction(spec); err != nil {
		return invalidSpecification(p, err)
	}
	if _, err := iac.CloudFormation(spec, iac.Options{}); errors.Is(err, iac.ErrRefused) { // who has stacks of his own may have reasons
		fmt.Fprintf(p.stderr, "countersign: note: the function is packed, and `countersign generate cloudformation` refuses this specification: %v\n", err)
	}
	program := c.Program
	if program == "" {
		if program, err = os.Executable(); err != nil {
			return fmt.Errorf("finding this program: %w", err)
		}
	}
	architecture, err := architectureOf(program)
	if err != nil {
		return usageError{err}
	}
	text, err := c.archive(program)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(c.Out, text, 0o644); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	sum := sha256.Sum256(text)
	made := packaged{File: c.Out, Bytes: len(text), Architecture: architecture, CodeSHA256: base64.StdEncoding.EncodeToString(sum[:])}
	if c.json() {
		return writeJSON(p, made)
	}
	_, err = fmt.Fprintf(p.stdout, "wrote %s: %d bytes, runtime provided.al2023, architecture %s\nCodeSha256 %s\n", made.File, made.Bytes, made.Architecture, made.CodeSHA256)
	return err
}

// forFunction refuses a specification that a function could not rotate.
func forFunction(spec *mesh.Spec) error {
	names, err := targetNames(spec, "")
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return spec.Refuse("there is nothing to rotate: no certificate of this mesh comes from a store", "services")
	}
	var refused mesh.Errors
	for _, name := range names {
		plan, err := spec.Compile(name)
		if err != nil {
			return err
		}
		refuse := func(path []string, format string, args ...any) {
			refused = append(refused, spec.Refuse(fmt.Sprintf(format, args...), path...))
		}
		own := plan.Workload.Path()
		said, authority := spec.AuthorityOf(name)
		if !authority.Foreign() {
			refuse([]string{own + ".certificates.authority", "certificates.authority"},
				"the certificate of %s comes from the authority of a server, which a function does not ask; choose an authority of the type acmpca or acm", name)
		}
		if plan.Delivery.Store.Type == mesh.StoreFile {
			refuse([]string{own + ".delivery.store"},
				"the store %s of %s is a directory, and a function has no disk of its own; choose a store of the type secretsmanager", plan.Delivery.StoreName, name)
		}
		if plan.Deploy != mesh.DeployECS {
			refuse([]string{own + ".deploy.type", own + ".deploy"},
				"the instances of %s are replaced by nobody whom a function could watch; write deploy: {type: ecs, ...}", name)
		}
		if budget := spec.Stores[authority.Budget.Store]; authority.Foreign() && budget.Type == mesh.StoreFile {
			refuse([]string{"authorities." + said + ".budget.store", "authorities." + said},
				"the budget of the authority of %s is counted in %s, a directory, and a function has no disk of its own; choose a store of the type secretsmanager", name, authority.Budget.Store)
		}
	}
	if len(refused) > 0 {
		return refused.Sorted()
	}
	return nil
}

// architectureOf is what Lambda calls the architecture of a program.
func architectureOf(program string) (string, error) {
	f, err := elf.Open(program)
	if err != nil {
		return "", fmt.Errorf("%s is not a program for Linux: %w; name one with --program", program, err)
	}
	defer func() { _ = f.Close() }() // it was only read
	if err := isThisProgram(program); err != nil {
		return "", err
	}
	switch f.Machine { //nolint:exhaustive // Lambda knows no others
	case elf.EM_X86_64:
		return "x86_64", nil
	case elf.EM_AARCH64:
		return "arm64", nil
	}
	return "", fmt.Errorf("%s is for %s, and Lambda runs x86_64 and arm64", program, f.Machine)
}

// isThisProgram refuses another program than countersign, which Lambda would find out at the first rotation.
func isThisProgram(program string) error {
	const build = "CGO_ENABLED=0 GOOS=linux go build ./cmd/countersign"
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return fmt.Errorf("%s is not countersign: %w; name with --program what `%s` has built", program, err, build)
	}
	if own, ok := debug.ReadBuildInfo(); ok && own.Path != info.Path {
		return fmt.Errorf("%s is %s and not countersign; name with --program what `%s` has built", program, cmp.Or(info.Path, "another program"), build)
	}
	for _, setting := range info.Settings {
		if setting.Key == "GOOS" && setting.Value != "linux" {
			return fmt.Errorf("%s is countersign for %s, and Lambda runs Linux; name with --program what `%s` has built", program, setting.Value, build)
		}
	}
	return nil
}

// maxProgram is the most that Lambda takes of all files together, in bytes.
const maxProgram = 250 << 20

// archive packs the files. Nothing in it is of this moment or of this machine.
func (c *rotatePackageCmd) archive(program string) ([]byte, error) {
	var out bytes.Buffer
	archive := zip.NewWriter(&out)
	if err := addFile(archive, "bootstrap", 0o755, program); err != nil {
		return nil, err
	}
	info, err := os.Stat(c.Mesh)
	if err != nil {
		return nil, fmt.Errorf("reading the specification: %w", err)
	}
	documents, err := mesh.ReadDocuments(c.Mesh)
	if err != nil {
		return nil, err
	}
	for _, d := range documents {
		name := meshInFunction
		if info.IsDir() {
			name = path.Join(meshDirInFunction, filepath.Base(d.Name))
		}
		if err := addText(archive, name, 0o644, bytes.NewReader([]byte(d.Content))); err != nil {
			return nil, err
		}
	}
	if err := archive.Close(); err != nil {
		return nil, fmt.Errorf("packing: %w", err)
	}
	return out.Bytes(), nil
}

// addFile packs a file.
func addFile(archive *zip.Writer, name string, mode fs.FileMode, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("packing %s: %w", name, err)
	}
	defer f.Close()
	return addText(archive, name, mode, f)
}

// addText packs a text, as of a time that is always the same: the first that ZIP knows.
func addText(archive *zip.Writer, name string, mode fs.FileMode, text io.Reader) error {
	header := &zip.FileHeader{Name: name, Method: zip.Deflate, Modified: time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)}
	header.SetMode(mode)
	w, err := archive.CreateHeader(header)
	if err != nil {
		return fmt.Errorf("packing %s: %w", name, err)
	}
	n, err := io.Copy(w, io.LimitReader(text, maxProgram+1))
	if err == nil && n > maxProgram {
		err = errors.New("it is larger than what Lambda takes, 250 MiB")
	}
	if err != nil {
		return fmt.Errorf("packing %s: %w", name, err)
	}
	return nil
}
