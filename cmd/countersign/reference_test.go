package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the generated files again")

// TestGeneratedReference asserts that docs/cli.md says what the command line is.
func TestGeneratedReference(t *testing.T) {
	const path = "../../docs/cli.md"
	var cli root
	parser, err := kong.New(&cli, kong.Name("countersign"))
	if err != nil {
		t.Fatal(err)
	}
	want := reference(parser.Model)
	if *update {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("docs/cli.md is stale; run: make generate (-want +got)\n%s", diff)
	}
}

// reference writes the command line's model as Markdown.
func reference(model *kong.Application) []byte {
	var b bytes.Buffer
	b.WriteString(`# The command line

<!-- Written by "make generate" from the declarations in cmd/countersign; do not edit. -->

Exit status: 0 when all is well, 2 for a wrong command line or invalid input, 1 for any other
failure. ` + "`countersign up ... -- CMD`" + ` ends with the status of CMD. A file to read that a command line names and that
is not there makes it wrong (2); a state, a store or a journal that is not there is a failure (1), and so are all files
for ` + "`countersign init`" + `, which runs where others mount them, and the ` + "`--token-file`" + ` of a sidecar, which is read when
it is needed.

`)
	leaves := model.Leaves(true)
	for _, leaf := range leaves {
		heading := "countersign " + leaf.Path()
		fmt.Fprintf(&b, "- [`%s`](#%s): %s\n", heading, strings.ReplaceAll(heading, " ", "-"), leaf.Help)
	}
	b.WriteString("\n## Flags of every command\n\n")
	writeFlags(&b, model.Flags)
	for _, leaf := range leaves {
		writeCommand(&b, leaf)
	}
	return b.Bytes()
}

// writeCommand writes the section of one command.
func writeCommand(b *bytes.Buffer, leaf *kong.Node) {
	fmt.Fprintf(b, "\n## countersign %s\n\n%s\n", leaf.Path(), leaf.Help)
	usage := "countersign " + leaf.Path()
	for _, argument := range leaf.Positional {
		usage += " " + argument.Summary()
	}
	var flags []*kong.Flag
	for node := leaf; node != nil && node.Type != kong.ApplicationNode; node = node.Parent {
		flags = append(flags, node.Flags...)
	}
	for _, f := range flags {
		if f.Required && !f.Hidden {
			usage += " " + flagName(f)
		}
	}
	fmt.Fprintf(b, "\n```\n%s [flags]\n```\n", usage)
	if leaf.Detail != "" {
		b.WriteString("\n" + markdown(leaf.Detail))
	}
	if len(leaf.Positional) > 0 {
		b.WriteString("\n| argument | meaning |\n|---|---|\n")
		for _, argument := range leaf.Positional {
			fmt.Fprintf(b, "| `%s` | %s |\n", argument.Summary(), cell(argument.Help))
		}
	}
	if len(flags) > 0 {
		b.WriteString("\n")
		writeFlags(b, flags)
	}
}

// writeFlags writes a table of flags.
func writeFlags(b *bytes.Buffer, flags []*kong.Flag) {
	b.WriteString("| flag | meaning | default |\n|---|---|---|\n")
	for _, f := range flags {
		if f.Hidden {
			continue
		}
		meaning := cell(f.Help)
		if len(f.Envs) > 0 {
			meaning += fmt.Sprintf(" Environment: `%s`.", strings.Join(f.Envs, "`, `"))
		}
		value := "" // a switch is off unless it is given
		switch {
		case f.Required:
			value = "required"
		case f.HasDefault && f.Default != "":
			value = "`" + cell(f.Default) + "`"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", cell(flagName(f)), meaning, value)
	}
}

// flagName is a flag as one types it.
func flagName(f *kong.Flag) string {
	name := "--" + f.Name
	if f.Short != 0 {
		name = fmt.Sprintf("-%c, %s", f.Short, name)
	}
	switch {
	case f.IsBool() && f.Tag.Negatable != "":
		name = "--[no-]" + f.Name
	case f.IsBool() || f.IsCounter():
	case f.PlaceHolder != "":
		name += "=" + f.PlaceHolder
	case f.Enum != "":
		name += "=" + strings.ReplaceAll(strings.Trim(f.Enum, ","), ",", "|")
	default:
		name += "=" + strings.ToUpper(f.Name)
	}
	return name
}

// cell makes a text fit for a cell of a table.
func cell(text string) string {
	return strings.NewReplacer("\n", " ", "|", `\|`).Replace(text)
}

// markdown fences the indented lines of a help text: they are examples.
func markdown(text string) string {
	var b strings.Builder
	fenced, blank := false, false
	for line := range strings.Lines(strings.Trim(text, "\n") + "\n") {
		if strings.TrimSpace(line) == "" {
			blank = b.Len() > 0
			continue
		}
		if indented := line[0] == ' ' || line[0] == '\t'; indented != fenced {
			if fenced {
				b.WriteString("```\n")
			}
			b.WriteString("\n")
			if indented {
				b.WriteString("```\n")
			}
			fenced = indented
		} else if blank {
			b.WriteString("\n")
		}
		blank = false
		b.WriteString(strings.TrimPrefix(strings.TrimPrefix(line, "  "), "\t"))
	}
	if fenced {
		b.WriteString("```\n")
	}
	return b.String()
}

func TestMarkdown(t *testing.T) {
	got := markdown("One.\n\nTwo:\n  a\n    b\n\n  c\n\nThree.\n  d\n")
	want := "One.\n\nTwo:\n\n```\na\n  b\n\nc\n```\n\nThree.\n\n```\nd\n```\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("markdown (-want +got):\n%s", diff)
	}
}
