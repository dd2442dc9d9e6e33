package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"countersign.dev/durable"
	"countersign.dev/expiry"
)

// print writes the report.
func (c *checkExpiryCmd) print(p *process, checked checkedExpiry) error {
	if c.json() {
		return writeJSON(p, checked)
	}
	paint := painter(isTerminal(p.stdout) && os.Getenv("NO_COLOR") == "")
	var out strings.Builder
	writeExpiryItems(&out, checked, paint)
	if len(checked.Findings) == 0 {
		looked := "no endpoint was looked at"
		if n := checked.EndpointsSeen; n > 0 {
			looked = "looked at " + count(n, "endpoint")
		}
		fmt.Fprintf(&out, "All is well with %s that can end; %s.\n", count(len(checked.Items), "thing"), looked)
	}
	for _, f := range checked.Findings {
		writeExpiryFinding(&out, f, paint)
	}
	_, err := io.WriteString(p.stdout, out.String())
	return err
}

// painter colours a text by a severity, or leaves it.
func painter(colour bool) func(expiry.Severity, string) string {
	return func(severity expiry.Severity, text string) string {
		code := ""
		switch severity {
		case expiry.Critical:
			code = "31"
		case expiry.Warning:
			code = "33"
		default:
		}
		if !colour || code == "" {
			return text
		}
		return "\x1b[" + code + "m" + text + "\x1b[0m"
	}
}

// writeExpiryItems writes one row for everything that expires. Columns are padded before they are coloured.
func writeExpiryItems(out *strings.Builder, checked checkedExpiry, paint func(expiry.Severity, string) string) {
	if len(checked.Items) == 0 {
		return
	}
	rows := [][]string{{"ENDS IN", "STATE", "WHAT", "WORKLOAD", "INSTANCE", "SERIAL", "DUE", "WHERE"}}
	for _, item := range checked.Items {
		ends := "-"
		switch left := item.NotAfter.Sub(checked.Checked); {
		case item.NotAfter.IsZero():
		case left <= 0:
			ends = expiry.Roughly(-left) + " ago"
		default:
			ends = expiry.Roughly(left)
		}
		rows = append(rows, []string{
			ends, string(item.State), string(item.Kind), cmp.Or(item.Workload, "-"), cmp.Or(item.Instance, "-"),
			cmp.Or(item.Serial[:min(len(item.Serial), 12)], "-"), dueIn(item.Due, checked.Checked), cmp.Or(item.Place, "-"),
		})
	}
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			row[i] = printable(cell)
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for n, row := range rows {
		for i, cell := range row {
			padded := cell
			if i < len(row)-1 {
				padded += strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2)
			}
			if n > 0 && i == 1 {
				padded = paint(checked.Items[n-1].Severity, padded)
			}
			out.WriteString(padded)
		}
		out.WriteByte('\n')
	}
	out.WriteByte('\n')
}

// dueIn says when something is to be replaced.
func dueIn(due, now time.Time) string {
	switch {
	case due.IsZero():
		return "-"
	case due.After(now):
		return "in " + expiry.Roughly(due.Sub(now))
	default:
		return expiry.Roughly(now.Sub(due)) + " ago"
	}
}

// writeExpiryFinding writes a finding in three lines: what it is and where, what is wrong, what to do.
func writeExpiryFinding(out *strings.Builder, f expiry.Finding, paint func(expiry.Severity, string) string) {
	where := ""
	for _, part := range []string{f.Workload, f.Instance, f.Place} {
		if part != "" {
			where += "  " + printable(part)
		}
	}
	fmt.Fprintf(out, "%s %s%s\n", paint(f.Severity, strings.ToUpper(string(f.Severity))), f.Code, where)
	fmt.Fprintf(out, "    %s\n    -> %s\n", printable(f.Message), printable(f.Action))
}

// printable is a text in one line without what a terminal would obey: parts of it come from instances, certificates and
// stores.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case !strconv.IsPrint(r):
			return '?'
		}
		return r
	}, text)
}

// writeExpiryMetrics writes the report as metrics, in one step: a collector never reads half of them.
func writeExpiryMetrics(path string, checked checkedExpiry) error {
	var out strings.Builder
	out.WriteString("# HELP countersign_expiry_seconds Seconds until the end of a certificate or a revocation list; below 0 when it has ended.\n# TYPE countersign_expiry_seconds gauge\n")
	known := make(map[string]bool)
	for _, item := range checked.Items {
		labels := fmt.Sprintf("{kind=%s,workload=%s,instance=%s,place=%s}", label(string(item.Kind)), label(item.Workload), label(item.Instance), label(item.Place))
		if item.Kind == expiry.KindRoot || item.Kind == expiry.KindIssuer {
			labels = strings.TrimSuffix(labels, "}") + ",serial=" + label(item.Serial) + "}"
		}
		if item.NotAfter.IsZero() || known[labels] {
			continue
		}
		known[labels] = true
		fmt.Fprintf(&out, "countersign_expiry_seconds%s %d\n", labels, item.SecondsLeft)
	}
	out.WriteString("# HELP countersign_expiry_findings Findings of the last check, by their code.\n# TYPE countersign_expiry_findings gauge\n")
	type key struct {
		code     expiry.Code
		severity expiry.Severity
		workload string
	}
	counts := make(map[key]int)
	var order []key
	for _, f := range checked.Findings {
		k := key{f.Code, f.Severity, f.Workload}
		if counts[k]++; counts[k] == 1 {
			order = append(order, k)
		}
	}
	for _, k := range order {
		fmt.Fprintf(&out, "countersign_expiry_findings{code=%s,severity=%s,workload=%s} %d\n", label(string(k.code)), label(string(k.severity)), label(k.workload), counts[k])
	}
	fmt.Fprintf(&out, "# HELP countersign_expiry_check_timestamp_seconds When the check was made: alarm when it is old.\n# TYPE countersign_expiry_check_timestamp_seconds gauge\ncountersign_expiry_check_timestamp_seconds %d\n", checked.Checked.Unix())
	if err := durable.WriteFile(path, []byte(out.String()), 0o644); err != nil {
		return fmt.Errorf("writing the metrics: %w", err)
	}
	return nil
}

// label is a value of a metric's label, quoted as Prometheus reads it.
func label(text string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(strings.ToValidUTF8(text, "?")) + `"`
}
